/* Routed experts: their arithmetic step by step, the set that
 * holds them, and the order in which rows are combined. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/engine.h"
#include "cw/mem.h"
#include "model_file.h"

enum { ROWS = 7, LAYER = 1 };

typedef struct {
    cw_gguf *g;
    cw_model_config c;
    cw_expert_shape shapes[3];
    cw_expert_set *set;
    cw_expert_scratch *scratch;
    float x[ROWS][64];
    cw_a8 a8;
    void *a8_mem;
} world;

static const cw_kernels *kn(void)
{
    return cw_kernels_get(CW_ISA_SCALAR);
}

static void world_make(world *w, uint32_t type, uint32_t gate_type, uint32_t down_type)
{
    model_spec s = model_spec_v3();
    s.type = type;
    s.gate_type = gate_type;
    s.down_type = down_type;
    cw_err err;
    w->g = model_file_open(&s);
    if (cw_model_config_read(w->g, NULL, &w->c, &err) != CW_OK) fail_msg("%s", err.text);
    assert_int_equal(cw_expert_shapes_read(w->g, &w->c, w->shapes, &err), CW_OK);
    assert_int_equal(cw_expert_set_new(3, 8, w->shapes, &w->set, &err), CW_OK);
    for (int i = 0; i < 8; i++)
        if (cw_expert_set_add_from_gguf(w->set, w->g, LAYER, i, &err) != CW_OK) fail_msg("%s", err.text);
    assert_int_equal(cw_expert_scratch_new(w->set, 64, &w->scratch, &err), CW_OK);
    size_t bytes;
    assert_true(cw_a8_bytes(ROWS, 64, &bytes));
    w->a8_mem = cw_aligned_calloc(bytes, 1);
    cw_a8_init(&w->a8, ROWS, 64, w->a8_mem);
    cw_fp_setup();
    for (int r = 0; r < ROWS; r++) {
        for (int i = 0; i < 64; i++) w->x[r][i] = sinf((float)(r * 64 + i) * 0.7f);
        assert_true(kn()->a8_quantise(&w->a8, r, w->x[r]));
    }
}

static void world_drop(world *w)
{
    cw_free(w->a8_mem);
    cw_expert_scratch_free(&w->scratch);
    cw_expert_set_free(&w->set);
    model_file_close(&w->g);
}

/* --- the arithmetic --- */

/* One product, from the file's rows, as docs/NUMERICS.md
 * writes it for f32, f16, bf16 (x) and Q8_0 (a8) weights. */
static float dot(uint32_t type, const uint8_t *row, int k, const float *x, const int8_t *q, const float *s)
{
    const cw_type_info *info = cw_type_get(type);
    float acc = 0, w[64];
    info->to_f32(row, w, k);
    if (!info->quantised) {
        for (int i = 0; i < k; i++) acc = fmaf(w[i], x[i], acc);
        return acc;
    }
    for (int b = 0; b < k / 32; b++) {
        float scale = 0;
        int sum = 0;
        const uint8_t *block = row + 34 * b;
        const uint8_t d[4] = {block[0], block[1], 0, 0};
        cw_type_get(CW_TYPE_F16)->to_f32(d, &scale, 1);
        for (int i = 0; i < 32; i++) sum += (int8_t)block[2 + i] * q[32 * b + i];
        acc = fmaf(scale * s[b], (float)sum, acc);
    }
    return acc;
}

static const uint8_t *file_row(const world *w, int slice, int expert, int row)
{
    char name[64];
    const cw_gguf_tensor *t = cw_gguf_find(w->g, cw_expert_tensor_name(name, sizeof name, LAYER, slice));
    return (const uint8_t *)t->data + (size_t)(expert * (int)t->ne[1] + row) * t->row_bytes;
}

/* down(silu(gate x) * up x), every step as the contract has it, before the output's rounding. */
static void expert_by_hand(const world *w, int expert, int r, float *y)
{
    const cw_expert_shape *s = &w->shapes[LAYER];
    float h[32], ss[1];
    int8_t hq[32];
    for (int i = 0; i < 32; i++) {
        float gate = dot(s->gate_type, file_row(w, CW_SLICE_GATE, expert, i), 64, w->x[r], cw_a8_q(&w->a8, r),
                         cw_a8_s(&w->a8, r));
        float up = dot(s->up_type, file_row(w, CW_SLICE_UP, expert, i), 64, w->x[r], cw_a8_q(&w->a8, r),
                       cw_a8_s(&w->a8, r));
        kn()->silu_mul(&h[i], &gate, &up, 1);
    }
    float amax = 0;
    for (int i = 0; i < 32; i++) amax = fmaxf(amax, fabsf(h[i]));
    ss[0] = amax / 127;
    for (int i = 0; i < 32; i++) hq[i] = (int8_t)rintf(h[i] * (127 / amax));
    for (int i = 0; i < 64; i++)
        y[i] = dot(s->down_type, file_row(w, CW_SLICE_DOWN, expert, i), 32, h, hq, ss);
}

