/*
 * What the files of this room share: the panel layout, the constants of exp, and the tables of each
 * instruction set. docs/NUMERICS.md has the drawings and the reasons.
 */
#pragma once
#include "cw/block.h"
#include "cw/grid.h"
#include "cw/kernels.h"

#include <math.h>

/* Tables; those a build lacks are not referenced (dispatch.c). */
extern const cw_kernels cw_kernels_scalar, cw_kernels_avx2, cw_kernels_avx512, cw_kernels_neon,
    cw_kernels_neon_v80, cw_kernels_amx;

/* The products of cw_kernels_amx. */
void cw_amx_matmul(const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0, int32_t row1);

/* clang-format off: a drawing */
/*
 * A unit is one block of k (32 or 256 values) of the 16 rows of a panel:
 *   d [16] f16, or [16] exponent bytes (MXFP4)
 *   minimum scale [16] f16, where there is one
 *   sub-block scales [n_sub][16] u8, minima [n_sub][16] u8; or, for the types that hold them so,
 *     [n_sub][16] of scale in the low nibble and minimum in the high one (Q2_K), or
 *     [n_sub / 2][16] of nibbles and [n_sub / 4][16] of bit pairs of scale + 32, lower sub-block lower (Q3_K)
 *   for each 32 values: planes of 64 bytes, byte 4 * row + j of a plane belongs to values 4 * g + j
 * Planes of 32 values, by bits of a code:
 *   8: plane g (0..7) holds the code
 *   4: plane g (0..3) holds group g low and group 4 + g high
 *   5: as 4, then one plane: bit g is the fifth bit of group g
 *   2: plane v (0..1): bits 2t, 2t+1 are group 4 * v + t
 *   3: as 2, then one plane: bit g is the third bit of group g
 *   6: as 4, then two planes: bits 2t, 2t+1 of plane v are the upper bits of group 4 * v + t
 * Formats with a codebook: d [16] f16 (IQ1_M: none), then the block's bytes as words [n_words][16] of 4 bytes
 * f32, f16, bf16: unit = one k, 16 values.
 */
/* clang-format on */
typedef struct {
    int dmin, sc, m, q; /* offsets in the unit; meaningless where the type has none */
    int sub_bytes;      /* of the planes of 32 values */
    int unit_bytes;
} cw_layout;

/* What of a format decides its layout. */
typedef struct {
    int block, n_sub;
    cw_min min;
    int bits;
    cw_d_form d_form;
    cw_sc_form sc_form;
    int words;
} cw_shape;

static inline cw_shape cw_shape_of(const cw_format *f)
{
    return (cw_shape){f->block, f->n_sub, f->min, f->bits, f->d_form, f->sc_form, f->words};
}

static inline cw_layout cw_layout_of(const cw_shape s)
{
    cw_layout l = {.dmin = 32};
    if (s.words) {
        l.q = s.d_form == CW_D_IN_WORDS ? 0 : 32;
        l.unit_bytes = l.q + 64 * s.words;
        return l;
    }
    l.sc = s.d_form == CW_D_E8M0 ? 16 : s.min == CW_MIN_NONE ? 32 : 64;
    l.m = l.sc + (s.sc_form == CW_SC_SIX ? 12 : 16) * s.n_sub;
    l.q = l.m + (s.min == CW_MIN_SUB && s.sc_form == CW_SC_BYTES ? 16 * s.n_sub : 0);
    l.sub_bytes = 64 * s.bits;
    l.unit_bytes = l.q + s.block / 32 * l.sub_bytes;
    return l;
}

/* Row of x that row i of y reads. */
static inline int32_t cw_mm_source(const cw_mm *mm, int32_t i)
{
    return mm->rows ? mm->rows[i] : i;
}

/* n (1..16) rows of n_units blocks, row_bytes apart, into a panel. good[r]: cleared where a scale of row r is
 * not finite. */
void cw_pack_panel(const cw_format *f, uint8_t *panel, int64_t n_units, const uint8_t *src, size_t row_bytes,
                   int n, bool *good);

/* Takes block `unit` of row `row` out of its panel. */
void cw_panel_get(const cw_weight *w, const cw_format *f, int64_t row, int64_t unit, cw_block *b);

/* exp(x), x = n ln 2 + r: 1 + r + r^2 (C0 + r (C1 + ...)), fitted at Chebyshev nodes over |r| <=
 * 0.347: 1.03e-8. */
#define CW_EXP_LOG2E  0x1.715476p+0f
#define CW_EXP_LN2_HI 0x1.62e4p-1f /* 15 bits */
#define CW_EXP_LN2_LO 0x1.7f7d1cp-20f
#define CW_EXP_C0     0x1p-1f
#define CW_EXP_C1     0x1.5554dcp-3f
#define CW_EXP_C2     0x1.555518p-5f
#define CW_EXP_C3     0x1.120c62p-7f
#define CW_EXP_C4     0x1.6d11fep-10f
#define CW_EXP_MAX    0x1.62e42ep+6f  /* above: +inf */
#define CW_EXP_MIN    -0x1.5d589ep+6f /* below: +0 */

/* Adding and subtracting rounds to an integer, ties to even, for |x| < 2^22. */
#define CW_ROUND_MAGIC 0x1.8p23f

/* 2^n, -126 <= n <= 127. */
static inline float cw_pow2f(int n)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)(n + 127) << 23};
    return v.f;
}

/* The largest |y| a row may hold: from here on, rounding to 11 bits could carry into 2^128. */
#define CW_ROW_LIMIT 0x1.ffep+127f

/* The exponent e of a row: amax * 2^-e in [2^14, 2^15), not below -128. */
static inline int cw_row_exponent(float amax)
{
    union {
        float f;
        uint32_t u;
    } v = {.f = amax};
    if (v.u == 0) return 0;
    int e = (int)(v.u >> 23) - 127 - 14;
    return e < -128 ? -128 : e;
}
