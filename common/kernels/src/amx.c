/*
 * AMX: products of many rows on tile registers, with AVX-512 for everything else. A panel is taken apart into
 * int8 codes and f32 scales once for up to 64 rows; a tile multiplies 16 rows by the 16 rows of a panel over
 * one block of 32 values, exactly, and the sums are scaled in the contract's order by AVX-512. So the bits
 * are those of every other instruction set.
 *
 * Where sub-blocks have 16 values, sc0 * sum0 + sc1 * sum1 is formed in f32: every such integer is at most
 * 2 * 128 * 16 * 32 * 127 < 2^24, hence exact.
 *
 * Compiled with AMX and AVX-512 flags only; dispatch.c checks the CPU and asks the system for the tiles.
 */
#include "internal.h"
#include "cw/bytes.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
#include "avx512_verbs.h"

#include <string.h>

enum { LANES = 16 };
#include "simd_codes.inc.h"

enum {
    TILE_ROWS = 16,
    TILES = 4,    /* of x, for which a panel is taken apart once */
    CHUNK = 64,   /* blocks of x laid out at a time: in the second-level cache */
    SPAN = 16,    /* blocks of a panel taken apart at a time: in the first-level cache */
    AHEAD = 2,    /* blocks */
    FEW_ROWS = 8, /* that are not worth a tile */
};

/* Rows of x as tiles want them, block by block. Rows beyond the last are zero. */
typedef struct {
    int8_t q[CHUNK][TILE_ROWS][32];
    float s[CHUNK][TILE_ROWS], ssum[CHUNK][TILE_ROWS], lo[CHUNK][TILE_ROWS], hi[CHUNK][TILE_ROWS];
} x_tile;

/* Blocks of a panel. code: group g of a block as in a plane of bytes. */
typedef struct {
    int8_t code[SPAN][8][64];
    float scale[SPAN][16], min[SPAN][16];
    float sc[SPAN][2][16], m[SPAN][2][16]; /* of halves, where sub-blocks have 16 values */
} w_span;

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* Tiles: 0 to 3 sums; 4 and 6 rows of x, 5 and 7 codes, of a block or of half of one. */
static void configure_tiles(const bool halves)
{
    static const tile_config configs[2] __attribute__((aligned(64))) = {
        {.palette = 1, .row_bytes = {64, 64, 64, 64, 32, 64, 32, 64}, .rows = {16, 16, 16, 16, 16, 8, 16, 8}},
        {.palette = 1, .row_bytes = {64, 64, 64, 64, 16, 64, 16, 64}, .rows = {16, 16, 16, 16, 16, 4, 16, 4}},
    };
    _tile_loadconfig(&configs[halves]);
}

/* What the compiler wrote is in memory: tile loads do not say that they read it. */
static ALWAYS_INLINE void written(void)
{
    __asm__ volatile("" ::: "memory");
}

static ALWAYS_INLINE vi signed_codes(const q_spec s, vi v)
{
    if (s.grid) return v;
    if (s.lut) return v; /* the table was loaded signed */
    if (s.bits == 8) return vi_xor(v, vi_set1_8((char)0x80));
    return s.offset ? _mm512_sub_epi8(v, vi_set1_8((char)s.offset)) : v;
}

/* Blocks [block, block + n) of a panel; n never crosses a unit's end unevenly: both are whole units or parts
 * of one. */
