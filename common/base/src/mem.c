#include "cw/mem.h"
#include "cw/numa.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static _Thread_local struct {
    bool on, fatal;
    uint64_t count;
} guard;

static void guard_note(void)
{
    if (!guard.on) return;
    guard.count++;
    CW_ASSERT(!guard.fatal);
}

void cw_alloc_guard_begin(bool fatal)
{
    guard.on = true;
    guard.fatal = fatal;
    guard.count = 0;
}

uint64_t cw_alloc_guard_end(void)
{
    guard.on = false;
    return guard.count;
}

void *cw_calloc(size_t n, size_t size)
{
    guard_note();
    size_t bytes;
    if (!cw_mul_size(n, size, &bytes)) return NULL;
    return calloc(1, bytes ? bytes : 1);
}

void *cw_realloc(void *p, size_t n, size_t size)
{
    guard_note();
    size_t bytes;
    if (!cw_mul_size(n, size, &bytes)) return NULL;
    return realloc(p, bytes ? bytes : 1);
}

char *cw_strdup(const char *s)
{
    return cw_strndup(s, strlen(s));
}

char *cw_strndup(const char *s, size_t n)
{
    size_t bytes;
    if (!cw_add_size(n, 1, &bytes)) return NULL;
    char *p = cw_calloc(bytes, 1);
    if (p) memcpy(p, s, n);
    return p;
}

void *cw_aligned_calloc(size_t n, size_t size)
{
    guard_note();
    size_t bytes, padded;
    if (!cw_mul_size(n, size, &bytes) || !cw_add_size(bytes, 64, &padded)) return NULL;
    padded &= ~(size_t)63;
    void *p = aligned_alloc(64, padded);
    if (p) memset(p, 0, padded);
    return p;
}

void cw_free(void *p)
{
    free(p);
}

struct cw_arena {
    uint8_t *base;
    size_t used, max;
};

cw_status cw_arena_new(size_t max_bytes, cw_arena **out, cw_err *err)
{
    cw_arena *a = cw_calloc(1, sizeof *a);
    if (!a) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for an arena");
    a->max = (max_bytes + 4095) & ~(size_t)4095;
    a->base = mmap(NULL, a->max, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a->base == MAP_FAILED) {
        cw_free(a);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "cannot reserve %zu bytes of address space", max_bytes);
    }
    *out = a;
    return CW_OK;
}

void cw_arena_free(cw_arena **a)
{
    if (!a || !*a) return;
    munmap((*a)->base, (*a)->max);
    cw_free(*a);
    *a = NULL;
}

void *cw_arena_alloc(cw_arena *a, size_t n, size_t size)
{
    size_t bytes;
    if (!cw_mul_size(n, size, &bytes) || bytes > a->max - a->used) return NULL;
    void *p = a->base + a->used;
    size_t next = (a->used + bytes + 63) & ~(size_t)63;
    a->used = next < a->max ? next : a->max;
    return p;
}

size_t cw_arena_used(const cw_arena *a)
{
    return a->used;
}

void cw_arena_reset(cw_arena *a, size_t mark)
{
    CW_ASSERT(mark <= a->used);
    memset(a->base + mark, 0, a->used - mark);
    a->used = mark;
}

enum { HUGE_PAGE = 2 << 20 };

void *cw_pages_alloc(size_t bytes)
{
    guard_note();
    if (bytes == 0 || bytes > SIZE_MAX - 2 * (size_t)HUGE_PAGE) return NULL;
    if (bytes < HUGE_PAGE) {
        void *small = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return small == MAP_FAILED ? NULL : small;
    }
    /* Over-reserve to align the start to a huge page, then give the ends back. */
    size_t reserve = bytes + HUGE_PAGE;
    uint8_t *p = mmap(NULL, reserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    uint8_t *start = (uint8_t *)(((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    uint8_t *end = (uint8_t *)(((uintptr_t)start + bytes + 4095) & ~(uintptr_t)4095);
    if (start > p) munmap(p, (size_t)(start - p));
    if (end < p + reserve) munmap(end, (size_t)(p + reserve - end));
    madvise(start, bytes, MADV_HUGEPAGE); /* a wish: refusal only costs speed */
    return start;
}

void *cw_pages_alloc_spread(size_t bytes)
{
    void *p = cw_pages_alloc(bytes);
    /* Asked once: the machine does not change, and a second asker gets the same answer. */
    static _Atomic uint64_t nodes;
    if (p && atomic_load(&nodes) == 0) atomic_store(&nodes, cw_numa_nodes());
    if (p) cw_numa_spread(p, bytes, atomic_load(&nodes));
    return p;
}

void cw_pages_free(void *p, size_t bytes)
{
    if (p) munmap(p, bytes);
}
