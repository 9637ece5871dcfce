/*
 * An edge that means harm: enrols honestly, then misbehaves towards a worker in one chosen way, with raw libzmq and raw
 * TCP. The end-to-end tests run it beside an honest edge and look at what it cost. Prints one JSON object: what it did
 * and how it ended. Exit 0 when the worker defended itself (cut or refused us in time), 1 when not, 2 for misuse or
 * when the cluster could not be entered.
 *
 *   hostile_peer MODE JOIN        modes are the rows of the table at the end
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "cw/bytes.h"
#include "cw/clock.h"
#include "cw/join.h"
#include "cw/kernels.h"
#include "cw/keys.h"
#include "cw/mem.h"
#include "cw/msg.h"
#include "cw/ticket.h"

enum { D_MODEL = 256, MOE_LAYER = 1, DEADLINE_MS = 20000, FLOOD_BYTES = 512 << 20 };

typedef struct {
    void *zmq, *socket, *monitor;
    const cw_keys *keys;
} link_to;

typedef struct {
    void *zmq;
    cw_join join;
    cw_keys *keys;
    uint8_t *ticket;
    size_t ticket_len;
    uint8_t digest[CW_DIGEST_BYTES];
    char worker_address[CW_ADDRESS_MAX];
    cw_key worker_key;
} attacker;

static _Noreturn void give_up(const char *what)
{
    printf("{\"error\": \"%s\"}\n", what);
    exit(2);
}

static void check(int rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "%s: %s\n", what, zmq_strerror(zmq_errno()));
        give_up(what);
    }
}

static link_to link_open(void *zmq, const char *address, const cw_key *server, const cw_keys *keys)
{
    static int n;
    link_to l = {.zmq = zmq, .keys = keys, .socket = zmq_socket(zmq, ZMQ_DEALER), .monitor = zmq_socket(zmq, ZMQ_PAIR)};
    char name[64];
    snprintf(name, sizeof name, "inproc://monitor-%d", n++);
    int zero = 0, never = -1, one = 1;
    check(zmq_setsockopt(l.socket, ZMQ_LINGER, &zero, sizeof zero), "linger");
    check(zmq_setsockopt(l.socket, ZMQ_RECONNECT_IVL, &never, sizeof never), "reconnect");
    check(zmq_setsockopt(l.socket, ZMQ_IMMEDIATE, &one, sizeof one), "immediate");
    check(zmq_setsockopt(l.socket, ZMQ_CURVE_SERVERKEY, server->b, CW_KEY_BYTES), "server key");
    check(zmq_setsockopt(l.socket, ZMQ_CURVE_PUBLICKEY, cw_keys_public(keys)->b, CW_KEY_BYTES), "public key");
    check(zmq_setsockopt(l.socket, ZMQ_CURVE_SECRETKEY, cw_keys_secret(keys), CW_KEY_BYTES), "secret key");
    check(zmq_socket_monitor(l.socket, name, ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CLOSED), "monitor");
    check(zmq_connect(l.monitor, name), "monitor");
    check(zmq_connect(l.socket, address), "connect");
    return l;
}

static void link_close(link_to *l)
{
    int zero = 0;
    zmq_setsockopt(l->monitor, ZMQ_LINGER, &zero, sizeof zero);
    zmq_close(l->socket);
    zmq_close(l->monitor);
}

/* Whether the peer has cut us, waiting at most `ms`. */
static bool is_cut(link_to *l, long ms)
{
    zmq_pollitem_t item = {.socket = l->monitor, .events = ZMQ_POLLIN};
    return zmq_poll(&item, 1, ms) > 0;
}

static void send_env(link_to *l, const Cw__Pb__Envelope *env, const cw_frame *frames, int n)
{
    uint8_t header[4096];
    size_t len = cw_msg_header_bytes(env);
    CW_ASSERT(len <= sizeof header);
    cw_msg_header_pack(env, header);
    check(zmq_send(l->socket, header, len, n ? ZMQ_SNDMORE : 0), "send");
    for (int i = 0; i < n; i++) check(zmq_send(l->socket, frames[i].data, frames[i].len, i + 1 < n ? ZMQ_SNDMORE : 0), "send");
}

static void free_bytes(void *p) { free(p); }

