/*
 * Tensor types by GGUF's numbers: what a row of each looks like in a file and how it becomes f32.
 * Source of the formats: the GGUF specification's type list and the block layouts it refers to.
 * Immutable tables; any thread.
 */
#pragma once
#include "cw/status.h"

/* The numbers are the file format's. Only those with a cw_type_info can be computed with. */
typedef enum {
    CW_TYPE_F32 = 0,
    CW_TYPE_F16 = 1,
    CW_TYPE_Q4_0 = 2,
    CW_TYPE_Q4_1 = 3,
    CW_TYPE_Q5_0 = 6,
    CW_TYPE_Q5_1 = 7,
    CW_TYPE_Q8_0 = 8,
    CW_TYPE_Q8_1 = 9,
    CW_TYPE_Q2_K = 10,
    CW_TYPE_Q3_K = 11,
    CW_TYPE_Q4_K = 12,
    CW_TYPE_Q5_K = 13,
    CW_TYPE_Q6_K = 14,
    CW_TYPE_Q8_K = 15,
    CW_TYPE_IQ2_XXS = 16,
    CW_TYPE_IQ2_XS = 17,
    CW_TYPE_IQ3_XXS = 18,
    CW_TYPE_IQ1_S = 19,
    CW_TYPE_IQ4_NL = 20,
    CW_TYPE_IQ3_S = 21,
    CW_TYPE_IQ2_S = 22,
    CW_TYPE_IQ4_XS = 23,
    CW_TYPE_I8 = 24,
    CW_TYPE_I16 = 25,
    CW_TYPE_I32 = 26,
    CW_TYPE_I64 = 27,
    CW_TYPE_F64 = 28,
    CW_TYPE_IQ1_M = 29,
    CW_TYPE_BF16 = 30,
    CW_TYPE_TQ1_0 = 34,
    CW_TYPE_TQ2_0 = 35,
    CW_TYPE_MXFP4 = 39,
} cw_type;

typedef struct {
    uint32_t type;       /* cw_type */
    const char *name;    /* "Q4_K" */
    int32_t block;       /* values in a block; a row is a whole number of blocks */
    int32_t block_bytes; /* bytes of a block in a file */
    bool quantised;      /* rows of x are A8 for these, f32 for the others */
    /* k values of one row (k a multiple of block) to f32. src at any alignment. */
    void (*to_f32)(const void *src, float *dst, int64_t k);
} cw_type_info;

/* NULL where the type cannot be computed with (unknown, or known and not supported). Never freed. */
const cw_type_info *cw_type_get(uint32_t gguf_type);
/* The i-th supported type, NULL after the last: for tables and tests. */
const cw_type_info *cw_type_at(size_t i);
/* Name of any type the format defines ("Q4_K", "TQ1_0"), supported or not; "unknown" otherwise. Never NULL.
 */
const char *cw_type_name(uint32_t gguf_type);

/* Values per block and bytes per block of any type the format defines, supported or not, so that a file's
 * extents can be checked. false when the number is unknown. */
CW_MUST_USE bool cw_type_extent(uint32_t gguf_type, int32_t *block, int32_t *block_bytes);
/* Bytes of a row of k values. false when the type is unknown, k is not a positive multiple of its block, or
 * on overflow. */
CW_MUST_USE bool cw_type_row_bytes(uint32_t gguf_type, int64_t k, size_t *bytes);

/* One row of k f32 values (a multiple of 32, finite) to Q8_0 as a file holds it: d = f16(amax / 127),
 * q = rne(x / d) within +-127. For matrices this project derives itself. */
void cw_type_quantise_q8_0(const float *src, void *dst, int64_t k);
