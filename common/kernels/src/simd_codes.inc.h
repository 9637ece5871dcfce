/*
 * Part of the vector matrix products: weights taken apart, a strip of LANES rows at a time. The including
 * file defines the vectors and verbs that simd_matmul.inc.h lists.
 */

#include "simd_grid.inc.h"

typedef struct {
    int block, n_sub;
    bool signed_sc;
    cw_min min;
    int bits, offset;
    const int8_t *lut;
    cw_d_form d_form;
    cw_sc_form sc_form;
    grid_kind grid; /* with a codebook: bits is 7, of an int8 with |v| <= 64 */
    int words;      /* of its blocks */
    float factor;   /* of d */
} q_spec;

static ALWAYS_INLINE cw_layout layout_of(const q_spec s)
{
    return cw_layout_of((cw_shape){s.block, s.n_sub, s.min, s.bits, s.d_form, s.sc_form, s.words});
}

/* Group g of 32 values of LANES rows: values 4g..4g+3 of each. q: the planes, at the strip's first lane. */
static ALWAYS_INLINE vi group_of(const q_spec s, const bool sgn, const uint8_t *q, const int g, vi table)
{
    if (s.bits == 8) {
        vi v = vi_load(q + 64 * g);
        return sgn ? vi_xor(v, vi_set1_8((char)0x80)) : v;
    }
    if (s.bits <= 3) {
        const int up = 2 * (g % 4);
        vi v = vi_load(q + 64 * (g / 4));
        v = vi_and(up ? vi_shr(v, up) : v, vi_set1_8(3));
        if (s.bits == 3) {
            vi h = vi_load(q + 128);
            v = vi_or(v, vi_and(g < 2 ? vi_shl(h, 2 - g) : g == 2 ? h : vi_shr(h, g - 2), vi_set1_8(4)));
        }
        return v;
    }
    vi v = vi_load(q + 64 * (g % 4));
    v = vi_and(g < 4 ? v : vi_shr(v, 4), vi_set1_8(15));
    if (s.bits == 5) {
        vi h = vi_load(q + 256);
        v = vi_or(v, vi_and(g < 4 ? vi_shl(h, 4 - g) : vi_shr(h, g - 4), vi_set1_8(16)));
    }
    if (s.bits == 6) {
        vi h = vi_load(q + 256 + 64 * (g / 4));
        h = g % 4 == 0 ? vi_shl(h, 4) : g % 4 == 1 ? vi_shl(h, 2) : g % 4 == 2 ? h : vi_shr(h, 2);
        v = vi_or(v, vi_and(h, vi_set1_8(48)));
    }
    return s.lut ? vi_lut(table, v) : v;
}

/* The block's scale. u: the unit; lane0: the strip's first lane. */
static ALWAYS_INLINE vf d_of(const q_spec s, const uint8_t *u, const int lane0)
{
    if (s.grid) {
        vf d = s.d_form == CW_D_IN_WORDS ? grid_d_in_words(u + 4 * lane0) : vf_f16(u + 2 * lane0);
        return s.factor == 1.0f ? d : vf_mul(d, vf_set1(s.factor));
    }
    if (s.d_form == CW_D_F16) return vf_f16(u + 2 * lane0);
    /* 2^(e - 128) as two normal factors, so that subnormals need no case of their own. */
    vi e = vi_u8(u + lane0), half = vi_shr32(e, 1), rest = vi_add32(half, vi_and(e, vi_set1_i32(1)));
    vi bias = vi_set1_i32(63);
    return vf_mul(vf_cast(vi_shl32(vi_add32(half, bias), 23)), vf_cast(vi_shl32(vi_add32(rest, bias), 23)));
}

/* The integer scale and minimum of the 16 values of half h of block `sub` of the unit. */
static ALWAYS_INLINE vi scale16_of(const q_spec s, const uint8_t *u, const int lane0, const int sub,
                                   const int h)
{
    if (s.grid) return grid_scale(s.grid, u + layout_of(s).q + 4 * lane0, sub, h);
    const uint8_t *sc = u + layout_of(s).sc + lane0;
    if (s.sc_form == CW_SC_NIBBLES) return vi_and(vi_u8(sc + 16 * (2 * sub + h)), vi_set1_i32(15));
    if (s.sc_form == CW_SC_BYTES) return vi_i8(sc + 16 * (2 * sub + h));
    vi low = vi_and(vi_shr32(vi_u8(sc + 16 * sub), 4 * h), vi_set1_i32(15));
    vi high = vi_and(vi_shr32(vi_u8(sc + 128 + 16 * (sub / 2)), 4 * (sub % 2) + 2 * h), vi_set1_i32(3));
    return vi_add32(vi_or(low, vi_shl32(high, 4)), vi_set1_i32(-32));
}

static ALWAYS_INLINE vi min16_of(const q_spec s, const uint8_t *u, const int lane0, const int sub,
                                 const int h)
{
    return vi_shr32(vi_u8(u + layout_of(s).sc + lane0 + 16 * (2 * sub + h)), 4);
}
