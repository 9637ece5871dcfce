/*
 * A8: the one activation format for all quantised weights. Blocks of 32 values: a f32 scale s = amax/127 and
 * 32 int8 q = rne(x * (127/amax)); amax < 2^-100 gives s = 0 and q = 0. q and s travel on the wire (1.125
 * bytes a value); the other arrays are derived from them and save the kernels work.
 */
#pragma once
#include "cw/status.h"

typedef struct {
    int32_t m;    /* rows */
    int64_t k;    /* values in a row, a multiple of 32 */
    int64_t ld;   /* values from one row to the next, a multiple of 32; k unless this is a view */
    int8_t *q;    /* [m, ld]      -127..127 */
    float *s;     /* [m, ld/32]   finite, >= 0 */
    int32_t *sum; /* [m, ld/32]   derived: sum of the block's q */
    int32_t *lo;  /* [m, ld/32]   derived: sum of the first 16 of them */
    float *ssum;  /* [m, ld/32]   derived: s * (float)sum, one rounding */
} cw_a8;

/* Bytes for m rows of k values, arrays 64-byte aligned. false: k not a positive multiple of 32, m < 0, or
 * overflow. */
CW_MUST_USE bool cw_a8_bytes(int64_t m, int64_t k, size_t *bytes);
/* Lays the arrays out in mem (64-byte aligned, cw_a8_bytes long, borrowed). Contents are not touched. */
void cw_a8_init(cw_a8 *a, int32_t m, int64_t k, void *mem);
/* Rows [row0, row0+m) and columns [k0, k0+k) of `a`, sharing its memory; k0 and k multiples of 32. To
 * quantise a matrix once and multiply parts of its columns (heads). */
cw_a8 cw_a8_view(const cw_a8 *a, int32_t row0, int32_t m, int64_t k0, int64_t k);

/* Fills row `row` from received bytes: q [k], s [k/32] at any alignment, little-endian. false, with the row
 * set to zero, when a q is -128 or a scale is not finite or has its sign set: a protocol error of the sender.
 */
CW_MUST_USE bool cw_a8_set_row(cw_a8 *a, int32_t row, const void *q, const void *s);
/* Copies a row between equal k. */
void cw_a8_copy_row(cw_a8 *dst, int32_t dst_row, const cw_a8 *src, int32_t src_row);
/* What the row stands for: y[i] = s * q. */
void cw_a8_row_f32(const cw_a8 *a, int32_t row, float *y);

static inline int8_t *cw_a8_q(const cw_a8 *a, int32_t row)
{
    return a->q + (int64_t)row * a->ld;
}
static inline float *cw_a8_s(const cw_a8 *a, int32_t row)
{
    return a->s + (int64_t)row * (a->ld / 32);
}
