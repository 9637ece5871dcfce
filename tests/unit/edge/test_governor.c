/*
 * The governor on links that exist only as arithmetic: the truth differs from its plan in level and shape,
 * guesses are right at random, rounds are noisy. Compared is what it reaches with what the best fixed length
 * would reach.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/governor.h"

typedef struct {
    double first_us, row_us; /* a pass that verifies n guesses: first + n * row */
    double acceptance, noise;
    double stall_share, stall_us;
    double guess_us; /* waited for where the guess before was wrong */
} truth;

static uint64_t seed;

static double uniform(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 11) / 9007199254740992.0;
}

static cw_plan plan_of(double rtt_us)
{
    return (cw_plan){
        .model = {.n_moe_layers = 4, .n_experts = 32, .n_used = 4, .d_model = 256},
        .link = {.rtt_us = rtt_us},
        .workers = {.n = 2, .call_us = 150, .expert_us = 10, .row_us = 5},
        .machine =
            {.edge_us = 400, .edge_row_us = 50, .fallback_us = 300, .can_draft = true, .acceptance = 0.8},
    };
}

static double round_of(const truth *t, int n)
{
    double us = t->first_us + n * t->row_us;
    us *= 1 + t->noise * (uniform() * 2 - 1);
    if (uniform() < t->stall_share) us += t->stall_us;
    return us;
}

static double best_rate(const truth *t, bool may_rest)
{
    double best = 0;
    for (int n = may_rest ? 0 : 1; n <= 32; n++) {
        double us = t->first_us + n * t->row_us + t->stall_share * t->stall_us;
        us += n * t->guess_us * (1 - pow(t->acceptance, n));
        double r = cw_plan_yield(t->acceptance, n) / us;
        if (r > best) best = r;
    }
    return best;
}

/* Tokens a microsecond over so many rounds. */
static double run(cw_governor *g, const truth *t, int rounds)
{
    double tokens = 0, time = 0;
    bool wrong = true;
    for (int i = 0; i < rounds; i++) {
        int n = cw_governor_length(g), right = 0;
        assert_in_range(n, 0, 32);
        while (right < n && uniform() < t->acceptance) right++;
        double pass = round_of(t, n), wait = wrong ? n * t->guess_us : 0;
        wrong = right < n || n == 0;
        cw_governor_tell(g, n, right, (int64_t)wait, (int64_t)pass);
        tokens += 1 + right;
        time += wait + pass;
    }
    return tokens / time;
}

static const truth links[] = {
    {.first_us = 900, .row_us = 500, .acceptance = 0.3, .noise = 0.2},    /* near, bad guesses: split */
    {.first_us = 1000, .row_us = 200, .acceptance = 0.95, .noise = 0.2},  /* near, good guesses */
    {.first_us = 81000, .row_us = 400, .acceptance = 0.96, .noise = 0.1}, /* far: long runs */
    {.first_us = 81000, .row_us = 400, .acceptance = 0.6, .noise = 0.1},
    {.first_us = 6000, .row_us = 5000, .acceptance = 0.87, .noise = 0.1}, /* thin: rows cost */
    {.first_us = 6000, .row_us = 6000, .acceptance = 0.4, .noise = 0.1},
    {.first_us = 5000,
     .row_us = 300,
     .acceptance = 0.87,
     .noise = 0.1,
     .stall_share = 0.1,
     .stall_us = 200000},
    {.first_us = 3000, .row_us = 50, .acceptance = 0.9, .noise = 0.1, .guess_us = 1500}, /* a slow fallback */
};

static void it_reaches_nearly_what_the_best_length_would(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        for (int wrong = 0; wrong < 3; wrong++) { /* the plan is right about the link, or wrong by far */
            const truth *t = &links[i];
            seed = 1000 * i + (uint64_t)wrong + 7;
            cw_plan p = plan_of(wrong == 0 ? t->first_us / 4 : wrong == 1 ? 100 : 50000);
            cw_governor g;
            cw_governor_init(&g, &p, 32, true);
            run(&g, t, 60);
            double got = run(&g, t, 3000), best = best_rate(t, true);
            /* What exploring costs, and lengths that noise cannot tell apart. */
            if (got < 0.9 * best)
                fail_msg("link %zu, plan %d: %.3f of the best, at %d", i, wrong, got / best,
                         cw_governor_choice(&g));
        }
}

