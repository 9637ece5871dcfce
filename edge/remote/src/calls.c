/*
 * The table of calls: queued at a worker, sent, answered, failed, sent again. A call id is used once in the
 * life of the process, so a late answer finds nobody, or a ghost that compares it (rows.c). An entry may be
 * under way several times; what comes back without an answer is sent again only where nothing else covers it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/recycled.h"
#include "cw/mem.h"
#include "edge_internal.h"

enum {
    BUSY_RETRY_US = 20000,     /* where a worker names no time */
    BUSY_FREE_US = 1000000,    /* one retry in so long needs no token */
    BUDGET_LEAST_US = 1000000, /* of a call, however fast the worker is */
    BUDGET_SERVICES = 32,      /* a call is given so many times what is late for it */
    SMALL_BYTES = 3072,        /* whose time is the delay of a link of which nothing else is known */
    LITTLE_BYTES = 4096,       /* that a thin link needs some time for */
    FLIGHT_US = 1000000,       /* what a link carries in that time may be under way on it */
};

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
    piece *p = cw_block_zeroed(sizeof *p + n * sizeof p->index[0]);
    if (!p) return NULL;
    p->r = r;
    p->n = n;
    return p;
}

void piece_cover(piece *p)
{
    for (uint32_t k = 0; k < p->n; k++) p->r->marks[p->index[k]].pending++;
}

void piece_free(piece *p)
{
    for (uint32_t k = 0; p->r->active && k < p->n; k++) p->r->marks[p->index[k]].pending--;
    cw_block_give(p);
}

void calls_queue(cw_edge *e, home *h, piece *p)
{
    (void)e;
    p->h = h;
    p->sent_us = 0;
    p->overdue = p->hedged = p->busy = false;
    h->load += p->cost;
    list_push(&h->queued, p);
}

void calls_take_out(home *h, piece *p)
{
    h->load -= p->cost;
    if (p->sent_us) {
        h->n_sent--;
        h->sent_bytes -= p->bytes;
        p->attempt++;
        list_remove(&h->sent, p);
    } else {
        list_remove(&h->queued, p);
    }
    p->h = NULL;
    p->sent_us = 0;
}

/* --- sending --- */

/* How long the worker may take before we give up on the call: from what it usually takes, longer each time.
 */
static int64_t budget_of(const cw_edge *e, const home *h, const piece *p)
{
    int64_t b = BUDGET_SERVICES * late_after_us(e, h, p->cost) + late_queue_us(e, h);
    int64_t left = p->r->deadline_us - e->now_us;
    if (b < BUDGET_LEAST_US) b = BUDGET_LEAST_US;
    if (b > e->c.reply_us) b = e->c.reply_us;
    b <<= p->attempt < 8 ? p->attempt : 8;
    if (b > left) b = left > 1000 ? left : 1000;
    return b > UINT32_MAX ? UINT32_MAX : b;
}

static void count(cw_edge *e, const piece *p)
{
    e->n.calls++;
    e->n.resent += p->kind == PIECE_WORK && p->attempt > 0;
    e->n.doubled += p->kind == PIECE_TWIN;
    /* What hedges and retries may be of all messages: one in twenty. */
    if (p->kind == PIECE_WORK && !p->attempt && e->tokens < 10) e->tokens += 0.05;
}

static bool send_call(cw_edge *e, home *h, piece *p, cw_outbox *out)
{
    call_frames cf;
    if (!frames_make(e, p, &cf)) return false;
    int64_t budget = budget_of(e, h, p);
    Cw__Pb__Call c = CW__PB__CALL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    p->id = ++e->next_call;
    c.id = p->id, c.epoch_term = e->epoch_term, c.epoch_number = e->epoch_number;
    c.layer = p->r->layer, c.n_rows = p->n_rows, c.n_entries = p->n;
    c.act = e->layers[p->r->layer].act, c.reply = e->layers[p->r->layer].rows;
    c.klass = p->r->klass, c.budget_us = (uint32_t)budget, c.stream = p->r->stream;
    env.body_case = CW__PB__ENVELOPE__BODY_CALL, env.call = &c;
    h->bytes_out += cw_msg_header_bytes(&env);
    for (uint32_t i = 0; i < cf.n; i++) h->bytes_out += cf.f[i].len;
    cw_send(out, h->link, &env, cf.f, cf.n);
    list_remove(&h->queued, p);
    p->sent_us = e->now_us > 0 ? e->now_us : 1;
    p->give_up_us = p->sent_us + budget + TRANSPORT_US;
    h->n_sent++;
    h->sent_bytes += p->bytes;
    p->ahead_bytes = h->sent_bytes;
    list_push(&h->sent, p);
    count(e, p);
    late_sent(e, h, p, out);
    return true;
}

