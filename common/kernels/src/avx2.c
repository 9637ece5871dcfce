/*
 * AVX2 with FMA and F16C: half a panel at a time. Compiled with those flags only; dispatch.c checks the CPU.
 * vpmaddubsw adds two products of an unsigned and a signed byte into 16 bits and saturates: codes of up to 6
 * bits are safe as they are (2 * 63 * 127), 8-bit codes would not be when offset by 128 (2 * 255 * 127), so
 * they are taken as int8 and multiplied as |w| with x carrying w's sign (2 * 128 * 127 fits, x is never
 * -128).
 */
#include "internal.h"
#include "ref.h"
#include "cw/bytes.h"

#include <immintrin.h>
#include <string.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))

/* clang-format off: a verb a line */
/* 16 f32 lanes in two registers: a holds lanes 0..7. */
typedef struct {
    __m256 a, b;
} v16;
#define OPS(name) avx2_##name
enum { QK_H = 2, QK_K = 2, PV_H = 2, PV_R = 2 };

static inline v16 v16_zero(void)
{
    return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
static inline v16 v16_set1(float x)
{
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline v16 v16_load(const float *p)
{
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline v16 v16_load_n(const float *p, int n)
{
    float t[16] = {0};
    memcpy(t, p, (size_t)n * 4);
    return v16_load(t);
}
static inline void v16_store(float *p, v16 v)
{
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
static inline void v16_store_n(float *p, v16 v, int n)
{
    float t[16];
    v16_store(t, v);
    memcpy(p, t, (size_t)n * 4);
}
static inline v16 v16_from_i8(const int8_t *p)
{
    return (v16){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))),
                 _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))))};
}
static inline v16 v16_from_f16(const uint16_t *p)
{
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
static inline v16 v16_from_f16_n(const uint16_t *p, int n)
{
    uint16_t t[16] = {0};
    memcpy(t, p, (size_t)n * 2);
    return v16_from_f16(t);
}
static inline void v16_to_f16(uint16_t *p, v16 v)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline void v16_to_f16_n(uint16_t *p, v16 v, int n)
{
    uint16_t t[16];
    v16_to_f16(t, v);
    memcpy(p, t, (size_t)n * 2);
}

#define EACH(name, op)                                                                                       \
    static inline v16 name(v16 x, v16 y)                                                                     \
    {                                                                                                        \
        return (v16){op(x.a, y.a), op(x.b, y.b)};                                                            \
    }
EACH(v16_add, _mm256_add_ps)
EACH(v16_sub, _mm256_sub_ps)
EACH(v16_mul, _mm256_mul_ps)
EACH(v16_div, _mm256_div_ps)
EACH(v16_max, _mm256_max_ps)
static inline v16 v16_fma(v16 x, v16 y, v16 z)
{
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline v16 v16_fnma(v16 x, v16 y, v16 z)
{
    return (v16){_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
static inline v16 v16_abs(v16 x)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}

#define FOLD(op, v)                                                                                          \
    __m256 h8 = op##256(v.a, v.b);                                                                           \
    __m128 h4 = op##128(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));                           \
    __m128 h2 = op##128(h4, _mm_movehl_ps(h4, h4));                                                          \
    return _mm_cvtss_f32(op##128(h2, _mm_movehdup_ps(h2)))
#define ADD256 _mm256_add_ps
#define ADD128 _mm_add_ps
#define MAX256 _mm256_max_ps
#define MAX128 _mm_max_ps
static inline float v16_fold_add(v16 v)
{
    FOLD(ADD, v);
}
static inline float v16_fold_max(v16 v)
{
    FOLD(MAX, v);
}
static inline void store_folds(float *s, int64_t lds, v16 acc[QK_H][QK_K], float scale)
{
    for (int h = 0; h < QK_H; h++)
        for (int j = 0; j < QK_K; j++) s[h * lds + j] = scale * v16_fold_add(acc[h][j]);
}

static inline void pow2_half(__m256 t, __m256 *s1, __m256 *s2)
{
    __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(_mm256_set1_ps(CW_ROUND_MAGIC)));
    __m256i n1 = _mm256_srai_epi32(n, 1), bias = _mm256_set1_epi32(127);
    *s1 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n1, bias), 23));
    *s2 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, n1), bias), 23));
}
static inline void v16_pow2_of_magic(v16 t, v16 *s1, v16 *s2)
{
    pow2_half(t.a, &s1->a, &s2->a);
    pow2_half(t.b, &s1->b, &s2->b);
}

