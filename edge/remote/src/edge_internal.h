/* The inside of the edge machine, shared by its files: edge.c (life, events), facts.c (what is told of it),
 * coordinator.c (the control link), homes.c (epochs: who holds what), links.c (connections to workers),
 * place.c (dividing a layer's entries) and cut.c (into calls), frames.c (a call's bytes), calls.c (the table
 * of calls), rows.c (rows to their places, compared where they come twice), dispute.c (who is right when they
 * differ), late.c (workers that are late or hang: hedges, suspicion), reach.c with
 * tide.c (the mainland as a whole). */
#pragma once
#include "cw/backoff.h"
#include "cw/edge_machine.h"

enum {
    CALL_ENTRIES = 1024,    /* of one call at most; workers accept more */
    FLIGHT_CALLS = 64,      /* sent and unanswered on one link: below the net room's queue of messages */
    FLIGHT_BYTES = 8 << 20, /* with their replies */
    TRANSPORT_US = 1000000, /* on top of a call's budget before we stop believing in an answer */
    SUSPECT_US = 5000000,   /* a worker that let a call run out is asked last for so long */
    REFUSED_RETRY_US = 10000000,
    TICKET_MARGIN_MS = 5 * 60 * 1000, /* at most; a quarter of a short ticket's life */
    PROBE_US = 100000,                /* between pings to a worker that is late */
    PIECE_US = 2000,                  /* of a worker's time for one message of a prefill */
    DOUBT_US = 60000000,              /* all messages to a worker are compared for so long after a mismatch */
    BARRED_US = 600000000,            /* a worker whose rows were proven wrong is not asked for so long */
    GONE_US = 600000000,              /* a worker that is in no epoch is forgotten after that */
    GHOSTS = 32,                      /* replies of one worker that are compared though nobody waits */
    REPORTS = 16,                     /* mismatches kept for a coordinator that is away */
    LATE_CLASSES = 8,                 /* of work sizes, see late.c */
    LATE_BUCKETS = 48,
};

typedef struct home home;
typedef struct dispute dispute;
typedef struct mark_block mark_block;

/* What a piece is for. WORK: its rows are wanted, and it waits where nobody has them. The others are dropped
 * where nobody can take them: HEDGE, the same entries once more because a worker is late; TWIN, once more to
 * compare; ASK, one entry whose rows differ. */
typedef enum { PIECE_WORK, PIECE_HEDGE, PIECE_TWIN, PIECE_ASK } piece_kind;

/*
 * Some entries of one request on their way: waiting for a home (home NULL), queued at one (sent_us 0), or
 * sent under an id. `index` are the request's entry numbers: ascending while it waits, in the call's order
 * once sent.
 */
typedef struct piece {
    struct piece *prev, *next; /* in the list it is in */
    cw_edge_request *r;
    home *h;
    home *not_on; /* who may not have it, or NULL */
    uint64_t id;
    piece_kind kind;
    uint32_t n, n_rows, attempt;
    uint64_t cost;      /* bytes of weights and rows the worker reads */
    size_t bytes;       /* of call and reply */
    size_t ahead_bytes; /* on the link when it was sent, its own included */
    int64_t since_us, not_before_us, sent_us, give_up_us;
    bool busy;    /* waits because a worker was busy */
    bool numeric; /* not_on gave a row that was not finite */
    bool overdue; /* noted as late */
    bool hedged;
    uint32_t index[];
} piece;

/* One entry of a request. */
typedef struct cw_edge_mark {
    uint32_t by;     /* who gave the row, an index into homes */
    uint8_t pending; /* pieces that cover it */
    uint8_t flags;
} mark;
enum {
    ROW_HAVE = 1,    /* a row is in its place */
    ROW_TWO = 2,     /* it takes two equal ones */
    ROW_DONE = 4,    /* counted in n_left */
    ROW_DISPUTE = 8, /* dispute.c decides */
};

/* A reply that is compared when it comes, though its request has ended. */
typedef struct ghost {
    struct ghost *next;
    uint64_t id;
    int64_t until_us;
    uint32_t layer, n;
    struct {
        uint64_t hash; /* of the row that was used */
        uint32_t expert, by;
    } row[];
} ghost;

typedef struct {
    piece *head, *tail;
} piece_list;

typedef enum { HOME_CLOSED, HOME_OPENING, HOME_SAID, HOME_UP, HOME_WAITING } home_state;

