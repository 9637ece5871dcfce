/*
 * The feed-forward of routed experts: down(silu(gate x) * (up x)), for all jobs of a run together.
 *
 * The run has phases, each over all jobs, with one barrier between: products of gate and up; SwiGLU and its
 * quantisation, row by row; products of down; rounding of the output rows. What a row gets depends on that
 * row and its expert only. The rounding is part of the result wherever it is computed, in this process or
 * another.
 */
#include "expert_internal.h"
#include "cw/kernels.h"
#include "cw/mem.h"

#include <string.h>

struct cw_expert_scratch {
    int max_rows, d_model, d_ff; /* the largest of the set's shapes */
    cw_arena *arena;
    float *gate, *up; /* [max_rows, d_ff]; the SwiGLU product is formed in gate */
    float *y;         /* [max_rows, d_model] */
    cw_a8 h;          /* max_rows of d_ff: the quantised product */
    cw_a8 x;         /* max_rows of d_model: inputs quantised here, for layers where one of gate and up is not
                        quantised */
    cw_a8 *views;    /* [2 * max_rows] of h and x, one pair a job */
    cw_mm *mm;       /* [2 * max_rows] */
    int32_t *job_of; /* [max_rows] */
    int32_t *first;  /* [max_rows] first row of each job */
    uint8_t *bad;    /* [max_rows] */
};

/* --- scratch --- */

static bool alloc_a8(cw_arena *a, cw_a8 *out, int rows, int k)
{
    size_t bytes;
    k = (k + 31) / 32 * 32;
    if (!cw_a8_bytes(rows, k, &bytes)) return false;
    void *mem = cw_arena_alloc(a, bytes, 1);
    if (mem) cw_a8_init(out, rows, k, mem);
    return mem != NULL;
}

static size_t scratch_bytes(int rows, int d_model, int d_ff)
{
    /* f32: gate, up, y; A8 with its derived arrays takes less than
     * 2 bytes a value; the rest is small and rounded up. */
    size_t per_row =
        (size_t)d_ff * (4 + 4 + 2) + (size_t)d_model * (4 + 2) + 2 * sizeof(cw_a8) + 2 * sizeof(cw_mm) + 256;
    return (size_t)rows * per_row + (1 << 16);
}

cw_status cw_expert_scratch_new(const cw_expert_set *set, int max_rows, cw_expert_scratch **out, cw_err *err)
{
    if (max_rows < 1 || max_rows > 1 << 20)
        return CW_FAIL(err, CW_STATUS_INVALID, "scratch for %d rows", max_rows);
    cw_expert_scratch *s = cw_calloc(1, sizeof *s);
    if (!s) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for expert scratch");
    s->max_rows = max_rows;
    for (int l = 0; l < cw_expert_set_n_layers(set); l++) {
        const cw_expert_shape *shape = cw_expert_set_shape(set, l);
        if (!shape) continue;
        if (shape->d_model > s->d_model) s->d_model = shape->d_model;
        if (shape->d_ff > s->d_ff) s->d_ff = shape->d_ff;
    }
    cw_status st = cw_arena_new(scratch_bytes(max_rows, s->d_model, s->d_ff), &s->arena, err);
    if (st != CW_OK) {
        cw_free(s);
        return st;
    }
    size_t n = (size_t)max_rows;
    s->gate = cw_arena_alloc(s->arena, n * (size_t)s->d_ff, sizeof *s->gate);
    s->up = cw_arena_alloc(s->arena, n * (size_t)s->d_ff, sizeof *s->up);
    s->y = cw_arena_alloc(s->arena, n * (size_t)s->d_model, sizeof *s->y);
    s->views = cw_arena_alloc(s->arena, 2 * n, sizeof *s->views);
    s->mm = cw_arena_alloc(s->arena, 2 * n, sizeof *s->mm);
    s->job_of = cw_arena_alloc(s->arena, n, sizeof *s->job_of);
    s->first = cw_arena_alloc(s->arena, n, sizeof *s->first);
    s->bad = cw_arena_alloc(s->arena, n, 1);
    bool ok = alloc_a8(s->arena, &s->h, max_rows, s->d_ff) && alloc_a8(s->arena, &s->x, max_rows, s->d_model);
    CW_ASSERT(ok && s->gate && s->up && s->y && s->views && s->mm && s->job_of && s->first && s->bad);
    *out = s;
    return CW_OK;
}

