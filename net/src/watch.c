/*
 * The memory watchdog. libzmq keeps an unfinished multipart message in memory where no high-water mark counts
 * it, so the application sees nothing while the process grows. Here the bytes that a connection's socket has
 * received (TCP_INFO) and libzmq has read (less what still waits in the kernel) are compared with what is
 * accounted for; a peer that is too far ahead is cut.
 *
 * Accounted for (`acked`, a lower bound): the wire size of every message that was delivered; and, since a
 * message that is delivered after a moment when all queues were empty was completed after that moment,
 * everything received up to that moment. The second rule takes in handshakes, heartbeats and frames'
 * overhead, which nobody delivers. Between messages a silent peer's heartbeats are granted a few bytes a
 * second. A peer is cut when it is over its limit in two looks in a row, with the queues read in between:
 * this thread may have been kept from running just before the first.
 */
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "internal.h"

enum { NEW_PEER_AHEAD = 32 << 10, IDLE_BYTES_PER_S = 128, IDLE_MAX = 8 << 20 };

/* Bytes libzmq has read from this descriptor; false when the system does not tell. */
static bool bytes_read(int fd, uint64_t *out)
{
    struct tcp_info info = {0};
    socklen_t len = sizeof info;
    int unread = 0;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) != 0) return false;
    if (len < offsetof(struct tcp_info, tcpi_bytes_received) + sizeof info.tcpi_bytes_received) return false;
    if (ioctl(fd, FIONREAD, &unread) != 0 || unread < 0) unread = 0;
    uint64_t received = info.tcpi_bytes_received;
    *out = received > (uint64_t)unread ? received - (uint64_t)unread : 0;
    return true;
}

void net_watch_delivered(net_conn *c, uint64_t wire_bytes, int64_t now_us)
{
    c->acked += wire_bytes;
    if (c->base > c->acked) c->acked = c->base;
    c->base = 0;
    c->spoke_us = now_us;
}

static uint64_t limit_of(const cw_net *n, const net_conn *c)
{
    if (!c->link || (!c->link->gate.outgoing && c->link->gate.state != CW_GATE_ADMITTED))
        return NEW_PEER_AHEAD;
    int64_t idle_s = (n->now_us - c->spoke_us) / 1000000;
    uint64_t idle = idle_s > 0 ? (uint64_t)idle_s * IDLE_BYTES_PER_S : 0;
    return n->cfg.peer_credit + NET_FIXED_AHEAD + (idle < IDLE_MAX ? idle : IDLE_MAX);
}

/* true: within its limit. `hot` is set when it is on its way there. */
static bool check(const cw_net *n, net_conn *c, bool drained, bool *hot)
{
    uint64_t got, limit = limit_of(n, c);
    if (!bytes_read(c->fd, &got)) return true;
    uint64_t ahead = got > c->acked ? got - c->acked : 0;
    if (ahead > limit / 8) *hot = true;
    c->strikes = ahead > limit ? c->strikes + 1 : 0;
    if (c->strikes >= 2) return false;
    if (drained) c->base = got;
    return true;
}

static void check_half_open(cw_net *n, net_listener *l, bool *hot)
{
    for (net_conn *c = l->oldest, *next; c; c = next) {
        next = c->next;
        bool late = n->now_us - c->since_us > (int64_t)NET_HANDSHAKE_MS * 1000 + NET_FIRST_WORD_US;
        if (!late && check(n, c, l->drained, hot)) continue;
        if (late)
            NET_COUNT(n, silent, 1);
        else
            NET_COUNT(n, overrun, 1);
        net_listener_drop_half_open(l, c);
    }
}

void net_watch_round(cw_net *n)
{
    bool hot = false;
    for (uint32_t i = 0; i < n->n_listeners; i++) check_half_open(n, &n->listeners[i], &hot);
    for (size_t i = 0; i < n->n_links; i++) {
        net_link *l = n->links[i];
        if (!l->conn || l->conn->cut || l->state == NET_DEAD || l->failing) continue;
        if (check(n, l->conn, l->from ? l->from->drained : l->drained, &hot)) continue;
        NET_COUNT(n, overrun, 1);
        net_link_blame(n, l, "sent more than its credit without finishing a message");
    }
    n->watch_us = n->now_us + (hot ? NET_WATCH_HOT_US : NET_WATCH_US);
}
