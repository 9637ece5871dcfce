/* Sealed files: what went in comes out; nothing that was changed, cut, mixed up or lengthened does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/fs.h"
#include "cw/keys.h"
#include "cw/mem.h"
#include "cw/sealed.h"

static char dir[] = "/tmp/cw_test_sealed_XXXXXX", path[64], key_path[64];
static cw_seal_key *key;

static int begin(void **state)
{
    (void)state;
    cw_err err;
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/file", dir);
    snprintf(key_path, sizeof key_path, "%s/session.key", dir);
    return cw_seal_key_open(key_path, &key, &err) == CW_OK ? 0 : -1;
}

static int end(void **state)
{
    (void)state;
    cw_seal_key_free(&key);
    unlink(path);
    unlink(key_path);
    return rmdir(dir); /* fails when anything was left beside them */
}

static uint8_t content[3 * CW_SEALED_CHUNK];

static void write_file(size_t n, size_t step)
{
    cw_err err;
    cw_sealed_writer *w = NULL;
    for (size_t i = 0; i < sizeof content; i++) content[i] = (uint8_t)(i * 7 + i / 251);
    assert_int_equal(cw_sealed_create(path, key, "test 1", &w, &err), CW_OK);
    for (size_t at = 0; at < n; at += step)
        assert_int_equal(cw_sealed_write(w, content + at, n - at < step ? n - at : step, &err), CW_OK);
    assert_int_equal(cw_sealed_commit(&w, true, &err), CW_OK);
    assert_null(w);
}

static cw_status read_file(const cw_seal_key *k, const char *kind, size_t *n)
{
    cw_err err;
    cw_sealed_reader *r = NULL;
    void *data = NULL;
    cw_status s = cw_sealed_open(path, k, kind, &r, &err);
    if (s == CW_OK) s = cw_sealed_read_all(r, sizeof content, &data, n, &err);
    if (s == CW_OK) s = cw_sealed_at_end(r, &err);
    if (s == CW_OK) assert_memory_equal(data, content, *n);
    if (s != CW_OK) assert_non_null(strstr(err.text, path));
    cw_free(data);
    cw_sealed_close(&r);
    return s;
}

static void what_went_in_comes_out(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 65535, 65536, 65537, 131072, 3 * 65536};
    for (size_t i = 0; i < CW_ARRAY_LEN(sizes); i++) {
        size_t n = 0;
        write_file(sizes[i], 10007);
        assert_int_equal(read_file(key, "test 1", &n), CW_OK);
        assert_int_equal(n, sizes[i]);
    }
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void no_byte_can_be_changed_and_no_end_moved(void **state)
{
    (void)state;
    size_t n, len;
    char *bytes = NULL;
    cw_err err;
    write_file(70000, 4096);
    assert_int_equal(cw_fs_read(path, 1 << 20, &bytes, &len, &err), CW_OK);
    for (size_t at = 0; at < len; at += at < 64 ? 1 : 4999) {
        bytes[at] ^= 1;
        assert_int_equal(cw_fs_write(path, bytes, len, 0600, &err), CW_OK);
        assert_int_not_equal(read_file(key, "test 1", &n), CW_OK);
        bytes[at] ^= 1;
    }
    /* Cut anywhere, between two chunks above all; and with something behind. */
    const size_t cuts[] = {0, 1, 8, 31, 32, 33, 32 + 65536 + 16, 32 + 65536 + 17, 32 + 65536 + 18, len - 1};
    for (size_t i = 0; i < CW_ARRAY_LEN(cuts); i++) {
        assert_int_equal(cw_fs_write(path, bytes, cuts[i], 0600, &err), CW_OK);
        assert_int_not_equal(read_file(key, "test 1", &n), CW_OK);
    }
    assert_int_equal(cw_fs_write(path, bytes, len + 1, 0600, &err), CW_OK); /* the NUL behind it */
    assert_int_not_equal(read_file(key, "test 1", &n), CW_OK);
    assert_int_equal(cw_fs_write(path, bytes, len, 0600, &err), CW_OK);
    assert_int_equal(read_file(key, "test 1", &n), CW_OK);
    cw_free(bytes);
}

static void another_key_kind_or_version_is_refused(void **state)
{
    (void)state;
    size_t n, len;
    cw_err err;
    cw_seal_key *other = NULL;
    char *bytes = NULL;
    write_file(100, 100);
    assert_int_equal(cw_seal_key_new(&other, &err), CW_OK);
    assert_int_equal(read_file(other, "test 1", &n), CW_STATUS_AUTH);
    assert_int_equal(read_file(key, "test 2", &n), CW_STATUS_AUTH);
    cw_seal_key_free(&other);
    assert_int_equal(cw_fs_read(path, 1 << 20, &bytes, &len, &err), CW_OK);
    bytes[6] = '2';
    assert_int_equal(cw_fs_write(path, bytes, len, 0600, &err), CW_OK);
    assert_int_equal(read_file(key, "test 1", &n), CW_STATUS_UNSUPPORTED);
    cw_free(bytes);
    /* The key stays the same, and is private. */
    write_file(100, 100);
    assert_int_equal(cw_seal_key_open(key_path, &other, &err), CW_OK);
    assert_int_equal(read_file(other, "test 1", &n), CW_OK);
    cw_seal_key_free(&other);
    chmod(key_path, 0644);
    assert_int_equal(cw_seal_key_open(key_path, &other, &err), CW_STATUS_AUTH);
    chmod(key_path, 0600);
}

static void what_is_not_committed_leaves_the_old_file(void **state)
{
    (void)state;
    size_t n;
    cw_err err;
    cw_sealed_writer *w = NULL;
    write_file(100, 100);
    assert_int_equal(cw_sealed_create(path, key, "test 1", &w, &err), CW_OK);
    assert_int_equal(cw_sealed_write(w, content, 5, &err), CW_OK);
    cw_sealed_discard(&w);
    assert_int_equal(read_file(key, "test 1", &n), CW_OK);
    assert_int_equal(n, 100);
    assert_int_equal(cw_sealed_create("/nowhere/file", key, "test 1", &w, &err), CW_STATUS_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_went_in_comes_out),
        cmocka_unit_test(no_byte_can_be_changed_and_no_end_moved),
        cmocka_unit_test(another_key_kind_or_version_is_refused),
        cmocka_unit_test(what_is_not_committed_leaves_the_old_file),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
