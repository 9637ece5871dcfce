/* Sessions: one timeline of tokens and its KV cache. A
 * session's memory is one arena of reserved address space. */
#include "engine_internal.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

cw_status cw_session_new(cw_engine *e, const cw_session_options *opt, cw_session **out, cw_err *err)
{
    static const cw_session_options defaults;
    const cw_model_config *c = &e->config;
    if (!opt) opt = &defaults;
    int n_ctx = opt->n_ctx;
    if (n_ctx == 0) n_ctx = c->n_ctx_train < CW_DEFAULT_CTX ? c->n_ctx_train : CW_DEFAULT_CTX;
    if (n_ctx < 1 || n_ctx > c->n_ctx_train)
        return CW_FAIL(err, CW_STATUS_INVALID, "a context of %d tokens; this model has at most %d", n_ctx,
                       c->n_ctx_train);
    cw_kv_type type = opt->kv_type;
    if (type == CW_KV_AUTO) type = e->weights.all_f32 ? CW_KV_F32 : CW_KV_F16;

    bool expanded = opt->prefill == CW_PREFILL_EXPANDED && c->mla;
    if (expanded && !e->expanded) CW_TRY(cw_expanded_new(e, &e->expanded, err));

    cw_session *s = cw_calloc(1, sizeof *s);
    if (!s) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a session");
    static atomic_uint streams;
    s->engine = e;
    s->stream = atomic_fetch_add(&streams, 1) + 1;
    s->n_ctx = n_ctx;
    s->prefill = expanded ? CW_PREFILL_EXPANDED : CW_PREFILL_ABSORBED;
    s->exact = n_ctx;
    s->kv = (cw_kv){.type = type, .width = cw_kv_width(c), .n_ctx = n_ctx};
    s->kv.row_bytes = cw_kv_row_bytes(type, s->kv.width);
    /* Bounded by the configuration: 512 layers x 2^24 positions x 2^19 values x 4 bytes stays below 2^55. */
    size_t kv_bytes = (size_t)c->n_layers * (size_t)n_ctx * s->kv.row_bytes;
    size_t token_bytes = ((size_t)n_ctx * sizeof *s->tokens + 63) & ~(size_t)63;
    cw_status st = cw_arena_new(token_bytes + kv_bytes + 64, &s->arena, err);
    if (st != CW_OK) {
        cw_free(s);
        return st;
    }
    s->tokens = cw_arena_alloc(s->arena, (size_t)n_ctx, sizeof *s->tokens);
    s->kv.data = cw_arena_alloc(s->arena, kv_bytes, 1);
    CW_ASSERT(s->tokens && s->kv.data);
    *out = s;
    return CW_OK;
}

void cw_session_free(cw_session **s)
{
    if (!s || !*s) return;
    CW_ASSERT(!(*s)->follower.rows);
    cw_arena_free(&(*s)->arena);
    cw_free(*s);
    *s = NULL;
}

cw_engine *cw_session_engine(const cw_session *s)
{
    return s->engine;
}

int cw_session_n_ctx(const cw_session *s)
{
    return s->n_ctx;
}

cw_kv_type cw_session_kv_type(const cw_session *s)
{
    return s->kv.type;
}

bool cw_session_is_exact(const cw_session *s)
{
    return s->exact >= s->n_past;
}

void cw_session_identity(const cw_session *s, char line[CW_SESSION_IDENTITY_MAX])
{
    static const char *const kv[] = {[CW_KV_F32] = "f32", [CW_KV_F16] = "f16", [CW_KV_Q8] = "q8"};
    snprintf(line, CW_SESSION_IDENTITY_MAX, "arithmetic %u, kv %s%s", CW_ARITHMETIC_ID, kv[s->kv.type],
             s->prefill == CW_PREFILL_EXPANDED ? ", prefill expanded" : "");
}

const int32_t *cw_session_tokens(const cw_session *s, int *n_past)
{
    if (n_past) *n_past = s->n_past;
    return s->tokens;
}

