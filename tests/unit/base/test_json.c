/* The JSON writer: escapes, broken UTF-8, numbers, full buffers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/json.h"

static void nesting_and_commas(void **state)
{
    (void)state;
    char buf[256];
    cw_json j;
    cw_json_to_buf(&j, buf, sizeof buf);
    cw_json_object(&j);
    cw_json_kstr(&j, "a", "x");
    cw_json_key(&j, "b");
    cw_json_array(&j);
    cw_json_int(&j, -1);
    cw_json_uint(&j, UINT64_MAX);
    cw_json_object(&j);
    cw_json_end(&j);
    cw_json_bool(&j, true);
    cw_json_null(&j);
    cw_json_end(&j);
    cw_json_kfixed(&j, "c", 1.25, 1);
    cw_json_kstr(&j, "d", NULL);
    cw_json_end(&j);
    assert_true(cw_json_done(&j));
    assert_string_equal(buf,
                        "{\"a\":\"x\",\"b\":[-1,18446744073709551615,{},true,null],\"c\":1.2,\"d\":null}\n");
}

static void writes(const char *in, size_t n, const char *want)
{
    char buf[256];
    cw_json j;
    cw_json_to_buf(&j, buf, sizeof buf);
    cw_json_strn(&j, in, n);
    assert_true(cw_json_done(&j));
    buf[strlen(buf) - 1] = 0;
    assert_string_equal(buf, want);
}

static void strings_are_always_valid(void **state)
{
    (void)state;
#define BAD "\xef\xbf\xbd"
    writes("\"\\\n\r\t\b\f\x01\x7f/", 10, "\"\\\"\\\\\\n\\r\\t\\b\\f\\u0001\\u007f/\"");
    writes("a\0b", 3, "\"a\\u0000b\"");
    writes("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9, "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"");
    writes("x\xff y", 4, "\"x" BAD " y\"");
    writes("\xc0\xaf", 2, "\"" BAD BAD "\"");                 /* overlong */
    writes("\xed\xa0\x80", 3, "\"" BAD BAD BAD "\"");         /* surrogate */
    writes("\xf4\x90\x80\x80", 4, "\"" BAD BAD BAD BAD "\""); /* above U+10FFFF */
    writes("\xe2\x82", 2, "\"" BAD BAD "\"");                 /* cut short */
}

static void numbers_read_back(void **state)
{
    (void)state;
    static const double v[] = {0, 0.1, 1e300, -3.5, 5e-324, 1.0 / 3};
    for (size_t i = 0; i < CW_ARRAY_LEN(v); i++) {
        char buf[64];
        cw_json j;
        cw_json_to_buf(&j, buf, sizeof buf);
        cw_json_num(&j, v[i]);
        assert_true(cw_json_done(&j));
        assert_true(strtod(buf, NULL) == v[i]);
    }
    char buf[64];
    cw_json j;
    cw_json_to_buf(&j, buf, sizeof buf);
    cw_json_array(&j);
    cw_json_num(&j, NAN);
    cw_json_fixed(&j, INFINITY, 3);
    cw_json_end(&j);
    assert_true(cw_json_done(&j));
    assert_string_equal(buf, "[null,null]\n");
}

static void a_full_buffer_fails_and_the_heap_grows(void **state)
{
    (void)state;
    char buf[8];
    cw_json j;
    cw_json_to_buf(&j, buf, sizeof buf);
    cw_json_str(&j, "123456");
    assert_false(cw_json_done(&j));
    cw_json_to_heap(&j);
    cw_json_array(&j);
    for (int i = 0; i < 10000; i++) cw_json_int(&j, 7);
    cw_json_end(&j);
    assert_true(cw_json_done(&j));
    assert_int_equal(strlen(j.buf), 20002);
    cw_json_free(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nesting_and_commas),
        cmocka_unit_test(strings_are_always_valid),
        cmocka_unit_test(numbers_read_back),
        cmocka_unit_test(a_full_buffer_fails_and_the_heap_grows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
