/*
 * The codebook formats against blocks written by hand: each test sets single fields and says which value they
 * must give. Points used: the first of every codebook is the lowest level throughout.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/bytes.h"
#include "cw/grid.h"
#include "cw/type.h"

enum { TWO = 0x4000 }; /* f16 bits */

static float out[256];

static void decode(uint32_t type, const void *block)
{
    const cw_type_info *t = cw_type_get(type);
    assert_non_null(t);
    memset(out, 0, sizeof out);
    t->to_f32(block, out, t->block);
}

#define SAME(got, want) assert_true((got) == (want))

static void iq2_xxs_known_values(void **state)
{
    (void)state;
    uint8_t b[66] = {0};
    cw_store_u16(b, TWO);
    b[2 + 24 + 1] = 255; /* values 104..111: 8 25 8 8 25 43 43 43 */
    /* scale 5; values 104 and 110 negative; 112 negative, and 119, which makes them even */
    cw_store_u32(b + 2 + 28, 5u << 28 | 0x41 << 7 | 0x01 << 14);
    decode(CW_TYPE_IQ2_XXS, b);
    SAME(out[104], -2.75f * 8);
    SAME(out[105], 2.75f * 25);
    SAME(out[106], 2.75f * 8);
    SAME(out[110], -2.75f * 43);
    SAME(out[111], 2.75f * 43);
    SAME(out[112], -2.75f * 8);
    SAME(out[113], 2.75f * 8);
    SAME(out[119], -2.75f * 8);
    SAME(out[0], 0.25f * 8);
}

static void iq2_xs_known_values(void **state)
{
    (void)state;
    uint8_t b[74] = {0};
    cw_store_u16(b, TWO);
    cw_store_u16(b + 2 + 2 * 5, 511 | 0x03 << 9); /* values 40..47: all 43, the first two negative */
    cw_store_u16(b + 2 + 2 * 31, 1 | 0x40 << 9);  /* values 248..255: 43 8 8 8 8 8 -8 -8 */
    b[66 + 1] = 7;                                /* values 32..47 */
    b[66 + 7] = 15 << 4;                          /* values 240..255 */
    decode(CW_TYPE_IQ2_XS, b);
    SAME(out[40], -3.75f * 43);
    SAME(out[41], -3.75f * 43);
    SAME(out[42], 3.75f * 43);
    SAME(out[47], 3.75f * 43);
    SAME(out[48], 0.25f * 8);
    SAME(out[248], 7.75f * 43);
    SAME(out[249], 7.75f * 8);
    SAME(out[254], -7.75f * 8);
    SAME(out[255], -7.75f * 8);
}

static void iq2_s_known_values(void **state)
{
    (void)state;
    uint8_t b[82] = {0};
    cw_store_u16(b, TWO);
    b[2 + 6] = 255; /* with the upper bits, code 1023: values 48..55 all 43 */
    b[66 + 1] = 3 << 4;
    b[34 + 6] = 0x81;
    b[74 + 1] = 9 << 4; /* values 48..63 */
    decode(CW_TYPE_IQ2_S, b);
    SAME(out[48], -4.75f * 43);
    SAME(out[49], 4.75f * 43);
    SAME(out[55], -4.75f * 43);
    SAME(out[56], 4.75f * 8);
    SAME(out[47], 0.25f * 8);
}

static void iq3_xxs_known_values(void **state)
{
    (void)state;
    uint8_t b[98] = {0};
    cw_store_u16(b, TWO);
    b[2 + 56 + 3] = 255; /* values 236..239: 4 28 52 62 */
    /* scale 15; values 225 and (to make them even) 231 negative; 235 and 238 negative */
    cw_store_u32(b + 66 + 28, 15u << 28 | 0x02 | 0x48 << 7);
    decode(CW_TYPE_IQ3_XXS, b);
    SAME(out[224], 15.5f * 4);
    SAME(out[225], -15.5f * 4);
    SAME(out[231], -15.5f * 4);
    SAME(out[235], -15.5f * 4);
    SAME(out[236], 15.5f * 4);
    SAME(out[237], 15.5f * 28);
    SAME(out[238], -15.5f * 52);
    SAME(out[239], 15.5f * 62);
    SAME(out[0], 0.5f * 4);
}

