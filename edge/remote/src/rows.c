/*
 * Rows that come back: each to its place in the request's memory, and where one is there already the two are
 * compared, bit for bit, before the second is dropped. Rows are pure functions of the call, so any difference
 * is a fault of one of the two workers.
 *
 * A row that comes when its request has ended (the loser of a hedge, the second of a doubled message) meets a
 * ghost: hashes of the rows that were used. The hash is no cryptography; it finds faults, not forgers.
 */
#include <stddef.h>
#include <string.h>

#include "cw/bytes.h"
#include "cw/recycled.h"
#include "cw/mem.h"
#include "edge_internal.h"

enum { GHOST_US = 10000000 };

/* Marks are listed, so that a machine that ends can free them without a look at requests, which may be gone.
 */
struct mark_block {
    mark_block *prev, *next;
    mark m[];
};

bool rows_begin(cw_edge *e, cw_edge_request *r)
{
    mark_block *b = cw_block_zeroed(sizeof *b + r->n_entries * sizeof b->m[0]);
    if (!b) return false;
    b->next = e->marks;
    if (b->next) b->next->prev = b;
    e->marks = b;
    r->marks = b->m;
    return true;
}

static void free_block(cw_edge *e, mark_block *b)
{
    if (b->prev)
        b->prev->next = b->next;
    else
        e->marks = b->next;
    if (b->next) b->next->prev = b->prev;
    cw_block_give(b);
}

void rows_end(cw_edge *e, cw_edge_request *r)
{
    if (r->marks) free_block(e, (mark_block *)(void *)((char *)r->marks - offsetof(mark_block, m)));
    r->marks = NULL;
}

void rows_free(cw_edge *e)
{
    while (e->marks) free_block(e, e->marks);
}

static bool is_f16(const cw_edge *e, uint32_t layer)
{
    return e->layers[layer].rows == CW__PB__REPLY_KIND__ROWS_F16;
}

size_t rows_bytes(const cw_edge *e, const cw_edge_request *r)
{
    return row_out_bytes(e, r->layer);
}

void rows_get(const cw_edge *e, const cw_edge_request *r, uint32_t i, uint8_t *row)
{
    size_t d = e->c.d_model;
    if (is_f16(e, r->layer)) {
        memcpy(row, r->f16 + i * d, d * 2);
        row[d * 2] = (uint8_t)r->e[i];
    } else {
        memcpy(row, r->f32 + i * d, d * 4);
    }
}

void rows_put(const cw_edge *e, cw_edge_request *r, uint32_t i, const uint8_t *row)
{
    size_t d = e->c.d_model;
    if (is_f16(e, r->layer)) {
        memcpy(r->f16 + i * d, row, d * 2);
        r->e[i] = (int8_t)row[d * 2];
    } else {
        memcpy(r->f32 + i * d, row, d * 4);
    }
}

void rows_done(cw_edge_request *r, uint32_t i)
{
    mark *m = &r->marks[i];
    CW_ASSERT((m->flags & ROW_HAVE) && !(m->flags & ROW_DONE) && r->n_left);
    m->flags |= ROW_DONE;
    r->n_left--;
}

/* Row k of the reply as rows_get gives it: no copy where there is no exponent. */
static const uint8_t *reply_row(const cw_edge *e, const cw_reply_view *v, uint32_t k, uint8_t *mem)
{
    size_t d = e->c.d_model;
    if (!v->exps) return v->rows + k * d * 4;
    memcpy(mem, v->rows + k * d * 2, d * 2);
    mem[d * 2] = (uint8_t)v->exps[k];
    return mem;
}

static bool equal(const cw_edge *e, const cw_edge_request *r, uint32_t i, const cw_reply_view *v, uint32_t k)
{
    size_t d = e->c.d_model;
    if (v->exps) return !memcmp(r->f16 + i * d, v->rows + k * d * 2, d * 2) && r->e[i] == v->exps[k];
    return !memcmp(r->f32 + i * d, v->rows + k * d * 4, d * 4);
}

static void first_row(const cw_edge *e, cw_edge_request *r, uint32_t i, const home *h, const cw_reply_view *v,
                      uint32_t k)
{
    size_t d = e->c.d_model;
    if (v->exps) {
        memcpy(r->f16 + i * d, v->rows + k * d * 2, d * 2);
        r->e[i] = v->exps[k];
    } else {
        memcpy(r->f32 + i * d, v->rows + k * d * 4, d * 4);
    }
    r->marks[i].flags |= ROW_HAVE;
    r->marks[i].by = h->index;
    if (!(r->marks[i].flags & ROW_TWO)) rows_done(r, i);
}

/* A row of an entry that has one already. */
static void second_row(cw_edge *e, cw_edge_request *r, uint32_t i, home *h, const cw_reply_view *v,
                       uint32_t k, uint8_t *mem)
{
    mark *m = &r->marks[i];
    e->n.compared++;
    if (m->flags & ROW_DISPUTE) {
        disputes_say(e, r, i, h, reply_row(e, v, k, mem));
    } else if (!equal(e, r, i, v, k)) {
        e->n.mismatches++;
        disputes_say(e, r, i, h, reply_row(e, v, k, mem));
    } else if (!(m->flags & ROW_DONE) && m->by != h->index) {
        rows_done(r, i);
    }
}

