/*
 * Part of simd_matmul.inc.h: formats with a codebook. A panel holds the block's bytes as 4-byte words with
 * the rows side by side, so a register of words is LANES rows; codes are looked up in the codebook a lane at
 * a time (a gather), eight or four values of it at once. tensor/src/block_iq.c says what the words mean.
 */

/* Which word layout; GRID_NONE: planes. */
typedef enum {
    GRID_NONE,
    GRID_IQ1_S,
    GRID_IQ1_M,
    GRID_IQ2_XXS,
    GRID_IQ2_XS,
    GRID_IQ2_S,
    GRID_IQ3_XXS,
    GRID_IQ3_S,
} grid_kind;

/* n bits of word i, from bit `at`. q: the unit's words, at the strip's first lane. */
static ALWAYS_INLINE vi field(const uint8_t *q, int i, int at, int n)
{
    return vi_and(vi_shr32(vi_load(q + 64 * i), at), vi_set1_i32((1 << n) - 1));
}

/* The odd factor of d for block `sub` of the unit, or for its half h where sub-blocks have 16 values. */
static ALWAYS_INLINE vi grid_scale(const grid_kind kind, const uint8_t *q, int sub, int h)
{
    vi v;
    switch (kind) {
    case GRID_IQ1_S: v = field(q, 8 + sub / 2, 16 * (sub % 2) + 12, 3); break;
    case GRID_IQ1_M: v = field(q, 12 + sub / 4, 16 * (sub / 2 % 2) + 6 * (sub % 2) + 3 * h, 3); break;
    case GRID_IQ2_XXS: v = field(q, 2 * sub + 1, 28, 4); break;
    case GRID_IQ2_XS: v = field(q, 16 + sub / 4, 8 * (sub % 4) + 4 * h, 4); break;
    case GRID_IQ2_S: v = field(q, 18 + sub / 4, 8 * (sub % 4) + 4 * h, 4); break;
    case GRID_IQ3_XXS: v = field(q, 16 + sub, 28, 4); break;
    default: v = field(q, 26, 4 * sub, 4); break;
    }
    return vi_add32(vi_add32(v, v), vi_set1_i32(1));
}

/* IQ1_M's d: f16 bits from the tops of four 16-bit fields; the exponent is moved by a product, which is
 * exact. */
static ALWAYS_INLINE vf grid_d_in_words(const uint8_t *q)
{
    vi h = vi_or(field(q, 12, 12, 4), vi_shl32(field(q, 12, 28, 4), 4));
    h = vi_or(h, vi_or(vi_shl32(field(q, 13, 12, 4), 8), vi_shl32(field(q, 13, 28, 4), 12)));
    vi size = vi_shl32(vi_and(h, vi_set1_i32(0x7fff)), 13),
       sign = vi_shl32(vi_and(h, vi_set1_i32(0x8000)), 16);
    return vf_mul(vf_cast(vi_or(size, sign)), vf_set1(0x1p112f));
}

/* Eight signs of which seven are stored; the eighth makes them even. */
static ALWAYS_INLINE vi eight_signs(vi seven)
{
    vi p = vi_xor(seven, vi_shr32(seven, 4));
    p = vi_xor(p, vi_shr32(p, 2));
    p = vi_and(vi_xor(p, vi_shr32(p, 1)), vi_set1_i32(1));
    return vi_or(seven, vi_shl32(p, 7));
}

static ALWAYS_INLINE vi upper(vi low, vi high)
{
    return vi_or(low, vi_shl32(high, 8));
}

/* IQ1: points of eighths, an eighth more or (down = 1) less. */
static ALWAYS_INLINE void shift_eight(vi down, vi *v)
{
    vi by = vi_or(vi_set1_8(1), vi_add32(vi_xor(down, vi_set1_i32(1)), vi_set1_i32(-1)));
    v[0] = vi_add8(v[0], by);
    v[1] = vi_add8(v[1], by);
}

static ALWAYS_INLINE void sign_eight(vi signs, vi *v)
{
    v[0] = vi_negated(v[0], signs, 0);
    v[1] = vi_negated(v[1], signs, 1);
}

/* Values 8l .. 8l + 7 of block `sub` of each row, as int8: the first four in v[0]. */
static ALWAYS_INLINE void grid_eight(const grid_kind kind, const uint8_t *q, int sub, const int l, vi *v)
{
    const int at = 16 * (sub % 2); /* IQ1: of the block's 16 bits of the rest */
    switch (kind) {
    case GRID_IQ1_S:
        vi_gather8(cw_grid_iq1[0], upper(field(q, sub, 8 * l, 8), field(q, 8 + sub / 2, at + 3 * l, 3)), v);
        shift_eight(field(q, 8 + sub / 2, at + 15, 1), v);
        break;
    case GRID_IQ1_M:
        vi_gather8(cw_grid_iq1[0], upper(field(q, sub, 8 * l, 8), field(q, 8 + sub / 2, at + 4 * l, 3)), v);
        shift_eight(field(q, 8 + sub / 2, at + 4 * l + 3, 1), v);
        break;
    case GRID_IQ2_XXS:
        vi_gather8(cw_grid_iq2_xxs[0], field(q, 2 * sub, 8 * l, 8), v);
        sign_eight(eight_signs(field(q, 2 * sub + 1, 7 * l, 7)), v);
        break;
    case GRID_IQ2_XS:
        vi_gather8(cw_grid_iq2_xs[0], field(q, 2 * sub + l / 2, 16 * (l % 2), 9), v);
        sign_eight(eight_signs(field(q, 2 * sub + l / 2, 16 * (l % 2) + 9, 7)), v);
        break;
    case GRID_IQ2_S:
        vi_gather8(cw_grid_iq2_s[0],
                   upper(field(q, sub, 8 * l, 8), field(q, 16 + sub / 4, 8 * (sub % 4) + 2 * l, 2)), v);
        sign_eight(field(q, 8 + sub, 8 * l, 8), v);
        break;
    case GRID_IQ3_XXS:
        for (int h = 0; h < 2; h++)
            v[h] = vi_gather4(cw_grid_iq3_xxs[0], field(q, 2 * sub + l / 2, 16 * (l % 2) + 8 * h, 8));
        sign_eight(eight_signs(field(q, 16 + sub, 7 * l, 7)), v);
        break;
    default:
        for (int h = 0; h < 2; h++)
            v[h] = vi_gather4(cw_grid_iq3_s[0], upper(field(q, 2 * sub + l / 2, 16 * (l % 2) + 8 * h, 8),
                                                      field(q, 16 + sub / 4, 8 * (sub % 4) + 2 * l + h, 1)));
        sign_eight(field(q, 18 + sub, 8 * l, 8), v);
    }
}
