/* What must hold in a flight, looked at after every event; see flight.h. What the edges believe is held
 * against what the simulator knows: which links are good, and which experts are served. */
#include <malloc.h>
#include <string.h>

#include "flight_internal.h"

static const int64_t settled = 5 * SIM_S; /* of good conditions, before anything is claimed */
static const int64_t return_bound =
    16 * SIM_S; /* and the hold: pauses between attempts, refusals, handshakes */
static const int64_t words_bound = 2800 * SIM_MS; /* CW_TIDE_OPEN_US, a tick, a word of the fallback's */
static const int64_t glimpse = 100 * SIM_MS;
static const int64_t orphaned =
    30 * SIM_S; /* until workers know that the coordinator is gone, and honour tickets */

/* ---- the truth ---- */

void flight_look(flight *f)
{
    cluster *cl = f->cl;
    sim *s = cl->s;
    int64_t now = sim_now(s);
    bool there = sim_is_up(s, cl->co.h.proc) && !sim_is_paused(s, cl->co.h.proc);
    if (there && f->coordinator_since == INT64_MAX) f->coordinator_since = now;
    if (!there && f->coordinator_since != INT64_MAX) {
        f->coordinator_since = INT64_MAX;
        f->coordinator_gone = now;
    }
    if (!weather_covered(f))
        f->covered_since = INT64_MAX;
    else if (f->covered_since == INT64_MAX)
        f->covered_since = now;
}

static void later_of(int64_t *a, int64_t b)
{
    if (b > *a) *a = b;
}

/* Since when this edge could ask every expert if it tried; INT64_MAX: it cannot, or nobody knows. */
static int64_t good_since(const traveller *t)
{
    const flight *f = t->f;
    const node_disk *d = &f->cl->co.n.disk;
    int64_t since = f->covered_since;
    if (since == INT64_MAX || t->bad_until > sim_now(f->cl->s)) return INT64_MAX;
    later_of(&since, t->bad_until);
    later_of(&since, t->awake_since);
    later_of(&since, t->asked_us);
    if (f->coordinator_since != INT64_MAX) {
        later_of(&since, f->coordinator_since);
    } else {
        if (t->e->term != d->epoch_term || t->e->number != d->number) return INT64_MAX;
        later_of(&since, f->coordinator_gone + orphaned);
    }
    return since;
}

static bool good_for(const traveller *t, int64_t us)
{
    int64_t since = good_since(t);
    return since != INT64_MAX && sim_now(t->f->cl->s) - since > us;
}

/* ---- the tide of one edge ---- */

void flight_reset_sight(traveller *t)
{
    memset(t->up, 0, sizeof t->up);
    t->tide = CW_TIDE_ONLINE;
    t->hold_us = CW_TIDE_HOLD_US;
    t->was_lost = false;
    t->none_since = t->heard_us = awake_time(t);
    t->some_since = t->none_before = t->lost_at = 0;
}

static void lost(traveller *t, cw_tide_state before)
{
    sim *s = t->f->cl->s;
    int64_t awake = awake_time(t), own = sim_clock(s, t->e->h.proc);
    bool was_up = before != CW_TIDE_RETURNING;
    if (was_up) {
        t->f->counts->offline++;
        bool cut = t->none_since && awake - t->none_since >= CW_TIDE_CUT_US;
        bool silent = awake - t->heard_us >= CW_TIDE_SILENT_US;
        bool in_vain = t->lost_at && awake == t->lost_at; /* an expert was waited for */
        if (!cut && !silent && !in_vain)
            sim_fail(s, "edge %d goes offline %.3f s after a worker's last word", t->e->n.index,
                     (double)(awake - t->heard_us) / 1e6);
        if (good_for(t, settled))
            sim_fail(s, "edge %d goes offline although everything has been in reach for %.1f s",
                     t->e->n.index, (double)(sim_now(s) - good_since(t)) / 1e6);
    }
    bool lasted = !t->was_lost || (was_up && own - t->online_us > CW_TIDE_LASTED_US);
    t->hold_us = lasted ? CW_TIDE_HOLD_US : 2 * t->hold_us;
    if (t->hold_us > CW_TIDE_HOLD_MOST_US) t->hold_us = CW_TIDE_HOLD_MOST_US;
    t->was_lost = true;
}

