/* Join strings: read back whole, every slip of the hand noticed, every form of --join resolved. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/join.h"
#include "cw/keys.h"

static cw_join sample(cw_join_role role)
{
    cw_join j = {.role = role, .address = "tcp://coordinator.example.org:5570"};
    for (int i = 0; i < CW_KEY_BYTES; i++) j.coordinator.b[i] = (uint8_t)(i * 31 + 5);
    for (int i = 0; i < CW_TOKEN_BYTES; i++) j.token[i] = (uint8_t)(i * 17 + 3);
    return j;
}

static bool same(const cw_join *a, const cw_join *b)
{
    return a->role == b->role && strcmp(a->address, b->address) == 0 &&
           cw_key_equal(&a->coordinator, &b->coordinator) && memcmp(a->token, b->token, CW_TOKEN_BYTES) == 0;
}

static void a_join_string_is_read_back(void **state)
{
    (void)state;
    for (int role = CW_JOIN_WORKER; role <= CW_JOIN_EDGE; role++) {
        char text[CW_JOIN_TEXT_MAX], wrapped[CW_JOIN_TEXT_MAX + 64];
        cw_join j = sample((cw_join_role)role), back;
        assert_int_equal(cw_join_make(&j, text, NULL), CW_OK);
        assert_int_equal(strncmp(text, role == CW_JOIN_WORKER ? "cw1-worker-" : "cw1-edge-", 9), 0);
        assert_int_equal(cw_join_parse(text, &back, NULL), CW_OK);
        assert_true(same(&j, &back));
        snprintf(wrapped, sizeof wrapped, "  %.40s\r\n   %s\n", text, text + 40);
        assert_int_equal(cw_join_parse(wrapped, &back, NULL), CW_OK);
        assert_true(same(&j, &back));
    }
}

static void the_longest_address_fits_and_a_longer_one_is_refused(void **state)
{
    (void)state;
    char text[CW_JOIN_TEXT_MAX];
    cw_join j = sample(CW_JOIN_WORKER), back;
    memset(j.address, 'a', sizeof j.address);
    memcpy(j.address, "tcp://", 6);
    j.address[255] = 0;
    assert_int_equal(cw_join_make(&j, text, NULL), CW_OK);
    assert_int_equal(cw_join_parse(text, &back, NULL), CW_OK);
    assert_true(same(&j, &back));
    j.address[255] = 'a'; /* not even ended */
    assert_int_equal(cw_join_make(&j, text, NULL), CW_STATUS_INVALID);
}

static void every_change_of_one_character_is_a_typo(void **state)
{
    (void)state;
    char text[CW_JOIN_TEXT_MAX];
    cw_join j = sample(CW_JOIN_WORKER), back;
    cw_err err;
    assert_int_equal(cw_join_make(&j, text, NULL), CW_OK);
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++) {
        char was = text[i];
        for (int c = 1; c < 256; c++) {
            if ((char)c == was) continue;
            text[i] = (char)c;
            if (cw_join_parse(text, &back, &err) != CW_STATUS_FORMAT)
                fail_msg("character %zu of %zu: %c became %d", i, n, was, c);
        }
        text[i] = was;
    }
    assert_int_equal(cw_join_parse(text, &back, &err), CW_OK);
}

static void cut_doubled_and_swapped_characters_are_typos(void **state)
{
    (void)state;
    char text[CW_JOIN_TEXT_MAX], bad[CW_JOIN_TEXT_MAX + 2];
    cw_join j = sample(CW_JOIN_EDGE), back;
    assert_int_equal(cw_join_make(&j, text, NULL), CW_OK);
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++) {
        snprintf(bad, sizeof bad, "%.*s", (int)i, text);
        assert_int_equal(cw_join_parse(bad, &back, NULL), CW_STATUS_FORMAT);
        snprintf(bad, sizeof bad, "%.*s%s", (int)i, text, text + i + 1);
        assert_int_equal(cw_join_parse(bad, &back, NULL), CW_STATUS_FORMAT);
        snprintf(bad, sizeof bad, "%.*s%s", (int)i + 1, text, text + i);
        assert_int_equal(cw_join_parse(bad, &back, NULL), CW_STATUS_FORMAT);
        if (i + 1 == n || text[i] == text[i + 1]) continue;
        snprintf(bad, sizeof bad, "%s", text);
        bad[i] = text[i + 1], bad[i + 1] = text[i];
        assert_int_equal(cw_join_parse(bad, &back, NULL), CW_STATUS_FORMAT);
    }
}

