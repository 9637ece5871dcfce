/* Open addressing with linear probing; removal shifts the cluster back, so there are no tombstones. */
#include "map.h"

#include "cw/mem.h"

/* Fibonacci hashing: ids count upwards, neighbours must not share a cluster. */
static size_t slot_of(const net_map *m, uint64_t key)
{
    return (size_t)((key * 0x9e3779b97f4a7c15u) >> 32) & (m->cap - 1);
}

void net_map_free(net_map *m)
{
    cw_free(m->keys);
    cw_free(m->values);
    *m = (net_map){0};
}

static void insert(net_map *m, uint64_t key, void *value)
{
    size_t i = slot_of(m, key);
    while (m->keys[i]) {
        CW_ASSERT(m->keys[i] != key);
        i = (i + 1) & (m->cap - 1);
    }
    m->keys[i] = key;
    m->values[i] = value;
    m->n++;
}

static cw_status grow(net_map *m)
{
    net_map bigger = {.cap = m->cap ? 2 * m->cap : 64};
    bigger.keys = cw_calloc(bigger.cap, sizeof *bigger.keys);
    bigger.values = cw_calloc(bigger.cap, sizeof *bigger.values);
    if (!bigger.keys || !bigger.values) {
        net_map_free(&bigger);
        return CW_STATUS_NO_MEMORY;
    }
    for (size_t i = 0; i < m->cap; i++)
        if (m->keys[i]) insert(&bigger, m->keys[i], m->values[i]);
    net_map_free(m);
    *m = bigger;
    return CW_OK;
}

cw_status net_map_put(net_map *m, uint64_t key, void *value)
{
    CW_ASSERT(key != 0);
    if (2 * (m->n + 1) > m->cap) CW_TRY(grow(m));
    insert(m, key, value);
    return CW_OK;
}

static bool find(const net_map *m, uint64_t key, size_t *at)
{
    if (!m->cap) return false;
    for (size_t i = slot_of(m, key); m->keys[i]; i = (i + 1) & (m->cap - 1))
        if (m->keys[i] == key) {
            *at = i;
            return true;
        }
    return false;
}

void *net_map_get(const net_map *m, uint64_t key)
{
    size_t i;
    return find(m, key, &i) ? m->values[i] : NULL;
}

void net_map_remove(net_map *m, uint64_t key)
{
    size_t hole;
    if (!find(m, key, &hole)) return;
    m->n--;
    size_t mask = m->cap - 1;
    for (size_t i = (hole + 1) & mask; m->keys[i]; i = (i + 1) & mask) {
        /* An entry may move back into the hole unless its own slot lies after the hole. */
        size_t home = slot_of(m, m->keys[i]);
        if (((i - home) & mask) < ((i - hole) & mask)) continue;
        m->keys[hole] = m->keys[i];
        m->values[hole] = m->values[i];
        hole = i;
    }
    m->keys[hole] = 0;
    m->values[hole] = NULL;
}
