/*
 * Work beside a wait, where others need the same cores: a thread with a compute pool of its own, all of them
 * of the lowest priority the system has (SCHED_IDLE), so that they run while a core has nothing else to do
 * and make room within microseconds when it has. What they compute is what any pool would.
 *
 * Only for somebody who waits anyway. On cores that others keep busy such work hardly moves: a wait that took
 * much longer than the work is remembered, and for a while cw_aside_has_room says no.
 * One owner at a time; nothing but new allocates.
 */
#pragma once
#include "cw/pool.h"

typedef struct cw_aside cw_aside;

/* n_threads 1 .. 256, or 0: one per available CPU. NO_MEMORY, LIMIT (the system gives no more threads). */
CW_MUST_USE cw_status cw_aside_new(int n_threads, cw_aside **out, cw_err *err);
/* Waits for what was started. */
void cw_aside_free(cw_aside **aside);

/* For what runs aside, and for nobody else. */
cw_pool *cw_aside_pool(cw_aside *a);

/* Whether it is worth starting something. Each no counts towards the next yes. */
CW_MUST_USE bool cw_aside_has_room(cw_aside *a);
/* Runs fn(ctx) aside. What was started before has been waited for. */
void cw_aside_start(cw_aside *a, void (*fn)(void *ctx), void *ctx);
/* Until it has ended; what it wrote is visible then. */
void cw_aside_wait(cw_aside *a);
