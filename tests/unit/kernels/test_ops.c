/* The operations beside the products: what they mean (against double precision), their edges, and every
 * instruction set against the scalar reference bit for bit over lengths that leave every kind of tail. */
#include "kit.h"

enum { MAX = 7168 };
static const int lengths[] = {1,  2,  7,   8,   9,   15,  16,   17,   31,  32,
                              33, 64, 100, 127, 512, 576, 1408, 2048, 7168};

static void fill(float *x, int64_t n, float scale, uint64_t *rng)
{
    for (int64_t i = 0; i < n; i++) x[i] = kit_unit(rng) * scale;
}

/* ---- A8 ---- */

static void a8_follows_its_definition(void **state)
{
    (void)state;
    const cw_kernels *kn = cw_kernels_get(CW_ISA_SCALAR);
    cw_a8 a = kit_a8(1, 32);
    float x[32] = {0}, back[32];
    /* amax 127: scale 1, ties go to even. */
    x[0] = -127.0f, x[1] = 0.5f, x[2] = 1.5f, x[3] = 2.5f, x[4] = -0.5f, x[5] = -1.5f, x[6] = 126.4f,
    x[31] = 3.0f;
    assert_true(kn->a8_quantise(&a, 0, x));
    static const int want[] = {-127, 0, 2, 2, 0, -2, 126};
    for (int i = 0; i < 7; i++) assert_int_equal(a.q[i], want[i]);
    assert_true(a.s[0] == 1.0f);
    assert_int_equal(a.lo[0], -127 + 2 + 2 - 2 + 126);
    assert_int_equal(a.sum[0], a.lo[0] + 3);
    assert_true(a.ssum[0] == (float)a.sum[0]);
    cw_a8_row_f32(&a, 0, back);
    assert_true(back[0] == -127.0f && back[31] == 3.0f);
    /* Below 2^-100: nothing; at it: something. */
    for (int i = 0; i < 32; i++) x[i] = 0x1.fffffep-101f;
    assert_true(kn->a8_quantise(&a, 0, x));
    assert_true(a.s[0] == 0.0f && a.ssum[0] == 0.0f);
    for (int i = 0; i < 32; i++) assert_int_equal(a.q[i], 0);
    for (int i = 0; i < 32; i++) x[i] = i % 2 ? 0x1p-100f : -0x1p-100f;
    assert_true(kn->a8_quantise(&a, 0, x));
    assert_true(a.s[0] == 0x1p-100f / 127.0f);
    for (int i = 0; i < 32; i++) assert_int_equal(a.q[i], i % 2 ? 127 : -127);
    /* The largest float. */
    for (int i = 0; i < 32; i++) x[i] = 3.4028235e38f;
    assert_true(kn->a8_quantise(&a, 0, x));
    for (int i = 0; i < 32; i++) assert_int_equal(a.q[i], 127);
    kit_a8_free(&a);
}

static void a8_reports_values_that_are_not_finite(void **state)
{
    (void)state;
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (int isa = 0; isa < CW_ISA_COUNT; isa++) {
        const cw_kernels *kn = cw_kernels_get((cw_isa)isa);
        if (!kn) continue;
        for (int at = 0; at < 96; at += 5) {
            float x[96];
            cw_a8 a = kit_a8(1, 96);
            for (int i = 0; i < 96; i++) x[i] = 1.0f;
            x[at] = bad[at % 4];
            memset(a.q, 0x55, 96);
            assert_false(kn->a8_quantise(&a, 0, x));
            for (int b = 0; b < 3; b++) {
                bool hit = b == at / 32;
                assert_true(a.s[b] == (hit ? 0.0f : 1.0f / 127.0f));
                assert_int_equal(a.sum[b], hit ? 0 : 32 * 127);
                for (int i = 0; i < 32; i++) assert_int_equal(a.q[32 * b + i], hit ? 0 : 127);
            }
            kit_a8_free(&a);
        }
    }
}

