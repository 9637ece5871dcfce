/*
 * The scalar reference of everything but the matrix products: plain loops, in the order docs/NUMERICS.md
 * prescribes. This file is the definition; the vector files must match it bit for bit.
 */
#include "ref.h"
#include "cw/bytes.h"

/* 16 virtual lanes folded in halves: 8, 4, 2, 1. */
static float fold(float lane[16])
{
    for (int w = 8; w >= 1; w /= 2)
        for (int i = 0; i < w; i++) lane[i] = lane[i] + lane[i + w];
    return lane[0];
}

/* Element i goes to lane i mod 16; the row is filled with +0 to a multiple of 16. */
static float ref_dot(const float *a, const float *b, int64_t n)
{
    float lane[16] = {0};
    for (int64_t i = 0; i < (n + 15) / 16 * 16; i++)
        lane[i % 16] = i < n ? fmaf(a[i], b[i], lane[i % 16]) : fmaf(0.0f, 0.0f, lane[i % 16]);
    return fold(lane);
}

static float ref_sum(const float *x, int64_t n)
{
    float lane[16] = {0};
    for (int64_t i = 0; i < (n + 15) / 16 * 16; i++) lane[i % 16] = lane[i % 16] + (i < n ? x[i] : 0.0f);
    return fold(lane);
}

static bool ref_all_finite(const float *x, int64_t n)
{
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad |= (cw_f32_bits(x[i]) & 0x7f800000) == 0x7f800000;
    return !bad;
}

static bool ref_a8_quantise(cw_a8 *a, int32_t row, const float *x)
{
    int8_t *q = cw_a8_q(a, row);
    int64_t at = row * (a->ld / 32);
    bool good = true;
    for (int64_t b = 0; b < a->k / 32; b++, x += 32, q += 32, at++) {
        float amax = 0;
        for (int i = 0; i < 32; i++) amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
        bool finite = ref_all_finite(x, 32);
        good = good && finite;
        bool zero = !finite || amax < 0x1p-100f;
        float s = zero ? 0.0f : amax / 127.0f, inv = zero ? 0.0f : 127.0f / amax;
        int32_t lo = 0, sum = 0;
        for (int i = 0; i < 32; i++) {
            float t = zero ? CW_ROUND_MAGIC : x[i] * inv + CW_ROUND_MAGIC;
            int32_t v = (int32_t)(t - CW_ROUND_MAGIC);
            q[i] = (int8_t)v;
            sum += v;
            if (i < 16) lo += v;
        }
        a->s[at] = s;
        a->lo[at] = lo;
        a->sum[at] = sum;
        a->ssum[at] = s * (float)sum;
    }
    return good;
}

static void ref_rms_norm(float *y, const float *x, const float *w, int64_t n, float eps)
{
    float inv = 1.0f / sqrtf(ref_dot(x, x, n) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) {
        float v = x[i] * inv;
        y[i] = w ? v * w[i] : v;
    }
}

static void ref_exp(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = cw_expf(x[i]);
}

static void ref_silu_mul(float *y, const float *g, const float *u, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = g[i] / (1.0f + cw_expf(-g[i])) * u[i];
}

static void ref_add(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = y[i] + x[i];
}

static void ref_f32_to_f16(uint16_t *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = cw_f32_to_f16(x[i]);
}

static void ref_f16_to_f32(float *y, const uint16_t *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = cw_f16_to_f32(x[i]);
}

static void ref_a8_to_f32(float *y, const int8_t *q, const float *s, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = s[i / 32] * (float)q[i];
}

static void ref_div(float *y, float d, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = y[i] / d;
}

/* Element i of row j of a cache. */
static float cache_at(uint32_t kv_type, const void *rows, int64_t ld, int j, int i)
{
    int64_t at = j * ld + i;
    return kv_type == CW_TYPE_F32 ? ((const float *)rows)[at] : cw_f16_to_f32(((const uint16_t *)rows)[at]);
}

static void ref_qk(float *s, int64_t lds, const float *q, int64_t ldq, int n_q, uint32_t kv_type,
                   const void *keys, int64_t ldk, int n_keys, int dim, float scale)
{
    for (int h = 0; h < n_q; h++) {
        for (int j = 0; j < n_keys; j++) {
            float lane[16] = {0};
            for (int i = 0; i < (dim + 15) / 16 * 16; i++)
                lane[i % 16] = i < dim
                                   ? fmaf(q[h * ldq + i], cache_at(kv_type, keys, ldk, j, i), lane[i % 16])
                                   : fmaf(0.0f, 0.0f, lane[i % 16]);
            s[h * lds + j] = scale * fold(lane);
        }
    }
}

