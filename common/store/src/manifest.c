/* Questions to a manifest. Nothing here changes it. */
#include "store_internal.h"

#include <string.h>

#include "cw/chunk_cache.h"
#include "cw/hash.h"

cw_status cw_manifest_parse(const void *bytes, size_t n, const uint8_t *digest, cw_manifest **out,
                            cw_err *err)
{
    if (n > CW_MANIFEST_MAX_BYTES)
        return CW_FAIL(err, CW_STATUS_FORMAT, "a manifest of %zu bytes is not possible", n);
    uint8_t *copy = cw_calloc(n, 1);
    if (!copy) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a manifest");
    if (n) memcpy(copy, bytes, n);
    return form_parse(copy, n, digest, out, err);
}

void cw_manifest_free(cw_manifest **mp)
{
    if (!mp || !*mp) return;
    cw_manifest *m = *mp;
    cw_free(m->bytes);
    cw_free(m->shape);
    cw_free(m->tensors);
    cw_free(m->answers);
    cw_free(m);
    *mp = NULL;
}

const void *cw_manifest_bytes(const cw_manifest *m, size_t *n)
{
    *n = m->n_bytes;
    return m->bytes;
}

const uint8_t *cw_manifest_digest(const cw_manifest *m)
{
    return m->digest;
}

/* --- tensors and chunks --- */

size_t cw_manifest_tensor_count(const cw_manifest *m)
{
    return m->n_tensors;
}

const cw_manifest_tensor *cw_manifest_tensor_at(const cw_manifest *m, size_t i)
{
    CW_ASSERT(i < m->n_tensors);
    return &m->tensors[i];
}

