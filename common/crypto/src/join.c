/*
 * Join strings; see cw/join.h.
 *
 *   "cw1-" ROLE "-" base64url( role u8 | length u8 | address | key 32 | token 20 | check 5 )
 *
 * check is the beginning of BLAKE2b-256 over everything before it, the words included. 40 bits: a typo passes
 * once in 10^12.
 */
#include "cw/join.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/fs.h"
#include "cw/hash.h"
#include "cw/keys.h"
#include "cw/mem.h"

enum {
    CHECK_BYTES = 5,
    FIXED_BYTES = 2 + CW_KEY_BYTES + CW_TOKEN_BYTES + CHECK_BYTES,
    ADDRESS_MAX = 255,
    PAYLOAD_MAX = FIXED_BYTES + ADDRESS_MAX,
    ARG_MAX_BYTES = 4096
};

_Static_assert(sizeof "cw1-worker-" + (PAYLOAD_MAX * 4 + 2) / 3 <= CW_JOIN_TEXT_MAX,
               "the longest join string fits");
_Static_assert((int)ADDRESS_MAX < (int)CW_JOIN_ADDRESS_MAX, "the longest address fits");

#define BAD(...) CW_FAIL(err, CW_STATUS_FORMAT, __VA_ARGS__)

static const char *const prefixes[] = {[CW_JOIN_WORKER] = "cw1-worker-", [CW_JOIN_EDGE] = "cw1-edge-"};
static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
static const char mistyped[] =
    "the join string is mistyped or incomplete (its checksum does not fit): copy it again, whole";

static void checksum(const char *prefix, const uint8_t *payload, size_t n, uint8_t out[CHECK_BYTES])
{
    uint8_t full[CW_HASH_BYTES];
    cw_hash_state h;
    cw_hash_begin(&h, "causeway join 1");
    cw_hash_add(&h, prefix, strlen(prefix));
    cw_hash_add(&h, payload, n);
    cw_hash_end(&h, full);
    memcpy(out, full, CHECK_BYTES);
}

/* What the two ends agree an address may be here; whether it can be connected to is for cw/address.h. */
static bool is_address(const char *a, size_t n)
{
    if (n < 9 || n > ADDRESS_MAX || memcmp(a, "tcp://", 6) != 0) return false;
    for (size_t i = 0; i < n; i++)
        if (a[i] <= 0x20 || a[i] >= 0x7f) return false;
    return true;
}

cw_status cw_join_make(const cw_join *j, char out[CW_JOIN_TEXT_MAX], cw_err *err)
{
    CW_ASSERT(j->role == CW_JOIN_WORKER || j->role == CW_JOIN_EDGE);
    size_t n_addr = strnlen(j->address, sizeof j->address), n = 0;
    if (!is_address(j->address, n_addr))
        return CW_FAIL(err, CW_STATUS_INVALID,
                       "the address for the join string must look like tcp://host:port");
    uint8_t payload[PAYLOAD_MAX];
    payload[n++] = (uint8_t)j->role;
    payload[n++] = (uint8_t)n_addr;
    memcpy(payload + n, j->address, n_addr), n += n_addr;
    memcpy(payload + n, j->coordinator.b, CW_KEY_BYTES), n += CW_KEY_BYTES;
    memcpy(payload + n, j->token, CW_TOKEN_BYTES), n += CW_TOKEN_BYTES;
    checksum(prefixes[j->role], payload, n, payload + n), n += CHECK_BYTES;
    size_t at = strlen(prefixes[j->role]);
    memcpy(out, prefixes[j->role], at);
    sodium_bin2base64(out + at, CW_JOIN_TEXT_MAX - at, payload, n, sodium_base64_VARIANT_URLSAFE_NO_PADDING);
    sodium_memzero(payload, sizeof payload);
    return CW_OK;
}

