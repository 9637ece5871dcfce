/*
 * One direction of a connection: read, held back as the link asks, written. The time a chunk is due is fixed
 * when it is read, so a later change of the link concerns later bytes only; stopping is at once.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "proxy_internal.h"

static double random_unit(proxy *p)
{
    uint64_t z = p->random += 0x9e3779b97f4a7c15u; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static void note(link_shape *l, const chunk *k, int64_t now)
{
    int64_t added = now - k->read_at, late = now > k->due ? now - k->due : 0;
    l->added_sum += (double)added;
    l->late_sum += (double)late;
    if (added > l->added_max) l->added_max = added;
    if (late > l->late_max) l->late_max = late;
    l->late_us[l->chunks++ % SAMPLES] = (int32_t)(late / 1000);
}

/* When the last of `len` bytes read now may leave: a thin link sends one after the other, a long one later.
 */
static int64_t due_of(proxy *p, link_shape *l, stream *s, uint32_t len)
{
    int64_t at = p->now;
    if (l->rate > 0) {
        if (l->free_at > at) at = l->free_at;
        at += (int64_t)((double)len / l->rate * 1e9);
        l->free_at = at;
    }
    if (l->stall_chance > 0 && len && random_unit(p) < l->stall_chance) {
        l->stalled_until = p->now + l->stall;
        l->stalls++;
    }
    if (l->stalled_until > at) at = l->stalled_until;
    at += l->delay;
    if (s->last_due > at) at = s->last_due;
    return s->last_due = at;
}

static bool put(proxy *p, conn *c, int dir, chunk_kind kind, const uint8_t *data, uint32_t len)
{
    stream *s = &c->s[dir];
    chunk *k = malloc(sizeof *k + len);
    if (!k) return false;
    *k = (chunk){.kind = kind, .len = len, .read_at = p->now};
    if (len) memcpy(k->data, data, len);
    k->due = due_of(p, &c->r->dir[dir], s, len);
    if (s->tail)
        s->tail->next = k;
    else
        s->head = k;
    s->tail = k;
    s->bytes += len;
    return true;
}

static void pop(stream *s)
{
    chunk *k = s->head;
    s->head = k->next;
    if (!s->head) s->tail = NULL;
    s->bytes -= k->len;
    free(k);
}

void stream_drop(stream *s)
{
    while (s->head) {
        s->lost = true;
        pop(s);
    }
}

/* Half open: nothing is taken. A full queue: the kernel's own buffers fill up next, as with a slow path. */
bool stream_wants_read(const conn *c, int dir)
{
    const stream *s = &c->s[dir];
    const link_shape *l = &c->r->dir[dir];
    if (s->ended || l->half || c->connecting || c->waiting) return false;
    size_t most = QUEUE_BYTES;
    if (l->rate > 0) { /* what is on its way, and a tenth of a second of it waiting */
        double bytes = l->rate * (0.1 + (double)l->delay / 1e9) + 16384;
        if (bytes < (double)most) most = (size_t)bytes;
    }
    return s->bytes < most;
}

/* One read; level-triggered polling brings the rest. */
bool stream_read(proxy *p, conn *c, int dir)
{
    link_shape *l = &c->r->dir[dir];
    stream *s = &c->s[dir];
    ssize_t n = recv(c->fd[dir], p->scratch, READ_MAX, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return true;
    if (n <= 0) s->ended = true;
    if (l->hole) {
        s->lost = true;
        if (n > 0) l->swallowed += (uint64_t)n;
        return true;
    }
    if (n <= 0) return put(p, c, dir, n ? CHUNK_RESET : CHUNK_END, NULL, 0);
    l->bytes += (uint64_t)n;
    /* On a thin link bytes trickle: pieces of half a millisecond. */
    uint32_t piece = (uint32_t)n;
    if (l->rate > 0 && l->rate / 2000 < (double)n)
        piece = l->rate < 2896000 ? 1448 : (uint32_t)(l->rate / 2000);
    for (uint32_t at = 0; at < (uint32_t)n; at += piece) {
        uint32_t len = (uint32_t)n - at < piece ? (uint32_t)n - at : piece;
        if (!put(p, c, dir, CHUNK_DATA, p->scratch + at, len)) return false;
    }
    return true;
}

/* A reset came from the socket that this direction is read from. */
void stream_break(proxy *p, conn *c, int dir)
{
    stream *s = &c->s[dir];
    if (c->r->dir[dir].hole)
        s->lost = true;
    else if (!s->tail || s->tail->kind != CHUNK_RESET)
        (void)put(p, c, dir, CHUNK_RESET, NULL, 0);
    s->ended = true;
}

/* Everything that is due. */
bool stream_write(proxy *p, conn *c, int dir)
{
    link_shape *l = &c->r->dir[dir];
    stream *s = &c->s[dir];
    int fd = c->fd[1 - dir];
    s->blocked = false;
    while (s->head && s->head->due <= p->now && !l->half && !c->connecting && !c->waiting) {
        chunk *k = s->head;
        if (k->kind == CHUNK_RESET) return false;
        if (k->kind == CHUNK_END) {
            if (fd >= 0) (void)shutdown(fd, SHUT_WR);
            pop(s);
            continue;
        }
        if (fd < 0) { /* whom it was for has gone */
            pop(s);
            continue;
        }
        ssize_t n = send(fd, k->data + k->off, k->len - k->off, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            s->blocked = true;
            return true;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return true; /* its reader will find out why */
        k->off += (uint32_t)n;
        if (k->off < k->len) continue;
        note(l, k, proxy_now());
        pop(s);
    }
    return true;
}
