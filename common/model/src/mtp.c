/*
 * The multi-token-prediction head as an engine of one block: loading, and a pass of rows through it. See
 * cw/mtp.h for the formula. One block after another serves the model and the head with the same code
 * (attention, router, experts, feed-forward); only the way in and the norm on the way out are its own.
 */
#include "mtp_internal.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "expert_internal.h"
#include "weights_internal.h"

#include <stdatomic.h>
#include <string.h>

enum { HEAD_ROWS = 64 }; /* of one pass; a prompt's rows come in several */

/* --- loading --- */

static cw_model_config config_of_head(const cw_model_config *c, bool moe)
{
    cw_model_config h = *c;
    h.n_layers = 1;
    h.n_nextn = 0;
    h.n_dense = moe ? 0 : 1;
    if (!moe) h.n_experts = 0;
    h.n_ctx_train = c->n_ctx_train + CW_MTP_MAX; /* guesses stand behind the last token */
    return h;
}

/* What the head shares with the model: views, the memory is the model's. */
static void borrow(cw_weights *w, const cw_weights *model)
{
    w->out = model->out;
    w->embd = model->embd;
    w->embd_type = model->embd_type;
    w->embd_row_bytes = model->embd_row_bytes;
    w->inv_freq = model->inv_freq;
    if (!w->out_norm) w->out_norm = model->out_norm;
}

static cw_status load_weights(cw_mtp *m, const cw_weight_reader *r, const cw_mtp_tensors *t)
{
    cw_engine *e = m->engine;
    CW_TRY(cw_weights_empty(1, &e->weights, r->err));
    loader l = {r, &e->config, &e->weights, r->err};
    CW_TRY(cw_load_f32(&l, t->enorm, &m->enorm));
    CW_TRY(cw_load_f32(&l, t->hnorm, &m->hnorm));
    CW_TRY(cw_load_f32(&l, t->norm, &e->weights.out_norm));
    CW_TRY(cw_load_matrix(&l, t->eh_proj, &m->eh_proj));
    CW_TRY(cw_load_layer(&l, &t->layer, &e->weights.layers[0]));
    borrow(&e->weights, &m->model->weights);
    return CW_OK;
}

static cw_status load_experts(cw_mtp *m, const cw_weight_reader *r)
{
    cw_engine *e = m->engine;
    const cw_model_config *c = &e->config;
    int block = m->model->config.n_layers;
    CW_TRY(cw_expert_shape_read(r->g, c, block, &e->shapes[0], r->err));
    CW_TRY(cw_expert_set_new(1, c->n_experts, e->shapes, &e->set, r->err));
    for (int x = 0; x < c->n_experts; x++) CW_TRY(cw_expert_set_read(e->set, r, 0, block, x));
    CW_TRY(cw_experts_local_new(e->set, e->kn, e->pool, e->max_rows, c->n_used, &e->local, r->err));
    e->experts = e->local;
    return CW_OK;
}

static cw_status load(cw_mtp *m, const cw_gguf *g, const cw_mtp_tensors *t, cw_err *err)
{
    cw_weight_reader r = {
        .g = g, .pool = m->engine->pool, .bounce = cw_pages_alloc(CW_BOUNCE_BYTES), .err = err};
    if (!r.bounce) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for loading weights");
    cw_status s = load_weights(m, &r, t);
    if (s == CW_OK && t->moe) s = load_experts(m, &r);
    cw_pages_free(r.bounce, CW_BOUNCE_BYTES);
    return s;
}

static cw_status make_pass(cw_mtp *m, cw_err *err)
{
    cw_engine *e = m->engine;
    cw_attn_shape shape = cw_pass_attn_shape(&e->config, 0);
    e->attn_plan = cw_attn_plan_for(&shape, cw_pool_threads(e->pool));
    CW_TRY(cw_pass_new(e, &e->pass[0], err));
    int64_t k = 2 * (int64_t)e->config.d_model;
    CW_TRY(cw_arena_new(cw_act_bytes(e->max_rows, k) + 256, &m->arena, err));
    bool fits = cw_act_alloc(&m->pair, m->arena, e->max_rows, k);
    CW_ASSERT(fits);
    return CW_OK;
}

