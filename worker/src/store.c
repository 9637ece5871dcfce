/*
 * The store link's thread: a cw_net and a ZeroMQ context of its own, so that weights never share a connection
 * or an I/O thread with calls. The loader's thread waits in store_link_get.
 */
#include <string.h>

#include "cw/mem.h"
#include "cw/net.h"
#include "shell_internal.h"

struct store_link {
    cw_net *net;
    cw_fetch *fetch;
    pthread_t thread;
    bool running;
    pthread_mutex_t lock;
    pthread_cond_t done;
    /* Under the lock. */
    cw_fetch_item *fresh; /* a list by next: not yet with the machine */
    size_t n_waiting;     /* items the loader waits for */
    bool stop, ended;
};

static void collect(store_link *s)
{
    for (cw_fetch_item *i; (i = cw_fetch_take_done(s->fetch));) {
        pthread_mutex_lock(&s->lock);
        if (--s->n_waiting == 0) pthread_cond_signal(&s->done);
        pthread_mutex_unlock(&s->lock);
    }
}

static void on_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    store_link *s = ctx;
    cw_fetch_event(s->fetch, ev, out);
    collect(s);
}

static void on_wake(void *ctx, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    store_link *s = ctx;
    (void)wall_ms;
    pthread_mutex_lock(&s->lock);
    cw_fetch_item *list = s->fresh;
    s->fresh = NULL;
    pthread_mutex_unlock(&s->lock);
    for (cw_fetch_item *next; list; list = next) {
        next = list->next;
        cw_fetch_get(s->fetch, list, now_us, out);
    }
    collect(s);
}

static void *run(void *arg)
{
    store_link *s = arg;
    cw_err err = {0};
    cw_status st = cw_net_run(s->net, &err);
    pthread_mutex_lock(&s->lock);
    s->ended = true;
    if (st != CW_OK) s->stop = true;
    pthread_cond_signal(&s->done);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

cw_status store_link_open(const cw_fetch_config *c, const cw_keys *keys, store_link **out, cw_err *err)
{
    store_link *s = cw_calloc(1, sizeof *s);
    if (!s) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the store link");
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->done, NULL);
    cw_net_config nc = {.self = CW_SIDE_WORKER, .keys = keys, .max_peers = 4};
    cw_net_role role = {.ctx = s, .on_event = on_event, .on_wake = on_wake};
    cw_status st = cw_fetch_new(c, &s->fetch, err);
    if (st == CW_OK) st = cw_net_new(&nc, &role, &s->net, err);
    if (st == CW_OK && pthread_create(&s->thread, NULL, run, s) != 0)
        st = CW_FAIL(err, CW_STATUS_LIMIT, "no thread for the store link");
    s->running = st == CW_OK;
    if (st != CW_OK)
        store_link_close(&s);
    else
        *out = s;
    return st;
}

void store_link_stop(store_link *s)
{
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_signal(&s->done);
    pthread_mutex_unlock(&s->lock);
}

void store_link_close(store_link **sp)
{
    if (!sp || !*sp) return;
    store_link *s = *sp;
    if (s->running) {
        store_link_stop(s);
        cw_net_stop(s->net);
        pthread_join(s->thread, NULL);
    }
    cw_net_free(&s->net);
    cw_fetch_free(&s->fetch);
    pthread_cond_destroy(&s->done);
    pthread_mutex_destroy(&s->lock);
    cw_free(s);
    *sp = NULL;
}

bool store_link_get(store_link *s, cw_fetch_item *items, size_t n)
{
    pthread_mutex_lock(&s->lock);
    if (s->stop) {
        pthread_mutex_unlock(&s->lock);
        return false;
    }
    for (size_t i = n; i-- > 0;) items[i].next = s->fresh, s->fresh = &items[i];
    s->n_waiting = n;
    pthread_mutex_unlock(&s->lock);
    cw_net_wake(s->net);
    pthread_mutex_lock(&s->lock);
    while (s->n_waiting && !s->stop) pthread_cond_wait(&s->done, &s->lock);
    bool ok = !s->n_waiting;
    pthread_mutex_unlock(&s->lock);
    return ok;
}
