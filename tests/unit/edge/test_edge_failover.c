/*
 * Workers that hang, are late, busy, slow to reach or wrong: what the edge machine does about it, rule by
 * rule, on a clock made by hand.
 */
#include "edge_rig.h"

#include "cw/bytes.h"

enum { MS = 1000, S = 1000000 };

static cw_edge_facts facts(edge_rig *x)
{
    cw_edge_facts f;
    cw_edge_get_facts(x->e, &f);
    return f;
}

static cw_edge_worker_facts worker(edge_rig *x, int w)
{
    cw_edge_worker_facts f;
    assert_true(cw_edge_get_worker(x->e, (uint32_t)w, &f));
    return f;
}

/* A machine whose messages are doubled one in `every` (0: practically never, for tests that count). */
static edge_rig *boot(int n_workers, uint32_t every)
{
    cw_edge_config c;
    edge_rig *x = calloc(1, sizeof *x);
    memset(x->coordinator.b, 1, CW_KEY_BYTES);
    memset(x->digest, 5, sizeof x->digest);
    er_config(x, &c);
    free(x);
    c.double_every = every ? every : UINT32_MAX;
    return er_boot(n_workers, &c);
}

static void pong_to(edge_rig *x, int w, int64_t asked_us)
{
    Cw__Pb__Pong p = CW__PB__PONG__INIT;
    p.t_us = (uint64_t)asked_us;
    ENV(env, PONG, pong, &p);
    rig_message(&x->r, x->link[w], CW_PORT_DATA, &x->worker[w], &env, NULL, 0);
    er_acts(x);
}

/* The workers in `mask` answer pings; calls are left where they are. */
static void pass(edge_rig *x, int64_t us, unsigned mask)
{
    for (int64_t t = 0; t < us; t += 5 * MS) {
        rig_tick(&x->r, 5 * MS);
        er_acts(x);
        Cw__Pb__Pong p = CW__PB__PONG__INIT;
        p.wall_ms = (uint64_t)x->r.wall_ms;
        ENV(env, PONG, pong, &p);
        if (t % S == 0) rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, NULL, 0);
        for (int w = 0; w < x->n_workers; w++)
            for (cw_action *a; (mask >> w & 1) && (a = rig_sent(&x->r, x->link[w], MSG(PING)));) {
                int64_t asked = (int64_t)a->msg->env->ping->t_us;
                cw_msg_free(&a->msg);
                a->kind = CW_ACT_CLOSE, a->link = 0;
                pong_to(x, w, asked);
            }
    }
}

/* Everybody answers in `us` until the histograms say something. */
static void learn(edge_rig *x, int64_t us, int n)
{
    for (int i = 0; i < n; i++) {
        er_submit(x, 1, 1, 0xff);
        rig_tick(&x->r, us);
        er_answer_all(x);
        er_check_rows(x);
        rig_clear(&x->r);
    }
}

/* The oldest call to w, out of the outbox: whatever is sent meanwhile, it stays. */
static cw_action take_call(edge_rig *x, int w)
{
    cw_action *a = er_call(x, w, 0), copy = {0};
    if (!a) return copy;
    copy = *a;
    a->msg = NULL, a->kind = CW_ACT_CLOSE, a->link = 0;
    return copy;
}

static void drop(edge_rig *x, int w)
{
    for (cw_action *a; (a = er_call(x, w, 0));) {
        cw_msg_free(&a->msg);
        a->kind = CW_ACT_CLOSE, a->link = 0;
    }
}

/* Until the replica has the calls of `w`, which are lost; the time it took. */
static int64_t until_replaced(edge_rig *x, int w, unsigned alive)
{
    int64_t begin = x->r.now_us;
    er_reply(x, 1 - w, er_call(x, 1 - w, 0));
    drop(x, w);
    while (!er_call(x, 1 - w, 0) && x->r.now_us - begin < 10 * S) pass(x, 5 * MS, alive);
    return x->r.now_us - begin;
}

