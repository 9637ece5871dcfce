/*
 * What a layer's expert call costs and how long it takes, seen from the edge: submit and collect of synthetic
 * rows, nothing of the model around them. The processor's time is that of this process alone: what workers
 * spend is theirs to report. A round trip holds the workers' work on the rows; the least is asked for with
 * one row and one expert.
 */
#pragma once
#include "cw/bench_stats.h"
#include "cw/expert_ffn.h"
#include "cw/experts.h"

typedef struct {
    int n_rows;
    int n_used; /* experts of each row */
    int calls;  /* measured, after as many again / 8 + 1 that are not */
    int busy;   /* threads of this process that compute meanwhile */
} cw_bench_wire_case;

typedef struct {
    double p50_us, p99_us, min_us, max_us;
    /* Filled in by who knows the workers; -1: not all of them are on this machine. */
    double workers_cpu_us; /* of their processes, for one call */
    double service_us;     /* what they took to compute, by their own clocks: not the wire's */
    double own_cpu_us; /* of this process, for one call; -1 with busy threads, which cannot be told apart */
} cw_bench_wire_result;

/*
 * `shapes` [config->n_layers]; layers with experts take turns. The rows are random, the experts of a row
 * chosen evenly. Errors are those of the experts, and NO_MEMORY, UNSUPPORTED (no layer has experts), LIMIT
 * (no threads).
 */
CW_MUST_USE cw_status cw_bench_wire_run(cw_experts *x, const cw_model_config *config,
                                        const cw_expert_shape *shapes, const cw_kernels *kn,
                                        const cw_bench_wire_case *c, const atomic_bool *cancel,
                                        cw_bench_wire_result *out, cw_err *err);
