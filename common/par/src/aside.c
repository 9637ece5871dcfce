/* See cw/aside.h. The thread makes the pool itself: its threads inherit its priority, and it is their caller.
 */
#include "cw/aside.h"
#include "cw/clock.h"
#include "cw/mem.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

/* A wait is too long when it exceeds this and four times what the work took of its thread's core. After the
 * first such wait 256 starts are advised against, after each further one twice as many, until a thousand
 * waits have gone well. */
enum { STALL_NS = 10000000, REST_MIN = 256, REST_MAX = 1 << 16, GOOD_ENOUGH = 1000 };

struct cw_aside {
    int n_threads;
    cw_pool *pool;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work, ended;
    void (*fn)(void *ctx); /* NULL: nothing to do */
    void *ctx;
    uint64_t cpu_ns; /* of the thread for the last fn */
    bool ready, stop;
    /* the owner's */
    int rest, next_rest, went_well;
    cw_status status; /* of the pool's making */
    cw_err err;
};

static void open_pool(cw_aside *a)
{
    struct sched_param none = {0};
    /* Where it is not to be had, the work is done all the same, at the expense of the others. */
    (void)pthread_setschedparam(pthread_self(), SCHED_IDLE, &none);
    cw_pool *pool = NULL;
    cw_status s = cw_pool_new(a->n_threads, &pool, &a->err);
    pthread_mutex_lock(&a->lock);
    a->pool = pool;
    a->status = s;
    a->ready = true;
    pthread_cond_signal(&a->ended);
    pthread_mutex_unlock(&a->lock);
}

static uint64_t own_cpu_ns(void)
{
    struct timespec t = {0};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *run(void *arg)
{
    cw_aside *a = arg;
    open_pool(a);
    pthread_mutex_lock(&a->lock);
    for (;;) {
        while (!a->fn && !a->stop) pthread_cond_wait(&a->work, &a->lock);
        if (!a->fn) break;
        pthread_mutex_unlock(&a->lock);
        uint64_t before = own_cpu_ns();
        a->fn(a->ctx);
        uint64_t cpu_ns = own_cpu_ns() - before;
        pthread_mutex_lock(&a->lock);
        a->cpu_ns = cpu_ns;
        a->fn = NULL;
        pthread_cond_signal(&a->ended);
    }
    pthread_mutex_unlock(&a->lock);
    cw_pool_free(&a->pool);
    return NULL;
}

cw_status cw_aside_new(int n_threads, cw_aside **out, cw_err *err)
{
    cw_aside *a = cw_calloc(1, sizeof *a);
    if (!a) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a thread");
    a->n_threads = n_threads;
    a->next_rest = REST_MIN;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->work, NULL);
    pthread_cond_init(&a->ended, NULL);
    if (pthread_create(&a->thread, NULL, run, a) != 0) {
        pthread_cond_destroy(&a->work);
        pthread_cond_destroy(&a->ended);
        pthread_mutex_destroy(&a->lock);
        cw_free(a);
        return CW_FAIL(err, CW_STATUS_LIMIT, "the system gives no more threads");
    }
    pthread_mutex_lock(&a->lock);
    while (!a->ready) pthread_cond_wait(&a->ended, &a->lock);
    pthread_mutex_unlock(&a->lock);
    cw_status s = a->status;
    if (s != CW_OK) {
        if (err) *err = a->err;
        cw_aside_free(&a);
        return s;
    }
    *out = a;
    return CW_OK;
}

void cw_aside_free(cw_aside **ap)
{
    if (!ap || !*ap) return;
    cw_aside *a = *ap;
    cw_aside_wait(a);
    pthread_mutex_lock(&a->lock);
    a->stop = true;
    pthread_cond_signal(&a->work);
    pthread_mutex_unlock(&a->lock);
    pthread_join(a->thread, NULL);
    pthread_cond_destroy(&a->work);
    pthread_cond_destroy(&a->ended);
    pthread_mutex_destroy(&a->lock);
    cw_free(a);
    *ap = NULL;
}

cw_pool *cw_aside_pool(cw_aside *a)
{
    return a->pool;
}

bool cw_aside_has_room(cw_aside *a)
{
    if (!a->rest) return true;
    a->rest--;
    return false;
}

/* A wait of that long is over. */
static void judge(cw_aside *a, uint64_t waited_ns)
{
    if (waited_ns > STALL_NS && waited_ns / 4 > a->cpu_ns) {
        a->rest = a->next_rest;
        if (a->next_rest < REST_MAX) a->next_rest *= 2;
        a->went_well = 0;
    } else if (++a->went_well >= GOOD_ENOUGH) {
        a->next_rest = REST_MIN;
    }
}

void cw_aside_start(cw_aside *a, void (*fn)(void *ctx), void *ctx)
{
    pthread_mutex_lock(&a->lock);
    CW_ASSERT(fn && !a->fn);
    a->fn = fn;
    a->ctx = ctx;
    pthread_cond_signal(&a->work);
    pthread_mutex_unlock(&a->lock);
}

void cw_aside_wait(cw_aside *a)
{
    uint64_t began = cw_mono_ns();
    pthread_mutex_lock(&a->lock);
    while (a->fn) pthread_cond_wait(&a->ended, &a->lock);
    pthread_mutex_unlock(&a->lock);
    judge(a, cw_mono_ns() - began);
}
