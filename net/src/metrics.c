/* Metrics over HTTP; see cw/metrics.h. The text format is Prometheus' exposition format 0.0.4. */
#include "cw/metrics.h"

#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cw/clock.h"
#include "cw/counters.h"
#include "cw/mem.h"

/* ---- text */

static bool text_room(cw_metrics_text *t, size_t more)
{
    if (t->failed) return false;
    if (t->cap - t->n > more) return true;
    size_t cap = t->cap ? t->cap : 4096;
    while (cap - t->n <= more) cap *= 2;
    char *p = cw_realloc(t->buf, cap, 1);
    if (!p) return t->failed = true, false;
    t->buf = p;
    t->cap = cap;
    return true;
}

static void add(cw_metrics_text *t, const char *s, size_t n)
{
    if (!text_room(t, n)) return;
    memcpy(t->buf + t->n, s, n);
    t->n += n;
    t->buf[t->n] = 0;
}

static void adds(cw_metrics_text *t, const char *s)
{
    add(t, s, strlen(s));
}

static void add_label(cw_metrics_text *t, const char *s)
{
    for (; *s; s++) {
        if (*s == '\\' || *s == '"')
            add(t, (char[]){'\\', *s}, 2);
        else if (*s == '\n')
            adds(t, "\\n");
        else
            add(t, s, 1);
    }
}

static void add_number(cw_metrics_text *t, double v)
{
    char buf[40];
    snprintf(buf, sizeof buf, " %.17g\n", isfinite(v) ? v : 0);
    adds(t, buf);
}

void cw_metrics_text_free(cw_metrics_text *t)
{
    cw_free(t->buf);
    *t = (cw_metrics_text){0};
}

void cw_metrics_head(cw_metrics_text *t, const char *name, const char *type, const char *help)
{
    const char *parts[] = {"# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n"};
    for (size_t i = 0; i < CW_ARRAY_LEN(parts); i++) adds(t, parts[i]);
}

void cw_metrics_line2(cw_metrics_text *t, const char *name, const char *key, const char *value,
                      const char *key2, const char *value2, double number)
{
    adds(t, name);
    if (key) {
        adds(t, "{");
        adds(t, key);
        adds(t, "=\"");
        add_label(t, value);
        adds(t, "\"");
    }
    if (key2) {
        adds(t, ",");
        adds(t, key2);
        adds(t, "=\"");
        add_label(t, value2);
        adds(t, "\"");
    }
    if (key) adds(t, "}");
    add_number(t, number);
}

void cw_metrics_line(cw_metrics_text *t, const char *name, const char *key, const char *value, double number)
{
    cw_metrics_line2(t, name, key, value, NULL, NULL, number);
}

void cw_metrics_one(cw_metrics_text *t, const char *name, const char *type, const char *help, double number)
{
    cw_metrics_head(t, name, type, help);
    cw_metrics_line(t, name, NULL, NULL, number);
}

void cw_metrics_net(cw_metrics_text *t, cw_net *net, const char *port)
{
    cw_net_stats s;
    cw_net_get_stats(net, &s);
    const struct {
        const char *name, *help;
        uint64_t v;
    } rows[] = {
        {"causeway_net_links_in_total", "links that peers opened", s.links_in},
        {"causeway_net_links_out_total", "links that this process opened", s.links_out},
        {"causeway_net_blamed_total", "peers cut for breaking the protocol", s.blamed},
        {"causeway_net_overrun_total", "peers cut for sending without end", s.overrun},
        {"causeway_net_silent_total", "peers cut for saying nothing", s.silent},
        {"causeway_net_refused_total", "handshakes refused by key or address", s.zap_refused},
        {"causeway_net_handshakes_failed_total", "handshakes that failed", s.handshakes_failed},
        {"causeway_net_bytes_in_total", "bytes received", s.bytes_in},
        {"causeway_net_bytes_out_total", "bytes sent", s.bytes_out},
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(rows); i++) {
        cw_metrics_head(t, rows[i].name, "counter", rows[i].help);
        cw_metrics_line(t, rows[i].name, "port", port, (double)rows[i].v);
    }
}

/* ---- the registry: all lines of a name together, in the order of its first one */

typedef struct {
    cw_counter *items[4096];
    size_t n;
} all_counters;

static void collect(void *ctx, cw_counter *c)
{
    all_counters *a = ctx;
    if (a->n < CW_ARRAY_LEN(a->items)) a->items[a->n++] = c;
}

