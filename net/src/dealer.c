/*
 * An outgoing link: one DEALER, one connection, no reconnection by libzmq (it would deliver old messages to a
 * restarted peer without a hello). The monitor tells what became of it; the machine decides about another
 * try, with a new link.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cw/address.h"
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
    if (!setup(n, l, a) || !(l->mon = net_monitor_open(n, l->sock)) || zmq_connect(l->sock, address) != 0)
        net_link_fail(n, l, "cannot connect: %.100s", zmq_strerror(errno));
}

/* Peers that came in are not counted: a flood, or merely many of them, must not keep us from our own. */
static uint32_t n_outgoing(const cw_net *n)
{
    uint32_t k = 0;
    for (size_t i = 0; i < n->n_links; i++) k += !n->links[i]->from && n->links[i]->state != NET_DEAD;
    return k;
}

void net_dealer_open(cw_net *n, const cw_action *act)
{
    cw_address a;
    cw_err err;
    CW_ASSERT((act->link & CW_LINK_OUT) && !net_link_find(n, act->link)); /* a link id is used once */
    net_link *l = net_link_new(n, act->link);
    if (!l) return;
    l->state = NET_CONNECTING;
    l->key = act->key;
    l->deadline_us = n->now_us + (int64_t)(NET_CONNECT_MS + NET_HANDSHAKE_MS) * 1000 + NET_TICK_US;
    snprintf(l->address, sizeof l->address, "%s", act->text);
    cw_gate_outgoing(&l->gate, n->cfg.self);
    if (cw_address_parse(act->text, CW_ADDRESS_CONNECT, &a, &err) != CW_OK)
        net_link_fail(n, l, "%.120s", err.text);
    else if (n_outgoing(n) > n->cfg.max_peers)
        net_link_fail(n, l, "too many connections: %u are the limit", n->cfg.max_peers);
    else if (a.numeric)
        begin_connection(n, l, act->text, &a);
    else if (!net_resolver_ask(n->resolver, l->id, &a))
        net_link_fail(n, l, "too many host names wait to be looked up");
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

static void ended(net_link *l, const char *why)
{
    cw_free(l->conn);
    l->conn = NULL;
    l->gone = true;
    if (!l->why[0]) snprintf(l->why, sizeof l->why, "%s", why);
}

static void came_up(cw_net *n, net_link *l)
{
    if (l->state != NET_CONNECTING) return;
    l->state = NET_UP;
    l->deadline_us = INT64_MAX;
    l->stats.up_since_us = n->now_us;
    NET_COUNT(n, links_out, 1);
    cw_event ev = {.kind = CW_EV_LINK_UP, .link = l->id, .key = l->key};
    snprintf(ev.text, sizeof ev.text, "%.120s", l->address);
    net_deliver(n, &ev);
}

void net_dealer_monitor(cw_net *n, net_link *l)
{
    uint16_t event;
    uint32_t value;
    while (l->mon && net_monitor_read(l->mon, &event, &value)) {
        switch (event) {
        case ZMQ_EVENT_CONNECTED: connected(n, l, (int)value); break;
        case ZMQ_EVENT_HANDSHAKE_SUCCEEDED: came_up(n, l); break;
        case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
            NET_COUNT(n, handshakes_failed, 1);
            ended(l, handshake_failure(event, value));
            break;
        case ZMQ_EVENT_DISCONNECTED: ended(l, "the connection was closed or lost"); break;
        case ZMQ_EVENT_CLOSED: ended(l, "nobody answers at that address"); break;
        default: break;
        }
    }
}

void net_dealer_receive(cw_net *n, net_link *l)
{
    l->drained = false;
    for (int i = 0; i < NET_RECV_BURST && l->sock && n->fatal.code == CW_OK; i++) {
        net_parts p;
        net_recv r = net_parts_receive(l->sock, false, &p);
        if (r == NET_RECV_NONE) {
            l->drained = true;
            return;
        }
        if (r == NET_RECV_BROKEN) {
            net_fatal(n, CW_STATUS_IO, "reading from %s failed: %s", l->address, zmq_strerror(errno));
            return;
        }
        net_link_message(n, l, &p);
    }
}

void net_dealer_close(net_link *l)
{
    cw_free(l->conn);
    l->conn = NULL;
    net_monitor_close(l->sock, l->mon);
    if (l->sock) zmq_close(l->sock);
    l->sock = l->mon = NULL;
}
