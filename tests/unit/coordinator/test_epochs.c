/* Who holds what over time: placement carried out, make before break, epochs that only rise, restarts. */
#include "rig.h"

#define WORKER  CW__PB__ROLE__ROLE_WORKER
#define BODY(x) CW__PB__ENVELOPE__BODY_##x

typedef struct {
    rig r;
    uint8_t token[CW_TOKEN_BYTES];
    rig_worker w[6];
    rig_worker *all[6];
} cluster;

static void cluster_open(cluster *c)
{
    memset(c, 0, sizeof *c);
    rig_open(&c->r);
    rig_token(&c->r, WORKER, 0, 36000000, 0, 1, c->token);
    for (int i = 0; i < 6; i++) c->all[i] = &c->w[i];
}

static void join(cluster *c, int i, uint64_t memory)
{
    static const char *names[] = {"a", "b", "c", "d", "e", "f"};
    rig_worker_join(&c->r, &c->w[i], i + 1, names[i], memory, c->token);
}

static void cut(cluster *c, int i)
{
    rig_down(&c->r, c->w[i].link);
    c->w[i].link = 0;
}

/* Every expert that the newest epoch names for a connected worker is really held there; every expert is
 * covered. */
static void check_truth(cluster *c, bool covered)
{
    Cw__Pb__EpochBody *b = rig_epoch(&c->r);
    assert_non_null(b);
    for (size_t i = 0; i < b->n_workers; i++)
        for (int k = 0; k < 6; k++) {
            if (!c->w[k].link || memcmp(c->w[k].key.b, b->workers[i]->key.data, CW_KEY_BYTES) != 0) continue;
            for (uint32_t l = 0; l < RIG_LAYERS; l++)
                for (uint32_t e = 0; e < RIG_EXPERTS; e++)
                    if (rig_set_has(b->workers[i]->n_sets, b->workers[i]->sets, l, e))
                        assert_true(c->w[k].held[l][e / 8] >> e % 8 & 1);
        }
    for (uint32_t l = RIG_FIRST_MOE; covered && l < RIG_LAYERS; l++)
        for (uint32_t e = 0; e < RIG_EXPERTS; e++) {
            bool any = false;
            for (size_t i = 0; i < b->n_workers; i++)
                any |= rig_set_has(b->workers[i]->n_sets, b->workers[i]->sets, l, e);
            assert_true(any);
        }
    cw_epoch_free(&b);
}

static void two_big_workers_hold_everything(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    join(&c, 0, RIG_MODEL_BYTES);
    join(&c, 1, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 2, 1000);
    check_truth(&c, true);
    for (int i = 0; i < 2; i++) assert_int_equal(rig_in_epoch(&c.r, &c.w[i].key), RIG_TOTAL_EXPERTS);
    cw_coordinator_status s;
    cw_coordinator_get_status(c.r.c, &s);
    assert_int_equal(s.n_ready_workers, 2);
    assert_int_equal(s.n_covered, RIG_TOTAL_EXPERTS);
    assert_int_equal(s.min_homes, 2);
    assert_string_equal(s.trouble, "");
    /* nothing happens for no reason */
    uint64_t number = s.number;
    int rows = c.r.disk.n_rows;
    rig_run(&c.r, c.all, 2, 60000);
    cw_coordinator_get_status(c.r.c, &s);
    assert_int_equal(s.number, number);
    assert_int_equal(c.r.disk.n_rows, rows);
    rig_close(&c.r);
}

static void too_little_memory_is_said_and_the_rest_is_placed(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    join(&c, 0, RIG_MODEL_BYTES / 2);
    rig_run(&c.r, c.all, 1, 1000);
    cw_coordinator_status s;
    cw_coordinator_get_status(c.r.c, &s);
    assert_int_equal(s.missing_bytes, RIG_MODEL_BYTES / 2);
    assert_non_null(strstr(s.trouble, "24 of the model's experts"));
    assert_int_equal(rig_held(&c.w[0]), RIG_TOTAL_EXPERTS / 2);
    check_truth(&c, false);
    join(&c, 1, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 2, 1000);
    check_truth(&c, true);
    cw_coordinator_get_status(c.r.c, &s);
    assert_int_equal(s.missing_bytes, 0);
    assert_string_equal(s.trouble, "");
    rig_close(&c.r);
}

