/* The worker machine: calls, batches, bounds, answers. */
#include "worker_rig.h"

#include <math.h>

#include "cw/bytes.h"

static cw_worker_facts facts(worker_rig *x)
{
    cw_worker_facts f;
    cw_worker_get_facts(x->w, &f);
    return f;
}

static void a_call_is_answered_in_the_order_of_its_entries(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    static const cw_entry e[] = {{0, 1, 0.5f}, {1, 1, 0.5f}, {0, 6, 0.25f}, {1, 7, 0.5f}};
    wr_send_call(&x, 1,
                 &(wr_call){.id = 5, .layer = 1, .n_rows = 2, .n_entries = 4, .entries = e, .seed = 10});
    assert_int_equal(x.n_jobs, 1);
    x.r.now_us += 700;
    wr_compute(&x, -1);
    cw_action *a = rig_sent(&x.r, 1, MSG(REPLY));
    assert_non_null(a);
    assert_int_equal(a->msg->env->reply->id, 5);
    assert_int_equal(a->msg->env->reply->service_us, 700);
    static const cw_model_limits lim = {LAYERS, EXPERTS, D, 64, 64};
    cw_reply_view v;
    assert_int_equal(cw_reply_view_get(a->msg, &lim, CW__PB__REPLY_KIND__ROWS_F16, 4, &v, NULL), CW_OK);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < D; k++)
            assert_int_equal(cw_load_u16(v.rows + (i * D + k) * 2),
                             cw_f32_to_f16(wr_value(1, e[i].expert, (int8_t)(10 + e[i].row), k)));
    assert_int_equal(facts(&x).queued_calls, 0);
    assert_int_equal(facts(&x).queue_bytes, 0);
    wr_free(&x);
}

static void rows_of_one_expert_are_computed_together_whoever_asked(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    wr_edge(&x, 2, &x.edge_b);
    static const cw_entry first[] = {{0, 0, 1}}, a[] = {{0, 2, 1}, {0, 5, 1}},
                          b[] = {{0, 2, 1}, {1, 2, 1}, {0, 3, 1}};
    wr_send_call(&x, 1, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = first});
    wr_send_call(&x, 1, &(wr_call){.id = 2, .layer = 1, .n_rows = 1, .n_entries = 2, .entries = a});
    wr_send_call(&x, 2, &(wr_call){.id = 1, .layer = 1, .n_rows = 2, .n_entries = 3, .entries = b});
    wr_send_call(&x, 2,
                 &(wr_call){.id = 2,
                            .layer = 2,
                            .n_rows = 1,
                            .n_entries = 1,
                            .entries = first,
                            .reply = CW__PB__REPLY_KIND__ROWS_F32});
    assert_int_equal(x.n_jobs, 1); /* the first went out alone at once: nothing waits for companions */
    wr_compute(&x, -1);
    assert_int_equal(x.n_jobs, 1);
    const cw_job *job = x.jobs[0];
    /* Edge b's turn: its call (experts 2, 3) with a's row for expert 2. */
    assert_int_equal(job->n_experts, 2);
    assert_int_equal(job->experts[0].expert, 2);
    assert_int_equal(job->experts[0].n, 3);
    assert_int_equal(job->experts[1].expert, 3);
    rig_clear(&x.r);
    wr_compute(&x, -1);
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 2, MSG(REPLY)), 1);
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 1, MSG(REPLY)), 0); /* expert 5 is still to come */
    wr_compute(&x, -1);
    wr_compute(&x, -1);
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 1, MSG(REPLY)), 1);
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 2, MSG(REPLY)), 2);
    wr_free(&x);
}

