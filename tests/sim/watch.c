/* What must hold in a simulated cluster, looked at after every step; see cluster.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster_internal.h"
#include "cw/mem.h"

static sim_worker *worker_at(cluster *cl, int proc)
{
    int i = cl->worker_of[proc];
    return i ? &cl->w[i - 1] : NULL;
}

static sim_edge *edge_at(cluster *cl, int proc)
{
    int i = cl->edge_of[proc];
    return i ? &cl->e[i - 1] : NULL;
}

/* ---- epochs ---- */

static void see_epoch(cluster *cl, const char *who, int index, uint64_t *term, uint64_t *number, uint64_t t,
                      uint64_t n)
{
    if (t < *term || (t == *term && n < *number))
        sim_fail(cl->s, "%s %d saw epoch %llu.%llu after %llu.%llu", who, index, (unsigned long long)t,
                 (unsigned long long)n, (unsigned long long)*term, (unsigned long long)*number);
    const node_disk *d = &cl->co.n.disk;
    if (!cl->co.restored && (t > d->epoch_term || (t == d->epoch_term && n > d->number)))
        sim_fail(cl->s, "%s %d saw epoch %llu.%llu, which was never saved", who, index, (unsigned long long)t,
                 (unsigned long long)n);
    *term = t;
    *number = n;
}

static bool set_has(const Cw__Pb__LayerSet *s, uint32_t e)
{
    return e / 8 < s->experts.len && (s->experts.data[e / 8] >> (e % 8) & 1);
}

static void read_sets(size_t n, Cw__Pb__LayerSet **sets, bool out[LAYERS][EXPERTS])
{
    memset(out, 0, sizeof(bool[LAYERS][EXPERTS]));
    for (size_t i = 0; i < n; i++)
        for (uint32_t e = 0; e < EXPERTS; e++)
            if (sets[i]->layer < LAYERS && set_has(sets[i], e)) out[sets[i]->layer][e] = true;
}

/* Homes of a connected worker that has said what it holds are what it said; of an absent one, what they
 * were. */
void watch_epoch_saved(void *owner, const cw_row *row)
{
    cluster *cl = owner;
    Cw__Pb__Signed *s = cw__pb__signed__unpack(NULL, row->epoch.len, row->epoch.data);
    Cw__Pb__EpochBody *b = s ? cw__pb__epoch_body__unpack(NULL, s->body.len, s->body.data) : NULL;
    CW_ASSERT(b);
    bool homes[MAX_WORKERS + SPARE_WORKERS][LAYERS][EXPERTS] = {{{false}}};
    for (size_t i = 0; i < b->n_workers; i++) {
        int index = b->workers[i]->key.data[1] - 1;
        CW_ASSERT(index >= 0 && index < cl->n_workers + SPARE_WORKERS);
        read_sets(b->workers[i]->n_sets, b->workers[i]->sets, homes[index]);
        const told *t = &cl->w[index].told;
        for (uint32_t l = 0; l < LAYERS; l++)
            for (uint32_t e = 0; e < EXPERTS; e++) {
                bool may =
                    t->conn && t->heard ? t->ready[l][e] : cl->co.restored || cl->co.homes[index][l][e];
                if (homes[index][l][e] && !may)
                    sim_fail(cl->s,
                             "epoch %llu.%llu names worker %d for expert %u of layer %u, which is not ready",
                             (unsigned long long)row->term, (unsigned long long)row->number, index, e, l);
            }
    }
    memcpy(cl->co.homes, homes, sizeof homes);
    cl->counts->epochs++;
    sim_trace(cl->s, "epoch %llu.%llu", (unsigned long long)row->term, (unsigned long long)row->number);
    cw__pb__epoch_body__free_unpacked(b, NULL);
    cw__pb__signed__free_unpacked(s, NULL);
}

void watch_fenced(void *owner, const cw_key_row *row)
{
    cluster *cl = owner;
    sim_worker *w = &cl->w[row->key.b[1] - 1];
    if (!w->n.lies) sim_fail(cl->s, "worker %d is fenced and has never lied: %s", w->n.index, row->note);
    sim_trace(cl->s, "worker %d is fenced after %llu lies", w->n.index, (unsigned long long)w->n.lies);
    w->revoked = true;
    cl->counts->fenced++;
}

