/*
 * The compute pool.
 *
 * The tasks of a run are given out by tasks.h. The caller returns when every task is done, without waiting
 * for threads that came too late to get one.
 *
 * Threads look for work for at most SPIN_US when the pool has no more threads than there are CPUs, then
 * sleep.
 */
#include "cw/pool.h"
#include "cw/cpus.h"
#include "cw/mem.h"

#include "tasks.h"

#include <pthread.h>

struct cw_pool {
    tasks tasks;
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

/* Runs tasks of the open run until none is left. */
static void take_tasks(cw_pool *p, int thread)
{
    if (!tasks_take(&p->tasks, thread) || !atomic_load(&p->caller_sleeps)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_signal(&p->idle);
    pthread_mutex_unlock(&p->lock);
}

/* Whether a thread that has seen run *seen should look for tasks (or leave); *seen moves to the open run. */
static bool wake(cw_pool *p, uint32_t *seen)
{
    uint64_t t = atomic_load(&p->tasks.ticket);
    if (tasks_run_of(t) != *seen && (uint32_t)t != TASKS_CLOSED) {
        *seen = tasks_run_of(t);
        return true;
    }
    return atomic_load(&p->stop);
}

static void wait_for_run(cw_pool *p, uint32_t *seen)
{
    bool found = false;
    if (p->spin) SPIN_FOR(found || (found = wake(p, seen)));
    if (found) return;
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

void cw_pool_settle(const cw_pool *p)
{
    if (p && cw_cpus_one_each(p->n_threads)) cw_cpus_keep(pthread_self(), 0);
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
    tasks_init(&p->tasks);
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
        if (cw_cpus_one_each(n_threads)) cw_cpus_keep(members[i].thread, i);
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
    if (p->spin) SPIN_FOR(atomic_load(&p->tasks.done) == n);
    if (atomic_load(&p->tasks.done) == n) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_sleeps, true);
    while (atomic_load(&p->tasks.done) != n) pthread_cond_wait(&p->idle, &p->lock);
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
    tasks_open(&pool->tasks, fn, ctx, (uint32_t)n_tasks);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->work);
        pthread_mutex_unlock(&pool->lock);
    }
    take_tasks(pool, 0);
    wait_until_done(pool, (uint32_t)n_tasks);
    atomic_store(&pool->running, false);
}
