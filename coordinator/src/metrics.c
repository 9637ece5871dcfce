/* The coordinator's tables as metrics, in the machine's thread. Workers are labels, edges are not: those come
 * and go too often. */
#include "cw/metrics.h"

#include <stdio.h>

#include "cw/mem.h"
#include "shell_internal.h"

enum { EVERY_US = 1000000 };

static double worker_up(const cw_coordinator_worker *w)
{
    return w->live;
}
static double worker_held(const cw_coordinator_worker *w)
{
    return w->n_ready;
}
static double worker_wanted(const cw_coordinator_worker *w)
{
    return w->n_wanted;
}
static double worker_used(const cw_coordinator_worker *w)
{
    return (double)w->memory_used;
}
static double worker_memory(const cw_coordinator_worker *w)
{
    return (double)w->memory_bytes;
}
static double worker_calls(const cw_coordinator_worker *w)
{
    return (double)w->calls;
}
static double worker_rows(const cw_coordinator_worker *w)
{
    return (double)w->rows;
}
static double worker_fenced(const cw_coordinator_worker *w)
{
    return w->fenced;
}
static double worker_needed(const cw_coordinator_worker *w)
{
    return w->n_needed;
}
static double worker_audits(const cw_coordinator_worker *w)
{
    return (double)w->n_audits;
}

static const struct {
    const char *name, *type, *help;
    double (*get)(const cw_coordinator_worker *w);
} worker_rows_table[] = {
    {"causeway_worker_up", "gauge", "1 while the worker is connected", worker_up},
    {"causeway_worker_experts", "gauge", "experts it holds", worker_held},
    {"causeway_worker_experts_wanted", "gauge", "experts it shall hold", worker_wanted},
    {"causeway_worker_memory_used_bytes", "gauge", "of its experts", worker_used},
    {"causeway_worker_memory_bytes", "gauge", "that it lends", worker_memory},
    {"causeway_worker_calls_total", "counter", "calls it answered", worker_calls},
    {"causeway_worker_rows_total", "counter", "rows it computed", worker_rows},
    {"causeway_worker_audits_total", "counter", "its answers that were compared with the reference",
     worker_audits},
    {"causeway_worker_fenced", "gauge", "1 while it is kept out because it gave wrong rows", worker_fenced},
    {"causeway_worker_drain_experts", "gauge", "of a worker that is to go: experts without another home yet",
     worker_needed},
};

static void put_workers(cw_metrics_text *t, const cw_coordinator *c)
{
    cw_coordinator_worker w;
    for (size_t r = 0; r < CW_ARRAY_LEN(worker_rows_table); r++) {
        cw_metrics_head(t, worker_rows_table[r].name, worker_rows_table[r].type, worker_rows_table[r].help);
        for (size_t i = 0; cw_coordinator_get_worker(c, i, &w); i++) {
            char id[16]; /* a name is used again when a worker joins anew */
            snprintf(id, sizeof id, "%u", w.id);
            cw_metrics_line2(t, worker_rows_table[r].name, "worker", w.name, "id", id,
                             worker_rows_table[r].get(&w));
        }
    }
}

/* Sums over the edges that are connected: single edges come and go too often to be labels. */
static void put_edges(cw_metrics_text *t, const cw_coordinator *c)
{
    static const struct {
        const char *name, *help;
    } rows[] = {
        {"causeway_edges_tokens", "tokens that connected edges wrote since they started"},
        {"causeway_edges_calls", "calls they made"},
        {"causeway_edges_retries", "calls they sent again"},
        {"causeway_edges_hedges", "calls they sent to a second worker because the first was late"},
        {"causeway_edges_hedge_wins", "of these, answered first by the second worker"},
        {"causeway_edges_mismatches", "answers they saw that differed from another worker's"},
        {"causeway_edges_fallback_tokens", "tokens their fallback model wrote"},
        {"causeway_edges_busy", "calls that a worker asked them to send later"},
    };
    uint64_t sum[CW_ARRAY_LEN(rows)] = {0};
    cw_coordinator_edge e;
    for (size_t i = 0; cw_coordinator_get_edge(c, i, &e); i++) {
        const uint64_t v[] = {e.tokens,     e.calls,      e.retries,         e.hedges,
                              e.hedge_wins, e.mismatches, e.fallback_tokens, e.busy};
        for (size_t k = 0; k < CW_ARRAY_LEN(rows); k++) sum[k] += v[k];
    }
    for (size_t k = 0; k < CW_ARRAY_LEN(rows); k++)
        cw_metrics_one(t, rows[k].name, "gauge", rows[k].help, (double)sum[k]);
}

void metrics_step(shell *s, int64_t now_us)
{
    if (!s->metrics || now_us < s->metrics_us) return;
    s->metrics_us = now_us + EVERY_US;
    cw_metrics_text t = {0};
    cw_coordinator_status st;
    cw_coordinator_get_status(s->machine, &st);
    const struct {
        const char *name, *help;
        double v;
    } rows[] = {
        {"causeway_epoch_term", "term of the newest epoch", (double)st.term},
        {"causeway_epoch_number", "number of the newest epoch", (double)st.number},
        {"causeway_workers_known", "workers that joined and were not revoked", st.n_workers},
        {"causeway_workers_live", "workers connected", st.n_live_workers},
        {"causeway_workers_ready", "workers that hold all they were asked to", st.n_ready_workers},
        {"causeway_edges_live", "edges connected", st.n_edges},
        {"causeway_experts", "experts of the model", st.n_experts},
        {"causeway_experts_covered", "of these, with a home in the newest epoch", st.n_covered},
        {"causeway_experts_min_homes", "homes of the expert that has fewest", st.min_homes},
        {"causeway_missing_bytes", "of experts for which no worker has memory", (double)st.missing_bytes},
        {"causeway_settling", "1 while nothing moves after a restart", st.settling},
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(rows); i++)
        cw_metrics_one(&t, rows[i].name, "gauge", rows[i].help, rows[i].v);
    put_workers(&t, s->machine);
    put_edges(&t, s->machine);
    cw_metrics_net(&t, s->control, "control");
    cw_metrics_publish(s->metrics, &t);
}
