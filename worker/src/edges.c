/*
 * Edges: who may call. An edge shows a ticket that the coordinator signed for its CURVE key, this cluster and
 * this model; everything else is refused in words. Another worker that shows such a ticket for chunks may
 * fetch chunks and nothing else (chunks.c). A ticket that has run out is honoured for 24 hours while
 * the coordinator cannot be reached, unless its key is on the last revocation list.
 */
#include <stdio.h>
#include <string.h>

#include "cw/mem.h"
#include "cw/ticket.h"
#include "worker_internal.h"

static peer *find(const cw_worker *w, cw_link link)
{
    for (size_t i = 0; i < w->n_peers; i++)
        if (w->peers[i]->link == link) return w->peers[i];
    return NULL;
}

static peer *add(cw_worker *w, const cw_event *ev)
{
    if (w->n_peers == w->cap_peers) {
        size_t cap = w->cap_peers ? 2 * w->cap_peers : 16;
        peer **list = cw_realloc(w->peers, cap, sizeof *list);
        if (!list) return NULL;
        w->peers = list;
        w->cap_peers = cap;
    }
    peer *p = cw_calloc(1, sizeof *p);
    if (!p) return NULL;
    *p = (peer){.link = ev->link, .key = ev->key, .since_us = w->now_us};
    return w->peers[w->n_peers++] = p;
}

/* Everything of the peer goes with it: queued rows are not computed for nobody. */
static void drop(cw_worker *w, peer *p)
{
    calls_drop_peer(w, p);
    turns_account_leave(w, &p->account);
    cw_free(p->wants);
    for (size_t i = 0; i < w->n_peers; i++)
        if (w->peers[i] == p) {
            memmove(&w->peers[i], &w->peers[i + 1], (w->n_peers - i - 1) * sizeof *w->peers);
            w->n_peers--;
            if (w->chunk_turn > i) w->chunk_turn--;
            break;
        }
    cw_free(p);
}

static void refuse(cw_worker *w, peer *p, Cw__Pb__RefusalCode code, uint32_t retry_ms, const char *text,
                   cw_outbox *out)
{
    Cw__Pb__Refusal r = CW__PB__REFUSAL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    r.code = code, r.text = (char *)(uintptr_t)text, r.retry_after_ms = retry_ms;
    env.body_case = CW__PB__ENVELOPE__BODY_REFUSAL, env.refusal = &r;
    cw_send(out, p->link, &env, NULL, 0);
    cw_close(out, p->link, "refused");
    drop(w, p);
}

bool edges_is_revoked(const cw_worker *w, const cw_key *key)
{
    for (size_t i = 0; i < w->n_revoked; i++)
        if (cw_key_equal(&w->revoked[i], key)) return true;
    return false;
}

static bool in_time(const cw_worker *w, int64_t not_after_ms)
{
    bool away = w->co.state != CO_ADMITTED || w->now_us - w->co.admitted_us < TICKET_SETTLE_US;
    return worker_cluster_ms(w) <= not_after_ms + (away ? TICKET_GRACE_MS : 0);
}

/* NULL: the ticket is good for this peer. */
static const char *ticket_trouble(const cw_worker *w, const peer *p, ProtobufCBinaryData bytes,
                                  cw_ticket *out)
{
    cw_ticket t;
    if (!bytes.len) return "a ticket from the coordinator is needed, and none was shown";
    cw_status s = cw_ticket_verify(&w->sign_key, bytes.data, bytes.len, &t, NULL);
    if (s == CW_STATUS_AUTH) return "the ticket was not signed by this cluster's coordinator";
    if (s != CW_OK) return "the ticket is damaged";
    if (!cw_key_equal(&t.edge, &p->key))
        return "the ticket belongs to another key: tickets cannot be copied to another machine or name; "
               "enrol this one with its own join string";
    if (t.right != (p->is_worker ? CW_RIGHT_CHUNKS : CW_RIGHT_CALLS))
        return p->is_worker ? "the ticket is for calls, not for fetching chunks"
                            : "the ticket is for fetching chunks, not for calls";
    if (memcmp(t.cluster, w->cluster_id, CW_CLUSTER_BYTES)) return "the ticket is for another cluster";
    if (memcmp(t.model_digest, w->digest, CW_DIGEST_BYTES)) return "the ticket is for another model";
    if (t.not_after_ms > INT64_MAX / 2) t.not_after_ms = INT64_MAX / 2;
    if (!in_time(w, (int64_t)t.not_after_ms))
        return "the ticket has run out; get a new one from the coordinator";
    *out = t;
    return NULL;
}

