/*
 * The coordinator's pure machine: who is in the cluster, which worker holds which expert, what everybody is
 * told.
 *
 * Registry, admission, placement and epochs behind one event function. It owns no socket, clock, file or
 * thread; time, messages and saved state come in, network actions (cw_outbox) and rows to save (cw_row) go
 * out. It is never on the data path: edges and workers go on without it.
 *
 * The one rule of the shell: after every call that takes an outbox, first save cw_coordinator_rows whole and
 * durably, then carry out the network actions. A token use, a term or an epoch is on disk before anybody
 * hears of it; a shell that cannot save stops.
 *
 * What it expects of a worker, in order: Hello (or Enrol) -> Welcome -> the worker sends Holdings at once,
 * empty ones too, and again whenever a load finishes, a Drop is done or trouble starts or ends. Before that
 * first Holdings of a link it is sent neither Assign nor Drop, so that a coordinator that restarts learns
 * what is there instead of loading it again. Assign.seq and Drop.seq share one rising counter, never below
 * the seq the worker reported. One thread owns it.
 */
#pragma once
#include "cw/keys.h"
#include "cw/machine.h"

typedef struct cw_coordinator cw_coordinator;

enum { CW_TOKEN_HASH_BYTES = 32 };

/* Times in milliseconds; cw_coordinator_config_init fills in what WIRE says, tests change them. */
typedef struct {
    uint32_t heartbeat_ms;  /* 2 s: Ping to every peer; no word for 5 of them: the link is closed */
    uint32_t hello_ms;      /* 2 s for the first message of a link */
    uint32_t ticket_ms;     /* 1 h */
    uint32_t gather_ms;     /* 300 ms without another join before experts are placed */
    uint32_t settle_ms;     /* 10 s after a restart, or all known workers back: nothing moves */
    uint32_t lost_ms;       /* 5 s until a lost worker leaves the epoch (edges see its death by themselves) */
    uint32_t replace_ms;    /* 30 s until a lost worker whose experts have other homes is re-placed */
    uint32_t progress_ms;   /* 5 s between epochs that only report progress of loading */
    uint32_t drop_grace_ms; /* 10 s between the epoch without a home and the Drop there; a 20th of
                               it while some expert waits for that room and has no home at all */
    uint32_t retry_ms;      /* 10 s until experts that a worker could not load are assigned again */
    uint32_t balance_ms;    /* 60 s between looks whether measured loads make moves worth while */
    uint32_t audit_ms;      /* 4 s between audits of a worker in the background; 0: none */
    uint32_t epoch_gap_ms;  /* 250 ms between two epochs, whatever happens */
    uint32_t release_ms;    /* 300 ms from the epoch without a leaving worker until it is let go */
} cw_coordinator_times;

typedef struct {
    uint8_t cluster_id[CW_CLUSTER_BYTES];
    uint8_t model_digest[CW_DIGEST_BYTES];
    const char *model_name;    /* copied */
    const char *store_address; /* copied; what Welcome tells workers */
    const cw_signer *signer;   /* tickets and epochs; outlives the machine */
    uint32_t arithmetic_id;    /* of this build; 0 is compared like any other */
    uint64_t fingerprint;
    uint32_t n_layers, n_experts;
    const uint64_t *expert_bytes;    /* [n_layers] packed bytes of one expert, 0: a dense layer; copied */
    uint32_t max_workers, max_edges; /* live at once */
    uint32_t ticket_streams, ticket_rows_per_s; /* limits written into tickets */
    cw_coordinator_times times;
    uint64_t seed; /* of audits; random */
} cw_coordinator_config;

void cw_coordinator_config_init(cw_coordinator_config *c);

/* ---- saved state
 * -------------------------------------------------------------------------------------------- */

/* An invitation. The secret itself is never here. */
typedef struct {
    uint32_t id; /* from 1 */
    Cw__Pb__Role role;
    uint8_t hash[CW_TOKEN_HASH_BYTES]; /* cw_token_hash */
    uint32_t uses_max, uses;           /* uses_max 0: any number */
    uint32_t max_live;                 /* edges connected at once through it; 0: any number */
    int64_t created_ms, expires_ms;    /* wall time */
    bool revoked;
} cw_token_row;

