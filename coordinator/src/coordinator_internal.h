/*
 * The coordinator's machine from the inside: registry (registry.c), admission (admission.c), placement over
 * time (planner.c, mover.c), epochs (epochs.c), events (coordinator.c). One thread; see cw/coordinator.h.
 */
#pragma once
#include "cw/coordinator.h"
#include "cw/placement.h"
#include "cw/ticket.h"

/* What is known of a worker beyond its key. All sets have the model's shape. */
typedef struct {
    uint8_t instance[CW_INSTANCE_BYTES];
    char address[CW_ADDRESS_MAX], isa[33];
    uint64_t memory_bytes, memory_used;
    uint32_t threads;
    float speed;
    bool local_model;
    bool gives_chunks;        /* other workers may fetch chunks there */
    bool heard;               /* Holdings came on this link: `held` is the truth */
    bool balancing;           /* the newest placement was for balance: nothing was missing before it */
    bool planned;             /* the placement counts on it */
    bool replaced;            /* it is away, and what only it has was placed elsewhere */
    int64_t lost_us;          /* since when it is away, where it has no link */
    cw_expert_bits held;      /* READY there, as it said; without what it was told to drop */
    cw_expert_bits wanted;    /* placement: what it shall hold */
    cw_expert_bits asked;     /* assigned, not READY yet */
    cw_expert_bits first;     /* of wanted, not READY: it is to make the first home of these */
    cw_expert_bits leaving;   /* to be dropped: already missing in the next epoch */
    cw_expert_bits dropping;  /* Drop sent, not confirmed: still in its memory */
    cw_expert_bits published; /* in the newest epoch; is_published says whether it is there at all */
    bool is_published;
    char published_address[CW_ADDRESS_MAX];
    uint64_t seq, drop_seq; /* last sent; last Drop */
    uint64_t assign_seq;
    uint64_t planned_memory; /* memory_bytes when the placement last ran */
    int64_t leave_us, retry_us;
    char trouble[CW_TEXT_MAX + 1];
    uint64_t calls, rows, bytes_in, bytes_out;
    /* depart.c */
    bool leave;        /* it asked to go, on this link */
    bool hidden;       /* it is about to be let go: no epoch names it any more */
    bool released;     /* told so */
    int64_t hidden_us; /* when the epoch without it was published; 0: not yet */
    uint32_t n_needed; /* experts here that others are to take over and have not yet */
    uint64_t needed_bytes;
    /* audit.c */
    int64_t audited_us; /* asked last */
    uint64_t n_audits;  /* answers that were compared */
    uint32_t n_dodged;  /* rounds since then to which it gave nothing to compare */
    int64_t dodging_us; /* the first of these */
    bool dodging_told;  /* the log was */
    bool aside;         /* too many of them: it gets nothing to do until it answers one, or */
    int64_t aside_until_us;
    /* limits.c */
    int64_t holdings_at;      /* of the bucket for Holdings */
    cw_msg *late;             /* the newest Holdings that came too fast; its turn comes with a tick */
    uint32_t n_losses;        /* of published experts, without being told to; the last at loss_us */
    int64_t loss_us, calm_us; /* what comes back counts after calm_us */
} worker_state;

typedef struct {
    uint64_t tokens, calls, retries, hedges, hedge_wins, mismatches, fallback_tokens, busy;
    char mode[17];
    uint32_t reports, unfounded; /* mismatches it reported; of these, after which nobody was found wrong */
    int64_t report_at;
} edge_state;

/* Somebody who was admitted once. */
typedef struct {
    cw_key_row row;
    cw_link link;         /* 0: not connected */
    worker_state *worker; /* NULL for edges */
    edge_state edge;
    uint32_t proto;              /* of this link */
    int64_t hello_at, ticket_at; /* buckets */
} member;

typedef struct {
    cw_link link;
    cw_key key;
    member *who; /* NULL: not admitted yet */
    int64_t up_us, heard_us, pinged_us;
} link_state;

