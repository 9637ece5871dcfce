/*
 * The type table against blocks written by hand from the formats' descriptions: each test sets single fields
 * and says which value they must give, independently of the code that takes blocks apart.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/block.h"
#include "cw/bytes.h"
#include "cw/type.h"

enum { ONE = 0x3c00, TWO = 0x4000, HALF = 0x3800, MINUS_THREE = 0xc200 }; /* f16 bits */

static float out[256];

static void decode(uint32_t type, const void *block)
{
    const cw_type_info *t = cw_type_get(type);
    assert_non_null(t);
    memset(out, 0, sizeof out);
    t->to_f32(block, out, t->block);
}

#define SAME(got, want) assert_true((got) == (want))

static void q8_0_known_values(void **state)
{
    (void)state;
    uint8_t b[34] = {0};
    cw_store_u16(b, HALF);
    b[2] = 127;
    b[3] = 0x80; /* -128 */
    b[33] = 0xff;
    decode(CW_TYPE_Q8_0, b);
    SAME(out[0], 63.5f);
    SAME(out[1], -64.0f);
    SAME(out[2], 0.0f);
    SAME(out[31], -0.5f);
}

static void q4_0_known_values(void **state)
{
    (void)state;
    uint8_t b[18];
    memset(b, 0x88, sizeof b); /* all codes 8: zero */
    cw_store_u16(b, TWO);
    b[2] = 0xf0;  /* value 0: code 0, value 16: code 15 */
    b[17] = 0x1a; /* value 15: 10, value 31: 1 */
    decode(CW_TYPE_Q4_0, b);
    SAME(out[0], -16.0f);
    SAME(out[16], 14.0f);
    SAME(out[15], 4.0f);
    SAME(out[31], -14.0f);
    SAME(out[7], 0.0f);
}

static void q4_1_known_values(void **state)
{
    (void)state;
    uint8_t b[20] = {0};
    cw_store_u16(b, TWO);
    cw_store_u16(b + 2, MINUS_THREE);
    b[4] = 0xf1;
    b[19] = 0x20;
    decode(CW_TYPE_Q4_1, b);
    SAME(out[0], -1.0f);
    SAME(out[16], 27.0f);
    SAME(out[15], -3.0f);
    SAME(out[31], 1.0f);
}

static void q5_0_known_values(void **state)
{
    (void)state;
    uint8_t b[22] = {0};
    cw_store_u16(b, ONE);
    cw_store_u32(b + 2, 1u << 0 | 1u << 17 | 1u << 31); /* fifth bits of values 0, 17, 31 */
    b[6] = 0x73;                                        /* value 0: 3 + 16, value 16: 7 */
    b[7] = 0xf0;                                        /* value 1: 0, value 17: 15 + 16 */
    decode(CW_TYPE_Q5_0, b);
    SAME(out[0], 3.0f);
    SAME(out[16], -9.0f);
    SAME(out[1], -16.0f);
    SAME(out[17], 15.0f);
    SAME(out[31], 0.0f);
}

static void q5_1_known_values(void **state)
{
    (void)state;
    uint8_t b[24] = {0};
    cw_store_u16(b, HALF);
    cw_store_u16(b + 2, ONE);
    cw_store_u32(b + 4, 1u << 2 | 1u << 18);
    b[8 + 2] = 0xf2; /* value 2: 2 + 16, value 18: 15 + 16 */
    decode(CW_TYPE_Q5_1, b);
    SAME(out[2], 10.0f);
    SAME(out[18], 16.5f);
    SAME(out[0], 1.0f);
}

