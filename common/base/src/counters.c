/* The registry: fixed table, so a counter's address never changes and reading needs the lock only for the
 * count. */
#include "cw/counters.h"
#include "cw/mem.h"

#include <pthread.h>
#include <string.h>

/* Per worker and kind of event; labels come from names we gave, never freely from peers, so this cannot be
 * filled from outside. */
enum { MAX_COUNTERS = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static cw_counter *registry[MAX_COUNTERS];
static size_t n_registry;

static cw_counter *find(const char *name, const char *labels)
{
    for (size_t i = 0; i < n_registry; i++)
        if (strcmp(registry[i]->name, name) == 0 && strcmp(registry[i]->labels, labels) == 0)
            return registry[i];
    return NULL;
}

cw_counter *cw_counter_get(cw_counter_kind kind, const char *name, const char *labels, const char *help)
{
    if (!labels) labels = "";
    pthread_mutex_lock(&lock);
    cw_counter *c = find(name, labels);
    if (!c) {
        CW_ASSERT(n_registry < MAX_COUNTERS);
        c = cw_calloc(1, sizeof *c);
        CW_ASSERT(c);
        c->name = cw_strdup(name);
        c->labels = cw_strdup(labels);
        CW_ASSERT(c->name && c->labels);
        c->help = help;
        c->kind = kind;
        registry[n_registry++] = c;
    }
    CW_ASSERT(c->kind == kind);
    pthread_mutex_unlock(&lock);
    return c;
}

void cw_counters_each(void (*fn)(void *ctx, cw_counter *c), void *ctx)
{
    pthread_mutex_lock(&lock);
    size_t n = n_registry;
    pthread_mutex_unlock(&lock);
    for (size_t i = 0; i < n; i++) fn(ctx, registry[i]); /* entries below n never change again */
}