static void a_worker_that_hangs_costs_one_hedge_and_is_left_alone_until_it_answers(void **state)
{
    (void)state;
    edge_rig *x = boot(2, 0);
    learn(x, 200, 30);
    er_submit(x, 1, 1, 0xff);
    int64_t gap = until_replaced(x, 0, 2);
    assert_in_range(gap, 20 * MS, 60 * MS); /* the least time of a hedge */
    er_answer_all(x);
    er_check_rows(x);
    assert_int_equal(facts(x).n.hedges, 1);
    assert_int_equal(facts(x).n.hedge_wins, 1);
    /* The loser is told, and pinged. */
    assert_non_null(rig_sent(&x->r, x->link[0], MSG(CANCEL)));
    rig_clear(&x->r);
    assert_true(worker(x, 0).suspect);
    for (int i = 0; i < 10; i++) {
        er_submit(x, 1, 1, 0xff);
        assert_null(er_call(x, 0, 0));
        er_answer_all(x);
        er_check_rows(x);
        pass(x, 100 * MS, 2);
    }
    assert_in_range(rig_count(&x->r, CW_ACT_SEND, x->link[0], MSG(PING)), 9, 12);
    assert_int_equal(facts(x).n.hedges, 1);
    pass(x, 100 * MS, 3);
    er_submit(x, 1, 1, 0xff);
    assert_non_null(er_call(x, 0, 0));
    er_free(x);
}

/* It is judged by what the others take, not by a guess that is made before anything is known. */
static void a_worker_that_hangs_with_its_first_call_costs_no_more_than_others(void **state)
{
    (void)state;
    edge_rig *x = boot(2, 0);
    memset(x->sets[1], 0, sizeof x->sets[1]);
    er_epoch_news(x, 1, 2);
    learn(x, 200, 30);
    memset(x->sets[1], 0xff, sizeof x->sets[1]);
    er_epoch_news(x, 1, 3);
    er_submit(x, 1, 1, 0xff);
    assert_non_null(er_call(x, 1, 0));
    assert_in_range(until_replaced(x, 1, 1), 20 * MS, 60 * MS);
    er_answer_all(x);
    er_check_rows(x);
    er_free(x);
}

static void hedges_follow_what_the_worker_usually_takes(void **state)
{
    (void)state;
    edge_rig *x = boot(2, 0);
    er_submit(x, 1, 1, 0xff);
    assert_in_range(until_replaced(x, 0, 3), 95 * MS, 110 * MS); /* nothing known yet */
    er_free(x);
    x = boot(2, 0);
    learn(x, 50 * MS, 30);
    assert_in_range(worker(x, 0).hedge_us, 50 * MS, 200 * MS);
    er_submit(x, 1, 1, 0xff);
    assert_in_range(until_replaced(x, 0, 3), 55 * MS, 200 * MS);
    er_free(x);
    /* A worker that takes a second for everything is not late each time. */
    x = boot(2, 0);
    learn(x, S, 30);
    uint64_t before = facts(x).n.hedges;
    learn(x, S, 30);
    assert_int_equal(facts(x).n.hedges, before);
    er_free(x);
}

static void time_in_the_queue_is_not_lateness(void **state)
{
    (void)state;
    edge_rig *x = boot(2, 0);
    learn(x, 200, 30);
    x->queue_us[0] = x->queue_us[1] = 200 * MS;
    er_submit(x, 1, 1, 0xff);
    rig_tick(&x->r, 2 * MS);
    er_reply(x, 0, er_call(x, 0, 0));
    er_reply(x, 1, er_call(x, 1, 0));
    er_submit(x, 1, 1, 0xff);
    x->queue_us[1] = 0;
    assert_true(until_replaced(x, 0, 3) > 200 * MS);
    er_free(x);
}

static void nothing_is_hedged_to_a_worker_whose_calls_wait(void **state)
{
    (void)state;
    edge_rig *x = boot(2, 0);
    learn(x, 200, 30);
    x->queue_us[1] = 20 * MS;
    er_submit(x, 1, 1, 0xff);
    int64_t gap = until_replaced(x, 0, 3);
    assert_true(gap > 400 * MS); /* until what it told of its queue is old */
    er_free(x);
    /* But a call that hangs is a lost one, and goes there. */
    x = boot(2, 0);
    learn(x, 200, 30);
    x->queue_us[1] = 20 * MS;
    er_submit(x, 1, 1, 0xff);
    gap = until_replaced(x, 0, 2);
    assert_in_range(gap, 120 * MS, 250 * MS);
    assert_int_equal(facts(x).n.hedges, 0);
    assert_int_equal(facts(x).n.resent, 1);
    er_free(x);
}

