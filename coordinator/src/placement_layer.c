/*
 * Which experts of one layer each worker holds, given how many.
 *
 * What is there stays. What has no home, and what its homes cannot do in time, is dealt out heaviest first,
 * each to the worker with most time left per free place; what does not fit into that worker's time goes on to
 * the next one. Every step ends an expert or a worker, so balance takes fewer homes than experts and workers
 * together (McNaughton's wrap-around rule for machines that may share a job, here with a limit of places).
 * Then second homes, then replicas with the places left over.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"
#include "placement_internal.h"

/* ---- what is there
 * ----------------------------------------------------------------------------------------- */

/* Whose share has become smaller gives up what has most homes, of those what is asked for least. */
static void trim(pack *p, uint32_t w)
{
    while (p->room[w] < 0) {
        uint32_t best = NOBODY, best_class = 0;
        for (uint32_t e = pack_next(p, w, 0); e != NOBODY; e = pack_next(p, w, e + 1)) {
            uint32_t homes = p->n_home[e] < 2 ? 1 : p->n_home[e] + p->n_away[e],
                     class = homes < 3 ? homes : 3;
            if (best == NOBODY || class > best_class ||
                (class == best_class && load_per_home(p, e) < load_per_home(p, best)))
                best = e, best_class = class;
        }
        pack_remove(p, best, w);
    }
}

static uint64_t free_places(const pack *p)
{
    uint64_t n = 0;
    for (uint32_t w = 0; w < p->n_workers; w++)
        if (takes_part(p, w)) n += (uint64_t)p->room[w];
    return n;
}

/* Homes that are still missing to what every expert is to have. One that is away is no first home. */
static uint32_t owed_to(const pack *p, uint32_t e)
{
    uint32_t n = p->n_home[e] ? p->n_home[e] + p->n_away[e] : 0;
    return n < p->need ? p->need - n : 0;
}

static uint64_t owed(const pack *p)
{
    uint64_t n = 0;
    for (uint32_t e = 0; e < p->n_experts; e++) n += owed_to(p, e);
    return n;
}

/* ---- dealing out
 * ------------------------------------------------------------------------------------------- */

static const double slack = 0.01; /* above the time aimed at, rather than one more home */

/* What its homes cannot do in time t, taken off those experts first that have most load a home: few more
 * homes are then enough, and of experts that are alike those with one home get another before those with two.
 */
static void strip(pack *p, double t)
{
    for (uint32_t e = 0; e < p->n_experts; e++) p->rest[e] = load_per_home(p, e);
    if (!pack_rank(p->rest, p->n_experts, p->list))
        memcpy(p->list, p->by_load, p->n_experts * sizeof *p->list);
    for (uint32_t e = 0; e < p->n_experts; e++) p->rest[e] = p->n_home[e] ? 0 : p->load[e];
    for (uint32_t k = 0; k < p->n_experts; k++) {
        uint32_t e = p->list[k];
        for (uint32_t i = 0; i < p->n_home[e]; i++) {
            size_t at = (size_t)e * p->n_workers + i;
            uint32_t w = p->home[at];
            double over = p->busy[w] - p->speed[w] * t;
            if (over <= slack * p->speed[w] * t || p->x[at] <= 0) continue;
            double off = over < (double)p->x[at] ? over : (double)p->x[at];
            p->x[at] = (float)((double)p->x[at] - off);
            p->busy[w] -= off;
            p->rest[e] += off;
        }
    }
}

/* Who should take more of e: most time left per free place; of workers that are alike, those that have less
 * to do in the layers before. NOBODY: there is no place for it. */
static uint32_t pick(const pack *p, uint32_t n_open, uint32_t e, double t, double mean_total)
{
    uint32_t best = NOBODY;
    double best_key = 0;
    for (uint32_t i = 0; i < n_open; i++) {
        uint32_t w = p->open[i];
        double left = p->speed[w] * t - p->busy[w], key = left;
        if (left > 0) {
            double behind = mean_total > 0 ? 1 - p->total[w] / mean_total : 0;
            behind = behind < -1 ? -1 : behind > 1 ? 1 : behind;
            key = left / p->room[w] * (1 + 0.2 * behind);
        }
        if ((best == NOBODY || key > best_key) && !pack_has(p, e, w)) best = w, best_key = key;
    }
    return best;
}

static void note_home(pack *p, uint32_t e, uint32_t w)
{
    CW_ASSERT(p->n_log < p->log_cap);
    p->log[p->n_log].e = e;
    p->log[p->n_log++].w = w;
}

