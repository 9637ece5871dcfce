/*
 * The compute pool.
 *
 * One atomic word, the ticket, holds the number of the run (high half) and the next task (low half); a thread
 * takes a task by compare-and-swap, so a thread that wakes late cannot take a task of a run it has not looked
 * at. The order that makes it safe: before a run's fields change, the ticket is closed (next = CLOSED); the
 * fields are written with release and read with acquire; so a thread that saw new fields also sees that its
 * old ticket is void, and its swap fails. The caller returns when every task is done, without waiting for
 * threads that came too late to get one.
 *
 * Threads look for work for at most SPIN_US when the pool has no more threads than there are CPUs, then
 * sleep.
 */
#include "cw/pool.h"
#include "cw/cpus.h"
#include "cw/mem.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

enum { SPIN_US = 20 };
#define CLOSED 0xffffffffu

struct cw_pool {
    _Atomic uint64_t ticket; /* run << 32 | next task */
    _Atomic(cw_pool_fn) fn;
    _Atomic(void *) ctx;
    _Atomic uint32_t n_tasks;
    _Atomic uint32_t done; /* tasks of this run that have ended */
    _Atomic int sleepers;  /* threads asleep or about to be */
    _Atomic bool caller_sleeps;
    _Atomic bool stop;
    _Atomic bool running; /* a cw_pool_run is in progress */
    uint64_t barriers;    /* the caller's */
    bool spin;
    int n_threads, n_started;
    pthread_mutex_t lock;
    pthread_cond_t work, idle;
    struct member {
        cw_pool *pool;
        int index;
        pthread_t thread;
    } * members; /* [n_threads], 0 unused */
};

static uint32_t run_of(uint64_t ticket)
{
    return (uint32_t)(ticket >> 32);
}

