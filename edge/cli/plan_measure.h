/*
 * What `causeway plan` times: this machine's part of a pass with experts that answer zeros at once, the
 * fallback, and with a cluster its calls. One thread; blocks for a few hundred passes.
 */
#pragma once
#include "setup.h"

typedef struct {
    double edge_us, edge_row_us;  /* a pass of one row without experts; each further row */
    double fallback_us, local_us; /* a token; 0: none, or it does not fit */
    bool can_draft;
    cw_model_facts facts;
    cw_plan_model model;
    /* with a cluster: */
    bool joined;
    cw_plan link;           /* its link and workers.n */
    double one_us, five_us; /* passes of one row and of five through it */
} cli_measured;

CW_MUST_USE cw_status cli_plan_measure(const cli_options *o, const char *path, const char *fallback,
                                       cli_measured *out, cw_err *err);
