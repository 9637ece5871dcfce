/* The store port; see store_server.h. */
#include "store_server.h"

#include <stdio.h>
#include <string.h>

#include "cw/log.h"
#include "cw/mem.h"

typedef struct {
    bool manifest;
    uint32_t chunk, length;
    uint64_t offset;
} request;

typedef struct {
    cw_link link;
    cw_key key;
    bool admitted;
    int64_t free_us;                    /* when its allowance is back */
    request pending[STORE_PENDING_MAX]; /* ring */
    uint32_t first, n;
} peer;

struct store_server {
    store_config cfg;
    peer *peers;
    size_t n, cap;
};

cw_status store_server_new(const store_config *c, store_server **out, cw_err *err)
{
    store_server *s = cw_calloc(1, sizeof *s);
    if (!s) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the store");
    s->cfg = *c;
    *out = s;
    return CW_OK;
}

void store_server_free(store_server **s)
{
    if (!s || !*s) return;
    cw_free((*s)->peers);
    cw_free(*s);
    *s = NULL;
}

static peer *find(store_server *s, cw_link link)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->peers[i].link == link) return &s->peers[i];
    return NULL;
}

static void forget(store_server *s, cw_link link)
{
    peer *p = find(s, link);
    if (p) *p = s->peers[--s->n];
}

static void on_up(store_server *s, const cw_event *ev, cw_outbox *out)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 16;
        peer *p = cw_realloc(s->peers, cap, sizeof *p);
        if (!p) {
            out->failed = true;
            return;
        }
        s->peers = p;
        s->cap = cap;
    }
    s->peers[s->n++] = (peer){.link = ev->link, .key = ev->key};
}

static void refuse(store_server *s, cw_link link, Cw__Pb__RefusalCode code, const char *text, cw_outbox *out)
{
    Cw__Pb__Refusal r = CW__PB__REFUSAL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    r.code = code;
    r.text = (char *)text;
    env.body_case = CW__PB__ENVELOPE__BODY_REFUSAL;
    env.refusal = &r;
    cw_send(out, link, &env, NULL, 0);
    cw_close(out, link, text);
    forget(s, link);
}

static void on_hello(store_server *s, peer *p, const Cw__Pb__Hello *h, const cw_event *ev, cw_outbox *out)
{
    if (h->role != CW__PB__ROLE__ROLE_WORKER) {
        refuse(s, ev->link, CW__PB__REFUSAL_CODE__REFUSAL_ROLE, "the store serves workers only", out);
        return;
    }
    if (h->proto_min > CW_PROTO_MAX || h->proto_max < CW_PROTO_MIN) {
        refuse(s, ev->link, CW__PB__REFUSAL_CODE__REFUSAL_PROTOCOL,
               "the store and this worker share no protocol version: update the older one", out);
        return;
    }
    if (!s->cfg.is_worker(s->cfg.ctx, &ev->key)) {
        refuse(s, ev->link, CW__PB__REFUSAL_CODE__REFUSAL_UNKNOWN_KEY,
               "this worker is not admitted: it must enrol at the control port first", out);
        return;
    }
    if (h->model_digest.len && memcmp(h->model_digest.data, s->cfg.model_digest, CW_DIGEST_BYTES) != 0) {
        refuse(s, ev->link, CW__PB__REFUSAL_CODE__REFUSAL_MODEL,
               "the store holds another model than this worker asks for", out);
        return;
    }
    p->admitted = true;
    Cw__Pb__Welcome w = CW__PB__WELCOME__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    w.proto = h->proto_max < CW_PROTO_MAX ? h->proto_max : CW_PROTO_MAX; /* the highest both know */
    w.cluster_id = (ProtobufCBinaryData){CW_CLUSTER_BYTES, s->cfg.cluster_id};
    w.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, s->cfg.model_digest};
    w.heartbeat_ms = s->cfg.heartbeat_ms;
    w.wall_ms = (uint64_t)ev->wall_ms;
    env.body_case = CW__PB__ENVELOPE__BODY_WELCOME;
    env.welcome = &w;
    cw_admit(out, ev->link);
    cw_send(out, ev->link, &env, NULL, 0);
}

static void send_fail(cw_link link, uint32_t chunk, const char *text, cw_outbox *out)
{
    Cw__Pb__StoreFail f = CW__PB__STORE_FAIL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    char buf[CW_TEXT_MAX];
    snprintf(buf, sizeof buf, "%s", text);
    f.chunk = chunk;
    f.text = buf;
    env.body_case = CW__PB__ENVELOPE__BODY_STORE_FAIL;
    env.store_fail = &f;
    cw_send(out, link, &env, NULL, 0);
}

/* Bytes sent. */
static size_t serve_manifest(store_server *s, cw_link link, uint64_t offset, cw_outbox *out)
{
    if (offset >= s->cfg.manifest_bytes) {
        send_fail(link, 0, "the manifest ends before that offset", out);
        return 0;
    }
    size_t n = s->cfg.manifest_bytes - (size_t)offset;
    if (n > CW_STORE_PART_MAX) n = CW_STORE_PART_MAX;
    Cw__Pb__ManifestPart part = CW__PB__MANIFEST_PART__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    part.offset = offset;
    part.total = s->cfg.manifest_bytes;
    env.body_case = CW__PB__ENVELOPE__BODY_MANIFEST_PART;
    env.manifest_part = &part;
    cw_frame f = {.data = s->cfg.manifest + offset, .len = n}; /* outlives every message */
    cw_send(out, link, &env, &f, 1);
    return n;
}

