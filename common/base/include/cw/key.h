/* A public key as a plain value, so that rooms without cryptography can name peers. cw/keys.h makes and holds
 * pairs. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { CW_KEY_BYTES = 32 }; /* CURVE25519 and Ed25519 public keys */

/* Who somebody is; CURVE proves it. */
typedef struct {
    uint8_t b[CW_KEY_BYTES];
} cw_key;

static inline bool cw_key_equal(const cw_key *a, const cw_key *b)
{
    return memcmp(a->b, b->b, CW_KEY_BYTES) == 0;
}
static inline bool cw_key_is_zero(const cw_key *k)
{
    uint8_t all = 0;
    for (int i = 0; i < CW_KEY_BYTES; i++) all |= k->b[i];
    return all == 0;
}
