/*
 * The control link: hello or enrolment, refusals, reconnecting, ticket renewal at half life, epochs. The edge
 * goes on without it as long as its ticket is honoured.
 */
#include <stdio.h>
#include <string.h>

#include "cw/ticket.h"
#include "edge_internal.h"

enum { SILENT_US = 10000000, RENEW_AGAIN_US = 30000000 };

static void retry(cw_edge *e, const char *why, int64_t after_us)
{
    if (strcmp(why, e->co.why)) edge_say(e, "coordinator: %.400s", why);
    if (why != e->co.why) snprintf(e->co.why, sizeof e->co.why, "%s", why);
    e->co.state = CO_WAITING;
    e->co.link = 0;
    e->co.retry_us = e->now_us + after_us;
}

static void open_link(cw_edge *e, cw_outbox *out)
{
    e->co.link = edge_new_link(e);
    e->co.state = CO_OPENING;
    e->co.heard_us = e->now_us;
    cw_open(out, e->co.link, e->c.coordinator, &e->c.coordinator_key);
}

static void say_hello(cw_edge *e, cw_outbox *out)
{
    Cw__Pb__Hello h;
    Cw__Pb__Enrol enrol = CW__PB__ENROL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    edge_hello(e, &h, CW__PB__PURPOSE__PURPOSE_CONTROL);
    e->co.enrolling = !e->co.enrolled && e->c.token_len;
    if (e->co.enrolling) {
        enrol.token = (ProtobufCBinaryData){e->c.token_len, e->c.token};
        enrol.hello = &h;
        env.body_case = CW__PB__ENVELOPE__BODY_ENROL, env.enrol = &enrol;
    } else {
        env.body_case = CW__PB__ENVELOPE__BODY_HELLO, env.hello = &h;
    }
    cw_send(out, e->co.link, &env, NULL, 0);
    e->co.state = CO_SAID;
}

static void give_up(cw_edge *e, Cw__Pb__RefusalCode code, const char *text)
{
    e->refused = true;
    e->co.state = CO_OFF;
    e->co.link = 0;
    snprintf(e->co.why, sizeof e->co.why, "%s", text);
    cw_edge_act *a = edge_act(e, CW_EDGE_REFUSED);
    a->code = code;
    snprintf(a->text, sizeof a->text, "%s", text);
}

bool control_take_ticket(cw_edge *e, const void *data, size_t len)
{
    cw_ticket t;
    if (cw_ticket_verify(&e->sign_key, data, len, &t, NULL) != CW_OK ||
        memcmp(t.cluster, e->cluster_id, CW_CLUSTER_BYTES) ||
        memcmp(t.model_digest, e->c.model_digest, CW_DIGEST_BYTES) ||
        !edge_keep(&e->ticket, &e->ticket_len, data, len))
        return false;
    e->ticket_end_ms = t.not_after_ms > INT64_MAX / 2 ? INT64_MAX / 2 : (int64_t)t.not_after_ms;
    int64_t left_ms = e->ticket_end_ms - edge_cluster_ms(e);
    e->co.renew_us = e->now_us + (left_ms > 0 && left_ms < (int64_t)1 << 40 ? left_ms * 500 : RENEW_AGAIN_US);
    e->ticket_margin_ms = left_ms / 4 < TICKET_MARGIN_MS ? left_ms / 4 : TICKET_MARGIN_MS;
    if (e->ticket_margin_ms < 0) e->ticket_margin_ms = 0;
    links_new_ticket(e);
    edge_act(e, CW_EDGE_SAVE);
    return true;
}

static void digest_text(const uint8_t *d, char out[17])
{
    for (int i = 0; i < 8; i++) snprintf(out + 2 * i, 3, "%02x", d[i]);
}

static void another_model(cw_edge *e, const Cw__Pb__Welcome *m, cw_outbox *out)
{
    char a[17], b[17], text[CW_TEXT_MAX];
    digest_text(e->c.model_digest, a);
    digest_text(m->model_digest.data, b);
    cw_close(out, e->co.link, "another model");
    snprintf(text, sizeof text,
             "the cluster serves another model: \"%.100s\" with digest %s..., the file here has digest %s...",
             m->model_name, b, a);
    give_up(e, CW__PB__REFUSAL_CODE__REFUSAL_MODEL, text);
}

