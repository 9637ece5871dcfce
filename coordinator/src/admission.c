/*
 * Who comes in: Hello and Enrol answered with Welcome, or with a refusal that tells a user what to do. A
 * token use is spent only when everything else is in order, and is saved before the Welcome leaves.
 */
#include <stdio.h>
#include <string.h>

#include "coordinator_internal.h"
#include "cw/join.h"
#include "cw/log.h"
#include "cw/mem.h"

enum { HELLO_GAP_US = 1000000, HELLO_BURST = 8, RENEW_GAP_US = 2000000, RENEW_BURST = 4 };

typedef struct {
    Cw__Pb__RefusalCode code; /* REFUSAL_NONE: come in */
    uint32_t retry_ms;
    char text[CW_TEXT_MAX];
} verdict;

#define REFUSE(v, c, retry, ...)                                                                             \
    do {                                                                                                     \
        (v)->code = CW__PB__REFUSAL_CODE__REFUSAL_##c;                                                       \
        (v)->retry_ms = (retry);                                                                             \
        snprintf((v)->text, sizeof(v)->text, __VA_ARGS__);                                                   \
        return;                                                                                              \
    } while (0)

static const char *role_name(Cw__Pb__Role r)
{
    return r == CW__PB__ROLE__ROLE_WORKER ? "worker" : "edge";
}