static void a8_is_the_same_everywhere(void **state)
{
    (void)state;
    uint64_t rng = 41;
    static const float scales[] = {1.0f, 1e-30f, 3e38f, 1e-38f, 1e5f, 0x1p-100f, 7e-31f};
    float *x = kit_mem(MAX * 4);
    for (int round = 0; round < 40; round++) {
        fill(x, MAX, scales[round % CW_ARRAY_LEN(scales)], &rng);
        if (round % 3 == 0) x[kit_next(&rng) % MAX] = 1e6f;
        if (round % 7 == 0) /* scale 1: multiples of a half, whose quotients tie */
            for (int i = 0; i < MAX; i++) x[i] = rintf(x[i] * 254) * 0.5f;
        cw_a8 want = kit_a8(2, MAX), got = kit_a8(2, MAX);
        assert_true(cw_kernels_get(CW_ISA_SCALAR)->a8_quantise(&want, 1, x));
        for (int i = 0; i < MAX; i++) assert_true(want.q[MAX + i] >= -127);
        for (int v = 0; kit_vector(v); v++) {
            assert_true(kit_vector(v)->a8_quantise(&got, 1, x));
            assert_memory_equal(got.q, want.q, 2 * MAX);
            assert_memory_equal(got.s, want.s, 2 * MAX / 8);
            assert_memory_equal(got.sum, want.sum, 2 * MAX / 8);
            assert_memory_equal(got.lo, want.lo, 2 * MAX / 8);
            assert_memory_equal(got.ssum, want.ssum, 2 * MAX / 8);
        }
        /* Received bytes give the same row. */
        cw_a8 wire = kit_a8(2, MAX);
        assert_true(cw_a8_set_row(&wire, 1, cw_a8_q(&want, 1), cw_a8_s(&want, 1)));
        assert_memory_equal(wire.q + MAX, want.q + MAX, MAX);
        assert_memory_equal(wire.sum + MAX / 32, want.sum + MAX / 32, MAX / 8);
        assert_memory_equal(wire.lo + MAX / 32, want.lo + MAX / 32, MAX / 8);
        assert_memory_equal(wire.ssum + MAX / 32, want.ssum + MAX / 32, MAX / 8);
        cw_a8_copy_row(&wire, 0, &wire, 1);
        assert_memory_equal(wire.q, want.q + MAX, MAX);
        kit_a8_free(&want);
        kit_a8_free(&got);
        kit_a8_free(&wire);
    }
    cw_free(x);
}

static void a8_rows_read_back_are_the_same_everywhere(void **state)
{
    (void)state;
    uint64_t rng = 48;
    float *x = kit_mem(MAX * 4), *want = kit_mem(MAX * 4), *got = kit_mem((MAX + 1) * 4);
    cw_a8 a = kit_a8(1, MAX);
    for (int round = 0; round < 8; round++) {
        fill(x, MAX, round % 2 ? 1e-36f : 20.0f, &rng); /* products below the normal range too */
        assert_true(cw_kernels_get(CW_ISA_SCALAR)->a8_quantise(&a, 0, x));
        cw_a8_row_f32(&a, 0, want);
        for (int isa = 0; isa < CW_ISA_COUNT; isa++) {
            const cw_kernels *kn = cw_kernels_get((cw_isa)isa);
            for (int n = 32; kn && n <= MAX; n += n < 640 ? 32 : 1632) {
                got[n] = 7.0f;
                kn->a8_to_f32(got, a.q, a.s, n);
                assert_memory_equal(got, want, (size_t)n * 4);
                assert_true(got[n] == 7.0f);
            }
        }
    }
    cw_free(x), cw_free(want), cw_free(got);
    kit_a8_free(&a);
}

static void received_a8_rows_are_checked(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 0xbf800000};
    cw_a8 a = kit_a8(1, 64);
    int8_t q[64];
    uint8_t s[9];
    memset(q, 1, sizeof q);
    cw_store_u32(s + 1, 0x3f800000);
    cw_store_u32(s + 5, 0x3f000000);
    assert_true(cw_a8_set_row(&a, 0, q, s + 1));
    assert_true(a.s[1] == 0.5f && a.ssum[1] == 16.0f);
    for (int i = 0; i < 64; i++) {
        q[i] = -128;
        assert_false(cw_a8_set_row(&a, 0, q, s + 1));
        assert_true(a.s[0] == 0.0f && a.s[1] == 0.0f && a.q[5] == 0 && a.sum[0] == 0);
        q[i] = 1;
    }
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++) {
        cw_store_u32(s + 5, bad[i]);
        assert_false(cw_a8_set_row(&a, 0, q, s + 1));
    }
    size_t bytes;
    assert_false(cw_a8_bytes(1, 31, &bytes) || cw_a8_bytes(1, 0, &bytes) || cw_a8_bytes(-1, 32, &bytes));
    assert_false(cw_a8_bytes(INT32_MAX, INT64_C(1) << 41, &bytes));
    kit_a8_free(&a);
}

