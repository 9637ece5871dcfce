/* Attention from inside: rows and heads in one call against each alone, pieces of tiles against whole ones,
 * what an 8-bit row keeps, and how much memory threads take. And the expanded form against the absorbed one.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "attention.h"
#include "model_file.h"

static float unit(uint64_t *rng)
{
    *rng = *rng * 6364136223846793005u + 1442695040888963407u;
    return (float)((int32_t)(*rng >> 32)) * 0x1p-31f;
}

enum { POSITIONS = 530, HEADS = 11, WIDTH = 200, LAYERS = 2 };

/* MLA with a width that is no multiple of 32; keys and values apart and not at a block's beginning. */
static const cw_attn_shape shapes[] = {{.k_at = 0, .k_dim = 200, .v_at = 0, .v_dim = 160, .scale = 0.1f},
                                       {.k_at = 48, .k_dim = 48, .v_at = 144, .v_dim = 48, .scale = 0.2f}};

static cw_kv filled(cw_kv_type type)
{
    cw_kv kv = {.type = type, .width = WIDTH, .n_ctx = POSITIONS, .row_bytes = cw_kv_row_bytes(type, WIDTH)};
    kv.data = calloc((size_t)LAYERS * POSITIONS, kv.row_bytes);
    assert_non_null(kv.data);
    uint64_t rng = 5;
    for (int p = 0; p < POSITIONS; p++) {
        float row[WIDTH];
        for (int i = 0; i < WIDTH; i++) row[i] = 2 * unit(&rng);
        cw_kv_put(cw_kernels_best(), &kv, cw_kv_row(&kv, 1, p), row);
    }
    return kv;
}

static void run(const cw_kv *kv, const cw_attn_shape *shape, const cw_attn_plan *plan, int first, int rows,
                int head, int heads, const float *q, float *o)
{
    cw_attn a = {.kn = cw_kernels_best(),
                 .plan = plan,
                 .kv = kv,
                 .layer = 1,
                 .shape = *shape,
                 .first = first,
                 .n_rows = rows,
                 .n_q = heads,
                 .q = q + head * WIDTH,
                 .q_row = HEADS * WIDTH,
                 .q_head = WIDTH,
                 .o = o + head * WIDTH,
                 .o_row = HEADS * WIDTH,
                 .o_head = WIDTH,
                 .scratch = malloc(plan->floats * sizeof(float))};
    assert_non_null(a.scratch);
    memset(a.scratch, 0xff, plan->floats * sizeof(float)); /* NaN: nothing may be read that was not written */
    cw_attend(&a);
    free(a.scratch);
}

static void company_and_pieces_do_not_change_a_bit(void **state)
{
    (void)state;
    static const int firsts[] = {0, 100, 250, 255, 256, 510, 522};
    static float q[8 * HEADS * WIDTH], want[8 * HEADS * WIDTH], got[8 * HEADS * WIDTH];
    uint64_t rng = 6;
    for (size_t i = 0; i < CW_ARRAY_LEN(q); i++) q[i] = unit(&rng);
    for (int type = CW_KV_F32; type <= CW_KV_Q8; type++) {
        cw_kv kv = filled((cw_kv_type)type);
        for (size_t s = 0; s < CW_ARRAY_LEN(shapes); s++) {
            cw_attn_plan few = cw_attn_plan_for(&shapes[s], 1), many = few, pieces = few;
            assert_int_equal(few.keys, CW_ATTN_TILE);
            many.keys = 64, many.rows = pieces.rows = 1, pieces.keys = 32;
            for (size_t f = 0; f < CW_ARRAY_LEN(firsts); f++) {
                memset(want, 0, sizeof want), memset(got, 0, sizeof got);
                for (int r = 0; r < 8; r++) /* each head of each row alone */
                    for (int h = 0; h < HEADS; h++)
                        run(&kv, &shapes[s], &few, firsts[f] + r, 1, h, 1, q + r * HEADS * WIDTH,
                            want + r * HEADS * WIDTH);
                run(&kv, &shapes[s], &few, firsts[f], 8, 0, HEADS, q, got);
                assert_memory_equal(got, want, sizeof want);
                memset(got, 0, sizeof got);
                run(&kv, &shapes[s], &few, firsts[f], 5, 0, 4, q, got);
                run(&kv, &shapes[s], &few, firsts[f], 5, 4, HEADS - 4, q, got);
                for (int r = 5; r < 8; r++)
                    run(&kv, &shapes[s], r == 6 ? &many : &pieces, firsts[f] + r, 1, 0, HEADS,
                        q + r * HEADS * WIDTH, got + r * HEADS * WIDTH);
                assert_memory_equal(got, want, sizeof want);
            }
        }
        free(kv.data);
    }
}

