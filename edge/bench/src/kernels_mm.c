/* Products of cw/bench_kernels.h. */
#include "cw/bench_kernels.h"
#include "cw/block.h"
#include "cw/bytes.h"
#include "cw/clock.h"
#include "cw/mem.h"

#include <stdatomic.h>

/* Weights and rows of one step, about as many as a task of a forward pass has. */
enum {
    STEP_BYTES = 256 << 10,
    STEP_PANELS = 16 /* at least: what a task of a real product has */
};

struct cw_bench_matrix {
    cw_weight w;
    void *mem;
    size_t mem_bytes;
    int32_t max_m;
    void *a8_mem;
    cw_a8 a8;
    float *x; /* [max_m, k] */
    float *y; /* [n_tasks, y_floats]: results of one step, written over and over as a layer's are */
    int n_tasks;
    size_t y_floats;
};

static uint32_t next(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*s >> 32);
}

/* Scales of a byte are exponents: among all of them most would make products subnormal, which is slow and
 * happens in no model. */
static void tame_exponents(const cw_format *f, int32_t block_bytes, uint8_t *rows, size_t bytes)
{
    for (uint8_t *at = rows; at < rows + bytes; at += block_bytes) {
        cw_block b;
        f->split(at, &b);
        b.d = 116 + b.d % 8;
        f->join(&b, at);
    }
}

/* Bytes of file rows. In block types any bytes stand for something, and without bit 6 no f16 scale can be
 * infinite, whichever byte of the block it lies in; plain floats are made of a fixed exponent. */
static void fill_rows(const cw_type_info *t, uint8_t *dst, size_t bytes, uint64_t *seed)
{
    const cw_format *f = cw_format_get(t->type);
    switch (t->type) {
    case CW_TYPE_F32:
        for (size_t i = 0; i < bytes; i += 4) cw_store_u32(dst + i, 0x3d000000 | next(seed) >> 9);
        return;
    case CW_TYPE_F16:
        for (size_t i = 0; i < bytes; i += 2) cw_store_u16(dst + i, (uint16_t)(0x2800 | next(seed) >> 22));
        return;
    case CW_TYPE_BF16:
        for (size_t i = 0; i < bytes; i += 2) cw_store_u16(dst + i, (uint16_t)(0x3d00 | next(seed) >> 25));
        return;
    default:
        for (size_t i = 0; i < bytes; i++) dst[i] = (uint8_t)(next(seed) >> 24) & 0xbf;
        if (f && f->d_form == CW_D_E8M0) tame_exponents(f, t->block_bytes, dst, bytes);
    }
}

/* --- packing, by all threads --- */

typedef struct {
    cw_weight *w;
    size_t row_bytes;
    int64_t rows_per_task;
    atomic_bool failed;
} packing;

static void pack_task(void *ctx, int task, int thread)
{
    (void)thread;
    packing *p = ctx;
    uint64_t seed = (uint64_t)task + 1;
    int64_t from = task * p->rows_per_task, n = p->w->n - from;
    if (n > p->rows_per_task) n = p->rows_per_task;
    uint8_t *rows = cw_calloc(CW_PANEL_ROWS, p->row_bytes);
    bool ok = rows != NULL;
    for (int64_t r = 0; ok && r < n; r += CW_PANEL_ROWS) {
        fill_rows(p->w->info, rows, CW_PANEL_ROWS * p->row_bytes, &seed);
        ok = cw_weight_pack(p->w, from + r, CW_PANEL_ROWS, rows, NULL) == CW_OK;
    }
    cw_free(rows);
    if (!ok) atomic_store(&p->failed, true);
}

static cw_status make_weight(cw_bench_matrix *x, uint32_t type, int64_t k, size_t bytes, cw_pool *pool,
                             cw_err *err)
{
    size_t panel;
    CW_TRY(cw_weight_bytes(type, CW_PANEL_ROWS, k, &panel, err));
    int64_t panels = (int64_t)(bytes / panel);
    if (panels < 1) panels = 1;
    CW_TRY(cw_weight_bytes(type, panels * CW_PANEL_ROWS, k, &x->mem_bytes, err));
    x->mem = cw_pages_alloc(x->mem_bytes);
    if (!x->mem) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "no memory for a matrix to multiply with");
    CW_TRY(cw_weight_init(&x->w, type, panels * CW_PANEL_ROWS, k, x->mem, err));
    packing p = {.w = &x->w, .rows_per_task = 16 * CW_PANEL_ROWS};
    CW_ASSERT(cw_type_row_bytes(type, k, &p.row_bytes));
    atomic_init(&p.failed, false);
    cw_pool_run(pool, pack_task, &p, (int)((x->w.n + p.rows_per_task - 1) / p.rows_per_task));
    if (atomic_load(&p.failed))
        return CW_FAIL(err, CW_STATUS_FORMAT, "random %s rows could not be packed", x->w.info->name);
    return CW_OK;
}

