/*
 * The file's block layouts, split into codes and scales and joined again, byte for byte. Facts from the GGUF
 * format's block descriptions; bytes are read one by one, so any alignment and any byte order will do.
 */
#include "block_internal.h"
#include "cw/bytes.h"

/* Nibbles: byte j holds code j low and code 16 + j high. */
static void nibbles_split(const uint8_t *qs, uint8_t *code)
{
    for (int j = 0; j < 16; j++) {
        code[j] = qs[j] & 15;
        code[16 + j] = qs[j] >> 4;
    }
}

static void nibbles_join(const uint8_t *code, uint8_t *qs)
{
    for (int j = 0; j < 16; j++) qs[j] = (uint8_t)((code[j] & 15) | (code[16 + j] & 15) << 4);
}

/* A fifth bit: bit i of a 32-bit word belongs to code i. */
static void fifth_split(const uint8_t *qh, uint8_t *code)
{
    uint32_t h = cw_load_u32(qh);
    for (int i = 0; i < 32; i++) code[i] |= (uint8_t)((h >> i & 1) << 4);
}

static void fifth_join(const uint8_t *code, uint8_t *qh)
{
    uint32_t h = 0;
    for (int i = 0; i < 32; i++) h |= (uint32_t)(code[i] >> 4 & 1) << i;
    cw_store_u32(qh, h);
}

/* Q8_0: d, 32 int8. Codes are the int8 + 128. */
static void q8_0_split(const uint8_t *p, cw_block *b)
{
    b->d = cw_load_u16(p);
    for (int i = 0; i < 32; i++) b->code[i] = p[2 + i] ^ 0x80;
}

static void q8_0_join(const cw_block *b, uint8_t *p)
{
    cw_store_u16(p, b->d);
    for (int i = 0; i < 32; i++) p[2 + i] = b->code[i] ^ 0x80;
}

/* Q4_0, IQ4_NL: d, 16 bytes of nibbles. */
static void q4_0_split(const uint8_t *p, cw_block *b)
{
    b->d = cw_load_u16(p);
    nibbles_split(p + 2, b->code);
}

static void q4_0_join(const cw_block *b, uint8_t *p)
{
    cw_store_u16(p, b->d);
    nibbles_join(b->code, p + 2);
}

/* Q4_1: d, m, nibbles. */
static void q4_1_split(const uint8_t *p, cw_block *b)
{
    b->d = cw_load_u16(p);
    b->dmin = cw_load_u16(p + 2);
    nibbles_split(p + 4, b->code);
}

static void q4_1_join(const cw_block *b, uint8_t *p)
{
    cw_store_u16(p, b->d);
    cw_store_u16(p + 2, b->dmin);
    nibbles_join(b->code, p + 4);
}

/* Q5_0: d, fifth bits, nibbles. */
static void q5_0_split(const uint8_t *p, cw_block *b)
{
    b->d = cw_load_u16(p);
    nibbles_split(p + 6, b->code);
    fifth_split(p + 2, b->code);
}

static void q5_0_join(const cw_block *b, uint8_t *p)
{
    cw_store_u16(p, b->d);
    fifth_join(b->code, p + 2);
    nibbles_join(b->code, p + 6);
}

/* Q5_1: d, m, fifth bits, nibbles. */
static void q5_1_split(const uint8_t *p, cw_block *b)
{
    b->d = cw_load_u16(p);
    b->dmin = cw_load_u16(p + 2);
    nibbles_split(p + 8, b->code);
    fifth_split(p + 4, b->code);
}

static void q5_1_join(const cw_block *b, uint8_t *p)
{
    cw_store_u16(p, b->d);
    cw_store_u16(p + 2, b->dmin);
    fifth_join(b->code, p + 4);
    nibbles_join(b->code, p + 8);
}

/* Eight 6-bit scales and eight 6-bit minima in 12 bytes: the first four of each in the low six bits of bytes
 * 0..7; the others have their low nibbles in bytes 8..11 and their two high bits in the tops of bytes 0..7.
 */