static void other_things_are_told_apart(void **state)
{
    (void)state;
    cw_join j;
    cw_err err;
    assert_int_equal(cw_join_parse("hello", &j, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "not a join string"));
    assert_int_equal(cw_join_parse(" \n", &j, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "empty"));
    assert_int_equal(cw_join_parse("cw2-worker-AAAA", &j, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "format 2"));
    assert_int_equal(cw_join_parse("cw1-worker-AAAA", &j, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "mistyped"));
    char huge[2000];
    memset(huge, 'c', sizeof huge);
    huge[sizeof huge - 1] = 0;
    assert_int_equal(cw_join_parse(huge, &j, &err), CW_STATUS_FORMAT);
}

static void every_form_of_the_option_is_resolved(void **state)
{
    (void)state;
    char text[CW_JOIN_TEXT_MAX], path[] = "/tmp/cw_test_join_XXXXXX", arg[64];
    cw_join j = sample(CW_JOIN_WORKER), back;
    cw_err err;
    assert_int_equal(cw_join_make(&j, text, NULL), CW_OK);
    unsetenv("CAUSEWAY_JOIN");
    assert_int_equal(cw_join_resolve(NULL, CW_JOIN_WORKER, &back, &err), CW_STATUS_NOT_FOUND);
    assert_int_equal(cw_join_resolve(text, CW_JOIN_WORKER, &back, &err), CW_OK);
    assert_true(same(&j, &back));
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    assert_int_equal(write(fd, "\n", 1), 1);
    close(fd);
    snprintf(arg, sizeof arg, "@%s", path);
    memset(&back, 0, sizeof back);
    assert_int_equal(cw_join_resolve(arg, CW_JOIN_WORKER, &back, &err), CW_OK);
    assert_true(same(&j, &back));
    assert_non_null(freopen(path, "r", stdin));
    memset(&back, 0, sizeof back);
    assert_int_equal(cw_join_resolve("-", CW_JOIN_WORKER, &back, &err), CW_OK);
    assert_true(same(&j, &back));
    unlink(path);
    assert_int_not_equal(cw_join_resolve(arg, CW_JOIN_WORKER, &back, &err), CW_OK);
    setenv("CAUSEWAY_JOIN", text, 1);
    assert_int_equal(cw_join_resolve(NULL, CW_JOIN_WORKER, &back, &err), CW_OK);
    assert_int_equal(cw_join_resolve(NULL, CW_JOIN_EDGE, &back, &err), CW_STATUS_INVALID);
    assert_non_null(strstr(err.text, "--role edge"));
}

static void a_token_is_stored_as_a_hash(void **state)
{
    (void)state;
    uint8_t a[CW_TOKEN_BYTES], b[CW_TOKEN_BYTES], ha[32], hb[32];
    cw_token_new(a);
    cw_token_new(b);
    assert_memory_not_equal(a, b, sizeof a);
    cw_token_hash(a, sizeof a, ha);
    cw_token_hash(b, sizeof b, hb);
    assert_memory_not_equal(ha, hb, sizeof ha);
    cw_token_hash(a, sizeof a, hb);
    assert_memory_equal(ha, hb, sizeof ha);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_join_string_is_read_back),
        cmocka_unit_test(the_longest_address_fits_and_a_longer_one_is_refused),
        cmocka_unit_test(every_change_of_one_character_is_a_typo),
        cmocka_unit_test(cut_doubled_and_swapped_characters_are_typos),
        cmocka_unit_test(other_things_are_told_apart),
        cmocka_unit_test(every_form_of_the_option_is_resolved),
        cmocka_unit_test(a_token_is_stored_as_a_hash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
