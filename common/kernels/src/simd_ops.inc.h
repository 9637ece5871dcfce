/*
 * Everything but the matrix products, once for all vector instruction sets. The including file defines v16
 * (16 f32 lanes, in as many registers as it takes) and its operations, and OPS(name) to name the functions:
 *
 *   v16_zero v16_set1 v16_load v16_store              the obvious
 *   v16_load_n v16_store_n                            the first n (0..16) lanes; loads fill with +0
 *   v16_from_f16 v16_from_f16_n v16_to_f16 v16_to_f16_n
 *   v16_add v16_sub v16_mul v16_div v16_abs
 *   v16_fma(a, b, c) = a * b + c, v16_fnma(a, b, c) = -(a * b) + c, rounded once
 *   v16_max(a, b) = a > b ? a : b
 *   v16_fold_add v16_fold_max                         halves: 8, 4, 2, 1
 *   v16_pow2_of_magic(t, s1, s2)                      the factors of 2^n from t = n + CW_ROUND_MAGIC
 *   v16_exp_limits(x, y)                              0 below CW_EXP_MIN, +inf above CW_EXP_MAX, else y
 *   v16_finite(v)                                     all lanes finite
 *   v16_to_i8(q, lo, hi, sum_lo, sum)                 32 integral values to int8, with their sums
 *   v16_from_i8(q)                                    16 int8 as they are
 *   QK_H, QK_K, PV_H, PV_R                            tile sizes that fit the registers
 *   store_folds(s, lds, acc, scale)                   scale * fold of a full tile's sums, acc [QK_H][QK_K]
 *
 * The order of operations is ref_ops.c's, line by line.
 */

static inline v16 v16_exp(v16 x)
{
    v16 t = v16_fma(x, v16_set1(CW_EXP_LOG2E), v16_set1(CW_ROUND_MAGIC));
    v16 n = v16_sub(t, v16_set1(CW_ROUND_MAGIC));
    v16 r = v16_fnma(n, v16_set1(CW_EXP_LN2_HI), x);
    r = v16_fnma(n, v16_set1(CW_EXP_LN2_LO), r);
    v16 p = v16_set1(CW_EXP_C4);
    p = v16_fma(p, r, v16_set1(CW_EXP_C3));
    p = v16_fma(p, r, v16_set1(CW_EXP_C2));
    p = v16_fma(p, r, v16_set1(CW_EXP_C1));
    p = v16_fma(p, r, v16_set1(CW_EXP_C0));
    p = v16_add(v16_fma(p, v16_mul(r, r), r), v16_set1(1.0f));
    v16 s1, s2;
    v16_pow2_of_magic(t, &s1, &s2);
    return v16_exp_limits(x, v16_mul(v16_mul(p, s1), s2));
}

static int left_of(int64_t n, int64_t i)
{
    return n - i < 16 ? (int)(n - i) : 16;
}

/* for (full vectors) BODY with a constant count, then once for the tail: the compiler drops the masks of the
 * former. */
#define FOR_VECTORS(i, n, count, BODY)                                                                       \
    do {                                                                                                     \
        int64_t i = 0;                                                                                       \
        for (; i + 16 <= (n); i += 16) {                                                                     \
            enum { count = 16 };                                                                             \
            BODY                                                                                             \
        }                                                                                                    \
        if (i < (n)) {                                                                                       \
            const int count = left_of((n), i);                                                               \
            BODY                                                                                             \
        }                                                                                                    \
    } while (0)

static inline v16 load(const float *p, int n)
{
    return n == 16 ? v16_load(p) : v16_load_n(p, n);
}
static inline void store(float *p, v16 v, int n)
{
    if (n == 16)
        v16_store(p, v);
    else
        v16_store_n(p, v, n);
}
static inline v16 load_f16(const uint16_t *p, int n)
{
    return n == 16 ? v16_from_f16(p) : v16_from_f16_n(p, n);
}
static inline void store_f16(uint16_t *p, v16 v, int n)
{
    if (n == 16)
        v16_to_f16(p, v);
    else
        v16_to_f16_n(p, v, n);
}