static void short_hex(const uint8_t *bytes, char out[17])
{
    for (int i = 0; i < 8; i++) snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

/* "3 hours", for how long ago something ended. */
static const char *ago(int64_t ms, char buf[32])
{
    int64_t s = ms / 1000;
    if (s < 120)
        snprintf(buf, 32, "%lld seconds", (long long)s);
    else if (s < 2 * 3600)
        snprintf(buf, 32, "%lld minutes", (long long)(s / 60));
    else if (s < 2 * 86400)
        snprintf(buf, 32, "%lld hours", (long long)(s / 3600));
    else
        snprintf(buf, 32, "%lld days", (long long)(s / 86400));
    return buf;
}

static void check_versions(const cw_coordinator *c, const Cw__Pb__Hello *h, verdict *v)
{
    if (h->proto_min > CW_PROTO_MAX)
        REFUSE(v, PROTOCOL, 0,
               "this coordinator speaks protocol %d to %d and %s needs at least %u: update the coordinator",
               CW_PROTO_MIN, CW_PROTO_MAX, h->software, h->proto_min);
    if (h->proto_max < CW_PROTO_MIN)
        REFUSE(v, PROTOCOL, 0, "this coordinator speaks protocol %d to %d and %s at most %u: update it",
               CW_PROTO_MIN, CW_PROTO_MAX, h->software, h->proto_max);
    if (h->arithmetic_id != c->cfg.arithmetic_id)
        REFUSE(v, NUMERICS, 0,
               "%s computes with arithmetic %u and this cluster with %u, so rows would differ: run the same "
               "version "
               "everywhere",
               h->software, h->arithmetic_id, c->cfg.arithmetic_id);
    if (h->fingerprint != c->cfg.fingerprint)
        REFUSE(v, NUMERICS, 0,
               "the built-in test rows come out differently on this machine (%016llx, the cluster has "
               "%016llx) although "
               "the arithmetic is the same: a miscompiled build, changed rounding modes or faulty memory",
               (unsigned long long)h->fingerprint, (unsigned long long)c->cfg.fingerprint);
}

static void check_model(const cw_coordinator *c, const Cw__Pb__Hello *h, verdict *v)
{
    char ours[17], theirs[17];
    if (h->model_digest.len == 0 || memcmp(h->model_digest.data, c->cfg.model_digest, CW_DIGEST_BYTES) == 0)
        return;
    short_hex(c->cfg.model_digest, ours);
    short_hex(h->model_digest.data, theirs);
    REFUSE(v, MODEL, 0,
           "your model file is not this cluster's: yours has digest %s, the cluster serves %.128s with "
           "digest %s",
           theirs, c->model_name, ours);
}

static void check_token(const cw_coordinator *c, const Cw__Pb__Enrol *e, int64_t wall_ms,
                        cw_token_row **token, verdict *v)
{
    char when[32];
    uint8_t hash[CW_TOKEN_HASH_BYTES];
    cw_token_hash(e->token.data, e->token.len, hash);
    cw_token_row *t = token_find_hash(c, hash);
    if (!t)
        REFUSE(v, TOKEN, 0,
               "the token in this join string is not one of this cluster's: ask its operator for a new join "
               "string");
    if (t->revoked)
        REFUSE(v, TOKEN, 0,
               "the token in this join string was revoked: ask the cluster's operator for a new one");
    if (t->expires_ms <= wall_ms)
        REFUSE(v, TOKEN, 0,
               "the token in this join string expired %s ago: make a new one with causeway-coordinator token "
               "create "
               "--role %s",
               ago(wall_ms - t->expires_ms, when), role_name(t->role));
    if (t->role != e->hello->role)
        REFUSE(v, ROLE, 0, "this join string is for %s, and this is %s: ask for one with --role %s",
               t->role == CW__PB__ROLE__ROLE_WORKER ? "workers" : "edges",
               e->hello->role == CW__PB__ROLE__ROLE_WORKER ? "a worker" : "an edge",
               role_name(e->hello->role));
    if (t->uses_max && t->uses >= t->uses_max)
        REFUSE(v, TOKEN, 0,
               "the token in this join string is used up (%u of %u): make a new one with "
               "causeway-coordinator token create "
               "--role %s",
               t->uses, t->uses_max, role_name(t->role));
    *token = t;
}

/* Who it is: a known key, or a new one with a token. */
static void check_identity(const cw_coordinator *c, const member *m, const Cw__Pb__Hello *h,
                           const Cw__Pb__Enrol *e, int64_t wall_ms, cw_token_row **token, verdict *v)
{
    if (m && m->row.revoked)
        REFUSE(v, REVOKED, 0,
               "the key of this %s was revoked by the operator: with a new state directory and a new join "
               "string it can "
               "come back",
               role_name(m->row.role));
    if (m && m->row.fenced)
        REFUSE(
            v, REVOKED, 0,
            "this worker is fenced: %.160s; when the machine is mended, the operator lets it in again with "
            "causeway-coordinator unfence %s",
            m->row.note, m->row.name);
    if (m && m->row.role != h->role)
        REFUSE(v, ROLE, 0,
               "this key was admitted as %s and now says it is %s: use a state directory of its own for each",
               m->row.role == CW__PB__ROLE__ROLE_WORKER ? "a worker" : "an edge",
               h->role == CW__PB__ROLE__ROLE_WORKER ? "a worker" : "an edge");
    if (m) return;
    if (!e)
        REFUSE(v, UNKNOWN_KEY, 0,
               "this coordinator does not know this key: start with a join string (--join)");
    check_token(c, e, wall_ms, token, v);
}

static void check_worker(const cw_coordinator *c, const member *m, const Cw__Pb__Hello *h, verdict *v)
{
    const char *a = h->worker->data_address;
    if (strncmp(a, "tcp://", 6) != 0 || strstr(a, "//0.0.0.0:") || strstr(a, "//*") || strstr(a, "//[::]"))
        REFUSE(v, NAME, 0,
               "edges cannot connect to %.200s: start the worker with --advertise tcp://HOST:PORT",
               a[0] ? a : "no address");
    for (size_t i = 0; i < c->n_members; i++) {
        const member *o = c->members[i];
        if (o != m && o->worker && is_live(o) && h->name[0] && strcmp(o->row.name, h->name) == 0)
            REFUSE(v, NAME, 5000,
                   "a worker named %s is connected already with another key: choose a name with --name",
                   h->name);
    }
}

static void check_room(const cw_coordinator *c, const member *m, const Cw__Pb__Hello *h,
                       const cw_token_row *token, verdict *v)
{
    if (m && is_live(m)) return; /* the new link takes the old one's place */
    bool worker = h->role == CW__PB__ROLE__ROLE_WORKER;
    uint32_t live = live_count(c, h->role, 0), max = worker ? c->cfg.max_workers : c->cfg.max_edges;
    if (live >= max)
        REFUSE(v, FULL, 30000, "the cluster's limit of %u connected %ss is reached: try again later", live,
               role_name(h->role));
    if (!token && m) token = token_find(c, m->row.token_id);
    if (token && token->max_live && (live = live_count(c, h->role, token->id)) >= token->max_live)
        REFUSE(
            v, FULL, 30000,
            "this join string's limit of %u connected %ss is reached: try again later or ask for another one",
            live, role_name(h->role));
}

/* Each admission costs a signature and a copy of the epoch. */
static void check_pace(member *m, int64_t now_us, verdict *v)
{
    if (m && !bucket_take(&m->hello_at, now_us, HELLO_GAP_US, HELLO_BURST))
        REFUSE(v, BUSY, 2000, "this key connects again and again, more than once a second: wait a moment");
}

static void judge(const cw_coordinator *c, member *m, const Cw__Pb__Hello *h, const Cw__Pb__Enrol *e,
                  int64_t now_us, int64_t wall_ms, cw_token_row **token, verdict *v)
{
    check_pace(m, now_us, v);
    if (v->code == 0) check_versions(c, h, v);
    if (v->code == 0) check_identity(c, m, h, e, wall_ms, token, v);
    if (v->code == 0) check_model(c, h, v);
    if (v->code == 0 && h->worker) check_worker(c, m, h, v);
    if (v->code == 0) check_room(c, m, h, *token, v);
}

static void send_refusal(cw_outbox *out, cw_link link, Cw__Pb__RefusalCode code, const char *text,
                         uint32_t retry_ms)
{
    Cw__Pb__Refusal r = CW__PB__REFUSAL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    r.code = code;
    r.text = (char *)text;
    r.retry_after_ms = retry_ms;
    env.body_case = CW__PB__ENVELOPE__BODY_REFUSAL;
    env.refusal = &r;
    cw_send(out, link, &env, NULL, 0);
}

uint64_t serial_next(cw_coordinator *c)
{
    if (c->serial == c->serial_saved) { /* one row for a thousand tickets */
        c->serial_saved += 1000;
        save_serial(c);
    }
    return c->serial++;
}

/* Signed(TicketBody) for this edge, freed by the caller; empty when out of memory. */
static ProtobufCBinaryData make_ticket(cw_coordinator *c, const member *m, int64_t wall_ms)
{
    cw_ticket t = {.edge = m->row.key,
                   .not_after_ms = (uint64_t)wall_ms + c->cfg.times.ticket_ms,
                   .streams = c->cfg.ticket_streams,
                   .rows_per_s = c->cfg.ticket_rows_per_s,
                   .serial = serial_next(c)};
    memcpy(t.cluster, c->cfg.cluster_id, sizeof t.cluster);
    memcpy(t.model_digest, c->cfg.model_digest, sizeof t.model_digest);
    ProtobufCBinaryData out = {0, NULL};
    count_add(COUNT_TICKETS, 1);
    if (cw_ticket_sign(c->cfg.signer, &t, &out.data, &out.len, NULL) != CW_OK) c->failed = true;
    return out;
}

static void send_welcome(cw_coordinator *c, member *m, int64_t wall_ms, cw_outbox *out)
{
    Cw__Pb__Welcome w = CW__PB__WELCOME__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    env.body_case = CW__PB__ENVELOPE__BODY_WELCOME;
    env.welcome = &w;
    w.proto = m->proto;
    w.cluster_id = (ProtobufCBinaryData){CW_CLUSTER_BYTES, c->cfg.cluster_id};
    w.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, c->cfg.model_digest};
    w.model_name = c->model_name;
    w.sign_key = (ProtobufCBinaryData){CW_KEY_BYTES, (uint8_t *)cw_signer_public(c->cfg.signer)->b};
    w.heartbeat_ms = c->cfg.times.heartbeat_ms;
    w.wall_ms = (uint64_t)wall_ms;
    uint8_t *revoked = NULL;
    if (m->worker) {
        size_t len;
        w.store_address = c->store_address;
        revoked = revoked_edges(c, &len);
        w.revoked = (ProtobufCBinaryData){len, revoked};
    } else {
        w.ticket = make_ticket(c, m, wall_ms);
        w.streams = c->cfg.ticket_streams;
    }
    cw_frame epoch = {0};
    if (c->epoch) epoch = shared_bytes_frame(c->epoch);
    cw_admit(out, m->link);
    cw_send(out, m->link, &env, &epoch, c->epoch ? 1 : 0);
    cw_free(w.ticket.data);
    cw_free(revoked);
}

