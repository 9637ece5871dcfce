/* The edge machine: entering, epochs, worker links, division of calls, what happens when something is lost.
 */
#include "edge_rig.h"

#include "cw/bytes.h"

static cw_edge_facts facts(edge_rig *x)
{
    cw_edge_facts f;
    cw_edge_get_facts(x->e, &f);
    return f;
}

static uint32_t entries_of(cw_action *a)
{
    return a ? a->msg->env->call->n_entries : 0;
}

static void enrols_once_and_saves_what_it_got(void **state)
{
    (void)state;
    edge_rig *x = er_new(NULL);
    x->n_workers = 1;
    er_connect(x);
    assert_non_null(rig_sent(&x->r, x->co, MSG(ENROL)));
    rig_clear(&x->r);
    cw_edge_saved s;
    assert_false(cw_edge_get_saved(x->e, &s));
    er_welcome(x, 1, 1);
    assert_int_equal(x->n_enrolled, 1);
    assert_true(x->n_saved > 0);
    assert_true(cw_edge_get_saved(x->e, &s));
    assert_true(s.ticket_len && s.epoch_len);
    /* No stream, no connections to workers. */
    rig_tick(&x->r, 1000000);
    assert_null(rig_action(&x->r, CW_ACT_OPEN, 0, 0, 0));
    rig_down(&x->r, x->co, "gone");
    rig_clear(&x->r);
    er_connect(x);
    assert_non_null(rig_sent(&x->r, x->co, MSG(HELLO)));
    er_free(x);
}

static void starts_from_what_was_saved_while_the_coordinator_is_down(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    cw_edge_saved s;
    assert_true(cw_edge_get_saved(x->e, &s));
    cw_edge_config c;
    er_config(x, &c);
    c.has_saved = true, c.enrolled = true, c.sign_key = s.sign_key;
    memcpy(c.cluster_id, s.cluster_id, sizeof c.cluster_id);
    c.saved_ticket = s.ticket, c.saved_ticket_len = s.ticket_len, c.saved_epoch = s.epoch,
    c.saved_epoch_len = s.epoch_len;
    edge_rig *y = er_new(&c);
    y->n_workers = 2;
    cw_signer_free(&y->signer);
    y->signer = x->signer;
    cw_edge_want(y->e, y->r.now_us, &y->r.out);
    er_workers_up(y);
    assert_true(facts(y).covered);
    assert_false(facts(y).admitted);
    er_submit(y, 1, 1, 0xff);
    er_answer_all(y);
    er_check_rows(y);
    y->signer = NULL;
    er_free(y);
    er_free(x);
}

static void a_final_refusal_is_told_and_not_repeated(void **state)
{
    (void)state;
    edge_rig *x = er_new(NULL);
    er_connect(x);
    Cw__Pb__Refusal m = CW__PB__REFUSAL__INIT;
    m.code = CW__PB__REFUSAL_CODE__REFUSAL_TOKEN, m.text = (char *)"that token has been used up";
    ENV(env, REFUSAL, refusal, &m);
    rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, NULL, 0);
    er_acts(x);
    assert_int_equal(x->refused, CW__PB__REFUSAL_CODE__REFUSAL_TOKEN);
    assert_non_null(strstr(x->refused_text, "used up"));
    rig_clear(&x->r);
    rig_tick(&x->r, 100000000);
    assert_null(rig_action(&x->r, CW_ACT_OPEN, 0, 0, 0));
    er_free(x);
}

static void a_cluster_with_another_model_is_refused_by_name(void **state)
{
    (void)state;
    edge_rig *x = er_new(NULL);
    er_connect(x);
    x->digest[0] = 0xee;
    er_welcome(x, 1, 1);
    assert_int_equal(x->refused, CW__PB__REFUSAL_CODE__REFUSAL_MODEL);
    assert_non_null(strstr(x->refused_text, "ee050505"));
    assert_non_null(strstr(x->refused_text, "05050505"));
    er_free(x);
}