bool rows_take(cw_edge *e, home *h, const piece *p, const cw_reply_view *v)
{
    cw_edge_request *r = p->r;
    bool won = false;
    uint8_t *mem = cw_block_zeroed(rows_bytes(e, r));
    for (uint32_t k = 0; k < p->n; k++) {
        uint32_t i = p->index[k];
        if (!(r->marks[i].flags & ROW_HAVE)) {
            first_row(e, r, i, h, v, k);
            won = won || p->kind == PIECE_HEDGE;
        } else if (mem) { /* without memory nothing is compared, and nothing is lost */
            second_row(e, r, i, h, v, k, mem);
        }
    }
    cw_block_give(mem);
    return won;
}

/* --- ghosts --- */

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t hash_row(const uint8_t *row, size_t n)
{
    uint64_t h = n;
    size_t k = 0;
    for (; k + 8 <= n; k += 8) h = mix(h ^ cw_load_u64(row + k)) + 0x9e3779b97f4a7c15u;
    for (; k < n; k++) h = mix(h ^ row[k]) + 0x9e3779b97f4a7c15u;
    return h;
}

static void drop_oldest(home *h)
{
    ghost **at = &h->ghosts;
    while ((*at)->next) at = &(*at)->next; /* the newest come first */
    cw_block_give(*at);
    *at = NULL;
    h->n_ghosts--;
}

void ghost_keep(cw_edge *e, home *h, const piece *p)
{
    cw_edge_request *r = p->r;
    for (uint32_t k = 0; k < p->n; k++)
        if (!(r->marks[p->index[k]].flags & ROW_DONE)) return;
    size_t bytes = rows_bytes(e, r);
    ghost *g = cw_block_zeroed(sizeof *g + p->n * sizeof g->row[0]);
    uint8_t *mem = cw_block_zeroed(bytes);
    if (!g || !mem) {
        cw_block_give(g);
        cw_block_give(mem);
        return;
    }
    g->id = p->id;
    g->until_us = e->now_us + GHOST_US;
    g->layer = r->layer;
    g->n = p->n;
    for (uint32_t k = 0; k < p->n; k++) {
        uint32_t i = p->index[k];
        rows_get(e, r, i, mem);
        g->row[k].hash = hash_row(mem, bytes);
        g->row[k].expert = r->entries[i].expert;
        g->row[k].by = r->marks[i].by;
    }
    cw_block_give(mem);
    g->next = h->ghosts;
    h->ghosts = g;
    if (++h->n_ghosts > GHOSTS) drop_oldest(h);
}

static void compare(cw_edge *e, home *h, const ghost *g, const cw_reply_view *v)
{
    size_t bytes = row_out_bytes(e, g->layer);
    uint8_t *mem = cw_block_zeroed(bytes);
    for (uint32_t k = 0; mem && k < g->n; k++) {
        home *by = e->homes[g->row[k].by];
        e->n.compared++;
        if (by == h || hash_row(reply_row(e, v, k, mem), bytes) == g->row[k].hash) continue;
        e->n.mismatches++;
        disputes_report(e, by, h, NULL, g->layer, g->row[k].expert);
        break; /* one is enough: from now on all is compared while it can be put right */
    }
    cw_block_give(mem);
}

static ghost *take(home *h, uint64_t id)
{
    for (ghost **at = &h->ghosts; *at; at = &(*at)->next)
        if ((*at)->id == id) {
            ghost *g = *at;
            *at = g->next;
            h->n_ghosts--;
            return g;
        }
    return NULL;
}

bool ghost_reply(cw_edge *e, home *h, const cw_msg *msg, cw_outbox *out)
{
    ghost *g = take(h, msg->env->reply->id);
    if (!g) return false;
    cw_model_limits lim = {.n_layers = e->c.n_layers,
                           .n_experts = e->c.n_experts,
                           .d_model = e->c.d_model,
                           .max_rows = CALL_ENTRIES,
                           .max_entries = CALL_ENTRIES};
    cw_reply_view v;
    if (cw_reply_view_get(msg, &lim, e->layers[g->layer].rows, g->n, &v, NULL) == CW_OK) {
        compare(e, h, g, &v);
        control_report(e, out);
    }
    cw_block_give(g);
    return true;
}

void ghosts_tick(cw_edge *e, home *h)
{
    for (ghost **at = &h->ghosts; *at;) {
        ghost *g = *at;
        if (e->now_us < g->until_us) {
            at = &g->next;
            continue;
        }
        *at = g->next;
        h->n_ghosts--;
        cw_block_give(g);
    }
}

void ghosts_free(home *h)
{
    while (h->ghosts) drop_oldest(h);
}
