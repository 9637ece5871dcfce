/*
 * Connections to workers: opened with the first request (or cw_edge_want), one DEALER each, closed after a
 * minute without one; lost ones come back with a growing pause. What was under way on a lost link is sent
 * again elsewhere.
 */
#include <stdio.h>
#include <string.h>

#include "edge_internal.h"

static home *find(const cw_edge *e, cw_link link)
{
    for (size_t i = 0; i < e->n_homes; i++)
        if (e->homes[i]->link == link && link) return e->homes[i];
    return NULL;
}

static void open_link(cw_edge *e, home *h, cw_outbox *out)
{
    h->link = edge_new_link(e);
    h->state = HOME_OPENING;
    h->opened_us = h->heard_us = e->now_us;
    h->stopping = h->ticket_refused = false;
    cw_open(out, h->link, h->address, &h->key);
}

static void wait_for(cw_edge *e, home *h, const char *why, int64_t after_us, cw_outbox *out)
{
    h->state = HOME_WAITING;
    h->link = 0;
    h->retry_us = e->now_us + after_us;
    if (strcmp(h->why, why)) {
        snprintf(h->why, sizeof h->why, "%s", why);
        if (why[0]) edge_say(e, "worker %s at %s: %s", h->name, h->address, why);
    }
    calls_lost(e, h, out);
}

void links_close(cw_edge *e, home *h, const char *why, int64_t retry_us, cw_outbox *out)
{
    if (h->link) cw_close(out, h->link, why);
    wait_for(e, h, why, retry_us, out);
}

static void say_hello(cw_edge *e, home *h, cw_outbox *out)
{
    Cw__Pb__Hello m;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    edge_hello(e, &m, CW__PB__PURPOSE__PURPOSE_DATA);
    env.body_case = CW__PB__ENVELOPE__BODY_HELLO, env.hello = &m;
    h->ticket_end_ms = e->ticket_end_ms;
    h->state = HOME_SAID;
    cw_send(out, h->link, &env, NULL, 0);
}

void links_ping(cw_edge *e, home *h, cw_outbox *out)
{
    Cw__Pb__Ping m = CW__PB__PING__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    m.t_us = (uint64_t)e->now_us;
    h->ping_us = e->now_us;
    env.body_case = CW__PB__ENVELOPE__BODY_PING, env.ping = &m;
    cw_send(out, h->link, &env, NULL, 0);
}

static void welcome(cw_edge *e, home *h, const cw_msg *msg, cw_outbox *out)
{
    const Cw__Pb__Welcome *m = msg->env->welcome;
    if (m->model_digest.len != CW_DIGEST_BYTES ||
        memcmp(m->model_digest.data, e->c.model_digest, CW_DIGEST_BYTES)) {
        links_close(e, h, "it serves another model", REFUSED_RETRY_US, out);
        return;
    }
    h->state = HOME_UP;
    h->why[0] = 0;
    h->heartbeat_us = (int64_t)m->heartbeat_ms * 1000;
    cw_backoff_reset(&h->backoff);
    /* A worker may know a newer epoch than the coordinator link has brought. */
    if (msg->n_frames) homes_take_epoch(e, msg->frames[0].data, msg->frames[0].len);
    links_ping(e, h, out);
    calls_homeless(e, out);
}

static void refusal(cw_edge *e, home *h, const Cw__Pb__Refusal *r, cw_outbox *out)
{
    char why[160];
    snprintf(why, sizeof why, "it refused: %.140s", r->text);
    int64_t pause = cw_backoff_take(&h->backoff),
            asked = r->retry_after_ms ? (int64_t)r->retry_after_ms * 1000 : REFUSED_RETRY_US;
    if (r->code == CW__PB__REFUSAL_CODE__REFUSAL_TICKET) {
        /* A start with a stored ticket that has run out: the Welcome with the new one may be here already. */
        if (h->ticket_end_ms != e->ticket_end_ms)
            asked = 0;
        else
            control_renew(e, out);
        h->ticket_refused = true;
    }
    links_close(e, h, why, pause > asked ? pause : asked, out);
}

void links_new_ticket(cw_edge *e)
{
    for (size_t i = 0; i < e->n_homes; i++) {
        home *h = e->homes[i];
        if (h->state != HOME_WAITING || !h->ticket_refused) continue;
        h->ticket_refused = false;
        /* The pauses grow until somebody lets us in: no quarrel over tickets at the speed of the link. */
        h->retry_us = e->now_us + cw_backoff_take(&h->backoff);
    }
}

static void pong(cw_edge *e, home *h, const Cw__Pb__Ping *p, cw_outbox *out)
{
    Cw__Pb__Pong m = CW__PB__PONG__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    m.t_us = p->t_us, m.wall_ms = (uint64_t)e->wall_ms;
    env.body_case = CW__PB__ENVELOPE__BODY_PONG, env.pong = &m;
    cw_send(out, h->link, &env, NULL, 0);
}

/* What the link adds is the least it was seen to add: everything above that is somebody's processor, ours
 * included, since an answer that waits until we look at it has waited here. A link that has really become
 * longer is believed after some hundred answers. */
void link_learn_delay(double *value, double sample)
{
    *value = *value <= 0 || sample < *value ? sample : 0.99 * *value + 0.01 * sample;
}

void link_learn(double *value, double sample)
{
    double keep = *value <= 0 ? 0 : sample < *value ? 0.5 : 0.9;
    *value = keep * *value + (1 - keep) * sample;
}