static void epochs_rise_only_and_foreign_signatures_are_ignored(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    er_epoch_news(x, 2, 5);
    er_epoch_news(x, 2, 4);
    er_epoch_news(x, 1, 100);
    assert_int_equal(facts(x).epoch_term, 2);
    assert_int_equal(facts(x).epoch_number, 5);
    cw_signer *ours = x->signer;
    assert_int_equal(cw_signer_new(&x->signer, NULL), CW_OK);
    er_epoch_news(x, 7, 1);
    cw_signer_free(&x->signer);
    x->signer = ours;
    assert_int_equal(facts(x).epoch_term, 2);
    x->cluster[0] ^= 1; /* another cluster's */
    er_epoch_news(x, 7, 1);
    x->cluster[0] ^= 1;
    assert_int_equal(facts(x).epoch_term, 2);
    er_epoch_news(x, 3, 1);
    assert_int_equal(facts(x).epoch_term, 3);
    er_free(x);
}

static void tickets_are_renewed_at_half_life(void **state)
{
    (void)state;
    edge_rig *x = er_boot(1, NULL);
    int asked = 0;
    for (int s = 0; s < 1900; s++) {
        rig_tick(&x->r, 1000000);
        Cw__Pb__Pong p = CW__PB__PONG__INIT;
        p.wall_ms = (uint64_t)x->r.wall_ms;
        ENV(env, PONG, pong, &p);
        rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, NULL, 0);
        asked += rig_count(&x->r, CW_ACT_SEND, x->co, MSG(TICKET_RENEW));
        if (s < 1790) assert_int_equal(asked, 0);
        if (s >= 1801 && asked == 1) {
            size_t n;
            uint8_t *t = er_ticket(x, &n);
            Cw__Pb__Ticket m = CW__PB__TICKET__INIT;
            m.signed_ticket = (ProtobufCBinaryData){n, t}, m.wall_ms = (uint64_t)x->r.wall_ms;
            ENV(env2, TICKET, ticket, &m);
            rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env2, NULL, 0);
            cw_free(t);
        }
        rig_clear(&x->r);
    }
    assert_int_equal(asked, 1);
    assert_true(facts(x).ticket_not_after_ms > 1000000000 + 3600 * 1000);
    er_free(x);
}

static void links_to_workers_close_when_idle_and_open_with_a_request(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    for (int i = 0; i < 59; i++) {
        rig_tick(&x->r, 1000000);
        for (int w = 0; w < 2; w++) { /* they are alive */
            Cw__Pb__Pong p = CW__PB__PONG__INIT;
            p.t_us = (uint64_t)x->r.now_us - 300;
            ENV(env, PONG, pong, &p);
            rig_message(&x->r, x->link[w], CW_PORT_DATA, &x->worker[w], &env, NULL, 0);
        }
    }
    assert_null(rig_action(&x->r, CW_ACT_CLOSE, x->link[0], 0, 0));
    cw_edge_worker_facts wf;
    assert_true(cw_edge_get_worker(x->e, 0, &wf));
    assert_int_equal(wf.rtt_us, 300);
    rig_tick(&x->r, 2000000);
    assert_non_null(rig_action(&x->r, CW_ACT_CLOSE, x->link[0], 0, 0));
    rig_clear(&x->r);
    rig_tick(&x->r, 5000000);
    for (int k = 0; rig_action(&x->r, CW_ACT_OPEN, 0, 0, k); k++)
        assert_true(cw_key_equal(&rig_action(&x->r, CW_ACT_OPEN, 0, 0, k)->key, &x->coordinator));
    rig_clear(&x->r);
    er_submit(x, 1, 1, 0x0f);
    er_workers_up(x);
    er_answer_all(x);
    er_check_rows(x);
    er_free(x);
}

static void rows_come_back_to_their_places(void **state)
{
    (void)state;
    for (uint32_t layer = 1; layer <= 2; layer++)
        for (int n_workers = 1; n_workers <= 4; n_workers++) {
            edge_rig *x = er_boot(n_workers, NULL);
            er_submit(x, layer, 7, 0xb5);
            er_answer_all(x);
            er_check_rows(x);
            assert_int_equal(x->n_done, 1);
            er_free(x);
        }
}

static void a_layer_is_balanced_over_replicas_and_always_alike(void **state)
{
    (void)state;
    uint32_t first[2] = {0};
    for (int round = 0; round < 3; round++) {
        edge_rig *x = er_boot(2, NULL);
        er_submit(x, 1, 1, 0xff);
        assert_int_equal(entries_of(er_call(x, 0, 0)), 4);
        assert_int_equal(entries_of(er_call(x, 1, 0)), 4);
        uint32_t bits[2] = {0};
        for (int w = 0; w < 2; w++)
            for (uint32_t i = 0; i < 4; i++)
                bits[w] |= 1u << cw_entry_get(er_call(x, w, 0)->msg->frames[0].data, i).expert;
        assert_int_equal(bits[0] | bits[1], 0xff);
        if (round) assert_int_equal(bits[0], first[0]);
        first[0] = bits[0];
        er_free(x);
    }
}

