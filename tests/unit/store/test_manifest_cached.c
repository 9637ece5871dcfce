/* The manifest's cache: hashed once, again when the file changed, never trusted when damaged. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/log.h"
#include "cw/manifest.h"
#include "gguf_writer.h"

enum { HASH = CW_MANIFEST_HASH_BYTES };

static char dir[64], path[96];

typedef struct {
    int hashed, answers; /* calls of progress, of known_answer */
    bool cut;            /* cut the file in the middle of hashing */
} counts;

static bool progress(void *ctx, uint64_t done, uint64_t total)
{
    counts *c = ctx;
    (void)done, (void)total;
    c->hashed++;
    if (c->cut) assert_int_equal(truncate(path, 300), 0);
    return true;
}

static cw_status answer(void *ctx, int layer, int expert, uint8_t out[HASH], cw_err *err)
{
    counts *c = ctx;
    (void)err;
    c->answers++;
    memset(out, layer + expert, HASH);
    return CW_OK;
}

static void write_model(uint8_t first)
{
    uint8_t data[64] = {first};
    gguf_writer *w = gguf_writer_new();
    gguf_writer_str(w, "general.architecture", "deepseek2");
    gguf_writer_tensor(w, "blk.1.ffn_down_exps.weight", 0, 3, (const int64_t[]){4, 2, 2}, data, 64);
    gguf_writer_tensor(w, "other", 0, 1, (const int64_t[]){4}, data, 16);
    gguf_writer_save(w, path);
    gguf_writer_free(&w);
}

static void set_mtime(long seconds, long ns)
{
    struct timespec t[2] = {{seconds, ns}, {seconds, ns}};
    assert_int_equal(utimensat(0, path, t, 0), 0);
}

static int set_up(void **state)
{
    (void)state;
    cw_log_set_level(CW_LOG_ERROR);
    snprintf(dir, sizeof dir, "/tmp/cw_test_manifest_XXXXXX");
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/model.gguf", dir);
    write_model(1);
    set_mtime(1000, 0);
    return 0;
}

static void for_each_file(void (*fn)(const char *file))
{
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d));) {
        char file[512];
        snprintf(file, sizeof file, "%s/%s", dir, e->d_name);
        if (e->d_name[0] != '.') fn(file);
    }
    closedir(d);
}

static void remove_file(const char *file)
{
    unlink(file);
}

static int tear_down(void **state)
{
    (void)state;
    for_each_file(remove_file);
    return rmdir(dir);
}

/* Opens the file anew, as the next start would. */
static cw_manifest *get(const cw_manifest_options *o, const char *cache_dir)
{
    cw_gguf *g = NULL;
    cw_manifest *m = NULL;
    cw_err err = {0};
    if (cw_gguf_open(path, &g, &err) != CW_OK || cw_manifest_cached(g, cache_dir, o, &m, &err) != CW_OK)
        fail_msg("%s", err.text);
    cw_gguf_close(&g);
    return m;
}

static void the_second_start_does_not_hash(void **state)
{
    (void)state;
    counts c = {0};
    cw_manifest_options o = {.progress = progress, .ctx = &c};
    cw_manifest *a = get(&o, dir);
    assert_true(c.hashed > 0);
    c.hashed = 0;
    cw_manifest *b = get(&o, dir);
    assert_int_equal(c.hashed, 0);
    assert_memory_equal(cw_manifest_digest(a), cw_manifest_digest(b), HASH);
    cw_manifest_free(&a);
    cw_manifest_free(&b);
}

static void a_changed_file_is_hashed_again(void **state)
{
    (void)state;
    counts c = {0};
    cw_manifest_options o = {.progress = progress, .ctx = &c};
    cw_manifest *a = get(&o, dir);
    /* one nanosecond of mtime, the content too */
    write_model(2);
    set_mtime(1000, 1);
    c.hashed = 0;
    cw_manifest *b = get(&o, dir);
    assert_true(c.hashed > 0);
    assert_memory_not_equal(cw_manifest_digest(a), cw_manifest_digest(b), HASH);
    cw_manifest_free(&b);
    /* another file (inode) of the same size and time */
    char old[128];
    snprintf(old, sizeof old, "%s.old", path);
    assert_int_equal(rename(path, old), 0);
    write_model(1);
    set_mtime(1000, 1);
    c.hashed = 0;
    b = get(&o, dir);
    assert_true(c.hashed > 0);
    assert_memory_equal(cw_manifest_digest(a), cw_manifest_digest(b), HASH);
    cw_manifest_free(&a);
    cw_manifest_free(&b);
}

