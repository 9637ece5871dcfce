/* What the parts of `causeway bench` share. */
#pragma once
#include "bench_report.h"
#include "cw/bench_memory.h"
#include "setup.h"

typedef struct {
    const cli_options *o;
    int32_t *threads, *prefill, *batch;
    size_t n_threads, n_prefill, n_batch;
    cli_report report;
    bool tty; /* stderr, where progress goes */
    bool line_open;
} cli_bench_run;

/* One line of progress: redrawn on a terminal, a line each elsewhere. */
void cli_bench_say(cli_bench_run *b, const char *fmt, ...) CW_PRINTF(2, 3);
/* Takes the line away before something is printed. */
void cli_bench_quiet(cli_bench_run *b);
/* CANCELLED after Ctrl-C. */
CW_MUST_USE cw_status cli_bench_go_on(cw_err *err);

/* cmd_bench_model.c: prefill and decode with pool's threads. */
CW_MUST_USE cw_status cli_bench_model(cli_bench_run *b, cw_pool *pool, cw_err *err);
/* cmd_bench_model.c: --wire. */
CW_MUST_USE cw_status cli_bench_wire(cli_bench_run *b, cw_pool *pool, cw_err *err);
