/*
 * Dividing a layer's load over the homes of its experts.
 *
 * Water-filling: the load of one expert is poured over its homes until those it reaches end at the same time.
 * Doing that for every expert again and again can only lower the sum of speed * time^2, whose minimum also
 * has the least longest time; experts with few homes come first, so that those with many fill the valleys and
 * few rounds are enough.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"
#include "placement_internal.h"

void flow_divide(pack *p, uint32_t e)
{
    uint32_t n = p->n_home[e];
    uint16_t *home = p->home + (size_t)e * p->n_workers;
    float *x = p->x + (size_t)e * p->n_workers;
    if (!n) return;
    double level = INFINITY, speed, busy;
    for (uint32_t i = 0; i < n; i++) {
        p->busy[home[i]] -= (double)x[i];
        if (p->busy[home[i]] < 0) p->busy[home[i]] = 0; /* roundings of float */
    }
    /* The level only falls as those above it are left out. */
    for (uint32_t left = UINT32_MAX;;) {
        uint32_t in = 0;
        speed = busy = 0;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t w = home[i];
            if (p->busy[w] >= level * p->speed[w]) continue;
            speed += p->speed[w];
            busy += p->busy[w];
            in++;
        }
        if (!in || in >= left) break; /* roundings must not let one in again */
        left = in;
        level = (p->load[e] + busy) / speed;
    }
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        double take = level * p->speed[home[i]] - p->busy[home[i]];
        x[i] = take > 0 ? (float)take : 0.0f;
        sum += (double)x[i];
    }
    double scale = sum > 0 ? p->load[e] / sum : 0;
    for (uint32_t i = 0; i < n; i++) {
        x[i] = sum > 0 ? (float)((double)x[i] * scale) : (float)(p->load[e] / n);
        p->busy[home[i]] += (double)x[i];
    }
}

double flow_worst(const pack *p, uint32_t *who)
{
    double worst = 0;
    uint32_t w = NOBODY;
    for (uint32_t i = 0; i < p->n_part; i++)
        if (w == NOBODY || time_of(p, p->fast[i]) > worst) {
            w = p->fast[i];
            worst = time_of(p, w);
        }
    if (who) *who = w;
    return worst;
}

double flow_solve(pack *p, double enough, int rounds)
{
    uint32_t most = 0;
    for (uint32_t e = 0; e < p->n_experts; e++)
        if (p->n_home[e] > most) most = p->n_home[e];
    /* By homes ascending, then load descending: a bucket sort that is stable over by_load. */
    uint32_t *order = p->list, n = 0;
    uint32_t few = most < 8 ? most : 8;
    for (uint32_t h = 1; h <= few; h++)
        for (uint32_t k = 0; k < p->n_experts; k++)
            if (p->n_home[p->by_load[k]] == h) order[n++] = p->by_load[k];
    for (uint32_t k = 0; k < p->n_experts; k++)
        if (p->n_home[p->by_load[k]] > few) order[n++] = p->by_load[k];
    double worst = flow_worst(p, NULL);
    for (int r = 0; r < rounds; r++) {
        for (uint32_t k = 0; k < n; k++) flow_divide(p, order[k]);
        double now = flow_worst(p, NULL);
        if (now <= enough || (r > 1 && now > worst * 0.9995)) return now;
        worst = now;
    }
    return worst;
}

/* ---- bounds
 * ------------------------------------------------------------------------------------------------- */

uint64_t flow_homes_needed(const pack *p, double t)
{
    uint64_t n = 0;
    uint32_t r = 0;
    double reach = 0; /* of the r fastest in t; experts come lightest first, so r only rises */
    for (uint32_t k = p->n_experts; k-- > 0;) {
        while (r < p->n_part && reach < p->load[p->by_load[k]] * (1 - 1e-12))
            reach += p->speed[p->fast[r++]] * t;
        if (reach < p->load[p->by_load[k]] * (1 - 1e-9)) return UINT64_MAX;
        n += r > p->need ? r : p->need;
    }
    return n;
}

/* The time in which workers that may hold so many experts can take all of the load, each limited by the
 * heaviest experts that it can hold. */
