/* The router's choice and weights, ties included. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "router.h"

static const cw_kernels *kn(void)
{
    return cw_kernels_get(CW_ISA_SCALAR);
}

static cw_model_config gate(cw_gate kind, int n, int used)
{
    return (cw_model_config){
        .n_experts = n, .n_used = used, .gate = kind, .n_groups = 1, .n_groups_used = 1, .weights_scale = 1};
}

/* Runs the router on a copy of the logits. */
static bool pick(const cw_model_config *c, const float *bias, const float *logits, cw_expert_entry *out)
{
    float copy[CW_MAX_EXPERTS];
    memcpy(copy, logits, (size_t)c->n_experts * sizeof *copy);
    return cw_router_select(kn(), c, bias, copy, 5, out);
}

static void expect(const cw_expert_entry *e, int n, const uint32_t *experts)
{
    for (int i = 0; i < n; i++) {
        assert_int_equal(e[i].row, 5);
        assert_int_equal(e[i].expert, experts[i]);
    }
}

static void softmax_weights_are_probabilities_over_all_experts(void **state)
{
    (void)state;
    cw_model_config c = gate(CW_GATE_SOFTMAX, 4, 2);
    const float logits[4] = {1, 3, 0, 2};
    cw_expert_entry e[2];
    assert_true(pick(&c, NULL, logits, e));
    expect(e, 2, (uint32_t[]){1, 3}); /* ascending by expert, not by score */
    double sum = exp(1) + exp(3) + exp(0) + exp(2);
    assert_true(fabs((double)e[0].weight - exp(3) / sum) < 1e-6);
    assert_true(fabs((double)e[1].weight - exp(2) / sum) < 1e-6);

    c.norm_weights = true;
    c.weights_scale = 16;
    assert_true(pick(&c, NULL, logits, e));
    assert_true(fabs((double)e[0].weight - 16 * exp(3) / (exp(3) + exp(2))) < 1e-5);
}

static void the_bias_chooses_but_does_not_weigh(void **state)
{
    (void)state;
    cw_model_config c = gate(CW_GATE_SIGMOID, 4, 1);
    const float logits[4] = {2, 0, 0, 0}, bias[4] = {0, 0, 0.9f, 0};
    cw_expert_entry e[1];
    assert_true(pick(&c, bias, logits, e));
    expect(e, 1, (uint32_t[]){2});
    assert_true(e[0].weight == 0.5f);
}

static void ties_go_to_the_lower_id_and_zeros_of_both_signs_tie(void **state)
{
    (void)state;
    cw_model_config c = gate(CW_GATE_SIGMOID, 8, 3);
    const float equal[8] = {0, -0.0f, 0, -0.0f, 0, 0, 0, 0}, high[8] = {0, 0, 0, 0, 0, 0, 1, 0};
    const float zeros[8] = {-0.0f, 0, 0, 0, 0, 0, 0, 0};
    cw_expert_entry e[3];
    assert_true(pick(&c, NULL, equal, e));
    expect(e, 3, (uint32_t[]){0, 1, 2});
    assert_true(pick(&c, zeros, equal, e));
    expect(e, 3, (uint32_t[]){0, 1, 2});
    assert_true(pick(&c, NULL, high, e));
    expect(e, 3, (uint32_t[]){0, 1, 6});
}

static void groups_compete_by_maximum_without_a_bias(void **state)
{
    (void)state;
    cw_model_config c = gate(CW_GATE_SOFTMAX, 8, 2);
    c.n_groups = 4;
    c.n_groups_used = 1;
    /* The third group has the largest sum, the second the largest value. */
    const float logits[8] = {0, 0, 5, -9, 4.9f, 4.9f, 1, 1};
    cw_expert_entry e[2];
    assert_true(pick(&c, NULL, logits, e));
    expect(e, 2, (uint32_t[]){2, 3});
}

static void groups_compete_by_their_best_two_with_a_bias(void **state)
{
    (void)state;
    cw_model_config c = gate(CW_GATE_SIGMOID, 12, 2);
    c.n_groups = 4;
    c.n_groups_used = 1;
    c.gate_bias = true;
    /* Sigmoid scores: one of 0.99; two of 0.73; three of 0.62 (whose best two are less). */
    const float logits[12] = {5, -9, -9, 1, 1, -9, 0.5f, 0.5f, 0.5f, -9, -9, -9}, bias[12] = {0};
    cw_expert_entry e[2];
    assert_true(pick(&c, bias, logits, e));
    expect(e, 2, (uint32_t[]){3, 4});
    const float moved[12] = {0, 0.6f}; /* the bias counts in the groups' contest */
    assert_true(pick(&c, moved, logits, e));
    expect(e, 2, (uint32_t[]){0, 1});
}