static void eight_bit_rows_keep_seven_bits_of_a_block(void **state)
{
    (void)state;
    cw_kv kv = {.type = CW_KV_Q8, .width = WIDTH, .n_ctx = 1, .row_bytes = cw_kv_row_bytes(CW_KV_Q8, WIDTH)};
    assert_int_equal(kv.row_bytes, 224 + 7 * 4); /* 200 values in blocks of 32 */
    _Alignas(64) uint8_t row[512];
    float x[WIDTH], all[WIDTH + 62], part[WIDTH + 62];
    uint64_t rng = 9;
    for (int isa = 0; isa < CW_ISA_COUNT; isa++) {
        const cw_kernels *kn = cw_kernels_get((cw_isa)isa);
        if (!kn) continue;
        for (int i = 0; i < WIDTH; i++) x[i] = unit(&rng) * (float)(1 << i / 32);
        memset(row, 0x55, sizeof row);
        cw_kv_put(kn, &kv, row, x);
        for (size_t i = kv.row_bytes; i < sizeof row; i++) assert_int_equal(row[i], 0x55);
        cw_kv_get(kn, &kv, row, 0, WIDTH, all);
        for (int b = 0; b < WIDTH; b += 32) {
            float amax = 0;
            for (int i = b; i < b + 32 && i < WIDTH; i++) amax = fmaxf(amax, fabsf(x[i]));
            for (int i = b; i < b + 32 && i < WIDTH; i++) assert_true(fabsf(all[i] - x[i]) <= amax / 253);
        }
        for (int at = 0; at < WIDTH; at += 7)
            for (int n = 1; n <= WIDTH - at; n += 13) {
                cw_kv_get(kn, &kv, row, at, n, part);
                assert_memory_equal(part + cw_kv_lead(&kv, at), all + at, (size_t)n * sizeof *part);
            }
        for (int bad = 0; bad < WIDTH;
             bad += 33) { /* not finite stays not finite: the pass must fail by it */
            float keep = x[bad];
            x[bad] = bad % 2 ? NAN : INFINITY;
            cw_kv_put(kn, &kv, row, x);
            cw_kv_get(kn, &kv, row, 0, WIDTH, part);
            assert_false(isfinite(part[bad]));
            x[bad] = keep;
        }
    }
}

static void scratch_of_all_threads_is_bounded(void **state)
{
    (void)state;
    static const cw_attn_shape real[] = {{.k_dim = 576, .v_dim = 512}, /* V2-Lite to R1 */
                                         {.k_dim = 128, .v_at = 1024, .v_dim = 128},
                                         {.k_dim = 64, .v_at = 512, .v_dim = 64}};
    for (size_t s = 0; s < CW_ARRAY_LEN(real); s++)
        for (int threads = 1; threads <= CW_POOL_MAX_THREADS; threads++) {
            cw_attn_plan p = cw_attn_plan_for(&real[s], threads);
            assert_true(p.floats * sizeof(float) * (size_t)threads <= CW_ATTN_SCRATCH_BYTES);
            assert_true(p.keys <= CW_ATTN_TILE && p.rows >= 1 && (p.rows == 1 || p.keys == CW_ATTN_TILE));
            if (threads <= 16) assert_int_equal(p.rows, CW_ATTN_MAX_ROWS);
        }
}

/* --- the expanded form --- */

enum { VOCAB = 96, TOKENS = 400 };

static cw_engine *open_engine(uint32_t type)
{
    model_spec spec = model_spec_v3();
    spec.type = type;
    cw_gguf *g = model_file_open(&spec);
    cw_engine *e = NULL;
    cw_err err;
    if (cw_engine_open(g, &(cw_engine_options){.n_threads = 2, .max_rows = 256}, &e, &err) != CW_OK)
        fail_msg("%s", err.text);
    model_file_close(&g);
    return e;
}

static void tokens_of(int32_t *t, int n)
{
    for (int i = 0; i < n; i++) t[i] = (3 + i * 7 + i * i / 5) % VOCAB;
}