static void measure(cw_edge *e, home *h, const Cw__Pb__Pong *p)
{
    int64_t rtt = e->now_us - (int64_t)p->t_us;
    if (rtt < 0 || rtt > 60000000) return; /* an answer to nothing we asked */
    late_pong(e, h, rtt, (int64_t)p->t_us);
    if ((int64_t)p->t_us < h->back_us) return; /* it slept meanwhile: that is not the link's delay */
    link_learn_delay(&h->delay_us, (double)rtt);
    h->rtt_us = h->rtt_us ? (uint32_t)((3 * (int64_t)h->rtt_us + rtt) / 4) : (uint32_t)rtt;
}

static void message(cw_edge *e, home *h, cw_event *ev, cw_outbox *out)
{
    const Cw__Pb__Envelope *env = ev->msg->env;
    h->heard_us = e->now_us;
    if (h->state == HOME_UP || env->body_case == CW__PB__ENVELOPE__BODY_WELCOME) e->heard_us = e->now_us;
    late_heard(e, h);
    switch ((int)env->body_case) {
    case CW__PB__ENVELOPE__BODY_WELCOME: welcome(e, h, ev->msg, out); break;
    case CW__PB__ENVELOPE__BODY_REFUSAL: refusal(e, h, env->refusal, out); break;
    case CW__PB__ENVELOPE__BODY_REPLY: calls_reply(e, h, ev, out); break;
    case CW__PB__ENVELOPE__BODY_CALL_FAIL: calls_failed(e, h, ev, out); break;
    case CW__PB__ENVELOPE__BODY_EPOCH_NEWS:
        if (!homes_take_epoch(e, ev->msg->frames[0].data, ev->msg->frames[0].len)) break;
        homes_prune(e, out);
        links_tick(e, out);
        calls_homeless(e, out);
        disputes_run(e, out);
        break;
    case CW__PB__ENVELOPE__BODY_PING: pong(e, h, env->ping, out); break;
    case CW__PB__ENVELOPE__BODY_PONG: measure(e, h, env->pong); break;
    case CW__PB__ENVELOPE__BODY_BYE: {
        char why[160];
        snprintf(why, sizeof why, "it said goodbye: %.130s", env->bye->text);
        links_close(e, h, why, cw_backoff_take(&h->backoff), out);
        break;
    }
    default: break; /* the gate lets nothing else through */
    }
}

void links_event(cw_edge *e, cw_event *ev, cw_outbox *out)
{
    home *h = find(e, ev->link);
    if (!h) return;
    if (ev->kind == CW_EV_LINK_UP) {
        h->heard_us = e->now_us;
        h->same_host = ev->same_host;
        if (h->same_host) h->bytes_per_s = 0; /* of the way before */
        say_hello(e, h, out);
    } else if (ev->kind == CW_EV_LINK_DOWN) {
        wait_for(e, h, ev->text[0] ? ev->text : "the connection was lost", cw_backoff_take(&h->backoff), out);
    } else if (ev->msg) {
        message(e, h, ev, out);
    }
}

/* A link that lives on an old ticket is made anew in a quiet moment, before the worker has to end it; not all
 * at the same time, for then nobody would be there. */
static bool renews(cw_edge *e, const home *h)
{
    int64_t pause_us = e->ticket_margin_ms * 1000 / (2 * (int64_t)e->n_homes);
    if (h->ticket_end_ms == e->ticket_end_ms || h->sent.head || h->queued.head ||
        edge_cluster_ms(e) <= h->ticket_end_ms - e->ticket_margin_ms ||
        e->now_us - e->link_renewed_us < pause_us)
        return false;
    e->link_renewed_us = e->now_us;
    return true;
}

static void tick(cw_edge *e, home *h, cw_outbox *out)
{
    bool idle = !e->wanted && !h->queued.head && !h->sent.head;
    int64_t patience = h->state == HOME_UP ? 5 * h->heartbeat_us : 10000000;
    if (h->link && idle) {
        links_close(e, h, "", 0, out);
        h->state = HOME_CLOSED;
    } else if (h->link && e->now_us - h->heard_us > patience) {
        links_close(e, h, "it does not answer", cw_backoff_take(&h->backoff), out);
    } else if (h->state == HOME_UP && renews(e, h)) {
        links_close(e, h, "", 0, out);
    } else if (h->state == HOME_UP && e->now_us - h->ping_us >= h->heartbeat_us) {
        links_ping(e, h, out);
    }
    bool may_open = h->state == HOME_CLOSED || (h->state == HOME_WAITING && e->now_us >= h->retry_us);
    if (may_open && e->wanted && h->in_epoch && e->ticket_len && !home_barred(e, h)) open_link(e, h, out);
}

void links_tick(cw_edge *e, cw_outbox *out)
{
    if (e->wanted && !e->requests && e->now_us - e->wanted_us > e->c.idle_us) e->wanted = false;
    for (size_t i = 0; i < e->n_homes; i++) tick(e, e->homes[i], out);
    homes_prune(e, out);
}

void links_bye(cw_edge *e, cw_outbox *out)
{
    for (size_t i = 0; i < e->n_homes; i++) {
        home *h = e->homes[i];
        if (h->state == HOME_UP) {
            Cw__Pb__Bye m = CW__PB__BYE__INIT;
            Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
            m.text = (char *)"done";
            env.body_case = CW__PB__ENVELOPE__BODY_BYE, env.bye = &m;
            cw_send(out, h->link, &env, NULL, 0);
        }
        if (h->link) cw_close(out, h->link, "done");
        h->link = 0;
        h->state = HOME_CLOSED;
    }
}