static void a_call_larger_than_a_job_takes_several(void **state)
{
    (void)state;
    worker_rig x;
    wr_new(&x, NULL);
    cw_worker_config c;
    wr_config(&x, &c);
    wr_free(&x);
    c.job_rows_max = 3;
    wr_boot(&x, &c);
    wr_edge(&x, 1, &x.edge_a);
    cw_entry e[8];
    for (int i = 0; i < 8; i++) e[i] = (cw_entry){(uint16_t)(i % 4), (uint16_t)(i / 4), 1};
    wr_send_call(&x, 1, &(wr_call){.id = 1, .layer = 1, .n_rows = 4, .n_entries = 8, .entries = e});
    int jobs = 0;
    for (; x.n_jobs; jobs++) wr_compute(&x, -1);
    assert_int_equal(jobs, 3);
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 1, MSG(REPLY)), 1);
    wr_free(&x);
}

static void combined_is_the_one_combine_order(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    static const cw_entry e[] = {{0, 1, 0.3f}, {1, 1, 0.7f}, {0, 4, 0.2f}, {0, 6, 0.11f}};
    for (uint32_t layer = 1; layer <= 2; layer++) {
        rig_clear(&x.r);
        wr_send_call(&x, 1,
                     &(wr_call){.id = layer,
                                .layer = layer,
                                .n_rows = 2,
                                .n_entries = 4,
                                .entries = e,
                                .seed = 3,
                                .reply = CW__PB__REPLY_KIND__COMBINED_F32});
        wr_compute(&x, -1);
        static const cw_model_limits lim = {LAYERS, EXPERTS, D, 64, 64};
        cw_reply_view v;
        assert_int_equal(cw_reply_view_get(rig_sent(&x.r, 1, MSG(REPLY))->msg, &lim,
                                           CW__PB__REPLY_KIND__COMBINED_F32, 2, &v, NULL),
                         CW_OK);
        for (uint32_t row = 0; row < 2; row++)
            for (int k = 0; k < D; k++) {
                float y = 0;
                for (int i = 0; i < 4; i++) {
                    if (e[i].row != row) continue;
                    float out = wr_value(layer, e[i].expert, (int8_t)(3 + row), k);
                    if (layer == 1)
                        out = 2 * cw_f16_to_f32(cw_f32_to_f16(out)); /* the fake's exponent is 1 */
                    y = fmaf(e[i].weight, out, y);
                }
                assert_int_equal(cw_load_u32(v.rows + (row * D + (uint32_t)k) * 4), cw_f32_bits(y));
            }
    }
    wr_free(&x);
}

static Cw__Pb__FailCode failed_with(worker_rig *x, cw_link link, uint64_t id)
{
    cw_action *a = rig_sent(&x->r, link, MSG(CALL_FAIL));
    assert_non_null(a);
    assert_int_equal(a->msg->env->call_fail->id, id);
    assert_true(a->msg->env->call_fail->text[0]);
    Cw__Pb__FailCode code = a->msg->env->call_fail->code;
    rig_clear(&x->r);
    return code;
}

static void an_absent_expert_is_answered_with_the_newest_epoch(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    wr_epoch_news(&x, 1, 4);
    wr_assign(&x, false, 1, 0x10);
    static const cw_entry e[] = {{0, 3, 1}, {0, 4, 1}};
    rig_clear(&x.r);
    wr_send_call(&x, 1, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 2, .entries = e});
    assert_int_equal(x.n_jobs, 0);
    cw_action *a = rig_sent(&x.r, 1, MSG(CALL_FAIL));
    assert_int_equal(a->msg->env->call_fail->layer, 1);
    assert_int_equal(a->msg->env->call_fail->expert, 4);
    assert_int_equal(a->msg->n_frames, 1);
    Cw__Pb__EpochBody *b = NULL;
    assert_int_equal(
        cw_epoch_verify(cw_signer_public(x.signer), a->msg->frames[0].data, a->msg->frames[0].len, &b, NULL),
        CW_OK);
    assert_int_equal(b->number, 4);
    cw_epoch_free(&b);
    assert_int_equal(failed_with(&x, 1, 1), CW__PB__FAIL_CODE__FAIL_NOT_HERE);

    /* Once a link: asking in vain must not buy megabytes each time. */
    wr_send_call(&x, 1, &(wr_call){.id = 2, .layer = 1, .n_rows = 1, .n_entries = 2, .entries = e});
    assert_int_equal(rig_sent(&x.r, 1, MSG(CALL_FAIL))->msg->n_frames, 0);
    rig_clear(&x.r);
    wr_epoch_news(&x, 1, 5);
    rig_clear(&x.r);
    wr_send_call(&x, 1, &(wr_call){.id = 3, .layer = 1, .n_rows = 1, .n_entries = 2, .entries = e});
    assert_int_equal(rig_sent(&x.r, 1, MSG(CALL_FAIL))->msg->n_frames, 1);
    wr_free(&x);
}

