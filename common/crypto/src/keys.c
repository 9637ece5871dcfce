/*
 * Key pairs; see cw/keys.h. Their files (keyfile.h) are of the kinds "causeway-curve-1" and "causeway-sign-1"
 * and hold the secret, for Ed25519 the seed; the public half is computed. Every buffer a secret passes
 * through is wiped.
 */
#include "cw/keys.h"

#include <sodium.h>
#include <string.h>

#include "cw/hash.h"
#include "cw/mem.h"
#include "keyfile.h"

_Static_assert(crypto_box_SECRETKEYBYTES == CW_SEED_BYTES && crypto_sign_SEEDBYTES == CW_SEED_BYTES,
               "both secrets are 32 bytes");
_Static_assert(crypto_sign_BYTES == CW_SIGNATURE_BYTES, "signature size");

struct cw_keys {
    cw_key public_key;
    uint8_t *secret; /* sodium_malloc, read-only after it is made */
};

struct cw_signer {
    cw_key public_key;
    uint8_t *secret; /* crypto_sign_SECRETKEYBYTES, sodium_malloc */
};

cw_status cw_crypto_init(cw_err *err)
{
    if (sodium_init() < 0)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED,
                       "libsodium does not start: this system gives no good random numbers");
    return CW_OK;
}

void cw_random(void *buf, size_t n)
{
    randombytes_buf(buf, n);
}

static cw_status keys_from_seed(const uint8_t seed[CW_SEED_BYTES], void *out, cw_err *err)
{
    cw_keys *k = cw_calloc(1, sizeof *k);
    if (k) k->secret = sodium_malloc(CW_SEED_BYTES);
    if (!k || !k->secret) {
        cw_free(k);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY,
                       "no memory for a key pair (is the limit of locked memory very small?)");
    }
    memcpy(k->secret, seed, CW_SEED_BYTES);
    crypto_scalarmult_base(k->public_key.b, k->secret);
    sodium_mprotect_readonly(k->secret);
    *(cw_keys **)out = k;
    return CW_OK;
}

cw_status cw_keys_new(cw_keys **out, cw_err *err)
{
    return cw_seed_new(keys_from_seed, out, err);
}

cw_status cw_keys_open(const char *path, cw_keys **out, cw_err *err)
{
    return cw_seed_open(path, "causeway-curve-1", keys_from_seed, out, err);
}

void cw_keys_free(cw_keys **k)
{
    if (!*k) return;
    sodium_free((*k)->secret);
    cw_free(*k);
    *k = NULL;
}

const cw_key *cw_keys_public(const cw_keys *k)
{
    return &k->public_key;
}
const uint8_t *cw_keys_secret(const cw_keys *k)
{
    return k->secret;
}

bool cw_keys_mac(const cw_keys *self, const cw_key *other, const char *context, const void *body, size_t n,
                 uint8_t mac[CW_MAC_BYTES])
{
    uint8_t shared[crypto_box_BEFORENMBYTES];
    crypto_generichash_state st;
    if (crypto_box_beforenm(shared, other->b, cw_keys_secret(self)) != 0) return false; /* of low order */
    crypto_generichash_init(&st, shared, sizeof shared, CW_MAC_BYTES);
    crypto_generichash_update(&st, (const uint8_t *)context, strlen(context) + 1);
    crypto_generichash_update(&st, body, n);
    crypto_generichash_final(&st, mac, CW_MAC_BYTES);
    sodium_memzero(shared, sizeof shared);
    sodium_memzero(&st, sizeof st);
    return true;
}

bool cw_mac_equal(const uint8_t a[CW_MAC_BYTES], const uint8_t b[CW_MAC_BYTES])
{
    return sodium_memcmp(a, b, CW_MAC_BYTES) == 0;
}

static cw_status signer_from_seed(const uint8_t seed[CW_SEED_BYTES], void *out, cw_err *err)
{
    cw_signer *s = cw_calloc(1, sizeof *s);
    if (s) s->secret = sodium_malloc(crypto_sign_SECRETKEYBYTES);
    if (!s || !s->secret) {
        cw_free(s);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY,
                       "no memory for a signing key (is the limit of locked memory very small?)");
    }
    crypto_sign_seed_keypair(s->public_key.b, s->secret, seed);
    sodium_mprotect_readonly(s->secret);
    *(cw_signer **)out = s;
    return CW_OK;
}

cw_status cw_signer_new(cw_signer **out, cw_err *err)
{
    return cw_seed_new(signer_from_seed, out, err);
}

cw_status cw_signer_open(const char *path, cw_signer **out, cw_err *err)
{
    return cw_seed_open(path, "causeway-sign-1", signer_from_seed, out, err);
}

void cw_signer_free(cw_signer **s)
{
    if (!*s) return;
    sodium_free((*s)->secret);
    cw_free(*s);
    *s = NULL;
}

const cw_key *cw_signer_public(const cw_signer *s)
{
    return &s->public_key;
}

/* What Ed25519 sees: the body's hash under the context, so that bodies of megabytes need no copy. */
void cw_sign(const cw_signer *s, const char *context, const void *body, size_t n,
             uint8_t signature[CW_SIGNATURE_BYTES])
{
    uint8_t h[CW_HASH_BYTES];
    cw_hash(context, body, n, h);
    crypto_sign_detached(signature, NULL, h, sizeof h, s->secret);
}

bool cw_sign_verify(const cw_key *public_key, const char *context, const void *body, size_t n,
                    const uint8_t signature[CW_SIGNATURE_BYTES])
{
    uint8_t h[CW_HASH_BYTES];
    cw_hash(context, body, n, h);
    return crypto_sign_verify_detached(signature, h, sizeof h, public_key->b) == 0;
}