/* The next message within the deadline; NULL when there is none or we are cut. */
static cw_msg *receive(link_to *l)
{
    zmq_pollitem_t items[2] = {{.socket = l->socket, .events = ZMQ_POLLIN}, {.socket = l->monitor, .events = ZMQ_POLLIN}};
    if (zmq_poll(items, 2, DEADLINE_MS) <= 0 || !(items[0].revents & ZMQ_POLLIN)) return NULL;
    cw_frame parts[1 + CW_MSG_MAX_FRAMES];
    int n = 0, more = 1;
    while (more) {
        zmq_msg_t m;
        zmq_msg_init(&m);
        check(zmq_msg_recv(&m, l->socket, 0), "receive");
        CW_ASSERT(n <= CW_MSG_MAX_FRAMES);
        uint8_t *copy = malloc(zmq_msg_size(&m) + 1);
        memcpy(copy, zmq_msg_data(&m), zmq_msg_size(&m));
        parts[n++] = (cw_frame){.data = copy, .len = zmq_msg_size(&m), .owner = copy, .release = free_bytes};
        more = zmq_msg_more(&m);
        zmq_msg_close(&m);
    }
    cw_msg *out = NULL;
    cw_err err;
    if (cw_msg_decode(parts[0].data, parts[0].len, CW_HEADER_MAX, parts + 1, (uint32_t)n - 1, &out, &err) != CW_OK) give_up(err.text);
    return out;
}

static void fill_hello(const attacker *a, Cw__Pb__Hello *h, Cw__Pb__Purpose purpose, uint8_t instance[CW_INSTANCE_BYTES])
{
    h->proto_min = CW_PROTO_MIN, h->proto_max = CW_PROTO_MAX;
    h->software = (char *)"causeway test peer";
    h->role = CW__PB__ROLE__ROLE_EDGE, h->purpose = purpose;
    h->name = (char *)"hostile";
    h->arithmetic_id = CW_ARITHMETIC_ID, h->fingerprint = cw_kernels_fingerprint(cw_kernels_best());
    cw_random(instance, CW_INSTANCE_BYTES);
    h->instance = (ProtobufCBinaryData){.len = CW_INSTANCE_BYTES, .data = instance};
    if (purpose == CW__PB__PURPOSE__PURPOSE_DATA) {
        h->ticket = (ProtobufCBinaryData){.len = a->ticket_len, .data = a->ticket};
        h->model_digest = (ProtobufCBinaryData){.len = CW_DIGEST_BYTES, .data = (uint8_t *)a->digest};
    }
}

/* Enrols with the join string and remembers ticket, digest and the first worker of the epoch. */
static void enter_cluster(attacker *a)
{
    link_to l = link_open(a->zmq, a->join.address, &a->join.coordinator, a->keys);
    Cw__Pb__Hello hello = CW__PB__HELLO__INIT;
    Cw__Pb__Enrol enrol = CW__PB__ENROL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    uint8_t instance[CW_INSTANCE_BYTES];
    fill_hello(a, &hello, CW__PB__PURPOSE__PURPOSE_CONTROL, instance);
    enrol.token = (ProtobufCBinaryData){.len = CW_TOKEN_BYTES, .data = a->join.token};
    enrol.hello = &hello;
    env.body_case = CW__PB__ENVELOPE__BODY_ENROL, env.enrol = &enrol;
    send_env(&l, &env, NULL, 0);
    cw_msg *m = receive(&l);
    if (!m) give_up("no answer from the coordinator");
    if (m->env->body_case == CW__PB__ENVELOPE__BODY_REFUSAL) give_up(m->env->refusal->text);
    if (m->env->body_case != CW__PB__ENVELOPE__BODY_WELCOME || !m->n_frames) give_up("no welcome with an epoch");
    const Cw__Pb__Welcome *w = m->env->welcome;
    cw_key sign_key;
    memcpy(sign_key.b, w->sign_key.data, CW_KEY_BYTES);
    memcpy(a->digest, w->model_digest.data, CW_DIGEST_BYTES);
    a->ticket_len = w->ticket.len;
    a->ticket = malloc(w->ticket.len + 1);
    memcpy(a->ticket, w->ticket.data, w->ticket.len);
    Cw__Pb__EpochBody *epoch = NULL;
    cw_err err;
    if (cw_epoch_verify(&sign_key, m->frames[0].data, m->frames[0].len, &epoch, &err) != CW_OK) give_up(err.text);
    if (!epoch->n_workers) give_up("an epoch without workers");
    snprintf(a->worker_address, sizeof a->worker_address, "%s", epoch->workers[0]->address);
    memcpy(a->worker_key.b, epoch->workers[0]->key.data, CW_KEY_BYTES);
    cw_epoch_free(&epoch);
    cw_msg_free(&m);
    link_close(&l);
}

