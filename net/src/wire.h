/* One message through a socket: parts in, parts out. */
#pragma once
#include "internal.h"

/* A message as it came: the header and up to CW_MSG_MAX_FRAMES raw frames, all owned. */
typedef struct net_parts {
    uint8_t rid[5];
    bool rid_ok; /* ROUTER: five bytes that begin with 0, as libzmq makes them */
    zmq_msg_t header;
    bool has_header;
    cw_frame frames[CW_MSG_MAX_FRAMES];
    uint32_t n_frames;
    uint32_t n_parts;    /* parts that came, those that were thrown away included; without the routing id */
    uint64_t bytes;      /* of all parts */
    uint64_t wire_bytes; /* what they took on the wire at least */
    bool no_memory;
} net_parts;

typedef enum { NET_RECV_NONE, NET_RECV_GOT, NET_RECV_BROKEN } net_recv;

/* Never blocks. */
net_recv net_parts_receive(void *sock, bool router, net_parts *p);
void net_parts_free(net_parts *p);

typedef enum { NET_SENT, NET_SEND_FULL, NET_SEND_GONE, NET_SEND_NO_MEMORY } net_send;

/* `rid` NULL: a DEALER. Frames leave without being copied; *m is consumed in every case. Never blocks. */
net_send net_message_send(void *sock, const uint8_t *rid, cw_msg **m, net_backlog *backlog,
                          uint64_t backlog_max, uint64_t *bytes);

CW_MUST_USE net_backlog *net_backlog_new(void);
void net_backlog_release(net_backlog *b);
