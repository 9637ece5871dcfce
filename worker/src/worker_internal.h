/* The inside of the worker machine, shared by its files: worker.c (life, events), coordinator.c (the control
 * link), report.c (what it tells the coordinator of its work), holdings.c (what is loaded), edges.c (who may
 * call), calls.c (a call's life), turns.c (whose call is next, and how much of it), pace.c (how long
 * computing takes), audit.c (rows that the coordinator asks for), reply.c (answers), chunks.c (chunks for
 * other workers), saved.c (what outlives the process).
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
    BUSY_RETRY_MS = 20,      /* where memory is short */
    PIECE_US = 2000,     /* of compute in one go: the longest a call waits for work that is not its turn */
    PIECE_ROWS_MIN = 8,  /* of one expert: fewer would read weights again and again */
    QUANTUM_EXPERTS = 8, /* weight bytes an edge gains in a round: about a token's layer */
    PREFILL_WAIT_US = 150000, /* a longer queue turns prefill away */
    STREAM_WAIT_US = 300000,  /* a longer queue turns new streams away */
    STREAM_IDLE_US = 2000000, /* a stream without a call for that long may give its place to another */
    GONE_US = 10000000,       /* the account of an edge without a connection is kept for so long */
    GONE_MOST = 256,
    STREAMS_MAX = 256,       /* of one edge, whatever its ticket says */
    AUDITS_MAX = 8,          /* waiting */
    AUDIT_ROWS = 16,         /* of one job */
    AUDIT_WAIT_US = 1000000, /* for a moment without calls; then it goes between them */
    SPEED_JOBS = 32,         /* before the measured speed is believed */
    SAVE_US = 1000000,       /* changes of a second go to disk together */
    RESTORE_US = 2000000,    /* the coordinator's time to let us in before we take up what we held */
    SERVING_US = 1000000,    /* since the last call: calls are being served */
    CHUNK_WANTS_MAX = 32,    /* open requests of another worker */
    LOADS_EVERY_US = 5000000,
    LOADS_MAX = 65536,                  /* experts in one report */
    SERVICE_RING = 128,                 /* latest service times, for the median */
    TICKET_GRACE_MS = 24 * 3600 * 1000, /* while the coordinator is out of reach */
    TICKET_SETTLE_US = 120 * 1000000,   /* after it is back: time for edges to renew */
    TICKET_OVERTIME_MS = 60000, /* a link that never falls quiet is ended that long after its ticket */
};

typedef struct peer peer;
typedef struct call call;
typedef struct audit_rows audit_rows;

/* The entries of one expert in a call: [first, first + n), of which `taken` went into jobs. */
typedef struct {
    uint32_t expert, first, n, taken;
} run;

/* Work in the two numbers its time depends on: weight bytes to be read, and those times rows. */
typedef struct {
    double bytes, row_bytes;
} work;

/* The lists a call is in: of its link; of its layer and of its edge's class while entries are pending. */
enum { IN_PEER, IN_LAYER, IN_TURN, N_LISTS };
typedef struct {
    call *head, *tail;
} call_list;
typedef struct {
    call *prev, *next;
    call_list *list; /* NULL: in none */
} call_hook;

/* An accepted call. Alive: in its peer's list, not answered yet. Dead (peer NULL): only jobs still point at
 * it. */
struct call {
    peer *peer;
    cw_msg *msg;
    cw_call_view v;
    int64_t received_us, started_us; /* started_us 0: no entry was given to a job yet */
    size_t bytes;                    /* of message and reply, for the bounds */
    uint32_t n_runs, n_pending, n_in_job, n_done;
    run *runs;           /* ascending experts */
    work left;           /* of what is pending, as if it were computed alone */
    cw_frame rows, exps; /* the reply being filled; COMBINED: the rows before they are combined */
    uint8_t *rows_mem;
    int8_t *exps_mem;
    call_hook in[N_LISTS];
};

typedef struct {
    uint32_t id;
    int64_t seen_us;
} stream;

enum { TURN_DECODE, TURN_PREFILL, N_TURNS };

/* What one key may use and has used, over all its links. */
typedef struct {
    cw_key key;
    uint32_t n_links;
    int64_t gone_us;            /* no links: since when */
    uint64_t bytes;             /* of its calls and their replies */
    call_list waiting[N_TURNS]; /* calls with pending entries */
    double deficit;             /* weight bytes it may still use in this round; below 0: used ahead */
    uint32_t streams_max, n_streams;
    stream *streams;     /* [streams_max] */
    uint32_t rows_per_s; /* 0: any; holds for prefill */
    double rows_left;
    int64_t rows_us; /* when rows_left was right */
} account;

