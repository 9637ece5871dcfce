/* Choosing tokens: determinism, the filters, the penalty, and that the noise has the right distribution. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/mem.h"
#include "cw/sampler.h"

static cw_sampler *make(cw_sampler_params p, int n_vocab)
{
    cw_sampler *s = NULL;
    cw_err err;
    if (cw_sampler_new(&p, n_vocab, &s, &err) != CW_OK) fail_msg("%s", err.text);
    return s;
}

static cw_sampler_params warm(float temperature)
{
    cw_sampler_params p = CW_SAMPLER_GREEDY;
    p.temperature = temperature;
    return p;
}

/* How often each of n tokens is chosen at `rounds` positions. */
static void count(cw_sampler_params p, const float *logits, int n, int rounds, int *counts)
{
    cw_sampler *s = make(p, n);
    memset(counts, 0, (size_t)n * sizeof *counts);
    for (int i = 0; i < rounds; i++) counts[cw_sampler_pick(s, logits, i, NULL, 0)]++;
    cw_sampler_free(&s);
}

static void greedy_takes_the_lowest_of_the_best(void **state)
{
    (void)state;
    cw_sampler *s = make(CW_SAMPLER_GREEDY, 5);
    assert_int_equal(cw_sampler_pick(s, (float[]){1, 3, 3, 2, 0}, 0, NULL, 0), 1);
    assert_int_equal(cw_sampler_pick(s, (float[]){NAN, NAN, 1, 2, 0}, 0, NULL, 0), 3);
    assert_int_equal(cw_sampler_pick(s, (float[]){NAN, NAN, NAN, NAN, NAN}, 0, NULL, 0), 0);
    assert_int_equal(cw_sampler_pick(s, (float[]){-INFINITY, -INFINITY, -1e30f, NAN, -INFINITY}, 0, NULL, 0),
                     2);
    cw_sampler_free(&s);
    s = make(warm(1), 3);
    assert_int_equal(cw_sampler_pick(s, (float[]){0, INFINITY, 0}, 0, NULL, 0), 1);
    assert_int_equal(cw_sampler_pick(s, (float[]){NAN, NAN, NAN}, 0, NULL, 0), 0);
    cw_sampler_free(&s);
}

static void a_choice_depends_on_seed_and_position_only(void **state)
{
    (void)state;
    float logits[200];
    for (int i = 0; i < 200; i++) logits[i] = (float)(i % 17) * 0.3f;
    cw_sampler_params p = warm(0.8f);
    p.seed = 42;
    cw_sampler *a = make(p, 200), *b = make(p, 200);
    p.seed = 43;
    cw_sampler *c = make(p, 200);
    int other_position = 0, other_seed = 0;
    int32_t first[100];
    for (int i = 0; i < 100; i++) first[i] = cw_sampler_pick(a, logits, i, NULL, 0);
    for (int i = 99; i >= 0; i--) { /* another object, another order, picks in between */
        cw_sampler_pick(b, logits, 1000 + i, NULL, 0);
        assert_int_equal(cw_sampler_pick(b, logits, i, NULL, 0), first[i]);
        other_seed += cw_sampler_pick(c, logits, i, NULL, 0) != first[i];
        if (i) other_position += first[i] != first[i - 1];
    }
    assert_true(other_seed > 80);
    assert_true(other_position > 80);
    cw_sampler_free(&a);
    cw_sampler_free(&b);
    cw_sampler_free(&c);
}

/* The text of a seed must stay the same across versions. The
 * numbers come from another program (Python, its own log). */
static void the_noise_is_what_it_was(void **state)
{
    (void)state;
    float logits[1000] = {0};
    cw_sampler_params p = warm(1);
    p.seed = 1234;
    cw_sampler *s = make(p, 1000);
    static const int32_t want[] = {911, 637, 42, 695, 94, 617, 792, 201};
    for (int i = 0; i < (int)CW_ARRAY_LEN(want); i++)
        assert_int_equal(cw_sampler_pick(s, logits, i, NULL, 0), want[i]);
    cw_sampler_free(&s);
}