static void tide_changed(traveller *t, cw_tide_state tide)
{
    sim *s = t->f->cl->s;
    cw_tide_state before = t->tide;
    int64_t awake = awake_time(t);
    t->tide = tide;
    if (tide == CW_TIDE_OFFLINE) lost(t, before);
    if (tide == CW_TIDE_RETURNING) t->state_us = awake;
    if (tide == CW_TIDE_ONLINE && before != CW_TIDE_SUSPECT) {
        t->online_us = sim_clock(s, t->e->h.proc);
        if (before != CW_TIDE_RETURNING || awake - t->state_us < t->hold_us)
            sim_fail(s, "edge %d believes in a return after %.3f s; it must hold for %.3f s", t->e->n.index,
                     (double)(awake - t->state_us) / 1e6, (double)t->hold_us / 1e6);
    }
}

/* While an answer is open: the main model within a bound where it can be reached, the fallback where not. */
static void look_at_answer(traveller *t)
{
    sim *s = t->f->cl->s;
    int64_t now = sim_now(s);
    bool up = t->tide == CW_TIDE_ONLINE || t->tide == CW_TIDE_SUSPECT;
    if (!up && good_for(t, t->hold_us + return_bound))
        sim_fail(s, "edge %d is %s although everything has been in reach for %.1f s", t->e->n.index,
                 cw_tide_name(t->tide), (double)(now - good_since(t)) / 1e6);
    if (now >= t->dead_until) return;
    int64_t since = t->dead_from;
    later_of(&since, t->said_us);
    later_of(&since, t->awake_since);
    if (now - since > words_bound)
        sim_fail(s, "edge %d says nothing for %.1f s on a dead link", t->e->n.index,
                 (double)(now - since) / 1e6);
}

void flight_changed(traveller *t)
{
    int64_t awake = awake_time(t), *oldest = &t->changed_us[t->n_changes++ % HOLD_CHANGES];
    if (!t->by_fallback && !t->timed_out && t->lost_at && awake - t->lost_at < CW_TIDE_HOLD_US)
        sim_fail(t->f->cl->s, "edge %d goes back %.3f s after it gave way", t->e->n.index,
                 (double)(awake - t->lost_at) / 1e6);
    if (t->n_changes > HOLD_CHANGES && awake - *oldest < SIM_MINUTE)
        sim_fail(t->f->cl->s, "edge %d changes its speaker %d times within %.1f s", t->e->n.index,
                 HOLD_CHANGES, (double)(awake - *oldest) / 1e6);
    *oldest = awake;
}

void flight_lost(traveller *t, const node_request *q)
{
    sim *s = t->f->cl->s;
    if (t->tide == CW_TIDE_ONLINE || t->tide == CW_TIDE_SUSPECT) t->lost_at = awake_time(t);
    t->timed_out = q->r.status == CW_STATUS_TIMEOUT;
    /* Who asks a worker that takes seconds for a call, with many others, may wait in vain. */
    bool crawls = sim_now(s) < t->f->crawl_until + t->e->n.deadline_us;
    if (q->r.status == CW_STATUS_TIMEOUT && crawls)
        t->f->counts->timeouts++;
    else if (q->r.status != CW_STATUS_UNREACHABLE)
        sim_fail(s, "edge %d: a request ends badly: %s", t->e->n.index, q->r.text);
    else if (good_for(t, settled))
        sim_fail(s, "edge %d: a request ends although everything has been in reach for %.1f s: %s",
                 t->e->n.index, (double)(sim_now(s) - good_since(t)) / 1e6, q->r.text);
}

/* ---- the watcher ---- */

static traveller *traveller_at(flight *f, int proc)
{
    int i = f->cl->edge_of[proc];
    return i ? &f->t[i - 1] : NULL;
}

static void step(void *ctx, int proc)
{
    flight *f = ctx;
    f->below.step(f->below.ctx, proc);
    traveller *t = traveller_at(f, proc);
    if (!t || !sim_is_up(f->cl->s, proc)) return;
    cw_tide_state tide = cw_edge_tide(t->e->n.m);
    if (tide != t->tide) tide_changed(t, tide);
    if (t->left) look_at_answer(t);
}