static void check_arithmetic(uint32_t type, uint32_t gate_type, uint32_t down_type)
{
    world w = {0};
    world_make(&w, type, gate_type, down_type);
    cw_reply_kind kind = cw_expert_reply_kind(&w.shapes[LAYER]);
    uint16_t f16[ROWS * 64];
    int8_t e[ROWS];
    float f32[ROWS * 64];
    cw_expert_job job = {.expert = cw_expert_set_acquire(w.set, LAYER, 3),
                         .n_rows = ROWS,
                         .a8 = &w.a8,
                         .x = w.x[0],
                         .f16 = f16,
                         .e = e,
                         .f32 = f32};
    assert_int_equal(cw_expert_run(kn(), NULL, &job, 1, w.scratch, NULL), CW_OK);
    assert_int_equal(job.n_bad, 0);
    cw_expert_release(job.expert);
    int rounded = 0;
    for (int r = 0; r < ROWS; r++) {
        float want[64];
        expert_by_hand(&w, 3, r, want);
        if (kind == CW_REPLY_ROWS_F32) {
            assert_memory_equal(want, f32 + r * 64, sizeof want);
            continue;
        }
        uint16_t row[64];
        int8_t exponent;
        float back[64];
        assert_true(kn()->row_to_f16(row, &exponent, want, 64));
        assert_memory_equal(row, f16 + r * 64, sizeof row);
        assert_int_equal(exponent, e[r]);
        kn()->row_from_f16(back, row, exponent, 64);
        for (int i = 0; i < 64; i++) rounded += back[i] != want[i];
    }
    if (kind == CW_REPLY_ROWS_F16)
        assert_true(rounded > ROWS); /* the rounding is a part of the result, not of the wire */
    world_drop(&w);
}

static void quantised_experts_are_as_written_down(void **state)
{
    (void)state;
    check_arithmetic(CW_TYPE_Q8_0, 0, 0);
}

static void plain_experts_are_as_written_down(void **state)
{
    (void)state;
    check_arithmetic(CW_TYPE_F32, 0, 0);
    check_arithmetic(CW_TYPE_F32, CW_TYPE_F16, CW_TYPE_BF16);
}

static void mixed_experts_quantise_for_the_part_that_needs_it(void **state)
{
    (void)state;
    check_arithmetic(CW_TYPE_F32, CW_TYPE_Q8_0, 0); /* gate quantised, up and down not */
    check_arithmetic(CW_TYPE_F32, CW_TYPE_Q8_0, CW_TYPE_Q8_0);
    check_arithmetic(CW_TYPE_Q8_0, CW_TYPE_F16, 0);
    check_arithmetic(CW_TYPE_Q8_0, 0, CW_TYPE_F16);
}

static void kinds_follow_the_tensor_types(void **state)
{
    (void)state;
    cw_expert_shape s = {64, 32, CW_TYPE_Q8_0, CW_TYPE_Q8_0, CW_TYPE_F16};
    assert_int_equal(cw_expert_rows_kind(&s), CW_ROWS_A8);
    assert_int_equal(cw_expert_reply_kind(&s), CW_REPLY_ROWS_F32);
    s = (cw_expert_shape){64, 32, CW_TYPE_Q8_0, CW_TYPE_BF16, CW_TYPE_Q4_0};
    assert_int_equal(cw_expert_rows_kind(&s), CW_ROWS_F32);
    assert_int_equal(cw_expert_reply_kind(&s), CW_REPLY_ROWS_F16);
}

/* Rows of several experts in one run, spread over jobs and
 * threads in any way, are the rows computed one by one. */