static void hedges_stay_under_five_percent(void **state)
{
    (void)state;
    edge_rig *x = boot(2, 0);
    learn(x, 200, 30);
    /* The first worker takes long for every fifth call, and lives. */
    for (int i = 0; i < 1000; i++) {
        er_submit(x, 1, 1, 0xff);
        if (er_call(x, 1, 0)) er_reply(x, 1, er_call(x, 1, 0));
        if (i % 5 == 0) pass(x, 200 * MS, 3);
        er_answer_all(x);
        er_check_rows(x);
        pass(x, 10 * MS, 3);
        rig_clear(&x->r);
    }
    cw_edge_counts n = facts(x).n;
    assert_true(n.hedges > 20);
    assert_true(n.hedges * 20 <= n.calls + 100);
    er_free(x);
}

static void without_tokens_a_worker_that_hangs_is_found_by_its_silence(void **state)
{
    (void)state;
    edge_rig *x = boot(2, 0);
    learn(x, 200, 2);             /* a few messages, less than one token */
    for (int i = 0; i < 4; i++) { /* the first tokens go */
        er_submit(x, 1, 1, 0xff);
        until_replaced(x, 0, 3);
        er_answer_all(x);
        er_check_rows(x);
        pass(x, 300 * MS, 3);
        rig_clear(&x->r);
    }
    assert_int_equal(facts(x).n.hedges, 4);
    er_submit(x, 1, 1, 0xff);
    assert_non_null(er_call(x, 0, 0));
    assert_in_range(until_replaced(x, 0, 2), 120 * MS, 350 * MS);
    assert_int_equal(facts(x).n.hedges, 4);
    assert_int_equal(facts(x).n.resent, 1);
    er_answer_all(x);
    er_check_rows(x);
    er_free(x);
}

static void submit_prefill(edge_rig *x, uint32_t layer, uint32_t n_rows, uint8_t mask)
{
    x->next_class = CW__PB__CALL_CLASS__CLASS_PREFILL;
    er_submit(x, layer, n_rows, mask);
    x->next_class = CW__PB__CALL_CLASS__CLASS_DECODE;
}

static void prefill_is_not_hedged_by_time_but_a_worker_that_hangs_is(void **state)
{
    (void)state;
    edge_rig *x = boot(2, 0);
    learn(x, 200, 60);
    submit_prefill(x, 1, 4, 0xff);
    er_reply(x, 1, er_call(x, 1, 0));
    cw_action kept = take_call(x, 0);
    pass(x, 1500 * MS, 3);
    assert_int_equal(facts(x).n.hedges, 0);
    assert_null(er_call(x, 1, 0));
    er_reply(x, 0, &kept);
    er_check_rows(x);
    submit_prefill(x, 1, 4, 0xff);
    assert_in_range(until_replaced(x, 0, 2), 500 * MS, 1500 * MS);
    er_answer_all(x);
    er_check_rows(x);
    assert_int_equal(facts(x).n.hedges, 0);
    er_free(x);
}

static void three_late_replies_make_a_worker_suspect_until_it_answers_a_probe(void **state)
{
    (void)state;
    edge_rig *x = boot(2, 0);
    learn(x, 200, 400);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(facts(x).n.suspects, 0);
        er_submit(x, 1, 1, 0xff);
        assert_non_null(er_call(x, 0, 0));
        er_reply(x, 1, er_call(x, 1, 0));
        pass(x, 30 * MS, 2);
        er_answer_all(x); /* its answer comes, late: it speaks, but no ping is answered */
        er_check_rows(x);
        for (cw_action *a; (a = rig_sent(&x->r, x->link[0], MSG(PING)));) {
            cw_msg_free(&a->msg);
            a->kind = CW_ACT_CLOSE, a->link = 0;
        }
    }
    assert_int_equal(facts(x).n.suspects, 1);
    assert_true(worker(x, 0).suspect);
    er_submit(x, 1, 1, 0xff);
    assert_null(er_call(x, 0, 0));
    er_answer_all(x);
    int64_t asked = x->r.now_us - 1; /* before it was suspect: no proof */
    pong_to(x, 0, asked - 50 * MS);
    assert_true(worker(x, 0).suspect);
    pass(x, 200 * MS, 3);
    assert_false(worker(x, 0).suspect);
    er_submit(x, 1, 1, 0xff);
    assert_non_null(er_call(x, 0, 0));
    er_free(x);
}

