/* Workers that go, flap or lie; peers that ask too often; members that are forgotten. */
#include "rig.h"

#include <stdlib.h>

#define WORKER  CW__PB__ROLE__ROLE_WORKER
#define EDGE    CW__PB__ROLE__ROLE_EDGE
#define BODY(x) CW__PB__ENVELOPE__BODY_##x

typedef struct {
    rig r;
    uint8_t token[CW_TOKEN_BYTES], edge_token[CW_TOKEN_BYTES];
    rig_worker w[6];
    rig_worker *all[6];
} cluster;

static void cluster_open(cluster *c)
{
    memset(c, 0, sizeof *c);
    rig_open(&c->r);
    rig_token(&c->r, WORKER, 0, 36000000, 0, 1, c->token);
    rig_token(&c->r, EDGE, 0, 36000000, 0, 2, c->edge_token);
    for (int i = 0; i < 6; i++) c->all[i] = &c->w[i];
}

static void join(cluster *c, int i, uint64_t memory)
{
    static const char *names[] = {"a", "b", "c", "d", "e", "f"};
    rig_worker_join(&c->r, &c->w[i], i + 1, names[i], memory, c->token);
}

static cw_link edge_join(cluster *c, int key, const char *name)
{
    rig_intro in;
    rig_introduce(&in, EDGE, name, 0);
    in.enrol = true;
    memcpy(in.token, c->edge_token, sizeof c->edge_token);
    cw_key k = rig_key(key);
    cw_link link = rig_link(&c->r, &k);
    rig_say(&c->r, link, &k, &in);
    assert_non_null(rig_sent(&c->r, link, BODY(WELCOME)));
    return link;
}

static cw_coordinator_status status(cluster *c)
{
    cw_coordinator_status s;
    cw_coordinator_get_status(c->r.c, &s);
    return s;
}

static cw_coordinator_worker worker(cluster *c, int i)
{
    cw_coordinator_worker w;
    for (size_t k = 0; cw_coordinator_get_worker(c->r.c, k, &w); k++)
        if (cw_key_equal(&w.key, &c->w[i].key)) return w;
    fail_msg("no worker %d", i);
    return w;
}

static cw_status drain(cluster *c, int i, bool on, cw_err *err)
{
    cw_status s = cw_coordinator_drain(c->r.c, &c->w[i].key, on, c->r.now_us, c->r.wall_ms, &c->r.out, err);
    rig_save(&c->r);
    return s;
}

static void leave(cluster *c, int i)
{
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__Leave l = CW__PB__LEAVE__INIT;
    env.body_case = BODY(LEAVE), env.leave = &l;
    rig_message(&c->r, c->w[i].link, &c->w[i].key, &env);
}

/* ---- going */

static void a_drained_worker_is_emptied_and_covered_all_the_while(void **state)
{
    (void)state;
    cluster c;
    cw_err err;
    cluster_open(&c);
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES * 60 / 100);
    rig_run(&c.r, c.all, 3, 2000);
    assert_int_equal(status(&c).n_covered, RIG_TOTAL_EXPERTS);
    assert_int_equal(drain(&c, 0, true, &err), CW_OK);
    for (int t = 0; t < 300 && rig_in_epoch(&c.r, &c.w[0].key) > 0; t++) {
        rig_run(&c.r, c.all, 3, 100);
        assert_int_equal(status(&c).n_covered, RIG_TOTAL_EXPERTS);
    }
    assert_int_equal(rig_in_epoch(&c.r, &c.w[0].key), -1);
    assert_true(worker(&c, 0).drained);
    assert_int_equal(worker(&c, 0).n_needed, 0);
    rig_run(&c.r, c.all, 3, 25000);
    assert_int_equal(rig_held(&c.w[0]), 0); /* and its memory is given back */

    rig_restart(&c.r); /* it stays so */
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES * 60 / 100);
    rig_run(&c.r, c.all, 3, 20000);
    assert_int_equal(rig_held(&c.w[0]), 0);
    assert_int_equal(drain(&c, 0, false, &err), CW_OK);
    rig_run(&c.r, c.all, 3, 20000);
    assert_true(rig_held(&c.w[0]) > 0);
    rig_close(&c.r);
}

