/* GGUF: handcrafted malformed files. Each is refused with the sentence it deserves; none crashes (run under
 * asan too). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/gguf.h"
#include "gguf_writer.h"

/* Opens a copy in a block of exactly that size, so that the address sanitizer sees a read of one byte too
 * many. */
static cw_status try_bytes(const uint8_t *p, size_t n, cw_err *err)
{
    uint8_t *copy = malloc(n ? n : 1);
    if (n) memcpy(copy, p, n);
    cw_gguf *g = NULL;
    cw_status s = cw_gguf_open_memory(copy, n, "bad", &g, err);
    if (s == CW_OK) {
        /* What opens can be walked. */
        for (size_t i = 0; i < cw_gguf_kv_count(g); i++) {
            const cw_gguf_kv *kv = cw_gguf_kv_at(g, i);
            if (cw_gguf_kv_find(g, kv->key) != kv) s = CW_STATUS_STATE;
            if (kv->kind == CW_GGUF_ARRAY && kv->arr.elem == CW_GGUF_STRING)
                for (size_t k = 0; k < kv->arr.n; k++) {
                    cw_gguf_str e = cw_gguf_array_str(&kv->arr, k);
                    for (size_t b = 0; b < e.len; b++) *(volatile char *)&(char){e.data[b]};
                }
        }
        for (size_t i = 0; i < cw_gguf_tensor_count(g); i++) {
            const cw_gguf_tensor *t = cw_gguf_tensor_at(g, i);
            if (((const uint8_t *)t->data - copy) + t->bytes > n) s = CW_STATUS_STATE;
        }
    } else {
        assert_null(g);
    }
    cw_gguf_close(&g);
    free(copy);
    return s;
}

/* Takes the writer. */
static void refused(gguf_writer *w, cw_status status, const char *words)
{
    size_t n;
    cw_err err = {0};
    uint8_t *p = gguf_writer_bytes(w, &n);
    cw_status s = try_bytes(p, n, &err);
    if (s != status || !strstr(err.text, words))
        fail_msg("got %s '%s' where %s '%s' was expected", cw_status_name(s), err.text,
                 cw_status_name(status), words);
    assert_memory_equal(err.text, "bad: ", 5);
    free(p);
    gguf_writer_free(&w);
}

static gguf_writer *good(void)
{
    static const float f[8];
    static const char *const words[] = {"x", "yy"};
    gguf_writer *w = gguf_writer_new();
    gguf_writer_str(w, "general.architecture", "llama");
    gguf_writer_u32(w, "general.alignment", 32);
    gguf_writer_str_array(w, "words", words, 2);
    gguf_writer_array(w, "flags", CW_GGUF_BOOL, 2, "\0\1", 2);
    gguf_writer_tensor(w, "a", 0, 2, (const int64_t[]){4, 2}, f, 32);
    gguf_writer_tensor(w, "b", 8, 1, (const int64_t[]){32}, NULL, 34);
    return w;
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    gguf_writer *w = good();
    size_t n;
    cw_err err;
    uint8_t *p = gguf_writer_bytes(w, &n);
    assert_int_equal(try_bytes(p, n, &err), CW_OK);
    for (size_t k = 0; k < n; k++)
        if (try_bytes(p, k, &err) != CW_STATUS_FORMAT) fail_msg("the first %zu of %zu bytes opened", k, n);
    free(p);
    gguf_writer_free(&w);
}

/* Not every flip is an error (a value may just be another), but none may crash, and a size field blown up
 * never opens. */
static void every_changed_byte_is_survived(void **state)
{
    (void)state;
    gguf_writer *w = good();
    size_t n, opened = 0;
    cw_err err;
    uint8_t *p = gguf_writer_bytes(w, &n);
    for (size_t k = 0; k < gguf_writer_data_start(w); k++)
        for (int v = 0; v < 256; v++) {
            uint8_t was = p[k];
            p[k] = (uint8_t)v;
            cw_status s = try_bytes(p, n, &err);
            assert_int_not_equal(s, CW_STATUS_STATE);
            opened += s == CW_OK;
            p[k] = was;
        }
    assert_true(opened > gguf_writer_data_start(w)); /* at least each byte's own value */
    free(p);
    gguf_writer_free(&w);
}