static float ref_softmax_tile(float *s, int n, float *max)
{
    float lane[16];
    for (int i = 0; i < 16; i++) lane[i] = -INFINITY;
    /* max(a, b) is a > b ? a : b throughout, so that signed zeros come out the same everywhere. */
    for (int i = 0; i < (n + 15) / 16 * 16; i++) {
        float v = i < n ? s[i] : -INFINITY;
        lane[i % 16] = lane[i % 16] > v ? lane[i % 16] : v;
    }
    for (int w = 8; w >= 1; w /= 2)
        for (int i = 0; i < w; i++) lane[i] = lane[i] > lane[i + w] ? lane[i] : lane[i + w];
    *max = lane[0];
    for (int i = 0; i < n; i++) s[i] = cw_expf(s[i] - *max);
    return ref_sum(s, n);
}

static void ref_pv(float *o, int64_t ldo, const float *p, int64_t ldp, int n_q, uint32_t kv_type,
                   const void *v, int64_t ldv, int n_keys, int dim)
{
    for (int h = 0; h < n_q; h++)
        for (int j = 0; j < n_keys; j++)
            for (int r = 0; r < dim; r++)
                o[h * ldo + r] = fmaf(p[h * ldp + j], cache_at(kv_type, v, ldv, j, r), o[h * ldo + r]);
}

static bool ref_row_to_f16(uint16_t *row, int8_t *e, const float *y, int64_t n)
{
    float amax = 0;
    for (int64_t i = 0; i < n; i++) amax = fabsf(y[i]) > amax ? fabsf(y[i]) : amax;
    if (!ref_all_finite(y, n) || amax >= CW_ROW_LIMIT) return false;
    /* 2^-e may lie outside f32: two factors. Where the first product rounds, the value is far below f16's
     * range. */
    int x = cw_row_exponent(amax), t = -x;
    float s1 = cw_pow2f(t >> 1), s2 = cw_pow2f(t - (t >> 1));
    for (int64_t i = 0; i < n; i++) row[i] = cw_f32_to_f16(y[i] * s1 * s2);
    *e = (int8_t)x;
    return true;
}

static void ref_row_from_f16(float *y, const uint16_t *row, int e, int64_t n)
{
    float s1 = cw_pow2f(e >> 1), s2 = cw_pow2f(e - (e >> 1));
    for (int64_t i = 0; i < n; i++) y[i] = cw_f16_to_f32(row[i]) * s1 * s2;
}

static void ref_combine_f16(float *y, float w, const uint16_t *row, int e, int64_t n)
{
    float s1 = cw_pow2f(e >> 1), s2 = cw_pow2f(e - (e >> 1));
    for (int64_t i = 0; i < n; i++) y[i] = fmaf(w, cw_f16_to_f32(row[i]) * s1 * s2, y[i]);
}

static void ref_combine_f32(float *y, float w, const float *row, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = fmaf(w, row[i], y[i]);
}

static void ref_merge(float *o, float a, const float *o_t, float b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) o[i] = fmaf(o_t[i], b, o[i] * a);
}

const cw_kernels cw_kernels_scalar = {
    .isa = CW_ISA_SCALAR,
    .name = "scalar",
    .matmul = cw_ref_matmul,
    .a8_quantise = ref_a8_quantise,
    .rms_norm = ref_rms_norm,
    .dot = ref_dot,
    .sum = ref_sum,
    .exp = ref_exp,
    .silu_mul = ref_silu_mul,
    .add = ref_add,
    .f32_to_f16 = ref_f32_to_f16,
    .f16_to_f32 = ref_f16_to_f32,
    .a8_to_f32 = ref_a8_to_f32,
    .div = ref_div,
    .qk = ref_qk,
    .softmax_tile = ref_softmax_tile,
    .pv = ref_pv,
    .row_to_f16 = ref_row_to_f16,
    .row_from_f16 = ref_row_from_f16,
    .combine_f16 = ref_combine_f16,
    .merge = ref_merge,
    .combine_f32 = ref_combine_f32,
    .all_finite = ref_all_finite,
};
