/* The inside of the worker machine, shared by its files: worker.c (life, events), coordinator.c (the control
 * link), holdings.c (what is loaded), edges.c (who may call), calls.c (queue and batches), reply.c (answers).
 */
#pragma once
#include "cw/backoff.h"
#include "cw/worker_machine.h"

#define MODULE "worker"

enum {
    HELLO_US = 2000000,     /* first message of a link */
    LOADS_AT_ONCE = 8,      /* experts asked of the loader ahead */
    LOAD_RETRY_US = 500000, /* at first; doubles up to */
    LOAD_RETRY_MOST_US = 10000000,
    HOLDINGS_EVERY_US = 500000, /* while loading */
    DRAIN_US = 2000000,
    LINKS_PER_KEY = 4,
    CALL_ENTRIES_MAX = 4096, /* of one call; edges stay at a quarter of it */
    BUSY_RETRY_MS = 20,
    SERVICE_RING = 128,                 /* latest service times, for the median */
    TICKET_GRACE_MS = 24 * 3600 * 1000, /* while the coordinator is out of reach */
    TICKET_SETTLE_US = 120 * 1000000,   /* after it is back: time for edges to renew */
    TICKET_OVERTIME_MS = 60000, /* a link that never falls quiet is ended that long after its ticket */
};

typedef struct peer peer;
typedef struct call call;

/* The entries of one expert in a call: [first, first + n), of which `taken` went into jobs. */
typedef struct {
    uint32_t expert, first, n, taken;
} run;

/* An accepted call. Alive: in its peer's list, not answered yet. Dead (peer NULL): only jobs still point at
 * it. */
struct call {
    peer *peer;
    cw_msg *msg;
    cw_call_view v;
    int64_t received_us, started_us; /* started_us 0: no entry was given to a job yet */
    size_t bytes;                    /* of message and reply, for the bounds */
    uint32_t n_runs, n_pending, n_in_job, n_done;
    run *runs;
    cw_frame rows, exps; /* the reply being filled; COMBINED: the rows before they are combined */
    uint8_t *rows_mem;
    int8_t *exps_mem;
    call *peer_prev, *peer_next;   /* alive calls of the peer, oldest first */
    call *layer_prev, *layer_next; /* calls of this layer with pending entries */
    bool in_layer;
};

struct peer {
    cw_link link;
    cw_key key;
    bool admitted;
    int64_t since_us, not_after_ms;
    uint64_t last_id;
    uint64_t told_term, told_number; /* newest epoch this link was sent: a copy may be megabytes */
    uint64_t bytes;
    uint32_t n_calls, n_pending_calls;
    call *head, *tail;
};

/* A job with where its rows came from. */
typedef struct {
    cw_job job; /* first member: the shell hands this pointer back */
    bool busy;
    call **row_call; /* [n_rows] */
} job_slot;

typedef enum { CO_WAITING, CO_OPENING, CO_SAID, CO_ADMITTED, CO_OFF } co_state;

typedef struct {
    co_state state;
    cw_link link;
    bool enrolled, enrolling;
    int64_t retry_us, last_heard_us, last_ping_us, admitted_us;
    int64_t heartbeat_us;
    cw_backoff backoff;
    char said[CW_TEXT_MAX]; /* the last complaint, so that it is not repeated */
} coordinator_link;

/* States of one expert. */
enum { X_NONE, X_LOADING, X_READY, X_NO_ROOM, X_FAILED, X_UNLOADING };

struct cw_worker {
    cw_worker_config c;
    coordinator_link co;
    uint64_t next_link;
    int64_t now_us, wall_ms; /* of the present event */

    /* The cluster, from Welcome. */
    bool has_cluster;
    uint8_t cluster_id[CW_CLUSTER_BYTES], digest[CW_DIGEST_BYTES];
    cw_key sign_key;
    char model_name[257], store_address[CW_ADDRESS_MAX];
    int64_t wall_offset_ms;
    cw_key *revoked;
    size_t n_revoked;
    uint8_t *epoch;
    size_t epoch_len;
    uint64_t epoch_term, epoch_number;

    /* The model. */
    bool model_asked, model_ready;
    int64_t model_retry_us; /* 0: no */
    uint32_t n_layers, n_experts, d_model;
    cw_worker_layer *layers;
    cw_model_limits limits;

