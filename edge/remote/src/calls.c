/*
 * The table of calls: queued at a worker, sent, answered, failed, sent again. A call id is used once in the
 * life of the process, so a late answer finds nobody and is ignored. Rows go straight from the reply to the
 * request's memory.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/bytes.h"
#include "cw/mem.h"
#include "edge_internal.h"

void list_push(piece_list *l, piece *p)
{
    p->next = NULL;
    p->prev = l->tail;
    if (l->tail)
        l->tail->next = p;
    else
        l->head = p;
    l->tail = p;
}

void list_remove(piece_list *l, piece *p)
{
    if (p->prev)
        p->prev->next = p->next;
    else
        l->head = p->next;
    if (p->next)
        p->next->prev = p->prev;
    else
        l->tail = p->prev;
    p->prev = p->next = NULL;
}

piece *piece_new(cw_edge_request *r, uint32_t n)
{
    piece *p = cw_calloc(1, sizeof *p + n * sizeof p->index[0]);
    if (!p) return NULL;
    p->r = r;
    p->n = n;
    return p;
}

void calls_queue(cw_edge *e, home *h, piece *p)
{
    (void)e;
    p->h = h;
    p->sent_us = 0;
    h->load += p->cost;
    list_push(&h->queued, p);
}

/* Out of its home's lists and counts; the piece is the caller's then. */
static void take_out(home *h, piece *p)
{
    h->load -= p->cost;
    if (p->sent_us) {
        h->n_sent--;
        h->sent_bytes -= p->bytes;
        list_remove(&h->sent, p);
    } else {
        list_remove(&h->queued, p);
    }
    p->h = NULL;
    p->sent_us = 0;
}

static int ascending_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int ascending_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Frames of a call. The entry order of the wire is (expert, row), rows counted within the call; p->index
 * follows it. */
typedef struct {
    cw_frame f[3];
    uint8_t *mem[3];
    uint32_t n;
} call_frames;

static void fill_rows(const cw_edge *e, const piece *p, call_frames *cf)
{
    const cw_edge_request *r = p->r;
    size_t d = e->c.d_model, ld = r->ld ? (size_t)r->ld : d;
    uint32_t local = 0;
    for (uint32_t k = 0; k < p->n; k++) {
        uint32_t row = r->entries[p->index[k]].row;
        if (k && row == r->entries[p->index[k - 1]].row) continue;
        if (cf->n == 3) {
            memcpy(cf->mem[1] + local * d, r->q + row * ld, d);
            memcpy(cf->mem[2] + local * (d / 8), r->s + row * (ld / 32), d / 8);
        } else {
            memcpy(cf->mem[1] + local * d * 4, r->x + row * d, d * 4);
        }
        local++;
    }
}

static bool fill_entries(piece *p, call_frames *cf)
{
    uint64_t small[64], *order = p->n <= CW_ARRAY_LEN(small) ? small : cw_calloc(p->n, sizeof *order);
    uint32_t small_index[64],
        *index = p->n <= CW_ARRAY_LEN(small_index) ? small_index : cw_calloc(p->n, sizeof *index);
    bool ok = order && index;
    /* index is ascending, that is by (row, expert): at most 1024 entries, so all three parts fit. */
    for (uint32_t k = 0, local = 0; ok && k < p->n; k++) {
        const cw_edge_entry *x = &p->r->entries[p->index[k]];
        if (k && x->row != p->r->entries[p->index[k - 1]].row) local++;
        order[k] = (uint64_t)x->expert << 32 | local << 16 | k;
    }
    if (ok) {
        qsort(order, p->n, sizeof *order, ascending_u64);
        memcpy(index, p->index, p->n * sizeof *index);
        for (uint32_t k = 0; k < p->n; k++) {
            p->index[k] = index[order[k] & 0xffff];
            const cw_edge_entry *x = &p->r->entries[p->index[k]];
            cw_entry_put(cf->mem[0], k,
                         (cw_entry){.row = (uint16_t)(order[k] >> 16),
                                    .expert = (uint16_t)x->expert,
                                    .weight = x->weight});
        }
    }
    if (order != small) cw_free(order);
    if (index != small_index) cw_free(index);
    return ok;
}

