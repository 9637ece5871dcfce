/* GGUF: what was written is read back, by kind and by name; files that change under an open reader. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/gguf.h"
#include "gguf_writer.h"

static char dir[] = "/tmp/cw_test_gguf_XXXXXX";
static char path[128];

static int make_dir(void **state)
{
    (void)state;
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/m.gguf", dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

static cw_gguf *open_ok(const uint8_t *bytes, size_t n)
{
    cw_gguf *g = NULL;
    cw_err err = {0};
    if (cw_gguf_open_memory(bytes, n, "test", &g, &err) != CW_OK) fail_msg("%s", err.text);
    return g;
}

static const float weights[8] = {1, 2, 3, 4, 5, 6, 7, 8};

static gguf_writer *sample(void)
{
    gguf_writer *w = gguf_writer_new();
    gguf_writer_str(w, "general.architecture", "deepseek2");
    gguf_writer_u8(w, "k.u8", 200);
    gguf_writer_u16(w, "k.u16", 60000);
    gguf_writer_u32(w, "k.u32", 4000000000u);
    gguf_writer_i32(w, "k.i32", -5);
    gguf_writer_u64(w, "k.u64", UINT64_MAX);
    gguf_writer_f32(w, "k.f32", 1.5f);
    gguf_writer_f64(w, "k.f64", 0.25);
    gguf_writer_f64(w, "k.f64.big", 1e300);
    gguf_writer_f32(w, "k.nan", NAN);
    gguf_writer_bool(w, "k.true", true);
    gguf_writer_bool(w, "k.false", false);
    const char *const words[] = {"one", "", "three"};
    gguf_writer_str_array(w, "k.words", words, 3);
    gguf_writer_array(w, "k.ints", CW_GGUF_I16, 2, "\xfe\xff\x03\x00", 4);
    gguf_writer_array(w, "k.floats", CW_GGUF_F32, 1, "\x00\x00\x80\x3f", 4);
    gguf_writer_array(w, "k.bools", CW_GGUF_BOOL, 2, "\x01\x00", 2);
    gguf_writer_array(w, "k.empty", CW_GGUF_STRING, 0, NULL, 0);
    gguf_writer_str_n(w, "k.nul", "a\0b", 3);
    gguf_writer_tensor(w, "a.weight", 0, 2, (const int64_t[]){4, 2}, weights, sizeof weights);
    gguf_writer_tensor(w, "b.weight", 8, 1, (const int64_t[]){64}, NULL, 68);
    gguf_writer_tensor(w, "c.odd", 35, 2, (const int64_t[]){512, 3}, NULL, 396);
    return w;
}

static uint8_t *sample_bytes(size_t *n)
{
    gguf_writer *w = sample();
    uint8_t *p = gguf_writer_bytes(w, n);
    gguf_writer_free(&w);
    return p;
}

static void scalars_are_read_by_kind_and_range(void **state)
{
    (void)state;
    size_t n;
    uint8_t *p = sample_bytes(&n);
    cw_gguf *g = open_ok(p, n);
    cw_err err;
    uint32_t u;
    int32_t i;
    uint64_t q;
    float f;
    bool b;
    assert_int_equal(cw_gguf_get_u32(g, "k.u8", &u, &err), CW_OK);
    assert_int_equal(u, 200);
    assert_int_equal(cw_gguf_get_u32(g, "k.u16", &u, &err), CW_OK);
    assert_int_equal(u, 60000);
    assert_int_equal(cw_gguf_get_u32(g, "k.u32", &u, &err), CW_OK);
    assert_int_equal(u, 4000000000u);
    assert_int_equal(cw_gguf_get_u64(g, "k.u64", &q, &err), CW_OK);
    assert_true(q == UINT64_MAX);
    assert_int_equal(cw_gguf_get_i32(g, "k.i32", &i, &err), CW_OK);
    assert_int_equal(i, -5);
    assert_int_equal(cw_gguf_get_f32(g, "k.f32", &f, &err), CW_OK);
    assert_true(f == 1.5f);
    assert_int_equal(cw_gguf_get_f32(g, "k.f64", &f, &err), CW_OK);
    assert_true(f == 0.25f);
    assert_int_equal(cw_gguf_get_bool(g, "k.true", &b, &err), CW_OK);
    assert_true(b);
    assert_int_equal(cw_gguf_get_bool(g, "k.false", &b, &err), CW_OK);
    assert_false(b);

    assert_int_equal(cw_gguf_get_u32(g, "k.i32", &u, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "k.i32"));
    assert_non_null(strstr(err.text, "test"));
    assert_int_equal(cw_gguf_get_u32(g, "k.u64", &u, &err), CW_STATUS_FORMAT);
    assert_int_equal(cw_gguf_get_i32(g, "k.u32", &i, &err), CW_STATUS_FORMAT);
    assert_int_equal(cw_gguf_get_u32(g, "k.f32", &u, &err), CW_STATUS_FORMAT);
    assert_int_equal(cw_gguf_get_u32(g, "k.true", &u, &err), CW_STATUS_FORMAT);
    assert_int_equal(cw_gguf_get_f32(g, "k.u8", &f, &err), CW_STATUS_FORMAT);
    assert_int_equal(cw_gguf_get_f32(g, "k.f64.big", &f, &err), CW_STATUS_FORMAT);
    assert_int_equal(cw_gguf_get_f32(g, "k.nan", &f, &err), CW_STATUS_FORMAT);
    assert_int_equal(cw_gguf_get_bool(g, "k.u8", &b, &err), CW_STATUS_FORMAT);
    assert_int_equal(u, 4000000000u); /* untouched by failures */
    assert_int_equal(cw_gguf_get_u32(g, "k.absent", &u, &err), CW_STATUS_NOT_FOUND);
    assert_non_null(strstr(err.text, "k.absent"));
    cw_gguf_close(&g);
    assert_null(g);
    free(p);
}

