/*
 * Placement; the rules are in cw/placement.h.
 *
 * Two passes. `spread` gives every expert one home, layer by layer: quotas in proportion to memory (largest remainder,
 * carried over from layer to layer), then a bipartite matching of experts to the workers that had them, so that the
 * fewest possible move under these quotas, then the rest to whoever has quota left. `replicate` fills the remaining
 * memory. A worker's number of experts a layer (`share`) depends on its own memory only, so that workers that come and
 * go do not shift the roundings of the others.
 */
#include "cw/placement.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"

enum { NOBODY = -1 };

typedef struct {
    const cw_placement_input *in;
    cw_expert_bits *sets;
    uint32_t n_workers, n_experts;
    uint64_t total; /* bytes of all experts */
    uint64_t *cap;  /* [n_workers] bytes it may hold */
    uint64_t *spare; /* [n_workers] move reserve: for coverage only where nothing else is left */
    uint64_t *left; /* [n_workers] of cap */
    int64_t *credit;  /* [n_workers] fraction of an expert it is owed, 2^32 = one */
    uint32_t *quota;  /* [n_workers] experts of this layer it may still take */
    uint32_t *share;  /* [n_workers, n_layers] experts it holds in the end */
    uint32_t *taken;  /* [n_workers, n_layers] of those, first homes */
    bool *seen;       /* [n_workers] by the matching */
    int32_t *home;    /* [n_experts] first home in this layer */
    uint32_t *homes;  /* [n_experts] */
    struct candidate { uint32_t homes, expert; bool had; float load; } *cand; /* [n_experts] */
} plan;

uint64_t cw_placement_reserve(uint64_t memory, uint64_t largest_expert)
{
    uint64_t r = memory / 50;
    return r > largest_expert ? r : largest_expert;
}

static bool had(const plan *p, uint32_t w, uint32_t layer, uint32_t e)
{
    const cw_expert_bits *b = p->in->workers[w].previous;
    return b && cw_expert_bits_has(b, layer, e);
}

static uint32_t had_count(const plan *p, uint32_t w, uint32_t layer)
{
    const cw_expert_bits *b = p->in->workers[w].previous;
    uint32_t n = 0;
    for (uint32_t i = 0; b && i < b->words; i++) n += (uint32_t)__builtin_popcountll(b->bits[(size_t)layer * b->words + i]);
    return n;
}

static void give(plan *p, uint32_t w, uint32_t layer, uint32_t e)
{
    uint64_t bytes = p->in->expert_bytes[layer];
    if (p->left[w] < bytes) {
        p->spare[w] -= bytes - p->left[w];
        p->left[w] = bytes;
    }
    p->left[w] -= bytes;
    cw_expert_bits_put(&p->sets[w], layer, e, true);
}

/* Capacity of each worker, and its share of every layer: floor(cumulative experts * cap / total), differences. */
static void measure(plan *p)
{
    const cw_placement_input *in = p->in;
    uint64_t largest = 0;
    for (uint32_t l = 0; l < in->n_layers; l++) {
        p->total += in->expert_bytes[l] * in->n_experts;
        if (in->expert_bytes[l] > largest) largest = in->expert_bytes[l];
    }
    for (uint32_t w = 0; w < p->n_workers; w++) {
        uint64_t memory = in->workers[w].memory, reserve = cw_placement_reserve(memory, largest);
        if (memory >= p->total) {
            p->cap[w] = p->total;
        } else {
            p->cap[w] = memory > reserve ? memory - reserve : 0;
            p->spare[w] = memory - p->cap[w];
        }
        p->left[w] = p->cap[w];
        uint64_t f = p->total ? (uint64_t)(((unsigned __int128)p->cap[w] << 32) / p->total) : 0, cum = 0;
        for (uint32_t l = 0; l < in->n_layers; l++) {
            uint64_t n = in->expert_bytes[l] ? in->n_experts : 0;
            p->share[(size_t)w * in->n_layers + l] = (uint32_t)(((cum + n) * f >> 32) - (cum * f >> 32));
            cum += n;
        }
    }
}

/* Worker that takes one more expert of this layer: first those below their share, among them those that would keep one,
 * then by what they are owed. NOBODY when no memory is left. */
