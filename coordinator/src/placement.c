/*
 * Placement; the promises are in cw/placement.h.
 *
 * First how many experts of each layer a worker holds, then which. A worker starts with the numbers it has
 * now; what memory it has free goes to the layers it has least of, among those to the layers that all workers
 * together have least of. Numbers rise at the cost of other layers' replicas only where a layer would not be
 * covered, or not twice though the memory of all is enough for that. So workers that come and go change the
 * numbers of the others as little as can be.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"
#include "placement_internal.h"

typedef struct {
    pack *p;
    const cw_placement_input *in;
    uint64_t total;  /* bytes of all experts */
    uint64_t *slack; /* [n_workers] bytes it may still fill */
    uint64_t *spare; /* [n_workers] what is left of the reserve: only for what has no home otherwise */
    uint32_t *sum;   /* [n_layers] of the shares */
    uint32_t *away;  /* [n_layers] held by workers that are away */
    double *speed;   /* [n_layers] of those with a share */
    struct turn {
        uint32_t layer, sum;
        double speed;
    } * turns; /* [n_layers] */
} plan;

uint64_t cw_placement_reserve(uint64_t memory, uint64_t largest_expert)
{
    uint64_t r = memory / 50;
    return r > largest_expert ? r : largest_expert;
}

static uint32_t *share_of(const plan *s, uint32_t w, uint32_t layer)
{
    return &s->p->share[(size_t)w * s->in->n_layers + layer];
}

static void add_share(plan *s, uint32_t w, uint32_t l, uint32_t n)
{
    if (!*share_of(s, w, l)) s->speed[l] += s->p->speed[w];
    *share_of(s, w, l) += n;
    s->sum[l] += n;
    s->slack[w] -= n * s->in->expert_bytes[l];
}

static void cut_share(plan *s, uint32_t w, uint32_t l)
{
    --*share_of(s, w, l);
    s->sum[l]--;
    s->slack[w] += s->in->expert_bytes[l];
    if (!*share_of(s, w, l)) s->speed[l] -= s->p->speed[w];
}

/* ---- how many
 * ----------------------------------------------------------------------------------------------- */

/* The layer of which w has most above what `keep` homes of every expert need; NOBODY: none. */
static uint32_t richest(const plan *s, uint32_t w, uint32_t keep)
{
    uint32_t best = NOBODY;
    for (uint32_t l = 0; l < s->in->n_layers; l++) {
        if (!*share_of(s, w, l) || s->sum[l] + (keep > 1 ? s->away[l] : 0) <= keep * s->p->n_experts)
            continue;
        if (best == NOBODY || s->sum[l] > s->sum[best]) best = l;
    }
    return best;
}

/* Takes from the layers in `turns` that have most until all fit. What is left, in bytes. */
static uint64_t shrink(plan *s, uint64_t used, uint64_t memory)
{
    while (used > memory) {
        uint32_t most = 0;
        for (uint32_t l = 1; l < s->in->n_layers; l++)
            if (s->turns[l].sum > s->turns[most].sum) most = l;
        s->turns[most].sum--;
        used -= s->in->expert_bytes[most];
    }
    return used;
}

/* What it has now, and what it may have. */
static void take_stock(plan *s, uint64_t largest)
{
    const cw_placement_input *in = s->in;
    for (uint32_t w = 0; w < in->n_workers; w++) {
        const cw_placement_worker *pw = &in->workers[w];
        for (uint32_t l = 0; pw->previous && pw->part == CW_PLACEMENT_AWAY && l < in->n_layers; l++)
            s->away[l] += cw_expert_bits_count_layer(pw->previous, l);
        if (pw->part != CW_PLACEMENT_TAKES) continue;
        uint64_t used = 0, reserve = cw_placement_reserve(pw->memory, largest);
        bool all = pw->memory >= s->total;
        uint64_t cap = all ? s->total : pw->memory > reserve ? pw->memory - reserve : 0;
        s->slack[w] = pw->memory; /* first what is there, as far as it fits at all */
        for (uint32_t l = 0; l < in->n_layers; l++) {
            s->turns[l].sum =
                pw->previous && in->expert_bytes[l] ? cw_expert_bits_count_layer(pw->previous, l) : 0;
            used += s->turns[l].sum * in->expert_bytes[l];
        }
        used = shrink(s, used, pw->memory);
        for (uint32_t l = 0; l < in->n_layers; l++)
            if (s->turns[l].sum) add_share(s, w, l, s->turns[l].sum);
        s->spare[w] = used > cap ? pw->memory - used : pw->memory - cap;
        s->slack[w] = used > cap ? 0 : cap - used;
    }
}

