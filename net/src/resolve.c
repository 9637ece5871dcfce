/* The resolver; see resolve.h. What the two threads share outlives whichever of them goes last. */
#include "resolve.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "cw/keys.h"
#include "cw/mem.h"

enum { MAX_WAITING = 64, MAX_CHOICES = 16 };

typedef struct {
    cw_link link;
    cw_address address;
} question;

struct net_resolver {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int refs; /* the owner and the thread */
    bool running, stop;
    void (*wake)(void *ctx);
    void *ctx;
    question questions[MAX_WAITING];
    size_t n_questions;
    net_resolved answers[MAX_WAITING];
    size_t n_answers;
};

/* Gives up one reference; the lock is held and is gone after this. */
static void release_locked(net_resolver *r)
{
    bool last = --r->refs == 0;
    pthread_mutex_unlock(&r->lock);
    if (!last) return;
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->cond);
    cw_free(r);
}

/* One of the host's addresses, at random: one that does not answer is not tried for ever. */
static bool look_up(const cw_address *a, char out[CW_ADDRESS_MAX])
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG}, *list = NULL;
    if (getaddrinfo(a->host, NULL, &hints, &list) != 0) return false;
    const struct addrinfo *choices[MAX_CHOICES];
    uint32_t n = 0, pick = 0;
    for (const struct addrinfo *i = list; i && n < MAX_CHOICES; i = i->ai_next)
        if (i->ai_family == AF_INET || i->ai_family == AF_INET6) choices[n++] = i;
    char host[NI_MAXHOST];
    cw_random(&pick, sizeof pick);
    bool ok = n &&
              getnameinfo(choices[pick % n]->ai_addr, choices[pick % n]->ai_addrlen, host, sizeof host, NULL,
                          0, NI_NUMERICHOST) == 0 &&
              strlen(host) < 200;
    if (ok) cw_address_text(host, a->port, out);
    freeaddrinfo(list);
    return ok;
}

static void *resolver_main(void *arg)
{
    net_resolver *r = arg;
    pthread_mutex_lock(&r->lock);
    for (;;) {
        while (!r->stop && r->n_questions == 0) pthread_cond_wait(&r->cond, &r->lock);
        if (r->stop) break;
        question q = r->questions[0];
        memmove(r->questions, r->questions + 1, --r->n_questions * sizeof *r->questions);
        pthread_mutex_unlock(&r->lock);
        net_resolved answer = {.link = q.link};
        if (!look_up(&q.address, answer.address)) answer.address[0] = 0;
        pthread_mutex_lock(&r->lock);
        if (r->stop) break;
        if (r->n_answers < MAX_WAITING) r->answers[r->n_answers++] = answer;
        r->wake(r->ctx); /* under the lock: the owner cannot have gone */
    }
    release_locked(r);
    return NULL;
}

cw_status net_resolver_new(void (*wake)(void *ctx), void *ctx, net_resolver **out, cw_err *err)
{
    net_resolver *r = cw_calloc(1, sizeof *r);
    if (!r) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "no memory for the network");
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->cond, NULL);
    r->refs = 1;
    r->wake = wake;
    r->ctx = ctx;
    *out = r;
    return CW_OK;
}

void net_resolver_free(net_resolver **rp)
{
    net_resolver *r = *rp;
    if (!r) return;
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_signal(&r->cond);
    release_locked(r);
    *rp = NULL;
}

static bool start_locked(net_resolver *r)
{
    pthread_attr_t attr;
    pthread_t thread;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    r->running = pthread_create(&thread, &attr, resolver_main, r) == 0;
    pthread_attr_destroy(&attr);
    if (r->running) r->refs++;
    return r->running;
}

bool net_resolver_ask(net_resolver *r, cw_link link, const cw_address *a)
{
    pthread_mutex_lock(&r->lock);
    bool ok = r->n_questions < MAX_WAITING && (r->running || start_locked(r));
    if (ok) {
        r->questions[r->n_questions++] = (question){.link = link, .address = *a};
        pthread_cond_signal(&r->cond);
    }
    pthread_mutex_unlock(&r->lock);
    return ok;
}

bool net_resolver_take(net_resolver *r, net_resolved *out)
{
    pthread_mutex_lock(&r->lock);
    bool any = r->n_answers > 0;
    if (any) {
        *out = r->answers[0];
        memmove(r->answers, r->answers + 1, --r->n_answers * sizeof *r->answers);
    }
    pthread_mutex_unlock(&r->lock);
    return any;
}
