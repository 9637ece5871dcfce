/* See gguf_writer.h. Layout: ggml's docs/gguf.md. */
#include "gguf_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint8_t *p;
    size_t n, room;
} buffer;

struct gguf_writer {
    buffer kv, table, data;
    uint64_t n_kv, n_tensors, alignment;
    uint64_t said_kv, said_tensors;
    bool false_counts;
    uint32_t version;
};

static void put(buffer *b, const void *data, size_t n)
{
    if (b->room - b->n < n) {
        b->room = (b->n + n) * 2;
        b->p = realloc(b->p, b->room);
        if (!b->p) abort();
    }
    if (!n) return;
    if (data)
        memcpy(b->p + b->n, data, n);
    else
        memset(b->p + b->n, 0, n);
    b->n += n;
}

static void put_int(buffer *b, uint64_t v, size_t bytes)
{
    uint8_t le[8];
    for (size_t i = 0; i < 8; i++) le[i] = (uint8_t)(v >> (8 * i));
    put(b, le, bytes);
}

static void put_str(buffer *b, const char *s, size_t n)
{
    put_int(b, n, 8);
    put(b, s, n);
}

gguf_writer *gguf_writer_new(void)
{
    gguf_writer *w = calloc(1, sizeof *w);
    if (!w) abort();
    w->version = 3;
    w->alignment = 32;
    return w;
}

void gguf_writer_free(gguf_writer **w)
{
    if (!w || !*w) return;
    free((*w)->kv.p);
    free((*w)->table.p);
    free((*w)->data.p);
    free(*w);
    *w = NULL;
}

void gguf_writer_set_version(gguf_writer *w, uint32_t version)
{
    w->version = version;
}

void gguf_writer_set_counts(gguf_writer *w, uint64_t n_tensors, uint64_t n_kv)
{
    w->said_tensors = n_tensors;
    w->said_kv = n_kv;
    w->false_counts = true;
}

void gguf_writer_set_alignment(gguf_writer *w, uint64_t alignment)
{
    w->alignment = alignment;
}

void gguf_writer_raw(gguf_writer *w, const char *key, uint32_t kind, const void *value, size_t bytes)
{
    put_str(&w->kv, key, strlen(key));
    put_int(&w->kv, kind, 4);
    put(&w->kv, value, bytes);
    w->n_kv++;
}

static void number(gguf_writer *w, const char *key, uint32_t kind, uint64_t bits, size_t bytes)
{
    uint8_t le[8];
    for (size_t i = 0; i < 8; i++) le[i] = (uint8_t)(bits >> (8 * i));
    gguf_writer_raw(w, key, kind, le, bytes);
}

void gguf_writer_u8(gguf_writer *w, const char *key, uint8_t v)
{
    number(w, key, 0, v, 1);
}

void gguf_writer_u16(gguf_writer *w, const char *key, uint16_t v)
{
    number(w, key, 2, v, 2);
}

void gguf_writer_u32(gguf_writer *w, const char *key, uint32_t v)
{
    number(w, key, 4, v, 4);
}

void gguf_writer_i32(gguf_writer *w, const char *key, int32_t v)
{
    number(w, key, 5, (uint32_t)v, 4);
}

void gguf_writer_u64(gguf_writer *w, const char *key, uint64_t v)
{
    number(w, key, 10, v, 8);
}

void gguf_writer_f32(gguf_writer *w, const char *key, float v)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    number(w, key, 6, u, 4);
}

void gguf_writer_f64(gguf_writer *w, const char *key, double v)
{
    uint64_t u;
    memcpy(&u, &v, 8);
    number(w, key, 12, u, 8);
}

void gguf_writer_bool(gguf_writer *w, const char *key, bool v)
{
    number(w, key, 7, v, 1);
}

void gguf_writer_str_n(gguf_writer *w, const char *key, const char *v, size_t len)
{
    buffer b = {0};
    put_str(&b, v, len);
    gguf_writer_raw(w, key, 8, b.p, b.n);
    free(b.p);
}

void gguf_writer_str(gguf_writer *w, const char *key, const char *v)
{
    gguf_writer_str_n(w, key, v, strlen(v));
}

void gguf_writer_array(gguf_writer *w, const char *key, uint32_t elem, uint64_t n, const void *data,
                       size_t bytes)
{
    buffer b = {0};
    put_int(&b, elem, 4);
    put_int(&b, n, 8);
    put(&b, data, bytes);
    gguf_writer_raw(w, key, 9, b.p, b.n);
    free(b.p);
}

void gguf_writer_str_array(gguf_writer *w, const char *key, const char *const *v, size_t n)
{
    buffer b = {0};
    for (size_t i = 0; i < n; i++) put_str(&b, v[i], strlen(v[i]));
    gguf_writer_array(w, key, 8, n, b.p, b.n);
    free(b.p);
}

static void pad(buffer *b, size_t before, uint64_t alignment)
{
    put(b, NULL, (size_t)((alignment - (before + b->n) % alignment) % alignment));
}

void gguf_writer_tensor_raw(gguf_writer *w, const char *name, size_t name_len, uint32_t n_dims,
                            const uint64_t *ne, uint32_t type, uint64_t offset)
{
    put_str(&w->table, name, name_len);
    put_int(&w->table, n_dims, 4);
    for (uint32_t d = 0; d < n_dims && d < 8; d++) put_int(&w->table, ne[d], 8);
    put_int(&w->table, type, 4);
    put_int(&w->table, offset, 8);
    w->n_tensors++;
}

void gguf_writer_tensor(gguf_writer *w, const char *name, uint32_t type, int n_dims, const int64_t *ne,
                        const void *data, size_t bytes)
{
    uint64_t dims[8] = {0};
    for (int d = 0; d < n_dims; d++) dims[d] = (uint64_t)ne[d];
    pad(&w->data, 0, w->alignment);
    gguf_writer_tensor_raw(w, name, strlen(name), (uint32_t)n_dims, dims, type, w->data.n);
    put(&w->data, data, bytes);
}

void gguf_writer_data(gguf_writer *w, const void *data, size_t bytes)
{
    put(&w->data, data, bytes);
}

size_t gguf_writer_data_start(const gguf_writer *w)
{
    size_t head = 24 + w->kv.n + w->table.n;
    return (size_t)((head + w->alignment - 1) / w->alignment * w->alignment);
}

uint8_t *gguf_writer_bytes(const gguf_writer *w, size_t *n)
{
    buffer b = {0};
    put(&b, "GGUF", 4);
    put_int(&b, w->version, 4);
    put_int(&b, w->false_counts ? w->said_tensors : w->n_tensors, 8);
    put_int(&b, w->false_counts ? w->said_kv : w->n_kv, 8);
    put(&b, w->kv.p, w->kv.n);
    put(&b, w->table.p, w->table.n);
    pad(&b, 0, w->alignment);
    put(&b, w->data.p, w->data.n);
    *n = b.n;
    return b.p;
}

void gguf_writer_save(const gguf_writer *w, const char *path)
{
    size_t n;
    uint8_t *p = gguf_writer_bytes(w, &n);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f) != 0) {
        perror(path);
        abort();
    }
    free(p);
}