static double bound_by_reach(pack *p, const uint32_t *shares)
{
    double fixed = 0, speed = 0, t = 0;
    for (uint32_t w = 0; w < p->n_workers; w++)
        if (takes_part(p, w)) speed += p->speed[w];
    if (!(speed > 0)) return INFINITY;
    t = p->sum / speed;
    /* Whoever is full at time t is full later too: leaving them out raises t until nobody new is full. */
    for (uint32_t left = UINT32_MAX;;) {
        uint32_t in = 0;
        fixed = speed = 0;
        for (uint32_t w = 0; w < p->n_workers; w++) {
            if (!takes_part(p, w)) continue;
            double most = p->top[shares && shares[w] < p->n_experts ? shares[w] : p->n_experts];
            if (most <= p->speed[w] * t) {
                fixed += most;
            } else {
                speed += p->speed[w];
                in++;
            }
        }
        if (in >= left || !in) break;
        left = in;
        t = (p->sum - fixed) / speed;
    }
    return t;
}

double flow_bound(pack *p, const uint32_t *shares)
{
    double lo = bound_by_reach(p, shares), hi = lo;
    if (!shares || !isfinite(lo)) return lo;
    uint64_t homes = 0;
    for (uint32_t w = 0; w < p->n_workers; w++) homes += takes_part(p, w) ? shares[w] : 0;
    if (homes < p->n_experts) return lo; /* not even covered */
    if (flow_homes_needed(p, lo) <= homes) return lo;
    for (int i = 0; i < 60 && flow_homes_needed(p, hi) > homes; i++) hi *= 2;
    for (int i = 0; i < 30; i++) {
        double mid = (lo + hi) / 2;
        if (flow_homes_needed(p, mid) <= homes)
            hi = mid;
        else
            lo = mid;
    }
    return lo;
}

/* ---- measuring
 * ---------------------------------------------------------------------------------------------- */

bool cw_placement_measure(const cw_placement_input *in, const cw_expert_bits *sets, cw_placement_times *out)
{
    pack p;
    /* Only read: nothing adds or removes a home here. */
    bool ok = pack_new(&p, in, (cw_expert_bits *)sets);
    if (ok) {
        *out = (cw_placement_times){0};
        for (uint32_t l = 0; l < in->n_layers; l++) {
            if (!in->expert_bytes[l]) continue;
            pack_layer(&p, l);
            double bound = flow_bound(&p, NULL), bare = 0;
            out->layer_time += flow_solve(&p, bound * 1.005, 100) * (double)in->expert_bytes[l];
            for (uint32_t e = 0; e < p.n_experts; e++)
                if (!p.n_home[e]) bare = INFINITY;
            out->layer_time += bare;
            for (uint32_t w = 0; w < p.n_workers; w++)
                if (takes_part(&p, w)) p.total[w] += time_of(&p, w) * (double)in->expert_bytes[l] + bare;
        }
        for (uint32_t w = 0; w < p.n_workers; w++)
            if (p.total[w] > out->worst_total) out->worst_total = p.total[w];
    }
    pack_free(&p);
    return ok;
}

typedef struct {
    double load; /* rows times bytes */
    uint64_t bytes;
    double density;
} item;

static int by_density(const void *a, const void *b)
{
    const item *x = a, *y = b;
    return (x->density < y->density) - (x->density > y->density);
}

/* What of sorted items fits into `memory`, the last one in part. */
static double best_set(const item *items, size_t n, uint64_t memory)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        if (items[i].bytes > memory) return sum + items[i].load * ((double)memory / (double)items[i].bytes);
        memory -= items[i].bytes;
        sum += items[i].load;
    }
    return sum;
}

static double bound_total(const pack *p, const item *items, size_t n, double sum, double *reach)
{
    double t = 0;
    for (uint32_t w = 0; w < p->n_workers; w++)
        reach[w] = takes_part(p, w) ? best_set(items, n, p->in->workers[w].memory) : 0;
    for (uint32_t left = UINT32_MAX;;) {
        double fixed = 0, speed = 0;
        uint32_t in = 0;
        for (uint32_t w = 0; w < p->n_workers; w++) {
            if (!takes_part(p, w)) continue;
            if (left != UINT32_MAX && reach[w] <= p->speed[w] * t) {
                fixed += reach[w];
            } else {
                speed += p->speed[w];
                in++;
            }
        }
        if (!in || in >= left) return in || fixed >= sum * (1 - 1e-9) ? t : INFINITY;
        left = in;
        t = (sum - fixed) / speed;
    }
}

enum { GRID = 500 };
static const double grid_step = 1.01;

/* sum over l of min over t of (t + u * bytes * n_l(t)) - u * memory, with n_l taken at the upper end of each
 * step of the grid and t at its lower end. */
