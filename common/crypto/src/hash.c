/* BLAKE2b-256 keyed with the context string; see cw/hash.h. */
#include "cw/hash.h"

#include <sodium.h>
#include <string.h>

_Static_assert(sizeof(crypto_generichash_state) <= sizeof(cw_hash_state), "the opaque state is large enough");

static crypto_generichash_state *state_of(cw_hash_state *h)
{
    return (crypto_generichash_state *)(void *)h->opaque;
}

void cw_hash_begin(cw_hash_state *h, const char *context)
{
    size_t n = strlen(context);
    CW_ASSERT(n > 0 && n <= CW_HASH_CONTEXT_MAX);
    crypto_generichash_init(state_of(h), (const uint8_t *)context, n, CW_HASH_BYTES);
}

void cw_hash_add(cw_hash_state *h, const void *data, size_t n)
{
    crypto_generichash_update(state_of(h), data, n);
}

void cw_hash_end(cw_hash_state *h, uint8_t out[CW_HASH_BYTES])
{
    crypto_generichash_final(state_of(h), out, CW_HASH_BYTES);
}

void cw_hash(const char *context, const void *data, size_t n, uint8_t out[CW_HASH_BYTES])
{
    cw_hash_state h;
    cw_hash_begin(&h, context);
    cw_hash_add(&h, data, n);
    cw_hash_end(&h, out);
}

bool cw_equal_secret(const void *a, const void *b, size_t n)
{
    return sodium_memcmp(a, b, n) == 0;
}