/* ---- answers ---- */

void watch_request_end(node_edge *n, node_request *q, const char *wrong)
{
    sim_edge *e = n->owner;
    cluster *cl = e->cl;
    e->asking--;
    if (q->r.status == CW_OK) cl->counts->requests++;
    if (wrong && (cl->quiet || !cl->liar || !cl->liar->n.lies))
        sim_fail(cl->s, "edge %d got a wrong row: %s", n->index, wrong);
    cl->counts->wrong += wrong != NULL;
    if (q->r.status != CW_OK && q->r.status != CW_STATUS_CANCELLED && !e->revoked)
        sim_fail(cl->s, "edge %d lost an answer: %s", n->index, q->r.text);
    edge_keep_asking(e);
}

/* ---- calls ---- */

enum { CALL_SENT = 1, CALL_ARRIVED, CALL_ANSWERED, CALL_CANCELLED };

static uint8_t *call_at(call_table *t, uint32_t conn, uint64_t id)
{
    if (2 * t->n >= t->cap) {
        call_table old = *t;
        t->cap = old.cap ? 2 * old.cap : 4096;
        t->keys = calloc(t->cap, sizeof *t->keys);
        t->state = calloc(t->cap, 1);
        CW_ASSERT(t->keys && t->state);
        for (size_t i = 0; i < old.cap; i++) {
            if (!old.state[i]) continue;
            size_t k = (old.keys[i] * 0x9e3779b97f4a7c15u) >> 20 & (t->cap - 1);
            while (t->state[k]) k = (k + 1) & (t->cap - 1);
            t->keys[k] = old.keys[i];
            t->state[k] = old.state[i];
        }
        free(old.keys);
        free(old.state);
    }
    uint64_t key = (uint64_t)conn << 40 ^ id;
    size_t k = (key * 0x9e3779b97f4a7c15u) >> 20 & (t->cap - 1);
    while (t->state[k] && t->keys[k] != key) k = (k + 1) & (t->cap - 1);
    if (!t->state[k]) {
        t->keys[k] = key;
        t->n++;
    }
    return &t->state[k];
}

static void call_sent(cluster *cl, int from, uint32_t conn, uint64_t id)
{
    uint8_t *state = call_at(&cl->calls, conn, id);
    if (*state)
        sim_fail(cl->s, "edge %d uses call id %llu twice", edge_at(cl, from)->n.index,
                 (unsigned long long)id);
    *state = CALL_SENT;
    cl->counts->calls++;
}

static void call_answered(cluster *cl, int from, uint32_t conn, uint64_t id)
{
    uint8_t *state = call_at(&cl->calls, conn, id);
    if (*state != CALL_ARRIVED)
        sim_fail(cl->s, "worker %d answers call %llu %s", worker_at(cl, from)->n.index,
                 (unsigned long long)id, *state == CALL_ANSWERED ? "twice" : "that it never got");
    *state = CALL_ANSWERED;
}

/* ---- moves ---- */

static void drop_sent(cluster *cl, int to, const Cw__Pb__Drop *d)
{
    sim_worker *w = worker_at(cl, to);
    bool sets[LAYERS][EXPERTS];
    read_sets(d->n_sets, d->sets, sets);
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t e = 0; e < EXPERTS; e++) {
            bool other = false;
            if (!sets[l][e]) continue;
            for (int i = 0; i < cl->n_workers + SPARE_WORKERS; i++)
                other = other || (&cl->w[i] != w && cl->w[i].told.conn && cl->w[i].told.ready[l][e]);
            if (!other)
                sim_fail(cl->s, "worker %d is told to drop expert %u of layer %u, which no other has ready",
                         w->n.index, e, l);
            w->told.ready[l][e] = false;
        }
    cl->counts->drops++;
}

static void holdings_arrive(cluster *cl, int from, uint32_t conn, const Cw__Pb__Holdings *h)
{
    sim_worker *w = worker_at(cl, from);
    w->told.conn = conn;
    w->told.heard = true;
    read_sets(h->n_ready, h->ready, w->told.ready);
}

/* ---- the watcher ---- */

