/*
 * Cutting what one worker gets of a layer into calls.
 *
 * A message is at most 256 KiB in each direction, and a quarter of what its link carries in a heartbeat
 * time-out: a long frame on a thin link would kill its own connection again and again. A message of a prefill
 * is also at most 2 ms of the worker's time, so that no stream waits long behind another's prompt. Where
 * bytes bind, the cut goes between rows: each row travels once. Where computing binds, it goes between
 * experts, so that weights are read once; rows travel once for each message then, which is the cheaper of the
 * two.
 */
#include <string.h>

#include "edge_internal.h"

enum {
    HEARTBEAT_US = 6000000,   /* libzmq's: without traffic for so long a link is down */
    LEAST_BYTES = 4096,       /* of a message on the thinnest link */
    UNMEASURED_BYTES = 65536, /* on a link that is far away and not measured yet */
    FAR_US = 5000,
    PIECES_MAX = 48, /* of one request for one worker, however long they take */
    ROWS_LEAST = 8,  /* of an expert in one message: weights are read for them */
};

size_t row_in_bytes(const cw_edge *e, uint32_t layer)
{
    return e->layers[layer].act == CW__PB__ACT_KIND__ACT_A8 ? (size_t)e->c.d_model * 9 / 8
                                                            : (size_t)e->c.d_model * 4;
}

size_t row_out_bytes(const cw_edge *e, uint32_t layer)
{
    return e->layers[layer].rows == CW__PB__REPLY_KIND__ROWS_F16 ? (size_t)e->c.d_model * 2 + 1
                                                                 : (size_t)e->c.d_model * 4;
}

static size_t bytes_max(const home *h)
{
    if (h->bytes_per_s <= 0) return h->delay_us > FAR_US ? UNMEASURED_BYTES : CW_CALL_TARGET_BYTES;
    double n = h->bytes_per_s * (HEARTBEAT_US / 4 / 1e6);
    return n < LEAST_BYTES ? LEAST_BYTES : n < CW_CALL_TARGET_BYTES ? (size_t)n : CW_CALL_TARGET_BYTES;
}

/* How the share of one home is cut: entries of one group go together. */
typedef struct {
    const piece *p;
    uint32_t home, n_groups;
    size_t bytes_max;
    uint32_t entries_max;
} plan;

/* What the worker would need for that many entries of one expert, its weights included. */
static double expert_us(const cw_edge *e, const home *h, uint32_t layer, uint32_t rows)
{
    double bytes = (double)e->layers[layer].weight_bytes +
                   (double)rows * (double)(row_in_bytes(e, layer) + row_out_bytes(e, layer));
    return bytes * home_pace(h) + rows * h->us_per_entry;
}

/* Each expert of the share once, in the order of first appearance: `f` gives it its group. */
static void group_experts(cw_edge *e, plan *pl, double piece_us)
{
    const piece *p = pl->p;
    const home *h = e->homes[pl->home];
    double us = 0;
    for (uint32_t k = 0; k < p->n; k++) e->x_group[p->r->entries[p->index[k]].expert] = UINT32_MAX;
    for (uint32_t k = 0; k < p->n; k++) {
        uint32_t x = p->r->entries[p->index[k]].expert;
        if (e->x_home[x] != pl->home || e->x_group[x] != UINT32_MAX) continue;
        double mine = expert_us(e, h, p->r->layer, e->x_rows[x]);
        if (us > 0 && us + mine > piece_us) pl->n_groups++, us = 0;
        us += mine;
        e->x_group[x] = pl->n_groups;
    }
    pl->n_groups++;
}

static void make_plan(cw_edge *e, plan *pl)
{
    const piece *p = pl->p;
    const home *h = e->homes[pl->home];
    uint32_t layer = p->r->layer;
    double us = 0;
    for (uint32_t k = 0; k < p->n; k++) {
        uint32_t x = p->r->entries[p->index[k]].expert;
        e->x_group[x] = 0;
        if (e->x_home[x] == pl->home) us += expert_us(e, h, layer, e->x_rows[x]) / e->x_rows[x];
    }
    pl->n_groups = 1;
    pl->entries_max = CALL_ENTRIES;
    if (p->r->klass != CW__PB__CALL_CLASS__CLASS_PREFILL || us <= PIECE_US) return;
    double piece_us = us / PIECES_MAX > PIECE_US ? us / PIECES_MAX : PIECE_US;
    double bytes = (double)e->share[pl->home] * (double)(row_in_bytes(e, layer) + row_out_bytes(e, layer));
    if (bytes / (double)pl->bytes_max < us / piece_us) {
        pl->n_groups = 0;
        group_experts(e, pl, piece_us);
    }
    double row_us = us / e->share[pl->home];
    uint32_t fit =
        row_us > 0 && piece_us / row_us < CALL_ENTRIES ? (uint32_t)(piece_us / row_us) : CALL_ENTRIES;
    pl->entries_max = fit < ROWS_LEAST ? ROWS_LEAST : fit;
}

