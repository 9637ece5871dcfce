/*
 * The verbs of simd_matmul.inc.h for 16 lanes: shared by the files compiled for AVX-512.
 */
#pragma once
#include <immintrin.h>

/* clang-format off: a verb a line */
typedef __m512 vf;
typedef __m512i vi;

static inline vf vf_zero(void)
{
    return _mm512_setzero_ps();
}
static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_load(const void *p)
{
    return _mm512_loadu_ps(p);
}
static inline void vf_store_n(float *p, vf v, int n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf vf_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
static inline vf vf_from_i32(vi v)
{
    return _mm512_cvtepi32_ps(v);
}
static inline vf vf_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}
static inline vf vf_bf16(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}
static inline vf vf_u8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p)));
}
static inline vf vf_cast(vi v)
{
    return _mm512_castsi512_ps(v);
}
static inline vi vi_u8(const void *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(p));
}
static inline vi vi_set1_i32(int32_t v)
{
    return _mm512_set1_epi32(v);
}
static ALWAYS_INLINE vi vi_shl32(vi v, int n)
{
    return _mm512_sll_epi32(v, _mm_cvtsi32_si128(n));
}
static ALWAYS_INLINE vi vi_shr32(vi v, int n)
{
    return _mm512_srl_epi32(v, _mm_cvtsi32_si128(n));
}
static inline vi vi_i8(const void *p)
{
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(p));
}
static inline vi vi_load(const void *p)
{
    return _mm512_loadu_si512(p);
}
static inline vi vi_and(vi a, vi b)
{
    return _mm512_and_si512(a, b);
}
static inline vi vi_or(vi a, vi b)
{
    return _mm512_or_si512(a, b);
}
static inline vi vi_xor(vi a, vi b)
{
    return _mm512_xor_si512(a, b);
}
static inline vi vi_set1_8(char c)
{
    return _mm512_set1_epi8(c);
}
static inline vi vi_add32(vi a, vi b)
{
    return _mm512_add_epi32(a, b);
}
static inline vi vi_add8(vi a, vi b)
{
    return _mm512_add_epi8(a, b);
}
static ALWAYS_INLINE vi vi_negated(vi v, vi signs, const int h)
{
    const __m512i spread =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    const __m512i bits = _mm512_set1_epi32(h ? (int)0x80402010 : 0x08040201);
    __mmask64 is = _mm512_test_epi8_mask(_mm512_shuffle_epi8(signs, spread), bits);
    return _mm512_mask_sub_epi8(v, is, _mm512_setzero_si512(), v);
}
static ALWAYS_INLINE void vi_gather8(const int8_t *p, vi v, vi *out)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512i a = _mm512_i32gather_epi64(_mm512_castsi512_si256(v), p, 8);
    __m512i b = _mm512_i32gather_epi64(_mm512_extracti64x4_epi64(v, 1), p, 8);
    out[0] = _mm512_permutex2var_epi32(a, even, b);
    out[1] = _mm512_permutex2var_epi32(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}
static inline vi vi_gather4(const int8_t *p, vi v)
{
    return _mm512_i32gather_epi32(v, p, 4);
}
static inline vi vi_mul32(vi a, vi b)
{
    return _mm512_mullo_epi32(a, b);
}
static ALWAYS_INLINE vi vi_shl(vi v, int n)
{
    return _mm512_slli_epi16(v, (unsigned)n);
}
static ALWAYS_INLINE vi vi_shr(vi v, int n)
{
    return _mm512_srli_epi16(v, (unsigned)n);
}
static inline vi vi_lut_load(const int8_t *lut, bool sgn)
{
    __m128i t = _mm_loadu_si128((const __m128i *)lut);
    if (!sgn) t = _mm_xor_si128(t, _mm_set1_epi8((char)0x80));
    return _mm512_broadcast_i32x4(t);
}
static inline vi vi_lut(vi table, vi v)
{
    return _mm512_shuffle_epi8(table, v);
}

/* 8-bit codes stay offset by 128: vpdpbusd wants its first operand unsigned. */
#define SIGNED_CODES(bits, lut) false
/* clang-format on */