/* ---- reductions and elementwise ---- */

static void sums_follow_sixteen_lanes(void **state)
{
    (void)state;
    const cw_kernels *kn = cw_kernels_get(CW_ISA_SCALAR);
    /* 2^24 in lane 0 swallows a 1 that meets it there, and keeps ones gathered in another lane. */
    float x[48] = {0};
    x[0] = 0x1p24f, x[16] = 1.0f, x[32] = 1.0f;
    assert_true(kn->sum(x, 48) == 0x1p24f);
    x[16] = x[32] = 0.0f;
    x[17] = x[33] = 1.0f;
    assert_true(kn->sum(x, 48) == 0x1p24f + 2.0f);
    /* The tree folds 8, 4, 2, 1: lane 8 meets lane 0 first, lane 1 meets it last. */
    float y[16] = {[0] = 0x1p24f, [8] = 1.0f, [1] = 1.0f, [9] = 1.0f};
    assert_true(kn->sum(y, 16) == 0x1p24f + 2.0f);
    uint64_t rng = 42;
    static float a[MAX], b[MAX];
    for (size_t l = 0; l < CW_ARRAY_LEN(lengths); l++) {
        int n = lengths[l];
        double dot = 0, size = 0;
        fill(a, n, 3, &rng);
        fill(b, n, 3, &rng);
        for (int i = 0; i < n; i++)
            dot += (double)a[i] * (double)b[i], size += fabs((double)a[i] * (double)b[i]);
        assert_true(fabs((double)kn->dot(a, b, n) - dot) <= ((double)n / 16 + 5) * 0x1p-24 * size);
    }
}

static void rms_norm_and_silu_mean_what_they_should(void **state)
{
    (void)state;
    const cw_kernels *kn = cw_kernels_get(CW_ISA_SCALAR);
    uint64_t rng = 43;
    static float x[MAX], w[MAX], y[MAX], z[MAX];
    for (size_t l = 0; l < CW_ARRAY_LEN(lengths); l++) {
        int n = lengths[l];
        fill(x, n, 20, &rng);
        fill(w, n, 2, &rng);
        double ss = 0;
        for (int i = 0; i < n; i++) ss += (double)x[i] * (double)x[i];
        double inv = 1 / sqrt(ss / n + 1e-6);
        kn->rms_norm(y, x, w, n, 1e-6f);
        kn->silu_mul(z, x, w, n);
        for (int i = 0; i < n; i++) {
            assert_true(fabs((double)y[i] - (double)x[i] * inv * (double)w[i]) <= 2e-6);
            double silu = (double)x[i] / (1 + exp(-(double)x[i])) * (double)w[i];
            assert_true(fabs((double)z[i] - silu) <= 1e-6 * fabs(silu) + 1e-9);
        }
    }
}