static void tied_groups_go_to_the_lower_id(void **state)
{
    (void)state;
    cw_model_config c = gate(CW_GATE_SIGMOID, 8, 4);
    c.n_groups = 4;
    c.n_groups_used = 2;
    c.gate_bias = true;
    const float logits[8] = {0, 0, 0, 0, 0, 0, 0, 0}, bias[8] = {0};
    cw_expert_entry e[4];
    assert_true(pick(&c, bias, logits, e));
    expect(e, 4, (uint32_t[]){0, 1, 2, 3});
}

static void a_negative_bias_does_not_open_another_group(void **state)
{
    (void)state;
    /* Outside the chosen groups nothing may be picked, however low the keys inside are. */
    cw_model_config c = gate(CW_GATE_SIGMOID, 4, 2);
    c.n_groups = 2;
    c.n_groups_used = 1;
    c.gate_bias = true;
    const float logits[4] = {0, 0, 3, 3}, bias[4] = {-1, -1, -9, -9};
    cw_expert_entry e[2];
    assert_true(pick(&c, bias, logits, e));
    expect(e, 2, (uint32_t[]){0, 1});
}

static void values_that_are_not_finite_are_reported(void **state)
{
    (void)state;
    cw_model_config c = gate(CW_GATE_SOFTMAX, 4, 2);
    cw_expert_entry e[2];
    assert_false(pick(&c, NULL, (float[]){1, NAN, 0, 2}, e));
    assert_false(pick(&c, NULL, (float[]){1, INFINITY, 0, 2}, e));
    assert_false(pick(&c, NULL, (float[]){1, -INFINITY, 0, 2}, e));
    assert_true(pick(&c, NULL, (float[]){3e38f, -3e38f, 0, 2}, e));
    assert_true(isfinite(e[0].weight) && isfinite(e[1].weight));
    c.gate = CW_GATE_SIGMOID; /* all scores underflow to zero: weights of zero, not NaN */
    c.norm_weights = true;
    assert_true(pick(&c, NULL, (float[]){-200, -200, -200, -200}, e));
    assert_true(e[0].weight == 0 && e[1].weight == 0);
}

static void instruction_sets_route_alike(void **state)
{
    (void)state;
    cw_model_config c = gate(CW_GATE_SOFTMAX, 160, 6);
    c.n_groups = 8;
    c.n_groups_used = 3;
    c.weights_scale = 16;
    uint64_t rng = 3;
    for (int round = 0; round < 50; round++) {
        float logits[160], copy[160];
        for (int i = 0; i < 160; i++) {
            rng = rng * 6364136223846793005u + 1442695040888963407u;
            logits[i] = (float)(int32_t)(rng >> 32) * 0x1p-29f;
        }
        cw_expert_entry want[6], got[6];
        memset(want, 0, sizeof want);
        memset(got, 0, sizeof got);
        assert_true(pick(&c, NULL, logits, want));
        for (int isa = 0; isa < CW_ISA_COUNT; isa++) {
            if (!cw_kernels_get((cw_isa)isa)) continue;
            memcpy(copy, logits, sizeof copy);
            assert_true(cw_router_select(cw_kernels_get((cw_isa)isa), &c, NULL, copy, 5, got));
            assert_memory_equal(want, got, sizeof want);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(softmax_weights_are_probabilities_over_all_experts),
        cmocka_unit_test(the_bias_chooses_but_does_not_weigh),
        cmocka_unit_test(ties_go_to_the_lower_id_and_zeros_of_both_signs_tie),
        cmocka_unit_test(groups_compete_by_maximum_without_a_bias),
        cmocka_unit_test(groups_compete_by_their_best_two_with_a_bias),
        cmocka_unit_test(tied_groups_go_to_the_lower_id),
        cmocka_unit_test(a_negative_bias_does_not_open_another_group),
        cmocka_unit_test(values_that_are_not_finite_are_reported),
        cmocka_unit_test(instruction_sets_route_alike),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
