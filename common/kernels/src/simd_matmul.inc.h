/* clang-format off: a list */
/*
 * The matrix products, once for all vector instruction sets: lanes run across output rows, so every lane does
 * what the scalar reference does for its row, in the same order. The including file defines, for a vector of
 * LANES 32-bit lanes (16, 8 or 4; a panel is worked through 16 / LANES times):
 *
 *   vf, vi                               vectors of f32 and of bytes or int32
 *   vf_zero vf_set1 vf_load vf_mul vf_from_i32
 *   vf_store_n(p, v, n)                  the first n (1..LANES) lanes
 *   vf_fma(a, b, c) = a * b + c, vf_fnma(a, b, c) = -(a * b) + c, rounded once
 *   vf_f16(p) vf_bf16(p)                 LANES halves to f32
 *   vf_u8(p) vi_i8(p)                    LANES bytes to f32, signed bytes to int32
 *   vi_load vi_and vi_or vi_xor vi_set1_8 vi_add32 vi_mul32
 *   vi_shl(v, n) vi_shr(v, n)            on 16-bit lanes; bits that cross bytes are masked off
 *   SIGNED_CODES(bits, lut)              whether codes of 8 bits or through a table are wanted as int8; else
 * they stay offset by 128 vi_lut_load(lut, sgn)                16 bytes for vi_lut, offset by 128 unless sgn
 *   vi_lut(table, v)                     table[v] bytewise
 *   vi_dot(w, x, g0, g1, bits, sgn, init)
 *                                        init + the sum over groups g0..g1-1 of w[g] (4 codes a lane) with
 * x[4g..] ROWS_MAX                             rows of y whose accumulators fit the registers: 8 or 4
 *   PREFETCH_BYTES                       how far ahead in the panel to ask for memory
 *   MATMUL(name)                         names the functions
 */
/* clang-format on */

typedef struct {
    int block, n_sub;
    bool signed_sc;
    cw_min min;
    int bits, offset;
    const int8_t *lut;
} q_spec;

/* The codes of 32 values of LANES rows: w[g] holds values 4g..4g+3 of each row. */
static ALWAYS_INLINE void decode_codes(const q_spec s, const bool sgn, const uint8_t *q, vi *w)
{
    if (s.bits == 8) {
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) {
            w[g] = vi_load(q + 64 * g);
            if (sgn) w[g] = vi_xor(w[g], vi_set1_8((char)0x80));
        }
        return;
    }
    const vi nibble = vi_set1_8(15);
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        vi v = vi_load(q + 64 * g);
        w[g] = vi_and(v, nibble);
        w[g + 4] = vi_and(vi_shr(v, 4), nibble);
    }
    if (s.bits == 5) {
        vi h = vi_load(q + 256);
        const vi mask = vi_set1_8(16);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++)
            w[g] = vi_or(w[g], vi_and(g < 4 ? vi_shl(h, 4 - g) : vi_shr(h, g - 4), mask));
    }
    if (s.bits == 6) {
        const vi mask = vi_set1_8(48);
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            vi h = vi_load(q + 256 + 64 * v);
            w[4 * v] = vi_or(w[4 * v], vi_and(vi_shl(h, 4), mask));
            w[4 * v + 1] = vi_or(w[4 * v + 1], vi_and(vi_shl(h, 2), mask));
            w[4 * v + 2] = vi_or(w[4 * v + 2], vi_and(h, mask));
            w[4 * v + 3] = vi_or(w[4 * v + 3], vi_and(vi_shr(h, 2), mask));
        }
    }
    if (s.lut) {
        const vi table = vi_lut_load(s.lut, sgn);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) w[g] = vi_lut(table, w[g]);
    }
}