static void simple_operations_are_the_same_everywhere(void **state)
{
    (void)state;
    uint64_t rng = 44;
    static const float scales[] = {1.0f, 90.0f, 1e-38f, 1e30f, 1e-42f, 200.0f};
    float *x = kit_mem(MAX * 4), *u = kit_mem(MAX * 4), *want = kit_mem(MAX * 4),
          *got = kit_mem((MAX + 1) * 4);
    uint16_t *hw = kit_mem(MAX * 2), *hg = kit_mem(MAX * 2);
    const cw_kernels *ref = cw_kernels_get(CW_ISA_SCALAR);
    for (size_t l = 0; l < CW_ARRAY_LEN(lengths); l++) {
        for (size_t s = 0; s < CW_ARRAY_LEN(scales); s++) {
            int n = lengths[l];
            fill(x, n, scales[s], &rng);
            fill(u, n, 5, &rng);
            if (n > 8)
                x[0] = -0.0f, x[1] = 0.0f, x[2] = -100.0f, x[3] = 88.9f, x[4] = -87.33655f, x[5] = 88.7228f,
                x[6] = -87.3366f;
            for (int v = 0; kit_vector(v); v++) {
                const cw_kernels *kn = kit_vector(v);
                float d1 = ref->dot(x, u, n), d2 = kn->dot(x, u, n), s1 = ref->sum(x, n), s2 = kn->sum(x, n);
                assert_true(kit_same(&d1, &d2, 1) && kit_same(&s1, &s2, 1));
#define SAME_OP(expr_ref, expr_got)                                                                          \
    memcpy(want, u, (size_t)n * 4), memcpy(got, u, (size_t)n * 4), got[n] = 7.0f;                            \
    expr_ref;                                                                                                \
    expr_got;                                                                                                \
    assert_true(kit_same(want, got, n) && got[n] == 7.0f)
                SAME_OP(ref->rms_norm(want, x, u, n, 1e-5f), kn->rms_norm(got, x, u, n, 1e-5f));
                SAME_OP(ref->rms_norm(want, x, NULL, n, 1e-5f), kn->rms_norm(got, x, NULL, n, 1e-5f));
                SAME_OP(ref->exp(want, x, n), kn->exp(got, x, n));
                SAME_OP(ref->silu_mul(want, x, u, n), kn->silu_mul(got, x, u, n));
                SAME_OP(ref->add(want, x, n), kn->add(got, x, n));
                SAME_OP(ref->merge(want, 0.3f, x, 0.7f, n), kn->merge(got, 0.3f, x, 0.7f, n));
                SAME_OP(ref->combine_f32(want, 0.3f, x, n), kn->combine_f32(got, 0.3f, x, n));
                ref->f32_to_f16(hw, x, n);
                kn->f32_to_f16(hg, x, n);
                assert_memory_equal(hw, hg, (size_t)n * 2);
                SAME_OP(ref->f16_to_f32(want, hw, n), kn->f16_to_f32(got, hw, n));
                SAME_OP(ref->div(want, 0.3f, n), kn->div(got, 0.3f, n));
            }
        }
    }
    cw_free(x), cw_free(u), cw_free(want), cw_free(got), cw_free(hw), cw_free(hg);
}

static void f16_conversion_is_exact_for_every_half(void **state)
{
    (void)state;
    static uint16_t h[65536], back[65536];
    static float f[65536];
    for (int i = 0; i < 65536; i++)
        h[i] = (uint16_t)((i & 0x7c00) == 0x7c00 && (i & 0x3ff) ? 0 : i); /* no NaN */
    for (int isa = 0; isa < CW_ISA_COUNT; isa++) {
        const cw_kernels *kn = cw_kernels_get((cw_isa)isa);
        if (!kn) continue;
        kn->f16_to_f32(f, h, 65536);
        for (int i = 0; i < 65536; i++) assert_int_equal(cw_f32_bits(f[i]), cw_f32_bits(cw_f16_to_f32(h[i])));
        kn->f32_to_f16(back, f, 65536);
        assert_memory_equal(h, back, sizeof h);
    }
}

static void all_finite_sees_every_place(void **state)
{
    (void)state;
    for (int isa = 0; isa < CW_ISA_COUNT; isa++) {
        const cw_kernels *kn = cw_kernels_get((cw_isa)isa);
        if (!kn) continue;
        float x[41];
        for (int i = 0; i < 41; i++) x[i] = i % 2 ? -3.4028235e38f : 1e-45f;
        assert_true(kn->all_finite(x, 41));
        for (int i = 0; i < 41; i++) {
            float keep = x[i];
            x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
            assert_false(kn->all_finite(x, 41));
            assert_true(kn->all_finite(x, i));
            x[i] = keep;
        }
    }
}

/* ---- attention ---- */

