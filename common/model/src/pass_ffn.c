/* Feed-forward of a pass: dense or shared experts here, routed experts through the experts interface. */
#include "engine_internal.h"
#include "router.h"

#include <stdatomic.h>
#include <string.h>

typedef struct {
    cw_pass *p;
    const cw_layer_weights *w;
    cw_act *gated;
    atomic_bool bad;
} step;

static void gate_row(void *ctx, int row, int thread)
{
    (void)thread;
    step *s = ctx;
    int64_t n = s->w->gate.n, at = row * n;
    s->p->e->kn->silu_mul(s->p->gated.x + at, s->p->gated.x + at, s->p->up + at, n);
    if (s->w->down.info->quantised && !cw_act_quantise_part(s->gated, s->p->e->kn, row, 0, n))
        atomic_store(&s->bad, true);
}

static cw_status feed_forward(cw_pass *p, int layer, cw_err *err)
{
    step s = {.p = p, .w = &p->e->weights.layers[layer]};
    cw_act gated =
        p->gated; /* dense and shared widths differ: the same memory, as narrow as this layer needs */
    gated.k = s.w->gate.n;
    if (gated.k % 32 == 0) gated.a8 = cw_a8_view(&p->gated.a8, 0, p->gated.a8.m, 0, gated.k);

    cw_mm mm[2] = {cw_act_product(&p->h, p->e->kn, p->e->pool, &s.w->gate, gated.x, gated.k),
                   cw_act_product(&p->h, p->e->kn, p->e->pool, &s.w->up, p->up, gated.k)};
    CW_TRY(cw_pass_check(&p->h, layer, err));
    cw_matmul_many(p->e->pool, p->e->kn, mm, 2);
    cw_act_begin(&gated, p->n);
    s.gated = &gated;
    cw_pool_run(p->e->pool, gate_row, &s, p->n);
    if (s.w->down.info->quantised) cw_act_quantised(&gated, !atomic_load(&s.bad));
    return cw_pass_product(p, &gated, &s.w->down, p->y, layer, err);
}

cw_status cw_pass_feed_forward_begin(cw_pass *p, int layer, cw_err *err)
{
    p->ffn_later = p->waiting && p->e->takes_turns && p->n < CW_OVERLAP_ROWS / 2;
    return p->ffn_later ? CW_OK : feed_forward(p, layer, err);
}

cw_status cw_pass_feed_forward_end(cw_pass *p, int layer, cw_err *err)
{
    if (!p->ffn_later) return CW_OK;
    p->ffn_later = false;
    return feed_forward(p, layer, err);
}

static void route_row(void *ctx, int row, int thread)
{
    (void)thread;
    const step *s = ctx;
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
    step s = {.p = p, .w = &p->e->weights.layers[layer]};
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
