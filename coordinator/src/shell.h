/*
 * The coordinator's process: the machine on the control port, the store on the next one with a thread and a
 * net of its own, the admin socket, and the state on disk. The control net's thread owns machine and state.
 */
#pragma once
#include "cw/coordinator.h"
#include "cw/keys.h"

typedef struct {
    const char *model, *fallback;               /* fallback NULL: none */
    const char *listen, *advertise;             /* advertise NULL: the address that was bound */
    const char *store_listen, *store_advertise; /* NULL: next port of the same host */
    const char *state_dir;
    uint64_t store_rate; /* bytes a second and worker; 0: no limit */
    const char *metrics; /* loopback address, or NULL */
    uint32_t ticket_ms; /* how long edges' tickets are good */
    uint32_t max_workers, max_edges, max_edges_per_token;
} shell_options;

/* Runs until SIGTERM (CW_OK) or until it must not go on. */
CW_MUST_USE cw_status coordinator_run(const shell_options *o, cw_err *err);

/* ---- for the admin commands (admin_commands.c), in the machine's thread */

typedef struct shell shell;
cw_coordinator *shell_machine(shell *s);
const cw_signer *shell_signer(const shell *s);
typedef struct {
    const char *model_name, *control_address, *store_address;
    char digest[65];
    const char *metrics_address; /* "": none */
} shell_facts;
void shell_get_facts(const shell *s, shell_facts *out);
/* A new token and its join string (640 bytes). uses 0: any number. */
CW_MUST_USE cw_status shell_token_create(shell *s, Cw__Pb__Role role, uint32_t uses, int64_t lifetime_ms,
                                         int64_t wall_ms, uint32_t *id, char *join, cw_err *err);

/* Carries a request of the admin socket out; the reply is a heap string (cw_free), NULL when out of memory.
 */
typedef struct cJSON cJSON;
char *admin_execute(shell *s, const cJSON *request, int64_t now_us, int64_t wall_ms, cw_outbox *out);
