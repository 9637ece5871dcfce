/*
 * The KV cache of one session: for every layer and position one row. Multi-head latent attention stores the
 * normalised latent and the rotated key part (shared by all heads); grouped-query attention the keys and then
 * the values of all key/value heads. Address space for the whole context is reserved; pages appear when a
 * position is first written.
 *
 * A row in f32 or f16 is its values. A row in 8 bit is the A8 form of its values, filled with zeros to a
 * multiple of 32: the int8 of all blocks, then their f32 scales. Blocks lie inside one row, so a row depends
 * on nothing but its own values.
 */
#pragma once
#include "cw/engine.h"
#include "cw/mem.h"

#include <string.h>

typedef struct {
    cw_kv_type type; /* never AUTO */
    int width;       /* values in a row */
    size_t row_bytes;
    int n_ctx;
    uint8_t *data; /* [n_layers, n_ctx, row_bytes] */
} cw_kv;

static inline uint8_t *cw_kv_row(const cw_kv *kv, int layer, int position)
{
    return kv->data + ((size_t)layer * (size_t)kv->n_ctx + (size_t)position) * kv->row_bytes;
}

static inline int cw_kv_width(const cw_model_config *c)
{
    return c->mla ? c->kv_lora + c->d_rope : 2 * c->n_kv_heads * c->d_head;
}

size_t cw_kv_row_bytes(cw_kv_type type, int width);

/* A row's values [width] in the cache's type. A value that is not finite makes what is read back not finite.
 */
void cw_kv_put(const cw_kernels *kn, const cw_kv *kv, uint8_t *row, const float *x);

/* Where value `at` of a read row begins when its values from `at` on are read back into y: 8-bit rows are
 * read in whole blocks, so up to 31 values before it and after the last are written too. */
static inline int cw_kv_lead(const cw_kv *kv, int at)
{
    return kv->type == CW_KV_Q8 ? at % 32 : 0;
}
/* Values [at, at + n) of a row to y + cw_kv_lead; y has room for 62 values more than n. */
void cw_kv_get(const cw_kernels *kn, const cw_kv *kv, const uint8_t *row, int at, int n, float *y);