static void a_faster_worker_gets_more(void **state)
{
    (void)state;
    edge_rig *x = er_new(NULL);
    x->n_workers = 2;
    x->speed[0] = 3;
    er_connect(x);
    er_welcome(x, 1, 1);
    cw_edge_want(x->e, x->r.now_us, &x->r.out);
    er_workers_up(x);
    rig_clear(&x->r);
    er_submit(x, 1, 1, 0xff);
    assert_int_equal(entries_of(er_call(x, 0, 0)), 6);
    assert_int_equal(entries_of(er_call(x, 1, 0)), 2);
    er_free(x);
}

static void pong(edge_rig *x, int w, int64_t rtt_us)
{
    Cw__Pb__Pong p = CW__PB__PONG__INIT;
    p.t_us = (uint64_t)(x->r.now_us - rtt_us);
    ENV(env, PONG, pong, &p);
    rig_message(&x->r, x->link[w], CW_PORT_DATA, &x->worker[w], &env, NULL, 0);
}

static void small_differences_of_delay_are_noise_and_large_ones_count(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    pong(x, 0, 100);
    pong(x, 1, 450);
    er_submit(x, 1, 1, 0xff);
    assert_int_equal(entries_of(er_call(x, 0, 0)), 4);
    assert_int_equal(entries_of(er_call(x, 1, 0)), 4);
    er_free(x);
    x = er_boot(2, NULL);
    pong(x, 0, 100);
    pong(x, 1, 50000); /* eight experts of 100 kB take less at 1 GB/s */
    er_submit(x, 1, 1, 0xff);
    assert_int_equal(entries_of(er_call(x, 0, 0)), 8);
    er_free(x);
}

/* An edge that starves for a processor sees delays; there is no link that they could belong to. */
static void on_one_machine_no_delay_counts(void **state)
{
    (void)state;
    edge_rig *x = er_new(NULL);
    x->n_workers = 2;
    x->same_host = true;
    er_connect(x);
    er_welcome(x, 1, 1);
    cw_edge_want(x->e, x->r.now_us, &x->r.out);
    er_workers_up(x);
    rig_clear(&x->r);
    pong(x, 0, 100);
    pong(x, 1, 50000);
    for (int i = 0; i < 4; i++) { /* as on a link of 1 MB/s */
        er_submit(x, 1, 64, 0xff);
        assert_int_equal(entries_of(er_call(x, 0, 0)), entries_of(er_call(x, 1, 0)));
        x->r.now_us += (int64_t)640 * 64;
        er_answer_all(x);
        er_check_rows(x);
        rig_clear(&x->r);
    }
    er_free(x);
}

static void a_worker_that_seemed_slow_is_tried_again(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    pong(x, 0, 100);
    pong(x, 1, 20000);
    int tried = 0;
    for (int i = 0; i < 1000 && !tried; i++) {
        er_submit(x, 1, 1, 0xff);
        tried = entries_of(er_call(x, 1, 0)) > 0;
        if (!i) assert_false(tried);
        er_answer_all(x);
        er_check_rows(x);
        rig_clear(&x->r);
    }
    assert_true(tried);
    er_free(x);
}

static void thin_links_share_what_is_to_be_carried(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        bool thin = k & 1;
        uint32_t rows = k & 2 ? 64 : 8; /* 40 kB to each, or 5; answered at once or at 1 MB/s */
        edge_rig *x = er_boot(2, NULL);
        pong(x, 0, 100);
        pong(x, 1, 100);
        for (int i = 0; i < 4; i++) {
            er_submit(x, 1, rows, 0xff);
            x->r.now_us += thin ? 640 * rows : 200;
            er_answer_all(x);
            er_check_rows(x);
            rig_clear(&x->r);
        }
        for (int i = 0; i < 400; i++) pong(x, 1, 5000); /* one is believed to be a bit further away */
        rig_clear(&x->r);
        er_submit(x, 1, 64, 0xff);
        /* Eight experts' weights are read in less than that; their rows take 80 ms of a thin link. */
        if (thin)
            assert_in_range(entries_of(er_call(x, 1, 0)), 128, 320);
        else
            assert_null(er_call(x, 1, 0));
        er_free(x);
    }
}

