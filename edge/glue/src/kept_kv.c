/* See cw/kept_kv.h. */
#include "cw/kept_kv.h"
#include "cw/bytes.h"
#include "cw/hash.h"
#include "cw/mem.h"

#include <string.h>

enum {
    VERSION = 1,
    HEAD_BYTES = 6 * 4 + CW_FINGERPRINT_BYTES + CW_SESSION_IDENTITY_MAX,
    SAMPLE_BYTES = 1024
};

const char cw_kept_kv_kind[] = "causeway kv cache";

/* --- fingerprint --- */

static size_t value_bytes(cw_gguf_kind k)
{
    switch (k) {
    case CW_GGUF_U8:
    case CW_GGUF_I8:
    case CW_GGUF_BOOL: return 1;
    case CW_GGUF_U16:
    case CW_GGUF_I16: return 2;
    case CW_GGUF_U32:
    case CW_GGUF_I32:
    case CW_GGUF_F32: return 4;
    case CW_GGUF_U64:
    case CW_GGUF_I64:
    case CW_GGUF_F64: return 8;
    default: return 0;
    }
}

static void hash_number(cw_hash_state *h, uint64_t v)
{
    uint8_t b[8];
    cw_store_u64(b, v);
    cw_hash_add(h, b, sizeof b);
}

static void hash_bytes(cw_hash_state *h, const void *data, size_t n)
{
    hash_number(h, n);
    if (n) cw_hash_add(h, data, n);
}

static void hash_metadata(cw_hash_state *h, const cw_gguf *g)
{
    hash_number(h, cw_gguf_kv_count(g));
    for (size_t i = 0; i < cw_gguf_kv_count(g); i++) {
        const cw_gguf_kv *kv = cw_gguf_kv_at(g, i);
        hash_bytes(h, kv->key, strlen(kv->key));
        hash_number(h, kv->kind);
        if (kv->kind == CW_GGUF_STRING) {
            hash_bytes(h, kv->str.data, kv->str.len);
        } else if (kv->kind == CW_GGUF_ARRAY) {
            const cw_gguf_array *a = &kv->arr;
            hash_number(h, a->elem);
            hash_bytes(h, a->data, a->offsets ? (size_t)a->offsets[a->n] : a->n * value_bytes(a->elem));
        } else {
            hash_bytes(h, kv->raw, value_bytes(kv->kind));
        }
    }
}

static cw_status hash_tensor(cw_hash_state *h, const cw_gguf *g, const cw_gguf_tensor *t, cw_err *err)
{
    uint8_t sample[SAMPLE_BYTES];
    hash_bytes(h, t->name, strlen(t->name));
    hash_number(h, t->type);
    for (int d = 0; d < 4; d++) hash_number(h, (uint64_t)t->ne[d]);
    hash_number(h, t->bytes);
    size_t n = t->bytes < sizeof sample ? t->bytes : sizeof sample;
    const uint64_t at[] = {0, (t->bytes - n) / 2, t->bytes - n};
    for (size_t i = 0; n && i < CW_ARRAY_LEN(at); i++) {
        CW_TRY(cw_gguf_read(g, t, at[i], n, sample, err));
        cw_hash_add(h, sample, n);
    }
    return CW_OK;
}

cw_status cw_speaker_fingerprint(cw_speaker *s, uint8_t out[CW_FINGERPRINT_BYTES], cw_err *err)
{
    _Static_assert((int)CW_FINGERPRINT_BYTES == (int)CW_HASH_BYTES, "a fingerprint is a hash");
    const cw_gguf *g = cw_speaker_file(s);
    const cw_model_config *c = cw_engine_config(cw_speaker_engine(s));
    cw_hash_state h;
    cw_hash_begin(&h, "causeway model fingerprint 1");
    hash_metadata(&h, g);
    hash_number(&h, (uint64_t)c->n_groups);
    hash_number(&h, (uint64_t)c->n_groups_used);
    hash_number(&h, cw_gguf_tensor_count(g));
    for (size_t i = 0; i < cw_gguf_tensor_count(g); i++)
        CW_TRY(hash_tensor(&h, g, cw_gguf_tensor_at(g, i), err));
    cw_hash_end(&h, out);
    return CW_OK;
}

/* --- the file --- */

typedef struct {
    uint32_t version, n_layers, row_bytes, n, n_exact;
    uint8_t fingerprint[CW_FINGERPRINT_BYTES];
    char identity[CW_SESSION_IDENTITY_MAX];
} head;

static head head_of(const cw_session *s, const uint8_t *fingerprint)
{
    head h = {.version = VERSION,
              .n_layers = (uint32_t)cw_engine_config(cw_session_engine(s))->n_layers,
              .row_bytes = (uint32_t)cw_session_row_bytes(s)};
    int n;
    cw_session_tokens(s, &n);
    h.n = (uint32_t)n;
    h.n_exact = (uint32_t)cw_session_n_exact(s);
    memcpy(h.fingerprint, fingerprint, sizeof h.fingerprint);
    cw_session_identity(s, h.identity);
    return h;
}

