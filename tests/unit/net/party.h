/* A party in a net test: one cw_net with its thread, a scripted machine, and a record of what happened to it.
 */
#pragma once
#include <pthread.h>

#include "cw/net.h"

enum { PARTY_MAX_EVENTS = 16384, TEST_WAIT_MS = 15000 };

typedef struct {
    cw_event_kind kind;
    cw_link link;
    cw_key key;
    cw_msg_kind msg;
    uint64_t value; /* ping, pong: t_us; call, reply: id */
    uint64_t sum;   /* of the frames' bytes */
    size_t bytes;   /* of the frames */
    char text[600];
    bool same_host;
} party_event;

typedef enum { PARTY_ADMITS, PARTY_REFUSES, PARTY_IGNORES } party_answer;

typedef struct party {
    /* set before party_start */
    cw_side self;
    cw_net_config cfg;
    party_answer answer;          /* to a hello */
    bool says_bye;                /* when it is stopped */
    char address[CW_ADDRESS_MAX]; /* not empty: listens; holds the real address after the start */
    cw_port port;
    const char *local_dir; /* not NULL: listens there too */

    cw_keys *keys;
    cw_net *net;
    pthread_t thread;
    bool running;
    cw_status result;
    cw_err err;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    party_event *events;
    size_t n_events;
    uint64_t n_pongs; /* counted, not recorded */
    void (*todo)(struct party *p, cw_outbox *out, void *arg);
    void *todo_arg;
    cw_link next_out;
} party;

/* A private directory for same-host endpoints, and its end with all that is in it. */
void party_dir_new(char out[64]);
int party_dir_remove(const char *dir);

void party_init(party *p, cw_side self);
/* Keys may be given before (p->keys). */
void party_start(party *p);
void party_stop(party *p); /* joins the thread; the net and its record stay */
void party_free(party *p);

/* Runs fn in the party's thread and waits until it has run. */
void party_do(party *p, void (*fn)(party *p, cw_outbox *out, void *arg), void *arg);
/* The first event from index `from` on that fits (link 0: any; msg only for messages, 0: any); fails the test
 * after the deadline. */
party_event party_wait(party *p, size_t *from, cw_event_kind kind, cw_link link, cw_msg_kind msg);
/* The same, but false instead of a failure. */
bool party_wait_ms(party *p, size_t *from, cw_event_kind kind, cw_link link, cw_msg_kind msg, int ms,
                   party_event *out);

/* A link to `server`, which says hello by itself when it is up. */
cw_link party_connect(party *p, const char *address, const cw_key *key);
/* connect, and wait for the Welcome. */
cw_link party_join(party *p, const party *server);
void party_ping(party *p, cw_link link, uint64_t t);
/* A ping, sent and waited for by the calling thread as a guest of the party's net; false: no answer in time.
 */
bool party_guest_ping(party *p, cw_link link, uint64_t t);
/* The same, but the guest looks only when the answer has most likely come: how long all of it took, in
 * microseconds; -1: no answer in time. */
int64_t party_guest_late_ping(party *p, cw_link link, uint64_t t);
/* A ping that must be answered. */
void party_check_echo(party *p, cw_link link, uint64_t t);
void party_call(party *p, cw_link link, uint64_t id, size_t bytes);

#define assert_says(text, part)                                                                              \
    do {                                                                                                     \
        if (!strstr((text), (part))) fail_msg("\"%s\" does not say \"%s\"", (text), (part));                 \
    } while (0)

/* Packed headers for raw clients. */
size_t pack_hello(uint8_t *out, size_t cap, cw_side side, Cw__Pb__Purpose purpose, size_t name_len);
size_t pack_ping(uint8_t *out, size_t cap, uint64_t t);