static int32_t next_taker(const plan *p, uint32_t layer)
{
    uint64_t bytes = p->in->expert_bytes[layer];
    int32_t best = NOBODY;
    int best_rank = -1;
    for (uint32_t w = 0; w < p->n_workers; w++) {
        uint64_t need = bytes * (p->quota[w] + 1);
        if (need > p->left[w] + p->spare[w]) continue;
        int rank = need > p->left[w] ? 0 : p->quota[w] >= p->share[(size_t)w * p->in->n_layers + layer] ? 1 : 2;
        if (rank == 2 && had_count(p, w, layer) > p->quota[w] && p->credit[w] > -((int64_t)1 << 32)) rank = 3;
        if (rank > best_rank || (rank == best_rank && p->credit[w] > p->credit[best])) {
            best = (int32_t)w;
            best_rank = rank;
        }
    }
    return best;
}

/* quota[w]: how many first homes of this layer worker w gives. The number left without. */
static uint32_t make_quotas(plan *p, uint32_t layer, unsigned __int128 sum_cap)
{
    uint64_t bytes = p->in->expert_bytes[layer];
    uint32_t left = p->n_experts;
    for (uint32_t w = 0; w < p->n_workers; w++) {
        p->credit[w] += sum_cap ? (int64_t)(((unsigned __int128)p->cap[w] * p->n_experts << 32) / sum_cap) : 0;
        int64_t whole = p->credit[w] > 0 ? p->credit[w] >> 32 : 0;
        uint64_t room = p->left[w] / bytes, q = (uint64_t)whole < room ? (uint64_t)whole : room;
        if (q > left) q = left;
        p->quota[w] = (uint32_t)q;
        p->credit[w] -= (int64_t)q << 32;
        left -= (uint32_t)q;
    }
    while (left) {
        int32_t w = next_taker(p, layer);
        if (w == NOBODY) break;
        p->quota[w]++;
        p->credit[w] -= (int64_t)1 << 32;
        left--;
    }
    return left;
}

/* An augmenting path that gives expert e a home where it was before; depth is at most the number of workers. */
static bool keep(plan *p, uint32_t layer, uint32_t e)
{
    for (uint32_t w = 0; w < p->n_workers; w++) {
        if (p->seen[w] || !had(p, w, layer, e)) continue;
        p->seen[w] = true;
        bool free_slot = p->quota[w] > 0;
        if (free_slot) p->quota[w]--;
        for (uint32_t other = 0; !free_slot && other < p->n_experts; other++)
            if (p->home[other] == (int32_t)w) free_slot = keep(p, layer, other);
        if (free_slot) {
            p->home[e] = (int32_t)w;
            return true;
        }
    }
    return false;
}

static void spread_layer(plan *p, uint32_t layer, cw_placement_result *out)
{
    for (uint32_t e = 0; e < p->n_experts; e++) p->home[e] = NOBODY;
    for (uint32_t e = 0; e < p->n_experts; e++) {
        memset(p->seen, 0, p->n_workers * sizeof *p->seen);
        (void)keep(p, layer, e);
    }
    for (uint32_t e = 0; e < p->n_experts; e++) {
        if (p->home[e] == NOBODY) {
            uint32_t best = 0;
            for (uint32_t w = 1; w < p->n_workers; w++)
                if (p->quota[w] > p->quota[best]) best = w;
            if (p->n_workers && p->quota[best]) {
                p->quota[best]--;
                p->home[e] = (int32_t)best;
            }
        }
        if (p->home[e] == NOBODY) {
            out->n_unplaced++;
            out->missing_bytes += p->in->expert_bytes[layer];
            continue;
        }
        give(p, (uint32_t)p->home[e], layer, e);
        p->taken[(size_t)p->home[e] * p->in->n_layers + layer]++;
    }
}

static void spread(plan *p, cw_placement_result *out)
{
    unsigned __int128 sum_cap = 0;
    for (uint32_t w = 0; w < p->n_workers; w++) sum_cap += p->cap[w];
    for (uint32_t l = 0; l < p->in->n_layers; l++) {
        if (!p->in->expert_bytes[l]) continue;
        (void)make_quotas(p, l, sum_cap);
        spread_layer(p, l, out);
    }
}

