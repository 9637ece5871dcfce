/*
 * Compute pool: a fixed set of threads that run numbered tasks of one function, with the calling thread
 * taking part.
 *
 * The pool chooses who computes, never what: which thread runs a task must not influence its result. Every
 * pool thread runs with round-to-nearest and without flush-to-zero (cw_fp_setup); the caller's own thread is
 * set up by the caller of cw_pool_new, which does it for the thread it runs on.
 */
#pragma once
#include "cw/status.h"

typedef struct cw_pool cw_pool;

/* task: 0 .. n_tasks-1, each given out exactly once. thread: 0 .. cw_pool_threads-1, 0 is the caller; no two
 * tasks run with the same thread number at the same time, so it can index scratch memory. */
typedef void (*cw_pool_fn)(void *ctx, int task, int thread);

enum { CW_POOL_MAX_THREADS = 256 };

/*
 * n_threads counts the caller: 1 starts no thread and cw_pool_run is a plain loop. 0 means one per available
 * CPU. In a process bound to as many CPUs (cw/cpus.h) every started thread keeps to its own; cw_pool_settle
 * for the caller. Sets the floating-point mode of the calling thread too. Errors: INVALID (n_threads out of
 * 0..256), NO_MEMORY, LIMIT (the system gives no more threads).
 */
CW_MUST_USE cw_status cw_pool_new(int n_threads, cw_pool **out, cw_err *err);
/* By the thread that will call cw_pool_run, where no other does: in a bound process it keeps to the first
 * CPU, and so do the threads that it starts from then on. */
void cw_pool_settle(const cw_pool *pool);
/* Stops and joins the threads. Must not be called while cw_pool_run is in progress. */
void cw_pool_free(cw_pool **pool);

/* Number of threads including the caller; 1 for NULL. */
int cw_pool_threads(const cw_pool *pool);

/*
 * Runs fn(ctx, task, thread) for every task and returns when all have ended; what the tasks wrote is visible
 * to the caller then. Allocates nothing. pool = NULL runs everything in the caller. One cw_pool_run at a time
 * per pool, from any thread that has called cw_fp_setup; not from inside a task (both asserted).
 */
void cw_pool_run(cw_pool *pool, cw_pool_fn fn, void *ctx, int n_tasks);

/* How many of them had tasks for more than one thread, and so ended in a wait; runs of one task and pools of
 * one thread cost no barrier. Between runs. */
uint64_t cw_pool_barriers(const cw_pool *pool);

/* Puts the calling thread into the project's arithmetic: round to nearest even, subnormals kept in operands
 * and results. Every thread that computes rows calls it once; pool threads do it themselves. */
void cw_fp_setup(void);
/* Whether the calling thread is in that arithmetic. Debug checks and tests. */
CW_MUST_USE bool cw_fp_ok(void);
