/*
 * The links: made, failed, blamed, closed, forgotten. A link whose machine has been told LINK_DOWN, or that
 * the machine closed, is dead; an incoming one stays in the table for a while so that its late messages are
 * recognised and dropped.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cw/log.h"
#include "cw/mem.h"
#include "internal.h"
#include "wire.h"

/* Ids are unique in the process, whatever number of nets it runs. */
static atomic_uint_least64_t next_incoming = 1;

static uint64_t rid_key(const net_link *l)
{
    return (uint64_t)(l->from->index + 1) << 32 | (uint64_t)l->rid[1] << 24 | (uint64_t)l->rid[2] << 16 |
           (uint64_t)l->rid[3] << 8 | l->rid[4];
}

net_link *net_link_find(const cw_net *n, cw_link id)
{
    return id ? net_map_get(&n->by_id, id) : NULL;
}

net_link *net_link_new(cw_net *n, cw_link id)
{
    net_link *l = cw_calloc(1, sizeof *l);
    if (n->n_links == n->cap_links) {
        size_t cap = n->cap_links ? 2 * n->cap_links : 32;
        net_link **grown = cw_realloc(n->links, cap, sizeof *grown);
        if (!grown) goto fail;
        n->links = grown;
        n->cap_links = cap;
    }
    if (!l || !(l->backlog = net_backlog_new())) goto fail;
    l->id = id ? id : atomic_fetch_add(&next_incoming, 1);
    l->deadline_us = INT64_MAX;
    if (net_map_put(&n->by_id, l->id, l) != CW_OK) goto fail;
    n->links[n->n_links++] = l;
    n->n_live++;
    return l;
fail:
    if (l) net_backlog_release(l->backlog);
    cw_free(l);
    net_fatal(n, CW_STATUS_NO_MEMORY, "no memory for another connection");
    return NULL;
}

bool net_link_is_unproven(const net_link *l)
{
    return l->local && l->incoming && l->state == NET_CONNECTING;
}

static void let_go(cw_net *n, net_link *l)
{
    if (l->stream)
        net_neighbour_close(l);
    else if (l->from)
        net_listener_cut(n, l);
    else if (!l->incoming)
        net_dealer_close(n, l);
}

static void now_dead(cw_net *n, net_link *l)
{
    if (l->state == NET_DEAD) return;
    if (net_link_is_unproven(l)) n->n_unproven--;
    l->state = NET_DEAD;
    l->deadline_us = n->now_us + NET_FORGET_US;
    n->n_live--;
    net_map_remove(&n->by_id, l->id);
}

void net_link_fail(cw_net *n, net_link *l, const char *fmt, ...)
{
    if (l->failing || l->state == NET_DEAD) return;
    if (l->state == NET_CLOSING) {
        net_link_close(n, l, true);
        return;
    }
    char why[NET_WHY_MAX]; /* fmt's arguments may point into l->why */
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    memcpy(l->why, why, sizeof why);
    l->failing = true;
    n->failing_links = true;
}

