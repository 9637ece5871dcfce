/*
 * The arithmetic: every function that produces a bit of a logit or a KV row, in one variant per instruction
 * set. All variants give the same bits as the scalar one (docs/NUMERICS.md says which order of operations
 * that is); bits of NaNs are outside the contract. No function here allocates, blocks (but for waiting on the
 * pool) or keeps state; all may be called by any thread in the arithmetic of cw_fp_setup. Pointers need only
 * the alignment of their element type, inputs and outputs do not overlap unless a comment says so.
 */
#pragma once
#include "cw/a8.h"
#include "cw/fmath.h"
#include "cw/pool.h"
#include "cw/type.h"
#include "cw/weight.h"

/* Changes whenever a bit of any row can change; peers with another value are refused. */
#define CW_ARITHMETIC_ID 2u

typedef enum { CW_ISA_SCALAR, CW_ISA_AVX2, CW_ISA_AVX512, CW_ISA_NEON, CW_ISA_AMX, CW_ISA_COUNT } cw_isa;

/*
 * One product y[i, :] = W x[i, :]^T: rows of x against all rows of w.
 * Quantised w reads `a8`; f32, f16 and bf16 w read `f32` (rows ldx apart). info->quantised of the weight
 * tells which.
 */
typedef struct {
    const cw_weight *w;
    const cw_a8 *a8;  /* a8->k == w->k */
    const float *f32; /* [.., ldx] */
    int64_t ldx;
    int32_t m;           /* rows of y */
    const int32_t *rows; /* [m] which row of x each row of y comes from; NULL: row i */
    float *y;            /* [m, ldy], n written per row */
    int64_t ldy;
} cw_mm;

typedef struct cw_kernels cw_kernels;
struct cw_kernels {
    cw_isa isa;
    const char *name;

    /* Panels [panel0, panel1) of rows [row0, row1) of y. Use cw_matmul unless scheduling yourself. */
    void (*matmul)(const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0, int32_t row1);

    /* x [a->k] to row `row` of a. false where a value is not finite; that block is then zero. */
    bool (*a8_quantise)(cw_a8 *a, int32_t row, const float *x);

    /* y[i] = x[i] * inv * w[i], inv = 1 / sqrt(sum(x^2) / n + eps). w NULL: no weights. y may be x. */
    void (*rms_norm)(float *y, const float *x, const float *w, int64_t n, float eps);
    /* 16-lane dot product, 16-lane sum. */
    float (*dot)(const float *a, const float *b, int64_t n);
    float (*sum)(const float *x, int64_t n);
    /* y[i] = cw_expf(x[i]). y may be x. */
    void (*exp)(float *y, const float *x, int64_t n);
    /* y[i] = g / (1 + exp(-g)) * u. y may be g or u. */
    void (*silu_mul)(float *y, const float *g, const float *u, int64_t n);
    /* y[i] = y[i] + x[i]. */
    void (*add)(float *y, const float *x, int64_t n);
    /* Rounded to nearest even, subnormals kept; and back, exactly. */
    void (*f32_to_f16)(uint16_t *y, const float *x, int64_t n);
    void (*f16_to_f32)(float *y, const uint16_t *x, int64_t n);
    /* y[i] = s[i / 32] * (float)q[i]: a row of A8 read back. n a multiple of 32; s as aligned as a float. Not
     * in the fingerprint: it serves the 8-bit KV cache, which never leaves a process. */
    void (*a8_to_f32)(float *y, const int8_t *q, const float *s, int64_t n);
    /* y[i] = y[i] / d. */
    void (*div)(float *y, float d, int64_t n);

    /*
     * Attention over one tile of keys. kv_type is CW_TYPE_F32 or CW_TYPE_F16, as the cache stores rows; ldk
     * and ldv count elements. qk: s[h * lds + j] = scale * dot(q[h * ldq ..], keys[j * ldk ..]) over dim
     * values, for n_q query rows (heads that share the keys) and n_keys keys.
     */
    void (*qk)(float *s, int64_t lds, const float *q, int64_t ldq, int n_q, uint32_t kv_type,
               const void *keys, int64_t ldk, int n_keys, int dim, float scale);
    /* In place over n >= 1 scores of one tile: s[j] = exp(s[j] - max). Returns the 16-lane sum; *max is set.
     */
    float (*softmax_tile)(float *s, int n, float *max);
    /* o[h * ldo + r] = fmaf(p[h * ldp + j], v[j * ldv + r], o[h * ldo + r]) for ascending j < n_keys, r <
     * dim. */
    void (*pv)(float *o, int64_t ldo, const float *p, int64_t ldp, int n_q, uint32_t kv_type, const void *v,
               int64_t ldv, int n_keys, int dim);