static void magic_and_version_are_checked(void **state)
{
    (void)state;
    cw_err err;
    assert_int_equal(try_bytes((const uint8_t *)"GGML\3\0\0\0", 8, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "not a GGUF"));
    static const struct {
        uint32_t version;
        const char *words;
    } bad[] = {{0, "version 0"},
               {1, "version 1"},
               {4, "version 4"},
               {0x03000000, "big-endian"},
               {0x00020003, "version"}};
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++) {
        gguf_writer *w = good();
        gguf_writer_set_version(w, bad[i].version);
        refused(w, CW_STATUS_UNSUPPORTED, bad[i].words);
    }
}

static void false_counts_are_refused(void **state)
{
    (void)state;
    static const uint64_t huge[] = {UINT64_MAX, (uint64_t)1 << 63, (uint64_t)1 << 32, (1 << 18) + 1};
    for (size_t i = 0; i < CW_ARRAY_LEN(huge); i++) {
        gguf_writer *w = good();
        gguf_writer_set_counts(w, huge[i], 4);
        refused(w, CW_STATUS_LIMIT, "tensors");
        w = good();
        gguf_writer_set_counts(w, 2, huge[i]);
        refused(w, CW_STATUS_LIMIT, "keys");
    }
    gguf_writer *w = good();
    gguf_writer_set_counts(w, 1 << 18, 1 << 16); /* allowed, but not in so short a file */
    refused(w, CW_STATUS_FORMAT, "the file ends inside the header");
    w = good();
    gguf_writer_set_counts(w, 2, 5); /* the first tensor read as a key */
    refused(w, CW_STATUS_FORMAT, "");
}

static const uint64_t near_2_64[] = {UINT64_MAX,
                                     UINT64_MAX - 7,
                                     UINT64_MAX - 8,
                                     (uint64_t)1 << 63,
                                     ((uint64_t)1 << 63) - 1,
                                     UINT64_MAX / 8,
                                     UINT64_MAX / 8 + 1,
                                     UINT64_MAX / 4 + 1,
                                     (uint64_t)1 << 61,
                                     (uint64_t)1 << 32,
                                     1000};

static void le64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++) p[i] = (uint8_t)(v >> (8 * i));
}

static void lengths_near_2_64_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < CW_ARRAY_LEN(near_2_64); i++) {
        uint8_t v[28] = {0};
        /* the value of a string */
        gguf_writer *w = gguf_writer_new();
        le64(v, near_2_64[i]);
        gguf_writer_raw(w, "s", CW_GGUF_STRING, v, 8);
        refused(w, CW_STATUS_FORMAT, "key 's'");
        /* a string in an array */
        w = gguf_writer_new();
        le64(v, 1);
        v[8] = 'x';
        le64(v + 9, near_2_64[i]);
        gguf_writer_array(w, "s", CW_GGUF_STRING, 2, v, 17);
        refused(w, CW_STATUS_FORMAT, "key 's'");
        /* the count of every kind of array */
        for (uint32_t elem = 0; elem < CW_GGUF_KIND_COUNT; elem++) {
            if (elem == CW_GGUF_ARRAY) continue;
            w = gguf_writer_new();
            gguf_writer_array(w, "s", elem, near_2_64[i], v, 17);
            refused(w, CW_STATUS_FORMAT, "key 's'");
        }
        /* the length of a key */
        w = gguf_writer_new();
        gguf_writer_u8(w, "s", 1);
        size_t n;
        cw_err err;
        uint8_t *p = gguf_writer_bytes(w, &n);
        le64(p + 24, near_2_64[i]);
        assert_int_equal(try_bytes(p, n, &err), CW_STATUS_FORMAT);
        free(p);
        gguf_writer_free(&w);
        /* the length of a tensor's name */
        w = gguf_writer_new();
        gguf_writer_tensor(w, "t", 0, 1, (const int64_t[]){1}, NULL, 4);
        p = gguf_writer_bytes(w, &n);
        le64(p + 24, near_2_64[i]);
        assert_int_equal(try_bytes(p, n, &err), CW_STATUS_FORMAT);
        free(p);
        gguf_writer_free(&w);
    }
}

