/* What the coordinator is told of this worker's work: totals, how long it takes, and how many rows each
 * expert had since the last report, from which the placement learns which experts are popular. */
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"
#include "worker_internal.h"

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint32_t median_service(const cw_worker *w)
{
    uint32_t n = w->n_service < SERVICE_RING ? w->n_service : SERVICE_RING, v[SERVICE_RING];
    if (!n) return 0;
    memcpy(v, w->service_us, n * sizeof *v);
    qsort(v, n, sizeof *v, compare_u32);
    return v[n / 2];
}

void report_rows(cw_worker *w, const cw_job *job)
{
    for (uint32_t i = 0; i < job->n_experts; i++) {
        const cw_job_expert *x = &job->experts[i];
        uint32_t *rows = &w->expert_rows[(size_t)x->layer * w->n_experts + x->expert];
        *rows = x->n > UINT32_MAX - *rows ? UINT32_MAX : *rows + x->n;
    }
}

/* Memory of the loads of one report. */
typedef struct {
    Cw__Pb__LayerLoad *layers, **list;
    uint32_t *experts, *rows;
    size_t n_layers, n;
} loads;

static bool loads_new(const cw_worker *w, loads *l)
{
    size_t some = 0, total = (size_t)w->n_layers * w->n_experts;
    for (size_t i = 0; i < total; i++) some += w->expert_rows[i] != 0;
    if (some > LOADS_MAX) some = LOADS_MAX;
    *l = (loads){.layers = cw_calloc(w->n_layers, sizeof *l->layers),
                 .list = cw_calloc(w->n_layers, sizeof *l->list),
                 .experts = cw_calloc(some + 1, sizeof *l->experts),
                 .rows = cw_calloc(some + 1, sizeof *l->rows)};
    return l->layers && l->list && l->experts && l->rows;
}

static void loads_free(loads *l)
{
    cw_free(l->layers);
    cw_free(l->list);
    cw_free(l->experts);
    cw_free(l->rows);
}

/* Layer by layer from where the last report ended, as many as a message takes, each layer whole. The counts
 * that are reported begin anew; the others stay for the next report. */
static void loads_take(cw_worker *w, loads *l)
{
    bool taken[CW_WIRE_MAX_LAYERS] = {false};
    for (uint32_t k = 0; k < w->n_layers; k++) {
        uint32_t layer = (uint32_t)((w->expert_rows_scan + k) % w->n_layers), n = 0;
        uint32_t *rows = w->expert_rows + (size_t)layer * w->n_experts;
        for (uint32_t e = 0; e < w->n_experts; e++) n += rows[e] != 0;
        if (!n) continue;
        if (l->n + n > LOADS_MAX) {
            w->expert_rows_scan = layer;
            break;
        }
        taken[layer] = true;
        Cw__Pb__LayerLoad *x = &l->layers[layer];
        cw__pb__layer_load__init(x);
        x->layer = layer;
        x->experts = l->experts + l->n;
        x->rows = l->rows + l->n;
        x->n_experts = x->n_rows = n;
        for (uint32_t e = 0; e < w->n_experts; e++) {
            if (!rows[e]) continue;
            l->experts[l->n] = e;
            l->rows[l->n++] = rows[e];
            rows[e] = 0;
        }
    }
    for (uint32_t layer = 0; layer < w->n_layers; layer++)
        if (taken[layer]) l->list[l->n_layers++] = &l->layers[layer];
}

void report_send(cw_worker *w, cw_outbox *out)
{
    cw_worker_facts f;
    cw_worker_get_facts(w, &f);
    Cw__Pb__WorkerLoad m = CW__PB__WORKER_LOAD__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    m.calls = f.calls, m.rows = f.rows, m.bytes_in = f.bytes_in, m.bytes_out = f.bytes_out;
    m.queue_rows = f.queued_entries, m.edges = f.n_edges;
    m.service_us_p50 = median_service(w), m.wall_ms = (uint64_t)w->wall_ms, m.speed = f.speed;
    loads l = {0};
    if (w->model_ready && w->now_us - w->loads_sent_us >= LOADS_EVERY_US && loads_new(w, &l)) {
        loads_take(w, &l);
        w->loads_sent_us = w->now_us;
        m.n_loads = l.n_layers, m.loads = l.list;
    }
    env.body_case = CW__PB__ENVELOPE__BODY_WORKER_LOAD, env.worker_load = &m;
    cw_send(out, w->co.link, &env, NULL, 0);
    loads_free(&l);
}
