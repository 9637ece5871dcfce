/*
 * Metrics of a process as Prometheus text over HTTP, on loopback only: the counters of cw/counters.h, and
 * what the process writes about its tables (cw_metrics_publish). One thread of its own, a few clients at
 * once, each cut when it is slow; GET /metrics and nothing else. Any address that is not loopback is refused:
 * there is no key on this port.
 */
#pragma once
#include "cw/net.h"

/* Text that grows; `failed` when memory ran out. */
typedef struct {
    char *buf;
    size_t n, cap;
    bool failed;
} cw_metrics_text;

void cw_metrics_text_free(cw_metrics_text *t);
/* "# HELP name help", "# TYPE name type". Once before the lines of that name. */
void cw_metrics_head(cw_metrics_text *t, const char *name, const char *type, const char *help);
/* name{key="value"} number; key NULL: no label. The value is escaped, whatever it is. */
void cw_metrics_line(cw_metrics_text *t, const char *name, const char *key, const char *value, double number);
/* name{key="value",key2="value2"} number */
void cw_metrics_line2(cw_metrics_text *t, const char *name, const char *key, const char *value,
                      const char *key2, const char *value2, double number);
/* Head and line in one. */
void cw_metrics_one(cw_metrics_text *t, const char *name, const char *type, const char *help, double number);
/* What cw_net_get_stats gives; `port` is the label. */
void cw_metrics_net(cw_metrics_text *t, cw_net *net, const char *port);
/* The registry of this process. */
void cw_metrics_counters(cw_metrics_text *t);

enum { CW_METRICS_ADDRESS = 64 };

typedef struct cw_metrics cw_metrics;

/* "127.0.0.1:PORT" or "[::1]:PORT"; port 0 takes a free one, `bound` is the address with the real one. INVALID (not loopback), IO. */
CW_MUST_USE cw_status cw_metrics_start(const char *address, char bound[CW_METRICS_ADDRESS], cw_metrics **out,
                                       cw_err *err);
void cw_metrics_stop(cw_metrics **m);
/* Any thread: what is served after the registry from now on. Takes the text over. */
void cw_metrics_publish(cw_metrics *m, cw_metrics_text *t);
