/*
 * Who computes which part of a product. A task is a run of panels times a run of rows; the split changes with
 * the number of threads and can, because no sum crosses a panel or a row. Nothing here allocates.
 */
#include "internal.h"

#include <stdatomic.h>

/* Rows of x that stay in the second-level cache beside a panel while panels go by. */
enum {
    ROWS_PER_TASK = 64,
    CACHED_BYTES = 512 << 10, /* panels that are visited again by the next rows */
    TASKS_PER_THREAD = 6,
    MIN_TASK_BYTES = 16 << 10,
    A8_ROWS_PER_TASK = 4
};

typedef struct {
    int64_t panels, panels_per_task;
    int row_tasks, tasks;
} split;

static split split_of(const cw_mm *mm, int n_mm, int threads)
{
    split s = {.panels = cw_weight_panels(mm->w)};
    s.row_tasks = mm->m > 0 ? (mm->m + ROWS_PER_TASK - 1) / ROWS_PER_TASK : 0;
    int64_t want = threads > 1 ? ((int64_t)threads * TASKS_PER_THREAD + n_mm - 1) / n_mm : 1;
    int64_t per_task = (s.panels + want - 1) / want;
    /* A weight read for many rows is worth more than its bytes. */
    int64_t least =
        MIN_TASK_BYTES / ((int64_t)mm->w->panel_bytes * (mm->m < ROWS_PER_TASK ? mm->m : ROWS_PER_TASK) + 1);
    if (per_task < least) per_task = least;
    if (s.row_tasks > 1 && per_task > CACHED_BYTES / (int64_t)mm->w->panel_bytes)
        per_task = CACHED_BYTES / (int64_t)mm->w->panel_bytes;
    if (per_task < 1) per_task = 1;
    s.panels_per_task = per_task;
    s.tasks = (int)((s.panels + per_task - 1) / per_task) * s.row_tasks;
    return s;
}

void cw_mm_task(void *ctx, int task, int thread)
{
    (void)thread;
    const cw_mm_job *job = ctx;
    int i = 0;
    split s = split_of(&job->mm[0], job->n_mm, job->threads);
    while (task >= s.tasks) {
        task -= s.tasks;
        s = split_of(&job->mm[++i], job->n_mm, job->threads);
    }
    const cw_mm *mm = &job->mm[i];
    int64_t panel0 = task / s.row_tasks * s.panels_per_task, panel1 = panel0 + s.panels_per_task;
    int32_t row0 = task % s.row_tasks * ROWS_PER_TASK;
    int32_t row1 = mm->m - row0 < ROWS_PER_TASK ? mm->m : row0 + ROWS_PER_TASK;
    job->kn->matmul(mm, panel0, panel1 < s.panels ? panel1 : s.panels, row0, row1);
}

int cw_mm_tasks(cw_mm_job *job, const cw_kernels *kn, const cw_mm *mm, int n_mm, int threads)
{
    int tasks = 0;
    *job = (cw_mm_job){.kn = kn, .mm = mm, .n_mm = n_mm, .threads = threads};
    for (int i = 0; i < n_mm; i++) {
        CW_ASSERT(mm[i].m >= 0 &&
                  (mm[i].w->info->quantised ? mm[i].a8 && mm[i].a8->k == mm[i].w->k : mm[i].f32 != NULL));
        tasks += split_of(&mm[i], n_mm, threads).tasks;
    }
    return tasks;
}

void cw_matmul_many(cw_pool *pool, const cw_kernels *kn, const cw_mm *mm, int n_mm)
{
    cw_mm_job job;
    int tasks = cw_mm_tasks(&job, kn, mm, n_mm, cw_pool_threads(pool));
    cw_pool_run(pool, cw_mm_task, &job, tasks);
}

void cw_matmul(cw_pool *pool, const cw_kernels *kn, const cw_mm *mm)
{
    cw_matmul_many(pool, kn, mm, 1);
}

typedef struct {
    const cw_kernels *kn;
    cw_a8 *a;
    const float *x;
    int64_t ldx;
    int32_t m;
    atomic_bool bad;
} a8_job;

static void a8_task(void *ctx, int task, int thread)
{
    (void)thread;
    a8_job *job = ctx;
    int32_t row = task * A8_ROWS_PER_TASK;
    int32_t end = job->m - row < A8_ROWS_PER_TASK ? job->m : row + A8_ROWS_PER_TASK;
    for (; row < end; row++)
        if (!job->kn->a8_quantise(job->a, row, job->x + row * job->ldx)) atomic_store(&job->bad, true);
}

bool cw_a8_quantise_rows(cw_pool *pool, const cw_kernels *kn, cw_a8 *a, const float *x, int64_t ldx,
                         int32_t m)
{
    CW_ASSERT(m >= 0 && m <= a->m);
    a8_job job = {.kn = kn, .a = a, .x = x, .ldx = ldx, .m = m};
    atomic_init(&job.bad, false);
    cw_pool_run(pool, a8_task, &job, (m + A8_ROWS_PER_TASK - 1) / A8_ROWS_PER_TASK);
    return !atomic_load(&job.bad);
}

void cw_softmax_merge(const cw_kernels *kn, float *max, float *sum, float *o, float max_t, float sum_t,
                      const float *o_t, int64_t n)
{
    float m = *max > max_t ? *max : max_t;
    float a = *max == m ? 1.0f : cw_expf(*max - m), b = max_t == m ? 1.0f : cw_expf(max_t - m);
    *sum = fmaf(sum_t, b, *sum * a);
    kn->merge(o, a, o_t, b, n);
    *max = m;
}

void cw_softmax_finish(const cw_kernels *kn, float *o, float sum, int64_t n)
{
    kn->div(o, sum, n);
}
