/* All kernels but products (cw/bench_kernels.h): a table of calls on operands in the first-level cache. */
#include "cw/bench_kernels.h"
#include "cw/clock.h"
#include "cw/mem.h"

#include <math.h>
#include <string.h>

/* A hidden row of the smaller models; a tile of attention: 16 heads against 64 keys of 576 values would leave
 * the first-level cache, so keys are few. */
enum { N = 2048, HEADS = 16, KEYS = 16, DIM = 512, CALLS = 16 };

typedef struct {
    float *x, *y, *w; /* [N], in (0, 1) and for y results */
    float *keys32;    /* [KEYS, DIM] */
    uint16_t *keys16; /* the same */
    float *q, *s;     /* [HEADS, DIM], [HEADS, KEYS] */
    uint16_t *row;    /* [N] */
    void *a8_mem;
    cw_a8 a8; /* one row of N */
    float sink;
} operands;

/* `values` and `bytes` of one call. */
typedef struct {
    const char *name;
    double values, bytes;
    void (*call)(const cw_kernels *kn, operands *o);
} op;

/* Results that come back as numbers go to o->sink, so that the compiler keeps the call. */
static void op_a8(const cw_kernels *kn, operands *o)
{
    o->sink += kn->a8_quantise(&o->a8, 0, o->x);
}
static void op_rms(const cw_kernels *kn, operands *o)
{
    kn->rms_norm(o->y, o->x, o->w, N, 1e-6f);
}
static void op_dot(const cw_kernels *kn, operands *o)
{
    o->sink += kn->dot(o->x, o->w, N);
}
static void op_sum(const cw_kernels *kn, operands *o)
{
    o->sink += kn->sum(o->x, N);
}
static void op_exp(const cw_kernels *kn, operands *o)
{
    kn->exp(o->y, o->x, N);
}
static void op_silu(const cw_kernels *kn, operands *o)
{
    kn->silu_mul(o->y, o->x, o->w, N);
}
/* Adding and combining grow y; it is cleared by the operations that write it, long before it overflows. */
static void op_add(const cw_kernels *kn, operands *o)
{
    kn->add(o->y, o->x, N);
}
static void op_to16(const cw_kernels *kn, operands *o)
{
    kn->f32_to_f16(o->row, o->x, N);
}
static void op_from16(const cw_kernels *kn, operands *o)
{
    kn->f16_to_f32(o->y, o->row, N);
}
static void op_softmax(const cw_kernels *kn, operands *o)
{
    float max;
    memcpy(o->y, o->x, 256 * sizeof *o->y);
    o->sink += kn->softmax_tile(o->y, 256, &max);
}
static void op_row(const cw_kernels *kn, operands *o)
{
    int8_t e;
    o->sink += kn->row_to_f16(o->row, &e, o->x, N);
}
static void op_unrow(const cw_kernels *kn, operands *o)
{
    kn->row_from_f16(o->y, o->row, -14, N);
}
static void op_comb16(const cw_kernels *kn, operands *o)
{
    kn->combine_f16(o->y, 0x1p-20f, o->row, -14, N);
}
static void op_comb32(const cw_kernels *kn, operands *o)
{
    kn->combine_f32(o->y, 0x1p-20f, o->x, N);
}
static void op_merge(const cw_kernels *kn, operands *o)
{
    kn->merge(o->y, 0.5f, o->x, 0.5f, N);
}
static void op_finite(const cw_kernels *kn, operands *o)
{
    o->sink += kn->all_finite(o->x, N);
}
static void op_qk32(const cw_kernels *kn, operands *o)
{
    kn->qk(o->s, KEYS, o->q, DIM, HEADS, CW_TYPE_F32, o->keys32, DIM, KEYS, DIM, 0.04f);
}
static void op_qk16(const cw_kernels *kn, operands *o)
{
    kn->qk(o->s, KEYS, o->q, DIM, HEADS, CW_TYPE_F16, o->keys16, DIM, KEYS, DIM, 0.04f);
}
/* The queries' memory takes the sums: what they hold does not matter, and p is small. */
static void op_pv32(const cw_kernels *kn, operands *o)
{
    kn->pv(o->q, DIM, o->x, KEYS, HEADS, CW_TYPE_F32, o->keys32, DIM, KEYS, DIM);
}
static void op_pv16(const cw_kernels *kn, operands *o)
{
    kn->pv(o->q, DIM, o->x, KEYS, HEADS, CW_TYPE_F16, o->keys16, DIM, KEYS, DIM);
}

#define MACS       ((double)HEADS * KEYS * DIM)
#define TILE(size) (HEADS * (DIM + KEYS) * 4.0 + (double)KEYS * DIM * (size))