static void kinds_and_bools_are_checked(void **state)
{
    (void)state;
    gguf_writer *w = gguf_writer_new();
    gguf_writer_raw(w, "k", 13, "\0\0\0\0", 4);
    refused(w, CW_STATUS_FORMAT, "unknown kind 13");
    w = gguf_writer_new();
    gguf_writer_raw(w, "k", UINT32_MAX, "\0\0\0\0", 4);
    refused(w, CW_STATUS_FORMAT, "key 'k'");
    w = gguf_writer_new();
    gguf_writer_array(w, "k", 13, 1, "\0\0\0\0", 4);
    refused(w, CW_STATUS_FORMAT, "unknown kind 13");
    w = gguf_writer_new();
    gguf_writer_array(w, "k", CW_GGUF_ARRAY, 1, "\0\0\0\0\0\0\0\0\0\0\0\0", 12);
    refused(w, CW_STATUS_UNSUPPORTED, "array of arrays");
    w = gguf_writer_new();
    gguf_writer_raw(w, "k", CW_GGUF_BOOL, "\2", 1);
    refused(w, CW_STATUS_FORMAT, "bool");
    w = gguf_writer_new();
    gguf_writer_array(w, "k", CW_GGUF_BOOL, 3, "\0\1\377", 3);
    refused(w, CW_STATUS_FORMAT, "bool");
}

static void names_are_checked(void **state)
{
    (void)state;
    static char longest[300];
    memset(longest, 'n', sizeof longest - 1);
    const uint64_t one[] = {1};
    gguf_writer *w = gguf_writer_new();
    gguf_writer_u8(w, "", 1);
    refused(w, CW_STATUS_FORMAT, "key number 1");
    w = gguf_writer_new();
    gguf_writer_u8(w, "a\033[31m", 1);
    refused(w, CW_STATUS_FORMAT, "control character");
    w = gguf_writer_new();
    gguf_writer_tensor_raw(w, "", 0, 1, one, 0, 0);
    gguf_writer_data(w, NULL, 4);
    refused(w, CW_STATUS_FORMAT, "tensor number 1");
    w = gguf_writer_new();
    gguf_writer_tensor_raw(w, "a\0b", 3, 1, one, 0, 0);
    gguf_writer_data(w, NULL, 4);
    refused(w, CW_STATUS_FORMAT, "control character");
    w = gguf_writer_new();
    gguf_writer_tensor_raw(w, longest, 256, 1, one, 0, 0);
    gguf_writer_data(w, NULL, 4);
    refused(w, CW_STATUS_FORMAT, "256 bytes");
    w = gguf_writer_new();
    gguf_writer_u8(w, "k", 1);
    gguf_writer_u8(w, "l", 1);
    gguf_writer_u8(w, "k", 1);
    refused(w, CW_STATUS_FORMAT, "key 'k' is there twice");
    w = gguf_writer_new();
    gguf_writer_tensor(w, "t", 0, 1, (const int64_t[]){1}, NULL, 4);
    gguf_writer_tensor(w, "t", 0, 1, (const int64_t[]){1}, NULL, 4);
    refused(w, CW_STATUS_FORMAT, "tensor 't' is there twice");
}