static void scales_split(const uint8_t *q, cw_block *b)
{
    for (int j = 0; j < 4; j++) {
        b->sc[j] = q[j] & 63;
        b->m[j] = q[j + 4] & 63;
        b->sc[j + 4] = (uint8_t)((q[j + 8] & 15) | (q[j] >> 6) << 4);
        b->m[j + 4] = (uint8_t)((q[j + 8] >> 4) | (q[j + 4] >> 6) << 4);
    }
}

static void scales_join(const cw_block *b, uint8_t *q)
{
    for (int j = 0; j < 4; j++) {
        q[j] = (uint8_t)((b->sc[j] & 63) | (b->sc[j + 4] >> 4) << 6);
        q[j + 4] = (uint8_t)((b->m[j] & 63) | (b->m[j + 4] >> 4) << 6);
        q[j + 8] = (uint8_t)((b->sc[j + 4] & 15) | (b->m[j + 4] & 15) << 4);
    }
}

/* 256 nibbles: each 32 bytes hold 32 codes low and the next 32 high. */
static void k_nibbles_split(const uint8_t *restrict qs, uint8_t *restrict code)
{
#pragma GCC unroll 4
    for (int run = 0; run < 4; run++) {
        for (int i = 0; i < 32; i++) code[64 * run + i] = qs[32 * run + i] & 15;
        for (int i = 0; i < 32; i++) code[64 * run + 32 + i] = qs[32 * run + i] >> 4;
    }
}

static void k_nibbles_join(const uint8_t *code, uint8_t *qs)
{
    for (int i = 0; i < 128; i++) {
        int at = i / 32 * 64 + i % 32;
        qs[i] = (uint8_t)((code[at] & 15) | (code[at + 32] & 15) << 4);
    }
}

/* Q4_K: d, dmin, 12 bytes of scales, 128 of nibbles. */
static void q4_k_split(const uint8_t *p, cw_block *b)
{
    b->d = cw_load_u16(p);
    b->dmin = cw_load_u16(p + 2);
    scales_split(p + 4, b);
    k_nibbles_split(p + 16, b->code);
}

static void q4_k_join(const cw_block *b, uint8_t *p)
{
    cw_store_u16(p, b->d);
    cw_store_u16(p + 2, b->dmin);
    scales_join(b, p + 4);
    k_nibbles_join(b->code, p + 16);
}

/* Bit s of byte i of 32: bit `at` of code 32 s + i. Runs of 32 values here and below are for the compiler: it
 * takes them in vectors, and loading waits for this. */
static void bits_split(const uint8_t *restrict h, const int at, uint8_t *restrict code)
{
#pragma GCC unroll 8
    for (int s = 0; s < 8; s++)
        for (int i = 0; i < 32; i++) code[32 * s + i] |= (uint8_t)((h[i] >> s & 1) << at);
}

/* Q5_K: d, dmin, scales, 32 bytes of fifth bits (bit s of byte i: code 32 s + i), nibbles. */
static void q5_k_split(const uint8_t *p, cw_block *b)
{
    b->d = cw_load_u16(p);
    b->dmin = cw_load_u16(p + 2);
    scales_split(p + 4, b);
    k_nibbles_split(p + 48, b->code);
    bits_split(p + 16, 4, b->code);
}

static void q5_k_join(const cw_block *b, uint8_t *p)
{
    cw_store_u16(p, b->d);
    cw_store_u16(p + 2, b->dmin);
    scales_join(b, p + 4);
    for (int i = 0; i < 32; i++) {
        uint8_t h = 0;
        for (int s = 0; s < 8; s++) h |= (uint8_t)((b->code[32 * s + i] >> 4 & 1) << s);
        p[16 + i] = h;
    }
    k_nibbles_join(b->code, p + 48);
}

