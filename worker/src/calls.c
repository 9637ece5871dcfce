/* The life of a call: checked, queued, dropped when nobody wants it any more, answered when all its rows are
 * back. Whose turn it is and what goes into a job is decided in turns.c. */
#include <stdio.h>
#include <string.h>

#include "cw/recycled.h"
#include "cw/mem.h"
#include "worker_internal.h"

static void call_free(cw_worker *w, call *c)
{
    w->queue_bytes -= c->bytes;
    if (c->rows.release) c->rows.release(c->rows.owner);
    if (c->exps.release) c->exps.release(c->exps.owner);
    cw_msg_free(&c->msg);
    cw_block_give(c->runs);
    cw_block_give(c);
}

void call_unlink(cw_worker *w, call *c)
{
    peer *p = c->peer;
    if (p) {
        w->n_entries -= c->n_pending;
        turns_leave(w, c);
        c->n_pending = 0;
        turns_list_remove(c, IN_PEER);
        p->n_calls--;
        p->account->bytes -= c->bytes;
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
    c->runs = cw_block_zeroed(n * sizeof *c->runs);
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
    call *c = cw_block_take(sizeof *c);
    if (!c) return NULL;
    *c = (call){.peer = p, .v = *v, .received_us = w->now_us, .bytes = bytes, .n_pending = v->n_entries};
    bool f16 = w->layers[v->layer].rows == CW__PB__REPLY_KIND__ROWS_F16;
    c->rows = cw_frame_new((size_t)v->n_entries * w->d_model * (f16 ? 2 : 4), &c->rows_mem);
    uint8_t *e = NULL;
    if (f16) c->exps = cw_frame_new(v->n_entries, &e);
    c->exps_mem = (int8_t *)e;
    if (!c->rows_mem || (f16 && !e) || !make_runs(c)) {
        cw_block_give(c->rows_mem);
        cw_block_give(e);
        cw_block_give(c);
        return NULL;
    }
    c->msg = msg;
    turns_list_add(&p->calls, c, IN_PEER);
    p->n_calls++;
    p->account->bytes += bytes;
    w->n_calls++;
    w->n_entries += v->n_entries;
    w->queue_bytes += bytes;
    turns_enter(w, c);
    return c;
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
    if (!p->admitted || !p->account) return;
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
    uint32_t absent = first_absent(w, &v), retry_ms;
    if (w->stopping) {
        reply_fail(w, p, v.id, CW__PB__FAIL_CODE__FAIL_STOPPING, 0, 0, 0, "this worker is stopping", out);
    } else if (absent < v.n_entries) {
        char text[96];
        uint32_t e = cw_entry_get(v.entries, absent).expert;
        snprintf(text, sizeof text, "expert %u of layer %u is not here", e, v.layer);
        reply_fail(w, p, v.id, CW__PB__FAIL_CODE__FAIL_NOT_HERE, v.layer, e, 0, text, out);
    } else if ((why = turns_refuse(w, p->account, &v, ev->msg->env->call->stream, bytes, &retry_ms))) {
        reply_fail(w, p, v.id, CW__PB__FAIL_CODE__FAIL_BUSY, 0, 0, retry_ms, why, out);
    } else if (!call_new(w, p, &v, ev->msg, bytes)) {
        reply_fail(w, p, v.id, CW__PB__FAIL_CODE__FAIL_BUSY, 0, 0, BUSY_RETRY_MS, "out of memory", out);
    } else {
        ev->msg = NULL; /* kept */
        w->last_call_us = w->now_us;
        w->bytes_in += in;
    }
}

void calls_cancel(cw_worker *w, peer *p, uint64_t id)
{
    for (call *c = p->calls.head; c; c = c->in[IN_PEER].next)
        if (c->v.id == id) {
            call_unlink(w, c);
            return;
        }
}

void calls_drop_peer(cw_worker *w, peer *p)
{
    while (p->calls.head) call_unlink(w, p->calls.head);
}

/* Answers with a failure and forgets the call. */
static void fail(cw_worker *w, call *c, Cw__Pb__FailCode code, uint32_t expert, const char *text,
                 cw_outbox *out)
{
    reply_fail(w, c->peer, c->v.id, code, c->v.layer, expert, 0, text, out);
    call_unlink(w, c);
}

run *call_run(call *c, uint32_t expert)
{
    uint32_t lo = 0, hi = c->n_runs;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (c->runs[mid].expert < expert)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < c->n_runs && c->runs[lo].expert == expert ? &c->runs[lo] : NULL;
}

void calls_drop_expert(cw_worker *w, uint32_t layer, uint32_t expert, cw_outbox *out)
{
    for (call *c = w->layer_calls[layer].head, *next; c; c = next) {
        next = c->in[IN_LAYER].next;
        run *r = call_run(c, expert);
        if (r && r->taken < r->n)
            fail(w, c, CW__PB__FAIL_CODE__FAIL_NOT_HERE, expert, "the expert was given to other workers",
                 out);
    }
}

bool calls_is_late(const cw_worker *w, const call *c)
{
    return w->now_us - c->received_us > (int64_t)c->v.budget_us;
}

void calls_expire_one(cw_worker *w, call *c, cw_outbox *out)
{
    fail(w, c, CW__PB__FAIL_CODE__FAIL_EXPIRED, 0, "the call waited longer than its budget", out);
}

void calls_expire(cw_worker *w, cw_outbox *out)
{
    for (uint32_t l = 0; l < w->n_layers; l++)
        for (call *c = w->layer_calls[l].head, *next; c; c = next) {
            next = c->in[IN_LAYER].next;
            if (calls_is_late(w, c)) calls_expire_one(w, c, out);
        }
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
    pace_learn(&w->pace, s, now_us);
    report_rows(w, job);
    if (s->is_audit)
        audit_back(w, s, out);
    else
        for (uint32_t r = 0; r < job->n_rows; r++) row_back(w, job, r, s->row_call[r], out);
    s->busy = false;
    w->n_jobs--;
    if (w->stopped) return;
    cw_event tick = {.kind = CW_EV_TICK, .now_us = now_us, .wall_ms = wall_ms};
    cw_worker_event(w, &tick, out);
}