static void absent_keys_take_the_default_and_wrong_ones_do_not(void **state)
{
    (void)state;
    size_t n;
    uint8_t *p = sample_bytes(&n);
    cw_gguf *g = open_ok(p, n);
    cw_err err;
    uint32_t u = 0;
    int32_t i = 0;
    float f = 0;
    bool b = false;
    assert_int_equal(cw_gguf_get_u32_or(g, "absent", 7, &u, &err), CW_OK);
    assert_int_equal(u, 7);
    assert_int_equal(cw_gguf_get_u32_or(g, "k.u8", 7, &u, &err), CW_OK);
    assert_int_equal(u, 200);
    assert_int_equal(cw_gguf_get_u32_or(g, "k.words", 7, &u, &err), CW_STATUS_FORMAT);
    assert_int_equal(cw_gguf_get_i32_or(g, "absent", -7, &i, &err), CW_OK);
    assert_int_equal(i, -7);
    assert_int_equal(cw_gguf_get_f32_or(g, "absent", 0.5f, &f, &err), CW_OK);
    assert_true(f == 0.5f);
    assert_int_equal(cw_gguf_get_bool_or(g, "absent", true, &b, &err), CW_OK);
    assert_true(b);
    cw_gguf_close(&g);
    free(p);
}

static void strings_and_arrays_are_views_with_length(void **state)
{
    (void)state;
    size_t n;
    uint8_t *p = sample_bytes(&n);
    cw_gguf *g = open_ok(p, n);
    cw_err err;
    cw_gguf_str s;
    cw_gguf_array a;
    assert_int_equal(cw_gguf_get_str(g, "general.architecture", &s, &err), CW_OK);
    assert_true(cw_gguf_str_eq(s, "deepseek2"));
    assert_false(cw_gguf_str_eq(s, "deepseek"));
    assert_int_equal(cw_gguf_get_str(g, "k.nul", &s, &err), CW_OK);
    assert_int_equal(s.len, 3);
    assert_memory_equal(s.data, "a\0b", 3);
    assert_int_equal(cw_gguf_get_array(g, "k.words", CW_GGUF_STRING, &a, &err), CW_OK);
    assert_int_equal(a.n, 3);
    assert_true(cw_gguf_str_eq(cw_gguf_array_str(&a, 0), "one"));
    assert_true(cw_gguf_str_eq(cw_gguf_array_str(&a, 1), ""));
    assert_true(cw_gguf_str_eq(cw_gguf_array_str(&a, 2), "three"));
    assert_int_equal(cw_gguf_get_array(g, "k.words", CW_GGUF_I32, &a, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "string"));
    assert_int_equal(cw_gguf_get_array(g, "k.ints", CW_GGUF_I16, &a, &err), CW_OK);
    assert_int_equal(cw_gguf_array_i64(&a, 0), -2);
    assert_int_equal(cw_gguf_array_i64(&a, 1), 3);
    assert_int_equal(cw_gguf_get_array(g, "k.floats", CW_GGUF_F32, &a, &err), CW_OK);
    assert_true(cw_gguf_array_f32(&a, 0) == 1.0f);
    assert_int_equal(cw_gguf_get_array(g, "k.bools", CW_GGUF_BOOL, &a, &err), CW_OK);
    assert_true(cw_gguf_array_bool(&a, 0));
    assert_false(cw_gguf_array_bool(&a, 1));
    assert_int_equal(cw_gguf_get_array(g, "k.empty", CW_GGUF_STRING, &a, &err), CW_OK);
    assert_int_equal(a.n, 0);
    assert_int_equal(cw_gguf_kv_count(g), 18);
    assert_string_equal(cw_gguf_kv_at(g, 1)->key, "k.u8");
    cw_gguf_close(&g);
    free(p);
}

