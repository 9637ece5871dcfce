/* Any bytes as a manifest, with a check sum that is right, as a forging peer would send it: what is taken can
 * be walked, and is the one form of its content. */
#include <stdlib.h>
#include <string.h>

#include "cw/hash.h"
#include "cw/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HASH = CW_MANIFEST_HASH_BYTES };

static volatile uint64_t sink;

static void walk(const cw_manifest *m)
{
    cw_err err;
    cw_manifest_chunk c;
    uint64_t next = 0;
    uint32_t tensor = UINT32_MAX;
    for (uint32_t i = 0; i < cw_manifest_chunk_count(m); i++) {
        CW_ASSERT(cw_manifest_chunk_at(m, i, &c, &err) == CW_OK);
        const cw_manifest_tensor *t = cw_manifest_tensor_at(m, c.tensor);
        if (c.tensor != tensor) next = 0;
        tensor = c.tensor;
        CW_ASSERT(c.offset == next && c.bytes > 0 && c.offset + c.bytes <= t->bytes);
        next += c.bytes;
        for (int k = 0; k < HASH; k++) sink += c.hash[k];
        CW_ASSERT(i + 1 < t->first_chunk + t->n_chunks || next == t->bytes);
    }
    for (size_t i = 0; i < cw_manifest_tensor_count(m); i++) {
        const cw_manifest_tensor *t = cw_manifest_tensor_at(m, i);
        uint32_t chunk;
        CW_ASSERT(cw_manifest_tensor_find(m, t->name) == t);
        CW_ASSERT((cw_manifest_expert_chunk(m, t->name, 0, &chunk, &err) == CW_OK) == t->experts);
    }
    for (size_t i = 0; i < cw_manifest_shape_count(m); i++) {
        const cw_shape_pair *p = cw_manifest_shape_at(m, i);
        uint32_t u;
        float f;
        cw_gguf_str s;
        CW_ASSERT((cw_manifest_shape_u32(m, p->key, &u, &err) == CW_OK) == (p->kind == CW_SHAPE_U32));
        CW_ASSERT((cw_manifest_shape_f32(m, p->key, &f, &err) == CW_OK) == (p->kind == CW_SHAPE_F32));
        if (cw_manifest_shape_str(m, p->key, &s, &err) == CW_OK)
            for (size_t k = 0; k < s.len; k++) sink += (uint8_t)s.data[k];
    }
    for (int layer = 0; layer < 4; layer++) {
        const uint8_t *a = cw_manifest_answer(m, 1, layer, 1);
        for (int k = 0; a && k < HASH; k++) sink += a[k];
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* The input is a form without its closing check sum. */
    uint8_t *bytes = malloc(size + HASH);
    cw_manifest *m = NULL;
    cw_err err = {0};
    if (size) memcpy(bytes, data, size);
    cw_hash("causeway manifest file 1", bytes, size, bytes + size);
    if (cw_manifest_parse(bytes, size + HASH, NULL, &m, &err) == CW_OK) {
        size_t n;
        CW_ASSERT(memcmp(cw_manifest_bytes(m, &n), bytes, size + HASH) == 0 && n == size + HASH);
        walk(m);
        cw_manifest_free(&m);
    }
    free(bytes);
    return 0;
}
