/*
 * A pass: rows of a batch on their way through the layers, in memory made when the engine was opened.
 *
 * Owned and driven by the engine's thread. Steps over rows and products go to the pool; nothing here depends
 * on how many rows travel together. The order of every operation is that of docs/NUMERICS.md.
 */
#include "engine_internal.h"
#include "rope.h"

#include <stdatomic.h>
#include <string.h>

/* --- memory --- */

/* The same list twice: once with arena NULL to add up bytes, once to take them. */
typedef struct {
    cw_arena *arena;
    size_t bytes;
    bool ok;
} taker;

static void *take(taker *t, size_t n, size_t size)
{
    size_t bytes;
    if (!cw_mul_size(n, size, &bytes) || bytes > SIZE_MAX / 2 - t->bytes) {
        t->ok = false;
        return NULL;
    }
    t->bytes += bytes + 64;
    if (!t->arena) return NULL;
    void *p = cw_arena_alloc(t->arena, n, size);
    t->ok = t->ok && p;
    return p;
}

static void take_act(taker *t, cw_act *a, int rows, int64_t k)
{
    if (k == 0) return;
    t->bytes += cw_act_bytes(rows, k);
    if (t->arena) t->ok = t->ok && cw_act_alloc(a, t->arena, rows, k);
}

static void take_attention(taker *t, cw_pass *p, const cw_model_config *c, int rows)
{
    size_t n = (size_t)rows, heads = (size_t)c->n_heads;
    p->q = take(t, n * heads * (size_t)c->d_head, sizeof(float));
    p->kv = take(t, n * (size_t)cw_kv_width(c), sizeof(float));
    p->attn_scratch = take(t, (size_t)cw_pool_threads(p->e->pool) * p->e->attn_plan.floats, sizeof(float));
    p->runs = take(t, n + 1, sizeof *p->runs);
    take_act(t, &p->o, rows, (int64_t)c->n_heads * c->d_v);
    p->mm = take(t, 2 * heads + 3, sizeof *p->mm);
    if (!c->mla) return;
    take_act(t, &p->q_a, rows, c->q_lora);
    take_act(t, &p->q_nope, rows, (int64_t)c->n_heads * c->d_nope);
    take_act(t, &p->latent, rows, (int64_t)c->n_heads * c->kv_lora);
    p->q_abs = take(t, n * heads * (size_t)(c->kv_lora + c->d_rope), sizeof(float));
    p->head_views = take(t, 2 * heads, sizeof *p->head_views);
}

static void take_all(taker *t, cw_pass *p, const cw_engine *e)
{
    const cw_model_config *c = &e->config;
    int rows = e->max_rows;
    size_t n = (size_t)rows, d = (size_t)c->d_model;
    p->x = take(t, n * d, sizeof(float));
    p->y = take(t, n * d, sizeof(float));
    take_act(t, &p->h, rows, c->d_model);
    p->cos = take(t, n * (size_t)c->d_rope / 2, sizeof(float));
    p->sin = take(t, n * (size_t)c->d_rope / 2, sizeof(float));
    p->embd_row = take(t, e->weights.embd_row_bytes, 1);
    p->row_bad = take(t, n, 1);
    p->logits = take(t, n * (size_t)c->n_vocab, sizeof(float));
    take_attention(t, p, c, rows);
    int ff = c->n_dense > 0 && c->d_ff > c->d_shared ? c->d_ff : c->d_shared;
    take_act(t, &p->gated, rows, ff);
    p->up = take(t, n * (size_t)ff, sizeof(float));
    if (c->n_experts == 0) return;
    p->scores = take(t, n * (size_t)c->n_experts, sizeof(float));
    p->entries = take(t, n * (size_t)c->n_used, sizeof *p->entries);
    p->combined = take(t, n * d, sizeof(float));
}

cw_status cw_pass_new(cw_engine *e, cw_pass **out, cw_err *err)
{
    cw_pass *p = cw_calloc(1, sizeof *p);
    if (!p) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a pass");
    p->e = e;
    taker measure = {.ok = true};
    take_all(&measure, p, e);
    cw_status s = measure.ok
                      ? cw_arena_new(measure.bytes, &p->arena, err)
                      : CW_FAIL(err, CW_STATUS_LIMIT, "this model's working memory is beyond any machine");
    if (s != CW_OK) {
        cw_free(p);
        return s;
    }
    taker real = {.arena = p->arena, .ok = true};
    take_all(&real, p, e);
    CW_ASSERT(real.ok);
    *out = p;
    return CW_OK;
}