static void iq4_nl_known_values(void **state)
{
    (void)state;
    static const int v[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    uint8_t b[18];
    cw_store_u16(b, HALF);
    for (int j = 0; j < 16; j++) b[2 + j] = (uint8_t)(j | (15 - j) << 4);
    decode(CW_TYPE_IQ4_NL, b);
    for (int j = 0; j < 16; j++) {
        SAME(out[j], 0.5f * (float)v[j]);
        SAME(out[16 + j], 0.5f * (float)v[15 - j]);
    }
}

/* Scales and minima of sub-blocks 1 and 6 set by bit position, the others zero. */
static void put_k_scales(uint8_t *s)
{
    s[1] = 63 | 2 << 6;  /* scale 1 = 63; upper bits of scale 5 = 2 */
    s[5] = 9;            /* minimum 1 = 9 */
    s[2] |= 3 << 6;      /* upper bits of scale 6 */
    s[6] |= 1 << 6;      /* upper bits of minimum 6 */
    s[10] = 5 | 12 << 4; /* lower bits of scale 6 and minimum 6 */
    s[9] = 1;            /* lower bits of scale 5 */
}
/* scale 1 = 63, min 1 = 9; scale 5 = 33, min 5 = 0; scale 6 = 53, min 6 = 28 */

static void q4_k_known_values(void **state)
{
    (void)state;
    uint8_t b[144] = {0};
    cw_store_u16(b, TWO);
    cw_store_u16(b + 2, HALF);
    put_k_scales(b + 4);
    b[16 + 3] = 0xa0;       /* value 3: 0; value 32 + 3 (sub-block 1): 10 */
    b[16 + 64 + 31] = 0x70; /* value 128 + 32 + 31 = 191 (sub-block 5): 7 */
    b[16 + 96 + 1] = 0x0f;  /* value 192 + 1 (sub-block 6): 15 */
    decode(CW_TYPE_Q4_K, b);
    SAME(out[3], 0.0f);
    SAME(out[35], 2.0f * 63 * 10 - 0.5f * 9);
    SAME(out[34], -4.5f);
    SAME(out[191], 2.0f * 33 * 7);
    SAME(out[193], 2.0f * 53 * 15 - 0.5f * 28);
    SAME(out[192], -14.0f);
    SAME(out[224], 0.0f);
}

static void q5_k_known_values(void **state)
{
    (void)state;
    uint8_t b[176] = {0};
    cw_store_u16(b, ONE);
    cw_store_u16(b + 2, ONE);
    put_k_scales(b + 4);
    b[16 + 3] = 1 << 1; /* fifth bit of value 32 + 3 */
    b[16 + 1] = 1 << 6; /* fifth bit of value 192 + 1 */
    b[48 + 3] = 0xa0;
    b[48 + 96 + 1] = 0x0f;
    decode(CW_TYPE_Q5_K, b);
    SAME(out[35], 63.0f * 26 - 9);
    SAME(out[193], 53.0f * 31 - 28);
    SAME(out[192], -28.0f);
    SAME(out[0], 0.0f);
}

static void q6_k_known_values(void **state)
{
    (void)state;
    uint8_t b[210] = {0};
    cw_store_u16(b + 208, HALF);
    for (int i = 0; i < 16; i++) b[192 + i] = (uint8_t)(int8_t)(i - 8);
    b[0] = 0x5a;             /* value 0 low: 10; value 64 low: 5 */
    b[128] = 0x03 | 0x20;    /* value 0 upper: 3; value 64 upper: 2 */
    b[64 + 63] = 0xf1;       /* value 128 + 63 low: 1; value 128 + 127 low: 15 */
    b[128 + 32 + 31] = 0xc4; /* values 128 + 63 (bits 2,3): 1; 128 + 127 (bits 6,7): 3 */
    decode(CW_TYPE_Q6_K, b);
    SAME(out[0], 0.5f * -8 * (10 + 48 - 32));
    SAME(out[64], 0.5f * -4 * (5 + 32 - 32));
    SAME(out[128 + 63], 0.5f * 3 * (1 + 16 - 32));
    SAME(out[255], 0.5f * 7 * (15 + 48 - 32));
    SAME(out[16], 0.5f * -7 * -32);
}

static void q2_k_known_values(void **state)
{
    (void)state;
    uint8_t b[84] = {0};
    cw_store_u16(b + 80, TWO);
    cw_store_u16(b + 82, HALF);
    b[0] = 0xf0;              /* values 0..15: scale 0, minimum 15 */
    b[3] = 0x25;              /* values 48..63: scale 5, minimum 2 */
    b[15] = 0x1f;             /* values 240..255: scale 15, minimum 1 */
    b[16 + 16] = 2 << 2;      /* value 32 + 16 = 48: 2 */
    b[16 + 32 + 31] = 3 << 6; /* value 128 + 96 + 31 = 255: 3 */
    b[16 + 32 + 15] = 1 << 6; /* value 239, in a sub-block of scale 0 */
    decode(CW_TYPE_Q2_K, b);
    SAME(out[0], -7.5f);
    SAME(out[15], -7.5f);
    SAME(out[16], 0.0f);
    SAME(out[48], 2.0f * 5 * 2 - 0.5f * 2);
    SAME(out[49], -1.0f);
    SAME(out[255], 2.0f * 15 * 3 - 0.5f);
    SAME(out[239], 0.0f);
}

static void q3_k_known_values(void **state)
{
    (void)state;
    uint8_t b[110] = {0};
    cw_store_u16(b + 108, HALF);
    b[96 + 0] = 0x07;             /* scale 0: 7 + 16 - 32 = -9; scale 8: 0 + 0 - 32 */
    b[96 + 7] = 0xf3;             /* scale 7: 3 + 32 - 32 = 3; scale 15: 15 + 48 - 32 = 31 */
    b[96 + 8] = 1;                /* upper bits of scale 0 */
    b[96 + 11] = 2 << 2 | 3 << 6; /* of scales 7 and 15 */
    b[0] = 1 << 0;                /* third bit of value 0 */
    b[31] = 1 << 7 | 1 << 3;      /* of values 255 and 127 */
    b[32 + 0] = 2 | 1 << 2;       /* values 0: 2 + 4 - 4; 32: 1 - 4 */
    b[32 + 31] = 3 << 6;          /* value 127: 3 + 4 - 4 */
    b[64 + 31] = 1 << 6;          /* value 255: 1 + 4 - 4 */
    decode(CW_TYPE_Q3_K, b);
    SAME(out[0], 0.5f * -9 * 2);
    SAME(out[1], 0.5f * -9 * -4);
    SAME(out[32], 0.5f * -32 * -3);
    SAME(out[127], 0.5f * 3 * 3);
    SAME(out[126], 0.5f * 3 * -4);
    SAME(out[255], 0.5f * 31 * 1);
    SAME(out[254], 0.5f * 31 * -4);
    SAME(out[128], 0.5f * -32 * -4);
}

static void iq4_xs_known_values(void **state)
{
    (void)state;
    uint8_t b[136] = {0};
    cw_store_u16(b, TWO);
    cw_store_u16(b + 2, 3u << 14 | 1u << 2); /* upper bits of scales 7 and 1 */
    b[4] = 0xa0;                             /* scale 1: 10 + 16 - 32; scale 0: -32 */
    b[7] = 0x90;                             /* scale 7: 9 + 48 - 32 */
    b[8 + 16 + 5] = 0x0f;                    /* value 32 + 5: code 15; value 32 + 21: code 0 */
    b[8 + 7 * 16 + 15] = 0x78;               /* value 224 + 15: code 8; 255: code 7 */
    decode(CW_TYPE_IQ4_XS, b);
    SAME(out[0], 2.0f * -32 * -127);
    SAME(out[37], 2.0f * -6 * 113);
    SAME(out[53], 2.0f * -6 * -127);
    SAME(out[239], 2.0f * 25 * 1);
    SAME(out[255], 2.0f * 25 * -10);
}

static void mxfp4_known_values(void **state)
{
    (void)state;
    static const float v[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    static const uint8_t e[] = {127, 130, 100, 1, 0, 250};
    static const float scale[] = {1, 8, 0x1p-27f, 0x1p-126f, 0x1p-127f, 0x1p123f};
    uint8_t b[17];
    for (int j = 0; j < 16; j++) b[1 + j] = (uint8_t)(j | (15 - j) << 4);
    for (size_t i = 0; i < sizeof e; i++) {
        b[0] = e[i];
        decode(CW_TYPE_MXFP4, b);
        for (int j = 0; j < 16; j++) {
            SAME(out[j], scale[i] * v[j]);
            SAME(out[16 + j], scale[i] * v[15 - j]);
        }
    }
}

static void floats_known_values(void **state)
{
    (void)state;
    uint8_t b[8];
    cw_store_u16(b, MINUS_THREE);
    decode(CW_TYPE_F16, b);
    SAME(out[0], -3.0f);
    cw_store_u16(b, 0xc040);
    decode(CW_TYPE_BF16, b);
    SAME(out[0], -3.0f);
    cw_store_u32(b + 1, 0xc0400000); /* unaligned */
    decode(CW_TYPE_F32, b + 1);
    SAME(out[0], -3.0f);
}

/* Any bytes survive split and join: no bit of a block is lost or moved. */
static void split_and_join_are_inverse(void **state)
{
    (void)state;
    unsigned seed = 7;
    for (size_t i = 0; cw_type_at(i); i++) {
        const cw_type_info *t = cw_type_at(i);
        const cw_format *f = cw_format_get(t->type);
        assert_int_equal(t->quantised, f != NULL);
        if (!f) continue;
        for (int round = 0; round < 200; round++) {
            uint8_t in[256], back[256];
            cw_block b;
            for (int k = 0; k < t->block_bytes; k++) in[k] = (uint8_t)(rand_r(&seed) >> 7);
            memset(back, 0x5a, sizeof back);
            f->split(in, &b);
            f->join(&b, back);
            assert_memory_equal(in, back, (size_t)t->block_bytes);
            for (int k = 0; k < t->block; k++) assert_true(b.code[k] < 1 << f->bits);
        }
    }
}

static void names_and_extents(void **state)
{
    (void)state;
    int32_t block, bytes;
    size_t row;
    assert_string_equal(cw_type_name(CW_TYPE_Q3_K), "Q3_K");
    assert_string_equal(cw_type_name(16), "IQ2_XXS");
    assert_string_equal(cw_type_name(4), "unknown");
    assert_null(cw_type_get(CW_TYPE_TQ2_0));
    assert_null(cw_type_get(4000000000u));
    for (size_t i = 0; cw_type_at(i); i++) {
        const cw_type_info *t = cw_type_at(i);
        assert_true(cw_type_extent(t->type, &block, &bytes));
        assert_int_equal(block, t->block);
        assert_int_equal(bytes, t->block_bytes);
        assert_string_equal(cw_type_name(t->type), t->name);
        assert_ptr_equal(cw_type_get(t->type), t);
    }
    assert_false(cw_type_extent(5, &block, &bytes));
    assert_true(cw_type_row_bytes(CW_TYPE_Q4_K, 512, &row));
    assert_int_equal(row, 288);
    assert_false(cw_type_row_bytes(CW_TYPE_Q4_K, 511, &row));
    assert_false(cw_type_row_bytes(CW_TYPE_Q4_K, 0, &row));
    assert_false(cw_type_row_bytes(CW_TYPE_Q4_K, -256, &row));
    assert_false(cw_type_row_bytes(CW_TYPE_F32, INT64_MAX, &row));
}

static void q8_0_of_floats_is_close_and_bounded(void **state)
{
    (void)state;
    float x[64], y[64];
    uint8_t b[68];
    for (int i = 0; i < 32; i++) x[i] = (float)(i - 16) * 0.37f;
    for (int i = 32; i < 64; i++) x[i] = i == 40 ? -1e9f : 1e-30f; /* saturates: an f16 scale ends at 65504 */
    cw_type_quantise_q8_0(x, b, 64);
    cw_type_get(CW_TYPE_Q8_0)->to_f32(b, y, 64);
    for (int i = 0; i < 32; i++) assert_true(fabsf(x[i] - y[i]) <= 16 * 0.37f / 127 * 0.501f);
    SAME(y[40], -127.0f * 65504.0f);
    memset(x, 0, sizeof x);
    cw_type_quantise_q8_0(x, b, 64);
    for (size_t i = 0; i < sizeof b; i++) assert_int_equal(b[i], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(q8_0_known_values),
        cmocka_unit_test(q4_0_known_values),
        cmocka_unit_test(q4_1_known_values),
        cmocka_unit_test(q5_0_known_values),
        cmocka_unit_test(q5_1_known_values),
        cmocka_unit_test(iq4_nl_known_values),
        cmocka_unit_test(q4_k_known_values),
        cmocka_unit_test(q5_k_known_values),
        cmocka_unit_test(q6_k_known_values),
        cmocka_unit_test(q2_k_known_values),
        cmocka_unit_test(q3_k_known_values),
        cmocka_unit_test(iq4_xs_known_values),
        cmocka_unit_test(mxfp4_known_values),
        cmocka_unit_test(floats_known_values),
        cmocka_unit_test(split_and_join_are_inverse),
        cmocka_unit_test(names_and_extents),
        cmocka_unit_test(q8_0_of_floats_is_close_and_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
