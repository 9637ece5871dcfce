/* Life of the worker machine, events to its parts, role actions to the shell; see cw/worker_machine.h. */
#include "worker_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"

static void defaults(cw_worker_config *c)
{
    if (!c->jobs_in_flight) c->jobs_in_flight = 1;
    if (!c->job_rows_max) c->job_rows_max = 512;
    if (!c->queue_bytes_max) c->queue_bytes_max = (uint64_t)256 << 20;
    if (!c->peer_bytes_max) c->peer_bytes_max = (uint64_t)32 << 20;
}

static bool jobs_new(cw_worker *w)
{
    w->jobs = cw_calloc(w->c.jobs_in_flight, sizeof *w->jobs);
    if (!w->jobs) return false;
    for (uint32_t i = 0; i < w->c.jobs_in_flight; i++) {
        job_slot *s = &w->jobs[i];
        s->job.experts = cw_calloc(w->c.job_rows_max, sizeof *s->job.experts);
        s->job.rows = cw_calloc(w->c.job_rows_max, sizeof *s->job.rows);
        s->row_call = cw_calloc(w->c.job_rows_max, sizeof(call *));
        if (!s->job.experts || !s->job.rows || !s->row_call) return false;
    }
    return true;
}

cw_status cw_worker_new(const cw_worker_config *c, cw_worker **out, cw_err *err)
{
    CW_ASSERT(c->kernels);
    cw_worker *w = cw_calloc(1, sizeof *w);
    if (w) {
        w->c = *c;
        defaults(&w->c);
        w->co.backoff = (cw_backoff){.first_us = 100000, .most_us = 5000000, .random = c->seed};
        w->load_backoff =
            (cw_backoff){.first_us = LOAD_RETRY_US, .most_us = LOAD_RETRY_MOST_US, .random = c->seed + 1};
        w->co.enrolled = c->enrolled;
        w->co.heartbeat_us = 2000000;
        pace_start(&w->pace, (double)c->speed);
        w->wanted = cw_calloc((size_t)CW_WIRE_MAX_LAYERS * CW_WIRE_MAX_EXPERTS / 8, 1);
    }
    if (!w || !w->wanted || !jobs_new(w)) {
        cw_worker_free(&w);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the worker");
    }
    cw_err why = {0};
    if (c->saved_len && saved_restore(w, c->saved, c->saved_len, &why) != CW_OK)
        worker_say(w, "starting without it: %.300s", why.text);
    w->c.saved = NULL;
    *out = w;
    return CW_OK;
}

void cw_worker_free(cw_worker **wp)
{
    if (!wp || !*wp) return;
    cw_worker *w = *wp;
    while (w->n_peers) {
        peer *p = w->peers[--w->n_peers];
        calls_drop_peer(w, p);
        turns_account_leave(w, &p->account);
        cw_free(p->wants);
        cw_free(p);
    }
    for (uint32_t i = 0; w->jobs && i < w->c.jobs_in_flight; i++) {
        job_slot *s = &w->jobs[i];
        /* Dead calls live as long as a job points at them; the shell has stopped computing by now. */
        for (uint32_t r = 0; s->busy && !s->is_audit && r < s->job.n_rows; r++)
            if (--s->row_call[r]->n_in_job == 0) call_unlink(w, s->row_call[r]);
        cw_free(s->job.experts);
        cw_free(s->job.rows);
        cw_free(s->row_call);
    }
    audit_free(w);
    cw_msg_free(&w->restored);
    cw_free(w->jobs);
    cw_free(w->layer_calls);
    turns_free(w);
    cw_free(w->expert_rows);
    cw_free(w->peers);
    cw_free(w->revoked);
    cw_free(w->epoch);
    cw_free(w->layers);
    cw_free(w->wanted);
    cw_free(w->state);
    for (size_t i = 0; i < w->n_acts; i++) cw_free(w->acts[(w->act_head + i) % w->cap_acts].source);
    cw_free(w->acts);
    cw_free(w);
    *wp = NULL;
}

