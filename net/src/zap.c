/* The ZAP handler; see zap.h. One thread of its own; the policy is behind a mutex because any thread may
 * revoke. */
#include "zap.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include "cw/clock.h"
#include "cw/keys.h"
#include "cw/log.h"
#include "cw/mem.h"

enum { MAX_BANS = 256, RATE_SLOTS = 1024, RATE_PROBES = 4, FIELD_MAX = 256, REQUEST_FIELDS = 7 };
static const int64_t rate_window_us = 10 * 1000000;

typedef struct {
    cw_key key;
    int64_t until_us;
} ban;
typedef struct {
    uint64_t address;
    int64_t since_us;
    uint32_t n;
} rate_slot;

struct net_zap {
    net_zap_config cfg;
    void *sock;
    int stop_fd;
    pthread_t thread;
    atomic_bool stopping;
    atomic_uint_least64_t refused;
    uint64_t hash_seed;
    pthread_mutex_t lock;
    /* Scanned linearly: some thousand keys take microseconds, and handshakes are rare. */
    cw_key *revoked;
    size_t n_revoked, cap_revoked;
    ban bans[MAX_BANS]; /* a ring: the oldest is forgotten first */
    size_t next_ban;
    rate_slot rates[RATE_SLOTS];
};

typedef struct {
    char field[REQUEST_FIELDS]
              [FIELD_MAX]; /* version, request id, domain, address, identity, mechanism, credentials */
    size_t len[REQUEST_FIELDS];
    size_t n;
} zap_request;

static bool is_revoked_locked(const net_zap *z, const cw_key *k)
{
    for (size_t i = 0; i < z->n_revoked; i++)
        if (cw_key_equal(&z->revoked[i], k)) return true;
    return false;
}

static bool is_banned_locked(const net_zap *z, const cw_key *k, int64_t now)
{
    for (size_t i = 0; i < MAX_BANS; i++)
        if (z->bans[i].until_us > now && cw_key_equal(&z->bans[i].key, k)) return true;
    return false;
}

/* Counts a handshake of this address; false when it had too many in the window. Fixed memory: where all
 * probes are taken by others, addresses share a slot. */
static bool within_rate_locked(net_zap *z, const char *address, int64_t now)
{
    uint64_t h = 0xcbf29ce484222325u ^ z->hash_seed;
    for (const char *c = address; *c; c++) h = (h ^ (uint8_t)*c) * 0x100000001b3u;
    rate_slot *slot = NULL;
    for (size_t i = 0; i < RATE_PROBES; i++) {
        rate_slot *s = &z->rates[(h + i) % RATE_SLOTS];
        if (s->address == h) {
            slot = s;
            break;
        }
        if (!slot && s->since_us + rate_window_us <= now) slot = s;
    }
    if (!slot) slot = &z->rates[h % RATE_SLOTS];
    if (slot->n == 0 || slot->since_us + rate_window_us <= now)
        *slot = (rate_slot){.address = h, .since_us = now};
    return slot->n++ < z->cfg.connect_rate;
}

/* NULL: welcome; else why not. */
static const char *judge(net_zap *z, const zap_request *r, cw_key *key)
{
    if (r->n != REQUEST_FIELDS || strcmp(r->field[0], "1.0") != 0 || strcmp(r->field[5], "CURVE") != 0 ||
        r->len[6] != CW_KEY_BYTES)
        return "not a CURVE handshake";
    memcpy(key->b, r->field[6], CW_KEY_BYTES);
    int64_t now = cw_now_us();
    const char *why = NULL;
    pthread_mutex_lock(&z->lock);
    if (!within_rate_locked(z, r->field[3], now))
        why = "too many connections from this address";
    else if (is_revoked_locked(z, key))
        why = "the key is revoked";
    else if (is_banned_locked(z, key, now))
        why = "the key broke the protocol a moment ago";
    pthread_mutex_unlock(&z->lock);
    return why;
}

/* Reads one request whole; fields that are too long are cut, which judge() then does not accept. */
static bool receive(void *sock, zap_request *r)
{
    r->n = 0;
    for (;;) {
        char spill[FIELD_MAX];
        char *to = r->n < REQUEST_FIELDS ? r->field[r->n] : spill;
        int n = zmq_recv(sock, to, FIELD_MAX - 1, 0), more = 0;
        if (n < 0) return false;
        size_t len = (size_t)n < FIELD_MAX - 1 ? (size_t)n : FIELD_MAX - 1;
        to[len] = 0;
        if (r->n < REQUEST_FIELDS) r->len[r->n] = len;
        r->n++;
        size_t more_len = sizeof more;
        if (zmq_getsockopt(sock, ZMQ_RCVMORE, &more, &more_len) != 0) return false;
        if (!more) return true;
    }
}

static bool answer(net_zap *z, const zap_request *r)
{
    cw_key key;
    char user[CW_KEY_HEX] = "";
    const char *why = judge(z, r, &key);
    if (!why)
        cw_key_hex(&key, user);
    else {
        atomic_fetch_add_explicit(&z->refused, 1, memory_order_relaxed);
        CW_LOG_D("net", "handshake refused address=%s reason=\"%s\"", r->n > 3 ? r->field[3] : "?", why);
    }
    return zmq_send(z->sock, "1.0", 3, ZMQ_SNDMORE) >= 0 &&
           zmq_send(z->sock, r->field[1], r->len[1], ZMQ_SNDMORE) >= 0 &&
           zmq_send(z->sock, why ? "400" : "200", 3, ZMQ_SNDMORE) >= 0 &&
           zmq_send(z->sock, why ? why : "OK", strlen(why ? why : "OK"), ZMQ_SNDMORE) >= 0 &&
           zmq_send(z->sock, user, strlen(user), ZMQ_SNDMORE) >= 0 && zmq_send(z->sock, "", 0, 0) >= 0;
}

