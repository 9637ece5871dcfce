/*
 * The admin socket: a unix socket in the state directory (0600), one JSON object a line in, one out. Whoever
 * can open it is the operator; nothing of it is on the network.
 *
 * admin_server is a thread that reads requests and hands them, one at a time, to the thread that owns the
 * machine (admin_take / admin_answer); admin_ask is the client of the sub-commands.
 */
#pragma once
#include "cw/json.h"
#include "cw/status.h"

typedef struct cJSON cJSON;
typedef struct admin_server admin_server;

/* `wake` is called in the admin thread when a request waits; `stopped` when SIGTERM came (once). BUSY or IO.
 */
typedef struct {
    void *ctx;
    void (*wake)(void *ctx);
    void (*stopped)(void *ctx);
} admin_hooks;

CW_MUST_USE cw_status admin_server_start(const char *dir, const admin_hooks *hooks, admin_server **out,
                                         cw_err *err);
/* Ends the thread; a request that waits is answered with an error. */
void admin_server_stop(admin_server **a);

/* In the machine's thread: the request that waits, or NULL. It stays the server's until admin_answer. */
const cJSON *admin_take(admin_server *a);
/* `reply` is a whole JSON line without newline; copied. NULL: out of memory. */
void admin_answer(admin_server *a, const char *reply);

/*
 * Sends one line and waits for one (10 s). `*reply` is {"ok": true, "result": ...}'s result, freed with
 * cJSON_Delete; an answer with ok false becomes REFUSED with its sentence. UNREACHABLE: no coordinator runs
 * on that directory.
 */
CW_MUST_USE cw_status admin_ask(const char *dir, const char *request, cJSON **reply, cw_err *err);
