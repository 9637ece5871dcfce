/* The chunk cache: what it keeps it gives back whole or not at all; it stays within its limit and off a full
 * disk. */
#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/chunk_cache.h"
#include "cw/log.h"

enum { HASH = CW_MANIFEST_HASH_BYTES, CHUNK = 1000 };

static char dir[64];

static int set_up(void **state)
{
    (void)state;
    cw_log_set_level(CW_LOG_ERROR);
    snprintf(dir, sizeof dir, "/tmp/cw_test_chunks_XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

/* Every file below dir, with its path. */
static int for_each(void (*fn)(const char *path), bool folders)
{
    char sub[512], file[1024];
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        snprintf(sub, sizeof sub, "%s/%s", dir, e->d_name);
        DIR *in = opendir(sub);
        if (!in) {
            n++;
            if (fn) fn(sub);
            continue;
        }
        for (struct dirent *f; (f = readdir(in));) {
            if (f->d_name[0] == '.') continue;
            snprintf(file, sizeof file, "%s/%s", sub, f->d_name);
            n++;
            if (fn) fn(file);
        }
        closedir(in);
        if (folders) rmdir(sub);
    }
    if (d) closedir(d);
    return n;
}

static void remove_file(const char *path)
{
    unlink(path);
}

static int tear_down(void **state)
{
    (void)state;
    for_each(remove_file, true);
    return rmdir(dir);
}

static cw_chunk_cache *open_cache(uint64_t limit, uint64_t reserve)
{
    cw_chunk_cache *c = NULL;
    cw_err err = {0};
    cw_chunk_cache_options o = {dir, limit, reserve};
    if (cw_chunk_cache_open(&o, &c, &err) != CW_OK) fail_msg("%s", err.text);
    return c;
}

static void make(int i, uint8_t data[CHUNK], uint8_t hash[HASH])
{
    for (int k = 0; k < CHUNK; k++) data[k] = (uint8_t)(i * 7 + k * (i + 1));
    cw_chunk_hash(data, CHUNK, hash);
}

static cw_status put(cw_chunk_cache *c, int i)
{
    uint8_t data[CHUNK], hash[HASH];
    cw_err err;
    make(i, data, hash);
    return cw_chunk_cache_put(c, hash, data, CHUNK, &err);
}

static cw_status get(cw_chunk_cache *c, int i)
{
    uint8_t data[CHUNK], hash[HASH], got[CHUNK];
    cw_err err;
    make(i, data, hash);
    cw_status s = cw_chunk_cache_get(c, hash, got, CHUNK, &err);
    if (s == CW_OK) assert_memory_equal(got, data, CHUNK);
    return s;
}

static void what_is_put_is_there_after_a_restart(void **state)
{
    (void)state;
    cw_chunk_cache *c = open_cache(1 << 20, 0);
    assert_int_equal(get(c, 1), CW_STATUS_NOT_FOUND);
    for (int i = 0; i < 5; i++) assert_int_equal(put(c, i), CW_OK);
    assert_int_equal(put(c, 1), CW_OK); /* again: no second copy */
    assert_int_equal(cw_chunk_cache_get_stats(c).chunks, 5);
    assert_int_equal(cw_chunk_cache_get_stats(c).bytes, 5 * CHUNK);
    for (int i = 0; i < 5; i++) assert_int_equal(get(c, i), CW_OK);
    cw_chunk_cache_close(&c);
    assert_null(c);
    assert_int_equal(for_each(NULL, false), 5);
    c = open_cache(1 << 20, 0);
    assert_int_equal(cw_chunk_cache_get_stats(c).chunks, 5);
    for (int i = 0; i < 5; i++) assert_int_equal(get(c, i), CW_OK);
    uint8_t data[CHUNK], hash[HASH];
    make(2, data, hash);
    cw_chunk_cache_drop(c, hash);
    cw_chunk_cache_drop(c, hash);
    assert_int_equal(get(c, 2), CW_STATUS_NOT_FOUND);
    assert_int_equal(for_each(NULL, false), 4);
    cw_chunk_cache_close(&c);
}

static void the_longest_unused_makes_room(void **state)
{
    (void)state;
    cw_chunk_cache *c = open_cache(3 * CHUNK + 10, 0);
    for (int i = 0; i < 3; i++) assert_int_equal(put(c, i), CW_OK);
    assert_int_equal(get(c, 0), CW_OK); /* now 1 is the oldest */
    assert_int_equal(put(c, 3), CW_OK);
    assert_int_equal(get(c, 1), CW_STATUS_NOT_FOUND);
    assert_int_equal(get(c, 0), CW_OK);
    assert_int_equal(get(c, 2), CW_OK);
    assert_int_equal(get(c, 3), CW_OK);
    assert_int_equal(cw_chunk_cache_get_stats(c).evicted, 1);
    assert_int_equal(for_each(NULL, false), 3);
    cw_chunk_cache_close(&c);
}

/* Sets chunk i's time of last use, as the file system keeps it (real ones may fall into one tick of its
 * clock). */
static void set_use(int i, long seconds)
{
    uint8_t data[CHUNK], hash[HASH];
    char path[256];
    make(i, data, hash);
    int n = snprintf(path, sizeof path, "%s/%02x/", dir, hash[0]);
    for (int k = 0; k < HASH; k++) n += snprintf(path + n, sizeof path - (size_t)n, "%02x", hash[k]);
    assert_int_equal(utimensat(0, path, (const struct timespec[2]){{seconds, 0}, {seconds, 0}}, 0), 0);
}

static void the_order_of_use_outlives_a_restart(void **state)
{
    (void)state;
    for (int turn = 0; turn < 2; turn++) {
        cw_chunk_cache *c = open_cache(1 << 20, 0);
        for (int i = 0; i < 8; i++) assert_int_equal(put(c, i), CW_OK);
        cw_chunk_cache_close(&c);
        for (int i = 0; i < 8; i++) set_use(i, turn ? 1000 + i : 1000 - i);
        set_use(turn ? 0 : 7, 5000);
        c = open_cache(4 * CHUNK, 0); /* a smaller limit at the next start */
        assert_int_equal(cw_chunk_cache_get_stats(c).chunks, 4);
        for (int i = 0; i < 8; i++) {
            bool stays = turn ? i == 0 || i >= 5 : i == 7 || i <= 2;
            assert_int_equal(get(c, i), stays ? CW_OK : CW_STATUS_NOT_FOUND);
        }
        cw_chunk_cache_close(&c);
        assert_int_equal(for_each(NULL, false), 4);
    }
}

/* Reading is use, and the file says so. */
static void a_chunk_that_is_read_is_used_now(void **state)
{
    (void)state;
    cw_chunk_cache *c = open_cache(2 * CHUNK, 0);
    assert_int_equal(put(c, 0), CW_OK);
    assert_int_equal(put(c, 1), CW_OK);
    set_use(0, 1000);
    set_use(1, 2000);
    assert_int_equal(get(c, 0), CW_OK);
    cw_chunk_cache_close(&c);
    c = open_cache(CHUNK, 0);
    assert_int_equal(get(c, 0), CW_OK);
    assert_int_equal(get(c, 1), CW_STATUS_NOT_FOUND);
    cw_chunk_cache_close(&c);
}

static void a_limit_of_zero_keeps_nothing_and_touches_nothing(void **state)
{
    (void)state;
    rmdir(dir);
    cw_chunk_cache *c = open_cache(0, 0);
    assert_int_equal(put(c, 1), CW_STATUS_LIMIT);
    assert_int_equal(get(c, 1), CW_STATUS_NOT_FOUND);
    cw_chunk_cache_close(&c);
    assert_int_not_equal(access(dir, F_OK), 0);
    assert_int_equal(mkdir(dir, 0700), 0);
}

static void a_full_disk_is_asked_for_first_and_costs_nothing_that_is_there(void **state)
{
    (void)state;
    cw_chunk_cache *c = open_cache(2 * CHUNK, 0);
    assert_int_equal(put(c, 0), CW_OK);
    assert_int_equal(put(c, 1), CW_OK);
    cw_chunk_cache_close(&c);
    c = open_cache(2 * CHUNK, UINT64_MAX); /* more to be left free than any disk has */
    uint8_t data[CHUNK], hash[HASH];
    cw_err err = {0};
    make(2, data, hash);
    assert_int_equal(cw_chunk_cache_put(c, hash, data, CHUNK, &err), CW_STATUS_LIMIT);
    assert_non_null(strstr(err.text, "full"));
    assert_int_equal(get(c, 0), CW_OK);
    assert_int_equal(get(c, 1), CW_OK);
    assert_int_equal(for_each(NULL, false), 2);
    cw_chunk_cache_close(&c);
}

static void a_chunk_larger_than_the_cache_is_not_kept(void **state)
{
    (void)state;
    cw_chunk_cache *c = open_cache(CHUNK - 1, 0);
    assert_int_equal(put(c, 0), CW_STATUS_LIMIT);
    assert_int_equal(for_each(NULL, false), 0);
    cw_chunk_cache_close(&c);
}

static void flip_a_byte(const char *path)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, CHUNK / 2, SEEK_SET);
    int v = fgetc(f);
    fseek(f, CHUNK / 2, SEEK_SET);
    fputc(v ^ 1, f);
    fclose(f);
}