static void alignment_is_checked(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0, 1, 2, 4, 3, 24, 33, 1u << 21, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++) {
        gguf_writer *w = gguf_writer_new();
        gguf_writer_u32(w, "general.alignment", bad[i]);
        refused(w, CW_STATUS_FORMAT, "general.alignment");
    }
    gguf_writer *w = gguf_writer_new();
    gguf_writer_i32(w, "general.alignment", -32);
    refused(w, CW_STATUS_FORMAT, "general.alignment");
    w = gguf_writer_new();
    gguf_writer_str(w, "general.alignment", "32");
    refused(w, CW_STATUS_FORMAT, "general.alignment");
    w = gguf_writer_new();
    gguf_writer_u64(w, "general.alignment", UINT64_MAX);
    refused(w, CW_STATUS_FORMAT, "general.alignment");
}

/* One tensor of that description over 4 KiB of data. */
static gguf_writer *tensor(uint32_t n_dims, const uint64_t *ne, uint32_t type, uint64_t offset)
{
    gguf_writer *w = gguf_writer_new();
    gguf_writer_tensor_raw(w, "odd.weight", 10, n_dims, ne, type, offset);
    gguf_writer_data(w, NULL, 4096);
    return w;
}

static void dimensions_are_checked(void **state)
{
    (void)state;
    const uint64_t ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    refused(tensor(0, ones, 0, 0), CW_STATUS_FORMAT, "'odd.weight' has 0 dimensions");
    refused(tensor(5, ones, 0, 0), CW_STATUS_FORMAT, "'odd.weight' has 5 dimensions");
    gguf_writer *w = gguf_writer_new();
    gguf_writer_tensor_raw(w, "odd.weight", 10, UINT32_MAX, ones, 0, 0);
    refused(w, CW_STATUS_FORMAT, "dimensions");
    for (int d = 0; d < 4; d++) {
        uint64_t ne[4] = {1, 1, 1, 1};
        ne[d] = 0;
        refused(tensor(4, ne, 0, 0), CW_STATUS_FORMAT, "of tensor 'odd.weight' is 0");
        ne[d] = UINT64_MAX;
        refused(tensor(4, ne, 0, 0), CW_STATUS_FORMAT, "odd.weight");
        ne[d] = INT64_MAX; /* times four bytes overflows */
        refused(tensor(4, ne, 0, 0), CW_STATUS_FORMAT, "overflows");
    }
    static const uint64_t products[][4] = {
        {(uint64_t)1 << 32, (uint64_t)1 << 32, 1, 1},
        {(uint64_t)1 << 31, (uint64_t)1 << 31, 1, 4}, /* 2^64 elements */
        {(uint64_t)1 << 16, (uint64_t)1 << 16, (uint64_t)1 << 16, (uint64_t)1 << 14},
        {((uint64_t)1 << 62) + 1, 4, 1, 1}, /* wraps to a small number */
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(products); i++)
        refused(tensor(4, products[i], 0, 0), CW_STATUS_FORMAT, "overflows");
}

static void types_and_blocks_are_checked(void **state)
{
    (void)state;
    const uint64_t row256[] = {256}, row40[] = {40}, row128[] = {128};
    refused(tensor(1, row256, 4, 0), CW_STATUS_UNSUPPORTED, "tensor 'odd.weight' is of unknown type 4");
    refused(tensor(1, row256, 4000, 0), CW_STATUS_UNSUPPORTED, "unknown type 4000");
    refused(tensor(1, row256, UINT32_MAX, 0), CW_STATUS_UNSUPPORTED, "unknown type");
    refused(tensor(1, row40, 8, 0), CW_STATUS_FORMAT, "not a multiple of Q8_0's block of 32");
    refused(tensor(1, row128, 12, 0), CW_STATUS_FORMAT, "not a multiple of Q4_K's block of 256");
}

