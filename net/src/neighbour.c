/*
 * Links to processes of this user on this machine: a listening Unix socket, connections that prove their keys
 * (local.h) and then carry messages like all others (stream.h). Machines are told that the peer is on this
 * host and see no other difference.
 *
 * What libzmq does for the other links is done here in the net's own thread: a limit for connections that
 * have not said who they are, heartbeats, and the end of a peer that is silent for three of them. A message's
 * size is known from its first bytes, so nobody can run ahead of his credit and the watchdog has nothing to
 * see.
 */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cw/log.h"
#include "cw/mem.h"
#include "internal.h"

/* Fewer are accepted at once than may be unproven: each has its first words read before it can be the oldest.
 */
enum { BACKLOG = 64, ACCEPT_BURST = NET_LOCAL_UNPROVEN / 2, SHUT_US = 1000000 };

/* --- listening --- */

static int bound_socket(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    memcpy(a.sun_path, path, strlen(path) + 1); /* net_local_path has seen to the length */
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    /* A file of that name is our own, of a run that did not end well: the directory is private, and who has
     * our key has our state directory's lock. */
    if ((unlink(path) == 0 || errno == ENOENT) && bind(fd, (struct sockaddr *)&a, sizeof a) == 0) {
        if (listen(fd, BACKLOG) == 0) return fd;
        (void)unlink(path);
    }
    int e = errno;
    close(fd);
    errno = e;
    return -1;
}

cw_status net_neighbours_listen(cw_net *n, cw_port port, const char *dir, cw_err *err)
{
    char path[CW_ADDRESS_MAX];
    if (!net_local_path(dir, cw_keys_public(n->cfg.keys), path))
        return CW_FAIL(err, CW_STATUS_LIMIT, "the path of %.100s is too long for a socket", dir);
    if (n->neighbours.fd >= 0)
        return CW_FAIL(err, CW_STATUS_LIMIT, "there is one same-host endpoint already");
    int fd = bound_socket(path);
    if (fd < 0 || !net_poll_fd(n, EPOLL_CTL_ADD, fd, NET_POLL_NEIGHBOURS, EPOLLIN)) {
        cw_status s = CW_FAIL(err, CW_STATUS_IO, "cannot listen on %s: %s", path, strerror(errno));
        if (fd >= 0) (void)unlink(path), close(fd);
        return s;
    }
    n->neighbours.fd = fd;
    n->neighbours.port = port;
    memcpy(n->neighbours.path, path, sizeof path);
    return CW_OK;
}

void net_neighbours_unlisten(cw_net *n)
{
    if (n->neighbours.fd < 0) return;
    (void)unlink(n->neighbours.path); /* before the close: whoever finds the file finds us */
    close(n->neighbours.fd);
    n->neighbours.fd = -1;
}

/* --- connections --- */

static bool adopt(cw_net *n, net_link *l, int fd)
{
    l->stream = net_stream_new(fd);
    if (l->stream && net_poll_fd(n, EPOLL_CTL_ADD, fd, NET_POLL_LINKS + l->id, EPOLLIN)) {
        l->local = true;
        l->heard_us = l->said_us = l->timed_us = n->now_us;
        return true;
    }
    if (l->stream)
        net_stream_free(&l->stream);
    else
        close(fd);
    return false;
}

void net_neighbour_close(net_link *l)
{
    net_stream_free(&l->stream); /* which takes its descriptor out of the poll */
    l->watched_for_room = false;
}

static void ended(cw_net *n, net_link *l)
{
    net_neighbour_close(l); /* its descriptor would be ready for ever */
    net_link_ended(n, l, "the connection was closed or lost");
}

/* Under a flood the oldest that has proven nothing goes first: an honest proof takes milliseconds. */
static void make_room(cw_net *n)
{
    net_link *oldest = NULL;
    if (n->n_unproven < NET_LOCAL_UNPROVEN) return;
    for (size_t i = 0; i < n->n_links; i++) {
        net_link *l = n->links[i];
        if (net_link_is_unproven(l) && (!oldest || l->deadline_us < oldest->deadline_us)) oldest = l;
    }
    NET_COUNT(n, silent, 1);
    net_link_close(n, oldest, true);
}

static void introduce(cw_net *n, int fd)
{
    make_room(n);
    if (!net_local_peer_is_ours(fd) || n->n_live - n->n_unproven >= n->cfg.max_peers) {
        CW_LOG_W("net", "a same-host peer was turned away: it is of another user, or %u peers are there",
                 n->cfg.max_peers);
        close(fd);
        return;
    }
    net_link *l = net_link_new(n, 0);
    if (!l) {
        close(fd);
        return;
    }
    l->incoming = l->local = true;
    l->port = n->neighbours.port;
    l->state = NET_CONNECTING;
    n->n_unproven++;
    l->deadline_us = n->now_us + NET_FIRST_WORD_US;
    snprintf(l->address, sizeof l->address, "this host");
    cw_gate_incoming(&l->gate, n->cfg.self, net_purpose(l->port));
    if (!adopt(n, l, fd)) net_link_close(n, l, true);
}

