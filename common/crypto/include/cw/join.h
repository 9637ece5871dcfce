/*
 * Join strings: everything a worker or an edge needs to enter a cluster, as one text that survives pasting.
 *
 *   cw1-worker-BASE64URL      role in words; address, coordinator's CURVE key, token and a checksum inside
 *
 * The checksum covers every character, so that a typo is told from a refusal before a packet is sent. The
 * string holds a secret (the token): it is never logged. The format is described in docs/WIRE.md.
 */
#pragma once
#include "cw/key.h"
#include "cw/status.h"

enum { CW_TOKEN_BYTES = 20, CW_JOIN_ADDRESS_MAX = 256, CW_JOIN_TEXT_MAX = 640 };

typedef enum { CW_JOIN_WORKER = 1, CW_JOIN_EDGE = 2 } cw_join_role;

typedef struct {
    cw_join_role role;
    char address[CW_JOIN_ADDRESS_MAX]; /* the coordinator's control port, "tcp://host:port" */
    cw_key coordinator;                /* its CURVE key */
    uint8_t token[CW_TOKEN_BYTES];
} cw_join;

/* `out` holds CW_JOIN_TEXT_MAX bytes. INVALID when the address does not fit. */
CW_MUST_USE cw_status cw_join_make(const cw_join *j, char out[CW_JOIN_TEXT_MAX], cw_err *err);
/* White space anywhere (line breaks of a terminal) is ignored. FORMAT with a sentence: a typo, a cut string,
 * something else altogether, a string of a later version. */
CW_MUST_USE cw_status cw_join_parse(const char *text, cw_join *out, cw_err *err);
/*
 * What every program does with --join: the string itself, "@file", "-" (standard input), or NULL for the
 * environment variable CAUSEWAY_JOIN. `role` is what the program is: a string for the other role is INVALID
 * and says so. NOT_FOUND when there is neither argument nor variable.
 */
CW_MUST_USE cw_status cw_join_resolve(const char *arg, cw_join_role role, cw_join *out, cw_err *err);
void cw_join_wipe(cw_join *j);

/* A new random token, and the form in which the coordinator stores one (a leaked state file admits nobody).
 */
void cw_token_new(uint8_t token[CW_TOKEN_BYTES]);
void cw_token_hash(const void *token, size_t n, uint8_t out[32]);
