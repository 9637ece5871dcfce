/*
 * Blocks of file rows into the lanes of a panel (internal.h draws both ends' meeting point, the panel; the
 * tensor room's block.c tells the file's layouts). The way back goes through cw_block and is slow; a load of
 * many gigabytes waits for this way, so nothing is taken apart into single codes here: a block's bits move as
 * words of four bytes, which is what a lane of a plane holds, and where a format keeps the bits of one value
 * in other places of a byte than the panel does, the words of a block are transposed like little matrices.
 *
 * Every function of a lane: the block at p into lane r of the unit at u; false where a scale is not finite.
 */
#include "internal.h"
#include "cw/bytes.h"

#include <string.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))

static inline uint32_t word(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
static inline void put_word(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, 4);
}

/* The f16 at p to u, in the machine's order. */
static inline bool put_scale(uint8_t *u, const uint8_t *p)
{
    uint16_t h = cw_load_u16(p);
    memcpy(u, &h, 2);
    return (h & 0x7c00) != 0x7c00;
}

/* Bits (mask << shift) of x change places with bits mask of y. */
#define EXCHANGE(x, y, shift, mask)                                                                          \
    do {                                                                                                     \
        uint32_t t_ = ((x) >> (shift) ^ (y)) & (mask);                                                       \
        (y) ^= t_;                                                                                           \
        (x) ^= t_ << (shift);                                                                                \
    } while (0)

/* 16 bytes that hold value j low and 16 + j high, as the planes do: Q4_0 and its kin. */
static ALWAYS_INLINE void nibbles(const uint8_t *p, uint8_t *q)
{
    for (int g = 0; g < 4; g++) put_word(q + 64 * g, word(p + 4 * g));
}

/* 32 bytes whose low nibbles are 32 values, to the planes at q0, and the high ones another 32, to q1. */
static ALWAYS_INLINE void nibble_runs(const uint8_t *p, uint8_t *q0, uint8_t *q1)
{
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        uint32_t a = word(p + 4 * g), b = word(p + 16 + 4 * g);
        EXCHANGE(a, b, 4, 0x0f0f0f0f);
        put_word(q0 + 64 * g, a);
        put_word(q1 + 64 * g, b);
    }
}

/* 32 bytes of bit pairs, pair r of byte i for value 32 r + i, to two planes for each r; q: those of r = 0. */
static ALWAYS_INLINE void pair_runs(const uint8_t *p, uint8_t *q, const int sub_bytes)
{
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) {
        uint32_t x[4];
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) x[t] = word(p + 16 * v + 4 * t);
        EXCHANGE(x[0], x[2], 4, 0x0f0f0f0f);
        EXCHANGE(x[1], x[3], 4, 0x0f0f0f0f);
        EXCHANGE(x[0], x[1], 2, 0x33333333);
        EXCHANGE(x[2], x[3], 2, 0x33333333);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) put_word(q + r * sub_bytes + 64 * v, x[r]);
    }
}

/* 32 bytes of single bits, bit s of byte i for value 32 s + i, to a plane for each s; q: that of s = 0. */
static ALWAYS_INLINE void bit_runs(const uint8_t *p, uint8_t *q, const int sub_bytes)
{
    uint32_t x[8];
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) x[g] = word(p + 4 * g);
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) EXCHANGE(x[g], x[g + 4], 4, 0x0f0f0f0f);
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) EXCHANGE(x[g / 2 * 4 + g % 2], x[g / 2 * 4 + g % 2 + 2], 2, 0x33333333);
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) EXCHANGE(x[2 * g], x[2 * g + 1], 1, 0x55555555);
#pragma GCC unroll 8
    for (int s = 0; s < 8; s++) put_word(q + s * sub_bytes, x[s]);
}

/* 32 bits, one for each of 32 values in order, to a plane. The product puts four neighbours into bytes. */
static ALWAYS_INLINE void bits_in_order(const uint8_t *p, uint8_t *q)
{
    uint32_t h = cw_load_u32(p), plane = 0;
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) plane |= ((h >> 4 * g & 15) * 0x00204081 & 0x01010101) << g;
    cw_store_u32(q, plane);
}

/* n bytes to every 16th of u. */
static ALWAYS_INLINE void spread(const uint8_t *p, uint8_t *u, const int n)
{
#pragma GCC unroll 16
    for (int i = 0; i < n; i++) u[16 * i] = p[i];
}

static ALWAYS_INLINE bool lane_q8_0(const uint8_t *restrict p, uint8_t *restrict u, const cw_layout l, int r)
{
    for (int g = 0; g < 8; g++) put_word(u + l.q + 4 * r + 64 * g, word(p + 2 + 4 * g) ^ 0x80808080);
    return put_scale(u + 2 * r, p);
}

static ALWAYS_INLINE bool lane_q4_0(const uint8_t *restrict p, uint8_t *restrict u, const cw_layout l, int r)
{
    nibbles(p + 2, u + l.q + 4 * r);
    return put_scale(u + 2 * r, p);
}