/* Whoever holds more than it should gives replicas back to its reserve. */
static void restore_reserve(plan *s, uint32_t w, uint64_t reserve)
{
    while (s->spare[w] < reserve) {
        uint32_t l = richest(s, w, 1);
        if (l == NOBODY) return;
        cut_share(s, w, l);
        uint64_t need = reserve - s->spare[w], give = s->slack[w] < need ? s->slack[w] : need;
        s->slack[w] -= give;
        s->spare[w] += give;
    }
}

static int by_want(const void *a, const void *b)
{
    const struct turn *x = a, *y = b;
    if (x->sum != y->sum) return x->sum < y->sum ? -1 : 1;
    if (x->speed != y->speed) return x->speed < y->speed ? -1 : 1;
    return x->layer < y->layer ? -1 : x->layer > y->layer;
}

/* Free memory, one expert of each layer a round, those first of which w has least. */
static void fill_shares(plan *s, uint32_t w)
{
    const cw_placement_input *in = s->in;
    for (;;) {
        uint32_t least = UINT32_MAX, n = 0;
        for (uint32_t l = 0; l < in->n_layers; l++) {
            uint32_t have = *share_of(s, w, l);
            if (!in->expert_bytes[l] || in->expert_bytes[l] > s->slack[w] || have >= in->n_experts) continue;
            if (have < least) least = have, n = 0;
            if (have == least) s->turns[n++] = (struct turn){l, s->sum[l], s->speed[l]};
        }
        if (!n) return;
        qsort(s->turns, n, sizeof *s->turns, by_want);
        for (uint32_t i = 0; i < n; i++)
            if (in->expert_bytes[s->turns[i].layer] <= s->slack[w]) add_share(s, w, s->turns[i].layer, 1);
    }
}

/* Takes replicas of other layers out of w's shares until `bytes` are free; all or nothing. */
static bool make_room(plan *s, uint32_t w, uint64_t bytes, uint32_t keep)
{
    uint64_t can = s->slack[w];
    for (uint32_t l = 0; l < s->in->n_layers && can < bytes; l++) {
        uint32_t over = s->sum[l] + (keep > 1 ? s->away[l] : 0), floor = keep * s->p->n_experts;
        uint64_t n = over > floor ? over - floor : 0;
        if (n > *share_of(s, w, l)) n = *share_of(s, w, l);
        can += n * s->in->expert_bytes[l];
    }
    while (can >= bytes && s->slack[w] < bytes) {
        uint32_t l = richest(s, w, keep);
        if (l == NOBODY) return false;
        cut_share(s, w, l);
    }
    return s->slack[w] >= bytes;
}

/* One more expert of layer l for somebody: whoever has most room, else whoever can swap a replica for it,
 * else (for a first home) from a reserve. */
static bool raise_share(plan *s, uint32_t l, uint32_t keep)
{
    const pack *p = s->p;
    uint64_t bytes = s->in->expert_bytes[l];
    uint32_t best = NOBODY;
    for (uint32_t w = 0; w < p->n_workers; w++)
        if (takes_part(p, w) && *share_of(s, w, l) < p->n_experts && s->slack[w] >= bytes &&
            (best == NOBODY || s->slack[w] > s->slack[best]))
            best = w;
    for (uint32_t w = 0; best == NOBODY && w < p->n_workers; w++)
        if (takes_part(p, w) && *share_of(s, w, l) < p->n_experts && make_room(s, w, bytes, keep)) best = w;
    for (uint32_t w = 0; keep == 1 && best == NOBODY && w < p->n_workers; w++)
        if (takes_part(p, w) && *share_of(s, w, l) < p->n_experts && s->slack[w] + s->spare[w] >= bytes) {
            uint64_t from_spare = bytes - s->slack[w]; /* slack is below bytes here */
            s->spare[w] -= from_spare;
            s->slack[w] += from_spare;
            best = w;
        }
    if (best == NOBODY) return false;
    add_share(s, best, l, 1);
    return true;
}

static void raise_to(plan *s, uint32_t homes)
{
    for (uint32_t l = 0; l < s->in->n_layers; l++)
        while (s->in->expert_bytes[l] && s->sum[l] + (homes > 1 ? s->away[l] : 0) < homes * s->p->n_experts &&
               raise_share(s, l, homes)) {
        }
}

static void how_many(plan *s)
{
    const cw_placement_input *in = s->in;
    uint64_t largest = 0;
    for (uint32_t l = 0; l < in->n_layers; l++) {
        s->total += in->expert_bytes[l] * in->n_experts;
        if (in->expert_bytes[l] > largest) largest = in->expert_bytes[l];
    }
    take_stock(s, largest);
    for (uint32_t w = 0; w < in->n_workers; w++)
        if (takes_part(s->p, w)) fill_shares(s, w);
    raise_to(s, 1);
    for (uint32_t w = 0; w < in->n_workers; w++) {
        if (!takes_part(s->p, w) || in->workers[w].memory >= s->total) continue;
        restore_reserve(s, w, cw_placement_reserve(in->workers[w].memory, largest));
        fill_shares(s, w);
    }
    raise_to(s, 2);
    for (uint32_t w = 0; w < in->n_workers; w++) /* layers differ in bytes: something may be left over */
        if (takes_part(s->p, w)) fill_shares(s, w);
    raise_to(s, 1);
}

