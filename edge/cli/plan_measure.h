/*
 * What `causeway plan` times: this machine's part of a pass with experts that answer zeros at once, the
 * fallback, and with a cluster passes through it. One thread; blocks for some seconds.
 */
#pragma once
#include "setup.h"

enum { CLI_MEASURED = 5 };
extern const int cli_measured_rows[CLI_MEASURED];

typedef struct {
    double edge_us, edge_row_us;  /* a pass of one row without experts; each further row */
    double fallback_us, local_us; /* a token; 0: none, or it does not fit */
    bool can_draft;
    cw_model_facts facts;
    cw_plan_model model;
    /* with a cluster: */
    bool joined;
    cw_plan link;                 /* its link and workers.n */
    double pass_us[CLI_MEASURED]; /* through it, of cli_measured_rows */
} cli_measured;

CW_MUST_USE cw_status cli_plan_measure(const cli_options *o, const char *path, const char *fallback,
                                       cli_measured *out, cw_err *err);
