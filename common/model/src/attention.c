/* See attention.h. Any thread; scratch is the thread's own. */
#include "attention.h"

#include <math.h>
#include <string.h>

size_t cw_attn_scratch_floats(int v_dim)
{
    return (size_t)CW_ATTN_MAX_GROUP * ((size_t)CW_ATTN_TILE + (size_t)v_dim + 2);
}

static const void *value_at(const cw_attn_keys *k, int position, int at)
{
    size_t elem = k->kv_type == CW_TYPE_F32 ? 4 : 2;
    return k->rows + ((size_t)position * (size_t)k->ld + (size_t)at) * elem;
}

void cw_attend(const cw_kernels *kn, const cw_attn_keys *k, const float *q, int64_t ldq, int n_q, int n_keys,
               float *o, int64_t ldo, float *scratch)
{
    CW_ASSERT(n_q <= CW_ATTN_MAX_GROUP && n_keys >= 1);
    float *scores = scratch;                                 /* [n_q, TILE] */
    float *tile = scores + CW_ATTN_MAX_GROUP * CW_ATTN_TILE; /* [n_q, v_dim] */
    float *max = tile + (size_t)CW_ATTN_MAX_GROUP * (size_t)k->v_dim;
    float *sum = max + CW_ATTN_MAX_GROUP;
    for (int h = 0; h < n_q; h++) {
        max[h] = -INFINITY;
        sum[h] = 0;
        memset(o + h * ldo, 0, (size_t)k->v_dim * sizeof *o);
    }
    for (int first = 0; first < n_keys; first += CW_ATTN_TILE) {
        int n = n_keys - first < CW_ATTN_TILE ? n_keys - first : CW_ATTN_TILE;
        kn->qk(scores, CW_ATTN_TILE, q, ldq, n_q, k->kv_type, value_at(k, first, k->k_at), k->ld, n, k->k_dim,
               k->scale);
        float tile_max[CW_ATTN_MAX_GROUP], tile_sum[CW_ATTN_MAX_GROUP];
        for (int h = 0; h < n_q; h++)
            tile_sum[h] = kn->softmax_tile(scores + h * CW_ATTN_TILE, n, &tile_max[h]);
        memset(tile, 0, (size_t)n_q * (size_t)k->v_dim * sizeof *tile);
        kn->pv(tile, k->v_dim, scores, CW_ATTN_TILE, n_q, k->kv_type, value_at(k, first, k->v_at), k->ld, n,
               k->v_dim);
        for (int h = 0; h < n_q; h++)
            cw_softmax_merge(kn, &max[h], &sum[h], o + h * ldo, tile_max[h], tile_sum[h],
                             tile + (int64_t)h * k->v_dim, k->v_dim);
    }
    for (int h = 0; h < n_q; h++) cw_softmax_finish(o + h * ldo, sum[h], k->v_dim);
}
