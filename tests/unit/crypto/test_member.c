/* A process's place in a cluster: what the state directory remembers, and who may use it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/mem.h"
#include "cw/member.h"

static char dir[64], join[2][CW_JOIN_TEXT_MAX];

static int set_up(void **state)
{
    (void)state;
    unsetenv("CAUSEWAY_JOIN");
    snprintf(dir, sizeof dir, "/tmp/causeway-member-XXXXXX");
    if (!mkdtemp(dir)) return -1;
    for (int i = 0; i < 2; i++) {
        cw_join j = {.role = CW_JOIN_WORKER, .address = "tcp://10.0.0.1:5570"};
        memset(j.coordinator.b, 3 + i, CW_KEY_BYTES);
        memset(j.token, 9, sizeof j.token);
        if (cw_join_make(&j, join[i], NULL) != CW_OK) return -1;
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

static cw_status open_member(const char *with, cw_member *m, cw_err *err)
{
    return cw_member_open(CW_JOIN_WORKER, dir, "w", with, m, err);
}

static void the_first_start_needs_a_join_string_and_later_ones_do_not(void **state)
{
    (void)state;
    cw_member m;
    cw_err err = {0};
    assert_int_equal(open_member(NULL, &m, &err), CW_STATUS_NOT_FOUND);
    assert_non_null(strstr(err.text, "--join"));
    assert_int_equal(open_member(join[0], &m, &err), CW_OK);
    assert_false(m.enrolled);
    assert_true(m.has_token);
    cw_key key = *cw_keys_public(m.keys);
    cw_member_close(&m);
    /* Not let in yet: nothing is remembered but the key. */
    assert_int_equal(open_member(NULL, &m, &err), CW_STATUS_NOT_FOUND);
    assert_int_equal(open_member(join[0], &m, &err), CW_OK);
    assert_int_equal(cw_member_enrolled(&m, &err), CW_OK);
    cw_member_close(&m);
    assert_true(cw_member_is_stored(CW_JOIN_WORKER, dir, "w"));
    assert_int_equal(open_member(NULL, &m, &err), CW_OK);
    assert_true(m.enrolled);
    assert_false(m.has_token);
    assert_string_equal(m.address, "tcp://10.0.0.1:5570");
    assert_true(cw_key_equal(&key, cw_keys_public(m.keys)));
    cw_member_close(&m);
}

static void the_same_string_changes_nothing_and_another_cluster_begins_anew(void **state)
{
    (void)state;
    cw_member m;
    assert_int_equal(open_member(join[0], &m, NULL), CW_OK);
    assert_int_equal(cw_member_enrolled(&m, NULL), CW_OK);
    cw_member_close(&m);
    assert_int_equal(open_member(join[0], &m, NULL), CW_OK);
    assert_true(m.enrolled);
    cw_member_close(&m);
    assert_int_equal(open_member(join[1], &m, NULL), CW_OK);
    assert_false(m.enrolled);
    assert_int_equal(m.coordinator.b[0], 4);
    cw_member_close(&m);
}

static void a_second_process_is_told_to_choose_a_name(void **state)
{
    (void)state;
    cw_member m, n;
    cw_err err = {0};
    assert_int_equal(open_member(join[0], &m, NULL), CW_OK);
    assert_int_equal(open_member(join[0], &n, &err), CW_STATUS_BUSY);
    assert_non_null(strstr(err.text, "--name"));
    cw_member_close(&m);
    assert_int_equal(open_member(join[0], &n, &err), CW_OK);
    cw_member_close(&n);
}

static void the_token_is_never_written(void **state)
{
    (void)state;
    cw_member m;
    assert_int_equal(open_member(join[0], &m, NULL), CW_OK);
    assert_int_equal(cw_member_enrolled(&m, NULL), CW_OK);
    char path[96];
    struct stat st;
    snprintf(path, sizeof path, "%s/member", dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    char *text = NULL;
    size_t n;
    assert_int_equal(cw_fs_read(path, 4096, &text, &n, NULL), CW_OK);
    uint8_t token[CW_TOKEN_BYTES];
    memset(token, 9, sizeof token);
    assert_null(memmem(text, n, token, sizeof token));
    assert_null(strstr(text, join[0]));
    cw_free(text);
    cw_member_close(&m);
}

static void a_damaged_file_is_said(void **state)
{
    (void)state;
    cw_member m;
    cw_err err = {0};
    char path[96];
    assert_int_equal(open_member(join[0], &m, NULL), CW_OK);
    assert_int_equal(cw_member_enrolled(&m, NULL), CW_OK);
    cw_member_close(&m);
    snprintf(path, sizeof path, "%s/member", dir);
    assert_int_equal(cw_fs_write(path, "1 tcp://x", 9, 0600, NULL), CW_OK);
    assert_int_equal(open_member(NULL, &m, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, path));
    /* With a join string it does not matter. */
    assert_int_equal(open_member(join[0], &m, &err), CW_OK);
    cw_member_close(&m);
}

static void names_are_plain(void **state)
{
    (void)state;
    char out[65];
    assert_int_equal(cw_member_name("rack-3.node_7", out, NULL), CW_OK);
    assert_string_equal(out, "rack-3.node_7");
    assert_int_equal(cw_member_name(NULL, out, NULL), CW_OK);
    assert_true(out[0]);
    char longest[66];
    memset(longest, 'a', 65);
    longest[65] = 0;
    const char *bad[] = {"", ".", "../x", "a/b", "a b", "\n", longest};
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++)
        assert_int_equal(cw_member_name(bad[i], out, NULL), CW_STATUS_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_first_start_needs_a_join_string_and_later_ones_do_not, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(the_same_string_changes_nothing_and_another_cluster_begins_anew,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_second_process_is_told_to_choose_a_name, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_token_is_never_written, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_damaged_file_is_said, set_up, tear_down),
        cmocka_unit_test_setup_teardown(names_are_plain, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
