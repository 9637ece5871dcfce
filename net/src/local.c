/* See local.h. Pure but for the looks at files and descriptors; the net's thread only. */
#include "local.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "cw/fs.h"
#include "cw/mem.h"
#include "cw/net.h"

static const char greeting[] = "cw-local-2";
#define AS_LISTENER "causeway local 2 listener"
#define AS_OPENER   "causeway local 2 opener"
_Static_assert(sizeof greeting - 1 + CW_KEY_BYTES + NET_LOCAL_NONCE == NET_LOCAL_FIRST, "the first message");

static bool mac(const net_proof *p, const cw_keys *self, const cw_key *other, const char *context,
                uint8_t out[CW_MAC_BYTES])
{
    uint8_t body[2 * CW_KEY_BYTES + 2 * NET_LOCAL_NONCE], *to = body;
    memcpy(to, p->opener.b, CW_KEY_BYTES), to += CW_KEY_BYTES;
    memcpy(to, p->listener.b, CW_KEY_BYTES), to += CW_KEY_BYTES;
    memcpy(to, p->opener_nonce, NET_LOCAL_NONCE), to += NET_LOCAL_NONCE;
    memcpy(to, p->listener_nonce, NET_LOCAL_NONCE);
    return cw_keys_mac(self, other, context, body, sizeof body, out);
}

static bool matches(const net_proof *p, const cw_keys *self, const cw_key *other, const char *context,
                    const uint8_t got[CW_MAC_BYTES])
{
    uint8_t want[CW_MAC_BYTES];
    return mac(p, self, other, context, want) && cw_mac_equal(want, got);
}

void net_proof_first(net_proof *p, const cw_keys *opener, const cw_key *listener,
                     uint8_t out[NET_LOCAL_FIRST])
{
    size_t n = sizeof greeting - 1;
    p->opener = *cw_keys_public(opener);
    p->listener = *listener;
    cw_random(p->opener_nonce, NET_LOCAL_NONCE);
    memcpy(out, greeting, n);
    memcpy(out + n, p->opener.b, CW_KEY_BYTES);
    memcpy(out + n + CW_KEY_BYTES, p->opener_nonce, NET_LOCAL_NONCE);
}

bool net_proof_second(net_proof *p, const cw_keys *listener, const void *first, size_t n,
                      uint8_t out[NET_LOCAL_SECOND])
{
    const uint8_t *m = first;
    size_t g = sizeof greeting - 1;
    if (n != NET_LOCAL_FIRST || memcmp(m, greeting, g) != 0) return false;
    p->listener = *cw_keys_public(listener);
    memcpy(p->opener.b, m + g, CW_KEY_BYTES);
    memcpy(p->opener_nonce, m + g + CW_KEY_BYTES, NET_LOCAL_NONCE);
    cw_random(p->listener_nonce, NET_LOCAL_NONCE);
    memcpy(out, p->listener_nonce, NET_LOCAL_NONCE);
    return mac(p, listener, &p->opener, AS_LISTENER, out + NET_LOCAL_NONCE);
}

bool net_proof_third(net_proof *p, const cw_keys *opener, const void *second, size_t n,
                     uint8_t out[NET_LOCAL_THIRD])
{
    const uint8_t *m = second;
    if (n != NET_LOCAL_SECOND) return false;
    memcpy(p->listener_nonce, m, NET_LOCAL_NONCE);
    return matches(p, opener, &p->listener, AS_LISTENER, m + NET_LOCAL_NONCE) &&
           mac(p, opener, &p->listener, AS_OPENER, out);
}

bool net_proof_check(const net_proof *p, const cw_keys *listener, const void *third, size_t n)
{
    return n == NET_LOCAL_THIRD && matches(p, listener, &p->opener, AS_OPENER, third);
}

bool net_local_path(const char *dir, const cw_key *key, char out[CW_ADDRESS_MAX])
{
    char hex[CW_KEY_HEX];
    cw_key_hex(key, hex);
    hex[32] = 0; /* 128 bits tell keys apart; which key it really is, the proof shows */
    int n = snprintf(out, CW_ADDRESS_MAX, "%s/%s", dir, hex);
    return n > 0 && (size_t)n < sizeof((struct sockaddr_un *)0)->sun_path;
}

bool net_local_is_there(const char *dir, const cw_key *key, char out[CW_ADDRESS_MAX])
{
    struct stat d, f;
    return net_local_path(dir, key, out) && lstat(dir, &d) == 0 && S_ISDIR(d.st_mode) &&
           d.st_uid == geteuid() && (d.st_mode & 077) == 0 && lstat(out, &f) == 0 &&
           S_ISSOCK(f.st_mode) && f.st_uid == geteuid();
}

bool net_local_peer_is_ours(int fd)
{
    struct ucred who;
    socklen_t n = sizeof who;
    return fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &n) == 0 && n == sizeof who &&
           who.uid == geteuid();
}

cw_status cw_net_local_dir(char **out, cw_err *err)
{
    const char *run = getenv("XDG_RUNTIME_DIR");
    char *dir = NULL, fallback[64];
    snprintf(fallback, sizeof fallback, "/tmp/causeway-%lu", (unsigned long)geteuid());
    dir = run && run[0] == '/' ? cw_fs_join(run, "causeway") : cw_fs_join(fallback, "run");
    if (!dir) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    cw_status s = run && run[0] == '/' ? CW_OK : cw_fs_private_dir(fallback, err);
    if (s == CW_OK) s = cw_fs_private_dir(dir, err);
    if (s == CW_OK)
        *out = dir;
    else
        cw_free(dir);
    return s;
}
