/* The reactor's loop, its life, and the carrying out of actions; see cw/net.h. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cw/clock.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "internal.h"

void net_fatal(cw_net *n, cw_status code, const char *fmt, ...)
{
    if (n->fatal.code != CW_OK) return;
    char text[sizeof n->fatal.text];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    (void)CW_FAIL(&n->fatal, code, "%s", text);
}

/* --- sockets --- */

bool net_socket_setup(const cw_net *n, void *sock, int64_t max_frame)
{
    int linger = 0, hwm = (int)n->cfg.queue_messages, handshake = NET_HANDSHAKE_MS;
    int beat = (int)n->cfg.heartbeat_ms, dead = 3 * beat;
    return zmq_setsockopt(sock, ZMQ_LINGER, &linger, sizeof linger) == 0 &&
           zmq_setsockopt(sock, ZMQ_SNDHWM, &hwm, sizeof hwm) == 0 &&
           zmq_setsockopt(sock, ZMQ_RCVHWM, &hwm, sizeof hwm) == 0 &&
           zmq_setsockopt(sock, ZMQ_HANDSHAKE_IVL, &handshake, sizeof handshake) == 0 &&
           zmq_setsockopt(sock, ZMQ_HEARTBEAT_IVL, &beat, sizeof beat) == 0 &&
           zmq_setsockopt(sock, ZMQ_HEARTBEAT_TIMEOUT, &dead, sizeof dead) == 0 &&
           zmq_setsockopt(sock, ZMQ_HEARTBEAT_TTL, &dead, sizeof dead) == 0 &&
           zmq_setsockopt(sock, ZMQ_MAXMSGSIZE, &max_frame, sizeof max_frame) == 0 &&
           zmq_setsockopt(sock, ZMQ_CURVE_PUBLICKEY, cw_keys_public(n->cfg.keys)->b, CW_KEY_BYTES) == 0 &&
           zmq_setsockopt(sock, ZMQ_CURVE_SECRETKEY, cw_keys_secret(n->cfg.keys), CW_KEY_BYTES) == 0;
}

static bool fd_of(void *sock, int *fd)
{
    size_t len = sizeof *fd;
    return zmq_getsockopt(sock, ZMQ_FD, fd, &len) == 0;
}

bool net_poll_fd(cw_net *n, int op, int fd, uint64_t who, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.u64 = who};
    return epoll_ctl(n->poll_fd, op, fd, &ev) == 0;
}

bool net_poll_add(cw_net *n, void *sock, uint64_t who)
{
    int fd;
    return fd_of(sock, &fd) && net_poll_fd(n, EPOLL_CTL_ADD, fd, who, EPOLLIN);
}

void net_poll_remove(cw_net *n, void *sock)
{
    int fd;
    if (sock && fd_of(sock, &fd)) (void)epoll_ctl(n->poll_fd, EPOLL_CTL_DEL, fd, NULL);
}

void net_touched(cw_net *n, net_link *l)
{
    *(l->from ? &l->from->touched : &l->touched) = true;
    n->touched = true;
}

void *net_monitor_open(cw_net *n, void *sock)
{
    static atomic_uint serial;
    char name[64];
    int unlimited = 0, linger = 0;
    snprintf(name, sizeof name, "inproc://cw-monitor-%u", atomic_fetch_add(&serial, 1));
    /* The I/O thread would block on a full monitor, so ours has no high-water mark; it is read in every
     * round. */
    void *mon = zmq_socket(n->zmq, ZMQ_PAIR);
    if (mon && zmq_setsockopt(mon, ZMQ_RCVHWM, &unlimited, sizeof unlimited) == 0 &&
        zmq_setsockopt(mon, ZMQ_LINGER, &linger, sizeof linger) == 0 &&
        zmq_socket_monitor(sock, name, ZMQ_EVENT_ALL & ~ZMQ_EVENT_MONITOR_STOPPED) == 0 &&
        zmq_connect(mon, name) == 0)
        return mon;
    int e = errno;
    net_monitor_close(sock, mon);
    errno = e;
    return NULL;
}

void net_monitor_close(void *sock, void *mon)
{
    if (sock) zmq_socket_monitor(sock, NULL, 0);
    if (mon) zmq_close(mon);
}