static ALWAYS_INLINE void take_apart(const q_spec s, const uint8_t *panel, int64_t block, const int n,
                                     w_span *w)
{
    const cw_layout l = layout_of(s);
    const int per_unit = s.block / 32;
    const bool sub16 = s.n_sub == s.block / 16, min16 = sub16 && s.min == CW_MIN_SUB;
    const vi table = s.lut ? vi_lut_load(s.lut, true) : vi_set1_8(0);
    for (int b = 0; b < n; b++) {
        const int sub = (int)((block + b) % per_unit);
        const uint8_t *u = panel + (block + b) / per_unit * l.unit_bytes, *q = u + l.q + sub * l.sub_bytes;
        for (int at = 0; at < l.unit_bytes / per_unit; at += 64)
            __builtin_prefetch(u + sub * (l.unit_bytes / per_unit) + at + 2048);
#pragma GCC unroll 4
        for (int g = 0; g < 8; g += 2) {
            vi v[2];
            if (s.grid)
                grid_eight(s.grid, q, sub, g / 2, v);
            else
                for (int i = 0; i < 2; i++) v[i] = signed_codes(s, group_of(s, false, q, g + i, table));
            for (int i = 0; i < 2; i++) _mm512_store_si512(w->code[b][g + i], v[i]);
        }
        vf scale = d_of(s, u, 0);
        if (s.grid && !sub16)
            scale = vf_mul(scale, vf_from_i32(grid_scale(s.grid, q, sub, 0)));
        else if (s.n_sub && !sub16) {
            const uint8_t *at = u + l.sc + 16 * sub;
            scale = vf_mul(scale, s.signed_sc ? vf_from_i32(vi_i8(at)) : vf_u8(at));
        }
        _mm512_store_ps(w->scale[b], scale);
        if (s.min != CW_MIN_NONE) {
            vf min = vf_f16(u + l.dmin);
            if (s.min == CW_MIN_SUB && !sub16) min = vf_mul(min, vf_u8(u + l.m + 16 * sub));
            _mm512_store_ps(w->min[b], min);
        }
        for (int h = 0; sub16 && h < 2; h++) {
            _mm512_store_ps(w->sc[b][h], vf_from_i32(scale16_of(s, u, 0, sub, h)));
            if (min16) _mm512_store_ps(w->m[b][h], vf_from_i32(min16_of(s, u, 0, sub, h)));
        }
    }
    written();
}

/* Blocks [block, block + n) of rows i0 .. i0 + n_rows - 1 of the product. */
static void lay_out(const q_spec s, const cw_mm *mm, int32_t i0, int n_rows, int64_t block, int n, x_tile *x)
{
    const cw_a8 *a = mm->a8;
    const bool halves = s.n_sub == s.block / 16 && s.min == CW_MIN_SUB;
    for (int r = 0; r < TILE_ROWS; r++) {
        if (r >= n_rows) {
            for (int b = 0; b < n; b++) {
                memset(x->q[b][r], 0, 32);
                x->s[b][r] = x->ssum[b][r] = x->lo[b][r] = x->hi[b][r] = 0.0f;
            }
            continue;
        }
        int64_t row = cw_mm_source(mm, i0 + r), at = row * (a->ld / 32) + block;
        const int8_t *q = a->q + row * a->ld + 32 * block;
        for (int b = 0; b < n; b++) {
            memcpy(x->q[b][r], q + 32 * b, 32);
            x->s[b][r] = a->s[at + b];
            if (s.min != CW_MIN_NONE && !halves) x->ssum[b][r] = a->ssum[at + b];
            if (!halves) continue;
            x->lo[b][r] = (float)a->lo[at + b];
            x->hi[b][r] = (float)(a->sum[at + b] - a->lo[at + b]);
        }
    }
    written();
}

/* The exact sums of a block; of its halves, where sub-blocks have 16 values. */
typedef struct {
    int32_t at[2][TILE_ROWS][16];
} sums;

/* Tile registers are no variables: c, a, b are their numbers. */
#define PRODUCT(c, a, b, rows, codes, out)                                                                   \
    do {                                                                                                     \
        _tile_loadd(a, rows, 32);                                                                            \
        _tile_loadd(b, codes, 64);                                                                           \
        _tile_zero(c);                                                                                       \
        _tile_dpbssd(c, a, b);                                                                               \
        _tile_stored(c, out, 64);                                                                            \
    } while (0)

/* Neighbouring blocks (odd says which) use different tiles, so that they overlap. */
static ALWAYS_INLINE void multiply(const bool sub16, const int odd, const int8_t (*x)[32],
                                   const int8_t (*code)[64], sums *out)
{
    if (sub16 && odd) {
        PRODUCT(2, 4, 5, x[0], code[0], out->at[0]);
        PRODUCT(3, 6, 7, x[0] + 16, code[4], out->at[1]);
    } else if (sub16) {
        PRODUCT(0, 4, 5, x[0], code[0], out->at[0]);
        PRODUCT(1, 6, 7, x[0] + 16, code[4], out->at[1]);
    } else if (odd) {
        PRODUCT(1, 6, 7, x[0], code[0], out->at[0]);
    } else {
        PRODUCT(0, 4, 5, x[0], code[0], out->at[0]);
    }
}