/* One round of an audit: the same rows asked of some workers. */
enum { AUDIT_ROUNDS = 8, AUDIT_WORKERS = 32, MISMATCH_REPORTS = 32 };
typedef enum {
    AUDIT_NONE,
    AUDIT_ASKED,
    AUDIT_WAITS /* for the shell */,
    AUDIT_COMPUTED /* by the shell, now */
} audit_state;
typedef struct {
    uint32_t worker, n; /* EpochWorker.id; hashes */
    bool came, wrong_shape;
    uint64_t hashes[CW_AUDIT_ROWS_MAX];
} audit_answer;
typedef struct {
    audit_state state;
    uint64_t id, seed;
    uint32_t layer, expert, n_rows, n;
    int64_t asked_us;
    audit_answer who[AUDIT_WORKERS];
} audit_round;
typedef struct {
    cw_key edge;
    uint32_t layer, expert, workers[3], rounds;
} mismatch_report;

/* Bytes that many messages share: every send of an epoch is one reference. */
typedef struct shared_bytes shared_bytes;
shared_bytes *shared_bytes_new(size_t len); /* NULL: out of memory; one reference */
uint8_t *shared_bytes_data(shared_bytes *s);
void shared_bytes_release(void *s);
cw_frame shared_bytes_frame(shared_bytes *s); /* takes a reference */

struct cw_coordinator {
    cw_coordinator_config cfg;
    char *model_name, *store_address;
    uint64_t *expert_bytes; /* [n_layers] */
    uint32_t n_model_experts;

    member **members; /* in the order of admission */
    size_t n_members, cap_members;
    cw_token_row *tokens;
    size_t n_tokens, cap_tokens;
    link_state *links; /* ascending by link id */
    size_t n_links, cap_links;

    cw_row *rows;
    size_t n_rows, cap_rows;
    bool failed; /* out of memory while queueing a row: the outbox is failed too, the shell stops */

    uint64_t term, number, epoch_term; /* epoch_term: of the newest epoch */
    shared_bytes *epoch;
    int64_t published_us;
    bool republish; /* the newest epoch is wrong or too old whatever the sets are */
    uint64_t serial, serial_saved;
    uint32_t next_worker_id;

    audit_round audits[AUDIT_ROUNDS];
    mismatch_report reports[MISMATCH_REPORTS]; /* the first is being looked into */
    size_t n_reports;
    uint64_t audit_id, report_round, random;
    int64_t audit_rest_us; /* no round in the background before */

    int64_t wall_ms;      /* of the last event */
    int64_t last_us;      /* time of the last event, to notice that this process slept */
    int64_t settle_until; /* 0: not settling */
    int64_t replan_us;    /* when placement runs next; INT64_MAX: no need */
    int64_t stepped_us;   /* when everybody was looked at last */
    int64_t balance_us;   /* when a better balance is looked for next */
    int64_t forget_us;    /* when members are looked through next */
    float *load;          /* [n_layers, n_experts] rows asked for, decaying; NULL: none yet */
    double load_rows;     /* their sum */
    int64_t load_us;      /* when it decayed last */
    uint32_t n_unplaced;
    uint64_t missing_bytes;
    char trouble[CW_TEXT_MAX];
};

static inline int64_t after_ms(int64_t now_us, uint32_t ms)
{
    return now_us + (int64_t)ms * 1000;
}
static inline bool is_live(const member *m)
{
    return m->link != 0;
}
/* Neither revoked nor fenced: what it holds may be used. */
static inline bool is_trusted(const member *m)
{
    return !m->row.revoked && !m->row.fenced;
}
/* Connected, and what it holds is known. */
static inline bool is_counted(const member *m)
{
    return m->worker && m->link && m->worker->heard && is_trusted(m);
}
/* A worker that shall hold nothing: the placement leaves it out, what it holds stays until others have it. */
static inline bool is_departing(const member *m)
{
    return m->worker && (m->row.drained || m->worker->leave || m->worker->aside);
}

