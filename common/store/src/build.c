/*
 * From a model file to its manifest: the shape from the file's keys, the chunks' hashes by reading every
 * tensor once, the known answers by asking whoever can compute experts. Reads by pread, so a file that
 * shrinks is a status.
 */
#include "store_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/hash.h"

enum { PIECE_BYTES = 1 << 20, MAX_ARRAY = 1024 };

/* --- shape --- */

/* Pairs in the making; keys are heap copies. */
typedef struct {
    cw_shape_pair *v;
    size_t n;
} pairs;

static void pairs_free(pairs *p)
{
    for (size_t i = 0; i < p->n; i++) cw_free((void *)(uintptr_t)p->v[i].key);
    cw_free(p->v);
}

static cw_status pairs_add(pairs *p, const cw_shape_pair *pair, const char *key, cw_err *err)
{
    if (p->n == MAX_SHAPE)
        return CW_FAIL(err, CW_STATUS_LIMIT, "the model's shape has more than %d numbers", MAX_SHAPE);
    char *copy = cw_strdup(key);
    if (!copy) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a manifest");
    p->v[p->n] = *pair;
    p->v[p->n++].key = copy;
    return CW_OK;
}

/* false: a value the shape does not carry. */
static bool pair_of_int(uint64_t v, bool negative, cw_shape_pair *out)
{
    *out = (cw_shape_pair){.kind = CW_SHAPE_U32, .u32 = (uint32_t)v};
    return !negative && v <= UINT32_MAX;
}

static bool pair_of_float(float v, cw_shape_pair *out)
{
    *out = (cw_shape_pair){.kind = CW_SHAPE_F32, .f32 = v};
    return isfinite(v);
}

static bool pair_of_text(cw_gguf_str s, cw_shape_pair *out)
{
    *out = (cw_shape_pair){.kind = CW_SHAPE_STR, .str = s};
    return s.len <= MAX_TEXT;
}

static bool pair_of_scalar(const cw_gguf *g, const cw_gguf_kv *kv, cw_shape_pair *out)
{
    uint64_t u;
    float f;
    bool b;
    if (kv->kind == CW_GGUF_STRING) return pair_of_text(kv->str, out);
    if (kv->kind == CW_GGUF_BOOL)
        return cw_gguf_get_bool(g, kv->key, &b, NULL) == CW_OK && pair_of_int(b, false, out);
    if (cw_gguf_kind_is_int(kv->kind))
        return cw_gguf_get_u64(g, kv->key, &u, NULL) == CW_OK && pair_of_int(u, false, out);
    return cw_gguf_get_f32(g, kv->key, &f, NULL) == CW_OK && pair_of_float(f, out);
}

static bool pair_of_element(const cw_gguf_array *a, size_t i, cw_shape_pair *out)
{
    if (a->elem == CW_GGUF_STRING) return pair_of_text(cw_gguf_array_str(a, i), out);
    if (a->elem == CW_GGUF_BOOL) return pair_of_int(cw_gguf_array_bool(a, i), false, out);
    if (!cw_gguf_kind_is_int(a->elem)) return pair_of_float(cw_gguf_array_f32(a, i), out);
    int64_t v = cw_gguf_array_i64(a, i);
    return pair_of_int((uint64_t)v, v < 0, out);
}

static cw_status add_key(pairs *p, const cw_gguf *g, const cw_gguf_kv *kv, cw_err *err)
{
    cw_shape_pair pair;
    char name[MAX_NAME + 1];
    if (kv->kind != CW_GGUF_ARRAY) {
        bool carried = strlen(kv->key) <= MAX_NAME && pair_of_scalar(g, kv, &pair);
        return carried ? pairs_add(p, &pair, kv->key, err) : CW_OK;
    }
    if (kv->arr.n > MAX_ARRAY) return CW_OK;
    for (size_t i = 0; i < kv->arr.n; i++) {
        int n = snprintf(name, sizeof name, "%s[%zu]", kv->key, i);
        if (n > 0 && (size_t)n < sizeof name && pair_of_element(&kv->arr, i, &pair))
            CW_TRY(pairs_add(p, &pair, name, err));
    }
    return CW_OK;
}

