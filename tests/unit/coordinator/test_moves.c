/* What moves when, how much, and in which order: joins, drains, losses and loads that drift. */
#include <math.h>
#include <stdlib.h>

#include "rig.h"

#define WORKER  CW__PB__ROLE__ROLE_WORKER
#define BODY(x) CW__PB__ENVELOPE__BODY_##x

enum { N = 8 };

typedef struct {
    rig r;
    uint8_t token[CW_TOKEN_BYTES];
    rig_worker w[N];
    rig_worker *all[N];
} cluster;

static void cluster_open(cluster *c)
{
    memset(c, 0, sizeof *c);
    rig_open(&c->r);
    c->r.cfg.times.audit_ms = 0; /* the workers here answer no audits, and would be set aside for it */
    rig_restart(&c->r);
    rig_token(&c->r, WORKER, 0, 36000000, 0, 1, c->token);
    for (int i = 0; i < N; i++) c->all[i] = &c->w[i];
}

static void join(cluster *c, int i, uint64_t memory)
{
    static const char *names[] = {"a", "b", "c", "d", "e", "f", "g", "h"};
    rig_worker_join(&c->r, &c->w[i], i + 1, names[i], memory, c->token);
}

static void cut(cluster *c, int i)
{
    rig_down(&c->r, c->w[i].link);
    c->w[i].link = 0;
}

static void run(cluster *c, int64_t ms)
{
    rig_run(&c->r, c->all, N, ms);
}

static bool holds(const rig_worker *w, uint32_t l, uint32_t e)
{
    return w->link && (w->held[l][e / 8] >> e % 8 & 1);
}

static int homes(const cluster *c, uint32_t l, uint32_t e, int without)
{
    int n = 0;
    for (int i = 0; i < N; i++) n += i != without && holds(&c->w[i], l, e);
    return n;
}

static void forget_counts(cluster *c)
{
    for (int i = 0; i < N; i++) c->w[i].n_assigned = c->w[i].n_dropped = 0;
}

static int assigned(const cluster *c)
{
    int n = 0;
    for (int i = 0; i < N; i++) n += c->w[i].n_assigned;
    return n;
}

/* Rows of each expert since the last report, all of them at worker i. */
static void report(cluster *c, int i, const uint32_t rows[RIG_LAYERS][RIG_EXPERTS])
{
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__WorkerLoad load = CW__PB__WORKER_LOAD__INIT;
    Cw__Pb__LayerLoad layers[RIG_LAYERS], *list[RIG_LAYERS];
    uint32_t experts[RIG_EXPERTS];
    for (uint32_t e = 0; e < RIG_EXPERTS; e++) experts[e] = e;
    for (uint32_t l = RIG_FIRST_MOE; l < RIG_LAYERS; l++) {
        Cw__Pb__LayerLoad *x = &layers[load.n_loads];
        cw__pb__layer_load__init(x);
        x->layer = l;
        x->n_experts = x->n_rows = RIG_EXPERTS;
        x->experts = experts;
        x->rows = (uint32_t *)rows[l];
        list[load.n_loads++] = x;
    }
    load.loads = list;
    load.speed = 5;
    env.body_case = BODY(WORKER_LOAD), env.worker_load = &load;
    rig_message(&c->r, c->w[i].link, &c->w[i].key, &env);
}

/* ---- order
 * ------------------------------------------------------------------------------------------------- */

static void first_homes_are_divided_and_go_before_replicas(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 3; i++) join(&c, i, RIG_MODEL_BYTES);
    rig_ticks(&c.r, 500);
    uint32_t n[RIG_LAYERS][RIG_EXPERTS] = {{0}};
    for (int i = 0; i < 3; i++) {
        cw_msg *m = rig_sent(&c.r, c.w[i].link, BODY(ASSIGN));
        assert_non_null(m);
        const Cw__Pb__Assign *a = m->env->assign;
        assert_int_equal(rig_count_sets(a->n_sets, a->sets), RIG_TOTAL_EXPERTS / 3);
        for (uint32_t l = RIG_FIRST_MOE; l < RIG_LAYERS; l++)
            for (uint32_t e = 0; e < RIG_EXPERTS; e++) n[l][e] += rig_set_has(a->n_sets, a->sets, l, e);
    }
    for (uint32_t l = RIG_FIRST_MOE; l < RIG_LAYERS; l++)
        for (uint32_t e = 0; e < RIG_EXPERTS; e++) assert_int_equal(n[l][e], 1);
    /* One is slow: whoever is done with its first homes goes on with replicas, and takes over nothing. */
    assert_true(rig_worker_obey(&c.r, &c.w[0]));
    rig_holdings(&c.r, &c.w[0], "");
    cw_msg *m = rig_sent(&c.r, c.w[0].link, BODY(ASSIGN));
    assert_non_null(m);
    assert_int_equal(rig_count_sets(m->env->assign->n_sets, m->env->assign->sets), RIG_TOTAL_EXPERTS * 2 / 3);
    run(&c, 2000);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(rig_held(&c.w[i]), RIG_TOTAL_EXPERTS);
        assert_int_equal(c.w[i].n_assigned, RIG_TOTAL_EXPERTS); /* nothing twice */
    }
    rig_close(&c.r);
}