bool net_monitor_read(void *mon, uint16_t *event, uint32_t *value)
{
    zmq_msg_t m;
    zmq_msg_init(&m);
    bool ok = zmq_msg_recv(&m, mon, ZMQ_DONTWAIT) == 6;
    if (ok) {
        const uint8_t *p = zmq_msg_data(&m);
        memcpy(event, p, 2); /* libzmq writes them as the host does */
        memcpy(value, p + 2, 4);
        while (zmq_msg_more(&m) && zmq_msg_recv(&m, mon, ZMQ_DONTWAIT) >= 0) { /* the endpoint's name */
        }
    }
    zmq_msg_close(&m);
    return ok;
}

/* --- life --- */

static void set_defaults(cw_net_config *c)
{
    if (!c->max_peers) c->max_peers = 64;
    if (!c->io_threads) c->io_threads = 1;
    if (!c->heartbeat_ms) c->heartbeat_ms = 2000;
    if (!c->connect_rate) c->connect_rate = 40 + 4 * c->max_peers;
    if (!c->ban_s) c->ban_s = 30;
    if (!c->peer_credit) c->peer_credit = 4 << 20;
    if (!c->queue_messages) c->queue_messages = 256;
    if (!c->queue_bytes) c->queue_bytes = 64 << 20;
}

/* Descriptors: three for every outgoing link (its sockets' mailboxes and the connection), one for an incoming
 * one, and the half-open ones. */
static unsigned descriptors_of(const cw_net_config *c)
{
    return 128 + 6 * c->max_peers;
}

/* Of all nets of the process. */
static atomic_uint descriptors_reserved;

/* Asks for more than is needed where the system allows it: a flood must not make accept() fail. */
static cw_status reserve_descriptors(const cw_net_config *c, cw_err *err)
{
    struct rlimit r;
    unsigned mine = descriptors_of(c);
    rlim_t need = atomic_fetch_add(&descriptors_reserved, mine) + mine, like = need + 4096;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0) return CW_OK;
    if (r.rlim_cur < like) {
        r.rlim_cur = r.rlim_max == RLIM_INFINITY || r.rlim_max > like ? like : r.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &r);
        if (getrlimit(RLIMIT_NOFILE, &r) != 0) return CW_OK;
    }
    if (r.rlim_cur >= need) return CW_OK;
    atomic_fetch_sub(&descriptors_reserved, mine);
    return CW_FAIL(err, CW_STATUS_LIMIT,
                   "%u peers need %llu open files and the limit is %llu: raise it (ulimit -n)", c->max_peers,
                   (unsigned long long)need, (unsigned long long)r.rlim_cur);
}

static void wake(cw_net *n)
{
    uint64_t one = 1;
    int e = errno;                                      /* may run in a signal handler */
    ssize_t done = write(n->wake_fd, &one, sizeof one); /* full means that a wake is on its way already */
    (void)done;
    errno = e;
}

static void zap_died(void *ctx)
{
    cw_net *n = ctx;
    atomic_store(&n->zap_dead, true);
    wake(n);
}

static void resolved(void *ctx)
{
    wake(ctx);
}

static cw_status start(cw_net *n, cw_err *err)
{
    n->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    n->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    n->zmq = zmq_ctx_new();
    if (n->wake_fd < 0 || n->poll_fd < 0 || !n->zmq ||
        !net_poll_fd(n, EPOLL_CTL_ADD, n->wake_fd, NET_POLL_WAKE, EPOLLIN))
        return CW_FAIL(err, CW_STATUS_LIMIT, "the network cannot start: %s", strerror(errno));
    /* A monitored DEALER takes three; libzmq closes sockets a little after we do, hence twice. */
    int sockets = 64 + 6 * (int)n->cfg.max_peers, limit = zmq_ctx_get(n->zmq, ZMQ_SOCKET_LIMIT);
    if (zmq_ctx_set(n->zmq, ZMQ_MAX_SOCKETS, limit > 0 && sockets > limit ? limit : sockets) != 0 ||
        zmq_ctx_set(n->zmq, ZMQ_IO_THREADS, (int)n->cfg.io_threads) != 0 ||
        (n->cfg.io_bound && zmq_ctx_set(n->zmq, ZMQ_THREAD_AFFINITY_CPU_ADD, n->cfg.io_cpu) != 0))
        return CW_FAIL(err, CW_STATUS_LIMIT, "the network cannot start: %s", zmq_strerror(errno));
    net_zap_config z = {
        .connect_rate = n->cfg.connect_rate, .fault_ms = n->cfg.fault_zap_ms, .on_death = zap_died, .ctx = n};
    CW_TRY(net_zap_start(n->zmq, &z, &n->zap, err));
    return net_resolver_new(resolved, n, &n->resolver, err);
}

