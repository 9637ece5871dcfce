/*
 * The worker's network logic: enrolment, reconnecting, holdings, tickets, calls, the queue and the batches.
 * Pure: no socket, clock, thread or file; the shell (worker/src/shell.c) or tests/sim feeds events and
 * carries actions out.
 *
 * Two kinds of neighbours. The network: cw_event in, cw_outbox out (cw/machine.h). The process itself: a
 * loader that brings experts into memory and a compute stage; for these the machine lists role actions, which
 * the shell takes with cw_worker_take_act and answers with the cw_worker_* functions below. Whatever the
 * shell does, it does in the thread that owns the machine.
 *
 * Promises, each with a test: a call is answered exactly once (REPLY or CALL_FAIL) unless its peer is gone,
 * cancelled it or it was refused by cutting the peer; rows queued for one (layer, expert) are computed
 * together, as many as one piece of work takes; when more is asked than can be done, equal edges get equal
 * shares and calls of admitted streams are not refused; a worker whose coordinator is gone goes on serving
 * with what it holds; no key can make the queue grow without bound.
 */
#pragma once
#include "cw/fetch_machine.h"
#include "cw/kernels.h"
#include "cw/machine.h"

typedef struct cw_worker cw_worker;

typedef struct {
    char name[CW_NAME_MAX + 1];
    char coordinator[CW_ADDRESS_MAX]; /* control port */
    cw_key coordinator_key;
    uint8_t token[64];
    size_t token_len; /* 0: none; enrolment is not possible */
    bool enrolled;    /* the key was let in earlier: HELLO instead of ENROL first */
    uint8_t instance[CW_INSTANCE_BYTES];
    char data_address[CW_ADDRESS_MAX]; /* what edges connect to */
    uint64_t memory_bytes;             /* packed experts it may hold */
    uint32_t threads;
    char isa[32];
    float speed; /* GB/s of weights read, measured */
    uint32_t arithmetic_id;
    uint64_t fingerprint;
    bool has_local_model; /* --model: slices come from a file of this digest */
    uint8_t local_digest[CW_DIGEST_BYTES];
    const uint8_t *saved; /* cw_worker_saved of an earlier run, borrowed for cw_worker_new; NULL: none */
    size_t saved_len;
    bool gives_chunks;         /* CW_WORKER_READ can be answered */
    uint64_t chunk_rate;       /* bytes of chunks given a second while calls are served; 0: any */
    const cw_kernels *kernels; /* for COMBINED_F32; outlives the machine */
    uint64_t seed;             /* jitter */
    uint32_t drain_ms;         /* told to stop: how long the coordinator may take to give the experts other
                                  homes; 0: it is not asked */
    uint32_t jobs_in_flight;   /* compute jobs given out at once, [1] */
    uint32_t job_rows_max;     /* rows of one job, [512] */
    uint64_t queue_bytes_max;  /* of all queued calls with their replies, [256 MiB] */
    uint64_t peer_bytes_max;   /* of one edge key's, over all its links [32 MiB] */
} cw_worker_config;

CW_MUST_USE cw_status cw_worker_new(const cw_worker_config *c, cw_worker **out, cw_err *err);
void cw_worker_free(cw_worker **w);

/* Network events; ticks at least every 100 ms. */
void cw_worker_event(cw_worker *w, cw_event *ev, cw_outbox *out);

/* --- what the process itself is asked to do --- */

/* One expert's rows within a job. */
typedef struct {
    uint32_t layer, expert;
    uint32_t first, n; /* rows [first, first + n) of the job */
} cw_job_expert;

/* One row. Inputs are as the layer takes them (q and s, or x), outputs as it gives them (f16 and e, or f32 in
 * `out`). */
typedef struct {
    const int8_t *q;  /* [d_model] */
    const uint8_t *s; /* [d_model / 32] f32 bytes, maybe unaligned */
    const uint8_t *x; /* [d_model] f32 bytes, maybe unaligned */
    void *out;        /* [d_model] f16 or f32 */
    int8_t *e;        /* f16 rows: the exponent */
    bool bad;         /* result: not finite */
} cw_job_row;

/* Owned by the machine; lent to the compute stage until cw_worker_computed. Everything it points to stays
 * valid until then, also when the peer has gone. */
typedef struct {
    uint32_t n_experts, n_rows;
    cw_job_expert *experts; /* no (layer, expert) twice */
    cw_job_row *rows;
} cw_job;