static void expanded_prefill_is_near_the_absorbed_one(void **state)
{
    (void)state;
    static const struct {
        uint32_t type;
        cw_kv_type kv;
        float within; /* of the largest logit */
    } rows[] = {
        {CW_TYPE_F32, CW_KV_F32, 1e-4f}, {CW_TYPE_F32, CW_KV_F16, 2e-3f}, {CW_TYPE_Q8_0, CW_KV_Q8, 0.1f}};
    for (size_t i = 0; i < CW_ARRAY_LEN(rows); i++) {
        cw_engine *e = open_engine(rows[i].type);
        cw_session *a = NULL, *x = NULL;
        cw_err err = {0};
        int32_t t[TOKENS];
        float want[VOCAB], got[VOCAB], most = 0, off = 0;
        char line[CW_SESSION_IDENTITY_MAX];
        tokens_of(t, TOKENS);
        cw_session_options o = {.kv_type = rows[i].kv};
        assert_int_equal(cw_session_new(e, &o, &a, &err), CW_OK);
        o.prefill = CW_PREFILL_EXPANDED;
        cw_status s = cw_session_new(e, &o, &x, &err);
        if (s ==
            CW_STATUS_UNSUPPORTED) { /* no OpenBLAS here: the sentence says so, and nothing else breaks */
            assert_non_null(strstr(err.text, "OpenBLAS"));
            cw_session_free(&a);
            cw_engine_close(&e);
            skip();
        }
        assert_int_equal(s, CW_OK);
        cw_session_identity(x, line);
        assert_non_null(strstr(line, ", prefill expanded"));
        cw_session_identity(a, line);
        assert_null(strstr(line, "expanded"));
        /* Rows that are few take the absorbed form, and its bits. */
        assert_int_equal(cw_session_eval(a, t, 20, want, NULL, NULL), CW_OK);
        assert_int_equal(cw_session_eval(x, t, 20, got, NULL, NULL), CW_OK);
        assert_memory_equal(got, want, sizeof got);
        assert_true(cw_session_is_exact(x));
        assert_int_equal(cw_session_eval(a, t + 20, TOKENS - 20, want, NULL, NULL), CW_OK);
        assert_int_equal(cw_session_eval(x, t + 20, TOKENS - 20, got, NULL, NULL), CW_OK);
        assert_true(cw_session_is_exact(a));
        assert_false(cw_session_is_exact(x));
        for (int v = 0; v < VOCAB; v++) {
            most = fmaxf(most, fabsf(want[v]));
            off = fmaxf(off, fabsf(want[v] - got[v]));
        }
        if (!(off <= rows[i].within * most))
            fail_msg("row %zu: off by %g of %g", i, (double)off, (double)most);
        /* Back to before it, the session is as good as any other. */
        cw_session_rewind(x, 20);
        assert_true(cw_session_is_exact(x));
        cw_session_rewind(a, 20);
        assert_int_equal(cw_session_eval(a, t, 20, want, NULL, NULL), CW_OK);
        assert_int_equal(cw_session_eval(x, t, 20, got, NULL, NULL), CW_OK);
        assert_memory_equal(got, want, sizeof got);
        cw_session_free(&a);
        cw_session_free(&x);
        cw_engine_close(&e);
    }
}

static void companions_of_an_expanded_session_keep_their_bits(void **state)
{
    (void)state;
    cw_engine *e = open_engine(CW_TYPE_Q8_0);
    cw_session *alone = NULL, *beside = NULL, *x = NULL;
    int32_t t[TOKENS];
    float want[VOCAB], got[VOCAB], other[VOCAB];
    tokens_of(t, TOKENS);
    if (cw_session_new(e, &(cw_session_options){.prefill = CW_PREFILL_EXPANDED}, &x, NULL) != CW_OK) {
        cw_engine_close(&e);
        skip();
    }
    assert_int_equal(cw_session_new(e, NULL, &alone, NULL), CW_OK);
    assert_int_equal(cw_session_new(e, NULL, &beside, NULL), CW_OK);
    assert_int_equal(cw_session_eval(alone, t, 50, want, NULL, NULL), CW_OK);
    cw_batch_item items[2] = {{x, t, 200, 1, other}, {beside, t, 50, 1, got}};
    assert_int_equal(cw_engine_forward(e, items, 2, NULL, NULL), CW_OK);
    assert_memory_equal(got, want, sizeof got);
    assert_true(cw_session_is_exact(beside));
    cw_session_free(&alone);
    cw_session_free(&beside);
    cw_session_free(&x);
    cw_engine_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(company_and_pieces_do_not_change_a_bit),
        cmocka_unit_test(eight_bit_rows_keep_seven_bits_of_a_block),
        cmocka_unit_test(scratch_of_all_threads_is_bounded),
        cmocka_unit_test(expanded_prefill_is_near_the_absorbed_one),
        cmocka_unit_test(companions_of_an_expanded_session_keep_their_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
