/*
 * Two workers gave different bits for one row. Who is right?
 *
 * Rows are pure functions, so of two that differ one is wrong, and no row is used before that is known. Every
 * answer to the entry is kept as a statement. A worker that states two different rows has proven itself
 * wrong; a row that two workers state is right (a faulty worker is one of few, and faults do not agree to the
 * bit). So a third home of the expert is asked first, and where there is none the two are asked again, which
 * finds whoever errs now and then. Two workers that each insist are left to the coordinator, who has the
 * model and computes the rows itself: the epoch without the one that it found wrong decides. It is waited
 * for, since a wrong row can never be taken out of an answer again; but not for ever: a coordinator that is
 * away must not stop answers, and then the worker with fewer disputes is believed and the log says so.
 *
 * A proven liar is barred: its link is closed and its calls go elsewhere, without waiting for the
 * coordinator. While a dispute is open, or one came to light too late (the answer had gone on with one of the
 * rows), both workers are in doubt: everything they compute is asked from two homes and used when both agree.
 * That is why no answer changes any more after the first mismatch was seen, whoever of the two was wrong.
 */
#include <stdio.h>
#include <string.h>

#include "cw/mem.h"
#include "edge_internal.h"

enum { STATEMENTS = 8 };

struct dispute {
    dispute *next;
    cw_edge_request *r;
    uint32_t i; /* entry */
    int64_t since_us;
    bool reported;
    uint32_t n;
    struct {
        home *h;
        uint8_t *row;
    } said[STATEMENTS];
};

bool home_barred(const cw_edge *e, const home *h)
{
    return h->barred_until_us > e->now_us;
}

bool home_in_doubt(const cw_edge *e, const home *h)
{
    return h->doubt_until_us > e->now_us;
}

static uint32_t layer_of(const dispute *d)
{
    return d->r->layer;
}

static uint32_t expert_of(const dispute *d)
{
    return d->r->entries[d->i].expert;
}

void disputes_report(cw_edge *e, home *a, home *b, const home *third, uint32_t layer, uint32_t expert)
{
    if (!third) a->doubt_until_us = b->doubt_until_us = e->now_us + DOUBT_US;
    edge_say(e, "workers %s and %s gave different rows for expert %u of layer %u%s%s", a->name, b->name,
             expert, layer, third ? "; the first one's is confirmed by worker " : "",
             third ? third->name : "");
    if (e->n_reports ==
        REPORTS) { /* the oldest matter least: the newest are about workers that still serve */
        memmove(&e->reports[0], &e->reports[1], (REPORTS - 1) * sizeof e->reports[0]);
        e->n_reports--;
    }
    e->reports[e->n_reports].a = a->id, e->reports[e->n_reports].b = b->id;
    e->reports[e->n_reports].third = third ? third->id : 0;
    e->reports[e->n_reports].layer = layer, e->reports[e->n_reports].expert = expert;
    e->n_reports++;
}

static void bar(cw_edge *e, home *h, const dispute *d)
{
    if (home_barred(e, h)) return;
    h->barred_until_us = e->now_us + BARRED_US;
    edge_say(e, "worker %s gave a wrong row for expert %u of layer %u: it is asked no more", h->name,
             expert_of(d), layer_of(d));
}

static dispute *find(const cw_edge *e, const cw_edge_request *r, uint32_t i)
{
    for (dispute *d = e->disputes; d; d = d->next)
        if (d->r == r && d->i == i) return d;
    return NULL;
}

static bool state(const cw_edge *e, dispute *d, home *h, const uint8_t *row)
{
    if (d->n == STATEMENTS) return true;
    uint8_t *copy = cw_calloc(1, rows_bytes(e, d->r));
    if (!copy) return false;
    memcpy(copy, row, rows_bytes(e, d->r));
    d->said[d->n].h = h;
    d->said[d->n++].row = copy;
    return true;
}

static dispute *begin(cw_edge *e, cw_edge_request *r, uint32_t i)
{
    mark *m = &r->marks[i];
    size_t bytes = rows_bytes(e, r);
    dispute *d = cw_calloc(1, sizeof *d);
    uint8_t *row = cw_calloc(1, bytes);
    if (d && row) {
        *d = (dispute){.next = e->disputes, .r = r, .i = i, .since_us = e->now_us};
        rows_get(e, r, i, row);
        if (state(e, d, e->homes[m->by], row)) {
            e->disputes = d;
            if (m->flags & ROW_DONE) r->n_left++;
            m->flags = (uint8_t)((m->flags & ~ROW_DONE) | ROW_DISPUTE);
            e->homes[m->by]->n_disputes++;
            cw_free(row);
            return d;
        }
    }
    cw_free(row);
    cw_free(d);
    return NULL;
}