/* A key that was admitted once. Kept as long as revoking its token may have to find it (docs/COORDINATOR.md).
 */
typedef struct {
    cw_key key;
    Cw__Pb__Role role;
    char name[CW_NAME_MAX + 1];
    uint32_t id;       /* workers: EpochWorker.id, never given twice; edges: 0 */
    uint32_t token_id; /* which token let it in */
    int64_t admitted_ms;
    int64_t seen_ms; /* when it was connected last, to the hour; or when it was revoked */
    bool revoked;
    bool drained;   /* workers: the operator wants nothing on it */
    bool fenced;    /* workers: it gave wrong rows and is kept out until the operator says otherwise */
    bool forgotten; /* in a row to save: delete it */
    char note[160]; /* why it is fenced */
} cw_key_row;

typedef enum { CW_ROW_TOKEN, CW_ROW_KEY, CW_ROW_TERM, CW_ROW_EPOCH, CW_ROW_SERIAL } cw_row_kind;

/* One thing to save: replaces what was saved under the same id, key or kind. */
typedef struct {
    cw_row_kind kind;
    cw_token_row token; /* ROW_TOKEN */
    cw_key_row key;     /* ROW_KEY */
    uint64_t term;      /* ROW_TERM: the term in use; ROW_EPOCH: of this epoch */
    uint64_t number;    /* ROW_EPOCH */
    uint64_t serial;    /* ROW_SERIAL: no ticket with a serial at or above it was ever made */
    cw_frame epoch;     /* ROW_EPOCH: Signed(EpochBody); borrowed until the rows are cleared */
} cw_row;

/* Everything a coordinator left behind; all zero for a new cluster. */
typedef struct {
    const cw_token_row *tokens;
    size_t n_tokens;
    const cw_key_row *keys;
    size_t n_keys;
    uint64_t term, serial;
    const uint8_t *epoch; /* last Signed(EpochBody); its signature was checked by the shell */
    size_t epoch_bytes;
} cw_coordinator_state;

/* ---- life
 * --------------------------------------------------------------------------------------------------- */

/*
 * Raises the term above the saved one (a row to save). FORMAT when the saved state contradicts itself or the
 * model: the sentence names what; an epoch of another model digest is left aside, its number kept.
 */
CW_MUST_USE cw_status cw_coordinator_new(const cw_coordinator_config *config,
                                         const cw_coordinator_state *state, int64_t now_us,
                                         cw_coordinator **out, cw_err *err);
void cw_coordinator_free(cw_coordinator **c);

void cw_coordinator_event(cw_coordinator *c, cw_event *ev, cw_outbox *out);
/* Bye to everybody, links closed. */
void cw_coordinator_stop(cw_coordinator *c, int64_t now_us, cw_outbox *out);

/* What must be saved before the outbox is carried out; borrowed until cleared. */
const cw_row *cw_coordinator_rows(const cw_coordinator *c, size_t *n);
void cw_coordinator_rows_clear(cw_coordinator *c);

/* ---- audits
 * ------------------------------------------------------------------------------------------------- */

/* Rows to be computed with the reference (cw_expert_audit), by the shell and not in this thread. */
typedef struct {
    uint64_t id, seed;
    uint32_t layer, expert, n_rows;
} cw_coordinator_audit;
/* The next that waits; ask after every event. false: none. */
CW_MUST_USE bool cw_coordinator_take_audit(cw_coordinator *c, cw_coordinator_audit *out);
/* hashes[n_rows], or NULL where they could not be had; took_us: audits take a tenth of that thread's time.
 * Whoever gave other rows is fenced: rows to save, an epoch without it. */
void cw_coordinator_audited(cw_coordinator *c, uint64_t id, const uint64_t *hashes, int64_t took_us,
                            int64_t now_us, int64_t wall_ms, cw_outbox *out);

/* ---- what the operator asks for
 * ----------------------------------------------------------------------------- */

/* A new token; `t` has everything but id, uses and revoked. INVALID (role, lifetime), NO_MEMORY. */
CW_MUST_USE cw_status cw_coordinator_token_add(cw_coordinator *c, const cw_token_row *t, uint32_t *id,
                                               cw_err *err);
/* The token and every key it admitted; their links are closed in words and workers hear of revoked edges.
 * NOT_FOUND. */