typedef struct {
    uint32_t chunk, length;
    uint64_t offset;
} chunk_want;
typedef struct {
    chunk_want ring[CHUNK_WANTS_MAX];
    uint32_t first, n;
} chunk_wants;

struct peer {
    cw_link link;
    cw_key key;
    bool admitted;
    bool is_worker;     /* comes for chunks; has no account */
    account *account;   /* NULL until admitted */
    chunk_wants *wants; /* NULL: none yet */
    int64_t since_us, not_after_ms;
    uint64_t last_id;
    uint64_t told_term, told_number; /* newest epoch this link was sent: a copy may be megabytes */
    uint32_t n_calls;
    call_list calls; /* alive, oldest first */
};

/* Rows that the coordinator wants to see (Audit); see audit.c. */
typedef struct {
    uint64_t id, seed;
    uint32_t layer, expert, n_rows, n_done;
    int64_t asked_us;
    uint64_t hashes[CW_AUDIT_ROWS_MAX];
} audit;

/* A job with where its rows came from. */
typedef struct {
    cw_job job; /* first member: the shell hands this pointer back */
    bool busy, is_prefill, is_audit;
    int64_t given_us;
    work work;       /* as it is computed */
    work alone;      /* the same rows, each call by itself */
    call **row_call; /* [n_rows]; NULL rows of an audit */
} job_slot;

/* How long computing takes, learnt from jobs: us = by_byte * bytes + by_row_byte * row_bytes. */
typedef struct {
    double by_byte, by_row_byte;
    double s11, s12, s22, s1, s2; /* sums of the least squares, fading */
    double together;              /* time of a job over that of its calls alone: what batching saves */
    int64_t last_end_us;
    uint32_t n_jobs; /* measured, saturating */
} pace;

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
    /* The coordinator's clock: what it said, and when that was. Local wall time with an offset only until it
     * has said something, so that steps of the local clock do not matter. */
    bool clock_known;
    int64_t clock_ms, clock_us, wall_offset_ms;
    cw_key *revoked;
    size_t n_revoked;
    uint8_t *epoch;
    size_t epoch_len;
    uint64_t epoch_term, epoch_number;
    bool took_up;                /* what is wanted is from an earlier run */
    cw_msg *restored;            /* Assign of an earlier run, until the coordinator lets us in */
    int64_t restore_us, save_us; /* 0: not set; 0: nothing to save */

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
    uint64_t loaded, loaded_bytes; /* since the start, also what was dropped again */
    int64_t load_retry_us, holdings_sent_us;
    cw_backoff load_backoff; /* of loads and of the manifest */
    bool holdings_dirty;
    uint32_t said_ready;
    char trouble[CW_TEXT_MAX];

    /* Edges and calls. */
    peer **peers;
    size_t n_peers, cap_peers;
    account **accounts;
    size_t n_accounts, cap_accounts, turn;
    call_list *layer_calls; /* [n_layers] */
    uint64_t queue_bytes;
    uint32_t n_calls, n_entries; /* alive calls; entries not in a job yet */
    work queued;                 /* of pending entries, each call alone */
    pace pace;
    job_slot *jobs; /* [jobs_in_flight] */
    uint32_t n_jobs;
    audit *audits[AUDITS_MAX]; /* in order */
    uint32_t n_audits;
    audit_rows *audit_rows; /* NULL until the first one */

    /* Chunks for other workers. */
    cw_link chunk_out; /* whose part is being read; 0: none */
    size_t chunk_turn;
    int64_t chunk_free_us, last_call_us;
    uint64_t chunk_bytes_out;

    /* Reports. */
    uint32_t *expert_rows; /* [n_layers * n_experts] computed since the last report */
    size_t expert_rows_scan;
    int64_t loads_sent_us;

    /* Role actions, a ring. */
    cw_worker_act *acts;
    size_t act_head, n_acts, cap_acts;

    bool stopping, stopped;
    int64_t stop_us;
    bool leaving; /* told to stop, still serving */
    int64_t leave_until;

    uint64_t calls, rows, bytes_in, bytes_out;
    uint32_t service_us[SERVICE_RING];
    uint32_t n_service;
};

/* worker.c */
cw_worker_act *worker_act(cw_worker *w, cw_worker_act_kind kind); /* to be filled in; never NULL */
void worker_say(cw_worker *w, const char *fmt, ...) CW_PRINTF(2, 3);
void worker_end(cw_worker *w, int code, const char *fmt, ...) CW_PRINTF(3, 4);
cw_link worker_new_link(cw_worker *w);
void worker_set_clock(cw_worker *w, uint64_t cluster_ms);
int64_t worker_cluster_ms(const cw_worker *w); /* wall time as the coordinator has it */