/* ---- registry.c */
member *member_find(const cw_coordinator *c, const cw_key *key);
/* A new member; the worker's id is given here. NULL: out of memory. Not saved yet. */
member *member_add(cw_coordinator *c, const cw_key_row *row);
void member_free(cw_coordinator *c, member *m);
/* Out of the table, freed; it has no link. Not saved. */
void member_remove(cw_coordinator *c, member *m);
cw_token_row *token_find(const cw_coordinator *c, uint32_t id);
cw_token_row *token_find_hash(const cw_coordinator *c, const uint8_t hash[CW_TOKEN_HASH_BYTES]);
cw_token_row *token_append(cw_coordinator *c, const cw_token_row *t); /* NULL: out of memory */
uint32_t live_count(const cw_coordinator *c, Cw__Pb__Role role, uint32_t token_id /* 0: of any */);
link_state *link_find(const cw_coordinator *c, cw_link link);
link_state *link_add(cw_coordinator *c, cw_link link, const cw_key *key, int64_t now_us);
void link_remove(cw_coordinator *c, cw_link link);
void save_token(cw_coordinator *c, const cw_token_row *t);
void save_key(cw_coordinator *c, const cw_key_row *k);
void save_term(cw_coordinator *c);
void save_epoch(cw_coordinator *c);
void save_serial(cw_coordinator *c);
/* Revoked edge keys, 32 bytes each, as Welcome and Ticket carry them; heap, NULL when there are none. */
uint8_t *revoked_edges(const cw_coordinator *c, size_t *len);

/* ---- sources.c */
typedef struct {
    size_t n;
    Cw__Pb__ChunkSource sources[CW_MAX_SOURCES], *list[CW_MAX_SOURCES];
} source_list;
/* Workers that hold some of these experts and give chunks, with tickets for this one. Borrows from members.
 */
void sources_fill(cw_coordinator *c, const member *m, const cw_expert_bits *bits, source_list *l);
void sources_free(source_list *l);

/* ---- admission.c */
uint64_t serial_next(cw_coordinator *c); /* of a ticket */
/* First message of a link: Welcome, or Refusal and close. */
void admit(cw_coordinator *c, link_state *l, const cw_event *ev, cw_outbox *out);
void send_ticket(cw_coordinator *c, member *m, const cw_event *ev, cw_outbox *out);
/* The link is gone from the tables, with a word to the peer where there is something to say. */
void part_with(cw_coordinator *c, member *m, int64_t now_us, const char *text, cw_outbox *out);
/* What follows from a member's link being gone. `farewell`: it said Bye, so no grace is needed. */
void member_lost(cw_coordinator *c, member *m, int64_t now_us, bool farewell);

/* ---- count.c */
typedef enum {
    COUNT_ADMITTED,
    COUNT_REFUSED,
    COUNT_CUT,
    COUNT_TICKETS,
    COUNT_EPOCHS,
    COUNT_ASSIGNED,
    COUNT_ASSIGNED_BYTES,
    COUNT_DROPPED,
    COUNT_LOST,
    COUNT_RELEASED,
    COUNT_AUDITS,
    COUNT_AUDITS_WRONG,
    COUNT_AUDIT_DOUBTS,
    COUNT_REPORTS,
    COUNT_UNFOUNDED,
    COUNT_FENCED,
    COUNT_FORGOTTEN,
    N_COUNTS
} count_what;
void count_names(void); /* once before anything is counted; again does nothing */
void count_add(count_what what, uint64_t n);