/* An admitted data link to the worker; `keys` may be others than those the ticket names. refusal: NULL or its text. */
static link_to enter_worker(attacker *a, const cw_keys *keys, char refusal[CW_TEXT_MAX + 1])
{
    link_to l = link_open(a->zmq, a->worker_address, &a->worker_key, keys);
    Cw__Pb__Hello hello = CW__PB__HELLO__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    uint8_t instance[CW_INSTANCE_BYTES];
    fill_hello(a, &hello, CW__PB__PURPOSE__PURPOSE_DATA, instance);
    env.body_case = CW__PB__ENVELOPE__BODY_HELLO, env.hello = &hello;
    send_env(&l, &env, NULL, 0);
    cw_msg *m = receive(&l);
    if (!m) give_up("the worker did not answer our hello");
    if (refusal && m->env->body_case == CW__PB__ENVELOPE__BODY_REFUSAL) snprintf(refusal, CW_TEXT_MAX + 1, "%s", m->env->refusal->text);
    else if (m->env->body_case != CW__PB__ENVELOPE__BODY_WELCOME) give_up("the worker did not welcome us");
    cw_msg_free(&m);
    return l;
}

static int report(const char *mode, bool defended, unsigned long long sent, const char *text)
{
    printf("{\"mode\": \"%s\", \"defended\": %s, \"sent_bytes\": %llu, \"text\": \"%s\"}\n", mode, defended ? "true" : "false", sent, text);
    return defended ? 0 : 1;
}

/*
 * One multipart message of half a GiB. The attacker's libzmq hands a message over only when it is complete, so this one
 * has an end, which the worker must not live to see; all parts share one buffer, so the attacker itself stays small.
 */
static int attack_endless(attacker *a, const char *mode)
{
    static char part[64 << 10];
    enum { PARTS = FLOOD_BYTES / sizeof part };
    link_to l = enter_worker(a, a->keys, NULL);
    for (int i = 0; i < PARTS; i++) {
        zmq_msg_t m;
        zmq_msg_init_data(&m, part, sizeof part, NULL, NULL);
        check(zmq_msg_send(&m, l.socket, i + 1 < PARTS ? ZMQ_SNDMORE : 0), "send");
    }
    return report(mode, is_cut(&l, DEADLINE_MS), FLOOD_BYTES, "");
}

static int attack_oversize(attacker *a, const char *mode)
{
    link_to l = enter_worker(a, a->keys, NULL);
    size_t n = 64 << 20;
    uint8_t *big = cw_calloc(n, 1);
    check(zmq_send(l.socket, big, n, 0), "send");
    bool cut = is_cut(&l, DEADLINE_MS);
    cw_free(big);
    return report(mode, cut, n, "");
}

typedef enum { BAD_NONE, BAD_MIN_INT8, BAD_NAN_SCALE, BAD_EXPERT, BAD_SHORT, BAD_ENTRY_ORDER } call_fault;

static void send_bad_call(link_to *l, call_fault fault)
{
    static uint64_t id = 1;
    uint8_t entries[2 * CW_ENTRY_BYTES], q[D_MODEL] = {1}, s[D_MODEL / 8];
    cw_entry_put(entries, 0, (cw_entry){0, 3, 1.0f});
    cw_entry_put(entries, 1, (cw_entry){0, fault == BAD_EXPERT ? 4000 : fault == BAD_ENTRY_ORDER ? 2 : 5, 1.0f});
    for (int i = 0; i < D_MODEL / 32; i++) cw_store_u32(s + 4 * i, fault == BAD_NAN_SCALE ? 0x7fc00000u : cw_f32_bits(0.01f));
    if (fault == BAD_MIN_INT8) q[77] = 0x80;
    Cw__Pb__Call call = CW__PB__CALL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    call.id = id++, call.layer = MOE_LAYER, call.n_rows = 1, call.n_entries = 2, call.budget_us = 1000000;
    env.body_case = CW__PB__ENVELOPE__BODY_CALL, env.call = &call;
    cw_frame f[3] = {{.data = entries, .len = sizeof entries}, {.data = q, .len = fault == BAD_SHORT ? D_MODEL - 1 : D_MODEL}, {.data = s, .len = sizeof s}};
    send_env(l, &env, f, 3);
}

static int attack_call(attacker *a, const char *mode, call_fault fault)
{
    link_to l = enter_worker(a, a->keys, NULL);
    /* An honest call first: it must be answered, so that the cut is known to be the bad one's price. */
    send_bad_call(&l, BAD_NONE);
    cw_msg *m = receive(&l);
    if (!m || m->env->body_case != CW__PB__ENVELOPE__BODY_REPLY) give_up("an honest call was not answered");
    cw_msg_free(&m);
    send_bad_call(&l, fault);
    return report(mode, is_cut(&l, 5000), 0, "");
}
static int attack_min_int8(attacker *a, const char *mode) { return attack_call(a, mode, BAD_MIN_INT8); }
static int attack_nan_scale(attacker *a, const char *mode) { return attack_call(a, mode, BAD_NAN_SCALE); }
static int attack_expert(attacker *a, const char *mode) { return attack_call(a, mode, BAD_EXPERT); }
static int attack_short(attacker *a, const char *mode) { return attack_call(a, mode, BAD_SHORT); }
static int attack_order(attacker *a, const char *mode) { return attack_call(a, mode, BAD_ENTRY_ORDER); }