cw_status cw_net_new(const cw_net_config *c, const cw_net_role *role, cw_net **out, cw_err *err)
{
    CW_ASSERT(role->on_event);
    CW_TRY(cw_crypto_init(err));
    if (!c->keys) return CW_FAIL(err, CW_STATUS_INVALID, "there is no network without keys");
    cw_net_config cfg = *c;
    set_defaults(&cfg);
    if (cfg.max_peers > 16384 || cfg.heartbeat_ms < 10 || cfg.heartbeat_ms > 600000 || cfg.io_threads > 64 ||
        cfg.queue_messages > 65536)
        return CW_FAIL(err, CW_STATUS_INVALID, "a network limit is out of range");
    CW_TRY(reserve_descriptors(&cfg, err));
    cw_net *n = cw_calloc(1, sizeof *n);
    if (!n) {
        atomic_fetch_sub(&descriptors_reserved, descriptors_of(&cfg));
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "no memory for the network");
    }
    n->cfg = cfg;
    n->role = *role;
    n->wake_fd = n->poll_fd = n->neighbours.fd = -1;
    net_guest_init(n);
    cw_outbox_init(&n->out);
    cw_status s = start(n, err);
    if (s == CW_OK)
        *out = n;
    else
        cw_net_free(&n);
    return s;
}

static void close_sockets(cw_net *n)
{
    net_links_free(n);
    net_neighbours_unlisten(n);
    for (uint32_t i = 0; i < n->n_listeners; i++) net_listener_free(n, &n->listeners[i]);
    n->n_listeners = 0;
}

void cw_net_free(cw_net **np)
{
    cw_net *n = *np;
    if (!n) return;
    close_sockets(n);
    net_resolver_free(&n->resolver);
    net_zap_stop(&n->zap); /* after the listeners: they are never without it */
    if (n->zmq)
        while (zmq_ctx_term(n->zmq) != 0 && errno == EINTR) {
        }
    if (n->wake_fd >= 0) close(n->wake_fd);
    if (n->poll_fd >= 0) close(n->poll_fd);
    net_guest_free(n);
    net_map_free(&n->by_id);
    net_map_free(&n->by_rid);
    cw_outbox_free(&n->out);
    atomic_fetch_sub(&descriptors_reserved, descriptors_of(&n->cfg));
    cw_free(n);
    *np = NULL;
}

cw_status cw_net_listen(cw_net *n, cw_port port, const char *address, char bound[CW_ADDRESS_MAX], cw_err *err)
{
    return net_listener_open(n, port, address, bound, err);
}

cw_status cw_net_listen_local(cw_net *n, cw_port port, const char *dir, cw_err *err)
{
    return net_neighbours_listen(n, port, dir, err);
}

/* --- actions --- */

static void carry_out(cw_net *n, cw_action *a)
{
    net_link *l = net_link_find(n, a->link);
    if (a->kind == CW_ACT_OPEN) {
        net_dealer_open(n, a);
        return;
    }
    if (!l) {
        cw_msg_free(&a->msg);
        return;
    }
    switch (a->kind) {
    case CW_ACT_SEND: net_link_send(n, l, &a->msg); break;
    case CW_ACT_ADMIT:
        cw_gate_admit(&l->gate);
        if (l->incoming && l->state == NET_UP) l->deadline_us = INT64_MAX;
        break;
    case CW_ACT_CLOSE:
        CW_LOG_D("net", "closed link=%llx address=%s reason=\"%s\"", (unsigned long long)l->id, l->address,
                 a->text);
        net_link_close(n, l, false);
        break;
    case CW_ACT_BLAME:
        net_link_blame(n, l, "%s", a->text);
        net_link_close(n, l, true);
        break;
    case CW_ACT_OPEN: break;
    }
}

static void drain_outbox(cw_net *n)
{
    if (n->out.failed) net_fatal(n, CW_STATUS_NO_MEMORY, "no memory to queue an action");
    size_t last = n->out.n; /* message, if there is one */
    while (last > 0 && n->out.items[last - 1].kind != CW_ACT_SEND) last--;
    for (size_t i = 0; i < n->out.n; i++) {
        n->more_to_send = i + 1 < last;
        carry_out(n, &n->out.items[i]);
    }
    cw_outbox_clear(&n->out);
}

