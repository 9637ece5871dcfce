/*
 * Dividing entries over workers. All rows of one expert go to one worker (it reads the weights once); experts
 * are taken from the most rows down, each to the holder that would finish it first: link round trip, what is
 * queued there, the bytes it has to read at its measured pace, and those that its link has to carry. The same
 * state gives the same division; ties go to the lower worker id. Which worker computes a row never changes
 * its bits.
 *
 * A worker that is late, busy or let a call run out is taken only where nobody else holds the expert.
 */
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"
#include "edge_internal.h"

enum { NOBODY = UINT32_MAX };
/* Differences of delay below this are noise of busy machines. Taken at its word, a tenth of a millisecond
 * would send every small expert to one of two equal workers. */
enum { DELAY_NOISE_US = 500 };
enum {
    HEDGE_QUEUE_US =
        5000, /* a worker whose calls wait for so long, or who has so much to do for us already, */
    HEDGE_LOAD_US = 50000, /* gets no hedges */
};

static uint64_t expert_cost(const cw_edge *e, uint32_t layer, uint32_t rows)
{
    return e->layers[layer].weight_bytes +
           rows * (uint64_t)(row_in_bytes(e, layer) + row_out_bytes(e, layer));
}

/* Measured, else by the speed it told, else 1 GB/s. */
double home_pace(const home *h)
{
    if (h->us_per_byte > 0) return h->us_per_byte * h->doubt;
    return 1e-3 / (h->speed > 0.01f ? (double)h->speed : 1.0) * h->doubt;
}

static int descending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x < y) - (x > y);
}

bool home_can(const cw_edge *e, const home *h, uint32_t layer, uint32_t expert)
{
    return h->state == HOME_UP && !h->stopping && !home_barred(e, h) && home_holds(e, h, layer, expert);
}

/* The lower the better. */
static int rank(const cw_edge *e, const home *h, const piece *p)
{
    bool may_wait = p->r->klass == CW__PB__CALL_CLASS__CLASS_PREFILL || p->busy;
    if (home_is_late(h)) return 2;
    return h->suspect_until_us > e->now_us || (may_wait && h->busy_until_us > e->now_us);
}

/* Whether what is not needed by all means may go there. */
static bool is_free(const cw_edge *e, const home *h, const piece *p)
{
    if (rank(e, h, p) > 0) return false;
    if (p->kind != PIECE_HEDGE || p->attempt) return true;
    return late_queue_us(e, h) <= HEDGE_QUEUE_US && (double)h->load * home_pace(h) <= HEDGE_LOAD_US;
}

/* The best home of one expert, an index into e->homes, or NOBODY. */
static uint32_t choose(const cw_edge *e, const piece *p, uint32_t expert, uint64_t cost, double bytes)
{
    uint32_t best = NOBODY;
    int best_rank = 0;
    double best_t = 0;
    for (uint32_t i = 0; i < e->n_homes; i++) {
        const home *h = e->homes[i];
        if (h == p->not_on || !home_can(e, h, p->r->layer, expert)) continue;
        if (p->kind != PIECE_WORK && !is_free(e, h, p)) continue;
        int k = rank(e, h, p);
        double t = e->finish[i] + (double)cost * home_pace(h) + h->carry_us * bytes;
        bool better =
            best == NOBODY ||
            (k != best_rank ? k < best_rank : t < best_t || (!(best_t < t) && h->id < e->homes[best]->id));
        if (better) best = i, best_rank = k, best_t = t;
    }
    return best;
}

/* What its link adds to a call. On this machine that is nothing: what was measured there is how long somebody
 * waited for a processor, most of all we ourselves, and says nothing of the next call. */
static double delay_us(const home *h)
{
    return h->same_host ? 0 : h->delay_us;
}

static double nearest_delay(const cw_edge *e)
{
    double least = -1;
    for (size_t i = 0; i < e->n_homes; i++)
        if (e->homes[i]->state == HOME_UP && (least < 0 || delay_us(e->homes[i]) < least))
            least = delay_us(e->homes[i]);
    return least < 0 ? 0 : least;
}

/* The thinnest link that was measured, or NULL. */
static const home *thinnest(const cw_edge *e)
{
    const home *thin = NULL;
    for (size_t i = 0; i < e->n_homes; i++) {
        const home *h = e->homes[i];
        if (h->state == HOME_UP && h->bytes_per_s > 0 && (!thin || h->bytes_per_s < thin->bytes_per_s))
            thin = h;
    }
    return thin;
}

/* What the link needs for a byte, there and back. One that was not measured yet is taken for as thin as
 * another of about the same length, or everything would go over the one that is not known. */
static double carry_us(const home *h, const home *thin)
{
    if (h->bytes_per_s > 0) return 1e6 / h->bytes_per_s;
    bool alike = thin && !h->same_host && thin->delay_us < 2 * h->delay_us + DELAY_NOISE_US &&
                 h->delay_us < 2 * thin->delay_us + DELAY_NOISE_US;
    return alike ? 1e6 / thin->bytes_per_s : 0;
}

