/*
 * The control link: hello or enrolment, refusals, reconnecting, heartbeats, news from the coordinator.
 * A worker that has been let in once goes on serving whatever happens here.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"
#include "cw/ticket.h"
#include "worker_internal.h"

static void retry(cw_worker *w, int64_t after_us)
{
    audit_forget(w); /* whoever asked has gone */
    w->co.state = w->stopping ? CO_OFF : CO_WAITING;
    w->co.link = 0;
    w->co.retry_us = w->now_us + after_us;
}

/* One line for the operator, once for each new reason. */
static void complain(cw_worker *w, const char *what, const char *why)
{
    char text[CW_TEXT_MAX];
    snprintf(text, sizeof text, "%s %.200s: %.200s; %s", what, w->c.coordinator, why,
             w->n_ready ? "still serving, and trying again" : "trying again");
    if (!strcmp(text, w->co.said)) return;
    memcpy(w->co.said, text, sizeof text);
    worker_say(w, "%s", text);
}

static void open_link(cw_worker *w, cw_outbox *out)
{
    w->co.link = worker_new_link(w);
    w->co.state = CO_OPENING;
    w->co.last_heard_us = w->now_us;
    cw_open(out, w->co.link, w->c.coordinator, &w->c.coordinator_key);
}

static void say_hello(cw_worker *w, cw_outbox *out)
{
    Cw__Pb__Hello h = CW__PB__HELLO__INIT;
    Cw__Pb__WorkerInfo info = CW__PB__WORKER_INFO__INIT;
    Cw__Pb__Enrol enrol = CW__PB__ENROL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    h.proto_min = CW_PROTO_MIN, h.proto_max = CW_PROTO_MAX;
    h.software = (char *)"causeway " CW_VERSION;
    h.role = CW__PB__ROLE__ROLE_WORKER, h.purpose = CW__PB__PURPOSE__PURPOSE_CONTROL;
    h.name = w->c.name;
    h.capabilities = w->c.gives_chunks ? CW_CAN_GIVE_CHUNKS : 0;
    h.arithmetic_id = w->c.arithmetic_id, h.fingerprint = w->c.fingerprint;
    if (w->c.has_local_model) h.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, w->c.local_digest};
    h.epoch_term = w->epoch_term, h.epoch_number = w->epoch_number;
    h.instance = (ProtobufCBinaryData){CW_INSTANCE_BYTES, w->c.instance};
    info.data_address = w->c.data_address, info.memory_bytes = w->c.memory_bytes;
    info.threads = w->c.threads, info.isa = w->c.isa, info.speed = w->c.speed,
    info.local_model = w->c.has_local_model;
    h.worker = &info;
    w->co.enrolling = !w->co.enrolled && w->c.token_len;
    if (w->co.enrolling) {
        enrol.token = (ProtobufCBinaryData){w->c.token_len, w->c.token};
        enrol.hello = &h;
        env.body_case = CW__PB__ENVELOPE__BODY_ENROL, env.enrol = &enrol;
    } else {
        env.body_case = CW__PB__ENVELOPE__BODY_HELLO, env.hello = &h;
    }
    cw_send(out, w->co.link, &env, NULL, 0);
    w->co.state = CO_SAID;
}

/* Takes the epoch when it is signed, of this cluster and model, and newer than ours. */
void coordinator_epoch(cw_worker *w, const cw_frame *f)
{
    Cw__Pb__EpochBody *e = NULL;
    cw_err err = {0};
    if (cw_epoch_verify(&w->sign_key, f->data, f->len, &e, &err) != CW_OK) {
        worker_say(w, "an epoch was ignored: %.300s", err.text);
        return;
    }
    bool ours = !memcmp(e->cluster_id.data, w->cluster_id, CW_CLUSTER_BYTES) &&
                !memcmp(e->model_digest.data, w->digest, CW_DIGEST_BYTES);
    bool newer = e->term != w->epoch_term ? e->term > w->epoch_term : e->number > w->epoch_number;
    uint8_t *copy = ours && newer ? cw_realloc(NULL, f->len, 1) : NULL;
    if (copy) {
        memcpy(copy, f->data, f->len);
        cw_free(w->epoch);
        w->epoch = copy;
        w->epoch_len = f->len;
        w->epoch_term = e->term;
        saved_dirty(w);
        w->epoch_number = e->number;
    }
    cw_epoch_free(&e);
}

