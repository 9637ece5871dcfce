/* One message through a ZeroMQ socket: parts in, parts out. */
#pragma once
#include "internal.h"
#include "parts.h"

/* Stays where it is until its parts are freed or handed on: the header's owner is inside. */
typedef struct {
    net_parts parts; /* without the routing id */
    uint8_t rid[5];
    bool rid_ok; /* ROUTER: five bytes that begin with 0, as libzmq makes them */
    zmq_msg_t header;
} net_received;

/* Never blocks. */
net_recv net_message_receive(void *sock, bool router, net_received *r);

/* `rid` NULL: a DEALER. Frames leave without being copied; *m is consumed in every case. Never blocks. */
net_send net_message_send(void *sock, const uint8_t *rid, cw_msg **m, net_backlog *backlog,
                          uint64_t backlog_max, uint64_t *bytes);

CW_MUST_USE net_backlog *net_backlog_new(void);
void net_backlog_release(net_backlog *b);