static uint64_t flight_bytes(const home *h)
{
    double carries = h->bytes_per_s * (FLIGHT_US / 1e6);
    return h->bytes_per_s > 0 && carries < FLIGHT_BYTES ? (uint64_t)carries : FLIGHT_BYTES;
}

void calls_send(cw_edge *e, home *h, cw_outbox *out)
{
    while (h->state == HOME_UP && h->queued.head && h->n_sent < FLIGHT_CALLS &&
           (!h->n_sent || h->sent_bytes + h->queued.head->bytes <= flight_bytes(h))) {
        cw_edge_request *r = h->queued.head->r;
        if (!send_call(e, h, h->queued.head, out))
            edge_end_request(e, r, CW_STATUS_NO_MEMORY, "out of memory for a call", out);
    }
}

void calls_call_off(home *h, const piece *p, cw_outbox *out)
{
    Cw__Pb__Cancel c = CW__PB__CANCEL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    c.id = p->id;
    env.body_case = CW__PB__ENVELOPE__BODY_CANCEL, env.cancel = &c;
    cw_send(out, h->link, &env, NULL, 0);
}

/* --- what comes back --- */

static piece *find(home *h, uint64_t id)
{
    for (piece *p = h->sent.head; p; p = p->next)
        if (p->id == id) return p;
    return NULL;
}

void calls_finish(cw_edge *e, cw_edge_request *r, cw_outbox *out)
{
    if (r->active && !r->n_left) edge_end_request(e, r, CW_OK, "", out);
}

enum { WANT_NOTHING, WANT_WORK, WANT_TWIN };

/* What is still to be done for entry i, which the piece that comes back covered. */
static int wanted(const cw_edge_request *r, uint32_t i)
{
    const mark *m = &r->marks[i];
    if (m->pending > 1) return WANT_NOTHING; /* somebody else has it */
    if (!(m->flags & ROW_HAVE)) return WANT_WORK;
    bool single = (m->flags & ROW_TWO) && !(m->flags & (ROW_DONE | ROW_DISPUTE));
    return single ? WANT_TWIN : WANT_NOTHING;
}

/* The entries of p of which `what` is wanted as a piece of their own; NULL: none. *ok false: out of memory.
 */
static piece *part(piece *p, int what, bool *ok)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < p->n; k++) n += wanted(p->r, p->index[k]) == what;
    piece *c = n ? piece_new(p->r, n) : NULL;
    if (n && !c) *ok = false;
    if (!c) return NULL;
    for (uint32_t k = 0, w = 0; w < n; k++)
        if (wanted(p->r, p->index[k]) == what) c->index[w++] = p->index[k];
    c->attempt = p->attempt;
    return c;
}

static void send_on(cw_edge *e, piece *p, int64_t not_before_us, cw_outbox *out)
{
    p->since_us = e->now_us;
    p->not_before_us = not_before_us;
    if (p->kind == PIECE_WORK && not_before_us > e->now_us)
        list_push(&e->homeless, p);
    else
        place(e, p, out);
}

void calls_again(cw_edge *e, piece *p, int64_t not_before_us, cw_outbox *out)
{
    cw_edge_request *r = p->r;
    bool ok = true;
    frames_unsort(p);
    piece *work = part(p, WANT_WORK, &ok), *twin = part(p, WANT_TWIN, &ok);
    if (work) {
        work->numeric = p->numeric;
        work->not_on = p->numeric ? p->not_on : NULL;
        work->busy = p->busy;
        piece_cover(work);
    }
    if (twin) {
        twin->kind = PIECE_TWIN;
        twin->not_on = e->homes[r->marks[twin->index[0]].by];
        piece_cover(twin);
    }
    piece_free(p);
    if (work) send_on(e, work, not_before_us, out);
    if (twin && r->active)
        send_on(e, twin, 0, out);
    else if (twin)
        piece_free(twin);
    if (!ok) edge_end_request(e, r, CW_STATUS_NO_MEMORY, "out of memory for a call", out);
    calls_finish(e, r, out); /* a twin that nobody computes is done without */
}

