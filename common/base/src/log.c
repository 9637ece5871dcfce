#include "cw/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static atomic_int max_level = CW_LOG_WARN;
static pthread_mutex_t sink_lock = PTHREAD_MUTEX_INITIALIZER;
static void (*sink_fn)(void *, cw_log_level, const char *);
static void *sink_ctx;

void cw_log_set_level(cw_log_level level)
{
    atomic_store(&max_level, (int)level);
}

cw_log_level cw_log_get_level(void)
{
    return (cw_log_level)atomic_load(&max_level);
}

bool cw_log_level_parse(const char *text, cw_log_level *out)
{
    for (size_t i = 0; i < CW_ARRAY_LEN(level_names); i++)
        if (strcmp(text, level_names[i]) == 0) {
            *out = (cw_log_level)i;
            return true;
        }
    return false;
}

void cw_log_set_sink(void (*sink)(void *, cw_log_level, const char *), void *ctx)
{
    pthread_mutex_lock(&sink_lock);
    sink_fn = sink;
    sink_ctx = ctx;
    pthread_mutex_unlock(&sink_lock);
}

void cw_log_line(cw_log_level level, const char *module, const char *fmt, ...)
{
    if ((int)level > atomic_load_explicit(&max_level, memory_order_relaxed)) return;
    char line[1024];
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    size_t n = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    n += (size_t)snprintf(line + n, sizeof line - n, ".%03ldZ %s %s: ", ts.tv_nsec / 1000000, level_names[level], module);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line + n, sizeof line - n, fmt, ap);
    va_end(ap);
    /* One event is one line, whatever a peer put into a name. */
    for (char *c = line; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = ' ';
    pthread_mutex_lock(&sink_lock);
    if (sink_fn) sink_fn(sink_ctx, level, line);
    else fprintf(stderr, "%s\n", line);
    pthread_mutex_unlock(&sink_lock);
}
