/* The account of cw/phases.h. Only the engine's thread is here. */
#include "cw/clock.h"
#include "cw/phases.h"
#include "engine_internal.h"

#include <string.h>

const char *cw_phase_name(cw_phase p)
{
    static const char *const names[CW_PHASE_COUNT] = {"attention", "router",  "experts", "ffn",
                                                      "logits",    "network", "other"};
    CW_ASSERT((unsigned)p < CW_PHASE_COUNT);
    return names[p];
}

void cw_engine_phases_reset(cw_engine *e, bool on)
{
    e->clock = (cw_phase_clock){.on = on};
}

void cw_engine_phases_get(const cw_engine *e, cw_engine_phases *out)
{
    *out = e->clock.sum;
}

/* --- time --- */

void cw_phase_switch(cw_engine *e, cw_phase next)
{
    uint64_t now = cw_mono_ns();
    e->clock.sum.ns[e->clock.now] += now - e->clock.since;
    e->clock.now = next;
    e->clock.since = now;
}

void cw_phase_begin(cw_engine *e, int n_rows)
{
    if (!e->clock.on) return;
    e->clock.now = CW_PHASE_OTHER;
    e->clock.since = cw_mono_ns();
    e->clock.sum.passes++;
    e->clock.sum.rows += (uint64_t)n_rows;
}

void cw_phase_end(cw_engine *e)
{
    cw_phase_enter(e, CW_PHASE_OTHER);
}

cw_phase cw_phase_of_experts(const cw_engine *e)
{
    return e->experts == e->local ? CW_PHASE_EXPERTS : CW_PHASE_NETWORK;
}

/* --- bytes --- */

static uint64_t heads_bytes(const cw_engine *e, const cw_layer_weights *w)
{
    uint64_t sum = 0;
    for (int h = 0; e->config.mla && h < e->config.n_heads; h++) sum += w->k_b[h].bytes + w->v_b[h].bytes;
    return sum;
}

static void add_layer(const cw_engine *e, int layer, uint64_t *bytes)
{
    const cw_layer_weights *w = &e->weights.layers[layer];
    bytes[CW_PHASE_ATTENTION] += w->q_a.bytes + w->kv_a.bytes + w->q.bytes + w->k.bytes + w->v.bytes +
                                 w->attn_out.bytes + heads_bytes(e, w);
    bytes[CW_PHASE_ROUTER] += w->router.bytes;
    bytes[CW_PHASE_FFN] += w->gate.bytes + w->up.bytes + w->down.bytes;
}

void cw_phase_count_layer(cw_engine *e, int layer)
{
    add_layer(e, layer, e->clock.sum.weight_bytes);
}

void cw_phase_count_experts(cw_engine *e, const cw_expert_call *call)
{
    uint64_t seen[CW_MAX_EXPERTS / 64] = {0}, n = 0;
    for (int i = 0; i < call->n_entries; i++) {
        uint64_t *word = &seen[call->entries[i].expert / 64], bit = 1ull << call->entries[i].expert % 64;
        n += (*word & bit) == 0;
        *word |= bit;
    }
    e->clock.sum.expert_rows += (uint64_t)call->n_entries;
    e->clock.sum.experts_read += n;
    e->clock.sum.weight_bytes[cw_phase_of_experts(e)] += n * cw_expert_packed_bytes(&e->shapes[call->layer]);
}

void cw_engine_token_bytes(const cw_engine *e, uint64_t *bytes)
{
    const cw_model_config *c = &e->config;
    memset(bytes, 0, CW_PHASE_COUNT * sizeof *bytes);
    for (int l = 0; l < c->n_layers; l++) {
        add_layer(e, l, bytes);
        if (cw_layer_is_moe(c, l))
            bytes[cw_phase_of_experts(e)] += (uint64_t)c->n_used * cw_expert_packed_bytes(&e->shapes[l]);
    }
    bytes[CW_PHASE_LOGITS] = e->weights.out.bytes;
}
