/*
 * A bad network in user space, for tests: TCP connections that are forwarded late, thinly, by fits and
 * starts, not at all, or cut. Needs no rights and no kernel modules, unlike netem.
 *
 * A route listens on loopback and forwards to a target; every direction of a route is a link with faults of
 * its own, shared by all connections of the route. What TCP's own handshake costs on a long link is not
 * imitated: the connection to the proxy stands at once, the bytes in it are late.
 *
 * One thread owns a proxy: proxy_run polls, proxy_command changes it from within a callback of the loop.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PROXY_UP, PROXY_DOWN }; /* client to target, target to client */

typedef struct proxy proxy;

proxy *proxy_new(uint64_t seed); /* NULL: errno says why */
void proxy_free(proxy **p);

/* Serves until proxy_quit. `on_input` is called when `fd` can be read. false: errno says why. */
bool proxy_run(proxy *p, int fd, void (*on_input)(void *ctx), void *ctx);
void proxy_quit(proxy *p);

/*
 * One line of the control protocol, without its newline; writes the answer, "ok ..." or "error ...".
 *
 *   add NAME HOST:PORT [LISTEN]     a route to a numeric IPv4 address; LISTEN a port, default any. ok PORT
 *   NAME delay DIR TIME             up, down or both; 250us, 20ms, 1.5s; 0 ends it
 *   NAME rate DIR RATE              bytes a second: 125000, 100kB, 12MB; or 100mbit; off ends it
 *   NAME stall DIR PERCENT TIME     that part of all reads is followed by so long a silence; 0 0 ends it
 *   NAME halfopen DIR on|off        nothing is read or written any more, nothing is lost: what a path that
 *                                   loses packets for a while looks like, since TCP repeats them afterwards
 *   NAME blackhole DIR on|off       bytes, ends and resets are swallowed, new connections lead nowhere;
 *                                   afterwards connections that lost something are reset
 *   NAME reset                      all connections of now
 *   NAME refuse on|off              new connections
 *   NAME clear                      ends every fault (connections that lost bytes are reset)
 *   NAME target HOST:PORT           of new connections
 *   NAME stats                      JSON: for each direction bytes, and in microseconds what the proxy added
 *                                   to them and how late that was against what was asked for
 *   quit
 *
 * NAME * means every route (not for add, target, stats).
 */
void proxy_command(proxy *p, const char *line, char *answer, size_t size);