static void store_head(const head *h, uint8_t b[HEAD_BYTES])
{
    memset(b, 0, HEAD_BYTES);
    cw_store_u32(b, h->version);
    cw_store_u32(b + 4, h->n_layers);
    cw_store_u32(b + 8, h->row_bytes);
    cw_store_u32(b + 12, h->n);
    cw_store_u32(b + 16, h->n_exact);
    memcpy(b + 24, h->fingerprint, sizeof h->fingerprint);
    memcpy(b + 24 + sizeof h->fingerprint, h->identity, strlen(h->identity));
}

static head load_head(const uint8_t b[HEAD_BYTES])
{
    head h = {.version = cw_load_u32(b),
              .n_layers = cw_load_u32(b + 4),
              .row_bytes = cw_load_u32(b + 8),
              .n = cw_load_u32(b + 12),
              .n_exact = cw_load_u32(b + 16)};
    memcpy(h.fingerprint, b + 24, sizeof h.fingerprint);
    memcpy(h.identity, b + 24 + sizeof h.fingerprint, sizeof h.identity - 1);
    return h;
}

size_t cw_kept_kv_bytes(cw_speaker *s)
{
    return HEAD_BYTES + cw_session_export_bytes(cw_speaker_session(s));
}

static cw_status put(void *ctx, const void *data, size_t n, cw_err *err)
{
    return cw_sealed_write(ctx, data, n, err);
}

static cw_status get(void *ctx, void *data, size_t n, cw_err *err)
{
    return cw_sealed_read(ctx, data, n, err);
}

static cw_status write_content(cw_sealed_writer *w, const cw_session *s, const uint8_t *fingerprint,
                               cw_err *err)
{
    uint8_t b[HEAD_BYTES], id[4];
    head h = head_of(s, fingerprint);
    int n;
    const int32_t *tokens = cw_session_tokens(s, &n);
    store_head(&h, b);
    CW_TRY(cw_sealed_write(w, b, sizeof b, err));
    for (int i = 0; i < n; i++) {
        cw_store_u32(id, (uint32_t)tokens[i]);
        CW_TRY(cw_sealed_write(w, id, sizeof id, err));
    }
    return cw_session_export(s, put, w, err);
}

cw_status cw_kept_kv_write(cw_speaker *s, const uint8_t fingerprint[CW_FINGERPRINT_BYTES], const char *path,
                           const cw_seal_key *key, cw_err *err)
{
    cw_sealed_writer *w = NULL;
    CW_TRY(cw_sealed_create(path, key, cw_kept_kv_kind, &w, err));
    cw_status st = write_content(w, cw_speaker_session(s), fingerprint, err);
    if (st == CW_OK) st = cw_sealed_commit(&w, false, err);
    cw_sealed_discard(&w);
    return st;
}

/* Does what the file says fit this session? */
static cw_status check_head(const head *h, const head *own, int n_ctx, const char *name, cw_err *err)
{
    if (h->version != VERSION)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "%s: written by another version of causeway", name);
    if (memcmp(h->fingerprint, own->fingerprint, sizeof h->fingerprint) != 0)
        return CW_FAIL(err, CW_STATUS_MISMATCH, "%s: kept for another model", name);
    if (strcmp(h->identity, own->identity) != 0)
        return CW_FAIL(err, CW_STATUS_MISMATCH, "%s: kept with %s, this is %s", name, h->identity,
                       own->identity);
    if (h->n_layers != own->n_layers || h->row_bytes != own->row_bytes || h->n_exact > h->n)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: the file is damaged", name);
    if (h->n > (uint32_t)n_ctx)
        return CW_FAIL(err, CW_STATUS_LIMIT, "%s: %u tokens were kept, the context holds %d", name, h->n,
                       n_ctx);
    return CW_OK;
}

cw_status cw_kept_kv_load(cw_session *s, const uint8_t fingerprint[CW_FINGERPRINT_BYTES], cw_sealed_reader *r,
                          const char *name, cw_err *err)
{
    uint8_t b[HEAD_BYTES];
    head own = head_of(s, fingerprint);
    CW_TRY(cw_sealed_read(r, b, sizeof b, err));
    head h = load_head(b);
    CW_TRY(check_head(&h, &own, cw_session_n_ctx(s), name, err));
    int32_t *tokens = cw_calloc(h.n, sizeof *tokens);
    if (!tokens) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    cw_status st = cw_sealed_read(r, tokens, h.n * sizeof *tokens, err);
    for (uint32_t i = 0; i < h.n; i++) tokens[i] = (int32_t)cw_load_u32(&tokens[i]);
    if (st == CW_OK) st = cw_session_import(s, tokens, (int)h.n, (int)h.n_exact, get, r, err);
    if (st == CW_OK) {
        /* Only the end tells that the file is whole. */
        st = cw_sealed_at_end(r, err);
        if (st != CW_OK) cw_session_rewind(s, 0);
    }
    cw_free(tokens);
    return st;
}

cw_status cw_kept_kv_read(cw_speaker *s, const uint8_t fingerprint[CW_FINGERPRINT_BYTES], const char *path,
                          const cw_seal_key *key, cw_err *err)
{
    cw_sealed_reader *r = NULL;
    CW_TRY(cw_sealed_open(path, key, cw_kept_kv_kind, &r, err));
    cw_status st = cw_kept_kv_load(cw_speaker_session(s), fingerprint, r, path, err);
    cw_sealed_close(&r);
    return st;
}