static void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t mono_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Runs tasks of the open run until none is left. */
static void take_tasks(cw_pool *p, int thread)
{
    for (;;) {
        uint64_t t = atomic_load(&p->ticket);
        uint32_t task = (uint32_t)t;
        if (task == CLOSED) return;
        cw_pool_fn fn = atomic_load_explicit(&p->fn, memory_order_acquire);
        void *ctx = atomic_load_explicit(&p->ctx, memory_order_acquire);
        uint32_t n = atomic_load_explicit(&p->n_tasks, memory_order_acquire);
        if (task >= n) return;
        if (!atomic_compare_exchange_weak(&p->ticket, &t, t + 1)) continue;
        fn(ctx, (int)task, thread);
        if (atomic_fetch_add(&p->done, 1) + 1 == n && atomic_load(&p->caller_sleeps)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->idle);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

/* Whether a thread that has seen run *seen should look for tasks (or leave); *seen moves to the open run. */
static bool wake(cw_pool *p, uint32_t *seen)
{
    uint64_t t = atomic_load(&p->ticket);
    if (run_of(t) != *seen && (uint32_t)t != CLOSED) {
        *seen = run_of(t);
        return true;
    }
    return atomic_load(&p->stop);
}

static void wait_for_run(cw_pool *p, uint32_t *seen)
{
    if (p->spin) {
        int64_t end = mono_us() + SPIN_US;
        do {
            for (int i = 0; i < 32; i++) {
                if (wake(p, seen)) return;
                cpu_relax();
            }
        } while (mono_us() < end);
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (!wake(p, seen)) pthread_cond_wait(&p->work, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *member_main(void *arg)
{
    struct member *m = arg;
    cw_pool *p = m->pool;
    uint32_t seen = 0;
    cw_fp_setup();
    while (!atomic_load(&p->stop)) {
        wait_for_run(p, &seen);
        take_tasks(p, m->index);
    }
    return NULL;
}

static void keep_to(pthread_t thread, int index)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cw_cpus_get(index), &one);
    (void)pthread_setaffinity_np(thread, sizeof one, &one); /* slower without */
}

static bool is_bound(const cw_pool *p)
{
    return cw_cpus_bound() && p->n_threads == cw_cpus_count();
}

void cw_pool_settle(const cw_pool *p)
{
    if (p && is_bound(p)) keep_to(pthread_self(), 0);
}

cw_status cw_pool_new(int n_threads, cw_pool **out, cw_err *err)
{
    if (n_threads < 0 || n_threads > CW_POOL_MAX_THREADS)
        return CW_FAIL(err, CW_STATUS_INVALID, "a pool can have 1 to %d threads, not %d", CW_POOL_MAX_THREADS,
                       n_threads);
    int cpus = cw_cpus_count();
    if (n_threads == 0) n_threads = cpus < CW_POOL_MAX_THREADS ? cpus : CW_POOL_MAX_THREADS;
    cw_pool *p = cw_calloc(1, sizeof *p);
    struct member *members = cw_calloc((size_t)n_threads, sizeof *members);
    if (!p || !members) {
        cw_free(p);
        cw_free(members);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a pool of %d threads", n_threads);
    }
    p->members = members;
    p->n_threads = n_threads;
    p->spin = n_threads <= cpus;
    atomic_store(&p->ticket, CLOSED);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->idle, NULL);
    p->n_started = 1;
    for (int i = 1; i < n_threads; i++) {
        members[i].pool = p;
        members[i].index = i;
        if (pthread_create(&members[i].thread, NULL, member_main, &members[i]) != 0) {
            cw_pool_free(&p);
            return CW_FAIL(err, CW_STATUS_LIMIT, "the system gave %d of %d compute threads", i, n_threads);
        }
        p->n_started = i + 1;
        if (is_bound(p)) keep_to(members[i].thread, i);
    }
    cw_fp_setup();
    *out = p;
    return CW_OK;
}

void cw_pool_free(cw_pool **pool)
{
    if (!pool || !*pool) return;
    cw_pool *p = *pool;
    CW_ASSERT(!atomic_load(&p->running));
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 1; i < p->n_started; i++) pthread_join(p->members[i].thread, NULL);
    pthread_cond_destroy(&p->idle);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    cw_free(p->members);
    cw_free(p);
    *pool = NULL;
}

int cw_pool_threads(const cw_pool *pool)
{
    return pool ? pool->n_threads : 1;
}

uint64_t cw_pool_barriers(const cw_pool *pool)
{
    return pool ? pool->barriers : 0;
}

static void wait_until_done(cw_pool *p, uint32_t n)
{
    if (p->spin) {
        int64_t end = mono_us() + SPIN_US;
        do {
            for (int i = 0; i < 32; i++) {
                if (atomic_load(&p->done) == n) return;
                cpu_relax();
            }
        } while (mono_us() < end);
    }
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_sleeps, true);
    while (atomic_load(&p->done) != n) pthread_cond_wait(&p->idle, &p->lock);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->lock);
}

void cw_pool_run(cw_pool *pool, cw_pool_fn fn, void *ctx, int n_tasks)
{
    CW_ASSERT(n_tasks >= 0);
    if (pool) CW_ASSERT(!atomic_exchange(&pool->running, true));
    if (!pool || pool->n_threads == 1 || n_tasks <= 1) {
        for (int i = 0; i < n_tasks; i++) fn(ctx, i, 0);
        if (pool) atomic_store(&pool->running, false);
        return;
    }
    pool->barriers++;
    uint64_t next_run = (uint64_t)(run_of(atomic_load(&pool->ticket)) + 1) << 32;
    atomic_store(&pool->ticket, next_run | CLOSED);
    atomic_store_explicit(&pool->fn, fn, memory_order_release);
    atomic_store_explicit(&pool->ctx, ctx, memory_order_release);
    atomic_store_explicit(&pool->n_tasks, (uint32_t)n_tasks, memory_order_release);
    atomic_store(&pool->done, 0);
    atomic_store(&pool->ticket, next_run);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->work);
        pthread_mutex_unlock(&pool->lock);
    }
    take_tasks(pool, 0);
    wait_until_done(pool, (uint32_t)n_tasks);
    atomic_store(&pool->running, false);
}
