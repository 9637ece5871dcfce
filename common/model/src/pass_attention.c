/*
 * Attention of a pass.
 *
 * Multi-head latent attention in absorbed form (DeepSeek-V2, section 2.1): q_nope is carried into the latent
 * space by k_b, scores are taken against the cached rows [latent | rotated key part], the weighted sum of
 * latents is carried out by v_b. One form for all rows, so a row's bits do not depend on whether it was
 * prefilled or decoded. Keys and values are read back from the cache in its stored type, those of this very
 * pass included.
 */
#include "engine_internal.h"
#include "rope.h"

#include <stdatomic.h>
#include <string.h>

typedef struct {
    cw_pass *p;
    int layer;
    const cw_layer_weights *w;
    int group, n_groups; /* heads that share a task, and such groups */
    atomic_bool bad;     /* a value that is not finite was met in quantising */
} step;

/* --- attention itself: tasks are (run of rows, heads that share keys, group of these heads) --- */

/* A few heads to a task when runs of rows are few, so that every thread has some. */
static void choose_groups(step *s, int heads_sharing, int n_sets)
{
    int threads = cw_pool_threads(s->p->e->pool), want = (threads + s->p->n_runs - 1) / s->p->n_runs;
    int pieces = (want + n_sets - 1) / n_sets;
    int group = (heads_sharing + pieces - 1) / pieces;
    s->group = group > CW_ATTN_MAX_GROUP ? CW_ATTN_MAX_GROUP : group;
    s->n_groups = (heads_sharing + s->group - 1) / s->group;
}

cw_attn_shape cw_pass_attn_shape(const cw_model_config *c, int kv_head)
{
    if (c->mla)
        return (cw_attn_shape){.k_dim = c->kv_lora + c->d_rope, .v_dim = c->kv_lora, .scale = c->attn_scale};
    return (cw_attn_shape){.k_at = kv_head * c->d_head,
                           .k_dim = c->d_head,
                           .v_at = (c->n_kv_heads + kv_head) * c->d_head,
                           .v_dim = c->d_head,
                           .scale = c->attn_scale};
}

/* The run's rows against the cache, without heads. */
static cw_attn of_run(const step *s, int run, int thread)
{
    const cw_pass *p = s->p;
    int row = p->runs[run];
    return (cw_attn){.kn = p->e->kn,
                     .plan = &p->e->attn_plan,
                     .kv = &p->rows[row].session->kv,
                     .layer = s->layer,
                     .first = p->rows[row].position,
                     .n_rows = p->runs[run + 1] - row,
                     .scratch = p->attn_scratch + (size_t)thread * p->e->attn_plan.floats};
}

/* Heads from `head` on of a run: the weighted sums of latents, quantised for v_b. */
static void attend_heads(step *s, int run, int head, int thread)
{
    cw_pass *p = s->p;
    const cw_model_config *c = &p->e->config;
    int width = c->kv_lora + c->d_rope;
    int64_t at = (int64_t)p->runs[run] * c->n_heads + head;
    cw_attn a = of_run(s, run, thread);
    a.shape = cw_pass_attn_shape(c, 0);
    a.n_q = c->n_heads - head < s->group ? c->n_heads - head : s->group;
    a.q = p->q_abs + at * width;
    a.q_head = width;
    a.q_row = (int64_t)c->n_heads * width;
    a.o = p->latent.x + at * c->kv_lora;
    a.o_head = c->kv_lora;
    a.o_row = (int64_t)c->n_heads * c->kv_lora;
    cw_attend(&a);
    if (!s->w->v_b[0].info->quantised) return;
    for (int row = p->runs[run]; row < p->runs[run + 1]; row++)
        if (!cw_act_quantise_part(&p->latent, p->e->kn, row, (int64_t)head * c->kv_lora,
                                  (int64_t)a.n_q * c->kv_lora))
            atomic_store(&s->bad, true);
}

static void attend_latent(void *ctx, int task, int thread)
{
    step *s = ctx;
    /* Later rows see more keys: first, so that the threads end together. */
    attend_heads(s, s->p->n_runs - 1 - task / s->n_groups, task % s->n_groups * s->group, thread);
}

static void attend_grouped(void *ctx, int task, int thread)
{
    const step *s = ctx;
    cw_pass *p = s->p;
    const cw_model_config *c = &p->e->config;
    int sharing = c->n_heads / c->n_kv_heads, per_run = c->n_kv_heads * s->n_groups;
    int run = p->n_runs - 1 - task / per_run, set = task % per_run / s->n_groups,
        first = task % s->n_groups * s->group;
    int64_t at = ((int64_t)p->runs[run] * c->n_heads + set * sharing + first) * c->d_head;
    cw_attn a = of_run(s, run, thread);
    a.shape = cw_pass_attn_shape(c, set);
    a.n_q = sharing - first < s->group ? sharing - first : s->group;
    a.q = p->q + at;
    a.o = p->o.x + at;
    a.q_head = a.o_head = c->d_head;
    a.q_row = a.o_row = (int64_t)c->n_heads * c->d_head;
    cw_attend(&a);
}

/* --- multi-head latent attention --- */

