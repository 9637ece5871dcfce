/* See cw/bench_memory.h. Baseline instructions are enough: 16-byte loads outrun any memory by far. */
#include "cw/bench_memory.h"
#include "cw/clock.h"
#include "cw/mem.h"

#include <stdio.h>
#include <string.h>

enum { PIECE_BYTES = 2 << 20, LINE = 64, LEAST_BYTES = 16 << 20 };

/* Bytes that a prefetch runs ahead of the loads. */
static const int ways[] = {0, 512, 1024, 2048, 4096};

struct cw_bench_memory {
    uint8_t *data;
    size_t bytes;
    int way;        /* index into ways */
    uint64_t *sums; /* [CW_POOL_MAX_THREADS * 8] what each thread read, a cache line apart, so that reading is
                       not left out by the compiler */
};

static void fill_piece(void *ctx, int task, int thread)
{
    (void)thread;
    cw_bench_memory *m = ctx;
    memset(m->data + (size_t)task * PIECE_BYTES, task | 1, PIECE_BYTES);
}

cw_status cw_bench_memory_new(size_t bytes, cw_pool *pool, cw_bench_memory **out, cw_err *err)
{
    bytes = bytes / PIECE_BYTES * PIECE_BYTES;
    if (bytes < LEAST_BYTES)
        return CW_FAIL(err, CW_STATUS_INVALID, "at least 16 MiB have to be read to measure memory");
    cw_bench_memory *m = cw_calloc(1, sizeof *m);
    if (m) {
        m->bytes = bytes;
        m->data = cw_pages_alloc(bytes);
        m->sums = cw_calloc((size_t)CW_POOL_MAX_THREADS * 8, sizeof *m->sums);
    }
    if (!m || !m->data || !m->sums) {
        cw_bench_memory_free(&m);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "no %zu MiB of memory to measure its speed with",
                       bytes >> 20);
    }
    cw_pool_run(pool, fill_piece, m, (int)(bytes / PIECE_BYTES));
    *out = m;
    return CW_OK;
}

void cw_bench_memory_free(cw_bench_memory **m)
{
    if (!m || !*m) return;
    cw_pages_free((*m)->data, (*m)->bytes);
    cw_free((*m)->sums);
    cw_free(*m);
    *m = NULL;
}

/* Four lines a turn, every word of them. The prefetch may point past the end: it does not fault. */
static inline uint64_t read_lines(const uint8_t *p, int ahead)
{
    typedef uint64_t vec __attribute__((vector_size(16)));
    vec a = {0}, b = {0}, c = {0}, d = {0};
    for (const uint8_t *end = p + PIECE_BYTES; p < end; p += 4 * LINE) {
        for (int i = 0; ahead && i < 4; i++)
            __builtin_prefetch((const void *)((uintptr_t)p + (uintptr_t)(ahead + i * LINE)), 0, 3);
        const vec *v = (const vec *)(const void *)p;
        for (int i = 0; i < 4; i++) {
            a ^= v[4 * i];
            b ^= v[4 * i + 1];
            c ^= v[4 * i + 2];
            d ^= v[4 * i + 3];
        }
    }
    a ^= b ^ c ^ d;
    return a[0] ^ a[1];
}

static void read_piece(void *ctx, int task, int thread)
{
    const cw_bench_memory *m = ctx;
    const uint8_t *p = m->data + (size_t)task * PIECE_BYTES;
    uint64_t sum = 0;
    /* Constant distances, so that each way is a loop of its own. */
    switch (m->way) {
    case 1: sum = read_lines(p, 512); break;
    case 2: sum = read_lines(p, 1024); break;
    case 3: sum = read_lines(p, 2048); break;
    case 4: sum = read_lines(p, 4096); break;
    default: sum = read_lines(p, 0);
    }
    m->sums[8 * thread] ^= sum;
}

double cw_bench_memory_read(cw_bench_memory *m, cw_pool *pool)
{
    uint64_t start = cw_mono_ns();
    cw_pool_run(pool, read_piece, m, (int)(m->bytes / PIECE_BYTES));
    uint64_t ns = cw_mono_ns() - start;
    return (double)m->bytes / (double)(ns ? ns : 1);
}

void cw_bench_memory_tune(cw_bench_memory *m, cw_pool *pool, int rounds)
{
    double best = 0;
    int best_way = 0;
    for (int r = 0; r < rounds; r++) {
        for (int w = 0; w < (int)CW_ARRAY_LEN(ways); w++) {
            m->way = w;
            double speed = cw_bench_memory_read(m, pool);
            if (speed > best) best = speed, best_way = w;
        }
    }
    m->way = best_way;
}

int cw_bench_memory_ahead(const cw_bench_memory *m)
{
    return ways[m->way];
}

size_t cw_bench_memory_bytes(const cw_bench_memory *m)
{
    return m->bytes;
}

uint64_t cw_bench_huge_bytes(void)
{
    FILE *f = fopen("/proc/self/smaps_rollup", "r");
    if (!f) return 0;
    char line[128];
    unsigned long long kib = 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "AnonHugePages: %llu kB", &kib) == 1) break;
    fclose(f);
    return (uint64_t)kib * 1024;
}
