/*
 * Part of simd_matmul.inc.h: formats with a codebook. A panel holds the block's bytes as 4-byte words with
 * the rows side by side, so a register of words is LANES rows; codes are looked up in the codebook a lane at
 * a time (a gather), four values of it at once. tensor/src/block_iq.c says what the words mean.
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

/* Four points negated where the low four bits of `signs` say so. */
static ALWAYS_INLINE vi negated(vi points, vi signs)
{
    vi ones = vi_mul32(vi_and(signs, vi_set1_i32(15)), vi_set1_i32(0x204081)); /* bit j to byte j */
    vi mask = vi_sub8(vi_set1_8(0), vi_and(ones, vi_set1_8(1)));
    return vi_sub8(vi_xor(points, mask), mask);
}

/* Signs 4 * half .. 4 * half + 3 of eight, of which seven are in `seven` and the last makes them even. */
static ALWAYS_INLINE vi half_of_signs(vi seven, const int half)
{
    if (half == 0) return seven;
    vi p = vi_xor(seven, vi_shr32(seven, 4));
    p = vi_xor(p, vi_shr32(p, 2));
    p = vi_and(vi_xor(p, vi_shr32(p, 1)), vi_set1_i32(1));
    return vi_or(vi_shr32(seven, 4), vi_shl32(p, 3));
}

/* IQ1: points of eighths, an eighth more or (down = 1) less. */
static ALWAYS_INLINE vi shifted(vi points, vi down)
{
    vi mask = vi_add32(vi_xor(down, vi_set1_i32(1)), vi_set1_i32(-1));
    return vi_add8(points, vi_or(vi_set1_8(1), mask));
}

static ALWAYS_INLINE vi upper(vi low, vi high)
{
    return vi_or(low, vi_shl32(high, 8));
}

/* Group g of block `sub`: values 4g .. 4g + 3 of each row as int8. */
static ALWAYS_INLINE vi grid_group(const grid_kind kind, const uint8_t *q, int sub, const int g)
{
    const int l = g / 2, half = g % 2; /* of eights, and of the eight */
    vi code, v;
    switch (kind) {
    case GRID_IQ1_S:
        code = upper(field(q, sub, 8 * l, 8), field(q, 8 + sub / 2, 16 * (sub % 2) + 3 * l, 3));
        v = vi_gather8(cw_grid_iq1[0] + 4 * half, code);
        return shifted(v, field(q, 8 + sub / 2, 16 * (sub % 2) + 15, 1));
    case GRID_IQ1_M:
        code = upper(field(q, sub, 8 * l, 8), field(q, 8 + sub / 2, 16 * (sub % 2) + 4 * l, 3));
        v = vi_gather8(cw_grid_iq1[0] + 4 * half, code);
        return shifted(v, field(q, 8 + sub / 2, 16 * (sub % 2) + 4 * l + 3, 1));
    case GRID_IQ2_XXS:
        v = vi_gather8(cw_grid_iq2_xxs[0] + 4 * half, field(q, 2 * sub, 8 * l, 8));
        return negated(v, half_of_signs(field(q, 2 * sub + 1, 7 * l, 7), half));
    case GRID_IQ2_XS:
        v = vi_gather8(cw_grid_iq2_xs[0] + 4 * half, field(q, 2 * sub + l / 2, 16 * (l % 2), 9));
        return negated(v, half_of_signs(field(q, 2 * sub + l / 2, 16 * (l % 2) + 9, 7), half));
    case GRID_IQ2_S:
        code = upper(field(q, sub, 8 * l, 8), field(q, 16 + sub / 4, 8 * (sub % 4) + 2 * l, 2));
        v = vi_gather8(cw_grid_iq2_s[0] + 4 * half, code);
        return negated(v, field(q, 8 + sub, 4 * g, 4));
    case GRID_IQ3_XXS:
        v = vi_gather4(cw_grid_iq3_xxs[0], field(q, 2 * sub + g / 4, 8 * (g % 4), 8));
        return negated(v, half_of_signs(field(q, 16 + sub, 7 * l, 7), half));
    default:
        code = upper(field(q, 2 * sub + g / 4, 8 * (g % 4), 8), field(q, 16 + sub / 4, 8 * (sub % 4) + g, 1));
        return negated(vi_gather4(cw_grid_iq3_s[0], code), field(q, 18 + sub, 4 * g, 4));
    }
}
