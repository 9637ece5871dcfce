/*
 * Join strings. Tokens are made from a secret of the state directory, their role and their time of making,
 * which is unique: the database holds hashes only, and still a restart prints the join strings that are in
 * people's notes instead of new ones.
 */
#include <stdio.h>
#include <string.h>

#include "cw/hash.h"
#include "cw/join.h"
#include "shell_internal.h"

enum { WORKER_USES = 8, WORKER_HOURS = 1, EDGE_HOURS = 720 };

static void token_secret(const shell *s, Cw__Pb__Role role, int64_t created_ms, uint8_t token[CW_TOKEN_BYTES])
{
    uint8_t hash[CW_HASH_BYTES];
    int64_t salt[2] = {role, created_ms};
    cw_hash_state h;
    cw_hash_begin(&h, "causeway token secret 1");
    cw_hash_add(&h, s->token_secret, sizeof s->token_secret);
    cw_hash_add(&h, salt, sizeof salt);
    cw_hash_end(&h, hash);
    memcpy(token, hash, CW_TOKEN_BYTES);
}

static cw_status make_join(const shell *s, Cw__Pb__Role role, int64_t created_ms, char join[CW_JOIN_TEXT_MAX],
                           cw_err *err)
{
    cw_join j = {.role = role == CW__PB__ROLE__ROLE_WORKER ? CW_JOIN_WORKER : CW_JOIN_EDGE,
                 .coordinator = *cw_keys_public(s->keys)};
    snprintf(j.address, sizeof j.address, "%s", s->control_address);
    token_secret(s, role, created_ms, j.token);
    cw_status st = cw_join_make(&j, join, err);
    cw_join_wipe(&j);
    return st;
}

cw_status shell_token_create(shell *s, Cw__Pb__Role role, uint32_t uses, int64_t lifetime_ms, int64_t wall_ms,
                             uint32_t *id, char *join, cw_err *err)
{
    cw_token_row t = {.role = role,
                      .uses_max = uses,
                      .created_ms = wall_ms,
                      .expires_ms = wall_ms + lifetime_ms},
                 other;
    if (role == CW__PB__ROLE__ROLE_EDGE) t.max_live = s->opts.max_edges_per_token;
    for (size_t i = 0; cw_coordinator_get_token(s->machine, i, &other);)
        if (other.created_ms == t.created_ms) {
            t.created_ms++;
            i = 0;
        } else {
            i++;
        }
    uint8_t token[CW_TOKEN_BYTES];
    token_secret(s, role, t.created_ms, token);
    cw_token_hash(token, sizeof token, t.hash);
    CW_TRY(make_join(s, role, t.created_ms, join, err));
    return cw_coordinator_token_add(s->machine, &t, id, err);
}

cw_status tokens_default_join(shell *s, Cw__Pb__Role role, int64_t wall_ms, char *join, cw_token_row *row,
                              cw_err *err)
{
    bool worker = role == CW__PB__ROLE__ROLE_WORKER;
    uint32_t uses = worker ? WORKER_USES : 0, id = 0;
    int64_t lifetime_ms = (int64_t)(worker ? WORKER_HOURS : EDGE_HOURS) * 3600000;
    cw_token_row t, best = {0};
    for (size_t i = 0; cw_coordinator_get_token(s->machine, i, &t); i++) {
        uint8_t token[CW_TOKEN_BYTES], hash[CW_TOKEN_HASH_BYTES];
        token_secret(s, t.role, t.created_ms, token);
        cw_token_hash(token, sizeof token, hash);
        bool good = t.role == role && !t.revoked && t.uses_max == uses && (!uses || t.uses < uses) &&
                    t.expires_ms - wall_ms > lifetime_ms / 4;
        if (good && memcmp(hash, t.hash, sizeof hash) == 0) best = t;
    }
    if (best.id) {
        CW_TRY(make_join(s, role, best.created_ms, join, err));
    } else {
        CW_TRY(shell_token_create(s, role, uses, lifetime_ms, wall_ms, &id, join, err));
        for (size_t i = 0; cw_coordinator_get_token(s->machine, i, &t); i++)
            if (t.id == id) best = t;
    }
    *row = best;
    return CW_OK;
}