/* One worker, known by its key. */
struct home {
    uint32_t id;
    char name[CW_NAME_MAX + 1], address[CW_ADDRESS_MAX];
    cw_key key;
    float speed;
    uint32_t index; /* in homes */
    bool in_epoch, was_in_epoch, stopping;
    int64_t gone_us;     /* since when it is in no epoch; INT64_MAX: it is */
    bool ticket_refused; /* waits, and a ticket other than the one it was shown ends the wait */
    uint8_t *sets;       /* [n_layers, set_bytes] bits */

    home_state state;
    cw_link link;
    int64_t retry_us, opened_us, heard_us, ping_us, ticket_end_ms, suspect_until_us;
    int64_t heartbeat_us;
    cw_backoff backoff;
    char why[160];

    piece_list queued, sent;
    uint32_t n_sent;
    uint64_t sent_bytes, load; /* load: cost of everything queued and sent */

    uint64_t calls, rows, bytes_out, bytes_in;
    uint32_t rtt_us, service_us;
    uint64_t service_sum_us;
    /* For predictions; all follow what is faster at once and what is slower slowly, since a busy machine
       only ever adds. 0: not measured. */
    double delay_us;     /* there and back, without queue and service */
    double us_per_byte;  /* service time over cost, of small calls */
    double us_per_entry; /* service time of a row, weights not counted, of large calls */
    double bytes_per_s;  /* of the link */
    double carry_us;     /* of a byte on it, in the placement under way */
    bool same_host;      /* there is no link: what calls wait for is a processor */
    double doubt; /* 1: predictions are taken at their word; falls while it gets nothing, see place.c */

    /* Lateness, see late.c. */
    uint16_t service[LATE_CLASSES][LATE_BUCKETS], n_service[LATE_CLASSES];
    int64_t progress_us;           /* its last answer to a call */
    int64_t queue_us, queue_at_us; /* how long calls waited there lately, and when that was learnt */
    int64_t silent_since_us;       /* 0, or: late at that time, and not a word since */
    int64_t suspect_since_us;      /* 0, or: late thrice in a row */
    int64_t back_us;               /* when it spoke again last */
    int64_t probe_us, busy_until_us;
    uint32_t late_run;
    bool hung; /* silent for too long; what was queued has gone elsewhere */

    /* Wrong rows. */
    int64_t doubt_until_us, barred_until_us;
    uint32_t n_disputes;
    ghost *ghosts;
    uint32_t n_ghosts;
};

typedef enum { CO_WAITING, CO_OPENING, CO_SAID, CO_ADMITTED, CO_OFF } co_state;

typedef struct {
    co_state state;
    cw_link link;
    bool enrolled, enrolling;
    int64_t retry_us, heard_us, ping_us, heartbeat_us, renew_us;
    cw_backoff backoff;
    char why[CW_TEXT_MAX]; /* not admitted: the last reason */
} control;

struct cw_edge {
    cw_edge_config c;
    cw_edge_layer *layers;
    uint32_t set_bytes; /* of one layer's set */
    control co;
    uint64_t next_link, next_call;
    int64_t now_us, wall_ms, wall_offset_ms;
    int64_t event_us; /* the last event; 0: none yet */

    bool has_cluster;
    cw_key sign_key;
    uint8_t cluster_id[CW_CLUSTER_BYTES];
    uint8_t *ticket, *epoch;
    size_t ticket_len, epoch_len;
    int64_t ticket_end_ms, ticket_margin_ms; /* margin: links are made anew so long before the end */
    int64_t link_renewed_us;
    uint64_t epoch_term, epoch_number;
    char model_name[257];
    bool refused;

    home **homes;
    size_t n_homes, cap_homes;
    int64_t wanted_us; /* last time somebody asked; INT64_MIN: never */
    bool wanted;
    bool asked; /* a request was made while it is wanted */
    cw_tide tide;
    int64_t heard_us; /* the last word of any worker, also of one whose link has ended since */

    piece_list homeless;
    cw_edge_request *requests; /* open ones */

    /* Working memory of place.c: one of each per expert or per home. */
    uint32_t *x_rows;  /* [n_experts] */
    uint32_t *x_home;  /* [n_experts] */
    uint64_t *x_order; /* [n_experts] */
    uint32_t *x_group; /* [n_experts] */
    double *finish;    /* [cap_homes] */
    uint32_t *share;   /* [cap_homes] entries */