static void grouping_does_not_change_a_bit(void **state)
{
    (void)state;
    world w = {0};
    world_make(&w, CW_TYPE_Q8_0, 0, 0);
    uint16_t one[3][ROWS * 64], many[3 * ROWS * 64];
    int8_t one_e[3][ROWS], many_e[3 * ROWS];
    cw_expert_job jobs[6];
    const cw_expert *held[3];
    for (int x = 0; x < 3; x++) {
        held[x] = cw_expert_set_acquire(w.set, LAYER, x * 2);
        for (int32_t r = 0; r < ROWS; r++) {
            int32_t to = 0;
            cw_expert_job job = {.expert = held[x],
                                 .n_rows = 1,
                                 .a8 = &w.a8,
                                 .in_rows = &r,
                                 .out_rows = &to,
                                 .f16 = one[x] + r * 64,
                                 .e = one_e[x] + r};
            assert_int_equal(cw_expert_run(kn(), NULL, &job, 1, w.scratch, NULL), CW_OK);
        }
    }
    /* Two jobs an expert, rows in mixed order, outputs interleaved by expert. */
    static const int32_t in[ROWS] = {6, 2, 0, 5, 1, 3, 4};
    int32_t out[3][ROWS];
    for (int x = 0; x < 3; x++) {
        for (int i = 0; i < ROWS; i++) out[x][i] = in[i] * 3 + x;
        jobs[x] = (cw_expert_job){.expert = held[x],
                                  .n_rows = 3,
                                  .a8 = &w.a8,
                                  .in_rows = in,
                                  .out_rows = out[x],
                                  .f16 = many,
                                  .e = many_e};
        jobs[3 + x] = (cw_expert_job){.expert = held[x],
                                      .n_rows = 4,
                                      .a8 = &w.a8,
                                      .in_rows = in + 3,
                                      .out_rows = out[x] + 3,
                                      .f16 = many,
                                      .e = many_e};
    }
    cw_pool *pool = NULL;
    assert_int_equal(cw_pool_new(3, &pool, NULL), CW_OK);
    assert_int_equal(cw_expert_run(cw_kernels_best(), pool, jobs, 6, w.scratch, NULL), CW_OK);
    for (int x = 0; x < 3; x++)
        for (int r = 0; r < ROWS; r++) {
            assert_memory_equal(one[x] + r * 64, many + (r * 3 + x) * 64, 64 * sizeof(uint16_t));
            assert_int_equal(one_e[x][r], many_e[r * 3 + x]);
        }
    for (int x = 0; x < 3; x++) cw_expert_release(held[x]);
    cw_pool_free(&pool);
    world_drop(&w);
}

static void a_row_that_is_not_finite_is_named_and_alone(void **state)
{
    (void)state;
    world w = {0};
    world_make(&w, CW_TYPE_F32, 0, 0);
    float good[ROWS * 64], got[ROWS * 64];
    uint8_t bad[ROWS];
    cw_err err;
    cw_expert_job job = {.expert = cw_expert_set_acquire(w.set, LAYER, 5),
                         .n_rows = ROWS,
                         .x = w.x[0],
                         .f32 = good,
                         .bad = bad};
    assert_int_equal(cw_expert_run(kn(), NULL, &job, 1, w.scratch, &err), CW_OK);
    w.x[2][7] = INFINITY;
    w.x[4][0] = NAN;
    job.f32 = got;
    assert_int_equal(cw_expert_run(kn(), NULL, &job, 1, w.scratch, &err), CW_STATUS_NUMERIC);
    assert_string_equal(err.text, "layer 1, expert 5: the output is not finite");
    assert_int_equal(job.n_bad, 2);
    for (int r = 0; r < ROWS; r++) {
        assert_int_equal(bad[r], r == 2 || r == 4);
        if (!bad[r]) assert_memory_equal(good + r * 64, got + r * 64, 64 * sizeof(float));
    }
    cw_expert_release(job.expert);
    world_drop(&w);
}

/* --- the set --- */

static void a_set_counts_what_it_holds(void **state)
{
    (void)state;
    world w = {0};
    world_make(&w, CW_TYPE_Q8_0, 0, 0);
    size_t one = cw_expert_packed_bytes(&w.shapes[LAYER]);
    assert_int_equal(cw_expert_set_count(w.set), 8);
    assert_int_equal(cw_expert_set_bytes(w.set), 8 * one);
    assert_true(cw_expert_set_has(w.set, 1, 7));
    assert_false(cw_expert_set_has(w.set, 2, 7));
    assert_false(cw_expert_set_has(w.set, 0, 7)); /* a dense layer */
    assert_false(cw_expert_set_has(w.set, -1, 0));
    assert_false(cw_expert_set_has(w.set, 1, 8));
    assert_null(cw_expert_set_acquire(w.set, 99, 0));

    const cw_expert *held = cw_expert_set_acquire(w.set, 1, 7);
    assert_true(cw_expert_set_remove(w.set, 1, 7));
    assert_false(cw_expert_set_remove(w.set, 1, 7));
    assert_int_equal(cw_expert_set_bytes(w.set), 7 * one);
    uint16_t f16[64];
    int8_t e;
    cw_expert_job job = {.expert = held, .n_rows = 1, .a8 = &w.a8, .f16 = f16, .e = &e};
    assert_int_equal(cw_expert_run(kn(), NULL, &job, 1, w.scratch, NULL), CW_OK); /* still held */
    cw_expert_release(held);
    cw_err err;
    assert_int_equal(cw_expert_set_add_from_gguf(w.set, w.g, 1, 6, &err), CW_STATUS_STATE);
    assert_int_equal(cw_expert_set_add_from_gguf(w.set, w.g, 0, 6, &err), CW_STATUS_INVALID);
    assert_int_equal(cw_expert_set_add_from_gguf(w.set, w.g, 1, 7, &err), CW_OK);
    assert_int_equal(cw_expert_set_count(w.set), 8);
    world_drop(&w);
}