static inline __m256 exp_limits_half(__m256 x, __m256 y)
{
    __m256 below = _mm256_cmp_ps(x, _mm256_set1_ps(CW_EXP_MIN), _CMP_LT_OQ);
    __m256 above = _mm256_cmp_ps(x, _mm256_set1_ps(CW_EXP_MAX), _CMP_GT_OQ);
    return _mm256_blendv_ps(_mm256_andnot_ps(below, y), _mm256_set1_ps(INFINITY), above);
}
static inline v16 v16_exp_limits(v16 x, v16 y)
{
    return (v16){exp_limits_half(x.a, y.a), exp_limits_half(x.b, y.b)};
}

static inline bool v16_finite(v16 v)
{
    v16 a = v16_abs(v);
    __m256 limit = _mm256_set1_ps(0x1.fffffep127f);
    __m256 good = _mm256_and_ps(_mm256_cmp_ps(a.a, limit, _CMP_LE_OQ), _mm256_cmp_ps(a.b, limit, _CMP_LE_OQ));
    return _mm256_movemask_ps(good) == 0xff;
}

static inline int32_t sum_of_i32(__m256i v)
{
    __m128i h = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
}

static inline void v16_to_i8(int8_t *q, v16 lo, v16 hi, int32_t *sum_lo, int32_t *sum)
{
    __m256i a = _mm256_cvtps_epi32(lo.a), b = _mm256_cvtps_epi32(lo.b);
    __m256i c = _mm256_cvtps_epi32(hi.a), d = _mm256_cvtps_epi32(hi.b);
    /* The packs work in halves of a register: put the eight groups of four bytes back in order. */
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)q, bytes);
    *sum_lo = sum_of_i32(_mm256_add_epi32(a, b));
    *sum = *sum_lo + sum_of_i32(_mm256_add_epi32(c, d));
}

/* clang-format on */
#include "simd_ops.inc.h"

/* clang-format off */
/* The matrix products. */
#define MATMUL(name) avx2_matmul_##name
enum { LANES = 8, Q_STRIPS = 1, Q_STRIPS_ONE = 2, Q_ROWS = 4, F_STRIPS = 2, F_ROWS = 4, PREFETCH_BYTES = 2048 };
typedef __m256 vf;
typedef __m256i vi;