void net_deliver(cw_net *n, cw_event *ev)
{
    CW_ASSERT(n->out.n == 0);
    if (n->leaving) {
        cw_msg_free(&ev->msg);
        return;
    }
    ev->now_us = n->now_us = cw_now_us(); /* a round may be long, and machines measure with this */
    ev->wall_ms = cw_wall_ms();
    n->n_delivered++;
    n->role.on_event(n->role.ctx, ev, &n->out);
    cw_msg_free(&ev->msg);
    drain_outbox(n);
}

/* --- the loop --- */

static void tick(cw_net *n)
{
    n->out.wake_us = INT64_MAX;
    n->tick_us = n->now_us + NET_TICK_US;
    cw_event ev = {.kind = CW_EV_TICK};
    net_deliver(n, &ev);
    net_links_timers(n);
    net_neighbours_timer(n);
}

static void cut_revoked(cw_net *n)
{
    if (!atomic_exchange(&n->revoked, false)) return;
    for (size_t i = 0; i < n->n_links; i++) {
        net_link *l = n->links[i];
        /* One that is closing has been told why; it ends by itself within a second. */
        if (l->state == NET_UP && net_zap_is_revoked(n->zap, &l->key))
            net_link_fail(n, l, "its key was revoked");
    }
}

static void ask_role(cw_net *n)
{
    if (!atomic_exchange(&n->woken, false) || !n->role.on_wake || n->leaving) return;
    n->role.on_wake(n->role.ctx, n->now_us, cw_wall_ms(), &n->out);
    drain_outbox(n);
}

void cw_net_poke(cw_net *n)
{
    n->now_us = cw_now_us();
    atomic_store(&n->woken, true);
    if (!n->ended) ask_role(n);
}

static void woken(cw_net *n)
{
    uint64_t count;
    ssize_t got = read(n->wake_fd, &count, sizeof count);
    (void)got;
    cut_revoked(n);
    net_dealers_resolved(n);
    if (atomic_load(&n->zap_dead))
        net_fatal(n, CW_STATUS_AUTH,
                  "the ZAP handler has ended: nobody could be told from anybody else, so this process stops");
    ask_role(n);
}

static bool any_connection(const cw_net *n)
{
    for (uint32_t i = 0; i < n->n_listeners; i++)
        if (n->listeners[i].n_half_open) return true;
    return n->n_live > 0;
}

static long poll_ms(const cw_net *n)
{
    int64_t until = n->tick_us;
    if (n->out.wake_us < until) until = n->out.wake_us;
    if (any_connection(n) && n->watch_us < until) until = n->watch_us;
    int64_t us = until - cw_now_us();
    return us <= 0 ? 0 : (long)((us + 999) / 1000);
}

/* What epoll has found: flags at sockets, so that each is read once. */
static void note(cw_net *n, const struct epoll_event *ev, int n_ev, bool *wake_up)
{
    for (int i = 0; i < n_ev; i++) {
        uint64_t who = ev[i].data.u64;
        net_link *l = who >= NET_POLL_LINKS ? net_link_find(n, who - NET_POLL_LINKS) : NULL;
        if (who == NET_POLL_WAKE)
            *wake_up = true;
        else if (who == NET_POLL_NEIGHBOURS)
            n->neighbours.ready = true;
        else if (who - NET_POLL_LISTENERS < n->n_listeners)
            n->listeners[who - NET_POLL_LISTENERS].ready = true;
        else if (l)
            l->ready |= ev[i].events;
    }
}

/* `polled`: what the poll has reported; else what was sent to since, whose arrivals a poll would not report,
 * or not read to its end. */
static void receive_all(cw_net *n, bool polled)
{
    for (uint32_t i = 0; i < n->n_listeners; i++) {
        net_listener *l = &n->listeners[i];
        if (!(polled ? l->ready : l->touched)) continue;
        l->ready = l->touched = false;
        if (polled) net_listener_monitor(n, l);
        net_listener_receive(n, l);
    }
    if (n->neighbours.ready) net_neighbours_accept(n);
    for (size_t i = 0; i < n->n_links; i++) {
        net_link *l = n->links[i];
        uint32_t ready = l->ready;
        if (!(polled ? ready != 0 : l->touched)) continue;
        l->ready = 0;
        l->touched = false;
        if (l->stream && polled)
            net_neighbour_ready(n, l, ready);
        else if (l->stream)
            net_neighbour_receive(n, l);
        if (polled && l->sock) net_dealer_monitor(n, l);
        if (l->sock) net_dealer_receive(n, l);
    }
}

/* Before sleeping. What is read may send again. true: something came, and a guest may have waited for it. */
static bool read_touched(cw_net *n)
{
    uint64_t before = n->n_delivered;
    for (int i = 0; i < NET_RECV_BURST && n->touched && n->fatal.code == CW_OK; i++) {
        n->touched = false;
        receive_all(n, false);
    }
    return n->n_delivered != before;
}

