/*
 * A listener: a ROUTER that everybody may knock at, and the monitor that tells which descriptors are whose.
 *
 * A peer is known by the routing id that libzmq made for its connection (never reused), the descriptor its
 * messages came through (ZMQ_SRCFD) and its CURVE key (User-Id, set by the ZAP handler and read from the
 * header part: libzmq 4.3.4 drops it from the routing-id part). A descriptor is reused by the next
 * connection, but libzmq reports its end before it closes it, and reports the next ACCEPTED before that
 * connection's first message can be read; so the monitor is read empty before a descriptor is bound to a new
 * peer and before one is shut down.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "cw/address.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "internal.h"
#include "wire.h"

static const char *const port_names[] = {"control", "store", "data"};
/* Largest part a correct peer sends to each port: control and store are asked for things, data carries rows.
 */
static const int64_t max_parts[] = {
    [CW_PORT_CONTROL] = CW_HEADER_MAX, [CW_PORT_STORE] = CW_HELLO_MAX, [CW_PORT_DATA] = CW_DATA_FRAME_MAX};

/* --- connections --- */

static net_conn *conn_of_fd(const net_listener *l, int fd)
{
    return fd >= 0 && (size_t)fd < l->n_by_fd ? l->by_fd[fd] : NULL;
}

static void unlink_half_open(net_listener *l, net_conn *c)
{
    if (!c->prev && !c->next && l->oldest != c) return;
    *(c->prev ? &c->prev->next : &l->oldest) = c->next;
    *(c->next ? &c->next->prev : &l->newest) = c->prev;
    c->prev = c->next = NULL;
    l->n_half_open--;
}

void net_listener_drop_half_open(net_listener *l, net_conn *c)
{
    unlink_half_open(l, c);
    if (!c->cut) shutdown(c->fd, SHUT_RDWR);
    c->cut = true;
}

/* The connection is no more, as the monitor says, or as the next one on its descriptor proves. */
static void conn_gone(net_listener *l, net_conn *c, bool *someone_gone)
{
    if (c->link) {
        c->link->conn = NULL;
        c->link->gone = true;
        *someone_gone = true;
    }
    unlink_half_open(l, c);
    l->by_fd[c->fd] = NULL;
    cw_free(c);
}

static bool room_for_fd(net_listener *l, int fd)
{
    if ((size_t)fd < l->n_by_fd) return true;
    size_t cap = l->n_by_fd ? l->n_by_fd : 64;
    while (cap <= (size_t)fd) cap *= 2;
    net_conn **grown = cw_realloc(l->by_fd, cap, sizeof(net_conn *));
    if (!grown) return false;
    memset(grown + l->n_by_fd, 0, (cap - l->n_by_fd) * sizeof(net_conn *));
    l->by_fd = grown;
    l->n_by_fd = cap;
    return true;
}

static void conn_accepted(cw_net *n, net_listener *l, int fd)
{
    if (fd < 0) return;
    if (conn_of_fd(l, fd)) conn_gone(l, conn_of_fd(l, fd), &n->someone_gone);
    net_conn *c = cw_calloc(1, sizeof *c);
    if (!c || !room_for_fd(l, fd)) {
        cw_free(c);
        net_fatal(n, CW_STATUS_NO_MEMORY, "no memory for another connection");
        return;
    }
    *c = (net_conn){.fd = fd, .since_us = n->now_us, .spoke_us = n->now_us, .prev = l->newest};
    l->by_fd[fd] = c;
    *(l->newest ? &l->newest->next : &l->oldest) = c;
    l->newest = c;
    /* Under a flood the oldest goes first: an honest handshake takes milliseconds and is over by then. */
    if (++l->n_half_open > 64 + 2 * n->cfg.max_peers) {
        NET_COUNT(n, silent, 1);
        net_listener_drop_half_open(l, l->oldest);
    }
}

void net_listener_monitor(cw_net *n, net_listener *l)
{
    uint16_t event;
    uint32_t value;
    while (net_monitor_read(l->mon, &event, &value)) {
        net_conn *c = conn_of_fd(l, (int)value);
        if (event == ZMQ_EVENT_ACCEPTED)
            conn_accepted(n, l, (int)value);
        else if (event == ZMQ_EVENT_DISCONNECTED && c)
            conn_gone(l, c, &n->someone_gone);
        else if (event == ZMQ_EVENT_ACCEPT_FAILED)
            CW_LOG_W("net", "a connection could not be accepted: %s", strerror((int)value));
        else if (event & (ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                          ZMQ_EVENT_HANDSHAKE_FAILED_AUTH))
            NET_COUNT(n, handshakes_failed, 1);
    }
}

void net_listener_cut(cw_net *n, net_link *l)
{
    net_listener_monitor(n, l->from);
    if (!l->conn || l->conn->cut) return;
    shutdown(l->conn->fd, SHUT_RDWR);
    l->conn->cut = true;
}

