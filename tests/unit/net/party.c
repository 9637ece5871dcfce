/* See party.h. */
#include "party.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/clock.h"
#include "cw/mem.h"

static uint8_t zeros[CW_DIGEST_BYTES];

static void make_hello(Cw__Pb__Hello *h, cw_side side, Cw__Pb__Purpose purpose)
{
    cw__pb__hello__init(h);
    h->proto_min = h->proto_max = 1;
    h->role = side == CW_SIDE_EDGE ? CW__PB__ROLE__ROLE_EDGE : CW__PB__ROLE__ROLE_WORKER;
    h->purpose = purpose;
    h->instance = (ProtobufCBinaryData){CW_INSTANCE_BYTES, zeros};
}

static size_t pack(const Cw__Pb__Envelope *env, uint8_t *out, size_t cap)
{
    size_t n = cw_msg_header_bytes(env);
    assert_true(n <= cap);
    cw_msg_header_pack(env, out);
    return n;
}

size_t pack_hello(uint8_t *out, size_t cap, cw_side side, Cw__Pb__Purpose purpose, size_t name_len)
{
    Cw__Pb__Hello h;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    make_hello(&h, side, purpose);
    char *name = calloc(name_len + 1, 1);
    memset(name, 'n', name_len);
    h.name = name;
    env.body_case = CW__PB__ENVELOPE__BODY_HELLO, env.hello = &h;
    size_t n = pack(&env, out, cap);
    free(name);
    return n;
}

size_t pack_ping(uint8_t *out, size_t cap, uint64_t t)
{
    Cw__Pb__Ping ping = CW__PB__PING__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    ping.t_us = t;
    env.body_case = CW__PB__ENVELOPE__BODY_PING, env.ping = &ping;
    return pack(&env, out, cap);
}

/* --- the machine --- */

static void record(party *p, const cw_event *ev)
{
    party_event e = {.kind = ev->kind, .link = ev->link, .key = ev->key, .same_host = ev->same_host};
    snprintf(e.text, sizeof e.text, "%s", ev->text);
    if (ev->msg) {
        const Cw__Pb__Envelope *env = ev->msg->env;
        e.msg = env->body_case;
        if (e.msg == CW__PB__ENVELOPE__BODY_PING) e.value = env->ping->t_us;
        if (e.msg == CW__PB__ENVELOPE__BODY_PONG) e.value = env->pong->t_us;
        if (e.msg == CW__PB__ENVELOPE__BODY_CALL) e.value = env->call->id;
        if (e.msg == CW__PB__ENVELOPE__BODY_REPLY) e.value = env->reply->id;
        if (e.msg == CW__PB__ENVELOPE__BODY_REFUSAL)
            snprintf(e.text, sizeof e.text, "%s", env->refusal->text);
        for (uint32_t f = 0; f < ev->msg->n_frames; f++) {
            e.bytes += ev->msg->frames[f].len;
            for (size_t i = 0; i < ev->msg->frames[f].len; i++)
                e.sum = e.sum * 31 + ev->msg->frames[f].data[i];
        }
    }
    pthread_mutex_lock(&p->lock);
    if (e.msg == CW__PB__ENVELOPE__BODY_PONG) p->n_pongs++;
    if (p->n_events < PARTY_MAX_EVENTS) p->events[p->n_events++] = e;
    pthread_cond_broadcast(&p->cond);
    pthread_mutex_unlock(&p->lock);
}

static void say_hello(party *p, cw_link link, cw_outbox *out)
{
    Cw__Pb__Hello h;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    make_hello(&h, p->self, CW__PB__PURPOSE__PURPOSE_DATA);
    env.body_case = CW__PB__ENVELOPE__BODY_HELLO, env.hello = &h;
    cw_send(out, link, &env, NULL, 0);
}

static void answer_hello(party *p, cw_link link, cw_outbox *out)
{
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__Welcome w = CW__PB__WELCOME__INIT;
    Cw__Pb__Refusal r = CW__PB__REFUSAL__INIT;
    w.proto = 1, w.heartbeat_ms = 2000;
    w.cluster_id = (ProtobufCBinaryData){CW_CLUSTER_BYTES, zeros};
    w.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, zeros};
    r.text = (char *)"this worker is full";
    if (p->answer == PARTY_ADMITS) {
        env.body_case = CW__PB__ENVELOPE__BODY_WELCOME, env.welcome = &w;
        cw_admit(out, link);
        cw_send(out, link, &env, NULL, 0);
    } else if (p->answer == PARTY_REFUSES) {
        env.body_case = CW__PB__ENVELOPE__BODY_REFUSAL, env.refusal = &r;
        cw_send(out, link, &env, NULL, 0);
        cw_close(out, link, "refused");
    }
}

