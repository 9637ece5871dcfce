/* The kernel from the inside: sim.c (clock, processes), network.c (connections). */
#pragma once
#include "sim.h"

enum { TRACE_LINES = 200, TRACE_WIDTH = 200, MAX_LISTEN = 2 };

typedef struct conn conn;

/* What may happen. The order of events of the same time is the order they were made in. */
typedef enum { T_TICK, T_DELIVER, T_LINK_UP, T_LINK_DOWN, T_AFTER, T_AT, T_RESUME, T_DEADLINE } what;

typedef struct {
    int64_t at;
    uint64_t order;
    what kind;
    int proc;
    uint32_t gen;
    conn *c;
    int dir; /* T_DELIVER: 0 to the server, 1 to the client; T_LINK_*: the end, 0 client, 1 server */
    void (*fn)(void *ctx, void *arg, cw_outbox *out);
    void (*at_fn)(void *ctx, void *arg);
    void *ctx, *arg;
    const char *text;
} item;

typedef struct conn_end {
    int proc; /* -1: nobody */
    uint32_t gen;
    cw_link link;
    cw_link_gate gate;
    bool told_up, down;    /* down: nothing reaches this end any more */
    struct conn_end *next; /* of this process, those that are not down */
    conn *of;
} conn_end;

typedef struct flight {
    struct flight *next;
    cw_msg *msg;
} flight;

typedef struct {
    flight *head, *tail;
    uint32_t n;
    int64_t last_us; /* arrival of the newest */
} pipe_state;

struct conn {
    conn *next, *prev;
    uint32_t id, refs;  /* items in the heap and in inboxes that point here */
    conn_end end[2];    /* client, server */
    pipe_state pipe[2]; /* to the server, to the client */
    cw_port port;
    bool dead;
};

typedef struct {
    sim_proc def;
    void *ctx;
    bool up, paused, die;
    uint32_t gen;
    int64_t paused_since, paused_until, tick_us, wall_offset_ms;
    int64_t slept_us;                       /* its clock is behind by that */
    bool clock_stops;                       /* in this pause */
    int64_t dark_until[2], unplugged_until; /* dark: out, in */
    char address[MAX_LISTEN][CW_ADDRESS_MAX];
    cw_port port[MAX_LISTEN];
    int n_listen;
    cw_link next_link;
    cw_outbox out;
    item *inbox; /* what waits while it is paused */
    size_t n_inbox, cap_inbox;
    int64_t slow_until, slow_us, slow_per_kb, narrow_until;
    uint32_t narrow;
    conn_end *ends;
} process;

struct sim {
    uint64_t random, seed;
    bool trace_on, calm;
    int64_t now, least_latency, most_latency;
    item *heap;
    size_t n_heap, cap_heap;
    uint64_t order, events, messages, lost;
    process procs[SIM_MAX_PROCS];
    int n_procs;
    int64_t *hole[SIM_MAX_PROCS]; /* [from][to] until; rows are made when they are needed */
    conn *conns;
    uint32_t n_conns;
    char failure[400];
    char lines[TRACE_LINES][TRACE_WIDTH];
    uint64_t n_lines;
    sim_watcher watch;
};

void sim_push(sim *s, item it);
void sim_do_outbox(sim *s, int proc);
/* Gives one event to a process; the message is freed. */
void sim_give(sim *s, int proc, cw_event *ev);

/* network.c */
void wire_open(sim *s, int proc, const cw_action *a);
void wire_send(sim *s, int proc, cw_link link, cw_msg *msg);
void wire_admit(sim *s, int proc, cw_link link);
void wire_close(sim *s, int proc, cw_link link);
void wire_blame(sim *s, int proc, cw_link link, const char *why);
void wire_deliver(sim *s, conn *c, int dir);
void wire_link_up(sim *s, conn *c, int end);
void wire_link_down(sim *s, conn *c, int end, const char *text);
void wire_deadline(sim *s, conn *c);
void wire_cut(sim *s, conn *c, bool at_once, const char *text);
void wire_kill(sim *s, int proc);
void wire_cut_all(sim *s, int proc);
void wire_heartbeats_lost(sim *s, int from, int to);
void wire_free(sim *s);
/* An item that pointed to the connection is done with. */
void wire_unref(sim *s, conn *c);