static void learn(const cw_edge *e, home *h, const piece *p, const cw_reply_view *v)
{
    h->calls++;
    h->rows += p->n;
    h->service_sum_us += v->service_us;
    h->service_us =
        h->service_us ? (uint32_t)((7 * (uint64_t)h->service_us + v->service_us) / 8) : v->service_us;
    int64_t delay = e->now_us - p->sent_us - v->queue_us - v->service_us;
    /* A worker that slept meanwhile says nothing of its link. */
    bool slept = h->back_us >= p->sent_us;
    /* Nor does one that had much to carry: only what is faster than ever is news then. */
    double carried_us = h->bytes_per_s > 0 ? (double)p->ahead_bytes * 1e6 / h->bytes_per_s : 0;
    bool quick = p->bytes < (h->bytes_per_s > 0 ? CW_CALL_TARGET_BYTES / 8 : SMALL_BYTES) &&
                 carried_us < (double)delay / 4;
    if (delay > 0 && !p->overdue && (quick || (double)delay < h->delay_us))
        link_learn_delay(&h->delay_us, (double)delay);
    /* A call of many rows is bound by computing, one of few by reading weights. */
    bool small = p->n_rows <= 4 || h->us_per_byte <= 0;
    if (p->cost && v->service_us && small)
        link_learn(&h->us_per_byte, (double)v->service_us / (double)p->cost);
    double rows_us = (double)v->service_us - (double)p->cost * h->us_per_byte;
    if (!small && rows_us > 0) link_learn(&h->us_per_entry, rows_us / p->n);
    if (h->same_host) return;
    /* All that was on the link when the call left had to pass before its reply could come; a link that is
     * done in 2 ms is not what limits anything. Few bytes tell of a link only where it is thin: there they
     * took clearly longer than scheduling would make them, and the next that do not take it back. */
    double carry_us = (double)delay - h->delay_us;
    bool many = p->ahead_bytes >= 16384;
    double least_us = many ? 2000 : 300;
    double rate = (double)p->ahead_bytes * 1e6 / (carry_us > least_us ? carry_us : least_us);
    if (many ? (h->bytes_per_s > 0 ? !slept : carry_us > 2000)
             : p->ahead_bytes >= LITTLE_BYTES && !slept && (h->bytes_per_s > 0 || carry_us > 4000))
        h->bytes_per_s = rate > h->bytes_per_s ? rate : 0.9 * h->bytes_per_s + 0.1 * rate;
}

/* Where one worker gave a row that is not finite and another has none to complain of, one of the two is
 * wrong. */
static void numeric_was_wrong(cw_edge *e, home *h, const piece *p, cw_outbox *out)
{
    if (!p->numeric || !p->not_on) return;
    e->n.mismatches++;
    disputes_report(e, h, p->not_on, NULL, p->r->layer, p->r->entries[p->index[0]].expert);
    control_report(e, out);
}

static void blame(cw_edge *e, home *h, const char *text, cw_outbox *out)
{
    char why[160];
    snprintf(why, sizeof why, "it broke the protocol: %.130s", text);
    cw_blame(out, h->link, why);
    h->link = 0;
    links_close(e, h, why, REFUSED_RETRY_US, out);
}

void calls_reply(cw_edge *e, home *h, cw_event *ev, cw_outbox *out)
{
    piece *p = find(h, ev->msg->env->reply->id);
    h->bytes_in += cw_msg_total_bytes(ev->msg);
    if (!p) {
        e->n.late++; /* cancelled, or answered by somebody else meanwhile */
        ghost_reply(e, h, ev->msg, out);
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
        blame(e, h, err.text, out);
        return;
    }
    cw_edge_request *r = p->r;
    e->n.hedge_wins += rows_take(e, h, p, &v);
    late_reply(e, h, p, &v);
    learn(e, h, p, &v);
    numeric_was_wrong(e, h, p, out);
    calls_take_out(h, p);
    calls_again(e, p, 0, out); /* a twin that has lost its twin */
    disputes_run(e, out);
    calls_finish(e, r, out);
    calls_send(e, h, out);
}