/* Few homes first, where staying counts as one home less; then the busier, then the lower number. */
static int by_need(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->homes != y->homes) return x->homes < y->homes ? -1 : 1;
    if (x->had != y->had) return x->had ? -1 : 1;
    if (x->load != y->load) return x->load > y->load ? -1 : 1;
    return x->expert < y->expert ? -1 : x->expert > y->expert;
}

static void replicate_layer(plan *p, uint32_t layer)
{
    const cw_placement_input *in = p->in;
    uint64_t bytes = in->expert_bytes[layer];
    memset(p->homes, 0, p->n_experts * sizeof *p->homes);
    for (uint32_t w = 0; w < p->n_workers; w++)
        for (uint32_t e = 0; e < p->n_experts; e++) p->homes[e] += cw_expert_bits_has(&p->sets[w], layer, e);
    for (uint32_t w = 0; w < p->n_workers; w++) {
        size_t i = (size_t)w * in->n_layers + layer;
        uint64_t room = p->left[w] / bytes;
        uint32_t more = p->share[i] > p->taken[i] ? p->share[i] - p->taken[i] : 0, n = 0;
        if (more > room) more = (uint32_t)room;
        for (uint32_t e = 0; more && e < p->n_experts; e++) {
            if (cw_expert_bits_has(&p->sets[w], layer, e)) continue;
            bool was = had(p, w, layer, e);
            p->cand[n++] = (struct candidate){.homes = p->homes[e] - (was && p->homes[e] ? 1 : 0), .expert = e, .had = was,
                                              .load = in->load ? in->load[(size_t)layer * p->n_experts + e] : 0.0f};
        }
        qsort(p->cand, n, sizeof *p->cand, by_need);
        for (uint32_t k = 0; k < more && k < n; k++) {
            give(p, w, layer, p->cand[k].expert);
            p->homes[p->cand[k].expert]++;
        }
    }
}

static bool plan_new(plan *p, const cw_placement_input *in, cw_expert_bits *sets)
{
    size_t w = in->n_workers, e = in->n_experts;
    *p = (plan){.in = in, .sets = sets, .n_workers = in->n_workers, .n_experts = in->n_experts};
    p->cap = cw_calloc(w, sizeof *p->cap);
    p->spare = cw_calloc(w, sizeof *p->spare);
    p->left = cw_calloc(w, sizeof *p->left);
    p->credit = cw_calloc(w, sizeof *p->credit);
    p->quota = cw_calloc(w, sizeof *p->quota);
    p->share = cw_calloc(w * in->n_layers, sizeof *p->share);
    p->taken = cw_calloc(w * in->n_layers, sizeof *p->taken);
    p->seen = cw_calloc(w, sizeof *p->seen);
    p->home = cw_calloc(e, sizeof *p->home);
    p->homes = cw_calloc(e, sizeof *p->homes);
    p->cand = cw_calloc(e, sizeof *p->cand);
    return p->cap && p->spare && p->left && p->credit && p->quota && p->share && p->taken && p->seen && p->home && p->homes && p->cand;
}

static void plan_free(plan *p)
{
    void *all[] = {p->cap, p->spare, p->left, p->credit, p->quota, p->share, p->taken, p->seen, p->home, p->homes, p->cand};
    for (size_t i = 0; i < CW_ARRAY_LEN(all); i++) cw_free(all[i]);
}

bool cw_placement(const cw_placement_input *in, cw_expert_bits *sets, cw_placement_result *out)
{
    plan p;
    bool ok = plan_new(&p, in, sets);
    if (ok) {
        *out = (cw_placement_result){0};
        for (uint32_t w = 0; w < in->n_workers; w++) cw_expert_bits_clear(&sets[w]);
        measure(&p);
        spread(&p, out);
        for (uint32_t l = 0; l < in->n_layers; l++)
            if (in->expert_bytes[l]) replicate_layer(&p, l);
        if (out->n_unplaced)
            snprintf(out->text, sizeof out->text,
                     "no worker has memory for %u of the model's experts: %.1f MiB more is needed; start another worker or give one "
                     "more with --memory",
                     out->n_unplaced, (double)out->missing_bytes / 1048576.0);
    }
    plan_free(&p);
    return ok;
}