/* ---- limits.c */
/* A bucket that gives one every gap_us and holds `burst`; `at` is its state, 0 at first. */
static inline bool bucket_take(int64_t *at, int64_t now_us, int64_t gap_us, int burst)
{
    int64_t next = *at > now_us ? *at : now_us;
    if (next - now_us > gap_us * (burst - 1)) return false;
    *at = next + gap_us;
    return true;
}
/* Whether this Holdings is to be looked at now; else it is kept, instead of an older one that was. */
bool holdings_in_time(worker_state *w, cw_event *ev);
/* The one that was kept, when its time has come; to be freed. */
cw_msg *holdings_late(member *m, int64_t now_us);
/* An epoch is made without experts that the last one named here and that this worker lost by itself. */
void holdings_lost(member *m, int64_t now_us);
/* Takes out of `sets` what is not believed yet of a worker that lost experts again and again. */
void holdings_believed(const member *m, int64_t now_us, cw_expert_bits *sets);
/* Edges that were not seen for long leave table and disk, where there are many. */
void members_forget(cw_coordinator *c, int64_t wall_ms);
/* Before an edge is added: false where the table is full of members that must be kept. */
bool members_make_room(cw_coordinator *c, int64_t wall_ms);

/* ---- audit.c */
void audit_step(cw_coordinator *c, int64_t now_us, cw_outbox *out);
void on_mismatch(cw_coordinator *c, member *m, const Cw__Pb__Mismatch *x, int64_t now_us);
void on_audit_result(cw_coordinator *c, member *m, const Cw__Pb__AuditResult *x);

/* ---- depart.c */
/* Workers that are to go: how far they are, and Released when nothing needs them. */
void depart_step(cw_coordinator *c, int64_t now_us, cw_outbox *out);
/* A worker that was told to stop waits until others have its experts. */
bool somebody_waits_to_leave(const cw_coordinator *c);
/* Whether the others have room for everything, and there are others. */
bool can_do_without(const cw_coordinator *c, const member *m);
void on_leave(cw_coordinator *c, member *m, const char *text, int64_t now_us);

/* ---- loads.c */
void loads_add(cw_coordinator *c, size_t n, Cw__Pb__LayerLoad *const *loads, int64_t now_us);
/* [n_layers, n_experts], NULL: too little was measured to tell experts apart. */
const float *loads_of(const cw_coordinator *c);

/* ---- planner.c */
void replan_at(cw_coordinator *c, int64_t at_us);
void replan_now(cw_coordinator *c, int64_t now_us);
/* Who is away for good, and the placement where it is due. */
void planner_step(cw_coordinator *c, int64_t now_us, cw_outbox *out);

/* ---- mover.c */
/* Whether a connected, trusted worker other than `not_here` holds it and keeps it; in_epoch: and edges know
 * that. */
bool has_home_elsewhere(const cw_coordinator *c, const member *not_here, uint32_t layer, uint32_t e,
                        bool in_epoch);
/* Placement where it is due, Assign and Drop where they are possible. */
void mover_step(cw_coordinator *c, int64_t now_us, cw_outbox *out);
/* The sets were checked with sets_check. */
void on_holdings(cw_coordinator *c, member *m, const Cw__Pb__Holdings *h, int64_t now_us);
/* NULL when the sets fit the model, else what is wrong. */
const char *sets_check(const cw_coordinator *c, size_t n, Cw__Pb__LayerSet *const *sets);
void sets_to_bits(size_t n, Cw__Pb__LayerSet *const *sets, cw_expert_bits *b);

/* An owned array of LayerSets for packing; n 0 and sets NULL when empty. false: out of memory. */
typedef struct {
    size_t n;
    Cw__Pb__LayerSet **sets;
    Cw__Pb__LayerSet *items;
    uint8_t *bytes;
} set_list;
bool set_list_init(set_list *s, const cw_expert_bits *b);
void set_list_free(set_list *s);

/* ---- epochs.c */
/* Publishes when the sets of READY experts differ from the newest epoch and it is time. */
void epochs_step(cw_coordinator *c, int64_t now_us, int64_t wall_ms, cw_outbox *out);
/* Somebody has seen a higher epoch than our newest: a new one follows, of a higher term. */
void epochs_saw(cw_coordinator *c, uint64_t term, uint64_t number, const char *who);
cw_status epochs_adopt(cw_coordinator *c, const cw_coordinator_state *state, int64_t now_us, cw_err *err);