static void attention_is_the_same_everywhere(void **state)
{
    (void)state;
    enum { HEADS = 9, KEYS = 256, DIM = 576, LD = 580 };
    static const int dims[] = {16, 24, 61, 64, 128, 192, 512, 576}, keys[] = {1, 2, 3, 4, 5, 31, 255, 256};
    uint64_t rng = 45;
    float *q = kit_mem(HEADS * LD * 4), *kf = kit_mem(KEYS * LD * 4), *s1 = kit_mem(HEADS * KEYS * 4);
    float *s2 = kit_mem(HEADS * KEYS * 4), *o1 = kit_mem(HEADS * LD * 4), *o2 = kit_mem(HEADS * LD * 4);
    uint16_t *kh = kit_mem(KEYS * LD * 2);
    const cw_kernels *ref = cw_kernels_get(CW_ISA_SCALAR);
    fill(q, HEADS * LD, 4, &rng);
    fill(kf, KEYS * LD, 1, &rng);
    ref->f32_to_f16(kh, kf, KEYS * LD);
    for (size_t d = 0; d < CW_ARRAY_LEN(dims); d++) {
        for (size_t k = 0; k < CW_ARRAY_LEN(keys); k++) {
            for (int f16 = 0; f16 < 2; f16++) {
                int n_q = 1 + (int)((d + 3 * k) % HEADS);
                uint32_t type = f16 ? CW_TYPE_F16 : CW_TYPE_F32;
                const void *rows = f16 ? (const void *)kh : (const void *)kf;
                float m1[HEADS], m2[HEADS], l1[HEADS], l2[HEADS];
                ref->qk(s1, KEYS, q, LD, n_q, type, rows, LD, keys[k], dims[d], 0.07f);
                for (int h = 0; h < n_q; h++) l1[h] = ref->softmax_tile(s1 + h * KEYS, keys[k], &m1[h]);
                memcpy(o1, q, HEADS * LD * 4);
                ref->pv(o1, LD, s1, KEYS, n_q, type, rows, LD, keys[k], dims[d]);
                for (int v = 0; kit_vector(v); v++) {
                    const cw_kernels *kn = kit_vector(v);
                    kn->qk(s2, KEYS, q, LD, n_q, type, rows, LD, keys[k], dims[d], 0.07f);
                    for (int h = 0; h < n_q; h++) {
                        l2[h] = kn->softmax_tile(s2 + h * KEYS, keys[k], &m2[h]);
                        assert_memory_equal(s1 + h * KEYS, s2 + h * KEYS, (size_t)keys[k] * 4);
                    }
                    assert_memory_equal(m1, m2, (size_t)n_q * 4);
                    assert_memory_equal(l1, l2, (size_t)n_q * 4);
                    memcpy(o2, q, HEADS * LD * 4);
                    kn->pv(o2, LD, s2, KEYS, n_q, type, rows, LD, keys[k], dims[d]);
                    assert_memory_equal(o1, o2, HEADS * LD * 4);
                }
                if (KIT_SLOW && keys[k] > 31) break;
            }
        }
    }
    cw_free(q), cw_free(kf), cw_free(s1), cw_free(s2), cw_free(o1), cw_free(o2), cw_free(kh);
}

/* A head's scores and sums do not depend on the heads and keys computed beside it. */
static void attention_does_not_depend_on_company(void **state)
{
    (void)state;
    enum { HEADS = 7, KEYS = 37, DIM = 80 };
    uint64_t rng = 46;
    float q[HEADS * DIM], k[KEYS * DIM], all[HEADS * KEYS], o[HEADS * DIM] = {0}, one, row[DIM];
    fill(q, HEADS * DIM, 3, &rng);
    fill(k, KEYS * DIM, 3, &rng);
    for (int isa = 0; isa < CW_ISA_COUNT; isa++) {
        const cw_kernels *kn = cw_kernels_get((cw_isa)isa);
        if (!kn) continue;
        kn->qk(all, KEYS, q, DIM, HEADS, CW_TYPE_F32, k, DIM, KEYS, DIM, 0.3f);
        memset(o, 0, sizeof o);
        kn->pv(o, DIM, all, KEYS, HEADS, CW_TYPE_F32, k, DIM, KEYS, DIM);
        for (int h = 0; h < HEADS; h++) {
            for (int j = 0; j < KEYS; j++) {
                kn->qk(&one, 1, q + h * DIM, DIM, 1, CW_TYPE_F32, k + j * DIM, DIM, 1, DIM, 0.3f);
                assert_true(one == all[h * KEYS + j]);
                assert_true(one == 0.3f * kn->dot(q + h * DIM, k + j * DIM, DIM));
            }
            memset(row, 0, sizeof row);
            for (int j = 0; j < KEYS; j++)
                kn->pv(row, DIM, all + h * KEYS + j, 1, 1, CW_TYPE_F32, k + j * DIM, DIM, 1, DIM);
            assert_memory_equal(row, o + h * DIM, sizeof row);
        }
    }
}

