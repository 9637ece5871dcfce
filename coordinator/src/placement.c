/*
 * Placement; the rules are in cw/placement.h.
 *
 * First how many, then which. `measure` gives every worker its share: a number of experts a layer, from its
 * own memory alone, so that workers that come and go do not shift the roundings of the others; `repair`
 * raises shares where a layer would not be covered. Then layer by layer: a bipartite matching gives every
 * expert one home, where it was before if the shares allow; what is left of the shares keeps what was there,
 * then holds replicas of the experts with fewest homes. A placement that is fed back as `previous` comes out
 * unchanged.
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
    uint64_t total;  /* bytes of all experts */
    uint64_t *slack; /* [n_workers] bytes it may still fill */
    uint64_t *spare; /* [n_workers] move reserve: for coverage only, where nothing else is left */
    uint64_t *cap;   /* [n_workers] bytes it may hold, reserve taken off */
    uint32_t *share; /* [n_workers, n_layers] experts it holds in the end */
    uint32_t *sum;   /* [n_layers] of the shares */
    uint32_t *quota; /* [n_workers] of the share of this layer, not given yet */
    bool *seen;      /* [n_workers] by the matching */
    int32_t *home;   /* [n_experts] home by the matching */
    uint32_t *homes; /* [n_experts] */
    struct candidate {
        uint32_t homes, expert;
        bool had;
        float load;
    } * cand; /* [n_experts] */
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

static uint32_t *share_of(const plan *p, uint32_t w, uint32_t layer)
{
    return &p->share[(size_t)w * p->in->n_layers + layer];
}

/* ---- how many
 * ----------------------------------------------------------------------------------------------- */

/* Of n experts of this layer, after `cum` of earlier layers: the difference of floor(cumulative * cap /
 * total). */
static void measure_worker(plan *p, uint32_t w)
{
    const cw_placement_input *in = p->in;
    uint64_t f = p->total ? (uint64_t)(((unsigned __int128)p->cap[w] << 32) / p->total) : 0, cum = 0;
    p->slack[w] = p->cap[w];
    for (uint32_t l = 0; l < in->n_layers; l++) {
        uint64_t bytes = in->expert_bytes[l];
        if (!bytes) continue;
        uint64_t n = ((cum + in->n_experts) * f >> 32) - (cum * f >> 32), room = p->slack[w] / bytes;
        if (n > room) n = room; /* layers differ in bytes */
        *share_of(p, w, l) = (uint32_t)n;
        p->sum[l] += (uint32_t)n;
        p->slack[w] -= n * bytes;
        cum += in->n_experts;
    }
}

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
        measure_worker(p, w);
    }
}

/* Takes replicas of other layers out of w's shares until `bytes` are free. False: they cannot be. */
static bool make_room(plan *p, uint32_t w, uint64_t bytes)
{
    for (uint32_t l = 0; l < p->in->n_layers && p->slack[w] < bytes; l++)
        while (p->slack[w] < bytes && p->sum[l] > p->n_experts && *share_of(p, w, l)) {
            --*share_of(p, w, l);
            p->sum[l]--;
            p->slack[w] += p->in->expert_bytes[l];
        }
    return p->slack[w] >= bytes;
}

/* One more expert of layer l for somebody: whoever has most room, else whoever can swap a replica for it,
 * else from a reserve. */
static bool raise_share(plan *p, uint32_t l)
{
    uint64_t bytes = p->in->expert_bytes[l];
    int32_t best = NOBODY;
    for (uint32_t w = 0; w < p->n_workers; w++)
        if (*share_of(p, w, l) < p->n_experts && p->slack[w] >= bytes &&
            (best == NOBODY || p->slack[w] > p->slack[best]))
            best = (int32_t)w;
    for (uint32_t w = 0; best == NOBODY && w < p->n_workers; w++)
        if (*share_of(p, w, l) < p->n_experts && make_room(p, w, bytes)) best = (int32_t)w;
    for (uint32_t w = 0; best == NOBODY && w < p->n_workers; w++)
        if (*share_of(p, w, l) < p->n_experts && p->slack[w] + p->spare[w] >= bytes) {
            uint64_t from_spare = bytes - p->slack[w]; /* slack is below bytes here */
            p->spare[w] -= from_spare;
            p->slack[w] += from_spare;
            best = (int32_t)w;
        }
    if (best == NOBODY) return false;
    p->slack[best] -= bytes;
    ++*share_of(p, (uint32_t)best, l);
    p->sum[l]++;
    return true;
}

static void repair(plan *p)
{
    for (uint32_t l = 0; l < p->in->n_layers; l++)
        while (p->in->expert_bytes[l] && p->sum[l] < p->n_experts && raise_share(p, l)) {
        }
}

/* ---- which
 * -------------------------------------------------------------------------------------------------- */