/* Replaces the list; lists are short (keys revoked since the oldest live ticket). */
void coordinator_revoked(cw_worker *w, ProtobufCBinaryData list, cw_outbox *out)
{
    size_t n = list.len / CW_KEY_BYTES;
    cw_key *keys = cw_calloc(n, sizeof *keys);
    if (!keys) return; /* the old list stays */
    if (n) memcpy(keys, list.data, n * CW_KEY_BYTES);
    cw_key *old = w->revoked;
    size_t n_old = w->n_revoked;
    w->revoked = keys;
    w->n_revoked = n;
    for (size_t i = 0; i < n; i++) {
        bool known = false;
        for (size_t k = 0; k < n_old && !known; k++) known = cw_key_equal(&keys[i], &old[k]);
        if (!known) worker_act(w, CW_WORKER_REVOKED)->key = keys[i];
        if (!known) saved_dirty(w);
    }
    cw_free(old);
    edges_revoke(w, out);
}

static void digest_text(const uint8_t *d, char out[17])
{
    for (int i = 0; i < 8; i++) snprintf(out + 2 * i, 3, "%02x", d[i]);
}

/* Whether this worker can serve what the coordinator serves; ends the process with a sentence otherwise. */
static bool model_fits(cw_worker *w, const Cw__Pb__Welcome *m, cw_outbox *out)
{
    const uint8_t *mine = w->c.has_local_model ? w->c.local_digest : w->model_asked ? w->digest : NULL;
    if (!mine || !memcmp(mine, m->model_digest.data, CW_DIGEST_BYTES)) return true;
    char a[17], b[17];
    digest_text(mine, a);
    digest_text(m->model_digest.data, b);
    coordinator_bye(w, "this worker has another model", out);
    if (w->c.has_local_model)
        worker_end(w, 1,
                   "--model is another model than the cluster's: the file has digest %s..., the cluster "
                   "serves \"%.100s\" with digest %s...; "
                   "give the same file, or leave --model out to pull the experts from the coordinator",
                   a, m->model_name, b);
    else
        worker_end(w, 1,
                   "the cluster now serves another model (\"%.100s\", digest %s... instead of %s...): start "
                   "this worker again to load it",
                   m->model_name, b, a);
    return false;
}

void coordinator_cluster(cw_worker *w, const Cw__Pb__Welcome *m)
{
    bool same = w->has_cluster && !memcmp(w->cluster_id, m->cluster_id.data, CW_CLUSTER_BYTES) &&
                !memcmp(w->digest, m->model_digest.data, CW_DIGEST_BYTES);
    if (!same) {
        w->epoch_term = w->epoch_number = w->epoch_len = 0;
        saved_dirty(w);
    }
    w->has_cluster = true;
    memcpy(w->cluster_id, m->cluster_id.data, CW_CLUSTER_BYTES);
    memcpy(w->digest, m->model_digest.data, CW_DIGEST_BYTES);
    memcpy(w->sign_key.b, m->sign_key.data, CW_KEY_BYTES);
    snprintf(w->model_name, sizeof w->model_name, "%s", m->model_name);
    snprintf(w->store_address, sizeof w->store_address, "%s", m->store_address);
    w->co.heartbeat_us = (int64_t)m->heartbeat_ms * 1000;
}

