/*
 * Prefill and decode of one loaded model, a round at a time, so that the caller can lay rounds of different
 * cases beside each other and read the machine's bandwidth in between.
 *
 * Tokens are random ids from a fixed seed: routing sees variety, and no tokenizer is needed. Nothing is
 * sampled; a decode step is one forward pass with logits for every session. One thread.
 */
#pragma once
#include "cw/bench_stats.h"
#include "cw/phases.h"

typedef enum {
    CW_BENCH_PREFILL,    /* `tokens` of one session, logits of the last */
    CW_BENCH_DECODE,     /* `tokens` steps of `batch` sessions together */
    CW_BENCH_ALL_LOGITS, /* one session's `batch` tokens in one pass with the logits of all, at the same
                            depth: what a decode step of a batch is held against; `tokens` such passes */
} cw_bench_kind;

typedef struct {
    cw_bench_kind kind;
    int tokens, batch; /* batch 1 for PREFILL */
    int depth;         /* tokens that each session holds before */
    /* Results, by cw_bench_model_round. */
    int n_rounds;
    double speed[CW_BENCH_MAX_ROUNDS]; /* tokens a second */
    double read[CW_BENCH_MAX_ROUNDS];  /* GB/s of memory measured beside the round, by the caller; or 0 */
    cw_engine_phases phases;           /* all rounds together */
} cw_bench_case;

typedef struct cw_bench_model cw_bench_model;

/* Sessions for the largest batch and context of the cases. The engine outlives it. LIMIT when a batch is
 * more than the engine's rows or a case does not fit n_ctx (0: what the cases need); NO_MEMORY. */
CW_MUST_USE cw_status cw_bench_model_new(cw_engine *e, const cw_session_options *opt,
                                         const cw_bench_case *cases, int n_cases, cw_bench_model **out,
                                         cw_err *err);
void cw_bench_model_free(cw_bench_model **m);

/* A short run of the case that is not counted. */
CW_MUST_USE cw_status cw_bench_model_warm(cw_bench_model *m, const cw_bench_case *c,
                                          const atomic_bool *cancel, cw_err *err);
/* One round: speed[n_rounds++] and phases grow. */
CW_MUST_USE cw_status cw_bench_model_round(cw_bench_model *m, cw_bench_case *c, const atomic_bool *cancel,
                                           cw_err *err);

/* Bytes of weights this process read for the case, all rounds; with `network`, those of experts elsewhere
 * too. */
uint64_t cw_bench_case_bytes(const cw_bench_case *c, bool network);
/* GB/s of `bytes` in `ns`; 0 where ns is 0. */
double cw_bench_gb_s(uint64_t bytes, uint64_t ns);
