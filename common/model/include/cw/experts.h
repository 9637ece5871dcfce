/*
 * The experts interface: how the engine asks for routed experts' outputs without knowing where they are.
 *
 * An expert call is a pure function (layer, expert, activation row) -> output row, so implementations may
 * resend, hedge, reorder and coalesce as they like. Implementations: local (this room), remote (edge),
 * recorded (tests).
 *
 * Protocol, all from the engine's thread: submit() may return at once; every submit that returned CW_OK is
 * followed by exactly one collect() with its ticket, also after a cancellation. Several tickets may be in
 * flight; they are collected in any order. The call's memory stays valid and unchanged until its collect
 * returned. A reply is borrowed until the next submit or collect on the same object.
 */
#pragma once
#include <stdatomic.h>
#include "cw/a8.h"
#include "cw/kernels.h"
#include "cw/pool.h"
#include "cw/status.h"

/* How activation rows travel: A8 where gate and up are both quantised, f32 otherwise (docs/NUMERICS.md). */
typedef enum { CW_ROWS_A8, CW_ROWS_F32 } cw_rows_kind;

typedef enum {
    CW_REPLY_ROWS_F16 = 0,     /* one f16 row and an int8 exponent per entry; for quantised ffn_down_exps */
    CW_REPLY_ROWS_F32 = 1,     /* one f32 row per entry; for f32/f16/bf16 ffn_down_exps */
    CW_REPLY_COMBINED_F32 = 2, /* one f32 row per activation row: the entries already combined, from +0 */
} cw_reply_kind;

/* One (row, expert) pair. `weight` is the router's final weight, scale included. */
typedef struct {
    uint32_t row; /* index into the call's rows */
    uint32_t expert;
    float weight;
} cw_expert_entry;

typedef struct {
    int layer;
    uint32_t stream; /* the conversation its rows are of, the oldest of them in a batch; 0: not told */
    int n_rows, d_model;
    cw_rows_kind kind;
    const cw_a8 *a8; /* A8: n_rows rows of d_model values; what travels is each row's cw_a8_q and cw_a8_s */
    const float *x;  /* F32: [n_rows, d_model] */
    int n_entries;
    const cw_expert_entry *entries; /* ascending by (row, expert), no pair twice, every row at least once */
    const atomic_bool *cancel;      /* NULL, or: when it becomes true, collect returns CANCELLED soon */
} cw_expert_call;

typedef struct {
    cw_reply_kind kind;
    const uint16_t *f16; /* ROWS_F16: [n_entries, d_model] in the order of the call's entries */
    const int8_t *e;     /* ROWS_F16: [n_entries]; value = f16 * 2^e */
    const float *f32;    /* ROWS_F32: [n_entries, d_model]; COMBINED_F32: [n_rows, d_model] */
} cw_expert_reply;

typedef struct cw_experts cw_experts;

typedef struct {
    /* Starts the call; *ticket is the implementation's to choose. */
    cw_status (*submit)(cw_experts *self, const cw_expert_call *call, uint64_t *ticket, cw_err *err);
    /* Blocks until every row of that call is in, or fails: CANCELLED, UNREACHABLE, NUMERIC (names layer and
       expert), ... After a failure the ticket is gone and nothing refers to the call's memory any more. */
    cw_status (*collect)(cw_experts *self, uint64_t ticket, cw_expert_reply *out, cw_err *err);
    void (*destroy)(cw_experts *self);
} cw_experts_vtable;

/* Implementations embed this as their first member. */
struct cw_experts {
    const cw_experts_vtable *vt;
    /* Other processes of this very machine compute them: an engine that uses all its cores does its own work
     * in the gaps that they leave (cw/filler.h). */
    bool on_our_cores;
};

CW_MUST_USE static inline cw_status cw_experts_submit(cw_experts *x, const cw_expert_call *call,
                                                      uint64_t *ticket, cw_err *err)
{
    return x->vt->submit(x, call, ticket, err);
}
CW_MUST_USE static inline cw_status cw_experts_collect(cw_experts *x, uint64_t ticket, cw_expert_reply *out,
                                                       cw_err *err)
{
    return x->vt->collect(x, ticket, out, err);
}
static inline void cw_experts_free(cw_experts **x)
{
    if (!x || !*x) return;
    (*x)->vt->destroy(*x);
    *x = NULL;
}

/*
 * Experts of one process, computed by the calling thread and the pool (NULL: alone). Neither set nor pool is
 * owned; both outlive it. Calls may have at most max_rows rows and max_rows * n_used entries. NOT_HERE when
 * the set lacks an expert.
 */
struct cw_expert_set;
CW_MUST_USE cw_status cw_experts_local_new(struct cw_expert_set *set, const cw_kernels *kn, cw_pool *pool,
                                           int max_rows, int n_used, cw_experts **out, cw_err *err);

/*
 * The one combine order of the project, for whoever holds all rows of a token (engine, worker, combiner):
 * from +0, y = fmaf(weight, row, y) in ascending expert id. `reply` must be of a ROWS kind. Writes y [n_rows,
 * d_model]; rows that have no entry become +0. n_entries and entries as in cw_expert_call.
 */
void cw_experts_combine(const cw_kernels *kn, cw_pool *pool, int n_rows, int d_model, int n_entries,
                        const cw_expert_entry *entries, const cw_expert_reply *reply, float *y);