CW_MUST_USE cw_status cw_coordinator_token_revoke(cw_coordinator *c, uint32_t id, int64_t now_us,
                                                  int64_t wall_ms, cw_outbox *out, uint32_t *n_keys,
                                                  cw_err *err);
CW_MUST_USE cw_status cw_coordinator_key_revoke(cw_coordinator *c, const cw_key *key, int64_t now_us,
                                                int64_t wall_ms, cw_outbox *out, cw_err *err);
/*
 * Whom the operator means: a key in hex, or a name. `workers`: workers only. NOT_FOUND, or INVALID where a
 * name is that of several (the sentence lists keys).
 */
CW_MUST_USE cw_status cw_coordinator_find(const cw_coordinator *c, const char *who, bool workers, cw_key *key,
                                          cw_err *err);
/*
 * on: nothing is placed on this worker any more and what it holds moves elsewhere, make before break; off: it
 * takes part again. Both survive restarts. LIMIT, naming the missing bytes, when the others have no room for
 * its experts; nothing has changed then.
 */
CW_MUST_USE cw_status cw_coordinator_drain(cw_coordinator *c, const cw_key *key, bool on, int64_t now_us,
                                           int64_t wall_ms, cw_outbox *out, cw_err *err);
/* Lets a fenced worker in again. STATE: it is not fenced. */
CW_MUST_USE cw_status cw_coordinator_unfence(cw_coordinator *c, const cw_key *key, cw_err *err);
/* Whether this key may use the store now: an admitted, not revoked worker. */
bool cw_coordinator_is_worker(const cw_coordinator *c, const cw_key *key);

/* ---- what is going on
 * --------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t term, number;                               /* of the newest epoch; number 0: none yet */
    uint32_t n_workers, n_live_workers, n_ready_workers; /* known; connected; hold all they were asked to */
    uint32_t n_fenced, n_leaving;  /* kept out for wrong rows; drained, set aside or told to stop */
    uint32_t n_edges;              /* connected */
    uint32_t n_experts, n_covered; /* of the whole model; with at least one home in the newest epoch */
    uint32_t min_homes;            /* of the expert with fewest homes in it */
    uint64_t missing_bytes;        /* of experts for which no memory was found */
    bool settling;
    char trouble[CW_TEXT_MAX]; /* a sentence, or "" */
} cw_coordinator_status;

typedef struct {
    cw_key key;
    uint32_t id;
    char name[CW_NAME_MAX + 1];
    char address[CW_ADDRESS_MAX];
    char isa[33];
    bool live, ready, local_model;
    bool in_epoch; /* the newest one names it */
    bool drained, leaving, fenced;
    bool aside; /* it answers no audits: it is given nothing to do for a while */
    uint32_t n_needed; /* of one that is to go: experts that others have not taken over yet */
    uint64_t needed_bytes;
    char note[160]; /* why it is fenced */
    uint64_t memory_bytes, memory_used;
    uint32_t threads, n_wanted, n_ready; /* experts */
    float speed;
    uint64_t calls, rows, bytes_in, bytes_out;
    uint64_t n_audits; /* since the coordinator started */
    char trouble[CW_TEXT_MAX + 1];
} cw_coordinator_worker;

typedef struct {
    cw_key key;
    char name[CW_NAME_MAX + 1];
    uint32_t token_id;
    uint64_t tokens, calls, retries, hedges, hedge_wins, mismatches, fallback_tokens, busy;
    uint32_t reports, unfounded; /* mismatches it reported; after which nobody was found wrong */
    char mode[17];
} cw_coordinator_edge;

void cw_coordinator_get_status(const cw_coordinator *c, cw_coordinator_status *out);
/* i-th known worker that is not revoked, live edge, token, key; false at the end. */
bool cw_coordinator_get_worker(const cw_coordinator *c, size_t i, cw_coordinator_worker *out);
bool cw_coordinator_get_edge(const cw_coordinator *c, size_t i, cw_coordinator_edge *out);
bool cw_coordinator_get_token(const cw_coordinator *c, size_t i, cw_token_row *out);
bool cw_coordinator_get_key(const cw_coordinator *c, size_t i, cw_key_row *out);
/* Newest Signed(EpochBody), borrowed until the next event; len 0: none. */
cw_frame cw_coordinator_get_epoch(const cw_coordinator *c);
