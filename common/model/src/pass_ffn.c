/* Feed-forward of a pass: dense or shared experts here, routed experts through the experts interface. */
#include "engine_internal.h"
#include "router.h"

#include <string.h>

static void gate_row(void *ctx, int row, int thread)
{
    (void)thread;
    cw_pass *p = ctx;
    cw_ffn *f = &p->ffn;
    int64_t n = f->gated.k, at = row * n;
    p->e->kn->silu_mul(f->gated.x + at, f->gated.x + at, p->up + at, n);
    if (f->mm[2].w->info->quantised && !cw_act_quantise_part(&f->gated, p->e->kn, row, 0, n))
        atomic_store(&f->bad, true);
}

/* gate and up, SiLU and product, down: three stages. */
static cw_status make_stages(cw_pass *p, int layer, cw_stage stages[3], cw_err *err)
{
    const cw_layer_weights *w = &p->e->weights.layers[layer];
    cw_ffn *f = &p->ffn;
    int threads = cw_pool_threads(p->e->pool);
    f->gated = p->gated; /* dense and shared widths differ: the same memory, as narrow as this layer needs */
    f->gated.k = w->gate.n;
    if (f->gated.k % 32 == 0) f->gated.a8 = cw_a8_view(&p->gated.a8, 0, p->gated.a8.m, 0, f->gated.k);
    atomic_store(&f->bad, false);
    f->mm[0] = cw_act_product(&p->h, p->e->kn, p->e->pool, &w->gate, f->gated.x, f->gated.k);
    f->mm[1] = cw_act_product(&p->h, p->e->kn, p->e->pool, &w->up, p->up, f->gated.k);
    CW_TRY(cw_pass_check(&p->h, layer, err));
    cw_act_begin(&f->gated, p->n);
    f->mm[2] = cw_act_product_later(&f->gated, &w->down, p->y, w->down.n);
    int wide = cw_mm_tasks(&f->job[0], p->e->kn, f->mm, 2, threads);
    int down = cw_mm_tasks(&f->job[1], p->e->kn, f->mm + 2, 1, threads);
    stages[0] = (cw_stage){cw_mm_task, &f->job[0], wide};
    stages[1] = (cw_stage){gate_row, p, p->n};
    stages[2] = (cw_stage){cw_mm_task, &f->job[1], down};
    return CW_OK;
}

static cw_status check_gated(cw_pass *p, int layer, cw_err *err)
{
    cw_act_quantised(&p->ffn.gated, !atomic_load(&p->ffn.bad));
    return cw_pass_check(&p->ffn.gated, layer, err);
}

cw_status cw_pass_feed_forward_begin(cw_pass *p, int layer, cw_err *err)
{
    cw_stage stages[3];
    CW_TRY(make_stages(p, layer, stages, err));
    if (p->waiting && p->e->filler && p->n < CW_OVERLAP_ROWS / 2) {
        p->filling = true;
        cw_filler_begin(p->e->filler, stages, 3);
        return CW_OK;
    }
    for (int i = 0; i < 3; i++) cw_pool_run(p->e->pool, stages[i].fn, stages[i].ctx, stages[i].n_tasks);
    return check_gated(p, layer, err);
}

cw_status cw_pass_feed_forward_end(cw_pass *p, int layer, cw_err *err)
{
    if (!p->filling) return CW_OK;
    p->filling = false;
    cw_filler_end(p->e->filler);
    return check_gated(p, layer, err);
}

typedef struct {
    cw_pass *p;
    const cw_layer_weights *w;
} route_step;

static void route_row(void *ctx, int row, int thread)
{
    (void)thread;
    const route_step *s = ctx;
    cw_pass *p = s->p;
    const cw_model_config *c = &p->e->config;
    p->row_bad[row] =
        !cw_router_select(p->e->kn, c, s->w->router_bias, p->scores + (int64_t)row * c->n_experts,
                          (uint32_t)row, p->entries + (int64_t)row * c->n_used);
}

/* Of a batch the oldest: a new conversation asks to be let in with its prompt, which is a call of its own. */
static uint32_t stream_of(const cw_pass *p)
{
    uint32_t oldest = p->rows[0].session->stream;
    for (int i = 1; i < p->n; i++)
        if (p->rows[i].session->stream < oldest) oldest = p->rows[i].session->stream;
    return oldest;
}

cw_status cw_pass_route(cw_pass *p, int layer, cw_err *err)
{
    route_step s = {.p = p, .w = &p->e->weights.layers[layer]};
    const cw_model_config *c = &p->e->config;
    CW_TRY(cw_pass_product(p, &p->h, &s.w->router, p->scores, layer, err));
    cw_pool_run(p->e->pool, route_row, &s, p->n);
    for (int i = 0; i < p->n; i++)
        if (p->row_bad[i])
            return CW_FAIL(err, CW_STATUS_NUMERIC, "layer %d: a router score is not finite", layer);

    cw_rows_kind kind = cw_expert_rows_kind(&p->e->shapes[layer]);
    if (kind == CW_ROWS_A8) {
        cw_act_quantise(&p->h, p->e->kn, p->e->pool);
        CW_TRY(cw_pass_check(&p->h, layer, err));
    }
    p->call = (cw_expert_call){.layer = layer,
                               .stream = stream_of(p),
                               .n_rows = p->n,
                               .d_model = c->d_model,
                               .kind = kind,
                               .a8 = &p->h.a8,
                               .x = p->h.x,
                               .n_entries = p->n * c->n_used,
                               .entries = p->entries,
                               .cancel = p->cancel};
    if (p->e->clock.on) cw_phase_count_experts(p->e, &p->call);
    cw_phase_enter(p->e, cw_phase_of_experts(p->e));
    CW_TRY(cw_experts_submit(p->e->experts, &p->call, &p->ticket, err));
    p->waiting = true;
    return CW_OK;
}

cw_status cw_pass_collect(cw_pass *p, int layer, cw_err *err)
{
    cw_expert_reply reply;
    p->waiting = false;
    cw_phase_enter(p->e, cw_phase_of_experts(p->e));
    CW_TRY(cw_experts_collect(p->e->experts, p->ticket, &reply, err));
    cw_phase_enter(p->e, CW_PHASE_EXPERTS);
    size_t n = (size_t)p->n * (size_t)p->call.d_model;
    if (reply.kind == CW_REPLY_COMBINED_F32) {
        memcpy(p->combined, reply.f32, n * sizeof *reply.f32);
        return CW_OK;
    }
    if (reply.kind != cw_expert_reply_kind(&p->e->shapes[layer]))
        return CW_FAIL(err, CW_STATUS_PROTOCOL, "layer %d: expert rows of the wrong precision", layer);
    cw_experts_combine(p->e->kn, p->e->pool, p->n, p->call.d_model, p->call.n_entries, p->call.entries,
                       &reply, p->combined);
    return CW_OK;
}
