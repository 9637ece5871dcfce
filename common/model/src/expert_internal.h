/* One loaded expert, as the set keeps it and the arithmetic reads it. */
#pragma once
#include "cw/expert_ffn.h"
#include "cw/weight.h"
#include "weights.h"

/* Far above any known expert; a worker gets shapes from the wire. */
enum { CW_MAX_EXPERT_DIM = 1 << 18 };

struct cw_expert {
    cw_expert_shape shape;
    int layer, id;
    cw_weight w[CW_N_SLICES];
    void *mem;
    size_t bytes;
    atomic_int refs; /* the set's own, and one per acquire */
};

/* cw_expert_set_add_from_gguf with the caller's reader; `block` is the layer's number in the file. */
CW_MUST_USE cw_status cw_expert_set_read(cw_expert_set *s, const cw_weight_reader *r, int layer, int block,
                                         int expert);
/* The shape of one block's experts, checked. */
CW_MUST_USE cw_status cw_expert_shape_read(const cw_gguf *g, const cw_model_config *c, int block,
                                           cw_expert_shape *out, cw_err *err);
