/*
 * Calls: accepting, the queue, and batches. A job begins with the oldest call of the edge whose turn it is
 * and takes along every row queued for the same (layer, expert), whoever asked, so that weights are read once
 * for all of them. Nothing waits to be batched: a job is given out as soon as the compute stage has room for
 * one.
 *
 * Turns go round by edge, one job each. (Deficit counting in weight bytes would go into next_peer and take.)
 */
#include <stdio.h>
#include <string.h>

#include "cw/mem.h"
#include "worker_internal.h"

static void call_free(cw_worker *w, call *c)
{
    w->queue_bytes -= c->bytes;
    if (c->rows.release) c->rows.release(c->rows.owner);
    if (c->exps.release) c->exps.release(c->exps.owner);
    cw_msg_free(&c->msg);
    cw_free(c->runs);
    cw_free(c);
}

static void leave_layer(cw_worker *w, call *c)
{
    if (!c->in_layer) return;
    if (c->layer_prev)
        c->layer_prev->layer_next = c->layer_next;
    else
        w->layer_calls[c->v.layer] = c->layer_next;
    if (c->layer_next) c->layer_next->layer_prev = c->layer_prev;
    c->in_layer = false;
    c->peer->n_pending_calls--;
}

/* At the end of its layer's list: older calls of a layer come first in every batch. */
static void enter_layer(cw_worker *w, call *c)
{
    call **at = &w->layer_calls[c->v.layer], *last = NULL;
    for (; *at; at = &(*at)->layer_next) last = *at;
    *at = c;
    c->layer_prev = last;
    c->layer_next = NULL;
    c->in_layer = true;
    c->peer->n_pending_calls++;
}

void call_unlink(cw_worker *w, call *c)
{
    peer *p = c->peer;
    if (p) {
        leave_layer(w, c);
        w->n_entries -= c->n_pending;
        c->n_pending = 0;
        if (c->peer_prev)
            c->peer_prev->peer_next = c->peer_next;
        else
            p->head = c->peer_next;
        if (c->peer_next)
            c->peer_next->peer_prev = c->peer_prev;
        else
            p->tail = c->peer_prev;
        p->n_calls--;
        p->bytes -= c->bytes;
        w->n_calls--;
        c->peer = NULL;
    }
    if (!c->n_in_job) call_free(w, c);
}

static size_t reply_bytes(const cw_worker *w, const cw_call_view *v)
{
    const cw_worker_layer *l = &w->layers[v->layer];
    size_t n =
        (size_t)v->n_entries * w->d_model * (l->rows == CW__PB__REPLY_KIND__ROWS_F16 ? 2 : 4) + v->n_entries;
    if (v->reply == CW__PB__REPLY_KIND__COMBINED_F32) n += (size_t)v->n_rows * w->d_model * 4;
    return n;
}

/* A call whose shape is not this model's: an edge with this digest never sends one. NULL: fine. */
static const char *shape_trouble(const cw_worker *w, const peer *p, const cw_call_view *v)
{
    const cw_worker_layer *l = &w->layers[v->layer];
    if (p->last_id && v->id <= p->last_id) return "a call id that is not higher than the one before";
    if (!v->id) return "a call without an id";
    if (!l->packed_bytes) return "a call to a layer that has no experts";
    if (v->act != l->act) return "rows of another kind than the layer takes";
    if (v->reply != l->rows && v->reply != CW__PB__REPLY_KIND__COMBINED_F32)
        return "a reply kind that the layer does not give";
    return NULL;
}

/* The first entry whose expert is not here, or n_entries. */
static uint32_t first_absent(const cw_worker *w, const cw_call_view *v)
{
    for (uint32_t i = 0; i < v->n_entries; i++)
        if (!holdings_ready(w, v->layer, cw_entry_get(v->entries, i).expert)) return i;
    return v->n_entries;
}