static void tiles_merge_to_a_softmax(void **state)
{
    (void)state;
    enum { N = 700, TILE = 256, DIM = 24 };
    const cw_kernels *kn = cw_kernels_best();
    uint64_t rng = 47;
    static float s[N], v[N * DIM];
    float max = -INFINITY, sum = 0, o[DIM] = {0};
    double want[DIM] = {0}, total = 0, top = -1e30;
    fill(s, N, 30, &rng);
    fill(v, N * DIM, 1, &rng);
    for (int i = 0; i < N; i++) top = (double)s[i] > top ? (double)s[i] : top;
    for (int i = 0; i < N; i++) {
        total += exp((double)s[i] - top);
        for (int d = 0; d < DIM; d++) want[d] += exp((double)s[i] - top) * (double)v[i * DIM + d];
    }
    for (int at = 0; at < N; at += TILE) {
        int n = N - at < TILE ? N - at : TILE;
        float tile_max, o_t[DIM] = {0}, tile_sum = kn->softmax_tile(s + at, n, &tile_max);
        kn->pv(o_t, DIM, s + at, TILE, 1, CW_TYPE_F32, v + at * DIM, DIM, n, DIM);
        cw_softmax_merge(kn, &max, &sum, o, tile_max, tile_sum, o_t, DIM);
        if (at == 0) assert_memory_equal(o, o_t, sizeof o); /* the first tile comes through unchanged */
    }
    cw_softmax_finish(kn, o, sum, DIM);
    for (int d = 0; d < DIM; d++) assert_true(fabs((double)o[d] - want[d] / total) < 1e-6);
}

/* ---- rows ---- */

static void rows_round_to_f16_with_one_exponent(void **state)
{
    (void)state;
    const cw_kernels *kn = cw_kernels_get(CW_ISA_SCALAR);
    float y[3], back[3];
    uint16_t row[3];
    int8_t e;
    static const float tops[] = {1.0f,   1.9999999f, 0x1p14f,  0x1.fffp14f, 3e38f,
                                 1e-30f, 0x1p-114f,  65504.0f, -7.0f};
    for (size_t i = 0; i < CW_ARRAY_LEN(tops); i++) {
        y[0] = tops[i], y[1] = tops[i] * 0.3f, y[2] = -tops[i] * 0x1p-20f;
        assert_true(kn->row_to_f16(row, &e, y, 3));
        double scaled = ldexp(fabs((double)tops[i]), -e);
        assert_true(scaled >= 0x1p14 && scaled < 0x1p15);
        kn->row_from_f16(back, row, e, 3);
        for (int j = 0; j < 3; j++) {
            /* Half an ulp of 11 bits, or half of the smallest subnormal. */
            double bound = fmax(fabs((double)y[j]) * 0x1p-11, ldexp(0x1p-25, e));
            assert_true(fabs((double)back[j] - (double)y[j]) <= bound);
        }
    }
    /* Exact values: amax 1.5 -> e = -14, 1.5 * 2^14 = 24576. */
    y[0] = 1.5f, y[1] = -0x1p-39f, y[2] = 0x1.8p-39f; /* 2^-25 ties to zero; 1.5 * 2^-25 rounds up to 2^-24 */
    assert_true(kn->row_to_f16(row, &e, y, 3));
    assert_int_equal(e, -14);
    assert_int_equal(row[0], 0x7600);
    assert_int_equal(row[1], 0x8000);
    assert_int_equal(row[2], 1);
    /* Zero rows. */
    y[0] = 0.0f, y[1] = -0.0f, y[2] = 0.0f;
    assert_true(kn->row_to_f16(row, &e, y, 3));
    assert_int_equal(e, 0);
    assert_int_equal(row[0], 0);
    /* Too small for an int8 exponent: e stays at -128, the values lose bits but not their way. */
    y[0] = 0x1p-120f, y[1] = 0x1p-149f, y[2] = 0;
    assert_true(kn->row_to_f16(row, &e, y, 3));
    assert_int_equal(e, -128);
    kn->row_from_f16(back, row, e, 3);
    assert_true(back[0] == 0x1p-120f && back[1] == 0x1p-149f);
    /* Not finite, or not finite after rounding up. */
    static const float bad[] = {NAN, INFINITY, -INFINITY, 0x1.ffep127f, 3.4028235e38f};
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++) {
        y[0] = 1, y[1] = bad[i], y[2] = 2;
        for (int isa = 0; isa < CW_ISA_COUNT; isa++)
            if (cw_kernels_get((cw_isa)isa))
                assert_false(cw_kernels_get((cw_isa)isa)->row_to_f16(row, &e, y, 3));
    }
    y[1] = 0x1.ffdffep127f;
    assert_true(kn->row_to_f16(row, &e, y, 3));
    kn->row_from_f16(back, row, e, 3);
    assert_true(back[1] < INFINITY);
}