/* Deals out what has no home or no time; how long the layer takes then. `p->log` has the homes made. */
static double deal(pack *p, double t)
{
    uint64_t places = free_places(p), due = owed(p);
    uint32_t n_open = 0;
    double mean_total = 0;
    p->n_log = 0;
    for (uint32_t w = 0; w < p->n_workers; w++) {
        if (takes_part(p, w) && p->room[w] > 0) p->open[n_open++] = w;
        if (takes_part(p, w)) mean_total += p->total[w] / p->n_part;
    }
    strip(p, t);
    uint32_t *order = p->list;
    if (!pack_rank(p->rest, p->n_experts, order)) memcpy(order, p->by_load, p->n_experts * sizeof *order);
    for (uint32_t k = 0; k < p->n_experts; k++) {
        uint32_t e = order[k];
        while (p->rest[e] > 1e-6 * p->load[e] && n_open && p->n_log < p->log_cap) {
            bool first = p->n_home[e] == 0;
            if (!owed_to(p, e) && places <= due) break; /* the places left are for others */
            uint32_t w = pick(p, n_open, e, t, mean_total);
            if (w == NOBODY) break;
            double left = p->speed[w] * t - p->busy[w], take = p->rest[e], some = slack * p->speed[w] * t;
            if (!first && left <= some) break;
            due -= owed_to(p, e);
            pack_add(p, e, w);
            due += owed_to(p, e);
            places--;
            if (take > left + some && left > some && (owed_to(p, e) || places > due)) take = left;
            note_home(p, e, w);
            size_t at = (size_t)e * p->n_workers + p->n_home[e] - 1;
            p->x[at] = (float)take;
            p->busy[w] += take;
            p->rest[e] -= take;
            if (p->room[w] == 0)
                for (uint32_t i = 0; i < n_open; i++)
                    if (p->open[i] == w) {
                        memmove(&p->open[i], &p->open[i + 1], (--n_open - i) * sizeof *p->open);
                        break;
                    }
        }
    }
    for (uint32_t e = 0; e < p->n_experts; e++)
        if (p->rest[e] > 0) flow_divide(p, e); /* back to its homes */
    return flow_solve(p, t * (1 + slack), 3);
}

static void restart(pack *p)
{
    while (p->n_log) {
        p->n_log--;
        pack_remove(p, p->log[p->n_log].e, p->log[p->n_log].w);
    }
    memset(p->busy, 0, p->n_workers * sizeof *p->busy);
    for (uint32_t e = 0; e < p->n_experts; e++)
        for (uint32_t i = 0; i < p->n_home[e]; i++) p->x[(size_t)e * p->n_workers + i] = 0;
}

/* How many more homes each expert gets when `places` are given one by one to the greatest load a home. */
static uint64_t count_extra(pack *p, uint64_t places)
{
    /* As many as fit under a common load a home: bisection, then the remainder by rank. */
    double lo = 0, hi = p->top[1] * 2;
    for (int i = 0; i < 50; i++) {
        double mid = (lo + hi) / 2;
        uint64_t need = 0;
        for (uint32_t e = 0; e < p->n_experts; e++) {
            uint32_t have = p->n_home[e], most = p->n_part;
            double want = mid > 0 ? ceil(p->load[e] / mid) : (double)most;
            if (want < p->need) want = p->need;
            want -= p->n_away[e];
            uint32_t n = want > (double)most ? most : want > have ? (uint32_t)want : have;
            p->extra[e] = n - have;
            need += p->extra[e];
        }
        if (need > places)
            lo = mid;
        else
            hi = mid;
    }
    uint64_t used = 0;
    for (uint32_t e = 0; e < p->n_experts; e++) {
        double want = ceil(p->load[e] / hi);
        if (want < p->need) want = p->need;
        want -= p->n_away[e];
        uint32_t n = want > (double)p->n_part ? p->n_part
                     : want > p->n_home[e]    ? (uint32_t)want
                                              : p->n_home[e];
        p->extra[e] = n - p->n_home[e];
        used += p->extra[e];
    }
    for (uint32_t k = 0; k < p->n_experts && used < places; k++) {
        uint32_t e = p->by_load[k];
        if (p->n_home[e] + p->extra[e] < p->n_part) p->extra[e]++, used++;
    }
    return used;
}

/* The other way, better where a few experts have most of the load and places are few: first how many homes
 * each gets, then the heaviest home first onto the worker that is done with it first, equal parts for all
 * homes. */