static bool make_runs(call *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->v.n_entries; i++)
        n += !i || cw_entry_get(c->v.entries, i).expert != cw_entry_get(c->v.entries, i - 1).expert;
    c->runs = cw_calloc(n, sizeof *c->runs);
    if (!c->runs) return false;
    for (uint32_t i = 0; i < c->v.n_entries; i++) {
        uint32_t e = cw_entry_get(c->v.entries, i).expert;
        if (!c->n_runs || c->runs[c->n_runs - 1].expert != e)
            c->runs[c->n_runs++] = (run){.expert = e, .first = i};
        c->runs[c->n_runs - 1].n++;
    }
    return true;
}

static call *call_new(cw_worker *w, peer *p, const cw_call_view *v, cw_msg *msg, size_t bytes)
{
    call *c = cw_calloc(1, sizeof *c);
    if (!c) return NULL;
    *c = (call){.peer = p, .v = *v, .received_us = w->now_us, .bytes = bytes, .n_pending = v->n_entries};
    bool f16 = w->layers[v->layer].rows == CW__PB__REPLY_KIND__ROWS_F16;
    c->rows = cw_frame_new((size_t)v->n_entries * w->d_model * (f16 ? 2 : 4), &c->rows_mem);
    uint8_t *e = NULL;
    if (f16) c->exps = cw_frame_new(v->n_entries, &e);
    c->exps_mem = (int8_t *)e;
    if (!c->rows_mem || (f16 && !e) || !make_runs(c)) {
        cw_free(c->rows_mem);
        cw_free(e);
        cw_free(c);
        return NULL;
    }
    c->msg = msg;
    c->peer_prev = p->tail;
    if (p->tail)
        p->tail->peer_next = c;
    else
        p->head = c;
    p->tail = c;
    p->n_calls++;
    p->bytes += bytes;
    w->n_calls++;
    w->n_entries += v->n_entries;
    w->queue_bytes += bytes;
    enter_layer(w, c);
    return c;
}

/*
 * Whether the queue takes `bytes` more from this edge. Prefill is turned away at half the bounds, so that
 * calls of running answers find room; those meet the bounds only when an edge has far more under way than its
 * streams could ask for.
 */
static bool has_room(const cw_worker *w, const peer *p, const cw_call_view *v, size_t bytes)
{
    uint64_t part = v->klass == CW__PB__CALL_CLASS__CLASS_PREFILL ? 2 : 1;
    return p->bytes + bytes <= w->c.peer_bytes_max / part &&
           w->queue_bytes + bytes <= w->c.queue_bytes_max / part;
}

static void cut(cw_worker *w, peer *p, const char *why, cw_outbox *out)
{
    cw_blame(out, p->link, why);
    calls_drop_peer(w, p);
    p->admitted = false; /* edges_tick removes it; the shell sends no event of this link any more */
    p->since_us = INT64_MIN / 2;
}

void calls_accept(cw_worker *w, peer *p, cw_event *ev, cw_outbox *out)
{
    cw_call_view v;
    cw_err err = {0};
    if (!p->admitted) return;
    if (cw_call_view_get(ev->msg, &w->limits, &v, &err) != CW_OK) {
        cut(w, p, err.text, out);
        return;
    }
    const char *why = shape_trouble(w, p, &v);
    if (why) {
        cut(w, p, why, out);
        return;
    }
    p->last_id = v.id;
    size_t in = cw_msg_total_bytes(ev->msg), bytes = in + reply_bytes(w, &v);
    uint32_t absent = first_absent(w, &v);
    if (w->stopping) {
        reply_fail(w, p, v.id, CW__PB__FAIL_CODE__FAIL_STOPPING, 0, 0, 0, "this worker is stopping", out);
    } else if (absent < v.n_entries) {
        char text[96];
        uint32_t e = cw_entry_get(v.entries, absent).expert;
        snprintf(text, sizeof text, "expert %u of layer %u is not here", e, v.layer);
        reply_fail(w, p, v.id, CW__PB__FAIL_CODE__FAIL_NOT_HERE, v.layer, e, 0, text, out);
    } else if (!has_room(w, p, &v, bytes) || !call_new(w, p, &v, ev->msg, bytes)) {
        reply_fail(w, p, v.id, CW__PB__FAIL_CODE__FAIL_BUSY, 0, 0, BUSY_RETRY_MS, "the queue is full", out);
    } else {
        ev->msg = NULL; /* kept */
        w->bytes_in += in;
    }
}

