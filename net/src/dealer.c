/*
 * An outgoing link: one DEALER, one connection, no reconnection by libzmq (it would deliver old messages to a
 * restarted peer without a hello). The monitor tells what became of it; the machine decides about another
 * try, with a new link.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cw/address.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "internal.h"
#include "wire.h"

static bool setup(const cw_net *n, net_link *l, const cw_address *a)
{
    int off = 0, on = 1, never = -1, connect_ms = NET_CONNECT_MS, ipv6 = a->ipv6;
    return net_socket_setup(n, l->sock, CW_DATA_FRAME_MAX + NET_FRAME_SLACK) &&
           zmq_setsockopt(l->sock, ZMQ_CURVE_SERVERKEY, l->key.b, CW_KEY_BYTES) == 0 &&
           zmq_setsockopt(l->sock, ZMQ_RECONNECT_IVL, &never, sizeof never) == 0 &&
           zmq_setsockopt(l->sock, ZMQ_IMMEDIATE, &on, sizeof on) == 0 &&
           zmq_setsockopt(l->sock, ZMQ_CONNECT_TIMEOUT, &connect_ms, sizeof connect_ms) == 0 &&
           zmq_setsockopt(l->sock, ZMQ_PROBE_ROUTER, &off, sizeof off) == 0 &&
           zmq_setsockopt(l->sock, ZMQ_IPV6, &ipv6, sizeof ipv6) == 0;
}

/* `address` has a number for a host. */
static void begin_connection(cw_net *n, net_link *l, const char *address, const cw_address *a)
{
    if (!(l->sock = zmq_socket(n->zmq, ZMQ_DEALER))) {
        net_link_fail(n, l, "no socket for another connection");
        return;
    }
    if (!setup(n, l, a) || !(l->mon = net_monitor_open(n, l->sock)) ||
        !net_poll_add(n, l->sock, NET_POLL_LINKS + l->id) ||
        !net_poll_add(n, l->mon, NET_POLL_LINKS + l->id) || zmq_connect(l->sock, address) != 0)
        net_link_fail(n, l, "cannot connect: %.100s", zmq_strerror(errno));
}

/* Peers that came in are not counted: a flood, or merely many of them, must not keep us from our own. */
static uint32_t n_outgoing(const cw_net *n)
{
    uint32_t k = 0;
    for (size_t i = 0; i < n->n_links; i++) k += !n->links[i]->incoming && n->links[i]->state != NET_DEAD;
    return k;
}

static bool is_away(const cw_net *n, const cw_key *key)
{
    for (size_t i = 0; i < NET_LOCAL_AWAY; i++)
        if (n->away[i].until_us > n->now_us && cw_key_equal(&n->away[i].key, key)) return true;
    return false;
}

/* By the address that the machine has named. */
static void begin_remote(cw_net *n, net_link *l)
{
    cw_address a;
    cw_err err;
    l->deadline_us = n->now_us + (int64_t)(NET_CONNECT_MS + NET_HANDSHAKE_MS) * 1000 + NET_TICK_US;
    if (cw_address_parse(l->address, CW_ADDRESS_CONNECT, &a, &err) != CW_OK)
        net_link_fail(n, l, "%.120s", err.text);
    else if (a.numeric)
        begin_connection(n, l, l->address, &a);
    else if (!net_resolver_ask(n->resolver, l->id, &a))
        net_link_fail(n, l, "too many host names wait to be looked up");
}

void net_dealer_fall_back(cw_net *n, net_link *l)
{
    CW_LOG_I("net", "the same-host endpoint of %s does not work, its address is used", l->address);
    n->away[n->next_away].key = l->key;
    n->away[n->next_away].until_us = n->now_us + NET_LOCAL_AWAY_US;
    n->next_away = (n->next_away + 1) % NET_LOCAL_AWAY;
    net_neighbour_close(l);
    l->local = l->gone = false;
    l->why[0] = 0;
    begin_remote(n, l);
}