static void an_expert_goes_only_where_it_is(void **state)
{
    (void)state;
    edge_rig *x = er_new(NULL);
    x->n_workers = 3;
    x->sets[0][1] = 0x0f, x->sets[1][1] = 0xf0, x->sets[2][1] = 0x81;
    er_connect(x);
    er_welcome(x, 1, 1);
    cw_edge_want(x->e, x->r.now_us, &x->r.out);
    er_workers_up(x);
    rig_clear(&x->r);
    er_submit(x, 1, 5, 0xff);
    er_answer_all(x); /* er_reply asserts that the worker holds it */
    er_check_rows(x);
    er_free(x);
}

static void many_rows_are_cut_to_small_messages_and_bounded_in_flight(void **state)
{
    (void)state;
    edge_rig *x = er_boot(1, NULL);
    er_submit(x, 2, ROWS_MAX, 0x0f); /* 600 rows, 4 f32 rows of 256 bytes each back: 614 KB */
    int n = 0;
    cw_action *a;
    for (; (a = er_call(x, 0, n)); n++) {
        assert_true(cw_msg_total_bytes(a->msg) <= CW_CALL_TARGET_BYTES + 4096);
        assert_true(a->msg->env->call->n_entries * D * 4 <= CW_CALL_TARGET_BYTES);
    }
    assert_true(n >= 3);
    er_answer_all(x);
    er_check_rows(x);
    er_free(x);
}

static void a_lost_link_is_made_good_by_the_replica(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    er_submit(x, 1, 3, 0xff);
    er_reply(x, 1, er_call(x, 1, 0));
    assert_int_equal(x->n_done, 0);
    uint32_t lost = entries_of(er_call(x, 0, 0));
    uint64_t id = er_call(x, 0, 0)->msg->env->call->id;
    rig_down(&x->r, x->link[0], "connection reset");
    cw_action *a = er_call(x, 1, 0);
    assert_int_equal(entries_of(a), lost);
    assert_true(a->msg->env->call->id > id);
    er_reply(x, 1, a);
    er_check_rows(x);
    assert_int_equal(facts(x).n.resent, 1);
    er_free(x);
}

static void without_a_replica_the_worker_is_waited_for_and_then_named(void **state)
{
    (void)state;
    for (int comes_back = 0; comes_back < 2; comes_back++) {
        edge_rig *x = er_boot(1, NULL);
        er_submit(x, 1, 1, 0x03);
        rig_down(&x->r, x->link[0], "connection reset");
        rig_clear(&x->r);
        for (int i = 0; i < 10; i++) rig_tick(&x->r, 100000);
        assert_int_equal(x->n_done, 0);
        if (comes_back) {
            er_workers_up(x);
            er_answer_all(x);
            er_check_rows(x);
        } else {
            for (int i = 0; i < 120; i++) rig_tick(&x->r, 100000);
            er_acts(x);
            assert_int_equal(x->n_done, 1);
            assert_int_equal(x->req.status, CW_STATUS_UNREACHABLE);
            assert_non_null(strstr(x->req.text, "w0"));
            assert_non_null(strstr(x->req.text, "connection reset"));
        }
        er_free(x);
    }
}

/* With a fallback that is a loss of the mainland, whoever else speaks: not an expert to wait for at every
 * token. */
static void an_expert_that_nobody_has_is_waited_for_once(void **state)
{
    (void)state;
    edge_rig *seed = er_new(NULL);
    cw_edge_config c;
    er_config(seed, &c);
    er_free(seed);
    c.gives_way = true;
    edge_rig *x = er_boot(2, &c);
    x->sets[1][1] = 0xfe; /* worker 1 lacks expert 0 of layer 1 */
    er_epoch_news(x, 1, 2);
    er_submit(x, 1, 1, 0x01);
    rig_down(&x->r, x->link[0], "connection reset");
    rig_clear(&x->r);
    int waited = 0;
    for (; waited < 200 && !x->n_done; waited++) {
        rig_tick(&x->r, 100000);
        Cw__Pb__Pong p = CW__PB__PONG__INIT;
        ENV(env, PONG, pong, &p);
        rig_message(&x->r, x->link[1], CW_PORT_DATA, &x->worker[1], &env, NULL, 0);
        er_acts(x);
        rig_clear(&x->r);
    }
    assert_in_range(waited, 95, 110);
    assert_int_equal(x->req.status, CW_STATUS_UNREACHABLE);
    assert_non_null(strstr(x->req.text, "w0"));
    assert_int_equal(cw_edge_tide(x->e), CW_TIDE_OFFLINE);
    er_submit(x, 1, 1, 0x01);
    er_acts(x);
    assert_int_equal(x->n_done, 2); /* at once */
    er_free(x);
}