static double deal_equal(pack *p)
{
    restart(p);
    flow_solve(p, 0, 3);
    count_extra(p, free_places(p));
    for (uint32_t e = 0; e < p->n_experts; e++)
        p->rest[e] = p->extra[e] ? p->load[e] / (p->n_home[e] + p->n_away[e] + p->extra[e]) : 0;
    if (!pack_rank(p->rest, p->n_experts, p->list)) return INFINITY;
    for (uint32_t k = 0; k < p->n_experts; k++) {
        uint32_t e = p->list[k];
        for (; p->extra[e] && p->n_log < p->log_cap; p->extra[e]--) {
            uint32_t best = NOBODY;
            for (uint32_t i = 0; i < p->n_part; i++) {
                uint32_t w = p->fast[i];
                if (p->room[w] <= 0 || pack_has(p, e, w)) continue;
                if (best == NOBODY ||
                    (p->busy[w] + p->rest[e]) * p->speed[best] < (p->busy[best] + p->rest[e]) * p->speed[w])
                    best = w;
            }
            if (best == NOBODY) break;
            pack_add(p, e, best);
            note_home(p, e, best);
            p->x[(size_t)e * p->n_workers + p->n_home[e] - 1] = (float)p->rest[e];
            p->busy[best] += p->rest[e];
        }
    }
    return owed(p) ? INFINITY : flow_solve(p, 0, 10);
}

static double deal_from_scratch(pack *p, double t)
{
    restart(p);
    flow_solve(p, t * (1 + slack), 8);
    return deal(p, t);
}

/* Aims at the bound, then at more, until more cannot come out better; the best of what came out. */
static void deal_out(pack *p, double bound)
{
    static const double aims[] = {1.0, 1.03, 1.07, 1.13, 1.2, 1.35, 1.6, 2.2};
    double best = INFINITY, best_aim = 1, last = 0;
    if (!free_places(p)) return;
    for (size_t i = 0; i < CW_ARRAY_LEN(aims) && bound * aims[i] < best; i++) {
        last = aims[i];
        double worst = deal_from_scratch(p, bound * last);
        if (worst < best) best = worst, best_aim = last;
        if (best <= bound * (1 + slack)) break;
    }
    if (best > bound * (1 + slack) && free_places(p) + p->n_log <= p->log_cap) {
        if (deal_equal(p) < best) return;
        last = 0;
    }
    if (last != best_aim) deal_from_scratch(p, bound * best_aim);
}

/* ---- homes that must be
 * ------------------------------------------------------------------------------------ */

static uint32_t least_busy_home(const pack *p, uint32_t f, uint32_t without)
{
    uint32_t best = NOBODY;
    for (uint32_t i = 0; i < p->n_home[f]; i++) {
        uint32_t w = p->home[(size_t)f * p->n_workers + i];
        if (!pack_has(p, without, w) && (best == NOBODY || time_of(p, w) < time_of(p, best))) best = w;
    }
    return best;
}

/* The expert that can best spare one of its homes to e, and which: one with more than `keep` homes, rather
 * one with more than two, of those what is asked for least. */
static uint32_t give_way(const pack *p, uint32_t e, uint32_t keep, uint32_t *from)
{
    uint32_t best = NOBODY, best_class = 0;
    for (uint32_t f = 0; f < p->n_experts; f++) {
        uint32_t homes = p->n_home[f] + p->n_away[f], class = homes < 3 ? homes : 3;
        if (f == e || homes <= keep || p->n_home[f] < 2 || (p->need < 2 && keep > 1)) continue;
        if (best != NOBODY &&
            (class < best_class || (class == best_class && load_per_home(p, f) >= load_per_home(p, best))))
            continue;
        uint32_t w = least_busy_home(p, f, e);
        if (w == NOBODY) continue;
        best = f;
        best_class = class;
        *from = w;
    }
    return best;
}

/* Where only workers that have e already have a place left: something moves there from one that has not. */
static bool shuffle(pack *p, uint32_t e)
{
    for (uint32_t u = 0; u < p->n_workers; u++) {
        if (!takes_part(p, u) || p->room[u] <= 0) continue;
        for (uint32_t v = 0; v < p->n_workers; v++) {
            if (v == u || !takes_part(p, v) || pack_has(p, e, v)) continue;
            for (uint32_t f = pack_next(p, v, 0); f != NOBODY; f = pack_next(p, v, f + 1)) {
                if (pack_has(p, f, u)) continue;
                pack_remove(p, f, v);
                pack_add(p, f, u);
                flow_divide(p, f);
                pack_add(p, e, v);
                flow_divide(p, e);
                return true;
            }
        }
    }
    return false;
}