void cw_session_rewind(cw_session *s, int n_past)
{
    CW_ASSERT(n_past >= 0 && n_past <= s->n_past);
    s->n_past = n_past; /* what lies behind is overwritten before it is read */
    if (n_past <= s->exact) s->exact = s->n_ctx;
    if (s->follower.rewound) s->follower.rewound(s->follower.ctx, n_past);
}

cw_status cw_session_eval(cw_session *s, const int32_t *tokens, int n, float *logits,
                          const atomic_bool *cancel, cw_err *err)
{
    if (n > s->n_ctx - s->n_past) /* before the first pass, not after most of the work */
        return CW_FAIL(err, CW_STATUS_LIMIT, "the context of %d tokens is full (%d held, %d more)", s->n_ctx,
                       s->n_past, n);
    for (int done = 0; done < n;) {
        int now = n - done < s->engine->max_rows ? n - done : s->engine->max_rows;
        bool last = done + now == n;
        cw_batch_item item = {.session = s,
                              .tokens = tokens + done,
                              .n_tokens = now,
                              .n_logits = last && logits ? 1 : 0,
                              .logits = logits};
        CW_TRY(cw_engine_forward(s->engine, &item, 1, cancel, err));
        done += now;
    }
    return CW_OK;
}

cw_status cw_session_sync(cw_session *s, const int32_t *tokens, int n, float *logits, int *n_reused,
                          const atomic_bool *cancel, cw_err *err)
{
    if (n < 1) return CW_FAIL(err, CW_STATUS_INVALID, "an empty prompt");
    if (n > s->n_ctx)
        return CW_FAIL(err, CW_STATUS_LIMIT, "the prompt has %d tokens, the context holds %d", n, s->n_ctx);
    int common = 0;
    while (common < n - 1 && common < s->n_past && s->tokens[common] == tokens[common]) common++;
    cw_session_rewind(s, common);
    CW_TRY(cw_session_eval(s, tokens + common, n - common, logits, cancel, err));
    if (n_reused) *n_reused = common;
    return CW_OK;
}

const void *cw_session_kv_row(const cw_session *s, int layer, int position, size_t *bytes)
{
    CW_ASSERT(layer >= 0 && layer < s->engine->config.n_layers && position >= 0 && position < s->n_past);
    if (bytes) *bytes = s->kv.row_bytes;
    return cw_kv_row(&s->kv, layer, position);
}

int cw_session_n_exact(const cw_session *s)
{
    return s->exact < s->n_past ? s->exact : s->n_past;
}

size_t cw_session_row_bytes(const cw_session *s)
{
    return s->kv.row_bytes;
}

size_t cw_session_export_bytes(const cw_session *s)
{
    return (size_t)s->engine->config.n_layers * (size_t)s->n_past * s->kv.row_bytes;
}

cw_status cw_session_export(const cw_session *s, cw_session_put put, void *ctx, cw_err *err)
{
    size_t n = (size_t)s->n_past * s->kv.row_bytes;
    for (int l = 0; n && l < s->engine->config.n_layers; l++)
        CW_TRY(put(ctx, cw_kv_row(&s->kv, l, 0), n, err));
    return CW_OK;
}

cw_status cw_session_import(cw_session *s, const int32_t *tokens, int n, int n_exact, cw_session_get get,
                            void *ctx, cw_err *err)
{
    CW_ASSERT(n >= 0 && n_exact >= 0 && n_exact <= n);
    if (n > s->n_ctx)
        return CW_FAIL(err, CW_STATUS_LIMIT, "%d tokens were kept, the context holds %d", n, s->n_ctx);
    for (int i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= s->engine->config.n_vocab)
            return CW_FAIL(err, CW_STATUS_INVALID, "token %d is not one of this model's", tokens[i]);
    cw_session_rewind(s, 0);
    for (int l = 0; n && l < s->engine->config.n_layers; l++)
        CW_TRY(get(ctx, cw_kv_row(&s->kv, l, 0), (size_t)n * s->kv.row_bytes, err));
    if (n) memcpy(s->tokens, tokens, (size_t)n * sizeof *tokens);
    s->n_past = n;
    s->exact = n_exact < n ? n_exact : s->n_ctx;
    return CW_OK;
}
