/*
 * Speed of single kernels of one instruction set. Products run over a packed matrix larger than the caches,
 * again and again until time is up, split over the pool's threads; all other operations on rows that fit the
 * first-level cache, in the calling thread.
 */
#pragma once
#include "cw/bench_stats.h"
#include "cw/kernels.h"

/* --- products --- */

typedef struct {
    double gb_s;   /* packed weight bytes; those of a matrix count once for each pass over all m rows */
    double gmac_s; /* multiplications, by 10^9 */
} cw_bench_mm_speed;

typedef struct cw_bench_matrix cw_bench_matrix;

/* About `bytes` of weights of one type with k inputs, filled with valid random values. UNSUPPORTED, INVALID
 * (k is no multiple of the type's block), NO_MEMORY. `pool` fills it, and
 * has the threads that run it later. */
CW_MUST_USE cw_status cw_bench_matrix_new(uint32_t type, int64_t k, size_t bytes, int32_t max_m,
                                          cw_pool *pool, cw_bench_matrix **out, cw_err *err);
void cw_bench_matrix_free(cw_bench_matrix **x);
/* Multiplies m rows for at least `ms` milliseconds. */
cw_bench_mm_speed cw_bench_matrix_run(cw_bench_matrix *x, const cw_kernels *kn, cw_pool *pool, int32_t m,
                                      int ms);

/* --- everything else --- */

typedef struct {
    const char *name; /* "rms_norm", ... */
    double values_s;  /* values a call takes, by 10^9 a second; for qk and pv: multiplications */
    double gb_s;      /* operands read and written */
} cw_bench_op_speed;

enum { CW_BENCH_MAX_OPS = 32 };

/* All of them, rounds of `ms` milliseconds, medians of `rounds`; the number written to out[CW_BENCH_MAX_OPS].
 * -1 when memory is out. */
int cw_bench_ops_run(const cw_kernels *kn, int ms, int rounds, cw_bench_op_speed *out);