/* Makes a home for e where there is room, or where something with more homes can give way. */
static bool house(pack *p, uint32_t e, uint32_t least_homes)
{
    uint32_t best = NOBODY;
    for (uint32_t w = 0; w < p->n_workers; w++) {
        if (!takes_part(p, w) || p->room[w] <= 0 || pack_has(p, e, w)) continue;
        bool better = best == NOBODY ||
                      (least_homes > 1 && p->room[w] != p->room[best] ? p->room[w] > p->room[best]
                                                                      : time_of(p, w) < time_of(p, best));
        if (better) best = w;
    }
    if (best == NOBODY) {
        uint32_t f = give_way(p, e, least_homes, &best);
        if (f == NOBODY) return shuffle(p, e);
        pack_remove(p, f, best);
        flow_divide(p, f);
    }
    pack_add(p, e, best);
    flow_divide(p, e);
    return true;
}

/* ---- replicas
 * ---------------------------------------------------------------------------------------------- */

/* Gives e its extra homes on the workers with most places left. */
static void spread(pack *p, uint32_t e, uint32_t *count /* [n_experts + 2] */)
{
    uint32_t n = 0, most = 0, want = p->extra[e];
    memset(count, 0, (p->n_experts + 2) * sizeof *count);
    for (uint32_t w = 0; w < p->n_workers; w++) {
        if (!takes_part(p, w) || p->room[w] <= 0 || pack_has(p, e, w)) continue;
        p->open[n++] = w;
        count[p->room[w]]++;
        if ((uint32_t)p->room[w] > most) most = (uint32_t)p->room[w];
    }
    uint32_t level = most, above = 0; /* all with more than `level` places, and some with just that */
    while (level > 0 && above + count[level] <= want) above += count[level--];
    uint32_t at_level = want - (above < want ? above : want);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t w = p->open[i];
        bool take = (uint32_t)p->room[w] > level;
        if (!take && level && (uint32_t)p->room[w] == level && at_level) take = true, at_level--;
        if (take) pack_add(p, e, w);
    }
}

/* What could not be spread, one by one. */
static void fill_rest(pack *p, uint32_t w)
{
    while (p->room[w] > 0) {
        uint32_t best = NOBODY;
        for (uint32_t e = 0; e < p->n_experts; e++)
            if (p->n_home[e] && !pack_has(p, e, w) &&
                (best == NOBODY || load_per_home(p, e) > load_per_home(p, best)))
                best = e;
        if (best == NOBODY) return;
        pack_add(p, best, w);
    }
}

static void fill(pack *p)
{
    uint64_t places = free_places(p);
    uint32_t *count = cw_calloc(p->n_experts + 2, sizeof *count);
    if (places && count && p->n_part) {
        count_extra(p, places);
        for (uint32_t e = 0; e < p->n_experts; e++) p->rest[e] = p->n_home[e] ? p->extra[e] : 0;
        if (pack_rank(p->rest, p->n_experts, p->list))
            for (uint32_t k = 0; k < p->n_experts && p->rest[p->list[k]] > 0; k++)
                spread(p, p->list[k], count);
        for (uint32_t w = 0; w < p->n_workers; w++)
            if (takes_part(p, w)) fill_rest(p, w);
    }
    cw_free(count);
}

void layer_place(pack *p, cw_placement_result *out)
{
    uint32_t *shares = p->shares;
    uint64_t all = 0;
    for (uint32_t e = 0; e < p->n_experts; e++) all += p->n_away[e];
    for (uint32_t w = 0; w < p->n_workers; w++) {
        shares[w] = p->share[(size_t)w * p->in->n_layers + p->layer];
        if (takes_part(p, w)) trim(p, w);
        if (takes_part(p, w)) all += shares[w];
    }
    p->need = all >= 2 * (uint64_t)p->n_experts ? 2 : 1;
    double bound = flow_bound(p, shares);
    p->n_log = 0;
    deal_out(p, bound);
    for (uint32_t k = 0; k < p->n_experts; k++)
        if (!p->n_home[p->by_load[k]]) (void)house(p, p->by_load[k], 1);
    for (uint32_t k = 0; k < p->n_experts; k++) {
        uint32_t e = p->by_load[k];
        if (p->n_home[e] && p->n_home[e] + p->n_away[e] < 2 && p->n_part > 1 && !house(p, e, 2)) break;
    }
    fill(p);
    flow_solve(p, bound * 1.001, 20);
    if (p->budget) balance(p, bound);
    for (uint32_t e = 0; e < p->n_experts; e++)
        if (!p->n_home[e]) {
            out->n_unplaced++;
            out->missing_bytes += p->in->expert_bytes[p->layer];
        }
}
