/*
 * Named counters and gauges of this process, for `status` and metrics. Registering takes a lock and may
 * allocate (start-up); counting is one relaxed atomic add and may happen on any thread, the token loop
 * included. Counters live as long as the process.
 */
#pragma once
#include "cw/status.h"
#include <stdatomic.h>

typedef enum { CW_COUNTER, CW_GAUGE } cw_counter_kind;

typedef struct {
    const char *name;   /* causeway_calls_total */
    const char *labels; /* worker="a",layer="3" or "" */
    const char *help;
    cw_counter_kind kind;
    atomic_int_least64_t value;
} cw_counter;

/* The counter of that name and those labels, made on first use. `help` must be static. Never NULL: aborts
 * without memory. */
cw_counter *cw_counter_get(cw_counter_kind kind, const char *name, const char *labels, const char *help);

static inline void cw_counter_add(cw_counter *c, int64_t n)
{
    atomic_fetch_add_explicit(&c->value, n, memory_order_relaxed);
}
static inline void cw_gauge_set(cw_counter *c, int64_t v)
{
    atomic_store_explicit(&c->value, v, memory_order_relaxed);
}
static inline int64_t cw_counter_read(cw_counter *c)
{
    return atomic_load_explicit(&c->value, memory_order_relaxed);
}

/* Every counter in the order of registration. */
void cw_counters_each(void (*fn)(void *ctx, cw_counter *c), void *ctx);