/* acc += the scaled sums of block i of the span, block xb of x. */
static ALWAYS_INLINE void scale_block(const q_spec s, const x_tile *x, int xb, const w_span *w, int i,
                                      const sums *sum, vf *acc)
{
    const bool sub16 = s.n_sub == s.block / 16, min16 = sub16 && s.min == CW_MIN_SUB;
    const vf scale = vf_load(w->scale[i]);
    vf min = vf_zero(), sc[2] = {vf_zero(), vf_zero()}, m[2] = {vf_zero(), vf_zero()};
    if (s.min != CW_MIN_NONE) min = vf_load(w->min[i]);
    for (int h = 0; sub16 && h < 2; h++) {
        sc[h] = vf_load(w->sc[i][h]);
        if (min16) m[h] = vf_load(w->m[i][h]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) {
        vf isum = vf_from_i32(vi_load(sum->at[0][r]));
        if (sub16) isum = vf_fma(sc[0], isum, vf_mul(sc[1], vf_from_i32(vi_load(sum->at[1][r]))));
        const vf x_scale = vf_set1(x->s[xb][r]);
        acc[r] = vf_fma(vf_mul(scale, x_scale), isum, acc[r]);
        if (min16) {
            vf low = vf_fma(m[0], vf_set1(x->lo[xb][r]), vf_mul(m[1], vf_set1(x->hi[xb][r])));
            acc[r] = vf_fnma(vf_mul(min, x_scale), low, acc[r]);
        } else if (s.min == CW_MIN_SUB)
            acc[r] = vf_fnma(min, vf_set1(x->ssum[xb][r]), acc[r]);
        if (s.min == CW_MIN_F16) acc[r] = vf_fma(min, vf_set1(x->ssum[xb][r]), acc[r]);
    }
}

/*
 * One tile of rows and one span of a panel. Products run AHEAD blocks before their sums are scaled: a tile
 * takes a hundred cycles from load to store, and a core looks some three blocks ahead.
 */
static ALWAYS_INLINE void scale_span(const q_spec s, const x_tile *x, int xb, const w_span *w, int n,
                                     float (*y)[16])
{
    const bool sub16 = s.n_sub == s.block / 16;
    sums buffer[2 * AHEAD] __attribute__((aligned(64)));
    vf acc[TILE_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) acc[r] = vf_load(y[r]);
#pragma GCC unroll 8
    for (int i = 0; i < AHEAD; i++)
        if (i < n) multiply(sub16, i % 2, x->q[xb + i], w->code[i], &buffer[i]);
    for (int b = 0; b < n; b += 2 * AHEAD) {
#pragma GCC unroll 8
        for (int i = 0; i < 2 * AHEAD; i++) {
            const int at = b + i, next = at + AHEAD;
            if (at >= n) break;
            if (next < n)
                multiply(sub16, (i + AHEAD) % 2, x->q[xb + next], w->code[next],
                         &buffer[(i + AHEAD) % (2 * AHEAD)]);
            scale_block(s, x, xb + at, w, at, &buffer[i], acc);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) _mm512_store_ps(y[r], acc[r]);
}

/* Up to TILES * 16 rows from row0 by all panels: x chunk by chunk, y holding the sums between chunks. */
static ALWAYS_INLINE void tiles(const q_spec s, const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0,
                                int32_t n_rows)
{
    x_tile x[TILES] __attribute__((aligned(64)));
    w_span w __attribute__((aligned(64)));
    float y[TILES][TILE_ROWS][16] __attribute__((aligned(64)));
    const int64_t blocks = mm->w->k / 32;
    const int n_tiles = (n_rows + TILE_ROWS - 1) / TILE_ROWS;
    configure_tiles(s.n_sub == s.block / 16);
    for (int64_t chunk = 0; chunk < blocks; chunk += CHUNK) {
        const int in_chunk = blocks - chunk < CHUNK ? (int)(blocks - chunk) : CHUNK;
        for (int t = 0; t < n_tiles; t++) {
            int32_t left = n_rows - t * TILE_ROWS;
            lay_out(s, mm, row0 + t * TILE_ROWS, left < TILE_ROWS ? left : TILE_ROWS, chunk, in_chunk, &x[t]);
        }
        for (int64_t p = panel0; p < panel1; p++) {
            const uint8_t *panel = mm->w->data + (size_t)p * mm->w->panel_bytes;
            int64_t cols = mm->w->n - p * CW_PANEL_ROWS;
            const __mmask16 mask = cols < 16 ? (__mmask16)((1u << cols) - 1) : (__mmask16)0xffff;
            float *out = mm->y + row0 * mm->ldy + p * CW_PANEL_ROWS;
            for (int r = 0; r < n_tiles * TILE_ROWS; r++)
                _mm512_store_ps(y[r / TILE_ROWS][r % TILE_ROWS],
                                chunk && r < n_rows ? _mm512_maskz_loadu_ps(mask, out + r * mm->ldy)
                                                    : vf_zero());
            for (int b = 0; b < in_chunk; b += SPAN) {
                const int n = in_chunk - b < SPAN ? in_chunk - b : SPAN;
                take_apart(s, panel, chunk + b, n, &w);
                for (int t = 0; t < n_tiles; t++) scale_span(s, &x[t], b, &w, n, y[t]);
            }
            for (int r = 0; r < n_rows; r++)
                _mm512_mask_storeu_ps(out + r * mm->ldy, mask, vf_load(y[r / TILE_ROWS][r % TILE_ROWS]));
        }
    }
}

#define Q_TYPE(type, ...)                                                                                    \
    static void amx_##type(const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0, int32_t n_rows)    \
    {                                                                                                        \
        const q_spec spec = {__VA_ARGS__};                                                                   \
        tiles(spec, mm, panel0, panel1, row0, n_rows);                                                       \
    }
#include "simd_types.inc.h"

typedef void (*amx_fn)(const cw_mm *, int64_t, int64_t, int32_t, int32_t);

/* NULL for types that are not quantised. */
static amx_fn find(uint32_t type)
{
    static const struct {
        uint32_t type;
        amx_fn fn;
    } table[] = {
        {CW_TYPE_Q8_0, amx_q8_0},       {CW_TYPE_Q4_0, amx_q4_0},     {CW_TYPE_Q4_1, amx_q4_1},
        {CW_TYPE_Q5_0, amx_q5_0},       {CW_TYPE_Q5_1, amx_q5_1},     {CW_TYPE_IQ4_NL, amx_iq4_nl},
        {CW_TYPE_Q4_K, amx_q4_k},       {CW_TYPE_Q5_K, amx_q5_k},     {CW_TYPE_Q6_K, amx_q6_k},
        {CW_TYPE_Q2_K, amx_q2_k},       {CW_TYPE_Q3_K, amx_q3_k},     {CW_TYPE_IQ4_XS, amx_iq4_xs},
        {CW_TYPE_MXFP4, amx_mxfp4},     {CW_TYPE_IQ1_S, amx_iq1_s},   {CW_TYPE_IQ1_M, amx_iq1_m},
        {CW_TYPE_IQ2_XXS, amx_iq2_xxs}, {CW_TYPE_IQ2_XS, amx_iq2_xs}, {CW_TYPE_IQ2_S, amx_iq2_s},
        {CW_TYPE_IQ3_XXS, amx_iq3_xxs}, {CW_TYPE_IQ3_S, amx_iq3_s},
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(table); i++)
        if (table[i].type == type) return table[i].fn;
    return NULL;
}

void cw_amx_matmul(const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0, int32_t row1)
{
    const amx_fn fn = find(mm->w->info->type);
    if (fn && row1 - row0 > FEW_ROWS) {
        while (row1 - row0 > FEW_ROWS) {
            int32_t n = row1 - row0;
            if (n > TILES * TILE_ROWS) n = TILES * TILE_ROWS;
            if (n % TILE_ROWS <= FEW_ROWS) n = n < TILE_ROWS ? n : n / TILE_ROWS * TILE_ROWS;
            fn(mm, panel0, panel1, row0, n);
            row0 += n;
        }
        _tile_release();
    }
    if (row0 < row1) cw_kernels_avx512.matmul(mm, panel0, panel1, row0, row1);
}
