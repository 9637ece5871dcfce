/* What the operator sees: the machine's tables as plain structs. Reads only. */
#include <stdio.h>
#include <string.h>

#include "coordinator_internal.h"
#include "cw/mem.h"

static bool is_ready(const member *m)
{
    const worker_state *w = m->worker;
    if (!is_counted(m)) return false;
    if (w->balancing) return !cw_expert_bits_empty(&w->held); /* it lacks nothing but a better balance */
    for (size_t i = 0; i < (size_t)w->wanted.n_layers * w->wanted.words; i++)
        if (w->wanted.bits[i] & ~w->held.bits[i]) return false;
    return !cw_expert_bits_empty(&w->wanted);
}

/* Homes of every expert in the newest epoch. */
static void count_homes(const cw_coordinator *c, cw_coordinator_status *out)
{
    out->min_homes = UINT32_MAX;
    for (uint32_t l = 0; l < c->cfg.n_layers; l++)
        for (uint32_t e = 0; c->expert_bytes[l] && e < c->cfg.n_experts; e++) {
            uint32_t n = 0;
            for (size_t i = 0; i < c->n_members; i++) {
                const worker_state *w = c->members[i]->worker;
                n += w && w->is_published && cw_expert_bits_has(&w->published, l, e);
            }
            out->n_covered += n > 0;
            if (n < out->min_homes) out->min_homes = n;
        }
    if (out->min_homes == UINT32_MAX) out->min_homes = 0;
}

void cw_coordinator_get_status(const cw_coordinator *c, cw_coordinator_status *out)
{
    *out = (cw_coordinator_status){.term = c->epoch ? c->epoch_term : c->term,
                                   .number = c->epoch ? c->number : 0,
                                   .n_experts = c->n_model_experts,
                                   .missing_bytes = c->missing_bytes,
                                   .settling = c->settle_until != 0};
    for (size_t i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        if (m->row.revoked) continue;
        out->n_workers += m->worker != NULL;
        out->n_live_workers += m->worker && is_live(m);
        out->n_ready_workers += m->worker && is_ready(m);
        out->n_fenced += m->row.fenced;
        out->n_leaving += is_departing(m);
        out->n_edges += !m->worker && is_live(m);
    }
    count_homes(c, out);
    /* Without workers everything lacks memory; that is not what an operator needs to be told. */
    snprintf(out->trouble, sizeof out->trouble, "%s",
             out->n_live_workers ? c->trouble
                                 : "no worker is connected: start one with causeway-worker --join");
}

bool cw_coordinator_get_worker(const cw_coordinator *c, size_t index, cw_coordinator_worker *out)
{
    for (size_t i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        const worker_state *w = m->worker;
        if (!w || m->row.revoked || index--) continue;
        *out = (cw_coordinator_worker){.key = m->row.key,
                                       .id = m->row.id,
                                       .live = is_live(m),
                                       .ready = is_ready(m),
                                       .local_model = w->local_model,
                                       .in_epoch = w->is_published,
                                       .drained = m->row.drained,
                                       .leaving = w->leave,
                                       .aside = w->aside,
                                       .fenced = m->row.fenced,
                                       .n_needed = w->n_needed,
                                       .needed_bytes = w->needed_bytes,
                                       .n_audits = w->n_audits,
                                       .memory_bytes = w->memory_bytes,
                                       .memory_used = w->memory_used,
                                       .threads = w->threads,
                                       .n_wanted = cw_expert_bits_count(&w->wanted),
                                       .n_ready = is_counted(m) ? cw_expert_bits_count(&w->held) : 0,
                                       .speed = w->speed,
                                       .calls = w->calls,
                                       .rows = w->rows,
                                       .bytes_in = w->bytes_in,
                                       .bytes_out = w->bytes_out};
        memcpy(out->name, m->row.name, sizeof out->name);
        memcpy(out->note, m->row.note, sizeof out->note);
        memcpy(out->address, w->address, sizeof out->address);
        memcpy(out->isa, w->isa, sizeof out->isa);
        memcpy(out->trouble, w->trouble, sizeof out->trouble);
        return true;
    }
    return false;
}

bool cw_coordinator_get_edge(const cw_coordinator *c, size_t index, cw_coordinator_edge *out)
{
    for (size_t i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        if (m->worker || !is_live(m) || index--) continue;
        *out = (cw_coordinator_edge){.key = m->row.key,
                                     .token_id = m->row.token_id,
                                     .tokens = m->edge.tokens,
                                     .calls = m->edge.calls,
                                     .retries = m->edge.retries,
                                     .hedges = m->edge.hedges,
                                     .hedge_wins = m->edge.hedge_wins,
                                     .mismatches = m->edge.mismatches,
                                     .fallback_tokens = m->edge.fallback_tokens,
                                     .busy = m->edge.busy,
                                     .reports = m->edge.reports,
                                     .unfounded = m->edge.unfounded};
        memcpy(out->name, m->row.name, sizeof out->name);
        memcpy(out->mode, m->edge.mode, sizeof out->mode);
        return true;
    }
    return false;
}

bool cw_coordinator_get_token(const cw_coordinator *c, size_t i, cw_token_row *out)
{
    if (i >= c->n_tokens) return false;
    *out = c->tokens[i];
    return true;
}

bool cw_coordinator_get_key(const cw_coordinator *c, size_t i, cw_key_row *out)
{
    if (i >= c->n_members) return false;
    *out = c->members[i]->row;
    return true;
}

cw_frame cw_coordinator_get_epoch(const cw_coordinator *c)
{
    if (!c->epoch) return (cw_frame){0};
    cw_frame f = shared_bytes_frame(c->epoch);
    f.release(f.owner); /* borrowed: the machine keeps its own reference */
    f.release = NULL;
    f.owner = NULL;
    return f;
}