static float OPS(dot)(const float *a, const float *b, int64_t n)
{
    v16 acc = v16_zero();
    FOR_VECTORS(i, n, c, { acc = v16_fma(load(a + i, c), load(b + i, c), acc); });
    return v16_fold_add(acc);
}

static float OPS(sum)(const float *x, int64_t n)
{
    v16 acc = v16_zero();
    FOR_VECTORS(i, n, c, { acc = v16_add(acc, load(x + i, c)); });
    return v16_fold_add(acc);
}

static bool OPS(all_finite)(const float *x, int64_t n)
{
    bool good = true;
    FOR_VECTORS(i, n, c, { good = v16_finite(load(x + i, c)) && good; });
    return good;
}

static bool OPS(a8_quantise)(cw_a8 *a, int32_t row, const float *x)
{
    int8_t *q = cw_a8_q(a, row);
    int64_t at = row * (a->ld / 32);
    bool good = true;
    for (int64_t b = 0; b < a->k / 32; b++, x += 32, q += 32, at++) {
        v16 lo = v16_load(x), hi = v16_load(x + 16);
        bool finite = v16_finite(lo) && v16_finite(hi);
        good = good && finite;
        float amax = v16_fold_max(v16_max(v16_abs(lo), v16_abs(hi)));
        bool zero = !finite || amax < 0x1p-100f;
        float s = zero ? 0.0f : amax / 127.0f;
        v16 inv = v16_set1(zero ? 0.0f : 127.0f / amax), magic = v16_set1(CW_ROUND_MAGIC);
        if (!finite) lo = hi = v16_zero();
        lo = v16_sub(v16_add(v16_mul(lo, inv), magic), magic);
        hi = v16_sub(v16_add(v16_mul(hi, inv), magic), magic);
        int32_t sum_lo, sum;
        v16_to_i8(q, lo, hi, &sum_lo, &sum);
        a->s[at] = s;
        a->lo[at] = sum_lo;
        a->sum[at] = sum;
        a->ssum[at] = s * (float)sum;
    }
    return good;
}

static void OPS(rms_norm)(float *y, const float *x, const float *w, int64_t n, float eps)
{
    v16 inv = v16_set1(1.0f / sqrtf(OPS(dot)(x, x, n) / (float)n + eps));
    if (w)
        FOR_VECTORS(i, n, c, { store(y + i, v16_mul(v16_mul(load(x + i, c), inv), load(w + i, c)), c); });
    else
        FOR_VECTORS(i, n, c, { store(y + i, v16_mul(load(x + i, c), inv), c); });
}

static void OPS(exp)(float *y, const float *x, int64_t n)
{
    FOR_VECTORS(i, n, c, { store(y + i, v16_exp(load(x + i, c)), c); });
}

static void OPS(silu_mul)(float *y, const float *g, const float *u, int64_t n)
{
    FOR_VECTORS(i, n, c, {
        v16 v = load(g + i, c);
        v16 minus = v16_mul(v, v16_set1(-1.0f));
        v16 s = v16_div(v, v16_add(v16_set1(1.0f), v16_exp(minus)));
        store(y + i, v16_mul(s, load(u + i, c)), c);
    });
}

static void OPS(add)(float *y, const float *x, int64_t n)
{
    FOR_VECTORS(i, n, c, { store(y + i, v16_add(load(y + i, c), load(x + i, c)), c); });
}

static void OPS(f32_to_f16)(uint16_t *y, const float *x, int64_t n)
{
    FOR_VECTORS(i, n, c, { store_f16(y + i, load(x + i, c), c); });
}

static void OPS(f16_to_f32)(float *y, const uint16_t *x, int64_t n)
{
    FOR_VECTORS(i, n, c, { store(y + i, load_f16(x + i, c), c); });
}

