/* The plan of a flight's days, and one run; see flight.h. */
#include "flight_internal.h"

#include <stdio.h>
#include <stdlib.h>

static const int64_t boarding = 30 * SIM_S, evening = 5 * SIM_MINUTE, last_bound = 10 * SIM_MINUTE;

/* ---- visits ---- */

static void leave(void *ctx, void *arg)
{
    traveller *t = ctx;
    sim *s = t->f->cl->s;
    (void)arg;
    if (!t->visiting) return;
    if (t->asleep || !sim_is_up(s, t->e->h.proc) ||
        (t->left && sim_now(s) < t->visit_until + SIM_MINUTE && sim_chance(s, 70))) {
        sim_at(s, sim_now(s) + 5 * SIM_S, leave, t, NULL); /* the answer is awaited, mostly */
        return;
    }
    t->visiting = false;
    traveller_sleep(t);
}

static void question(void *ctx, void *arg)
{
    traveller *t = ctx;
    sim *s = t->f->cl->s;
    (void)arg;
    if (!t->asleep && sim_is_up(s, t->e->h.proc))
        traveller_ask(t, 2 + sim_below(s, sim_chance(s, 5) ? 800 : 80));
}

static void visit(traveller *t)
{
    sim *s = t->f->cl->s;
    if (t->visiting || t->f->quiet) return;
    t->visiting = true;
    t->f->counts->visits++;
    traveller_wake(t);
    t->visit_until = sim_now(s) + some_us(s, 10 * SIM_S, 80 * SIM_S);
    for (uint32_t n = 1 + sim_below(s, 3); n; n--)
        sim_at(s, some_us(s, sim_now(s), t->visit_until), question, t, NULL);
    if (sim_chance(s, 70)) weather_for(t, t->visit_until);
    sim_at(s, t->visit_until, leave, t, NULL);
}

static void life(void *ctx, void *arg)
{
    traveller *t = ctx;
    sim *s = t->f->cl->s;
    (void)arg;
    visit(t);
    if (sim_now(s) < t->f->end)
        sim_at(s, sim_now(s) + some_us(s, 10 * SIM_MINUTE, 12 * SIM_HOUR), life, t, NULL);
}

/* Never asleep: its ticket must be renewed, its links close and open. */
static void kiosk(void *ctx, void *arg)
{
    traveller *t = ctx;
    sim *s = t->f->cl->s;
    (void)arg;
    if (sim_now(s) >= t->f->end) return;
    if (!t->f->quiet) {
        question(t, NULL);
        if (sim_chance(s, 20)) weather_for(t, sim_now(s) + SIM_MINUTE);
    }
    sim_at(s, sim_now(s) + some_us(s, 10 * SIM_S, 20 * SIM_MINUTE), kiosk, t, NULL);
}

/* Everybody comes at once, and workers may be slow already. */
static void storm(void *ctx, void *arg)
{
    flight *f = ctx;
    (void)arg;
    if (sim_chance(f->cl->s, 60)) weather_slow(f, some_us(f->cl->s, SIM_S, 40 * SIM_S));
    for (int i = 0; i < f->plan.edges; i++)
        if (!f->t[i].kiosk && sim_chance(f->cl->s, 90)) visit(&f->t[i]);
}

static void every_second(void *ctx, void *arg)
{
    flight *f = ctx;
    (void)arg;
    flight_look(f);
    if (sim_now(f->cl->s) < f->end) sim_at(f->cl->s, sim_now(f->cl->s) + SIM_S, every_second, f, NULL);
}

static void join(void *ctx, void *arg)
{
    sim_worker *w = ctx;
    (void)arg;
    if (!w->exists) worker_start(w);
}

/* ---- one run ---- */

static void times(cw_coordinator_config *cfg)
{
    cfg->times.audit_ms = 60000; /* the simulation of faults has enough of them */
}