/* Q6_K: 128 bytes of nibbles, 64 of upper bit pairs, 16 int8 scales, d. In each half of 128 values, nibble
 * byte l (of 64) holds code l low and 64 + l high; pair byte l (of 32) holds the pairs of codes l, 32+l,
 * 64+l, 96+l. */
static void q6_k_split(const uint8_t *restrict p, cw_block *b)
{
#pragma GCC unroll 8
    for (int run = 0; run < 8; run++) {
        const int half = run / 4, t = run % 4;
        const uint8_t *low = p + 64 * half + 32 * (t % 2), *high = p + 128 + 32 * half;
        uint8_t *code = b->code + 32 * run;
        for (int i = 0; i < 32; i++)
            code[i] = (uint8_t)((low[i] >> (t < 2 ? 0 : 4) & 15) | (high[i] >> 2 * t & 3) << 4);
    }
    for (int j = 0; j < 16; j++) b->sc[j] = p[192 + j];
    b->d = cw_load_u16(p + 208);
}

static void q6_k_join(const cw_block *b, uint8_t *p)
{
    for (int i = 0; i < 192; i++) p[i] = 0;
    for (int i = 0; i < 256; i++) {
        int half = i / 128, in = i % 128, l = in % 64;
        p[64 * half + l] |= (uint8_t)((b->code[i] & 15) << (in < 64 ? 0 : 4));
        p[128 + 32 * half + in % 32] |= (uint8_t)((b->code[i] >> 4 & 3) << (2 * (in / 32)));
    }
    for (int j = 0; j < 16; j++) p[192 + j] = b->sc[j];
    cw_store_u16(p + 208, b->d);
}

/* Codes of two bits in bytes that hold values l, 32 + l, 64 + l, 96 + l of 128: 32 bytes for each half. */
static void pairs_split(const uint8_t *restrict qs, uint8_t *restrict code)
{
#pragma GCC unroll 8
    for (int run = 0; run < 8; run++)
        for (int i = 0; i < 32; i++) code[32 * run + i] = qs[run / 4 * 32 + i] >> (2 * (run % 4)) & 3;
}