void disputes_say(cw_edge *e, cw_edge_request *r, uint32_t i, home *h, const uint8_t *row)
{
    dispute *d = find(e, r, i);
    bool first = !d;
    if (first && !(d = begin(e, r, i))) return; /* out of memory: as if it had not been compared */
    if (first) h->n_disputes++;
    (void)state(e, d, h, row);
}

static void forget_statement(dispute *d, uint32_t k)
{
    cw_free(d->said[k].row);
    d->said[k] = d->said[--d->n];
}

static void free_dispute(dispute *d)
{
    while (d->n) forget_statement(d, d->n - 1);
    cw_free(d);
}

/* Of those who must not be believed any more: barred, or left out of the epoch. */
static void forget_fallen(const cw_edge *e, dispute *d)
{
    for (uint32_t k = d->n; k-- > 0;)
        if (home_barred(e, d->said[k].h) || !d->said[k].h->in_epoch) forget_statement(d, k);
}

static bool same(const cw_edge *e, const dispute *d, uint32_t a, uint32_t b)
{
    return !memcmp(d->said[a].row, d->said[b].row, rows_bytes(e, d->r));
}

/* Who contradicts himself. */
static home *contradiction(const cw_edge *e, const dispute *d)
{
    for (uint32_t a = 0; a < d->n; a++)
        for (uint32_t b = a + 1; b < d->n; b++)
            if (d->said[a].h == d->said[b].h && !same(e, d, a, b)) return d->said[a].h;
    return NULL;
}

/* A row that two workers state: *a and *b say it. */
static bool agreement(const cw_edge *e, const dispute *d, uint32_t *a, uint32_t *b)
{
    for (*a = 0; *a < d->n; ++*a)
        for (*b = *a + 1; *b < d->n; ++*b)
            if (d->said[*a].h != d->said[*b].h && same(e, d, *a, *b)) return true;
    return false;
}

static uint32_t times(const dispute *d, const home *h)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < d->n; k++) n += d->said[k].h == h;
    return n;
}

static bool is_single(const dispute *d)
{
    return d->n && times(d, d->said[0].h) == d->n;
}

/* The row is settled: it goes to its place. */
static void adopt(cw_edge *e, dispute *d, uint32_t k)
{
    mark *m = &d->r->marks[d->i];
    rows_put(e, d->r, d->i, d->said[k].row);
    m->by = d->said[k].h->index;
    m->flags = (uint8_t)((m->flags & ~ROW_DISPUTE) | ROW_HAVE);
    rows_done(d->r, d->i);
}

static void ask(cw_edge *e, const dispute *d, home *h)
{
    uint32_t layer = layer_of(d);
    piece *p = piece_new(d->r, 1);
    if (!p) return; /* the next tick tries again */
    p->kind = PIECE_ASK;
    p->index[0] = d->i;
    p->n_rows = 1;
    p->since_us = e->now_us;
    p->bytes = row_in_bytes(e, layer) + row_out_bytes(e, layer) + CW_ENTRY_BYTES;
    p->cost = e->layers[layer].weight_bytes + p->bytes;
    piece_cover(p);
    calls_queue(e, h, p);
}

/* Somebody who has not spoken; true: asked. */
static bool ask_another(cw_edge *e, const dispute *d)
{
    for (size_t i = 0; i < e->n_homes; i++) {
        home *h = e->homes[i];
        if (times(d, h) || home_is_late(h) || !home_can(e, h, layer_of(d), expert_of(d))) continue;
        ask(e, d, h);
        return true;
    }
    return false;
}

static bool ask_again(cw_edge *e, const dispute *d)
{
    bool asked = false;
    for (uint32_t k = 0; k < d->n; k++) {
        home *h = d->said[k].h;
        if (times(d, h) > 1 || home_is_late(h) || !home_can(e, h, layer_of(d), expert_of(d))) continue;
        ask(e, d, h);
        asked = true;
    }
    return asked;
}