void cw_pass_free(cw_pass **p)
{
    if (!p || !*p) return;
    cw_arena_free(&(*p)->arena);
    cw_free(*p);
    *p = NULL;
}

/* --- steps over rows --- */

/* What happens to a row between two products, in one walk: a barrier less for each thing that is in it. */
typedef struct {
    cw_pass *p;
    float *add; /* x += add, where there is something to add; before that add += more */
    const float *more;
    const float *norm; /* h = norm of x, where there is one */
    bool quantise;
    atomic_bool bad;
} row_step;

static void step_row(void *ctx, int row, int thread)
{
    (void)thread;
    row_step *s = ctx;
    cw_pass *p = s->p;
    int d = p->e->config.d_model;
    int64_t at = (int64_t)row * d;
    if (s->add && s->more) p->e->kn->add(s->add + at, s->more + at, d);
    if (s->add) p->e->kn->add(p->x + at, s->add + at, d);
    if (!s->norm) return;
    p->e->kn->rms_norm(p->h.x + at, p->x + at, s->norm, d, p->e->config.norm_eps);
    if (s->quantise && !cw_act_quantise_part(&p->h, p->e->kn, row, 0, d)) atomic_store(&s->bad, true);
}

static void run_rows(row_step *s)
{
    cw_pass *p = s->p;
    if (s->norm) cw_act_begin(&p->h, p->n);
    cw_pool_run(p->e->pool, step_row, s, p->n);
    if (s->norm && s->quantise) cw_act_quantised(&p->h, !atomic_load(&s->bad));
}

static void add_residual(cw_pass *p, float *add, const float *more)
{
    row_step s = {.p = p, .add = add, .more = more};
    run_rows(&s);
}

/* --- products --- */

cw_status cw_pass_check(const cw_act *a, int layer, cw_err *err)
{
    if (a->finite) return CW_OK;
    return CW_FAIL(err, CW_STATUS_NUMERIC, "layer %d: a hidden value is not finite", layer);
}

cw_status cw_pass_product(cw_pass *p, cw_act *in, const cw_weight *w, float *y, int layer, cw_err *err)
{
    cw_mm mm = cw_act_product(in, p->e->kn, p->e->pool, w, y, w->n);
    CW_TRY(cw_pass_check(in, layer, err));
    cw_matmul(p->e->pool, p->e->kn, &mm);
    return CW_OK;
}

/* --- the pass --- */

/* Runs long enough to share the reading of keys, and enough of them that threads end together. */
static void find_runs(cw_pass *p)
{
    enum { RUNS_PER_THREAD = 6 };
    int most = p->n / (cw_pool_threads(p->e->pool) * RUNS_PER_THREAD);
    if (most > p->e->attn_plan.rows) most = p->e->attn_plan.rows;
    p->n_runs = 0;
    for (int i = 0, first = 0; i < p->n; i++) {
        if (i > 0 && p->rows[i].session == p->rows[i - 1].session && i - first < most) continue;
        p->runs[p->n_runs++] = first = i;
    }
    p->runs[p->n_runs] = p->n;
}

void cw_pass_start(cw_pass *p, const cw_row *rows, int n, const atomic_bool *cancel)
{
    const cw_model_config *c = &p->e->config;
    p->rows = rows;
    p->n = n;
    p->cancel = cancel;
    CW_ASSERT(!p->waiting && n >= 1 && n <= p->e->max_rows);
    find_runs(p);
    p->is_expanded = cw_pass_is_expanded(p);
    for (int i = 0; i < n; i++) {
        cw_weights_embed(&p->e->weights, rows[i].token, p->x + (int64_t)i * c->d_model, p->embd_row);
        int64_t at = (int64_t)i * (c->d_rope / 2);
        cw_rope_row(p->e->weights.inv_freq, c->d_rope / 2, rows[i].position, p->cos + at, p->sin + at);
    }
}