void send_ticket(cw_coordinator *c, member *m, const cw_event *ev, cw_outbox *out)
{
    Cw__Pb__Ticket t = CW__PB__TICKET__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    /* Once in half an hour is the rule; whoever asks more often has the ticket it got a moment ago. */
    if (!bucket_take(&m->ticket_at, ev->now_us, RENEW_GAP_US, RENEW_BURST)) return;
    env.body_case = CW__PB__ENVELOPE__BODY_TICKET;
    env.ticket = &t;
    t.wall_ms = (uint64_t)ev->wall_ms;
    t.signed_ticket = make_ticket(c, m, ev->wall_ms);
    cw_send(out, m->link, &env, NULL, 0);
    cw_free(t.signed_ticket.data);
}

void part_with(cw_coordinator *c, member *m, int64_t now_us, const char *text, cw_outbox *out)
{
    if (!m->link) return;
    cw_link link = m->link;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__Bye bye = CW__PB__BYE__INIT;
    bye.text = (char *)text; /* Refusal answers only a first message */
    env.body_case = CW__PB__ENVELOPE__BODY_BYE;
    env.bye = &bye;
    cw_send(out, link, &env, NULL, 0);
    cw_close(out, link, text);
    link_remove(c, link);
    member_lost(c, m, now_us, !is_trusted(m));
}