/* ---- which
 * -------------------------------------------------------------------------------------------------- */

static void start_sets(const plan *s)
{
    const cw_placement_input *in = s->in;
    for (uint32_t w = 0; w < in->n_workers; w++) {
        const cw_placement_worker *pw = &in->workers[w];
        if (pw->previous && pw->part != CW_PLACEMENT_OUT)
            cw_expert_bits_copy(&s->p->sets[w], pw->previous);
        else
            cw_expert_bits_clear(&s->p->sets[w]);
        for (uint32_t l = 0; l < in->n_layers; l++) /* a caller's old sets may know layers that are dense */
            for (uint32_t i = 0; !in->expert_bytes[l] && i < s->p->sets[w].words; i++)
                s->p->sets[w].bits[(size_t)l * s->p->sets[w].words + i] = 0;
    }
}

static void put_weights(const pack *p, float *weights)
{
    for (uint32_t e = 0; e < p->n_experts; e++) {
        size_t at = (size_t)e * p->n_workers;
        for (uint32_t i = 0; i < p->n_home[e]; i++)
            weights[((size_t)p->layer * p->n_experts + e) * p->n_workers + p->home[at + i]] =
                (float)((double)p->x[at + i] / p->load[e]);
    }
}

static uint64_t load_bytes(const plan *s)
{
    uint64_t n = 0;
    for (uint32_t w = 0; w < s->in->n_workers; w++) {
        const cw_expert_bits *now = &s->p->sets[w], *was = s->in->workers[w].previous;
        for (uint32_t l = 0; l < now->n_layers; l++) {
            uint32_t k = 0;
            for (uint32_t i = 0; i < now->words; i++) {
                size_t at = (size_t)l * now->words + i;
                k += (uint32_t)__builtin_popcountll(now->bits[at] & ~(was ? was->bits[at] : 0));
            }
            n += k * s->in->expert_bytes[l];
        }
    }
    return n;
}

static void which(plan *s, float *weights, cw_placement_result *out)
{
    pack *p = s->p;
    start_sets(s);
    p->budget = s->in->move_bytes;
    for (uint32_t l = 0; l < s->in->n_layers; l++) {
        if (!s->in->expert_bytes[l]) continue;
        pack_layer(p, l);
        layer_place(p, out);
        double worst = flow_worst(p, NULL);
        out->layer_time += worst * (double)s->in->expert_bytes[l];
        for (uint32_t w = 0; w < p->n_workers; w++)
            if (takes_part(p, w)) p->total[w] += time_of(p, w) * (double)s->in->expert_bytes[l];
        if (weights) put_weights(p, weights);
    }
    out->load_bytes = load_bytes(s);
    if (out->n_unplaced)
        snprintf(out->text, sizeof out->text,
                 "no worker has memory for %u of the model's experts: %.1f MiB more is needed; start another "
                 "worker "
                 "or give one more with --memory",
                 out->n_unplaced, (double)out->missing_bytes / 1048576.0);
}

bool cw_placement(const cw_placement_input *in, cw_expert_bits *sets, float *weights,
                  cw_placement_result *out)
{
    pack p;
    plan s = {.p = &p, .in = in};
    bool ok = pack_new(&p, in, sets);
    s.slack = cw_calloc(in->n_workers + 1, sizeof *s.slack);
    s.spare = cw_calloc(in->n_workers + 1, sizeof *s.spare);
    s.sum = cw_calloc(in->n_layers, sizeof *s.sum);
    s.away = cw_calloc(in->n_layers, sizeof *s.away);
    s.speed = cw_calloc(in->n_layers, sizeof *s.speed);
    s.turns = cw_calloc(in->n_layers, sizeof *s.turns);
    ok = ok && s.slack && s.spare && s.sum && s.away && s.speed && s.turns;
    if (ok) {
        *out = (cw_placement_result){0};
        if (weights)
            memset(weights, 0, (size_t)in->n_layers * in->n_experts * in->n_workers * sizeof *weights);
        how_many(&s);
        which(&s, weights, out);
    }
    void *all[] = {s.slack, s.spare, s.sum, s.away, s.speed, s.turns};
    for (size_t i = 0; i < CW_ARRAY_LEN(all); i++) cw_free(all[i]);
    pack_free(&p);
    return ok;
}
