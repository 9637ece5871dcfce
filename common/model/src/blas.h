/*
 * OpenBLAS's single-precision product, for the expanded form of attention only: nothing else that reaches a
 * logit or a KV row may go through it, because its order of additions depends on sizes and CPU
 * (docs/NUMERICS.md).
 *
 * The library is loaded when it is first asked for. Linked in, it would start a thread per core in every
 * process, used or not. Its own threads are 1: the pool splits the work.
 */
#pragma once
#include "cw/status.h"

/* Loads the library, once per process; blocks. UNSUPPORTED when it is not installed. Any thread. */
CW_MUST_USE cw_status cw_blas_load(cw_err *err);

/* c [m, ldc] = alpha * a [m, lda] b + beta * c over k; b is [k, ldb], or with `b_rows` [n, ldb] and taken
 * transposed. After cw_blas_load; any thread. */
void cw_blas_gemm(bool b_rows, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
                  int ldb, float beta, float *c, int ldc);
