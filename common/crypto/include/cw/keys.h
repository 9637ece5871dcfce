/*
 * Key pairs and random bytes. Secrets live in sodium_malloc memory, in files of mode 0600 in a private
 * directory, and are wiped when let go; they are never logged and never leave this room but for libzmq's own
 * copy. Any thread after cw_crypto_init; a pair is immutable once opened.
 */
#pragma once
#include "cw/key.h"
#include "cw/status.h"

/* Once, before anything else of this room or of the net room (both call it themselves). */
CW_MUST_USE cw_status cw_crypto_init(cw_err *err);

void cw_random(void *buf, size_t n);

/* A CURVE25519 pair: what libzmq needs to prove who a process is. */
typedef struct cw_keys cw_keys;

/* A pair that lives in memory only (tests, one-shot tools). */
CW_MUST_USE cw_status cw_keys_new(cw_keys **out, cw_err *err);
/*
 * The pair in the file `path`, made there when there is none (whole or not at all, 0600). The directory must
 * exist and be private (cw_fs_private_dir). Errors: AUTH when others can read the file, FORMAT when it is
 * damaged, IO.
 */
CW_MUST_USE cw_status cw_keys_open(const char *path, cw_keys **out, cw_err *err);
void cw_keys_free(cw_keys **k);
const cw_key *cw_keys_public(const cw_keys *k);  /* as long as k */
const uint8_t *cw_keys_secret(const cw_keys *k); /* 32 bytes, as long as k; for libzmq only */

/* What only the holders of the two pairs can compute (X25519, then keyed BLAKE2b-256): proof of a key to its peer. `context`
 * as for cw_sign. false: `other` is no key. */
enum { CW_MAC_BYTES = 32 };
CW_MUST_USE bool cw_keys_mac(const cw_keys *self, const cw_key *other, const char *context, const void *body, size_t n,
                             uint8_t mac[CW_MAC_BYTES]);
/* Whether two are the same, in a time that does not tell where they differ. */
CW_MUST_USE bool cw_mac_equal(const uint8_t a[CW_MAC_BYTES], const uint8_t b[CW_MAC_BYTES]);

/* An Ed25519 pair: what the coordinator signs tickets and epochs with. */
typedef struct cw_signer cw_signer;
CW_MUST_USE cw_status cw_signer_new(cw_signer **out, cw_err *err);
/* As cw_keys_open. */
CW_MUST_USE cw_status cw_signer_open(const char *path, cw_signer **out, cw_err *err);
void cw_signer_free(cw_signer **s);
const cw_key *cw_signer_public(const cw_signer *s);

enum { CW_SIGNATURE_BYTES = 64 };
/* `context` names what is signed ("causeway ticket 1"), so that a signature on one kind never fits another.
 */
void cw_sign(const cw_signer *s, const char *context, const void *body, size_t n,
             uint8_t signature[CW_SIGNATURE_BYTES]);
CW_MUST_USE bool cw_sign_verify(const cw_key *public_key, const char *context, const void *body, size_t n,
                                const uint8_t signature[CW_SIGNATURE_BYTES]);

/* Text form of a public key: 40 characters of z85 and a NUL. Some z85 characters need quoting in a shell. */
enum { CW_KEY_TEXT = 41, CW_KEY_HEX = 65 };
void cw_key_text(const cw_key *k, char out[CW_KEY_TEXT]);
/* Hex form, for commands and listings: 64 characters and a NUL. */
void cw_key_hex(const cw_key *k, char out[CW_KEY_HEX]);
/* Reads either form. */
CW_MUST_USE bool cw_key_parse(const char *text, cw_key *out);