    cw_edge_act *acts;
    size_t act_head, n_acts, cap_acts;
    bool stopped;
    cw_edge_counts n;
    cw_edge_story story;
    uint64_t random;
    double tokens;         /* hedges and retries that may be sent now */
    int64_t busy_retry_us; /* when the last retry of a busy call left */
    dispute *disputes;
    mark_block *marks;
    struct {
        uint32_t a, b, third, layer, expert; /* ids of the epoch */
    } reports[REPORTS];
    uint32_t n_reports;
};

/* edge.c */
cw_edge_act *edge_act(cw_edge *e, cw_edge_act_kind kind);
void edge_say(cw_edge *e, const char *fmt, ...) CW_PRINTF(2, 3);
cw_link edge_new_link(cw_edge *e);
int64_t edge_cluster_ms(const cw_edge *e);
void edge_end_request(cw_edge *e, cw_edge_request *r, cw_status status, const char *text, cw_outbox *out);
/* Fills `hello` with what every Hello of this edge says. */
void edge_hello(cw_edge *e, Cw__Pb__Hello *hello, Cw__Pb__Purpose purpose);
/* Copies bytes over an owned buffer; false: out of memory, the old stays. */
bool edge_keep(uint8_t **dst, size_t *dst_len, const void *data, size_t len);

uint64_t edge_random(cw_edge *e);

/* coordinator.c */
void control_report(cw_edge *e, cw_outbox *out); /* mismatches that wait to be told */
void control_event(cw_edge *e, cw_event *ev, cw_outbox *out);
void control_tick(cw_edge *e, cw_outbox *out);
void control_bye(cw_edge *e, cw_outbox *out);
void control_renew(cw_edge *e, cw_outbox *out); /* a worker refused the ticket: ask for a new one now */
bool control_take_ticket(cw_edge *e, const void *data, size_t len);

/* reach.c: the tide, from what the links are; and what its changes mean for requests */
void reach_look(cw_edge *e, cw_outbox *out);
void reach_lost(cw_edge *e, cw_outbox *out); /* a request waited for an expert in vain */

/* homes.c */
bool homes_take_epoch(cw_edge *e, const void *data, size_t len); /* true: it is newer and now ours */
void homes_tick(cw_edge *e);                                     /* who has gone for good */
void homes_forget(cw_edge *e);                                   /* another cluster */
bool home_holds(const cw_edge *e, const home *h, uint32_t layer, uint32_t expert);
void home_lacks(cw_edge *e, home *h, uint32_t layer, uint32_t expert);
void homes_prune(cw_edge *e, cw_outbox *out);
uint32_t homes_covered(const cw_edge *e, uint32_t *n_all, uint32_t *layer,
                       uint32_t *expert); /* and the first without */

/* links.c */
void links_event(cw_edge *e, cw_event *ev, cw_outbox *out);
void links_tick(cw_edge *e, cw_outbox *out);
void links_close(cw_edge *e, home *h, const char *why, int64_t retry_us,
                 cw_outbox *out); /* its calls go elsewhere */
void links_bye(cw_edge *e, cw_outbox *out);
void links_new_ticket(cw_edge *e); /* who refused the old one is asked again soon */

/* links.c */
void links_ping(cw_edge *e, home *h, cw_outbox *out);
void link_learn(double *value, double sample); /* a measurement into a prediction */
void link_learn_delay(double *value, double sample);

/* place.c */
/* Whether h can be asked for that at all: up, and not barred. */
bool home_can(const cw_edge *e, const home *h, uint32_t layer, uint32_t expert);
/* Divides the entries of p (which is consumed) over homes that are up; what has none waits or is dropped, by
 * its kind. */
uint32_t place(cw_edge *e, piece *p, cw_outbox *out); /* number of calls queued */
double home_pace(const home *h);                      /* microseconds for a byte of cost */

/* cut.c */
size_t row_in_bytes(const cw_edge *e, uint32_t layer);
size_t row_out_bytes(const cw_edge *e, uint32_t layer);
/* Queues the entries of p that x_home gives to home `i` there, as calls. Those that are to be doubled are
 * added to `twins`. false: out of memory. */
bool cut(cw_edge *e, const piece *p, uint32_t i, piece_list *twins, uint32_t *n_cut);