static void raw_slices_make_the_same_expert_as_the_file(void **state)
{
    (void)state;
    world w = {0};
    world_make(&w, CW_TYPE_Q8_0, 0, 0);
    const void *slices[CW_N_SLICES];
    size_t bytes[CW_N_SLICES];
    for (int i = 0; i < CW_N_SLICES; i++) {
        slices[i] = file_row(&w, i, 4, 0);
        bytes[i] = cw_expert_slice_bytes(&w.shapes[LAYER], i);
    }
    cw_expert_set *other = NULL;
    cw_err err;
    assert_int_equal(cw_expert_set_new(3, 8, w.shapes, &other, &err), CW_OK);
    bytes[1]--;
    assert_int_equal(cw_expert_set_add(other, LAYER, 4, slices, bytes, &err), CW_STATUS_INVALID);
    bytes[1]++;
    assert_int_equal(cw_expert_set_add(other, LAYER, 4, slices, bytes, &err), CW_OK);
    assert_int_equal(cw_expert_set_add(other, LAYER, 4, slices, bytes, &err), CW_STATUS_STATE);
    uint16_t f16[2][ROWS * 64];
    int8_t e[2][ROWS];
    for (int i = 0; i < 2; i++) {
        cw_expert_job job = {.expert = cw_expert_set_acquire(i ? other : w.set, LAYER, 4),
                             .n_rows = ROWS,
                             .a8 = &w.a8,
                             .f16 = f16[i],
                             .e = e[i]};
        assert_int_equal(cw_expert_run(kn(), NULL, &job, 1, w.scratch, &err), CW_OK);
        cw_expert_release(job.expert);
    }
    assert_memory_equal(f16[0], f16[1], sizeof f16[0]);
    assert_memory_equal(e[0], e[1], sizeof e[0]);
    cw_expert_set_free(&other);
    world_drop(&w);
}

static void shapes_from_outside_are_checked(void **state)
{
    (void)state;
    static const cw_expert_shape bad[] = {{64, 0, CW_TYPE_F32, CW_TYPE_F32, CW_TYPE_F32},
                                          {-64, 32, CW_TYPE_F32, CW_TYPE_F32, CW_TYPE_F32},
                                          {64, 33, CW_TYPE_Q8_0, CW_TYPE_Q8_0, CW_TYPE_Q8_0},
                                          {64, 32, CW_TYPE_Q4_K, CW_TYPE_Q8_0, CW_TYPE_Q8_0},
                                          {64, 32, CW_TYPE_F32, 999, CW_TYPE_F32},
                                          {64, 32, CW_TYPE_F32, CW_TYPE_Q3_K, CW_TYPE_F32},
                                          {1 << 30, 32, CW_TYPE_F32, CW_TYPE_F32, CW_TYPE_F32}};
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++) {
        cw_expert_set *s = NULL;
        cw_err err;
        assert_int_not_equal(cw_expert_set_new(1, 8, &bad[i], &s, &err), CW_OK);
        assert_null(s);
    }
    cw_expert_set *s = NULL;
    cw_expert_shape ok = {64, 32, CW_TYPE_F32, CW_TYPE_F32, CW_TYPE_F32};
    assert_int_equal(cw_expert_set_new(0, 8, &ok, &s, NULL), CW_STATUS_INVALID);
    assert_int_equal(cw_expert_set_new(1, 1 << 20, &ok, &s, NULL), CW_STATUS_INVALID);
}

static void another_models_file_is_refused(void **state)
{
    (void)state;
    world w = {0};
    world_make(&w, CW_TYPE_Q8_0, 0, 0);
    model_spec s = model_spec_v3();
    cw_gguf *g = model_file_open(&s);
    cw_err err;
    assert_true(cw_expert_set_remove(w.set, 1, 0));
    assert_int_equal(cw_expert_set_add_from_gguf(w.set, g, 1, 0, &err), CW_STATUS_MISMATCH);
    model_file_close(&g);
    world_drop(&w);
}

