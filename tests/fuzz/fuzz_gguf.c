/* Any bytes as a GGUF file: opening gives a status, and what opens can be walked from end to end. */
#include <stdlib.h>
#include <string.h>

#include "cw/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink;

static void touch(const void *p, size_t n)
{
    const uint8_t *b = p;
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += b[i];
    sink += sum;
}

static void walk_key(const cw_gguf *g, const cw_gguf_kv *kv)
{
    uint32_t u;
    int32_t i;
    uint64_t q;
    float f;
    bool b;
    cw_gguf_str s;
    CW_ASSERT(cw_gguf_kv_find(g, kv->key) == kv);
    if (cw_gguf_get_u32(g, kv->key, &u, NULL) == CW_OK)
        CW_ASSERT(cw_gguf_get_u64(g, kv->key, &q, NULL) == CW_OK && q == u);
    if (cw_gguf_get_i32(g, kv->key, &i, NULL) == CW_OK) CW_ASSERT(cw_gguf_kind_is_int(kv->kind));
    if (cw_gguf_get_f32(g, kv->key, &f, NULL) == CW_OK) CW_ASSERT(f - f == 0);
    if (cw_gguf_get_bool(g, kv->key, &b, NULL) == CW_OK) CW_ASSERT(kv->kind == CW_GGUF_BOOL);
    if (cw_gguf_get_str(g, kv->key, &s, NULL) == CW_OK) touch(s.data, s.len);
    if (kv->kind != CW_GGUF_ARRAY) return;
    const cw_gguf_array *a = &kv->arr;
    for (size_t k = 0; k < a->n; k++) {
        if (a->elem == CW_GGUF_STRING)
            touch(cw_gguf_array_str(a, k).data, cw_gguf_array_str(a, k).len);
        else if (a->elem == CW_GGUF_BOOL)
            sink += cw_gguf_array_bool(a, k);
        else if (cw_gguf_kind_is_int(a->elem))
            sink += (uint64_t)cw_gguf_array_i64(a, k);
        else
            sink += cw_gguf_array_f32(a, k) > 0;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cw_gguf *g = NULL;
    cw_err err = {0};
    if (cw_gguf_open_memory(data, size, "fuzz", &g, &err) != CW_OK) {
        CW_ASSERT(!g && strlen(err.text) > 6);
        return 0;
    }
    for (size_t i = 0; i < cw_gguf_kv_count(g); i++) walk_key(g, cw_gguf_kv_at(g, i));
    for (size_t i = 0; i < cw_gguf_tensor_count(g); i++) {
        const cw_gguf_tensor *t = cw_gguf_tensor_at(g, i), *again;
        CW_ASSERT(cw_gguf_find(g, t->name) == t);
        CW_ASSERT((cw_gguf_tensor_require(g, t->name, &again, &err) == CW_OK) == t->supported);
        touch(t->data, t->bytes);
        CW_ASSERT((size_t)(t->ne[1] * t->ne[2] * t->ne[3]) * t->row_bytes == t->bytes);
    }
    cw_gguf_close(&g);
    return 0;
}
