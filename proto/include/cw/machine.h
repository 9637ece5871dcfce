/*
 * The vocabulary of the pure state machines: event and time in, actions out.
 *
 * Coordinator, worker and edge keep their network logic in machines that own no socket, no clock and no
 * thread. A shell feeds them events and carries their actions out: the real shell is the net room over
 * ZeroMQ, the other is tests/sim, which runs a whole cluster in one process. Both give the semantics that
 * libzmq really has: messages of one link arrive in order; at a cut any suffix in flight is lost in both
 * directions; a new connection is a new link; a link id is never used twice in a process. Both shells hold
 * every link to the legal sequences with cw/gate.h, so a machine gets no message that may not come: on an
 * incoming link first one Hello or Enrol, and more only after the machine queued CW_ACT_ADMIT (cw_admit) for
 * it; a machine that refuses sends Refusal and queues CW_ACT_CLOSE instead. A link that is neither admitted
 * nor closed within 2 s is cut. One thread owns a machine.
 */
#pragma once
#include "cw/msg.h"

typedef uint64_t cw_link; /* 0: none. Links a machine opens itself have CW_LINK_OUT set. */
#define CW_LINK_OUT ((cw_link)1 << 63)

typedef enum {
    CW_EV_TICK, /* time passed; sent at least every 100 ms, and at the time a machine asked for by wake_us */
    CW_EV_LINK_UP,   /* outgoing link: handshake done; incoming: first message about to follow. key is proven.
                      */
    CW_EV_LINK_DOWN, /* gone, for whatever reason (text); also the answer to an open that failed */
    CW_EV_MESSAGE,   /* msg is the machine's to keep or free (shells free it unless the machine sets ev->msg =
                        NULL) */
} cw_event_kind;

typedef enum { CW_PORT_CONTROL, CW_PORT_STORE, CW_PORT_DATA } cw_port;

typedef struct {
    cw_event_kind kind;
    int64_t now_us;  /* CLOCK_BOOTTIME */
    int64_t wall_ms; /* wall clock, for tickets only */
    cw_link link;
    cw_port port;   /* incoming links: the listener it came through */
    cw_key key;     /* LINK_UP, MESSAGE: the peer's CURVE key */
    char text[128]; /* LINK_DOWN: why; LINK_UP: the peer's address */
    bool same_host; /* LINK_UP: the peer is on this very machine, whatever its address */
    cw_msg *msg;
} cw_event;

typedef enum {
    CW_ACT_SEND,  /* link, msg (owned by the action); outgoing links only after LINK_UP, Hello or Enrol first.
                     A full queue or a gone peer is reported as LINK_DOWN. */
    CW_ACT_OPEN,  /* link (chosen by the machine), address, key of the peer to connect to */
    CW_ACT_CLOSE, /* link; after what was sent before has had a moment to leave (at most 1 s). No event of it
                     follows. */
    CW_ACT_ADMIT, /* incoming link: its Hello or Enrol is accepted with the role and purpose it named; before
                     Welcome is sent */
    CW_ACT_BLAME, /* link; cut at once: the peer broke the protocol (text says how). No event of it follows.
                   */
} cw_action_kind; /* for a link that is gone already, SEND, ADMIT, CLOSE and BLAME do nothing */

typedef struct {
    cw_action_kind kind;
    cw_link link;
    cw_key key;
    cw_msg *msg;
    char text[CW_ADDRESS_MAX]; /* OPEN: address; CLOSE, BLAME: reason for the log */
} cw_action;

/* Actions in order, a queue the shell drains after every event. Grows, never shrinks: steady state allocates
 * nothing. */
typedef struct {
    cw_action *items;
    size_t n, cap;
    int64_t wake_us; /* earliest time the machine wants a tick; INT64_MAX: none. The shell resets it before
                        every tick */
    bool failed;     /* out of memory: an action was lost; the shell stops the process */
} cw_outbox;

void cw_outbox_init(cw_outbox *o);
void cw_outbox_free(cw_outbox *o);  /* frees the messages still in it */
void cw_outbox_clear(cw_outbox *o); /* after the shell took every message (it sets action.msg = NULL) */
void cw_outbox_wake(cw_outbox *o, int64_t at_us);
/* Packs env and frames into a message and queues it; frames are taken over in every case. */
void cw_send(cw_outbox *o, cw_link link, const Cw__Pb__Envelope *env, const cw_frame *frames,
             uint32_t n_frames);
void cw_send_msg(cw_outbox *o, cw_link link, cw_msg *msg);
void cw_open(cw_outbox *o, cw_link link, const char *address, const cw_key *key);
void cw_admit(cw_outbox *o, cw_link link);
void cw_close(cw_outbox *o, cw_link link, const char *reason);
void cw_blame(cw_outbox *o, cw_link link, const char *reason);