static void answer_message(party *p, cw_event *ev, cw_outbox *out)
{
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__Pong pong = CW__PB__PONG__INIT;
    Cw__Pb__Reply reply = CW__PB__REPLY__INIT;
    switch (ev->msg->env->body_case) {
    case CW__PB__ENVELOPE__BODY_HELLO: answer_hello(p, ev->link, out); break;
    case CW__PB__ENVELOPE__BODY_PING:
        pong.t_us = ev->msg->env->ping->t_us;
        env.body_case = CW__PB__ENVELOPE__BODY_PONG, env.pong = &pong;
        cw_send(out, ev->link, &env, NULL, 0);
        break;
    case CW__PB__ENVELOPE__BODY_CALL: { /* the row frame goes back as it came, without a copy */
        cw_frame f = ev->msg->frames[1];
        ev->msg->frames[1] = (cw_frame){0};
        reply.id = ev->msg->env->call->id;
        env.body_case = CW__PB__ENVELOPE__BODY_REPLY, env.reply = &reply;
        cw_send(out, ev->link, &env, &f, 1);
        break;
    }
    default: break;
    }
}

static void on_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    party *p = ctx;
    if (ev->kind == CW_EV_TICK) return;
    record(p, ev);
    if (ev->kind == CW_EV_LINK_UP && (ev->link & CW_LINK_OUT)) say_hello(p, ev->link, out);
    if (ev->kind == CW_EV_MESSAGE) answer_message(p, ev, out);
}

static void on_wake(void *ctx, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    party *p = ctx;
    assert_true(now_us > 0 && wall_ms > 0);
    pthread_mutex_lock(&p->lock);
    if (p->todo) p->todo(p, out, p->todo_arg);
    p->todo = NULL;
    pthread_cond_broadcast(&p->cond);
    pthread_mutex_unlock(&p->lock);
}

static void on_stop(void *ctx, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    party *p = ctx;
    (void)now_us, (void)wall_ms;
    if (!p->says_bye) return;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__Bye bye = CW__PB__BYE__INIT;
    env.body_case = CW__PB__ENVELOPE__BODY_BYE, env.bye = &bye;
    for (size_t i = 0; i < p->n_events; i++)
        if (p->events[i].kind == CW_EV_LINK_UP) cw_send(out, p->events[i].link, &env, NULL, 0);
}

/* --- life --- */

static void *party_main(void *arg)
{
    party *p = arg;
    p->result = cw_net_run(p->net, &p->err);
    return NULL;
}

void party_dir_new(char out[64])
{
    snprintf(out, 64, "/tmp/causeway-local.XXXXXX");
    assert_non_null(mkdtemp(out));
}

int party_dir_remove(const char *dir)
{
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command) == 0 ? 0 : -1;
}

void party_init(party *p, cw_side self)
{
    static cw_link next_out = CW_LINK_OUT;
    memset(p, 0, sizeof *p);
    p->self = self;
    p->port = CW_PORT_DATA;
    next_out += 1000;
    p->next_out = next_out;
    p->events = calloc(PARTY_MAX_EVENTS, sizeof *p->events);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->cond, NULL);
}

void party_start(party *p)
{
    cw_err err = {0};
    cw_net_role role = {.ctx = p, .on_event = on_event, .on_wake = on_wake, .on_stop = on_stop};
    if (!p->keys) assert_int_equal(cw_keys_new(&p->keys, &err), CW_OK);
    p->cfg.self = p->self;
    p->cfg.keys = p->keys;
    if (cw_net_new(&p->cfg, &role, &p->net, &err) != CW_OK) fail_msg("%s", err.text);
    if (p->address[0]) {
        char bound[CW_ADDRESS_MAX];
        if (cw_net_listen(p->net, p->port, p->address, bound, &err) != CW_OK) fail_msg("%s", err.text);
        snprintf(p->address, sizeof p->address, "%s", bound);
    }
    if (p->local_dir && cw_net_listen_local(p->net, p->port, p->local_dir, &err) != CW_OK)
        fail_msg("%s", err.text);
    assert_int_equal(pthread_create(&p->thread, NULL, party_main, p), 0);
    p->running = true;
}

void party_stop(party *p)
{
    cw_net_stop(p->net);
    pthread_join(p->thread, NULL);
    p->running = false;
}

void party_free(party *p)
{
    if (p->running) party_stop(p); /* the test failed half-way */
    cw_net_free(&p->net);
    cw_keys_free(&p->keys);
    free(p->events);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->cond);
}

static struct timespec deadline_in(int ms)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += ms / 1000;
    t.tv_nsec += (long)(ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
    return t;
}

void party_do(party *p, void (*fn)(party *p, cw_outbox *out, void *arg), void *arg)
{
    struct timespec until = deadline_in(TEST_WAIT_MS);
    pthread_mutex_lock(&p->lock);
    p->todo = fn;
    p->todo_arg = arg;
    cw_net_wake(p->net);
    int rc = 0;
    while (p->todo && rc == 0) rc = pthread_cond_timedwait(&p->cond, &p->lock, &until);
    pthread_mutex_unlock(&p->lock);
    if (rc != 0) fail_msg("a wake was not answered");
}

