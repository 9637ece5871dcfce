/*
 * Any bytes from a same-host peer: what comes out are messages within the limits, whose bytes are all there,
 * and after the first impossible lengths nothing more; however the bytes are cut.
 *
 * An input is: one byte that chooses the limits, one that says how many bytes come at a time (0: all), the
 * bytes.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink;

static void read_frame(const cw_frame *f)
{
    for (size_t i = 0; i < f->len; i++) sink += f->data[i];
}

/* What is there to be read now; false: the stream has ended. */
static bool drain(net_stream *s, const net_stream_limits *lim)
{
    for (;;) {
        net_parts p;
        net_recv r = net_stream_receive(s, lim, &p);
        if (r != NET_RECV_GOT) return r == NET_RECV_NONE;
        size_t total = p.header.len;
        if (p.n_parts == 0) continue; /* a heartbeat */
        CW_ASSERT(p.n_parts == 1 + p.n_frames && p.n_frames <= CW_MSG_MAX_FRAMES);
        CW_ASSERT(p.header.len <= lim->header);
        read_frame(&p.header);
        for (uint32_t i = 0; i < p.n_frames; i++) {
            CW_ASSERT(p.frames[i].len <= lim->frame);
            total += p.frames[i].len;
            read_frame(&p.frames[i]);
        }
        CW_ASSERT(total <= lim->message && total == p.bytes);
        net_parts_free(&p);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const net_stream_limits limits[] = {{106, 0, 106}, {4096, 0, 4096}, {1 << 20, 4 << 20, 8 << 20}};
    int fd[2];
    if (size < 2 || size > 100000) return 0;
    const net_stream_limits *lim = &limits[data[0] % 3];
    size_t step = data[1] ? data[1] : size;
    CW_ASSERT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd) == 0);
    net_stream *s = net_stream_new(fd[0]);
    CW_ASSERT(s);
    bool more = true;
    for (size_t at = 2; at < size && more; at += step) {
        size_t n = size - at < step ? size - at : step;
        CW_ASSERT(write(fd[1], data + at, n) == (ssize_t)n);
        net_stream_readable(s);
        more = drain(s, lim);
    }
    close(fd[1]);
    net_stream_readable(s);
    if (more) CW_ASSERT(!drain(s, lim));
    net_stream_free(&s);
    return 0;
}