static void OPS(a8_to_f32)(float *y, const int8_t *q, const float *s, int64_t n)
{
    for (int64_t b = 0; b < n / 32; b++, y += 32, q += 32) {
        v16 scale = v16_set1(s[b]);
        v16_store(y, v16_mul(scale, v16_from_i8(q)));
        v16_store(y + 16, v16_mul(scale, v16_from_i8(q + 16)));
    }
}

static void OPS(div)(float *y, float d, int64_t n)
{
    v16 dv = v16_set1(d);
    FOR_VECTORS(i, n, c, { store(y + i, v16_div(load(y + i, c), dv), c); });
}

/* 16 (or c) values of a cache row; f16 is a constant at every call, so one of the loads remains. */
static inline v16 load_cache(const void *rows, bool f16, int64_t at, int c)
{
    return f16 ? load_f16((const uint16_t *)rows + at, c) : load((const float *)rows + at, c);
}

static ALWAYS_INLINE void qk_tile(float *s, int64_t lds, const float *q, int64_t ldq, const int nh, bool f16,
                                  const void *keys, int64_t ldk, int64_t j0, const int nk, int dim,
                                  float scale)
{
    v16 acc[QK_H][QK_K];
#pragma GCC unroll 8
    for (int h = 0; h < nh; h++)
#pragma GCC unroll 8
        for (int j = 0; j < nk; j++) acc[h][j] = v16_zero();
    FOR_VECTORS(i, dim, c, {
        v16 k[QK_K];
        _Pragma("GCC unroll 8") for (int j = 0; j < nk; j++) k[j] =
            load_cache(keys, f16, (j0 + j) * ldk + i, c);
        _Pragma("GCC unroll 8") for (int h = 0; h < nh; h++)
        {
            v16 v = load(q + h * ldq + i, c);
            _Pragma("GCC unroll 8") for (int j = 0; j < nk; j++) acc[h][j] = v16_fma(v, k[j], acc[h][j]);
        }
    });
    if (nh == QK_H && nk == QK_K) {
        store_folds(s + j0, lds, acc, scale);
        return;
    }
    for (int h = 0; h < nh; h++)
        for (int j = 0; j < nk; j++) s[h * lds + j0 + j] = scale * v16_fold_add(acc[h][j]);
}

/* Keys that stay in the first-level cache while all queries go by. */
enum { QK_KEYS = 8 };

static ALWAYS_INLINE void qk_heads(float *s, int64_t lds, const float *q, int64_t ldq, const int nh, bool f16,
                                   const void *keys, int64_t ldk, int from, int to, int dim, float scale)
{
    int j = from;
    for (; j + QK_K <= to; j += QK_K) qk_tile(s, lds, q, ldq, nh, f16, keys, ldk, j, QK_K, dim, scale);
    for (; j < to; j++) qk_tile(s, lds, q, ldq, nh, f16, keys, ldk, j, 1, dim, scale);
}

static ALWAYS_INLINE void qk_of(float *s, int64_t lds, const float *q, int64_t ldq, int n_q, const bool f16,
                                const void *keys, int64_t ldk, int n_keys, int dim, float scale)
{
    for (int j = 0; j < n_keys; j += QK_KEYS) {
        int to = n_keys - j < QK_KEYS ? n_keys : j + QK_KEYS, h = 0;
        for (; h + QK_H <= n_q; h += QK_H)
            qk_heads(s + h * lds, lds, q + h * ldq, ldq, QK_H, f16, keys, ldk, j, to, dim, scale);
        for (; h < n_q; h++)
            qk_heads(s + h * lds, lds, q + h * ldq, ldq, 1, f16, keys, ldk, j, to, dim, scale);
    }
}

static void OPS(qk)(float *s, int64_t lds, const float *q, int64_t ldq, int n_q, uint32_t kv_type,
                    const void *keys, int64_t ldk, int n_keys, int dim, float scale)
{
    if (kv_type == CW_TYPE_F16)
        qk_of(s, lds, q, ldq, n_q, true, keys, ldk, n_keys, dim, scale);
    else
        qk_of(s, lds, q, ldq, n_q, false, keys, ldk, n_keys, dim, scale);
}

