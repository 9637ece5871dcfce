/*
 * See cw/filler.h. Whoever ends a stage opens the next. Nothing here is locked: a thread of the lowest
 * priority that held a lock could be kept from running for as long as others have work, and so would be
 * whoever wants the lock. The same is true of the task that such a thread has in hand, which is why tasks
 * should be short (tens of microseconds), and is all that the caller may have to wait for. Sleepers are woken
 * through semaphores; one that is woken for nothing looks and sleeps again.
 */
#include "cw/filler.h"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>

#include "cw/cpus.h"
#include "cw/mem.h"
#include "tasks.h"

struct cw_filler {
    tasks tasks;
    cw_stage stages[CW_FILLER_STAGES];
    _Atomic int n_stages;
    _Atomic int at; /* the open stage; n_stages: the chain has ended */
    _Atomic bool stop;
    int n_threads, n_started;
    struct filler_member {
        cw_filler *filler;
        int index; /* 0: the caller's place, without a thread */
        pthread_t thread;
        sem_t go;
    } * members; /* [n_threads + 1] */
};

static void post_all(cw_filler *f)
{
    for (int i = 0; i <= f->n_threads; i++) sem_post(&f->members[i].go);
}

/* Opens stage `at` or the first behind it that has tasks, or ends the chain. */
static void open_stage(cw_filler *f, int at)
{
    int n = atomic_load(&f->n_stages);
    while (at < n && f->stages[at].n_tasks == 0) at++;
    atomic_store(&f->at, at);
    if (at < n)
        tasks_open(&f->tasks, f->stages[at].fn, f->stages[at].ctx, (uint32_t)f->stages[at].n_tasks);
    post_all(f);
}

static void next_stage(cw_filler *f)
{
    open_stage(f, atomic_load(&f->at) + 1);
}

/* Between tasks the CPU is offered to others: the lowest priority alone does not keep a thread that has slept
 * for long from being chosen first. */
static void work_in_gaps(cw_filler *f, int thread)
{
    tasks_taken got;
    do {
        sched_yield();
        got = tasks_take_one(&f->tasks, thread);
        if (got == TASKS_LAST) next_stage(f);
    } while (got != TASKS_NONE);
}

static bool has_ended(cw_filler *f)
{
    return atomic_load(&f->at) >= atomic_load(&f->n_stages);
}

static bool has_tasks(cw_filler *f)
{
    uint64_t t = atomic_load(&f->tasks.ticket);
    return (uint32_t)t != TASKS_CLOSED && (uint32_t)t < atomic_load(&f->tasks.n);
}

static void sleep_until_posted(sem_t *s)
{
    while (sem_wait(s) != 0) { /* interrupted */
    }
    while (sem_trywait(s) == 0) { /* one look is enough for all of them */
    }
}

static void *member_main(void *arg)
{
    struct filler_member *m = arg;
    cw_filler *f = m->filler;
    struct sched_param none = {0};
    (void)pthread_setschedparam(pthread_self(), SCHED_IDLE, &none);
    cw_fp_setup();
    while (!atomic_load(&f->stop)) {
        work_in_gaps(f, m->index);
        /* A stage may be about to end elsewhere; and where the chain has ended, the pool's thread is wanted
         * on this CPU in a moment, which takes an idle one far longer than a busy one to notice. */
        SPIN_FOR(has_tasks(f));
        if (!has_tasks(f)) sleep_until_posted(&m->go);
    }
    return NULL;
}

cw_status cw_filler_new(const cw_pool *pool, cw_filler **out, cw_err *err)
{
    int n = cw_pool_threads(pool);
    cw_filler *f = cw_calloc(1, sizeof *f);
    struct filler_member *members = cw_calloc((size_t)n + 1, sizeof *members);
    if (!f || !members) {
        cw_free(f);
        cw_free(members);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for %d threads", n);
    }
    f->members = members;
    f->n_threads = n;
    tasks_init(&f->tasks);
    for (int i = 0; i <= n; i++) {
        members[i] = (struct filler_member){.filler = f, .index = i};
        sem_init(&members[i].go, 0, 0);
    }
    for (int i = 1; i <= n; i++) {
        if (pthread_create(&members[i].thread, NULL, member_main, &members[i]) != 0) {
            cw_filler_free(&f);
            return CW_FAIL(err, CW_STATUS_LIMIT, "the system gave %d of %d threads", i - 1, n);
        }
        f->n_started = i;
        if (cw_cpus_one_each(n)) cw_cpus_keep(members[i].thread, i - 1);
    }
    *out = f;
    return CW_OK;
}

void cw_filler_free(cw_filler **fp)
{
    cw_filler *f = *fp;
    if (!f) return;
    atomic_store(&f->stop, true);
    post_all(f);
    for (int i = 1; i <= f->n_started; i++) pthread_join(f->members[i].thread, NULL);
    for (int i = 0; i <= f->n_threads; i++) sem_destroy(&f->members[i].go);
    cw_free(f->members);
    cw_free(f);
    *fp = NULL;
}

int cw_filler_threads(const cw_filler *f)
{
    return f->n_threads;
}

void cw_filler_begin(cw_filler *f, const cw_stage *stages, int n)
{
    CW_ASSERT(n >= 0 && n <= CW_FILLER_STAGES && has_ended(f));
    while (sem_trywait(&f->members[0].go) == 0) { /* of stages that ended without our sleeping */
    }
    for (int i = 0; i < n; i++) f->stages[i] = stages[i];
    atomic_store(&f->n_stages, n);
    open_stage(f, 0);
}

void cw_filler_end(cw_filler *f)
{
    for (;;) {
        while (tasks_take(&f->tasks, 0)) next_stage(f);
        SPIN_FOR(has_tasks(f) || has_ended(f));
        if (has_ended(f)) return;
        if (!has_tasks(f)) sleep_until_posted(&f->members[0].go);
    }
}
