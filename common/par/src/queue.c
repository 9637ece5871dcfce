/*
 * The bounded queue: a ring under a mutex that is held for a few instructions. The eventfd's counter is 1
 * exactly while the ring holds something or the queue is closed; it changes only at those transitions and
 * under the mutex, so poll() never misses and never wakes for nothing.
 */
#include "cw/queue.h"
#include "cw/mem.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

struct cw_queue {
    pthread_mutex_t lock;
    void (*destroy)(void *item);
    size_t capacity, head, count;
    bool closed, signalled;
    int fd;
    void *ring[]; /* [capacity] */
};

cw_status cw_queue_new(size_t capacity, void (*destroy)(void *item), cw_queue **out, cw_err *err)
{
    if (capacity == 0) return CW_FAIL(err, CW_STATUS_INVALID, "a queue needs a capacity of at least 1");
    size_t bytes;
    cw_queue *q = NULL;
    if (cw_mul_size(capacity, sizeof(void *), &bytes) && cw_add_size(bytes, sizeof *q, &bytes))
        q = cw_calloc(bytes, 1);
    if (!q) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a queue of %zu items", capacity);
    q->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (q->fd < 0) {
        cw_free(q);
        return CW_FAIL(err, CW_STATUS_LIMIT, "no descriptor for a queue: %s", strerror(errno));
    }
    q->capacity = capacity;
    q->destroy = destroy;
    pthread_mutex_init(&q->lock, NULL);
    *out = q;
    return CW_OK;
}

void cw_queue_free(cw_queue **qp)
{
    if (!qp || !*qp) return;
    cw_queue *q = *qp;
    for (; q->count > 0; q->count--) {
        if (q->destroy) q->destroy(q->ring[q->head]);
        q->head = (q->head + 1) % q->capacity;
    }
    close(q->fd);
    pthread_mutex_destroy(&q->lock);
    cw_free(q);
    *qp = NULL;
}

/* Under the lock: brings the descriptor in line with the state. */
static void update_signal(cw_queue *q)
{
    bool want = q->count > 0 || q->closed;
    if (want == q->signalled) return;
    uint64_t v = 1;
    ssize_t n = want ? write(q->fd, &v, sizeof v) : read(q->fd, &v, sizeof v);
    CW_ASSERT(n == (ssize_t)sizeof v);
    q->signalled = want;
}

cw_status cw_queue_push(cw_queue *q, void *item)
{
    CW_ASSERT(item);
    cw_status s = CW_OK;
    pthread_mutex_lock(&q->lock);
    if (q->closed) {
        s = CW_STATUS_CANCELLED;
    } else if (q->count == q->capacity) {
        s = CW_STATUS_BUSY;
    } else {
        q->ring[(q->head + q->count) % q->capacity] = item;
        q->count++;
        update_signal(q);
    }
    pthread_mutex_unlock(&q->lock);
    return s;
}

void *cw_queue_pop(cw_queue *q)
{
    void *item = NULL;
    pthread_mutex_lock(&q->lock);
    if (q->count > 0) {
        item = q->ring[q->head];
        q->head = (q->head + 1) % q->capacity;
        q->count--;
        update_signal(q);
    }
    pthread_mutex_unlock(&q->lock);
    return item;
}

static int64_t mono_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void *cw_queue_pop_wait(cw_queue *q, int timeout_ms)
{
    int64_t end = timeout_ms > 0 ? mono_ms() + timeout_ms : 0;
    for (;;) {
        void *item = cw_queue_pop(q);
        if (item || timeout_ms == 0) return item;
        if (cw_queue_closed(q)) return cw_queue_pop(q); /* nothing is pushed after closing */
        int64_t left = timeout_ms < 0 ? -1 : end - mono_ms();
        if (timeout_ms > 0 && left <= 0) return NULL;
        struct pollfd p = {.fd = q->fd, .events = POLLIN};
        (void)poll(&p, 1, (int)left); /* interrupted: the loop looks again */
    }
}

int cw_queue_fd(const cw_queue *q)
{
    return q->fd;
}

size_t cw_queue_depth(cw_queue *q)
{
    pthread_mutex_lock(&q->lock);
    size_t n = q->count;
    pthread_mutex_unlock(&q->lock);
    return n;
}

void cw_queue_close(cw_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    update_signal(q);
    pthread_mutex_unlock(&q->lock);
}

bool cw_queue_closed(cw_queue *q)
{
    pthread_mutex_lock(&q->lock);
    bool closed = q->closed;
    pthread_mutex_unlock(&q->lock);
    return closed;
}