static void a_first_home_that_cannot_be_loaded_does_not_hold_up_replicas_for_ever(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 2; i++) join(&c, i, RIG_MODEL_BYTES);
    for (int ms = 0; ms < 40000; ms += 100) {
        rig_ticks(&c.r, 100);
        if (rig_worker_obey(&c.r, &c.w[0])) rig_holdings(&c.r, &c.w[0], "");
        if (ms % 1000) continue;
        rig_holdings(&c.r, &c.w[0], "");
        rig_holdings(&c.r, &c.w[1], "the disk is full"); /* it never has anything */
    }
    assert_int_equal(rig_held(&c.w[0]), RIG_TOTAL_EXPERTS);
    rig_close(&c.r);
}

/* ---- losses
 * ------------------------------------------------------------------------------------------------ */

static void what_only_a_lost_worker_had_is_placed_at_once_and_the_rest_after_a_while(void **state)
{
    (void)state;
    cluster c;
    cluster_open(&c);
    for (int i = 0; i < 4; i++) join(&c, i, RIG_MODEL_BYTES * 45 / 100);
    run(&c, 3000);
    int sole = 0, shared = 0;
    for (uint32_t l = RIG_FIRST_MOE; l < RIG_LAYERS; l++)
        for (uint32_t e = 0; e < RIG_EXPERTS; e++) {
            if (!holds(&c.w[3], l, e)) continue;
            if (homes(&c, l, e, 3))
                shared++;
            else
                sole++;
        }
    assert_true(sole > 0 && shared > 0);
    forget_counts(&c);
    cut(&c, 3);
    run(&c, 300);
    assert_true(assigned(&c) > 0);
    run(&c, 2000); /* the last of them where a replica had to give way first */
    for (uint32_t l = RIG_FIRST_MOE; l < RIG_LAYERS; l++)
        for (uint32_t e = 0; e < RIG_EXPERTS; e++) assert_true(homes(&c, l, e, -1) >= 1);
    run(&c, 25000);
    assert_int_equal(assigned(&c), sole); /* the others have a home: they wait for it to come back */
    run(&c, 30000);
    for (uint32_t l = RIG_FIRST_MOE; l < RIG_LAYERS; l++)
        for (uint32_t e = 0; e < RIG_EXPERTS; e++) assert_true(homes(&c, l, e, -1) >= 1);
    rig_close(&c.r);
}

/* ---- bytes
 * ------------------------------------------------------------------------------------------------- */

static void a_join_loads_only_what_the_new_worker_is_to_hold(void **state)
{
    (void)state;
    for (int n = 2; n < N - 1; n++) {
        cluster c;
        cluster_open(&c);
        for (int i = 0; i < n; i++) join(&c, i, RIG_MODEL_BYTES * 3 / 2 / (uint64_t)n + 2 * RIG_EXPERT_BYTES);
        run(&c, 5000);
        forget_counts(&c);
        join(&c, n, RIG_MODEL_BYTES * 3 / 2 / (uint64_t)n + 2 * RIG_EXPERT_BYTES);
        run(&c, 40000);
        int least = rig_held(&c.w[n]);
        assert_true(least > 0);
        print_message("%d workers and one more: %d experts loaded, at least %d\n", n, assigned(&c), least);
        assert_true(assigned(&c) <= least + least / 5);
        rig_close(&c.r);
    }
}

static void a_drain_loads_only_what_would_be_lost(void **state)
{
    (void)state;
    for (int n = 3; n < N; n++)
        for (int twice = 0; twice < 2; twice++) {
            cluster c;
            cw_err err;
            cluster_open(&c);
            uint64_t memory =
                (twice ? 2 * RIG_MODEL_BYTES + RIG_MODEL_BYTES / 2 : RIG_MODEL_BYTES) / (uint64_t)(n - 1) +
                3 * RIG_EXPERT_BYTES;
            for (int i = 0; i < n; i++) join(&c, i, memory);
            run(&c, 5000);
            int least = 0;
            for (uint32_t l = RIG_FIRST_MOE; l < RIG_LAYERS; l++)
                for (uint32_t e = 0; e < RIG_EXPERTS; e++)
                    least += holds(&c.w[0], l, e) && homes(&c, l, e, 0) < (twice ? 2 : 1);
            forget_counts(&c);
            assert_int_equal(
                cw_coordinator_drain(c.r.c, &c.w[0].key, true, c.r.now_us, c.r.wall_ms, &c.r.out, &err),
                CW_OK);
            rig_save(&c.r);
            for (int ms = 0; ms < 60000; ms += 100) {
                run(&c, 100);
                Cw__Pb__EpochBody *b = rig_epoch(&c.r); /* covered at every moment */
                for (uint32_t l = RIG_FIRST_MOE; l < RIG_LAYERS; l++)
                    for (uint32_t e = 0; e < RIG_EXPERTS; e++) {
                        bool any = false;
                        for (size_t i = 0; i < b->n_workers; i++)
                            any |= rig_set_has(b->workers[i]->n_sets, b->workers[i]->sets, l, e);
                        assert_true(any);
                    }
                cw_epoch_free(&b);
            }
            print_message("%d workers less one, %s: %d experts loaded, at least %d\n", n,
                          twice ? "two homes" : "tight", assigned(&c), least);
            assert_true(assigned(&c) <= least + least / 5);
            assert_int_equal(rig_in_epoch(&c.r, &c.w[0].key), -1);
            rig_close(&c.r);
        }
}