void net_link_blame(cw_net *n, net_link *l, const char *fmt, ...)
{
    char why[CW_ADDRESS_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    CW_LOG_W("net", "peer cut link=%llx address=%s reason=\"%s\"", (unsigned long long)l->id, l->address,
             why);
    NET_COUNT(n, blamed, 1);
    if (l->incoming) {
        net_zap_ban(n->zap, &l->key, n->cfg.ban_s);
        let_go(n, l);
    }
    net_link_fail(n, l, "broke the protocol: %.100s", why);
}

void net_link_close(cw_net *n, net_link *l, bool at_once)
{
    if (l->state == NET_DEAD) return;
    l->failing = false; /* the machine has let go of it: no LINK_DOWN */
    if (!at_once && l->state == NET_UP && (l->conn || l->stream)) {
        /* It stays open and is read, to nowhere: a descriptor that is closed with unread bytes resets the
         * connection, and what was sent before would be lost. The peer ends it, or the deadline does. */
        l->state = NET_CLOSING;
        l->deadline_us = n->now_us + NET_CLOSE_US;
    } else if (at_once || l->state != NET_CLOSING) {
        let_go(n, l);
        now_dead(n, l);
    }
}

void net_links_timers(cw_net *n)
{
    for (size_t i = 0; i < n->n_links; i++) {
        net_link *l = n->links[i];
        if (l->stream) net_neighbour_timer(n, l);
        if (l->deadline_us > n->now_us) continue;
        if (l->state == NET_CONNECTING && l->local && !l->incoming) {
            net_dealer_fall_back(n, l);
            continue;
        }
        if (l->state == NET_CONNECTING) {
            net_link_fail(n, l, "no answer from %.80s in time", l->address);
        } else if (l->state == NET_UP) {
            NET_COUNT(n, silent, 1);
            net_link_fail(n, l, "was neither admitted nor refused in time");
        } else if (l->state == NET_CLOSING) {
            net_link_close(n, l, true);
        }
        if (l->state != NET_DEAD) l->deadline_us = INT64_MAX;
    }
}

void net_links_finish_gone(cw_net *n)
{
    n->someone_gone = false;
    for (size_t i = 0; i < n->n_links; i++) {
        net_link *l = n->links[i];
        if (!l->gone || l->state == NET_DEAD) continue;
        if (l->local && l->state == NET_CONNECTING && !l->incoming)
            net_dealer_fall_back(n, l);
        else
            net_link_fail(n, l, "%s", l->why[0] ? l->why : "the connection was closed or lost");
    }
}

void net_links_settle(cw_net *n)
{
    while (n->failing_links) {
        n->failing_links = false;
        for (size_t i = 0; i < n->n_links; i++) {
            net_link *l = n->links[i];
            if (!l->failing) continue;
            l->failing = false;
            /* A peer that came in and never proved its key: the machine does not know it. */
            bool unknown = l->incoming && l->state == NET_CONNECTING;
            let_go(n, l);
            now_dead(n, l);
            if (unknown) continue;
            cw_event ev = {.kind = CW_EV_LINK_DOWN, .link = l->id, .port = l->port, .key = l->key};
            snprintf(ev.text, sizeof ev.text, "%s", l->why);
            net_deliver(n, &ev); /* may open, close and fail other links; l stays until it is reaped */
        }
    }
}

static void free_link(cw_net *n, net_link *l)
{
    if (l->from) {
        net_map_remove(&n->by_rid, rid_key(l));
        if (l->conn) l->conn->link = NULL;
    } else {
        let_go(n, l);
    }
    net_backlog_release(l->backlog);
    cw_free(l);
}

void net_links_reap(cw_net *n)
{
    for (size_t i = 0; i < n->n_links; i++) {
        net_link *l = n->links[i];
        if (l->state != NET_DEAD || (l->from && (l->conn || l->deadline_us > n->now_us))) continue;
        n->links[i--] = n->links[--n->n_links];
        free_link(n, l);
    }
}

void net_links_free(cw_net *n)
{
    for (size_t i = 0; i < n->n_links; i++) {
        now_dead(n, n->links[i]);
        free_link(n, n->links[i]);
    }
    n->n_links = 0;
    cw_free(n->links);
    n->links = NULL;
}

void net_link_send(cw_net *n, net_link *l, cw_msg **m)
{
    if (l->state == NET_CLOSING || l->failing || l->gone) {
        cw_msg_free(m);
        return;
    }
    CW_ASSERT(l->state == NET_UP); /* a machine sends on an outgoing link only after LINK_UP */
    cw_gate_sent(&l->gate, *m);
    uint64_t bytes = 0;
    net_send sent;
    if (l->stream) {
        sent = net_neighbour_send(n, l, m, &bytes);
    } else {
        net_touched(n, l);
        sent = net_message_send(l->from ? l->from->sock : l->sock, l->from ? l->rid : NULL, m, l->backlog,
                                n->cfg.queue_bytes, &bytes);
    }
    switch (sent) {
    case NET_SENT:
        l->stats.bytes_out += bytes;
        l->stats.messages_out++;
        NET_COUNT(n, bytes_out, bytes);
        break;
    case NET_SEND_FULL:
        /* A DEALER whose connection has just ended says the same as one whose queue is full. */
        net_link_fail(n, l,
                      l->incoming || l->stream ? "reads too slowly: the queue to it is full"
                                               : "the connection was lost, or the peer reads too slowly");
        break;
    case NET_SEND_GONE: net_link_fail(n, l, "the connection was closed or lost"); break;
    case NET_SEND_NO_MEMORY: net_fatal(n, CW_STATUS_NO_MEMORY, "no memory to send a message"); break;
    }
}

Cw__Pb__Purpose net_purpose(cw_port port)
{
    static const Cw__Pb__Purpose purposes[] = {
        [CW_PORT_CONTROL] = CW__PB__PURPOSE__PURPOSE_CONTROL,
        [CW_PORT_STORE] = CW__PB__PURPOSE__PURPOSE_STORE,
        [CW_PORT_DATA] = CW__PB__PURPOSE__PURPOSE_DATA,
    };
    return purposes[port];
}

static void tell_up(cw_net *n, net_link *l)
{
    cw_event ev = {
        .kind = CW_EV_LINK_UP, .link = l->id, .port = l->port, .key = l->key, .same_host = l->local};
    snprintf(ev.text, sizeof ev.text, "%.120s", l->address);
    net_deliver(n, &ev);
}

void net_link_arrived(cw_net *n, net_link *l)
{
    NET_COUNT(n, links_in, 1);
    tell_up(n, l);
}

void net_link_came_up(cw_net *n, net_link *l)
{
    if (l->state != NET_CONNECTING) return;
    l->state = NET_UP;
    l->deadline_us = INT64_MAX;
    l->stats.up_since_us = n->now_us;
    NET_COUNT(n, links_out, 1);
    tell_up(n, l);
}

void net_link_ended(cw_net *n, net_link *l, const char *why)
{
    n->someone_gone = true;
    l->gone = true;
    if (!l->why[0]) snprintf(l->why, sizeof l->why, "%s", why);
}

void net_link_message(cw_net *n, net_link *l, net_parts *p)
{
    cw_err err = {0};
    cw_msg *m = NULL;
    bool heard = l->state == NET_UP && !l->failing;
    /* What an admitted peer still sends while its link closes is read to nowhere, and is not hoarding. */
    if (l->conn && (heard || l->gate.state == CW_GATE_ADMITTED))
        net_watch_delivered(l->conn, p->wire_bytes, n->now_us);
    if (!heard) {
        net_parts_free(p);
        return;
    }
    l->stats.bytes_in += p->bytes;
    l->stats.messages_in++;
    NET_COUNT(n, bytes_in, p->bytes);
    if (p->no_memory) {
        net_fatal(n, CW_STATUS_NO_MEMORY, "no memory to receive a message");
    } else if (p->n_parts == 0 || p->n_parts > 1 + CW_MSG_MAX_FRAMES) {
        net_link_blame(n, l, "a message of %u parts", p->n_parts);
    } else if (cw_msg_decode(p->header.data, p->header.len, cw_gate_header_max(&l->gate), p->frames,
                             p->n_frames, &m, &err) != CW_OK) {
        if (err.code == CW_STATUS_NO_MEMORY)
            net_fatal(n, err.code, "%s", err.text);
        else
            net_link_blame(n, l, "%s", err.text);
    } else {
        p->n_frames = 0; /* the message owns them */
        if (cw_gate_received(&l->gate, m, &err) != CW_OK)
            net_link_blame(n, l, "%s", err.text);
        else {
            cw_event ev = {.kind = CW_EV_MESSAGE, .link = l->id, .port = l->port, .key = l->key, .msg = m};
            m = NULL;
            net_parts_free(p);
            net_deliver(n, &ev);
            return;
        }
    }
    cw_msg_free(&m);
    net_parts_free(p);
}