static void not_here_takes_the_epoch_and_asks_elsewhere(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    x->sets[1][1] = 0; /* so far the edge thinks both hold all: w1 will say otherwise */
    er_submit(x, 1, 1, 0x03);
    uint64_t id = er_call(x, 1, 0)->msg->env->call->id;
    uint32_t expert = cw_entry_get(er_call(x, 1, 0)->msg->frames[0].data, 0).expert;
    size_t n;
    uint8_t *epoch = er_epoch(x, 1, 2, &n);
    rig_clear(&x->r);
    er_fail(x, 1, id, CW__PB__FAIL_CODE__FAIL_NOT_HERE, 1, expert, epoch, n);
    assert_int_equal(facts(x).epoch_number, 2);
    assert_int_equal(entries_of(er_call(x, 0, 0)), 1);
    cw_free(epoch);
    /* Without an epoch: that worker is not asked for that expert again either. */
    er_submit(x, 2, 1, 0x01);
    int w = er_call(x, 0, 1) ? 0 : 1;
    cw_action *a = w ? er_call(x, 1, 0) : er_call(x, 0, 1);
    id = a->msg->env->call->id;
    rig_clear(&x->r);
    er_fail(x, w, id, CW__PB__FAIL_CODE__FAIL_NOT_HERE, 2, 0, NULL, 0);
    assert_non_null(er_call(x, 1 - w, 0));
    er_free(x);
}

static void busy_waits_and_stopping_goes_elsewhere(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    er_submit(x, 1, 1, 0x01);
    int w = er_call(x, 0, 0) ? 0 : 1;
    uint64_t id = er_call(x, w, 0)->msg->env->call->id;
    rig_clear(&x->r);
    er_fail(x, w, id, CW__PB__FAIL_CODE__FAIL_BUSY, 0, 0, NULL, 0);
    assert_null(er_call(x, 0, 0));
    assert_null(er_call(x, 1, 0));
    rig_tick(&x->r, 30000);
    w = er_call(x, 0, 0) ? 0 : 1;
    id = er_call(x, w, 0)->msg->env->call->id;
    rig_clear(&x->r);
    er_fail(x, w, id, CW__PB__FAIL_CODE__FAIL_STOPPING, 0, 0, NULL, 0);
    assert_non_null(er_call(x, 1 - w, 0));
    er_reply(x, 1 - w, er_call(x, 1 - w, 0));
    er_check_rows(x);
    er_free(x);
}

static void numeric(edge_rig *x, int w)
{
    uint64_t id = er_call(x, w, 0)->msg->env->call->id;
    rig_clear(&x->r);
    er_fail(x, w, id, CW__PB__FAIL_CODE__FAIL_NUMERIC, 1, 3, NULL, 0);
}

static void a_row_that_is_not_finite_is_asked_of_a_replica_once(void **state)
{
    (void)state;
    for (int replica_too = 0; replica_too < 2; replica_too++) {
        edge_rig *x = er_boot(2, NULL);
        er_submit(x, 1, 1, 0x08);
        int w = er_call(x, 0, 0) ? 0 : 1;
        numeric(x, w);
        assert_int_equal(x->n_done, 0);
        assert_non_null(er_call(x, 1 - w, 0));
        if (replica_too) {
            numeric(x, 1 - w);
            assert_int_equal(x->n_done, 1);
            assert_int_equal(x->req.status, CW_STATUS_NUMERIC);
            assert_non_null(strstr(x->req.text, w ? "w0" : "w1"));
        } else {
            er_answer_all(x);
            er_check_rows(x);
            /* One of the two computes wrongly: the coordinator is to find out which. */
            assert_non_null(rig_sent(&x->r, x->co, MSG(MISMATCH)));
        }
        er_free(x);
    }
    /* Nobody else to ask. */
    edge_rig *x = er_boot(1, NULL);
    er_submit(x, 1, 1, 0xff);
    numeric(x, 0);
    assert_int_equal(x->req.status, CW_STATUS_NUMERIC);
    assert_non_null(strstr(x->req.text, "w0"));
    er_free(x);
}

