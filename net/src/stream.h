/*
 * Messages over a connected Unix stream socket, for links on one host. The thread that sends writes into the
 * peer's socket itself and the thread that waits is woken by the kernel: no thread of a library stands
 * between, which is most of what a small message costs through libzmq (docs/PERFORMANCE.md, "Split on one
 * machine").
 *
 * On the wire, numbers little-endian:
 *   u32 parts       1 header and up to CW_MSG_MAX_FRAMES raw frames; 0: a heartbeat
 *   u32 length [4]  of each part in bytes; 0 beyond the count
 *   u32 busy        0, or 1 + the CPU of a sender that has more to send at once
 *   the parts' bytes, one after another
 * Lengths are checked against what this peer may send now before anything is allocated.
 *
 * Nothing blocks. What the socket does not take waits in a queue whose size the sender of a message limits.
 * One thread at a time.
 */
#pragma once
#include "parts.h"

typedef struct net_stream net_stream;

/* Takes the descriptor over, which must not block. NULL: no memory, fd is still the caller's. */
CW_MUST_USE net_stream *net_stream_new(int fd);
/* Closes the descriptor; what waits to leave is dropped. */
void net_stream_free(net_stream **s);
int net_stream_fd(const net_stream *s);

/* What a correct peer may send now, in bytes: of the header, of each frame, of a whole message. */
typedef struct {
    size_t header, frame, message;
} net_stream_limits;

/* The poll says that there is something to read. */
void net_stream_readable(net_stream *s);
/* GOT: one message, or a heartbeat, which has no parts. Call again until it is NONE, or what has been read
 * stays unseen by the poll. */
net_recv net_stream_receive(net_stream *s, const net_stream_limits *limits, net_parts *p);
/* Reads no more until net_stream_readable. true: something that has been read already waits. */
CW_MUST_USE bool net_stream_pause(net_stream *s);
/* Of the last message: its sender has more to send and stands behind us on this very CPU. */
CW_MUST_USE bool net_stream_is_in_the_way(const net_stream *s);

/* FULL when more than that would wait; *m is consumed in every case, *bytes are of its parts. `more`: the
 * caller is about to send to others. GONE: what the peer said before can still be received, and then its
 * end. */
net_send net_stream_send(net_stream *s, cw_msg **m, bool more, uint64_t queue_bytes, uint32_t queue_messages,
                         uint64_t *bytes);
/* A message of one part, copied. */
net_send net_stream_send_bytes(net_stream *s, const void *data, size_t n);
net_send net_stream_beat(net_stream *s);
/* The poll says that the socket takes more. */
net_send net_stream_flush(net_stream *s);
/* Something waits to leave. */
CW_MUST_USE bool net_stream_waits(const net_stream *s);
