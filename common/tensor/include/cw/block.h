/*
 * A quantised block taken apart: the common form between the file's bit layouts and the kernels' panels. One
 * row of the format table and two functions describe a type; packing, unpacking, dequantising and the scalar
 * product are generic over them. For the kernels room and tests.
 *
 * The value of code c with sub-block scale sc, minimum m:
 *   CW_MIN_NONE   d * (sc *) (v(c))
 *   CW_MIN_F16    d * v(c) + dmin            (dmin is then the file's additive f16 minimum)
 *   CW_MIN_SUB    d * sc * v(c) - dmin * m
 * where v(c) = c - offset, or lut[c] where there is a table.
 */
#pragma once
#include "cw/type.h"

typedef struct {
    uint16_t d, dmin;  /* f16 bits */
    uint8_t sc[16];    /* sub-block scales, as stored; int8 bits where the format says so */
    uint8_t m[16];     /* sub-block minima */
    uint8_t code[256]; /* in order of k */
} cw_block;

typedef enum { CW_MIN_NONE, CW_MIN_F16, CW_MIN_SUB } cw_min;

typedef struct {
    uint32_t type;
    int16_t block;  /* values */
    int16_t n_sub;  /* sub-block scales in a block, 0: none */
    bool signed_sc; /* they are int8 */
    cw_min min;
    uint8_t bits;      /* of a code: 8, 4, 4 + 1, 4 + 2 */
    uint8_t offset;    /* v(c) = c - offset where lut is NULL */
    const int8_t *lut; /* [16] v(c) */
    void (*split)(const uint8_t *src, cw_block *b);
    void (*join)(const cw_block *b, uint8_t *dst);
} cw_format;

/* NULL for types without blocks (f32, f16, bf16) and unsupported ones. */
const cw_format *cw_format_get(uint32_t gguf_type);