static bool make_frames(cw_edge *e, piece *p, call_frames *cf)
{
    size_t d = e->c.d_model;
    bool a8 = e->layers[p->r->layer].act == CW__PB__ACT_KIND__ACT_A8;
    cf->n = a8 ? 3 : 2;
    size_t len[3] = {(size_t)p->n * CW_ENTRY_BYTES, (size_t)p->n_rows * d * (a8 ? 1 : 4),
                     (size_t)p->n_rows * d / 8};
    bool ok = true;
    for (uint32_t i = 0; i < cf->n; i++) {
        cf->f[i] = cw_frame_new(len[i], &cf->mem[i]);
        ok = ok && cf->mem[i];
    }
    if (ok) fill_rows(e, p, cf);
    if (ok) ok = fill_entries(p, cf);
    if (!ok)
        for (uint32_t i = 0; i < cf->n; i++) cw_free(cf->mem[i]);
    return ok;
}

/* Back to (row, expert) order, as a piece that is not sent has it. */
static void unsort(piece *p)
{
    qsort(p->index, p->n, sizeof p->index[0], ascending_u32);
}

static bool send_call(cw_edge *e, home *h, piece *p, cw_outbox *out)
{
    call_frames cf;
    if (!make_frames(e, p, &cf)) return false;
    int64_t left = p->r->deadline_us - e->now_us, budget = e->c.reply_us << (p->attempt < 8 ? p->attempt : 8);
    if (budget > left) budget = left > 1000 ? left : 1000;
    if (budget > UINT32_MAX) budget = UINT32_MAX;
    Cw__Pb__Call c = CW__PB__CALL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    p->id = ++e->next_call;
    c.id = p->id, c.epoch_term = e->epoch_term, c.epoch_number = e->epoch_number;
    c.layer = p->r->layer, c.n_rows = p->n_rows, c.n_entries = p->n;
    c.act = e->layers[p->r->layer].act, c.reply = e->layers[p->r->layer].rows;
    c.klass = p->r->klass, c.budget_us = (uint32_t)budget;
    env.body_case = CW__PB__ENVELOPE__BODY_CALL, env.call = &c;
    h->bytes_out += cw_msg_header_bytes(&env);
    for (uint32_t i = 0; i < cf.n; i++) h->bytes_out += cf.f[i].len;
    cw_send(out, h->link, &env, cf.f, cf.n);
    list_remove(&h->queued, p);
    p->sent_us = e->now_us > 0 ? e->now_us : 1;
    p->give_up_us = p->sent_us + budget + TRANSPORT_US;
    h->n_sent++;
    h->sent_bytes += p->bytes;
    list_push(&h->sent, p);
    e->calls++;
    e->resent += p->attempt > 0;
    return true;
}

void calls_send(cw_edge *e, home *h, cw_outbox *out)
{
    while (h->state == HOME_UP && h->queued.head && h->n_sent < FLIGHT_CALLS &&
           (!h->n_sent || h->sent_bytes + h->queued.head->bytes <= FLIGHT_BYTES)) {
        cw_edge_request *r = h->queued.head->r;
        if (!send_call(e, h, h->queued.head, out))
            edge_end_request(e, r, CW_STATUS_NO_MEMORY, "out of memory for a call", out);
    }
}

static piece *find(home *h, uint64_t id)
{
    for (piece *p = h->sent.head; p; p = p->next)
        if (p->id == id) return p;
    return NULL;
}

/* Rows of the reply to their places. */
static void put_rows(const cw_edge *e, const piece *p, const cw_reply_view *v)
{
    size_t d = e->c.d_model;
    for (uint32_t k = 0; k < p->n; k++) {
        size_t i = p->index[k];
        if (v->exps) {
            memcpy(p->r->f16 + i * d, v->rows + k * d * 2, d * 2);
            p->r->e[i] = v->exps[k];
        } else {
            memcpy(p->r->f32 + i * d, v->rows + k * d * 4, d * 4);
        }
    }
}

static void learn(const cw_edge *e, home *h, const piece *p, const cw_reply_view *v)
{
    h->calls++;
    h->rows += p->n;
    h->service_us =
        h->service_us ? (uint32_t)((7 * (uint64_t)h->service_us + v->service_us) / 8) : v->service_us;
    int64_t delay = e->now_us - p->sent_us - v->queue_us - v->service_us;
    if (delay > 0) link_learn(&h->delay_us, (double)delay);
    if (p->cost && v->service_us) link_learn(&h->us_per_byte, (double)v->service_us / (double)p->cost);
}