static void a_doubled_message_is_used_when_both_agree(void **state)
{
    (void)state;
    edge_rig *x = boot(2, 1);
    er_submit(x, 1, 2, 0x01);
    cw_action *a = er_call(x, 0, 0), *b = er_call(x, 1, 0);
    assert_non_null(a);
    assert_non_null(b);
    er_reply(x, 0, a);
    assert_int_equal(x->n_done, 0);
    er_reply(x, 1, b);
    er_check_rows(x);
    cw_edge_counts n = facts(x).n;
    assert_int_equal(n.doubled, 1);
    assert_int_equal(n.compared, 2);
    assert_int_equal(n.mismatches, 0);
    /* The answer does not wait long for what is only a check, and the check is made when it comes. */
    er_submit(x, 1, 2, 0x01);
    er_reply(x, 0, er_call(x, 0, 0));
    pass(x, 200 * MS, 3);
    assert_int_equal(x->n_done, 2);
    er_check_rows(x);
    assert_null(rig_sent(&x->r, x->link[1], MSG(CANCEL)));
    er_reply(x, 1, er_call(x, 1, 0));
    assert_true(facts(x).n.compared >= 4);
    assert_int_equal(facts(x).n.mismatches, 0);
    /* With one home there is nothing to compare with. */
    er_free(x);
    x = boot(1, 1);
    er_submit(x, 1, 2, 0x01);
    er_answer_all(x);
    er_check_rows(x);
    assert_int_equal(facts(x).n.doubled, 0);
    er_free(x);
}

static void one_message_in_512_is_doubled(void **state)
{
    (void)state;
    edge_rig *x = er_boot(2, NULL);
    for (int i = 0; i < 20000; i++) {
        er_submit(x, 1, 1, 0x01);
        er_answer_all(x);
        rig_clear(&x->r);
    }
    assert_in_range(facts(x).n.doubled, 20, 70);
    er_free(x);
}

static Cw__Pb__Mismatch *reported(edge_rig *x)
{
    cw_action *a = rig_sent(&x->r, x->co, MSG(MISMATCH));
    return a ? a->msg->env->mismatch : NULL;
}

static void a_third_home_decides_who_is_wrong(void **state)
{
    (void)state;
    for (int liar = 0; liar < 3; liar++) {
        edge_rig *x = boot(3, 1);
        x->lies[liar] = -1;
        for (int i = 0; i < 4; i++) {
            er_submit(x, 1 + (uint32_t)i % 2, 2, 0xff);
            er_answer_all(x);
            er_check_rows(x); /* every answer is right, the first already */
        }
        assert_true(worker(x, liar).barred);
        assert_non_null(rig_action(&x->r, CW_ACT_CLOSE, x->link[liar], 0, 0));
        for (int w = 0; w < 3; w++)
            if (w != liar) assert_false(worker(x, w).barred);
        Cw__Pb__Mismatch *m = reported(x);
        assert_non_null(m);
        assert_int_equal(m->worker_b, liar + 1);
        assert_true(m->third && m->third != m->worker_a && m->third != m->worker_b);
        assert_int_equal(m->layer, 1);
        /* It is not connected to again. */
        rig_clear(&x->r);
        pass(x, 5 * S, 7);
        cw_action *a;
        for (int k = 0; (a = rig_action(&x->r, CW_ACT_OPEN, 0, 0, k)); k++)
            assert_false(cw_key_equal(&a->key, &x->worker[liar]));
        er_free(x);
    }
}

