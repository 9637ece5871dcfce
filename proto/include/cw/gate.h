/*
 * What may come through a link now: the one place that enforces the legal sequences. The net room asks it for
 * every message of every link, and so does tests/sim, so machines never see an illegal kind.
 *
 * An incoming link begins NEW: exactly one Hello or Enrol may come through, of at most CW_HELLO_MAX bytes,
 * whose purpose is the listener's. Then nothing, until the machine says cw_admit (after that everything legal
 * for the role and purpose that the Hello named: by admitting, the machine accepts both) or closes. An
 * outgoing link begins with our own Hello or Enrol; the peer's Welcome admits it, a Refusal ends it. Pure;
 * one owner.
 */
#pragma once
#include "cw/msg.h"

typedef struct {
    cw_side self, peer;
    Cw__Pb__Purpose purpose;
    enum { CW_GATE_NEW, CW_GATE_INTRODUCED, CW_GATE_ADMITTED, CW_GATE_ENDED } state;
    bool outgoing;
} cw_link_gate;

/* A link that came in through a listener for `purpose`. */
void cw_gate_incoming(cw_link_gate *g, cw_side self, Cw__Pb__Purpose purpose);
/* A link this process opened; purpose and peer become known with the Hello or Enrol that is sent first. */
void cw_gate_outgoing(cw_link_gate *g, cw_side self);
/* Before a message leaves. Sending anything but Hello or Enrol first on an outgoing link is our own bug
 * (CW_ASSERT). */
void cw_gate_sent(cw_link_gate *g, const cw_msg *m);
/* The header limit for the next message. */
size_t cw_gate_header_max(const cw_link_gate *g);
/* A decoded message has arrived. PROTOCOL with a sentence: it may not come now, the sender is to be cut. */
CW_MUST_USE cw_status cw_gate_received(cw_link_gate *g, const cw_msg *m, cw_err *err);
/* The machine lets an incoming peer in; no effect on a link that is not waiting for that. */
void cw_gate_admit(cw_link_gate *g);
