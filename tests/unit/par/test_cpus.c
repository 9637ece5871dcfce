/* Lists of CPUs, and that a process and its pools stay on them. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "cw/cpus.h"
#include "cw/pool.h"

static void what_is_no_list_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"",           "x",    "-1",    "1-",   "0,",
                                      ",0",         "3-2",  "0 1",   "0-0x", "99999999999999999999",
                                      "0-99999999", "1000", "0,1000"};
    cpu_set_t before, after;
    cw_err err;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++) {
        assert_int_equal(cw_cpus_bind(bad[i], &err), CW_STATUS_INVALID);
        assert_non_null(strstr(err.text, "--cpus"));
    }
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
    assert_false(cw_cpus_bound());
}

typedef struct {
    _Atomic int astray, ran, arrived;
} seen;

/* Both tasks at once, so that two threads have one each. */
static void where(void *ctx, int task, int thread)
{
    (void)task;
    seen *s = ctx;
    cpu_set_t set;
    atomic_fetch_add(&s->arrived, 1);
    while (atomic_load(&s->arrived) < 2) sched_yield();
    if (thread == 1 && (sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) != 1 ||
                        !CPU_ISSET(cw_cpus_get(1), &set)))
        atomic_fetch_add(&s->astray, 1);
    atomic_fetch_add(&s->ran, thread);
}

static void a_bound_process_stays(void **state)
{
    (void)state;
    char list[32];
    cw_err err;
    if (cw_cpus_count() < 2) skip();
    int a = cw_cpus_get(0), b = cw_cpus_get(1);
    assert_true(a < b);
    snprintf(list, sizeof list, "%d,%d-%d", b, a, a);
    assert_int_equal(cw_cpus_bind(list, &err), CW_OK);
    assert_true(cw_cpus_bound());
    assert_int_equal(cw_cpus_count(), 2);
    assert_int_equal(cw_cpus_get(0), a);
    assert_int_equal(cw_cpus_get(1), b);
    cw_pool *pool = NULL;
    assert_int_equal(cw_pool_new(0, &pool, &err), CW_OK);
    assert_int_equal(cw_pool_threads(pool), 2);
    seen s = {0};
    cw_pool_run(pool, where, &s, 2);
    assert_int_equal(atomic_load(&s.ran), 1);
    assert_int_equal(atomic_load(&s.astray), 0);
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    assert_int_equal(CPU_COUNT(&set), 2);
    cw_pool_settle(pool);
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    assert_true(CPU_COUNT(&set) == 1 && CPU_ISSET(a, &set));
    assert_int_equal(cw_cpus_count(), 2);
    assert_int_equal(cw_cpus_get(1), b);
    cw_pool_free(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_no_list_is_refused),
        cmocka_unit_test(a_bound_process_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
