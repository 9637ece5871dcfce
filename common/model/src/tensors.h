/*
 * The tensors of a model by the part they play, each found and checked against the configuration: what is
 * loaded, what `inspect` counts, and the proof that every shape the arithmetic relies on is what the file
 * holds.
 */
#pragma once
#include "cw/gguf.h"
#include "cw/model_config.h"

/* NULL where the model has no such part. Matrices are [k = ne[0], n = ne[1]] as GGUF writes them. */
typedef struct {
    const cw_gguf_tensor *attn_norm, *ffn_norm;
    /* MLA */
    const cw_gguf_tensor *q_a, *q_a_norm, *q_b; /* with q_lora; else q */
    const cw_gguf_tensor *kv_a, *kv_a_norm;
    const cw_gguf_tensor *kv_b;      /* [kv_lora, n_heads * (d_nope + d_v)] */
    const cw_gguf_tensor *k_b, *v_b; /* [d_nope, kv_lora, n_heads], [kv_lora, d_v, n_heads]; split_kv */
    /* grouped-query attention; q also for MLA without q_lora */
    const cw_gguf_tensor *q, *k, *v, *q_bias, *k_bias, *v_bias;
    const cw_gguf_tensor *attn_out;
    /* dense feed-forward, or router + shared experts + routed experts */
    const cw_gguf_tensor *gate, *up, *down;
    const cw_gguf_tensor *router, *router_bias;
    const cw_gguf_tensor *sh_gate, *sh_up, *sh_down;
    const cw_gguf_tensor *ex_gate, *ex_up, *ex_down; /* [k, n, n_experts] */
} cw_layer_tensors;

typedef struct {
    const cw_gguf_tensor *embd, *out_norm, *out, *rope_freqs; /* out is embd where tied */
    cw_layer_tensors *layers;                                 /* [n_layers] */
    size_t n_used;                                            /* different tensors referred to above */
    uint64_t bytes;                                           /* of those, without routed experts */
    uint64_t expert_bytes;                                    /* of routed experts */
} cw_model_tensors;

/* Finds and checks them all. FORMAT, NOT_FOUND, UNSUPPORTED, NO_MEMORY; names the tensor. */
CW_MUST_USE cw_status cw_model_tensors_find(const cw_gguf *g, const cw_model_config *c, cw_model_tensors *out,
                                            cw_err *err);
void cw_model_tensors_drop(cw_model_tensors *t);

/* A multi-token-prediction head: one block and what joins it to the model. */
typedef struct {
    const cw_gguf_tensor *enorm, *hnorm, *eh_proj; /* [d_model], [d_model], [2 d_model, d_model] */
    const cw_gguf_tensor *norm;                    /* before the output; NULL: the model's */
    cw_layer_tensors layer;
    bool moe;
    uint64_t n_params;
} cw_mtp_tensors;

/* Those of block c->n_layers, `c` being the configuration of the model it belongs to. Errors as above. */
CW_MUST_USE cw_status cw_mtp_tensors_find(const cw_gguf *g, const cw_model_config *c, cw_mtp_tensors *out,
                                          cw_err *err);

/* The one tensor "blk.LAYER.SUFFIX", NULL when absent. */
const cw_gguf_tensor *cw_layer_tensor(const cw_gguf *g, int layer, const char *suffix);
