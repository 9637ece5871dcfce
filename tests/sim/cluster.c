/* The processes of a simulated cluster, and one run; see cluster.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster_internal.h"
#include "cw/mem.h"

static const int64_t start_bound = 12 * SIM_S, faults_time = 20 * SIM_S, recovery_bound = 35 * SIM_S,
                     moves_bound = 60 * SIM_S, drain_bound = 12 * SIM_S;

cw_key key_of(int kind, int index)
{
    cw_key k = {{0}};
    k.b[0] = (uint8_t)kind;
    k.b[1] = (uint8_t)(index + 1);
    k.b[2] = (uint8_t)((index + 1) >> 8);
    return k;
}

/* ---- lives and deaths ---- */

void coordinator_start(sim_coordinator *c)
{
    if (node_coordinator_start(&c->n))
        sim_start(c->cl->s, c->h.proc, &c->n, c->cl->place.control, CW_PORT_CONTROL);
}

void coordinator_restart(void *ctx, void *arg)
{
    sim_coordinator *c = ctx;
    (void)arg;
    if (!sim_is_up(c->cl->s, c->h.proc)) coordinator_start(c);
}

void worker_start(sim_worker *w)
{
    sim *s = w->cl->s;
    w->exists = true;
    w->restart_planned = false;
    w->incarnation++;
    w->term = w->number = 0;
    w->n.jobs_in_flight = 1 + sim_below(s, 2);
    /* Ephemeral ports. */
    snprintf(w->n.address, sizeof w->n.address, "tcp://10.0.1.%d:%u", w->n.index + 1, 6000 + w->incarnation);
    node_worker_start(&w->n);
    sim_start(s, w->h.proc, &w->n, w->n.address, CW_PORT_DATA);
}

void worker_restart(void *ctx, void *arg)
{
    sim_worker *w = ctx;
    (void)arg;
    if (!w->gone && !w->revoked && !sim_is_up(w->cl->s, w->h.proc)) worker_start(w);
}

void edge_start(sim_edge *e)
{
    node_edge_start(&e->n);
    sim_start(e->cl->s, e->h.proc, &e->n, NULL, 0);
    e->asking = 0;
    e->calls = e->first = e->hedges = 0;
    e->allowed = 4;
    edge_keep_asking(e);
}

void edge_restart(void *ctx, void *arg)
{
    sim_edge *e = ctx;
    (void)arg;
    if (!sim_is_up(e->cl->s, e->h.proc)) edge_start(e);
}

/* ---- asking ---- */

static void cancel(void *ctx, void *arg, cw_outbox *out)
{
    node_edge *e = ctx;
    node_request *q = arg;
    if (!q->open) return;
    q->cancelled = true;
    cw_edge_cancel(e->m, &q->r, host_now(e->h), out);
}

static void ask(void *ctx, void *arg, cw_outbox *out)
{
    node_edge *n = ctx;
    sim_edge *e = arg;
    sim *s = e->cl->s;
    if (!e->cl->submitting) return;
    node_request *q = node_edge_ask(n, 0, sim_chance(s, 70) ? 1 : 2 + sim_below(s, MAX_ROWS - 1), out);
    if (q && sim_chance(s, 3)) sim_after(s, e->h.proc, sim_below(s, 3000), cancel, q);
}

void edge_keep_asking(sim_edge *e)
{
    sim *s = e->cl->s;
    if (e->led) return;
    bool burst = sim_now(s) < e->burst_until;
    while (e->asking < (burst ? 10 : 2)) {
        /* Busy while faults begin, then just enough to see that it goes on. */
        uint32_t pause_us = e->cl->counting_down ? 2000000 : burst ? 500 : 150000;
        e->asking++;
        sim_after(s, e->h.proc, 2000 + sim_below(s, pause_us), ask, e);
    }
}

/* ---- one run ---- */

static uint64_t memory_for(cluster *cl, bool big)
{
    static const uint32_t percent[] = {120, 100, 90, 70, 60, 55};
    sim *s = cl->s;
    if (big) return MODEL_BYTES;
    uint64_t part = (uint64_t)MODEL_BYTES * percent[sim_below(s, CW_ARRAY_LEN(percent))] / 100;
    /* Many workers: each needs less. Two of the least still hold everything once, with room for moves. */
    return cl->n_workers > 4 && sim_chance(s, 50) ? part * 4 / (uint64_t)cl->n_workers + 2 * EXPERT_BYTES
                                                  : part;
}