static double priced(const pack *p, const double *low, const uint64_t *needed, double u, double memory)
{
    double sum = -u * memory;
    for (uint32_t l = 0; l < p->in->n_layers; l++) {
        double b = (double)p->in->expert_bytes[l], best = INFINITY;
        if (p->in->expert_bytes[l] == 0) continue;
        double t = low[l];
        for (int k = 0; k < GRID; k++, t *= grid_step) {
            uint64_t n = needed[(size_t)l * GRID + k];
            if (n == UINT64_MAX) continue;
            double v = t * b + u * b * (double)n;
            if (v < best) best = v;
        }
        sum += best;
    }
    return sum;
}

static double best_price(const pack *p, const double *low, const uint64_t *needed, double memory,
                         double start)
{
    double best = start, scale = start / (memory > 0 ? memory : 1);
    double lo = scale * 1e-4, hi = scale * 1e4;
    for (int i = 0; i < 60; i++) { /* concave in u: golden section over its logarithm is good enough */
        double a = exp(log(lo) + (log(hi) - log(lo)) * 0.382), b = exp(log(lo) + (log(hi) - log(lo)) * 0.618);
        double fa = priced(p, low, needed, a, memory), fb = priced(p, low, needed, b, memory);
        if (fa > best) best = fa;
        if (fb > best) best = fb;
        if (fa > fb)
            hi = b;
        else
            lo = a;
    }
    return best;
}

/* Whether promise 3 holds for everything, whatever is lost to roundings. */
static bool twice_fits(const pack *p)
{
    uint64_t model = 0, largest = 0, room = 0;
    for (uint32_t l = 0; l < p->in->n_layers; l++) {
        model += p->in->expert_bytes[l] * p->n_experts;
        if (p->in->expert_bytes[l] > largest) largest = p->in->expert_bytes[l];
    }
    for (uint32_t w = 0; w < p->n_workers; w++) {
        uint64_t m = p->in->workers[w].memory, r = cw_placement_reserve(m, largest) + largest;
        if (takes_part(p, w)) room += m >= model ? model : m > r ? m - r : 0;
    }
    return room >= 2 * model;
}

bool cw_placement_bound(const cw_placement_input *in, cw_placement_times *out)
{
    pack p;
    size_t n = (size_t)in->n_layers * in->n_experts, k = 0;
    item *items = cw_calloc(n, sizeof *items);
    double *low = cw_calloc(in->n_layers, sizeof *low), *reach = cw_calloc(in->n_workers + 1, sizeof *reach);
    uint64_t *needed = cw_calloc((size_t)in->n_layers * GRID, sizeof *needed);
    uint32_t *most = cw_calloc(in->n_workers + 1, sizeof *most);
    bool ok = pack_new(&p, in, NULL);
    ok = ok && items && low && needed && most && reach;
    if (ok) {
        double sum = 0, memory = 0, layers = 0;
        for (uint32_t w = 0; w < in->n_workers; w++)
            if (takes_part(&p, w)) memory += (double)in->workers[w].memory;
        p.need = twice_fits(&p) ? 2 : 1;
        for (uint32_t l = 0; l < in->n_layers; l++) {
            uint64_t bytes = in->expert_bytes[l];
            if (!bytes) continue;
            pack_layer(&p, l);
            for (uint32_t w = 0; w < in->n_workers; w++) {
                uint64_t m = in->workers[w].memory / bytes;
                most[w] = m < in->n_experts ? (uint32_t)m : in->n_experts;
            }
            low[l] = flow_bound(&p, most);
            layers += low[l] * (double)bytes;
            double t = low[l] * grid_step;
            for (int g = 0; g < GRID && isfinite(low[l]); g++, t *= grid_step)
                needed[(size_t)l * GRID + g] = flow_homes_needed(&p, t);
            for (uint32_t e = 0; e < in->n_experts; e++) {
                items[k++] = (item){p.load[e] * (double)bytes, bytes, p.load[e]};
                sum += p.load[e] * (double)bytes;
            }
        }
        qsort(items, k, sizeof *items, by_density);
        out->worst_total = bound_total(&p, items, k, sum, reach);
        out->layer_time =
            isfinite(layers) && layers > 0 ? best_price(&p, low, needed, memory, layers) : layers;
    }
    pack_free(&p);
    cw_free(items);
    cw_free(low);
    cw_free(needed);
    cw_free(most);
    cw_free(reach);
    return ok;
}
