/* What weights.c and weights_mla.c share. */
#pragma once
#include "weights.h"

typedef struct {
    const cw_weight_reader *r;
    const cw_model_config *c;
    cw_weights *w;
    cw_err *err; /* r->err */
} loader;

/* Weights of n layers, all empty; cw_weights_drop. */
CW_MUST_USE cw_status cw_weights_empty(int n_layers, cw_weights *out, cw_err *err);
/* Memory that lives as long as the weights, 64-byte aligned. NULL when memory is out. */
void *cw_weight_store_alloc(cw_weight_store *s, size_t bytes);
/* Describes `w` in memory of the store. */
CW_MUST_USE cw_status cw_weight_make(loader *l, cw_weight *w, uint32_t type, int64_t n, int64_t k);
/* A matrix as the file has it, and norms, biases and the like in f32; NULL loads nothing. */
CW_MUST_USE cw_status cw_load_matrix(loader *l, const cw_gguf_tensor *t, cw_weight *w);
CW_MUST_USE cw_status cw_load_f32(loader *l, const cw_gguf_tensor *t, float **out);
CW_MUST_USE cw_status cw_load_layer(loader *l, const cw_layer_tensors *t, cw_layer_weights *w);
/* k_b and v_b of one layer, one weight per head. */
CW_MUST_USE cw_status cw_load_mla_heads(loader *l, const cw_layer_tensors *t, cw_layer_weights *out);