static void welcome(cw_worker *w, const cw_msg *msg, cw_outbox *out)
{
    const Cw__Pb__Welcome *m = msg->env->welcome;
    if (m->model_digest.len != CW_DIGEST_BYTES || m->sign_key.len != CW_KEY_BYTES) {
        cw_blame(out, w->co.link, "a welcome without a model digest or signing key");
        complain(w, "no usable welcome from the coordinator at", "it names no model or no signing key");
        retry(w, cw_backoff_take(&w->co.backoff));
        return;
    }
    if (!model_fits(w, m, out)) return;
    coordinator_cluster(w, m);
    worker_set_clock(w, m->wall_ms);
    w->co.state = CO_ADMITTED;
    w->co.admitted_us = w->now_us;
    w->co.last_ping_us = w->now_us;
    w->co.said[0] = 0;
    cw_backoff_reset(&w->co.backoff);
    if (!w->co.enrolled) {
        w->co.enrolled = true;
        worker_act(w, CW_WORKER_ENROLLED);
    }
    if (w->took_up) holdings_forget_missing(w, out);
    w->took_up = false;
    coordinator_revoked(w, m->revoked, out);
    if (msg->n_frames) coordinator_epoch(w, &msg->frames[0]);
    worker_say(w, "in the cluster of %.200s, model \"%.100s\"", w->c.coordinator, w->model_name);
    holdings_send(w,
                  out); /* at once, empty or not: the coordinator waits for it before it assigns anything */
    if (!w->model_asked) {
        w->model_asked = true;
        w->model_retry_us = w->now_us + 1; /* 0 means: nothing is due */
    }
}

static void refusal(cw_worker *w, const Cw__Pb__Refusal *r, cw_outbox *out)
{
    cw_close(out, w->co.link, "refused");
    if (r->code == CW__PB__REFUSAL_CODE__REFUSAL_UNKNOWN_KEY && !w->co.enrolling && w->c.token_len) {
        /* Another coordinator state than the one that knew us: the join string still opens the door. */
        w->co.enrolled = false;
        retry(w, 0);
    } else if (r->retry_after_ms) {
        complain(w, "not let in yet by the coordinator at", r->text);
        int64_t pause = cw_backoff_take(&w->co.backoff), asked = (int64_t)r->retry_after_ms * 1000;
        retry(w, pause > asked ? pause : asked);
    } else {
        w->co.state = CO_OFF;
        w->co.link = 0;
        bool unknown = r->code == CW__PB__REFUSAL_CODE__REFUSAL_UNKNOWN_KEY;
        worker_end(w, 1, "the coordinator at %.200s refused this worker: %.250s%s", w->c.coordinator, r->text,
                   unknown ? " (start it once with --join and a join string of that coordinator)" : "");
    }
}

static void pong(cw_worker *w, const Cw__Pb__Ping *p, cw_outbox *out)
{
    Cw__Pb__Pong m = CW__PB__PONG__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    m.t_us = p->t_us, m.wall_ms = (uint64_t)w->wall_ms;
    env.body_case = CW__PB__ENVELOPE__BODY_PONG, env.pong = &m;
    cw_send(out, w->co.link, &env, NULL, 0);
}

/* Whoever else has chunks, for the loader. */
static void sources(cw_worker *w, const Cw__Pb__Assign *m)
{
    for (size_t i = 0; i < m->n_sources; i++) {
        const Cw__Pb__ChunkSource *c = m->sources[i];
        cw_fetch_source *s = cw_calloc(1, sizeof *s);
        if (!s) return; /* the coordinator has the chunks too */
        snprintf(s->name, sizeof s->name, "%s", c->name);
        snprintf(s->address, sizeof s->address, "%s", c->address);
        memcpy(s->key.b, c->key.data, CW_KEY_BYTES);
        s->ticket_len = c->ticket.len < sizeof s->ticket ? c->ticket.len : sizeof s->ticket;
        memcpy(s->ticket, c->ticket.data, s->ticket_len);
        worker_act(w, CW_WORKER_SOURCE)->source = s;
    }
}