void net_dealer_open(cw_net *n, const cw_action *act)
{
    char local[CW_ADDRESS_MAX];
    CW_ASSERT((act->link & CW_LINK_OUT) && !net_link_find(n, act->link)); /* a link id is used once */
    net_link *l = net_link_new(n, act->link);
    if (!l) return;
    l->state = NET_CONNECTING;
    l->key = act->key;
    l->drained = true;
    snprintf(l->address, sizeof l->address, "%s", act->text);
    cw_gate_outgoing(&l->gate, n->cfg.self);
    if (n_outgoing(n) > n->cfg.max_peers) {
        net_link_fail(n, l, "too many connections: %u are the limit", n->cfg.max_peers);
    } else if (n->cfg.local_dir && !is_away(n, &l->key) &&
               net_local_is_there(n->cfg.local_dir, &l->key, local)) {
        net_neighbour_open(n, l, local);
    } else {
        begin_remote(n, l);
    }
}

void net_dealers_resolved(cw_net *n)
{
    net_resolved r;
    while (net_resolver_take(n->resolver, &r)) {
        net_link *l = net_link_find(n, r.link);
        cw_address a;
        if (!l || l->state != NET_CONNECTING || l->sock || l->failing) continue; /* gave up meanwhile */
        if (!r.address[0])
            net_link_fail(n, l, "there is no host of the name in %.80s", l->address);
        else if (cw_address_parse(r.address, CW_ADDRESS_CONNECT, &a, NULL) != CW_OK)
            net_link_fail(n, l, "the address of %.80s is none to connect to", l->address);
        else
            begin_connection(n, l, r.address, &a);
    }
}

/* The handshake cannot have failed for our own key or messages: these are what a user can do something about.
 */
static const char *handshake_failure(uint16_t event, uint32_t value)
{
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
        return "the peer refuses this key: it is revoked, or came too often in a short time";
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL && value == ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
        return "the peer does not speak CURVE: the port belongs to another program";
    return "the server's key is not the one in the join string, or the port belongs to another program";
}

static void connected(cw_net *n, net_link *l, int fd)
{
    if (l->conn) return;
    l->conn = cw_calloc(1, sizeof *l->conn);
    if (!l->conn) {
        net_fatal(n, CW_STATUS_NO_MEMORY, "no memory for another connection");
        return;
    }
    *l->conn = (net_conn){.fd = fd, .link = l, .since_us = n->now_us, .spoke_us = n->now_us};
}

static void ended(cw_net *n, net_link *l, const char *why)
{
    cw_free(l->conn);
    l->conn = NULL;
    net_link_ended(n, l, why);
}

void net_dealer_monitor(cw_net *n, net_link *l)
{
    uint16_t event;
    uint32_t value;
    while (l->mon && net_monitor_read(l->mon, &event, &value)) {
        switch (event) {
        case ZMQ_EVENT_CONNECTED: connected(n, l, (int)value); break;
        case ZMQ_EVENT_HANDSHAKE_SUCCEEDED: net_link_came_up(n, l); break;
        case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
            NET_COUNT(n, handshakes_failed, 1);
            ended(n, l, handshake_failure(event, value));
            break;
        case ZMQ_EVENT_DISCONNECTED: ended(n, l, "the connection was closed or lost"); break;
        case ZMQ_EVENT_CLOSED: ended(n, l, "nobody answers at that address"); break;
        default: break;
        }
    }
}

void net_dealer_receive(cw_net *n, net_link *l)
{
    l->drained = false;
    for (int i = 0; i < NET_RECV_BURST && l->sock && n->fatal.code == CW_OK; i++) {
        net_received got;
        net_recv r = net_message_receive(l->sock, false, &got);
        if (r == NET_RECV_NONE) {
            l->drained = true;
            l->touched = false;
            return;
        }
        if (r == NET_RECV_BROKEN) {
            net_fatal(n, CW_STATUS_IO, "reading from %s failed: %s", l->address, zmq_strerror(errno));
            return;
        }
        net_link_message(n, l, &got.parts);
    }
    if (l->sock) net_touched(n, l); /* there may be more */
}

void net_dealer_close(cw_net *n, net_link *l)
{
    net_poll_remove(n, l->sock);
    net_poll_remove(n, l->mon);
    cw_free(l->conn);
    l->conn = NULL;
    net_monitor_close(l->sock, l->mon);
    if (l->sock) zmq_close(l->sock);
    l->sock = l->mon = NULL;
}