static void frequencies_follow_the_probabilities(void **state)
{
    (void)state;
    const float logits[4] = {0, 1, 2, -1};
    enum { ROUNDS = 40000 };
    for (int t = 0; t < 2; t++) {
        double temperature = t ? 0.5 : 1, sum = 0;
        int counts[4];
        count(warm((float)temperature), logits, 4, ROUNDS, counts);
        for (int i = 0; i < 4; i++) sum += exp(logits[i] / temperature);
        for (int i = 0; i < 4; i++) {
            double p = exp(logits[i] / temperature) / sum, sigma = sqrt(p * (1 - p) * ROUNDS);
            assert_true(fabs(counts[i] - p * ROUNDS) < 4.5 * sigma);
        }
    }
}

static void top_k_keeps_k_and_ties_go_to_lower_ids(void **state)
{
    (void)state;
    const float logits[6] = {1, 2, 2, 2, 0, 2};
    cw_sampler_params p = warm(1);
    p.top_k = 3;
    int counts[6];
    count(p, logits, 6, 1000, counts);
    assert_true(counts[1] > 200 && counts[2] > 200 && counts[3] > 200);
    assert_int_equal(counts[1] + counts[2] + counts[3], 1000);
    p.top_k = 1;
    count(p, logits, 6, 100, counts);
    assert_int_equal(counts[1], 100);
    p.top_k = 100;
    count(p, logits, 6, 1000, counts);
    assert_true(counts[4] > 0);
}

static void top_p_keeps_the_shortest_run_that_reaches_it(void **state)
{
    (void)state;
    /* Probabilities 0.5, 0.25, 0.125, 0.125. */
    const float logits[4] = {logf(0.25f), logf(0.5f), logf(0.125f), logf(0.125f)};
    int counts[4];
    cw_sampler_params p = warm(1);
    p.top_p = 0.6f;
    count(p, logits, 4, 1000, counts);
    assert_int_equal(counts[0] + counts[1], 1000);
    assert_true(counts[0] > 200 && counts[1] > 500);
    p.top_p = 0.01f;
    count(p, logits, 4, 100, counts);
    assert_int_equal(counts[1], 100);
    p.top_p = 0.8f; /* the lower id of the two that tie */
    count(p, logits, 4, 1000, counts);
    assert_true(counts[2] > 0);
    assert_int_equal(counts[3], 0);
    p.top_k = 2; /* shares are taken among what top-k left: 2/3 and 1/3 */
    p.top_p = 0.66f;
    count(p, logits, 4, 100, counts);
    assert_int_equal(counts[1], 100);
}

static void min_p_is_relative_to_the_best(void **state)
{
    (void)state;
    const float logits[4] = {0, logf(0.5f), logf(0.26f), logf(0.24f)};
    cw_sampler_params p = warm(1);
    p.min_p = 0.25f;
    int counts[4];
    count(p, logits, 4, 2000, counts);
    assert_true(counts[0] > 0 && counts[1] > 0 && counts[2] > 0);
    assert_int_equal(counts[3], 0);
}

static void a_filter_does_not_change_choices_it_allows(void **state)
{
    (void)state;
    /* The same noise for the same token: filtering only takes candidates away. */
    float logits[500];
    for (int i = 0; i < 500; i++) logits[i] = (float)((i * 7919) % 500) * 0.02f;
    cw_sampler_params p = warm(1), k = warm(1);
    k.top_k = 50;
    cw_sampler *a = make(p, 500), *b = make(k, 500);
    int same = 0;
    for (int i = 0; i < 500; i++) {
        int32_t free_choice = cw_sampler_pick(a, logits, i, NULL, 0),
                filtered = cw_sampler_pick(b, logits, i, NULL, 0);
        assert_true(logits[filtered] >= 450 * 0.02f - 1e-3f);
        if (logits[free_choice] >= 450 * 0.02f - 1e-3f) assert_int_equal(free_choice, filtered);
        same += free_choice == filtered;
    }
    assert_true(same > 100);
    cw_sampler_free(&a);
    cw_sampler_free(&b);
}