static ALWAYS_INLINE bool lane_q4_1(const uint8_t *restrict p, uint8_t *restrict u, const cw_layout l, int r)
{
    nibbles(p + 4, u + l.q + 4 * r);
    return put_scale(u + 2 * r, p) & put_scale(u + l.dmin + 2 * r, p + 2);
}

static ALWAYS_INLINE bool lane_q5_0(const uint8_t *restrict p, uint8_t *restrict u, const cw_layout l, int r)
{
    bits_in_order(p + 2, u + l.q + 4 * r + 256);
    nibbles(p + 6, u + l.q + 4 * r);
    return put_scale(u + 2 * r, p);
}

static ALWAYS_INLINE bool lane_q5_1(const uint8_t *restrict p, uint8_t *restrict u, const cw_layout l, int r)
{
    bits_in_order(p + 4, u + l.q + 4 * r + 256);
    nibbles(p + 8, u + l.q + 4 * r);
    return put_scale(u + 2 * r, p) & put_scale(u + l.dmin + 2 * r, p + 2);
}

static ALWAYS_INLINE bool lane_mxfp4(const uint8_t *restrict p, uint8_t *restrict u, const cw_layout l, int r)
{
    nibbles(p + 1, u + l.q + 4 * r);
    u[r] = p[0];
    return p[0] != 255;
}

/* Q2_K's bytes of scale and minimum are the panel's. */
static ALWAYS_INLINE bool lane_q2_k(const uint8_t *restrict p, uint8_t *restrict u, const cw_layout l, int r)
{
    spread(p, u + l.sc + r, 16);
    for (int half = 0; half < 2; half++) pair_runs(p + 16 + 32 * half, u + l.q + 4 * r + 4 * 128 * half, 128);
    return put_scale(u + 2 * r, p + 80) & put_scale(u + l.dmin + 2 * r, p + 82);
}

/* In the file byte j holds the nibbles of scales j and 8 + j, and byte 8 + j the upper pairs of j, 4 + j, 8 +
 * j, 12 + j; in the panel those of neighbours, 2 s and 2 s + 1, and 4 s to 4 s + 3. */
static ALWAYS_INLINE bool lane_q3_k(const uint8_t *restrict p, uint8_t *restrict u, const cw_layout l, int r)
{
    const uint8_t *f = p + 96;
    uint8_t *sc = u + l.sc + r;
    for (int s = 0; s < 4; s++) {
        sc[16 * s] = (uint8_t)((f[2 * s] & 15) | f[2 * s + 1] << 4);
        sc[16 * (s + 4)] = (uint8_t)(f[2 * s] >> 4 | (f[2 * s + 1] & 0xf0));
        sc[128 + 16 * s] = (uint8_t)((f[8] >> 2 * s & 3) | (f[9] >> 2 * s & 3) << 2 |
                                     (f[10] >> 2 * s & 3) << 4 | (f[11] >> 2 * s & 3) << 6);
    }
    for (int half = 0; half < 2; half++) pair_runs(p + 32 + 32 * half, u + l.q + 4 * r + 4 * 192 * half, 192);
    bit_runs(p, u + l.q + 4 * r + 128, 192);
    return put_scale(u + 2 * r, p + 108);
}

/* Eight scales and eight minima of 6 bits in 12 bytes (block.c), to a byte each. */
static ALWAYS_INLINE void scales_k(const uint8_t *p, uint8_t *u, const cw_layout l, int r)
{
    uint32_t a = word(p), b = word(p + 4), c = word(p + 8);
    uint32_t sixes[4] = {
        a & 0x3f3f3f3f,
        (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030),
        b & 0x3f3f3f3f,
        (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030),
    };
    uint8_t bytes[16];
    memcpy(bytes, sixes, 16);
    spread(bytes, u + l.sc + r, 8);
    spread(bytes + 8, u + l.m + r, 8);
}

static ALWAYS_INLINE bool lane_q4_k(const uint8_t *restrict p, uint8_t *restrict u, const cw_layout l, int r)
{
    scales_k(p + 4, u, l, r);
    uint8_t *q = u + l.q + 4 * r;
#pragma GCC unroll 4
    for (int run = 0; run < 4; run++)
        nibble_runs(p + 16 + 32 * run, q + 2 * 256 * run, q + 2 * 256 * run + 256);
    return put_scale(u + 2 * r, p) & put_scale(u + l.dmin + 2 * r, p + 2);
}

static ALWAYS_INLINE bool lane_q5_k(const uint8_t *restrict p, uint8_t *restrict u, const cw_layout l, int r)
{
    scales_k(p + 4, u, l, r);
    uint8_t *q = u + l.q + 4 * r;
    bit_runs(p + 16, q + 256, 320);
#pragma GCC unroll 4
    for (int run = 0; run < 4; run++)
        nibble_runs(p + 48 + 32 * run, q + 2 * 320 * run, q + 2 * 320 * run + 320);
    return put_scale(u + 2 * r, p) & put_scale(u + l.dmin + 2 * r, p + 2);
}

