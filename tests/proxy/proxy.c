/* Routes, connections and the loop; see proxy.h. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "proxy_internal.h"

enum { EVENTS = 64 };

int64_t proxy_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- connections ---- */

static void set_interest(proxy *p, conn *c, int side)
{
    uint32_t want = 0;
    if (c->fd[side] < 0) return;
    if (stream_wants_read(c, side)) want |= EPOLLIN; /* stream `side` is read from socket `side` */
    if (c->s[1 - side].blocked || (side == 1 && c->connecting)) want |= EPOLLOUT;
    if (want == c->interest[side]) return;
    struct epoll_event ev = {.events = want, .data.ptr = &c->end[side]};
    if (epoll_ctl(p->epoll, EPOLL_CTL_MOD, c->fd[side], &ev) == 0) c->interest[side] = want;
}

static void close_side(proxy *p, conn *c, int side, bool reset)
{
    if (c->fd[side] < 0) return;
    struct linger l = {.l_onoff = 1, .l_linger = 0};
    if (reset) (void)setsockopt(c->fd[side], SOL_SOCKET, SO_LINGER, &l, sizeof l);
    (void)epoll_ctl(p->epoll, EPOLL_CTL_DEL, c->fd[side], NULL);
    close(c->fd[side]);
    c->fd[side] = -1;
}

/* The memory goes at the end of the round: events of this one may still point to it. */
static void close_conn(proxy *p, conn *c, bool reset)
{
    if (c->dead) return;
    c->dead = true;
    if (reset) c->r->resets++;
    for (int side = 0; side < 2; side++) {
        close_side(p, c, side, reset);
        stream_drop(&c->s[side]);
    }
}

static bool watch(proxy *p, conn *c, int side)
{
    struct epoll_event ev = {.events = 0, .data.ptr = &c->end[side]};
    return epoll_ctl(p->epoll, EPOLL_CTL_ADD, c->fd[side], &ev) == 0;
}

static bool connect_target(proxy *p, conn *c)
{
    int one = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(c->r->target_port)};
    to.sin_addr.s_addr = c->r->target_ip;
    c->waiting = false;
    c->fd[1] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd[1] < 0) return false;
    (void)setsockopt(c->fd[1], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->connecting = connect(c->fd[1], (struct sockaddr *)&to, sizeof to) != 0;
    if (c->connecting && errno != EINPROGRESS) return false;
    return watch(p, c, 1);
}

/* Writes what is due, and asks epoll for what is possible now. */
static void pump(proxy *p, conn *c)
{
    for (int dir = 0; dir < 2 && !c->dead; dir++)
        if (!stream_write(p, c, dir)) close_conn(p, c, true);
    if (c->dead) return;
    /* Both ends have said that they are done, and both know it of the other. */
    if (c->s[0].ended && c->s[1].ended && !c->s[0].head && !c->s[1].head && !c->s[0].lost && !c->s[1].lost) {
        close_conn(p, c, false);
        return;
    }
    for (int side = 0; side < 2; side++) set_interest(p, c, side);
}

static void accept_conn(proxy *p, route *r)
{
    int fd = accept4(r->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
    if (fd < 0) return;
    conn *c = calloc(1, sizeof *c);
    if (!c) {
        close(fd);
        return;
    }
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    *c = (conn){.next = p->conns, .r = r, .fd = {fd, -1}};
    for (int side = 0; side < 2; side++) c->end[side] = (endpoint){.kind = END_CONN, .side = side, .c = c};
    p->conns = c;
    r->accepted++;
    bool ok = watch(p, c, 0);
    if (r->dir[0].hole || r->dir[1].hole) {
        c->s[r->dir[PROXY_UP].hole ? PROXY_UP : PROXY_DOWN].lost = true; /* the target never hears of it */
    } else if (r->dir[0].half || r->dir[1].half) {
        c->waiting = true;
    } else {
        ok = ok && connect_target(p, c);
    }
    if (ok)
        pump(p, c);
    else
        close_conn(p, c, true);
}

/* This socket is over in both directions (epoll tells of that whether asked or not). What it still had to
 * say was read before, or is read now. */
static void gone(proxy *p, conn *c, int side, bool broken)
{
    stream *s = &c->s[side];
    while (!s->ended && stream_wants_read(c, side))
        if (!stream_read(p, c, side)) break;
    if (broken || !s->ended) stream_break(p, c, side);
    close_side(p, c, side, false);
}

static void conn_event(proxy *p, conn *c, int side, uint32_t events)
{
    if (c->dead || c->fd[side] < 0) return;
    if (side == 1 && c->connecting) {
        int why = 0;
        socklen_t len = sizeof why;
        if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) return;
        if (getsockopt(c->fd[1], SOL_SOCKET, SO_ERROR, &why, &len) != 0 || why) {
            close_conn(p, c, true);
            return;
        }
        c->connecting = false;
    } else if (events & (EPOLLERR | EPOLLHUP)) {
        gone(p, c, side, (events & EPOLLERR) != 0);
    } else if ((events & EPOLLIN) && !stream_read(p, c, side)) {
        close_conn(p, c, true);
        return;
    }
    pump(p, c);
}

/* ---- routes ---- */

route *proxy_route(proxy *p, const char *name)
{
    for (route *r = p->routes; r; r = r->next)
        if (strcmp(r->name, name) == 0) return r;
    return NULL;
}

/* A socket bound to the route's port (0: any), which becomes known with the first. */
static int bound_socket(route *r)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(r->port)};
    socklen_t len = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0) return -1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) != 0 ||
        getsockname(fd, (struct sockaddr *)&at, &len) != 0) {
        close(fd);
        return -1;
    }
    r->port = ntohs(at.sin_port);
    return fd;
}