/* The file's own shape: its architecture and what the file says under that name. */
static cw_status shape_of_file(pairs *p, const cw_gguf *g, cw_err *err)
{
    cw_gguf_str arch;
    if (cw_gguf_get_str(g, "general.architecture", &arch, NULL) != CW_OK) return CW_OK;
    CW_TRY(add_key(p, g, cw_gguf_kv_find(g, "general.architecture"), err));
    for (size_t i = 0; i < cw_gguf_kv_count(g); i++) {
        const cw_gguf_kv *kv = cw_gguf_kv_at(g, i);
        if (strncmp(kv->key, arch.data, arch.len) == 0 && kv->key[arch.len] == '.')
            CW_TRY(add_key(p, g, kv, err));
    }
    return CW_OK;
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const cw_shape_pair *)a)->key, ((const cw_shape_pair *)b)->key);
}

static cw_status make_shape(pairs *p, const cw_gguf *g, cw_err *err)
{
    p->v = cw_calloc(MAX_SHAPE, sizeof *p->v);
    if (!p->v) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a manifest");
    CW_TRY(shape_of_file(p, g, err));
    qsort(p->v, p->n, sizeof *p->v, by_key);
    for (size_t i = 1; i < p->n; i++)
        if (strcmp(p->v[i - 1].key, p->v[i].key) == 0)
            return CW_FAIL(err, CW_STATUS_FORMAT, "the file has key '%.96s' and an array that makes it too",
                           p->v[i].key);
    return CW_OK;
}

/* --- chunks --- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const cw_manifest_tensor *)a)->name, ((const cw_manifest_tensor *)b)->name);
}

/* The tensors ascending by name, cut; names are the file's. */
static cw_status make_tensors(const cw_gguf *g, cw_manifest_tensor *t, uint32_t *n_chunks, uint64_t *total,
                              cw_err *err)
{
    size_t n = cw_gguf_tensor_count(g);
    uint64_t chunks = 0;
    for (size_t i = 0; i < n; i++) {
        const cw_gguf_tensor *in = cw_gguf_tensor_at(g, i);
        t[i] = (cw_manifest_tensor){.name = in->name, .type = in->type, .n_dims = in->n_dims};
        memcpy(t[i].ne, in->ne, sizeof t[i].ne);
        CW_TRY(form_cut(&t[i], err));
        if (t[i].bytes != in->bytes)
            return CW_FAIL(err, CW_STATUS_MISMATCH, "the size of tensor '%.96s' is in doubt", in->name);
        chunks += t[i].n_chunks;
        *total += t[i].bytes;
    }
    if (chunks > CW_MANIFEST_MAX_BYTES / 2 / HASH_BYTES)
        return CW_FAIL(err, CW_STATUS_LIMIT, "the model has too many chunks (%llu)",
                       (unsigned long long)chunks);
    qsort(t, n, sizeof *t, by_name);
    *n_chunks = (uint32_t)chunks;
    return CW_OK;
}

typedef struct {
    const cw_gguf *g;
    const cw_manifest_options *opts;
    uint8_t *piece; /* [PIECE_BYTES] */
    uint64_t done, total;
} hashing;

static cw_status hash_chunk(hashing *h, const cw_gguf_tensor *t, uint64_t offset, uint64_t bytes,
                            uint8_t out[HASH_BYTES], cw_err *err)
{
    cw_hash_state state;
    cw_hash_begin(&state, CHUNK_CONTEXT);
    while (bytes > 0) {
        size_t n = bytes < PIECE_BYTES ? (size_t)bytes : PIECE_BYTES;
        CW_TRY(cw_gguf_read(h->g, t, offset, n, h->piece, err));
        cw_hash_add(&state, h->piece, n);
        offset += n;
        bytes -= n;
        h->done += n;
        if (h->opts->progress && !h->opts->progress(h->opts->ctx, h->done, h->total))
            return CW_FAIL(err, CW_STATUS_CANCELLED, "hashing the model was stopped");
    }
    cw_hash_end(&state, out);
    return CW_OK;
}

static cw_status put_hashes(form_buffer *b, hashing *h, const cw_manifest_tensor *tensors, size_t n,
                            cw_err *err)
{
    for (size_t i = 0; i < n; i++) {
        const cw_manifest_tensor *t = &tensors[i];
        const cw_gguf_tensor *in = cw_gguf_find(h->g, t->name);
        for (uint64_t offset = 0; offset < t->bytes; offset += t->chunk_bytes) {
            uint64_t rest = t->bytes - offset;
            uint8_t hash[HASH_BYTES];
            CW_TRY(hash_chunk(h, in, offset, rest < t->chunk_bytes ? rest : t->chunk_bytes, hash, err));
            form_put(b, hash, sizeof hash);
        }
    }
    return CW_OK;
}