/* coordinator.c */
void coordinator_tick(cw_worker *w, cw_outbox *out);
void coordinator_event(cw_worker *w, cw_event *ev, cw_outbox *out);
void coordinator_bye(cw_worker *w, const char *text, cw_outbox *out);

/* leave.c */
void leave_begin(cw_worker *w, cw_outbox *out);
void leave_released(cw_worker *w, const char *text, cw_outbox *out);
void leave_tick(cw_worker *w, cw_outbox *out);
/* What was said of the cluster; not its epoch, clock or revoked keys. */
void coordinator_cluster(cw_worker *w, const Cw__Pb__Welcome *m);
void coordinator_epoch(cw_worker *w, const cw_frame *f);
void coordinator_revoked(cw_worker *w, ProtobufCBinaryData list, cw_outbox *out);

/* saved.c */
CW_MUST_USE cw_status saved_restore(cw_worker *w, const uint8_t *bytes, size_t n, cw_err *err);
void saved_take_up(cw_worker *w, cw_outbox *out);
void saved_dirty(cw_worker *w); /* something that is kept has changed */
void saved_tick(cw_worker *w, bool now);

/* chunks.c */
const char *chunks_ask(cw_worker *w, peer *p, const Cw__Pb__ChunkGet *m, cw_outbox *out);
void chunks_pump(cw_worker *w, cw_outbox *out);

/* holdings.c */
void holdings_change(cw_worker *w, bool assign, uint64_t seq, Cw__Pb__LayerSet **sets, size_t n,
                     cw_outbox *out);
/* What is wanted and not READY is not wanted any more: the coordinator is about to say it anew. */
void holdings_forget_missing(cw_worker *w, cw_outbox *out);
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
bool calls_is_late(const cw_worker *w, const call *c);
void calls_expire_one(cw_worker *w, call *c, cw_outbox *out);
run *call_run(call *c, uint32_t expert); /* NULL: none */
void call_unlink(cw_worker *w, call *c); /* answered or given up; freed when no job points at it */

/* turns.c */
/* The account of the peer's key, made if need be; NULL: out of memory. One reference more. */
account *turns_account(cw_worker *w, const cw_key *key, uint32_t streams, uint32_t rows_per_s);
void turns_account_leave(cw_worker *w, account **a);
void turns_tick(cw_worker *w);           /* accounts of those who are gone for good */
void turns_free(cw_worker *w);           /* nobody has links any more */
void turns_enter(cw_worker *w, call *c); /* its entries wait from now on */
void turns_leave(cw_worker *w, call *c); /* all taken, or given up */
/* NULL: the call may join the queue. Else why not, and when to come back. */
const char *turns_refuse(cw_worker *w, account *a, const cw_call_view *v, uint32_t stream_id, size_t bytes,
                         uint32_t *retry_ms);
void turns_pump(cw_worker *w, cw_outbox *out); /* gives out jobs */
bool turns_in_job(const cw_worker *w, uint32_t layer, uint32_t expert);
void turns_list_add(call_list *l, call *c, int which);
void turns_list_remove(call *c, int which);

/* pace.c */
void pace_start(pace *p, double gb_per_s);
double pace_us(const pace *p, work x);
/* Learns from a job that was given at `given_us` and is back now; how long it took. */
int64_t pace_learn(pace *p, const job_slot *s, int64_t now_us);
int64_t pace_queue_us(const pace *p, work queued); /* until what is queued now is computed */
float pace_speed(const pace *p);                   /* GB/s of weights with one row each */

/* audit.c */
void audit_ask(cw_worker *w, const Cw__Pb__Audit *a, cw_outbox *out);
/* Puts the next rows into the job, if any should be computed now. */
bool audit_fill(cw_worker *w, job_slot *s);
void audit_back(cw_worker *w, job_slot *s, cw_outbox *out);
void audit_tick(cw_worker *w, cw_outbox *out); /* those whose expert has gone are answered */
void audit_forget(cw_worker *w);               /* all; the link they came by is gone */
void audit_free(cw_worker *w);

/* report.c */
void report_rows(cw_worker *w, const cw_job *job);
void report_send(cw_worker *w, cw_outbox *out);

/* reply.c */
void reply_send(cw_worker *w, call *c, cw_outbox *out);
void reply_fail(cw_worker *w, peer *p, uint64_t id, Cw__Pb__FailCode code, uint32_t layer, uint32_t expert,
                uint32_t retry_ms, const char *text, cw_outbox *out);
