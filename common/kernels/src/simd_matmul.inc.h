/* clang-format off: a list */
/*
 * The matrix products, once for all vector instruction sets: lanes run across output rows, so every lane does
 * what the scalar reference does for its row, in the same order. The including file defines, for a vector of
 * LANES 32-bit lanes (16, 8 or 4; a panel is 16 / LANES strips):
 *
 *   vf, vi                               vectors of f32 and of bytes or int32
 *   vf_zero vf_set1 vf_load vf_mul vf_from_i32
 *   vf_store_n(p, v, n)                  the first n (1..LANES) lanes
 *   vf_fma(a, b, c) = a * b + c, vf_fnma(a, b, c) = -(a * b) + c, rounded once
 *   vf_f16(p) vf_bf16(p)                 LANES halves to f32
 *   vf_u8(p) vi_i8(p)                    LANES bytes to f32, signed bytes to int32
 *   vf_cast(v)                           the bits of int32 lanes as f32
 *   vi_u8(p) vi_set1_i32 vi_shl32 vi_shr32(v, n)
 *                                        LANES bytes to int32, an int32 in each lane, logical shifts of them
 *   vi_add8                              bytewise
 *   vi_negated(v, signs, h)              byte j of a lane negated where bit 4h + j of the lane of signs is
 * set vi_gather4(p, v)                     lanes of 4 bytes from p + 4 * v vi_gather8(p, v, out) 8 bytes from
 * p + 8 * v: the first four in out[0], the others in out[1] vi_load vi_and vi_or vi_xor vi_set1_8 vi_add32
 * vi_mul32 vi_shl(v, n) vi_shr(v, n)            on 16-bit lanes; bits that cross bytes are masked off
 * SIGNED_CODES(bits, lut)              whether codes of 8 bits or through a table are wanted as int8; else
 * they stay offset by 128 vi_lut_load(lut, sgn) 16 bytes for vi_lut, offset by 128 unless sgn vi_lut(table,
 * v)                     table[v] bytewise vi_dot(w, x, g0, g1, bits, sgn, init) init + the sum over groups
 * g0..g1-1 of w[g] (4 codes a lane) with x[4g..] ROWS_MAX rows of y whose accumulators fit the registers: 8
 * or 4 PREFETCH_BYTES                       how far ahead in the panel to ask for memory MATMUL(name) names
 * the functions
 */
/* clang-format on */

#include "simd_codes.inc.h"

/* Strips of one row's tile: half a panel at a time leaves too little to do between one load and the next, and
 * reads every line of the panel twice. */
enum { Q_STRIPS_MAX = Q_STRIPS_ONE > Q_STRIPS ? Q_STRIPS_ONE : Q_STRIPS };

/* LANES columns of y: where their weights lie. Consecutive strips are halves of a panel, or panels. */
typedef struct {
    const uint8_t *panel;
    int lane0;
    int64_t col;
    int n_cols;
} strip;

static inline strip strip_of(const cw_weight *w, int64_t index)
{
    int64_t col = index * LANES, left = w->n - col;
    return (strip){.panel = w->data + (size_t)(col / CW_PANEL_ROWS) * w->panel_bytes,
                   .lane0 = (int)(col % CW_PANEL_ROWS),
                   .col = col,
                   .n_cols = left < LANES ? (int)left : LANES};
}

/*
 * The exact integer sums of one block for nr rows and ns strips. Groups are outermost: a weight is taken
 * apart once for all rows, and the sums in flight do not wait for each other. Types with sub-block scales of
 * 16 values go in two halves, whose sums are scaled in integers.
 */
