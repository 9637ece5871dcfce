/* What `causeway bench` rests on: order statistics, what is counted in a round, and calls of the right form.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/bench_kernels.h"
#include "cw/bench_memory.h"
#include "cw/bench_model.h"
#include "cw/bench_wire.h"
#include "cw/mem.h"
#include "model_file.h"

#define NEAR 1e-12

/* --- statistics --- */

static void quantiles_lie_between_neighbours(void **state)
{
    (void)state;
    static const double v[] = {10, 20, 30, 40};
    static const struct {
        int n;
        double q, value;
    } rows[] = {{1, 0, 10},   {1, 0.99, 10}, {2, 0.5, 15},    {3, 0.5, 20},    {4, 0, 10},
                {4, 0.5, 25}, {4, 1, 40},    {4, 0.25, 17.5}, {4, 0.75, 32.5}, {4, 0.99, 39.7}};
    for (size_t i = 0; i < CW_ARRAY_LEN(rows); i++)
        assert_float_equal(cw_bench_quantile(v, rows[i].n, rows[i].q), rows[i].value, NEAR);
}

static void statistics_do_not_depend_on_order(void **state)
{
    (void)state;
    double a[] = {5, 1, 4, 2, 3}, b[] = {1, 2, 3, 4, 5}, one[] = {7}, zero[] = {-1, 0, 1};
    cw_bench_stats s, t;
    cw_bench_stats_of(a, 5, &s);
    cw_bench_stats_of(b, 5, &t);
    assert_memory_equal(&s, &t, sizeof s);
    assert_float_equal(s.min, 1, NEAR);
    assert_float_equal(s.q1, 2, NEAR);
    assert_float_equal(s.median, 3, NEAR);
    assert_float_equal(s.q3, 4, NEAR);
    assert_float_equal(s.max, 5, NEAR);
    assert_int_equal(s.n, 5);
    assert_float_equal(cw_bench_spread(&s), 2.0 / 3, NEAR);
    cw_bench_stats_of(one, 1, &s);
    assert_float_equal(s.median, 7, NEAR);
    assert_float_equal(cw_bench_spread(&s), 0, NEAR);
    cw_bench_stats_of(zero, 3, &s);
    assert_float_equal(cw_bench_spread(&s), 0, NEAR);
}

/* One round in which everything was ten times slower does not move the ratio of pairs; of medians it would.
 */
static void ratios_are_taken_pair_by_pair(void **state)
{
    (void)state;
    static const double a[] = {2, 0.2, 4, 8}, b[] = {1, 0.1, 2, 2}, none[] = {0, 0, 0, 0},
                        gap[] = {1, 0, 0, 4};
    assert_float_equal(cw_bench_median_ratio(a, b, 4), 2, NEAR);
    assert_float_equal(cw_bench_median_ratio(a, b, 1), 2, NEAR);
    assert_float_equal(cw_bench_median_ratio(a, none, 4), 0, NEAR);
    assert_float_equal(cw_bench_median_ratio(a, gap, 4), 2, NEAR);
}

/* --- memory and kernels --- */

static cw_pool *pool_of(int n)
{
    cw_pool *p = NULL;
    cw_err err;
    if (cw_pool_new(n, &p, &err) != CW_OK) fail_msg("%s", err.text);
    return p;
}

static void memory_is_read_whole_and_not_too_little_of_it(void **state)
{
    (void)state;
    cw_pool *pool = pool_of(2);
    cw_bench_memory *m = NULL;
    cw_err err;
    assert_int_equal(cw_bench_memory_new((16 << 20) - 1, pool, &m, &err), CW_STATUS_INVALID);
    assert_null(m);
    assert_int_equal(cw_bench_memory_new((16 << 20) + 5, pool, &m, &err), CW_OK);
    assert_int_equal(cw_bench_memory_bytes(m), 16 << 20);
    cw_bench_memory_tune(m, pool, 1);
    double v = cw_bench_memory_read(m, pool);
    /* No machine reads a terabyte a second with two threads; less than a megabyte is a wrong unit. */
    assert_true(v > 0.001 && v < 1000);
    cw_bench_memory_free(&m);
    assert_null(m);
    cw_pool_free(&pool);
}

