/* What happens to the links of a flight's edges, and to the machines behind them. See flight.h. */
#include "cw/mem.h"
#include "flight_internal.h"

int64_t some_us(sim *s, int64_t from, int64_t to)
{
    return from + (int64_t)(sim_random(s) % (uint64_t)(to - from));
}

/* Between instants and minutes, as many of each size. */
static int64_t some_length(sim *s)
{
    static const int64_t most[] = {300 * SIM_MS, 3 * SIM_S, 12 * SIM_S, 60 * SIM_S};
    return some_us(s, 20 * SIM_MS, most[sim_below(s, CW_ARRAY_LEN(most))]);
}

/* ---- an edge's link ---- */

static void is_bad(traveller *t, int64_t us)
{
    int64_t until = sim_now(t->f->cl->s) + us;
    if (until > t->bad_until) t->bad_until = until;
}

static void is_dead(traveller *t, int64_t us)
{
    int64_t now = sim_now(t->f->cl->s);
    if (now > t->dead_until) t->dead_from = now;
    if (now + us > t->dead_until) t->dead_until = now + us;
    is_bad(t, us);
}

static void unplug(traveller *t, int64_t us)
{
    sim_unplug(t->f->cl->s, t->e->h.proc, us);
    is_dead(t, us);
}

static void dark(traveller *t, int64_t us)
{
    sim *s = t->f->cl->s;
    uint32_t which = sim_below(s, 4);
    sim_dark(s, t->e->h.proc, which != 0, which != 1, us);
    is_dead(t, us);
}

static void flap(void *ctx, void *arg)
{
    traveller *t = ctx;
    sim *s = t->f->cl->s;
    intptr_t left = (intptr_t)arg;
    if (t->asleep) return;
    int64_t us = some_us(s, 100 * SIM_MS, 2500 * SIM_MS);
    if (sim_chance(s, 60))
        unplug(t, us);
    else
        dark(t, us);
    if (left) sim_at(s, sim_now(s) + us + some_us(s, 100 * SIM_MS, 4 * SIM_S), flap, t, (void *)(left - 1));
}

/* One of the workers only; the others hold everything too, mostly. */
static void partial(traveller *t, int64_t us)
{
    sim *s = t->f->cl->s;
    int w = t->f->cl->w[sim_below(s, FLIGHT_WORKERS)].h.proc, e = t->e->h.proc;
    if (sim_chance(s, 50)) sim_hole(s, w, e, us);
    sim_hole(s, e, w, us);
    is_bad(t, us + SIM_HEARTBEATS_US);
}

static void restart(void *ctx, void *arg)
{
    traveller *t = ctx;
    (void)arg;
    if (sim_is_up(t->f->cl->s, t->e->h.proc)) return;
    traveller_start(t);
    if (!t->visiting && !t->kiosk) traveller_sleep(t); /* the evening came first */
}

static void crash(traveller *t)
{
    sim *s = t->f->cl->s;
    sim_kill(s, t->e->h.proc);
    sim_at(s, sim_now(s) + some_us(s, 100 * SIM_MS, 5 * SIM_S), restart, t, NULL);
}

static void wake_up(void *ctx, void *arg)
{
    traveller *t = ctx;
    (void)arg;
    if (t->visiting) traveller_wake(t);
}

/* The lid is closed for a moment, perhaps in mid-answer, and the hardware's clock is not always right. */
static void nap(traveller *t)
{
    sim *s = t->f->cl->s;
    if (t->kiosk || t->asleep) return;
    traveller_sleep(t);
    if (sim_chance(s, 10)) sim_jump_wall(s, t->e->h.proc, some_us(s, -120000, 120000));
    sim_at(s,
           sim_now(s) +
               some_us(s, CW_TIDE_SLEPT_US + 200 * SIM_MS, sim_chance(s, 50) ? 6 * SIM_S : 300 * SIM_S),
           wake_up, t, NULL);
}

static void weather(void *ctx, void *arg)
{
    traveller *t = ctx;
    sim *s = t->f->cl->s;
    (void)arg;
    if (t->asleep || !sim_is_up(s, t->e->h.proc)) return;
    t->f->counts->weather++;
    uint32_t which = sim_below(s, 100);
    int64_t us = some_length(s);
    if (which < 15)
        unplug(t, 0);
    else if (which < 35)
        unplug(t, us);
    else if (which < 55)
        dark(t, us);
    else if (which < 63)
        partial(t, us);
    else if (which < 73)
        flap(t, (void *)(intptr_t)(2 + sim_below(s, 12)));
    else if (which < 83)
        sim_slow(s, t->e->h.proc, some_us(s, 1000, 400 * SIM_MS), sim_below(s, 4000), us);
    else if (which < 97)
        nap(t);
    else
        crash(t);
}

