/*
 * The parts of the reactor. net.c runs the loop and carries out actions; link.c keeps the links; listener.c
 * reads ROUTERs and their monitors; dealer.c is the same for outgoing links; wire.c moves one message through
 * either; neighbour.c has the links on one host, which go without ZeroMQ, and stream.c moves their messages;
 * watch.c cuts peers that run ahead. Everything here belongs to the thread of cw_net_run, but for what is
 * marked atomic.
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <zmq.h>

#include "cw/gate.h"
#include "cw/net.h"
#include "local.h"
#include "map.h"
#include "parts.h"
#include "resolve.h"
#include "stream.h"
#include "zap.h"

enum {
    NET_MAX_LISTENERS = 4,
    NET_TICK_US = 100000,        /* CW_EV_TICK at least this often */
    NET_HANDSHAKE_MS = 3000,     /* libzmq's limit for the CURVE handshake */
    NET_CONNECT_MS = 2000,       /* and for the TCP connection */
    NET_FIRST_WORD_US = 2000000, /* after the handshake: one message; after that message: admission */
    NET_CLOSE_US = 1000000,      /* what was sent before a close has this long to leave */
    NET_STOP_US = 300000,        /* and the last words of a process that stops this long */
    NET_FORGET_US =
        10000000, /* a dead link's routing id is remembered: messages may still be on their way to us */
    NET_WATCH_US = 50000,
    NET_WATCH_HOT_US = 5000, /* while somebody is far ahead: a fast link brings 2 MB in that time */
    NET_FIXED_AHEAD = 4 << 20, /* besides its credit a peer may be so many bytes ahead */
    NET_FRAME_SLACK = 4096,  /* CURVE's and ZMTP's overhead on MAXMSGSIZE, rounded up */
    NET_WHY_MAX = 128,
    NET_RECV_BURST = 256,   /* messages taken from one socket before others have a turn */
    NET_LOCAL_US = 1000000, /* a same-host endpoint that has not let us in by then is left for the address */
    NET_LOCAL_AWAY_US = 30000000, /* and not tried again for so long */
    NET_LOCAL_AWAY = 16,          /* of so many keys */
    NET_LOCAL_UNPROVEN = 32,      /* same-host connections that have not proven a key, at once */
    NET_ASIDE_MS = 20,            /* how long the net's thread waits for a guest to come again */
};

/* What epoll's data says whose event it is. */
enum {
    NET_POLL_WAKE,
    NET_POLL_NEIGHBOURS,
    NET_POLL_LISTENERS, /* + its index */
    NET_POLL_LINKS = NET_POLL_LISTENERS + NET_MAX_LISTENERS, /* + its id */
};

typedef struct net_link net_link;
typedef struct net_listener net_listener;

/* One TCP connection, as a monitor reported it. */
typedef struct net_conn {
    int fd;
    net_link *link; /* NULL: nothing came yet (half open) */
    bool cut;       /* we shut it down; the monitor will say so */
    int64_t since_us;
    uint64_t acked;               /* received bytes that are accounted for, a lower bound; see watch.c */
    uint64_t base;                /* received bytes at the last sample taken with empty queues; 0: used up */
    uint32_t strikes;             /* looks in a row at which it was over its limit */
    int64_t spoke_us;             /* when the application last got a message */
    struct net_conn *prev, *next; /* half-open connections of a listener, oldest first */
} net_conn;

/* Bytes of raw frames that libzmq still holds for a link; outlives the link until the last frame is released.
 */
typedef struct {
    atomic_int refs;
    atomic_size_t bytes;
} net_backlog;

typedef enum {
    NET_CONNECTING, /* before the handshake is done, or the same-host proof of keys */
    NET_UP,
    NET_CLOSING, /* the machine is done with it; what comes is dropped; cut at the deadline */
    NET_DEAD, /* no event will come any more; an incoming one is kept for a while to recognise late messages
               */
} net_state;

struct net_link {
    cw_link id;
    net_state state;
    cw_link_gate gate;
    cw_key key;
    cw_port port;
    bool incoming;
    char address[CW_ADDRESS_MAX]; /* the peer's, as far as it is known */
    int64_t deadline_us;          /* INT64_MAX: none */
    bool gone;                    /* the connection ended; what was read before it still counts */
    bool failing;                 /* LINK_DOWN is due, with `why` */
    char why[NET_WHY_MAX];
    net_conn *conn; /* NULL: not connected (any more) */
    net_backlog *backlog;
    cw_net_link_stats stats;
    /* incoming through a ROUTER */
    net_listener *from;
    uint8_t rid[5];
    /* outgoing through a DEALER */
    void *sock, *mon;
    bool drained; /* read empty */
    /* same-host; outgoing ones may fall back to a DEALER */
    bool local;
    net_stream *stream;
    bool proving; /* incoming: the first message of the proof has come */
    bool watched_for_room; /* the poll tells when it can be written to again */
    int64_t heard_us, said_us, timed_us; /* the last is of the timer that looks at the others */
    net_proof proof;