static void products_of_every_type_count_what_they_read(void **state)
{
    (void)state;
    enum { K = 512, M = 4 };
    const cw_type_info *t;
    cw_err err;
    cw_pool *pool = pool_of(2);
    for (size_t i = 0; (t = cw_type_at(i)); i++) {
        cw_bench_matrix *x = NULL;
        size_t panel;
        if (cw_bench_matrix_new(t->type, K, 64 << 10, M, pool, &x, &err) != CW_OK)
            fail_msg("%s: %s", t->name, err.text);
        assert_int_equal(cw_weight_bytes(t->type, CW_PANEL_ROWS, K, &panel, &err), CW_OK);
        for (int m = 1; m <= M; m += M - 1) {
            cw_bench_mm_speed v = cw_bench_matrix_run(x, cw_kernels_best(), pool, m, 1);
            assert_true(v.gb_s > 0);
            double expect = (double)CW_PANEL_ROWS * K * m / (double)panel;
            assert_float_equal(v.gmac_s / v.gb_s / expect, 1, 1e-9);
        }
        cw_bench_matrix_free(&x);
        assert_null(x);
    }
    cw_bench_matrix *none = NULL;
    assert_int_equal(cw_bench_matrix_new(CW_TYPE_I8, K, 1 << 16, 1, pool, &none, &err),
                     CW_STATUS_UNSUPPORTED);
    assert_int_equal(cw_bench_matrix_new(CW_TYPE_Q8_0, 33, 1 << 16, 1, pool, &none, &err), CW_STATUS_INVALID);
    assert_null(none);
    cw_pool_free(&pool);
}

static void every_operation_has_a_speed_and_a_name(void **state)
{
    (void)state;
    cw_bench_op_speed ops[CW_BENCH_MAX_OPS];
    for (int i = 0; i < CW_ISA_COUNT; i++) {
        if (!cw_kernels_get((cw_isa)i)) continue;
        int n = cw_bench_ops_run(cw_kernels_get((cw_isa)i), 1, 1, ops);
        assert_in_range(n, 18, CW_BENCH_MAX_OPS); /* as many as cw_kernels has, products left out */
        for (int k = 0; k < n; k++) {
            assert_true(ops[k].values_s > 0 && ops[k].gb_s > 0);
            for (int l = 0; l < k; l++) assert_string_not_equal(ops[k].name, ops[l].name);
        }
    }
}

/* --- prefill and decode --- */

static cw_engine *engine(int max_rows)
{
    model_spec spec = model_spec_v3();
    spec.type = CW_TYPE_Q8_0;
    cw_gguf *g = model_file_open(&spec);
    cw_engine *e = NULL;
    cw_err err;
    cw_engine_options opt = {.n_threads = 1, .max_rows = max_rows};
    if (cw_engine_open(g, &opt, &e, &err) != CW_OK) fail_msg("%s", err.text);
    model_file_close(&g);
    return e;
}