static long damage_at;

static void damage(const char *file)
{
    if (!strstr(file, "manifest-")) return;
    FILE *f = fopen(file, "r+b");
    assert_non_null(f);
    fseek(f, damage_at, damage_at < 0 ? SEEK_END : SEEK_SET);
    int v = fgetc(f);
    fseek(f, -1, SEEK_CUR);
    fputc(v ^ 0x40, f);
    fclose(f);
}

static void shorten(const char *file)
{
    struct stat st;
    if (!strstr(file, "manifest-")) return;
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(truncate(file, st.st_size / 2), 0);
}

static void a_damaged_cache_is_made_again(void **state)
{
    (void)state;
    static const long places[] = {0, 9, 12, 20, 28, 36, 44, 60, -1, -33, -60};
    counts c = {0};
    cw_manifest_options o = {.progress = progress, .ctx = &c};
    cw_manifest *a = get(&o, dir);
    for (size_t i = 0; i <= CW_ARRAY_LEN(places); i++) {
        if (i < CW_ARRAY_LEN(places)) damage_at = places[i];
        for_each_file(i < CW_ARRAY_LEN(places) ? damage : shorten);
        c.hashed = 0;
        cw_manifest *b = get(&o, dir);
        assert_true(c.hashed > 0);
        assert_memory_equal(cw_manifest_digest(a), cw_manifest_digest(b), HASH);
        cw_manifest_free(&b);
    }
    cw_manifest_free(&a);
}

static void answers_are_added_without_hashing_again(void **state)
{
    (void)state;
    counts c = {0};
    cw_manifest_options o = {.progress = progress, .ctx = &c};
    cw_manifest *m = get(&o, dir);
    assert_false(cw_manifest_has_answers(m, 1));
    cw_manifest_free(&m);
    c = (counts){0};
    o.known_answer = answer;
    o.arithmetic_id = 1;
    m = get(&o, dir);
    assert_int_equal(c.hashed, 0);
    assert_int_equal(c.answers, 2);
    assert_non_null(cw_manifest_answer(m, 1, 1, 1));
    cw_manifest_free(&m);
    c = (counts){0};
    m = get(&o, dir); /* now they are cached */
    assert_int_equal(c.answers, 0);
    assert_int_equal(cw_manifest_answer(m, 1, 1, 1)[5], 2);
    cw_manifest_free(&m);
    o.arithmetic_id = 2; /* another arithmetic, other answers */
    m = get(&o, dir);
    assert_int_equal(c.answers, 2);
    assert_int_equal(c.hashed, 0);
    cw_manifest_free(&m);
}

static void a_cache_that_cannot_be_written_costs_only_time(void **state)
{
    (void)state;
    counts c = {0};
    cw_manifest_options o = {.progress = progress, .ctx = &c};
    for (int i = 0; i < 2; i++) {
        c.hashed = 0;
        cw_manifest *m = get(&o, "/nonexistent/state");
        assert_true(c.hashed > 0);
        cw_manifest_free(&m);
    }
}

static void a_file_cut_while_it_is_hashed_is_an_error(void **state)
{
    (void)state;
    counts c = {.cut = true};
    cw_manifest_options o = {.progress = progress, .ctx = &c};
    cw_gguf *g = NULL;
    cw_manifest *m = NULL;
    cw_err err = {0};
    assert_int_equal(cw_gguf_open(path, &g, &err), CW_OK);
    cw_status s = cw_manifest_cached(g, dir, &o, &m, &err);
    assert_true(s == CW_STATUS_IO || s == CW_STATUS_MISMATCH);
    assert_non_null(strstr(err.text, path));
    assert_null(m);
    cw_gguf_close(&g);
}

#define FRESH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FRESH(the_second_start_does_not_hash),
        FRESH(a_changed_file_is_hashed_again),
        FRESH(a_damaged_cache_is_made_again),
        FRESH(answers_are_added_without_hashing_again),
        FRESH(a_cache_that_cannot_be_written_costs_only_time),
        FRESH(a_file_cut_while_it_is_hashed_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