void cw_metrics_counters(cw_metrics_text *t)
{
    all_counters *a = cw_calloc(1, sizeof *a);
    if (!a) {
        t->failed = true;
        return;
    }
    cw_counters_each(collect, a);
    for (size_t i = 0; i < a->n; i++) {
        cw_counter *c = a->items[i];
        if (!c) continue;
        cw_metrics_head(t, c->name, c->kind == CW_COUNTER ? "counter" : "gauge", c->help);
        for (size_t k = i; k < a->n; k++) {
            cw_counter *o = a->items[k];
            if (!o || strcmp(o->name, c->name) != 0) continue;
            adds(t, o->name);
            if (o->labels[0]) { /* ours, written as they are to appear */
                adds(t, "{");
                adds(t, o->labels);
                adds(t, "}");
            }
            add_number(t, (double)cw_counter_read(o));
            if (k > i) a->items[k] = NULL;
        }
    }
    cw_free(a);
}

/* ---- the server */

enum { CLIENTS = 8, REQUEST_MAX = 4096, PATIENCE_US = 3 * 1000000 };

typedef struct {
    int fd; /* -1: free */
    int64_t until_us;
    char in[REQUEST_MAX + 1];
    size_t n_in, sent;
    cw_metrics_text out; /* the answer; n 0: still being asked */
} client;

struct cw_metrics {
    pthread_t thread;
    int listen_fd, quit_fd;
    pthread_mutex_t lock;
    cw_metrics_text text; /* published */
    client clients[CLIENTS];
};

static void client_close(client *c)
{
    close(c->fd);
    cw_metrics_text_free(&c->out);
    c->fd = -1;
}

static void answer(cw_metrics *m, client *c)
{
    cw_metrics_text body = {0};
    const char *status = "200 OK";
    if (strncmp(c->in, "GET ", 4) != 0) {
        status = "405 Method Not Allowed";
        adds(&body, "GET /metrics\n");
    } else if (strncmp(c->in + 4, "/metrics ", 9) != 0 && strncmp(c->in + 4, "/metrics?", 9) != 0) {
        status = "404 Not Found";
        adds(&body, "GET /metrics\n");
    } else {
        cw_metrics_counters(&body);
        pthread_mutex_lock(&m->lock);
        if (m->text.buf) add(&body, m->text.buf, m->text.n);
        pthread_mutex_unlock(&m->lock);
    }
    char head[256];
    snprintf(
        head, sizeof head,
        "HTTP/1.1 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: %zu\r\n"
        "Connection: close\r\n\r\n",
        status, body.n);
    adds(&c->out, head);
    if (body.buf) add(&c->out, body.buf, body.n);
    if (body.failed) c->out.failed = true;
    cw_metrics_text_free(&body);
}

/* False: done with it. */
static bool client_serve(cw_metrics *m, client *c)
{
    if (!c->out.n) {
        ssize_t k = recv(c->fd, c->in + c->n_in, REQUEST_MAX - c->n_in, 0);
        if (k <= 0) return k < 0 && (errno == EAGAIN || errno == EINTR);
        c->n_in += (size_t)k;
        c->in[c->n_in] = 0;
        if (!strstr(c->in, "\r\n\r\n")) return c->n_in < REQUEST_MAX;
        answer(m, c);
        if (c->out.failed) return false;
        shutdown(c->fd, SHUT_RD);
    }
    ssize_t k = send(c->fd, c->out.buf + c->sent, c->out.n - c->sent, MSG_NOSIGNAL);
    if (k < 0) return errno == EAGAIN || errno == EINTR;
    c->sent += (size_t)k;
    return c->sent < c->out.n;
}

static void take_client(cw_metrics *m, int64_t now_us)
{
    int fd = accept4(m->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        /* Out of descriptors the connection stays, and the listener ready: no rounds without end. */
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) poll(NULL, 0, 100);
        return;
    }
    client *free_one = NULL;
    for (int i = 0; i < CLIENTS; i++)
        if (m->clients[i].fd < 0) free_one = &m->clients[i];
    if (!free_one) {
        close(fd);
        return;
    }
    *free_one = (client){.fd = fd, .until_us = now_us + PATIENCE_US};
}

static void *serve(void *arg)
{
    cw_metrics *m = arg;
    for (;;) {
        struct pollfd fds[2 + CLIENTS] = {{.fd = m->quit_fd, .events = POLLIN},
                                          {.fd = m->listen_fd, .events = POLLIN}};
        bool busy = false;
        for (int i = 0; i < CLIENTS; i++) {
            client *c = &m->clients[i];
            fds[2 + i] = (struct pollfd){.fd = c->fd, .events = c->out.n ? POLLOUT : POLLIN};
            busy |= c->fd >= 0;
        }
        if (poll(fds, CW_ARRAY_LEN(fds), busy ? 500 : -1) < 0) continue;
        if (fds[0].revents) return NULL;
        int64_t now_us = cw_now_us();
        for (int i = 0; i < CLIENTS; i++) {
            client *c = &m->clients[i];
            if (c->fd < 0) continue;
            bool keep = now_us < c->until_us;
            if (keep && fds[2 + i].revents) keep = client_serve(m, c);
            if (!keep) client_close(c);
        }
        if (fds[1].revents) take_client(m, now_us);
    }
}