static void of_two_homes_the_one_that_contradicts_itself_is_wrong(void **state)
{
    (void)state;
    for (int liar = 0; liar < 2; liar++) {
        edge_rig *x = boot(2, 1);
        er_submit(x, 1, 2, 0xff);
        er_answer_all(x);
        er_check_rows(x);
        x->lies[liar] = 1; /* now and then a bit falls over */
        er_submit(x, 1, 2, 0xff);
        er_answer_all(x);
        er_check_rows(x);
        assert_true(worker(x, liar).barred);
        assert_false(worker(x, 1 - liar).barred);
        assert_non_null(reported(x));
        assert_int_equal(reported(x)->worker_b, liar + 1);
        assert_int_equal(reported(x)->third, 0);
        er_free(x);
    }
}

static void two_that_insist_wait_for_the_verdict(void **state)
{
    (void)state;
    for (int liar = 0; liar < 2; liar++)
        for (int verdict = 0; verdict < 2; verdict++) {
            edge_rig *x = boot(2, 1);
            x->lies[liar] = -1;
            er_submit(x, 1, 1, 0x01);
            er_answer_all(x);
            assert_int_equal(x->n_done, 0);
            assert_non_null(reported(x));
            pass(x, S, 3);
            assert_int_equal(x->n_done, 0);
            if (verdict) { /* the epoch without the wrong one */
                cw_key key = x->worker[0];
                if (!liar) x->worker[0] = x->worker[1], x->first_id = 2;
                x->n_workers = 1;
                er_epoch_news(x, 1, 2);
                x->worker[0] = key;
                assert_int_equal(x->n_done, 1);
                er_check_rows(x);
            } else { /* nobody decides: the answer goes on, and says what it did */
                pass(x, 3 * S, 3);
                assert_int_equal(x->n_done, 1);
                assert_int_equal(x->req.status, CW_OK);
                assert_non_null(strstr(x->said, "believed"));
            }
            er_free(x);
        }
}

static void a_mismatch_seen_too_late_puts_both_in_doubt(void **state)
{
    (void)state;
    edge_rig *x = boot(2, 0);
    learn(x, 200, 30);
    er_submit(x, 1, 1, 0xff);
    er_reply(x, 1, er_call(x, 1, 0));
    cw_action kept = take_call(x, 0);
    while (!er_call(x, 1, 0)) pass(x, 5 * MS, 2);
    er_reply(x, 1, er_call(x, 1, 0));
    er_check_rows(x);
    x->lies[0] = 1;
    er_reply(x, 0, &kept); /* the loser of the hedge, after its request has ended */
    assert_int_equal(facts(x).n.mismatches, 1);
    assert_non_null(reported(x));
    rig_clear(&x->r);
    /* From now on nothing is used that is not confirmed, until a verdict or for a minute. */
    uint64_t before = facts(x).n.doubled;
    pass(x, 200 * MS, 3);
    x->lies[0] = 1;
    er_submit(x, 1, 1, 0xff);
    er_answer_all(x);
    er_check_rows(x);
    assert_true(facts(x).n.doubled > before);
    assert_true(worker(x, 0).barred);
    er_free(x);
}

static void reports_wait_for_a_coordinator_that_is_away(void **state)
{
    (void)state;
    edge_rig *x = boot(3, 1);
    rig_down(&x->r, x->co, "gone");
    x->lies[2] = -1;
    for (int i = 0; i < 3; i++) {
        er_submit(x, 1, 1, 0xff);
        er_answer_all(x);
        er_check_rows(x);
    }
    assert_null(reported(x));
    rig_clear(&x->r);
    er_connect(x);
    er_welcome(x, 1, 1);
    assert_non_null(reported(x));
    assert_int_equal(reported(x)->worker_b, 3);
    er_free(x);
}

static void busy(edge_rig *x, int w, uint32_t ms)
{
    cw_action *a = er_call(x, w, 0);
    Cw__Pb__CallFail m = CW__PB__CALL_FAIL__INIT;
    m.id = a->msg->env->call->id, m.code = CW__PB__FAIL_CODE__FAIL_BUSY, m.text = (char *)"full";
    m.retry_after_ms = ms;
    cw_msg_free(&a->msg);
    a->kind = CW_ACT_CLOSE, a->link = 0;
    ENV(env, CALL_FAIL, call_fail, &m);
    rig_message(&x->r, x->link[w], CW_PORT_DATA, &x->worker[w], &env, NULL, 0);
    er_acts(x);
}