static void pairs_join(const uint8_t *code, uint8_t *qs)
{
    for (int i = 0; i < 64; i++) {
        const uint8_t *c = code + i / 32 * 128 + i % 32;
        qs[i] = (uint8_t)((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
    }
}

/* Q2_K: 16 bytes of scale (low nibble) and minimum (high), 64 of bit pairs, d, dmin. */
static void q2_k_split(const uint8_t *p, cw_block *b)
{
    for (int j = 0; j < 16; j++) {
        b->sc[j] = p[j] & 15;
        b->m[j] = p[j] >> 4;
    }
    pairs_split(p + 16, b->code);
    b->d = cw_load_u16(p + 80);
    b->dmin = cw_load_u16(p + 82);
}

static void q2_k_join(const cw_block *b, uint8_t *p)
{
    for (int j = 0; j < 16; j++) p[j] = (uint8_t)((b->sc[j] & 15) | (b->m[j] & 15) << 4);
    pairs_join(b->code, p + 16);
    cw_store_u16(p + 80, b->d);
    cw_store_u16(p + 82, b->dmin);
}

/* Q3_K: 32 bytes of third bits (bit s of byte i: code 32 s + i), 64 of bit pairs, 12 of scales, d. Scales are
 * 6 bits, 32 more than their value: low nibbles of scales j and 8 + j in byte j, bits 4 and 5 of scales
 * j, 4 + j, 8 + j, 12 + j in byte 8 + j. */
static void q3_k_split(const uint8_t *p, cw_block *b)
{
    pairs_split(p + 32, b->code);
    bits_split(p, 2, b->code);
    const uint8_t *q = p + 96;
    for (int j = 0; j < 16; j++) {
        int low = q[j % 8] >> (j < 8 ? 0 : 4) & 15, high = q[8 + j % 4] >> (2 * (j / 4)) & 3;
        b->sc[j] = (uint8_t)((low | high << 4) - 32);
    }
    b->d = cw_load_u16(p + 108);
}

static void q3_k_join(const cw_block *b, uint8_t *p)
{
    for (int i = 0; i < 32; i++) {
        unsigned h = 0;
        for (int s = 0; s < 8; s++) h |= (b->code[32 * s + i] >> 2 & 1u) << s;
        p[i] = (uint8_t)h;
    }
    pairs_join(b->code, p + 32);
    uint8_t *q = p + 96;
    for (int j = 0; j < 12; j++) q[j] = 0;
    for (int j = 0; j < 16; j++) {
        unsigned six = (b->sc[j] + 32u) & 63;
        q[j % 8] |= (uint8_t)((six & 15) << (j < 8 ? 0 : 4));
        q[8 + j % 4] |= (uint8_t)((six >> 4) << (2 * (j / 4)));
    }
    cw_store_u16(p + 108, b->d);
}

/* IQ4_XS: d, 16 bits of upper bit pairs, 4 bytes of lower nibbles of the eight scales (6 bits, 32 more than
 * their value), then nibbles as Q4_0's for each 32 values. */
static void iq4_xs_split(const uint8_t *p, cw_block *b)
{
    b->d = cw_load_u16(p);
    unsigned high = cw_load_u16(p + 2);
    for (int j = 0; j < 8; j++) {
        unsigned low = p[4 + j / 2] >> (4 * (j % 2)) & 15u;
        b->sc[j] = (uint8_t)((low | (high >> 2 * j & 3) << 4) - 32);
        nibbles_split(p + 8 + 16 * j, b->code + 32 * j);
    }
}

static void iq4_xs_join(const cw_block *b, uint8_t *p)
{
    unsigned high = 0;
    cw_store_u16(p, b->d);
    for (int j = 0; j < 4; j++) p[4 + j] = 0;
    for (int j = 0; j < 8; j++) {
        unsigned six = (b->sc[j] + 32u) & 63;
        p[4 + j / 2] |= (uint8_t)((six & 15) << (4 * (j % 2)));
        high |= six >> 4 << 2 * j;
        nibbles_join(b->code + 32 * j, p + 8 + 16 * j);
    }
    cw_store_u16(p + 2, (uint16_t)high);
}

/* MXFP4 (OCP Microscaling Formats 1.0, MXFP4 with its E8M0 scale): the exponent byte, nibbles as Q4_0's. */
static void mxfp4_split(const uint8_t *p, cw_block *b)
{
    b->d = p[0];
    nibbles_split(p + 1, b->code);
}

static void mxfp4_join(const cw_block *b, uint8_t *p)
{
    p[0] = (uint8_t)b->d;
    nibbles_join(b->code, p + 1);
}

static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
/* E2M1, doubled. */
static const int8_t mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* clang-format off: a table */
#define PLAIN   CW_D_F16, CW_SC_BYTES
#define NO_GRID 0, 1.0f, NULL /* no codebook */
static const cw_format formats[] = {
    /* type, block, sub-scales, signed, their bits, minimum, bits, offset, forms of d and of sub-scales, lut
     */
    {CW_TYPE_Q4_0, 32, 0, false, 8, CW_MIN_NONE, 4, 8, PLAIN, NULL, q4_0_split, q4_0_join, NO_GRID},
    {CW_TYPE_Q4_1, 32, 0, false, 8, CW_MIN_F16, 4, 0, PLAIN, NULL, q4_1_split, q4_1_join, NO_GRID},
    {CW_TYPE_Q5_0, 32, 0, false, 8, CW_MIN_NONE, 5, 16, PLAIN, NULL, q5_0_split, q5_0_join, NO_GRID},
    {CW_TYPE_Q5_1, 32, 0, false, 8, CW_MIN_F16, 5, 0, PLAIN, NULL, q5_1_split, q5_1_join, NO_GRID},
    {CW_TYPE_Q8_0, 32, 0, false, 8, CW_MIN_NONE, 8, 128, PLAIN, NULL, q8_0_split, q8_0_join, NO_GRID},
    {CW_TYPE_IQ4_NL, 32, 0, false, 8, CW_MIN_NONE, 4, 0, PLAIN, iq4_values, q4_0_split, q4_0_join, NO_GRID},
    {CW_TYPE_MXFP4, 32, 0, false, 8, CW_MIN_NONE, 4, 0, CW_D_E8M0, CW_SC_BYTES, mxfp4_values, mxfp4_split,
     mxfp4_join, NO_GRID},
    {CW_TYPE_Q2_K, 256, 16, false, 4, CW_MIN_SUB, 2, 0, CW_D_F16, CW_SC_NIBBLES, NULL, q2_k_split, q2_k_join,
     NO_GRID},
    {CW_TYPE_Q3_K, 256, 16, true, 6, CW_MIN_NONE, 3, 4, CW_D_F16, CW_SC_SIX, NULL, q3_k_split, q3_k_join,
     NO_GRID},
    {CW_TYPE_Q4_K, 256, 8, false, 6, CW_MIN_SUB, 4, 0, PLAIN, NULL, q4_k_split, q4_k_join, NO_GRID},
    {CW_TYPE_Q5_K, 256, 8, false, 6, CW_MIN_SUB, 5, 0, PLAIN, NULL, q5_k_split, q5_k_join, NO_GRID},
    {CW_TYPE_Q6_K, 256, 16, true, 8, CW_MIN_NONE, 6, 32, PLAIN, NULL, q6_k_split, q6_k_join, NO_GRID},
    {CW_TYPE_IQ4_XS, 256, 8, true, 6, CW_MIN_NONE, 4, 0, PLAIN, iq4_values, iq4_xs_split, iq4_xs_join,
     NO_GRID},
};
/* clang-format on */

const cw_format *cw_format_get(uint32_t gguf_type)
{
    for (size_t i = 0; i < CW_ARRAY_LEN(formats); i++)
        if (formats[i].type == gguf_type) return &formats[i];
    return cw_format_iq(gguf_type);
}

static float scale_of(const cw_format *f, const cw_block *b)
{
    if (f->d_form != CW_D_E8M0) return cw_f16_to_f32(b->d);
    /* 2^(e - 128), down into the subnormals. */
    unsigned e = b->d;
    return cw_f32_from_bits(e < 2 ? UINT32_C(0x200000) << e : (e - 1) << 23);
}

bool cw_block_finite(const cw_format *f, const cw_block *b)
{
    if (f->d_form == CW_D_E8M0) return b->d != 255;
    return (b->d & 0x7c00) != 0x7c00 && (f->min == CW_MIN_NONE || (b->dmin & 0x7c00) != 0x7c00);
}

void cw_block_values(const cw_format *f, const cw_block *b, cw_values *v)
{
    v->per_sub = f->n_sub ? f->block / f->n_sub : 32;
    v->has_min = f->min != CW_MIN_NONE;
    v->d = scale_of(f, b);
    v->dmin = !v->has_min ? 0.0f : f->min == CW_MIN_F16 ? -cw_f16_to_f32(b->dmin) : cw_f16_to_f32(b->dmin);
    if (f->values) {
        v->d *= f->factor;
        for (int j = 0; j < 16; j++) v->m[j] = 1;
        f->values(b->code, v);
        return;
    }
    for (int j = 0; j < f->block / v->per_sub; j++) {
        v->sc[j] = !f->n_sub ? 1 : f->signed_sc ? (int8_t)b->sc[j] : b->sc[j];
        v->m[j] = f->min == CW_MIN_SUB ? b->m[j] : 1;
    }
    for (int i = 0; i < f->block; i++)
        v->v[i] = (int8_t)(f->lut ? f->lut[b->code[i]] : b->code[i] - f->offset);
}
