/* GGUF in shards: any shard opens all; a set that is not whole and consistent is refused, naming the shard.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/gguf.h"
#include "gguf_writer.h"

static char dir[64];

static void shard_path(char out[160], int no, int count)
{
    snprintf(out, 160, "%s/big-model-%05d-of-%05d.gguf", dir, no, count);
}

typedef struct {
    int no, count, total; /* as the keys have them; -1: key absent */
    const char *tensor;
} shard;

static void save(int name_no, int name_count, shard s)
{
    char path[160];
    gguf_writer *w = gguf_writer_new();
    if (name_no == 1) gguf_writer_str(w, "general.architecture", "deepseek2");
    if (s.no >= 0) gguf_writer_u16(w, "split.no", (uint16_t)s.no);
    if (s.count >= 0) gguf_writer_u16(w, "split.count", (uint16_t)s.count);
    if (s.total >= 0) gguf_writer_i32(w, "split.tensors.count", s.total);
    float f[2] = {(float)name_no, 7};
    if (s.tensor) gguf_writer_tensor(w, s.tensor, 0, 1, (const int64_t[]){2}, f, sizeof f);
    shard_path(path, name_no, name_count);
    gguf_writer_save(w, path);
    gguf_writer_free(&w);
}

/* A directory with three good shards: metadata alone in the first. */
static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/cw_test_shards_XXXXXX");
    if (!mkdtemp(dir)) return -1;
    save(1, 3, (shard){0, 3, 2, NULL});
    save(2, 3, (shard){1, 3, 2, "b"});
    save(3, 3, (shard){2, 3, 2, "a"});
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char path[160];
    for (int i = 1; i <= 3; i++) {
        shard_path(path, i, 3);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/renamed.gguf", dir);
    unlink(path);
    return rmdir(dir);
}

static void refused_from(int no, cw_status status, const char *words)
{
    char path[160];
    cw_gguf *g = NULL;
    cw_err err = {0};
    shard_path(path, no, 3);
    cw_status s = cw_gguf_open(path, &g, &err);
    if (s != status || !strstr(err.text, words))
        fail_msg("got %s '%s' where %s '%s' was expected", cw_status_name(s), err.text,
                 cw_status_name(status), words);
    assert_null(g);
}

static void any_shard_opens_all(void **state)
{
    (void)state;
    for (int i = 1; i <= 3; i++) {
        char path[160];
        cw_gguf *g = NULL;
        cw_err err;
        shard_path(path, i, 3);
        assert_int_equal(cw_gguf_open(path, &g, &err), CW_OK);
        assert_int_equal(cw_gguf_shard_count(g), 3);
        assert_non_null(cw_gguf_kv_find(g, "general.architecture"));
        assert_int_equal(cw_gguf_tensor_count(g), 2);
        const cw_gguf_tensor *a = cw_gguf_find(g, "a"), *b = cw_gguf_find(g, "b");
        assert_int_equal(a->shard, 2);
        assert_int_equal(b->shard, 1);
        float f;
        assert_int_equal(cw_gguf_read(g, a, 0, 4, &f, &err), CW_OK);
        assert_true(f == 3);
        assert_int_equal(cw_gguf_read(g, b, 0, 4, &f, &err), CW_OK);
        assert_true(f == 2);
        shard_path(path, 2, 3);
        assert_string_equal(cw_gguf_shard_path(g, 1), path);
        assert_true(cw_gguf_identity(g, 0).inode != cw_gguf_identity(g, 1).inode);
        cw_gguf_close(&g);
    }
}

static void a_missing_shard_is_named(void **state)
{
    (void)state;
    char path[160];
    shard_path(path, 2, 3);
    unlink(path);
    refused_from(1, CW_STATUS_NOT_FOUND,
                 "big-model-00002-of-00003.gguf: this shard of the model (2 of 3) is missing");
    refused_from(3, CW_STATUS_NOT_FOUND, "big-model-00002-of-00003.gguf");
}

static void a_copy_under_another_name_is_refused(void **state)
{
    (void)state;
    save(3, 3, (shard){1, 3, 2, "b"});
    refused_from(1, CW_STATUS_MISMATCH,
                 "big-model-00003-of-00003.gguf: by its key 'split.no' this is shard 2");
    refused_from(3, CW_STATUS_MISMATCH, "big-model-00003-of-00003.gguf");
}

static void sets_of_different_size_do_not_mix(void **state)
{
    (void)state;
    save(2, 3, (shard){1, 4, 2, "b"});
    refused_from(1, CW_STATUS_MISMATCH, "big-model-00002-of-00003.gguf: this shard belongs to a set of 4");
    refused_from(2, CW_STATUS_MISMATCH, "the name says shard 2 of 3, the file is one of 4");
    save(2, 3, (shard){-1, -1, -1, "b"});
    refused_from(1, CW_STATUS_MISMATCH, "big-model-00002-of-00003.gguf");
}

static void tensor_totals_are_compared(void **state)
{
    (void)state;
    save(2, 3, (shard){1, 3, 5, "b"});
    refused_from(1, CW_STATUS_MISMATCH, "disagree");
    save(2, 3, (shard){1, 3, 2, NULL});
    refused_from(1, CW_STATUS_MISMATCH, "says 2 tensors, the shards hold 1");
}

static void a_tensor_in_two_shards_is_refused(void **state)
{
    (void)state;
    save(2, 3, (shard){1, 3, 2, "a"});
    refused_from(1, CW_STATUS_FORMAT, "tensor 'a' is there twice");
}

static void a_broken_shard_is_named(void **state)
{
    (void)state;
    char path[160];
    shard_path(path, 3, 3);
    assert_int_equal(truncate(path, 40), 0);
    refused_from(1, CW_STATUS_FORMAT, "big-model-00003-of-00003.gguf");
}

static void a_shard_under_a_foreign_name_says_what_is_needed(void **state)
{
    (void)state;
    char from[160], to[160];
    cw_gguf *g = NULL;
    cw_err err;
    shard_path(from, 2, 3);
    snprintf(to, sizeof to, "%s/renamed.gguf", dir);
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(cw_gguf_open(to, &g, &err), CW_STATUS_INVALID);
    assert_non_null(strstr(err.text, "-00001-of-00003.gguf"));
}

static void one_of_one_opens_under_any_name(void **state)
{
    (void)state;
    char from[160], to[160];
    cw_gguf *g = NULL;
    cw_err err;
    save(1, 3, (shard){0, 1, 1, "a"});
    shard_path(from, 1, 3);
    snprintf(to, sizeof to, "%s/renamed.gguf", dir);
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(cw_gguf_open(to, &g, &err), CW_OK);
    assert_int_equal(cw_gguf_shard_count(g), 1);
    cw_gguf_close(&g);
}

#define FRESH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FRESH(any_shard_opens_all),
        FRESH(a_missing_shard_is_named),
        FRESH(a_copy_under_another_name_is_refused),
        FRESH(sets_of_different_size_do_not_mix),
        FRESH(tensor_totals_are_compared),
        FRESH(a_tensor_in_two_shards_is_refused),
        FRESH(a_broken_shard_is_named),
        FRESH(a_shard_under_a_foreign_name_says_what_is_needed),
        FRESH(one_of_one_opens_under_any_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