/* Fills x_home for every expert in the piece, and share for every home. */
static void assign_experts(cw_edge *e, const piece *p)
{
    uint32_t n = 0, layer = p->r->layer;
    for (uint32_t k = 0; k < p->n; k++) e->x_rows[p->r->entries[p->index[k]].expert] = 0;
    for (uint32_t k = 0; k < p->n; k++) {
        uint32_t x = p->r->entries[p->index[k]].expert;
        if (!e->x_rows[x]++) e->x_order[n++] = x;
    }
    /* Most rows first, then the lower expert. */
    for (uint32_t k = 0; k < n; k++)
        e->x_order[k] = (uint64_t)e->x_rows[e->x_order[k]] << 32 | (UINT32_MAX - (uint32_t)e->x_order[k]);
    qsort(e->x_order, n, sizeof *e->x_order, descending);
    double nearest = nearest_delay(e);
    const home *thin = thinnest(e);
    for (size_t i = 0; i < e->n_homes; i++) {
        home *h = e->homes[i];
        double further = delay_us(h) - nearest;
        e->share[i] = 0;
        h->carry_us = carry_us(h, thin);
        e->finish[i] = (further < DELAY_NOISE_US ? 0 : further * h->doubt) + (double)h->load * home_pace(h) +
                       h->carry_us * (double)h->sent_bytes;
    }
    for (uint32_t k = 0; k < n; k++) {
        uint32_t x = UINT32_MAX - (uint32_t)e->x_order[k];
        uint64_t cost = expert_cost(e, layer, e->x_rows[x]);
        double bytes = (double)e->x_rows[x] * (double)(row_in_bytes(e, layer) + row_out_bytes(e, layer));
        uint32_t i = choose(e, p, x, cost, bytes);
        e->x_home[x] = i;
        if (i == NOBODY) continue;
        e->share[i] += e->x_rows[x];
        e->finish[i] += (double)cost * home_pace(e->homes[i]) + e->homes[i]->carry_us * bytes;
    }
}

/* The entries of p that nobody who can be reached takes, as a piece of their own; NULL: none. */
static piece *without_home(cw_edge *e, const piece *p, bool *ok)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < p->n; k++) n += e->x_home[p->r->entries[p->index[k]].expert] == NOBODY;
    piece *c = n ? piece_new(p->r, n) : NULL;
    if (n && !c) *ok = false;
    if (!c) return NULL;
    for (uint32_t k = 0, w = 0; w < n; k++)
        if (e->x_home[p->r->entries[p->index[k]].expert] == NOBODY) c->index[w++] = p->index[k];
    c->kind = p->kind;
    c->attempt = p->attempt;
    c->since_us = p->since_us;
    c->not_before_us = p->not_before_us;
    c->numeric = p->numeric;
    c->not_on = p->not_on;
    c->busy = p->busy;
    piece_cover(c);
    return c;
}

/* WORK waits for a home; a twin that nobody can compute is done without: one row must do. */
static void keep_or_drop(cw_edge *e, piece *c)
{
    cw_edge_request *r = c->r;
    if (c->kind == PIECE_WORK) {
        list_push(&e->homeless, c);
        return;
    }
    for (uint32_t k = 0; c->kind == PIECE_TWIN && k < c->n; k++) {
        mark *m = &r->marks[c->index[k]];
        m->flags = (uint8_t)(m->flags & ~ROW_TWO);
        if ((m->flags & ROW_HAVE) && !(m->flags & (ROW_DONE | ROW_DISPUTE))) rows_done(r, c->index[k]);
    }
    piece_free(c);
}

/* A worker that seems slow gets no calls and would never be measured again: what is believed of those that
 * stay without fades, until they are tried. Decided by the number of placements, not by time, so that it is
 * the same every time. */
static void fade(cw_edge *e)
{
    for (uint32_t i = 0; i < e->n_homes; i++) {
        home *h = e->homes[i];
        h->doubt = e->share[i] || h->state != HOME_UP ? 1 : h->doubt * 0.99;
    }
}

uint32_t place(cw_edge *e, piece *p, cw_outbox *out)
{
    cw_edge_request *r = p->r;
    piece_list twins = {0};
    bool ok = true;
    uint32_t n = 0;
    assign_experts(e, p);
    if (p->kind == PIECE_WORK) fade(e);
    piece *rest = without_home(e, p, &ok);
    for (uint32_t i = 0; i < e->n_homes && ok; i++)
        if (e->share[i]) ok = cut(e, p, i, &twins, &n);
    piece_free(p);
    if (rest) keep_or_drop(e, rest);
    /* Only now: what follows may end the request, and uses the working memory of this placement anew. */
    for (uint32_t i = 0; i < e->n_homes && n; i++)
        if (e->homes[i]->queued.head) calls_send(e, e->homes[i], out);
    for (piece *t; (t = twins.head);) {
        list_remove(&twins, t);
        if (r->active)
            place(e, t, out);
        else
            piece_free(t);
    }
    if (!ok) edge_end_request(e, r, CW_STATUS_NO_MEMORY, "out of memory for a call", out);
    return n;
}