void weather_for(traveller *t, int64_t until)
{
    sim *s = t->f->cl->s;
    for (uint32_t n = 1 + sim_below(s, 5); n; n--) sim_at(s, some_us(s, sim_now(s), until), weather, t, NULL);
}

/* ---- the machines behind ---- */

static bool serves(const cluster *cl, const sim_worker *w)
{
    return w->exists && sim_is_up(cl->s, w->h.proc) && !sim_is_paused(cl->s, w->h.proc);
}

bool weather_covered(const flight *f)
{
    const cluster *cl = f->cl;
    for (uint32_t l = 1; l < LAYERS; l++)
        for (uint32_t x = 0; x < EXPERTS; x++) {
            bool held = false;
            for (int i = 0; i < cl->n_workers + SPARE_WORKERS && !held; i++)
                held =
                    cl->co.homes[i][l][x] && serves(cl, &cl->w[i]) && cw_worker_is_ready(cl->w[i].n.m, l, x);
            if (!held) return false;
        }
    return true;
}

static void look_again(void *ctx, void *arg)
{
    (void)arg;
    flight_look(ctx);
}

static void kill_coordinator(flight *f, bool for_long)
{
    cluster *cl = f->cl;
    int64_t now = sim_now(cl->s),
            us = for_long ? some_us(cl->s, SIM_HOUR, 4 * SIM_HOUR) : 3 * some_length(cl->s);
    if (now + us > f->night_us - 20 * SIM_MINUTE) us = 5 * SIM_S;
    sim_kill(cl->s, cl->co.h.proc);
    sim_at(cl->s, now + us, coordinator_restart, &cl->co, NULL);
}

static void stop_worker(flight *f, sim_worker *w)
{
    if (!serves(f->cl, w)) return;
    w->restart_us = some_us(f->cl->s, SIM_S, 20 * SIM_MINUTE);
    sim_after(f->cl->s, w->h.proc, 0, node_worker_stop, NULL);
}

static void kill_worker(flight *f, sim_worker *w)
{
    sim *s = f->cl->s;
    if (!serves(f->cl, w)) return;
    sim_kill(s, w->h.proc);
    sim_at(s, sim_now(s) + some_length(s), worker_restart, w, NULL);
}

void weather_slow(flight *f, int64_t us)
{
    const sim_worker *w = &f->cl->w[sim_below(f->cl->s, FLIGHT_WORKERS)];
    bool all = sim_chance(f->cl->s, 40);
    uint32_t factor = 2 + sim_below(f->cl->s, all || sim_chance(f->cl->s, 30) ? 60 : 1500);
    if (factor > 100 && sim_now(f->cl->s) + us > f->crawl_until) f->crawl_until = sim_now(f->cl->s) + us;
    for (int i = 0; i < f->cl->n_workers + SPARE_WORKERS; i++) {
        sim_worker *o = &f->cl->w[i];
        if (o != w && !all) continue;
        o->n.slow_until = sim_now(f->cl->s) + us;
        o->n.slow_factor = factor;
    }
}

static void fault(flight *f)
{
    cluster *cl = f->cl;
    sim *s = cl->s;
    sim_worker *w = &cl->w[sim_below(s, (uint32_t)cl->n_workers + SPARE_WORKERS)];
    int64_t us = some_length(s);
    uint32_t which = sim_below(s, 100);
    f->counts->faults++;
    if (which < 15)
        kill_worker(f, w);
    else if (which < 27)
        stop_worker(f, w);
    else if (which < 35 && serves(cl, w))
        sim_pause(s, w->h.proc, us);
    else if (which < 55)
        weather_slow(f, us);
    else if (which < 65 && sim_is_up(s, cl->co.h.proc) && !sim_is_paused(s, cl->co.h.proc))
        sim_after(s, cl->co.h.proc, 0, faults_drain, w);
    else if (which < 80)
        kill_coordinator(f, sim_chance(s, 15));
    else if (which < 90)
        sim_pause(s, cl->co.h.proc, us);
    else if (which < 95)
        sim_cut(s, cl->co.h.proc, w->h.proc);
    else
        sim_hole(s, w->h.proc, cl->co.h.proc, us);
    flight_look(f);
    sim_at(s, sim_now(s) + us, look_again, f, NULL);
}

static void next_fault(void *ctx, void *arg)
{
    flight *f = ctx;
    sim *s = f->cl->s;
    (void)arg;
    if (sim_now(s) > f->end) return;
    if (!f->quiet && sim_now(s) < f->night_us - 15 * SIM_MINUTE) fault(f);
    /* Troubles come together. */
    int64_t pause =
        sim_chance(s, 50) ? some_us(s, SIM_S, 30 * SIM_S) : some_us(s, 5 * SIM_MINUTE, 40 * SIM_MINUTE);
    sim_at(s, sim_now(s) + pause, next_fault, f, NULL);
}

void weather_faults(flight *f)
{
    next_fault(f, NULL);
}
