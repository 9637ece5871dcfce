/* What a worker tells the coordinator of its work, and audits. */
#include "worker_rig.h"

#include "cw/bytes.h"
#include "cw/known_answer.h"

static const Cw__Pb__WorkerLoad *next_loads(worker_rig *x)
{
    for (int i = 0; i < 200; i++) {
        rig_clear(&x->r);
        rig_tick(&x->r, 100000);
        cw_action *a = rig_sent(&x->r, x->co, MSG(WORKER_LOAD));
        if (a && a->msg->env->worker_load->n_loads) return a->msg->env->worker_load;
        /* The coordinator lives. */
        Cw__Pb__Pong m = CW__PB__PONG__INIT;
        m.wall_ms = (uint64_t)x->r.wall_ms;
        ENV(env, PONG, pong, &m);
        rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, NULL, 0);
    }
    return NULL;
}

static void rows_are_counted_per_expert_and_told_once(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    static const cw_entry a[] = {{0, 2, 1}, {1, 2, 1}, {0, 5, 1}}, b[] = {{0, 2, 1}};
    wr_send_call(&x, 1, &(wr_call){.id = 1, .layer = 1, .n_rows = 2, .n_entries = 3, .entries = a});
    wr_compute(&x, -1);
    wr_send_call(&x, 1,
                 &(wr_call){.id = 2,
                            .layer = 2,
                            .n_rows = 1,
                            .n_entries = 1,
                            .entries = b,
                            .reply = CW__PB__REPLY_KIND__ROWS_F32});
    wr_compute(&x, -1);
    const Cw__Pb__WorkerLoad *l = next_loads(&x);
    assert_non_null(l);
    assert_int_equal(l->n_loads, 2);
    assert_int_equal(l->loads[0]->layer, 1);
    assert_int_equal(l->loads[0]->n_experts, 2);
    assert_int_equal(l->loads[0]->experts[0], 2);
    assert_int_equal(l->loads[0]->rows[0], 2);
    assert_int_equal(l->loads[0]->experts[1], 5);
    assert_int_equal(l->loads[0]->rows[1], 1);
    assert_int_equal(l->loads[1]->layer, 2);
    assert_int_equal(l->loads[1]->rows[0], 1);
    assert_null(next_loads(&x));
    wr_free(&x);
}

static void ask(worker_rig *x, uint64_t id, uint32_t layer, uint32_t expert, uint32_t n)
{
    Cw__Pb__Audit m = CW__PB__AUDIT__INIT;
    m.id = id, m.layer = layer, m.expert = expert, m.seed = 1234, m.n_rows = n;
    ENV(env, AUDIT, audit, &m);
    rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, NULL, 0);
    wr_acts(x);
}

static uint64_t expected(uint32_t layer, uint32_t expert, uint32_t i)
{
    int8_t q[D];
    float s[D / 32], v[D], y[D];
    uint16_t f16[D];
    if (layer == 1) {
        cw_audit_row(1234, i, D, q, s, NULL);
        for (int k = 0; k < D; k++) f16[k] = cw_f32_to_f16(wr_value(layer, expert, q[0], k));
        return cw_audit_hash(f16, sizeof f16, 1, false);
    }
    cw_audit_row(1234, i, D, NULL, NULL, v);
    for (int k = 0; k < D; k++) y[k] = wr_value(layer, expert, (int8_t)v[0], k);
    return cw_audit_hash(y, sizeof y, 0, false);
}

static void an_audit_is_computed_like_calls_and_hashed_row_by_row(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    for (uint32_t layer = 1; layer <= 2; layer++) {
        rig_clear(&x.r);
        ask(&x, 70 + layer, layer, 3, 40);
        while (x.n_jobs) wr_compute(&x, -1);
        cw_action *a = rig_sent(&x.r, x.co, MSG(AUDIT_RESULT));
        assert_non_null(a);
        const Cw__Pb__AuditResult *r = a->msg->env->audit_result;
        assert_int_equal(r->id, 70 + layer);
        assert_int_equal(r->n_row_hashes, 40);
        for (uint32_t i = 0; i < 40; i++) assert_true(r->row_hashes[i] == expected(layer, 3, i));
        assert_int_equal(rig_count(&x.r, CW_ACT_SEND, x.co, MSG(AUDIT_RESULT)), 1);
    }
    wr_free(&x);
}

static void an_audit_waits_behind_calls_but_not_for_ever(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    static const cw_entry e[] = {{0, 5, 1}};
    uint64_t id = 0;
    wr_call call = {.layer = 1, .n_rows = 1, .n_entries = 1, .entries = e};
    for (int i = 0; i < 2; i++) call.id = ++id, wr_send_call(&x, 1, &call);
    ask(&x, 1, 1, 3, 1);
    int jobs = 0;
    for (; !rig_sent(&x.r, x.co, MSG(AUDIT_RESULT)) && jobs < 100; jobs++) {
        call.id = ++id;
        wr_send_call(&x, 1, &call);
        x.r.now_us += 50000;
        wr_compute(&x, -1);
    }
    assert_in_range(jobs, 15, 30); /* a second of calls */
    wr_free(&x);
}

static void an_audit_that_cannot_be_is_answered_in_words(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_assign(&x, false, 1, 0x08);
    rig_clear(&x.r);
    ask(&x, 5, 1, 3, 10);
    cw_action *a = rig_sent(&x.r, x.co, MSG(AUDIT_RESULT));
    assert_non_null(a);
    assert_int_equal(a->msg->env->audit_result->n_row_hashes, 0);
    assert_true(a->msg->env->audit_result->text[0]);
    /* The expert goes while its rows are being computed, and its audit with it. */
    rig_clear(&x.r);
    ask(&x, 6, 1, 4, 10);
    assert_int_equal(x.n_jobs, 1);
    wr_assign(&x, false, 1, 0x10);
    rig_tick(&x.r, 100000);
    a = rig_sent(&x.r, x.co, MSG(AUDIT_RESULT));
    assert_non_null(a);
    assert_int_equal(a->msg->env->audit_result->n_row_hashes, 0);
    wr_compute(&x, -1);
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, x.co, MSG(AUDIT_RESULT)), 1);
    /* No more than a few wait, and a lost link forgets them all. */
    rig_clear(&x.r);
    for (uint64_t i = 0; i < 20; i++) ask(&x, 10 + i, 1, 5, 100);
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, x.co, MSG(AUDIT_RESULT)), 12);
    rig_down(&x.r, x.co, "gone");
    rig_clear(&x.r);
    while (x.n_jobs) wr_compute(&x, -1);
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 0, MSG(AUDIT_RESULT)), 0);
    wr_free(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_counted_per_expert_and_told_once),
        cmocka_unit_test(an_audit_is_computed_like_calls_and_hashed_row_by_row),
        cmocka_unit_test(an_audit_waits_behind_calls_but_not_for_ever),
        cmocka_unit_test(an_audit_that_cannot_be_is_answered_in_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