/* --- messages --- */

static uint64_t rid_key(const net_listener *l, const uint8_t rid[5])
{
    return (uint64_t)(l->index + 1) << 32 | (uint64_t)rid[1] << 24 | (uint64_t)rid[2] << 16 |
           (uint64_t)rid[3] << 8 | rid[4];
}

static bool key_of(const net_received *r, cw_key *key)
{
    const char *user = zmq_msg_gets(&r->header, "User-Id");
    return user && strlen(user) == CW_KEY_HEX - 1 && cw_key_parse(user, key);
}

/* Cuts somebody who has no link. */
static void turn_away(cw_net *n, net_conn *c, net_listener *l, const cw_key *key, const char *why)
{
    CW_LOG_W("net", "peer cut before its hello port=%s reason=\"%s\"", port_names[l->port], why);
    net_zap_ban(n->zap, key, n->cfg.ban_s);
    NET_COUNT(n, blamed, 1);
    if (c) net_listener_drop_half_open(l, c);
}

/* A routing id that is not known: a new peer, or the last words of a connection that is gone. NULL: not to be
 * talked to. */
static net_link *introduce(cw_net *n, net_listener *l, net_received *r, const cw_key *key)
{
    int fd = zmq_msg_get(&r->header, ZMQ_SRCFD);
    net_listener_monitor(n, l);
    net_conn *c = conn_of_fd(l, fd);
    if (!c || c->cut) return NULL;
    if (!r->rid_ok) {
        turn_away(n, c, l, key, "it chose its own routing id");
        return NULL;
    }
    if (n->n_live - n->n_unproven >= n->cfg.max_peers) {
        CW_LOG_W("net", "peer turned away port=%s reason=\"%u peers are the limit\"", port_names[l->port],
                 n->cfg.max_peers);
        net_listener_drop_half_open(l, c);
        return NULL;
    }
    if (c->link) { /* late words had bound this descriptor to a peer that was gone already */
        c->link->conn = NULL;
        c->link->gone = true;
        n->someone_gone = true;
    }
    net_link *link = net_link_new(n, 0);
    if (!link) return NULL;
    unlink_half_open(l, c);
    c->link = link;
    link->conn = c;
    link->incoming = true;
    link->from = l;
    link->port = l->port;
    link->key = *key;
    link->state = NET_UP;
    link->deadline_us = n->now_us + NET_FIRST_WORD_US;
    link->stats.up_since_us = n->now_us;
    memcpy(link->rid, r->rid, sizeof link->rid);
    cw_gate_incoming(&link->gate, n->cfg.self, net_purpose(l->port));
    const char *address = zmq_msg_gets(&r->header, "Peer-Address");
    snprintf(link->address, sizeof link->address, "%s", address ? address : "?");
    if (net_map_put(&n->by_rid, rid_key(l, link->rid), link) != CW_OK) {
        net_fatal(n, CW_STATUS_NO_MEMORY, "no memory for another connection");
        return NULL;
    }
    return link;
}

static void handle(cw_net *n, net_listener *l, net_received *r)
{
    cw_key key;
    if (!r->parts.header.release) { /* a routing id alone: nothing to act on, and nobody to name */
        net_parts_free(&r->parts);
        return;
    }
    if (!key_of(r, &key)) {
        net_parts_free(&r->parts);
        net_fatal(n, CW_STATUS_AUTH, "a message came whose sender the ZAP handler has not named");
        return;
    }
    net_link *link = r->rid_ok ? net_map_get(&n->by_rid, rid_key(l, r->rid)) : NULL;
    if (!link && (link = introduce(n, l, r, &key))) net_link_arrived(n, link);
    if (!link)
        net_parts_free(&r->parts);
    else if (!cw_key_equal(&key, &link->key)) {
        net_parts_free(&r->parts);
        net_link_blame(n, link, "its key changed");
    } else {
        bool was_new = link->gate.state == CW_GATE_NEW;
        net_link_message(n, link, &r->parts);
        if (was_new && link->deadline_us != INT64_MAX && link->state == NET_UP)
            link->deadline_us = n->now_us + NET_FIRST_WORD_US;
    }
}

void net_listener_receive(cw_net *n, net_listener *l)
{
    l->drained = false;
    for (int i = 0; i < NET_RECV_BURST && n->fatal.code == CW_OK; i++) {
        net_received got;
        net_recv r = net_message_receive(l->sock, true, &got);
        if (r == NET_RECV_NONE) {
            l->drained = true;
            l->touched = false;
            return;
        }
        if (r == NET_RECV_BROKEN) {
            net_fatal(n, CW_STATUS_IO, "reading the %s port failed: %s", port_names[l->port],
                      zmq_strerror(errno));
            return;
        }
        handle(n, l, &got);
    }
    l->touched = n->touched = true; /* there may be more */
}