static void a_busy_worker_is_asked_again_when_it_said_and_overload_is_never_a_failure(void **state)
{
    (void)state;
    edge_rig *x = boot(1, 0);
    submit_prefill(x, 1, 4, 0xff);
    busy(x, 0, 200);
    pass(x, 190 * MS, 1);
    assert_null(er_call(x, 0, 0));
    pass(x, 70 * MS, 1);
    assert_non_null(er_call(x, 0, 0));
    /* Two minutes of it, four times the deadline: it waits, and does not hammer. */
    int asked = 0;
    for (int i = 0; i < 1200; i++) {
        while (er_call(x, 0, 0)) busy(x, 0, 20), asked++;
        pass(x, 100 * MS, 1);
    }
    assert_int_equal(x->n_done, 0);
    assert_in_range(asked, 60, 130); /* once a second where nothing else is sent */
    assert_non_null(strstr(facts(x).waiting, "busy"));
    pass(x, 2 * S, 1);
    er_answer_all(x);
    er_check_rows(x);
    assert_string_equal(facts(x).waiting, "");
    /* Where a replica is not busy it is asked instead. */
    er_free(x);
    x = boot(2, 0);
    submit_prefill(x, 1, 4, 0x01);
    int w = er_call(x, 0, 0) ? 0 : 1;
    busy(x, w, 400);
    pass(x, 600 * MS, 3);
    er_answer_all(x);
    er_check_rows(x);
    er_free(x);
}

/* Predicted time of a call at a measured pace, and what it may be. */
static void prefill_is_cut_to_two_milliseconds_of_the_worker(void **state)
{
    (void)state;
    edge_rig *x = boot(1, 0);
    x->service_us = 5000; /* eight experts of 100 kB: 160 MB/s, so one expert takes 0.6 ms */
    learn(x, 6 * MS, 20);
    submit_prefill(x, 1, 64, 0xff);
    int n = 0;
    cw_action *a;
    uint32_t entries = 0;
    for (; (a = er_call(x, 0, n)); n++) {
        uint8_t seen = 0;
        uint32_t n_entries = a->msg->env->call->n_entries;
        for (uint32_t i = 0; i < n_entries; i++)
            seen |= (uint8_t)(1 << cw_entry_get(a->msg->frames[0].data, i).expert);
        assert_true(__builtin_popcount(seen) <= 3);
        entries += n_entries;
    }
    assert_int_equal(entries, 64 * 8);
    assert_in_range(n, 3, 16);
    er_answer_all(x);
    er_check_rows(x);
    /* A decode call is one message. */
    er_submit(x, 1, 1, 0xff);
    assert_non_null(er_call(x, 0, 0));
    assert_null(er_call(x, 0, 1));
    er_answer_all(x);
    er_free(x);
}

static void a_thin_link_carries_small_messages(void **state)
{
    (void)state;
    edge_rig *x = boot(1, 0);
    /* 20 kB/s: what is on the link when a call leaves decides when its answer comes. */
    for (int i = 0; i < 12; i++) {
        er_submit(x, 2, 100, 0x03); /* 100 rows of 256 bytes there, 200 back: 77 kB */
        for (cw_action a; (a = take_call(x, 0)).msg;) {
            size_t bytes = cw_msg_total_bytes(a.msg) + a.msg->env->call->n_entries * D * 4;
            pass(x, (int64_t)bytes * 50, 1);
            er_reply(x, 0, &a);
        }
        er_check_rows(x);
    }
    uint64_t rate = worker(x, 0).bytes_per_s;
    assert_in_range(rate, 10000, 40000);
    er_submit(x, 2, 200, 0x0f);
    cw_action *a;
    uint64_t bytes = 0;
    int n = 0;
    for (; (a = er_call(x, 0, n)); n++) {
        uint64_t one = cw_msg_total_bytes(a->msg);
        assert_true(one <= rate * 3 / 2 + 4096);
        bytes += one + a->msg->env->call->n_entries * D * 4;
    }
    /* And not more than a second of it at a time. */
    assert_true(n == 1 || bytes <= rate + 4096);
    er_answer_all(x);
    er_check_rows(x);
    er_free(x);
}

