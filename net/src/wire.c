/* One message through a ZeroMQ socket; see wire.h. Frames are handed over without copying, both ways. */
#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"
#include "cw/recycled.h"

/* Raw frames smaller than this are copied: cheaper than an owner that travels with them. */
enum { COPY_BELOW = 512 };

/* --- receiving --- */

static void release_received(void *owner)
{
    zmq_msg_close(owner);
    cw_block_give(owner);
}

static void release_header(void *owner)
{
    zmq_msg_close(owner);
}

/* What a part of n bytes takes in ZMTP under CURVE at least: a frame header of 2 or 9 bytes and a MESSAGE of
 * 33 + n. */
static uint64_t on_wire(size_t n)
{
    return n + 33 + (n + 33 > 255 ? 9 : 2);
}

/* Consumes m. */
static void keep_part(net_received *r, zmq_msg_t *m)
{
    net_parts *p = &r->parts;
    size_t n = zmq_msg_size(m);
    p->bytes += n;
    p->wire_bytes += on_wire(n);
    uint32_t at = p->n_parts++;
    if (at == 0) {
        zmq_msg_init(&r->header);
        zmq_msg_move(&r->header, m);
        zmq_msg_close(m);
        p->header = (cw_frame){
            .data = zmq_msg_data(&r->header), .len = n, .owner = &r->header, .release = release_header};
        return;
    }
    if (at <= CW_MSG_MAX_FRAMES && !p->no_memory) {
        zmq_msg_t *owned = cw_block_take(sizeof *owned);
        if (owned) {
            zmq_msg_init(owned);
            zmq_msg_move(owned, m);
            p->frames[p->n_frames++] = (cw_frame){
                .data = zmq_msg_data(owned), .len = n, .owner = owned, .release = release_received};
        } else {
            p->no_memory = true;
        }
    }
    zmq_msg_close(m);
}

static bool receive_rid(void *sock, net_received *r, net_recv *result)
{
    zmq_msg_t m;
    zmq_msg_init(&m);
    if (zmq_msg_recv(&m, sock, ZMQ_DONTWAIT) < 0) {
        *result = errno == EAGAIN || errno == EINTR ? NET_RECV_NONE : NET_RECV_BROKEN;
        zmq_msg_close(&m);
        return false;
    }
    const uint8_t *id = zmq_msg_data(&m);
    r->rid_ok = zmq_msg_size(&m) == sizeof r->rid && id[0] == 0;
    if (r->rid_ok) memcpy(r->rid, id, sizeof r->rid);
    bool more = zmq_msg_more(&m);
    zmq_msg_close(&m);
    *result = NET_RECV_GOT;
    return more;
}

net_recv net_message_receive(void *sock, bool router, net_received *r)
{
    memset(r, 0, sizeof *r);
    net_recv result = NET_RECV_GOT;
    if (router && !receive_rid(sock, r, &result)) return result;
    for (;;) {
        zmq_msg_t m;
        zmq_msg_init(&m);
        if (zmq_msg_recv(&m, sock, ZMQ_DONTWAIT) < 0) {
            int e = errno;
            zmq_msg_close(&m);
            if (e == EINTR) continue;
            /* Inside a message there is always a next part, unless the socket is broken. */
            if (e == EAGAIN && r->parts.n_parts == 0 && !router) return NET_RECV_NONE;
            net_parts_free(&r->parts);
            return NET_RECV_BROKEN;
        }
        bool more = zmq_msg_more(&m);
        keep_part(r, &m);
        if (!more) return NET_RECV_GOT;
    }
}

/* --- sending --- */

net_backlog *net_backlog_new(void)
{
    net_backlog *b = cw_calloc(1, sizeof *b);
    if (b) atomic_init(&b->refs, 1);
    return b;
}

void net_backlog_release(net_backlog *b)
{
    if (b && atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1) cw_free(b);
}

/* A frame in libzmq's hands. */
typedef struct {
    cw_frame frame;
    net_backlog *backlog;
} parcel;

/* Called by libzmq when the bytes are encrypted or dropped, in an I/O thread or in ours. */
static void parcel_sent(void *data, void *hint)
{
    (void)data;
    parcel *p = hint;
    atomic_fetch_sub_explicit(&p->backlog->bytes, p->frame.len, memory_order_relaxed);
    net_backlog_release(p->backlog);
    if (p->frame.release) p->frame.release(p->frame.owner);
    cw_block_give(p);
}

static bool wrap_frame(zmq_msg_t *out, cw_frame *f, net_backlog *backlog)
{
    if (f->len < COPY_BELOW) {
        if (zmq_msg_init_size(out, f->len) != 0) return false;
        if (f->len) memcpy(zmq_msg_data(out), f->data, f->len);
        return true;
    }
    parcel *p = cw_block_take(sizeof *p);
    if (!p) return false;
    *p = (parcel){.frame = *f, .backlog = backlog};
    /* libzmq does not write into a message it sends; the cast only satisfies its signature. */
    if (zmq_msg_init_data(out, (void *)(uintptr_t)f->data, f->len, parcel_sent, p) != 0) {
        cw_block_give(p);
        return false;
    }
    atomic_fetch_add_explicit(&backlog->refs, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&backlog->bytes, f->len, memory_order_relaxed);
    *f = (cw_frame){0}; /* the parcel owns it now */
    return true;
}

/* Everything that can fail for lack of memory happens before the first part leaves: a message cannot be taken
 * back. */
static bool wrap_message(cw_msg *m, net_backlog *backlog, zmq_msg_t parts[1 + CW_MSG_MAX_FRAMES], uint32_t *n)
{
    if (zmq_msg_init_size(&parts[0], cw_msg_header_bytes(m->env)) != 0) return false;
    cw_msg_header_pack(m->env, zmq_msg_data(&parts[0]));
    *n = 1;
    for (uint32_t i = 0; i < m->n_frames; i++, ++*n)
        if (!wrap_frame(&parts[*n], &m->frames[i], backlog)) return false;
    return true;
}

net_send net_message_send(void *sock, const uint8_t *rid, cw_msg **m, net_backlog *backlog,
                          uint64_t backlog_max, uint64_t *bytes)
{
    zmq_msg_t parts[1 + CW_MSG_MAX_FRAMES];
    uint32_t n = 0, i = 0;
    net_send result = NET_SENT;
    *bytes = cw_msg_total_bytes(*m);
    if (atomic_load_explicit(&backlog->bytes, memory_order_relaxed) > backlog_max)
        result = NET_SEND_FULL;
    else if (!wrap_message(*m, backlog, parts, &n))
        result = NET_SEND_NO_MEMORY;
    else if (rid && zmq_send(sock, rid, 5, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        result = errno == EAGAIN ? NET_SEND_FULL : NET_SEND_GONE;
    while (result == NET_SENT && i < n) {
        if (zmq_msg_send(&parts[i], sock, ZMQ_DONTWAIT | (i + 1 < n ? ZMQ_SNDMORE : 0)) >= 0)
            i++;
        else if (errno != EINTR)
            result = errno == EAGAIN && i == 0 ? NET_SEND_FULL : NET_SEND_GONE;
    }
    for (; i < n; i++) zmq_msg_close(&parts[i]);
    cw_msg_free(m);
    return result;
}