cw_status cw_mtp_open(cw_engine *e, const cw_gguf *model, const cw_gguf *companion, cw_mtp **out, cw_err *err)
{
    cw_mtp_tensors t;
    CW_TRY(cw_mtp_find(model, &e->config, companion, &t, err));
    cw_mtp *m = cw_calloc(1, sizeof *m);
    cw_engine *h = m ? cw_calloc(1, sizeof *h) : NULL;
    cw_status s = CW_OK;
    if (h) {
        m->model = e;
        m->engine = h;
        h->config = config_of_head(&e->config, t.moe);
        h->role = CW_ENGINE_LOCAL;
        h->kn = e->kn;
        h->pool = e->pool;
        h->max_rows = e->max_rows < HEAD_ROWS ? e->max_rows : HEAD_ROWS;
        h->shapes = cw_calloc(1, sizeof *h->shapes);
        h->rows = cw_calloc((size_t)h->max_rows, sizeof *h->rows);
    }
    if (!h || !h->shapes || !h->rows)
        s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a prediction head");
    if (s == CW_OK) s = load(m, companion ? companion : model, &t, err);
    if (s == CW_OK) s = make_pass(m, err);
    if (s != CW_OK) {
        cw_mtp_close(&m);
        return s;
    }
    *out = m;
    return CW_OK;
}

void cw_mtp_close(cw_mtp **mp)
{
    if (!mp || !*mp) return;
    cw_engine_close(&(*mp)->engine);
    cw_arena_free(&(*mp)->arena);
    cw_free(*mp);
    *mp = NULL;
}

size_t cw_mtp_weight_bytes(const cw_mtp *m)
{
    return cw_engine_weight_bytes(m->engine);
}

/* --- a pass --- */

typedef struct {
    cw_mtp *m;
    const float *hidden;
    bool quantise;
    atomic_bool bad;
} joining;

/* One row of [enorm(embedding) ; hnorm(hidden state)]; the pass has put the embedding into its x. */
static void join_row(void *ctx, int row, int thread)
{
    (void)thread;
    joining *j = ctx;
    cw_mtp *m = j->m;
    const cw_kernels *kn = m->engine->kn;
    int d = m->engine->config.d_model;
    float eps = m->engine->config.norm_eps, *pair = m->pair.x + (int64_t)row * 2 * d;
    kn->rms_norm(pair, m->engine->pass[0]->x + (int64_t)row * d, m->enorm, d, eps);
    kn->rms_norm(pair + d, j->hidden + (int64_t)row * d, m->hnorm, d, eps);
    if (j->quantise && !cw_act_quantise_part(&m->pair, kn, row, 0, m->pair.k)) atomic_store(&j->bad, true);
}

/* The pass's x becomes the block's input. */
static cw_status join(cw_mtp *m, const float *hidden, int n, cw_err *err)
{
    cw_pass *p = m->engine->pass[0];
    joining j = {.m = m, .hidden = hidden, .quantise = m->eh_proj.info->quantised};
    cw_act_begin(&m->pair, n);
    cw_pool_run(m->engine->pool, join_row, &j, n);
    if (j.quantise) cw_act_quantised(&m->pair, !atomic_load(&j.bad));
    return cw_pass_product(p, &m->pair, &m->eh_proj, p->x, m->model->config.n_layers, err);
}

static cw_status run(cw_mtp *m, const float *hidden, int n, cw_err *err)
{
    cw_pass *p = m->engine->pass[0];
    cw_pass_start(p, m->engine->rows, n, NULL);
    CW_TRY(join(m, hidden, n, err));
    CW_TRY(cw_pass_layer_begin(p, 0, err));
    CW_TRY(cw_pass_layer_end(p, 0, err));
    return cw_pass_finish(p, err);
}

cw_status cw_mtp_forward(cw_mtp *m, cw_session *s, const int32_t *tokens, const float *hidden, int n,
                         float *logits, cw_err *err)
{
    cw_engine *e = m->engine;
    CW_ASSERT(s->engine == e && n >= 1 && n <= e->max_rows && n <= s->n_ctx - s->n_past);
    for (int i = 0; i < n; i++)
        e->rows[i] = (cw_row){.session = s,
                              .position = s->n_past + i,
                              .token = tokens[i],
                              .logits = i == n - 1 ? logits : NULL};
    cw_fp_setup();
    cw_status st = run(m, hidden, n, err);
    if (st != CW_OK) {
        cw_pass_abandon(e->pass[0]);
        return st;
    }
    memcpy(s->tokens + s->n_past, tokens, (size_t)n * sizeof *tokens);
    s->n_past += n;
    return CW_OK;
}

const float *cw_mtp_output(const cw_mtp *m, int row)
{
    return m->engine->pass[0]->x + (int64_t)row * m->engine->config.d_model;
}
