/*
 * Dividing entries over workers. All rows of one expert go to one worker (it reads the weights once); experts
 * are taken from the most rows down, each to the holder that would finish it first: link round trip, what is
 * queued there, and the bytes it has to read at its measured pace. The same state gives the same division;
 * ties go to the lower worker id. Which worker computes a row never changes its bits.
 */
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"
#include "edge_internal.h"

enum { NOBODY = UINT32_MAX };
/* Differences of delay below this are noise of busy machines. Taken at its word, a tenth of a millisecond
 * would send every small expert to one of two equal workers. */
enum { DELAY_NOISE_US = 500 };

static size_t row_in_bytes(const cw_edge *e, uint32_t layer)
{
    return e->layers[layer].act == CW__PB__ACT_KIND__ACT_A8 ? (size_t)e->c.d_model * 9 / 8
                                                            : (size_t)e->c.d_model * 4;
}

static size_t row_out_bytes(const cw_edge *e, uint32_t layer)
{
    return e->layers[layer].rows == CW__PB__REPLY_KIND__ROWS_F16 ? (size_t)e->c.d_model * 2 + 1
                                                                 : (size_t)e->c.d_model * 4;
}

static uint64_t expert_cost(const cw_edge *e, uint32_t layer, uint32_t rows)
{
    return e->layers[layer].weight_bytes +
           rows * (uint64_t)(row_in_bytes(e, layer) + row_out_bytes(e, layer));
}

/* Microseconds for one byte at this worker: measured, else by the speed it told, else 1 GB/s. */
static double pace(const home *h)
{
    if (h->us_per_byte > 0) return h->us_per_byte * h->doubt;
    return 1e-3 / (h->speed > 0.01f ? (double)h->speed : 1.0) * h->doubt;
}

static int descending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x < y) - (x > y);
}

/* The best home of one expert, an index into e->homes, or NOBODY. Workers under suspicion only where there is
 * no other. */
static uint32_t choose(const cw_edge *e, uint32_t layer, uint32_t expert, uint64_t cost)
{
    uint32_t best = NOBODY;
    bool best_suspect = false;
    for (uint32_t i = 0; i < e->n_homes; i++) {
        const home *h = e->homes[i];
        if (h->state != HOME_UP || h->stopping || !home_holds(e, h, layer, expert)) continue;
        bool suspect = h->suspect_until_us > e->now_us;
        double t = e->finish[i] + (double)cost * pace(h);
        double best_t = best == NOBODY ? 0 : e->finish[best] + (double)cost * pace(e->homes[best]);
        bool better = best == NOBODY ||
                      (suspect != best_suspect ? best_suspect
                                               : t < best_t || (!(best_t < t) && h->id < e->homes[best]->id));
        if (better) best = i, best_suspect = suspect;
    }
    return best;
}

static double nearest_delay(const cw_edge *e)
{
    double least = -1;
    for (size_t i = 0; i < e->n_homes; i++)
        if (e->homes[i]->state == HOME_UP && (least < 0 || e->homes[i]->delay_us < least))
            least = e->homes[i]->delay_us;
    return least < 0 ? 0 : least;
}

/* Fills x_home for every expert in the piece. */
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
    for (size_t i = 0; i < e->n_homes; i++) {
        const home *h = e->homes[i];
        double further = h->delay_us - nearest;
        e->finish[i] = (further < DELAY_NOISE_US ? 0 : further * h->doubt) + (double)h->load * pace(h);
    }
    for (uint32_t k = 0; k < n; k++) {
        uint32_t x = UINT32_MAX - (uint32_t)e->x_order[k];
        uint64_t cost = expert_cost(e, layer, e->x_rows[x]);
        uint32_t i = choose(e, layer, x, cost);
        e->x_home[x] = i;
        if (i != NOBODY) e->finish[i] += (double)cost * pace(e->homes[i]);
    }
}

/* Entries of p for home `i`, counted from `from` on, as many rows as one call takes; *next is where the rest
 * begins. */