static float OPS(softmax_tile)(float *s, int n, float *max)
{
    /* A short vector is filled with -inf, as if its lanes were not there. */
    v16 m = v16_set1(-INFINITY);
    int i = 0;
    for (; i + 16 <= n; i += 16) m = v16_max(m, v16_load(s + i));
    if (i < n) {
        float tail[16];
        for (int t = 0; t < 16; t++) tail[t] = i + t < n ? s[i + t] : -INFINITY;
        m = v16_max(m, v16_load(tail));
    }
    *max = v16_fold_max(m);
    v16 mv = v16_set1(*max);
    FOR_VECTORS(j, n, c, { store(s + j, v16_exp(v16_sub(load(s + j, c), mv)), c); });
    return OPS(sum)(s, n);
}

/* nr vectors of nh rows of o over all keys. */
static ALWAYS_INLINE void pv_tile(float *o, int64_t ldo, const float *p, int64_t ldp, const int nh, bool f16,
                                  const void *v, int64_t ldv, int n_keys, int64_t r0, const int nr,
                                  const int c)
{
    v16 acc[PV_H][PV_R];
#pragma GCC unroll 8
    for (int h = 0; h < nh; h++)
#pragma GCC unroll 8
        for (int r = 0; r < nr; r++) acc[h][r] = load(o + h * ldo + r0 + 16 * r, c);
    for (int j = 0; j < n_keys; j++) {
        v16 x[PV_R];
#pragma GCC unroll 8
        for (int r = 0; r < nr; r++) x[r] = load_cache(v, f16, j * ldv + r0 + 16 * r, c);
#pragma GCC unroll 8
        for (int h = 0; h < nh; h++) {
            v16 w = v16_set1(p[h * ldp + j]);
#pragma GCC unroll 8
            for (int r = 0; r < nr; r++) acc[h][r] = v16_fma(w, x[r], acc[h][r]);
        }
    }
#pragma GCC unroll 8
    for (int h = 0; h < nh; h++)
#pragma GCC unroll 8
        for (int r = 0; r < nr; r++) store(o + h * ldo + r0 + 16 * r, acc[h][r], c);
}

/* Keys whose values stay in the first-level cache, PV_R vectors of each, while all rows of p go by. */
enum { PV_KEYS = 128 };

static ALWAYS_INLINE void pv_heads(float *o, int64_t ldo, const float *p, int64_t ldp, int n_q,
                                   const bool f16, const void *v, int64_t ldv, int n_keys, int64_t r0,
                                   const int nr, const int c)
{
    int h = 0;
    for (; h + PV_H <= n_q; h += PV_H)
        pv_tile(o + h * ldo, ldo, p + h * ldp, ldp, PV_H, f16, v, ldv, n_keys, r0, nr, c);
    for (; h < n_q; h++) pv_tile(o + h * ldo, ldo, p + h * ldp, ldp, 1, f16, v, ldv, n_keys, r0, nr, c);
}

static ALWAYS_INLINE void pv_of(float *o, int64_t ldo, const float *p, int64_t ldp, int n_q, const bool f16,
                                const void *v, int64_t ldv, int n_keys, int dim)
{
    for (int j = 0; j < n_keys; j += PV_KEYS) {
        int n = n_keys - j < PV_KEYS ? n_keys - j : PV_KEYS, r = 0;
        const uint8_t *rows = (const uint8_t *)v + j * ldv * (f16 ? 2 : 4);
        for (; r + 16 * PV_R <= dim; r += 16 * PV_R)
            pv_heads(o, ldo, p + j, ldp, n_q, f16, rows, ldv, n, r, PV_R, 16);
        for (; r + 16 <= dim; r += 16) pv_heads(o, ldo, p + j, ldp, n_q, f16, rows, ldv, n, r, 1, 16);
        if (r < dim) pv_heads(o, ldo, p + j, ldp, n_q, f16, rows, ldv, n, r, 1, dim - r);
    }
}

