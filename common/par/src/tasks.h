/*
 * Numbered tasks of one function, given out to whoever asks: what a pool and a filler have in common.
 *
 * One atomic word, the ticket, holds the number of the run (high half) and the next task (low half); a thread
 * takes a task by compare-and-swap, so a thread that wakes late cannot take a task of a run it has not looked
 * at. The order that makes it safe: before a run's fields change, the ticket is closed (next = CLOSED); the
 * fields are written with release and read with acquire; so a thread that saw new fields also sees that its
 * old ticket is void, and its swap fails.
 */
#pragma once
#include <stdatomic.h>
#include <time.h>

#include "cw/pool.h"

#define TASKS_CLOSED 0xffffffffu

typedef struct {
    _Atomic uint64_t ticket; /* run << 32 | next task */
    _Atomic(cw_pool_fn) fn;
    _Atomic(void *) ctx;
    _Atomic uint32_t n;
    _Atomic uint32_t done; /* tasks of this run that have ended */
} tasks;

static inline void tasks_init(tasks *t)
{
    atomic_store(&t->ticket, TASKS_CLOSED);
}

static inline uint32_t tasks_run_of(uint64_t ticket)
{
    return (uint32_t)(ticket >> 32);
}

/* A new run of n > 0 tasks, when the last one has ended. By one thread at a time. */
static inline void tasks_open(tasks *t, cw_pool_fn fn, void *ctx, uint32_t n)
{
    uint64_t next_run = (uint64_t)(tasks_run_of(atomic_load(&t->ticket)) + 1) << 32;
    atomic_store(&t->ticket, next_run | TASKS_CLOSED);
    atomic_store_explicit(&t->fn, fn, memory_order_release);
    atomic_store_explicit(&t->ctx, ctx, memory_order_release);
    atomic_store_explicit(&t->n, n, memory_order_release);
    atomic_store(&t->done, 0);
    atomic_store(&t->ticket, next_run);
}

typedef enum { TASKS_NONE, TASKS_ONE, TASKS_LAST } tasks_taken;

/* Runs a task of the open run, if there is one. LAST: it was the last to end, and so ended the run. */
static inline tasks_taken tasks_take_one(tasks *t, int thread)
{
    for (;;) {
        uint64_t ticket = atomic_load(&t->ticket);
        uint32_t task = (uint32_t)ticket;
        if (task == TASKS_CLOSED) return TASKS_NONE;
        cw_pool_fn fn = atomic_load_explicit(&t->fn, memory_order_acquire);
        void *ctx = atomic_load_explicit(&t->ctx, memory_order_acquire);
        uint32_t n = atomic_load_explicit(&t->n, memory_order_acquire);
        if (task >= n) return TASKS_NONE;
        if (!atomic_compare_exchange_weak(&t->ticket, &ticket, ticket + 1)) continue;
        fn(ctx, (int)task, thread);
        return atomic_fetch_add(&t->done, 1) + 1 == n ? TASKS_LAST : TASKS_ONE;
    }
}

/* Runs tasks of the open run until none is left. true: it ended the run. */
static inline bool tasks_take(tasks *t, int thread)
{
    tasks_taken got;
    do got = tasks_take_one(t, thread);
    while (got == TASKS_ONE);
    return got == TASKS_LAST;
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Looks for at most SPIN_US whether `what` has become true. */
enum { SPIN_US = 20 };
#define SPIN_FOR(what)                                                                                       \
    do {                                                                                                     \
        int64_t spin_end = spin_now_us() + SPIN_US;                                                          \
        do                                                                                                   \
            for (int spin_i = 0; spin_i < 32 && !(what); spin_i++) cpu_relax();                              \
        while (!(what) && spin_now_us() < spin_end);                                                         \
    } while (0)

static inline int64_t spin_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}