static void tensors_carry_shape_size_and_data(void **state)
{
    (void)state;
    size_t n;
    uint8_t *p = sample_bytes(&n);
    cw_gguf *g = open_ok(p, n);
    cw_err err;
    const cw_gguf_tensor *t;
    assert_int_equal(cw_gguf_tensor_count(g), 3);
    assert_int_equal(cw_gguf_tensor_require(g, "a.weight", &t, &err), CW_OK);
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->ne[0], 4);
    assert_int_equal(t->ne[1], 2);
    assert_int_equal(t->ne[2], 1);
    assert_int_equal(t->bytes, 32);
    assert_int_equal(t->row_bytes, 16);
    assert_memory_equal(t->data, weights, 32);
    float two[2];
    assert_int_equal(cw_gguf_read(g, t, 4, 8, two, &err), CW_OK);
    assert_memory_equal(two, weights + 1, 8);
    assert_int_equal(cw_gguf_read(g, t, 28, 8, two, &err), CW_STATUS_INVALID);
    assert_int_equal(cw_gguf_read(g, t, UINT64_MAX, 8, two, &err), CW_STATUS_INVALID);
    assert_ptr_equal(cw_gguf_find(g, "b.weight"), cw_gguf_tensor_at(g, 1));
    assert_null(cw_gguf_find(g, "b.weigh"));
    assert_int_equal(cw_gguf_tensor_require(g, "nothing", &t, &err), CW_STATUS_NOT_FOUND);
    assert_non_null(strstr(err.text, "nothing"));
    cw_gguf_close(&g);
    free(p);
}

static void a_type_nobody_computes_with_is_refused_only_when_needed(void **state)
{
    (void)state;
    size_t n;
    uint8_t *p = sample_bytes(&n);
    cw_gguf *g = open_ok(p, n);
    cw_err err;
    const cw_gguf_tensor *t = cw_gguf_find(g, "c.odd");
    assert_non_null(t);
    assert_false(t->supported);
    assert_int_equal(t->bytes, 396);
    assert_int_equal(cw_gguf_tensor_require(g, "c.odd", &t, &err), CW_STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "c.odd"));
    assert_non_null(strstr(err.text, "TQ2_0"));
    cw_gguf_close(&g);
    free(p);
}

static void version_2_and_another_alignment_open(void **state)
{
    (void)state;
    gguf_writer *w = gguf_writer_new();
    gguf_writer_set_version(w, 2);
    gguf_writer_set_alignment(w, 4096);
    gguf_writer_u32(w, "general.alignment", 4096);
    gguf_writer_tensor(w, "a", 0, 1, (const int64_t[]){8}, weights, 32);
    gguf_writer_tensor(w, "b", 0, 1, (const int64_t[]){8}, weights, 32);
    size_t n;
    uint8_t *p = gguf_writer_bytes(w, &n);
    cw_gguf *g = open_ok(p, n);
    assert_int_equal(cw_gguf_find(g, "b")->offset, 8192);
    assert_memory_equal(cw_gguf_find(g, "b")->data, weights, 32);
    cw_gguf_close(&g);
    free(p);
    gguf_writer_free(&w);
}

static void a_file_without_tensors_opens(void **state)
{
    (void)state;
    gguf_writer *w = gguf_writer_new();
    gguf_writer_str(w, "tokenizer.ggml.model", "gpt2");
    size_t n, end = gguf_writer_data_start(w);
    uint8_t *p = gguf_writer_bytes(w, &n);
    assert_true(n <= end);
    /* Such files end right after the keys, without padding. */
    cw_gguf *g = open_ok(p, 24 + 8 + strlen("tokenizer.ggml.model") + 4 + 8 + 4);
    assert_int_equal(cw_gguf_tensor_count(g), 0);
    assert_null(cw_gguf_find(g, "x"));
    cw_gguf_close(&g);
    free(p);
    gguf_writer_free(&w);
}

static void a_file_that_became_shorter_is_a_status(void **state)
{
    (void)state;
    gguf_writer *w = sample();
    gguf_writer_save(w, path);
    size_t data_start = gguf_writer_data_start(w);
    gguf_writer_free(&w);
    cw_gguf *g = NULL;
    cw_err err;
    assert_int_equal(cw_gguf_open(path, &g, &err), CW_OK);
    const cw_gguf_tensor *a = cw_gguf_find(g, "a.weight");
    float row[8];
    assert_int_equal(cw_gguf_read(g, a, 0, 32, row, &err), CW_OK);
    assert_memory_equal(row, weights, 32);
    assert_int_equal(cw_gguf_check_unchanged(g, &err), CW_OK);
    assert_int_equal(truncate(path, (off_t)data_start + 10), 0);
    assert_int_equal(cw_gguf_read(g, a, 0, 32, row, &err), CW_STATUS_IO);
    assert_non_null(strstr(err.text, "a.weight"));
    assert_non_null(strstr(err.text, path));
    assert_int_equal(cw_gguf_check_unchanged(g, &err), CW_STATUS_MISMATCH);
    cw_gguf_close(&g);
}

