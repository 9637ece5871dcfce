/* The sub-commands: a request to the running coordinator's admin socket, and its answer as text or as JSON
 * lines. */
#pragma once
#include "cw/status.h"

typedef struct {
    const char *state_dir;
    bool json;
    int role;        /* token create: 0 worker, 1 edge */
    int64_t uses;    /* -1: the role's default */
    double hours;    /* 0: the role's default */
    bool no_wait;    /* drain: do not watch it */
    const char *arg; /* token revoke: id; revoke, drain, undrain, unfence: who */
} admin_options;

/* `command` as on the command line: "status", "token create", ... */
CW_MUST_USE cw_status admin_command(const char *command, const admin_options *o, cw_err *err);