static void watch_door(cw_net *n, uint32_t events)
{
    if (!net_poll_fd(n, EPOLL_CTL_MOD, n->neighbours.fd, NET_POLL_NEIGHBOURS, events))
        net_fatal(n, CW_STATUS_IO, "the same-host endpoint cannot be watched: %s", strerror(errno));
}

void net_neighbours_accept(cw_net *n)
{
    n->neighbours.ready = false;
    for (int i = 0; i < ACCEPT_BURST && n->neighbours.fd >= 0 && n->fatal.code == CW_OK; i++) {
        int fd = accept4(n->neighbours.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            introduce(n, fd);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            /* No descriptors, most likely. The poll would say so again and again. */
            CW_LOG_W("net", "a same-host connection could not be accepted: %s", strerror(errno));
            n->neighbours.shut_until_us = n->now_us + SHUT_US;
            watch_door(n, 0);
            return;
        }
    }
}

void net_neighbours_timer(cw_net *n)
{
    if (!n->neighbours.shut_until_us || n->now_us < n->neighbours.shut_until_us) return;
    n->neighbours.shut_until_us = 0;
    watch_door(n, EPOLLIN);
}

void net_neighbour_open(cw_net *n, net_link *l, const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    uint8_t first[NET_LOCAL_FIRST];
    memcpy(a.sun_path, path, strlen(path) + 1);
    l->local = true;
    l->deadline_us = n->now_us + NET_LOCAL_US;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bool connected = fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0;
    if (!connected) { /* nobody there, or too many before us */
        if (fd >= 0) close(fd);
        ended(n, l);
        return;
    }
    net_proof_first(&l->proof, n->cfg.keys, &l->key, first);
    if (!adopt(n, l, fd) || net_stream_send_bytes(l->stream, first, sizeof first) != NET_SENT) ended(n, l);
}

/* --- the proof --- */

static void prove_to_listener(cw_net *n, net_link *l, const net_parts *p)
{
    uint8_t third[NET_LOCAL_THIRD];
    if (p->n_parts == 1 &&
        net_proof_third(&l->proof, n->cfg.keys, p->header.data, p->header.len, third) &&
        net_stream_send_bytes(l->stream, third, sizeof third) == NET_SENT)
        net_link_came_up(n, l);
    else
        ended(n, l);
}

static void refuse(cw_net *n, net_link *l)
{
    CW_LOG_W("net", "peer cut before its hello address=\"this host\" reason=\"no same-host proof\"");
    net_link_fail(n, l, "it has not proven its key");
}

/* The first message names a key, and the answer asks for the proof, which is the second. */
static void prove_to_opener(cw_net *n, net_link *l, const net_parts *p)
{
    uint8_t second[NET_LOCAL_SECOND];
    const void *data = p->header.data;
    size_t len = p->n_parts == 1 ? p->header.len : 0;
    if (!l->proving) {
        l->proving = true;
        if (!net_proof_second(&l->proof, n->cfg.keys, data, len, second) ||
            !net_zap_admits(n->zap, &l->proof.opener))
            refuse(n, l);
        else if (net_stream_send_bytes(l->stream, second, sizeof second) != NET_SENT)
            ended(n, l);
    } else if (net_proof_check(&l->proof, n->cfg.keys, data, len) &&
               net_zap_admits(n->zap, &l->proof.opener)) {
        l->key = l->proof.opener;
        l->state = NET_UP;
        n->n_unproven--;
        l->stats.up_since_us = n->now_us;
        l->deadline_us = n->now_us + NET_FIRST_WORD_US;
        net_link_arrived(n, l);
    } else {
        refuse(n, l);
    }
}

/* --- messages --- */

static net_stream_limits limits_of(const cw_net *n, const net_link *l)
{
    if (l->state == NET_CONNECTING)
        return (net_stream_limits){.header = NET_LOCAL_FIRST, .message = NET_LOCAL_FIRST};
    size_t header = cw_gate_header_max(&l->gate);
    if (l->incoming && l->gate.state != CW_GATE_ADMITTED)
        return (net_stream_limits){.header = header, .message = header};
    return (net_stream_limits){
        .header = header, .frame = CW_DATA_FRAME_MAX, .message = NET_FIXED_AHEAD + n->cfg.peer_credit};
}