static void late_and_repeated_answers_are_ignored(void **state)
{
    (void)state;
    edge_rig *x = er_boot(1, NULL);
    er_submit(x, 1, 1, 0x01);
    cw_action *a = er_call(x, 0, 0);
    cw_action copy = *a;
    copy.msg = cw_msg_new(a->msg->env, NULL, 0);
    for (uint32_t i = 0; i < a->msg->n_frames; i++)
        copy.msg->frames[i] = cw_frame_copy(a->msg->frames[i].data, a->msg->frames[i].len);
    copy.msg->n_frames = a->msg->n_frames;
    cw_edge_cancel(x->e, &x->req, x->r.now_us, &x->r.out);
    er_acts(x);
    assert_int_equal(x->n_done, 1);
    assert_int_equal(x->req.status, CW_STATUS_CANCELLED);
    assert_non_null(rig_sent(&x->r, x->link[0], MSG(CANCEL)));
    rig_clear(&x->r);
    er_reply(x, 0, &copy); /* crossed with the cancellation */
    assert_int_equal(facts(x).n.late, 1);
    assert_int_equal(x->f16[0], 0); /* nothing was written */
    assert_null(rig_action(&x->r, CW_ACT_BLAME, 0, 0, 0));
    er_fail(x, 0, 999, CW__PB__FAIL_CODE__FAIL_EXPIRED, 0, 0, NULL, 0);
    assert_int_equal(facts(x).n.late, 2);
    /* With another call under way, answers to ids before and after it are still nobody's. */
    er_submit(x, 1, 1, 0x01);
    uint64_t id = er_call(x, 0, 0)->msg->env->call->id;
    for (int after = 0; after < 2; after++) {
        Cw__Pb__Reply r = CW__PB__REPLY__INIT;
        r.id = after ? id + 1 : id - 1, r.n = 1;
        uint8_t *mem;
        cw_frame f[2] = {cw_frame_new(D * 2, &mem), cw_frame_copy("a", 1)};
        memset(mem, 1, D * 2);
        ENV(env, REPLY, reply, &r);
        rig_message(&x->r, x->link[0], CW_PORT_DATA, &x->worker[0], &env, f, 2);
        er_acts(x);
    }
    assert_int_equal(x->n_done, 1);
    assert_int_equal(facts(x).n.late, 4);
    er_reply(x, 0, er_call(x, 0, 0));
    er_check_rows(x);
    er_free(x);
}

static void a_reply_of_the_wrong_shape_costs_the_link_and_not_the_answer(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    er_submit(x, 1, 1, 0xff);
    uint64_t id = er_call(x, 0, 0)->msg->env->call->id;
    Cw__Pb__Reply r = CW__PB__REPLY__INIT;
    r.id = id, r.n = 3;
    uint8_t *mem;
    cw_frame f[2] = {cw_frame_new(3 * D * 2, &mem), cw_frame_copy("abc", 3)};
    memset(mem, 0, 3 * D * 2);
    ENV(env, REPLY, reply, &r);
    rig_message(&x->r, x->link[0], CW_PORT_DATA, &x->worker[0], &env, f, 2);
    assert_non_null(rig_action(&x->r, CW_ACT_BLAME, x->link[0], 0, 0));
    er_reply(x, 1, er_call(x, 1, 0));
    er_reply(x, 1, er_call(x, 1, 0));
    er_check_rows(x);
    er_free(x);
}

static void a_call_nobody_answers_is_sent_again_and_the_deadline_holds(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    er_submit(x, 1, 1, 0x01);
    int w = er_call(x, 0, 0) ? 0 : 1, end = 0;
    rig_clear(&x->r);
    for (int i = 0; i < 65; i++) rig_tick(&x->r, 100000), er_acts(x);
    assert_non_null(rig_sent(&x->r, x->link[w], MSG(CANCEL)));
    assert_non_null(er_call(x, 1 - w, 0));
    /* And nobody ever answers (but everybody is alive). */
    for (; end < 400 && !x->n_done; end++) {
        rig_tick(&x->r, 100000);
        for (int k = 0; k < 2; k++) {
            Cw__Pb__Pong p = CW__PB__PONG__INIT;
            ENV(env, PONG, pong, &p);
            rig_message(&x->r, x->link[k], CW_PORT_DATA, &x->worker[k], &env, NULL, 0);
        }
        er_acts(x);
        rig_clear(&x->r);
    }
    assert_int_equal(x->n_done, 1);
    assert_int_equal(x->req.status, CW_STATUS_TIMEOUT);
    assert_non_null(strstr(x->req.text, "layer 1"));
    er_free(x);
}