static void welcome(cw_edge *e, const cw_msg *msg, cw_outbox *out)
{
    const Cw__Pb__Welcome *m = msg->env->welcome;
    if (m->sign_key.len != CW_KEY_BYTES || m->model_digest.len != CW_DIGEST_BYTES) {
        cw_blame(out, e->co.link, "a welcome without a model digest or signing key");
        retry(e, "the coordinator's welcome names no model or no signing key",
              cw_backoff_take(&e->co.backoff));
        return;
    }
    if (memcmp(m->model_digest.data, e->c.model_digest, CW_DIGEST_BYTES)) {
        another_model(e, m, out);
        return;
    }
    if (!e->has_cluster || memcmp(e->cluster_id, m->cluster_id.data, CW_CLUSTER_BYTES)) homes_forget(e);
    e->has_cluster = true;
    memcpy(e->cluster_id, m->cluster_id.data, CW_CLUSTER_BYTES);
    memcpy(e->sign_key.b, m->sign_key.data, CW_KEY_BYTES);
    snprintf(e->model_name, sizeof e->model_name, "%s", m->model_name);
    e->wall_offset_ms = (int64_t)m->wall_ms - e->wall_ms;
    e->co.heartbeat_us = (int64_t)m->heartbeat_ms * 1000;
    e->co.state = CO_ADMITTED;
    e->co.ping_us = e->now_us;
    e->co.why[0] = 0;
    cw_backoff_reset(&e->co.backoff);
    if (!e->co.enrolled) {
        e->co.enrolled = true;
        edge_act(e, CW_EDGE_ENROLLED);
    }
    if (!m->ticket.len || !control_take_ticket(e, m->ticket.data, m->ticket.len))
        edge_say(e, "coordinator: the welcome has no usable ticket");
    if (msg->n_frames && homes_take_epoch(e, msg->frames[0].data, msg->frames[0].len)) homes_prune(e, out);
    links_tick(e, out);
    calls_homeless(e, out);
    control_report(e, out);
}

static void refusal(cw_edge *e, const Cw__Pb__Refusal *r, cw_outbox *out)
{
    char text[CW_TEXT_MAX];
    cw_close(out, e->co.link, "refused");
    if (r->code == CW__PB__REFUSAL_CODE__REFUSAL_UNKNOWN_KEY && !e->co.enrolling && e->c.token_len) {
        e->co.enrolled = false;
        retry(e, "the coordinator does not know this key; enrolling with the join string", 0);
        return;
    }
    snprintf(text, sizeof text, "the coordinator at %.200s %s: %.230s", e->c.coordinator,
             r->retry_after_ms ? "does not let us in yet" : "refused", r->text);
    if (r->retry_after_ms) {
        int64_t pause = cw_backoff_take(&e->co.backoff), asked = (int64_t)r->retry_after_ms * 1000;
        retry(e, text, pause > asked ? pause : asked);
    } else {
        give_up(e, r->code, text);
    }
}

static void pong(cw_edge *e, const Cw__Pb__Ping *p, cw_outbox *out)
{
    Cw__Pb__Pong m = CW__PB__PONG__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    m.t_us = p->t_us, m.wall_ms = (uint64_t)e->wall_ms;
    env.body_case = CW__PB__ENVELOPE__BODY_PONG, env.pong = &m;
    cw_send(out, e->co.link, &env, NULL, 0);
}

static void message(cw_edge *e, const cw_msg *m, cw_outbox *out)
{
    const Cw__Pb__Envelope *env = m->env;
    e->co.heard_us = e->now_us;
    switch ((int)env->body_case) {
    case CW__PB__ENVELOPE__BODY_WELCOME: welcome(e, m, out); break;
    case CW__PB__ENVELOPE__BODY_REFUSAL: refusal(e, env->refusal, out); break;
    case CW__PB__ENVELOPE__BODY_TICKET:
        e->wall_offset_ms = (int64_t)env->ticket->wall_ms - e->wall_ms;
        if (env->ticket->signed_ticket.len &&
            !control_take_ticket(e, env->ticket->signed_ticket.data, env->ticket->signed_ticket.len))
            edge_say(e, "coordinator: a ticket was not usable");
        break;
    case CW__PB__ENVELOPE__BODY_EPOCH_NEWS:
        if (!homes_take_epoch(e, m->frames[0].data, m->frames[0].len)) break;
        homes_prune(e, out);
        links_tick(e, out);
        calls_homeless(e, out);
        disputes_run(e, out);
        break;
    case CW__PB__ENVELOPE__BODY_PING: pong(e, env->ping, out); break;
    case CW__PB__ENVELOPE__BODY_PONG: e->wall_offset_ms = (int64_t)env->pong->wall_ms - e->wall_ms; break;
    case CW__PB__ENVELOPE__BODY_BYE: {
        char text[CW_TEXT_MAX];
        snprintf(text, sizeof text, "the coordinator has gone: %.400s", env->bye->text);
        cw_close(out, e->co.link, "it said goodbye");
        retry(e, text, cw_backoff_take(&e->co.backoff));
        break;
    }
    default: break; /* the gate lets nothing else through */
    }
}

