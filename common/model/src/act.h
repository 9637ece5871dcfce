/*
 * An activation matrix and its quantised form, made at most once: the norm's output goes to several
 * projections, the shared experts and over the wire as the same A8 bytes, while unquantised weights and the
 * router read its f32 rows.
 */
#pragma once
#include "cw/kernels.h"
#include "cw/mem.h"

typedef struct {
    float *x; /* [m, k] */
    int32_t m;
    int64_t k;
    cw_a8 a8;
    bool quantised; /* a8 holds these rows; cleared when x is written anew */
    bool finite;    /* false: quantising met a value that is not */
} cw_act;

/* Memory for max_rows rows from the arena; false when it is full. */
CW_MUST_USE bool cw_act_alloc(cw_act *a, cw_arena *arena, int max_rows, int64_t k);
/* An upper bound of what cw_act_alloc takes. */
size_t cw_act_bytes(int max_rows, int64_t k);
/* x is about to be written with m rows. */
void cw_act_begin(cw_act *a, int32_t m);
/* Quantises if that has not been done. */
void cw_act_quantise(cw_act *a, const cw_kernels *kn, cw_pool *pool);
/* The same for values [at, at + n) of one row, by any thread while that row is at hand; false where one is
 * not finite. at and n multiples of 32. When all are done, cw_act_quantised says so. */
CW_MUST_USE bool cw_act_quantise_part(cw_act *a, const cw_kernels *kn, int32_t row, int64_t at, int64_t n);
void cw_act_quantised(cw_act *a, bool finite);
/* The product of rows of `a` with `w` into y [m, ldy]; quantises first where `w` needs it. */
cw_mm cw_act_product(cw_act *a, const cw_kernels *kn, cw_pool *pool, const cw_weight *w, float *y,
                     int64_t ldy);
/* The same of rows that are yet to come, and will be quantised by then where `w` needs it. */
cw_mm cw_act_product_later(const cw_act *a, const cw_weight *w, float *y, int64_t ldy);