bool party_wait_ms(party *p, size_t *from, cw_event_kind kind, cw_link link, cw_msg_kind msg, int ms,
                   party_event *out)
{
    struct timespec until = deadline_in(ms);
    size_t start = 0, *at = from ? from : &start;
    bool found = false;
    int rc = 0;
    pthread_mutex_lock(&p->lock);
    while (!found && rc == 0) {
        for (; *at < p->n_events && !found; ++*at) {
            const party_event *e = &p->events[*at];
            found = e->kind == kind && (!link || e->link == link) &&
                    (kind != CW_EV_MESSAGE || !msg || e->msg == msg);
            if (found && out) *out = *e;
        }
        if (!found) rc = pthread_cond_timedwait(&p->cond, &p->lock, &until);
    }
    pthread_mutex_unlock(&p->lock);
    return found;
}

party_event party_wait(party *p, size_t *from, cw_event_kind kind, cw_link link, cw_msg_kind msg)
{
    party_event e = {0};
    if (!party_wait_ms(p, from, kind, link, msg, TEST_WAIT_MS, &e))
        fail_msg("no event of kind %d (message %s) came", (int)kind, cw_msg_kind_name(msg));
    return e;
}

/* --- doing things --- */

typedef struct {
    cw_link link;
    const char *address;
    const cw_key *key;
    uint64_t value;
    size_t bytes;
} order;

static void do_open(party *p, cw_outbox *out, void *arg)
{
    (void)p;
    const order *o = arg;
    cw_open(out, o->link, o->address, o->key);
}

cw_link party_connect(party *p, const char *address, const cw_key *key)
{
    order o = {.link = ++p->next_out, .address = address, .key = key};
    party_do(p, do_open, &o);
    return o.link;
}

cw_link party_join(party *p, const party *server)
{
    cw_link link = party_connect(p, server->address, cw_keys_public(server->keys));
    party_wait(p, NULL, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_WELCOME);
    return link;
}

static void do_ping(party *p, cw_outbox *out, void *arg)
{
    (void)p;
    const order *o = arg;
    Cw__Pb__Ping ping = CW__PB__PING__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    ping.t_us = o->value;
    env.body_case = CW__PB__ENVELOPE__BODY_PING, env.ping = &ping;
    cw_send(out, o->link, &env, NULL, 0);
}

void party_ping(party *p, cw_link link, uint64_t t)
{
    order o = {.link = link, .value = t};
    party_do(p, do_ping, &o);
}

/* Sends, stays away from the net for a while, then drives it until the pong is there. */
static bool guest_ping(party *p, cw_link link, uint64_t t, int64_t pause_us, int64_t wait_us)
{
    order o = {.link = link, .value = t};
    int64_t end = cw_now_us() + (int64_t)TEST_WAIT_MS * 1000;
    cw_net_enter(p->net);
    uint64_t seen = p->n_pongs; /* callbacks run in this thread now */
    pthread_mutex_lock(&p->lock);
    p->todo = do_ping;
    p->todo_arg = &o;
    pthread_mutex_unlock(&p->lock);
    cw_net_poke(p->net);
    bool ok = p->todo == NULL;
    if (pause_us) usleep((useconds_t)pause_us);
    while (ok && p->n_pongs == seen && cw_now_us() < end) ok = cw_net_round(p->net, wait_us);
    ok = ok && p->n_pongs > seen;
    cw_net_leave(p->net);
    return ok;
}

bool party_guest_ping(party *p, cw_link link, uint64_t t)
{
    return guest_ping(p, link, t, 0, 1000);
}

int64_t party_guest_late_ping(party *p, cw_link link, uint64_t t)
{
    enum { PAUSE_US = 2000 };
    int64_t began = cw_now_us();
    return guest_ping(p, link, t, PAUSE_US, 1000000) ? cw_now_us() - began : -1;
}

void party_check_echo(party *p, cw_link link, uint64_t t)
{
    size_t from = p->n_events; /* only grows */
    party_ping(p, link, t);
    party_event e = party_wait(p, &from, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_PONG);
    assert_int_equal(e.value, t);
}

static void do_call(party *p, cw_outbox *out, void *arg)
{
    (void)p;
    const order *o = arg;
    Cw__Pb__Call call = CW__PB__CALL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    call.id = o->value, call.n_rows = call.n_entries = 1, call.budget_us = 1000,
    call.act = CW__PB__ACT_KIND__ACT_F32;
    env.body_case = CW__PB__ENVELOPE__BODY_CALL, env.call = &call;
    uint8_t *bytes = NULL, *entry = NULL;
    cw_frame f[2] = {cw_frame_new(CW_ENTRY_BYTES, &entry), cw_frame_new(o->bytes, &bytes)};
    memset(entry, 0, CW_ENTRY_BYTES);
    for (size_t i = 0; i < o->bytes; i++) bytes[i] = (uint8_t)(i * 13 + o->value);
    cw_send(out, o->link, &env, f, 2);
}

void party_call(party *p, cw_link link, uint64_t id, size_t bytes)
{
    order o = {.link = link, .value = id, .bytes = bytes};
    party_do(p, do_call, &o);
}
