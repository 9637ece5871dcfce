/* The filler: stages one after another, every task once, whoever has time; over and over, with callers that
 * come early and late. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/filler.h"
#include "cw/mem.h"

enum { MAX_TASKS = 100, STAGES = 4, THREADS = 3 };

typedef struct {
    _Atomic int runs[MAX_TASKS];
    _Atomic int busy[THREADS + 1];
    _Atomic int ended;
    _Atomic int wrong;
    uint64_t out[MAX_TASKS];
} stage_job;

typedef struct {
    stage_job stage[STAGES];
    int n_tasks[STAGES];
} job;

typedef struct {
    job *j;
    int at;
} stage_ctx;

static void task(void *ctx, int i, int thread)
{
    const stage_ctx *c = ctx;
    stage_job *s = &c->j->stage[c->at];
    if (thread < 0 || thread > THREADS || atomic_fetch_add(&s->busy[thread], 1) != 0 || !cw_fp_ok())
        atomic_store(&s->wrong, 1);
    /* All of the stage before has ended, and what it wrote can be read. */
    int b = c->at - 1;
    if (b >= 0) {
        const stage_job *before = &c->j->stage[b];
        if (atomic_load_explicit(&before->ended, memory_order_relaxed) != c->j->n_tasks[b])
            atomic_store(&s->wrong, 2);
        for (int k = 0; k < c->j->n_tasks[b]; k++)
            if (before->out[k] != (uint64_t)k + 1) atomic_store(&s->wrong, 3);
    }
    s->out[i] = (uint64_t)i + 1;
    atomic_fetch_add(&s->runs[i], 1);
    atomic_fetch_sub(&s->busy[thread], 1);
    atomic_fetch_add_explicit(&s->ended, 1, memory_order_relaxed);
}

static void check(job *j, int n_stages)
{
    for (int s = 0; s < n_stages; s++) {
        assert_int_equal(atomic_load(&j->stage[s].wrong), 0);
        for (int k = 0; k < MAX_TASKS; k++)
            assert_int_equal(atomic_load(&j->stage[s].runs[k]), k < j->n_tasks[s]);
    }
}

static void chain(cw_filler *f, job *j, const int *n_tasks, int n_stages, useconds_t pause)
{
    stage_ctx ctx[STAGES];
    cw_stage stages[STAGES] = {0};
    memset(j, 0, sizeof *j);
    for (int s = 0; s < n_stages; s++) {
        j->n_tasks[s] = n_tasks[s];
        ctx[s] = (stage_ctx){j, s};
        stages[s] = (cw_stage){task, &ctx[s], n_tasks[s]};
    }
    cw_filler_begin(f, stages, n_stages);
    if (pause) usleep(pause);
    cw_filler_end(f);
    check(j, n_stages);
}

static cw_filler *make(cw_pool **pool)
{
    cw_filler *f = NULL;
    assert_int_equal(cw_pool_new(THREADS, pool, NULL), CW_OK);
    assert_int_equal(cw_filler_new(*pool, &f, NULL), CW_OK);
    assert_int_equal(cw_filler_threads(f), THREADS);
    return f;
}

static void every_stage_ends_before_the_next_begins(void **state)
{
    (void)state;
    static const int shapes[][STAGES] = {
        {1, 1, 1, 1}, {32, 1, 16, 3}, {0, 5, 0, 100}, {7, 0, 0, 0}, {0, 0, 0, 0}};
    static job j;
    cw_pool *pool;
    cw_filler *f = make(&pool);
    for (int round = 0; round < 200; round++)
        for (size_t k = 0; k < CW_ARRAY_LEN(shapes); k++)
            for (int n = 0; n <= STAGES; n++) chain(f, &j, shapes[k], n, 0);
    cw_filler_free(&f);
    assert_null(f);
    cw_pool_free(&pool);
}

/* Others do it all while the caller is away, or a part of it. */
static void it_goes_on_without_the_caller(void **state)
{
    (void)state;
    static const int shape[STAGES] = {40, 3, 20, 1};
    static job j;
    cw_pool *pool;
    cw_filler *f = make(&pool);
    for (int round = 0; round < 100; round++) chain(f, &j, shape, STAGES, (useconds_t)(round % 10) * 20);
    cw_filler_free(&f);
    cw_pool_free(&pool);
}

static void a_chain_allocates_nothing(void **state)
{
    (void)state;
    static const int shape[STAGES] = {40, 3, 20, 1};
    static job j;
    cw_pool *pool;
    cw_filler *f = make(&pool);
    chain(f, &j, shape, STAGES, 0);
    cw_alloc_guard_begin(false);
    chain(f, &j, shape, STAGES, 0);
    assert_int_equal(cw_alloc_guard_end(), 0);
    cw_filler_free(&f);
    cw_filler_free(&f); /* NULL is fine */
    cw_pool_free(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_stage_ends_before_the_next_begins),
        cmocka_unit_test(it_goes_on_without_the_caller),
        cmocka_unit_test(a_chain_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
