/* What the modes cost on links made by hand, and whether a model fits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/plan.h"

/* V2-Lite shape: 26 layers with 64 experts of which 6 are used. */
static cw_plan lite(double rtt_us, double bytes_per_s)
{
    return (cw_plan){
        .model = {.n_moe_layers = 26, .n_experts = 64, .n_used = 6, .d_model = 2048},
        .link = {.rtt_us = rtt_us, .bytes_per_s = bytes_per_s},
        .workers = {.n = 2, .call_us = 100, .expert_us = 300, .row_us = 20},
        .machine = {.edge_us = 20000,
                    .edge_row_us = 4000,
                    .fallback_us = 3000,
                    .can_draft = true,
                    .acceptance = 0.8},
    };
}

static void near(double a, double b, double part)
{
    if (fabs(a - b) > part * fabs(b)) fail_msg("%g is not within %g of %g", a, part, b);
}

static void experts_read_by_many_rows_are_counted_once(void **state)
{
    (void)state;
    cw_plan p = lite(0, 0);
    near(cw_plan_experts_read(&p.model, 1), 6, 1e-9);
    near(cw_plan_experts_read(&p.model, 5), 64 * (1 - pow(58.0 / 64, 5)), 1e-9);
    assert_true(cw_plan_experts_read(&p.model, 1000) <= 64);
    p.model.n_used = 64;
    near(cw_plan_experts_read(&p.model, 1), 64, 1e-9);
}

static void bytes_of_a_token_are_those_of_the_design(void **state)
{
    (void)state;
    cw_plan p = lite(0, 0);
    double out, in;
    cw_plan_bytes(&p, 1, &out, &in);
    near(out + in, 0.76e6, 0.05); /* docs/DESIGN.md: V2-Lite, f16 rows, two workers */
}

static void a_round_trip_is_paid_once_a_layer(void **state)
{
    (void)state;
    cw_plan a = lite(200, 0), b = lite(20200, 0);
    near(cw_plan_pass_us(&b, 1) - cw_plan_pass_us(&a, 1), 26 * 20000, 1e-9);
    near(cw_plan_pass_us(&b, 9) - cw_plan_pass_us(&a, 9), 26 * 20000, 1e-9);
    cw_plan thin = lite(200, 1.25e6);
    double out, in;
    cw_plan_bytes(&thin, 3, &out, &in);
    near(cw_plan_pass_us(&thin, 3) - cw_plan_pass_us(&a, 3), (out + in) / 1.25, 1e-9);
    cw_plan stalls = a;
    stalls.link.stall_share = 0.01, stalls.link.stall_us = 200000;
    assert_true(cw_plan_pass_us(&stalls, 1) > cw_plan_pass_us(&a, 1) + 26 * 0.02 * 200000 * 0.9);
    cw_plan hedged = stalls; /* a replica is asked after a quarter of that */
    hedged.link.hedge_us = 50000;
    near(cw_plan_pass_us(&hedged, 1) - cw_plan_pass_us(&a, 1),
         (cw_plan_pass_us(&stalls, 1) - cw_plan_pass_us(&a, 1)) / 4, 1e-6);
}

static void drafting_pays_where_round_trips_dominate_and_not_where_rows_do(void **state)
{
    (void)state;
    cw_plan far = lite(20000, 0), near_by = lite(100, 0), thin = lite(100, 125000);
    assert_true(cw_plan_best_draft(&far, 32) >= 4);
    near_by.machine.acceptance = 0.3;
    near_by.workers.expert_us = 3000;
    assert_int_equal(cw_plan_best_draft(&near_by, 32), 0);
    /* Bytes grow with every row: a draft that is mostly wrong loses. */
    thin.machine.acceptance = 0.3;
    assert_int_equal(cw_plan_best_draft(&thin, 32), 0);
    far.machine.can_draft = false;
    assert_int_equal(cw_plan_best_draft(&far, 32), 0);
}