static void shorten(const char *path)
{
    assert_int_equal(truncate(path, CHUNK - 1), 0);
}

static void damaged_chunks_are_dropped(void **state)
{
    (void)state;
    void (*const damages[])(const char *) = {flip_a_byte, shorten, remove_file};
    for (size_t i = 0; i < CW_ARRAY_LEN(damages); i++) {
        for (int restart = 0; restart < 2; restart++) {
            cw_chunk_cache *c = open_cache(1 << 20, 0);
            assert_int_equal(put(c, 1), CW_OK);
            if (restart) cw_chunk_cache_close(&c);
            for_each(damages[i], false);
            if (restart) c = open_cache(1 << 20, 0);
            assert_int_equal(get(c, 1), CW_STATUS_NOT_FOUND);
            assert_int_equal(cw_chunk_cache_get_stats(c).chunks, 0);
            assert_int_equal(cw_chunk_cache_get_stats(c).bytes, 0);
            assert_int_equal(for_each(NULL, false), 0);
            assert_int_equal(put(c, 1), CW_OK); /* and can be kept anew */
            assert_int_equal(get(c, 1), CW_OK);
            cw_chunk_cache_close(&c);
            for_each(remove_file, false);
        }
    }
}

static void half_written_files_of_a_crash_are_removed(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/tmp-12-0", dir);
    fclose(fopen(path, "w"));
    cw_chunk_cache *c = open_cache(1 << 20, 0);
    assert_int_equal(for_each(NULL, false), 0);
    assert_int_equal(cw_chunk_cache_get_stats(c).chunks, 0);
    cw_chunk_cache_close(&c);
}