static void iq3_s_known_values(void **state)
{
    (void)state;
    uint8_t b[110] = {0};
    cw_store_u16(b, TWO);
    b[2 + 19] = 255; /* with the ninth bit, code 511: values 76..79: 1 1 15 15 */
    b[66 + 2] = 1 << 3;
    b[74 + 9] = 1 << 6; /* value 78 negative */
    b[106 + 1] = 4;     /* values 64..95 */
    b[106 + 3] = 15 << 4;
    decode(CW_TYPE_IQ3_S, b);
    SAME(out[76], 18.0f);
    SAME(out[77], 18.0f);
    SAME(out[78], -18.0f * 15);
    SAME(out[79], 18.0f * 15);
    SAME(out[80], 18.0f);
    SAME(out[0], 2.0f);
    SAME(out[255], 62.0f);
}

static void iq1_s_known_values(void **state)
{
    (void)state;
    uint8_t b[50] = {0};
    cw_store_u16(b, TWO);
    b[2] = 1; /* values 0..7: 1 -1 -1 -1 ... */
    b[2 + 16 + 2] = 255;
    /* code 2047: values 144..151 all 1; scale 3; an eighth less */
    cw_store_u16(b + 34 + 8, 7 << 6 | 3 << 12 | 1 << 15);
    decode(CW_TYPE_IQ1_S, b);
    SAME(out[0], 2.0f * 1.125f);
    SAME(out[1], 2.0f * -0.875f);
    SAME(out[143], 14.0f * -1.125f);
    SAME(out[144], 14.0f * 0.875f);
    SAME(out[151], 14.0f * 0.875f);
    SAME(out[152], 14.0f * -1.125f);
    SAME(out[160], 2.0f * -0.875f);
}

static void iq1_m_known_values(void **state)
{
    (void)state;
    uint8_t b[56] = {0};
    b[55] = 0x40; /* d = 2 */
    b[21] = 255;
    b[32 + 10] = 0xf0;            /* code 2047 and an eighth less: values 168..175 */
    cw_store_u16(b + 52, 5 << 6); /* scale of values 160..175 */
    decode(CW_TYPE_IQ1_M, b);
    SAME(out[0], 2.0f * -0.875f);
    SAME(out[160], 22.0f * -0.875f);
    SAME(out[168], 22.0f * 0.875f);
    SAME(out[175], 22.0f * 0.875f);
    SAME(out[176], 2.0f * -0.875f);
    b[55] = 0xc0; /* d = -3.0, 0xc200; its second nibble stands over scales 8..11 */
    b[53] |= 0x20;
    decode(CW_TYPE_IQ1_M, b);
    SAME(out[0], -3.0f * -0.875f);
    SAME(out[175], -33.0f * 0.875f);
    b[55] = 0;
    b[53] &= 15;
    b[49] = 0x50; /* lowest nibble: d = 5 * 2^-24 */
    b[51] = 0x10; /* next: + 16 * 2^-24 */
    decode(CW_TYPE_IQ1_M, b);
    SAME(out[0], 21 * 0x1p-24f * -0.875f);
}

/* FNV-1a of each codebook's values as the format publishes them (IQ1's in eighths). */
static void codebooks_are_the_formats(void **state)
{
    (void)state;
    const struct {
        const void *grid;
        size_t bytes;
        uint64_t hash;
    } books[] = {
        {cw_grid_iq1, sizeof cw_grid_iq1, UINT64_C(0x99649f4b16b0d5dd)},
        {cw_grid_iq2_xxs, sizeof cw_grid_iq2_xxs, UINT64_C(0xbb4ee025b5ac6e8e)},
        {cw_grid_iq2_xs, sizeof cw_grid_iq2_xs, UINT64_C(0xc9b1ee61e79909bd)},
        {cw_grid_iq2_s, sizeof cw_grid_iq2_s, UINT64_C(0x123edd38a3b62b90)},
        {cw_grid_iq3_xxs, sizeof cw_grid_iq3_xxs, UINT64_C(0xdfa5dc83d6a155d5)},
        {cw_grid_iq3_s, sizeof cw_grid_iq3_s, UINT64_C(0xfa37020c25b44829)},
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(books); i++) {
        uint64_t h = UINT64_C(0xcbf29ce484222325);
        for (size_t k = 0; k < books[i].bytes; k++)
            h = (h ^ ((const uint8_t *)books[i].grid)[k]) * UINT64_C(0x100000001b3);
        assert_true(h == books[i].hash);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(iq2_xxs_known_values), cmocka_unit_test(iq2_xs_known_values),
        cmocka_unit_test(iq2_s_known_values),   cmocka_unit_test(iq3_xxs_known_values),
        cmocka_unit_test(iq3_s_known_values),   cmocka_unit_test(iq1_s_known_values),
        cmocka_unit_test(iq1_m_known_values),   cmocka_unit_test(codebooks_are_the_formats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