static void a_drain_that_cannot_fit_is_refused_with_the_missing_bytes(void **state)
{
    (void)state;
    cluster c;
    cw_err err;
    cluster_open(&c);
    for (int i = 0; i < 2; i++) join(&c, i, RIG_MODEL_BYTES * 60 / 100);
    rig_run(&c.r, c.all, 2, 2000);
    assert_int_equal(drain(&c, 1, true, &err), CW_STATUS_LIMIT);
    /* The other holds 28 of 48 experts of 1000 bytes, its reserve aside or not. */
    const char *bytes = strstr(err.text, " bytes)");
    assert_non_null(bytes);
    while (bytes[-1] != '(') bytes--;
    long missing = strtol(bytes, NULL, 10);
    assert_true(missing >= 20 * RIG_EXPERT_BYTES - RIG_EXPERT_BYTES && missing <= 21 * RIG_EXPERT_BYTES);
    assert_false(worker(&c, 1).drained);
    rig_run(&c.r, c.all, 2, 20000);
    assert_int_equal(status(&c).n_covered, RIG_TOTAL_EXPERTS); /* nothing has changed */
    join(&c, 2, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 3, 2000);
    assert_int_equal(drain(&c, 1, true, &err), CW_OK);
    rig_close(&c.r);
}

static void a_leaving_worker_is_released_when_others_have_its_experts(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES * 60 / 100);
    rig_run(&c.r, c.all, 3, 2000);
    leave(&c, 2);
    int t = 0;
    for (; t < 100 && !rig_sent(&c.r, c.w[2].link, BODY(RELEASED)); t++) {
        rig_run(&c.r, c.all, 3, 100);
        assert_int_equal(status(&c).n_covered, RIG_TOTAL_EXPERTS);
    }
    assert_true(t < 50);
    assert_int_equal(rig_in_epoch(&c.r, &c.w[2].key), -1); /* edges knew before */
    rig_close(&c.r);
}

static void the_last_worker_and_one_nobody_has_room_for_are_released_at_once(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    join(&c, 0, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 1, 2000);
    leave(&c, 0);
    rig_run(&c.r, c.all, 1, 700);
    assert_non_null(rig_sent(&c.r, c.w[0].link, BODY(RELEASED)));
    rig_close(&c.r);

    cluster_open(&c);
    join(&c, 0, RIG_MODEL_BYTES);
    join(&c, 1, RIG_MODEL_BYTES / 4);
    rig_run(&c.r, c.all, 2, 2000);
    leave(&c, 0);
    rig_run(&c.r, c.all, 2, 5000);
    cw_msg *m = rig_sent(&c.r, c.w[0].link, BODY(RELEASED));
    assert_non_null(m);
    assert_non_null(strstr(m->env->released->text, "no other worker has room"));
    rig_close(&c.r);
}

static void two_that_leave_at_once_lose_nothing(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 4; i++) join(&c, i, RIG_MODEL_BYTES * 55 / 100);
    rig_run(&c.r, c.all, 4, 2000);
    leave(&c, 0);
    leave(&c, 1);
    bool gone[2] = {false, false};
    for (int t = 0; t < 200 && !(gone[0] && gone[1]); t++) {
        rig_run(&c.r, c.all, 4, 100);
        for (int i = 0; i < 2; i++) {
            if (gone[i] || !rig_sent(&c.r, c.w[i].link, BODY(RELEASED))) continue;
            gone[i] = true;
            rig_down(&c.r, c.w[i].link);
            c.w[i].link = 0;
        }
        assert_int_equal(status(&c).n_covered, RIG_TOTAL_EXPERTS);
    }
    assert_true(gone[0] && gone[1]);
    rig_close(&c.r);
}

/* ---- limits */

static void a_flapping_worker_does_not_make_an_epoch_each_time(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 2; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 2, 2000);
    uint64_t before = c.r.disk.number;
    uint8_t full[sizeof c.w[1].held];
    memcpy(full, c.w[1].held, sizeof full);
    for (int t = 0; t < 600; t++) { /* a minute, ten changes a second */
        if (t % 2)
            memcpy(c.w[1].held, full, sizeof full);
        else
            c.w[1].held[RIG_FIRST_MOE][0] = 0;
        rig_holdings(&c.r, &c.w[1], "");
        rig_run(&c.r, c.all, 2, 100);
    }
    assert_true(c.r.disk.number - before < 30);
    memcpy(c.w[1].held, full, sizeof full); /* it has calmed down: it is believed again */
    rig_holdings(&c.r, &c.w[1], "");
    rig_run(&c.r, c.all, 2, 70000);
    assert_int_equal(rig_in_epoch(&c.r, &c.w[1].key), RIG_TOTAL_EXPERTS);
    rig_close(&c.r);
}

