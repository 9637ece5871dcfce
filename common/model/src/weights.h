/*
 * The weights an engine holds: everything of the model but routed experts, packed for the kernels.
 *
 * Loading copies from the file slice by slice through one bounce buffer, so that peak memory is the packed
 * size plus a constant. Immutable afterwards; any thread may read.
 */
#pragma once
#include "cw/gguf.h"
#include "cw/model_config.h"
#include "cw/pool.h"
#include "cw/weight.h"
#include "tensors.h"

typedef struct {
    float *attn_norm, *ffn_norm; /* [d_model] */
    /* MLA */
    float *q_a_norm, *kv_a_norm; /* [q_lora], [kv_lora] */
    cw_weight q_a, kv_a;
    cw_weight *k_b, *v_b; /* [n_heads] of kv_lora x d_nope and d_v x kv_lora */
    /* both kinds; q is q_b where the model has q_lora */
    cw_weight q, attn_out;
    /* grouped-query attention */
    cw_weight k, v;
    float *q_bias, *k_bias, *v_bias;
    /* feed-forward: dense, or that of the shared experts; gate.n = 0 where there is none */
    cw_weight gate, up, down;
    cw_weight router; /* f32 */
    float *router_bias;
} cw_layer_weights;

typedef struct cw_weight_store cw_weight_store;

typedef struct {
    cw_layer_weights *layers; /* [n_layers] */
    float *out_norm;
    cw_weight out;
    /* Embedding rows as in the file, NULL where tied: then rows are taken from `out`. */
    const uint8_t *embd;
    const cw_type_info *embd_type;
    size_t embd_row_bytes;
    double *inv_freq; /* [d_rope / 2] */
    bool all_f32;     /* no weight is of another type: `auto` keeps the KV cache in f32 then */
    cw_weight_store *store;
} cw_weights;

/* Told about bytes of the file as they are read; false stops the load with CANCELLED. */
typedef struct {
    bool (*fn)(void *ctx, uint64_t done, uint64_t total);
    void *ctx;
    uint64_t done, total;
} cw_load_progress;

CW_MUST_USE cw_status cw_load_progress_add(cw_load_progress *p, uint64_t bytes, cw_err *err);

/* What reading from the file needs; one for a whole load. */
enum { CW_BOUNCE_BYTES = 16 << 20, CW_PIECE_BYTES = 1 << 20 };
typedef struct {
    const cw_gguf *g;
    cw_pool *pool;              /* NULL: the calling thread alone */
    void *bounce;               /* CW_BOUNCE_BYTES, or bounce_bytes where that is not 0 */
    size_t bounce_bytes;        /* at least CW_PIECE_BYTES and CW_PANEL_ROWS of the longest row */
    cw_load_progress *progress; /* may be NULL */
    cw_err *err;
} cw_weight_reader;

CW_MUST_USE cw_status cw_weights_load(const cw_weight_reader *r, const cw_model_config *c,
                                      const cw_model_tensors *t, cw_weights *out);
void cw_weights_drop(cw_weights *w);
size_t cw_weights_bytes(const cw_weights *w);
/* Row `token` of the embedding to x [d_model]. scratch: embd_row_bytes. */
void cw_weights_embed(const cw_weights *w, int32_t token, float *x, void *scratch);

/*
 * Whether the kernel is to be told that it may forget what was read of the file. Not while file and packed form
 * fit side by side: then the next start reads memory instead of a disk.
 */
bool cw_load_forgets(const cw_gguf *g);

/* Packs rows [first_row, first_row + w->n) of tensor `t` (rows over all its dimensions) into `w`, which is
 * described by cw_weight_init already. Shared with the expert set. */
CW_MUST_USE cw_status cw_weight_read(const cw_weight_reader *r, const cw_gguf_tensor *t, int64_t first_row,
                                     cw_weight *w);
/* Type of the derived k_b: a quantised kv_b becomes Q8_0 (f32
 * where a head is no multiple of 32), others stay. */
uint32_t cw_derived_k_b_type(uint32_t kv_b_type, int d_nope);