static void waiting_for_lost_experts_is_told_and_ends_with_the_new_epoch(void **state)
{
    (void)state;
    edge_rig *x = er_new(NULL);
    x->n_workers = 2;
    x->sets[0][1] = x->sets[0][2] = 0x0f;
    x->sets[1][1] = x->sets[1][2] = 0xf0;
    er_connect(x);
    er_welcome(x, 1, 1);
    cw_edge_want(x->e, x->r.now_us, &x->r.out);
    er_workers_up(x);
    rig_clear(&x->r);
    er_submit(x, 1, 1, 0xff);
    assert_string_equal(facts(x).waiting, "");
    drop(x, 0);
    rig_down(&x->r, x->link[0], "connection reset");
    er_reply(x, 1, er_call(x, 1, 0));
    assert_int_equal(x->n_done, 0);
    pass(x, 2 * S, 2);
    cw_edge_facts f = facts(x);
    assert_non_null(strstr(f.waiting, "waiting for experts of layer 1: worker w0 is gone"));
    assert_in_range(f.waiting_us, 1900 * MS, 2200 * MS);
    /* The coordinator gives the lost ones to the other. */
    x->sets[1][1] = x->sets[1][2] = 0xff;
    x->sets[0][1] = x->sets[0][2] = 0;
    er_epoch_news(x, 1, 2);
    assert_non_null(er_call(x, 1, 0));
    er_answer_all(x);
    er_check_rows(x);
    er_free(x);
}

static void calls_name_their_stream_and_the_coordinator_is_told_the_counts(void **state)
{
    (void)state;
    edge_rig *x = boot(2, 1);
    x->next_stream = 7;
    er_submit(x, 1, 1, 0x01);
    assert_int_equal(er_call(x, 0, 0)->msg->env->call->stream, 7);
    assert_int_equal(er_call(x, 1, 0)->msg->env->call->stream, 7);
    er_answer_all(x);
    cw_edge_tell(x->e, &(cw_edge_story){.tokens = 5, .fallback_tokens = 2, .mode = "draft"});
    pass(x, 2100 * MS, 3);
    cw_action *a = rig_sent(&x->r, x->co, MSG(EDGE_STATS));
    assert_non_null(a);
    const Cw__Pb__EdgeStats *s = a->msg->env->edge_stats;
    assert_int_equal(s->calls, 2);
    assert_int_equal(s->compared, 1);
    assert_int_equal(s->tokens, 5);
    assert_int_equal(s->fallback_tokens, 2);
    assert_string_equal(s->mode, "draft");
    er_free(x);
}

/* Tickets of ten seconds, and no coordinator after the first: workers go on, so the edge does. */
static void a_ticket_that_ran_out_is_shown_while_the_coordinator_is_away(void **state)
{
    (void)state;
    edge_rig *x = er_new(NULL);
    x->n_workers = 1;
    x->ticket_ms = 10000;
    er_connect(x);
    er_welcome(x, 1, 1);
    cw_edge_want(x->e, x->r.now_us, &x->r.out);
    er_workers_up(x);
    rig_down(&x->r, x->co, "gone");
    for (int i = 0; i < 50; i++) {
        rig_clear(&x->r);
        er_submit(x, 1, 1, 0xff);
        er_answer_all(x);
        er_check_rows(x);
        pass(x, S, 1);
    }
    assert_int_equal(x->n_done, 50);
    rig_down(&x->r, x->link[0], "connection reset");
    rig_clear(&x->r);
    er_submit(x, 1, 1, 0xff);
    pass(x, 500 * MS, 0);
    er_workers_up(x); /* asserts that a Hello with the ticket is sent */
    er_answer_all(x);
    er_check_rows(x);
    er_free(x);
}

/* Two links on short tickets are made anew one after the other. */
static void workers_that_have_gone_for_good_are_forgotten(void **state)
{
    (void)state;
    cw_edge_worker_facts f;
    edge_rig *x = boot(3, 0);
    learn(x, 200, 5);
    cw_key last = x->worker[2];
    x->n_workers = 1; /* w1 and w2 leave; later w2 takes part again, under another place in the list */
    er_epoch_news(x, 1, 2);
    learn(x, 200, 5);
    pass(x, 599 * S + 980 * MS, 1);
    er_submit(x, 1, 1, 0xff); /* not under a request's feet */
    er_workers_up(x);
    rig_tick(&x->r, 20 * MS);
    assert_true(cw_edge_get_worker(x->e, 2, &f));
    er_answer_all(x);
    er_check_rows(x);
    pass(x, S, 1);
    assert_true(cw_edge_get_worker(x->e, 0, &f));
    assert_false(cw_edge_get_worker(x->e, 1, &f));
    x->worker[1] = last;
    x->n_workers = 2;
    er_epoch_news(x, 1, 3);
    cw_edge_want(x->e, x->r.now_us, &x->r.out);
    er_workers_up(x);
    learn(x, 200, 20);
    assert_true(worker(x, 1).calls > 0);
    er_free(x);
}