static void sent(void *ctx, int from, int to, uint32_t conn, const cw_msg *m)
{
    cluster *cl = ctx;
    switch (m->env->body_case) {
    case CW__PB__ENVELOPE__BODY_CALL: call_sent(cl, from, conn, m->env->call->id); break;
    case CW__PB__ENVELOPE__BODY_REPLY: call_answered(cl, from, conn, m->env->reply->id); break;
    case CW__PB__ENVELOPE__BODY_CALL_FAIL: call_answered(cl, from, conn, m->env->call_fail->id); break;
    case CW__PB__ENVELOPE__BODY_DROP: drop_sent(cl, to, m->env->drop); break;
    default: break;
    }
}

static void arrives(void *ctx, int from, int to, uint32_t conn, const cw_msg *m)
{
    cluster *cl = ctx;
    (void)to;
    if (m->env->body_case == CW__PB__ENVELOPE__BODY_CALL)
        *call_at(&cl->calls, conn, m->env->call->id) = CALL_ARRIVED;
    else if (m->env->body_case == CW__PB__ENVELOPE__BODY_CANCEL)
        *call_at(&cl->calls, conn, m->env->cancel->id) = CALL_CANCELLED;
    else if (m->env->body_case == CW__PB__ENVELOPE__BODY_HOLDINGS)
        holdings_arrive(cl, from, conn, m->env->holdings);
}

static void ends(void *ctx, int proc, int peer, uint32_t conn)
{
    cluster *cl = ctx;
    if (proc != cl->co.h.proc) return;
    sim_worker *w = worker_at(cl, peer);
    if (w && w->told.conn == conn) memset(&w->told, 0, sizeof w->told);
}

static void step_worker(cluster *cl, sim_worker *w)
{
    sim *s = cl->s;
    if (w->n.n_here * (uint64_t)EXPERT_BYTES > w->n.memory)
        sim_fail(s, "worker %d holds %u experts, more than its memory", w->n.index, w->n.n_here);
    if (!sim_is_up(s, w->h.proc)) {
        if (!w->n.stopped || w->restart_planned) return;
        w->restart_planned = true;
        if (w->n.stop_code && !w->revoked) sim_fail(s, "worker %d gives up: %s", w->n.index, w->n.why);
        sim_at(s, sim_now(s) + w->restart_us, worker_restart, w, NULL);
        return;
    }
    cw_worker_facts f;
    if (w->n_steps++ % 4) return; /* the rest costs more and cannot come and go in between */
    cw_worker_get_facts(w->n.m, &f);
    if (f.memory_used > w->n.memory)
        sim_fail(s, "worker %d says it uses %llu bytes of %llu", w->n.index,
                 (unsigned long long)f.memory_used, (unsigned long long)w->n.memory);
    see_epoch(cl, "worker", w->n.index, &w->term, &w->number, f.epoch_term, f.epoch_number);
}

/* One hedge for twenty messages, ten saved up at most, a few to begin with; the last may take a message a
 * worker. */
static void watch_hedges(cluster *cl, sim_edge *e, const cw_edge_counts *n)
{
    uint64_t first = n->calls - n->resent - n->hedges - n->doubled;
    if (n->calls < e->calls) e->first = e->hedges = 0, e->allowed = 4; /* a new incarnation */
    e->allowed += (double)(first - e->first) / 20;
    if (e->allowed > 10.5) e->allowed = 10.5;
    e->allowed -= (double)(n->hedges - e->hedges);
    if (e->allowed < -cl->n_workers - SPARE_WORKERS)
        sim_fail(cl->s, "edge %d has hedged %llu times for %llu messages", e->n.index,
                 (unsigned long long)n->hedges, (unsigned long long)n->calls);
    e->first = first;
    e->calls = n->calls;
}

static void step_edge(cluster *cl, sim_edge *e)
{
    if (!sim_is_up(cl->s, e->h.proc)) return;
    cw_edge_facts f;
    cw_edge_get_facts(e->n.m, &f);
    see_epoch(cl, "edge", e->n.index, &e->term, &e->number, f.epoch_term, f.epoch_number);
    watch_hedges(cl, e, &f.n);
    e->hedges = f.n.hedges;
    if (e->n.refused && !e->revoked) sim_fail(cl->s, "edge %d is refused: %s", e->n.index, e->n.why);
}

