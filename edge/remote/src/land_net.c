/* The network side of the mainland: the edge machine and its callbacks. They run in the network thread, or in
 * the engine's while that drives the network (land_experts.c). */
#include <string.h>

#include "cw/log.h"
#include "cw/mem.h"
#include "mainland_internal.h"

static void save(cw_mainland *m)
{
    cw_edge_saved s;
    cw_err err = {0};
    m->dirty = false;
    if (cw_edge_get_saved(m->edge, &s) && saved_store(m->member.dir, &m->ec, &s, &err) != CW_OK)
        CW_LOG_W("edge", "the ticket was not stored: %s", err.text);
}

/* The disk is left alone while a layer is under way, and never touched by the engine's thread. */
static void save_when_quiet(cw_mainland *m)
{
    if (!m->dirty || !pthread_equal(pthread_self(), m->thread)) return;
    for (int i = 0; i < m->n_slots; i++)
        if (m->slots[i].taken) return;
    save(m);
}

static void finish(cw_mainland *m, cw_edge_request *r)
{
    slot *s = (slot *)r;
    s->taken = false;
    pthread_mutex_lock(&m->lock);
    s->done = true;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

static void refused(cw_mainland *m, const cw_edge_act *a)
{
    pthread_mutex_lock(&m->lock);
    m->refused = true;
    m->refused_code = a->code;
    memcpy(m->refused_text, a->text, sizeof m->refused_text);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

static void drain(cw_mainland *m)
{
    cw_edge_act a;
    cw_err err = {0};
    cw_tide_state tide = cw_edge_tide(m->edge);
    atomic_store_explicit(&m->online, tide == CW_TIDE_ONLINE || tide == CW_TIDE_SUSPECT,
                          memory_order_relaxed);
    while (cw_edge_take_act(m->edge, &a)) {
        switch (a.kind) {
        case CW_EDGE_DONE: finish(m, a.request); break;
        case CW_EDGE_ENROLLED:
            if (cw_member_enrolled(&m->member, &err) != CW_OK)
                CW_LOG_W("edge", "the next start will need the join string again: %s", err.text);
            break;
        case CW_EDGE_SAVE: m->dirty = true; break;
        case CW_EDGE_SAY: CW_LOG_I("edge", "%s", a.text); break;
        case CW_EDGE_REFUSED: refused(m, &a); break;
        }
    }
}

/* Answers whoever asked for a look at the state. */
static void snapshot(cw_mainland *m)
{
    pthread_mutex_lock(&m->lock);
    if (m->answered != m->asked) {
        cw_edge_worker_facts w;
        cw_edge_get_facts(m->edge, &m->facts);
        m->n_workers = 0;
        for (uint32_t i = 0; cw_edge_get_worker(m->edge, i, &w); i++) {
            if (m->n_workers == m->cap_workers) {
                size_t cap = m->cap_workers ? 2 * m->cap_workers : 8;
                void *list = cw_realloc(m->workers, cap, sizeof *m->workers);
                if (!list) break; /* a shorter list */
                m->workers = list;
                m->cap_workers = cap;
            }
            m->workers[m->n_workers++] = w;
        }
        m->answered = m->asked;
        pthread_cond_broadcast(&m->changed);
    }
    pthread_mutex_unlock(&m->lock);
}

/* Heartbeats are sent in ticks. */
static void take_story(cw_mainland *m)
{
    pthread_mutex_lock(&m->lock);
    if (m->story_is_new) cw_edge_tell(m->edge, &m->story);
    m->story_is_new = false;
    pthread_mutex_unlock(&m->lock);
}

static void on_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    cw_mainland *m = ctx;
    if (!m->wanted) {
        /* Opening waits for the workers' links. */
        m->wanted = true;
        cw_edge_want(m->edge, ev->now_us, out);
    }
    if (ev->kind == CW_EV_TICK) take_story(m);
    cw_edge_event(m->edge, ev, out);
    drain(m);
    if (ev->kind == CW_EV_TICK) save_when_quiet(m);
}

static void on_wake(void *ctx, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    cw_mainland *m = ctx;
    (void)wall_ms;
    if (atomic_exchange(&m->wanted_again, false)) cw_edge_want(m->edge, now_us, out);
    for (slot *s; (s = cw_queue_pop(m->submitted));) {
        s->taken = true;
        s->req.deadline_us = now_us + (int64_t)m->o.call_ms * 1000;
        cw_edge_submit(m->edge, &s->req, now_us, out);
    }
    for (int i = 0; i < m->n_slots; i++)
        if (m->slots[i].taken && atomic_load(&m->slots[i].give_up))
            cw_edge_cancel(m->edge, &m->slots[i].req, now_us, out);
    drain(m);
    snapshot(m);
}

static void on_stop(void *ctx, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    cw_mainland *m = ctx;
    (void)wall_ms;
    cw_edge_stop(m->edge, now_us, out);
    drain(m);
    save_when_quiet(m);
}

cw_net_role land_role(cw_mainland *m)
{
    return (cw_net_role){.ctx = m, .on_event = on_event, .on_wake = on_wake, .on_stop = on_stop};
}

void *land_thread(void *arg)
{
    cw_mainland *m = arg;
    cw_err err = {0};
    cw_status s = cw_net_run(m->net, &err);
    pthread_mutex_lock(&m->lock);
    m->ended = true;
    m->end_err = err;
    if (s == CW_OK) CW_FAIL(&m->end_err, CW_STATUS_CANCELLED, "the connection to the cluster was closed");
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

void land_refresh_locked(cw_mainland *m)
{
    pthread_mutex_lock(&m->lock);
    uint64_t mine = ++m->asked;
    pthread_mutex_unlock(&m->lock);
    cw_net_resume(m->net);
    cw_net_wake(m->net);
    pthread_mutex_lock(&m->lock);
    while (m->answered < mine && !m->ended) pthread_cond_wait(&m->changed, &m->lock);
}