static int attack_garbage(attacker *a, const char *mode)
{
    link_to l = enter_worker(a, a->keys, NULL);
    uint8_t junk[300];
    memset(junk, 0xff, sizeof junk);
    check(zmq_send(l.socket, junk, sizeof junk, 0), "send");
    return report(mode, is_cut(&l, 5000), sizeof junk, "");
}

/* A call before the hello. */
static int attack_unintroduced(attacker *a, const char *mode)
{
    link_to l = link_open(a->zmq, a->worker_address, &a->worker_key, a->keys);
    send_bad_call(&l, BAD_NONE);
    return report(mode, is_cut(&l, 5000), 0, "");
}

/* Our ticket, shown by another key. */
static int attack_copied_ticket(attacker *a, const char *mode)
{
    cw_keys *other = NULL;
    cw_err err;
    if (cw_keys_new(&other, &err) != CW_OK) give_up(err.text);
    char text[CW_TEXT_MAX + 1] = "";
    link_to l = enter_worker(a, other, text);
    bool refused = text[0] != 0;
    return report(mode, refused && is_cut(&l, 5000), 0, text);
}

/* Many TCP connections that begin the ZMTP greeting and never end it. Ten seconds, then they go. */
static int attack_half_open(attacker *a, const char *mode)
{
    enum { N = 1000 };
    static int fds[N];
    struct sockaddr_in to = {.sin_family = AF_INET};
    char host[64];
    unsigned port;
    if (sscanf(a->worker_address, "tcp://%63[^:]:%u", host, &port) != 2 || inet_pton(AF_INET, host, &to.sin_addr) != 1) give_up("the worker's address is not IPv4");
    to.sin_port = htons((uint16_t)port);
    int open_now = 0;
    for (int i = 0; i < N; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (fds[i] < 0) give_up("out of descriptors: raise ulimit -n");
        if (connect(fds[i], (struct sockaddr *)&to, sizeof to) == 0) {
            open_now++;
            ssize_t n = send(fds[i], "\xff\0\0\0", 4, MSG_NOSIGNAL);
            (void)n;
        }
    }
    fprintf(stderr, "%d half-open connections\n", open_now);
    /* The worker must drop them all by itself: its handshake time-out is seconds. */
    int64_t end = cw_now_us() + DEADLINE_MS * 1000LL;
    int left = open_now;
    while (left > 0 && cw_now_us() < end) {
        left = 0;
        for (int i = 0; i < N; i++) {
            char c;
            ssize_t n = recv(fds[i], &c, 1, MSG_DONTWAIT | MSG_PEEK);
            char sink[128];
            if (n > 0) n = recv(fds[i], sink, sizeof sink, MSG_DONTWAIT);
            if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))) left++;
        }
        poll(NULL, 0, 50);
    }
    for (int i = 0; i < N; i++) close(fds[i]);
    char text[64];
    snprintf(text, sizeof text, "%d connected, %d left", open_now, left);
    return report(mode, left == 0, 4 * N, text);
}

static const struct {
    const char *name;
    int (*run)(attacker *a, const char *mode);
} modes[] = {
    {"endless", attack_endless},         {"oversize", attack_oversize}, {"min-int8", attack_min_int8}, {"nan-scale", attack_nan_scale},
    {"expert", attack_expert},           {"short", attack_short},       {"order", attack_order},       {"garbage", attack_garbage},
    {"unintroduced", attack_unintroduced}, {"copied-ticket", attack_copied_ticket}, {"half-open", attack_half_open},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc == 3 && i < CW_ARRAY_LEN(modes); i++) {
        if (strcmp(argv[1], modes[i].name) != 0) continue;
        attacker a = {.zmq = zmq_ctx_new()};
        cw_err err;
        if (cw_crypto_init(&err) != CW_OK || cw_join_resolve(argv[2], CW_JOIN_EDGE, &a.join, &err) != CW_OK || cw_keys_new(&a.keys, &err) != CW_OK) give_up(err.text);
        enter_cluster(&a);
        int rc = modes[i].run(&a, modes[i].name);
        fflush(stdout);
        _exit(rc); /* sockets with unsent floods are not worth an orderly end */
    }
    fprintf(stderr, "usage: hostile_peer MODE JOIN; modes:");
    for (size_t i = 0; i < CW_ARRAY_LEN(modes); i++) fprintf(stderr, " %s", modes[i].name);
    fprintf(stderr, "\n");
    return 2;
}
