/*
 * Packed weights: a matrix of n output rows by k inputs, rearranged once at load into panels of 16 output
 * rows so that SIMD lanes run across output rows and never across k. One layout per type for all instruction
 * sets; docs/NUMERICS.md draws them. At most 3 % larger than the file's bytes, plus the zero rows that fill
 * the last panel.
 *
 * A weight is immutable once packed and may be read by any number of threads. Packing may be done slice by
 * slice (several slices at once from several threads, if they do not overlap), so the source can be dropped
 * behind it.
 */
#pragma once
#include "cw/type.h"

enum { CW_PANEL_ROWS = 16 };

typedef struct {
    const cw_type_info *info;
    int64_t n, k;       /* output rows, inputs */
    size_t panel_bytes; /* of 16 rows */
    size_t bytes;       /* of all panels */
    uint8_t *data;      /* 64-byte aligned, borrowed from whoever called cw_weight_init */
} cw_weight;

/* Bytes of the packed form. INVALID: n < 1, or k not a positive multiple of the type's block, or overflow (k
 * is limited to 2^24, n to 2^31); UNSUPPORTED: not a type of cw_type_get. */
CW_MUST_USE cw_status cw_weight_bytes(uint32_t type, int64_t n, int64_t k, size_t *bytes, cw_err *err);
/* Describes a weight in `mem` (64-byte aligned, cw_weight_bytes long; need not be cleared). Same errors. */
CW_MUST_USE cw_status cw_weight_init(cw_weight *w, uint32_t type, int64_t n, int64_t k, void *mem,
                                     cw_err *err);
/*
 * Packs rows [row0, row0 + n_rows) from GGUF rows (any alignment, dense). row0 is a multiple of 16, and so is
 * n_rows unless the slice ends the matrix (then the panel is filled with zero rows). FORMAT, naming the row:
 * a scale or a value is not finite (the panel's contents are then undefined).
 */
CW_MUST_USE cw_status cw_weight_pack(cw_weight *w, int64_t row0, int64_t n_rows, const void *gguf_rows,
                                     cw_err *err);

/* The inverse: row `row` as the file holds it (cw_type_row_bytes), the same bytes it was packed from wherever
 * the format has one encoding for a value (all but unused bits: every supported type). */
void cw_weight_unpack_row(const cw_weight *w, int64_t row, void *gguf_row);
/* Row `row` dequantised, as info->to_f32 gives it. scratch: cw_type_row_bytes bytes. For embedding rows and
 * tests. */
void cw_weight_row_f32(const cw_weight *w, int64_t row, float *y, void *scratch);

static inline int64_t cw_weight_panels(const cw_weight *w)
{
    return (w->n + CW_PANEL_ROWS - 1) / CW_PANEL_ROWS;
}