static void holdings_in_a_flood_are_taken_together_and_the_last_one_counts(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    join(&c, 0, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 1, 2000);
    for (int i = 0; i < 500; i++) rig_holdings(&c.r, &c.w[0], i == 499 ? "the last" : "noise");
    rig_run(&c.r, c.all, 1, 2000);
    assert_string_equal(worker(&c, 0).trouble, "the last");
    rig_close(&c.r);
}

static void a_key_that_connects_again_and_again_is_asked_to_wait(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    cw_link link = edge_join(&c, 9, "e");
    cw_key k = rig_key(9);
    rig_intro in;
    rig_introduce(&in, EDGE, "e", 0);
    int refused = 0;
    for (int i = 0; i < 30; i++) {
        link = rig_link(&c.r, &k);
        rig_say(&c.r, link, &k, &in);
        cw_msg *m = rig_sent(&c.r, link, BODY(REFUSAL));
        refused += m && m->env->refusal->retry_after_ms > 0;
    }
    assert_true(refused >= 20);
    rig_ticks(&c.r, 10000);
    link = rig_link(&c.r, &k);
    rig_say(&c.r, link, &k, &in);
    assert_non_null(rig_sent(&c.r, link, BODY(WELCOME)));

    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__TicketRenew renew = CW__PB__TICKET_RENEW__INIT;
    env.body_case = BODY(TICKET_RENEW), env.ticket_renew = &renew;
    cw_outbox_clear(&c.r.out);
    for (int i = 0; i < 100; i++) rig_message(&c.r, link, &k, &env);
    int tickets = 0;
    for (size_t i = 0; i < c.r.out.n; i++)
        tickets +=
            c.r.out.items[i].kind == CW_ACT_SEND && c.r.out.items[i].msg->env->body_case == BODY(TICKET);
    assert_true(tickets >= 1 && tickets <= 8);
    rig_close(&c.r);
}

static void edges_nobody_has_seen_are_forgotten_where_there_are_many(void **state)
{
    (void)state;
    static cluster c;
    cluster_open(&c);
    uint8_t token[CW_TOKEN_BYTES];
    uint32_t id = rig_token(&c.r, EDGE, 0, INT64_C(400) * 24 * 3600 * 1000, 0, 7, token);
    cw_coordinator_free(&c.r.c);
    enum { N = 1500 };
    cw_key_row *keys = cw_calloc(N, sizeof *keys);
    for (int i = 0; i < N; i++) {
        keys[i] = (cw_key_row){
            .role = EDGE, .token_id = id, .seen_ms = c.r.wall_ms - INT64_C(40) * 24 * 3600 * 1000 + i};
        keys[i].key.b[0] = (uint8_t)i, keys[i].key.b[1] = (uint8_t)(i >> 8), keys[i].key.b[2] = 0x55;
    }
    keys[0].revoked = true; /* its token could still admit it: remembered */
    keys[N - 1].seen_ms = c.r.wall_ms;
    cw_coordinator_state s = {
        .tokens = c.r.disk.tokens, .n_tokens = c.r.disk.n_tokens, .keys = keys, .n_keys = N};
    assert_int_equal(cw_coordinator_new(&c.r.cfg, &s, c.r.now_us, &c.r.c, NULL), CW_OK);
    cw_event tick = {.kind = CW_EV_TICK, .now_us = c.r.now_us + 1, .wall_ms = c.r.wall_ms};
    cw_coordinator_event(c.r.c, &tick, &c.r.out);
    size_t n_rows, gone = 0, left = 0;
    const cw_row *rows = cw_coordinator_rows(c.r.c, &n_rows);
    for (size_t i = 0; i < n_rows; i++) gone += rows[i].kind == CW_ROW_KEY && rows[i].key.forgotten;
    cw_key_row k;
    bool first = false, last = false;
    for (; cw_coordinator_get_key(c.r.c, left, &k); left++) {
        first |= cw_key_equal(&k.key, &keys[0].key);
        last |= cw_key_equal(&k.key, &keys[N - 1].key);
    }
    assert_int_equal(gone, N - 1024);
    assert_int_equal(left, 1024);
    assert_true(first && last);
    cw_free(keys);
    rig_close(&c.r);
}