/* ---- start */

/* HOST:PORT into a socket address; false: it is none, or not loopback. */
static bool parse_loopback(const char *text, struct sockaddr_storage *a, socklen_t *len)
{
    char host[64], *end;
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text || (size_t)(colon - text) >= sizeof host) return false;
    memcpy(host, text, (size_t)(colon - text));
    host[colon - text] = 0;
    errno = 0;
    unsigned long port = strtoul(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end || errno || port > 65535) return false;
    memset(a, 0, sizeof *a);
    struct sockaddr_in *v4 = (struct sockaddr_in *)a;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)a;
    size_t n = strlen(host);
    if (strcmp(host, "localhost") == 0) snprintf(host, sizeof host, "127.0.0.1");
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        *len = sizeof *v4;
        return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
    }
    if (n < 3 || host[0] != '[' || host[n - 1] != ']') return false;
    host[n - 1] = 0;
    if (inet_pton(AF_INET6, host + 1, &v6->sin6_addr) != 1) return false;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)port);
    *len = sizeof *v6;
    return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

static cw_status open_sockets(cw_metrics *m, const char *address, char bound[CW_METRICS_ADDRESS], cw_err *err)
{
    struct sockaddr_storage a;
    socklen_t len = 0;
    if (!parse_loopback(address, &a, &len))
        return CW_FAIL(err, CW_STATUS_INVALID,
                       "--metrics takes a loopback address, 127.0.0.1:PORT or [::1]:PORT, not \"%.80s\": the "
                       "port has no "
                       "key; bring the numbers elsewhere with a collector on this machine",
                       address);
    m->quit_fd = eventfd(0, EFD_CLOEXEC);
    m->listen_fd = socket(a.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int one = 1;
    if (m->listen_fd >= 0) (void)setsockopt(m->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (m->quit_fd < 0 || m->listen_fd < 0 || bind(m->listen_fd, (struct sockaddr *)&a, len) != 0 ||
        listen(m->listen_fd, CLIENTS) != 0 || getsockname(m->listen_fd, (struct sockaddr *)&a, &len) != 0)
        return CW_FAIL(err, CW_STATUS_IO, "cannot serve metrics at %s: %s", address, strerror(errno));
    uint16_t port = ntohs(a.ss_family == AF_INET ? ((struct sockaddr_in *)&a)->sin_port
                                                 : ((struct sockaddr_in6 *)&a)->sin6_port);
    snprintf(bound, CW_METRICS_ADDRESS, "%.*s:%u", (int)(strrchr(address, ':') - address), address, port);
    return CW_OK;
}

static void metrics_free(cw_metrics *m)
{
    for (int i = 0; i < CLIENTS; i++)
        if (m->clients[i].fd >= 0) client_close(&m->clients[i]);
    if (m->listen_fd >= 0) close(m->listen_fd);
    if (m->quit_fd >= 0) close(m->quit_fd);
    pthread_mutex_destroy(&m->lock);
    cw_metrics_text_free(&m->text);
    cw_free(m);
}

cw_status cw_metrics_start(const char *address, char bound[CW_METRICS_ADDRESS], cw_metrics **out, cw_err *err)
{
    cw_metrics *m = cw_calloc(1, sizeof *m);
    if (!m) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for metrics");
    m->listen_fd = m->quit_fd = -1;
    for (int i = 0; i < CLIENTS; i++) m->clients[i].fd = -1;
    pthread_mutex_init(&m->lock, NULL);
    cw_status s = open_sockets(m, address, bound, err);
    if (s == CW_OK && pthread_create(&m->thread, NULL, serve, m) != 0)
        s = CW_FAIL(err, CW_STATUS_LIMIT, "cannot start the metrics thread");
    if (s == CW_OK)
        *out = m;
    else
        metrics_free(m);
    return s;
}

void cw_metrics_stop(cw_metrics **pm)
{
    cw_metrics *m = pm ? *pm : NULL;
    if (!m) return;
    uint64_t one = 1;
    while (write(m->quit_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
    pthread_join(m->thread, NULL);
    metrics_free(m);
    *pm = NULL;
}

void cw_metrics_publish(cw_metrics *m, cw_metrics_text *t)
{
    if (t->failed) {
        cw_metrics_text_free(t);
        return;
    }
    pthread_mutex_lock(&m->lock);
    cw_metrics_text old = m->text;
    m->text = *t;
    pthread_mutex_unlock(&m->lock);
    *t = (cw_metrics_text){0};
    cw_metrics_text_free(&old);
}
