/* What `causeway bench` prints: tables, or one JSON object for each measurement. One thread. */
#pragma once
#include "cw/bench_kernels.h"
#include "cw/bench_model.h"
#include "cw/bench_wire.h"
#include <stdio.h>

typedef struct {
    FILE *out;
    bool json;
    const char *table; /* heading of the table being printed; NULL at the beginning */
} cli_report;

typedef struct {
    int threads;
    size_t bytes;
    uint64_t huge_bytes; /* of them in huge pages */
    int ahead;
    cw_bench_stats gb_s;
} cli_report_memory_line;

/* What all cases of one engine share. */
typedef struct {
    const char *model, *isa, *mode;
    int threads;
} cli_report_engine;

void cli_report_memory(cli_report *r, const cli_report_memory_line *m);
/* `partner`: the case of ALL_LOGITS that a batch's decode is held against, or NULL. */
void cli_report_case(cli_report *r, const cli_report_engine *e, const cw_bench_case *c,
                     const cw_bench_case *partner);

/* One kernel's product; read_share: of the memory's speed measured beside each round. */
typedef struct {
    const char *isa, *type;
    int threads, m;
    cw_bench_mm_speed speed; /* medians */
    double spread, read_gb_s, read_share;
} cli_report_product_line;

void cli_report_product(cli_report *r, const cli_report_product_line *p);
void cli_report_op(cli_report *r, const char *isa, const cw_bench_op_speed *op);
void cli_report_wire(cli_report *r, const cw_bench_wire_case *c, const cw_bench_wire_result *w,
                     uint64_t bytes_out, uint64_t bytes_in);