static void an_expert_is_not_unloaded_under_a_job(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    static const cw_entry e[] = {{0, 3, 1}};
    wr_send_call(&x, 1, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
    wr_send_call(&x, 1, &(wr_call){.id = 2, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
    rig_clear(&x.r);
    wr_assign(&x, false, 1, 0x08);
    rig_tick(&x.r, 100000);
    wr_acts(&x);
    assert_int_equal(x.n_unloads, 0);
    /* What was only queued is sent away, what is being computed is answered. */
    assert_int_equal(failed_with(&x, 1, 2), CW__PB__FAIL_CODE__FAIL_NOT_HERE);
    wr_compute(&x, -1);
    assert_non_null(rig_sent(&x.r, 1, MSG(REPLY)));
    assert_int_equal(x.n_unloads, 1);
    wr_free(&x);
}

static void queued_rows_past_their_budget_are_dropped(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    static const cw_entry e[] = {{0, 3, 1}};
    wr_send_call(&x, 1, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
    wr_send_call(
        &x, 1, &(wr_call){.id = 2, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e, .budget_us = 5000});
    x.r.now_us += 6000;
    wr_compute(&x, -1);
    assert_int_equal(failed_with(&x, 1, 2), CW__PB__FAIL_CODE__FAIL_EXPIRED);
    assert_int_equal(x.n_jobs, 0);
    assert_int_equal(facts(&x).queued_calls, 0);
    wr_free(&x);
}

static void rows_of_a_peer_that_is_gone_are_dropped(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    wr_edge(&x, 2, &x.edge_b);
    static const cw_entry e[] = {{0, 3, 1}}, o[] = {{0, 4, 1}};
    wr_send_call(&x, 1, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
    wr_send_call(&x, 1, &(wr_call){.id = 2, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
    wr_send_call(&x, 2, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = o});
    rig_down(&x.r, 1, "gone");
    assert_int_equal(facts(&x).queued_calls, 1);
    wr_compute(&x, -1); /* the job that was out: its memory was still there */
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 1, 0), 0);
    assert_int_equal(x.n_jobs, 1);
    wr_compute(&x, -1);
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 2, MSG(REPLY)), 1);
    assert_int_equal(facts(&x).queue_bytes, 0);
    wr_free(&x);
}

static void a_cancelled_call_is_neither_computed_nor_answered(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    static const cw_entry e[] = {{0, 3, 1}};
    for (uint64_t id = 1; id <= 3; id++)
        wr_send_call(&x, 1, &(wr_call){.id = id, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
    for (uint64_t id = 1; id <= 2; id++) { /* one in a job, one queued */
        Cw__Pb__Cancel m = CW__PB__CANCEL__INIT;
        m.id = id;
        ENV(env, CANCEL, cancel, &m);
        rig_message(&x.r, 1, CW_PORT_DATA, &x.edge_a, &env, NULL, 0);
    }
    rig_clear(&x.r);
    wr_compute(&x, -1);
    assert_int_equal(x.jobs[0]->n_rows, 1);
    wr_compute(&x, -1);
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 1, 0), 1);
    assert_int_equal(rig_sent(&x.r, 1, MSG(REPLY))->msg->env->reply->id, 3);
    wr_free(&x);
}

static void a_row_that_is_not_finite_fails_only_its_call(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    wr_edge(&x, 2, &x.edge_b);
    static const cw_entry e[] = {{0, 3, 1}, {0, 5, 1}}, o[] = {{0, 5, 1}, {0, 6, 1}};
    wr_send_call(&x, 1, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 2, .entries = e});
    wr_send_call(&x, 2, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 2, .entries = o});
    rig_clear(&x.r);
    wr_compute(&x, 3);
    cw_action *a = rig_sent(&x.r, 1, MSG(CALL_FAIL));
    assert_int_equal(a->msg->env->call_fail->code, CW__PB__FAIL_CODE__FAIL_NUMERIC);
    assert_non_null(strstr(a->msg->env->call_fail->text, "expert 3 of layer 1"));
    wr_compute(&x, -1);
    assert_non_null(rig_sent(&x.r, 2, MSG(REPLY)));
    assert_null(rig_sent(&x.r, 1, MSG(REPLY)));
    wr_free(&x);
}