void cw_expert_scratch_free(cw_expert_scratch **s)
{
    if (!s || !*s) return;
    cw_arena_free(&(*s)->arena);
    cw_free(*s);
    *s = NULL;
}

int cw_expert_scratch_max_rows(const cw_expert_scratch *s)
{
    return s->max_rows;
}

/* --- a run --- */

typedef struct {
    const cw_kernels *kn;
    cw_expert_job *jobs;
    cw_expert_scratch *s;
} run;

static bool quantised(const cw_weight *w)
{
    return w->info->quantised;
}

/* gate and up are not both quantised, but one is: it reads rows quantised here. */
static bool is_mixed(const cw_expert *e)
{
    return quantised(&e->w[CW_SLICE_GATE]) != quantised(&e->w[CW_SLICE_UP]);
}

static int32_t in_row(const cw_expert_job *j, int i)
{
    return j->in_rows ? j->in_rows[i] : i;
}

static void quantise_input(void *ctx, int row, int thread)
{
    (void)thread;
    run *r = ctx;
    int job = r->s->job_of[row], i = row - r->s->first[job];
    const cw_expert_job *j = &r->jobs[job];
    if (!is_mixed(j->expert)) return;
    const float *x = j->x + (int64_t)in_row(j, i) * j->expert->shape.d_model;
    r->s->bad[row] |= !r->kn->a8_quantise(&r->s->views[2 * job + 1], i, x);
}

static void multiply_and_quantise(void *ctx, int row, int thread)
{
    (void)thread;
    run *r = ctx;
    int job = r->s->job_of[row];
    const cw_expert *e = r->jobs[job].expert;
    float *gate = r->s->gate + (int64_t)row * r->s->d_ff, *up = r->s->up + (int64_t)row * r->s->d_ff;
    r->kn->silu_mul(gate, gate, up, e->shape.d_ff);
    if (quantised(&e->w[CW_SLICE_DOWN]))
        r->s->bad[row] |= !r->kn->a8_quantise(&r->s->views[2 * job], row - r->s->first[job], gate);
}

static void round_output(void *ctx, int row, int thread)
{
    (void)thread;
    run *r = ctx;
    int job = r->s->job_of[row], i = row - r->s->first[job];
    const cw_expert_job *j = &r->jobs[job];
    int d = j->expert->shape.d_model;
    int64_t to = j->out_rows ? j->out_rows[i] : i;
    const float *y = r->s->y + (int64_t)row * r->s->d_model;
    if (quantised(&j->expert->w[CW_SLICE_DOWN])) {
        r->s->bad[row] |= !r->kn->row_to_f16(j->f16 + to * d, &j->e[to], y, d);
    } else {
        r->s->bad[row] |= !r->kn->all_finite(y, d);
        memcpy(j->f32 + to * d, y, (size_t)d * sizeof *y);
    }
}

/* One product of a job's rows with gate or up, into rows first.. of y. */
static cw_mm input_product(const run *r, int job, int slice, float *y)
{
    const cw_expert_job *j = &r->jobs[job];
    const cw_expert *e = j->expert;
    cw_mm mm = {.w = &e->w[slice], .m = j->n_rows, .rows = j->in_rows, .ldy = r->s->d_ff};
    mm.y = y + (int64_t)r->s->first[job] * r->s->d_ff;
    if (!quantised(mm.w)) {
        mm.f32 = j->x;
        mm.ldx = e->shape.d_model;
    } else if (is_mixed(e)) {
        mm.a8 = &r->s->views[2 * job + 1];
        mm.rows = NULL; /* they were gathered when quantised */
    } else {
        mm.a8 = j->a8;
    }
    return mm;
}

