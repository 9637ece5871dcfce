/*
 * Fallback and prediction head on links that exist only as arithmetic: the one that gives more guesses most
 * of the time, and both together reach nearly what the better one would alone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/guessers.h"

typedef struct {
    double first_us, row_us;      /* a pass that verifies n guesses: first + n * row */
    double fallback, fallback_us; /* its acceptance; a guess is waited for where the one before was wrong */
    double head[2], head_us;      /* acceptance of its first and second guess; every guess is waited for */
} truth;

enum { HEAD_MAX = 2, ROUNDS = 2000 };

static uint64_t seed;

static double uniform(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 11) / 9007199254740992.0;
}

static cw_plan plan_for(cw_guesser who)
{
    cw_plan p = {
        .model = {.n_moe_layers = 4, .n_experts = 32, .n_used = 4, .d_model = 256},
        .link = {.rtt_us = 2000},
        .workers = {.n = 2, .call_us = 150, .expert_us = 10, .row_us = 5},
        .machine =
            {.edge_us = 400, .edge_row_us = 50, .fallback_us = 200, .can_draft = true, .acceptance = 0.75},
    };
    p.machine.draft_waits = who == CW_BY_HEAD;
    return p;
}

static void begin(cw_guessers *s, bool fallback, bool head)
{
    cw_plan f = plan_for(CW_BY_FALLBACK), h = plan_for(CW_BY_HEAD);
    cw_guessers_init(s);
    if (fallback) cw_guessers_add(s, CW_BY_FALLBACK, &f, 32, true);
    if (head) cw_guessers_add(s, CW_BY_HEAD, &h, HEAD_MAX, true);
}

/* Tokens a microsecond; *by_head: share of rounds that were the head's. */
static double run(cw_guessers *s, const truth *t, int rounds, double *by_head)
{
    double tokens = 0, time = 0;
    int head = 0;
    bool wrong = true;
    for (int i = 0; i < rounds; i++) {
        int n = cw_guessers_length(s), right = 0;
        bool is_head = s->now == CW_BY_HEAD;
        assert_in_range(n, 0, is_head ? HEAD_MAX : 32);
        while (right < n && uniform() < (is_head ? t->head[right] : t->fallback)) right++;
        double pass = (t->first_us + n * t->row_us) * (0.9 + 0.2 * uniform());
        double wait = is_head ? n * t->head_us : wrong ? n * t->fallback_us : 0;
        wrong = is_head || right < n || n == 0;
        cw_guessers_tell(s, n, right, (int64_t)wait, (int64_t)pass);
        tokens += 1 + right;
        time += wait + pass;
        head += is_head;
    }
    if (by_head) *by_head = (double)head / rounds;
    return tokens / time;
}

static const struct {
    truth t;
    cw_guesser better;
} links[] = {
    {{81000, 400, 0.96, 300, {0.98, 0.6}, 150}, CW_BY_FALLBACK}, /* far, and long runs are right */
    {{81000, 400, 0.30, 300, {0.98, 0.6}, 150}, CW_BY_HEAD},     /* a fallback that guesses badly */
    {{5000, 200, 0.90, 20000, {0.95, 0.7}, 300}, CW_BY_HEAD},    /* one that takes long */
    {{3000, 1500, 0.60, 100, {0.98, 0.9}, 100}, CW_BY_HEAD},     /* rows are dear */
    {{3000, 100, 0.95, 100, {0.50, 0.2}, 500}, CW_BY_FALLBACK},  /* a head that is of no use */
};

static void the_better_one_guesses(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        cw_guessers both, alone;
        double by_head;
        seed = i + 5;
        begin(&both, true, true);
        run(&both, &links[i].t, 60, NULL);
        double got = run(&both, &links[i].t, ROUNDS, &by_head);
        begin(&alone, links[i].better == CW_BY_FALLBACK, links[i].better == CW_BY_HEAD);
        run(&alone, &links[i].t, 60, NULL);
        double best = run(&alone, &links[i].t, ROUNDS, NULL);
        if (links[i].better == CW_BY_HEAD ? by_head < 0.8 : by_head > 0.2)
            fail_msg("link %zu: the head guesses in %.2f of the rounds", i, by_head);
        if (got < 0.93 * best) fail_msg("link %zu: %.3f of what the better one gives", i, got / best);
    }
}

static void one_alone_stays_alone(void **state)
{
    (void)state;
    for (int head = 0; head < 2; head++) {
        cw_guessers s;
        double by_head;
        seed = 3;
        begin(&s, !head, head);
        run(&s, &links[0].t, 500, &by_head);
        assert_true(by_head == head);
        assert_int_equal(s.n_changes, 0);
    }
}

/* What one has learnt of passes the other need not learn again. */
static void passes_are_learnt_together(void **state)
{
    (void)state;
    cw_guessers s;
    seed = 9;
    begin(&s, true, true);
    run(&s, &links[0].t, 200, NULL);
    double a = cw_governor_round_us(&s.g[CW_BY_FALLBACK], 0), b = cw_governor_round_us(&s.g[CW_BY_HEAD], 0);
    assert_true(a > 60000 && a < 100000 && a == b);
    cw_plan_link far = {.rtt_us = 200000};
    cw_plan_workers w = s.plan[0].workers;
    cw_guessers_link(&s, &far, &w);
    assert_true(s.plan[CW_BY_HEAD].link.rtt_us == 200000 && s.plan[CW_BY_FALLBACK].link.rtt_us == 200000);
}

static void a_link_that_turns_changes_the_guesser(void **state)
{
    (void)state;
    cw_guessers s;
    double by_head;
    seed = 11;
    begin(&s, true, true);
    run(&s, &links[0].t, 300, &by_head);
    assert_true(by_head < 0.3);
    run(&s, &links[1].t, 100, NULL);
    run(&s, &links[1].t, 300, &by_head); /* the text is such that the fallback is mostly wrong */
    assert_true(by_head > 0.7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_better_one_guesses),
        cmocka_unit_test(one_alone_stays_alone),
        cmocka_unit_test(passes_are_learnt_together),
        cmocka_unit_test(a_link_that_turns_changes_the_guesser),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