cw_worker_act *worker_act(cw_worker *w, cw_worker_act_kind kind)
{
    if (w->n_acts == w->cap_acts) {
        size_t cap = w->cap_acts ? 2 * w->cap_acts : 64;
        cw_worker_act *acts = cw_calloc(cap, sizeof *acts);
        if (!acts) {
            fprintf(stderr, "causeway-worker: out of memory\n");
            abort();
        }
        for (size_t i = 0; i < w->n_acts; i++) acts[i] = w->acts[(w->act_head + i) % w->cap_acts];
        cw_free(w->acts);
        w->acts = acts;
        w->cap_acts = cap;
        w->act_head = 0;
    }
    cw_worker_act *a = &w->acts[(w->act_head + w->n_acts++) % w->cap_acts];
    memset(a, 0, sizeof *a);
    a->kind = kind;
    return a;
}

bool cw_worker_take_act(cw_worker *w, cw_worker_act *act)
{
    if (!w->n_acts) return false;
    *act = w->acts[w->act_head];
    w->act_head = (w->act_head + 1) % w->cap_acts;
    w->n_acts--;
    return true;
}

void worker_say(cw_worker *w, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    cw_worker_act *a = worker_act(w, CW_WORKER_SAY);
    vsnprintf(a->text, sizeof a->text, fmt, ap);
    va_end(ap);
}

void worker_end(cw_worker *w, int code, const char *fmt, ...)
{
    if (w->stopped) return;
    saved_tick(w, true);
    w->stopped = true;
    va_list ap;
    va_start(ap, fmt);
    cw_worker_act *a = worker_act(w, CW_WORKER_STOPPED);
    a->code = code;
    vsnprintf(a->text, sizeof a->text, fmt, ap);
    va_end(ap);
}

cw_link worker_new_link(cw_worker *w)
{
    return CW_LINK_OUT | ++w->next_link;
}

int64_t worker_cluster_ms(const cw_worker *w)
{
    if (!w->clock_known) return w->wall_ms + w->wall_offset_ms;
    return w->clock_ms + (w->now_us - w->clock_us) / 1000;
}

void worker_set_clock(cw_worker *w, uint64_t cluster_ms)
{
    w->clock_known = true;
    w->clock_ms = cluster_ms > INT64_MAX / 2 ? INT64_MAX / 2 : (int64_t)cluster_ms;
    w->clock_us = w->now_us;
}

static void set_time(cw_worker *w, int64_t now_us, int64_t wall_ms)
{
    w->now_us = now_us;
    w->wall_ms = wall_ms;
}

/* What follows from any event: jobs, loads, the end of a drain. */
static void settle(cw_worker *w, cw_outbox *out)
{
    turns_pump(w, out);
    holdings_tick(w, out);
    chunks_pump(w, out);
    saved_tick(w, false);
    if (w->stopping && !w->stopped && (w->now_us >= w->stop_us || (!w->n_calls && !w->n_jobs))) {
        edges_bye(w, "this worker is stopping", out);
        worker_end(w, 0, "stopped");
    }
}

void cw_worker_event(cw_worker *w, cw_event *ev, cw_outbox *out)
{
    set_time(w, ev->now_us, ev->wall_ms);
    if (w->stopped) return;
    if (ev->kind == CW_EV_TICK) {
        coordinator_tick(w, out);
        leave_tick(w, out);
        saved_take_up(w, out);
        edges_tick(w, out);
        calls_expire(w, out);
        turns_tick(w);
        audit_tick(w, out);
    } else if (ev->link & CW_LINK_OUT) {
        coordinator_event(w, ev, out);
    } else {
        edges_event(w, ev, out);
    }
    settle(w, out);
}