static void seen_tokens_are_penalised_once(void **state)
{
    (void)state;
    cw_sampler_params p = CW_SAMPLER_GREEDY;
    p.repeat_penalty = 2;
    p.repeat_last_n = 3;
    cw_sampler *s = make(p, 4);
    const float logits[4] = {3, 2, -1, 1.4f};
    const int32_t history[] = {1, 1, 0, 0, 0};
    assert_int_equal(cw_sampler_pick(s, logits, 5, history, 5),
                     1); /* 3/2 < 2; token 1 is out of the window */
    assert_int_equal(cw_sampler_pick(s, logits, 2, history, 2), 0); /* 2/2 < 3 */
    assert_int_equal(cw_sampler_pick(s, logits, 3, history, 3), 0); /* 1.5 against 1 and 1.4 */
    assert_int_equal(cw_sampler_pick(s, (float[]){-1, -1.5f, -3, -9}, 1, (int32_t[]){0}, 1),
                     1); /* negative: multiplied */
    assert_int_equal(cw_sampler_pick(s, logits, 1, (int32_t[]){77}, 1),
                     0); /* ids outside the vocabulary do no harm */
    cw_sampler_free(&s);
}

static void bad_parameters_are_named(void **state)
{
    (void)state;
    static const struct {
        cw_sampler_params p;
        const char *part;
    } rows[] = {
        {{-1, 0, 1, 0, 1, 0, 0}, "temperature"}, {{NAN, 0, 1, 0, 1, 0, 0}, "temperature"},
        {{1, -1, 1, 0, 1, 0, 0}, "top-k"},       {{1, 0, 0, 0, 1, 0, 0}, "top-p"},
        {{1, 0, 1.1f, 0, 1, 0, 0}, "top-p"},     {{1, 0, 1, 2, 1, 0, 0}, "min-p"},
        {{1, 0, 1, 0, 0, 0, 0}, "penalty"},      {{1, 0, 1, 0, 1, -2, 0}, "window"},
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(rows); i++) {
        cw_sampler *s = NULL;
        cw_err err;
        assert_int_equal(cw_sampler_new(&rows[i].p, 10, &s, &err), CW_STATUS_INVALID);
        assert_null(s);
        assert_non_null(strstr(err.text, rows[i].part));
    }
}

static void picking_allocates_nothing(void **state)
{
    (void)state;
    cw_sampler_params p = {0.7f, 20, 0.9f, 0.05f, 1.1f, -1, 9};
    float logits[300];
    for (int i = 0; i < 300; i++) logits[i] = (float)(i % 13);
    cw_sampler *s = make(p, 300);
    cw_alloc_guard_begin(true);
    for (int i = 0; i < 10; i++) cw_sampler_pick(s, logits, i, (int32_t[]){1, 2, 3}, 3);
    assert_int_equal(cw_alloc_guard_end(), 0);
    cw_sampler_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_lowest_of_the_best),
        cmocka_unit_test(a_choice_depends_on_seed_and_position_only),
        cmocka_unit_test(the_noise_is_what_it_was),
        cmocka_unit_test(frequencies_follow_the_probabilities),
        cmocka_unit_test(top_k_keeps_k_and_ties_go_to_lower_ids),
        cmocka_unit_test(top_p_keeps_the_shortest_run_that_reaches_it),
        cmocka_unit_test(min_p_is_relative_to_the_best),
        cmocka_unit_test(a_filter_does_not_change_choices_it_allows),
        cmocka_unit_test(seen_tokens_are_penalised_once),
        cmocka_unit_test(bad_parameters_are_named),
        cmocka_unit_test(picking_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