/* --- the whole --- */

static cw_status finish(form_buffer *b, cw_manifest **out, cw_err *err)
{
    uint8_t *bytes = b->p;
    b->p = NULL;
    if (b->failed) {
        cw_free(bytes);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a manifest");
    }
    return form_parse(bytes, b->n, NULL, out, err);
}

/* Without answers. */
static cw_status build_model(const cw_gguf *g, const cw_manifest_options *opts, cw_manifest **out,
                             cw_err *err)
{
    cw_status s;
    pairs shape = {0};
    form_buffer b = {0};
    uint32_t n_chunks = 0;
    size_t n = cw_gguf_tensor_count(g);
    hashing h = {.g = g, .opts = opts, .piece = cw_calloc(PIECE_BYTES, 1)};
    cw_manifest_tensor *tensors = cw_calloc(n, sizeof *tensors);
    if (!tensors || !h.piece) {
        s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a manifest");
        goto fail;
    }
    CW_TRY_GOTO(s, make_shape(&shape, g, err));
    CW_TRY_GOTO(s, make_tensors(g, tensors, &n_chunks, &h.total, err));
    form_put_model(&b, shape.v, shape.n, tensors, n, n_chunks);
    CW_TRY_GOTO(s, put_hashes(&b, &h, tensors, n, err));
    CW_TRY_GOTO(s, cw_gguf_check_unchanged(g, err));
    form_put_answers(&b, 0, NULL, 0);
    s = finish(&b, out, err);
fail:
    pairs_free(&shape);
    cw_free(b.p);
    cw_free(h.piece);
    cw_free(tensors);
    return s;
}

static bool wanted(const cw_manifest_tensor *t, const cw_manifest_options *opts, int *layer)
{
    *layer = t->experts ? form_expert_layer(t->name) : -1;
    return *layer >= 0 && (opts->answer_layers <= 0 || *layer < opts->answer_layers);
}

bool build_answers_cover(const cw_manifest *m, const cw_manifest_options *opts)
{
    for (size_t i = 0; i < m->n_tensors; i++) {
        int layer;
        if (wanted(&m->tensors[i], opts, &layer) && !cw_manifest_answer(m, opts->arithmetic_id, layer, 0))
            return false;
    }
    return true;
}

static int by_layer(const void *a, const void *b)
{
    return ((const manifest_answers *)a)->layer - ((const manifest_answers *)b)->layer;
}

cw_status build_with_answers(const cw_manifest *m, const cw_manifest_options *opts, cw_manifest **out,
                             cw_err *err)
{
    cw_status s = CW_OK;
    form_buffer b = {0};
    size_t n = 0;
    manifest_answers *a = cw_calloc(m->n_tensors, sizeof *a);
    if (!a) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a manifest");
    for (size_t i = 0; i < m->n_tensors && s == CW_OK; i++) {
        int layer;
        if (!wanted(&m->tensors[i], opts, &layer)) continue;
        int n_experts = (int)m->tensors[i].n_chunks;
        uint8_t *hashes = cw_calloc((size_t)n_experts, HASH_BYTES);
        a[n++] = (manifest_answers){layer, n_experts, hashes};
        if (!hashes) s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a manifest");
        for (int e = 0; e < n_experts && s == CW_OK; e++)
            s = opts->known_answer(opts->ctx, layer, e, hashes + (size_t)e * HASH_BYTES, err);
    }
    if (s == CW_OK) {
        qsort(a, n, sizeof *a, by_layer);
        form_put(&b, m->bytes, m->model_bytes);
        form_put_answers(&b, opts->arithmetic_id, a, n);
        s = finish(&b, out, err);
    }
    for (size_t i = 0; i < n; i++) cw_free((void *)(uintptr_t)a[i].hashes);
    cw_free(a);
    return s;
}

cw_status cw_manifest_build(const cw_gguf *g, const cw_manifest_options *opts, cw_manifest **out, cw_err *err)
{
    static const cw_manifest_options none;
    if (!opts) opts = &none;
    cw_manifest *m = NULL, *full = NULL;
    CW_TRY(build_model(g, opts, &m, err));
    if (!opts->known_answer) {
        *out = m;
        return CW_OK;
    }
    cw_status s = build_with_answers(m, opts, &full, err);
    cw_manifest_free(&m);
    if (s == CW_OK) *out = full;
    return s;
}