void cluster_add_worker(cluster *cl, int i, uint64_t memory)
{
    sim_worker *w = &cl->w[i];
    sim_proc p = {
        .side = CW_SIDE_WORKER, .key = key_of(2, i), .event = node_worker_event, .after = node_worker_after};
    snprintf(p.name, sizeof p.name, "worker%d", i);
    *w = (sim_worker){.cl = cl, .h = sim_host_new(cl->s, &p), .restart_us = SIM_S};
    cl->worker_of[w->h.proc] = (int16_t)(i + 1);
    w->n = (node_worker){.h = &w->h.base,
                         .place = &cl->place,
                         .index = i,
                         .memory = memory,
                         .load_fails_percent = 1,
                         .load_us = cl->slow_loads ? 3000000 : 20000,
                         .drain_ms = sim_below(cl->s, 3) * 2000,
                         .slow_factor = 1};
}

void cluster_add_edge(cluster *cl, int i)
{
    sim_edge *e = &cl->e[i];
    sim_proc p = {
        .side = CW_SIDE_EDGE, .key = key_of(3, i), .event = node_edge_event, .after = node_edge_after};
    snprintf(p.name, sizeof p.name, "edge%d", i);
    e->cl = cl;
    e->h = sim_host_new(cl->s, &p);
    cl->edge_of[e->h.proc] = (int16_t)(i + 1);
    e->n.h = &e->h.base;
    e->n.owner = e;
    e->n.place = &cl->place;
    e->n.index = i;
    e->n.homeless_us = e->n.deadline_us = 300 * SIM_S;
    e->n.double_every = sim_chance(cl->s, 50) ? 0 : 4 + sim_below(cl->s, 100);
    e->n.on_end = watch_request_end;
}

/* More moves end within a run. */
static void short_grace(cw_coordinator_config *cfg)
{
    cfg->times.drop_grace_ms = 500;
    cfg->times.replace_ms = 8000;
}

static void choose_size(cluster *cl)
{
    sim *s = cl->s;
    uint32_t size = sim_below(s, 100);
    cl->n_workers = size < 5    ? 1
                    : size < 80 ? 2 + (int)sim_below(s, 3)
                                : 5 + (int)sim_below(s, MAX_WORKERS - SPARE_WORKERS - 4);
    cl->n_edges = size % 10 < 8 ? 1 + (int)sim_below(s, 3) : 4 + (int)sim_below(s, MAX_EDGES - 3);
    if ((uint32_t)cl->n_workers > cl->counts->most_workers)
        cl->counts->most_workers = (uint32_t)cl->n_workers;
    if ((uint32_t)cl->n_edges > cl->counts->most_edges) cl->counts->most_edges = (uint32_t)cl->n_edges;
}

void cluster_found(cluster *cl)
{
    snprintf(cl->place.control, sizeof cl->place.control, "tcp://10.0.0.1:5570");
    snprintf(cl->place.store, sizeof cl->place.store, "tcp://10.0.0.1:5571");
    cl->place.coordinator_key = key_of(1, 0);
    memset(cl->place.token[0], 0x11, CW_TOKEN_BYTES);
    memset(cl->place.token[1], 0x22, CW_TOKEN_BYTES);
    cl->co.cl = cl;
    cl->co.h = sim_host_new(cl->s, &(sim_proc){.name = "coordinator",
                                               .side = CW_SIDE_COORDINATOR,
                                               .key = key_of(1, 0),
                                               .event = node_coordinator_event,
                                               .after = node_coordinator_after});
    cl->co.n.h = &cl->co.h.base;
    cl->co.n.owner = cl;
    cl->co.n.place = &cl->place;
    cl->co.n.seed = sim_random(cl->s);
    cl->co.n.on_epoch = watch_epoch_saved;
    cl->co.n.on_fenced = watch_fenced;
}

