/* What is known of the layer in work: loads, homes, places left; and the memory for it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"
#include "placement_internal.h"

static void set_speeds(pack *p)
{
    const cw_placement_input *in = p->in;
    double sum = 0;
    uint32_t known = 0;
    for (uint32_t w = 0; w < in->n_workers; w++) {
        float s = in->workers[w].speed;
        if (in->workers[w].part != CW_PLACEMENT_TAKES || !(s > 0) || !isfinite(s)) continue;
        sum += (double)s;
        known++;
    }
    for (uint32_t w = 0; w < in->n_workers; w++) {
        float s = in->workers[w].speed;
        if (in->workers[w].part != CW_PLACEMENT_TAKES) continue;
        p->speed[w] = s > 0 && isfinite(s) ? (double)s : known ? sum / known : 1;
        uint32_t k = p->n_part++; /* insertion, fastest first */
        for (; k > 0 && p->speed[p->fast[k - 1]] < p->speed[w]; k--) p->fast[k] = p->fast[k - 1];
        p->fast[k] = w;
    }
}

static double plain(float x)
{
    return x > 0 && isfinite(x) ? (double)x : 0;
}

bool pack_new(pack *p, const cw_placement_input *in, cw_expert_bits *sets)
{
    size_t w = in->n_workers + 1, e = in->n_experts, most = w > e ? w : e, n = 0;
    *p = (pack){.in = in, .sets = sets, .n_workers = in->n_workers, .n_experts = in->n_experts};
    p->speed = cw_calloc(w, sizeof *p->speed);
    p->total = cw_calloc(w, sizeof *p->total);
    p->share = cw_calloc(w * in->n_layers, sizeof *p->share);
    p->load = cw_calloc(e, sizeof *p->load);
    p->by_load = cw_calloc(e, sizeof *p->by_load);
    p->n_home = cw_calloc(e, sizeof *p->n_home);
    p->n_away = cw_calloc(e, sizeof *p->n_away);
    p->home = cw_calloc(e * w, sizeof *p->home);
    p->x = cw_calloc(e * w, sizeof *p->x);
    p->room = cw_calloc(w, sizeof *p->room);
    p->busy = cw_calloc(w, sizeof *p->busy);
    p->top = cw_calloc(e + 1, sizeof *p->top);
    p->fast = cw_calloc(w, sizeof *p->fast);
    p->open = cw_calloc(w, sizeof *p->open);
    p->list = cw_calloc(most, sizeof *p->list);
    p->shares = cw_calloc(w, sizeof *p->shares);
    p->rest = cw_calloc(e, sizeof *p->rest);
    p->extra = cw_calloc(e, sizeof *p->extra);
    p->log_cap = 2 * (w + e);
    p->log = cw_calloc(p->log_cap, sizeof *p->log);
    if (!p->speed || !p->total || !p->share || !p->load || !p->by_load || !p->n_home || !p->n_away ||
        !p->home || !p->x || !p->room || !p->busy || !p->top || !p->fast || !p->open || !p->list ||
        !p->shares || !p->rest || !p->extra || !p->log)
        return false;
    CW_ASSERT(in->n_workers <= UINT16_MAX);
    set_speeds(p);
    for (uint32_t l = 0; l < in->n_layers; l++)
        for (uint32_t k = 0; in->load && in->expert_bytes[l] && k < in->n_experts; k++, n++)
            p->mean += plain(in->load[(size_t)l * in->n_experts + k]);
    if (n) p->mean /= (double)n;
    return true;
}

void pack_free(pack *p)
{
    void *all[] = {p->speed, p->total,  p->share, p->load, p->by_load, p->n_home, p->n_away,
                   p->home,  p->x,      p->room,  p->busy, p->top,     p->fast,   p->open,
                   p->list,  p->shares, p->rest,  p->log,  p->extra};
    for (size_t i = 0; i < CW_ARRAY_LEN(all); i++) cw_free(all[i]);
}

typedef struct {
    double v;
    uint32_t i;
} ranked;

static int descending(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->v != y->v) return x->v > y->v ? -1 : 1;
    return x->i < y->i ? -1 : x->i > y->i;
}

