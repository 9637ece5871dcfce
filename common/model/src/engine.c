/*
 * Opening and closing an engine, and the forward pass of a batch: checks, rows, the order of layer steps.
 *
 * With remote experts a large batch goes as two halves: while one waits for its experts' rows, the other
 * computes its attention. The halves may split a session's rows, because the first half's keys of a layer are
 * written before the second half's attention of that layer reads them.
 */
#include "engine_internal.h"
#include "cw/log.h"
#include "expert_internal.h"

#include <string.h>
#include <unistd.h>

/* --- open, close --- */

static cw_status load_experts(cw_engine *e, const cw_weight_reader *r)
{
    const cw_model_config *c = &e->config;
    CW_TRY(cw_expert_set_new(c->n_layers, c->n_experts, e->shapes, &e->set, r->err));
    for (int l = c->n_dense; l < c->n_layers; l++)
        for (int x = 0; x < c->n_experts; x++) CW_TRY(cw_expert_set_read(e->set, r, l, l, x));
    CW_TRY(cw_experts_local_new(e->set, e->kn, e->pool, e->max_rows, c->n_used, &e->local, r->err));
    e->experts = e->local;
    return CW_OK;
}

static cw_status load(cw_engine *e, const cw_gguf *g, const cw_engine_options *opt, cw_err *err)
{
    cw_model_tensors t;
    CW_TRY(cw_model_tensors_find(g, &e->config, &t, err));
    size_t ignored = cw_gguf_tensor_count(g) - t.n_used;
    if (ignored) CW_LOG_I("model", "tensors not used: count=%zu nextn_blocks=%d", ignored, e->config.n_nextn);
    bool experts = e->role == CW_ENGINE_LOCAL && e->config.n_experts > 0;
    cw_load_progress progress = {opt->progress, opt->progress_ctx, 0,
                                 t.bytes + (experts ? t.expert_bytes : 0)};
    cw_weight_reader r = {.g = g,
                          .pool = e->pool,
                          .bounce = cw_pages_alloc(CW_BOUNCE_BYTES),
                          .progress = &progress,
                          .err = err};
    cw_status s = r.bounce ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for loading weights");
    if (s == CW_OK) s = cw_expert_shapes_read(g, &e->config, e->shapes, err);
    if (s == CW_OK) s = cw_weights_load(&r, &e->config, &t, &e->weights);
    if (s == CW_OK && experts) s = load_experts(e, &r);
    cw_pages_free(r.bounce, CW_BOUNCE_BYTES);
    cw_model_tensors_drop(&t);
    return s;
}

cw_status cw_engine_open(const cw_gguf *g, const cw_engine_options *opt, cw_engine **out, cw_err *err)
{
    static const cw_engine_options defaults;
    if (!opt) opt = &defaults;
    if (opt->max_rows < 0 || opt->max_rows > CW_MAX_ROWS)
        return CW_FAIL(err, CW_STATUS_INVALID, "%d rows in a pass, at most %d are possible", opt->max_rows,
                       CW_MAX_ROWS);
    cw_status s;
    cw_engine *e = cw_calloc(1, sizeof *e);
    if (!e) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for an engine");
    e->role = opt->role;
    e->kn = opt->kernels ? opt->kernels : cw_kernels_best();
    e->max_rows = opt->max_rows ? opt->max_rows : CW_DEFAULT_ROWS;
    e->pool = opt->pool;
    CW_TRY_GOTO(s, cw_model_config_read(g, &opt->model, &e->config, err));
    if (!e->pool) {
        CW_TRY_GOTO(s, cw_pool_new(opt->n_threads, &e->pool, err));
        e->owns_pool = true;
    }
    e->shapes = cw_calloc((size_t)e->config.n_layers, sizeof *e->shapes);
    e->rows = cw_calloc((size_t)e->max_rows, sizeof *e->rows);
    if (!e->shapes || !e->rows) {
        s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for an engine");
        goto fail;
    }
    CW_TRY_GOTO(s, load(e, g, opt, err));
    cw_attn_shape shape = cw_pass_attn_shape(&e->config, 0);
    e->attn_plan = cw_attn_plan_for(&shape, cw_pool_threads(e->pool));
    bool overlaps = e->role == CW_ENGINE_EDGE && e->config.n_experts > 0 && e->max_rows >= CW_OVERLAP_ROWS;
    for (int i = 0; i < 1 + overlaps; i++) CW_TRY_GOTO(s, cw_pass_new(e, &e->pass[i], err));
    *out = e;
    return CW_OK;
fail:
    cw_engine_close(&e);
    return s;
}

