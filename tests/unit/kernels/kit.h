/* What the kernel tests share: a seeded generator, rows of every type with chosen extremes, memory,
 * comparison. */
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/block.h"
#include "cw/bytes.h"
#include "cw/kernels.h"
#include "cw/mem.h"

/* Sanitized builds are several times slower: they do less of the same. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KIT_SLOW 1
#else
#define KIT_SLOW 0
#endif

static inline uint32_t kit_next(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*s >> 32);
}
/* [-1, 1) */
static inline float kit_unit(uint64_t *s)
{
    return (float)((int32_t)kit_next(s) >> 8) * 0x1p-23f;
}

static inline void *kit_mem(size_t bytes)
{
    void *p = cw_aligned_calloc(bytes, 1);
    assert_non_null(p);
    return p;
}

typedef enum {
    KIT_RANDOM,
    KIT_MIN_CODES, /* every code the smallest (w = -128), scales at their maximum */
    KIT_MAX_CODES, /* every code the largest, scales at their maximum */
    KIT_SUBNORMAL, /* d and dmin subnormal */
    KIT_SPARSE,    /* every second block zero */
    KIT_FILLS
} kit_fill;

static inline void kit_block(const cw_format *f, kit_fill fill, int index, uint64_t *rng, cw_block *b)
{
    int top = (1 << f->bits) - 1, sc_top = (1 << f->sc_bits) - 1;
    unsigned sc_low = f->signed_sc ? 1u << (f->sc_bits - 1) : 0;
    memset(b, 0, sizeof *b);
    b->d = (uint16_t)(0x1800 + kit_next(rng) % 0x1000) | (uint16_t)(kit_next(rng) >> 31 << 15);
    b->dmin = (uint16_t)(0x1800 + kit_next(rng) % 0x1000);
    for (int i = 0; i < 256; i++) b->code[i] = (uint8_t)(kit_next(rng) >> 24 & (unsigned)top);
    for (int i = 0; i < 16; i++) {
        b->sc[i] = (uint8_t)((kit_next(rng) >> 24 & ((1u << f->sc_bits) - 1)) - sc_low);
        b->m[i] = (uint8_t)(kit_next(rng) >> 24 & ((1u << f->sc_bits) - 1));
    }
    if (fill == KIT_MIN_CODES || fill == KIT_MAX_CODES) {
        memset(b->code, fill == KIT_MIN_CODES ? 0 : top, sizeof b->code);
        memset(b->sc, f->signed_sc ? -(int)sc_low : sc_top, sizeof b->sc);
        memset(b->m, sc_top, sizeof b->m);
        b->d = b->dmin = 0x7bff; /* 65504 */
    }
    if (fill == KIT_SUBNORMAL) {
        b->d = (uint16_t)(kit_next(rng) % 0x400);
        b->dmin = (uint16_t)(kit_next(rng) % 0x400);
    }
    if (fill == KIT_SPARSE && index % 2) b->d = b->dmin = 0;
    if (f->d_form == CW_D_E8M0) {
        b->d = (uint16_t)(100 + kit_next(rng) % 50);
        if (fill == KIT_MIN_CODES || fill == KIT_MAX_CODES) b->d = 148;
        if (fill == KIT_SUBNORMAL) b->d = (uint16_t)(kit_next(rng) % 4); /* 2^-128 .. 2^-125 */
        if (fill == KIT_SPARSE && index % 2) b->d = 0;
    }
}

/* One file row of k values. */
static inline void kit_row(const cw_type_info *t, kit_fill fill, int64_t k, uint64_t *rng, uint8_t *dst)
{
    const cw_format *f = cw_format_get(t->type);
    if (f) {
        for (int64_t u = 0; u < k / f->block; u++) {
            cw_block b;
            kit_block(f, fill, (int)u, rng, &b);
            f->join(&b, dst + u * t->block_bytes);
        }
        return;
    }
    for (int64_t i = 0; i < k; i++) {
        float v = kit_unit(rng);
        if (fill == KIT_MIN_CODES) v = -60000.0f;
        if (fill == KIT_MAX_CODES) v = 60000.0f;
        if (fill == KIT_SUBNORMAL) v *= t->type == CW_TYPE_F16 ? 0x1p-15f : 0x1p-127f;
        if (fill == KIT_SPARSE && i / 32 % 2) v = 0;
        if (t->type == CW_TYPE_F32) cw_store_u32(dst + 4 * i, cw_f32_bits(v));
        if (t->type == CW_TYPE_F16) cw_store_u16(dst + 2 * i, cw_f32_to_f16(v));
        if (t->type == CW_TYPE_BF16) cw_store_u16(dst + 2 * i, (uint16_t)(cw_f32_bits(v) >> 16));
    }
}

static inline size_t kit_row_bytes(const cw_type_info *t, int64_t k)
{
    size_t bytes;
    assert_true(cw_type_row_bytes(t->type, k, &bytes));
    return bytes;
}

/* A packed matrix; free w->data with cw_free. rows (may be NULL) receives the file bytes, to be freed too. */
static inline cw_weight kit_weight(const cw_type_info *t, kit_fill fill, int64_t n, int64_t k, uint64_t *rng,
                                   uint8_t **rows)
{
    size_t row_bytes = kit_row_bytes(t, k), bytes;
    uint8_t *src = kit_mem((size_t)n * row_bytes);
    for (int64_t i = 0; i < n; i++) kit_row(t, fill, k, rng, src + (size_t)i * row_bytes);
    cw_weight w;
    cw_err err;
    assert_int_equal(cw_weight_bytes(t->type, n, k, &bytes, &err), CW_OK);
    assert_int_equal(cw_weight_init(&w, t->type, n, k, kit_mem(bytes), &err), CW_OK);
    assert_int_equal(cw_weight_pack(&w, 0, n, src, &err), CW_OK);
    if (rows)
        *rows = src;
    else
        cw_free(src);
    return w;
}

/* Rows of x: by row, random; 1e-30; large; one outlier; all equal in size with both signs. */
static inline void kit_x(float *x, int64_t m, int64_t k, float large, uint64_t *rng)
{
    for (int64_t i = 0; i < m; i++) {
        float *row = x + i * k;
        for (int64_t j = 0; j < k; j++) {
            row[j] = kit_unit(rng);
            if (i % 5 == 1) row[j] *= 1e-30f;
            if (i % 5 == 2) row[j] *= large;
            if (i % 5 == 4) row[j] = row[j] < 0 ? -3.0f : 3.0f;
        }
        if (i % 5 == 3) row[kit_next(rng) % k] = 7168.0f;
    }
}

static inline cw_a8 kit_a8(int32_t m, int64_t k)
{
    size_t bytes;
    cw_a8 a;
    assert_true(cw_a8_bytes(m, k, &bytes));
    cw_a8_init(&a, m, k, kit_mem(bytes));
    return a;
}
static inline void kit_a8_free(cw_a8 *a)
{
    cw_free(a->q);
}

/* Equal bits; any NaN equals any NaN. */
static inline bool kit_same(const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (cw_f32_bits(a[i]) != cw_f32_bits(b[i]) && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

/* The vector tables this machine can run. */
static inline const cw_kernels *kit_vector(int i)
{
    static const cw_isa isas[] = {CW_ISA_AVX2, CW_ISA_AVX512, CW_ISA_NEON, CW_ISA_AMX};
    for (size_t k = 0; k < CW_ARRAY_LEN(isas); k++)
        if (cw_kernels_get(isas[k]) && i-- == 0) return cw_kernels_get(isas[k]);
    return NULL;
}