/* ---- audits */

/* Rows of the test are their numbers; a liar's are wrong where row % every == 0. */
static uint64_t right(uint64_t seed, uint32_t row)
{
    return seed * 31 + row;
}

static void answer_audits(cluster *c, int i, uint32_t every)
{
    for (size_t k = 0; k < c->r.out.n; k++) {
        cw_action *a = &c->r.out.items[k];
        if (a->kind != CW_ACT_SEND || a->link != c->w[i].link || !a->link ||
            a->msg->env->body_case != BODY(AUDIT))
            continue;
        const Cw__Pb__Audit *q = a->msg->env->audit;
        assert_true(c->w[i].held[q->layer][q->expert / 8] >> q->expert % 8 & 1);
        uint64_t hashes[CW_AUDIT_ROWS_MAX];
        for (uint32_t r = 0; r < q->n_rows; r++) hashes[r] = right(q->seed, r) ^ (every && r % every == 0);
        Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
        Cw__Pb__AuditResult res = CW__PB__AUDIT_RESULT__INIT;
        res.id = q->id, res.n_row_hashes = q->n_rows, res.row_hashes = hashes;
        env.body_case = BODY(AUDIT_RESULT), env.audit_result = &res;
        a->link = 0;
        rig_message(&c->r, c->w[i].link, &c->w[i].key, &env);
    }
}

/* `wrong`: the reference itself errs. */
static int compute_references_in(cluster *c, bool wrong, int64_t took_us)
{
    cw_coordinator_audit a;
    int n = 0;
    for (; cw_coordinator_take_audit(c->r.c, &a); n++) {
        uint64_t hashes[CW_AUDIT_ROWS_MAX];
        for (uint32_t r = 0; r < a.n_rows; r++) hashes[r] = right(a.seed, r) ^ (wrong ? 4 : 0);
        cw_coordinator_audited(c->r.c, a.id, hashes, took_us, c->r.now_us, c->r.wall_ms, &c->r.out);
        rig_save(&c->r);
    }
    return n;
}

static int compute_references(cluster *c, bool wrong)
{
    return compute_references_in(c, wrong, 1000);
}

/* Everybody who is connected answers; worker `liar` is wrong in every `every`th row. */
static void audit_for(cluster *c, int n, int liar, uint32_t every, bool wrong_reference, int64_t ms)
{
    for (int64_t t = 0; t < ms; t += 100) {
        rig_run(&c->r, c->all, (size_t)n, 100);
        for (int i = 0; i < n; i++) answer_audits(c, i, i == liar ? every : 0);
        compute_references(c, wrong_reference);
        for (int i = 0; i < n; i++)
            if (c->w[i].link && rig_acted(&c->r, c->w[i].link, CW_ACT_CLOSE)) c->w[i].link = 0;
        cw_outbox_clear(&c->r.out);
    }
}

static void a_liar_is_fenced_in_the_background_and_stays_out(void **state)
{
    (void)state;
    cluster c;
    cw_err err;
    cluster_open(&c);
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 3, 2000);
    audit_for(&c, 3, -1, 0, false, 30000);
    assert_int_equal(status(&c).n_fenced, 0); /* the honest are left alone */
    for (int i = 0; i < 3; i++) assert_true(worker(&c, i).n_audits >= 5 && worker(&c, i).n_audits <= 16);
    audit_for(&c, 3, 1, 50, false, 10000);
    assert_true(worker(&c, 1).fenced);
    assert_non_null(strstr(worker(&c, 1).note, "2 of 64 rows wrong"));
    assert_int_equal(rig_in_epoch(&c.r, &c.w[1].key), -1);
    assert_false(cw_coordinator_is_worker(c.r.c, &c.w[1].key)); /* the store is closed to it too */
    assert_int_equal(status(&c).n_fenced, 1);

    for (int again = 0; again < 2; again++) {
        rig_intro in;
        rig_introduce(&in, WORKER, "b", RIG_MODEL_BYTES);
        cw_link link = rig_link(&c.r, &c.w[1].key);
        rig_say(&c.r, link, &c.w[1].key, &in);
        cw_msg *m = rig_sent(&c.r, link, BODY(REFUSAL));
        assert_non_null(m);
        assert_non_null(strstr(m->env->refusal->text, "unfence b"));
        rig_restart(&c.r); /* and after a restart */
    }
    assert_int_equal(cw_coordinator_unfence(c.r.c, &c.w[0].key, &err), CW_STATUS_STATE);
    assert_int_equal(cw_coordinator_unfence(c.r.c, &c.w[1].key, &err), CW_OK);
    rig_save(&c.r);
    rig_intro in;
    rig_introduce(&in, WORKER, "b", RIG_MODEL_BYTES);
    cw_link link = rig_link(&c.r, &c.w[1].key);
    rig_say(&c.r, link, &c.w[1].key, &in);
    assert_non_null(rig_sent(&c.r, link, BODY(WELCOME)));
    rig_close(&c.r);
}