static void setup(flight *f, uint64_t seed, int trace)
{
    cluster *cl = f->cl;
    sim *s = cl->s = sim_new(seed, trace > 1);
    CW_ASSERT(cw_crypto_init(NULL) == CW_OK && cw_signer_new(&cl->co.n.signer, NULL) == CW_OK);
    CW_ASSERT(f->plan.edges + FLIGHT_WORKERS + SPARE_WORKERS + 1 <= SIM_MAX_PROCS && f->plan.edges > KIOSKS);
    cl->n_workers = FLIGHT_WORKERS;
    cl->n_edges = f->plan.edges;
    sim_set_latency(s, 500, 1000 + sim_below(s, 30000));
    cluster_found(cl);
    cl->co.n.configure = times;
    cl->w = calloc(FLIGHT_WORKERS + SPARE_WORKERS, sizeof *cl->w);
    cl->e = calloc((size_t)cl->n_edges, sizeof *cl->e);
    f->t = calloc((size_t)cl->n_edges, sizeof *f->t);
    CW_ASSERT(cl->w && cl->e && f->t);
    for (int i = 0; i < FLIGHT_WORKERS + SPARE_WORKERS; i++) cluster_add_worker(cl, i, MODEL_BYTES * 7 / 10);
    for (int i = 0; i < cl->n_edges; i++) {
        cluster_add_edge(cl, i);
        sim_edge *e = &cl->e[i];
        f->t[i] = (traveller){.f = f, .e = e, .kiosk = i < KIOSKS, .clock_stops = sim_chance(s, 50)};
        e->led = true;
        e->traveller = &f->t[i];
        e->n.gives_way = true;
        e->n.on_end = traveller_request_end;
        e->n.homeless_us = 0; /* the default */
        e->n.deadline_us = 30 * SIM_S;
    }
    coordinator_start(&cl->co);
    for (int i = 0; i < FLIGHT_WORKERS; i++) worker_start(&cl->w[i]);
    for (int i = 0; i < cl->n_edges; i++) traveller_start(&f->t[i]);
    f->n_awake = (uint32_t)cl->n_edges;
}

/* Everybody enrols; then most sleep. */
static void take_off(flight *f)
{
    sim *s = f->cl->s;
    int64_t now = sim_now(s);
    f->end = now + f->plan.hours * SIM_HOUR;
    f->day_us = f->plan.hours >= 48 ? SIM_DAY : f->plan.hours * SIM_HOUR / 4;
    for (int i = 0; i < f->plan.edges; i++) {
        traveller *t = &f->t[i];
        if (!t->kiosk) traveller_sleep(t);
        sim_at(s, now + some_us(s, 0, t->kiosk ? SIM_MINUTE : 6 * SIM_HOUR), t->kiosk ? kiosk : life, t,
               NULL);
    }
    f->counts->sleeps = 0;
    for (int64_t at = now; at < f->end; at += f->day_us)
        sim_at(s, at + some_us(s, 0, f->day_us * 2 / 3), storm, f, NULL);
    f->night_us = now + f->day_us;
    for (int i = FLIGHT_WORKERS; i < FLIGHT_WORKERS + SPARE_WORKERS; i++)
        sim_at(s, now + some_us(s, 0, f->day_us / 2), join, &f->cl->w[i], NULL);
    every_second(f, NULL);
    weather_faults(f);
}

static bool one_day(flight *f)
{
    sim *s = f->cl->s;
    if (!sim_run(s, f->night_us - evening, &f->watch)) return false;
    f->quiet = true;
    for (int i = 0; i < f->plan.edges; i++) {
        f->t[i].visiting = false;
        if (!f->t[i].kiosk) traveller_sleep(&f->t[i]);
    }
    if (!sim_run(s, f->night_us, &f->watch)) return false;
    flight_at_rest(f);
    watch_forget_calls(f->cl);
    f->quiet = false;
    f->night_us += f->day_us;
    if (f->night_us > f->end) f->night_us = f->end;
    return true;
}

/* Whoever was in mid-answer finishes it. */
static void land(flight *f)
{
    sim *s = f->cl->s;
    f->quiet = true;
    for (int i = 0; i < f->plan.edges; i++) traveller_wake(&f->t[i]);
    if (!sim_run(s, sim_now(s) + last_bound, &f->watch)) return;
    for (int i = 0; i < f->plan.edges; i++)
        if (f->t[i].left)
            sim_fail(s, "edge %d never ended an answer: %u tokens are missing", i, f->t[i].left);
    const char *why = watch_disagreement(f->cl);
    if (why) sim_fail(s, "after the landing %s", why);
}

static void fly(flight *f)
{
    sim *s = f->cl->s;
    sim_watcher w = flight_watch(f);
    f->watch = w;
    if (!sim_run(s, sim_now(s) + boarding, &f->watch)) return;
    take_off(f);
    while (sim_now(s) < f->end)
        if (!one_day(f)) return;
    land(f);
}

const char *flight_run(uint64_t seed, const flight_plan *plan, int trace, flight_counts *counts)
{
    static char failure[400];
    cluster_counts below = {0};
    flight f = {.cl = calloc(1, sizeof *f.cl),
                .plan = *plan,
                .counts = counts,
                .covered_since = INT64_MAX,
                .coordinator_since = INT64_MAX};
    CW_ASSERT(f.cl);
    f.cl->counts = &below;
    setup(&f, seed, trace);
    fly(&f);
    const char *why = sim_failure(f.cl->s);
    if (why) {
        snprintf(failure, sizeof failure, "%s", why);
        if (trace == 1) sim_print_trace(f.cl->s);
    }
    counts->events += sim_events(f.cl->s);
    counts->messages += sim_messages(f.cl->s);
    cluster_free(f.cl);
    free(f.t);
    return why ? failure : NULL;
}