/* Whether every entry has a worker other than h that could take it. */
static bool has_others(const cw_edge *e, const home *h, const piece *p)
{
    for (uint32_t k = 0; k < p->n; k++) {
        bool found = false;
        for (size_t i = 0; i < e->n_homes && !found; i++)
            found =
                e->homes[i] != h && home_can(e, e->homes[i], p->r->layer, p->r->entries[p->index[k]].expert);
        if (!found) return false;
    }
    return true;
}

static void numeric_failure(cw_edge *e, home *h, piece *p, const Cw__Pb__CallFail *f, cw_outbox *out)
{
    char text[CW_TEXT_MAX];
    cw_edge_request *r = p->r;
    /* A fault of that worker, or the row is like that: a second one tells. */
    if (f->code == CW__PB__FAIL_CODE__FAIL_NUMERIC && !p->numeric && has_others(e, h, p)) {
        edge_say(e, "worker %s: %.200s; asking another one", h->name, f->text);
        p->numeric = true;
        p->not_on = h;
        calls_again(e, p, 0, out);
        return;
    }
    piece_free(p);
    snprintf(text, sizeof text, "worker %.64s: %.400s", h->name, f->text);
    edge_end_request(
        e, r, f->code == CW__PB__FAIL_CODE__FAIL_NUMERIC ? CW_STATUS_NUMERIC : CW_STATUS_MISMATCH, text, out);
}

/* Overload is not a failure: as long as workers say that they are busy, the request waits. */
static void put_off(const cw_edge *e, cw_edge_request *r)
{
    if (r->deadline_us < e->now_us + r->allowed_us) r->deadline_us = e->now_us + r->allowed_us;
}

static void was_busy(cw_edge *e, home *h, piece *p, uint32_t retry_ms, cw_outbox *out)
{
    int64_t pause = retry_ms ? (int64_t)retry_ms * 1000 : BUSY_RETRY_US;
    pause += (int64_t)(edge_random(e) % (uint64_t)(pause / 4 + 1)); /* not all edges in step */
    e->n.busy++;
    h->busy_until_us = e->now_us + pause;
    put_off(e, p->r);
    p->busy = true;
    calls_again(e, p, e->now_us + pause, out);
}

void calls_failed(cw_edge *e, home *h, cw_event *ev, cw_outbox *out)
{
    const Cw__Pb__CallFail *f = ev->msg->env->call_fail;
    /* Also of an answer nobody waits for any more: a worker sends the same epoch once. */
    if (ev->msg->n_frames && homes_take_epoch(e, ev->msg->frames[0].data, ev->msg->frames[0].len))
        homes_prune(e, out);
    piece *p = find(h, f->id);
    if (!p) {
        e->n.late++;
        return;
    }
    cw_edge_request *r = p->r;
    h->progress_us = e->now_us;
    calls_take_out(h, p);
    switch (f->code) {
    case CW__PB__FAIL_CODE__FAIL_NOT_HERE:
        home_lacks(e, h, f->layer, f->expert); /* also where its own epoch still says so */
        calls_again(e, p, 0, out);
        break;
    case CW__PB__FAIL_CODE__FAIL_BUSY: was_busy(e, h, p, f->retry_after_ms, out); break;
    case CW__PB__FAIL_CODE__FAIL_EXPIRED:
        h->suspect_until_us = e->now_us + SUSPECT_US;
        calls_again(e, p, 0, out);
        break;
    case CW__PB__FAIL_CODE__FAIL_STOPPING:
        h->stopping = true;
        calls_again(e, p, 0, out);
        break;
    default: numeric_failure(e, h, p, f, out); break;
    }
    disputes_run(e, out);
    calls_finish(e, r, out);
    calls_send(e, h, out);
}