typedef enum {
    CW_WORKER_ENROLLED,  /* remember: this key is known to this coordinator now */
    CW_WORKER_GET_MODEL, /* get the manifest of `digest` (store, or the local file); answer
                            cw_worker_model_ready/failed */
    CW_WORKER_LOAD,      /* bring (layer, expert) in; answer cw_worker_loaded */
    CW_WORKER_UNLOAD,    /* give it back; no job holds it */
    CW_WORKER_SOURCE,    /* source (the receiver frees it with cw_free): a worker that has chunks */
    CW_WORKER_READ,      /* `length` bytes of `chunk` from `offset`, or as many as there are; answer
                            cw_worker_read */
    CW_WORKER_SAVE,      /* write cw_worker_saved to disk */
    CW_WORKER_COMPUTE,   /* job; answer cw_worker_computed */
    CW_WORKER_REVOKED,   /* key: refuse it in ZAP from now on */
    CW_WORKER_SAY,       /* text: a line for the operator */
    CW_WORKER_STOPPED,   /* end the process; code is its exit status, text the reason */
} cw_worker_act_kind;

typedef struct {
    cw_worker_act_kind kind;
    uint32_t layer, expert;
    cw_fetch_source *source;
    cw_link link; /* READ */
    uint32_t chunk, length;
    uint64_t offset;
    cw_job *job;
    cw_key key;                      /* REVOKED */
    uint8_t digest[CW_DIGEST_BYTES]; /* GET_MODEL */
    char store_address[CW_ADDRESS_MAX];
    char text[CW_TEXT_MAX];
    int code;
} cw_worker_act;

/* The next role action, in order; false when there is none. Ask after every call into the machine. */
CW_MUST_USE bool cw_worker_take_act(cw_worker *w, cw_worker_act *act);

/* What the machine must know of the model. packed_bytes 0: the layer has no experts. */
typedef struct {
    Cw__Pb__ActKind act;
    Cw__Pb__ReplyKind rows; /* ROWS_F16 or ROWS_F32 */
    uint64_t packed_bytes;  /* one expert in memory */
} cw_worker_layer;

/* The model's facts, layers[n_layers] copied. INVALID where they contradict themselves (then the worker says
 * so and stops). */
void cw_worker_model_ready(cw_worker *w, uint32_t n_layers, uint32_t n_experts, uint32_t d_model,
                           const cw_worker_layer *layers, int64_t now_us, int64_t wall_ms, cw_outbox *out);
/* `fatal`: the process stops with this sentence; else it is asked for again after a pause. */
void cw_worker_model_failed(cw_worker *w, bool fatal, const char *text, int64_t now_us, int64_t wall_ms,
                            cw_outbox *out);
/* ok false: `text` says why; the expert is asked for again after a pause. */
void cw_worker_loaded(cw_worker *w, uint32_t layer, uint32_t expert, bool ok, const char *text,
                      int64_t now_us, int64_t wall_ms, cw_outbox *out);
void cw_worker_computed(cw_worker *w, cw_job *job, int64_t now_us, int64_t wall_ms, cw_outbox *out);
/* `bytes` of the chunk from `offset`, taken over, or data NULL and a sentence. total: of the chunk. */
void cw_worker_read(cw_worker *w, cw_link link, uint32_t chunk, uint64_t offset, uint64_t total,
                    cw_frame bytes, const char *text, int64_t now_us, int64_t wall_ms, cw_outbox *out);
/* What to keep over a restart; data NULL: out of memory. */
CW_MUST_USE cw_frame cw_worker_saved(const cw_worker *w);
/*
 * SIGTERM: Leave to the coordinator, and the worker serves until it says Released (drain_ms at most). Then
 * new calls are refused, queued ones finished (2 s at most), Bye to all, CW_WORKER_STOPPED. Called again:
 * that at once.
 */
void cw_worker_stop(cw_worker *w, int64_t now_us, int64_t wall_ms, cw_outbox *out);

/* --- for tests, status lines and the simulator --- */

typedef struct {
    bool admitted; /* by the coordinator, now */
    bool model_ready, stopping;
    uint32_t n_ready, n_wanted; /* experts */
    uint64_t memory_used;
    uint64_t loaded, loaded_bytes; /* experts brought in since start, and their packed bytes */
    uint32_t n_edges, queued_calls, queued_entries, jobs;
    uint64_t queue_bytes;
    int64_t queue_us; /* until what is queued now is computed, as far as can be told */
    float speed;      /* GB/s of weights with one row each: measured in service, or the config's */
    uint64_t epoch_term, epoch_number;
    uint64_t calls, rows, bytes_in, bytes_out; /* answered since start */
    uint64_t chunk_bytes_out;                  /* given to other workers */
    bool serving;                              /* a call came within the last second */
    int64_t wall_offset_ms;                    /* coordinator's wall clock minus ours */
} cw_worker_facts;
void cw_worker_get_facts(const cw_worker *w, cw_worker_facts *out);
/* Packed bytes that are READY, of those that are wanted and fit; false: nothing is on its way. */
bool cw_worker_loading(const cw_worker *w, uint64_t *done, uint64_t *total);
bool cw_worker_is_ready(const cw_worker *w, uint32_t layer, uint32_t expert);
