/* Addresses as text; see cw/address.h. Strict on purpose: what passes goes into zmq_connect and zmq_bind as
 * it is. */
#include "cw/address.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define BAD(...) CW_FAIL(err, CW_STATUS_INVALID, __VA_ARGS__)

static bool is_hostname(const char *h, size_t n)
{
    if (n == 0 || n > 253 || h[0] == '.' || h[0] == '-' || h[n - 1] == '-') return false;
    for (size_t i = 0; i < n; i++) {
        char c = h[i];
        bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
                  c == '.' || c == '_';
        if (!ok || (c == '.' && i + 1 < n && h[i + 1] == '.')) return false;
    }
    return true;
}

/* All digits and dots: meant as a number, so it must be one. */
static bool looks_numeric(const char *h)
{
    return h[strspn(h, "0123456789.")] == 0;
}

static cw_status parse_port(const char *p, cw_address_use use, uint16_t *out, cw_err *err)
{
    if (use == CW_ADDRESS_LISTEN && strcmp(p, "*") == 0) {
        *out = 0;
        return CW_OK;
    }
    uint32_t v = 0;
    size_t n = strspn(p, "0123456789");
    if (n == 0 || n > 5 || p[n]) return BAD("\"%.20s\" is not a port number", p);
    for (size_t i = 0; i < n; i++) v = 10 * v + (uint32_t)(p[i] - '0');
    if (v > 65535 || (v == 0 && use == CW_ADDRESS_CONNECT)) return BAD("port %u is out of range", v);
    *out = (uint16_t)v;
    return CW_OK;
}

static cw_status parse_host(const char *h, size_t n, cw_address_use use, cw_address *a, cw_err *err)
{
    if (n == 0 || n >= sizeof a->host - 16) return BAD("the address has no host name");
    bool bracketed = h[0] == '[';
    if (bracketed && (n < 3 || h[n - 1] != ']')) return BAD("the bracket of an IPv6 address is not closed");
    memcpy(a->host, bracketed ? h + 1 : h, bracketed ? n - 2 : n);
    a->host[bracketed ? n - 2 : n] = 0;
    struct in_addr v4;
    struct in6_addr v6;
    if (bracketed) {
        if (inet_pton(AF_INET6, a->host, &v6) != 1) return BAD("\"%.60s\" is not an IPv6 address", a->host);
        a->ipv6 = a->numeric = true;
        a->loopback = IN6_IS_ADDR_LOOPBACK(&v6);
        a->wildcard = IN6_IS_ADDR_UNSPECIFIED(&v6);
    } else if (strcmp(a->host, "*") == 0) {
        a->wildcard = true;
    } else if (inet_pton(AF_INET, a->host, &v4) == 1) {
        a->numeric = true;
        a->loopback = ntohl(v4.s_addr) >> 24 == 127;
        a->wildcard = v4.s_addr == 0;
    } else if (looks_numeric(a->host) || !is_hostname(a->host, strlen(a->host))) {
        return BAD("\"%.60s\" is neither a host name nor an IP address (IPv6 goes in brackets)", a->host);
    } else {
        a->loopback = strcasecmp(a->host, "localhost") == 0;
    }
    if (a->wildcard && use == CW_ADDRESS_CONNECT)
        return BAD("\"%s\" means every address of this machine: nobody can connect to it", a->host);
    return CW_OK;
}

cw_status cw_address_parse(const char *text, cw_address_use use, cw_address *out, cw_err *err)
{
    cw_address a = {0};
    size_t len = strnlen(text, CW_ADDRESS_MAX);
    if (len >= CW_ADDRESS_MAX) return BAD("an address of more than %d characters", CW_ADDRESS_MAX - 1);
    for (size_t i = 0; i < len; i++)
        if (text[i] <= 0x20 || text[i] == 0x7f)
            return BAD("an address with white space or control characters");
    if (strncmp(text, "tcp://", 6) != 0)
        return BAD("the address must look like tcp://host:port, this one is \"%.60s\"", text);
    const char *host = text + 6, *colon = strrchr(host, ':');
    if (!colon || (strchr(host, ']') && strrchr(host, ']') > colon))
        return BAD("the address \"%.60s\" has no port: tcp://host:port", text);
    CW_TRY(parse_port(colon + 1, use, &a.port, err));
    CW_TRY(parse_host(host, (size_t)(colon - host), use, &a, err));
    if (out) *out = a;
    return CW_OK;
}

void cw_address_text(const char *host, uint16_t port, char out[CW_ADDRESS_MAX])
{
    bool v6 = strchr(host, ':') != NULL;
    snprintf(out, CW_ADDRESS_MAX, v6 ? "tcp://[%s]:%u" : "tcp://%s:%u", host, port);
}