void net_one_round(cw_net *n, int64_t wait_us)
{
    enum { AT_ONCE = 64 };
    struct epoll_event ev[AT_ONCE];
    bool came = read_touched(n);
    long ms = came || n->touched || n->someone_gone || n->failing_links ? 0 : poll_ms(n);
    if (wait_us < ms * 1000) ms = (long)((wait_us + 999) / 1000);
    int n_ev = epoll_wait(n->poll_fd, ev, AT_ONCE, (int)ms);
    if (n_ev < 0 && errno != EINTR) {
        net_fatal(n, CW_STATUS_IO, "polling failed: %s", strerror(errno));
        return;
    }
    n->now_us = cw_now_us();
    bool wake_up = false;
    note(n, ev, n_ev, &wake_up);
    if (wake_up) woken(n);
    if (n_ev > 0) receive_all(n, true);
    if (n->someone_gone) net_links_finish_gone(n);
    if (n->now_us >= n->tick_us || n->now_us >= n->out.wake_us) tick(n);
    if (n->now_us >= n->watch_us) net_watch_round(n);
    net_links_settle(n);
    if (n->n_links != n->n_live) net_links_reap(n);
}

static bool any_closing(const cw_net *n)
{
    for (size_t i = 0; i < n->n_links; i++)
        if (n->links[i]->state == NET_CLOSING) return true;
    return false;
}

/* The machine's last words, and a moment for them and for what it closed just before to leave: until the
 * peers have closed their ends, at most NET_STOP_US. */
static void say_goodbye(cw_net *n)
{
    if (n->role.on_stop) n->role.on_stop(n->role.ctx, n->now_us, cw_wall_ms(), &n->out);
    bool words = n->out.n > 0;
    drain_outbox(n);
    n->leaving = true;
    for (size_t i = 0; words && i < n->n_links; i++) net_link_close(n, n->links[i], false);
    int64_t until = n->now_us + NET_STOP_US;
    while (any_closing(n) && n->now_us < until && n->fatal.code == CW_OK) net_one_round(n, INT64_MAX);
    close_sockets(n);
}

cw_status cw_net_run(cw_net *n, cw_err *err)
{
    pthread_mutex_lock(&n->turn);
    n->now_us = cw_now_us();
    n->tick_us = n->watch_us = n->now_us;
    while (n->fatal.code == CW_OK && !atomic_load(&n->stop)) {
        net_one_round(n, INT64_MAX);
        net_step_aside(n);
    }
    if (n->fatal.code == CW_OK) {
        say_goodbye(n);
    } else {
        CW_LOG_E("net", "%s", n->fatal.text);
        close_sockets(n);
        if (err) *err = n->fatal;
    }
    n->ended = true;
    cw_status s = n->fatal.code;
    pthread_mutex_unlock(&n->turn);
    return s;
}

/* --- other threads --- */

void cw_net_stop(cw_net *n)
{
    atomic_store(&n->stop, true);
    wake(n);
}

void cw_net_wake(cw_net *n)
{
    atomic_store(&n->woken, true);
    wake(n);
}

cw_status cw_net_revoke(cw_net *n, const cw_key *key, cw_err *err)
{
    CW_TRY(net_zap_revoke(n->zap, key, err));
    atomic_store(&n->revoked, true);
    wake(n);
    return CW_OK;
}

void cw_net_unrevoke(cw_net *n, const cw_key *key)
{
    net_zap_unrevoke(n->zap, key);
}

bool cw_net_link_get_stats(const cw_net *n, cw_link link, cw_net_link_stats *out)
{
    const net_link *l = net_link_find(n, link);
    if (l) *out = l->stats;
    return l != NULL;
}

void cw_net_get_stats(cw_net *n, cw_net_stats *out)
{
    *out = (cw_net_stats){.links_in = atomic_load(&n->count.links_in),
                          .links_out = atomic_load(&n->count.links_out),
                          .blamed = atomic_load(&n->count.blamed),
                          .overrun = atomic_load(&n->count.overrun),
                          .silent = atomic_load(&n->count.silent),
                          .handshakes_failed = atomic_load(&n->count.handshakes_failed),
                          .bytes_in = atomic_load(&n->count.bytes_in),
                          .bytes_out = atomic_load(&n->count.bytes_out),
                          .zap_refused = net_zap_refused(n->zap)};
}