void cw_engine_close(cw_engine **engine)
{
    if (!engine || !*engine) return;
    cw_engine *e = *engine;
    cw_expanded_free(&e->expanded);
    cw_pass_free(&e->pass[0]);
    cw_pass_free(&e->pass[1]);
    cw_experts_free(&e->local);
    cw_expert_set_free(&e->set);
    cw_weights_drop(&e->weights);
    cw_free(e->shapes);
    cw_free(e->rows);
    cw_filler_free(&e->filler);
    if (e->owns_pool) cw_pool_free(&e->pool);
    cw_free(e);
    *engine = NULL;
}

void cw_engine_set_experts(cw_engine *e, cw_experts *x)
{
    e->experts = x ? x : e->local;
    bool fills =
        e->experts && e->experts->on_our_cores && cw_pool_threads(e->pool) >= sysconf(_SC_NPROCESSORS_ONLN);
    if (!fills)
        cw_filler_free(&e->filler);
    else if (!e->filler && cw_filler_new(e->pool, &e->filler, NULL) != CW_OK)
        CW_LOG_W("engine", "no threads for shared experts in the gaps of the workers: both compute side by side, "
                           "which is slower");
}

/* --- questions --- */

const cw_model_config *cw_engine_config(const cw_engine *e)
{
    return &e->config;
}

const cw_expert_shape *cw_engine_expert_shapes(const cw_engine *e)
{
    return e->shapes;
}

const cw_kernels *cw_engine_kernels(const cw_engine *e)
{
    return e->kn;
}

cw_pool *cw_engine_pool(cw_engine *e)
{
    return e->pool;
}

int cw_engine_max_rows(const cw_engine *e)
{
    return e->max_rows;
}

size_t cw_engine_weight_bytes(const cw_engine *e)
{
    return cw_weights_bytes(&e->weights) + (e->set ? cw_expert_set_bytes(e->set) : 0);
}

/* --- forward --- */

static cw_status check_item(const cw_engine *e, const cw_batch_item *it, cw_err *err)
{
    const cw_session *s = it->session;
    CW_ASSERT(s->engine == e && (it->n_logits <= 0 || it->logits));
    if (s->in_batch) return CW_FAIL(err, CW_STATUS_INVALID, "a session occurs twice in one batch");
    if (it->n_tokens < 1 || it->n_logits < 0 || it->n_logits > it->n_tokens)
        return CW_FAIL(err, CW_STATUS_INVALID, "%d tokens with %d rows of logits", it->n_tokens,
                       it->n_logits);
    if (it->n_tokens > s->n_ctx - s->n_past)
        return CW_FAIL(err, CW_STATUS_LIMIT, "the context of %d tokens is full (%d held, %d more)", s->n_ctx,
                       s->n_past, it->n_tokens);
    for (int i = 0; i < it->n_tokens; i++)
        if (it->tokens[i] < 0 || it->tokens[i] >= e->config.n_vocab)
            return CW_FAIL(err, CW_STATUS_INVALID, "token %d is outside the vocabulary of %d", it->tokens[i],
                           e->config.n_vocab);
    return CW_OK;
}

