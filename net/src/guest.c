/*
 * Whose turn it is: the net's own thread, or a guest that drives the reactor while it waits for its answers
 * (cw/net.h). Who holds `turn` touches sockets. The net's thread holds it all the time but while it steps
 * aside; it looks every NET_ASIDE_MS whether the guest has come meanwhile, and goes on by itself when it has
 * not.
 */
#include <time.h>
#include <unistd.h>

#include "cw/clock.h"
#include "internal.h"

void net_guest_init(cw_net *n)
{
    pthread_condattr_t attr;
    pthread_mutex_init(&n->turn, NULL);
    pthread_mutex_init(&n->aside_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&n->aside, &attr);
    pthread_condattr_destroy(&attr);
}

void net_guest_free(cw_net *n)
{
    pthread_cond_destroy(&n->aside);
    pthread_mutex_destroy(&n->aside_lock);
    pthread_mutex_destroy(&n->turn);
}

static bool wanted(cw_net *n)
{
    return atomic_load(&n->guest) || atomic_load(&n->guest_waits);
}

/* NET_ASIDE_MS, or until cw_net_resume. */
static void doze(cw_net *n)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += NET_ASIDE_MS * 1000000;
    if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
    pthread_mutex_lock(&n->aside_lock);
    if (wanted(n)) (void)pthread_cond_timedwait(&n->aside, &n->aside_lock, &t);
    pthread_mutex_unlock(&n->aside_lock);
}

void net_step_aside(cw_net *n)
{
    unsigned seen;
    if (!wanted(n)) return;
    do {
        seen = atomic_load(&n->guest_rounds);
        pthread_mutex_unlock(&n->turn);
        doze(n);
        /* The guest may be in for as long as its answers take; it is not disturbed. */
        while (pthread_mutex_trylock(&n->turn) != 0) {
            if (wanted(n)) {
                doze(n);
                continue;
            }
            pthread_mutex_lock(&n->turn);
            break;
        }
    } while (wanted(n) && atomic_load(&n->guest_rounds) != seen && !atomic_load(&n->stop) &&
             n->fatal.code == CW_OK);
    atomic_store(&n->guest,
                 false); /* one that waits is let in after the next round, which its wake-up ends at once */
}

void cw_net_enter(cw_net *n)
{
    atomic_fetch_add(&n->guest_rounds, 1);
    if (pthread_mutex_trylock(&n->turn) != 0) {
        uint64_t one = 1;
        atomic_store(&n->guest_waits, true);
        ssize_t done = write(n->wake_fd, &one, sizeof one);
        (void)done; /* full: it is being woken */
        pthread_mutex_lock(&n->turn);
        atomic_store(&n->guest_waits, false);
    }
    atomic_store(&n->guest, true);
}

bool cw_net_round(cw_net *n, int64_t wait_us)
{
    if (n->ended || atomic_load(&n->stop) || n->fatal.code != CW_OK) return false;
    net_one_round(n, wait_us);
    return n->fatal.code == CW_OK && !atomic_load(&n->stop);
}

void cw_net_leave(cw_net *n)
{
    atomic_fetch_add(&n->guest_rounds, 1);
    pthread_mutex_unlock(&n->turn);
}

void cw_net_resume(cw_net *n)
{
    if (!atomic_load(&n->guest)) return;
    pthread_mutex_lock(&n->aside_lock);
    atomic_store(&n->guest, false);
    pthread_cond_signal(&n->aside);
    pthread_mutex_unlock(&n->aside_lock);
}