void calls_cancel(cw_worker *w, peer *p, uint64_t id)
{
    for (call *c = p->head; c; c = c->peer_next)
        if (c->v.id == id) {
            call_unlink(w, c);
            return;
        }
}

void calls_drop_peer(cw_worker *w, peer *p)
{
    while (p->head) call_unlink(w, p->head);
}

/* Answers with a failure and forgets the call. */
static void fail(cw_worker *w, call *c, Cw__Pb__FailCode code, uint32_t expert, const char *text,
                 cw_outbox *out)
{
    reply_fail(w, c->peer, c->v.id, code, c->v.layer, expert, 0, text, out);
    call_unlink(w, c);
}

static run *run_of(call *c, uint32_t expert)
{
    for (uint32_t i = 0; i < c->n_runs; i++)
        if (c->runs[i].expert == expert) return &c->runs[i];
    return NULL;
}

void calls_drop_expert(cw_worker *w, uint32_t layer, uint32_t expert, cw_outbox *out)
{
    for (call *c = w->layer_calls[layer], *next; c; c = next) {
        next = c->layer_next;
        run *r = run_of(c, expert);
        if (r && r->taken < r->n)
            fail(w, c, CW__PB__FAIL_CODE__FAIL_NOT_HERE, expert, "the expert was given to other workers",
                 out);
    }
}

static bool is_late(const cw_worker *w, const call *c)
{
    return w->now_us - c->received_us > (int64_t)c->v.budget_us;
}

static void expire(cw_worker *w, call *c, cw_outbox *out)
{
    fail(w, c, CW__PB__FAIL_CODE__FAIL_EXPIRED, 0, "the call waited longer than its budget", out);
}

void calls_expire(cw_worker *w, cw_outbox *out)
{
    for (uint32_t l = 0; l < w->n_layers; l++)
        for (call *c = w->layer_calls[l], *next; c; c = next) {
            next = c->layer_next;
            if (is_late(w, c)) expire(w, c, out);
        }
}

/* The next edge in turn that has something queued. */
static peer *next_peer(cw_worker *w)
{
    for (size_t k = 0; k < w->n_peers; k++) {
        size_t i = (w->turn + k) % w->n_peers;
        if (!w->peers[i]->n_pending_calls) continue;
        w->turn = i + 1;
        return w->peers[i];
    }
    return NULL;
}

static call *next_call(cw_worker *w, cw_outbox *out)
{
    for (peer *p; (p = next_peer(w));) {
        call *c = p->head;
        while (!c->in_layer) c = c->peer_next;
        if (!is_late(w, c)) return c;
        expire(w, c, out);
    }
    return NULL;
}

/* Puts what is left of run r of call c into the job, as far as there is room. */
static void take(cw_worker *w, job_slot *s, call *c, run *r)
{
    cw_job *job = &s->job;
    const cw_worker_layer *l = &w->layers[c->v.layer];
    bool f16 = l->rows == CW__PB__REPLY_KIND__ROWS_F16;
    size_t d = w->d_model;
    if (!c->started_us) c->started_us = w->now_us;
    for (; r->taken < r->n && job->n_rows < w->c.job_rows_max; r->taken++) {
        uint32_t i = r->first + r->taken;
        size_t row = cw_entry_get(c->v.entries, i).row;
        s->row_call[job->n_rows] = c;
        job->rows[job->n_rows++] = (cw_job_row){.q = c->v.q ? c->v.q + row * d : NULL,
                                                .s = c->v.s ? c->v.s + row * (d / 8) : NULL,
                                                .x = c->v.x ? c->v.x + row * d * 4 : NULL,
                                                .out = c->rows_mem + i * d * (f16 ? 2 : 4),
                                                .e = f16 ? &c->exps_mem[i] : NULL};
        c->n_in_job++;
        c->n_pending--;
        w->n_entries--;
    }
    if (!c->n_pending) leave_layer(w, c);
}