/* In each half of 128 values low nibbles are those of runs 0 and 1 of 32, high ones of 2 and 3. */
static ALWAYS_INLINE bool lane_q6_k(const uint8_t *restrict p, uint8_t *restrict u, const cw_layout l, int r)
{
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        uint8_t *q = u + l.q + 4 * r + 4 * 384 * half;
        for (int run = 0; run < 2; run++)
            nibble_runs(p + 64 * half + 32 * run, q + 384 * run, q + 384 * (run + 2));
        pair_runs(p + 128 + 32 * half, q + 256, 384);
    }
    spread(p + 192, u + l.sc + r, 16);
    return put_scale(u + 2 * r, p + 208);
}

/* Scales of 6 bits, 32 more than their value: low nibbles in 4 bytes, upper pairs in 16 bits. */
static ALWAYS_INLINE bool lane_iq4_xs(const uint8_t *restrict p, uint8_t *restrict u, const cw_layout l,
                                      int r)
{
    unsigned high = cw_load_u16(p + 2);
    for (int s = 0; s < 8; s++) {
        unsigned low = p[4 + s / 2] >> 4 * (s % 2) & 15u;
        u[l.sc + 16 * s + r] = (uint8_t)((low | (high >> 2 * s & 3) << 4) - 32);
        nibbles(p + 8 + 16 * s, u + l.q + 4 * r + 256 * s);
    }
    return put_scale(u + 2 * r, p);
}

/* Units outermost, rows inside, so that a unit is written while it is in the first-level cache. */
#define PANEL(name, block_bytes)                                                                             \
    static void panel_##name(const cw_layout l, uint8_t *panel, int64_t n_units, const uint8_t *src,         \
                             size_t row_bytes, int n, bool *good)                                            \
    {                                                                                                        \
        for (int64_t i = 0; i < n_units; i++, panel += l.unit_bytes, src += (block_bytes))                   \
            for (int r = 0; r < n; r++)                                                                      \
                if (!lane_##name(src + (size_t)r * row_bytes, panel, l, r)) good[r] = false;                 \
    }
PANEL(q8_0, 34)
PANEL(q4_0, 18)
PANEL(q4_1, 20)
PANEL(q5_0, 22)
PANEL(q5_1, 24)
PANEL(mxfp4, 17)
PANEL(q2_k, 84)
PANEL(q3_k, 110)
PANEL(q4_k, 144)
PANEL(q5_k, 176)
PANEL(q6_k, 210)
PANEL(iq4_xs, 136)

/* Formats with a codebook: a block's bytes after d as words. */
static void panel_words(const cw_format *f, const cw_layout l, uint8_t *panel, int64_t n_units,
                        const uint8_t *src, size_t row_bytes, int n, bool *good)
{
    const int d_bytes = l.q ? 2 : 0, words = f->words;
    for (int64_t i = 0; i < n_units; i++, panel += l.unit_bytes, src += d_bytes + 4 * words)
        for (int r = 0; r < n; r++) {
            const uint8_t *p = src + (size_t)r * row_bytes;
            for (int w = 0; w < words; w++) put_word(panel + l.q + 64 * w + 4 * r, word(p + d_bytes + 4 * w));
            if (d_bytes) {
                if (!put_scale(panel + 2 * r, p)) good[r] = false;
                continue;
            }
            cw_block b; /* d lies in pieces among the words */
            f->split(p, &b);
            if (!cw_block_finite(f, &b)) good[r] = false;
        }
}

void cw_pack_panel(const cw_format *f, uint8_t *panel, int64_t n_units, const uint8_t *src, size_t row_bytes,
                   int n, bool *good)
{
    static const struct {
        uint32_t type;
        void (*fn)(const cw_layout, uint8_t *, int64_t, const uint8_t *, size_t, int, bool *);
    } table[] = {
        {CW_TYPE_Q8_0, panel_q8_0},     {CW_TYPE_Q4_0, panel_q4_0}, {CW_TYPE_Q4_1, panel_q4_1},
        {CW_TYPE_Q5_0, panel_q5_0},     {CW_TYPE_Q5_1, panel_q5_1}, {CW_TYPE_IQ4_NL, panel_q4_0},
        {CW_TYPE_MXFP4, panel_mxfp4},   {CW_TYPE_Q2_K, panel_q2_k}, {CW_TYPE_Q3_K, panel_q3_k},
        {CW_TYPE_Q4_K, panel_q4_k},     {CW_TYPE_Q5_K, panel_q5_k}, {CW_TYPE_Q6_K, panel_q6_k},
        {CW_TYPE_IQ4_XS, panel_iq4_xs},
    };
    const cw_layout l = cw_layout_of(cw_shape_of(f));
    if (f->words) {
        panel_words(f, l, panel, n_units, src, row_bytes, n, good);
        return;
    }
    for (size_t i = 0; i < CW_ARRAY_LEN(table); i++) {
        if (table[i].type != f->type) continue;
        table[i].fn(l, panel, n_units, src, row_bytes, n, good);
        return;
    }
    CW_ASSERT(!"a format that nobody packs");
}