static void prefill_is_turned_away_before_running_answers(void **state)
{
    (void)state;
    worker_rig x;
    wr_new(&x, NULL);
    cw_worker_config c;
    wr_config(&x, &c);
    wr_free(&x);
    c.peer_bytes_max = 2000; /* a call here takes about 250 */
    wr_boot(&x, &c);
    wr_edge(&x, 1, &x.edge_a);
    static const cw_entry e[] = {{0, 3, 1}};
    uint64_t id = 0;
    wr_call call = {
        .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e, .klass = CW__PB__CALL_CLASS__CLASS_PREFILL};
    while (!rig_sent(&x.r, 1, MSG(CALL_FAIL))) {
        call.id = ++id;
        wr_send_call(&x, 1, &call);
        assert_true(id < 20);
    }
    assert_true(rig_sent(&x.r, 1, MSG(CALL_FAIL))->msg->env->call_fail->retry_after_ms > 0);
    assert_int_equal(failed_with(&x, 1, id), CW__PB__FAIL_CODE__FAIL_BUSY);
    assert_true(facts(&x).queue_bytes <= 1000);
    call.id = ++id, call.klass = CW__PB__CALL_CLASS__CLASS_DECODE;
    wr_send_call(&x, 1, &call);
    assert_null(rig_sent(&x.r, 1, MSG(CALL_FAIL)));
    /* But the bound holds for everybody. */
    for (int i = 0; i < 100; i++) {
        call.id = ++id;
        wr_send_call(&x, 1, &call);
    }
    assert_true(facts(&x).queue_bytes <= 2000);
    wr_free(&x);
}

/* What a key may use, and the debts it has, are its own and not its connection's. */
static void coming_back_brings_no_new_allowance(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge_with(&x, 1, &x.edge_a, 1);
    static const cw_entry e[] = {{0, 3, 1}};
    wr_call call = {.id = 1, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e, .stream = 1};
    wr_send_call(&x, 1, &call);
    assert_null(rig_sent(&x.r, 1, MSG(CALL_FAIL)));
    rig_down(&x.r, 1, "cut");
    wr_acts(&x);
    wr_edge_with(&x, 2, &x.edge_a, 1);
    call.stream = 2;
    wr_send_call(&x, 2, &call);
    assert_int_equal(failed_with(&x, 2, 1), CW__PB__FAIL_CODE__FAIL_BUSY);
    rig_clear(&x.r);
    call.id = 2, call.stream = 1; /* it was let in before */
    wr_send_call(&x, 2, &call);
    assert_null(rig_sent(&x.r, 2, MSG(CALL_FAIL)));
    /* Nobody is remembered for ever. */
    rig_down(&x.r, 2, "cut");
    wr_acts(&x);
    for (int s = 0; s < 11; s++) rig_tick(&x.r, 1000000), wr_acts(&x);
    wr_edge_with(&x, 3, &x.edge_a, 1);
    call.stream = 2;
    wr_send_call(&x, 3, &call);
    assert_null(rig_sent(&x.r, 3, MSG(CALL_FAIL)));
    wr_free(&x);
}

