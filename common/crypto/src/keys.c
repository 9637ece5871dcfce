/*
 * Key pairs; see cw/keys.h. A key file is one line, "causeway-curve-1 HEX" or "causeway-sign-1 HEX", where
 * HEX is the 32-byte secret (for Ed25519 the seed); the public half is computed. Every buffer a secret passes
 * through is wiped.
 */
#include "cw/keys.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cw/fs.h"
#include "cw/hash.h"
#include "cw/mem.h"
#include "keyfile.h"

enum { LINE_MAX_BYTES = 128 };

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

cw_status cw_seed_read(const char *path, const char *kind, uint8_t seed[CW_SEED_BYTES], cw_err *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return CW_FAIL(err, CW_STATUS_IO, "cannot read the key file %s: %s", path, strerror(errno));
    if (st.st_mode & 077)
        return CW_FAIL(
            err, CW_STATUS_AUTH,
            "others can read the key file %s: make it private (chmod 600), or delete it for a new key", path);
    char *line = NULL;
    size_t n = 0, got = 0, kind_len = strlen(kind);
    CW_TRY(cw_fs_read(path, LINE_MAX_BYTES, &line, &n, err));
    cw_status s = CW_OK;
    while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) n--;
    if (n != kind_len + 1 + 2 * CW_SEED_BYTES || memcmp(line, kind, kind_len) != 0 || line[kind_len] != ' ' ||
        sodium_hex2bin(seed, CW_SEED_BYTES, line + kind_len + 1, 2 * CW_SEED_BYTES, NULL, &got, NULL) != 0 ||
        got != CW_SEED_BYTES)
        s = CW_FAIL(err, CW_STATUS_FORMAT,
                    "the key file %s is damaged: restore it, or delete it for a new key", path);
    sodium_memzero(line, LINE_MAX_BYTES < n ? LINE_MAX_BYTES : n);
    cw_free(line);
    return s;
}

cw_status cw_seed_write(const char *path, const char *kind, const uint8_t seed[CW_SEED_BYTES], cw_err *err)
{
    char line[LINE_MAX_BYTES], hex[2 * CW_SEED_BYTES + 1];
    sodium_bin2hex(hex, sizeof hex, seed, CW_SEED_BYTES);
    int n = snprintf(line, sizeof line, "%s %s\n", kind, hex);
    cw_status s = cw_fs_write(path, line, (size_t)n, 0600, err);
    sodium_memzero(line, sizeof line);
    sodium_memzero(hex, sizeof hex);
    return s;
}

/* A seed from the file, or a new one and the file. */
static cw_status open_seed(const char *path, const char *kind, uint8_t seed[CW_SEED_BYTES], cw_err *err)
{
    struct stat st;
    if (stat(path, &st) == 0) return cw_seed_read(path, kind, seed, err);
    if (errno != ENOENT)
        return CW_FAIL(err, CW_STATUS_IO, "cannot read the key file %s: %s", path, strerror(errno));
    randombytes_buf(seed, CW_SEED_BYTES);
    return cw_seed_write(path, kind, seed, err);
}

static cw_status keys_from_seed(const uint8_t seed[CW_SEED_BYTES], cw_keys **out, cw_err *err)
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
    *out = k;
    return CW_OK;
}

cw_status cw_keys_new(cw_keys **out, cw_err *err)
{
    CW_TRY(cw_crypto_init(err));
    uint8_t seed[CW_SEED_BYTES];
    randombytes_buf(seed, sizeof seed);
    cw_status s = keys_from_seed(seed, out, err);
    sodium_memzero(seed, sizeof seed);
    return s;
}

cw_status cw_keys_open(const char *path, cw_keys **out, cw_err *err)
{
    CW_TRY(cw_crypto_init(err));
    uint8_t seed[CW_SEED_BYTES];
    cw_status s = open_seed(path, "causeway-curve-1", seed, err);
    if (s == CW_OK) s = keys_from_seed(seed, out, err);
    sodium_memzero(seed, sizeof seed);
    return s;
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

static cw_status signer_from_seed(const uint8_t seed[CW_SEED_BYTES], cw_signer **out, cw_err *err)
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
    *out = s;
    return CW_OK;
}

cw_status cw_signer_new(cw_signer **out, cw_err *err)
{
    CW_TRY(cw_crypto_init(err));
    uint8_t seed[CW_SEED_BYTES];
    randombytes_buf(seed, sizeof seed);
    cw_status s = signer_from_seed(seed, out, err);
    sodium_memzero(seed, sizeof seed);
    return s;
}

cw_status cw_signer_open(const char *path, cw_signer **out, cw_err *err)
{
    CW_TRY(cw_crypto_init(err));
    uint8_t seed[CW_SEED_BYTES];
    cw_status s = open_seed(path, "causeway-sign-1", seed, err);
    if (s == CW_OK) s = signer_from_seed(seed, out, err);
    sodium_memzero(seed, sizeof seed);
    return s;
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