    uint32_t ready; /* epoll's events that wait to be looked after */
    bool touched; /* there may be something to read that no poll reports: libzmq may have taken note of it
                     when a message was sent, or a reading was not finished */
};

struct net_listener {
    uint32_t index;
    cw_port port;
    void *sock, *mon;
    net_conn **by_fd;
    size_t n_by_fd;
    net_conn *oldest, *newest; /* half-open */
    uint32_t n_half_open;
    bool drained;        /* the ROUTER was read empty */
    bool ready, touched; /* as a link's */
};

struct cw_net {
    cw_net_config cfg;
    cw_net_role role;
    void *zmq;
    net_zap *zap;
    net_resolver *resolver;
    net_listener listeners[NET_MAX_LISTENERS];
    uint32_t n_listeners;
    struct {
        int fd; /* -1: none */
        cw_port port;
        char path[CW_ADDRESS_MAX];
        bool ready;
        int64_t shut_until_us; /* out of the poll, because connections cannot be accepted; 0: it is in */
    } neighbours; /* who listens for them, see neighbour.c */
    net_link **links;
    size_t n_links, cap_links;
    uint32_t n_live, n_unproven; /* the latter are among the former */
    net_map by_id, by_rid;
    cw_outbox out;
    int poll_fd;
    bool touched;         /* some socket is */
    bool more_to_send;    /* the action in hand is not the last message of its outbox */
    uint64_t n_delivered; /* events given to the machine */
    bool someone_gone;
    struct {
        cw_key key;
        int64_t until_us;
    } away[NET_LOCAL_AWAY]; /* same-host endpoints that did not work, a ring */
    size_t next_away;
    pthread_mutex_t turn; /* who holds it touches sockets */
    pthread_mutex_t aside_lock;
    pthread_cond_t aside;
    atomic_bool guest;        /* one is in, or may come again; becomes true only under the turn */
    atomic_bool guest_waits;  /* for the turn */
    atomic_uint guest_rounds; /* moves while it comes */
    int64_t now_us, tick_us, watch_us;
    bool failing_links;
    bool ended;   /* cw_net_run has returned: the sockets are closed */
    bool leaving; /* cw_net_stop was called: the machine hears no more */
    cw_err fatal; /* code CW_OK: none */
    int wake_fd;
    atomic_bool stop, woken, revoked, zap_dead;
    struct {
        atomic_uint_least64_t links_in, links_out, blamed, overrun, silent, handshakes_failed, bytes_in,
            bytes_out;
    } count;
};

#define NET_COUNT(net, field, n) atomic_fetch_add_explicit(&(net)->count.field, (n), memory_order_relaxed)

/* net.c: the process must not go on. */
void net_fatal(cw_net *n, cw_status code, const char *fmt, ...) CW_PRINTF(3, 4);
/* Hands one event to the machine and carries out what it answers. */
void net_deliver(cw_net *n, cw_event *ev);

/* link.c */
/* A link in the table, without sockets; NULL and fatal when memory is out. id 0: the next one for an incoming
 * link. */
CW_MUST_USE net_link *net_link_new(cw_net *n, cw_link id);
net_link *net_link_find(const cw_net *n, cw_link id);
/* Came over the same host and has not proven a key. */
bool net_link_is_unproven(const net_link *l);
/* LINK_DOWN will be delivered in this round, the connection is let go. Ignored for links whose machine is
 * done with them. */
