/*
 * Tickets and epochs as signed bytes. Makers sign a body that is in range; verifiers check the signature
 * before they parse and the ranges before they hand anything out. Whether a ticket is still valid, and
 * whether the one who shows it is the one it names, is for the role (it has the clock and the link's key).
 * Library cw_trust. Any thread.
 */
#pragma once
#include "cw/keys.h"
#include "cw/msg.h"

/* What a ticket lets its key do at a worker. */
typedef enum { CW_RIGHT_CALLS = 0, CW_RIGHT_CHUNKS = 1 } cw_right;

typedef struct {
    uint8_t cluster[CW_CLUSTER_BYTES];
    cw_key edge; /* the CURVE key that may use it; a worker's with CW_RIGHT_CHUNKS */
    cw_right right;
    uint8_t model_digest[CW_DIGEST_BYTES];
    uint64_t not_after_ms; /* wall time */
    uint32_t streams, rows_per_s;
    uint64_t serial;
} cw_ticket;

/* Signed(TicketBody) as bytes for Welcome.ticket and Hello.ticket; caller frees with cw_free. */
CW_MUST_USE cw_status cw_ticket_sign(const cw_signer *s, const cw_ticket *t, uint8_t **bytes, size_t *n,
                                     cw_err *err);
/* AUTH: not signed by this key; PROTOCOL: out of range. */
CW_MUST_USE cw_status cw_ticket_verify(const cw_key *sign_key, const void *bytes, size_t n, cw_ticket *out,
                                       cw_err *err);

/* Signed(EpochBody) for Welcome, EpochNews and NOT_HERE frames. LIMIT when it exceeds CW_EPOCH_MAX. */
CW_MUST_USE cw_status cw_epoch_sign(const cw_signer *s, const Cw__Pb__EpochBody *body, uint8_t **bytes,
                                    size_t *n, cw_err *err);
/* Signature, then: worker ids rising and unique, names and addresses well formed, keys of 32 bytes, sets in
 * order. Free the result with cw_epoch_free. */
CW_MUST_USE cw_status cw_epoch_verify(const cw_key *sign_key, const void *bytes, size_t n,
                                      Cw__Pb__EpochBody **out, cw_err *err);
void cw_epoch_free(Cw__Pb__EpochBody **e);