static void places_are_checked(void **state)
{
    (void)state;
    const uint64_t one_page[] = {1024}, more[] = {1025}, eight[] = {8};
    size_t n;
    cw_err err;
    gguf_writer *w = tensor(1, one_page, 0, 0);
    uint8_t *p = gguf_writer_bytes(w, &n);
    assert_int_equal(try_bytes(p, n, &err), CW_OK); /* exactly to the end */
    free(p);
    gguf_writer_free(&w);
    refused(tensor(1, more, 0, 0), CW_STATUS_FORMAT, "outside the file");
    refused(tensor(1, one_page, 0, 32), CW_STATUS_FORMAT, "outside the file");
    refused(tensor(1, eight, 0, 4096), CW_STATUS_FORMAT, "outside the file");
    refused(tensor(1, eight, 0, UINT64_MAX - 31), CW_STATUS_FORMAT, "outside the file");
    refused(tensor(1, eight, 0, (uint64_t)1 << 63), CW_STATUS_FORMAT, "outside the file");
    refused(tensor(1, eight, 0, 8), CW_STATUS_FORMAT, "alignment");
    refused(tensor(1, eight, 0, UINT64_MAX), CW_STATUS_FORMAT, "alignment");
}

static void overlaps_are_refused_in_any_order(void **state)
{
    (void)state;
    const uint64_t sixteen[] = {16}, eight[] = {8};
    gguf_writer *w = gguf_writer_new();
    gguf_writer_tensor_raw(w, "late", 4, 1, eight, 0, 32);
    gguf_writer_tensor_raw(w, "early", 5, 1, sixteen, 0, 0); /* 64 bytes: into "late" */
    gguf_writer_data(w, NULL, 256);
    refused(w, CW_STATUS_FORMAT, "'early' and 'late' overlap");
    w = gguf_writer_new();
    gguf_writer_tensor_raw(w, "a", 1, 1, eight, 0, 64);
    gguf_writer_tensor_raw(w, "b", 1, 1, eight, 0, 64);
    gguf_writer_data(w, NULL, 256);
    refused(w, CW_STATUS_FORMAT, "overlap");
    /* Touching, with a gap, and out of order is well formed. */
    w = gguf_writer_new();
    gguf_writer_tensor_raw(w, "c", 1, 1, eight, 0, 128);
    gguf_writer_tensor_raw(w, "a", 1, 1, eight, 0, 0);
    gguf_writer_tensor_raw(w, "b", 1, 1, eight, 0, 32);
    gguf_writer_data(w, NULL, 160);
    size_t n;
    cw_err err;
    uint8_t *p = gguf_writer_bytes(w, &n);
    assert_int_equal(try_bytes(p, n, &err), CW_OK);
    free(p);
    gguf_writer_free(&w);
}

static void split_keys_of_wrong_kind_are_refused(void **state)
{
    (void)state;
    gguf_writer *w = good();
    gguf_writer_str(w, "split.count", "2");
    refused(w, CW_STATUS_FORMAT, "split.count");
    w = good();
    gguf_writer_i32(w, "split.tensors.count", -1);
    refused(w, CW_STATUS_FORMAT, "split.tensors.count");
    w = good();
    gguf_writer_i32(w, "split.tensors.count", 3);
    refused(w, CW_STATUS_MISMATCH, "split.tensors.count");
    w = good();
    gguf_writer_u16(w, "split.count", 2);
    refused(w, CW_STATUS_UNSUPPORTED, "shard");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(every_changed_byte_is_survived),
        cmocka_unit_test(magic_and_version_are_checked),
        cmocka_unit_test(false_counts_are_refused),
        cmocka_unit_test(lengths_near_2_64_are_refused),
        cmocka_unit_test(kinds_and_bools_are_checked),
        cmocka_unit_test(names_are_checked),
        cmocka_unit_test(alignment_is_checked),
        cmocka_unit_test(dimensions_are_checked),
        cmocka_unit_test(types_and_blocks_are_checked),
        cmocka_unit_test(places_are_checked),
        cmocka_unit_test(overlaps_are_refused_in_any_order),
        cmocka_unit_test(split_keys_of_wrong_kind_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