const cw_manifest_tensor *cw_manifest_tensor_find(const cw_manifest *m, const char *name)
{
    size_t lo = 0, hi = m->n_tensors;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int order = strcmp(name, m->tensors[mid].name);
        if (order == 0) return &m->tensors[mid];
        if (order < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

uint32_t cw_manifest_chunk_count(const cw_manifest *m)
{
    return m->n_chunks;
}

cw_status cw_manifest_chunk_at(const cw_manifest *m, uint32_t chunk, cw_manifest_chunk *out, cw_err *err)
{
    if (chunk >= m->n_chunks)
        return CW_FAIL(err, CW_STATUS_NOT_FOUND, "the model has %u chunks, there is no number %u",
                       m->n_chunks, chunk);
    /* The last tensor that begins at or before the chunk. */
    size_t lo = 0, hi = m->n_tensors;
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;
        if (m->tensors[mid].first_chunk <= chunk)
            lo = mid;
        else
            hi = mid;
    }
    const cw_manifest_tensor *t = &m->tensors[lo];
    uint64_t offset = (uint64_t)(chunk - t->first_chunk) * t->chunk_bytes, rest = t->bytes - offset;
    *out =
        (cw_manifest_chunk){(uint32_t)lo, offset, (uint32_t)(rest < t->chunk_bytes ? rest : t->chunk_bytes),
                            m->hashes + (size_t)chunk * HASH_BYTES};
    return CW_OK;
}

cw_status cw_manifest_expert_chunk(const cw_manifest *m, const char *name, int expert, uint32_t *chunk,
                                   cw_err *err)
{
    const cw_manifest_tensor *t = cw_manifest_tensor_find(m, name);
    if (!t || !t->experts) return CW_FAIL(err, CW_STATUS_NOT_FOUND, "the model has no experts '%.96s'", name);
    if (expert < 0 || (uint32_t)expert >= t->n_chunks)
        return CW_FAIL(err, CW_STATUS_NOT_FOUND, "'%.96s' has %u experts, there is no number %d", name,
                       t->n_chunks, expert);
    *chunk = t->first_chunk + (uint32_t)expert;
    return CW_OK;
}

void cw_chunk_hash(const void *data, size_t n, uint8_t out[HASH_BYTES])
{
    cw_hash(CHUNK_CONTEXT, data, n, out);
}

cw_status cw_manifest_verify(const cw_manifest *m, uint32_t chunk, const void *data, size_t n, cw_err *err)
{
    cw_manifest_chunk c;
    uint8_t hash[HASH_BYTES];
    CW_TRY(cw_manifest_chunk_at(m, chunk, &c, err));
    if (n == c.bytes) {
        cw_chunk_hash(data, n, hash);
        if (memcmp(hash, c.hash, HASH_BYTES) == 0) return CW_OK;
    }
    return CW_FAIL(err, CW_STATUS_MISMATCH,
                   "chunk %u of the model (%u bytes of '%.96s' at %llu) is not what the manifest says", chunk,
                   c.bytes, m->tensors[c.tensor].name, (unsigned long long)c.offset);
}

cw_status cw_manifest_read(const cw_manifest *m, const cw_gguf *g, uint32_t chunk, uint64_t offset, size_t n,
                           void *dst, cw_err *err)
{
    cw_manifest_chunk c;
    CW_TRY(cw_manifest_chunk_at(m, chunk, &c, err));
    if (offset > c.bytes || n > c.bytes - offset)
        return CW_FAIL(err, CW_STATUS_INVALID, "chunk %u has %u bytes, %llu + %zu lie outside", chunk,
                       c.bytes, (unsigned long long)offset, n);
    const cw_manifest_tensor *t = &m->tensors[c.tensor];
    const cw_gguf_tensor *in = cw_gguf_find(g, t->name);
    if (!in || in->type != t->type || in->bytes != t->bytes)
        return CW_FAIL(err, CW_STATUS_MISMATCH, "%s: tensor '%.96s' is not the one of the manifest",
                       cw_gguf_shard_path(g, 0), t->name);
    return cw_gguf_read(g, in, c.offset + offset, n, dst, err);
}

/* --- shape --- */

size_t cw_manifest_shape_count(const cw_manifest *m)
{
    return m->n_shape;
}

const cw_shape_pair *cw_manifest_shape_at(const cw_manifest *m, size_t i)
{
    CW_ASSERT(i < m->n_shape);
    return &m->shape[i];
}

static cw_status find_pair(const cw_manifest *m, const char *key, cw_shape_kind kind,
                           const cw_shape_pair **out, cw_err *err)
{
    size_t lo = 0, hi = m->n_shape;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int order = strcmp(key, m->shape[mid].key);
        if (order == 0) {
            if (m->shape[mid].kind != kind)
                return CW_FAIL(err, CW_STATUS_FORMAT,
                               "key '%.96s' of the manifest is of another kind than needed", key);
            *out = &m->shape[mid];
            return CW_OK;
        }
        if (order < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return CW_FAIL(err, CW_STATUS_NOT_FOUND, "the manifest has no key '%.96s'", key);
}

cw_status cw_manifest_shape_u32(const cw_manifest *m, const char *key, uint32_t *out, cw_err *err)
{
    const cw_shape_pair *p = NULL;
    CW_TRY(find_pair(m, key, CW_SHAPE_U32, &p, err));
    *out = p->u32;
    return CW_OK;
}

cw_status cw_manifest_shape_f32(const cw_manifest *m, const char *key, float *out, cw_err *err)
{
    const cw_shape_pair *p = NULL;
    CW_TRY(find_pair(m, key, CW_SHAPE_F32, &p, err));
    *out = p->f32;
    return CW_OK;
}

cw_status cw_manifest_shape_str(const cw_manifest *m, const char *key, cw_gguf_str *out, cw_err *err)
{
    const cw_shape_pair *p = NULL;
    CW_TRY(find_pair(m, key, CW_SHAPE_STR, &p, err));
    *out = p->str;
    return CW_OK;
}

/* --- known answers --- */

bool cw_manifest_has_answers(const cw_manifest *m, uint32_t arithmetic_id)
{
    return m->n_answers > 0 && m->arithmetic_id == arithmetic_id;
}

const uint8_t *cw_manifest_answer(const cw_manifest *m, uint32_t arithmetic_id, int layer, int expert)
{
    if (!cw_manifest_has_answers(m, arithmetic_id)) return NULL;
    for (size_t i = 0; i < m->n_answers; i++) {
        const manifest_answers *a = &m->answers[i];
        if (a->layer == layer)
            return expert >= 0 && expert < a->n_experts ? a->hashes + (size_t)expert * HASH_BYTES : NULL;
    }
    return NULL;
}