static cw_status decode(const char *text, cw_join_role role, cw_join *out, cw_err *err)
{
    uint8_t p[PAYLOAD_MAX], check[CHECK_BYTES];
    size_t n = 0;
    const char *body = text + strlen(prefixes[role]), *end = NULL;
    cw_join j = {.role = role};
    cw_status s = CW_OK;
    /* libsodium 1.0.18 also takes byte 0x80 for '_', so the alphabet is checked here. */
    if (body[strspn(body, alphabet)] ||
        sodium_base642bin(p, sizeof p, body, strlen(body), NULL, &n, &end,
                          sodium_base64_VARIANT_URLSAFE_NO_PADDING) != 0 ||
        *end || n < FIXED_BYTES) {
        s = BAD("%s", mistyped);
        goto done;
    }
    checksum(prefixes[role], p, n - CHECK_BYTES, check);
    if (memcmp(check, p + n - CHECK_BYTES, CHECK_BYTES) != 0) {
        s = BAD("%s", mistyped);
        goto done;
    }
    size_t n_addr = p[1];
    if (p[0] != role || n != FIXED_BYTES + n_addr || !is_address((const char *)p + 2, n_addr)) {
        s = BAD("the join string was made by something that is not a causeway coordinator");
        goto done;
    }
    memcpy(j.address, p + 2, n_addr);
    memcpy(j.coordinator.b, p + 2 + n_addr, CW_KEY_BYTES);
    memcpy(j.token, p + 2 + n_addr + CW_KEY_BYTES, CW_TOKEN_BYTES);
    *out = j;
done:
    sodium_memzero(p, sizeof p);
    cw_join_wipe(&j);
    return s;
}

static cw_status parse_compact(const char *text, cw_join *out, cw_err *err)
{
    if (!*text) return BAD("the join string is empty");
    for (int r = CW_JOIN_WORKER; r <= CW_JOIN_EDGE; r++)
        if (strncmp(text, prefixes[r], strlen(prefixes[r])) == 0)
            return decode(text, (cw_join_role)r, out, err);
    if (strncmp(text, "cw", 2) != 0)
        return BAD("this is not a join string: those begin with cw1-worker- or cw1-edge-; the coordinator "
                   "prints them, `causeway-coordinator token create` makes more");
    size_t digits = strspn(text + 2, "0123456789");
    if (digits && text[2 + digits] == '-' && !(digits == 1 && text[2] == '1'))
        return BAD("the join string is of format %.*s and this program knows format 1: it is mistyped, or "
                   "the coordinator is newer than this program",
                   (int)(digits < 4 ? digits : 4), text + 2);
    return BAD("%s", mistyped);
}

cw_status cw_join_parse(const char *text, cw_join *out, cw_err *err)
{
    CW_TRY(cw_crypto_init(err));
    char compact[CW_JOIN_TEXT_MAX];
    size_t n = 0;
    for (const char *c = text; *c; c++) {
        if (*c == ' ' || (*c >= '\t' && *c <= '\r')) continue;
        if (n == sizeof compact - 1) return BAD("this is too long for a join string");
        compact[n++] = *c;
    }
    compact[n] = 0;
    cw_status s = parse_compact(compact, out, err);
    sodium_memzero(compact, sizeof compact);
    return s;
}

cw_status cw_join_resolve(const char *arg, cw_join_role role, cw_join *out, cw_err *err)
{
    static const char *const names[] = {[CW_JOIN_WORKER] = "worker", [CW_JOIN_EDGE] = "edge"};
    if (!arg || !*arg) arg = getenv("CAUSEWAY_JOIN");
    if (!arg || !*arg)
        return CW_FAIL(err, CW_STATUS_NOT_FOUND,
                       "no join string: give --join STRING, --join @file or --join -, or set CAUSEWAY_JOIN");
    char *text = NULL;
    cw_join j;
    CW_TRY(cw_fs_read_arg(arg, ARG_MAX_BYTES, &text, err));
    cw_status s = cw_join_parse(text, &j, err);
    sodium_memzero(text, strlen(text));
    cw_free(text);
    if (s != CW_OK) return s;
    if (j.role != role)
        s = CW_FAIL(err, CW_STATUS_INVALID,
                    "this join string is for %s %s, and this program is %s %s: ask for `causeway-coordinator "
                    "token create --role %s`",
                    j.role == CW_JOIN_EDGE ? "an" : "a", names[j.role], role == CW_JOIN_EDGE ? "an" : "a",
                    names[role], names[role]);
    else
        *out = j;
    cw_join_wipe(&j);
    return s;
}

void cw_join_wipe(cw_join *j)
{
    sodium_memzero(j, sizeof *j);
}

void cw_token_new(uint8_t token[CW_TOKEN_BYTES])
{
    randombytes_buf(token, CW_TOKEN_BYTES);
}

/* A plain hash is enough: a token is 160 random bits, there is nothing to guess. */
void cw_token_hash(const void *token, size_t n, uint8_t out[32])
{
    cw_hash("causeway token 1", token, n, out);
}