static cw_status make_rows(cw_bench_matrix *x, int32_t max_m, cw_err *err)
{
    int64_t k = x->w.k;
    size_t a8_bytes = 0, floats = 0, outs = 0;
    x->y_floats = CW_PANEL_ROWS * (STEP_BYTES / x->w.panel_bytes + STEP_PANELS * (size_t)max_m);
    bool ok = cw_mul_size((size_t)max_m, (size_t)k, &floats) &&
              cw_mul_size((size_t)x->n_tasks, x->y_floats, &outs) &&
              (k % 32 != 0 || cw_a8_bytes(max_m, k, &a8_bytes));
    x->max_m = max_m;
    if (ok) {
        x->x = cw_calloc(floats, sizeof *x->x);
        x->y = cw_calloc(outs, sizeof *x->y);
        x->a8_mem = cw_aligned_calloc(a8_bytes ? a8_bytes : 1, 1);
    }
    if (!x->x || !x->y || !x->a8_mem)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "no memory for %d rows of activations", max_m);
    uint64_t seed = 7;
    for (size_t i = 0; i < floats; i++) x->x[i] = (float)((int32_t)next(&seed) >> 8) * 0x1p-23f;
    if (!a8_bytes) return CW_OK;
    cw_a8_init(&x->a8, max_m, k, x->a8_mem);
    bool finite = cw_a8_quantise_rows(NULL, cw_kernels_best(), &x->a8, x->x, k, max_m);
    CW_ASSERT(finite);
    return CW_OK;
}

cw_status cw_bench_matrix_new(uint32_t type, int64_t k, size_t bytes, int32_t max_m, cw_pool *pool,
                              cw_bench_matrix **out, cw_err *err)
{
    CW_ASSERT(max_m >= 1);
    cw_bench_matrix *x = cw_calloc(1, sizeof *x);
    if (!x) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    x->n_tasks = cw_pool_threads(pool);
    cw_status s = make_weight(x, type, k, bytes, pool, err);
    if (s == CW_OK) s = make_rows(x, max_m, err);
    if (s != CW_OK) {
        cw_bench_matrix_free(&x);
        return s;
    }
    *out = x;
    return CW_OK;
}

void cw_bench_matrix_free(cw_bench_matrix **matrix)
{
    if (!matrix || !*matrix) return;
    cw_bench_matrix *x = *matrix;
    if (x->mem) cw_pages_free(x->mem, x->mem_bytes);
    cw_free(x->x);
    cw_free(x->y);
    cw_free(x->a8_mem);
    cw_free(x);
    *matrix = NULL;
}

/* --- running: each task walks round its own share of the panels until time is up --- */

typedef struct {
    const cw_bench_matrix *x;
    const cw_kernels *kn;
    int32_t m;
    int64_t panels_per_step;
    uint64_t ns;
    atomic_int_least64_t panels; /* done */
} running;

/* Panels [from, to) as a matrix of their own. */
static void step(const running *r, int task, int64_t from, int64_t to)
{
    const cw_bench_matrix *x = r->x;
    cw_weight w = x->w;
    w.n = (to - from) * CW_PANEL_ROWS;
    w.data += (size_t)from * w.panel_bytes;
    w.bytes = (size_t)(to - from) * w.panel_bytes;
    cw_mm mm = {
        .w = &w, .m = r->m, .f32 = x->x, .ldx = w.k, .y = x->y + (size_t)task * x->y_floats, .ldy = w.n};
    if (w.info->quantised) mm.a8 = &x->a8;
    r->kn->matmul(&mm, 0, to - from, 0, r->m);
}

static void run_task(void *ctx, int task, int thread)
{
    (void)thread;
    running *r = ctx;
    int64_t all = cw_weight_panels(&r->x->w), n = r->x->n_tasks;
    int64_t from = all * task / n, to = all * (task + 1) / n, at = from, done = 0;
    uint64_t start = cw_mono_ns();
    while (from < to && (done == 0 || cw_mono_ns() - start < r->ns)) {
        int64_t end = at + r->panels_per_step < to ? at + r->panels_per_step : to;
        step(r, task, at, end);
        done += end - at;
        at = end < to ? end : from;
    }
    atomic_fetch_add(&r->panels, done);
}

cw_bench_mm_speed cw_bench_matrix_run(cw_bench_matrix *x, const cw_kernels *kn, cw_pool *pool, int32_t m,
                                      int ms)
{
    CW_ASSERT(m >= 1 && m <= x->max_m && cw_pool_threads(pool) == x->n_tasks);
    running r = {.x = x, .kn = kn, .m = m, .ns = (uint64_t)ms * 1000000};
    r.panels_per_step = STEP_BYTES / ((int64_t)x->w.panel_bytes * m) + STEP_PANELS;
    CW_ASSERT((size_t)(r.panels_per_step * CW_PANEL_ROWS * m) <= x->y_floats);
    atomic_init(&r.panels, 0);
    uint64_t start = cw_mono_ns();
    cw_pool_run(pool, run_task, &r, x->n_tasks);
    double ns = (double)(cw_mono_ns() - start + 1), panels = (double)atomic_load(&r.panels);
    return (cw_bench_mm_speed){
        .gb_s = panels * (double)x->w.panel_bytes / ns,
        .gmac_s = panels * CW_PANEL_ROWS * (double)x->w.k * m / ns,
    };
}