/* ---- drift
 * ------------------------------------------------------------------------------------------------- */

static void hot(uint32_t rows[RIG_LAYERS][RIG_EXPERTS], uint32_t first, uint32_t n, uint32_t much)
{
    for (uint32_t l = 0; l < RIG_LAYERS; l++)
        for (uint32_t e = 0; e < RIG_EXPERTS; e++)
            rows[l][e] = (e + RIG_EXPERTS - first) % RIG_EXPERTS < n ? much : 50;
}

static void loads_that_differ_by_chance_move_nothing(void **state)
{
    (void)state;
    cluster c;
    uint32_t rows[RIG_LAYERS][RIG_EXPERTS];
    cluster_open(&c);
    for (int i = 0; i < 4; i++) join(&c, i, RIG_MODEL_BYTES * 60 / 100);
    run(&c, 5000);
    forget_counts(&c);
    uint64_t number = c.r.disk.number;
    srand(4);
    for (int s = 0; s < 300; s += 10) {
        for (uint32_t l = 0; l < RIG_LAYERS; l++)
            for (uint32_t e = 0; e < RIG_EXPERTS; e++) rows[l][e] = 40 + (uint32_t)rand() % 20;
        report(&c, s / 10 % 4, (const uint32_t(*)[RIG_EXPERTS])rows);
        run(&c, 10000);
    }
    assert_int_equal(assigned(&c), 0);
    assert_int_equal(c.r.disk.number, number);
    rig_close(&c.r);
}

static void hot_experts_get_homes_within_the_limit_and_then_rest(void **state)
{
    (void)state;
    cluster c;
    uint32_t rows[RIG_LAYERS][RIG_EXPERTS];
    cluster_open(&c);
    for (int i = 0; i < 6; i++) join(&c, i, RIG_MODEL_BYTES * 28 / 100);
    run(&c, 5000);
    forget_counts(&c);
    hot(rows, 3, 1, 3000); /* one expert of each layer has four fifths of the load */
    int before = homes(&c, 1, 3, -1) + homes(&c, 2, 3, -1) + homes(&c, 3, 3, -1), last = 0;
    for (int s = 0; s < 900; s += 10) {
        report(&c, s / 10 % 6, (const uint32_t(*)[RIG_EXPERTS])rows);
        int was = assigned(&c);
        run(&c, 10000);
        /* Four experts are the least that the limit is. */
        assert_true(assigned(&c) - was <= 4);
        for (uint32_t l = RIG_FIRST_MOE; l < RIG_LAYERS; l++)
            for (uint32_t e = 0; e < RIG_EXPERTS; e++) assert_true(homes(&c, l, e, -1) >= 1);
        if (s < 600) last = assigned(&c);
    }
    int after = homes(&c, 1, 3, -1) + homes(&c, 2, 3, -1) + homes(&c, 3, 3, -1);
    print_message("homes of the hot experts: %d, then %d after %d loads\n", before, after, assigned(&c));
    assert_true(after > before);
    assert_int_equal(assigned(&c), last); /* it came to rest */
    cw_coordinator_status s;
    cw_coordinator_get_status(c.r.c, &s);
    assert_int_equal(s.n_ready_workers, 6);
    rig_close(&c.r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_homes_are_divided_and_go_before_replicas),
        cmocka_unit_test(a_first_home_that_cannot_be_loaded_does_not_hold_up_replicas_for_ever),
        cmocka_unit_test(what_only_a_lost_worker_had_is_placed_at_once_and_the_rest_after_a_while),
        cmocka_unit_test(a_join_loads_only_what_the_new_worker_is_to_hold),
        cmocka_unit_test(a_drain_loads_only_what_would_be_lost),
        cmocka_unit_test(loads_that_differ_by_chance_move_nothing),
        cmocka_unit_test(hot_experts_get_homes_within_the_limit_and_then_rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