void cw_worker_model_ready(cw_worker *w, uint32_t n_layers, uint32_t n_experts, uint32_t d_model,
                           const cw_worker_layer *layers, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    set_time(w, now_us, wall_ms);
    CW_ASSERT(!w->model_ready && n_layers && n_layers <= CW_WIRE_MAX_LAYERS && n_experts &&
              n_experts <= CW_WIRE_MAX_EXPERTS && d_model);
    w->layers = cw_calloc(n_layers, sizeof *layers);
    w->layer_calls = cw_calloc(n_layers, sizeof *w->layer_calls);
    w->state = cw_calloc((size_t)n_layers * n_experts, 1);
    w->expert_rows = cw_calloc((size_t)n_layers * n_experts, sizeof *w->expert_rows);
    if (!w->layers || !w->layer_calls || !w->state || !w->expert_rows) {
        worker_end(w, 1, "out of memory for the model's tables");
        return;
    }
    memcpy(w->layers, layers, n_layers * sizeof *layers);
    w->n_layers = n_layers;
    w->n_experts = n_experts;
    w->d_model = d_model;
    /* A reply of max_entries rows fits one frame. */
    uint32_t fit = (uint32_t)CW_DATA_FRAME_MAX / (4 * d_model);
    uint32_t most = fit < 1 ? 1 : fit > CALL_ENTRIES_MAX ? CALL_ENTRIES_MAX : fit;
    w->limits = (cw_model_limits){.n_layers = n_layers,
                                  .n_experts = n_experts,
                                  .d_model = d_model,
                                  .max_rows = most,
                                  .max_entries = most};
    w->model_ready = true;
    holdings_model(w, out);
    settle(w, out);
}

void cw_worker_model_failed(cw_worker *w, bool fatal, const char *text, int64_t now_us, int64_t wall_ms,
                            cw_outbox *out)
{
    set_time(w, now_us, wall_ms);
    if (fatal) {
        coordinator_bye(w, text, out);
        worker_end(w, 1, "%s", text);
        return;
    }
    worker_say(w, "the model's manifest could not be had yet: %.400s", text);
    w->model_retry_us = now_us + cw_backoff_take(&w->load_backoff);
}

void cw_worker_loaded(cw_worker *w, uint32_t layer, uint32_t expert, bool ok, const char *text,
                      int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    set_time(w, now_us, wall_ms);
    holdings_loaded(w, layer, expert, ok, text, out);
    if (!w->stopped) settle(w, out);
}

void cw_worker_stop(cw_worker *w, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    set_time(w, now_us, wall_ms);
    if (w->stopped) return;
    leave_begin(w, out);
    settle(w, out);
}

void cw_worker_get_facts(const cw_worker *w, cw_worker_facts *out)
{
    *out = (cw_worker_facts){.admitted = w->co.state == CO_ADMITTED,
                             .model_ready = w->model_ready,
                             .stopping = w->stopping || w->leaving,
                             .n_ready = w->n_ready,
                             .n_wanted = w->n_wanted,
                             .memory_used = w->memory_used,
                             .queued_calls = w->n_calls,
                             .queued_entries = w->n_entries,
                             .jobs = w->n_jobs,
                             .queue_bytes = w->queue_bytes,
                             .epoch_term = w->epoch_term,
                             .epoch_number = w->epoch_number,
                             .calls = w->calls,
                             .rows = w->rows,
                             .bytes_in = w->bytes_in,
                             .bytes_out = w->bytes_out,
                             .speed = w->pace.n_jobs >= SPEED_JOBS ? pace_speed(&w->pace) : w->c.speed,
                             .queue_us = pace_queue_us(&w->pace, w->queued),
                             .loaded = w->loaded,
                             .loaded_bytes = w->loaded_bytes,
                             .chunk_bytes_out = w->chunk_bytes_out,
                             .serving = w->last_call_us && w->now_us - w->last_call_us < SERVING_US,
                             .wall_offset_ms = worker_cluster_ms(w) - w->wall_ms};
    for (size_t i = 0; i < w->n_peers; i++) out->n_edges += w->peers[i]->admitted;
}

bool cw_worker_is_ready(const cw_worker *w, uint32_t layer, uint32_t expert)
{
    return holdings_ready(w, layer, expert);
}