static void bad(cw_net *n, net_link *l)
{
    if (l->state == NET_UP)
        net_link_blame(n, l, "a message of lengths that none may have here");
    else if (l->state == NET_CONNECTING && l->incoming)
        refuse(n, l);
    else
        ended(n, l);
}

static void take(cw_net *n, net_link *l, net_parts *p)
{
    bool beat = p->n_parts == 0;
    if (beat && l->state == NET_CONNECTING) bad(n, l);
    if (beat) return;
    if (l->state != NET_CONNECTING) {
        bool was_new = l->incoming && l->gate.state == CW_GATE_NEW;
        /* Its sender has the rest of a layer for other workers in hand. What we compute takes long enough to
         * let it go first, or they would compute one after another. */
        if (l->incoming && net_stream_is_in_the_way(l->stream)) sched_yield();
        net_link_message(n, l, p);
        if (was_new && l->deadline_us != INT64_MAX && l->state == NET_UP)
            l->deadline_us = n->now_us + NET_FIRST_WORD_US;
        return;
    }
    if (l->incoming)
        prove_to_opener(n, l, p);
    else
        prove_to_listener(n, l, p);
    net_parts_free(p);
}

void net_neighbour_receive(cw_net *n, net_link *l)
{
    for (int i = 0; i < NET_RECV_BURST && l->stream && !l->failing && n->fatal.code == CW_OK; i++) {
        net_parts p;
        net_stream_limits limits = limits_of(n, l);
        switch (net_stream_receive(l->stream, &limits, &p)) {
        case NET_RECV_GOT: take(n, l, &p); break;
        case NET_RECV_NONE: return;
        case NET_RECV_BAD: bad(n, l); return;
        case NET_RECV_NO_MEMORY: net_fatal(n, CW_STATUS_NO_MEMORY, "no memory to receive a message"); return;
        case NET_RECV_GONE:
        case NET_RECV_BROKEN: ended(n, l); return;
        }
    }
    /* The others first. What is still in the socket the poll will tell, what has been read it cannot. */
    if (l->stream && net_stream_pause(l->stream)) net_touched(n, l);
}

/* The poll tells when there is room again, as long as something waits for it. */
static void watch_for_room(cw_net *n, net_link *l)
{
    bool waits = net_stream_waits(l->stream);
    if (waits == l->watched_for_room) return;
    l->watched_for_room = waits;
    if (!net_poll_fd(n, EPOLL_CTL_MOD, net_stream_fd(l->stream), NET_POLL_LINKS + l->id,
                     waits ? EPOLLIN | EPOLLOUT : EPOLLIN))
        net_fatal(n, CW_STATUS_IO, "a same-host connection cannot be watched: %s", strerror(errno));
}

net_send net_neighbour_send(cw_net *n, net_link *l, cw_msg **m, uint64_t *bytes)
{
    net_send r =
        net_stream_send(l->stream, m, n->more_to_send, n->cfg.queue_bytes, n->cfg.queue_messages, bytes);
    l->said_us = n->now_us;
    if (r == NET_SENT) watch_for_room(n, l);
    /* What a peer that is gone said last is still to be read, and its end ends the link. */
    return r == NET_SEND_GONE ? NET_SENT : r;
}

void net_neighbour_ready(cw_net *n, net_link *l, uint32_t events)
{
    if (events & ~(uint32_t)EPOLLOUT) {
        l->heard_us = n->now_us;
        net_stream_readable(l->stream);
        net_neighbour_receive(n, l);
    }
    if (!l->stream || !(events & EPOLLOUT)) return;
    if (net_stream_flush(l->stream) == NET_SENT)
        watch_for_room(n, l);
    else
        ended(n, l);
}

void net_neighbour_timer(cw_net *n, net_link *l)
{
    /* This is looked at once a tick. */
    int64_t beat = (int64_t)n->cfg.heartbeat_ms * 1000, dead = 3 * (beat + NET_TICK_US);
    bool was_away = n->now_us - l->timed_us > beat + NET_TICK_US;
    l->timed_us = n->now_us;
    if (l->state != NET_UP || l->failing) return;
    if (was_away) l->heard_us = n->now_us; /* it was us who did not listen */
    if (n->now_us - l->heard_us > dead) {
        NET_COUNT(n, silent, 1);
        net_link_fail(n, l, "nothing came from it for %lld s", (long long)(dead / 1000000));
    } else if (n->now_us - l->said_us >= beat) {
        l->said_us = n->now_us;
        if (net_stream_beat(l->stream) == NET_SENT) watch_for_room(n, l); /* else see net_neighbour_send */
    }
}