static void who_does_not_answer_audits_keeps_nobody_else_from_being_asked(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 6; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 6, 2000);
    for (int64_t t = 0; t < 120000; t += 100) { /* five say nothing, one answers */
        rig_run(&c.r, c.all, 6, 100);
        answer_audits(&c, 5, 0);
        compute_references(&c, false);
        cw_outbox_clear(&c.r.out);
    }
    for (int i = 0; i < 5; i++) assert_int_equal(worker(&c, i).n_audits, 0);
    assert_true(worker(&c, 5).n_audits >= 10);
    assert_int_equal(status(&c).n_fenced, 0);
    rig_close(&c.r);
}

/* Worker `silent` says nothing to audits; the others do. */
static void silence_for(cluster *c, int n, int silent, int64_t ms)
{
    for (int64_t t = 0; t < ms; t += 500) {
        rig_run(&c->r, c->all, (size_t)n, 500);
        for (int i = 0; i < n; i++)
            if (i != silent) answer_audits(c, i, 0);
        compute_references(c, false);
        cw_outbox_clear(&c->r.out);
    }
}

static void who_never_answers_audits_is_set_aside_where_others_have_room_and_may_try_again(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 3, 2000);
    silence_for(&c, 3, 1, 600000);
    assert_true(rig_in_epoch(&c.r, &c.w[1].key) > 0); /* not for a few that it missed */
    silence_for(&c, 3, 1, 400000);
    assert_true(worker(&c, 1).aside);
    assert_int_equal(rig_in_epoch(&c.r, &c.w[1].key), -1);
    assert_int_equal(status(&c).min_homes, 2);
    assert_int_equal(status(&c).n_fenced, 0);
    for (int i = 0; i < 3; i += 2) assert_true(worker(&c, i).n_audits > 50);
    /* Now it would answer. */
    silence_for(&c, 3, -1, 620000);
    assert_false(worker(&c, 1).aside);
    assert_true(rig_in_epoch(&c.r, &c.w[1].key) > 0);
    silence_for(&c, 3, -1, 600000);
    assert_true(worker(&c, 1).n_audits > 0 && !worker(&c, 1).aside);
    rig_close(&c.r);
}

static void two_silent_workers_do_not_go_both_nor_one_that_is_needed(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 2; i++) join(&c, i, RIG_MODEL_BYTES * 60 / 100);
    rig_run(&c.r, c.all, 2, 2000);
    silence_for(&c, 2, 1, 1200000);
    assert_false(worker(&c, 1).aside);
    join(&c, 2, RIG_MODEL_BYTES);
    join(&c, 3, RIG_MODEL_BYTES);
    for (int64_t t = 0; t < 2000000; t += 500) {
        rig_run(&c.r, c.all, 4, 500);
        answer_audits(&c, 0, 0);
        compute_references(&c, false);
        cw_outbox_clear(&c.r.out);
        assert_true(worker(&c, 1).aside + worker(&c, 2).aside + worker(&c, 3).aside <= 1);
    }
    assert_int_equal(status(&c).n_covered, status(&c).n_experts);
    rig_close(&c.r);
}

static void a_reference_alone_against_all_fences_nobody(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 3, 2000);
    audit_for(&c, 3, -1, 0, false, 6000); /* audits of first homes, before there are others, are over */
    audit_for(&c, 3, -1, 0, true, 20000);
    assert_int_equal(status(&c).n_fenced, 0);
    rig_close(&c.r);
}