static uint32_t measure(const cw_edge *e, const piece *p, uint32_t i, uint32_t from, uint32_t *n_rows,
                        uint32_t *next)
{
    const cw_edge_request *r = p->r;
    size_t in = 0, back = 0, row_in = row_in_bytes(e, r->layer), row_out = row_out_bytes(e, r->layer);
    uint32_t n = 0, rows = 0, k = from;
    while (k < p->n) {
        /* All of one row's entries together: the row travels once. */
        uint32_t row = r->entries[p->index[k]].row, end = k, mine = 0;
        for (; end < p->n && r->entries[p->index[end]].row == row; end++)
            mine += e->x_home[r->entries[p->index[end]].expert] == i;
        if (mine) {
            bool full = in + row_in + mine * CW_ENTRY_BYTES > CW_CALL_TARGET_BYTES ||
                        back + mine * row_out > CW_CALL_TARGET_BYTES || n + mine > CALL_ENTRIES;
            if (n && full) break;
            in += row_in + mine * CW_ENTRY_BYTES;
            back += mine * row_out;
            n += mine;
            rows++;
        }
        k = end;
    }
    *next = k;
    *n_rows = rows;
    return n;
}

/* A new piece of n of p's entries from `from` on: those that x_home gives to i. */
static piece *cut_off(cw_edge *e, const piece *p, uint32_t i, uint32_t from, uint32_t n)
{
    piece *c = piece_new(p->r, n);
    if (!c) return NULL;
    c->attempt = p->attempt;
    c->since_us = p->since_us;
    c->not_before_us = p->not_before_us;
    for (uint32_t k = from, w = 0; w < n; k++)
        if (e->x_home[p->r->entries[p->index[k]].expert] == i) c->index[w++] = p->index[k];
    return c;
}

/* The share of each entry in what the worker reads; all calls of one placement together make the whole. */
static uint64_t cost_of(const cw_edge *e, const piece *c)
{
    uint32_t layer = c->r->layer;
    uint64_t cost = 0;
    for (uint32_t k = 0; k < c->n; k++)
        cost += e->layers[layer].weight_bytes / e->x_rows[c->r->entries[c->index[k]].expert] +
                row_in_bytes(e, layer) + row_out_bytes(e, layer);
    return cost;
}

/* Calls with the entries that home i gets. false: out of memory. */
static bool cut(cw_edge *e, const piece *p, uint32_t i, cw_outbox *out)
{
    uint32_t layer = p->r->layer;
    for (uint32_t from = 0, next, rows; from < p->n; from = next) {
        uint32_t n = measure(e, p, i, from, &rows, &next);
        if (!n) break;
        piece *c = cut_off(e, p, i, from, n);
        if (!c) return false;
        c->n_rows = rows;
        c->bytes = rows * row_in_bytes(e, layer) + n * (CW_ENTRY_BYTES + row_out_bytes(e, layer));
        c->cost = cost_of(e, c);
        calls_queue(e, e->homes[i], c);
    }
    calls_send(e, e->homes[i], out);
    return true;
}

/* What nobody who can be reached holds waits for a home. */
static bool keep_rest(cw_edge *e, const piece *p)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < p->n; k++) n += e->x_home[p->r->entries[p->index[k]].expert] == NOBODY;
    if (!n) return true;
    piece *c = cut_off(e, p, NOBODY, 0, n);
    if (c) list_push(&e->homeless, c);
    return c != NULL;
}

/* A worker that seems slow gets no calls and would never be measured again: what is believed of those that
 * stay without fades, until they are tried. Decided by the number of placements, not by time, so that it is
 * the same every time. */
static void fade(cw_edge *e, const piece *p)
{
    for (uint32_t i = 0; i < e->n_homes; i++) {
        home *h = e->homes[i];
        bool chosen = false;
        for (uint32_t k = 0; k < p->n && !chosen; k++)
            chosen = e->x_home[p->r->entries[p->index[k]].expert] == i;
        h->doubt = chosen || h->state != HOME_UP ? 1 : h->doubt * 0.99;
    }
}

void place(cw_edge *e, piece *p, cw_outbox *out)
{
    cw_edge_request *r = p->r;
    assign_experts(e, p);
    fade(e, p);
    bool ok = keep_rest(e, p);
    for (uint32_t i = 0; i < e->n_homes && ok && r->active; i++)
        if (e->homes[i]->state == HOME_UP) ok = cut(e, p, i, out);
    cw_free(p);
    if (!ok) edge_end_request(e, r, CW_STATUS_NO_MEMORY, "out of memory for a call", out);
}
