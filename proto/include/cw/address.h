/* Addresses: "tcp://host:port", from options, join strings and peers. Text checks only, no look-ups. Any
 * thread. */
#pragma once
#include "cw/msg.h"

typedef enum {
    CW_ADDRESS_CONNECT, /* a name or a number, port 1..65535 */
    CW_ADDRESS_LISTEN,  /* also "*" and port 0 or "*" (any free one) */
} cw_address_use;

typedef struct {
    char host[CW_ADDRESS_MAX]; /* without the brackets of an IPv6 number */
    uint16_t port;
    bool ipv6, numeric, loopback, wildcard;
} cw_address;

/* INVALID with a sentence. `out` may be NULL. */
CW_MUST_USE cw_status cw_address_parse(const char *text, cw_address_use use, cw_address *out, cw_err *err);
/* "tcp://host:port" again. */
void cw_address_text(const char *host, uint16_t port, char out[CW_ADDRESS_MAX]);