/* Lays the items out as rows; *n_rows of them. */
static cw_status make_rows(cw_engine *e, const cw_batch_item *items, int n_items, int *n_rows, cw_err *err)
{
    cw_status s = CW_OK;
    int n = 0, checked = 0;
    for (; checked < n_items; checked++) {
        const cw_batch_item *it = &items[checked];
        s = check_item(e, it, err);
        if (s == CW_OK && it->n_tokens > e->max_rows - n)
            s = CW_FAIL(err, CW_STATUS_LIMIT, "more than %d rows in one pass", e->max_rows);
        if (s != CW_OK) break;
        it->session->in_batch = true;
        for (int i = 0; i < it->n_tokens; i++) {
            int wanted = i - (it->n_tokens - it->n_logits);
            e->rows[n++] =
                (cw_row){.session = it->session,
                         .position = it->session->n_past + i,
                         .token = it->tokens[i],
                         .logits = wanted >= 0 ? it->logits + (int64_t)wanted * e->config.n_vocab : NULL};
        }
    }
    while (checked > 0) items[--checked].session->in_batch = false;
    if (s == CW_OK) *n_rows = n;
    return s;
}

/* Hands the last hidden states of a pass to whoever follows its sessions. */
static void tell_followers(const cw_pass *p)
{
    for (int i = 0, first; i < p->n;) {
        cw_session *s = p->rows[i].session;
        for (first = i; i < p->n && p->rows[i].session == s; i++) continue;
        if (s->follower.rows)
            s->follower.rows(s->follower.ctx, p->rows[first].position, i - first,
                             p->x + (int64_t)first * p->e->config.d_model);
    }
}

static cw_status run_one(cw_engine *e, int n, const atomic_bool *cancel, cw_err *err)
{
    cw_pass *p = e->pass[0];
    cw_pass_start(p, e->rows, n, cancel);
    for (int l = 0; l < e->config.n_layers; l++) {
        CW_TRY(cw_pass_layer_begin(p, l, err));
        CW_TRY(cw_pass_layer_end(p, l, err));
    }
    return cw_pass_finish(p, err);
}

static cw_status run_two(cw_engine *e, int n, const atomic_bool *cancel, cw_err *err)
{
    cw_pass *a = e->pass[0], *b = e->pass[1];
    int layers = e->config.n_layers;
    cw_pass_start(a, e->rows, n / 2, cancel);
    cw_pass_start(b, e->rows + n / 2, n - n / 2, cancel);
    CW_TRY(cw_pass_layer_begin(a, 0, err));
    for (int l = 0; l < layers; l++) {
        CW_TRY(cw_pass_layer_begin(b, l, err));
        CW_TRY(cw_pass_layer_end(a, l, err));
        if (l + 1 < layers) CW_TRY(cw_pass_layer_begin(a, l + 1, err));
        CW_TRY(cw_pass_layer_end(b, l, err));
    }
    CW_TRY(cw_pass_finish(a, err));
    return cw_pass_finish(b, err);
}

cw_status cw_engine_forward(cw_engine *e, const cw_batch_item *items, int n_items, const atomic_bool *cancel,
                            cw_err *err)
{
    if (n_items == 0) return CW_OK;
    if (e->config.n_experts > 0 && !e->experts)
        return CW_FAIL(err, CW_STATUS_STATE,
                       "this engine has no experts: it was opened for the edge and none were set");
    int n = 0;
    CW_TRY(make_rows(e, items, n_items, &n, err));
    cw_fp_setup();
    cw_phase_begin(e, n);
    bool two = e->pass[1] && n >= CW_OVERLAP_ROWS;
    cw_status s = two ? run_two(e, n, cancel, err) : run_one(e, n, cancel, err);
    cw_phase_end(e);
    /* Either half may have been: then the whole item counts as that. */
    bool expanded = e->pass[0]->is_expanded || (two && e->pass[1]->is_expanded);
    if (s != CW_OK) {
        for (int i = 0; i < 2; i++)
            if (e->pass[i]) cw_pass_abandon(e->pass[i]);
        return s;
    }
    for (int i = 0; i < n_items; i++) {
        cw_session *session = items[i].session;
        memcpy(session->tokens + session->n_past, items[i].tokens,
               (size_t)items[i].n_tokens * sizeof(int32_t));
        session->n_past += items[i].n_tokens;
        if (expanded && session->prefill == CW_PREFILL_EXPANDED &&
            session->exact > session->n_past - items[i].n_tokens)
            session->exact = session->n_past - items[i].n_tokens;
    }
    tell_followers(e->pass[0]);
    if (two) tell_followers(e->pass[1]);
    return CW_OK;
}