static const op ops[] = {
    {"a8_quantise", N, N * 5.4, op_a8},
    {"rms_norm", N, N * 12.0, op_rms},
    {"dot", N, N * 8.0, op_dot},
    {"sum", N, N * 4.0, op_sum},
    {"exp", N, N * 8.0, op_exp},
    {"silu_mul", N, N * 12.0, op_silu},
    {"f32_to_f16", N, N * 6.0, op_to16},
    {"f16_to_f32", N, N * 6.0, op_from16},
    {"add", N, N * 12.0, op_add},
    {"softmax_tile", 256, 256 * 8.0, op_softmax},
    {"row_to_f16", N, N * 6.0, op_row},
    {"row_from_f16", N, N * 6.0, op_unrow},
    {"combine_f16", N, N * 10.0, op_comb16},
    {"combine_f32", N, N * 12.0, op_comb32},
    {"merge", N, N * 12.0, op_merge},
    {"all_finite", N, N * 4.0, op_finite},
    {"qk f32", MACS, TILE(4), op_qk32},
    {"qk f16", MACS, TILE(2), op_qk16},
    {"pv f32", MACS, TILE(4), op_pv32},
    {"pv f16", MACS, TILE(2), op_pv16},
};
_Static_assert(CW_ARRAY_LEN(ops) <= CW_BENCH_MAX_OPS, "room for all");

static bool operands_new(operands *o)
{
    size_t a8_bytes;
    *o = (operands){0};
    CW_ASSERT(cw_a8_bytes(1, N, &a8_bytes));
    o->x = cw_aligned_calloc(N, sizeof *o->x);
    o->y = cw_aligned_calloc(N, sizeof *o->y);
    o->w = cw_aligned_calloc(N, sizeof *o->w);
    o->keys32 = cw_aligned_calloc((size_t)KEYS * DIM, sizeof *o->keys32);
    o->keys16 = cw_aligned_calloc((size_t)KEYS * DIM, sizeof *o->keys16);
    o->q = cw_aligned_calloc((size_t)HEADS * DIM, sizeof *o->q);
    o->s = cw_aligned_calloc((size_t)HEADS * KEYS, sizeof *o->s);
    o->row = cw_aligned_calloc(N, sizeof *o->row);
    o->a8_mem = cw_aligned_calloc(a8_bytes, 1);
    if (!o->x || !o->y || !o->w || !o->keys32 || !o->keys16 || !o->q || !o->s || !o->row || !o->a8_mem)
        return false;
    cw_a8_init(&o->a8, 1, N, o->a8_mem);
    for (int i = 0; i < N; i++) {
        o->x[i] = (float)(i * 37 % 1024 + 1) * 0x1p-11f;
        o->w[i] = (float)(i * 53 % 1024 + 1) * 0x1p-10f;
    }
    for (int i = 0; i < KEYS * DIM; i++) o->keys32[i] = (float)(i * 29 % 1024 - 512) * 0x1p-10f;
    for (int i = 0; i < HEADS * DIM; i++) o->q[i] = (float)(i * 31 % 1024 - 512) * 0x1p-10f;
    cw_kernels_best()->f32_to_f16(o->keys16, o->keys32, (int64_t)KEYS * DIM);
    cw_kernels_best()->f32_to_f16(o->row, o->x, N);
    return true;
}

static void operands_drop(operands *o)
{
    void *all[] = {o->x, o->y, o->w, o->keys32, o->keys16, o->q, o->s, o->row, o->a8_mem};
    for (size_t i = 0; i < CW_ARRAY_LEN(all); i++) cw_free(all[i]);
}

/* Calls a nanosecond. */
static double rate(const op *p, const cw_kernels *kn, operands *o, int ms)
{
    uint64_t start = cw_mono_ns(), ns, calls = 0;
    do {
        for (int i = 0; i < CALLS; i++) p->call(kn, o);
        calls += CALLS;
        ns = cw_mono_ns() - start;
    } while (ns < (uint64_t)ms * 1000000);
    return (double)calls / (double)(ns ? ns : 1);
}

int cw_bench_ops_run(const cw_kernels *kn, int ms, int rounds, cw_bench_op_speed *out)
{
    CW_ASSERT(rounds >= 1 && rounds <= CW_BENCH_MAX_ROUNDS);
    operands o;
    if (!operands_new(&o)) {
        operands_drop(&o);
        return -1;
    }
    cw_fp_setup();
    for (size_t i = 0; i < CW_ARRAY_LEN(ops); i++) {
        double v[CW_BENCH_MAX_ROUNDS];
        cw_bench_stats s;
        for (int r = 0; r < rounds; r++) {
            memset(o.y, 0, N * sizeof *o.y);
            v[r] = rate(&ops[i], kn, &o, ms);
        }
        cw_bench_stats_of(v, rounds, &s);
        out[i] = (cw_bench_op_speed){
            .name = ops[i].name, .values_s = s.median * ops[i].values, .gb_s = s.median * ops[i].bytes};
    }
    operands_drop(&o);
    return (int)CW_ARRAY_LEN(ops);
}
