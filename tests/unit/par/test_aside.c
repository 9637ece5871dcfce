/* Work aside: done when waited for, by the threads of its own pool, which make room for everybody else. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <time.h>
#include <cmocka.h>

#include "cw/aside.h"

enum { TASKS = 64 };

typedef struct {
    cw_aside *aside;
    int done[TASKS];
    _Atomic int idle, wrong_fp;
    pthread_t caller;
} job;

static void task(void *ctx, int i, int thread)
{
    (void)thread;
    job *j = ctx;
    int policy;
    struct sched_param p;
    if (pthread_getschedparam(pthread_self(), &policy, &p) == 0 && policy == SCHED_IDLE)
        atomic_fetch_add(&j->idle, 1);
    if (!cw_fp_ok()) atomic_fetch_add(&j->wrong_fp, 1);
    j->done[i]++;
}

static void work(void *ctx)
{
    job *j = ctx;
    j->caller = pthread_self();
    cw_pool_run(cw_aside_pool(j->aside), task, j, TASKS);
}

static void it_is_done_when_waited_for(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 3; threads++) {
        job j = {0};
        assert_int_equal(cw_aside_new(threads, &j.aside, NULL), CW_OK);
        assert_int_equal(cw_pool_threads(cw_aside_pool(j.aside)), threads);
        for (int round = 1; round <= 500; round++) {
            cw_aside_start(j.aside, work, &j);
            cw_aside_wait(j.aside);
            for (int i = 0; i < TASKS; i++) assert_int_equal(j.done[i], round);
        }
        assert_false(pthread_equal(j.caller, pthread_self()));
        assert_int_equal(atomic_load(&j.idle), 500 * TASKS);
        assert_int_equal(atomic_load(&j.wrong_fp), 0);
        cw_aside_free(&j.aside);
        assert_null(j.aside);
    }
}

static void closing_waits_for_what_was_started(void **state)
{
    (void)state;
    for (int round = 0; round < 100; round++) {
        job j = {0};
        assert_int_equal(cw_aside_new(2, &j.aside, NULL), CW_OK);
        cw_aside *a = j.aside;
        cw_aside_start(a, work, &j);
        cw_aside_free(&a);
        for (int i = 0; i < TASKS; i++) assert_int_equal(j.done[i], 1);
    }
}

/* Sleeps: a wait without work of its own, as on cores that others keep. */
static void doze(void *ctx)
{
    (void)ctx;
    nanosleep(&(struct timespec){.tv_nsec = 15000000}, NULL);
}

static void nothing(void *ctx)
{
    (void)ctx;
}

static int turned_down(cw_aside *a)
{
    int n = 0;
    while (!cw_aside_has_room(a)) n++;
    return n;
}

static void where_it_is_starved_it_is_left_alone_for_a_while(void **state)
{
    (void)state;
    cw_aside *a = NULL;
    assert_int_equal(cw_aside_new(1, &a, NULL), CW_OK);
    assert_int_equal(turned_down(a), 0);
    int before = 0;
    for (int i = 0; i < 3; i++) {
        cw_aside_start(a, doze, NULL);
        cw_aside_wait(a);
        int n = turned_down(a);
        assert_int_equal(n, before ? 2 * before : 256);
        before = n;
    }
    /* On a busy machine some of these are late too. */
    for (int well = 0; well < 1000;) {
        cw_aside_start(a, nothing, NULL);
        cw_aside_wait(a);
        well = turned_down(a) ? 0 : well + 1;
    }
    cw_aside_start(a, doze, NULL);
    cw_aside_wait(a);
    assert_int_equal(turned_down(a), 256);
    cw_aside_free(&a);
}

static void too_many_threads_are_refused(void **state)
{
    (void)state;
    cw_aside *a = NULL;
    cw_err err;
    assert_int_equal(cw_aside_new(CW_POOL_MAX_THREADS + 1, &a, &err), CW_STATUS_INVALID);
    assert_null(a);
    cw_aside_free(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_done_when_waited_for),
        cmocka_unit_test(closing_waits_for_what_was_started),
        cmocka_unit_test(where_it_is_starved_it_is_left_alone_for_a_while),
        cmocka_unit_test(too_many_threads_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