static void rows_and_combine_are_the_same_everywhere(void **state)
{
    (void)state;
    uint64_t rng = 48;
    static const float scales[] = {1.0f, 1e-30f, 3e38f, 1e-42f, 1e5f, 0x1p-113f, 0x1p-115f};
    float *x = kit_mem(MAX * 4), *y1 = kit_mem(MAX * 4), *y2 = kit_mem(MAX * 4);
    uint16_t *r1 = kit_mem(MAX * 2), *r2 = kit_mem(MAX * 2);
    const cw_kernels *ref = cw_kernels_get(CW_ISA_SCALAR);
    for (size_t l = 0; l < CW_ARRAY_LEN(lengths); l++) {
        for (size_t s = 0; s < CW_ARRAY_LEN(scales); s++) {
            int n = lengths[l];
            int8_t e1, e2;
            fill(x, n, scales[s], &rng);
            assert_true(ref->row_to_f16(r1, &e1, x, n));
            for (int v = 0; kit_vector(v); v++) {
                const cw_kernels *kn = kit_vector(v);
                assert_true(kn->row_to_f16(r2, &e2, x, n));
                assert_int_equal(e1, e2);
                assert_memory_equal(r1, r2, (size_t)n * 2);
                ref->row_from_f16(y1, r1, e1, n);
                kn->row_from_f16(y2, r1, e1, n);
                assert_memory_equal(y1, y2, (size_t)n * 4);
                for (int i = 0; i < n; i++) assert_true(y1[i] == ldexpf(cw_f16_to_f32(r1[i]), e1));
                memcpy(y1, x, (size_t)n * 4);
                memcpy(y2, x, (size_t)n * 4);
                ref->combine_f16(y1, 0.37f, r1, e1, n);
                kn->combine_f16(y2, 0.37f, r1, e1, n);
                assert_true(kit_same(y1, y2, n));
                for (int i = 0; i < n; i++) {
                    float want = fmaf(0.37f, ldexpf(cw_f16_to_f32(r1[i]), e1), x[i]);
                    assert_true(kit_same(&want, &y1[i], 1));
                }
            }
        }
    }
    cw_free(x), cw_free(y1), cw_free(y2), cw_free(r1), cw_free(r2);
}

int main(void)
{
    cw_fp_setup();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a8_follows_its_definition),
        cmocka_unit_test(a8_reports_values_that_are_not_finite),
        cmocka_unit_test(a8_is_the_same_everywhere),
        cmocka_unit_test(a8_rows_read_back_are_the_same_everywhere),
        cmocka_unit_test(received_a8_rows_are_checked),
        cmocka_unit_test(sums_follow_sixteen_lanes),
        cmocka_unit_test(rms_norm_and_silu_mean_what_they_should),
        cmocka_unit_test(simple_operations_are_the_same_everywhere),
        cmocka_unit_test(f16_conversion_is_exact_for_every_half),
        cmocka_unit_test(all_finite_sees_every_place),
        cmocka_unit_test(attention_is_the_same_everywhere),
        cmocka_unit_test(attention_does_not_depend_on_company),
        cmocka_unit_test(tiles_merge_to_a_softmax),
        cmocka_unit_test(rows_round_to_f16_with_one_exponent),
        cmocka_unit_test(rows_and_combine_are_the_same_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
