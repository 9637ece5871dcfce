/*
 * The coordinator's process from the inside: shell.c (its threads at work), shell_start.c (opening and
 * closing), tokens.c (join strings).
 */
#pragma once
#include <pthread.h>

#include "admin.h"
#include "cw/metrics.h"
#include "cw/net.h"
#include "prepare.h"
#include "reference.h"
#include "shell.h"
#include "state_db.h"
#include "store_server.h"

enum { TOKEN_SECRET_BYTES = 32 };

/* Keys that may use the store: written by the control thread, read by the store's. */
typedef struct {
    pthread_mutex_t lock;
    cw_key *keys;
    size_t n, cap;
} key_set;

struct shell {
    shell_options opts;
    cw_state *state;
    cw_keys *keys;
    cw_signer *signer;
    uint8_t token_secret[TOKEN_SECRET_BYTES];
    prepared_model model;
    cw_coordinator *machine;
    cw_net *control, *store;
    store_server *store_machine;
    admin_server *admin;
    reference *reference;
    cw_metrics *metrics; /* NULL: not asked for */
    char metrics_address[CW_METRICS_ADDRESS];
    int64_t metrics_us; /* when they are written next */
    pthread_t store_thread;
    bool store_running;
    key_set workers;
    char control_address[CW_ADDRESS_MAX], store_address[CW_ADDRESS_MAX];
    /* Why the process must end; the first one wins. Written by the control thread, and by the store's before
     * it stops the control net. */
    pthread_mutex_t failure_lock;
    cw_err failure;
};

/* ---- shell.c */
extern const cw_net_role shell_control_role, shell_store_role; /* ctx is to be filled in */
void shell_fail_with(shell *s, const cw_err *err);
bool shell_has_failed(shell *s);
/* A key that may use the store, or may no more. False: out of memory. */
bool shell_store_key(shell *s, const cw_key *key, bool in);
void *shell_run_store(void *shell);
store_config shell_store_config(shell *s);
extern const admin_hooks shell_admin_hooks;
void shell_wake(void *shell);

/* ---- metrics.c */
/* Tells what is going on, once a second. */
void metrics_step(shell *s, int64_t now_us);

/* ---- tokens.c */
/* The join string that is printed at the start: the newest one that is still good for a while, else a new
 * one. */
CW_MUST_USE cw_status tokens_default_join(shell *s, Cw__Pb__Role role, int64_t wall_ms, char *join,
                                          cw_token_row *row, cw_err *err);