static size_t serve_chunk(store_server *s, cw_link link, const request *r, cw_outbox *out)
{
    cw_err err = {0};
    uint64_t total = 0;
    uint8_t *bytes = NULL;
    cw_frame f = {0};
    cw_status st = s->cfg.chunk_bytes(s->cfg.ctx, r->chunk, &total, &err);
    if (st == CW_OK && r->offset >= total)
        st = CW_FAIL(&err, CW_STATUS_INVALID, "chunk %u ends before that offset", r->chunk);
    size_t n = st == CW_OK && total - r->offset < r->length ? (size_t)(total - r->offset) : r->length;
    if (st == CW_OK) {
        f = cw_frame_new(n, &bytes);
        st = bytes ? s->cfg.read(s->cfg.ctx, r->chunk, r->offset, n, bytes, &err)
                   : CW_FAIL(&err, CW_STATUS_NO_MEMORY, "the coordinator is out of memory");
    }
    if (st != CW_OK) {
        if (f.release) f.release(f.owner);
        CW_LOG_W("store", "chunk=%u failed: %s", r->chunk, err.text);
        send_fail(link, r->chunk, err.text, out);
        return 0;
    }
    Cw__Pb__ChunkPart part = CW__PB__CHUNK_PART__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    part.chunk = r->chunk;
    part.offset = r->offset;
    part.total = total;
    env.body_case = CW__PB__ENVELOPE__BODY_CHUNK_PART;
    env.chunk_part = &part;
    cw_send(out, link, &env, &f, 1);
    return n;
}

/* What is open and allowed now. */
static void serve(store_server *s, peer *p, int64_t now_us, cw_outbox *out)
{
    while (p->n && now_us >= p->free_us) {
        request r = p->pending[p->first];
        p->first = (p->first + 1) % STORE_PENDING_MAX;
        p->n--;
        size_t sent =
            r.manifest ? serve_manifest(s, p->link, r.offset, out) : serve_chunk(s, p->link, &r, out);
        if (!s->cfg.rate) continue;
        if (p->free_us < now_us) p->free_us = now_us;
        p->free_us += (int64_t)((double)sent * 1e6 / (double)s->cfg.rate);
    }
    if (p->n) cw_outbox_wake(out, p->free_us);
}

static void on_request(store_server *s, peer *p, request r, int64_t now_us, cw_outbox *out)
{
    if (p->n == STORE_PENDING_MAX) {
        cw_blame(out, p->link, "more requests open than the store allows");
        forget(s, p->link);
        return;
    }
    p->pending[(p->first + p->n++) % STORE_PENDING_MAX] = r;
    serve(s, p, now_us, out);
}

static void send_pong(const cw_event *ev, cw_outbox *out)
{
    Cw__Pb__Pong pong = CW__PB__PONG__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    pong.t_us = ev->msg->env->ping->t_us;
    pong.wall_ms = (uint64_t)ev->wall_ms;
    env.body_case = CW__PB__ENVELOPE__BODY_PONG;
    env.pong = &pong;
    cw_send(out, ev->link, &env, NULL, 0);
}

static void on_message(store_server *s, const cw_event *ev, cw_outbox *out)
{
    peer *p = find(s, ev->link);
    if (!p) return; /* closed by us */
    const Cw__Pb__Envelope *env = ev->msg->env;
    if (!p->admitted) {
        if (env->body_case == CW__PB__ENVELOPE__BODY_HELLO)
            on_hello(s, p, env->hello, ev, out);
        else
            refuse(s, ev->link, CW__PB__REFUSAL_CODE__REFUSAL_PROTOCOL, "the store expects a hello", out);
        return;
    }
    switch (env->body_case) {
    case CW__PB__ENVELOPE__BODY_MANIFEST_GET:
        on_request(s, p, (request){.manifest = true, .offset = env->manifest_get->offset}, ev->now_us, out);
        break;
    case CW__PB__ENVELOPE__BODY_CHUNK_GET:
        on_request(s, p,
                   (request){.chunk = env->chunk_get->chunk,
                             .length = env->chunk_get->length,
                             .offset = env->chunk_get->offset},
                   ev->now_us, out);
        break;
    case CW__PB__ENVELOPE__BODY_PING: send_pong(ev, out); break;
    case CW__PB__ENVELOPE__BODY_BYE:
        cw_close(out, ev->link, "it said goodbye");
        forget(s, ev->link);
        break;
    default: break;
    }
}

static void on_tick(store_server *s, int64_t now_us, cw_outbox *out)
{
    for (size_t i = s->n; i-- > 0;) {
        peer *p = &s->peers[i];
        if (p->admitted && !s->cfg.is_worker(s->cfg.ctx, &p->key)) { /* revoked meanwhile */
            cw_close(out, p->link, "the worker was revoked");
            forget(s, p->link);
            continue;
        }
        serve(s, p, now_us, out);
    }
}

void store_server_event(store_server *s, cw_event *ev, cw_outbox *out)
{
    switch (ev->kind) {
    case CW_EV_LINK_UP: on_up(s, ev, out); break;
    case CW_EV_LINK_DOWN: forget(s, ev->link); break;
    case CW_EV_MESSAGE: on_message(s, ev, out); break;
    case CW_EV_TICK: on_tick(s, ev->now_us, out); break;
    }
}