static void the_best_run_grows_with_acceptance(void **state)
{
    (void)state;
    int last = 0;
    for (double a = 0.3; a < 1; a += 0.1) {
        cw_plan p = lite(20000, 0);
        p.machine.acceptance = a;
        int n = cw_plan_best_draft(&p, 32);
        assert_true(n >= last);
        last = n;
    }
    assert_true(last > 8);
    /* In a short answer a long run is cut short. */
    cw_plan p = lite(20000, 0);
    p.machine.acceptance = 0.97;
    int endless = cw_plan_best_draft(&p, 32);
    double free_us = cw_plan_token_us(&p, endless);
    p.machine.answer = 12;
    assert_true(cw_plan_token_us(&p, endless) > 1.1 * free_us);
    near(12 * cw_plan_token_us(&p, 32), cw_plan_round_us(&p, 32), 0.1); /* at least one pass */
    p.machine.answer = 1e6;
    near(cw_plan_token_us(&p, endless), free_us, 1e-3);
    near(cw_plan_yield(1, 7), 8, 1e-12);
    near(cw_plan_yield(0.5, 2), 1.75, 1e-12);
}

static void each_mode_has_a_line_with_its_reason(void **state)
{
    (void)state;
    cw_plan p = lite(20000, 0);
    cw_plan_line l[CW_PLAN_N_MODES];
    cw_plan_all(&p, l);
    assert_true(l[CW_PLAN_SPLIT].possible && l[CW_PLAN_DRAFT].possible && l[CW_PLAN_OFFLINE].possible);
    assert_false(l[CW_PLAN_LOCAL].possible);
    for (int i = 0; i < CW_PLAN_N_MODES; i++) assert_true(strlen(l[i].why) > 10);
    assert_non_null(strstr(l[CW_PLAN_SPLIT].why, "round trips"));
    assert_int_equal(cw_plan_choose(l), CW_PLAN_DRAFT);
    p.machine.local_us = 50000;
    cw_plan_all(&p, l);
    assert_int_equal(cw_plan_choose(l), CW_PLAN_LOCAL);
    p.model.n_moe_layers = 0, p.machine.local_us = 0;
    cw_plan_all(&p, l);
    assert_int_equal(cw_plan_choose(l), CW_PLAN_OFFLINE); /* for want of anything else, though it is fast */
    p = lite(20000, 1e5);
    p.machine.fallback_us = 0;
    cw_plan_all(&p, l);
    assert_int_equal(cw_plan_choose(l), CW_PLAN_SPLIT);
    assert_non_null(strstr(l[CW_PLAN_SPLIT].why, "bandwidth"));
}

static void a_model_fits_when_every_expert_has_a_home(void **state)
{
    (void)state;
    cw_fit_model m = {.layers = 2, .experts = 8, .expert_bytes = 100};
    cw_fit f;
    uint64_t two[] = {850, 850}, even[] = {1600, 1600}, small[] = {850, 740}, one[] = {9999},
             lopsided[] = {99999, 50};
    cw_plan_fit(&m, two, 2, &f);
    assert_true(f.fits && !f.survives_one);
    assert_int_equal(f.need_bytes, 1600);
    cw_plan_fit(&m, even, 2, &f);
    assert_true(f.fits && f.survives_one);
    near(f.homes, 2, 1e-12);
    cw_plan_fit(&m, small, 2, &f);
    assert_false(f.fits);
    assert_int_equal(f.held, 15);
    assert_true(strstr(f.why, "more are needed") != NULL);
    cw_plan_fit(&m, one, 1, &f); /* room for many, but a second home is on another worker */
    assert_true(f.fits && !f.survives_one);
    near(f.homes, 1, 1e-12);
    cw_plan_fit(&m, lopsided, 2, &f);
    assert_true(f.fits && !f.survives_one);
    cw_plan_fit(&m, NULL, 0, &f);
    assert_false(f.fits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(experts_read_by_many_rows_are_counted_once),
        cmocka_unit_test(bytes_of_a_token_are_those_of_the_design),
        cmocka_unit_test(a_round_trip_is_paid_once_a_layer),
        cmocka_unit_test(drafting_pays_where_round_trips_dominate_and_not_where_rows_do),
        cmocka_unit_test(the_best_run_grows_with_acceptance),
        cmocka_unit_test(each_mode_has_a_line_with_its_reason),
        cmocka_unit_test(a_model_fits_when_every_expert_has_a_home),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