static void take_facts(member *m, const Cw__Pb__Hello *h)
{
    worker_state *w = m->worker;
    bool restarted = memcmp(w->instance, h->instance.data, CW_INSTANCE_BYTES) != 0;
    memcpy(w->instance, h->instance.data, CW_INSTANCE_BYTES);
    snprintf(w->address, sizeof w->address, "%s", h->worker->data_address);
    snprintf(w->isa, sizeof w->isa, "%s", h->worker->isa);
    w->memory_bytes = h->worker->memory_bytes;
    w->threads = h->worker->threads;
    w->speed = h->worker->speed;
    w->local_model = h->worker->local_model;
    w->gives_chunks = h->capabilities & CW_CAN_GIVE_CHUNKS;
    w->heard = false; /* the first Holdings of this link tell what is there */
    w->trouble[0] = 0;
    w->retry_us = INT64_MAX;
    cw_expert_bits_clear(&w->asked);
    cw_expert_bits_clear(&w->first);
    cw_expert_bits_clear(&w->leaving);
    cw_expert_bits_clear(&w->dropping);
    if (restarted) w->calls = w->rows = w->bytes_in = w->bytes_out = 0;
}

static member *enrol(cw_coordinator *c, const cw_event *ev, const Cw__Pb__Hello *h, cw_token_row *token)
{
    cw_key_row row = {.key = ev->key,
                      .role = h->role,
                      .token_id = token->id,
                      .admitted_ms = ev->wall_ms,
                      .seen_ms = ev->wall_ms};
    member *m = member_add(c, &row);
    if (!m) return NULL;
    token->uses++;
    save_token(c, token);
    return m;
}

/* A name for those who gave none: stable, from the key. */
static void set_name(cw_coordinator *c, member *m, const char *name, bool is_new)
{
    char buf[CW_NAME_MAX + 1];
    if (name[0])
        snprintf(buf, sizeof buf, "%s", name);
    else
        snprintf(buf, sizeof buf, "%s-%02x%02x%02x", role_name(m->row.role), m->row.key.b[0], m->row.key.b[1],
                 m->row.key.b[2]);
    bool changed = strcmp(buf, m->row.name) != 0;
    memcpy(m->row.name, buf, sizeof buf);
    if (changed || is_new) save_key(c, &m->row);
}

void admit(cw_coordinator *c, link_state *l, const cw_event *ev, cw_outbox *out)
{
    const Cw__Pb__Envelope *env = ev->msg->env;
    const Cw__Pb__Enrol *e = env->body_case == CW__PB__ENVELOPE__BODY_ENROL ? env->enrol : NULL;
    const Cw__Pb__Hello *h = e ? e->hello : env->hello;
    cw_link link = l->link;
    member *m = member_find(c, &ev->key);
    cw_token_row *token = NULL;
    verdict v = {0};
    judge(c, m, h, e, ev->now_us, ev->wall_ms, &token, &v);
    bool is_new = !m;
    if (v.code == 0 && is_new && h->role == CW__PB__ROLE__ROLE_EDGE && !members_make_room(c, ev->wall_ms)) {
        v.code = CW__PB__REFUSAL_CODE__REFUSAL_FULL;
        v.retry_ms = 60000;
        snprintf(v.text, sizeof v.text,
                 "this coordinator remembers as many edges as it can: revoke what is not used");
    }
    if (v.code == 0 && is_new && !(m = enrol(c, ev, h, token))) {
        c->failed = true;
        return;
    }
    if (v.code != 0) {
        CW_LOG_W("coordinator", "refused role=%s name=\"%s\" why=\"%s\"", role_name(h->role), h->name,
                 v.text);
        count_add(COUNT_REFUSED, 1);
        send_refusal(out, link, v.code, v.text, v.retry_ms);
        cw_close(out, link, v.text);
        link_remove(c, link);
        return;
    }
    count_add(COUNT_ADMITTED, 1);
    if (m->link) part_with(c, m, ev->now_us, "a newer connection of the same key took this one's place", out);
    set_name(c, m, h->name, is_new);
    m->link = link;
    m->proto = h->proto_max < CW_PROTO_MAX ? h->proto_max : CW_PROTO_MAX; /* the highest both know */
    link_find(c, link)->who = m;
    if (m->worker) {
        take_facts(m, h);
        epochs_saw(c, h->epoch_term, h->epoch_number, m->row.name);
    }
    CW_LOG_I("coordinator", "%s role=%s name=\"%s\" token=%u", is_new ? "enrolled" : "connected",
             role_name(h->role), m->row.name, m->row.token_id);
    send_welcome(c, m, ev->wall_ms, out);
}
