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
    uint16_t d, dmin;  /* f16 bits; d is the exponent byte where the form says so */
    uint8_t sc[16];    /* sub-block scales; int8 bits where the format says so */
    uint8_t m[16];     /* sub-block minima */
    uint8_t code[256]; /* in order of k */
} cw_block;

typedef enum { CW_MIN_NONE, CW_MIN_F16, CW_MIN_SUB } cw_min;

/* How a block's scale is written. */
typedef enum {
    CW_D_F16,
    CW_D_IN_WORDS, /* an f16 in four pieces among the words of a block (IQ1_M) */
    CW_D_E8M0, /* a byte e, of which 255 is not a number: the values here are twice the format's, d = 2^(e -
                  128) */
} cw_d_form;

/* How a panel holds sub-block scales. */
typedef enum {
    CW_SC_BYTES,
    CW_SC_NIBBLES, /* scale in the low nibble, minimum in the high one */
    CW_SC_SIX,     /* scale + 32 in 6 bits: nibbles of two sub-blocks in a byte, then bit pairs of four */
} cw_sc_form;

/* What a block stands for: value i is d * sc[i / per_sub] * v[i] - dmin * m[i / per_sub]. */
typedef struct {
    int per_sub; /* values that share sc and m: 16 or 32 */
    bool has_min;
    float d, dmin;         /* exact; dmin is minus the file's for CW_MIN_F16 */
    int16_t sc[16], m[16]; /* 1 where the format has none */
    int8_t v[256];
} cw_values;

typedef struct {
    uint32_t type;
    int16_t block;   /* values */
    int16_t n_sub;   /* sub-block scales in a block, 0: none */
    bool signed_sc;  /* they are int8 */
    uint8_t sc_bits; /* of their range: 4, 6 or 8 */
    cw_min min;
    uint8_t bits;   /* of a code: 8, 4, 4 + 1, 4 + 2, 2, 2 + 1 */
    uint8_t offset; /* v(c) = c - offset where lut is NULL */
    cw_d_form d_form;
    cw_sc_form sc_form;
    const int8_t *lut; /* [16] v(c) */
    void (*split)(const uint8_t *src, cw_block *b);
    void (*join)(const cw_block *b, uint8_t *dst);
    /* Formats with a codebook: code[] holds the block's bytes after d, that many 4-byte words, and only
     * `values` knows what they mean (it fills sc and v). d is multiplied by factor, a power of two. */
    uint8_t words;
    float factor;
    void (*values)(const uint8_t *bytes, cw_values *v);
} cw_format;

/* NULL for types without blocks (f32, f16, bf16) and unsupported ones. */
const cw_format *cw_format_get(uint32_t gguf_type);

void cw_block_values(const cw_format *f, const cw_block *b, cw_values *v);
/* Whether d and dmin are finite numbers. */
bool cw_block_finite(const cw_format *f, const cw_block *b);
