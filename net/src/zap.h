/*
 * The ZAP handler (ZeroMQ's RFC 27): the thread that libzmq asks about every handshake of a listener in its
 * context. It lets every key in but the revoked, the banned, and whoever comes too often from one address,
 * and names the peer: User-Id is the key in hex. What the key may do is decided by the application.
 *
 * The socket is made before any listener and closed after the last one, also when the thread ends early:
 * without the socket libzmq would let everybody in unnamed; with a socket that nobody reads, handshakes stall
 * and fail.
 */
#pragma once
#include "cw/key.h"
#include "cw/status.h"

typedef struct net_zap net_zap;

typedef struct {
    uint32_t connect_rate;       /* per address and 10 s */
    uint32_t fault_ms;           /* 0: never */
    void (*on_death)(void *ctx); /* in the thread, when it ends without being asked to */
    void *ctx;
} net_zap_config;

CW_MUST_USE cw_status net_zap_start(void *zmq_ctx, const net_zap_config *c, net_zap **out, cw_err *err);
/* Ends the thread and closes the socket. */
void net_zap_stop(net_zap **z);

/* Any thread from here on. */
CW_MUST_USE cw_status net_zap_revoke(net_zap *z, const cw_key *k, cw_err *err);
void net_zap_unrevoke(net_zap *z, const cw_key *k);
bool net_zap_is_revoked(net_zap *z, const cw_key *k);
/* Neither revoked nor banned: what a handshake would be told. */
bool net_zap_admits(net_zap *z, const cw_key *k);
void net_zap_ban(net_zap *z, const cw_key *k, uint32_t seconds);
uint64_t net_zap_refused(net_zap *z);