/* REFUSAL_NONE: welcome. Otherwise text says why. */
static Cw__Pb__RefusalCode judge(const cw_worker *w, peer *p, const Cw__Pb__Hello *h, cw_ticket *ticket,
                                 uint32_t *retry_ms, char *text, size_t cap)
{
    *retry_ms = 0;
    if (h->role != CW__PB__ROLE__ROLE_EDGE && h->role != CW__PB__ROLE__ROLE_WORKER)
        return snprintf(text, cap, "only edges and workers come here"), CW__PB__REFUSAL_CODE__REFUSAL_ROLE;
    p->is_worker = h->role == CW__PB__ROLE__ROLE_WORKER;
    if (h->proto_max < CW_PROTO_MIN || h->proto_min > CW_PROTO_MAX)
        return snprintf(text, cap,
                        "this worker speaks protocol %d to %d, the edge %u to %u: update the older one",
                        CW_PROTO_MIN, CW_PROTO_MAX, h->proto_min, h->proto_max),
               CW__PB__REFUSAL_CODE__REFUSAL_PROTOCOL;
    if (h->arithmetic_id != w->c.arithmetic_id)
        return snprintf(text, cap,
                        "the edge computes with arithmetic %u, this worker with %u: results would differ, "
                        "update the older one",
                        h->arithmetic_id, w->c.arithmetic_id),
               CW__PB__REFUSAL_CODE__REFUSAL_NUMERICS;
    if (h->fingerprint != w->c.fingerprint)
        return snprintf(text, cap,
                        "the built-in test rows differ (edge %016llx, worker %016llx): one of the two "
                        "machines computes wrongly, or was built wrongly",
                        (unsigned long long)h->fingerprint, (unsigned long long)w->c.fingerprint),
               CW__PB__REFUSAL_CODE__REFUSAL_NUMERICS;
    if (edges_is_revoked(w, &p->key))
        return snprintf(text, cap, "this edge's key has been revoked"), CW__PB__REFUSAL_CODE__REFUSAL_REVOKED;
    if (w->stopping)
        return *retry_ms = 1000, snprintf(text, cap, "this worker is stopping"),
               CW__PB__REFUSAL_CODE__REFUSAL_BUSY;
    if (!w->has_cluster || !w->model_ready)
        return *retry_ms = 500, snprintf(text, cap, "this worker is still loading"),
               CW__PB__REFUSAL_CODE__REFUSAL_BUSY;
    if (h->model_digest.len != CW_DIGEST_BYTES || memcmp(h->model_digest.data, w->digest, CW_DIGEST_BYTES))
        return snprintf(text, cap, "the edge's model is not the one served here (\"%.100s\")", w->model_name),
               CW__PB__REFUSAL_CODE__REFUSAL_MODEL;
    const char *why = ticket_trouble(w, p, h->ticket, ticket);
    if (why) return snprintf(text, cap, "%s", why), CW__PB__REFUSAL_CODE__REFUSAL_TICKET;
    uint32_t links = 0;
    for (size_t i = 0; i < w->n_peers; i++)
        links += w->peers[i]->admitted && cw_key_equal(&w->peers[i]->key, &p->key);
    if (links >= LINKS_PER_KEY)
        return *retry_ms = 1000, snprintf(text, cap, "this edge has %u connections here already", links),
               CW__PB__REFUSAL_CODE__REFUSAL_FULL;
    p->not_after_ms = (int64_t)ticket->not_after_ms;
    return CW__PB__REFUSAL_CODE__REFUSAL_NONE;
}

cw_frame edges_epoch_for(const cw_worker *w, peer *p)
{
    if (!w->epoch_len || (p->told_term == w->epoch_term && p->told_number == w->epoch_number))
        return (cw_frame){0};
    cw_frame f = cw_frame_copy(w->epoch, w->epoch_len);
    if (!f.data) return (cw_frame){0};
    p->told_term = w->epoch_term;
    p->told_number = w->epoch_number;
    return f;
}