void control_event(cw_edge *e, cw_event *ev, cw_outbox *out)
{
    if (!e->co.link) return;
    if (ev->kind == CW_EV_LINK_UP) {
        e->co.heard_us = e->now_us;
        say_hello(e, out);
    } else if (ev->kind == CW_EV_LINK_DOWN) {
        char text[CW_TEXT_MAX];
        snprintf(text, sizeof text, "no connection to the coordinator at %.200s: %.128s", e->c.coordinator,
                 ev->text);
        retry(e, text, cw_backoff_take(&e->co.backoff));
    } else if (ev->msg) {
        message(e, ev->msg, out);
    }
}

void control_renew(cw_edge *e, cw_outbox *out)
{
    if (e->co.state != CO_ADMITTED) return;
    Cw__Pb__TicketRenew m = CW__PB__TICKET_RENEW__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    env.body_case = CW__PB__ENVELOPE__BODY_TICKET_RENEW, env.ticket_renew = &m;
    cw_send(out, e->co.link, &env, NULL, 0);
    e->co.renew_us = e->now_us + RENEW_AGAIN_US; /* until the answer says better */
}

void control_report(cw_edge *e, cw_outbox *out)
{
    if (e->co.state != CO_ADMITTED) return;
    for (uint32_t i = 0; i < e->n_reports; i++) {
        Cw__Pb__Mismatch m = CW__PB__MISMATCH__INIT;
        Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
        m.epoch_term = e->epoch_term, m.epoch_number = e->epoch_number;
        m.worker_a = e->reports[i].a, m.worker_b = e->reports[i].b, m.third = e->reports[i].third;
        m.layer = e->reports[i].layer, m.expert = e->reports[i].expert;
        env.body_case = CW__PB__ENVELOPE__BODY_MISMATCH, env.mismatch = &m;
        cw_send(out, e->co.link, &env, NULL, 0);
    }
    e->n_reports = 0;
}

static void heartbeat(cw_edge *e, cw_outbox *out)
{
    Cw__Pb__Ping m = CW__PB__PING__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    m.t_us = (uint64_t)e->now_us;
    env.body_case = CW__PB__ENVELOPE__BODY_PING, env.ping = &m;
    cw_send(out, e->co.link, &env, NULL, 0);
    Cw__Pb__EdgeStats s = CW__PB__EDGE_STATS__INIT;
    s.calls = e->n.calls, s.retries = e->n.resent, s.hedges = e->n.hedges, s.hedge_wins = e->n.hedge_wins;
    s.compared = e->n.compared, s.mismatches = e->n.mismatches, s.busy = e->n.busy;
    s.tokens = e->story.tokens, s.fallback_tokens = e->story.fallback_tokens;
    s.mode = e->story.mode[0] ? e->story.mode : (char *)(e->wanted ? "split" : "idle");
    env.body_case = CW__PB__ENVELOPE__BODY_EDGE_STATS, env.edge_stats = &s;
    cw_send(out, e->co.link, &env, NULL, 0);
}

void control_tick(cw_edge *e, cw_outbox *out)
{
    if (e->co.state == CO_WAITING && e->now_us >= e->co.retry_us) open_link(e, out);
    int64_t patience = e->co.state == CO_ADMITTED ? 5 * e->co.heartbeat_us : SILENT_US;
    if (e->co.link && e->now_us - e->co.heard_us > patience) {
        char text[CW_TEXT_MAX];
        snprintf(text, sizeof text, "the coordinator at %.200s does not answer", e->c.coordinator);
        cw_close(out, e->co.link, "silent");
        retry(e, text, cw_backoff_take(&e->co.backoff));
    }
    if (e->co.state != CO_ADMITTED) return;
    if (e->now_us - e->co.ping_us >= e->co.heartbeat_us) {
        e->co.ping_us = e->now_us;
        heartbeat(e, out);
    }
    if (e->ticket_len && e->now_us >= e->co.renew_us) control_renew(e, out);
}

void control_bye(cw_edge *e, cw_outbox *out)
{
    if (e->co.state == CO_ADMITTED) {
        Cw__Pb__Bye m = CW__PB__BYE__INIT;
        Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
        m.text = (char *)"done";
        env.body_case = CW__PB__ENVELOPE__BODY_BYE, env.bye = &m;
        cw_send(out, e->co.link, &env, NULL, 0);
    }
    if (e->co.link) cw_close(out, e->co.link, "done");
    e->co.link = 0;
    e->co.state = CO_OFF;
}
