/* The control protocol; proxy.h describes it. */
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy_internal.h"

enum { MAX_WORDS = 5 };

typedef struct {
    proxy *p;
    char *answer;
    size_t size;
} call;

static bool number(const char *text, double *v, const char **rest)
{
    char *end;
    *v = strtod(text, &end);
    *rest = end;
    return end != text && isfinite(*v) && *v >= 0;
}

static bool time_of(const char *text, int64_t *ns)
{
    static const struct {
        const char *unit;
        double ns;
    } units[] = {{"us", 1e3}, {"ms", 1e6}, {"s", 1e9}};
    double v;
    const char *rest;
    if (!number(text, &v, &rest)) return false;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strcmp(rest, units[i].unit) == 0 && v * units[i].ns < 1e15) {
            *ns = (int64_t)(v * units[i].ns);
            return true;
        }
    *ns = 0;
    return v == 0 && !*rest;
}

static bool rate_of(const char *text, double *bytes)
{
    static const struct {
        const char *unit;
        double bytes;
    } units[] = {{"", 1},           {"kB", 1e3},       {"MB", 1e6},      {"GB", 1e9},
                 {"kbit", 1e3 / 8}, {"mbit", 1e6 / 8}, {"gbit", 1e9 / 8}};
    const char *rest;
    *bytes = 0;
    if (strcmp(text, "off") == 0) return true;
    double v;
    if (!number(text, &v, &rest) || v == 0) return false;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strcmp(rest, units[i].unit) == 0) {
            *bytes = v * units[i].bytes;
            return true;
        }
    return false;
}

static bool address_of(const char *text, uint32_t *ip, uint16_t *port)
{
    char host[64];
    const char *colon = strrchr(text, ':');
    struct in_addr a;
    char *end;
    if (!colon || (size_t)(colon - text) >= sizeof host) return false;
    memcpy(host, text, (size_t)(colon - text));
    host[colon - text] = 0;
    unsigned long n = strtoul(colon + 1, &end, 10);
    if (*end || n == 0 || n > 65535 || inet_pton(AF_INET, host, &a) != 1) return false;
    *ip = a.s_addr;
    *port = (uint16_t)n;
    return true;
}

static bool on_off(const char *text, bool *on)
{
    *on = strcmp(text, "on") == 0;
    return *on || strcmp(text, "off") == 0;
}

