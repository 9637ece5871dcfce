/* The pool: every task once, thread numbers exclusive, the arithmetic of every thread, nothing lost over many
 * runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "cw/mem.h"
#include "cw/pool.h"

enum { MAX_TASKS = 500 };

typedef struct {
    _Atomic int runs[MAX_TASKS];
    _Atomic int busy[16];
    _Atomic int wrong;
    int n_threads;
    uint64_t out[MAX_TASKS];
} job;

static void count_task(void *ctx, int task, int thread)
{
    job *j = ctx;
    if (thread < 0 || thread >= j->n_threads || atomic_fetch_add(&j->busy[thread], 1) != 0)
        atomic_store(&j->wrong, 1);
    uint64_t v = (uint64_t)task;
    for (int i = 0; i < 1000; i++) v = v * 6364136223846793005u + 1;
    j->out[task] = v;
    atomic_fetch_add(&j->runs[task], 1);
    atomic_fetch_sub(&j->busy[thread], 1);
}

static void every_task_runs_once_whatever_the_threads(void **state)
{
    (void)state;
    static const int threads[] = {1, 2, 3, 5}, tasks[] = {0, 1, 2, 3, 7, 64, 499};
    static uint64_t first[MAX_TASKS];
    static job j;
    for (size_t t = 0; t < CW_ARRAY_LEN(threads); t++) {
        cw_pool *pool = NULL;
        assert_int_equal(cw_pool_new(threads[t], &pool, NULL), CW_OK);
        assert_int_equal(cw_pool_threads(pool), threads[t]);
        for (size_t k = 0; k < CW_ARRAY_LEN(tasks); k++) {
            memset(&j, 0, sizeof j);
            j.n_threads = threads[t];
            cw_pool_run(pool, count_task, &j, tasks[k]);
            for (int i = 0; i < MAX_TASKS; i++) assert_int_equal(atomic_load(&j.runs[i]), i < tasks[k]);
            assert_int_equal(atomic_load(&j.wrong), 0);
        }
        if (t == 0) memcpy(first, j.out, sizeof first);
        assert_memory_equal(first, j.out, sizeof first);
        cw_pool_free(&pool);
        assert_null(pool);
    }
}

typedef struct {
    _Atomic uint32_t sum;
    uint32_t base;
} small;

static void small_task(void *ctx, int task, int thread)
{
    (void)thread;
    small *s = ctx;
    atomic_fetch_add(&s->sum, s->base + (uint32_t)task);
}

/* Runs of different contexts and sizes in quick succession: a thread that wakes late must not touch the wrong
 * run. */
static void runs_in_quick_succession_do_not_mix(void **state)
{
    (void)state;
    cw_pool *pool = NULL;
    assert_int_equal(cw_pool_new(3, &pool, NULL), CW_OK);
    for (uint32_t r = 0; r < 20000; r++) {
        small s = {.base = r};
        int n = 2 + (int)(r % 7);
        cw_pool_run(pool, small_task, &s, n);
        uint32_t want = (uint32_t)n * r + (uint32_t)(n * (n - 1) / 2);
        assert_int_equal(atomic_load(&s.sum), want);
    }
    cw_pool_free(&pool);
}

typedef struct {
    _Atomic int bad, seen;
    _Atomic int thread_seen[8];
    int n_threads;
} fp_job;

static void fp_task(void *ctx, int task, int thread)
{
    (void)task;
    fp_job *j = ctx;
    volatile float tiny = 0x1p-126f, half = 0.5f, sub = 0x1p-140f, up = 0x1p100f, one = 1.0f,
                   eps = 0x1.8p-24f;
    volatile float a = tiny * half, b = sub * up, c = one + eps;
    if (a != 0x1p-127f || b != 0x1p-40f || c != 1.0f + 0x1p-23f || !cw_fp_ok()) atomic_fetch_add(&j->bad, 1);
    /* Hold every thread until all have come, so that each is looked at. */
    if (atomic_fetch_add(&j->thread_seen[thread], 1) == 0) atomic_fetch_add(&j->seen, 1);
    while (atomic_load(&j->seen) < j->n_threads) {
    }
}

/* A thread inherits its creator's mode: one made by a thread that flushes to zero must not flush. */
static void no_thread_flushes_to_zero(void **state)
{
    (void)state;
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | 0x8040 | 0x2000); /* FTZ, DAZ, round down */
    assert_false(cw_fp_ok());
#endif
    cw_pool *pool = NULL;
    assert_int_equal(cw_pool_new(4, &pool, NULL), CW_OK);
    fp_job j = {.n_threads = 4};
    cw_pool_run(pool, fp_task, &j, 4);
    assert_int_equal(atomic_load(&j.bad), 0);
    assert_int_equal(atomic_load(&j.seen), 4);
    cw_pool_free(&pool);
}

static void refuses_impossible_sizes(void **state)
{
    (void)state;
    cw_pool *pool = NULL;
    cw_err err;
    assert_int_equal(cw_pool_new(-1, &pool, &err), CW_STATUS_INVALID);
    assert_int_equal(cw_pool_new(CW_POOL_MAX_THREADS + 1, &pool, &err), CW_STATUS_INVALID);
    assert_null(pool);
    assert_int_equal(cw_pool_new(0, &pool, &err), CW_OK);
    assert_true(cw_pool_threads(pool) >= 1);
    cw_pool_free(&pool);
    cw_pool_free(&pool);
    assert_int_equal(cw_pool_threads(NULL), 1);
}

static void a_run_allocates_nothing(void **state)
{
    (void)state;
    cw_pool *pool = NULL;
    assert_int_equal(cw_pool_new(2, &pool, NULL), CW_OK);
    static job j;
    j.n_threads = 2;
    cw_alloc_guard_begin(false);
    cw_pool_run(pool, count_task, &j, 100);
    assert_int_equal(cw_alloc_guard_end(), 0);
    cw_pool_free(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once_whatever_the_threads),
        cmocka_unit_test(runs_in_quick_succession_do_not_mix),
        cmocka_unit_test(no_thread_flushes_to_zero),
        cmocka_unit_test(refuses_impossible_sizes),
        cmocka_unit_test(a_run_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