static void place_all(cw_edge *e, piece_list *all, cw_outbox *out)
{
    for (piece *p; (p = all->head);) {
        list_remove(all, p);
        /* One piece's failure may end its request, whose other pieces are in this list. */
        if (p->r->active)
            calls_again(e, p, 0, out);
        else
            piece_free(p);
    }
}

void calls_lost(cw_edge *e, home *h, cw_outbox *out)
{
    CW_ASSERT(h->state != HOME_UP);
    piece_list all = {0};
    for (piece *p; (p = h->sent.head);) calls_take_out(h, p), list_push(&all, p);
    for (piece *p; (p = h->queued.head);) calls_take_out(h, p), list_push(&all, p);
    ghosts_free(h);
    late_forget(h);
    place_all(e, &all, out);
    disputes_run(e, out);
}

void calls_move_queued(cw_edge *e, home *h, cw_outbox *out)
{
    piece_list all = {0};
    for (piece *p; (p = h->queued.head);) calls_take_out(h, p), list_push(&all, p);
    place_all(e, &all, out);
}

/* What a worker still owes to a request that ends. The second answer of a doubled message is waited for, the
 * loser of a hedge is called off; both are compared if they come. */
static void drop_sent(cw_edge *e, home *h, piece *p, bool compare, cw_outbox *out)
{
    if (compare) ghost_keep(e, h, p);
    if (compare) late_loser(e, h, p);
    bool twin = p->n && (p->r->marks[p->index[0]].flags & ROW_TWO);
    if (!compare || !twin) calls_call_off(h, p, out);
    calls_take_out(h, p);
    piece_free(p);
}

void calls_drop_request(cw_edge *e, cw_edge_request *r, bool compare, cw_outbox *out)
{
    for (size_t i = 0; i < e->n_homes; i++) {
        home *h = e->homes[i];
        for (piece *p = h->queued.head, *next; p; p = next) {
            next = p->next;
            if (p->r == r) calls_take_out(h, p), piece_free(p);
        }
        for (piece *p = h->sent.head, *next; p; p = next) {
            next = p->next;
            if (p->r == r) drop_sent(e, h, p, compare, out);
        }
    }
    for (piece *p = e->homeless.head, *next; p; p = next) {
        next = p->next;
        if (p->r == r) list_remove(&e->homeless, p), piece_free(p);
    }
    disputes_drop(e, r);
}

/* --- waiting --- */

/* A retry of a busy call is one of the messages of which one in twenty is allowed; an edge that sends nothing
 * else tries once a second. */
static bool may_retry(cw_edge *e)
{
    if (e->now_us - e->busy_retry_us < BUSY_FREE_US && !late_take_token(e)) return false;
    e->busy_retry_us = e->now_us;
    return true;
}

void calls_homeless(cw_edge *e, cw_outbox *out)
{
    piece_list all = e->homeless;
    e->homeless = (piece_list){0};
    for (piece *p; (p = all.head);) {
        list_remove(&all, p);
        if (!p->r->active) {
            piece_free(p);
        } else if (p->not_before_us > e->now_us) {
            cw_outbox_wake(out, p->not_before_us);
            list_push(&e->homeless, p);
        } else if (p->busy && !may_retry(e)) {
            put_off(e, p->r);
            p->not_before_us = e->now_us + BUSY_RETRY_US;
            list_push(&e->homeless, p);
        } else {
            place(e, p, out);
        }
    }
}

/* Why nobody computes the first entry of p: for the user. */
void calls_why_homeless(const cw_edge *e, const piece *p, char *text, size_t cap)
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
            calls_why_homeless(e, p, text, sizeof text);
            edge_end_request(e, p->r, CW_STATUS_UNREACHABLE, text, out);
            reach_lost(e, out);
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
        calls_call_off(h, p, out);
        h->suspect_until_us = e->now_us + SUSPECT_US;
        calls_take_out(h, p);
        calls_again(e, p, 0, out);
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
    for (size_t i = 0; i < e->n_homes; i++) {
        check_sent(e, e->homes[i], out);
        late_tick(e, e->homes[i], out);
        ghosts_tick(e, e->homes[i]);
    }
    calls_homeless(e, out);
    check_homeless(e, out);
    disputes_run(e, out);
}
