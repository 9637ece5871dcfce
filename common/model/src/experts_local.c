/*
 * Experts of this process, and the combine order everybody shares.
 *
 * submit only notes the call; collect computes it. So any number of calls may be in flight with one reply
 * buffer, and a cancelled call costs nothing.
 */
#include "cw/expert_ffn.h"
#include "cw/mem.h"

#include <string.h>

enum { MAX_IN_FLIGHT = 8 };

typedef struct {
    cw_experts base;
    cw_expert_set *set;
    const cw_kernels *kn;
    cw_pool *pool;
    int max_rows, max_entries;
    cw_expert_scratch *scratch;
    cw_arena *arena;
    uint16_t *f16;       /* [max_entries, d_model] */
    float *f32;          /* [max_entries, d_model] */
    int8_t *e;           /* [max_entries] */
    int32_t *in_rows;    /* [max_entries] rows sorted by expert */
    int32_t *out_rows;   /* [max_entries] entries sorted by expert */
    int32_t *count;      /* [n_experts + 1] */
    cw_expert_job *jobs; /* [max_entries] */
    struct {
        bool used;
        cw_expert_call call;
    } flight[MAX_IN_FLIGHT]; /* ticket = index */
} local;

static cw_status local_submit(cw_experts *self, const cw_expert_call *call, uint64_t *ticket, cw_err *err)
{
    local *x = (local *)self;
    CW_ASSERT(call->n_rows <= x->max_rows && call->n_entries <= x->max_entries);
    for (int i = 0; i < MAX_IN_FLIGHT; i++) {
        if (x->flight[i].used) continue;
        x->flight[i].used = true;
        x->flight[i].call = *call;
        *ticket = (uint64_t)i;
        return CW_OK;
    }
    return CW_FAIL(err, CW_STATUS_LIMIT, "more than %d expert calls in flight", MAX_IN_FLIGHT);
}

/* Sorts the entries by expert, keeping their order within one, and makes a job of each expert. */
static cw_status make_jobs(local *x, const cw_expert_call *call, int *n_jobs, cw_err *err)
{
    int n_experts = cw_expert_set_n_experts(x->set);
    memset(x->count, 0, (size_t)(n_experts + 1) * sizeof *x->count);
    for (int i = 0; i < call->n_entries; i++) {
        CW_ASSERT(call->entries[i].expert < (uint32_t)n_experts);
        x->count[call->entries[i].expert + 1]++;
    }
    int jobs = 0;
    for (int e = 0; e < n_experts; e++) {
        int n = x->count[e + 1];
        int first = x->count[e];
        x->count[e + 1] += first;
        if (n == 0) continue;
        const cw_expert *expert = cw_expert_set_acquire(x->set, call->layer, e);
        if (!expert) {
            while (jobs > 0) cw_expert_release(x->jobs[--jobs].expert);
            return CW_FAIL(err, CW_STATUS_NOT_HERE, "expert %d of layer %d is not loaded", e, call->layer);
        }
        x->jobs[jobs++] = (cw_expert_job){
            .expert = expert,
            .n_rows = n,
            .a8 = call->a8,
            .x = call->x,
            .in_rows = x->in_rows + first,
            .out_rows = x->out_rows + first,
            .f16 = x->f16,
            .e = x->e,
            .f32 = x->f32,
        };
    }
    for (int i = 0; i < call->n_entries; i++) {
        int32_t at = x->count[call->entries[i].expert]++; /* from the first of its expert to the next one's */
        x->in_rows[at] = (int32_t)call->entries[i].row;
        x->out_rows[at] = i;
    }
    *n_jobs = jobs;
    return CW_OK;
}

static cw_status local_collect(cw_experts *self, uint64_t ticket, cw_expert_reply *out, cw_err *err)
{
    local *x = (local *)self;
    CW_ASSERT(ticket < MAX_IN_FLIGHT && x->flight[ticket].used);
    x->flight[ticket].used = false;
    const cw_expert_call *call = &x->flight[ticket].call;
    if (call->cancel && atomic_load(call->cancel))
        return CW_FAIL(err, CW_STATUS_CANCELLED, "stopped on request");

    int n_jobs = 0;
    CW_TRY(make_jobs(x, call, &n_jobs, err));
    cw_status s = cw_expert_run(x->kn, x->pool, x->jobs, n_jobs, x->scratch, err);
    for (int i = 0; i < n_jobs; i++) cw_expert_release(x->jobs[i].expert);
    if (s != CW_OK) return s;
    cw_reply_kind kind = cw_expert_reply_kind(cw_expert_set_shape(x->set, call->layer));
    *out = (cw_expert_reply){.kind = kind, .f16 = x->f16, .e = x->e, .f32 = x->f32};
    return CW_OK;
}