/* frames.c */
typedef struct {
    cw_frame f[3];
    uint8_t *mem[3];
    uint32_t n;
} call_frames;
bool frames_make(cw_edge *e, piece *p, call_frames *cf); /* puts p->index into the call's order */
void frames_unsort(piece *p);                            /* and back */

/* calls.c */
void list_push(piece_list *l, piece *p);
void list_remove(piece_list *l, piece *p);
piece *piece_new(cw_edge_request *r, uint32_t n);
void piece_cover(piece *p); /* once its index is filled */
void piece_free(piece *p);
void calls_queue(cw_edge *e, home *h, piece *p); /* p has home-less fields filled in by cut.c */
void calls_send(cw_edge *e, home *h, cw_outbox *out);
void calls_reply(cw_edge *e, home *h, cw_event *ev, cw_outbox *out);
void calls_failed(cw_edge *e, home *h, cw_event *ev, cw_outbox *out);
void calls_lost(cw_edge *e, home *h, cw_outbox *out); /* its link is gone: everything there goes elsewhere */
void calls_move_queued(cw_edge *e, home *h, cw_outbox *out); /* what was not sent yet is placed anew */
void calls_drop_request(cw_edge *e, cw_edge_request *r, bool compare, cw_outbox *out);
void calls_call_off(home *h, const piece *p, cw_outbox *out);
void calls_take_out(home *h, piece *p); /* of its home's lists and counts; it is the caller's then */
/* p came back without an answer: what is still wanted of it is sent again, not before that time. */
void calls_again(cw_edge *e, piece *p, int64_t not_before_us, cw_outbox *out);
void calls_finish(cw_edge *e, cw_edge_request *r, cw_outbox *out); /* ends r if nothing is left */
void calls_tick(cw_edge *e, cw_outbox *out);
void calls_homeless(cw_edge *e, cw_outbox *out); /* a home came up or sets changed: try again */
void calls_why_homeless(const cw_edge *e, const piece *p, char *text, size_t cap);

/* rows.c */
bool rows_begin(cw_edge *e, cw_edge_request *r);
void rows_end(cw_edge *e, cw_edge_request *r);
void rows_free(cw_edge *e);
size_t rows_bytes(const cw_edge *e, const cw_edge_request *r); /* of one row with its exponent */
void rows_get(const cw_edge *e, const cw_edge_request *r, uint32_t i, uint8_t *row);
void rows_put(const cw_edge *e, cw_edge_request *r, uint32_t i, const uint8_t *row);
void rows_done(cw_edge_request *r, uint32_t i);
/* A reply's rows; true: some were the first of a hedge. */
bool rows_take(cw_edge *e, home *h, const piece *p, const cw_reply_view *v);
/* What h still owes of p is compared when it comes. */
void ghost_keep(cw_edge *e, home *h, const piece *p);
bool ghost_reply(cw_edge *e, home *h, const cw_msg *msg, cw_outbox *out); /* true: it was one */
void ghosts_tick(cw_edge *e, home *h);
void ghosts_free(home *h);

/* dispute.c */
bool home_barred(const cw_edge *e, const home *h);
bool home_in_doubt(const cw_edge *e, const home *h);
void disputes_say(cw_edge *e, cw_edge_request *r, uint32_t i, home *h, const uint8_t *row);
void disputes_run(cw_edge *e, cw_outbox *out);
void disputes_drop(cw_edge *e, const cw_edge_request *r);
void disputes_free(cw_edge *e);
/* Both are in doubt, and the coordinator is told. */
void disputes_report(cw_edge *e, home *a, home *b, const home *third, uint32_t layer, uint32_t expert);

/* late.c */
void late_sent(cw_edge *e, home *h, piece *p, cw_outbox *out);
void late_reply(cw_edge *e, home *h, const piece *p, const cw_reply_view *v);
void late_loser(cw_edge *e, home *h, const piece *p); /* cancelled: it took at least that long */
void late_heard(cw_edge *e, home *h);
void late_pong(cw_edge *e, home *h, int64_t rtt_us, int64_t asked_us);
void late_tick(cw_edge *e, home *h, cw_outbox *out);
void late_forget(home *h); /* a new link */
bool home_is_late(const home *h);
int64_t late_after_us(const cw_edge *e, const home *h, uint64_t cost); /* service time of a hedge */
int64_t late_queue_us(const cw_edge *e, const home *h);
bool late_take_token(cw_edge *e);
