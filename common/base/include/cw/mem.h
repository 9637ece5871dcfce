/*
 * Memory: checked size arithmetic, zeroed allocation that reports failure as a status, and the allocation guard that
 * proves the token loop allocates nothing. Long-lived buffers come from an arena made at start-up.
 */
#pragma once
#include "cw/status.h"

/* false on overflow; *out untouched then. */
CW_MUST_USE static inline bool cw_mul_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
CW_MUST_USE static inline bool cw_add_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

/* Zeroed array of n elements; NULL on overflow or when memory is out. n = 0 gives a valid pointer. Free with cw_free. */
CW_MUST_USE void *cw_calloc(size_t n, size_t size);
/* Grows or shrinks; new bytes are not cleared. NULL leaves the old block as it was. */
CW_MUST_USE void *cw_realloc(void *p, size_t n, size_t size);
CW_MUST_USE char *cw_strdup(const char *s);
CW_MUST_USE char *cw_strndup(const char *s, size_t n);
/* 64-byte aligned, zeroed; free with cw_free. */
CW_MUST_USE void *cw_aligned_calloc(size_t n, size_t size);
void cw_free(void *p);

/*
 * Allocation guard: while on for the calling thread, every cw_* allocation by that thread is counted, and with `fatal`
 * aborts. The token loop is run under it in the tests.
 */
void cw_alloc_guard_begin(bool fatal);
/* Ends the guard; the number of allocations seen since begin. */
uint64_t cw_alloc_guard_end(void);

/*
 * Arena: one reserved region, bump allocation, freed as a whole. Address space is reserved up front and pages appear
 * on first touch, so a large maximum costs nothing until used. Not thread-safe.
 */
typedef struct cw_arena cw_arena;
CW_MUST_USE cw_status cw_arena_new(size_t max_bytes, cw_arena **out, cw_err *err);
void cw_arena_free(cw_arena **a);
/* 64-byte aligned, zeroed; NULL when the arena is full or n * size overflows. */
CW_MUST_USE void *cw_arena_alloc(cw_arena *a, size_t n, size_t size);
size_t cw_arena_used(const cw_arena *a);
/* Forgets everything allocated after `mark` (a value of cw_arena_used) and clears it. */
void cw_arena_reset(cw_arena *a, size_t mark);

/* Pages: anonymous memory outside the heap, huge pages where the system gives them; zeroed. NULL when refused. */
CW_MUST_USE void *cw_pages_alloc(size_t bytes);
/* The same for what threads of every node read, such as weights: see cw/numa.h. */
CW_MUST_USE void *cw_pages_alloc_spread(size_t bytes);
void cw_pages_free(void *p, size_t bytes);