/* Whether a line of this process's table of maps ends in the file's name. */
static bool is_mapped(const char *file)
{
    char line[4400];
    bool found = false;
    FILE *f = fopen("/proc/self/maps", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) found = found || strstr(line, file);
    fclose(f);
    return found;
}

static void metadata_outlive_the_file_and_nothing_of_it_stays_mapped(void **state)
{
    (void)state;
    gguf_writer *w = sample();
    gguf_writer_save(w, path);
    gguf_writer_free(&w);
    cw_gguf *before = NULL, *g = NULL;
    cw_err err;
    assert_int_equal(cw_gguf_open(path, &before, &err), CW_OK);
    assert_int_equal(cw_gguf_open(path, &g, &err), CW_OK);
    assert_false(is_mapped(path));
    int fd = open(path, O_RDONLY | O_CLOEXEC); /* the check can see a map */
    void *map = mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    assert_true(map != MAP_FAILED && is_mapped(path));
    munmap(map, 1);
    assert_null(cw_gguf_find(g, "a.weight")->data);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(cw_gguf_kv_count(g), cw_gguf_kv_count(before));
    for (size_t i = 0; i < cw_gguf_kv_count(g); i++) {
        const cw_gguf_kv *a = cw_gguf_kv_at(g, i), *b = cw_gguf_kv_at(before, i);
        assert_string_equal(a->key, b->key);
        if (a->kind == CW_GGUF_STRING) assert_memory_equal(a->str.data, b->str.data, b->str.len);
        for (size_t k = 0; a->kind == CW_GGUF_ARRAY && a->arr.elem == CW_GGUF_STRING && k < a->arr.n; k++)
            assert_true(cw_gguf_array_str(&a->arr, k).len == cw_gguf_array_str(&b->arr, k).len);
    }
    cw_gguf_close(&g);
    cw_gguf_close(&before);
}

static void identity_tells_states_of_a_file_apart(void **state)
{
    (void)state;
    gguf_writer *w = sample();
    gguf_writer_save(w, path);
    gguf_writer_free(&w);
    cw_gguf *g = NULL;
    cw_err err;
    struct stat st;
    assert_int_equal(cw_gguf_open(path, &g, &err), CW_OK);
    assert_int_equal(stat(path, &st), 0);
    cw_gguf_file_id id = cw_gguf_identity(g, 0);
    assert_int_equal(id.size, st.st_size);
    assert_int_equal(id.inode, st.st_ino);
    cw_gguf_close(&g);
    struct timespec times[2] = {{1, 0}, {1234567, 89}};
    assert_int_equal(utimensat(0, path, times, 0), 0);
    assert_int_equal(cw_gguf_open(path, &g, &err), CW_OK);
    assert_true(cw_gguf_identity(g, 0).mtime_ns == 1234567000000089u);
    assert_true(cw_gguf_identity(g, 0).mtime_ns != id.mtime_ns);
    cw_gguf_close(&g);
}

static void what_is_no_regular_file_is_refused_in_words(void **state)
{
    (void)state;
    cw_gguf *g = NULL;
    cw_err err;
    assert_int_equal(cw_gguf_open("/nonexistent/m.gguf", &g, &err), CW_STATUS_NOT_FOUND);
    assert_non_null(strstr(err.text, "/nonexistent/m.gguf"));
    assert_int_equal(cw_gguf_open(dir, &g, &err), CW_STATUS_INVALID);
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(cw_gguf_open(path, &g, &err), CW_STATUS_INVALID);
    unlink(path);
    fclose(fopen(path, "w"));
    assert_int_equal(cw_gguf_open(path, &g, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "empty"));
    assert_null(g);
    cw_gguf_close(&g);
    cw_gguf_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scalars_are_read_by_kind_and_range),
        cmocka_unit_test(absent_keys_take_the_default_and_wrong_ones_do_not),
        cmocka_unit_test(strings_and_arrays_are_views_with_length),
        cmocka_unit_test(tensors_carry_shape_size_and_data),
        cmocka_unit_test(a_type_nobody_computes_with_is_refused_only_when_needed),
        cmocka_unit_test(version_2_and_another_alignment_open),
        cmocka_unit_test(a_file_without_tensors_opens),
        cmocka_unit_test(a_file_that_became_shorter_is_a_status),
        cmocka_unit_test(metadata_outlive_the_file_and_nothing_of_it_stays_mapped),
        cmocka_unit_test(identity_tells_states_of_a_file_apart),
        cmocka_unit_test(what_is_no_regular_file_is_refused_in_words),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