/* --- life --- */

static cw_status bind_listener(cw_net *n, net_listener *l, const char *address, const cw_address *a,
                               char *bound, cw_err *err)
{
    int on = 1, backlog = 256, ipv6 = a->ipv6;
    if (!net_socket_setup(n, l->sock, max_parts[l->port] + NET_FRAME_SLACK) ||
        zmq_setsockopt(l->sock, ZMQ_CURVE_SERVER, &on, sizeof on) != 0 ||
        zmq_setsockopt(l->sock, ZMQ_ROUTER_MANDATORY, &on, sizeof on) != 0 ||
        zmq_setsockopt(l->sock, ZMQ_BACKLOG, &backlog, sizeof backlog) != 0 ||
        zmq_setsockopt(l->sock, ZMQ_ZAP_DOMAIN, "causeway", 8) != 0 ||
        zmq_setsockopt(l->sock, ZMQ_IPV6, &ipv6, sizeof ipv6) != 0)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "this libzmq lacks something we need: %s",
                       zmq_strerror(errno));
    if (!(l->mon = net_monitor_open(n, l->sock)))
        return CW_FAIL(err, CW_STATUS_LIMIT, "cannot watch a socket: %s", zmq_strerror(errno));
    char endpoint[CW_ADDRESS_MAX + 16], last[CW_ADDRESS_MAX];
    size_t last_len = sizeof last;
    /* ZeroMQ writes "any free port" as an asterisk, and takes a host name here for that of a network
     * interface. */
    const char *host = strcasecmp(a->host, "localhost") == 0 ? "127.0.0.1" : a->host;
    if (a->port)
        snprintf(endpoint, sizeof endpoint, a->ipv6 ? "tcp://[%s]:%u" : "tcp://%s:%u", host, a->port);
    else
        snprintf(endpoint, sizeof endpoint, a->ipv6 ? "tcp://[%s]:*" : "tcp://%s:*", host);
    if (zmq_bind(l->sock, endpoint) != 0) {
        int e = zmq_errno();
        if (e == EADDRINUSE)
            return CW_FAIL(err, CW_STATUS_IO, "cannot listen on %s: another program uses that port", address);
        if (e == ENODEV || e == EADDRNOTAVAIL)
            return CW_FAIL(err, CW_STATUS_IO, "cannot listen on %s: this machine has no such address",
                           address);
        return CW_FAIL(err, CW_STATUS_IO, "cannot listen on %s: %s", address, zmq_strerror(e));
    }
    if (zmq_getsockopt(l->sock, ZMQ_LAST_ENDPOINT, last, &last_len) != 0)
        return CW_FAIL(err, CW_STATUS_IO, "cannot tell the port of %s", address);
    if (bound) snprintf(bound, CW_ADDRESS_MAX, "%s", last);
    return CW_OK;
}

static cw_status join_poll(cw_net *n, net_listener *l, cw_err *err)
{
    if (net_poll_add(n, l->sock, NET_POLL_LISTENERS + l->index) &&
        net_poll_add(n, l->mon, NET_POLL_LISTENERS + l->index)) return CW_OK;
    return CW_FAIL(err, CW_STATUS_LIMIT, "cannot watch a socket: %s", strerror(errno));
}

cw_status net_listener_open(cw_net *n, cw_port port, const char *address, char *bound, cw_err *err)
{
    cw_address a;
    CW_TRY(cw_address_parse(address, CW_ADDRESS_LISTEN, &a, err));
    if (n->n_listeners == NET_MAX_LISTENERS)
        return CW_FAIL(err, CW_STATUS_LIMIT, "at most %d ports can be listened on", NET_MAX_LISTENERS);
    net_listener *l = &n->listeners[n->n_listeners];
    *l = (net_listener){.index = n->n_listeners, .port = port, .drained = true};
    if (!(l->sock = zmq_socket(n->zmq, ZMQ_ROUTER)))
        return CW_FAIL(err, CW_STATUS_LIMIT, "no socket for %s: %s", address, zmq_strerror(errno));
    cw_status s = bind_listener(n, l, address, &a, bound, err);
    if (s == CW_OK) s = join_poll(n, l, err);
    if (s == CW_OK)
        n->n_listeners++;
    else
        net_listener_free(n, l);
    return s;
}

void net_listener_free(cw_net *n, net_listener *l)
{
    net_poll_remove(n, l->sock);
    net_poll_remove(n, l->mon);
    net_monitor_close(l->sock, l->mon);
    if (l->sock) zmq_close(l->sock);
    for (size_t i = 0; i < l->n_by_fd; i++) cw_free(l->by_fd[i]);
    cw_free(l->by_fd);
    *l = (net_listener){0};
}