static void norm_q_a(void *ctx, int row, int thread)
{
    (void)thread;
    const step *s = ctx;
    const cw_model_config *c = &s->p->e->config;
    float *q = s->p->q_a.x + (int64_t)row * c->q_lora;
    s->p->e->kn->rms_norm(q, q, s->w->q_a_norm, c->q_lora, c->norm_eps);
}

/* Finishes the cache row and parts the queries: nope values
 * side by side for k_b, rotated values behind their latent. */
static void place_latent_row(void *ctx, int row, int thread)
{
    (void)thread;
    step *s = ctx;
    cw_pass *p = s->p;
    const cw_model_config *c = &p->e->config;
    int half = c->d_rope / 2, width = c->kv_lora + c->d_rope;
    const float *cos_row = p->cos + (int64_t)row * half, *sin_row = p->sin + (int64_t)row * half;

    float *kv = p->kv + (int64_t)row * width;
    p->e->kn->rms_norm(kv, kv, s->w->kv_a_norm, c->kv_lora, c->norm_eps);
    cw_rope_apply(kv + c->kv_lora, cos_row, sin_row, half, c->rope_halves);
    const cw_row *r = &p->rows[row];
    cw_kv_put(p->e->kn, &r->session->kv, cw_kv_row(&r->session->kv, s->layer, r->position), kv);

    for (int h = 0; h < c->n_heads; h++) {
        int64_t head = (int64_t)row * c->n_heads + h;
        const float *q = p->q + head * c->d_head;
        float *rotated = p->q_abs + head * width + c->kv_lora;
        memcpy(p->q_nope.x + head * c->d_nope, q, (size_t)c->d_nope * sizeof *q);
        memcpy(rotated, q + c->d_nope, (size_t)c->d_rope * sizeof *q);
        cw_rope_apply(rotated, cos_row, sin_row, half, c->rope_halves);
    }
    if (s->w->k_b[0].info->quantised && !cw_act_quantise_part(&p->q_nope, p->e->kn, row, 0, p->q_nope.k))
        atomic_store(&s->bad, true);
}

/* Each head's columns of `in` times that head's weight, to columns h * y_step of y: products mm [n_heads]. */
static void products_of_heads(const step *s, const cw_act *in, const cw_weight *w, float *y, int64_t y_step,
                              int64_t ldy, cw_a8 *views, cw_mm *mm)
{
    int64_t k = w[0].k;
    for (int h = 0; h < s->p->e->config.n_heads; h++) {
        mm[h] = (cw_mm){
            .w = &w[h], .f32 = in->x + h * k, .ldx = in->k, .m = s->p->n, .y = y + h * y_step, .ldy = ldy};
        if (w[0].info->quantised) {
            views[h] = cw_a8_view(&in->a8, 0, s->p->n, h * k, k);
            mm[h].a8 = &views[h];
        }
    }
}

/* What place_latent_row or the attention of all heads quantised on its way. */
static cw_status quantised_on_the_way(step *s, cw_act *a, const cw_weight *w, cw_err *err)
{
    if (w[0].info->quantised) cw_act_quantised(a, !atomic_load(&s->bad));
    return cw_pass_check(a, s->layer, err);
}

/* A group of heads from the queries to v_b's output: few rows have little for a barrier to share out. */
static void whole_heads(void *ctx, int task, int thread)
{
    step *s = ctx;
    cw_pass *p = s->p;
    const cw_model_config *c = &p->e->config;
    int first = task * s->group, last = first + s->group < c->n_heads ? first + s->group : c->n_heads;
    const cw_mm *in = p->mm, *out = p->mm + c->n_heads;
    for (int h = first; h < last; h++) p->e->kn->matmul(&in[h], 0, cw_weight_panels(in[h].w), 0, p->n);
    for (int run = 0; run < p->n_runs; run++) attend_heads(s, run, first, thread);
    for (int h = first; h < last; h++) p->e->kn->matmul(&out[h], 0, cw_weight_panels(out[h].w), 0, p->n);
}

/* From p->q_nope and the rotated parts of p->q_abs to p->o. */
static cw_status attend_absorbed(step *s, cw_err *err)
{
    enum { FEW_ROWS = 4 };
    cw_pass *p = s->p;
    const cw_model_config *c = &p->e->config;
    int heads = c->n_heads, width = c->kv_lora + c->d_rope;
    CW_TRY(quantised_on_the_way(s, &p->q_nope, s->w->k_b, err));
    products_of_heads(s, &p->q_nope, s->w->k_b, p->q_abs, width, (int64_t)heads * width, p->head_views,
                      p->mm);
    products_of_heads(s, &p->latent, s->w->v_b, p->o.x, c->d_v, p->o.k, p->head_views + heads, p->mm + heads);
    cw_act_begin(&p->latent, p->n);
    cw_act_begin(&p->o, p->n);
    if (p->n <= FEW_ROWS && heads >= cw_pool_threads(p->e->pool)) {
        int threads = cw_pool_threads(p->e->pool);
        s->group = (heads + threads - 1) / threads;
        if (s->group > CW_ATTN_MAX_GROUP) s->group = CW_ATTN_MAX_GROUP;
        cw_pool_run(p->e->pool, whole_heads, s, (heads + s->group - 1) / s->group);
        return quantised_on_the_way(s, &p->latent, s->w->v_b, err);
    }
    cw_matmul_many(p->e->pool, p->e->kn, p->mm, heads);
    choose_groups(s, heads, 1);
    cw_pool_run(p->e->pool, attend_latent, s, p->n_runs * s->n_groups);
    CW_TRY(quantised_on_the_way(s, &p->latent, s->w->v_b, err));
    cw_matmul_many(p->e->pool, p->e->kn, p->mm + heads, heads);
    return CW_OK;
}