bool pack_rank(const double *v, uint32_t n, uint32_t *out)
{
    ranked small[512], *r = n <= CW_ARRAY_LEN(small) ? small : cw_calloc(n, sizeof *r);
    if (!r) return false;
    for (uint32_t i = 0; i < n; i++) r[i] = (ranked){v[i], i};
    qsort(r, n, sizeof *r, descending);
    for (uint32_t i = 0; i < n; i++) out[i] = r[i].i;
    if (r != small) cw_free(r);
    return true;
}

/* Measured, and a little more: what nobody asks for now somebody may ask for next. */
static void set_load(pack *p)
{
    const float *load = p->in->load ? p->in->load + (size_t)p->layer * p->n_experts : NULL;
    double sum = 0;
    for (uint32_t e = 0; load && e < p->n_experts; e++) sum += plain(load[e]);
    double least = sum > 0 ? 0.01 * sum / p->n_experts : p->mean > 0 ? 0.01 * p->mean : 1;
    p->sum = 0;
    for (uint32_t e = 0; e < p->n_experts; e++) {
        p->load[e] = (load && sum > 0 ? 0.99 * plain(load[e]) : 0) + least;
        p->sum += p->load[e];
    }
    if (!pack_rank(p->load, p->n_experts, p->by_load)) /* out of memory costs quality only */
        for (uint32_t e = 0; e < p->n_experts; e++) p->by_load[e] = e;
    for (uint32_t k = 0; k < p->n_experts; k++) p->top[k + 1] = p->top[k] + p->load[p->by_load[k]];
}

void pack_layer(pack *p, uint32_t layer)
{
    p->layer = layer;
    set_load(p);
    memset(p->n_home, 0, p->n_experts * sizeof *p->n_home);
    memset(p->n_away, 0, p->n_experts * sizeof *p->n_away);
    memset(p->busy, 0, p->n_workers * sizeof *p->busy);
    for (uint32_t w = 0; p->sets && w < p->n_workers; w++) {
        p->room[w] = takes_part(p, w) ? (int32_t)p->share[(size_t)w * p->in->n_layers + layer] : 0;
        for (uint32_t e = pack_next(p, w, 0); e != NOBODY; e = pack_next(p, w, e + 1)) {
            if (!takes_part(p, w)) {
                p->n_away[e] += p->in->workers[w].part == CW_PLACEMENT_AWAY;
                continue;
            }
            size_t at = (size_t)e * p->n_workers + p->n_home[e]++;
            p->home[at] = (uint16_t)w;
            p->x[at] = 0;
            p->room[w]--;
        }
    }
}

uint32_t pack_next(const pack *p, uint32_t w, uint32_t e)
{
    const cw_expert_bits *b = &p->sets[w];
    const uint64_t *words = b->bits + (size_t)p->layer * b->words;
    for (uint32_t i = e / 64; i < b->words; i++, e = i * 64) {
        uint64_t v = words[i] >> (e % 64) << (e % 64);
        if (v) return i * 64 + (uint32_t)__builtin_ctzll(v);
    }
    return NOBODY;
}

void pack_add(pack *p, uint32_t e, uint32_t w)
{
    size_t at = (size_t)e * p->n_workers + p->n_home[e]++;
    cw_expert_bits_put(&p->sets[w], p->layer, e, true);
    p->home[at] = (uint16_t)w;
    p->x[at] = 0;
    p->room[w]--;
}

uint32_t pack_index(const pack *p, uint32_t e, uint32_t w)
{
    uint32_t i = 0;
    while (p->home[(size_t)e * p->n_workers + i] != w) i++;
    return i;
}

void pack_remove(pack *p, uint32_t e, uint32_t w)
{
    size_t row = (size_t)e * p->n_workers, at = row + pack_index(p, e, w), last = row + --p->n_home[e];
    p->busy[w] -= (double)p->x[at];
    p->home[at] = p->home[last];
    p->x[at] = p->x[last];
    cw_expert_bits_put(&p->sets[w], p->layer, e, false);
    p->room[w]++;
}