static bool is_mine(const cw_edge *e, const plan *pl, uint32_t k, uint32_t group)
{
    uint32_t x = pl->p->r->entries[pl->p->index[k]].expert;
    return e->x_home[x] == pl->home && e->x_group[x] == group;
}

/* Entries of a group, counted from `from` on, as many rows as one call takes; *next is where the rest begins.
 */
static uint32_t measure(const cw_edge *e, const plan *pl, uint32_t group, uint32_t from, uint32_t *n_rows,
                        uint32_t *next)
{
    const piece *p = pl->p;
    const cw_edge_request *r = p->r;
    size_t in = 0, back = 0, row_in = row_in_bytes(e, r->layer), row_out = row_out_bytes(e, r->layer);
    uint32_t n = 0, rows = 0, k = from;
    while (k < p->n) {
        /* All of one row's entries together: the row travels once. */
        uint32_t row = r->entries[p->index[k]].row, end = k, mine = 0;
        for (; end < p->n && r->entries[p->index[end]].row == row; end++) mine += is_mine(e, pl, end, group);
        if (mine) {
            bool full = in + row_in + mine * CW_ENTRY_BYTES > pl->bytes_max ||
                        back + mine * row_out > pl->bytes_max || n + mine > pl->entries_max;
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

static piece *cut_off(cw_edge *e, const plan *pl, uint32_t group, uint32_t from, uint32_t n, uint32_t rows)
{
    const piece *p = pl->p;
    uint32_t layer = p->r->layer;
    piece *c = piece_new(p->r, n);
    if (!c) return NULL;
    c->kind = p->kind;
    c->attempt = p->attempt;
    c->since_us = p->since_us;
    c->numeric = p->numeric;
    c->not_on = p->not_on;
    for (uint32_t k = from, w = 0; w < n; k++)
        if (is_mine(e, pl, k, group)) c->index[w++] = p->index[k];
    c->n_rows = rows;
    c->bytes = rows * row_in_bytes(e, layer) + n * (CW_ENTRY_BYTES + row_out_bytes(e, layer));
    c->cost = cost_of(e, c);
    piece_cover(c);
    return c;
}

/* One message in so many, at random so that no worker knows which, and everything while it is in doubt. */
static bool is_doubled(cw_edge *e, const home *h, const piece *c)
{
    if (c->kind != PIECE_WORK) return false;
    for (uint32_t k = 0; k < c->n; k++)
        if (c->r->marks[c->index[k]].flags) return false; /* has a twin already */
    return home_in_doubt(e, h) || (!c->attempt && edge_random(e) % e->c.double_every == 0);
}

/* The same entries for another home; they take two equal rows from now on. Without memory they go undoubled.
 */
static void add_twin(const home *h, const piece *c, piece_list *twins)
{
    piece *t = piece_new(c->r, c->n);
    if (!t) return;
    memcpy(t->index, c->index, c->n * sizeof c->index[0]);
    t->kind = PIECE_TWIN;
    t->since_us = c->since_us;
    t->not_on = (home *)(uintptr_t)h;
    for (uint32_t k = 0; k < c->n; k++) c->r->marks[c->index[k]].flags |= ROW_TWO;
    piece_cover(t);
    list_push(twins, t);
}

bool cut(cw_edge *e, const piece *p, uint32_t i, piece_list *twins, uint32_t *n_cut)
{
    home *h = e->homes[i];
    plan pl = {.p = p, .home = i, .bytes_max = bytes_max(h)};
    make_plan(e, &pl);
    for (uint32_t g = 0; g < pl.n_groups; g++)
        for (uint32_t from = 0, next, rows; from < p->n; from = next) {
            uint32_t n = measure(e, &pl, g, from, &rows, &next);
            if (!n) break;
            piece *c = cut_off(e, &pl, g, from, n, rows);
            if (!c) return false;
            if (is_doubled(e, h, c)) add_twin(h, c, twins);
            calls_queue(e, h, c);
            ++*n_cut;
        }
    return true;
}
