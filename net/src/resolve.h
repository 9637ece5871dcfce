/*
 * Host names become numbers here, in a thread of their own: libzmq would ask the system inside its I/O
 * thread, where a name server that does not answer stops every connection of the process for as long as the
 * system cares to wait.
 */
#pragma once
#include "cw/address.h"
#include "cw/machine.h"

typedef struct net_resolver net_resolver;

typedef struct {
    cw_link link;
    char address[CW_ADDRESS_MAX]; /* "tcp://number:port"; empty: there is no such host */
} net_resolved;

/* `wake(ctx)` is called in the resolver's thread when an answer is there. The thread starts with the first
 * question. */
CW_MUST_USE cw_status net_resolver_new(void (*wake)(void *ctx), void *ctx, net_resolver **out, cw_err *err);
/* Does not wait for a question that is still being asked. */
void net_resolver_free(net_resolver **r);
/* false: too many questions wait, or no thread. */
CW_MUST_USE bool net_resolver_ask(net_resolver *r, cw_link link, const cw_address *a);
/* false: no answer (yet). */
CW_MUST_USE bool net_resolver_take(net_resolver *r, net_resolved *out);