static void a_round_is_what_its_case_says(void **state)
{
    (void)state;
    cw_engine *e = engine(16);
    cw_bench_model *m = NULL;
    cw_err err;
    static cw_bench_case cases[] = {
        {.kind = CW_BENCH_DECODE, .tokens = 3, .batch = 5, .depth = 4},
        {.kind = CW_BENCH_PREFILL, .tokens = 20, .batch = 1, .depth = 4}, /* two passes of at most 16 rows */
        {.kind = CW_BENCH_ALL_LOGITS, .tokens = 2, .batch = 5, .depth = 4},
        {.kind = CW_BENCH_DECODE, .tokens = 3, .batch = 1, .depth = 4},
    };
    static const struct {
        int passes, rows, logits; /* in one round; logits: passes that end in them */
    } expect[] = {{3, 15, 3}, {2, 20, 1}, {2, 10, 2}, {3, 3, 3}};
    enum { N = CW_ARRAY_LEN(cases), ROUNDS = 2 };
    uint64_t token[CW_PHASE_COUNT], dense = 0;
    cw_engine_token_bytes(e, token);
    dense = token[CW_PHASE_ATTENTION] + token[CW_PHASE_ROUTER] + token[CW_PHASE_FFN];
    if (cw_bench_model_new(e, &(cw_session_options){0}, cases, N, &m, &err) != CW_OK)
        fail_msg("%s", err.text);
    for (int i = 0; i < N; i++) assert_int_equal(cw_bench_model_warm(m, &cases[i], NULL, &err), CW_OK);
    for (int r = 0; r < ROUNDS; r++)
        for (int i = 0; i < N; i++)
            if (cw_bench_model_round(m, &cases[i], NULL, &err) != CW_OK) fail_msg("%s", err.text);
    for (int i = 0; i < N; i++) {
        const cw_engine_phases *p = &cases[i].phases;
        assert_int_equal(cases[i].n_rounds, ROUNDS);
        assert_true(cases[i].speed[0] > 0 && cases[i].speed[1] > 0);
        assert_int_equal(p->passes, ROUNDS * expect[i].passes);
        assert_int_equal(p->rows, ROUNDS * expect[i].rows);
        uint64_t logits = (uint64_t)(ROUNDS * expect[i].logits) * token[CW_PHASE_LOGITS];
        assert_int_equal(p->weight_bytes[CW_PHASE_LOGITS], logits);
        assert_int_equal(cw_bench_case_bytes(&cases[i], false),
                         p->passes * dense + logits + p->weight_bytes[CW_PHASE_EXPERTS]);
        assert_int_equal(cw_bench_case_bytes(&cases[i], true), cw_bench_case_bytes(&cases[i], false));
    }
    /* Alone, a token reads exactly what the model says; in company, less for each. */
    assert_int_equal(cw_bench_case_bytes(&cases[3], false),
                     3 * ROUNDS * (dense + token[CW_PHASE_LOGITS] + token[CW_PHASE_EXPERTS]));
    assert_true(cw_bench_case_bytes(&cases[0], false) < 5 * cw_bench_case_bytes(&cases[3], false));
    cw_bench_model_free(&m);
    cw_engine_close(&e);
}

static void what_does_not_fit_is_said_before_measuring(void **state)
{
    (void)state;
    cw_engine *e = engine(16);
    cw_bench_model *m = NULL;
    cw_err err;
    static cw_bench_case wide = {.kind = CW_BENCH_DECODE, .tokens = 1, .batch = 17},
                         longer = {.kind = CW_BENCH_PREFILL, .tokens = 40, .batch = 1, .depth = 25};
    assert_int_equal(cw_bench_model_new(e, &(cw_session_options){0}, &wide, 1, &m, &err), CW_STATUS_LIMIT);
    assert_int_equal(cw_bench_model_new(e, &(cw_session_options){.n_ctx = 64}, &longer, 1, &m, &err),
                     CW_STATUS_LIMIT);
    assert_non_null(strstr(err.text, "65 positions"));
    assert_null(m);
    cw_engine_close(&e);
}

/* --- wire --- */

/* Experts that look at what they are asked and answer nothing. */
typedef struct {
    cw_experts base;
    const cw_model_config *config;
    const cw_expert_shape *shapes;
    int n_used, submits, fail_at;
    bool open;
    uint64_t layers_seen; /* bit per layer */
} watcher;