/* --- calls and combining --- */

static void local_experts_answer_in_the_order_of_the_entries(void **state)
{
    (void)state;
    world w = {0};
    world_make(&w, CW_TYPE_Q8_0, 0, 0);
    cw_experts *x = NULL;
    cw_err err;
    assert_int_equal(cw_experts_local_new(w.set, kn(), NULL, ROWS, 3, &x, &err), CW_OK);
    /* Weights of full precision, so that the order of the sums shows in their bits. */
    const cw_expert_entry entries[] = {{0, 3, .37f},  {0, 7, .219f}, {1, 0, 1.13f},
                                       {1, 3, 2.71f}, {1, 7, .613f}, {2, 7, 1.9f}};
    cw_expert_call call = {
        .layer = LAYER, .n_rows = 3, .d_model = 64, .a8 = &w.a8, .n_entries = 6, .entries = entries};
    uint64_t first, second;
    cw_expert_reply r;
    assert_int_equal(cw_experts_submit(x, &call, &first, &err), CW_OK);
    assert_int_equal(cw_experts_submit(x, &call, &second, &err), CW_OK);
    assert_int_not_equal(first, second);
    assert_int_equal(cw_experts_collect(x, second, &r, &err), CW_OK);
    assert_int_equal(cw_experts_collect(x, first, &r, &err), CW_OK);
    assert_int_equal(r.kind, CW_REPLY_ROWS_F16);
    float combined[3 * 64];
    cw_experts_combine(kn(), NULL, 3, 64, 6, entries, &r, combined);
    float want[3 * 64] = {0};
    for (int i = 0; i < 6; i++) { /* ascending expert within a row, from +0, one fmaf each */
        float y[64], row[64];
        uint16_t f16[64];
        int8_t e;
        expert_by_hand(&w, (int)entries[i].expert, (int)entries[i].row, y);
        assert_true(kn()->row_to_f16(f16, &e, y, 64));
        assert_memory_equal(f16, r.f16 + i * 64, sizeof f16);
        kn()->row_from_f16(row, f16, e, 64);
        for (int k = 0; k < 64; k++) {
            float *to = &want[entries[i].row * 64 + (uint32_t)k];
            *to = fmaf(entries[i].weight, row[k], *to);
        }
    }
    assert_memory_equal(want, combined, sizeof want);

    atomic_bool cancel = true;
    call.cancel = &cancel;
    assert_int_equal(cw_experts_submit(x, &call, &first, &err), CW_OK);
    assert_int_equal(cw_experts_collect(x, first, &r, &err), CW_STATUS_CANCELLED);
    call.cancel = NULL;
    assert_true(cw_expert_set_remove(w.set, LAYER, 7));
    assert_int_equal(cw_experts_submit(x, &call, &first, &err), CW_OK);
    assert_int_equal(cw_experts_collect(x, first, &r, &err), CW_STATUS_NOT_HERE);
    cw_experts_free(&x);
    assert_null(x);
    world_drop(&w);
}

static void rows_without_entries_are_zero(void **state)
{
    (void)state;
    const cw_expert_entry entries[] = {{1, 0, 2}};
    const float row[4] = {1, -2, 3, -4};
    float y[3 * 4];
    memset(y, 0x7f, sizeof y);
    cw_expert_reply r = {.kind = CW_REPLY_ROWS_F32, .f32 = row};
    cw_experts_combine(kn(), NULL, 3, 4, 1, entries, &r, y);
    assert_memory_equal(y, ((float[12]){0, 0, 0, 0, 2, -4, 6, -8}), sizeof y);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantised_experts_are_as_written_down),
        cmocka_unit_test(plain_experts_are_as_written_down),
        cmocka_unit_test(mixed_experts_quantise_for_the_part_that_needs_it),
        cmocka_unit_test(kinds_follow_the_tensor_types),
        cmocka_unit_test(grouping_does_not_change_a_bit),
        cmocka_unit_test(a_row_that_is_not_finite_is_named_and_alone),
        cmocka_unit_test(a_set_counts_what_it_holds),
        cmocka_unit_test(raw_slices_make_the_same_expert_as_the_file),
        cmocka_unit_test(shapes_from_outside_are_checked),
        cmocka_unit_test(another_models_file_is_refused),
        cmocka_unit_test(local_experts_answer_in_the_order_of_the_entries),
        cmocka_unit_test(rows_without_entries_are_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
