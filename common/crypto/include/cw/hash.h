/* BLAKE2b-256 with a context string, so that hashes of different things never meet. Any thread. */
#pragma once
#include "cw/status.h"

enum { CW_HASH_BYTES = 32, CW_HASH_CONTEXT_MAX = 64 };

typedef struct {
    _Alignas(64) uint8_t opaque[384];
} cw_hash_state;

/* `context` is 1..64 bytes, for instance "causeway chunk 1". */
void cw_hash_begin(cw_hash_state *h, const char *context);
void cw_hash_add(cw_hash_state *h, const void *data, size_t n);
void cw_hash_end(cw_hash_state *h, uint8_t out[CW_HASH_BYTES]);
/* All in one. */
void cw_hash(const char *context, const void *data, size_t n, uint8_t out[CW_HASH_BYTES]);
/* Comparison whose time does not depend on where two hashes or tokens differ. */
CW_MUST_USE bool cw_equal_secret(const void *a, const void *b, size_t n);
