/* See cw/bench_wire.h. Calls are made by the calling thread; busy threads are started and joined here. */
#include "cw/bench_wire.h"
#include "cw/clock.h"
#include "cw/mem.h"

#include <pthread.h>
#include <string.h>

/* --- load: threads that compute and touch nothing else --- */

typedef struct {
    const cw_kernels *kn;
    atomic_bool stop;
    pthread_t threads[CW_POOL_MAX_THREADS];
    int n;
} load;

static void *compute(void *arg)
{
    enum { N = 2048 };
    load *l = arg;
    float a[N], b[N];
    volatile float sink = 0;
    for (int i = 0; i < N; i++) a[i] = 0.25f, b[i] = 0.5f;
    while (!atomic_load_explicit(&l->stop, memory_order_relaxed))
        for (int i = 0; i < 64; i++) sink = sink * 0.5f + l->kn->dot(a, b, N);
    return NULL;
}

static void load_end(load *l)
{
    atomic_store(&l->stop, true);
    for (int i = 0; i < l->n; i++) pthread_join(l->threads[i], NULL);
    l->n = 0;
}

static cw_status load_begin(load *l, const cw_kernels *kn, int n, cw_err *err)
{
    l->kn = kn;
    l->n = 0;
    atomic_init(&l->stop, false);
    for (; l->n < n; l->n++) {
        if (pthread_create(&l->threads[l->n], NULL, compute, l) == 0) continue;
        load_end(l);
        return CW_FAIL(err, CW_STATUS_LIMIT, "the system gives no %d threads", n);
    }
    return CW_OK;
}

/* --- calls --- */

typedef struct {
    cw_experts *x;
    const cw_model_config *config;
    const cw_expert_shape *shapes;
    const cw_bench_wire_case *c;
    const atomic_bool *cancel;
    float *rows;
    void *a8_mem;
    cw_a8 a8;
    cw_expert_entry *entries;
    double *us; /* [calls] */
    int layer;  /* of the next call */
    uint64_t seed;
} caller;

static uint32_t next(caller *w)
{
    w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->seed >> 32);
}

/* n_used different experts a row, ascending: at each expert, by the chance that it is among those to come. */
static void choose_experts(caller *w)
{
    cw_expert_entry *e = w->entries;
    for (int r = 0; r < w->c->n_rows; r++) {
        int left = w->c->n_used;
        for (int x = 0; x < w->config->n_experts && left > 0; x++) {
            if ((int)(next(w) % (uint32_t)(w->config->n_experts - x)) >= left) continue;
            *e++ = (cw_expert_entry){.row = (uint32_t)r, .expert = (uint32_t)x, .weight = 0.125f};
            left--;
        }
    }
}

static cw_status call_once(caller *w, double *us, cw_err *err)
{
    do w->layer = (w->layer + 1) % w->config->n_layers;
    while (!w->shapes[w->layer].d_model);
    choose_experts(w);
    cw_expert_call call = {.layer = w->layer,
                           .n_rows = w->c->n_rows,
                           .d_model = w->config->d_model,
                           .kind = cw_expert_rows_kind(&w->shapes[w->layer]),
                           .a8 = &w->a8,
                           .x = w->rows,
                           .n_entries = w->c->n_rows * w->c->n_used,
                           .entries = w->entries,
                           .cancel = w->cancel};
    cw_expert_reply reply;
    uint64_t ticket, start = cw_mono_ns();
    CW_TRY(cw_experts_submit(w->x, &call, &ticket, err));
    CW_TRY(cw_experts_collect(w->x, ticket, &reply, err));
    *us = (double)(cw_mono_ns() - start) * 1e-3;
    return CW_OK;
}

static cw_status calls(caller *w, cw_bench_wire_result *out, cw_err *err)
{
    double ignored;
    for (int i = 0; i <= w->c->calls / 8; i++) CW_TRY(call_once(w, &ignored, err));
    uint64_t cpu = cw_cpu_ns();
    for (int i = 0; i < w->c->calls; i++) CW_TRY(call_once(w, &w->us[i], err));
    cpu = cw_cpu_ns() - cpu;
    cw_bench_stats s;
    cw_bench_stats_of(w->us, w->c->calls, &s);
    *out = (cw_bench_wire_result){.p50_us = s.median,
                                  .p99_us = cw_bench_quantile(w->us, w->c->calls, 0.99),
                                  .min_us = s.min,
                                  .max_us = s.max,
                                  .workers_cpu_us = -1,
                                  .service_us = -1,
                                  .own_cpu_us = w->c->busy ? -1 : (double)cpu * 1e-3 / w->c->calls};
    return CW_OK;
}

static cw_status prepare(caller *w, const cw_kernels *kn, cw_err *err)
{
    int64_t d = w->config->d_model;
    size_t floats = 0, a8_bytes = 0, n = (size_t)w->c->n_rows;
    bool ok = cw_mul_size(n, (size_t)d, &floats) && (d % 32 != 0 || cw_a8_bytes(w->c->n_rows, d, &a8_bytes));
    if (ok) {
        w->rows = cw_calloc(floats, sizeof *w->rows);
        w->a8_mem = cw_aligned_calloc(a8_bytes ? a8_bytes : 1, 1);
        w->entries = cw_calloc(n * (size_t)w->c->n_used, sizeof *w->entries);
        w->us = cw_calloc((size_t)w->c->calls, sizeof *w->us);
    }
    if (!w->rows || !w->a8_mem || !w->entries || !w->us)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for calls of %d rows", w->c->n_rows);
    for (size_t i = 0; i < floats; i++) w->rows[i] = (float)((int32_t)next(w) >> 8) * 0x1p-23f;
    if (!a8_bytes) return CW_OK;
    cw_a8_init(&w->a8, w->c->n_rows, d, w->a8_mem);
    bool finite = cw_a8_quantise_rows(NULL, kn, &w->a8, w->rows, d, w->c->n_rows);
    CW_ASSERT(finite);
    return CW_OK;
}

cw_status cw_bench_wire_run(cw_experts *x, const cw_model_config *config, const cw_expert_shape *shapes,
                            const cw_kernels *kn, const cw_bench_wire_case *c, const atomic_bool *cancel,
                            cw_bench_wire_result *out, cw_err *err)
{
    CW_ASSERT(c->n_rows >= 1 && c->calls >= 1 && c->busy >= 0 && c->busy <= CW_POOL_MAX_THREADS);
    if (config->n_experts == 0 || config->n_dense >= config->n_layers)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "%s has no experts that a cluster could hold",
                       config->name);
    CW_ASSERT(c->n_used >= 1 && c->n_used <= config->n_experts);
    caller w = {.x = x, .config = config, .shapes = shapes, .c = c, .cancel = cancel, .layer = -1, .seed = 3};
    load l = {0};
    cw_status s = prepare(&w, kn, err);
    if (s == CW_OK) s = load_begin(&l, kn, c->busy, err);
    if (s == CW_OK) {
        s = calls(&w, out, err);
        load_end(&l);
    }
    cw_free(w.rows);
    cw_free(w.a8_mem);
    cw_free(w.entries);
    cw_free(w.us);
    return s;
}