static void hello(cw_worker *w, peer *p, const Cw__Pb__Hello *h, cw_outbox *out)
{
    char text[256];
    uint32_t retry_ms;
    cw_ticket t = {0};
    Cw__Pb__RefusalCode code = judge(w, p, h, &t, &retry_ms, text, sizeof text);
    if (code == CW__PB__REFUSAL_CODE__REFUSAL_NONE && !p->is_worker &&
        !(p->account = turns_account(w, &p->key, t.streams, t.rows_per_s))) {
        code = CW__PB__REFUSAL_CODE__REFUSAL_BUSY;
        retry_ms = 1000;
        snprintf(text, sizeof text, "this worker is out of memory");
    }
    if (code != CW__PB__REFUSAL_CODE__REFUSAL_NONE) {
        refuse(w, p, code, retry_ms, text, out);
        return;
    }
    Cw__Pb__Welcome m = CW__PB__WELCOME__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    m.proto = h->proto_max < CW_PROTO_MAX ? h->proto_max : CW_PROTO_MAX;
    m.cluster_id = (ProtobufCBinaryData){CW_CLUSTER_BYTES, w->cluster_id};
    m.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, w->digest};
    m.model_name = w->model_name;
    m.heartbeat_ms = (uint32_t)(w->co.heartbeat_us / 1000);
    m.wall_ms = (uint64_t)worker_cluster_ms(w);
    env.body_case = CW__PB__ENVELOPE__BODY_WELCOME, env.welcome = &m;
    cw_frame epoch = edges_epoch_for(w, p);
    p->admitted = true;
    cw_admit(out, p->link);
    cw_send(out, p->link, &env, &epoch, epoch.data != NULL);
}

static void bye(peer *p, const char *text, cw_outbox *out)
{
    if (p->admitted) {
        Cw__Pb__Bye m = CW__PB__BYE__INIT;
        Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
        m.text = (char *)(uintptr_t)text;
        env.body_case = CW__PB__ENVELOPE__BODY_BYE, env.bye = &m;
        cw_send(out, p->link, &env, NULL, 0);
    }
    cw_close(out, p->link, text);
}

static void pong(cw_worker *w, peer *p, const Cw__Pb__Ping *ping, cw_outbox *out)
{
    Cw__Pb__Pong m = CW__PB__PONG__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    m.t_us = ping->t_us, m.wall_ms = (uint64_t)worker_cluster_ms(w);
    env.body_case = CW__PB__ENVELOPE__BODY_PONG, env.pong = &m;
    cw_send(out, p->link, &env, NULL, 0);
}

void edges_event(cw_worker *w, cw_event *ev, cw_outbox *out)
{
    peer *p = find(w, ev->link);
    if (ev->kind == CW_EV_LINK_DOWN) {
        if (p) drop(w, p);
        return;
    }
    if (!p && ev->kind == CW_EV_LINK_UP && !(p = add(w, ev))) cw_close(out, ev->link, "out of memory");
    if (!p || ev->kind != CW_EV_MESSAGE) return;
    const Cw__Pb__Envelope *env = ev->msg->env;
    switch ((int)env->body_case) {
    case CW__PB__ENVELOPE__BODY_HELLO:
        p->key = ev->key;
        hello(w, p, env->hello, out);
        break;
    case CW__PB__ENVELOPE__BODY_CALL: calls_accept(w, p, ev, out); break;
    case CW__PB__ENVELOPE__BODY_CHUNK_GET: {
        const char *why = chunks_ask(w, p, env->chunk_get, out);
        if (!why) break;
        cw_blame(out, p->link, why);
        drop(w, p);
        break;
    }
    case CW__PB__ENVELOPE__BODY_CANCEL: calls_cancel(w, p, env->cancel->id); break;
    case CW__PB__ENVELOPE__BODY_PING: pong(w, p, env->ping, out); break;
    case CW__PB__ENVELOPE__BODY_BYE:
        cw_close(out, p->link, "it said goodbye");
        drop(w, p);
        break;
    default: break; /* the gate lets nothing else through */
    }
}

void edges_tick(cw_worker *w, cw_outbox *out)
{
    for (size_t i = w->n_peers; i-- > 0;) {
        peer *p = w->peers[i];
        if (!p->admitted && w->now_us - p->since_us > HELLO_US) {
            cw_close(out, p->link, "no hello in time");
            drop(w, p);
        } else if (p->admitted && !in_time(w, p->not_after_ms + (p->n_calls ? TICKET_OVERTIME_MS : 0))) {
            /* Not in the middle of a call, unless there is no end of them; the edge comes back with its new
             * ticket. */
            bye(p, "your ticket has run out, come back with a new one", out);
            drop(w, p);
        }
    }
}

void edges_revoke(cw_worker *w, cw_outbox *out)
{
    for (size_t i = w->n_peers; i-- > 0;)
        if (edges_is_revoked(w, &w->peers[i]->key)) {
            bye(w->peers[i], "this edge's key has been revoked", out);
            drop(w, w->peers[i]);
        }
}

void edges_bye(cw_worker *w, const char *text, cw_outbox *out)
{
    while (w->n_peers) {
        bye(w->peers[w->n_peers - 1], text, out);
        drop(w, w->peers[w->n_peers - 1]);
    }
}