void calls_reply(cw_edge *e, home *h, cw_event *ev, cw_outbox *out)
{
    piece *p = find(h, ev->msg->env->reply->id);
    h->bytes_in += cw_msg_total_bytes(ev->msg);
    if (!p) {
        e->late++; /* cancelled, or answered by somebody else meanwhile */
        return;
    }
    cw_model_limits lim = {.n_layers = e->c.n_layers,
                           .n_experts = e->c.n_experts,
                           .d_model = e->c.d_model,
                           .max_rows = CALL_ENTRIES,
                           .max_entries = CALL_ENTRIES};
    cw_reply_view v;
    cw_err err = {0};
    if (cw_reply_view_get(ev->msg, &lim, e->layers[p->r->layer].rows, p->n, &v, &err) != CW_OK) {
        char why[160];
        snprintf(why, sizeof why, "it broke the protocol: %.130s", err.text);
        cw_blame(out, h->link, why);
        h->link = 0;
        links_close(e, h, why, REFUSED_RETRY_US, out);
        return;
    }
    put_rows(e, p, &v);
    learn(e, h, p, &v);
    cw_edge_request *r = p->r;
    r->n_left -= p->n;
    take_out(h, p);
    cw_free(p);
    if (!r->n_left) edge_end_request(e, r, CW_OK, "", out);
    calls_send(e, h, out);
}

/* Once more, elsewhere or later. */
static void again(cw_edge *e, piece *p, int64_t not_before_us, cw_outbox *out)
{
    unsort(p);
    p->cost = p->bytes = 0;
    p->attempt++;
    p->since_us = e->now_us;
    p->not_before_us = not_before_us;
    if (not_before_us > e->now_us)
        list_push(&e->homeless, p);
    else
        place(e, p, out);
}

void calls_failed(cw_edge *e, home *h, cw_event *ev, cw_outbox *out)
{
    const Cw__Pb__CallFail *f = ev->msg->env->call_fail;
    /* Also of an answer nobody waits for any more: a worker sends the same epoch once. */
    if (ev->msg->n_frames) homes_take_epoch(e, ev->msg->frames[0].data, ev->msg->frames[0].len);
    piece *p = find(h, f->id);
    if (!p) {
        e->late++;
        return;
    }
    cw_edge_request *r = p->r;
    char text[CW_TEXT_MAX];
    take_out(h, p);
    switch (f->code) {
    case CW__PB__FAIL_CODE__FAIL_NOT_HERE:
        home_lacks(e, h, f->layer, f->expert); /* also where its own epoch still says so */
        again(e, p, 0, out);
        break;
    case CW__PB__FAIL_CODE__FAIL_BUSY:
        again(e, p, e->now_us + (int64_t)(f->retry_after_ms ? f->retry_after_ms : 20) * 1000, out);
        break;
    case CW__PB__FAIL_CODE__FAIL_EXPIRED:
        h->suspect_until_us = e->now_us + SUSPECT_US;
        again(e, p, 0, out);
        break;
    case CW__PB__FAIL_CODE__FAIL_STOPPING:
        h->stopping = true;
        again(e, p, 0, out);
        break;
    default:
        cw_free(p);
        snprintf(text, sizeof text, "worker %.64s: %.400s", h->name, f->text);
        edge_end_request(e, r,
                         f->code == CW__PB__FAIL_CODE__FAIL_NUMERIC ? CW_STATUS_NUMERIC : CW_STATUS_MISMATCH,
                         text, out);
        break;
    }
    calls_send(e, h, out);
}

void calls_lost(cw_edge *e, home *h, cw_outbox *out)
{
    CW_ASSERT(h->state != HOME_UP);
    piece_list all = {0};
    for (piece *p; (p = h->sent.head);) take_out(h, p), list_push(&all, p);
    for (piece *p; (p = h->queued.head);) {
        p->attempt--; /* was never sent; again() counts it */
        take_out(h, p), list_push(&all, p);
    }
    for (piece *p; (p = all.head);) {
        list_remove(&all, p);
        /* One piece's failure may end its request, whose other pieces are in this list. */
        if (!p->r->active)
            cw_free(p);
        else
            again(e, p, 0, out);
    }
}

