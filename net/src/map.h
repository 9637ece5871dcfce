/* A map from non-zero 64-bit numbers to pointers: links by id, and by listener and routing id. One thread. */
#pragma once
#include "cw/status.h"

typedef struct {
    uint64_t *keys; /* 0: empty */
    void **values;
    size_t n, cap; /* cap is a power of two */
} net_map;

void net_map_free(net_map *m);
/* NO_MEMORY. The key must be new. */
CW_MUST_USE cw_status net_map_put(net_map *m, uint64_t key, void *value);
void *net_map_get(const net_map *m, uint64_t key);
void net_map_remove(net_map *m, uint64_t key);