/* Nobody could answer while the computer slept: the wait goes on where it was. */
static void a_sleep_takes_nothing_of_the_time_for_an_answer(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    er_submit(x, 1, 1, 0x01);
    rig_tick(&x->r, 3600000000);
    er_acts(x);
    assert_int_equal(x->n_done, 0);
    int waited = 0;
    for (; waited < 1000 && !x->n_done; waited++) {
        rig_tick(&x->r, 100000);
        er_acts(x);
        rig_clear(&x->r);
    }
    assert_int_equal(x->req.status, CW_STATUS_UNREACHABLE); /* the links were dead when it woke */
    assert_in_range(waited, 95, 150);                       /* and experts are waited for as long as ever */
    er_free(x);
}

static void who_is_out_of_the_epoch_gives_no_more_rows(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    er_submit(x, 1, 1, 0xff);
    cw_action *late = er_call(x, 1, 0);
    assert_int_equal(entries_of(late), 4);
    x->n_workers = 1;
    er_epoch_news(x, 1, 2);
    assert_non_null(rig_action(&x->r, CW_ACT_CLOSE, x->link[1], 0, 0));
    assert_int_equal(entries_of(er_call(x, 0, 1)), 4); /* at once elsewhere */
    er_reply(x, 1, late);
    er_answer_all(x);
    er_check_rows(x);
    assert_int_equal(facts(x).n.resent, 1);
    er_submit(x, 1, 1, 0xff);
    assert_int_equal(entries_of(er_call(x, 0, 0)), 8);
    er_free(x);
}

static void refusals_of_workers_are_kept_for_the_user(void **state)
{
    (void)state;
    edge_rig *x = er_new(NULL);
    x->n_workers = 1;
    er_connect(x);
    er_welcome(x, 1, 1);
    cw_edge_want(x->e, x->r.now_us, &x->r.out);
    cw_action *a = NULL;
    for (int k = 0; (a = rig_action(&x->r, CW_ACT_OPEN, 0, 0, k)) && !cw_key_equal(&a->key, &x->worker[0]);
         k++) {
    }
    assert_non_null(a);
    cw_link link = a->link;
    rig_up(&x->r, link, CW_PORT_DATA, &x->worker[0]);
    Cw__Pb__Refusal m = CW__PB__REFUSAL__INIT;
    m.code = CW__PB__REFUSAL_CODE__REFUSAL_TICKET, m.text = (char *)"the ticket belongs to another key";
    ENV(env, REFUSAL, refusal, &m);
    rig_message(&x->r, link, CW_PORT_DATA, &x->worker[0], &env, NULL, 0);
    assert_false(facts(x).covered);
    assert_non_null(strstr(facts(x).why, "another key"));
    assert_non_null(strstr(facts(x).why, "w0"));
    /* A ticket that is not liked: a new one is asked for. */
    assert_non_null(rig_sent(&x->r, x->co, MSG(TICKET_RENEW)));
    er_free(x);
}

static void refuse_ticket(edge_rig *x, int w)
{
    Cw__Pb__Refusal m = CW__PB__REFUSAL__INIT;
    m.code = CW__PB__REFUSAL_CODE__REFUSAL_TICKET, m.text = (char *)"the ticket has run out";
    ENV(env, REFUSAL, refusal, &m);
    rig_message(&x->r, x->link[w], CW_PORT_DATA, &x->worker[w], &env, NULL, 0);
    rig_clear(&x->r);
}

/* Ticks until the edge opens a link to a worker again, at most `us`. */
static bool comes_back_within(edge_rig *x, int w, int64_t us)
{
    for (int64_t t = 0; t < us; t += 50000) {
        rig_tick(&x->r, 50000);
        cw_action *a;
        for (int k = 0; (a = rig_action(&x->r, CW_ACT_OPEN, 0, 0, k)); k++)
            if (cw_key_equal(&a->key, &x->worker[w])) {
                x->link[w] = a->link;
                rig_up(&x->r, x->link[w], CW_PORT_DATA, &x->worker[w]);
                return true;
            }
    }
    return false;
}