static ALWAYS_INLINE void block_isums(const q_spec s, const cw_a8 *a, const int64_t *x_at, int64_t block,
                                      int sub, const int nr, const uint8_t *const *q, vi sc[][Q_STRIPS_MAX],
                                      const int ns, vi isum[][Q_STRIPS_MAX])
{
    const bool sgn = SIGNED_CODES(s.bits, s.lut != NULL), sub16 = s.n_sub == s.block / 16;
    const int offset = sgn ? 0 : s.bits >= 7 || s.lut ? 128 : s.offset, halves = sub16 ? 2 : 1;
    const vi table = s.lut ? vi_lut_load(s.lut, sgn) : vi_set1_8(0);
#pragma GCC unroll 2
    for (int h = 0; h < halves; h++) {
        vq part[Q_ROWS][Q_STRIPS_MAX];
        vi eight[Q_STRIPS_MAX][2]; /* with a codebook: groups g and g + 1 */
#pragma GCC unroll 8
        for (int i = 0; i < nr; i++) {
            int64_t at = x_at[i] + block;
            int32_t xsum = !sub16 ? a->sum[at] : h == 0 ? a->lo[at] : a->sum[at] - a->lo[at];
#pragma GCC unroll 2
            for (int t = 0; t < ns; t++) part[i][t] = vq_begin(offset ? -offset * xsum : 0);
        }
#pragma GCC unroll 8
        for (int e = 0; e < 8; e++) {
            if (e >= 8 / halves) break;
            const int g = 8 / halves * h + e;
            vi w[Q_STRIPS_MAX];
#pragma GCC unroll 2
            for (int t = 0; t < ns; t++) {
                if (s.grid && g % 2 == 0) grid_eight(s.grid, q[t], sub, g / 2, eight[t]);
                w[t] = !s.grid ? group_of(s, sgn, q[t], g, table)
                       : sgn   ? eight[t][g % 2]
                               : vi_xor(eight[t][g % 2], vi_set1_8((char)0x80));
            }
#pragma GCC unroll 8
            for (int i = 0; i < nr; i++) {
                vi x = vi_set1_32(a->q + 32 * (x_at[i] + block) + 4 * g);
#pragma GCC unroll 2
                for (int t = 0; t < ns; t++) part[i][t] = vq_add(part[i][t], w[t], x, g, s.bits, sgn);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < nr; i++) {
#pragma GCC unroll 2
            for (int t = 0; t < ns; t++) {
                vi v = vq_end(part[i][t]);
                if (sub16) v = vi_mul32(v, sc[h][t]);
                isum[i][t] = h == 0 ? v : vi_add32(isum[i][t], v);
            }
        }
    }
}

/*
 * Asks for every line of what will be read PREFETCH_BYTES after [at, at + bytes) of the panel: in the next
 * panel of this strip, where this one ends. A line the hardware would have found by itself costs a slot; one
 * that nobody asked for costs a wait.
 */
static ALWAYS_INLINE void ask_ahead(const strip *st, const int ns, size_t panel_bytes, int64_t at,
                                    const int bytes)
{
    const int lanes = LANES, whole = CW_PANEL_ROWS;
    if (lanes < whole && st->lane0) return; /* the lines of the panel's first strip */
    size_t ahead = (size_t)at + PREFETCH_BYTES;
    if (lanes == whole && ahead >= panel_bytes) ahead += (size_t)(ns - 1) * panel_bytes;
    for (int b = 0; b < bytes; b += 64)
        __builtin_prefetch((const void *)((uintptr_t)st->panel + ahead + (size_t)b));
}

/* nr rows of y from i0, ns strips: one value of x is read for ns products, one weight for nr. */
static ALWAYS_INLINE void q_tile(const q_spec s, const cw_mm *mm, const strip *st, const int ns, int32_t i0,
                                 const int nr)
{
    const cw_layout l = layout_of(s);
    const bool sub16 = s.n_sub == s.block / 16, min16 = sub16 && s.min == CW_MIN_SUB;
    const cw_a8 *a = mm->a8;
    int64_t x_at[Q_ROWS]; /* block of x of each row */
    vf acc[Q_ROWS][Q_STRIPS_MAX];
#pragma GCC unroll 8
    for (int i = 0; i < nr; i++) {
        x_at[i] = cw_mm_source(mm, i0 + i) * (a->ld / 32);
#pragma GCC unroll 2
        for (int t = 0; t < ns; t++) acc[i][t] = vf_zero();
    }
    const int part_bytes = l.unit_bytes / (s.block / 32); /* of the unit, that goes with 32 values */
    int64_t n_units = mm->w->k / s.block, block = 0;
    for (int64_t unit = 0, at_unit = 0; unit < n_units; unit++, at_unit += l.unit_bytes) {
        for (int sub = 0; sub < s.block / 32; sub++, block++) {
            vi isum[Q_ROWS][Q_STRIPS_MAX];
            vf w_scale[Q_STRIPS_MAX], w_min[Q_STRIPS_MAX];
            vi sc[2][Q_STRIPS_MAX], m[2][Q_STRIPS_MAX];
            const uint8_t *q[Q_STRIPS_MAX];
#pragma GCC unroll 2
            for (int t = 0; t < ns; t++) {
                const uint8_t *u = st[t].panel + at_unit;
                const int lane0 = st[t].lane0;
                q[t] = u + l.q + sub * l.sub_bytes + 4 * lane0;
                ask_ahead(&st[t], ns, mm->w->panel_bytes, at_unit + sub * part_bytes, part_bytes);
                w_scale[t] = d_of(s, u, lane0);
                if (s.grid && !sub16)
                    w_scale[t] = vf_mul(w_scale[t], vf_from_i32(grid_scale(s.grid, q[t], sub, 0)));
                else if (s.n_sub && !sub16) {
                    const uint8_t *at = u + l.sc + 16 * sub + lane0;
                    w_scale[t] = vf_mul(w_scale[t], s.signed_sc ? vf_from_i32(vi_i8(at)) : vf_u8(at));
                }
                if (s.min != CW_MIN_NONE) w_min[t] = vf_f16(u + l.dmin + 2 * lane0);
                if (s.min == CW_MIN_SUB && !sub16)
                    w_min[t] = vf_mul(w_min[t], vf_u8(u + l.m + 16 * sub + lane0));
#pragma GCC unroll 2
                for (int h = 0; sub16 && h < 2; h++) {
                    sc[h][t] = scale16_of(s, u, lane0, sub, h);
                    if (min16) m[h][t] = min16_of(s, u, lane0, sub, h);
                }
            }
            block_isums(s, a, x_at, block, sub, nr, q, sc, ns, isum);
#pragma GCC unroll 8
            for (int i = 0; i < nr; i++) {
                int64_t at = x_at[i] + block;
                const vf x_scale = vf_set1(a->s[at]);
#pragma GCC unroll 2
                for (int t = 0; t < ns; t++) {
                    acc[i][t] = vf_fma(vf_mul(w_scale[t], x_scale), vf_from_i32(isum[i][t]), acc[i][t]);
                    if (min16) {
                        vi lo = vi_mul32(m[0][t], vi_set1_i32(a->lo[at]));
                        vi hi = vi_mul32(m[1][t], vi_set1_i32(a->sum[at] - a->lo[at]));
                        acc[i][t] =
                            vf_fnma(vf_mul(w_min[t], x_scale), vf_from_i32(vi_add32(lo, hi)), acc[i][t]);
                    } else if (s.min == CW_MIN_SUB)
                        acc[i][t] = vf_fnma(w_min[t], vf_set1(a->ssum[at]), acc[i][t]);
                    if (s.min == CW_MIN_F16) acc[i][t] = vf_fma(w_min[t], vf_set1(a->ssum[at]), acc[i][t]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < nr; i++)
#pragma GCC unroll 2
        for (int t = 0; t < ns; t++)
            vf_store_n(mm->y + (i0 + i) * mm->ldy + st[t].col, acc[i][t], st[t].n_cols);
}

typedef enum { KIND_F32, KIND_F16, KIND_BF16 } f_kind;

static ALWAYS_INLINE void f_tile(const f_kind kind, const cw_mm *mm, const strip *st, const int ns,
                                 int32_t i0, const int nr)
{
    const int size = kind == KIND_F32 ? 4 : 2;
    const float *x[F_ROWS];
    const uint8_t *p[F_STRIPS];
    vf acc[F_ROWS][F_STRIPS];
#pragma GCC unroll 8
    for (int i = 0; i < nr; i++) {
        x[i] = mm->f32 + cw_mm_source(mm, i0 + i) * mm->ldx;
#pragma GCC unroll 2
        for (int t = 0; t < ns; t++) acc[i][t] = vf_zero();
    }
#pragma GCC unroll 2
    for (int t = 0; t < ns; t++) p[t] = st[t].panel + st[t].lane0 * size;
    for (int64_t k = 0; k < mm->w->k; k++) {
        vf w[F_STRIPS];
#pragma GCC unroll 2
        for (int t = 0; t < ns; t++) {
            w[t] = kind == KIND_F32 ? vf_load(p[t]) : kind == KIND_F16 ? vf_f16(p[t]) : vf_bf16(p[t]);
            p[t] += CW_PANEL_ROWS * size;
        }
#pragma GCC unroll 8
        for (int i = 0; i < nr; i++) {
            vf v = vf_set1(x[i][k]);
#pragma GCC unroll 2
            for (int t = 0; t < ns; t++) acc[i][t] = vf_fma(w[t], v, acc[i][t]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < nr; i++)
#pragma GCC unroll 2
        for (int t = 0; t < ns; t++)
            vf_store_n(mm->y + (i0 + i) * mm->ldy + st[t].col, acc[i][t], st[t].n_cols);
}

/* Rows of y from row0 in tiles of rows_max (8 or 4), then 4, 2, 1, for ns strips. */
#define OVER_ROWS(TILE, rows_max, ns)                                                                        \
    do {                                                                                                     \
        int32_t i = row0;                                                                                    \
        if ((rows_max) == 8)                                                                                 \
            for (; i + 8 <= row1; i += 8) TILE(spec, mm, st, ns, i, (rows_max) == 8 ? 8 : 1);                \
        for (; i + 4 <= row1; i += 4) TILE(spec, mm, st, ns, i, 4);                                          \
        if (i + 2 <= row1) {                                                                                 \
            TILE(spec, mm, st, ns, i, 2);                                                                    \
            i += 2;                                                                                          \
        }                                                                                                    \
        if (i < row1) TILE(spec, mm, st, ns, i, 1);                                                          \
    } while (0)

#define ONE_ROW(TILE, rows_max, ns) TILE(spec, mm, st, ns, row0, 1)

/*
 * Strips outermost, so that a panel stays in the second-level cache for all its rows. (Cutting k into spans
 * that fit the first level was measured: slower.) Strips wholly beyond n are left out.
 */
#define OVER_STRIPS(ROWS, TILE, rows_max, strips)                                                            \
    do {                                                                                                     \
        int64_t at = panel0 * (CW_PANEL_ROWS / LANES), end = panel1 * (CW_PANEL_ROWS / LANES);               \
        int64_t last = (mm->w->n + LANES - 1) / LANES;                                                       \
        if (end > last) end = last;                                                                          \
        for (; at + (strips) <= end; at += (strips)) {                                                       \
            strip st[strips];                                                                                \
            for (int t = 0; t < (strips); t++) st[t] = strip_of(mm->w, at + t);                              \
            ROWS(TILE, rows_max, strips);                                                                    \
        }                                                                                                    \
        for (; at < end; at++) {                                                                             \
            strip st[1] = {strip_of(mm->w, at)};                                                             \
            ROWS(TILE, rows_max, 1);                                                                         \
        }                                                                                                    \
    } while (0)

#define Q_TYPE(type, ...)                                                                                    \
    static void MATMUL(type)(const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0, int32_t row1)    \
    {                                                                                                        \
        const q_spec spec = {__VA_ARGS__};                                                                   \
        if (Q_STRIPS_ONE != Q_STRIPS && row1 - row0 == 1)                                                    \
            OVER_STRIPS(ONE_ROW, q_tile, 1, Q_STRIPS_ONE);                                                   \
        else                                                                                                 \
            OVER_STRIPS(OVER_ROWS, q_tile, Q_ROWS, Q_STRIPS);                                                \
    }

#define F_TYPE(type, kind)                                                                                   \
    static void MATMUL(type)(const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0, int32_t row1)    \
    {                                                                                                        \
        const f_kind spec = kind;                                                                            \
        OVER_STRIPS(OVER_ROWS, f_tile, F_ROWS, F_STRIPS);                                                    \
    }

#include "simd_types.inc.h"

F_TYPE(f32, KIND_F32)
F_TYPE(f16, KIND_F16)
F_TYPE(bf16, KIND_BF16)

static void MATMUL(any)(const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0, int32_t row1)
{
    static const struct {
        uint32_t type;
        void (*fn)(const cw_mm *, int64_t, int64_t, int32_t, int32_t);
    } table[] = {
        {CW_TYPE_Q8_0, MATMUL(q8_0)},       {CW_TYPE_Q4_0, MATMUL(q4_0)},
        {CW_TYPE_Q4_1, MATMUL(q4_1)},       {CW_TYPE_Q5_0, MATMUL(q5_0)},
        {CW_TYPE_Q5_1, MATMUL(q5_1)},       {CW_TYPE_IQ4_NL, MATMUL(iq4_nl)},
        {CW_TYPE_Q4_K, MATMUL(q4_k)},       {CW_TYPE_Q5_K, MATMUL(q5_k)},
        {CW_TYPE_Q6_K, MATMUL(q6_k)},       {CW_TYPE_Q2_K, MATMUL(q2_k)},
        {CW_TYPE_Q3_K, MATMUL(q3_k)},       {CW_TYPE_IQ4_XS, MATMUL(iq4_xs)},
        {CW_TYPE_MXFP4, MATMUL(mxfp4)},     {CW_TYPE_IQ1_S, MATMUL(iq1_s)},
        {CW_TYPE_IQ1_M, MATMUL(iq1_m)},     {CW_TYPE_IQ2_XXS, MATMUL(iq2_xxs)},
        {CW_TYPE_IQ2_XS, MATMUL(iq2_xs)},   {CW_TYPE_IQ2_S, MATMUL(iq2_s)},
        {CW_TYPE_IQ3_XXS, MATMUL(iq3_xxs)}, {CW_TYPE_IQ3_S, MATMUL(iq3_s)},
        {CW_TYPE_F32, MATMUL(f32)},         {CW_TYPE_F16, MATMUL(f16)},
        {CW_TYPE_BF16, MATMUL(bf16)},
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(table); i++) {
        if (table[i].type != mm->w->info->type) continue;
        table[i].fn(mm, panel0, panel1, row0, row1);
        return;
    }
    cw_ref_matmul(mm, panel0, panel1, row0, row1); /* a type without a vector form yet */
}