static void setup(cluster *cl, uint64_t seed, int trace)
{
    sim *s = cl->s = sim_new(seed, trace);
    CW_ASSERT(cw_crypto_init(NULL) == CW_OK && cw_signer_new(&cl->co.n.signer, NULL) == CW_OK);
    choose_size(cl);
    if (sim_chance(s, 40)) sim_set_latency(s, 5000, 60000); /* far apart: much is on its way at any moment */
    cluster_found(cl);
    cl->submitting = true;
    if (sim_chance(s, 30)) cl->co.n.ticket_ms = 10000;
    if (sim_chance(s, 50)) cl->co.n.configure = short_grace;
    cl->w = calloc((size_t)(cl->n_workers + SPARE_WORKERS), sizeof *cl->w);
    cl->e = calloc((size_t)cl->n_edges, sizeof *cl->e);
    CW_ASSERT(cl->w && cl->e);
    cl->slow_loads = sim_chance(s, 30);
    bool big = cl->n_workers == 1 || sim_chance(s, 50);
    for (int i = 0; i < cl->n_workers + SPARE_WORKERS; i++) cluster_add_worker(cl, i, memory_for(cl, big));
    for (int i = 0; i < cl->n_edges; i++) cluster_add_edge(cl, i);
    coordinator_start(&cl->co);
    for (int i = 0; i < cl->n_workers; i++) worker_start(&cl->w[i]);
    for (int i = 0; i < cl->n_edges; i++) edge_start(&cl->e[i]);
    if (sim_chance(s, 20)) thief_add(cl);
}

static void run(cluster *cl)
{
    sim *s = cl->s;
    sim_watcher watch = watch_all(cl);
    uint64_t before[MAX_EDGES] = {0};
    if (!sim_run(s, sim_now(s) + start_bound, &watch)) return;
    watch_progress(cl, before, "after the start");
    faults_plan(cl);
    if (!sim_run(s, sim_now(s) + faults_time, &watch))
        return; /* they begin within these, and may last longer */
    cl->co.n.die_before_save = cl->co.n.die_after_save = false;
    cl->counting_down = true;
    int64_t end = cl->faults_end > sim_now(s) ? cl->faults_end : sim_now(s);
    if (!sim_run(s, end + recovery_bound - 10 * SIM_S, &watch)) return;
    for (int i = 0; i < cl->n_edges; i++) before[i] = cl->e[i].n.done;
    cl->quiet = true;
    if (!sim_run(s, end + recovery_bound, &watch)) return;
    watch_progress(cl, before, "in 10 s after the recovery");
    /* Experts of a worker that is gone move after half a minute, and what is moved leaves a grace behind. */
    const char *why = watch_disagreement(cl);
    for (int64_t until = sim_now(s) + moves_bound; why && sim_now(s) < until; why = watch_disagreement(cl))
        if (!sim_run(s, sim_now(s) + 5 * SIM_S, &watch)) return;
    if (why) sim_fail(s, "%.0f s after the last fault %s", (double)(sim_now(s) - end) / 1e6, why);
    cl->submitting = false;
    if (!sim_run(s, sim_now(s) + drain_bound, &watch)) return;
    for (int i = 0; i < cl->n_edges; i++)
        if (!cl->e[i].revoked && node_edge_open(&cl->e[i].n))
            sim_fail(s, "edge %d: a request never ended", i);
}

void cluster_free(cluster *cl)
{
    cw_coordinator_free(&cl->co.n.m);
    for (int i = 0; i < cl->n_workers + SPARE_WORKERS; i++) cw_worker_free(&cl->w[i].n.m);
    for (int i = 0; i < cl->n_edges; i++) cw_edge_free(&cl->e[i].n.m);
    sim_free(cl->s);
    cw_signer_free(&cl->co.n.signer);
    watch_free(cl);
    free(cl->w);
    free(cl->e);
    free(cl);
}

const char *cluster_run(uint64_t seed, int trace, cluster_counts *counts)
{
    static char failure[400];
    cluster *cl = calloc(1, sizeof *cl);
    CW_ASSERT(cl);
    cl->counts = counts;
    setup(cl, seed, trace > 1);
    run(cl);
    const char *why = sim_failure(cl->s);
    if (why) {
        snprintf(failure, sizeof failure, "%s", why);
        if (trace == 1) sim_print_trace(cl->s);
    }
    counts->events += sim_events(cl->s);
    counts->messages += sim_messages(cl->s);
    counts->lost += sim_lost(cl->s);
    if (cl->liar) counts->lies += cl->liar->n.lies;
    for (int i = 0; i < cl->n_edges; i++) counts->hedges += cl->e[i].hedges;
    cluster_free(cl);
    return why ? failure : NULL;
}
