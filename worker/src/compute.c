/*
 * The compute stage: gathers the rows of a job, runs the experts, puts the results where the job wants them.
 * Its thread does no I/O and touches nothing of the machine but the job it was lent.
 */
#include <string.h>

#include "cw/mem.h"
#include "shell_internal.h"

struct compute {
    compute_config c;
    cw_expert_set *set;
    size_t d;
    cw_expert_scratch *scratch;
    cw_a8 a8;
    void *a8_mem;
    float *x, *f32;
    uint16_t *f16;
    int8_t *e;
    uint8_t *bad;
    int32_t *in_order; /* 0, 1, 2, ... */
    cw_expert_job *jobs;
    cw_queue *in, *out;
    pthread_t thread;
    bool running;
};

static bool buffers(compute *c)
{
    size_t m = c->c.rows_max, bytes;
    c->x = cw_aligned_calloc(m, c->d * sizeof(float));
    c->f32 = cw_aligned_calloc(m, c->d * sizeof(float));
    c->f16 = cw_aligned_calloc(m, c->d * sizeof(uint16_t));
    c->e = cw_calloc(m, 1);
    c->bad = cw_calloc(m, 1);
    c->in_order = cw_calloc(m, sizeof *c->in_order);
    c->jobs = cw_calloc(m, sizeof *c->jobs);
    if (!c->x || !c->f32 || !c->f16 || !c->e || !c->bad || !c->in_order || !c->jobs) return false;
    for (size_t i = 0; i < m; i++) c->in_order[i] = (int32_t)i;
    if (c->d % 32) return true; /* such a model has f32 rows only */
    if (!cw_a8_bytes((int64_t)m, (int64_t)c->d, &bytes) || !(c->a8_mem = cw_aligned_calloc(bytes, 1)))
        return false;
    cw_a8_init(&c->a8, (int32_t)m, (int64_t)c->d, c->a8_mem);
    return true;
}

static void *run(void *arg)
{
    compute *c = arg;
    cw_fp_setup();
    cw_pool_settle(c->c.pool);
    for (;;) {
        cw_job *job = cw_queue_pop_wait(c->in, -1);
        if (!job) {
            if (cw_queue_closed(c->in)) return NULL;
            continue;
        }
        compute_now(c, job);
        CW_ASSERT(cw_queue_push(c->out, job) == CW_OK); /* as large as the machine's number of jobs */
        c->c.wake(c->c.wake_ctx);
    }
}

cw_status compute_new(const compute_config *config, cw_expert_set *set, uint32_t d_model, compute **out,
                      cw_err *err)
{
    compute *c = cw_calloc(1, sizeof *c);
    if (!c) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the compute stage");
    c->c = *config;
    c->set = set;
    c->d = d_model;
    cw_status s =
        buffers(c) ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the compute stage");
    if (s == CW_OK) s = cw_expert_scratch_new(set, (int)config->rows_max, &c->scratch, err);
    if (s == CW_OK && config->wake) {
        s = cw_queue_new(16, NULL, &c->in, err);
        if (s == CW_OK) s = cw_queue_new(16, NULL, &c->out, err);
        if (s == CW_OK && pthread_create(&c->thread, NULL, run, c) != 0)
            s = CW_FAIL(err, CW_STATUS_LIMIT, "no thread for the compute stage");
        c->running = s == CW_OK;
    }
    if (s != CW_OK)
        compute_free(&c);
    else
        *out = c;
    return s;
}

void compute_free(compute **cp)
{
    if (!cp || !*cp) return;
    compute *c = *cp;
    if (c->running) {
        cw_queue_close(c->in);
        pthread_join(c->thread, NULL);
    }
    cw_queue_free(&c->in);
    cw_queue_free(&c->out);
    cw_expert_scratch_free(&c->scratch);
    cw_free(c->a8_mem);
    cw_free(c->x);
    cw_free(c->f32);
    cw_free(c->f16);
    cw_free(c->e);
    cw_free(c->bad);
    cw_free(c->in_order);
    cw_free(c->jobs);
    cw_free(c);
    *cp = NULL;
}

static void gather(compute *c, const cw_job *job)
{
    for (uint32_t i = 0; i < job->n_rows; i++) {
        const cw_job_row *r = &job->rows[i];
        /* The machine's view of the call has checked every value; false would be our own bug. */
        if (r->q)
            CW_ASSERT(cw_a8_set_row(&c->a8, (int32_t)i, r->q, r->s));
        else
            memcpy(c->x + i * c->d, r->x, c->d * sizeof(float));
    }
}

static void scatter(compute *c, cw_job *job)
{
    for (uint32_t i = 0; i < job->n_rows; i++) {
        cw_job_row *r = &job->rows[i];
        r->bad = c->bad[i];
        if (r->e) {
            memcpy(r->out, c->f16 + i * c->d, c->d * sizeof(uint16_t));
            *r->e = c->e[i];
        } else {
            memcpy(r->out, c->f32 + i * c->d, c->d * sizeof(float));
        }
    }
}

void compute_now(compute *c, cw_job *job)
{
    CW_ASSERT(job->n_rows <= c->c.rows_max);
    gather(c, job);
    bool a8 = job->n_rows && job->rows[0].q, f16 = job->n_rows && job->rows[0].e; /* a job is of one layer */
    for (uint32_t i = 0; i < job->n_experts; i++) {
        const cw_job_expert *x = &job->experts[i];
        const cw_expert *held = cw_expert_set_acquire(c->set, (int)x->layer, (int)x->expert);
        CW_ASSERT(held); /* the machine unloads nothing under a job */
        c->jobs[i] = (cw_expert_job){.expert = held,
                                     .n_rows = (int)x->n,
                                     .a8 = a8 ? &c->a8 : NULL,
                                     .x = a8 ? NULL : c->x,
                                     .in_rows = c->in_order + x->first,
                                     .out_rows = c->in_order + x->first,
                                     .f16 = f16 ? c->f16 : NULL,
                                     .e = f16 ? c->e : NULL,
                                     .f32 = f16 ? NULL : c->f32,
                                     .bad = c->bad + x->first};
    }
    cw_err err = {0};
    cw_status s = cw_expert_run(c->c.kernels, c->c.pool, c->jobs, (int)job->n_experts, c->scratch, &err);
    for (uint32_t i = 0; i < job->n_experts; i++) cw_expert_release(c->jobs[i].expert);
    if (s != CW_OK && s != CW_STATUS_NUMERIC)
        memset(c->bad, 1, job->n_rows); /* nothing of it is to be used */
    scatter(c, job);
}

void compute_submit(compute *c, cw_job *job)
{
    CW_ASSERT(cw_queue_push(c->in, job) == CW_OK);
}

cw_job *compute_take(compute *c)
{
    return c->out ? cw_queue_pop(c->out) : NULL;
}
