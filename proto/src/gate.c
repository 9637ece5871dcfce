/* The gate of one link; see cw/gate.h. */
#include "cw/gate.h"

static const char *const purpose_names[] = {"control", "store", "data"};
static const char *const side_names[] = {"coordinator", "worker", "edge"};

static const Cw__Pb__Hello *introduction(const cw_msg *m)
{
    if (m->env->body_case == CW__PB__ENVELOPE__BODY_HELLO) return m->env->hello;
    if (m->env->body_case == CW__PB__ENVELOPE__BODY_ENROL) return m->env->enrol->hello;
    return NULL;
}

void cw_gate_incoming(cw_link_gate *g, cw_side self, Cw__Pb__Purpose purpose)
{
    *g = (cw_link_gate){.self = self, .purpose = purpose, .state = CW_GATE_NEW};
}

void cw_gate_outgoing(cw_link_gate *g, cw_side self)
{
    *g = (cw_link_gate){.self = self, .state = CW_GATE_NEW, .outgoing = true};
}

void cw_gate_sent(cw_link_gate *g, const cw_msg *m)
{
    if (!g->outgoing || g->state != CW_GATE_NEW) return;
    const Cw__Pb__Hello *h = introduction(m);
    CW_ASSERT(h);
    g->purpose = h->purpose;
    g->peer = h->purpose == CW__PB__PURPOSE__PURPOSE_DATA ? CW_SIDE_WORKER : CW_SIDE_COORDINATOR;
    g->state = CW_GATE_INTRODUCED;
}

size_t cw_gate_header_max(const cw_link_gate *g)
{
    /* An incoming peer stays small until it is admitted; a Welcome may carry a ticket and a long revocation
     * list. */
    return g->outgoing || g->state == CW_GATE_ADMITTED ? CW_HEADER_MAX : CW_HELLO_MAX;
}

static cw_status first_of_incoming(cw_link_gate *g, const cw_msg *m, cw_err *err)
{
    const Cw__Pb__Hello *h = introduction(m);
    const char *kind = cw_msg_kind_name(m->env->body_case);
    if (!h) return CW_FAIL(err, CW_STATUS_PROTOCOL, "a %s from a peer that has not said hello", kind);
    if (h->purpose != g->purpose)
        return CW_FAIL(err, CW_STATUS_PROTOCOL, "a hello for the %s port came to the %s port",
                       purpose_names[h->purpose], purpose_names[g->purpose]);
    cw_side peer = h->role == CW__PB__ROLE__ROLE_WORKER ? CW_SIDE_WORKER : CW_SIDE_EDGE;
    if (!cw_msg_legal(g->self, peer, g->purpose, CW_PEER_NEW, m->env->body_case))
        return CW_FAIL(err, CW_STATUS_PROTOCOL, "a %s from %s %s does not belong on the %s port", kind,
                       peer == CW_SIDE_EDGE ? "an" : "a", side_names[peer], purpose_names[g->purpose]);
    g->peer = peer;
    g->state = CW_GATE_INTRODUCED;
    return CW_OK;
}

static cw_status answer_to_outgoing(cw_link_gate *g, const cw_msg *m, cw_err *err)
{
    cw_msg_kind kind = m->env->body_case;
    if (!cw_msg_legal(g->self, g->peer, g->purpose, CW_PEER_NEW, kind))
        return CW_FAIL(err, CW_STATUS_PROTOCOL, "a %s where a welcome or a refusal was due",
                       cw_msg_kind_name(kind));
    g->state = kind == CW__PB__ENVELOPE__BODY_WELCOME ? CW_GATE_ADMITTED : CW_GATE_ENDED;
    return CW_OK;
}

cw_status cw_gate_received(cw_link_gate *g, const cw_msg *m, cw_err *err)
{
    cw_msg_kind kind = m->env->body_case;
    switch (g->state) {
    case CW_GATE_NEW:
        if (g->outgoing)
            return CW_FAIL(err, CW_STATUS_PROTOCOL, "a %s before our hello", cw_msg_kind_name(kind));
        return first_of_incoming(g, m, err);
    case CW_GATE_INTRODUCED:
        if (g->outgoing) return answer_to_outgoing(g, m, err);
        return CW_FAIL(err, CW_STATUS_PROTOCOL, "a %s from a peer that was not let in yet",
                       cw_msg_kind_name(kind));
    case CW_GATE_ADMITTED:
        if (cw_msg_legal(g->self, g->peer, g->purpose, CW_PEER_ADMITTED, kind)) return CW_OK;
        return CW_FAIL(err, CW_STATUS_PROTOCOL, "a %s from a %s on the %s port", cw_msg_kind_name(kind),
                       side_names[g->peer], purpose_names[g->purpose]);
    case CW_GATE_ENDED: break;
    }
    return CW_FAIL(err, CW_STATUS_PROTOCOL, "a %s after a refusal", cw_msg_kind_name(kind));
}

void cw_gate_admit(cw_link_gate *g)
{
    if (!g->outgoing && g->state == CW_GATE_INTRODUCED) g->state = CW_GATE_ADMITTED;
}