cw_status cw_pass_layer_begin(cw_pass *p, int layer, cw_err *err)
{
    const cw_layer_weights *w = &p->e->weights.layers[layer];
    if (p->cancel && atomic_load_explicit(p->cancel, memory_order_relaxed))
        return CW_FAIL(err, CW_STATUS_CANCELLED, "stopped on request");
    cw_phase_enter(p->e, CW_PHASE_ATTENTION);
    if (p->e->clock.on) cw_phase_count_layer(p->e, layer);
    /* The router alone reads f32 rows; where no weight reads A8, nothing is made that nobody reads. */
    row_step first = {.p = p, .norm = w->attn_norm, .quantise = (w->q_a.n ? w->q_a : w->q).info->quantised};
    run_rows(&first);
    CW_TRY(cw_pass_attention(p, layer, err));

    bool moe = cw_layer_is_moe(&p->e->config, layer);
    cw_phase_enter(p->e, moe ? CW_PHASE_ROUTER : CW_PHASE_FFN);
    row_step second = {.p = p,
                       .add = p->y,
                       .norm = w->ffn_norm,
                       .quantise = moe ? cw_expert_rows_kind(&p->e->shapes[layer]) == CW_ROWS_A8
                                       : w->gate.info->quantised};
    run_rows(&second);
    if (moe) CW_TRY(cw_pass_route(p, layer, err));
    cw_phase_enter(p->e, CW_PHASE_FFN);
    if (w->gate.n) CW_TRY(cw_pass_feed_forward_begin(p, layer, err));
    return CW_OK;
}

cw_status cw_pass_layer_end(cw_pass *p, int layer, cw_err *err)
{
    if (!cw_layer_is_moe(&p->e->config, layer)) {
        cw_phase_enter(p->e, CW_PHASE_FFN);
        add_residual(p, p->y, NULL);
        return CW_OK;
    }
    CW_TRY(cw_pass_collect(p, layer, err)); /* where it fails, cw_pass_abandon ends the rest */
    cw_phase_enter(p->e, CW_PHASE_FFN);
    CW_TRY(cw_pass_feed_forward_end(p, layer, err));
    add_residual(p, p->combined, p->e->weights.layers[layer].gate.n ? p->y : NULL);
    return CW_OK;
}

void cw_pass_abandon(cw_pass *p)
{
    if (p->filling) cw_filler_end(p->e->filler);
    p->filling = false;
    if (!p->waiting) return;
    cw_expert_reply reply;
    p->waiting = false;
    cw_status ignored = cw_experts_collect(p->e->experts, p->ticket, &reply, NULL);
    (void)ignored; /* the pass has failed already, with a better reason */
}

/* Norms the rows whose logits are wanted to the front of h,
 * multiplies them at once, and hands the results out. */
cw_status cw_pass_finish(cw_pass *p, cw_err *err)
{
    cw_engine *e = p->e;
    const cw_model_config *c = &e->config;
    int n = 0;
    float *together = NULL; /* where the logits of all wanted rows go, if that is one run of memory */
    bool in_one = true;
    cw_phase_enter(e, CW_PHASE_LOGITS);
    for (int i = 0; i < p->n; i++) {
        if (!p->rows[i].logits) continue;
        const float *x = p->x + (int64_t)i * c->d_model;
        if (!e->kn->all_finite(x, c->d_model))
            return CW_FAIL(err, CW_STATUS_NUMERIC, "the hidden state after the last layer is not finite");
        e->kn->rms_norm(p->h.x + (int64_t)n * c->d_model, x, e->weights.out_norm, c->d_model, c->norm_eps);
        if (n == 0) together = p->rows[i].logits;
        in_one = in_one && p->rows[i].logits == together + (int64_t)n * c->n_vocab;
        n++;
    }
    if (n == 0) return CW_OK;
    if (e->clock.on) e->clock.sum.weight_bytes[CW_PHASE_LOGITS] += e->weights.out.bytes;
    cw_act_begin(&p->h, n);
    float *y = in_one ? together : p->logits;
    CW_TRY(cw_pass_product(p, &p->h, &e->weights.out, y, c->n_layers, err));
    for (int i = 0, k = 0; i < p->n && !in_one; i++)
        if (p->rows[i].logits)
            memcpy(p->rows[i].logits, y + (int64_t)k++ * c->n_vocab, (size_t)c->n_vocab * sizeof *y);
    return CW_OK;
}
