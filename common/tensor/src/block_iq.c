/*
 * The IQ formats: blocks of 256 values whose codes index a codebook (grid.c). A block is not taken apart into
 * codes here, which would not survive a panel within 3 %: cw_block.code holds its bytes without d, the
 * panels hold them as 4-byte words, and a function for each format says what they stand for. Facts from the
 * GGUF format's block descriptions. Words are little-endian; "word i" counts from the first byte after d.
 */
#include "block_internal.h"
#include "cw/bytes.h"
#include "cw/grid.h"

#include <string.h>

static uint32_t word(const uint8_t *p, int i)
{
    return cw_load_u32(p + 4 * i);
}

/* Seven signs are stored; the eighth makes their number even. */
static unsigned eight_signs(uint32_t seven)
{
    unsigned s = seven & 127, p = s ^ s >> 4;
    p ^= p >> 2;
    p ^= p >> 1;
    return s | (p & 1) << 7;
}

static void put_signed(int8_t *v, const int8_t *point, int n, unsigned signs)
{
    for (int i = 0; i < n; i++) v[i] = (int8_t)(signs >> i & 1 ? -point[i] : point[i]);
}

/* Words 2s, 2s + 1 of 32 values: four codes of 8 bits; four times 7 signs, and 4 bits of scale on top. */
static void iq2_xxs_values(const uint8_t *p, cw_values *v)
{
    for (int s = 0; s < 8; s++) {
        uint32_t codes = word(p, 2 * s), rest = word(p, 2 * s + 1);
        v->sc[s] = (int16_t)(2 * (rest >> 28) + 1);
        for (int l = 0; l < 4; l++)
            put_signed(v->v + 32 * s + 8 * l, cw_grid_iq2_xxs[codes >> 8 * l & 255], 8,
                       eight_signs(rest >> 7 * l));
    }
}

/* 32 times 16 bits: code of 9 bits, 7 signs; then 16 nibbles of scales. */
static void iq2_xs_values(const uint8_t *p, cw_values *v)
{
    for (int i = 0; i < 32; i++) {
        unsigned q = cw_load_u16(p + 2 * i);
        put_signed(v->v + 8 * i, cw_grid_iq2_xs[q & 511], 8, eight_signs(q >> 9));
    }
    for (int j = 0; j < 16; j++) v->sc[j] = (int16_t)(2 * (p[64 + j / 2] >> 4 * (j % 2) & 15) + 1);
}

/* 32 bytes of codes, 32 of signs, 32 times 2 upper bits of codes, 16 nibbles of scales. */
static void iq2_s_values(const uint8_t *p, cw_values *v)
{
    for (int i = 0; i < 32; i++) {
        unsigned code = p[i] | (p[64 + i / 4] >> 2 * (i % 4) & 3u) << 8;
        put_signed(v->v + 8 * i, cw_grid_iq2_s[code], 8, p[32 + i]);
    }
    for (int j = 0; j < 16; j++) v->sc[j] = (int16_t)(2 * (p[72 + j / 2] >> 4 * (j % 2) & 15) + 1);
}

/* 64 bytes of codes, then for each 32 values a word of four times 7 signs and 4 bits of scale on top. */
static void iq3_xxs_values(const uint8_t *p, cw_values *v)
{
    for (int s = 0; s < 8; s++) {
        uint32_t rest = word(p, 16 + s);
        v->sc[s] = (int16_t)(2 * (rest >> 28) + 1);
        for (int g = 0; g < 8; g++)
            put_signed(v->v + 32 * s + 4 * g, cw_grid_iq3_xxs[p[8 * s + g]], 4,
                       eight_signs(rest >> 7 * (g / 2)) >> 4 * (g % 2));
    }
}

/* 64 bytes of codes, 64 ninth bits of them, 256 signs, 8 nibbles of scales. */
static void iq3_s_values(const uint8_t *p, cw_values *v)
{
    for (int i = 0; i < 64; i++) {
        unsigned code = p[i] | (p[64 + i / 8] >> (i % 8) & 1u) << 8;
        put_signed(v->v + 4 * i, cw_grid_iq3_s[code], 4, p[72 + i / 2] >> 4u * (i % 2));
    }
    for (int s = 0; s < 8; s++) v->sc[s] = (int16_t)(2 * (p[104 + s / 2] >> 4 * (s % 2) & 15) + 1);
}