static void a_directory_that_cannot_be_made_is_an_error(void **state)
{
    (void)state;
    cw_chunk_cache *c = NULL;
    cw_err err;
    cw_chunk_cache_options o = {"/nonexistent/a/b", 1 << 20, 0};
    assert_int_equal(cw_chunk_cache_open(&o, &c, &err), CW_STATUS_IO);
    assert_null(c);
}

static void *hammer(void *arg)
{
    cw_chunk_cache *c = arg;
    for (int round = 0; round < 20; round++)
        for (int i = 0; i < 6; i++) {
            cw_status s = put(c, i);
            if (s != CW_OK && s != CW_STATUS_LIMIT) return (void *)(uintptr_t) "put failed";
            s = get(c, (i + round) % 6); /* checks the bytes */
            if (s != CW_OK && s != CW_STATUS_NOT_FOUND) return (void *)(uintptr_t) "get failed";
        }
    return NULL;
}

static void threads_share_it_within_the_limit(void **state)
{
    (void)state;
    pthread_t t[4];
    cw_chunk_cache *c = open_cache(4 * CHUNK, 0);
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&t[i], NULL, hammer, c), 0);
    for (int i = 0; i < 4; i++) {
        void *why;
        pthread_join(t[i], &why);
        if (why) fail_msg("%s", (const char *)why);
    }
    cw_chunk_cache_stats s = cw_chunk_cache_get_stats(c);
    assert_true(s.bytes <= 4 * CHUNK);
    assert_int_equal(s.bytes, s.chunks * CHUNK);
    assert_int_equal(for_each(NULL, false), s.chunks);
    cw_chunk_cache_close(&c);
}

#define FRESH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FRESH(what_is_put_is_there_after_a_restart),
        FRESH(the_longest_unused_makes_room),
        FRESH(the_order_of_use_outlives_a_restart),
        FRESH(a_chunk_that_is_read_is_used_now),
        FRESH(a_limit_of_zero_keeps_nothing_and_touches_nothing),
        FRESH(a_full_disk_is_asked_for_first_and_costs_nothing_that_is_there),
        FRESH(a_chunk_larger_than_the_cache_is_not_kept),
        FRESH(damaged_chunks_are_dropped),
        FRESH(half_written_files_of_a_crash_are_removed),
        FRESH(a_directory_that_cannot_be_made_is_an_error),
        FRESH(threads_share_it_within_the_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
