/*
 * The thread of the store links: a cw_net and a ZeroMQ context of its own, so that weights never share a
 * connection or an I/O thread with calls. The loader's threads wait in store_link_get.
 */
#include <stdio.h>
#include <string.h>

#include "cw/log.h"
#include "cw/mem.h"
#include "cw/net.h"
#include "shell_internal.h"

/* One store_link_get that waits. */
typedef struct waiter {
    size_t n_left;
    pthread_cond_t done;
    struct waiter *next;
} waiter;

enum { NEWS_MAX = 64 };

/* A source, or bits of sources that sent wrong bytes. */
typedef struct {
    cw_fetch_source *source;
    uint64_t distrust;
} news;

struct store_link {
    cw_net *net;
    cw_fetch *fetch;
    pthread_t thread;
    bool running;
    pthread_mutex_t lock;
    /* Under the lock. */
    cw_fetch_item *fresh; /* a list by next: not yet with the machine */
    waiter *waiters;
    news news[NEWS_MAX];
    size_t n_news;
    uint64_t rate;
    bool stop, ended;
};

static void collect(store_link *s)
{
    char text[CW_TEXT_MAX];
    for (cw_fetch_item *i; (i = cw_fetch_take_done(s->fetch));) {
        pthread_mutex_lock(&s->lock);
        waiter *w = i->owner;
        if (w && --w->n_left == 0) pthread_cond_signal(&w->done); /* NULL: nobody waits any more */
        pthread_mutex_unlock(&s->lock);
    }
    while (cw_fetch_take_say(s->fetch, text)) CW_LOG_W("store", "%s", text);
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
    news n[NEWS_MAX];
    size_t n_news = s->n_news;
    memcpy(n, s->news, n_news * sizeof *n);
    uint64_t rate = s->rate;
    s->fresh = NULL;
    s->n_news = 0;
    pthread_mutex_unlock(&s->lock);
    cw_fetch_set_rate(s->fetch, rate);
    for (size_t i = 0; i < n_news; i++) {
        if (n[i].source)
            cw_fetch_add_source(s->fetch, n[i].source, now_us);
        else
            cw_fetch_distrust(s->fetch, n[i].distrust, now_us, out);
        cw_free(n[i].source);
    }
    for (cw_fetch_item *next; list; list = next) {
        next = list->next;
        cw_fetch_get(s->fetch, list, now_us, out);
    }
    collect(s);
}

static void wake_all(store_link *s)
{
    for (waiter *w = s->waiters; w; w = w->next) pthread_cond_signal(&w->done);
}

static void *run(void *arg)
{
    store_link *s = arg;
    cw_err err = {0};
    cw_status st = cw_net_run(s->net, &err);
    if (st != CW_OK) CW_LOG_W("store", "the store links ended: %s", err.text);
    pthread_mutex_lock(&s->lock);
    s->ended = true;
    if (st != CW_OK) s->stop = true;
    wake_all(s);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

cw_status store_link_open(const cw_fetch_config *c, const cw_keys *keys, store_link **out, cw_err *err)
{
    store_link *s = cw_calloc(1, sizeof *s);
    if (!s) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the store link");
    pthread_mutex_init(&s->lock, NULL);
    cw_net_config nc = {.self = CW_SIDE_WORKER, .keys = keys, .max_peers = CW_FETCH_SOURCES + 1};
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
    wake_all(s);
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
    for (size_t i = 0; i < s->n_news; i++) cw_free(s->news[i].source);
    pthread_mutex_destroy(&s->lock);
    cw_free(s);
    *sp = NULL;
}

bool store_link_get(store_link *s, cw_fetch_item *items, size_t n)
{
    waiter me = {.n_left = n};
    pthread_mutex_lock(&s->lock);
    if (s->stop) {
        pthread_mutex_unlock(&s->lock);
        return false;
    }
    pthread_cond_init(&me.done, NULL);
    me.next = s->waiters;
    s->waiters = &me;
    for (size_t i = n; i-- > 0;) {
        items[i].owner = &me;
        items[i].next = s->fresh;
        s->fresh = &items[i];
    }
    pthread_mutex_unlock(&s->lock);
    cw_net_wake(s->net);
    pthread_mutex_lock(&s->lock);
    while (me.n_left && !s->stop) pthread_cond_wait(&me.done, &s->lock);
    bool ok = !me.n_left;
    /* Stopped: the thread must not come back to a waiter that is gone. */
    for (size_t i = 0; !ok && i < n; i++) items[i].owner = NULL;
    waiter **at = &s->waiters;
    while (*at != &me) at = &(*at)->next;
    *at = me.next;
    pthread_cond_destroy(&me.done);
    pthread_mutex_unlock(&s->lock);
    return ok;
}

static void tell(store_link *s, news n)
{
    pthread_mutex_lock(&s->lock);
    bool room = s->n_news < NEWS_MAX;
    if (room) s->news[s->n_news++] = n;
    pthread_mutex_unlock(&s->lock);
    if (!room) cw_free(n.source);
    cw_net_wake(s->net);
}

void store_link_source(store_link *s, cw_fetch_source *source)
{
    tell(s, (news){.source = source});
}

void store_link_distrust(store_link *s, uint64_t bits)
{
    tell(s, (news){.distrust = bits});
}

void store_link_rate(store_link *s, uint64_t bytes_per_s)
{
    pthread_mutex_lock(&s->lock);
    bool changed = s->rate != bytes_per_s;
    s->rate = bytes_per_s;
    pthread_mutex_unlock(&s->lock);
    if (changed) cw_net_wake(s->net);
}