static void step(void *ctx, int proc)
{
    cluster *cl = ctx;
    sim_worker *w = worker_at(cl, proc);
    sim_edge *e = w ? NULL : edge_at(cl, proc);
    if (w) step_worker(cl, w);
    if (e) step_edge(cl, e);
    if (proc == cl->co.h.proc && cl->co.n.died) {
        cl->co.n.died = false;
        sim_at(cl->s, sim_now(cl->s) + cl->co.down_us, coordinator_restart, &cl->co, NULL);
    }
}

sim_watcher watch_all(cluster *cl)
{
    return (sim_watcher){.ctx = cl, .step = step, .sent = sent, .arrives = arrives, .ends = ends};
}

void watch_forget_calls(cluster *cl)
{
    if (cl->calls.cap) memset(cl->calls.state, 0, cl->calls.cap);
    cl->calls.n = 0;
}

size_t watch_own_bytes(const cluster *cl)
{
    return cl->calls.cap * (sizeof *cl->calls.keys + sizeof *cl->calls.state);
}

void watch_free(cluster *cl)
{
    free(cl->calls.keys);
    free(cl->calls.state);
}

/* ---- at rest ---- */

void watch_progress(cluster *cl, const uint64_t *before, const char *when)
{
    for (int i = 0; i < cl->n_edges; i++) {
        cw_edge_facts f;
        if (cl->e[i].revoked || cl->e[i].n.done > before[i]) continue;
        cw_edge_get_facts(cl->e[i].n.m, &f);
        sim_fail(cl->s, "edge %d got no answer %s: %u of %u links up, %u of %u experts; %s", i, when, f.n_up,
                 f.n_workers, f.n_homes, f.n_experts, f.why);
    }
}

static const char *epoch_seen(const char *who, int index, uint64_t term, uint64_t number,
                              const cw_coordinator_status *st)
{
    static char text[160];
    if (term == st->term && number == st->number) return NULL;
    snprintf(text, sizeof text, "%s %d believes in epoch %llu.%llu, the newest is %llu.%llu", who, index,
             (unsigned long long)term, (unsigned long long)number, (unsigned long long)st->term,
             (unsigned long long)st->number);
    return text;
}

static const char *workers_ready(const cluster *cl, int n)
{
    static char text[CW_TEXT_MAX + 160];
    cw_coordinator_worker x;
    for (size_t i = 0; cw_coordinator_get_worker(cl->co.n.m, i, &x); i++) {
        const sim_worker *w = &cl->w[x.key.b[1] - 1];
        if (w->gone || w->revoked) continue;
        n--;
        if (x.live && (x.ready || x.drained) && !(x.drained && x.n_ready)) continue;
        snprintf(text, sizeof text, "worker %d is %s: %u of %u experts; %s", w->n.index,
                 x.live ? "not ready" : "not there", x.n_ready, x.n_wanted, x.trouble);
        return text;
    }
    return n ? "a worker is not known to the coordinator" : NULL;
}

/* When nothing has happened for long, everybody knows the coordinator's newest epoch, holds what it is to
 * hold, and whoever lied is out. NULL: so it is. */
const char *watch_disagreement(const cluster *cl)
{
    static char text[160];
    cw_coordinator_status st;
    const char *why = NULL;
    int n = 0;
    cw_coordinator_get_status(cl->co.n.m, &st);
    for (int i = 0; i < cl->n_workers + SPARE_WORKERS && !why; i++) {
        const sim_worker *w = &cl->w[i];
        if (!w->exists || w->gone || w->revoked) continue;
        n++;
        why = epoch_seen("worker", i, w->term, w->number, &st);
    }
    for (int i = 0; i < cl->n_edges && !why; i++)
        if (!cl->e[i].revoked) why = epoch_seen("edge", i, cl->e[i].term, cl->e[i].number, &st);
    const sim_worker *l = cl->liar;
    if (!why && l && l->n.lies && !l->revoked && !l->gone && !l->drained) {
        snprintf(text, sizeof text, "worker %d has lied %llu times and is not fenced", l->n.index,
                 (unsigned long long)l->n.lies);
        why = text;
    }
    return why ? why : workers_ready(cl, n);
}
