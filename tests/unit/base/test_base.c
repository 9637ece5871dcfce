/* The base room: errors, memory, f16 conversion. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/bytes.h"
#include "cw/mem.h"
#include "cw/numa.h"

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

static void lists_of_nodes_are_read(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t nodes;
    } good[] = {{"0", 1}, {"0\n", 1}, {"0-1\n", 3}, {"0-2,5\n", 0x27}, {"1,3", 10}, {"62-70", 3ull << 62},
                {"99", 0}};
    static const char *const bad[] = {"", "\n", "a", "0-", "-1", "2-1", "0,", "0 1", "0-1-2", "1234567"};
    uint64_t nodes = 0;
    for (size_t i = 0; i < CW_ARRAY_LEN(good); i++) {
        assert_true(cw_numa_parse(good[i].text, &nodes));
        assert_true(nodes == good[i].nodes);
    }
    nodes = 77;
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++) assert_false(cw_numa_parse(bad[i], &nodes));
    assert_true(nodes == 77 && cw_numa_nodes() != 0);
}

/* The policy of the page at p, or -1 where the kernel does not tell. */
static int policy_of(void *p)
{
    int mode = -1;
    return syscall(SYS_get_mempolicy, &mode, NULL, 0ul, p, 2ul /* MPOL_F_ADDR */) == 0 ? mode : -1;
}

static void shared_pages_are_spread_over_nodes_and_left_alone_on_one(void **state)
{
    (void)state;
    enum { BYTES = 4 << 20, INTERLEAVE = 3 };
    uint8_t *one = cw_pages_alloc(BYTES), *many = cw_pages_alloc(BYTES);
    assert_true(one && many);
    assert_true(cw_numa_spread(one, BYTES, 1)); /* a single node: not even a call */
    if (policy_of(one) >= 0) assert_int_not_equal(policy_of(one), INTERLEAVE);
    /* Nodes that are not there are left out by the kernel as long as one is; some sandboxes forbid the call.
     */
    bool agreed = cw_numa_spread(many, BYTES, 3);
    if (agreed && policy_of(many) >= 0) assert_int_equal(policy_of(many), INTERLEAVE);
    memset(many, 1, BYTES); /* usable either way */
    uint8_t *shared = cw_pages_alloc_spread(BYTES);
    assert_non_null(shared);
    uint64_t nodes = cw_numa_nodes();
    if ((nodes & (nodes - 1)) == 0 && policy_of(shared) >= 0)
        assert_int_not_equal(policy_of(shared), INTERLEAVE);
    memset(shared, 1, BYTES);
    cw_pages_free(one, BYTES);
    cw_pages_free(many, BYTES);
    cw_pages_free(shared, BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_of_nodes_are_read),
        cmocka_unit_test(shared_pages_are_spread_over_nodes_and_left_alone_on_one),
        cmocka_unit_test(f16_survives_a_round_trip_for_every_value),
        cmocka_unit_test(f16_rounds_to_nearest_even),
        cmocka_unit_test(error_prefix_keeps_the_sentence),
        cmocka_unit_test(what_comes_from_outside_cannot_drive_a_terminal),
        cmocka_unit_test(allocation_refuses_overflow),
        cmocka_unit_test(guard_counts_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
