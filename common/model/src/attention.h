/*
 * Attention of query rows over the keys and values of one layer of one session's cache.
 *
 * Keys are taken in tiles of 256 aligned to position 0, each tile's softmax apart, tiles merged in ascending
 * order. A query's result depends on its own values and the keys it sees; grouping queries into one call only
 * shares the reading.
 */
#pragma once
#include "kv.h"

enum { CW_ATTN_TILE = 256, CW_ATTN_MAX_GROUP = 16 };

typedef struct {
    uint32_t kv_type;
    const uint8_t *rows; /* position 0 of the layer */
    int64_t ld;          /* values from one position to the next */
    int k_at, v_at;      /* where in a row keys and values begin */
    int k_dim, v_dim;
    float scale;
} cw_attn_keys;

/* Working memory of one thread: floats for scores, tile output, maxima and sums. */
size_t cw_attn_scratch_floats(int v_dim);

/* n_q <= CW_ATTN_MAX_GROUP queries q [n_q, ldq] see positions 0 .. n_keys-1; o [n_q, ldo] is written. */
void cw_attend(const cw_kernels *kn, const cw_attn_keys *k, const float *q, int64_t ldq, int n_q, int n_keys,
               float *o, int64_t ldo, float *scratch);
