/*
 * How fast this machine reads memory in order: the roof over decoding, where every weight is read once a
 * token. Anonymous memory in huge pages, larger than any cache, filled by the threads that read it.
 *
 * Used by one thread at a time; the pool helps.
 */
#pragma once
#include "cw/pool.h"

typedef struct cw_bench_memory cw_bench_memory;

enum { CW_BENCH_MEMORY_BYTES = 1 << 30 };

/* Takes and fills `bytes` (at least 16 MiB; less than CW_BENCH_MEMORY_BYTES measures caches). */
CW_MUST_USE cw_status cw_bench_memory_new(size_t bytes, cw_pool *pool, cw_bench_memory **out, cw_err *err);
void cw_bench_memory_free(cw_bench_memory **m);

/* Tries every way to prefetch, `rounds` times in turn, and keeps the one with the best pass: best passes are
 * compared because this looks for the roof. */
void cw_bench_memory_tune(cw_bench_memory *m, cw_pool *pool, int rounds);
/* Reads everything once in the way that was found; GB (10^9 bytes) a second. */
double cw_bench_memory_read(cw_bench_memory *m, cw_pool *pool);
/* How far ahead that way prefetches; 0: leaves it to the processor. */
int cw_bench_memory_ahead(const cw_bench_memory *m);
size_t cw_bench_memory_bytes(const cw_bench_memory *m);
/* Bytes of this process that are in huge pages, 0 where the system does not tell. */
uint64_t cw_bench_huge_bytes(void);