static void epochs_and_terms_only_rise(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    join(&c, 0, RIG_MODEL_BYTES);
    uint64_t term = 0, number = 0;
    for (int round = 0; round < 6; round++) {
        rig_run(&c.r, c.all, 2, 1500);
        Cw__Pb__EpochBody *b = rig_epoch(&c.r);
        assert_non_null(b);
        assert_true(b->term > term || (b->term == term && b->number > number));
        assert_true(b->number > number);
        assert_true(b->term <= c.r.disk.term); /* saved first */
        term = b->term;
        number = b->number;
        cw_epoch_free(&b);
        if (round % 3 == 0) join(&c, 1, RIG_MODEL_BYTES);
        if (round % 3 == 1) {
            cut(&c, 1);
            rig_run(&c.r, c.all, 1, 6000);
        }
        if (round % 3 == 2) {
            rig_restart(&c.r);
            memset(c.w[0].held, 0, sizeof c.w[0].held);
            join(&c, 0, RIG_MODEL_BYTES); /* it lost everything too, so something changes */
        }
    }
    rig_close(&c.r);
}

static void a_restart_moves_nothing(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES * 45 / 100);
    rig_run(&c.r, c.all, 3, 1500);
    check_truth(&c, true);
    for (int i = 0; i < 3; i++) c.w[i].n_assigned = c.w[i].n_dropped = 0;
    uint64_t number = c.r.disk.number, term = c.r.disk.term;

    rig_restart(&c.r);
    assert_true(c.r.disk.term > term);
    cw_coordinator_status s;
    cw_coordinator_get_status(c.r.c, &s);
    assert_true(s.settling);
    assert_int_equal(s.n_covered, RIG_TOTAL_EXPERTS);                    /* the last epoch still holds */
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES * 45 / 100); /* known keys: no token is spent */
    assert_int_equal(c.r.disk.tokens[0].uses, 3);
    rig_run(&c.r, c.all, 3, 30000);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(c.w[i].n_assigned, 0);
        assert_int_equal(c.w[i].n_dropped, 0);
    }
    assert_int_equal(c.r.disk.number, number); /* and there was nothing new to say */
    cw_coordinator_get_status(c.r.c, &s);
    assert_false(s.settling);
    rig_close(&c.r);
}

static void after_a_restart_absent_workers_keep_their_part_for_a_while(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 2; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 2, 1500);
    rig_restart(&c.r);
    c.w[1].link = 0;
    join(&c, 0, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 1, 9000);
    assert_int_equal(rig_in_epoch(&c.r, &c.w[1].key), RIG_TOTAL_EXPERTS);
    rig_run(&c.r, c.all, 1, 8000);
    assert_int_equal(rig_in_epoch(&c.r, &c.w[1].key), -1);
    rig_close(&c.r);
}

static void a_lost_worker_leaves_the_epoch_after_its_grace(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES * 60 / 100);
    rig_run(&c.r, c.all, 3, 1500);
    cut(&c, 2);
    rig_run(&c.r, c.all, 3, 4000);
    assert_true(rig_in_epoch(&c.r, &c.w[2].key) > 0); /* maybe only its link to us is gone */
    rig_run(&c.r, c.all, 3, 2000);
    assert_int_equal(rig_in_epoch(&c.r, &c.w[2].key), -1);
    rig_run(&c.r, c.all, 3, 2000);
    check_truth(&c, true); /* what only it had is loaded elsewhere */
    rig_close(&c.r);
}

static void a_worker_that_comes_back_soon_moves_nothing(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 2; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 2, 1500);
    c.w[0].n_assigned = c.w[1].n_assigned = 0;
    uint64_t number = c.r.disk.number;
    cut(&c, 1);
    rig_run(&c.r, c.all, 2, 3000);
    join(&c, 1, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 2, 20000);
    assert_int_equal(c.w[0].n_assigned + c.w[1].n_assigned, 0);
    assert_int_equal(c.r.disk.number, number);
    rig_close(&c.r);
}

static void a_farewell_needs_no_grace(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 2; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 2, 1500);
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__Bye bye = CW__PB__BYE__INIT;
    env.body_case = BODY(BYE);
    env.bye = &bye;
    rig_message(&c.r, c.w[1].link, &c.w[1].key, &env);
    assert_int_equal(rig_in_epoch(&c.r, &c.w[1].key), -1);
    assert_int_equal(rig_in_epoch(&c.r, &c.w[0].key), RIG_TOTAL_EXPERTS);
    rig_close(&c.r);
}

/* Two small workers share the model; a third joins and takes a part over. At no time is an expert named where
 * it is not, or without a home, and nothing is dropped before the epoch without it has been out for the
 * grace. */
