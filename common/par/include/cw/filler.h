/*
 * Work for the gaps that other processes leave on our CPUs: a chain of stages that threads of the lowest
 * priority compute, one on each CPU, while the caller waits for something else. A CPU that has anything
 * better to do leaves it to the others, which no division made in advance could know. In the end the caller
 * takes part with its own priority.
 *
 * As with a pool (cw/pool.h), who computes never decides what. Where the system has no such priority
 * (SCHED_IDLE, Linux) they are ordinary threads: right, but in the way.
 */
#pragma once
#include "cw/pool.h"

typedef struct cw_filler cw_filler;

/* Every task of a stage ends before the next stage's first begins. `thread` of fn is 0 for the caller and at
 * most cw_filler_threads. */
typedef struct {
    cw_pool_fn fn;
    void *ctx; /* must live until the end of the chain */
    int n_tasks;
} cw_stage;

enum { CW_FILLER_STAGES = 4 };

/* As many threads as `pool` has, on the same CPUs where the process is bound. NO_MEMORY, LIMIT. */
CW_MUST_USE cw_status cw_filler_new(const cw_pool *pool, cw_filler **out, cw_err *err);
/* Not between begin and end. */
void cw_filler_free(cw_filler **f);
int cw_filler_threads(const cw_filler *f);

/* Returns at once. n <= CW_FILLER_STAGES; they are copied. The chain before must have ended. Allocates
 * nothing. */
void cw_filler_begin(cw_filler *f, const cw_stage *stages, int n);
/* By the same thread, which is in the project's arithmetic (cw_fp_setup): returns when all stages have ended;
 * what they wrote is visible then. */
void cw_filler_end(cw_filler *f);
