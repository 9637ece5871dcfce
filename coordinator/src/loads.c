/*
 * What is asked for how much: rows that workers computed for each expert, an exponential average over about
 * ten minutes, from the loads in WorkerLoad. Not saved: after a restart everything counts alike until enough
 * was measured, and then nothing moves for that alone.
 */
#include <math.h>

#include "coordinator_internal.h"
#include "cw/mem.h"

static const double half_life_s = 600;
/* MOST: of one expert in one report, which covers seconds; more than any machine computes. ENOUGH: of each
 * expert in the mean; with fewer, chance alone would look like skew. */
enum { MOST_ROWS = 10 * 1000 * 1000, ENOUGH_ROWS = 100 };

static void decay(cw_coordinator *c, int64_t now_us)
{
    double s = (double)(now_us - c->load_us) / 1e6;
    if (s < 1) return;
    float f = (float)exp2(-s / half_life_s);
    for (size_t i = 0; i < (size_t)c->cfg.n_layers * c->cfg.n_experts; i++) c->load[i] *= f;
    c->load_rows *= (double)f;
    c->load_us = now_us;
}

void loads_add(cw_coordinator *c, size_t n, Cw__Pb__LayerLoad *const *loads, int64_t now_us)
{
    if (!n) return;
    if (!c->load) {
        c->load = cw_calloc((size_t)c->cfg.n_layers * c->cfg.n_experts, sizeof *c->load);
        if (!c->load) return; /* placed as if all were alike */
        c->load_us = now_us;
    }
    decay(c, now_us);
    for (size_t i = 0; i < n; i++) {
        const Cw__Pb__LayerLoad *l = loads[i];
        if (l->layer >= c->cfg.n_layers || !c->expert_bytes[l->layer]) continue;
        for (size_t k = 0; k < l->n_experts && k < l->n_rows; k++) {
            if (l->experts[k] >= c->cfg.n_experts) continue;
            float rows = (float)(l->rows[k] < MOST_ROWS ? l->rows[k] : MOST_ROWS);
            c->load[(size_t)l->layer * c->cfg.n_experts + l->experts[k]] += rows;
            c->load_rows += (double)rows;
        }
    }
}

const float *loads_of(const cw_coordinator *c)
{
    return c->load && c->load_rows >= (double)ENOUGH_ROWS * c->n_model_experts ? c->load : NULL;
}