void net_link_fail(cw_net *n, net_link *l, const char *fmt, ...) CW_PRINTF(3, 4);
/* Cuts the connection, remembers the key, and fails the link. */
void net_link_blame(cw_net *n, net_link *l, const char *fmt, ...) CW_PRINTF(3, 4);
/* The machine is done with it. */
void net_link_close(cw_net *n, net_link *l, bool at_once);
void net_links_timers(cw_net *n);
void net_links_settle(cw_net *n); /* delivers the LINK_DOWNs that are due */
void net_links_reap(cw_net *n);
void net_links_free(cw_net *n);
void net_link_send(cw_net *n, net_link *l, cw_msg **m);
/* What both directions do with a message that was read: gate, decode, deliver. Consumes the parts. */
void net_link_message(cw_net *n, net_link *l, net_parts *p);
/* LINK_UP of an incoming link, and of an outgoing one whose handshake is done. */
void net_link_arrived(cw_net *n, net_link *l);
void net_link_came_up(cw_net *n, net_link *l);
/* What a Hello through that port must say it is for. */
Cw__Pb__Purpose net_purpose(cw_port port);
/* The connection has ended, and why if that is known: the link fails when everything was read. */
void net_link_ended(cw_net *n, net_link *l, const char *why);
/* Links whose connection ended and that have been read empty fail now. */
void net_links_finish_gone(cw_net *n);

/* listener.c */
CW_MUST_USE cw_status net_listener_open(cw_net *n, cw_port port, const char *address, char *bound,
                                        cw_err *err);
void net_listener_free(cw_net *n, net_listener *l);
void net_listener_monitor(cw_net *n, net_listener *l);
void net_listener_receive(cw_net *n, net_listener *l);
/* Cuts the connection of an incoming link, if it is still that link's. */
void net_listener_cut(cw_net *n, net_link *l);
/* Shuts a half-open connection down; the monitor's word removes it. */
void net_listener_drop_half_open(net_listener *l, net_conn *c);

/* dealer.c */
void net_dealer_open(cw_net *n, const cw_action *a);
/* Goes on with links whose host name has been looked up. */
void net_dealers_resolved(cw_net *n);
void net_dealer_monitor(cw_net *n, net_link *l);
void net_dealer_receive(cw_net *n, net_link *l);
void net_dealer_close(cw_net *n, net_link *l);
/* The same-host way has failed: the address, then. */
void net_dealer_fall_back(cw_net *n, net_link *l);

/* neighbour.c */
CW_MUST_USE cw_status net_neighbours_listen(cw_net *n, cw_port port, const char *dir, cw_err *err);
void net_neighbours_unlisten(cw_net *n);
void net_neighbours_accept(cw_net *n);
/* Goes on with what could not be accepted before. */
void net_neighbours_timer(cw_net *n);
/* The link falls back to its address if that does not work. */
void net_neighbour_open(cw_net *n, net_link *l, const char *path);
void net_neighbour_ready(cw_net *n, net_link *l, uint32_t events);
/* What is left of an earlier reading. */
void net_neighbour_receive(cw_net *n, net_link *l);
net_send net_neighbour_send(cw_net *n, net_link *l, cw_msg **m, uint64_t *bytes);
/* Heartbeats, both ways. */
void net_neighbour_timer(cw_net *n, net_link *l);
void net_neighbour_close(net_link *l);

/* Options that both kinds of ZeroMQ socket share; false: errno says why. */
CW_MUST_USE bool net_socket_setup(const cw_net *n, void *sock, int64_t max_frame);
/* Descriptors and sockets join, change and leave the poll; `who` is one of NET_POLL_. */
CW_MUST_USE bool net_poll_fd(cw_net *n, int op, int fd, uint64_t who, uint32_t events);
CW_MUST_USE bool net_poll_add(cw_net *n, void *sock, uint64_t who);
void net_poll_remove(cw_net *n, void *sock);
/* There may be something to read that the poll does not report. */
void net_touched(cw_net *n, net_link *l);

/* guest.c */
void net_guest_init(cw_net *n);
void net_guest_free(cw_net *n);
/* For the thread of cw_net_run, which has the turn: lets the guest work until it stays away. */
void net_step_aside(cw_net *n);
/* net.c: one look at the sockets, after at most wait_us. */
void net_one_round(cw_net *n, int64_t wait_us);
/* A PAIR that receives the events of `sock`; NULL: errno. */
CW_MUST_USE void *net_monitor_open(cw_net *n, void *sock);
/* Before `sock` is closed: a socket lives on in its I/O thread for a while, and an event sent to a PAIR that
 * nobody reads blocks that thread for ever, and with it every connection of the process. Either may be NULL.
 */
void net_monitor_close(void *sock, void *mon);
/* false: no event. */
CW_MUST_USE bool net_monitor_read(void *mon, uint16_t *event, uint32_t *value);

/* watch.c */
void net_watch_delivered(net_conn *c, uint64_t wire_bytes, int64_t now_us);
void net_watch_round(cw_net *n);