static bool start_listening(proxy *p, route *r)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &r->end};
    r->listener = bound_socket(r);
    return r->listener >= 0 && listen(r->listener, 256) == 0 &&
           epoll_ctl(p->epoll, EPOLL_CTL_ADD, r->listener, &ev) == 0;
}

route *route_add(proxy *p, const char *name, uint32_t ip, uint16_t port, uint16_t listen_port)
{
    route *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    *r = (route){.listener = -1, .target_ip = ip, .target_port = port, .port = listen_port};
    r->end = (endpoint){.kind = END_LISTEN, .r = r};
    snprintf(r->name, sizeof r->name, "%s", name);
    r->guard = bound_socket(r);
    if (r->guard < 0 || !start_listening(p, r)) {
        if (r->guard >= 0) close(r->guard);
        if (r->listener >= 0) close(r->listener);
        free(r);
        return NULL;
    }
    r->next = p->routes;
    p->routes = r;
    return r;
}

/* The port stays ours meanwhile: the guard is bound to it and listens to nobody. */
bool route_refuse(proxy *p, route *r, bool on)
{
    if (on == (r->listener < 0)) return true;
    if (!on) return start_listening(p, r);
    (void)epoll_ctl(p->epoll, EPOLL_CTL_DEL, r->listener, NULL);
    close(r->listener);
    r->listener = -1;
    return true;
}

void route_reset(proxy *p, route *r, bool only_lost)
{
    for (conn *c = p->conns; c; c = c->next)
        if (c->r == r &&
            (!only_lost || (c->s[0].lost && !r->dir[0].hole) || (c->s[1].lost && !r->dir[1].hole)))
            close_conn(p, c, true);
}

void route_faults_changed(proxy *p, route *r)
{
    route_reset(p, r, true);
    for (conn *c = p->conns; c; c = c->next) {
        if (c->r != r || c->dead) continue;
        for (int dir = 0; dir < 2; dir++)
            if (r->dir[dir].hole) stream_drop(&c->s[dir]);
        if (c->waiting && !r->dir[0].half && !r->dir[1].half && !connect_target(p, c)) {
            close_conn(p, c, true);
            continue;
        }
        pump(p, c);
    }
}

/* ---- the loop ---- */

proxy *proxy_new(uint64_t seed)
{
    proxy *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->random = seed;
    p->epoll = epoll_create1(EPOLL_CLOEXEC);
    p->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    p->timer_end.kind = END_TIMER;
    p->input_end.kind = END_INPUT;
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &p->timer_end};
    if (p->epoll < 0 || p->timer < 0 || epoll_ctl(p->epoll, EPOLL_CTL_ADD, p->timer, &ev) != 0) {
        proxy_free(&p);
        return NULL;
    }
    return p;
}

static void bury(proxy *p)
{
    for (conn **at = &p->conns; *at;) {
        conn *c = *at;
        if (!c->dead) {
            at = &c->next;
            continue;
        }
        *at = c->next;
        free(c);
    }
}

void proxy_free(proxy **pp)
{
    proxy *p = *pp;
    if (!p) return;
    for (conn *c = p->conns; c; c = c->next) close_conn(p, c, true);
    bury(p);
    while (p->routes) {
        route *r = p->routes;
        p->routes = r->next;
        if (r->listener >= 0) close(r->listener);
        close(r->guard);
        free(r);
    }
    if (p->timer >= 0) close(p->timer);
    if (p->epoll >= 0) close(p->epoll);
    free(p);
    *pp = NULL;
}

void proxy_quit(proxy *p)
{
    p->quit = true;
}

/* Everything that is due; then the timer for what is due next. */
static void release(proxy *p)
{
    int64_t next = INT64_MAX;
    p->now = proxy_now();
    for (conn *c = p->conns; c; c = c->next) {
        bool due = false;
        for (int dir = 0; dir < 2; dir++)
            due = due || (c->s[dir].head && c->s[dir].head->due <= p->now && !c->s[dir].blocked);
        if (due && !c->dead) pump(p, c);
        for (int dir = 0; dir < 2 && !c->dead; dir++) {
            const stream *s = &c->s[dir];
            if (s->head && !s->blocked && !c->r->dir[dir].half && !c->connecting && !c->waiting &&
                s->head->due > p->now && s->head->due < next)
                next = s->head->due;
        }
    }
    bury(p);
    if (next == p->armed) return;
    p->armed = next;
    struct itimerspec t = {0};
    if (next != INT64_MAX) t.it_value = (struct timespec){next / 1000000000, next % 1000000000};
    (void)timerfd_settime(p->timer, TFD_TIMER_ABSTIME, &t, NULL);
}

bool proxy_run(proxy *p, int fd, void (*on_input)(void *ctx), void *ctx)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &p->input_end}, got[EVENTS];
    if (epoll_ctl(p->epoll, EPOLL_CTL_ADD, fd, &ev) != 0) return false;
    p->armed = INT64_MAX;
    while (!p->quit) {
        int n = epoll_wait(p->epoll, got, EVENTS, -1);
        if (n < 0 && errno != EINTR) return false;
        p->now = proxy_now();
        for (int i = 0; i < n; i++) {
            endpoint *e = got[i].data.ptr;
            uint64_t times;
            switch (e->kind) {
            case END_CONN: conn_event(p, e->c, e->side, got[i].events); break;
            case END_LISTEN: accept_conn(p, e->r); break;
            case END_INPUT: on_input(ctx); break;
            case END_TIMER:
                if (read(p->timer, &times, sizeof times) > 0) p->armed = INT64_MAX;
                break;
            }
        }
        release(p);
    }
    return true;
}