static void drop_from(cw_edge *e, home *h, cw_edge_request *r, cw_outbox *out)
{
    for (piece *p = h->queued.head, *next; p; p = next) {
        next = p->next;
        if (p->r == r) take_out(h, p), cw_free(p);
    }
    for (piece *p = h->sent.head, *next; p; p = next) {
        next = p->next;
        if (p->r != r) continue;
        Cw__Pb__Cancel c = CW__PB__CANCEL__INIT;
        Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
        c.id = p->id;
        env.body_case = CW__PB__ENVELOPE__BODY_CANCEL, env.cancel = &c;
        cw_send(out, h->link, &env, NULL, 0);
        take_out(h, p);
        cw_free(p);
    }
    (void)e;
}

void calls_drop_request(cw_edge *e, cw_edge_request *r, cw_outbox *out)
{
    for (size_t i = 0; i < e->n_homes; i++) drop_from(e, e->homes[i], r, out);
    for (piece *p = e->homeless.head, *next; p; p = next) {
        next = p->next;
        if (p->r == r) list_remove(&e->homeless, p), cw_free(p);
    }
}

void calls_homeless(cw_edge *e, cw_outbox *out)
{
    piece_list all = e->homeless;
    e->homeless = (piece_list){0};
    for (piece *p; (p = all.head);) {
        list_remove(&all, p);
        if (!p->r->active)
            cw_free(p);
        else if (p->not_before_us > e->now_us)
            list_push(&e->homeless, p);
        else
            place(e, p, out);
    }
}

/* Why nobody computes the first entry of p: for the user. */
static void why_homeless(const cw_edge *e, const piece *p, char *text, size_t cap)
{
    uint32_t layer = p->r->layer, expert = p->r->entries[p->index[0]].expert;
    for (size_t i = 0; i < e->n_homes; i++) {
        const home *h = e->homes[i];
        if (!home_holds(e, h, layer, expert)) continue;
        snprintf(text, cap,
                 "expert %u of layer %u cannot be reached: worker %.64s at %.120s holds it, and %.150s",
                 expert, layer, h->name, h->address,
                 h->stopping ? "it is stopping"
                 : h->why[0] ? h->why
                             : "it is not connected");
        return;
    }
    snprintf(text, cap, "no worker holds expert %u of layer %u", expert, layer);
}

static void check_homeless(cw_edge *e, cw_outbox *out)
{
    for (piece *p = e->homeless.head; p;) {
        if (p->not_before_us <= e->now_us && e->now_us - p->since_us > e->c.homeless_us) {
            char text[CW_TEXT_MAX];
            why_homeless(e, p, text, sizeof text);
            edge_end_request(e, p->r, CW_STATUS_UNREACHABLE, text, out);
            p = e->homeless.head; /* the list has changed */
        } else {
            p = p->next;
        }
    }
}

/* Calls whose answer does not come: taken back and sent again. The worker is asked last for a while. */
static void check_sent(cw_edge *e, home *h, cw_outbox *out)
{
    for (piece *p = h->sent.head; p;) {
        if (e->now_us < p->give_up_us) {
            p = p->next;
            continue;
        }
        Cw__Pb__Cancel c = CW__PB__CANCEL__INIT;
        Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
        c.id = p->id;
        env.body_case = CW__PB__ENVELOPE__BODY_CANCEL, env.cancel = &c;
        cw_send(out, h->link, &env, NULL, 0);
        h->suspect_until_us = e->now_us + SUSPECT_US;
        take_out(h, p);
        again(e, p, 0, out);
        p = h->sent.head;
    }
}

static void check_deadlines(cw_edge *e, cw_outbox *out)
{
    for (cw_edge_request *r = e->requests; r;) {
        cw_edge_request *next = r->next;
        if (e->now_us >= r->deadline_us) {
            char text[CW_TEXT_MAX];
            const home *slow = NULL;
            for (size_t i = 0; i < e->n_homes && !slow; i++)
                for (const piece *p = e->homes[i]->sent.head; p && !slow; p = p->next)
                    if (p->r == r) slow = e->homes[i];
            snprintf(text, sizeof text, "layer %u was not answered in time%s%.64s", r->layer,
                     slow ? ", the last to wait for is worker " : "", slow ? slow->name : "");
            edge_end_request(e, r, CW_STATUS_TIMEOUT, text, out);
            next = e->requests; /* DONE of one may not touch the others, but the list has changed */
        }
        r = next;
    }
}

void calls_tick(cw_edge *e, cw_outbox *out)
{
    check_deadlines(e, out);
    for (size_t i = 0; i < e->n_homes; i++) check_sent(e, e->homes[i], out);
    calls_homeless(e, out);
    check_homeless(e, out);
}
