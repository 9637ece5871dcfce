/* A message as it came, whatever way: the header and up to CW_MSG_MAX_FRAMES raw frames, all owned. */
#pragma once
#include "cw/msg.h"

typedef struct net_parts {
    cw_frame header; /* without a release: there is none */
    cw_frame frames[CW_MSG_MAX_FRAMES];
    uint32_t n_frames;
    uint32_t n_parts;    /* parts that came, those that were thrown away included */
    uint64_t bytes;      /* of all parts */
    uint64_t wire_bytes; /* what they took on the wire at least */
    bool no_memory;
} net_parts;

static inline void net_parts_free(net_parts *p)
{
    if (p->header.release) p->header.release(p->header.owner);
    p->header = (cw_frame){0};
    for (uint32_t i = 0; i < p->n_frames; i++)
        if (p->frames[i].release) p->frames[i].release(p->frames[i].owner);
    p->n_frames = 0;
}

/* Both ways of receiving, neither blocks. BROKEN: the socket can do no more, which is our own trouble. GONE:
 * the peer's end is closed. BAD: what no correct peer sends. */
typedef enum {
    NET_RECV_NONE,
    NET_RECV_GOT,
    NET_RECV_BROKEN,
    NET_RECV_GONE,
    NET_RECV_BAD,
    NET_RECV_NO_MEMORY
} net_recv;

typedef enum { NET_SENT, NET_SEND_FULL, NET_SEND_GONE, NET_SEND_NO_MEMORY } net_send;