static cw_status latent_attention(step *s, cw_err *err)
{
    cw_pass *p = s->p;
    const cw_model_config *c = &p->e->config;
    int width = c->kv_lora + c->d_rope;

    /* The projections that read the norm's output, under one barrier. */
    p->mm[0] = cw_act_product(&p->h, p->e->kn, p->e->pool, &s->w->kv_a, p->kv, width);
    p->mm[1] = c->q_lora ? cw_act_product(&p->h, p->e->kn, p->e->pool, &s->w->q_a, p->q_a.x, c->q_lora)
                         : cw_act_product(&p->h, p->e->kn, p->e->pool, &s->w->q, p->q, s->w->q.n);
    CW_TRY(cw_pass_check(&p->h, s->layer, err));
    cw_matmul_many(p->e->pool, p->e->kn, p->mm, 2);
    if (c->q_lora) {
        cw_act_begin(&p->q_a, p->n);
        cw_pool_run(p->e->pool, norm_q_a, s, p->n);
        CW_TRY(cw_pass_product(p, &p->q_a, &s->w->q, p->q, s->layer, err));
    }

    cw_act_begin(&p->q_nope, p->n);
    cw_pool_run(p->e->pool, place_latent_row, s, p->n);
    if (p->is_expanded) {
        cw_pass_attend_expanded(p, s->layer);
        return CW_OK;
    }
    return attend_absorbed(s, err);
}

/* --- grouped-query attention --- */

static void add_bias(float *x, const float *bias, int n)
{
    for (int i = 0; bias && i < n; i++) x[i] += bias[i];
}

/* Biases, rotation, and the new cache row: keys of all heads, then values. */
static void place_grouped_row(void *ctx, int row, int thread)
{
    (void)thread;
    const step *s = ctx;
    cw_pass *p = s->p;
    const cw_model_config *c = &p->e->config;
    int half = c->d_rope / 2, d_kv = c->n_kv_heads * c->d_head;
    const float *cos_row = p->cos + (int64_t)row * half, *sin_row = p->sin + (int64_t)row * half;
    float *q = p->q + (int64_t)row * c->n_heads * c->d_head, *k = p->kv + (int64_t)row * 2 * d_kv,
          *v = k + d_kv;
    add_bias(q, s->w->q_bias, c->n_heads * c->d_head);
    add_bias(k, s->w->k_bias, d_kv);
    add_bias(v, s->w->v_bias, d_kv);
    for (int h = 0; h < c->n_heads; h++)
        cw_rope_apply(q + h * c->d_head, cos_row, sin_row, half, c->rope_halves);
    for (int h = 0; h < c->n_kv_heads; h++)
        cw_rope_apply(k + h * c->d_head, cos_row, sin_row, half, c->rope_halves);
    const cw_row *r = &p->rows[row];
    cw_kv_put(p->e->kn, &r->session->kv, cw_kv_row(&r->session->kv, s->layer, r->position), k);
}

static cw_status grouped_attention(step *s, cw_err *err)
{
    cw_pass *p = s->p;
    const cw_model_config *c = &p->e->config;
    int d_kv = c->n_kv_heads * c->d_head;
    p->mm[0] = cw_act_product(&p->h, p->e->kn, p->e->pool, &s->w->q, p->q, s->w->q.n);
    p->mm[1] = cw_act_product(&p->h, p->e->kn, p->e->pool, &s->w->k, p->kv, 2 * d_kv);
    p->mm[2] = cw_act_product(&p->h, p->e->kn, p->e->pool, &s->w->v, p->kv + d_kv, 2 * d_kv);
    CW_TRY(cw_pass_check(&p->h, s->layer, err));
    cw_matmul_many(p->e->pool, p->e->kn, p->mm, 3);
    cw_pool_run(p->e->pool, place_grouped_row, s, p->n);
    cw_act_begin(&p->o, p->n);
    choose_groups(s, c->n_heads / c->n_kv_heads, c->n_kv_heads);
    cw_pool_run(p->e->pool, attend_grouped, s, p->n_runs * c->n_kv_heads * s->n_groups);
    return CW_OK;
}

cw_status cw_pass_attention(cw_pass *p, int layer, cw_err *err)
{
    step s = {.p = p, .layer = layer, .w = &p->e->weights.layers[layer]};
    CW_TRY(p->e->config.mla ? latent_attention(&s, err) : grouped_attention(&s, err));
    return cw_pass_product(p, &p->o, &s.w->attn_out, p->y, layer, err);
}