static void report3(cluster *c, cw_link link, int key, uint32_t a, uint32_t b, uint32_t third, uint32_t layer,
                    uint32_t expert)
{
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__Mismatch m = CW__PB__MISMATCH__INIT;
    m.worker_a = a, m.worker_b = b, m.third = third, m.layer = layer, m.expert = expert;
    env.body_case = BODY(MISMATCH), env.mismatch = &m;
    cw_key k = rig_key(key);
    rig_message(&c->r, link, &k, &env);
}

static void report(cluster *c, cw_link link, int key, uint32_t a, uint32_t b, uint32_t layer, uint32_t expert)
{
    report3(c, link, key, a, b, 0, layer, expert);
}

static void a_report_finds_who_errs_rarely_and_a_false_one_harms_only_its_edge(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    c.r.cfg.times.audit_ms = 0; /* nothing in the background */
    rig_restart(&c.r);
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 3, 12000);
    cw_link e = edge_join(&c, 9, "e");
    uint32_t a = worker(&c, 0).id, b = worker(&c, 1).id;
    report(&c, e, 9, a, b, 2, 5);
    audit_for(&c, 3, -1, 0, false, 5000);
    assert_int_equal(status(&c).n_fenced, 0);
    cw_coordinator_edge edge;
    assert_true(cw_coordinator_get_edge(c.r.c, 0, &edge));
    assert_int_equal(edge.reports, 1);
    assert_int_equal(edge.unfounded, 1);
    for (int i = 0; i < 300; i++)
        report(&c, e, 9, a, b, 2, (uint32_t)i % RIG_EXPERTS); /* a flood asks few questions */
    uint64_t asked = worker(&c, 0).n_audits;
    audit_for(&c, 3, -1, 0, false, 10000);
    assert_true(worker(&c, 0).n_audits - asked <= 4 * 8);
    report(&c, e, 9, 4711, b, 2, 5); /* workers and experts that are not there */
    report(&c, e, 9, a, b, 900, 5);
    rig_ticks(&c.r, 30000);
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 3, 1000);
    e = edge_join(&c, 9, "e");
    report(&c, e, 9, a, b, 2, 5);
    audit_for(&c, 3, 1, 100, false, 5000);
    assert_true(worker(&c, 1).fenced);
    assert_false(worker(&c, 0).fenced);
    rig_close(&c.r);
}

/* Asked twice it would agree with itself, and the reference would look as if it were alone. */
static void a_liar_named_twice_is_asked_once(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    c.r.cfg.times.audit_ms = 0;
    rig_restart(&c.r);
    for (int i = 0; i < 2; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 2, 12000);
    cw_link e = edge_join(&c, 9, "e");
    uint32_t a = worker(&c, 0).id, b = worker(&c, 1).id;
    report3(&c, e, 9, a, b, a, 2, 5);
    for (int64_t t = 0; t < 25000; t += 100) { /* the other one says nothing */
        rig_run(&c.r, c.all, 2, 100);
        answer_audits(&c, 0, 10);
        compute_references(&c, false);
        if (c.w[0].link && rig_acted(&c.r, c.w[0].link, CW_ACT_CLOSE)) c.w[0].link = 0;
        cw_outbox_clear(&c.r.out);
    }
    assert_true(worker(&c, 0).fenced);
    rig_close(&c.r);
}

static void reports_do_not_keep_others_from_being_audited(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 3, 2000);
    cw_link e = edge_join(&c, 9, "e");
    uint32_t a = worker(&c, 0).id, b = worker(&c, 1).id;
    uint64_t before = worker(&c, 2).n_audits;
    for (int64_t t = 0; t < 120000; t += 100) {
        rig_run(&c.r, c.all, 3, 100);
        if (t % 1000 == 0) report(&c, e, 9, a, b, 2, (uint32_t)(t / 1000) % RIG_EXPERTS);
        for (int i = 0; i < 3; i++) answer_audits(&c, i, 0);
        compute_references_in(&c, false, 100000);
        cw_outbox_clear(&c.r.out);
    }
    assert_true(worker(&c, 2).n_audits - before >= 15);
    rig_close(&c.r);
}

/* ---- versions */

