/*
 * The KV cache of one session: for every layer and position one row. Multi-head latent attention stores the
 * normalised latent and the rotated key part (shared by all heads); grouped-query attention the keys and then
 * the values of all key/value heads. Address space for the whole context is reserved; pages appear when a
 * position is first written.
 */
#pragma once
#include "cw/engine.h"
#include "cw/mem.h"

#include <string.h>

typedef struct {
    uint32_t type; /* CW_TYPE_F32 or CW_TYPE_F16 */
    int width;     /* values in a row */
    size_t row_bytes;
    int n_ctx;
    uint8_t *data; /* [n_layers, n_ctx, width] */
} cw_kv;

static inline uint8_t *cw_kv_row(const cw_kv *kv, int layer, int position)
{
    return kv->data + ((size_t)layer * (size_t)kv->n_ctx + (size_t)position) * kv->row_bytes;
}

static inline int cw_kv_width(const cw_model_config *c)
{
    return c->mla ? c->kv_lora + c->d_rope : 2 * c->n_kv_heads * c->d_head;
}

/* Values [at, at + n) of a row, in the cache's type. */
static inline void cw_kv_put(const cw_kernels *kn, const cw_kv *kv, uint8_t *row, int at, const float *x,
                             int n)
{
    if (kv->type == CW_TYPE_F32)
        memcpy(row + (size_t)at * 4, x, (size_t)n * 4);
    else
        kn->f32_to_f16((uint16_t *)(void *)row + at, x, n);
}