static void local_destroy(cw_experts *self)
{
    local *x = (local *)self;
    cw_expert_scratch_free(&x->scratch);
    cw_arena_free(&x->arena);
    cw_free(x);
}

static const cw_experts_vtable local_vtable = {local_submit, local_collect, local_destroy};

cw_status cw_experts_local_new(cw_expert_set *set, const cw_kernels *kn, cw_pool *pool, int max_rows,
                               int n_used, cw_experts **out, cw_err *err)
{
    size_t d_model = 0, entries = (size_t)max_rows * (size_t)n_used,
           experts = (size_t)cw_expert_set_n_experts(set) + 1;
    for (int l = 0; l < cw_expert_set_n_layers(set); l++) {
        const cw_expert_shape *s = cw_expert_set_shape(set, l);
        if (s && (size_t)s->d_model > d_model) d_model = (size_t)s->d_model;
    }
    local *x = cw_calloc(1, sizeof *x);
    if (!x) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for local experts");
    x->base.vt = &local_vtable;
    x->set = set;
    x->kn = kn;
    x->pool = pool;
    x->max_rows = max_rows;
    x->max_entries = max_rows * n_used;
    cw_status s = cw_expert_scratch_new(set, x->max_entries, &x->scratch, err);
    if (s != CW_OK) goto fail;
    size_t bytes = entries * (d_model * 6 + 1 + 4 + 4 + sizeof *x->jobs) + experts * 4 + 8 * 64;
    CW_TRY_GOTO(s, cw_arena_new(bytes, &x->arena, err));
    x->f16 = cw_arena_alloc(x->arena, entries * d_model, sizeof *x->f16);
    x->f32 = cw_arena_alloc(x->arena, entries * d_model, sizeof *x->f32);
    x->e = cw_arena_alloc(x->arena, entries, sizeof *x->e);
    x->in_rows = cw_arena_alloc(x->arena, entries, sizeof *x->in_rows);
    x->out_rows = cw_arena_alloc(x->arena, entries, sizeof *x->out_rows);
    x->count = cw_arena_alloc(x->arena, experts, sizeof *x->count);
    x->jobs = cw_arena_alloc(x->arena, entries, sizeof *x->jobs);
    CW_ASSERT(x->f16 && x->f32 && x->e && x->in_rows && x->out_rows && x->count && x->jobs);
    *out = &x->base;
    return CW_OK;
fail:
    local_destroy(&x->base);
    return s;
}

/* --- combine --- */

typedef struct {
    const cw_kernels *kn;
    int d, n_entries;
    const cw_expert_entry *entries;
    const cw_expert_reply *reply;
    float *y;
} combine;

/* The first entry of `row` or of a later one; entries are sorted. */
static int lower_bound(const combine *c, uint32_t row)
{
    int lo = 0, hi = c->n_entries;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (c->entries[mid].row < row)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static void combine_row(void *ctx, int row, int thread)
{
    (void)thread;
    const combine *c = ctx;
    float *y = c->y + (int64_t)row * c->d;
    memset(y, 0, (size_t)c->d * sizeof *y);
    for (int i = lower_bound(c, (uint32_t)row); i < c->n_entries && c->entries[i].row == (uint32_t)row; i++) {
        int64_t at = (int64_t)i * c->d;
        if (c->reply->kind == CW_REPLY_ROWS_F16)
            c->kn->combine_f16(y, c->entries[i].weight, c->reply->f16 + at, c->reply->e[i], c->d);
        else
            c->kn->combine_f32(y, c->entries[i].weight, c->reply->f32 + at, c->d);
    }
}

void cw_experts_combine(const cw_kernels *kn, cw_pool *pool, int n_rows, int d_model, int n_entries,
                        const cw_expert_entry *entries, const cw_expert_reply *reply, float *y)
{
    CW_ASSERT(reply->kind != CW_REPLY_COMBINED_F32);
    combine c = {kn, d_model, n_entries, entries, reply, y};
    cw_pool_run(pool, combine_row, &c, n_rows);
}