static void OPS(pv)(float *o, int64_t ldo, const float *p, int64_t ldp, int n_q, uint32_t kv_type,
                    const void *v, int64_t ldv, int n_keys, int dim)
{
    if (kv_type == CW_TYPE_F16)
        pv_of(o, ldo, p, ldp, n_q, true, v, ldv, n_keys, dim);
    else
        pv_of(o, ldo, p, ldp, n_q, false, v, ldv, n_keys, dim);
}

static bool OPS(row_to_f16)(uint16_t *row, int8_t *e, const float *y, int64_t n)
{
    v16 m = v16_zero();
    bool good = true;
    FOR_VECTORS(i, n, c, {
        v16 v = load(y + i, c);
        good = v16_finite(v) && good;
        m = v16_max(m, v16_abs(v));
    });
    float amax = v16_fold_max(m);
    if (!good || amax >= CW_ROW_LIMIT) return false;
    int x = cw_row_exponent(amax), t = -x;
    v16 s1 = v16_set1(cw_pow2f(t >> 1)), s2 = v16_set1(cw_pow2f(t - (t >> 1)));
    FOR_VECTORS(i, n, c, { store_f16(row + i, v16_mul(v16_mul(load(y + i, c), s1), s2), c); });
    *e = (int8_t)x;
    return true;
}

static void OPS(row_from_f16)(float *y, const uint16_t *row, int e, int64_t n)
{
    v16 s1 = v16_set1(cw_pow2f(e >> 1)), s2 = v16_set1(cw_pow2f(e - (e >> 1)));
    FOR_VECTORS(i, n, c, { store(y + i, v16_mul(v16_mul(load_f16(row + i, c), s1), s2), c); });
}

static void OPS(combine_f16)(float *y, float w, const uint16_t *row, int e, int64_t n)
{
    v16 s1 = v16_set1(cw_pow2f(e >> 1)), s2 = v16_set1(cw_pow2f(e - (e >> 1))), wv = v16_set1(w);
    FOR_VECTORS(i, n, c, {
        v16 v = v16_mul(v16_mul(load_f16(row + i, c), s1), s2);
        store(y + i, v16_fma(wv, v, load(y + i, c)), c);
    });
}

static void OPS(merge)(float *o, float a, const float *o_t, float b, int64_t n)
{
    v16 av = v16_set1(a), bv = v16_set1(b);
    FOR_VECTORS(i, n, c, { store(o + i, v16_fma(load(o_t + i, c), bv, v16_mul(load(o + i, c), av)), c); });
}

static void OPS(combine_f32)(float *y, float w, const float *row, int64_t n)
{
    v16 wv = v16_set1(w);
    FOR_VECTORS(i, n, c, { store(y + i, v16_fma(wv, load(row + i, c), load(y + i, c)), c); });
}

#define OPS_TABLE                                                                                            \
    .a8_quantise = OPS(a8_quantise), .rms_norm = OPS(rms_norm), .dot = OPS(dot), .sum = OPS(sum),            \
    .exp = OPS(exp), .silu_mul = OPS(silu_mul), .add = OPS(add), .f32_to_f16 = OPS(f32_to_f16),              \
    .f16_to_f32 = OPS(f16_to_f32), .a8_to_f32 = OPS(a8_to_f32), .div = OPS(div), .qk = OPS(qk),              \
    .softmax_tile = OPS(softmax_tile), .pv = OPS(pv), .row_to_f16 = OPS(row_to_f16),                         \
    .row_from_f16 = OPS(row_from_f16), .combine_f16 = OPS(combine_f16), .merge = OPS(merge),                 \
    .combine_f32 = OPS(combine_f32), .all_finite = OPS(all_finite)