static void links_are_renewed_one_at_a_time(void **state)
{
    (void)state;
    edge_rig *x = er_new(NULL);
    x->n_workers = 2;
    x->ticket_ms = 60000;
    er_connect(x);
    er_welcome(x, 1, 1);
    cw_edge_want(x->e, x->r.now_us, &x->r.out);
    er_workers_up(x);
    pass(x, 30 * S, 3);
    er_submit(x, 1, 1, 0xff);
    er_answer_all(x);
    size_t n;
    uint8_t *t = er_ticket(x, &n);
    Cw__Pb__Ticket m = CW__PB__TICKET__INIT;
    m.signed_ticket = (ProtobufCBinaryData){n, t}, m.wall_ms = (uint64_t)x->r.wall_ms;
    ENV(env, TICKET, ticket, &m);
    rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, NULL, 0);
    cw_free(t);
    int renewed = 0;
    for (int i = 0; i < 290; i++) {
        rig_clear(&x->r);
        pass(x, 100 * MS, 0);
        int closed = 0;
        for (int w = 0; w < 2; w++) closed += rig_action(&x->r, CW_ACT_CLOSE, x->link[w], 0, 0) != NULL;
        assert_true(closed <= 1);
        renewed += closed;
        er_workers_up(x);
        pong_to(x, 0, x->r.now_us);
        pong_to(x, 1, x->r.now_us);
    }
    assert_int_equal(renewed, 2);
    er_free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_worker_that_hangs_costs_one_hedge_and_is_left_alone_until_it_answers),
        cmocka_unit_test(a_worker_that_hangs_with_its_first_call_costs_no_more_than_others),
        cmocka_unit_test(hedges_follow_what_the_worker_usually_takes),
        cmocka_unit_test(time_in_the_queue_is_not_lateness),
        cmocka_unit_test(nothing_is_hedged_to_a_worker_whose_calls_wait),
        cmocka_unit_test(hedges_stay_under_five_percent),
        cmocka_unit_test(without_tokens_a_worker_that_hangs_is_found_by_its_silence),
        cmocka_unit_test(prefill_is_not_hedged_by_time_but_a_worker_that_hangs_is),
        cmocka_unit_test(three_late_replies_make_a_worker_suspect_until_it_answers_a_probe),
        cmocka_unit_test(a_doubled_message_is_used_when_both_agree),
        cmocka_unit_test(one_message_in_512_is_doubled),
        cmocka_unit_test(a_third_home_decides_who_is_wrong),
        cmocka_unit_test(of_two_homes_the_one_that_contradicts_itself_is_wrong),
        cmocka_unit_test(two_that_insist_wait_for_the_verdict),
        cmocka_unit_test(a_mismatch_seen_too_late_puts_both_in_doubt),
        cmocka_unit_test(reports_wait_for_a_coordinator_that_is_away),
        cmocka_unit_test(a_busy_worker_is_asked_again_when_it_said_and_overload_is_never_a_failure),
        cmocka_unit_test(prefill_is_cut_to_two_milliseconds_of_the_worker),
        cmocka_unit_test(a_thin_link_carries_small_messages),
        cmocka_unit_test(waiting_for_lost_experts_is_told_and_ends_with_the_new_epoch),
        cmocka_unit_test(calls_name_their_stream_and_the_coordinator_is_told_the_counts),
        cmocka_unit_test(a_ticket_that_ran_out_is_shown_while_the_coordinator_is_away),
        cmocka_unit_test(workers_that_have_gone_for_good_are_forgotten),
        cmocka_unit_test(links_are_renewed_one_at_a_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