static cw_mm output_product(const run *r, int job)
{
    const cw_expert_job *j = &r->jobs[job];
    cw_mm mm = {.w = &j->expert->w[CW_SLICE_DOWN], .m = j->n_rows, .ldx = r->s->d_ff, .ldy = r->s->d_model};
    mm.a8 = &r->s->views[2 * job];
    mm.f32 = r->s->gate + (int64_t)r->s->first[job] * r->s->d_ff;
    mm.y = r->s->y + (int64_t)r->s->first[job] * r->s->d_model;
    return mm;
}

/* Numbers the rows of all jobs; returns how many, and whether any layer is mixed. */
static int lay_out(run *r, int n_jobs, bool *mixed)
{
    int n = 0;
    *mixed = false;
    for (int i = 0; i < n_jobs; i++) {
        const cw_expert_job *j = &r->jobs[i];
        const cw_expert_shape *shape = &j->expert->shape;
        CW_ASSERT(i < r->s->max_rows && j->n_rows >= 1 && j->n_rows <= r->s->max_rows - n);
        r->s->first[i] = n;
        if (quantised(&j->expert->w[CW_SLICE_DOWN]))
            r->s->views[2 * i] = cw_a8_view(&r->s->h, n, j->n_rows, 0, shape->d_ff);
        if (is_mixed(j->expert)) {
            r->s->views[2 * i + 1] = cw_a8_view(&r->s->x, n, j->n_rows, 0, shape->d_model);
            *mixed = true;
        }
        for (int row = 0; row < j->n_rows; row++) r->s->job_of[n++] = i;
    }
    memset(r->s->bad, 0, (size_t)n);
    return n;
}

static cw_status report(run *r, int n_jobs, cw_err *err)
{
    const cw_expert *first_bad = NULL;
    for (int i = 0; i < n_jobs; i++) {
        cw_expert_job *j = &r->jobs[i];
        const uint8_t *bad = r->s->bad + r->s->first[i];
        j->n_bad = 0;
        for (int row = 0; row < j->n_rows; row++) j->n_bad += bad[row];
        if (j->bad) memcpy(j->bad, bad, (size_t)j->n_rows);
        if (j->n_bad && !first_bad) first_bad = j->expert;
    }
    if (!first_bad) return CW_OK;
    return CW_FAIL(err, CW_STATUS_NUMERIC, "layer %d, expert %d: the output is not finite", first_bad->layer,
                   first_bad->id);
}

cw_status cw_expert_run(const cw_kernels *kn, cw_pool *pool, cw_expert_job *jobs, int n_jobs,
                        cw_expert_scratch *scratch, cw_err *err)
{
    if (n_jobs == 0) return CW_OK;
    run r = {kn, jobs, scratch};
    bool mixed;
    int n_rows = lay_out(&r, n_jobs, &mixed);

    if (mixed) cw_pool_run(pool, quantise_input, &r, n_rows);
    for (int i = 0; i < n_jobs; i++) {
        scratch->mm[2 * i] = input_product(&r, i, CW_SLICE_GATE, scratch->gate);
        scratch->mm[2 * i + 1] = input_product(&r, i, CW_SLICE_UP, scratch->up);
    }
    cw_matmul_many(pool, kn, scratch->mm, 2 * n_jobs);
    cw_pool_run(pool, multiply_and_quantise, &r, n_rows);
    for (int i = 0; i < n_jobs; i++) scratch->mm[i] = output_product(&r, i);
    cw_matmul_many(pool, kn, scratch->mm, n_jobs);
    cw_pool_run(pool, round_output, &r, n_rows);
    return report(&r, n_jobs, err);
}