    /* Holdings. */
    uint8_t
        *wanted; /* bit layer * CW_WIRE_MAX_EXPERTS + expert: asked for before and after the model is known */
    uint8_t *state; /* [n_layers * n_experts] */
    uint64_t seq_seen, seq_done;
    uint32_t n_missing, n_loading, n_ready, n_wanted, n_no_room, n_failed, n_unloading;
    size_t scan;
    uint64_t memory_used;
    int64_t load_retry_us, holdings_sent_us;
    cw_backoff load_backoff; /* of loads and of the manifest */
    bool holdings_dirty;
    uint32_t said_ready;
    char trouble[CW_TEXT_MAX];

    /* Edges and calls. */
    peer **peers;
    size_t n_peers, cap_peers, turn;
    call **layer_calls; /* [n_layers] */
    uint64_t queue_bytes;
    uint32_t n_calls, n_entries; /* alive calls; entries not in a job yet */
    job_slot *jobs;              /* [jobs_in_flight] */
    uint32_t n_jobs;

    /* Role actions, a ring. */
    cw_worker_act *acts;
    size_t act_head, n_acts, cap_acts;

    bool stopping, stopped;
    int64_t stop_us;

    uint64_t calls, rows, bytes_in, bytes_out;
    uint32_t service_us[SERVICE_RING];
    uint32_t n_service;
};

/* worker.c */
cw_worker_act *worker_act(cw_worker *w, cw_worker_act_kind kind); /* to be filled in; never NULL */
void worker_say(cw_worker *w, const char *fmt, ...) CW_PRINTF(2, 3);
void worker_end(cw_worker *w, int code, const char *fmt, ...) CW_PRINTF(3, 4);
cw_link worker_new_link(cw_worker *w);
int64_t worker_cluster_ms(const cw_worker *w); /* wall time as the coordinator has it */

/* coordinator.c */
void coordinator_tick(cw_worker *w, cw_outbox *out);
void coordinator_event(cw_worker *w, cw_event *ev, cw_outbox *out);
void coordinator_bye(cw_worker *w, const char *text, cw_outbox *out);

/* holdings.c */
void holdings_change(cw_worker *w, bool assign, uint64_t seq, Cw__Pb__LayerSet **sets, size_t n,
                     cw_outbox *out);
void holdings_model(cw_worker *w, cw_outbox *out); /* the model is known now */
void holdings_loaded(cw_worker *w, uint32_t layer, uint32_t expert, bool ok, const char *text,
                     cw_outbox *out);
void holdings_tick(cw_worker *w, cw_outbox *out); /* loads, unloads, Holdings messages that are due */
void holdings_send(cw_worker *w, cw_outbox *out);
bool holdings_ready(const cw_worker *w, uint32_t layer, uint32_t expert);

/* edges.c */
/* The newest epoch, where this link has not been sent it yet; else, or out of memory, an empty frame. */
cw_frame edges_epoch_for(const cw_worker *w, peer *p);
void edges_event(cw_worker *w, cw_event *ev, cw_outbox *out);
void edges_tick(cw_worker *w, cw_outbox *out);
void edges_revoke(cw_worker *w, cw_outbox *out); /* the revocation list has changed */
void edges_bye(cw_worker *w, const char *text, cw_outbox *out);
bool edges_is_revoked(const cw_worker *w, const cw_key *key);

/* calls.c */
void calls_accept(cw_worker *w, peer *p, cw_event *ev, cw_outbox *out);
void calls_cancel(cw_worker *w, peer *p, uint64_t id);
void calls_drop_peer(cw_worker *w, peer *p);
void calls_drop_expert(cw_worker *w, uint32_t layer, uint32_t expert, cw_outbox *out);
void calls_expire(cw_worker *w, cw_outbox *out);
void calls_pump(cw_worker *w, cw_outbox *out); /* gives out jobs */
bool calls_in_job(const cw_worker *w, uint32_t layer, uint32_t expert);
void call_unlink(cw_worker *w, call *c); /* answered or given up; freed when no job points at it */

/* reply.c */
void reply_send(cw_worker *w, call *c, cw_outbox *out);
void reply_fail(cw_worker *w, peer *p, uint64_t id, Cw__Pb__FailCode code, uint32_t layer, uint32_t expert,
                uint32_t retry_ms, const char *text, cw_outbox *out);