static void moves_make_before_they_break(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 2; i++) join(&c, i, RIG_MODEL_BYTES * 60 / 100);
    rig_run(&c.r, c.all, 2, 1500);
    check_truth(&c, true);
    cut(&c, 0); /* comes back with less memory: it must give some away, but not before others have it */
    join(&c, 2, RIG_MODEL_BYTES * 60 / 100);
    join(&c, 0, RIG_MODEL_BYTES * 60 / 100);
    int dropped_at = -1;
    for (int ms = 0; ms < 60000; ms += 100) {
        rig_run(&c.r, c.all, 3, 100);
        check_truth(&c, true);
        for (int i = 0; i < 3; i++)
            assert_true(rig_held(&c.w[i]) * RIG_EXPERT_BYTES <= RIG_MODEL_BYTES * 60 / 100);
        if (dropped_at < 0 && c.w[0].n_dropped + c.w[1].n_dropped > 0) dropped_at = ms;
    }
    cw_coordinator_status s;
    cw_coordinator_get_status(c.r.c, &s);
    assert_int_equal(s.n_ready_workers, 3);
    if (dropped_at >= 0) assert_true(dropped_at >= (int)c.r.cfg.times.drop_grace_ms);
    rig_close(&c.r);
}

static void a_worker_that_shrank_is_served_within_its_memory(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 2; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 2, 1500);
    cut(&c, 1);
    memset(c.w[1].held, 0, sizeof c.w[1].held);
    join(&c, 1, RIG_MODEL_BYTES / 4);
    for (int i = 0; i < 300; i++) {
        rig_run(&c.r, c.all, 2, 100);
        assert_true(rig_held(&c.w[1]) * RIG_EXPERT_BYTES <= RIG_MODEL_BYTES / 4);
    }
    assert_true(rig_held(&c.w[1]) > 8);
    check_truth(&c, true);
    rig_close(&c.r);
}

/* A Drop waits until the other home is alive; when that dies meanwhile, the expert returns to the epoch. */
static void what_others_lost_is_not_dropped(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    join(&c, 0, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 1, 1500);
    cut(&c, 0);
    join(&c, 1, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 2, 2000);
    /* the first comes back, says it has less memory than it holds: some of it must leave in time */
    join(&c, 0, RIG_MODEL_BYTES / 2);
    rig_run(&c.r, c.all, 2, 2000);
    assert_true(rig_in_epoch(&c.r, &c.w[0].key) < RIG_TOTAL_EXPERTS);
    assert_int_equal(c.w[0].n_dropped, 0);
    cut(&c, 1); /* the only other home */
    rig_run(&c.r, c.all, 2, 30000);
    assert_int_equal(c.w[0].n_dropped, 0);
    assert_int_equal(rig_in_epoch(&c.r, &c.w[0].key), RIG_TOTAL_EXPERTS);
    join(&c, 1, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 2, 30000);
    assert_true(c.w[0].n_dropped > 0);
    check_truth(&c, true);
    rig_close(&c.r);
}

static void a_worker_that_cannot_load_is_asked_again_later(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    join(&c, 0, RIG_MODEL_BYTES);
    rig_ticks(&c.r, 1000);
    cw_msg *m = rig_sent(&c.r, c.w[0].link, BODY(ASSIGN));
    assert_non_null(m);
    rig_holdings(&c.r, &c.w[0], "the disk is full");
    cw_coordinator_worker facts;
    assert_true(cw_coordinator_get_worker(c.r.c, 0, &facts));
    assert_string_equal(facts.trouble, "the disk is full");
    cw_outbox_clear(&c.r.out);
    rig_ticks(&c.r, 5000);
    assert_null(rig_sent(&c.r, c.w[0].link, BODY(ASSIGN)));
    rig_holdings(&c.r, &c.w[0], "the disk is full");
    rig_ticks(&c.r, 6000);
    assert_non_null(rig_sent(&c.r, c.w[0].link, BODY(ASSIGN)));
    rig_close(&c.r);
}

