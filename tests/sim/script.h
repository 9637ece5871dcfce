/*
 * Small stories about a cluster, written as data (scripts.c), that run in two worlds: the simulator
 * (world_sim.c), and real processes on real ZeroMQ sockets behind the proxy of tests/proxy (world_real.c).
 * The machines and what surrounds them are the same code; what each machine sees must be the same too.
 *
 * Compared is, for each step of a story and each pair of members, the sequence of what one was told of the
 * other: links that came up and went down, and kinds of messages. Left out is what only time decides: ticks,
 * pings, reports of load, cancellations, attempts to connect that failed, and how often in a row the same
 * kind came; and news of epochs are compared apart, since they follow what others do.
 */
#pragma once
#include <stdatomic.h>

#include "nodes.h"

enum { SCRIPT_WORKERS = 3, SCRIPT_EDGES = 2, MEMBERS = 1 + SCRIPT_WORKERS + SCRIPT_EDGES };
enum { MEMBER_COORDINATOR, MEMBER_WORKER = 1, MEMBER_EDGE = 1 + SCRIPT_WORKERS };
enum { LOG_ENTRIES = 20000, MEMBER_LINKS = 64, STORY_TEXT = 1 << 16 };

typedef struct {
    const char *name;
    int workers, edges;       /* that begin; more may come */
    uint32_t memory_percent;  /* of the model, each worker */
    const char *const *steps; /* script.c lists what they may be; NULL ends them */
} script;

extern const script scripts[];
extern const size_t n_scripts;

/* One process. In memory that all processes of a story share, so that the one that tells it can look. */
typedef struct {
    union {
        node_coordinator c;
        node_worker w;
        node_edge e;
    } n; /* first: callbacks of the node are given the member */
    int id;
    char name[12];
    cw_key key;
    node_place place;
    const cw_key *keys; /* [MEMBERS] of all */
    bool up;            /* the teller's: it has been started and not ended */
    struct {
        cw_link link;
        int peer;
    } links[MEMBER_LINKS];
    /* What the teller wants, done at the next tick. */
    atomic_uint ask, stop, revoke_edge, drain, undrain; /* requests in all; else index + 1 */
    /* What it can see. */
    atomic_uint asked, done, wrong, failed, open, n_ready, n_live, n_live_ready, n_workers;
    atomic_bool admitted, settling, stopped, refused;
    atomic_ullong term, number;
    atomic_uint n_log;
    struct {
        uint8_t peer, what;
    } log[LOG_ENTRIES];
} member;

/* A new incarnation of its machine, in the process that is to run it. */
void member_start(member *m, host *h);
void member_event(void *ctx, cw_event *ev, cw_outbox *out);
void member_after(void *ctx, cw_outbox *out);

/* A world. Faults of links concern all edges, or all workers, at once, since that is what stands behind one
 * address. */
typedef struct world world;
typedef struct {
    member *(*members)(world *w);
    void (*start)(world *w, int id);
    void (*kill)(world *w, int id);
    void (*pause)(world *w, int id, int64_t us);
    void (*cut)(world *w, int a, bool workers); /* a: whose address; those of workers, or of edges */
    void (*hole)(world *w, int a, bool towards, int64_t us);
    bool (*pass)(world *w, int64_t us); /* false: something that must not happen has happened */
    const char *(*failure)(world *w);
} world_ops;

/* Tells the story; `told` gets what is compared, as text. NULL, or what went wrong. */
const char *script_tell(const script *s, const world_ops *ops, world *w, char told[STORY_TEXT]);
void script_cast(const script *s, member *members, cw_key keys[MEMBERS], cw_signer *signer);

const char *script_in_simulator(const script *s, bool trace, char told[STORY_TEXT]);
const char *script_on_sockets(const script *s, const char *proxy, char told[STORY_TEXT]);
