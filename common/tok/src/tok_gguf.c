/* Reads the tokenizer.* keys of a model file (ggml's docs/gguf.md) into a cw_tok_spec. */
#include "tok_internal.h"

#include <stdlib.h>
#include "cw/gguf.h"

#define KEY(name) "tokenizer.ggml." name

typedef struct {
    cw_tok_spec spec;
    char model[64], pre[64];
    cw_tok_str *tokens, *merges;
    int32_t *types;
    float *scores;
} reading;

static cw_status read_name(const cw_gguf *g, const char *key, char out[64], cw_err *err)
{
    cw_gguf_str s;
    CW_TRY(cw_gguf_get_str(g, key, &s, err));
    if (s.len >= 64 || memchr(s.data, '\0', s.len))
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: %s is not a name", cw_gguf_shard_path(g, 0), key);
    memcpy(out, s.data, s.len);
    out[s.len] = '\0';
    return CW_OK;
}

/* Absent: *n stays 0. */
static cw_status read_strings(const cw_gguf *g, const char *key, cw_tok_str **out, size_t *n, cw_err *err)
{
    cw_gguf_array a;
    if (!cw_gguf_kv_find(g, key)) return CW_OK;
    CW_TRY(cw_gguf_get_array(g, key, CW_GGUF_STRING, &a, err));
    cw_tok_str *v = cw_calloc(a.n, sizeof *v);
    if (!v) return TOK_NO_MEMORY(err);
    for (size_t i = 0; i < a.n; i++) {
        cw_gguf_str s = cw_gguf_array_str(&a, i);
        v[i] = (cw_tok_str){s.data, s.len};
    }
    *out = v;
    *n = a.n;
    return CW_OK;
}

static cw_status read_types(const cw_gguf *g, reading *r, cw_err *err)
{
    const cw_gguf_kv *kv = cw_gguf_kv_find(g, KEY("token_type"));
    if (!kv) return CW_OK;
    if (kv->kind != CW_GGUF_ARRAY || !cw_gguf_kind_is_int(kv->arr.elem))
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: tokenizer.ggml.token_type is not an array of integers",
                       cw_gguf_shard_path(g, 0));
    r->types = cw_calloc(kv->arr.n, sizeof *r->types);
    if (!r->types) return TOK_NO_MEMORY(err);
    for (size_t i = 0; i < kv->arr.n; i++) {
        int64_t v = cw_gguf_array_i64(&kv->arr, i);
        r->types[i] = v >= INT32_MIN && v <= INT32_MAX ? (int32_t)v : -1;
    }
    r->spec.types = r->types;
    r->spec.n_types = kv->arr.n;
    return CW_OK;
}

static cw_status read_scores(const cw_gguf *g, reading *r, cw_err *err)
{
    cw_gguf_array a;
    if (!cw_gguf_kv_find(g, KEY("scores"))) return CW_OK;
    CW_TRY(cw_gguf_get_array(g, KEY("scores"), CW_GGUF_F32, &a, err));
    r->scores = cw_calloc(a.n, sizeof *r->scores);
    if (!r->scores) return TOK_NO_MEMORY(err);
    for (size_t i = 0; i < a.n; i++) r->scores[i] = cw_gguf_array_f32(&a, i);
    r->spec.scores = r->scores;
    r->spec.n_scores = a.n;
    return CW_OK;
}

static cw_status read_id(const cw_gguf *g, const char *key, int64_t *out, cw_err *err)
{
    uint32_t v;
    if (!cw_gguf_kv_find(g, key)) return CW_OK;
    CW_TRY(cw_gguf_get_u32(g, key, &v, err));
    *out = v == UINT32_MAX ? -1 : (int64_t)v; /* some writers say "none" so */
    return CW_OK;
}

static cw_status read_flag(const cw_gguf *g, const char *key, int *out, cw_err *err)
{
    bool v;
    if (!cw_gguf_kv_find(g, key)) return CW_OK;
    CW_TRY(cw_gguf_get_bool(g, key, &v, err));
    *out = v;
    return CW_OK;
}

static cw_status read_all(const cw_gguf *g, reading *r, cw_err *err)
{
    cw_tok_spec *s = &r->spec;
    cw_tok_spec_init(s);
    s->label = cw_gguf_shard_path(g, 0);
    if (!cw_gguf_kv_find(g, KEY("model")))
        return CW_FAIL(err, CW_STATUS_NOT_FOUND,
                       "%s: the file holds no tokenizer (tokenizer.ggml.model is missing)", s->label);
    CW_TRY(read_name(g, KEY("model"), r->model, err));
    s->model = r->model;
    if (cw_gguf_kv_find(g, KEY("pre"))) {
        CW_TRY(read_name(g, KEY("pre"), r->pre, err));
        s->pre = r->pre;
    }
    CW_TRY(read_strings(g, KEY("tokens"), &r->tokens, &s->n_tokens, err));
    s->tokens = r->tokens;
    CW_TRY(read_strings(g, KEY("merges"), &r->merges, &s->n_merges, err));
    s->merges = r->merges;
    CW_TRY(read_types(g, r, err));
    CW_TRY(read_scores(g, r, err));
    if (strcmp(r->model, "llama") == 0 &&
        s->n_tokens > 2) { /* SentencePiece's own order, where the file is silent */
        s->unk = 0;
        s->bos = 1;
        s->eos = 2;
    }
    CW_TRY(read_id(g, KEY("bos_token_id"), &s->bos, err));
    CW_TRY(read_id(g, KEY("eos_token_id"), &s->eos, err));
    CW_TRY(read_id(g, KEY("eot_token_id"), &s->eot, err));
    CW_TRY(read_id(g, KEY("eom_token_id"), &s->eom, err));
    CW_TRY(read_id(g, KEY("unknown_token_id"), &s->unk, err));
    CW_TRY(read_id(g, KEY("padding_token_id"), &s->pad, err));
    CW_TRY(read_flag(g, KEY("add_bos_token"), &s->add_bos, err));
    CW_TRY(read_flag(g, KEY("add_eos_token"), &s->add_eos, err));
    return read_flag(g, KEY("add_space_prefix"), &s->add_space_prefix, err);
}

cw_status cw_tok_new(const struct cw_gguf *g, cw_tok **out, cw_err *err)
{
    reading r = {0};
    cw_status s = read_all(g, &r, err);
    const char *jit = getenv("CAUSEWAY_PCRE_JIT");
    r.spec.no_jit = jit && strcmp(jit, "0") == 0;
    if (s == CW_OK) s = cw_tok_new_from_spec(&r.spec, out, err);
    cw_free(r.tokens);
    cw_free(r.merges);
    cw_free(r.types);
    cw_free(r.scores);
    return s;
}
