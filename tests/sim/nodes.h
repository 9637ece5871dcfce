/*
 * The processes around the real machines, as small as they can be: a disk, a loader, a compute stage,
 * somebody who asks. They run in the simulator and, unchanged, on real sockets (real.h): what surrounds them
 * is a `host`.
 */
#pragma once
#include <stdarg.h>

#include "cw/coordinator.h"
#include "cw/join.h"
#include "cw/ticket.h"
#include "pure.h"

/* ---- what surrounds a process ---- */

typedef struct host host;

typedef struct {
    int64_t (*now)(host *h);
    int64_t (*wall)(host *h);
    uint64_t (*random)(host *h);
    /* In this process, unless it has ended by then. */
    void (*after)(host *h, int64_t delay_us, void (*fn)(void *ctx, void *arg, cw_outbox *out), void *arg);
    void (*die)(host *h); /* at once: what the machine wanted to send is not sent */
    void (*say)(host *h, const char *text);
    void (*fail)(host *h, const char *text); /* something that must never happen */
} host_ops;

struct host {
    const host_ops *ops;
};

static inline int64_t host_now(host *h)
{
    return h->ops->now(h);
}
static inline int64_t host_wall(host *h)
{
    return h->ops->wall(h);
}
static inline uint32_t host_below(host *h, uint32_t n)
{
    return (uint32_t)(h->ops->random(h) % n);
}
void host_say(host *h, const char *fmt, ...) CW_PRINTF(2, 3);
void host_fail(host *h, const char *fmt, ...) CW_PRINTF(2, 3);

/* What every member knows before it starts. */
typedef struct {
    char control[CW_ADDRESS_MAX], store[CW_ADDRESS_MAX];
    cw_key coordinator_key;
    uint8_t token[2][CW_TOKEN_BYTES]; /* for workers, for edges */
} node_place;

/* ---- the coordinator ---- */

enum { DISK_TOKENS = 4, DISK_KEYS = 1100, DISK_EPOCH = 32768 };

typedef struct {
    uint64_t term, serial, epoch_term, number;
    uint8_t epoch[DISK_EPOCH];
    size_t epoch_bytes;
    cw_token_row tokens[DISK_TOKENS];
    cw_key_row keys[DISK_KEYS];
    size_t n_tokens, n_keys;
} node_disk;

typedef struct {
    host *h;
    void *owner;
    const node_place *place;
    cw_signer *signer;
    cw_coordinator *m;
    node_disk disk;
    bool die_before_save, die_after_save; /* once, at the next thing to save */
    bool died;
    void (*configure)(cw_coordinator_config *cfg); /* other times than the defaults; NULL: none */
    uint32_t ticket_ms;                            /* 0: the default */
    uint64_t seed;                                 /* of audits */
    struct {
        cw_coordinator_audit a;
        bool used;
    } audits[8];                                           /* being computed */
    void (*on_epoch)(void *owner, const cw_row *row);      /* saved, not yet told; NULL: nobody asks */
    void (*on_fenced)(void *owner, const cw_key_row *row); /* the same */
} node_coordinator;

/* A new incarnation of the machine from what is on disk; false: it will not start (host_fail was called). */
bool node_coordinator_start(node_coordinator *c);
void node_coordinator_event(void *ctx, cw_event *ev, cw_outbox *out);
void node_coordinator_after(void *ctx, cw_outbox *out);
/* Saves what an operator's command has left to save. */
void node_coordinator_save(node_coordinator *c);

/* ---- a worker ---- */

typedef enum { NOT_HERE, LOADING, HERE } node_presence;

typedef struct {
    host *h;
    const node_place *place;
    int index;
    cw_worker *m;
    bool enrolled;
    char address[CW_ADDRESS_MAX]; /* what it advertises */
    uint64_t memory;
    uint32_t drain_ms, jobs_in_flight;
    node_presence here[LAYERS][EXPERTS];
    uint32_t n_here;
    /* What makes it a bad one; times are host_now's. */
    int64_t disk_lost_until, slow_until, lies_until;
    uint32_t load_fails_percent, slow_factor, lies_in, load_us; /* load_us: the longest load */
    uint64_t lies;                                              /* rows given out wrong */
    bool stopped;                                               /* by its own will; code and why */
    int stop_code;
    char why[CW_TEXT_MAX];
    uint32_t n_revoked;
} node_worker;

void node_worker_start(node_worker *w);
void node_worker_event(void *ctx, cw_event *ev, cw_outbox *out);
void node_worker_after(void *ctx, cw_outbox *out);
void node_worker_stop(void *ctx, void *arg, cw_outbox *out); /* SIGTERM */

/* ---- an edge ---- */

enum { MAX_ROWS = 20, MAX_K = 3, MAX_ENTRIES = MAX_ROWS * MAX_K, MAX_REQUESTS = 12 };

typedef struct {
    cw_edge_request r;
    bool open, cancelled;
    int64_t since_us;
    int8_t q[MAX_ROWS * D];
    float s[MAX_ROWS * (D / 32)], x[MAX_ROWS * D];
    cw_edge_entry entries[MAX_ENTRIES];
    uint16_t f16[MAX_ENTRIES * D];
    int8_t e[MAX_ENTRIES];
    float f32[MAX_ENTRIES * D];
} node_request;

typedef struct node_edge {
    host *h;
    void *owner;
    const node_place *place;
    int index;
    cw_edge *m;
    bool enrolled, has_saved;
    uint8_t ticket[1024], epoch[DISK_EPOCH], cluster_id[CW_CLUSTER_BYTES];
    size_t ticket_len, epoch_len;
    cw_key sign_key;
    node_request requests[MAX_REQUESTS];
    int64_t homeless_us, deadline_us;
    uint32_t double_every; /* 0: the default */
    bool gives_way;        /* a fallback goes on while nobody can be reached */
    bool refused;
    Cw__Pb__RefusalCode refusal;
    char why[CW_TEXT_MAX];
    uint64_t done, cancelled, failed;
    /* A request has ended: OK (`wrong`: with a row that is not the pure function's), CANCELLED or failed. */
    void (*on_end)(struct node_edge *e, node_request *q, const char *wrong);
} node_edge;

void node_edge_start(node_edge *e);
void node_edge_event(void *ctx, cw_event *ev, cw_outbox *out);
void node_edge_after(void *ctx, cw_outbox *out);
/* A request of random rows and experts; `layer` 0: any. NULL: all of them are open. */
node_request *node_edge_ask(node_edge *e, uint32_t layer, uint32_t rows, cw_outbox *out);
/* One request of one row for every expert of a layer, so that the answer needs all of them. */
node_request *node_edge_ask_all(node_edge *e, uint32_t layer, cw_outbox *out);
uint32_t node_edge_open(const node_edge *e);