static int up_to_down(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static int stats_of(const link_shape *l, char *to, size_t size)
{
    static int32_t sorted[SAMPLES];
    size_t n = l->chunks < SAMPLES ? l->chunks : SAMPLES;
    double many = l->chunks ? (double)l->chunks : 1;
    memcpy(sorted, l->late_us, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, up_to_down);
    return snprintf(to, size,
                    "{\"bytes\": %llu, \"chunks\": %llu, \"stalls\": %llu, \"swallowed\": %llu, "
                    "\"added_us\": %.1f, \"added_max_us\": %.1f, \"late_us\": %.1f, \"late_p50_us\": %d, "
                    "\"late_p99_us\": %d, \"late_max_us\": %.1f}",
                    (unsigned long long)l->bytes, (unsigned long long)l->chunks,
                    (unsigned long long)l->stalls, (unsigned long long)l->swallowed,
                    l->added_sum / many / 1e3, (double)l->added_max / 1e3, l->late_sum / many / 1e3,
                    n ? sorted[n / 2] : 0, n ? sorted[n * 99 / 100] : 0, (double)l->late_max / 1e3);
}

static void answer_stats(const call *k, const route *r)
{
    char dir[2][400];
    unsigned open = 0;
    for (const conn *c = k->p->conns; c; c = c->next) open += c->r == r && !c->dead;
    for (int i = 0; i < 2; i++) stats_of(&r->dir[i], dir[i], sizeof dir[i]);
    snprintf(k->answer, k->size,
             "ok {\"accepted\": %llu, \"open\": %u, \"resets\": %llu, \"up\": %s, \"down\": %s}",
             (unsigned long long)r->accepted, open, (unsigned long long)r->resets, dir[0], dir[1]);
}

static void add(const call *k, char **w, int n)
{
    uint32_t ip;
    uint16_t port;
    unsigned long at = n == 4 ? strtoul(w[3], NULL, 10) : 0;
    if (n < 3 || strlen(w[1]) >= NAME_MAX_BYTES || strcmp(w[1], "*") == 0 || at > 65535 ||
        !address_of(w[2], &ip, &port)) {
        snprintf(k->answer, k->size, "error add NAME HOST:PORT [LISTEN]");
        return;
    }
    if (proxy_route(k->p, w[1])) {
        snprintf(k->answer, k->size, "error there is a route %s", w[1]);
        return;
    }
    route *r = route_add(k->p, w[1], ip, port, (uint16_t)at);
    if (r)
        snprintf(k->answer, k->size, "ok %u", r->port);
    else
        snprintf(k->answer, k->size, "error %s", strerror(errno));
}

/* A fault of one direction. NULL: done; else what was expected. */
static const char *shape(route *r, int dir, const char *what, char **w, int n)
{
    link_shape *l = &r->dir[dir];
    bool on;
    double percent;
    const char *rest;
    if (strcmp(what, "delay") == 0) {
        return n == 1 && time_of(w[0], &l->delay) ? NULL : "delay DIR TIME";
    } else if (strcmp(what, "rate") == 0) {
        return n == 1 && rate_of(w[0], &l->rate) ? NULL : "rate DIR RATE|off";
    } else if (strcmp(what, "stall") == 0) {
        if (n != 2 || !number(w[0], &percent, &rest) || *rest || percent > 100 || !time_of(w[1], &l->stall))
            return "stall DIR PERCENT TIME";
        l->stall_chance = percent / 100;
    } else if (strcmp(what, "halfopen") == 0 || strcmp(what, "blackhole") == 0) {
        if (n != 1 || !on_off(w[0], &on)) return "halfopen|blackhole DIR on|off";
        *(what[0] == 'h' ? &l->half : &l->hole) = on;
    } else {
        return "delay, rate, stall, halfopen, blackhole, reset, refuse, clear, target or stats";
    }
    return NULL;
}

static const char *on_route(const call *k, route *r, char **w, int n)
{
    bool on;
    if (strcmp(w[1], "reset") == 0) {
        route_reset(k->p, r, false);
    } else if (strcmp(w[1], "refuse") == 0) {
        if (n != 3 || !on_off(w[2], &on) || !route_refuse(k->p, r, on)) return "refuse on|off";
    } else if (strcmp(w[1], "clear") == 0) {
        for (int dir = 0; dir < 2; dir++) {
            link_shape *l = &r->dir[dir];
            l->delay = l->stall = l->stalled_until = 0;
            l->rate = l->stall_chance = 0;
            l->half = l->hole = false;
        }
        if (!route_refuse(k->p, r, false)) return "refuse on|off";
        route_faults_changed(k->p, r);
    } else if (strcmp(w[1], "target") == 0) {
        if (n != 3 || !address_of(w[2], &r->target_ip, &r->target_port)) return "target HOST:PORT";
    } else {
        bool up = n > 2 && (strcmp(w[2], "up") == 0 || strcmp(w[2], "both") == 0);
        bool down = n > 2 && (strcmp(w[2], "down") == 0 || strcmp(w[2], "both") == 0);
        const char *wrong = up || down ? NULL : "a direction: up, down or both";
        if (up) wrong = shape(r, PROXY_UP, w[1], w + 3, n - 3);
        if (down && !wrong) wrong = shape(r, PROXY_DOWN, w[1], w + 3, n - 3);
        if (wrong) return wrong;
        route_faults_changed(k->p, r);
    }
    return NULL;
}

void proxy_command(proxy *p, const char *line, char *answer, size_t size)
{
    call k = {p, answer, size};
    char copy[256], *w[MAX_WORDS + 1], *save = NULL;
    int n = 0;
    p->now = proxy_now();
    snprintf(copy, sizeof copy, "%s", line);
    for (char *t = strtok_r(copy, " \t\r", &save); t && n <= MAX_WORDS; t = strtok_r(NULL, " \t\r", &save))
        w[n++] = t;
    snprintf(answer, size, "ok");
    if (n == 1 && strcmp(w[0], "quit") == 0) {
        proxy_quit(p);
    } else if (n >= 2 && n <= MAX_WORDS && strcmp(w[0], "add") == 0) {
        add(&k, w, n);
    } else if (n >= 2 && n <= MAX_WORDS) {
        route *one = proxy_route(p, w[0]);
        bool all = strcmp(w[0], "*") == 0;
        if (!one && !all) snprintf(answer, size, "error no route %s", w[0]);
        if (one && strcmp(w[1], "stats") == 0) {
            answer_stats(&k, one);
            return;
        }
        for (route *r = p->routes; r; r = r->next) {
            const char *wrong = all || r == one ? on_route(&k, r, w, n) : NULL;
            if (wrong) snprintf(answer, size, "error expected %s", wrong);
        }
    } else {
        snprintf(answer, size, "error expected add, quit, or a route and a command");
    }
}
