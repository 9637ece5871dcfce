/*
 * AVX-512 with VNNI (F, BW, VL, DQ, VNNI): one register holds all 16 rows of a panel. Compiled with those
 * flags only; dispatch.c checks the CPU. 8-bit codes stay offset by 128, as vpdpbusd wants its first operand
 * unsigned; the offset is taken off exactly, in the integer accumulator's start value.
 */
#include "internal.h"
#include "ref.h"
#include "cw/bytes.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
#include "avx512_verbs.h"

/* clang-format off: a verb a line */
/* 16 f32 lanes. */
typedef __m512 v16;
#define OPS(name) avx512_##name
enum { QK_H = 4, QK_K = 4, PV_H = 4, PV_R = 4 };

static inline __mmask16 first(int n)
{
    return (__mmask16)((1u << n) - 1);
}
static inline v16 v16_zero(void)
{
    return _mm512_setzero_ps();
}
static inline v16 v16_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline v16 v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline v16 v16_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(first(n), p);
}
static inline void v16_store(float *p, v16 v)
{
    _mm512_storeu_ps(p, v);
}
static inline void v16_store_n(float *p, v16 v, int n)
{
    _mm512_mask_storeu_ps(p, first(n), v);
}
static inline v16 v16_from_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline v16 v16_from_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline v16 v16_from_f16_n(const uint16_t *p, int n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
}
static inline void v16_to_f16(uint16_t *p, v16 v)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline void v16_to_f16_n(uint16_t *p, v16 v, int n)
{
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline v16 v16_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}
static inline v16 v16_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}
static inline v16 v16_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}
static inline v16 v16_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}
static inline v16 v16_abs(v16 a)
{
    return _mm512_abs_ps(a);
}
static inline v16 v16_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline v16 v16_fnma(v16 a, v16 b, v16 c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
static inline v16 v16_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}

#define FOLD(op, v)                                                                                          \
    __m256 h8 = op##256(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));                            \
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
/*
 * Sixteen folds at once: each step of the tree adds halves of two registers, which by then hold sums of as
 * many accumulators as the halves have been halved. The same additions as v16_fold_add sixteen times, in a
 * third of the instructions. At the end quarter h of the register holds head h, its keys in the order the
 * last two steps want them to come.
 */
static ALWAYS_INLINE void store_folds(float *s, int64_t lds, v16 acc[QK_H][QK_K], float scale)
{
    v16 r8[2][QK_K], r4[QK_K], r2[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) /* heads h (lanes 0..7 of the result) and h + 2 (8..15) */
#pragma GCC unroll 4
        for (int j = 0; j < QK_K; j++)
            r8[h][j] = _mm512_add_ps(_mm512_shuffle_f32x4(acc[h][j], acc[h + 2][j], 0x44),
                                     _mm512_shuffle_f32x4(acc[h][j], acc[h + 2][j], 0xee));
#pragma GCC unroll 4
    for (int j = 0; j < QK_K; j++) /* quarters: heads 0, 2, 1, 3 */
        r4[j] = _mm512_add_ps(_mm512_shuffle_f32x4(r8[0][j], r8[1][j], 0x88),
                              _mm512_shuffle_f32x4(r8[0][j], r8[1][j], 0xdd));
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) { /* pairs: keys j, j + 2 */
        __m512d a = _mm512_castps_pd(r4[j]), b = _mm512_castps_pd(r4[j + 2]);
        r2[j] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                              _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    /* lanes of a quarter: keys 0, 2, 1, 3 */
    v16 sums = _mm512_add_ps(_mm512_shuffle_ps(r2[0], r2[1], 0x88), _mm512_shuffle_ps(r2[0], r2[1], 0xdd));
    sums = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_permute_ps(sums, 0xd8));
    _mm_storeu_ps(s, _mm512_castps512_ps128(sums));
    _mm_storeu_ps(s + 2 * lds, _mm512_extractf32x4_ps(sums, 1));
    _mm_storeu_ps(s + lds, _mm512_extractf32x4_ps(sums, 2));
    _mm_storeu_ps(s + 3 * lds, _mm512_extractf32x4_ps(sums, 3));
}

static inline void v16_pow2_of_magic(v16 t, v16 *s1, v16 *s2)
{
    __m512i n = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(_mm512_set1_ps(CW_ROUND_MAGIC)));
    __m512i n1 = _mm512_srai_epi32(n, 1), bias = _mm512_set1_epi32(127);
    *s1 = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n1, bias), 23));
    *s2 = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(n, n1), bias), 23));
}

static inline v16 v16_exp_limits(v16 x, v16 y)
{
    __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_set1_ps(CW_EXP_MIN), _CMP_LT_OQ);
    __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_set1_ps(CW_EXP_MAX), _CMP_GT_OQ);
    return _mm512_mask_mov_ps(_mm512_mask_mov_ps(y, below, _mm512_setzero_ps()), above,
                              _mm512_set1_ps(INFINITY));
}

static inline bool v16_finite(v16 v)
{
    return _mm512_cmp_ps_mask(_mm512_abs_ps(v), _mm512_set1_ps(0x1.fffffep127f), _CMP_LE_OQ) == 0xffff;
}

static inline void v16_to_i8(int8_t *q, v16 lo, v16 hi, int32_t *sum_lo, int32_t *sum)
{
    __m512i a = _mm512_cvtps_epi32(lo), b = _mm512_cvtps_epi32(hi);
    _mm_storeu_si128((__m128i *)q, _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128((__m128i *)(q + 16), _mm512_cvtepi32_epi8(b));
    *sum_lo = _mm512_reduce_add_epi32(a);
    *sum = *sum_lo + _mm512_reduce_add_epi32(b);
}

/* clang-format on */
#include "simd_ops.inc.h"

/* clang-format off */
/* The matrix products. */
#define MATMUL(name) avx512_matmul_##name
enum { LANES = 16, Q_STRIPS = 2, Q_STRIPS_ONE = 2, Q_ROWS = 4, F_STRIPS = 2, F_ROWS = 8, PREFETCH_BYTES = 2048 };
typedef vi vq;
static inline vi vi_set1_32(const int8_t *p) { return _mm512_set1_epi32((int)cw_load_u32(p)); }
static inline vq vq_begin(int32_t init) { return _mm512_set1_epi32(init); }
static inline vi vq_end(vq q) { return q; }
static ALWAYS_INLINE vq vq_add(vq q, vi w, vi x, int g, int bits, bool sgn)
{
    (void)g, (void)bits, (void)sgn;
    return _mm512_dpbusd_epi32(q, w, x);
}

/* clang-format on */
#include "simd_matmul.inc.h"

const cw_kernels cw_kernels_avx512 = {
    .isa = CW_ISA_AVX512,
    .name = "avx512",
    .matmul = MATMUL(any),
    OPS_TABLE,
};

/* Tiles for many rows, this file for everything else. */
const cw_kernels cw_kernels_amx = {
    .isa = CW_ISA_AMX,
    .name = "amx",
    .matmul = cw_amx_matmul,
    OPS_TABLE,
};