static void it_is_good_within_a_short_answer(void **state)
{
    (void)state;
    for (int wrong = 0; wrong < 3; wrong++) {
        double sum = 0;
        int n = 0;
        for (size_t i = 0; i < sizeof links / sizeof *links; i++)
            for (int k = 0; k < 40; k++, n++) {
                seed = 50 * i + (uint64_t)k;
                cw_plan p = plan_of(wrong == 0 ? links[i].first_us / 4 : wrong == 1 ? 100 : 50000);
                cw_governor g;
                cw_governor_init(&g, &p, 32, true);
                sum += run(&g, &links[i], 40) / best_rate(&links[i], true);
            }
        if (sum / n < 0.85) fail_msg("plan %d: %.3f of the best", wrong, sum / n);
    }
}

static void it_stays_where_nothing_is_gained(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        seed = i + 99;
        cw_plan p = plan_of(links[i].first_us / 4);
        cw_governor g;
        cw_governor_init(&g, &p, 32, true);
        run(&g, &links[i], 200);
        uint64_t before = g.n_changes;
        run(&g, &links[i], 2000);
        /* Noise moves it to a length as good now and then, never back and forth. */
        if (g.n_changes - before > 60) fail_msg("link %zu: %d changes", i, (int)(g.n_changes - before));
        assert_true(g.n_probes * 3 < 2200 / 4);
    }
}

static void it_follows_a_link_that_changes(void **state)
{
    (void)state;
    seed = 5;
    truth lan = {.first_us = 900, .row_us = 600, .acceptance = 0.5, .noise = 0.1}, wan = lan;
    wan.first_us = 80000;
    cw_plan p = plan_of(100);
    cw_governor g;
    cw_governor_init(&g, &p, 32, true);
    run(&g, &lan, 300);
    assert_true(cw_governor_choice(&g) <= 2);
    run(&g, &wan, 150);
    assert_true(cw_governor_choice(&g) >= 3);
    run(&g, &lan, 400);
    assert_true(cw_governor_choice(&g) <= 2);
    /* Told of the link it needs no rounds to find out. */
    p = plan_of(20000);
    cw_governor_plan(&g, &p);
    run(&g, &wan, 30);
    assert_true(cw_governor_choice(&g) >= 3);
}

static void without_leave_to_rest_it_always_drafts(void **state)
{
    (void)state;
    seed = 3;
    cw_plan p = plan_of(100);
    cw_governor g;
    cw_governor_init(&g, &p, 4, false);
    for (int i = 0; i < 500; i++) {
        int n = cw_governor_length(&g);
        assert_in_range(n, 1, 4);
        cw_governor_tell(&g, n, 0, 0, 1000 + 500 * n);
    }
    assert_int_equal(cw_governor_choice(&g), 1);
}

static void a_fallback_that_guesses_nothing_is_not_asked_for_long(void **state)
{
    (void)state;
    seed = 4;
    cw_plan p = plan_of(20000);
    cw_governor g;
    cw_governor_init(&g, &p, 32, true);
    assert_true(cw_governor_choice(&g) > 0);
    for (int i = 0; i < 60; i++) {
        (void)cw_governor_length(&g);
        cw_governor_tell(&g, 0, 0, 0, 80000);
    }
    assert_true(cw_governor_yield(&g, 8) < 1.2);
    char why[256];
    cw_governor_why(&g, why, sizeof why);
    assert_true(strlen(why) > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_reaches_nearly_what_the_best_length_would),
        cmocka_unit_test(it_is_good_within_a_short_answer),
        cmocka_unit_test(it_stays_where_nothing_is_gained),
        cmocka_unit_test(it_follows_a_link_that_changes),
        cmocka_unit_test(without_leave_to_rest_it_always_drafts),
        cmocka_unit_test(a_fallback_that_guesses_nothing_is_not_asked_for_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