    /* y[i] to f16 with one exponent: y ~ f16 * 2^e. false where a value is not finite (or would not survive
     * the way back): outputs are then undefined. n >= 1. */
    bool (*row_to_f16)(uint16_t *row, int8_t *e, const float *y, int64_t n);
    /* y[i] = ldexp(f16(row[i]), e), rounded once where the result is subnormal. */
    void (*row_from_f16)(float *y, const uint16_t *row, int e, int64_t n);
    /* y[i] = fmaf(w, ldexp(f16(row[i]), e), y[i]). */
    void (*combine_f16)(float *y, float w, const uint16_t *row, int e, int64_t n);
    /* o[i] = fmaf(o_t[i], b, o[i] * a). */
    void (*merge)(float *o, float a, const float *o_t, float b, int64_t n);
    /* y[i] = fmaf(w, row[i], y[i]). */
    void (*combine_f32)(float *y, float w, const float *row, int64_t n);
    /* Whether every value is finite. */
    bool (*all_finite)(const float *x, int64_t n);
};

/* "scalar", "avx2", "avx512", "neon", "amx". */
const char *cw_isa_name(cw_isa isa);
CW_MUST_USE bool cw_isa_parse(const char *text, cw_isa *out);
/* NULL where this CPU (or its operating system) or this build lacks the instruction set. SCALAR is always
 * there. */
const cw_kernels *cw_kernels_get(cw_isa isa);
/* The fastest of this machine; never NULL. */
const cw_kernels *cw_kernels_best(void);

/* 64 bits over the results of built-in test rows of every type and every operation above: equal on every
 * machine and instruction set of one CW_ARITHMETIC_ID, unless compiler, memory or CPU misbehave. Allocates;
 * takes milliseconds. 0 when memory is out. */
uint64_t cw_kernels_fingerprint(const cw_kernels *kn);

/*
 * The whole product over the pool's threads (NULL: the caller alone): the matrix is split, and the rows too
 * once they are many. cw_matmul_many runs several independent products under one barrier (gate and up, heads,
 * experts).
 */
void cw_matmul(cw_pool *pool, const cw_kernels *kn, const cw_mm *mm);
void cw_matmul_many(cw_pool *pool, const cw_kernels *kn, const cw_mm *mm, int n_mm);
/* The same products as tasks for whoever runs tasks: how many there are, each cw_mm_task(job, task, any). The
 * job refers to mm. */
typedef struct {
    const cw_kernels *kn;
    const cw_mm *mm;
    int n_mm, threads;
} cw_mm_job;
CW_MUST_USE int cw_mm_tasks(cw_mm_job *job, const cw_kernels *kn, const cw_mm *mm, int n_mm, int threads);
void cw_mm_task(void *job, int task, int thread);
/* Rows x [m, ldx] into rows 0.. of a (a->m >= m). false when any value is not finite. */
CW_MUST_USE bool cw_a8_quantise_rows(cw_pool *pool, const cw_kernels *kn, cw_a8 *a, const float *x,
                                     int64_t ldx, int32_t m);

/*
 * Online softmax over tiles in ascending order, started with max = -inf, sum = 0, o = 0:
 *   m' = max(m, m_t); a = exp(m - m'), b = exp(m_t - m') (1 where equal);
 *   sum = fmaf(sum_t, b, sum * a); o[i] = fmaf(o_t[i], b, o[i] * a).
 */
void cw_softmax_merge(const cw_kernels *kn, float *max, float *sum, float *o, float max_t, float sum_t,
                      const float *o_t, int64_t n);
/* o[i] = o[i] / sum. */
void cw_softmax_finish(const cw_kernels *kn, float *o, float sum, int64_t n);