static cw_status watch_submit(cw_experts *self, const cw_expert_call *c, uint64_t *ticket, cw_err *err)
{
    watcher *w = (watcher *)self;
    assert_false(w->open);
    w->open = true;
    if (++w->submits == w->fail_at) return CW_FAIL(err, CW_STATUS_UNREACHABLE, "gone");
    assert_true(c->layer >= 0 && c->layer < w->config->n_layers && w->shapes[c->layer].d_model > 0);
    assert_int_equal(c->kind, cw_expert_rows_kind(&w->shapes[c->layer]));
    assert_int_equal(c->n_entries, c->n_rows * w->n_used);
    for (int i = 0; i < c->n_entries; i++) {
        const cw_expert_entry *e = &c->entries[i];
        assert_int_equal(e->row, i / w->n_used);
        assert_true(e->expert < (uint32_t)w->config->n_experts);
        if (i % w->n_used) assert_true(e->expert > e[-1].expert);
    }
    if (c->kind == CW_ROWS_A8) assert_true(c->a8->m == c->n_rows && c->a8->k == c->d_model);
    w->layers_seen |= 1ull << c->layer;
    *ticket = 9;
    return CW_OK;
}

static cw_status watch_collect(cw_experts *self, uint64_t ticket, cw_expert_reply *out, cw_err *err)
{
    (void)err;
    watcher *w = (watcher *)self;
    assert_true(w->open && ticket == 9);
    w->open = false;
    *out = (cw_expert_reply){.kind = CW_REPLY_ROWS_F16};
    return CW_OK;
}

static void watch_destroy(cw_experts *self)
{
    (void)self;
}

static void calls_are_well_formed_and_go_to_every_layer(void **state)
{
    (void)state;
    static const cw_experts_vtable vt = {watch_submit, watch_collect, watch_destroy};
    cw_engine *e = engine(16);
    cw_err err;
    const cw_model_config *config = cw_engine_config(e);
    for (int busy = 0; busy < 2; busy++) {
        for (int used = 1; used <= config->n_experts; used += config->n_experts - 1) {
            watcher w = {{.vt = &vt}, config, cw_engine_expert_shapes(e), .n_used = used};
            cw_bench_wire_case c = {.n_rows = 3, .n_used = used, .calls = 80, .busy = busy};
            cw_bench_wire_result r;
            if (cw_bench_wire_run(&w.base, config, w.shapes, cw_kernels_best(), &c, NULL, &r, &err) != CW_OK)
                fail_msg("%s", err.text);
            assert_int_equal(w.submits, 80 + 80 / 8 + 1);
            for (int l = 0; l < config->n_layers; l++)
                assert_int_equal(w.layers_seen >> l & 1, cw_layer_is_moe(config, l));
            assert_true(r.min_us <= r.p50_us && r.p50_us <= r.p99_us && r.p99_us <= r.max_us);
            assert_true(busy ? r.own_cpu_us < 0 : r.own_cpu_us >= 0);
        }
    }
    cw_engine_close(&e);
}

static void a_failing_call_ends_the_measurement(void **state)
{
    (void)state;
    static const cw_experts_vtable vt = {watch_submit, watch_collect, watch_destroy};
    cw_engine *e = engine(16);
    cw_err err;
    watcher w = {{.vt = &vt}, cw_engine_config(e), cw_engine_expert_shapes(e), .n_used = 2, .fail_at = 7};
    cw_bench_wire_case c = {.n_rows = 1, .n_used = 2, .calls = 80, .busy = 2};
    cw_bench_wire_result r;
    assert_int_equal(cw_bench_wire_run(&w.base, w.config, w.shapes, cw_kernels_best(), &c, NULL, &r, &err),
                     CW_STATUS_UNREACHABLE);
    assert_int_equal(w.submits, 7);
    cw_engine_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantiles_lie_between_neighbours),
        cmocka_unit_test(statistics_do_not_depend_on_order),
        cmocka_unit_test(ratios_are_taken_pair_by_pair),
        cmocka_unit_test(memory_is_read_whole_and_not_too_little_of_it),
        cmocka_unit_test(products_of_every_type_count_what_they_read),
        cmocka_unit_test(every_operation_has_a_speed_and_a_name),
        cmocka_unit_test(a_round_is_what_its_case_says),
        cmocka_unit_test(what_does_not_fit_is_said_before_measuring),
        cmocka_unit_test(calls_are_well_formed_and_go_to_every_layer),
        cmocka_unit_test(a_failing_call_ends_the_measurement),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