static void tell(cw_edge *e, dispute *d, home *a, home *b, const home *third)
{
    if (!d->reported) disputes_report(e, a, b, third, layer_of(d), expert_of(d));
    d->reported = true;
}

/* All who can be asked insist. */
static bool undecided(cw_edge *e, dispute *d, cw_outbox *out)
{
    uint32_t best = 0, other = 0;
    for (uint32_t k = 1; k < d->n; k++) {
        const home *h = d->said[k].h, *b = d->said[best].h;
        if (h->n_disputes < b->n_disputes || (h->n_disputes == b->n_disputes && h->id < b->id)) best = k;
    }
    while (d->said[other].h == d->said[best].h) other++;
    tell(e, d, d->said[best].h, d->said[other].h, NULL);
    if (e->now_us - d->since_us < e->c.verdict_us) {
        cw_outbox_wake(out, d->since_us + e->c.verdict_us);
        return false;
    }
    edge_say(e, "no verdict on workers %s and %s in time: the first is believed", d->said[best].h->name,
             d->said[other].h->name);
    adopt(e, d, best);
    return true;
}

/* One step; true: it is over. */
static bool settle(cw_edge *e, dispute *d, cw_outbox *out)
{
    uint32_t a, b;
    mark *m = &d->r->marks[d->i];
    forget_fallen(e, d);
    for (home *liar; (liar = contradiction(e, d));) {
        for (uint32_t k = 0; k < d->n; k++)
            if (d->said[k].h != liar) {
                tell(e, d, d->said[k].h, liar, NULL);
                d->said[k].h->doubt_until_us = 0; /* it is known who was wrong */
                break;
            }
        bar(e, liar, d);
        forget_fallen(e, d);
    }
    if (agreement(e, d, &a, &b)) {
        for (uint32_t k = 0; k < d->n; k++)
            if (!same(e, d, a, k)) {
                tell(e, d, d->said[a].h, d->said[k].h, d->said[b].h);
                bar(e, d->said[k].h, d);
            }
        adopt(e, d, a);
        return true;
    }
    if (is_single(d)) { /* the others have been found wrong */
        adopt(e, d, 0);
        return true;
    }
    if (!d->n) { /* all have; the entry begins anew */
        m->flags = (uint8_t)(m->flags & ~(ROW_DISPUTE | ROW_HAVE));
        piece *p = m->pending ? NULL : piece_new(d->r, 1);
        if (p) {
            p->index[0] = d->i;
            p->since_us = e->now_us;
            piece_cover(p);
            list_push(&e->homeless, p); /* the next tick places it */
        }
        cw_outbox_wake(out, e->now_us);
        return true;
    }
    if (m->pending) return false; /* somebody is being asked */
    if (ask_another(e, d) || ask_again(e, d)) return false;
    return undecided(e, d, out);
}

static void close_barred(cw_edge *e, cw_outbox *out)
{
    for (size_t i = 0; i < e->n_homes; i++)
        if (home_barred(e, e->homes[i]) && e->homes[i]->link)
            links_close(e, e->homes[i], "its rows were wrong", BARRED_US, out);
}

void disputes_run(cw_edge *e, cw_outbox *out)
{
    if (!e->disputes) return;
    dispute *over = NULL;
    for (dispute **at = &e->disputes; *at;) {
        dispute *d = *at;
        if (!settle(e, d, out)) {
            at = &d->next;
            continue;
        }
        *at = d->next;
        d->next = over;
        over = d;
    }
    /* What follows may end requests and place pieces, and so change the list of disputes. */
    while (over) {
        dispute *d = over;
        over = d->next;
        calls_finish(e, d->r, out);
        free_dispute(d);
    }
    close_barred(e, out);
    for (size_t i = 0; i < e->n_homes; i++) calls_send(e, e->homes[i], out);
    control_report(e, out);
}

void disputes_drop(cw_edge *e, const cw_edge_request *r)
{
    for (dispute **at = &e->disputes; *at;) {
        dispute *d = *at;
        if (d->r != r) {
            at = &d->next;
            continue;
        }
        *at = d->next;
        uint32_t other = 0;
        while (other < d->n && d->said[other].h == d->said[0].h) other++;
        if (other < d->n) tell(e, d, d->said[0].h, d->said[other].h, NULL);
        free_dispute(d);
    }
}

void disputes_free(cw_edge *e)
{
    for (dispute *d; (d = e->disputes);) {
        e->disputes = d->next;
        free_dispute(d);
    }
}