static void fill(cw_worker *w, job_slot *s, call *c)
{
    cw_job *job = &s->job;
    job->n_rows = job->n_experts = 0;
    for (uint32_t i = 0; i < c->n_runs && job->n_rows < w->c.job_rows_max; i++) {
        run *r = &c->runs[i];
        if (r->taken == r->n) continue;
        uint32_t first = job->n_rows;
        take(w, s, c, r);
        for (call *o = w->layer_calls[c->v.layer], *next; o; o = next) {
            next = o->layer_next;
            if (o == c || is_late(w, o)) continue; /* the next tick answers the late ones */
            run *other = run_of(o, r->expert);
            if (other && other->taken < other->n) take(w, s, o, other);
        }
        job->experts[job->n_experts++] = (cw_job_expert){
            .layer = c->v.layer, .expert = r->expert, .first = first, .n = job->n_rows - first};
    }
}

void calls_pump(cw_worker *w, cw_outbox *out)
{
    while (w->n_jobs < w->c.jobs_in_flight) {
        call *c = next_call(w, out);
        if (!c) return;
        job_slot *s = w->jobs;
        while (s->busy) s++;
        fill(w, s, c);
        s->busy = true;
        w->n_jobs++;
        worker_act(w, CW_WORKER_COMPUTE)->job = &s->job;
    }
}

bool calls_in_job(const cw_worker *w, uint32_t layer, uint32_t expert)
{
    for (uint32_t i = 0; i < w->c.jobs_in_flight; i++)
        for (uint32_t k = 0; w->jobs[i].busy && k < w->jobs[i].job.n_experts; k++) {
            const cw_job_expert *x = &w->jobs[i].job.experts[k];
            if (x->layer == layer && x->expert == expert) return true;
        }
    return false;
}

static uint32_t expert_of_row(const cw_job *job, uint32_t row)
{
    uint32_t i = 0;
    while (row >= job->experts[i].first + job->experts[i].n) i++;
    return job->experts[i].expert;
}

/* One row of a job is back. */
static void row_back(cw_worker *w, const cw_job *job, uint32_t r, call *c, cw_outbox *out)
{
    c->n_in_job--;
    c->n_done++;
    if (c->peer && job->rows[r].bad) {
        char text[128];
        uint32_t e = expert_of_row(job, r);
        snprintf(text, sizeof text, "expert %u of layer %u gave a row that is not finite", e, c->v.layer);
        fail(w, c, CW__PB__FAIL_CODE__FAIL_NUMERIC, e, text, out);
    } else if (c->peer && c->n_done == c->v.n_entries) {
        reply_send(w, c, out);
        call_unlink(w, c);
    } else if (!c->peer && !c->n_in_job) {
        call_unlink(w, c);
    }
}

void cw_worker_computed(cw_worker *w, cw_job *job, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    job_slot *s = (job_slot *)job;
    CW_ASSERT(s->busy);
    w->now_us = now_us;
    w->wall_ms = wall_ms;
    for (uint32_t r = 0; r < job->n_rows; r++) row_back(w, job, r, s->row_call[r], out);
    s->busy = false;
    w->n_jobs--;
    if (w->stopped) return;
    cw_event tick = {.kind = CW_EV_TICK, .now_us = now_us, .wall_ms = wall_ms};
    cw_worker_event(w, &tick, out);
}
