/* A simulated cluster from the inside: cluster.c (processes, one run), faults.c, watch.c (what must hold). */
#pragma once
#include "cluster.h"
#include "nodes.h"
#include "sim_host.h"

enum { MAX_WORKERS = 12, MAX_EDGES = 16, SPARE_WORKERS = 2 };

typedef struct cluster cluster;

/* What the coordinator was told by a worker on its present connection. */
typedef struct {
    uint32_t conn; /* 0: not connected */
    bool heard;    /* Holdings have come */
    bool ready[LAYERS][EXPERTS];
} told;

typedef struct {
    node_worker n;
    sim_host h;
    cluster *cl;
    bool exists;        /* started once; spare ones join later */
    bool gone, revoked; /* for good */
    bool drained;
    cw_key key; /* for what an operator does with it */
    bool restart_planned;
    int64_t restart_us;
    uint64_t term, number; /* highest epoch this incarnation has seen */
    uint32_t incarnation, n_steps;
    told told;
} sim_worker;

typedef struct {
    node_edge n;
    sim_host h;
    cluster *cl;
    bool revoked;
    cw_key key;
    bool led;        /* somebody else decides what it asks */
    void *traveller; /* who; flight.h */
    uint32_t asking; /* requests that are open or will be */
    int64_t burst_until;
    uint64_t term, number, hedges, calls, first; /* first: messages that were no repetition */
    double allowed;                              /* hedges, now */
} sim_edge;

typedef struct {
    node_coordinator n;
    sim_host h;
    cluster *cl;
    node_disk backup;
    bool restored; /* an older copy was put back at some time */
    int64_t down_us;
    bool homes[MAX_WORKERS + SPARE_WORKERS][LAYERS][EXPERTS]; /* of the newest epoch */
} sim_coordinator;

typedef struct {
    sim_host h;
    cluster *cl;
    uint32_t tries, refused;
    cw_link link;
    int64_t next_us;
} sim_thief;

/* Calls on their way or being worked on: an open-addressed table of (connection, id). */
typedef struct {
    uint64_t *keys;
    uint8_t *state;
    size_t n, cap;
} call_table;

struct cluster {
    sim *s;
    node_place place;
    sim_coordinator co;
    sim_worker *w;
    sim_edge *e;
    int n_workers, n_edges;
    int16_t worker_of[SIM_MAX_PROCS], edge_of[SIM_MAX_PROCS]; /* by process: which, from 1; 0: none */
    sim_thief thief;
    bool has_thief, slow_loads;
    bool submitting, counting_down; /* counting down: the last fault has begun */
    int64_t faults_end;
    sim_worker *liar;
    bool quiet; /* the recovery is over: no wrong row any more */
    cluster_counts *counts;
    call_table calls;
};

cw_key key_of(int kind, int index);

/* Addresses, tokens and the coordinator's process. */
void cluster_found(cluster *cl);
void cluster_add_worker(cluster *cl, int i, uint64_t memory);
void cluster_add_edge(cluster *cl, int i);
void cluster_free(cluster *cl);

void coordinator_start(sim_coordinator *c);
void coordinator_restart(void *ctx, void *arg); /* sim_at */
void worker_start(sim_worker *w);
void worker_restart(void *ctx, void *arg);
void edge_start(sim_edge *e);
void edge_restart(void *ctx, void *arg);
void edge_keep_asking(sim_edge *e);

/* faults.c */
void faults_plan(cluster *cl);
/* In the coordinator's process, `arg` a sim_worker: nothing on it any more, or again. */
void faults_drain(void *ctx, void *arg, cw_outbox *out);

/* watch.c */
sim_watcher watch_all(cluster *cl);
void watch_epoch_saved(void *owner, const cw_row *row);
void watch_fenced(void *owner, const cw_key_row *row);
void watch_request_end(node_edge *e, node_request *q, const char *wrong);
void watch_progress(cluster *cl, const uint64_t *before, const char *when);
const char *watch_disagreement(const cluster *cl);
/* When no call can be on its way any more. */
void watch_forget_calls(cluster *cl);
size_t watch_own_bytes(const cluster *cl);
void watch_free(cluster *cl);

/* thief.c: tries a stolen ticket at the workers, over and over. */
void thief_add(cluster *cl);
