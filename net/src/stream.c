/* See stream.h. */
#include "stream.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cw/bytes.h"
#include "cw/mem.h"
#include "cw/recycled.h"

enum {
    PARTS = 1 + CW_MSG_MAX_FRAMES,
    PREFIX = 4 + 4 * PARTS + 4,
    BUSY = 4 + 4 * PARTS,
    IN_BYTES = 32 << 10 /* a decode call or its rows in one read; longer parts are read where they belong */
};

/* A message that leaves: one block, the frames beside it. */
typedef struct outgoing {
    struct outgoing *next;
    size_t len, sent; /* bytes of everything, prefix included */
    cw_frame frames[CW_MSG_MAX_FRAMES];
    uint32_t n_frames;
    size_t head_len;
    uint8_t head[]; /* prefix and header */
} outgoing;

struct net_stream {
    int fd;
    bool dry; /* the last read took all there was: the next one would be for nothing */
    size_t at, end;
    bool begun; /* the message below is being filled */
    uint32_t n_parts, part, busy;
    size_t filled; /* of that part */
    cw_frame parts[PARTS];
    outgoing *first, *last;
    uint64_t queued_bytes;
    uint32_t n_queued;
    uint8_t in[IN_BYTES];
};

net_stream *net_stream_new(int fd)
{
    net_stream *s = cw_calloc(1, sizeof *s);
    if (s) s->fd = fd;
    return s;
}

int net_stream_fd(const net_stream *s)
{
    return s->fd;
}

static void release(cw_frame *f)
{
    if (f->release) f->release(f->owner);
    *f = (cw_frame){0};
}

static void outgoing_free(outgoing *o)
{
    for (uint32_t i = 0; i < o->n_frames; i++) release(&o->frames[i]);
    cw_block_give(o);
}

void net_stream_free(net_stream **sp)
{
    net_stream *s = *sp;
    if (!s) return;
    for (outgoing *o = s->first, *next; o; o = next) {
        next = o->next;
        outgoing_free(o);
    }
    for (uint32_t i = 0; i < PARTS; i++) release(&s->parts[i]);
    close(s->fd);
    cw_free(s);
    *sp = NULL;
}

/* --- receiving --- */

void net_stream_readable(net_stream *s)
{
    s->dry = false;
}

static net_recv read_into(net_stream *s, void *to, size_t room, size_t *got)
{
    if (s->dry) return NET_RECV_NONE;
    ssize_t n;
    do n = recv(s->fd, to, room, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK)) return NET_RECV_GONE;
    s->dry = n < 0 || (size_t)n < room;
    *got = n < 0 ? 0 : (size_t)n;
    return n < 0 ? NET_RECV_NONE : NET_RECV_GOT;
}

static net_recv refill(net_stream *s)
{
    size_t got = 0;
    memmove(s->in, s->in + s->at, s->end - s->at);
    s->end -= s->at;
    s->at = 0;
    net_recv r = read_into(s, s->in + s->end, IN_BYTES - s->end, &got);
    s->end += got;
    return r;
}

static net_recv begin(net_stream *s, const net_stream_limits *limits)
{
    const uint8_t *prefix = s->in + s->at;
    uint32_t n = cw_load_u32(prefix);
    uint64_t total = 0;
    if (n > PARTS) return NET_RECV_BAD;
    for (uint32_t i = 0; i < PARTS; i++) {
        uint32_t len = cw_load_u32(prefix + 4 + 4 * i);
        total += len;
        if (len > (i >= n ? 0 : i == 0 ? limits->header : limits->frame) || total > limits->message)
            return NET_RECV_BAD;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t len = cw_load_u32(prefix + 4 + 4 * i);
        uint8_t *block = cw_block_take(len);
        if (!block) return NET_RECV_NO_MEMORY; /* those before it are freed with the stream */
        s->parts[i] = (cw_frame){.data = block, .len = len, .owner = block, .release = cw_block_give};
    }
    s->at += PREFIX;
    s->begun = true;
    s->n_parts = n;
    s->busy = cw_load_u32(prefix + BUSY);
    s->part = 0;
    s->filled = 0;
    return NET_RECV_GOT;
}

/* Takes what has been read, or reads, into the part that is not full yet. */
static net_recv fill(net_stream *s)
{
    const cw_frame *f = &s->parts[s->part];
    uint8_t *to = (uint8_t *)f->owner + s->filled;
    size_t want = f->len - s->filled, n = s->end - s->at;
    net_recv r = NET_RECV_GOT;
    if (n == 0 && want >= IN_BYTES) {
        r = read_into(s, to, want, &n);
    } else if (n > 0) {
        if (n > want) n = want;
        memcpy(to, s->in + s->at, n);
        s->at += n;
    } else {
        return refill(s);
    }
    s->filled += n;
    return r;
}

static void hand_over(net_stream *s, net_parts *p)
{
    p->n_parts = s->n_parts;
    for (uint32_t i = 0; i < s->n_parts; i++) {
        p->bytes += s->parts[i].len;
        *(i == 0 ? &p->header : &p->frames[p->n_frames++]) = s->parts[i];
        s->parts[i] = (cw_frame){0};
    }
    p->wire_bytes = p->bytes + PREFIX;
    s->begun = false;
}

