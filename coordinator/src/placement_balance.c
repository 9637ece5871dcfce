/*
 * Better balance of a layer that is full: the busiest worker shares an expert with one that has time, which
 * gives something up for it that has homes enough elsewhere; or the two exchange an expert. Every step costs
 * loads, so only what gains is done and everything within a budget.
 */
#include <math.h>

#include "placement_internal.h"

static const double near_enough = 1.005; /* of the bound */
static const double gain = 0.999;        /* a step must bring the two workers below this part of the worse */
enum { TRIED_WORKERS = 8, TRIED_EXPERTS = 16, MAX_STEPS = 1024, IDLE_STEPS = 16 };

/* What w would give up: nothing of what e's going there is for, and nobody ends with fewer homes than e has.
 */
static uint32_t victim(const pack *p, uint32_t w, uint32_t e)
{
    uint32_t best = NOBODY;
    for (uint32_t f = pack_next(p, w, 0); f != NOBODY; f = pack_next(p, w, f + 1)) {
        uint32_t homes = p->n_home[f] + p->n_away[f];
        if (f == e || p->n_home[f] < 2 || (homes < 3 && homes <= p->n_home[e] + p->n_away[e])) continue;
        if (best == NOBODY || load_per_home(p, f) < load_per_home(p, best)) best = f;
    }
    return best;
}

static double part_of(const pack *p, uint32_t e, uint32_t w)
{
    return (double)p->x[(size_t)e * p->n_workers + pack_index(p, e, w)];
}

/* The k-th of the experts that keep w busy, heaviest first; NOBODY: there are no more. */
static uint32_t heavy(const pack *p, uint32_t w, uint32_t k)
{
    for (uint32_t i = 0; i < p->n_experts; i++) {
        uint32_t e = p->by_load[i];
        if (!pack_has(p, e, w)) continue;
        if (part_of(p, e, w) <= 0) continue;
        if (!k--) return e;
    }
    return NOBODY;
}

static double settle(pack *p, uint32_t e, uint32_t f, uint32_t from, uint32_t to)
{
    for (int i = 0; i < 3; i++) {
        flow_divide(p, f);
        flow_divide(p, e);
    }
    double a = time_of(p, from), b = time_of(p, to);
    return a > b ? a : b;
}

/* e, which keeps `from` busy, is held by `to` too from now on, instead of something there. */
static bool share(pack *p, uint32_t e, uint32_t from, uint32_t to, double worst)
{
    uint32_t f = victim(p, to, e);
    if (f == NOBODY) return false;
    pack_remove(p, f, to);
    pack_add(p, e, to);
    if (settle(p, e, f, from, to) < worst * gain && flow_worst(p, NULL) <= worst) return true;
    pack_remove(p, e, to);
    pack_add(p, f, to);
    settle(p, e, f, from, to);
    return false;
}

/* e for something lighter that `to` has and `from` has not. */
static bool exchange(pack *p, uint32_t e, uint32_t from, uint32_t to, double worst)
{
    uint32_t best = NOBODY;
    /* What must change places for both to end together. */
    double want =
        (p->busy[from] * p->speed[to] - p->busy[to] * p->speed[from]) / (p->speed[from] + p->speed[to]);
    double best_off = INFINITY, here = part_of(p, e, from);
    for (uint32_t f = pack_next(p, to, 0); f != NOBODY; f = pack_next(p, to, f + 1)) {
        double there = part_of(p, f, to), off = fabs(here - there - want);
        if (pack_has(p, f, from) || there >= here || off >= best_off) continue;
        best = f;
        best_off = off;
    }
    if (best == NOBODY) return false;
    pack_remove(p, e, from);
    pack_remove(p, best, to);
    pack_add(p, e, to);
    pack_add(p, best, from);
    if (settle(p, e, best, from, to) < worst * gain && flow_worst(p, NULL) <= worst) return true;
    pack_remove(p, e, to);
    pack_remove(p, best, from);
    pack_add(p, e, from);
    pack_add(p, best, to);
    settle(p, e, best, from, to);
    return false;
}

/* One step for the busiest worker; what it costs in experts, 0: nothing found. */
static uint32_t step(pack *p, uint32_t from, double worst, uint32_t may_load)
{
    uint32_t idle[TRIED_WORKERS], n = 0;
    for (uint32_t i = 0; i < p->n_part; i++) { /* the least busy, in order */
        uint32_t w = p->fast[i];
        if (w == from || time_of(p, w) > worst * 0.995) continue;
        if (n == TRIED_WORKERS && time_of(p, w) >= time_of(p, idle[n - 1])) continue;
        uint32_t k = n < TRIED_WORKERS ? n++ : n - 1;
        for (; k > 0 && time_of(p, idle[k - 1]) > time_of(p, w); k--) idle[k] = idle[k - 1];
        idle[k] = w;
    }
    for (uint32_t k = 0; k < TRIED_EXPERTS; k++) {
        uint32_t e = heavy(p, from, k);
        if (e == NOBODY) return 0;
        for (uint32_t i = 0; i < n; i++)
            if (!pack_has(p, e, idle[i]) && share(p, e, from, idle[i], worst)) return 1;
    }
    for (uint32_t k = 0; may_load > 1 && k < TRIED_EXPERTS; k++) {
        uint32_t e = heavy(p, from, k);
        if (e == NOBODY) return 0;
        for (uint32_t i = 0; i < n; i++)
            if (!pack_has(p, e, idle[i]) && exchange(p, e, from, idle[i], worst)) return 2;
    }
    return 0;
}

/* Workers that share a hot expert are equally late, and only one of them may have something to give away. */
static uint32_t step_of_any(pack *p, double worst, uint32_t may_load)
{
    for (uint32_t i = 0, tried = 0; i < p->n_part && tried < TRIED_WORKERS; i++) {
        uint32_t from = p->fast[i], n;
        if (time_of(p, from) < worst * 0.998) continue;
        tried++;
        if ((n = step(p, from, worst, may_load))) return n;
    }
    return 0;
}

void balance(pack *p, double bound)
{
    uint64_t bytes = p->in->expert_bytes[p->layer];
    double worst = flow_worst(p, NULL);
    for (int i = 0, idle = 0; i < MAX_STEPS && idle < IDLE_STEPS && p->budget >= bytes; i++) {
        if (worst <= bound * near_enough) return;
        uint32_t n = step_of_any(p, worst, p->budget >= 2 * bytes ? 2 : 1);
        if (!n) return;
        p->budget -= n * bytes;
        double now = flow_solve(p, bound, 2);
        idle = now < worst * gain ? 0 : idle + 1;
        worst = now;
    }
}