static void message(cw_worker *w, const cw_msg *m, cw_outbox *out)
{
    const Cw__Pb__Envelope *env = m->env;
    w->co.last_heard_us = w->now_us;
    switch ((int)env->body_case) {
    case CW__PB__ENVELOPE__BODY_WELCOME: welcome(w, m, out); break;
    case CW__PB__ENVELOPE__BODY_REFUSAL: refusal(w, env->refusal, out); break;
    case CW__PB__ENVELOPE__BODY_EPOCH_NEWS: coordinator_epoch(w, &m->frames[0]); break;
    case CW__PB__ENVELOPE__BODY_ASSIGN:
        sources(w, env->assign);
        holdings_change(w, true, env->assign->seq, env->assign->sets, env->assign->n_sets, out);
        break;
    case CW__PB__ENVELOPE__BODY_DROP:
        holdings_change(w, false, env->drop->seq, env->drop->sets, env->drop->n_sets, out);
        break;
    case CW__PB__ENVELOPE__BODY_AUDIT: audit_ask(w, env->audit, out); break;
    case CW__PB__ENVELOPE__BODY_TICKET:
        worker_set_clock(w, env->ticket->wall_ms);
        coordinator_revoked(w, env->ticket->revoked, out);
        break;
    case CW__PB__ENVELOPE__BODY_PING: pong(w, env->ping, out); break;
    case CW__PB__ENVELOPE__BODY_RELEASED: leave_released(w, env->released->text, out); break;
    case CW__PB__ENVELOPE__BODY_PONG: worker_set_clock(w, env->pong->wall_ms); break;
    case CW__PB__ENVELOPE__BODY_BYE:
        cw_close(out, w->co.link, "it said goodbye");
        complain(w, "the coordinator has gone,", env->bye->text);
        retry(w, cw_backoff_take(&w->co.backoff));
        break;
    default: break; /* the gate lets nothing else through */
    }
}

void coordinator_event(cw_worker *w, cw_event *ev, cw_outbox *out)
{
    if (ev->link != w->co.link || !w->co.link) return; /* of a link that was given up */
    if (ev->kind == CW_EV_LINK_UP) {
        w->co.last_heard_us = w->now_us;
        say_hello(w, out);
    } else if (ev->kind == CW_EV_LINK_DOWN) {
        complain(w, "no connection to the coordinator at", ev->text);
        retry(w, cw_backoff_take(&w->co.backoff));
    } else {
        message(w, ev->msg, out);
    }
}

static void heartbeat(cw_worker *w, cw_outbox *out)
{
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__Ping ping = CW__PB__PING__INIT;
    ping.t_us = (uint64_t)w->now_us;
    env.body_case = CW__PB__ENVELOPE__BODY_PING, env.ping = &ping;
    cw_send(out, w->co.link, &env, NULL, 0);
    report_send(w, out);
}

void coordinator_tick(cw_worker *w, cw_outbox *out)
{
    if (w->co.state == CO_WAITING && w->now_us >= w->co.retry_us) open_link(w, out);
    int64_t patience = w->co.state == CO_ADMITTED ? 5 * w->co.heartbeat_us : 10000000;
    if (w->co.link && w->now_us - w->co.last_heard_us > patience) {
        cw_close(out, w->co.link, "silent");
        complain(w, "no answer from the coordinator at",
                 w->co.state == CO_ADMITTED ? "it has fallen silent" : "it does not answer");
        retry(w, cw_backoff_take(&w->co.backoff));
    }
    if (w->co.state == CO_ADMITTED && w->now_us - w->co.last_ping_us >= w->co.heartbeat_us) {
        w->co.last_ping_us = w->now_us;
        heartbeat(w, out);
    }
    if (w->model_retry_us && w->now_us >= w->model_retry_us && !w->stopping) {
        w->model_retry_us = 0;
        cw_worker_act *a = worker_act(w, CW_WORKER_GET_MODEL);
        memcpy(a->digest, w->digest, CW_DIGEST_BYTES);
        snprintf(a->store_address, sizeof a->store_address, "%s", w->store_address);
    }
}

void coordinator_bye(cw_worker *w, const char *text, cw_outbox *out)
{
    if (w->co.state == CO_ADMITTED) {
        Cw__Pb__Bye bye = CW__PB__BYE__INIT;
        Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
        bye.text = (char *)(uintptr_t)text;
        env.body_case = CW__PB__ENVELOPE__BODY_BYE, env.bye = &bye;
        cw_send(out, w->co.link, &env, NULL, 0);
    }
    if (w->co.link) cw_close(out, w->co.link, "leaving");
    w->co.link = 0;
    w->co.state = CO_OFF;
}