net_recv net_stream_receive(net_stream *s, const net_stream_limits *limits, net_parts *p)
{
    net_recv r = NET_RECV_GOT;
    memset(p, 0, sizeof *p);
    while (r == NET_RECV_GOT) {
        if (!s->begun) {
            r = s->end - s->at < PREFIX ? refill(s) : begin(s, limits);
        } else if (s->part < s->n_parts && s->filled < s->parts[s->part].len) {
            r = fill(s);
        } else if (s->part < s->n_parts) {
            s->part++;
            s->filled = 0;
        } else {
            hand_over(s, p);
            return NET_RECV_GOT;
        }
    }
    return r;
}

bool net_stream_pause(net_stream *s)
{
    s->dry = true;
    return s->at < s->end;
}

bool net_stream_is_in_the_way(const net_stream *s)
{
    return s->busy && s->busy == 1 + (uint32_t)sched_getcpu();
}

/* --- sending --- */

static outgoing *outgoing_new(uint32_t n_parts, size_t header_len)
{
    outgoing *o = cw_block_take(sizeof *o + PREFIX + header_len);
    if (!o) return NULL;
    memset(o, 0, sizeof *o + PREFIX);
    o->head_len = o->len = PREFIX + header_len;
    cw_store_u32(o->head, n_parts);
    if (n_parts) cw_store_u32(o->head + 4, (uint32_t)header_len);
    return o;
}

static uint32_t left_of(const outgoing *o, struct iovec iov[PARTS])
{
    uint32_t n = 0;
    size_t skip = o->sent;
    for (uint32_t i = 0; i <= o->n_frames; i++) {
        const uint8_t *data = i == 0 ? o->head : o->frames[i - 1].data;
        size_t len = i == 0 ? o->head_len : o->frames[i - 1].len;
        size_t gone = skip < len ? skip : len;
        skip -= gone;
        /* sendmsg only reads; the cast satisfies iovec. */
        if (len > gone)
            iov[n++] = (struct iovec){.iov_base = (void *)(uintptr_t)(data + gone), .iov_len = len - gone};
    }
    return n;
}

/* After a write that failed the peer would take the next message for the rest of this one. So the stream is
 * shut both ways: what has come can still be read, and then the end. */
static net_send write_some(const net_stream *s, outgoing *o)
{
    while (o->sent < o->len) {
        struct iovec iov[PARTS];
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = left_of(o, iov)};
        ssize_t n = sendmsg(s->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return NET_SENT;
        if (n < 0) {
            (void)shutdown(s->fd, SHUT_RDWR);
            return NET_SEND_GONE;
        }
        o->sent += (size_t)n;
    }
    return NET_SENT;
}

/* Consumes o. */
static net_send leave(net_stream *s, outgoing *o)
{
    net_send r = s->first ? NET_SENT : write_some(s, o);
    if (r != NET_SENT || o->sent == o->len) {
        outgoing_free(o);
        return r;
    }
    *(s->last ? &s->last->next : &s->first) = o;
    s->last = o;
    s->queued_bytes += o->len;
    s->n_queued++;
    return NET_SENT;
}

net_send net_stream_send(net_stream *s, cw_msg **mp, bool more, uint64_t queue_bytes,
                         uint32_t queue_messages, uint64_t *bytes)
{
    cw_msg *m = *mp;
    net_send r = NET_SEND_NO_MEMORY;
    outgoing *o = NULL;
    *bytes = cw_msg_total_bytes(m);
    if (s->first && (s->n_queued >= queue_messages || s->queued_bytes + *bytes > queue_bytes))
        r = NET_SEND_FULL;
    else
        o = outgoing_new(1 + m->n_frames, cw_msg_header_bytes(m->env));
    if (o) {
        cw_msg_header_pack(m->env, o->head + PREFIX);
        if (more) cw_store_u32(o->head + BUSY, 1 + (uint32_t)sched_getcpu());
        for (uint32_t i = 0; i < m->n_frames; i++) {
            cw_store_u32(o->head + 8 + 4 * i, (uint32_t)m->frames[i].len);
            o->len += m->frames[i].len;
            o->frames[o->n_frames++] = m->frames[i];
            m->frames[i] = (cw_frame){0};
        }
        r = leave(s, o);
    }
    cw_msg_free(mp);
    return r;
}

net_send net_stream_send_bytes(net_stream *s, const void *data, size_t n)
{
    outgoing *o = outgoing_new(1, n);
    if (!o) return NET_SEND_NO_MEMORY;
    memcpy(o->head + PREFIX, data, n);
    return leave(s, o);
}

net_send net_stream_beat(net_stream *s)
{
    outgoing *o = s->first ? NULL : outgoing_new(0, 0);
    if (s->first) return NET_SENT; /* what waits will do */
    return o ? leave(s, o) : NET_SEND_NO_MEMORY;
}

net_send net_stream_flush(net_stream *s)
{
    while (s->first) {
        outgoing *o = s->first;
        net_send r = write_some(s, o);
        if (r != NET_SENT) return r;
        if (o->sent < o->len) return NET_SENT;
        s->first = o->next;
        if (!s->first) s->last = NULL;
        s->queued_bytes -= o->len;
        s->n_queued--;
        outgoing_free(o);
    }
    return NET_SENT;
}

bool net_stream_waits(const net_stream *s)
{
    return s->first != NULL;
}
