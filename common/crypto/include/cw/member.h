/*
 * A process's place in a cluster: its private state directory (one process at a time), its key pair, and the
 * coordinator it belongs to. Filled from a join string the first time and from the directory afterwards;
 * starting again with the same string changes nothing, another coordinator's string moves the process there.
 * One thread; blocks on the disk.
 */
#pragma once
#include "cw/fs.h"
#include "cw/join.h"
#include "cw/keys.h"

typedef struct {
    char *dir;
    cw_lock *lock;
    cw_keys *keys;
    char address[CW_JOIN_ADDRESS_MAX]; /* the coordinator's control port */
    cw_key coordinator;
    uint8_t token[CW_TOKEN_BYTES]; /* wiped by close */
    bool has_token;                /* false: started without a join string */
    bool enrolled;                 /* that coordinator has let this key in before */
} cw_member;

/*
 * `state_dir` NULL: the default directory for role and name. `join` as cw_join_resolve takes it. Errors are
 * for the user: BUSY (the directory is in use: choose another --name), NOT_FOUND (no join string and nothing
 * stored), FORMAT and INVALID (the string), AUTH and IO (the directory).
 */
CW_MUST_USE cw_status cw_member_open(cw_join_role role, const char *state_dir, const char *name,
                                     const char *join, cw_member *out, cw_err *err);
/* Remembers that the coordinator knows this key now. */
CW_MUST_USE cw_status cw_member_enrolled(cw_member *m, cw_err *err);
void cw_member_close(cw_member *m);
/* Whether the directory belongs to a cluster already, so that no join string is needed. */
bool cw_member_is_stored(cw_join_role role, const char *state_dir, const char *name);

/* The state directory alone, made private when there is none; caller frees. It may be in use. */
CW_MUST_USE cw_status cw_member_dir(cw_join_role role, const char *state_dir, const char *name, char **out,
                                    cw_err *err);

/* A --name: 1..64 of letters, digits, '.', '_', '-', not beginning with '.'. INVALID. NULL: out gets the
 * host's name made to fit. */
CW_MUST_USE cw_status cw_member_name(const char *name, char out[65], cw_err *err);
