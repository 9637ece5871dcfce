/*
 * Attention of query rows over the keys and values of one layer of one session's cache.
 *
 * Keys are taken in tiles of 256 aligned to position 0, each tile's softmax apart, tiles merged in ascending
 * order. A query's result depends on its own values and the keys it sees; taking rows and heads into one call
 * only shares the reading: a tile is read back from the cache once, into f32, for all of them.
 */
#pragma once
#include "kv.h"

enum {
    CW_ATTN_TILE = 256,
    CW_ATTN_MAX_GROUP = 16,           /* heads that share keys in one call */
    CW_ATTN_MAX_ROWS = 8,             /* positions in one call */
    CW_ATTN_SCRATCH_BYTES = 32 << 20, /* of all threads together */
};

/* What part of a row are keys and values. */
typedef struct {
    int k_at, k_dim, v_at, v_dim;
    float scale;
} cw_attn_shape;

/* Working memory of one thread, and what it allows. */
typedef struct {
    size_t floats;
    int keys; /* read back at once: a whole tile unless threads are very many */
    int rows; /* positions in one call */
} cw_attn_plan;

cw_attn_plan cw_attn_plan_for(const cw_attn_shape *shape, int threads);

/*
 * Rows r = 0 .. n_rows-1 stand at positions first + r and see positions 0 .. first + r. n_q heads each: head
 * h of row r has its query at q + r * q_row + h * q_head; o likewise, written. n_rows <= plan->rows, n_q <=
 * CW_ATTN_MAX_GROUP. scratch [plan->floats], the thread's own.
 */
typedef struct {
    const cw_kernels *kn;
    const cw_attn_plan *plan;
    const cw_kv *kv;
    int layer;
    cw_attn_shape shape;
    int first, n_rows, n_q;
    const float *q;
    int64_t q_row, q_head;
    float *o;
    int64_t o_row, o_head;
    float *scratch;
} cw_attn;
void cw_attend(const cw_attn *a);