static void put_shifted(int8_t *v, const int8_t *point, bool down)
{
    for (int i = 0; i < 8; i++) v[i] = (int8_t)(point[i] + (down ? -1 : 1));
}

/* 32 bytes of codes, then 16 bits for each 32 values: four times 3 upper bits of codes, 3 bits of scale, and
 * whether an eighth is taken away or added. */
static void iq1_s_values(const uint8_t *p, cw_values *v)
{
    for (int s = 0; s < 8; s++) {
        unsigned h = cw_load_u16(p + 32 + 2 * s);
        v->sc[s] = (int16_t)(2 * (h >> 12 & 7) + 1);
        for (int l = 0; l < 4; l++)
            put_shifted(v->v + 32 * s + 8 * l, cw_grid_iq1[p[4 * s + l] | (h >> 3 * l & 7) << 8], h >> 15);
    }
}

/* 32 bytes of codes, 32 nibbles of 3 upper bits and the direction of the eighth, four times 16 bits: 4 scales
 * of 3 bits and 4 bits of d on top, lowest first. */
static void iq1_m_values(const uint8_t *p, cw_values *v)
{
    for (int i = 0; i < 32; i++) {
        unsigned h = p[32 + i / 2] >> 4 * (i % 2) & 15u;
        put_shifted(v->v + 8 * i, cw_grid_iq1[p[i] | (h & 7) << 8], h >> 3);
    }
    for (int j = 0; j < 16; j++)
        v->sc[j] = (int16_t)(2 * (cw_load_u16(p + 48 + 2 * (j / 4)) >> 3 * (j % 4) & 7) + 1);
}

static void iq1_m_split(const uint8_t *p, cw_block *b)
{
    memcpy(b->code, p, 56);
    b->d = 0;
    for (int i = 0; i < 4; i++) b->d |= (uint16_t)((p[49 + 2 * i] >> 4) << 4 * i);
}

static void iq1_m_join(const cw_block *b, uint8_t *p)
{
    memcpy(p, b->code, 56);
    for (int i = 0; i < 4; i++) p[49 + 2 * i] = (uint8_t)((p[49 + 2 * i] & 15) | (b->d >> 4 * i & 15) << 4);
}

#define D_FIRST(name, words)                                                                                 \
    static void name##_split(const uint8_t *p, cw_block *b)                                                  \
    {                                                                                                        \
        b->d = cw_load_u16(p);                                                                               \
        memcpy(b->code, p + 2, 4 * (words));                                                                 \
    }                                                                                                        \
    static void name##_join(const cw_block *b, uint8_t *p)                                                   \
    {                                                                                                        \
        cw_store_u16(p, b->d);                                                                               \
        memcpy(p + 2, b->code, 4 * (words));                                                                 \
    }
D_FIRST(iq2_xxs, 16)
D_FIRST(iq2_xs, 18)
D_FIRST(iq2_s, 20)
D_FIRST(iq3_xxs, 24)
D_FIRST(iq3_s, 27)
D_FIRST(iq1_s, 12)

#define GRID(TYPE, name, subs, n_words, form, d_factor)                                                      \
    {                                                                                                        \
        .type = CW_TYPE_##TYPE, .block = 256, .n_sub = subs, .sc_bits = 8, .bits = 8, .d_form = form,        \
        .words = n_words, .factor = d_factor, .values = name##_values, .split = name##_split,                \
        .join = name##_join                                                                                  \
    }
static const cw_format formats[] = {
    GRID(IQ1_S, iq1_s, 8, 12, CW_D_F16, 0.125f),     GRID(IQ1_M, iq1_m, 16, 14, CW_D_IN_WORDS, 0.125f),
    GRID(IQ2_XXS, iq2_xxs, 8, 16, CW_D_F16, 0.125f), GRID(IQ2_XS, iq2_xs, 16, 18, CW_D_F16, 0.125f),
    GRID(IQ2_S, iq2_s, 16, 20, CW_D_F16, 0.125f),    GRID(IQ3_XXS, iq3_xxs, 8, 24, CW_D_F16, 0.25f),
    GRID(IQ3_S, iq3_s, 8, 27, CW_D_F16, 1.0f),
};

const cw_format *cw_format_iq(uint32_t gguf_type)
{
    for (size_t i = 0; i < CW_ARRAY_LEN(formats); i++)
        if (formats[i].type == gguf_type) return &formats[i];
    return NULL;
}