/* An edge that starts after hours shows workers its stored ticket before the coordinator has given it a new
 * one. */
static void a_new_ticket_ends_the_wait_for_who_refused_the_old_one(void **state)
{
    (void)state;
    edge_rig *x = er_boot(1, NULL);
    rig_down(&x->r, x->link[0], "gone");
    rig_clear(&x->r);
    assert_true(comes_back_within(x, 0, 1000000));
    refuse_ticket(x, 0);
    assert_false(comes_back_within(x, 0, 3000000)); /* with the same ticket it would be the same again */
    x->ticket_ms += 1000;
    er_welcome(x, 1, 2);
    assert_true(comes_back_within(x, 0, 1000000));

    /* The new ticket is there before the refusal of the old one. */
    x->ticket_ms += 1000;
    er_welcome(x, 1, 3);
    refuse_ticket(x, 0);
    assert_true(comes_back_within(x, 0, 1000000));

    /* A worker that likes no ticket is not asked at the speed of the link. */
    int n = 0;
    for (int i = 0; i < 200; i++) {
        x->ticket_ms += 1000;
        refuse_ticket(x, 0);
        er_welcome(x, 1, (uint64_t)(4 + i));
        n += comes_back_within(x, 0, 50000);
    }
    assert_true(n < 20);
    er_free(x);
}

static void stopping_ends_open_requests_and_says_bye(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    er_submit(x, 1, 1, 0xff);
    cw_edge_stop(x->e, x->r.now_us, &x->r.out);
    er_acts(x);
    assert_int_equal(x->n_done, 1);
    assert_int_equal(x->req.status, CW_STATUS_CANCELLED);
    assert_non_null(rig_sent(&x->r, x->link[0], MSG(BYE)));
    assert_non_null(rig_sent(&x->r, x->co, MSG(BYE)));
    er_free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(enrols_once_and_saves_what_it_got),
        cmocka_unit_test(starts_from_what_was_saved_while_the_coordinator_is_down),
        cmocka_unit_test(a_final_refusal_is_told_and_not_repeated),
        cmocka_unit_test(a_cluster_with_another_model_is_refused_by_name),
        cmocka_unit_test(epochs_rise_only_and_foreign_signatures_are_ignored),
        cmocka_unit_test(tickets_are_renewed_at_half_life),
        cmocka_unit_test(links_to_workers_close_when_idle_and_open_with_a_request),
        cmocka_unit_test(rows_come_back_to_their_places),
        cmocka_unit_test(a_layer_is_balanced_over_replicas_and_always_alike),
        cmocka_unit_test(a_faster_worker_gets_more),
        cmocka_unit_test(small_differences_of_delay_are_noise_and_large_ones_count),
        cmocka_unit_test(on_one_machine_no_delay_counts),
        cmocka_unit_test(a_worker_that_seemed_slow_is_tried_again),
        cmocka_unit_test(thin_links_share_what_is_to_be_carried),
        cmocka_unit_test(an_expert_goes_only_where_it_is),
        cmocka_unit_test(many_rows_are_cut_to_small_messages_and_bounded_in_flight),
        cmocka_unit_test(a_lost_link_is_made_good_by_the_replica),
        cmocka_unit_test(without_a_replica_the_worker_is_waited_for_and_then_named),
        cmocka_unit_test(an_expert_that_nobody_has_is_waited_for_once),
        cmocka_unit_test(not_here_takes_the_epoch_and_asks_elsewhere),
        cmocka_unit_test(busy_waits_and_stopping_goes_elsewhere),
        cmocka_unit_test(a_row_that_is_not_finite_is_asked_of_a_replica_once),
        cmocka_unit_test(late_and_repeated_answers_are_ignored),
        cmocka_unit_test(a_reply_of_the_wrong_shape_costs_the_link_and_not_the_answer),
        cmocka_unit_test(a_call_nobody_answers_is_sent_again_and_the_deadline_holds),
        cmocka_unit_test(a_sleep_takes_nothing_of_the_time_for_an_answer),
        cmocka_unit_test(who_is_out_of_the_epoch_gives_no_more_rows),
        cmocka_unit_test(refusals_of_workers_are_kept_for_the_user),
        cmocka_unit_test(a_new_ticket_ends_the_wait_for_who_refused_the_old_one),
        cmocka_unit_test(stopping_ends_open_requests_and_says_bye),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