static void give(plan *p, uint32_t w, uint32_t layer, uint32_t e)
{
    cw_expert_bits_put(&p->sets[w], layer, e, true);
    p->homes[e]++;
}

/* An augmenting path that gives expert e a home where it was before; depth is at most the number of workers.
 */
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

static void cover_layer(plan *p, uint32_t layer, cw_placement_result *out)
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
    }
}

/* What was there stays first; then few homes, then the busier, then the lower number. */
static int by_need(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->had != y->had) return x->had ? -1 : 1;
    if (x->homes != y->homes) return x->homes < y->homes ? -1 : 1;
    if (x->load != y->load) return x->load > y->load ? -1 : 1;
    return x->expert < y->expert ? -1 : x->expert > y->expert;
}

/* Fills the quotas left: with what was there (`only_had`), or with anything. */
static void fill_layer(plan *p, uint32_t layer, bool only_had)
{
    const float *load = p->in->load;
    for (uint32_t w = 0; w < p->n_workers; w++) {
        uint32_t n = 0;
        if (!p->quota[w]) continue;
        for (uint32_t e = 0; e < p->n_experts; e++) {
            bool was = had(p, w, layer, e);
            if (cw_expert_bits_has(&p->sets[w], layer, e) || (only_had && !was)) continue;
            p->cand[n++] = (struct candidate){.homes = p->homes[e],
                                              .expert = e,
                                              .had = was,
                                              .load = load ? load[(size_t)layer * p->n_experts + e] : 0.0f};
        }
        qsort(p->cand, n, sizeof *p->cand, by_need);
        for (uint32_t k = 0; k < n && p->quota[w]; k++) {
            give(p, w, layer, p->cand[k].expert);
            p->quota[w]--;
        }
    }
}

/* Staying must not leave one expert with two homes fewer than another on the same worker: each swap makes the
 * sum of squares less. */
static void even_out(plan *p, uint32_t layer)
{
    for (bool again = true; again;) {
        again = false;
        for (uint32_t w = 0; w < p->n_workers; w++) {
            int32_t most = NOBODY, least = NOBODY;
            for (uint32_t e = 0; e < p->n_experts; e++) {
                if (cw_expert_bits_has(&p->sets[w], layer, e)) {
                    if (most == NOBODY || p->homes[e] > p->homes[most]) most = (int32_t)e;
                } else if (least == NOBODY || p->homes[e] < p->homes[least]) {
                    least = (int32_t)e;
                }
            }
            if (most == NOBODY || least == NOBODY || p->homes[most] < p->homes[least] + 2) continue;
            cw_expert_bits_put(&p->sets[w], layer, (uint32_t)most, false);
            p->homes[most]--;
            give(p, w, layer, (uint32_t)least);
            again = true;
        }
    }
}

static void place_layer(plan *p, uint32_t layer, cw_placement_result *out)
{
    memset(p->homes, 0, p->n_experts * sizeof *p->homes);
    for (uint32_t w = 0; w < p->n_workers; w++) p->quota[w] = *share_of(p, w, layer);
    cover_layer(p, layer, out);
    fill_layer(p, layer, true);
    fill_layer(p, layer, false);
    even_out(p, layer);
}

static bool plan_new(plan *p, const cw_placement_input *in, cw_expert_bits *sets)
{
    size_t w = in->n_workers, e = in->n_experts;
    *p = (plan){.in = in, .sets = sets, .n_workers = in->n_workers, .n_experts = in->n_experts};
    p->cap = cw_calloc(w, sizeof *p->cap);
    p->spare = cw_calloc(w, sizeof *p->spare);
    p->slack = cw_calloc(w, sizeof *p->slack);
    p->quota = cw_calloc(w, sizeof *p->quota);
    p->share = cw_calloc(w * in->n_layers, sizeof *p->share);
    p->sum = cw_calloc(in->n_layers, sizeof *p->sum);
    p->seen = cw_calloc(w, sizeof *p->seen);
    p->home = cw_calloc(e, sizeof *p->home);
    p->homes = cw_calloc(e, sizeof *p->homes);
    p->cand = cw_calloc(e, sizeof *p->cand);
    return p->cap && p->spare && p->slack && p->quota && p->share && p->sum && p->seen && p->home &&
           p->homes && p->cand;
}

static void plan_free(plan *p)
{
    void *all[] = {p->cap, p->spare, p->slack, p->quota, p->share,
                   p->sum, p->seen,  p->home,  p->homes, p->cand};
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
        repair(&p);
        for (uint32_t l = 0; l < in->n_layers; l++)
            if (in->expert_bytes[l]) place_layer(&p, l, out);
        if (out->n_unplaced)
            snprintf(out->text, sizeof out->text,
                     "no worker has memory for %u of the model's experts: %.1f MiB more is needed; start "
                     "another worker or give one "
                     "more with --memory",
                     out->n_unplaced, (double)out->missing_bytes / 1048576.0);
    }
    plan_free(&p);
    return ok;
}