static void edges_take_turns(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    wr_edge(&x, 2, &x.edge_b);
    /* Different experts, so that nothing is batched. Edge 1 is greedy. */
    for (uint16_t i = 0; i < 6; i++)
        wr_send_call(
            &x, 1,
            &(wr_call){
                .id = i + 1u, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = &(cw_entry){0, i, 1}});
    wr_send_call(
        &x, 2, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = &(cw_entry){0, 7, 1}});
    rig_clear(&x.r);
    wr_compute(&x, -1);
    wr_compute(&x, -1);
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 2, MSG(REPLY)), 1);
    wr_free(&x);
}

static void a_call_that_breaks_the_protocol_costs_the_link(void **state)
{
    (void)state;
    static const cw_entry good[] = {{0, 3, 1}}, far[] = {{0, 8, 1}};
    const wr_call bad[] = {
        {.id = 5,
         .layer = 0,
         .n_rows = 1,
         .n_entries = 1,
         .entries = good,
         .reply = CW__PB__REPLY_KIND__ROWS_F32},                             /* dense layer */
        {.id = 5, .layer = 3, .n_rows = 1, .n_entries = 1, .entries = good}, /* no such layer */
        {.id = 5, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = far},  /* no such expert */
        {.id = 5, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = good, .seed = -128}, /* q of -128 */
        {.id = 5,
         .layer = 1,
         .n_rows = 1,
         .n_entries = 1,
         .entries = good,
         .reply = CW__PB__REPLY_KIND__ROWS_F32},
        {.id = 4, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = good}, /* id not rising */
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++) {
        worker_rig x;
        wr_boot(&x, NULL);
        wr_edge(&x, 1, &x.edge_a);
        wr_send_call(&x, 1, &(wr_call){.id = 4, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = good});
        rig_clear(&x.r);
        wr_send_call(&x, 1, &bad[i]);
        assert_non_null(rig_action(&x.r, CW_ACT_BLAME, 1, 0, 0));
        wr_compute(&x, -1);
        assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 1, 0), 0);
        rig_tick(&x.r, 100000);
        assert_int_equal(facts(&x).n_edges, 0);
        wr_free(&x);
    }
}

static void stopping_finishes_what_is_queued_and_refuses_new_calls(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    static const cw_entry e[] = {{0, 3, 1}};
    wr_send_call(&x, 1, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
    wr_send_call(&x, 1, &(wr_call){.id = 2, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
    cw_worker_stop(x.w, x.r.now_us, x.r.wall_ms, &x.r.out);
    wr_acts(&x);
    assert_int_equal(x.stopped, -1);
    rig_clear(&x.r);
    wr_send_call(&x, 1, &(wr_call){.id = 3, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
    assert_int_equal(failed_with(&x, 1, 3), CW__PB__FAIL_CODE__FAIL_STOPPING);
    wr_compute(&x, -1);
    wr_compute(&x, -1);
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 1, MSG(REPLY)), 2);
    assert_int_equal(x.stopped, 0);
    wr_free(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_call_is_answered_in_the_order_of_its_entries),
        cmocka_unit_test(rows_of_one_expert_are_computed_together_whoever_asked),
        cmocka_unit_test(a_call_larger_than_a_job_takes_several),
        cmocka_unit_test(combined_is_the_one_combine_order),
        cmocka_unit_test(an_absent_expert_is_answered_with_the_newest_epoch),
        cmocka_unit_test(an_expert_is_not_unloaded_under_a_job),
        cmocka_unit_test(queued_rows_past_their_budget_are_dropped),
        cmocka_unit_test(rows_of_a_peer_that_is_gone_are_dropped),
        cmocka_unit_test(a_cancelled_call_is_neither_computed_nor_answered),
        cmocka_unit_test(a_row_that_is_not_finite_fails_only_its_call),
        cmocka_unit_test(prefill_is_turned_away_before_running_answers),
        cmocka_unit_test(coming_back_brings_no_new_allowance),
        cmocka_unit_test(edges_take_turns),
        cmocka_unit_test(a_call_that_breaks_the_protocol_costs_the_link),
        cmocka_unit_test(stopping_finishes_what_is_queued_and_refuses_new_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