static void sent(void *ctx, int from, int to, uint32_t conn, const cw_msg *m)
{
    flight *f = ctx;
    f->below.sent(f->below.ctx, from, to, conn, m);
}

static void arrives(void *ctx, int from, int to, uint32_t conn, const cw_msg *m)
{
    flight *f = ctx;
    f->below.arrives(f->below.ctx, from, to, conn, m);
    traveller *t = traveller_at(f, to);
    if (!t) return;
    f->counts->renewed += m->env->body_case == CW__PB__ENVELOPE__BODY_TICKET;
    if (!f->cl->worker_of[from]) return;
    t->heard_us = awake_time(t);
    if (m->env->body_case != CW__PB__ENVELOPE__BODY_WELCOME) return;
    t->up[f->cl->worker_of[from] - 1] = conn;
    if (!t->none_since) return;
    t->none_before = t->none_since;
    t->none_since = 0;
    t->some_since = awake_time(t);
}

static void ends(void *ctx, int proc, int peer, uint32_t conn)
{
    flight *f = ctx;
    f->below.ends(f->below.ctx, proc, peer, conn);
    traveller *t = traveller_at(f, proc);
    int w = peer >= 0 ? f->cl->worker_of[peer] : 0;
    if (!t || !w || t->up[w - 1] != conn) return;
    t->up[w - 1] = 0;
    bool any = false;
    for (int i = 0; i < MAX_WORKERS; i++) any = any || t->up[i];
    if (any) return;
    /* The tide is looked at with every tick: what came and went in between was nothing to it. */
    t->none_since = awake_time(t) - t->some_since < glimpse ? t->none_before : awake_time(t);
}

sim_watcher flight_watch(flight *f)
{
    f->below = watch_all(f->cl);
    return (sim_watcher){.ctx = f, .step = step, .sent = sent, .arrives = arrives, .ends = ends};
}

/* ---- at night ---- */

static void look_at_memory(flight *f)
{
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    uint64_t bytes =
        mallinfo2().uordblks + mallinfo2().hblkhd - sim_own_bytes(f->cl->s) - watch_own_bytes(f->cl);
    /* Of a thousand edges one night differs from the next by up to 3 MB, up and down: whom everybody met that
     * day, and what storms made queues grow to. What is lost with every answer adds up to more in a week. */
    uint64_t slack = 262144 + 4096 * (uint64_t)f->plan.edges;
    f->n_nights++;
    sim_trace(f->cl->s, "night %d: %llu bytes in use", f->n_nights, (unsigned long long)bytes);
    if (f->n_nights <= 2) f->rest_bytes = bytes; /* by then everybody has met everybody */
    f->counts->rest_bytes = bytes;
    if (bytes > f->rest_bytes + slack)
        sim_fail(f->cl->s, "on night %d %llu bytes are in use, on the second it was %llu", f->n_nights,
                 (unsigned long long)bytes, (unsigned long long)f->rest_bytes);
#else
    f->n_nights++;
#endif
}

/* All but the kiosks sleep, and have for minutes. */
void flight_at_rest(flight *f)
{
    cluster *cl = f->cl;
    sim *s = cl->s;
    for (int i = 0; i < cl->n_workers + SPARE_WORKERS; i++) {
        cw_worker_facts w;
        if (!sim_is_up(s, cl->w[i].h.proc)) continue;
        cw_worker_get_facts(cl->w[i].n.m, &w);
        if (w.n_edges > KIOSKS || w.queued_calls || w.queue_bytes) /* a job may be an audit's */
            sim_fail(s, "worker %d at rest has %u edges and %u queued calls", i, w.n_edges, w.queued_calls);
    }
    if (sim_is_up(s, cl->co.h.proc)) {
        cw_coordinator_status st;
        cw_coordinator_get_status(cl->co.n.m, &st);
        if (st.n_edges > KIOSKS) sim_fail(s, "the coordinator at rest has %u edges", st.n_edges);
    }
    look_at_memory(f);
}