/* nr rows of y from y_row0, LANES columns from lane0 of the panel. */
static ALWAYS_INLINE void q_tile(const q_spec s, const cw_mm *mm, const uint8_t *panel, int lane0, int32_t i0,
                                 const int nr, int64_t col, int n_cols)
{
    const cw_layout l = cw_layout_of(s.block, s.n_sub, s.min, s.bits);
    const bool sgn = SIGNED_CODES(s.bits, s.lut != NULL);
    const int offset = sgn ? 0 : s.bits == 8 || s.lut ? 128 : s.offset;
    const cw_a8 *a = mm->a8;
    int64_t x_at[ROWS_MAX]; /* first block of the row */
    vf acc[ROWS_MAX];
#pragma GCC unroll 8
    for (int i = 0; i < nr; i++) {
        x_at[i] = cw_mm_source(mm, i0 + i) * (a->ld / 32);
        acc[i] = vf_zero();
    }
    const uint8_t *u = panel;
    int64_t n_units = mm->w->k / s.block, block = 0;
    for (int64_t unit = 0; unit < n_units; unit++, u += l.unit_bytes) {
        vf d = vf_f16(u + 2 * lane0), dmin = vf_zero();
        if (s.min != CW_MIN_NONE) dmin = vf_f16(u + l.dmin + 2 * lane0);
        for (int sub = 0; sub < s.block / 32; sub++, block++) {
            vi w[8];
            decode_codes(s, sgn, u + l.q + sub * l.sub_bytes + 4 * lane0, w);
            __builtin_prefetch(u + l.q + sub * l.sub_bytes + PREFETCH_BYTES);
            vf w_scale = d, w_min = dmin;
            if (s.n_sub && s.n_sub == s.block / 32) w_scale = vf_mul(d, vf_u8(u + l.sc + 16 * sub + lane0));
            if (s.min == CW_MIN_SUB) w_min = vf_mul(dmin, vf_u8(u + l.m + 16 * sub + lane0));
#pragma GCC unroll 8
            for (int i = 0; i < nr; i++) {
                int64_t at = x_at[i] + block;
                const int8_t *x = a->q + 32 * at;
                vi isum;
                if (s.n_sub == s.block / 16 && s.n_sub) {
                    /* Sub-block scales of 16 values enter in integers. */
                    int32_t lo = a->lo[at], hi = a->sum[at] - lo;
                    vi i_lo = vi_dot(w, x, 0, 4, s.bits, sgn, -offset * lo);
                    vi i_hi = vi_dot(w, x, 4, 8, s.bits, sgn, -offset * hi);
                    i_lo = vi_mul32(i_lo, vi_i8(u + l.sc + 32 * sub + lane0));
                    i_hi = vi_mul32(i_hi, vi_i8(u + l.sc + 32 * sub + 16 + lane0));
                    isum = vi_add32(i_lo, i_hi);
                } else {
                    isum = vi_dot(w, x, 0, 8, s.bits, sgn, offset ? -offset * a->sum[at] : 0);
                }
                acc[i] = vf_fma(vf_mul(w_scale, vf_set1(a->s[at])), vf_from_i32(isum), acc[i]);
                if (s.min == CW_MIN_SUB) acc[i] = vf_fnma(w_min, vf_set1(a->ssum[at]), acc[i]);
                if (s.min == CW_MIN_F16) acc[i] = vf_fma(w_min, vf_set1(a->ssum[at]), acc[i]);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < nr; i++) vf_store_n(mm->y + (i0 + i) * mm->ldy + col, acc[i], n_cols);
}

typedef enum { KIND_F32, KIND_F16, KIND_BF16 } f_kind;

static ALWAYS_INLINE void f_tile(const f_kind kind, const cw_mm *mm, const uint8_t *panel, int lane0,
                                 int32_t i0, const int nr, int64_t col, int n_cols)
{
    const int size = kind == KIND_F32 ? 4 : 2;
    const float *x[ROWS_MAX];
    vf acc[ROWS_MAX];
#pragma GCC unroll 8
    for (int i = 0; i < nr; i++) {
        x[i] = mm->f32 + cw_mm_source(mm, i0 + i) * mm->ldx;
        acc[i] = vf_zero();
    }
    const uint8_t *p = panel + lane0 * size;
    for (int64_t k = 0; k < mm->w->k; k++, p += CW_PANEL_ROWS * size) {
        vf w = kind == KIND_F32 ? vf_load(p) : kind == KIND_F16 ? vf_f16(p) : vf_bf16(p);
#pragma GCC unroll 8
        for (int i = 0; i < nr; i++) acc[i] = vf_fma(w, vf_set1(x[i][k]), acc[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < nr; i++) vf_store_n(mm->y + (i0 + i) * mm->ldy + col, acc[i], n_cols);
}

/* Panels outermost, so that one panel stays in the cache for all its rows; TILE(nr) does nr rows from i. */
#define OVER_TILES(TILE)                                                                                     \
    for (int64_t n = panel0; n < panel1; n++) {                                                              \
        const uint8_t *panel = mm->w->data + (size_t)n * mm->w->panel_bytes;                                 \
        for (int lane0 = 0; lane0 < CW_PANEL_ROWS; lane0 += LANES) {                                         \
            int64_t col = n * CW_PANEL_ROWS + lane0, left = mm->w->n - col;                                  \
            int n_cols = left < LANES ? (int)left : LANES;                                                   \
            if (n_cols <= 0) break;                                                                          \
            int32_t i = row0;                                                                                \
            if (ROWS_MAX == 8)                                                                               \
                for (; i + 8 <= row1; i += 8) TILE(8);                                                       \
            for (; i + 4 <= row1; i += 4) TILE(4);                                                           \
            if (i + 2 <= row1) {                                                                             \
                TILE(2);                                                                                     \
                i += 2;                                                                                      \
            }                                                                                                \
            if (i < row1) TILE(1);                                                                           \
        }                                                                                                    \
    }

#define Q_TYPE(type, ...)                                                                                    \
    static void MATMUL(type)(const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0, int32_t row1)    \
    {                                                                                                        \
        const q_spec spec = {__VA_ARGS__};                                                                   \
        OVER_TILES(Q_TILE)                                                                                   \
    }
#define Q_TILE(nr) q_tile(spec, mm, panel, lane0, i, nr, col, n_cols)

#define F_TYPE(type, kind)                                                                                   \
    static void MATMUL(type)(const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0, int32_t row1)    \
    {                                                                                                        \
        const f_kind spec = kind;                                                                            \
        OVER_TILES(F_TILE)                                                                                   \
    }
#define F_TILE(nr) f_tile(spec, mm, panel, lane0, i, nr, col, n_cols)

static const int8_t iq4_nl_lut[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};

/* The rows of the tensor room's format table, as constants the compiler can unfold. */
Q_TYPE(q8_0, 32, 0, false, CW_MIN_NONE, 8, 128, NULL)
Q_TYPE(q4_0, 32, 0, false, CW_MIN_NONE, 4, 8, NULL)
Q_TYPE(q4_1, 32, 0, false, CW_MIN_F16, 4, 0, NULL)
Q_TYPE(q5_0, 32, 0, false, CW_MIN_NONE, 5, 16, NULL)
Q_TYPE(q5_1, 32, 0, false, CW_MIN_F16, 5, 0, NULL)
Q_TYPE(iq4_nl, 32, 0, false, CW_MIN_NONE, 4, 0, iq4_nl_lut)
Q_TYPE(q4_k, 256, 8, false, CW_MIN_SUB, 4, 0, NULL)
Q_TYPE(q5_k, 256, 8, false, CW_MIN_SUB, 5, 0, NULL)
Q_TYPE(q6_k, 256, 16, true, CW_MIN_NONE, 6, 32, NULL)
F_TYPE(f32, KIND_F32)
F_TYPE(f16, KIND_F16)
F_TYPE(bf16, KIND_BF16)

static void MATMUL(any)(const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0, int32_t row1)
{
    static const struct {
        uint32_t type;
        void (*fn)(const cw_mm *, int64_t, int64_t, int32_t, int32_t);
    } table[] = {
        {CW_TYPE_Q8_0, MATMUL(q8_0)}, {CW_TYPE_Q4_0, MATMUL(q4_0)}, {CW_TYPE_Q4_1, MATMUL(q4_1)},
        {CW_TYPE_Q5_0, MATMUL(q5_0)}, {CW_TYPE_Q5_1, MATMUL(q5_1)}, {CW_TYPE_IQ4_NL, MATMUL(iq4_nl)},
        {CW_TYPE_Q4_K, MATMUL(q4_k)}, {CW_TYPE_Q5_K, MATMUL(q5_k)}, {CW_TYPE_Q6_K, MATMUL(q6_k)},
        {CW_TYPE_F32, MATMUL(f32)},   {CW_TYPE_F16, MATMUL(f16)},   {CW_TYPE_BF16, MATMUL(bf16)},
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(table); i++) {
        if (table[i].type != mm->w->info->type) continue;
        table[i].fn(mm, panel0, panel1, row0, row1);
        return;
    }
    cw_ref_matmul(mm, panel0, panel1, row0, row1); /* a type without a vector form yet */
}
