/*
 * Who may send what to whom, and when. One row a kind: the sides and purposes between which it may travel.
 * Peers that are not admitted yet may send exactly what the `new_peer` column says.
 */
#include "cw/msg.h"

enum { FROM_C = 1, FROM_W = 2, FROM_E = 4 };
enum { TO_C = 1, TO_W = 2, TO_E = 4 };
enum { CONTROL = 1, STORE = 2, DATA = 4 };

typedef struct {
    uint8_t from, to, purpose;
    bool new_peer;
} rule;

#define K(kind) [CW__PB__ENVELOPE__BODY_##kind]
static const rule rules[] = {
    K(HELLO) = {FROM_W | FROM_E, TO_C | TO_W, CONTROL | STORE | DATA, true},
    K(ENROL) = {FROM_W | FROM_E, TO_C, CONTROL, true},
    K(WELCOME) = {FROM_C | FROM_W, TO_W | TO_E, CONTROL | STORE | DATA, true},
    K(REFUSAL) = {FROM_C | FROM_W, TO_W | TO_E, CONTROL | STORE | DATA, true},
    K(TICKET_RENEW) = {FROM_E, TO_C, CONTROL, false},
    K(TICKET) = {FROM_C, TO_W | TO_E, CONTROL, false},
    K(EPOCH_NEWS) = {FROM_C | FROM_W, TO_W | TO_E, CONTROL | DATA, false},
    K(ASSIGN) = {FROM_C, TO_W, CONTROL, false},
    K(DROP) = {FROM_C, TO_W, CONTROL, false},
    K(HOLDINGS) = {FROM_W, TO_C, CONTROL, false},
    K(WORKER_LOAD) = {FROM_W, TO_C, CONTROL, false},
    K(EDGE_STATS) = {FROM_E, TO_C, CONTROL, false},
    K(MANIFEST_GET) = {FROM_W, TO_C, STORE, false},
    K(MANIFEST_PART) = {FROM_C, TO_W, STORE, false},
    K(CHUNK_GET) = {FROM_W, TO_C | TO_W, STORE | DATA, false},
    K(CHUNK_PART) = {FROM_C | FROM_W, TO_W, STORE | DATA, false},
    K(STORE_FAIL) = {FROM_C | FROM_W, TO_W, STORE | DATA, false},
    K(CALL) = {FROM_E, TO_W, DATA, false},
    K(REPLY) = {FROM_W, TO_E, DATA, false},
    K(CALL_FAIL) = {FROM_W, TO_E, DATA, false},
    K(CANCEL) = {FROM_E, TO_W, DATA, false},
    K(PING) = {FROM_C | FROM_W | FROM_E, TO_C | TO_W | TO_E, CONTROL | STORE | DATA, false},
    K(PONG) = {FROM_C | FROM_W | FROM_E, TO_C | TO_W | TO_E, CONTROL | STORE | DATA, false},
    K(BYE) = {FROM_C | FROM_W | FROM_E, TO_C | TO_W | TO_E, CONTROL | STORE | DATA, false},
    K(LEAVE) = {FROM_W, TO_C, CONTROL, false},
    K(RELEASED) = {FROM_C, TO_W, CONTROL, false},
    K(MISMATCH) = {FROM_E, TO_C, CONTROL, false},
    K(AUDIT) = {FROM_C, TO_W, CONTROL, false},
    K(AUDIT_RESULT) = {FROM_W, TO_C, CONTROL, false},
};

/* Who meets whom where: workers and edges at the coordinator's control port, workers at its store; edges
 * at a worker's data port, and other workers there for chunks. */
static bool meet(cw_side a, cw_side b, Cw__Pb__Purpose purpose)
{
    unsigned both = 1u << a | 1u << b;
    switch (purpose) {
    case CW__PB__PURPOSE__PURPOSE_CONTROL: return both == (FROM_C | FROM_W) || both == (FROM_C | FROM_E);
    case CW__PB__PURPOSE__PURPOSE_STORE: return both == (FROM_C | FROM_W);
    case CW__PB__PURPOSE__PURPOSE_DATA: return both == (FROM_W | FROM_E) || both == FROM_W;
    default: return false;
    }
}

bool cw_msg_legal(cw_side receiver, cw_side sender, Cw__Pb__Purpose purpose, cw_peer_state state,
                  cw_msg_kind kind)
{
    if ((unsigned)kind >= CW_ARRAY_LEN(rules)) return false;
    const rule *r = &rules[kind];
    if (!meet(receiver, sender, purpose)) return false;
    if (!(r->from & 1 << sender) || !(r->to & 1 << receiver) || !(r->purpose & 1 << purpose)) return false;
    /* A second hello on an admitted link is as wrong as a call before the first. */
    return (state == CW_PEER_NEW) == r->new_peer;
}