static inline vf vf_zero(void) { return _mm256_setzero_ps(); }
static inline vf vf_set1(float x) { return _mm256_set1_ps(x); }
static inline vf vf_load(const void *p) { return _mm256_loadu_ps(p); }
static inline void vf_store_n(float *p, vf v, int n)
{
    if (n == 8) {
        _mm256_storeu_ps(p, v);
        return;
    }
    float t[8];
    _mm256_storeu_ps(t, v);
    memcpy(p, t, (size_t)n * 4);
}
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
static inline vf vf_from_i32(vi v) { return _mm256_cvtepi32_ps(v); }
static inline vf vf_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
static inline vf vf_bf16(const void *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
static inline vf vf_u8(const void *p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p))); }
static inline vf vf_cast(vi v) { return _mm256_castsi256_ps(v); }
static inline vi vi_u8(const void *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(p)); }
static inline vi vi_set1_i32(int32_t v) { return _mm256_set1_epi32(v); }
static ALWAYS_INLINE vi vi_shl32(vi v, int n) { return _mm256_sll_epi32(v, _mm_cvtsi32_si128(n)); }
static ALWAYS_INLINE vi vi_shr32(vi v, int n) { return _mm256_srl_epi32(v, _mm_cvtsi32_si128(n)); }
static inline vi vi_i8(const void *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64(p)); }
static inline vi vi_load(const void *p) { return _mm256_loadu_si256(p); }
static inline vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
static inline vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
static inline vi vi_xor(vi a, vi b) { return _mm256_xor_si256(a, b); }
static inline vi vi_set1_8(char c) { return _mm256_set1_epi8(c); }
static inline vi vi_add32(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vi vi_add8(vi a, vi b) { return _mm256_add_epi8(a, b); }
static ALWAYS_INLINE vi vi_negated(vi v, vi signs, const int h)
{
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 0, 0, 0, 0, 4, 4, 4, 4,
                                            8, 8, 8, 8, 12, 12, 12, 12);
    const __m256i bits = _mm256_set1_epi32(h ? (int)0x80402010 : 0x08040201);
    __m256i is = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(signs, spread), bits), bits);
    return _mm256_sub_epi8(_mm256_xor_si256(v, is), is);
}
/* Two gathers of 4 bytes: faster here than gathers of 8 and putting the halves in order. */
static ALWAYS_INLINE void vi_gather8(const int8_t *p, vi v, vi *out)
{
    out[0] = _mm256_i32gather_epi32((const int *)(const void *)p, v, 8);
    out[1] = _mm256_i32gather_epi32((const int *)(const void *)(p + 4), v, 8);
}
static inline vi vi_gather4(const int8_t *p, vi v) { return _mm256_i32gather_epi32((const int *)(const void *)p, v, 4); }
static inline vi vi_mul32(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
static ALWAYS_INLINE vi vi_shl(vi v, int n) { return _mm256_slli_epi16(v, n); }
static ALWAYS_INLINE vi vi_shr(vi v, int n) { return _mm256_srli_epi16(v, n); }
static inline vi vi_lut_load(const int8_t *lut, bool sgn)
{
    __m128i t = _mm_loadu_si128((const __m128i *)lut);
    if (!sgn) t = _mm_xor_si128(t, _mm_set1_epi8((char)0x80));
    return _mm256_broadcastsi128_si256(t);
}
static inline vi vi_lut(vi table, vi v) { return _mm256_shuffle_epi8(table, v); }

#define SIGNED_CODES(bits, lut) ((bits) >= 7 || (lut))

/* Sums of pairs of products in 16 bits, widened into the sum before they can saturate. */
typedef struct {
    vi pairs, sum;
} vq;
static inline vi vi_set1_32(const int8_t *p) { return _mm256_set1_epi32((int)cw_load_u32(p)); }
static inline vq vq_begin(int32_t init) { return (vq){_mm256_setzero_si256(), _mm256_set1_epi32(init)}; }
static inline vi vq_end(vq q) { return q.sum; }
static ALWAYS_INLINE vq vq_add(vq q, vi w, vi x, const int g, const int bits, const bool sgn)
{
    /* How many fit: 8 * 2 * 15 * 127, 4 * 2 * 31 * 127, 2 * 2 * 63 * 127 and 1 * 2 * 128 * 127 are all at most 32512;
     * 2 and 3 bits come with sub-blocks of 16, of which a half is 4 groups.
     * 7 bits are the codebooks' signed values of up to 62.
     * Blocks and their halves are whole runs, so vq_end finds nothing waiting. */
    const int run = bits == 7 ? 2 : sgn || bits == 8 ? 1 : bits == 6 ? 2 : bits == 5 || bits <= 3 ? 4 : 8;
    vi m = sgn ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) : _mm256_maddubs_epi16(w, x);
    q.pairs = g % run == 0 ? m : _mm256_add_epi16(q.pairs, m);
    if ((g + 1) % run == 0) q.sum = _mm256_add_epi32(q.sum, _mm256_madd_epi16(q.pairs, _mm256_set1_epi16(1)));
    return q;
}

/* clang-format on */
#include "simd_matmul.inc.h"

const cw_kernels cw_kernels_avx2 = {
    .isa = CW_ISA_AVX2,
    .name = "avx2",
    .matmul = MATMUL(any),
    OPS_TABLE,
};
