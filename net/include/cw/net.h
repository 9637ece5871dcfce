/*
 * The reactor: ZeroMQ on one side, a pure machine (cw/machine.h) on the other.
 *
 * A cw_net owns a ZeroMQ context, its listeners (ROUTER), the links it opened (one DEALER each), a monitor on
 * every socket and the ZAP thread. One thread calls cw_net_run and is the only one that touches sockets; it
 * never computes. It decodes and checks messages (cw/msg.h), holds every link to the legal sequences
 * (cw/gate.h), turns what happens into events and carries out the actions. A peer that breaks the protocol,
 * runs ahead of its credit or says nothing in time is cut, alone, and its key is refused for a while.
 * docs/WIRE.md has the rules.
 *
 * Every connection is CURVE; there is no way to listen or connect without keys.
 */
#pragma once
#include "cw/keys.h"
#include "cw/machine.h"

typedef struct cw_net cw_net;

/* All called in the thread of cw_net_run. They queue actions in `out` and must not block. */
typedef struct {
    void *ctx;
    /* Set ev->msg = NULL to keep the message. */
    void (*on_event)(void *ctx, cw_event *ev, cw_outbox *out);
    /* After cw_net_wake: look into your queues. NULL: nothing to look into. */
    void (*on_wake)(void *ctx, int64_t now_us, int64_t wall_ms, cw_outbox *out);
    /* cw_net_stop was called: last words (Bye). They have up to 300 ms to leave. May be NULL. */
    void (*on_stop)(void *ctx, int64_t now_us, int64_t wall_ms, cw_outbox *out);
} cw_net_role;

/* Zero means the default in brackets. */
typedef struct {
    cw_side self;
    const cw_keys *keys; /* borrowed as long as the net lives */
    uint32_t max_peers; /* links at once [64], as many opened ones again; sizes MAX_SOCKETS and descriptors */
    uint32_t io_threads;   /* [1] */
    bool io_bound;         /* I/O threads keep to io_cpu [anywhere] */
    int io_cpu;
    uint32_t heartbeat_ms; /* [2000]; a link without traffic for three of them is down */
    uint32_t connect_rate; /* handshakes an address may begin in 10 s [40 + 4 * max_peers] */
    uint32_t ban_s;        /* how long a blamed key is refused [30] */
    uint64_t peer_credit;  /* bytes a peer may be ahead of the application besides the fixed 4 MiB [4 MiB] */
    uint32_t queue_messages; /* messages queued in each direction of a link [256] */
    /* bytes of raw frames that wait to leave on a link; more is a full queue [64 MiB] */
    uint64_t queue_bytes;
    uint32_t fault_zap_ms; /* fault injection: the ZAP handler ends by itself after this time [never] */
    /* Where same-host endpoints are looked for, see cw_net_listen_local; borrowed as long as the net lives
     * [nowhere] */
    const char *local_dir;
} cw_net_config;

/* NO_MEMORY, LIMIT (descriptors), INVALID. */
CW_MUST_USE cw_status cw_net_new(const cw_net_config *c, const cw_net_role *role, cw_net **out, cw_err *err);
/* Not while cw_net_run is in it. Closes everything without ceremony. */
void cw_net_free(cw_net **n);

/* Before cw_net_run. `bound` (may be NULL) is the address with the real port. IO when the address is taken or
 * not ours. */
CW_MUST_USE cw_status cw_net_listen(cw_net *n, cw_port port, const char *address, char bound[CW_ADDRESS_MAX],
                                    cw_err *err);

/*
 * Before cw_net_run: the same port once more for processes of this user on this machine, as a socket file in
 * `dir` that is named after our key. Whoever opens a link to our key with that directory as its local_dir
 * takes this way, whatever address it was told, and falls back to the address when it fails; machines are
 * told only that the peer is on this host. Nothing is encrypted there; both ends prove their keys all the same (docs/WIRE.md). IO when it
 * cannot be made.
 */
CW_MUST_USE cw_status cw_net_listen_local(cw_net *n, cw_port port, const char *dir, cw_err *err);
/* The directory that processes of this user share on this machine, made where it is not there:
 * $XDG_RUNTIME_DIR/causeway, else /tmp/causeway-UID/run. Heap. AUTH when it is not ours or open to others. */
CW_MUST_USE cw_status cw_net_local_dir(char **out, cw_err *err);

/* Runs until cw_net_stop (CW_OK) or until it must not go on: the ZAP handler ended, memory is out, libzmq
 * failed. Then the process should end with the sentence in err. */
CW_MUST_USE cw_status cw_net_run(cw_net *n, cw_err *err);

/* Any thread, and signal handlers. */
void cw_net_stop(cw_net *n);
/* Any thread: on_wake will be called soon (several wakes may become one); while a guest may come again, with
 * its next round or when the net's thread has found that it stays away. */
void cw_net_wake(cw_net *n);

/*
 * Another thread may do the work of cw_net_run for a while, as a guest: its messages leave without waking
 * anybody, and the answers wake the thread that waits for them. Between enter and leave it is the only one
 * that touches sockets, and callbacks run in it. After leave the thread of cw_net_run stays aside for some
 * milliseconds, because a guest that came once comes again; cw_net_resume ends that at once. One guest.
 */
void cw_net_enter(cw_net *n);
/* As cw_net_wake, but on_wake runs now. */
void cw_net_poke(cw_net *n);
/* Waits for traffic or wait_us, and handles it. false: the net is ending, leave it. */
CW_MUST_USE bool cw_net_round(cw_net *n, int64_t wait_us);
void cw_net_leave(cw_net *n);
/* Outside of enter and leave. */
void cw_net_resume(cw_net *n);

/* Any thread. A revoked key is refused by ZAP from now on and its links are cut. `cw_net_unrevoke` takes it
 * back. */
CW_MUST_USE cw_status cw_net_revoke(cw_net *n, const cw_key *key, cw_err *err);
void cw_net_unrevoke(cw_net *n, const cw_key *key);

/* In the thread of cw_net_run (from a callback), or when it is not running. */
typedef struct {
    uint64_t bytes_in, bytes_out; /* messages as the application sees them: header and frames */
    uint64_t messages_in, messages_out;
    int64_t up_since_us;
} cw_net_link_stats;
CW_MUST_USE bool cw_net_link_get_stats(const cw_net *n, cw_link link, cw_net_link_stats *out);

/* Counters since cw_net_new; any thread. */
typedef struct {
    uint64_t links_in, links_out; /* that came up */
    uint64_t blamed;              /* cut for breaking the protocol */
    uint64_t overrun;             /* cut by the memory watchdog */
    uint64_t silent;              /* cut because nothing came in time */
    uint64_t zap_refused;
    uint64_t handshakes_failed;
    uint64_t bytes_in, bytes_out;
} cw_net_stats;
void cw_net_get_stats(cw_net *n, cw_net_stats *out);
