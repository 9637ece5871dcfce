/*
 * Memory of machines with several nodes, each with its own controllers.
 *
 * Packed weights are read by whichever compute thread is free: the pool hands tasks out as threads come, so
 * that none waits for a slow one, and a page has no reader of its own that could touch it first. What first
 * touch would give (every controller carrying its share, instead of all pages lying where the loader happened
 * to run) is had by spreading the pages over the nodes in turn before they are touched. A thread's own
 * working memory is touched first by that thread and lies on its node without more ado. On one node nothing
 * is done.
 */
#pragma once
#include "cw/status.h"
#include <stddef.h>

enum { CW_NUMA_MAX_NODES = 64 };

/* A list of the kernel's, such as "0-1,4\n", as bits; nodes beyond the 64th are left out. false: not such a
 * list. */
CW_MUST_USE bool cw_numa_parse(const char *list, uint64_t *nodes);
/* Nodes that have memory; 1 (node 0) where the system does not say. */
uint64_t cw_numa_nodes(void);
/* Pages of fresh memory (cw_pages_alloc) go to `nodes` in turn as they are touched. true when nothing had to
 * be done (fewer than two nodes) or the kernel agreed; a refusal costs only speed. */
bool cw_numa_spread(void *p, size_t bytes, uint64_t nodes);