static void higher_epochs_seen_by_workers_raise_the_term(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    join(&c, 0, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 1, 1500);
    rig_intro in;
    rig_introduce(&in, WORKER, "b", RIG_MODEL_BYTES);
    in.enrol = true;
    memcpy(in.token, c.token, sizeof c.token);
    in.h.epoch_term = 40;
    in.h.epoch_number = 3;
    cw_key k = rig_key(9);
    rig_say(&c.r, rig_link(&c.r, &k), &k, &in);
    assert_int_equal(c.r.disk.term, 41);
    Cw__Pb__EpochBody *b = rig_epoch(&c.r);
    assert_int_equal(b->term, 41); /* what is out there is overruled at once */
    cw_epoch_free(&b);

    in.h.epoch_term = UINT64_MAX; /* and nobody can use the terms up */
    k = rig_key(10);
    in.h.name = (char *)"c";
    rig_say(&c.r, rig_link(&c.r, &k), &k, &in);
    assert_int_equal(c.r.disk.term, 41);

    /* Nor bring them where the next start would refuse its own saved state. */
    for (int bit = 59; bit < 64; bit++) {
        k = rig_key(11 + bit);
        in.h.name = (char *)"";
        in.h.epoch_term = ((uint64_t)1 << bit) - 1;
        cw_link link = rig_link(&c.r, &k);
        rig_say(&c.r, link, &k, &in);
        assert_non_null(rig_sent(&c.r, link, BODY(WELCOME)));
        rig_restart(&c.r);
    }
    assert_true(c.r.disk.term >= (uint64_t)1 << 60); /* what could be true was taken */
    rig_close(&c.r);
}

/* The restored state is one epoch behind what was published after the copy was made: its term is higher
 * already, but what the others believe in is still newer than its newest epoch. */
static void an_old_backup_overrules_what_came_after_it(void **state)
{
    (void)state;
    static cluster c;
    static rig_disk backup;
    cluster_open(&c);
    for (int i = 0; i < 2; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 2, 1500);
    backup = c.r.disk;
    cut(&c, 1);
    rig_run(&c.r, c.all, 2, 8000);
    assert_int_equal(rig_in_epoch(&c.r, &c.w[1].key), -1);
    uint64_t seen_term = backup.term, seen = c.r.disk.number;
    assert_true(seen > backup.number);

    c.r.disk = backup;
    rig_restart(&c.r);
    rig_intro in;
    rig_introduce(&in, WORKER, "a", RIG_MODEL_BYTES);
    in.h.epoch_term = seen_term;
    in.h.epoch_number = seen;
    c.w[0].link = rig_link(&c.r, &c.w[0].key);
    rig_say(&c.r, c.w[0].link, &c.w[0].key, &in);
    Cw__Pb__EpochBody *b = rig_epoch(&c.r);
    assert_true(b->term > seen_term);
    cw_epoch_free(&b);
    rig_close(&c.r);
}

static void contradictory_state_is_refused_in_words(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    join(&c, 0, RIG_MODEL_BYTES);
    rig_run(&c.r, c.all, 1, 1500);
    cw_coordinator_free(&c.r.c);
    rig_disk *d = &c.r.disk;
    cw_key_row twice[2] = {d->keys[0], d->keys[0]};
    cw_coordinator_state s = {.keys = twice, .n_keys = 2, .term = d->term};
    cw_err err;
    assert_int_equal(cw_coordinator_new(&c.r.cfg, &s, c.r.now_us, &c.r.c, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "twice"));
    s = (cw_coordinator_state){
        .keys = d->keys, .n_keys = 1, .term = d->term - 1, .epoch = d->epoch, .epoch_bytes = d->epoch_bytes};
    assert_int_equal(cw_coordinator_new(&c.r.cfg, &s, c.r.now_us, &c.r.c, &err),
                     CW_STATUS_FORMAT); /* an epoch above its term */
    s.term = d->term;
    s.epoch_bytes /= 2;
    assert_int_equal(cw_coordinator_new(&c.r.cfg, &s, c.r.now_us, &c.r.c, &err), CW_STATUS_FORMAT);
    rig_boot(&c.r);
    rig_close(&c.r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_big_workers_hold_everything),
        cmocka_unit_test(too_little_memory_is_said_and_the_rest_is_placed),
        cmocka_unit_test(epochs_and_terms_only_rise),
        cmocka_unit_test(a_restart_moves_nothing),
        cmocka_unit_test(after_a_restart_absent_workers_keep_their_part_for_a_while),
        cmocka_unit_test(a_lost_worker_leaves_the_epoch_after_its_grace),
        cmocka_unit_test(a_worker_that_comes_back_soon_moves_nothing),
        cmocka_unit_test(a_farewell_needs_no_grace),
        cmocka_unit_test(moves_make_before_they_break),
        cmocka_unit_test(a_worker_that_shrank_is_served_within_its_memory),
        cmocka_unit_test(what_others_lost_is_not_dropped),
        cmocka_unit_test(a_worker_that_cannot_load_is_asked_again_later),
        cmocka_unit_test(higher_epochs_seen_by_workers_raise_the_term),
        cmocka_unit_test(an_old_backup_overrules_what_came_after_it),
        cmocka_unit_test(contradictory_state_is_refused_in_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
