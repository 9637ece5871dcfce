/*
 * The edge's network logic: the coordinator link, tickets and epochs, one link a worker, and the table of
 * calls. Pure: no socket, clock, thread or file; the shell (edge/remote/src/mainland.c) or tests/sim feeds
 * it.
 *
 * A request is one layer's (row, expert) entries. The machine divides them over the workers that hold the
 * experts so that the predicted finish of the slowest is least, cuts them into calls, and puts the rows that
 * come back where the request wants them. Who computes never changes a bit, so calls are resent freely: at
 * once when a link is lost or an expert has moved, on time when a worker is late (a hedge; at most 5 % of
 * messages), later when a worker is busy. A row that came twice is compared before it is dropped, one message
 * in 512 is sent to two workers on purpose, and a worker whose rows are proven wrong is asked no more. A
 * request ends exactly once, done or failed with a sentence.
 */
#pragma once
#include "cw/machine.h"
#include "cw/tide.h"

typedef struct cw_edge cw_edge;

/* What the machine must know of a layer to cut and predict. weight_bytes 0: no experts in this layer. */
typedef struct {
    Cw__Pb__ActKind act;
    Cw__Pb__ReplyKind rows; /* ROWS_F16 or ROWS_F32 */
    uint64_t weight_bytes;  /* one expert */
} cw_edge_layer;

typedef struct {
    char name[CW_NAME_MAX + 1];
    char coordinator[CW_ADDRESS_MAX];
    cw_key coordinator_key;
    uint8_t token[64];
    size_t token_len; /* 0: none */
    bool enrolled;
    uint8_t instance[CW_INSTANCE_BYTES];
    uint32_t arithmetic_id;
    uint64_t fingerprint;
    uint8_t model_digest[CW_DIGEST_BYTES]; /* of the edge's own file */
    uint32_t n_layers, n_experts, d_model;
    const cw_edge_layer *layers; /* [n_layers], copied */
    uint64_t seed;               /* jitter */
    /* Somebody else goes on while the mainland is out of reach: then open requests end at once, UNREACHABLE,
     * and so do new ones. Otherwise they wait for its return, within their deadlines. */
    bool gives_way;
    int64_t idle_us;     /* worker links close after that long without a request [60 s] */
    int64_t homeless_us; /* how long an entry waits for a home before its request fails [10 s] */
    int64_t reply_us;    /* no reply for that long: the call is taken back and sent again [5 s] */
    /* A decode call is hedged when its service time passes what 99 of 100 took, but never before and, unless
     * the worker is slower than that by nature, never after these. [25 ms, 150 ms] */
    int64_t hedge_least_us, hedge_most_us;
    int64_t silent_us;     /* a late worker that does not answer a ping for that long has hung [120 ms] */
    int64_t verdict_us;    /* rows in dispute wait so long for the coordinator's verdict [3 s] */
    uint32_t double_every; /* one message in so many goes to two workers, to compare; 1: all [512] */
    /* From an earlier run, so that it can start while the coordinator is down. All or nothing. */
    bool has_saved;
    cw_key sign_key;
    uint8_t cluster_id[CW_CLUSTER_BYTES];
    const uint8_t *saved_ticket, *saved_epoch; /* signed; copied */
    size_t saved_ticket_len, saved_epoch_len;
} cw_edge_config;

CW_MUST_USE cw_status cw_edge_new(const cw_edge_config *c, cw_edge **out, cw_err *err);
/* Requests that are still there are forgotten, not answered. */
void cw_edge_free(cw_edge **e);
void cw_edge_event(cw_edge *e, cw_event *ev, cw_outbox *out);

/* Connect to workers even before the first request: somebody is about to ask. Counts as a request for the
 * idle timer. */
void cw_edge_want(cw_edge *e, int64_t now_us, cw_outbox *out);

/* --- requests --- */

typedef struct {
    uint32_t row, expert;
    float weight;
} cw_edge_entry;

/*
 * Owned by the caller, who leaves it and everything it points to alone until the request has ended
 * (cw_edge_take_act gives CW_EDGE_DONE). Outputs: rows of entry i at index i, f16 and e, or f32, as the layer
 * gives them.
 */
typedef struct cw_edge_request {
    uint32_t layer, n_rows, n_entries;
    const int8_t *q;              /* as the layer takes them: [n_rows, ld] and */
    const float *s;               /* [n_rows, ld / 32], or */
    const float *x;               /* [n_rows, d_model] */
    int64_t ld;                   /* values from one row of q to the next; d_model where they are dense */
    const cw_edge_entry *entries; /* ascending by (row, expert) */
    Cw__Pb__CallClass klass;
    uint32_t stream; /* which conversation, for the workers' admission; 0: not told */
    /* Put off by the machine while workers say that they are busy: overload is waited for, not failed. */
    int64_t deadline_us;
    uint16_t *f16;
    int8_t *e;
    float *f32;
    /* Result. */
    cw_status status;
    char text[CW_TEXT_MAX];
    /* The machine's. */
    struct cw_edge_request *next;
    struct cw_edge_request *prev;
    struct cw_edge_mark *marks; /* [n_entries] */
    int64_t allowed_us;         /* deadline_us less the time of submission */
    uint32_t n_left;            /* entries without a row that may be used */
    bool active;
} cw_edge_request;