static void *zap_main(void *arg)
{
    net_zap *z = arg;
    int64_t fault_at = z->cfg.fault_ms ? cw_now_us() + (int64_t)z->cfg.fault_ms * 1000 : INT64_MAX;
    zap_request *r = cw_calloc(1, sizeof *r);
    while (r && cw_now_us() < fault_at) {
        zmq_pollitem_t items[] = {{.socket = z->sock, .events = ZMQ_POLLIN},
                                  {.fd = z->stop_fd, .events = ZMQ_POLLIN}};
        if (zmq_poll(items, 2, z->cfg.fault_ms ? 10 : -1) < 0) {
            if (errno == EINTR) continue;
            break;
        }
        if (items[1].revents) break;
        if (items[0].revents && (!receive(z->sock, r) || !answer(z, r))) break;
    }
    cw_free(r);
    if (!atomic_load(&z->stopping)) z->cfg.on_death(z->cfg.ctx);
    return NULL;
}

cw_status net_zap_start(void *zmq_ctx, const net_zap_config *c, net_zap **out, cw_err *err)
{
    net_zap *z = cw_calloc(1, sizeof *z);
    if (!z) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "no memory for the ZAP handler");
    z->cfg = *c;
    cw_random(&z->hash_seed, sizeof z->hash_seed);
    pthread_mutex_init(&z->lock, NULL);
    int linger = 0;
    cw_status s = CW_OK;
    z->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    z->sock = zmq_socket(zmq_ctx, ZMQ_REP);
    if (z->stop_fd < 0 || !z->sock || zmq_setsockopt(z->sock, ZMQ_LINGER, &linger, sizeof linger) != 0 ||
        zmq_bind(z->sock, "inproc://zeromq.zap.01") != 0) {
        s = CW_FAIL(err, CW_STATUS_LIMIT, "the ZAP handler cannot start: %s", zmq_strerror(errno));
        goto fail;
    }
    if (pthread_create(&z->thread, NULL, zap_main, z) != 0) {
        s = CW_FAIL(err, CW_STATUS_LIMIT, "the ZAP handler cannot start: no thread");
        goto fail;
    }
    *out = z;
    return CW_OK;
fail:
    if (z->sock) zmq_close(z->sock);
    if (z->stop_fd >= 0) close(z->stop_fd);
    pthread_mutex_destroy(&z->lock);
    cw_free(z);
    return s;
}

void net_zap_stop(net_zap **zp)
{
    net_zap *z = *zp;
    if (!z) return;
    atomic_store(&z->stopping, true);
    uint64_t one = 1;
    CW_ASSERT(write(z->stop_fd, &one, sizeof one) == (ssize_t)sizeof one);
    pthread_join(z->thread, NULL);
    zmq_close(z->sock);
    close(z->stop_fd);
    pthread_mutex_destroy(&z->lock);
    cw_free(z->revoked);
    cw_free(z);
    *zp = NULL;
}

cw_status net_zap_revoke(net_zap *z, const cw_key *k, cw_err *err)
{
    cw_status s = CW_OK;
    pthread_mutex_lock(&z->lock);
    if (!is_revoked_locked(z, k)) {
        if (z->n_revoked == z->cap_revoked) {
            size_t cap = z->cap_revoked ? 2 * z->cap_revoked : 16;
            cw_key *grown = cw_realloc(z->revoked, cap, sizeof *grown);
            if (grown) {
                z->revoked = grown;
                z->cap_revoked = cap;
            } else {
                s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "no memory to revoke a key");
            }
        }
        if (s == CW_OK) z->revoked[z->n_revoked++] = *k;
    }
    pthread_mutex_unlock(&z->lock);
    return s;
}

void net_zap_unrevoke(net_zap *z, const cw_key *k)
{
    pthread_mutex_lock(&z->lock);
    for (size_t i = 0; i < z->n_revoked; i++)
        if (cw_key_equal(&z->revoked[i], k)) z->revoked[i--] = z->revoked[--z->n_revoked];
    pthread_mutex_unlock(&z->lock);
}

bool net_zap_is_revoked(net_zap *z, const cw_key *k)
{
    pthread_mutex_lock(&z->lock);
    bool r = is_revoked_locked(z, k);
    pthread_mutex_unlock(&z->lock);
    return r;
}

bool net_zap_admits(net_zap *z, const cw_key *k)
{
    pthread_mutex_lock(&z->lock);
    bool ok = !is_revoked_locked(z, k) && !is_banned_locked(z, k, cw_now_us());
    pthread_mutex_unlock(&z->lock);
    return ok;
}

void net_zap_ban(net_zap *z, const cw_key *k, uint32_t seconds)
{
    pthread_mutex_lock(&z->lock);
    z->bans[z->next_ban] = (ban){.key = *k, .until_us = cw_now_us() + (int64_t)seconds * 1000000};
    z->next_ban = (z->next_ban + 1) % MAX_BANS;
    pthread_mutex_unlock(&z->lock);
}

uint64_t net_zap_refused(net_zap *z)
{
    return atomic_load_explicit(&z->refused, memory_order_relaxed);
}
