/* The base room: errors, memory, f16 conversion. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include "cw/bytes.h"
#include "cw/mem.h"

static void f16_survives_a_round_trip_for_every_value(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = cw_f16_to_f32((uint16_t)h);
        if (isnan(f)) continue;
        assert_int_equal(cw_f32_to_f16(f), h);
    }
}

static void f16_rounds_to_nearest_even(void **state)
{
    (void)state;
    assert_int_equal(cw_f32_to_f16(1.0f + 0x1p-11f), 0x3c00);     /* tie, to even below */
    assert_int_equal(cw_f32_to_f16(1.0f + 3 * 0x1p-11f), 0x3c02); /* tie, to even above */
    assert_int_equal(cw_f32_to_f16(1.0f + 0x1p-11f + 0x1p-20f), 0x3c01);
    assert_int_equal(cw_f32_to_f16(65519.0f), 0x7bff);
    assert_int_equal(cw_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(cw_f32_to_f16(0x1p-24f), 1);
    assert_int_equal(cw_f32_to_f16(0x1p-25f), 0); /* tie, to even zero */
    assert_int_equal(cw_f32_to_f16(0x1.8p-25f), 1);
    assert_int_equal(cw_f32_to_f16(-0x1p-14f), 0x8400);
    assert_int_equal(cw_f32_to_f16(0x1.ff8p-15f), 0x3ff); /* largest subnormal */
    assert_int_equal(cw_f32_to_f16(0x1.ffcp-15f), 0x400); /* tie, up into the normals */
}

static void error_prefix_keeps_the_sentence(void **state)
{
    (void)state;
    cw_err err;
    assert_int_equal(CW_FAIL(&err, CW_STATUS_FORMAT, "bad %d", 7), CW_STATUS_FORMAT);
    assert_int_equal(cw_err_prefix(&err, "file %s", "x"), CW_STATUS_FORMAT);
    assert_string_equal(err.text, "file x: bad 7");
}

static void what_comes_from_outside_cannot_drive_a_terminal(void **state)
{
    (void)state;
    cw_err err;
    cw_status s = CW_FAIL(&err, CW_STATUS_FORMAT, "%s",
                          "a\033[2J\n\x7f \xc2\x9b"
                          "1m \xff\xc3 \xed\xa0\x80 \xc3\xa9\xe4\xbd\xa0\xf0\x9f\x99\x82");
    assert_int_equal(s, CW_STATUS_FORMAT);
    assert_string_equal(err.text, "a?[2J?? ??1m ?? ??? \xc3\xa9\xe4\xbd\xa0\xf0\x9f\x99\x82");
    s = cw_err_prefix(&err, "%s", "file\033.gguf");
    assert_int_equal(s, CW_STATUS_FORMAT);
    assert_memory_equal(err.text, "file?.gguf: a?", 14);
    /* A character that the buffer's end cuts in two is not half a character. */
    char text[] = "ab\xe4\xbd";
    cw_text_printable(text);
    assert_string_equal(text, "ab??");
}

static void allocation_refuses_overflow(void **state)
{
    (void)state;
    volatile size_t huge = SIZE_MAX / 2;
    assert_null(cw_calloc(huge, 4));
    assert_null(cw_aligned_calloc(huge, 2));
    cw_arena *a = NULL;
    assert_int_equal(cw_arena_new(1 << 20, &a, NULL), CW_OK);
    assert_null(cw_arena_alloc(a, huge, 3));
    assert_null(cw_arena_alloc(a, (1 << 20) + 1, 1));
    uint8_t *p = cw_arena_alloc(a, 100, 1);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % 64, 0);
    size_t mark = cw_arena_used(a);
    memset(cw_arena_alloc(a, 64, 1), 7, 64);
    cw_arena_reset(a, mark);
    uint8_t *q = cw_arena_alloc(a, 64, 1);
    assert_int_equal(q[63], 0);
    cw_arena_free(&a);
    assert_null(a);
}

static void guard_counts_allocations(void **state)
{
    (void)state;
    cw_alloc_guard_begin(false);
    cw_free(cw_calloc(1, 8));
    assert_int_equal(cw_alloc_guard_end(), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_survives_a_round_trip_for_every_value),
        cmocka_unit_test(f16_rounds_to_nearest_even),
        cmocka_unit_test(error_prefix_keeps_the_sentence),
        cmocka_unit_test(what_comes_from_outside_cannot_drive_a_terminal),
        cmocka_unit_test(allocation_refuses_overflow),
        cmocka_unit_test(guard_counts_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