void cw_edge_submit(cw_edge *e, cw_edge_request *r, int64_t now_us, cw_outbox *out);
/* Ends it with CANCELLED (still through cw_edge_take_act); no-op when it has ended already. */
void cw_edge_cancel(cw_edge *e, cw_edge_request *r, int64_t now_us, cw_outbox *out);

/* --- what the process itself is asked to do --- */

typedef enum {
    CW_EDGE_DONE,     /* request has ended; status and text are in it */
    CW_EDGE_ENROLLED, /* remember: this key is known to this coordinator now; also sign key and cluster in the
                         facts */
    CW_EDGE_SAVE,     /* ticket or epoch changed: store cw_edge_get_saved */
    CW_EDGE_SAY,      /* text: a line for the log */
    CW_EDGE_REFUSED,  /* code and text: the coordinator will not have us; waiting will not help */
} cw_edge_act_kind;

typedef struct {
    cw_edge_act_kind kind;
    cw_edge_request *request;
    Cw__Pb__RefusalCode code;
    char text[CW_TEXT_MAX];
} cw_edge_act;
CW_MUST_USE bool cw_edge_take_act(cw_edge *e, cw_edge_act *act);

/* Borrowed until the next call into the machine. false: nothing to save yet. */
typedef struct {
    cw_key sign_key;
    uint8_t cluster_id[CW_CLUSTER_BYTES];
    const uint8_t *ticket, *epoch;
    size_t ticket_len, epoch_len;
} cw_edge_saved;
CW_MUST_USE bool cw_edge_get_saved(const cw_edge *e, cw_edge_saved *out);

/* Bye to everybody; open requests end with CANCELLED. */
void cw_edge_stop(cw_edge *e, int64_t now_us, cw_outbox *out);

/* --- facts --- */

/* Totals since the machine was made. */
typedef struct {
    uint64_t calls;      /* messages sent to workers, all kinds */
    uint64_t resent;     /* of these: again, because a link or a worker was lost */
    uint64_t hedges;     /* of these: to a second worker, because the first was late */
    uint64_t hedge_wins; /* hedges that answered first */
    uint64_t doubled;    /* of these: to a second worker, to compare */
    uint64_t compared;   /* rows that came from two workers */
    uint64_t mismatches; /* of these: that differed */
    uint64_t busy;       /* calls that a worker put off */
    uint64_t suspects;   /* times a worker was found late thrice in a row, or hanging */
    uint64_t late;       /* replies nobody waited for any more */
} cw_edge_counts;

/* What the coordinator is told beside the counts; the caller's business, repeated with every heartbeat. */
typedef struct {
    uint64_t tokens, fallback_tokens;
    char mode[16]; /* empty: "split" while somebody asks, else "idle" */
} cw_edge_story;
void cw_edge_tell(cw_edge *e, const cw_edge_story *s);

typedef struct {
    bool admitted; /* by the coordinator, now */
    bool refused;  /* for good; why says it */
    bool covered;  /* every expert has a home whose link is up */
    cw_tide_state tide;
    uint32_t n_workers, n_up;    /* in the epoch; links ready */
    uint32_t n_experts, n_homes; /* experts of the model; those with a link-up home */
    uint64_t epoch_term, epoch_number;
    int64_t ticket_not_after_ms; /* 0: none */
    char model_name[257];
    char why[CW_TEXT_MAX];     /* what is missing, a sentence; empty when covered */
    char waiting[CW_TEXT_MAX]; /* what open requests wait for, a sentence; empty when for replies only */
    int64_t waiting_us;        /* for how long already */
    cw_edge_counts n;
} cw_edge_facts;
void cw_edge_get_facts(const cw_edge *e, cw_edge_facts *out);
/* The tide of the facts alone; cheap. */
cw_tide_state cw_edge_tide(const cw_edge *e);

typedef struct {
    uint32_t id;
    char name[CW_NAME_MAX + 1];
    char address[CW_ADDRESS_MAX];
    bool up;
    bool suspect;                              /* late or hanging: asked only where there is no other */
    bool barred;                               /* gave wrong rows: not asked */
    uint64_t calls, rows, bytes_out, bytes_in; /* answered calls; out: to the worker */
    uint32_t rtt_us, service_us;               /* smoothed; 0: not measured yet */
    uint32_t delay_us;                         /* the link's part of a call: the least of late, nearly */
    uint32_t hedge_us;                         /* when a small call would be hedged now */
    uint64_t bytes_per_s;                      /* what its link carries; 0: not measured */
    uint64_t service_sum_us;                   /* of all answered calls */
    char why[160];                             /* not up: the last reason */
} cw_edge_worker_facts;
/* The i-th worker of the epoch or of the last minutes; false beyond the last. */
CW_MUST_USE bool cw_edge_get_worker(const cw_edge *e, uint32_t i, cw_edge_worker_facts *out);
