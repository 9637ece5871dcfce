/* Signal handlers that only set atomics and write an eventfd; both are async-signal-safe. */
#include "cw/signal.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static atomic_int stop_fd = -1;
static atomic_bool stopped, interrupt_mode, interrupted;
static atomic_int n_sigint, n_stops;

void cw_signal_stop(void)
{
    int saved = errno;
    atomic_store(&stopped, true);
    atomic_fetch_add(&n_stops, 1);
    atomic_store(&interrupted, true);
    uint64_t one = 1;
    int fd = atomic_load(&stop_fd);
    if (fd >= 0 && write(fd, &one, sizeof one) < 0) { /* full: it is readable, which is all we want */
    }
    errno = saved;
}

static void on_signal(int sig)
{
    if (sig == SIGINT && atomic_load(&interrupt_mode)) {
        atomic_store(&interrupted, true);
        return;
    }
    if (sig == SIGINT && atomic_fetch_add(&n_sigint, 1) >= 2) {
        signal(SIGINT, SIG_DFL);
        raise(SIGINT);
        return;
    }
    cw_signal_stop();
}

cw_status cw_signal_install(cw_err *err)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) return CW_FAIL(err, CW_STATUS_IO, "cannot make an eventfd: %s", strerror(errno));
    atomic_store(&stop_fd, fd);
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sigemptyset(&sa.sa_mask);
    sa.sa_handler = on_signal;
    /* No SA_RESTART: a blocking read must see the stop. A SIGINT that the parent chose to ignore stays
     * ignored: a shell starts background jobs so, and Ctrl-C is not meant for them. */
    struct sigaction old;
    sigaction(SIGINT, NULL, &old);
    if (old.sa_handler != SIG_IGN) sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    sa.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &sa, NULL);
    return CW_OK;
}

int cw_signal_stop_fd(void)
{
    return atomic_load(&stop_fd);
}

bool cw_signal_stopped(void)
{
    return atomic_load_explicit(&stopped, memory_order_relaxed);
}

int cw_signal_stops(void)
{
    return atomic_load_explicit(&n_stops, memory_order_relaxed);
}

void cw_signal_set_interrupt(bool on)
{
    atomic_store(&interrupt_mode, on);
}

bool cw_signal_interrupted(void)
{
    return atomic_load_explicit(&interrupted, memory_order_relaxed);
}

void cw_signal_clear_interrupt(void)
{
    atomic_store(&interrupted, false);
    if (atomic_load(&stopped)) atomic_store(&interrupted, true);
}

const atomic_bool *cw_signal_interrupt_flag(void)
{
    return &interrupted;
}