static void peers_of_another_protocol_come_in_with_the_highest_both_know(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    static const struct {
        uint32_t min, max, proto; /* 0: refused */
    } t[] = {{CW_PROTO_MIN, CW_PROTO_MAX, CW_PROTO_MAX},
             {CW_PROTO_MAX, CW_PROTO_MAX + 1, CW_PROTO_MAX}, /* the next release, which still speaks ours */
             {CW_PROTO_MIN, CW_PROTO_MAX + 3, CW_PROTO_MAX},
             {CW_PROTO_MAX + 1, CW_PROTO_MAX + 2, 0}};
    for (size_t i = 0; i < CW_ARRAY_LEN(t); i++) {
        rig_intro in;
        rig_introduce(&in, EDGE, "", 0);
        in.enrol = true;
        memcpy(in.token, c.edge_token, sizeof c.edge_token);
        in.h.proto_min = t[i].min;
        in.h.proto_max = t[i].max;
        cw_key k = rig_key(20 + (int)i);
        cw_link link = rig_link(&c.r, &k);
        rig_say(&c.r, link, &k, &in);
        cw_msg *w = rig_sent(&c.r, link, BODY(WELCOME)), *r = rig_sent(&c.r, link, BODY(REFUSAL));
        if (t[i].proto) {
            assert_non_null(w);
            assert_int_equal(w->env->welcome->proto, t[i].proto);
        } else {
            assert_non_null(r);
            assert_non_null(strstr(r->env->refusal->text, "update"));
        }
    }
    rig_close(&c.r);
}

/* ---- whom the operator means */

static void names_and_keys_find_who_is_meant(void **state)
{
    (void)state;
    cluster c;
    cw_err err;
    cw_key k;
    char hex[CW_KEY_HEX];
    cluster_open(&c);
    join(&c, 0, RIG_MODEL_BYTES);
    edge_join(&c, 9, "kiosk");
    edge_join(&c, 10, "kiosk");
    edge_join(&c, 11, "a");
    assert_int_equal(cw_coordinator_find(c.r.c, "a", true, &k, &err), CW_OK);
    assert_true(cw_key_equal(&k, &c.w[0].key));
    assert_int_equal(cw_coordinator_find(c.r.c, "a", false, &k, &err),
                     CW_STATUS_INVALID); /* a worker and an edge */
    assert_int_equal(cw_coordinator_find(c.r.c, "kiosk", false, &k, &err), CW_STATUS_INVALID);
    cw_key_hex(&(cw_key){.b = {9, [31] = 0x77}}, hex);
    assert_non_null(strstr(err.text, hex));
    assert_int_equal(cw_coordinator_find(c.r.c, hex, false, &k, &err), CW_OK);
    assert_int_equal(cw_coordinator_find(c.r.c, hex, true, &k, &err), CW_STATUS_NOT_FOUND);
    assert_int_equal(cw_coordinator_find(c.r.c, "nobody", true, &k, &err), CW_STATUS_NOT_FOUND);
    rig_close(&c.r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_drained_worker_is_emptied_and_covered_all_the_while),
        cmocka_unit_test(a_drain_that_cannot_fit_is_refused_with_the_missing_bytes),
        cmocka_unit_test(a_leaving_worker_is_released_when_others_have_its_experts),
        cmocka_unit_test(the_last_worker_and_one_nobody_has_room_for_are_released_at_once),
        cmocka_unit_test(two_that_leave_at_once_lose_nothing),
        cmocka_unit_test(a_flapping_worker_does_not_make_an_epoch_each_time),
        cmocka_unit_test(holdings_in_a_flood_are_taken_together_and_the_last_one_counts),
        cmocka_unit_test(a_key_that_connects_again_and_again_is_asked_to_wait),
        cmocka_unit_test(edges_nobody_has_seen_are_forgotten_where_there_are_many),
        cmocka_unit_test(a_liar_is_fenced_in_the_background_and_stays_out),
        cmocka_unit_test(who_does_not_answer_audits_keeps_nobody_else_from_being_asked),
        cmocka_unit_test(who_never_answers_audits_is_set_aside_where_others_have_room_and_may_try_again),
        cmocka_unit_test(two_silent_workers_do_not_go_both_nor_one_that_is_needed),
        cmocka_unit_test(a_reference_alone_against_all_fences_nobody),
        cmocka_unit_test(a_report_finds_who_errs_rarely_and_a_false_one_harms_only_its_edge),
        cmocka_unit_test(a_liar_named_twice_is_asked_once),
        cmocka_unit_test(reports_do_not_keep_others_from_being_audited),
        cmocka_unit_test(peers_of_another_protocol_come_in_with_the_highest_both_know),
        cmocka_unit_test(names_and_keys_find_who_is_meant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
