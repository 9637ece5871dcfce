/* The inside of the edge machine, shared by its files: edge.c (life, events, facts), coordinator.c (the
 * control link), homes.c (epochs: who holds what), links.c (connections to workers), place.c (dividing a
 * layer's entries), calls.c (the table of calls). */
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
    TICKET_MARGIN_MS = 5 * 60 * 1000, /* a link is renewed that long before its ticket ends */
};

typedef struct home home;

/*
 * Some entries of one request on their way: waiting for a home (home NULL), queued at one (sent_us 0), or
 * sent under an id. `index` are the request's entry numbers: ascending while it waits, in the call's order
 * once sent.
 */
typedef struct piece {
    struct piece *prev, *next; /* in the list it is in */
    cw_edge_request *r;
    home *h;
    uint64_t id;
    uint32_t n, n_rows, attempt;
    uint64_t cost; /* bytes of weights and rows the worker reads */
    size_t bytes;  /* of call and reply */
    int64_t since_us, not_before_us, sent_us, give_up_us;
    uint32_t index[];
} piece;

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
    bool in_epoch, stopping;
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
    /* For predictions; both follow what is faster at once and what is slower slowly, since a busy machine
       only ever adds. 0: not measured. */
    double delay_us;    /* there and back, without queue and service */
    double us_per_byte; /* service time over cost */
    double doubt;       /* 1: predictions are taken at their word; falls while it gets nothing, see place.c */
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

    bool has_cluster;
    cw_key sign_key;
    uint8_t cluster_id[CW_CLUSTER_BYTES];
    uint8_t *ticket, *epoch;
    size_t ticket_len, epoch_len;
    int64_t ticket_end_ms;
    uint64_t epoch_term, epoch_number;
    char model_name[257];
    bool refused;

    home **homes;
    size_t n_homes, cap_homes;
    int64_t wanted_us; /* last time somebody asked; INT64_MIN: never */
    bool wanted;

    piece_list homeless;
    cw_edge_request *requests; /* open ones */

    /* Working memory of place.c: one of each per expert or per home. */
    uint32_t *x_rows;  /* [n_experts] */
    uint32_t *x_home;  /* [n_experts] */
    uint64_t *x_order; /* [n_experts] */
    double *finish;    /* [cap_homes] */

    cw_edge_act *acts;
    size_t act_head, n_acts, cap_acts;
    bool stopped;
    uint64_t calls, resent, late;
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

/* coordinator.c */
void control_event(cw_edge *e, cw_event *ev, cw_outbox *out);
void control_tick(cw_edge *e, cw_outbox *out);
void control_bye(cw_edge *e, cw_outbox *out);
void control_renew(cw_edge *e, cw_outbox *out); /* a worker refused the ticket: ask for a new one now */
bool control_take_ticket(cw_edge *e, const void *data, size_t len);

/* homes.c */
bool homes_take_epoch(cw_edge *e, const void *data, size_t len); /* true: it is newer and now ours */
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

/* links.c: a measurement into a prediction. */
void link_learn(double *value, double sample);

/* place.c */
/* Divides the entries of p (which is consumed) over homes that are up; what has none waits. */
void place(cw_edge *e, piece *p, cw_outbox *out);

/* calls.c */
void list_push(piece_list *l, piece *p);
void list_remove(piece_list *l, piece *p);
piece *piece_new(cw_edge_request *r, uint32_t n);
void calls_queue(cw_edge *e, home *h, piece *p); /* p has home-less fields filled in by place.c */
void calls_send(cw_edge *e, home *h, cw_outbox *out);
void calls_reply(cw_edge *e, home *h, cw_event *ev, cw_outbox *out);
void calls_failed(cw_edge *e, home *h, cw_event *ev, cw_outbox *out);
void calls_lost(cw_edge *e, home *h, cw_outbox *out); /* its link is gone: everything there goes elsewhere */
void calls_drop_request(cw_edge *e, cw_edge_request *r, cw_outbox *out);
void calls_tick(cw_edge *e, cw_outbox *out);
void calls_homeless(cw_edge *e, cw_outbox *out); /* a home came up or sets changed: try again */
