/* The engine's logits against those of the models' published
 * code. Budgets: see the readme of tests/golden/data. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/sampler.h"
#include "golden_model.h"

static float *run_case(const golden_case *c, const char *model)
{
    cw_engine *e = golden_engine(model, &(golden_options){.n_threads = 2});
    cw_session *s = golden_session(e, CW_KV_AUTO);
    float *all = golden_run(s, c->tokens, c->n_tokens, 256),
          *rows = calloc((size_t)c->n_rows, sizeof *rows * (size_t)c->n_vocab);
    for (int i = 0; i < c->n_rows; i++)
        memcpy(rows + (size_t)i * (size_t)c->n_vocab, all + (size_t)(c->after[i] - 1) * (size_t)c->n_vocab,
               (size_t)c->n_vocab * sizeof *rows);
    free(all);
    cw_session_free(&s);
    cw_engine_close(&e);
    return rows;
}

static void check_f32(const char *name)
{
    golden_case *c = golden_case_load(name);
    float *rows = run_case(c, name), worst = 0;
    for (int i = 0; i < c->n_rows; i++) {
        const float *got = rows + (size_t)i * (size_t)c->n_vocab,
                    *want = c->logits + (size_t)i * (size_t)c->n_vocab;
        for (int v = 0; v < c->n_vocab; v++) worst = fmaxf(worst, fabsf(got[v] - want[v]));
        assert_int_equal(cw_argmax(got, c->n_vocab), c->argmax[i]);
    }
    print_message("%s: largest error %g\n", name, (double)worst);
    if (!(worst <= 2e-4f)) fail_msg("%s: largest error %g", name, (double)worst);
    free(rows);
    golden_case_free(c);
}

static void v2_lite_is_within_2e_4(void **state)
{
    (void)state;
    check_f32("v2-lite");
}

static void v2_is_within_2e_4(void **state)
{
    (void)state;
    check_f32("v2");
}

static void v3_is_within_2e_4(void **state)
{
    (void)state;
    check_f32("v3");
}

static void v3_flat_is_within_2e_4(void **state)
{
    (void)state;
    check_f32("v3-flat");
}

static void both_layouts_of_the_second_projection_give_the_same_bits(void **state)
{
    (void)state;
    golden_case *c = golden_case_load("v3");
    float *joint = run_case(c, "v3"), *split = run_case(c, "v3-splitkv");
    assert_memory_equal(joint, split, (size_t)c->n_rows * (size_t)c->n_vocab * sizeof *joint);
    free(joint);
    free(split);
    golden_case_free(c);
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Largest and second largest. */
static float margin(const float *v, int n)
{
    int32_t best = cw_argmax(v, n);
    float second = -INFINITY;
    for (int i = 0; i < n; i++)
        if (i != best) second = fmaxf(second, v[i]);
    return v[best] - second;
}

static void check_quantised(const char *name)
{
    golden_case *c = golden_case_load(name);
    float *rows = run_case(c, name), rms[64];
    int other = 0, rerouted = 0;
    assert_true(c->n_rows <= 64);
    for (int i = 0; i < c->n_rows; i++) {
        const float *got = rows + (size_t)i * (size_t)c->n_vocab,
                    *want = c->logits + (size_t)i * (size_t)c->n_vocab;
        double sum = 0;
        for (int v = 0; v < c->n_vocab; v++) sum += (double)(got[v] - want[v]) * (double)(got[v] - want[v]);
        rms[i] = (float)sqrt(sum / c->n_vocab);
        /* Rounded activations may tip a routing near-tie: another expert, a row far off. One of 16 at most.
         */
        if (rms[i] > 0.1f) {
            rerouted++;
            continue;
        }
        if (cw_argmax(got, c->n_vocab) == c->argmax[i]) continue;
        other++;
        if (margin(want, c->n_vocab) > 0.1f) fail_msg("%s: row %d has another argmax", name, i);
    }
    qsort(rms, (size_t)c->n_rows, sizeof *rms, by_value);
    float median = (rms[(c->n_rows - 1) / 2] + rms[c->n_rows / 2]) / 2;
    print_message("%s: median rms %g, largest rms %g, %d rows with another argmax\n", name, (double)median,
                  (double)rms[c->n_rows - 1], other);
    if (rerouted > 1) fail_msg("%s: %d rows are far off", name, rerouted);
    if (!(median <= 0.02f)) fail_msg("%s: median rms error %g", name, (double)median);
    free(rows);
    golden_case_free(c);
}

static void every_quantised_type_is_within_its_budget(void **state)
{
    (void)state;
    static const char *const names[] = {"quant-q8_0", "quant-q6_k", "quant-q5_k",   "quant-q4_k",
                                        "quant-q5_0", "quant-q4_0", "quant-iq4_nl", "quant-q3_k"};
    for (size_t i = 0; i < CW_ARRAY_LEN(names); i++) check_quantised(names[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(v2_lite_is_within_2e_4),
        cmocka_unit_test(v2_is_within_2e_4),
        cmocka_unit_test(v3_is_within_2e_4),
        cmocka_unit_test(v3_flat_is_within_2e_4),
        cmocka_unit_test(both_layouts_of_the_second_projection_give_the_same_bits),
        cmocka_unit_test(every_quantised_type_is_within_its_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
