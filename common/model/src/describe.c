/* What `causeway inspect` says about a file, without loading it. */
#include "cw/expert_ffn.h"
#include "cw/mem.h"
#include "cw/model_config.h"
#include "cw/mtp.h"
#include "expert_internal.h"
#include "mtp_internal.h"
#include "tensors.h"
#include "weights.h"

/* Packed bytes of a matrix; its shape and type were checked with the configuration. */
static uint64_t packed(uint32_t type, int64_t n, int64_t k)
{
    size_t bytes = 0;
    return cw_weight_bytes(type, n, k, &bytes, NULL) == CW_OK ? bytes : 0;
}

static uint64_t packed_tensor(const cw_gguf_tensor *t)
{
    return t ? packed(t->type, t->ne[1], t->ne[0]) : 0;
}

static uint64_t f32_tensor(const cw_gguf_tensor *t)
{
    return t ? (uint64_t)t->ne[0] * (uint64_t)t->ne[1] * sizeof(float) : 0;
}

static uint64_t heads_bytes(const cw_model_config *c, const cw_layer_tensors *t)
{
    if (!c->mla) return 0;
    uint32_t k_type = t->kv_b ? cw_derived_k_b_type(t->kv_b->type, c->d_nope) : t->k_b->type;
    uint32_t v_type = t->kv_b ? t->kv_b->type : t->v_b->type;
    return (uint64_t)c->n_heads *
           (packed(k_type, c->kv_lora, c->d_nope) + packed(v_type, c->d_v, c->kv_lora));
}

static uint64_t layer_bytes(const cw_model_config *c, const cw_layer_tensors *t)
{
    const cw_gguf_tensor *const vectors[] = {t->attn_norm, t->ffn_norm,    t->q_a_norm,
                                             t->kv_a_norm, t->q_bias,      t->k_bias,
                                             t->v_bias,    t->router_bias, t->router};
    const cw_gguf_tensor *const matrices[] = {t->q_a,     t->q_b,      t->kv_a,   t->q,  t->k,
                                              t->v,       t->attn_out, t->gate,   t->up, t->down,
                                              t->sh_gate, t->sh_up,    t->sh_down};
    uint64_t sum = heads_bytes(c, t);
    for (size_t i = 0; i < CW_ARRAY_LEN(vectors); i++) sum += f32_tensor(vectors[i]);
    for (size_t i = 0; i < CW_ARRAY_LEN(matrices); i++) sum += packed_tensor(matrices[i]);
    return sum;
}

static void count_experts(const cw_model_config *c, const cw_expert_shape *shapes, cw_model_facts *f)
{
    for (int l = 0; l < c->n_layers; l++) {
        if (!shapes[l].d_model) continue;
        uint64_t one = cw_expert_packed_bytes(&shapes[l]);
        f->expert_bytes += one * (uint64_t)c->n_experts;
        if (one > f->one_expert_bytes) f->one_expert_bytes = one;
    }
}

/* Types in ascending order; insertion into a short list. A
 * file with more types than there are rows is not real. */
static void count_type(cw_model_facts *f, const cw_gguf_tensor *t)
{
    int at = 0;
    while (at < f->n_types && f->types[at].type < t->type) at++;
    if (at == f->n_types || f->types[at].type != t->type) {
        if (f->n_types == (int)CW_ARRAY_LEN(f->types)) return;
        for (int i = f->n_types++; i > at; i--) f->types[i] = f->types[i - 1];
        f->types[at].type = t->type;
        f->types[at].n_tensors = 0;
        f->types[at].bytes = 0;
    }
    f->types[at].n_tensors++;
    f->types[at].bytes += t->bytes;
}

cw_status cw_model_describe(const cw_gguf *g, const cw_model_options *opt, cw_model_facts *out, cw_err *err)
{
    cw_model_facts f = {0};
    const cw_model_config *c = &f.config;
    CW_TRY(cw_model_config_read(g, opt, &f.config, err));
    cw_expert_shape *shapes = cw_calloc((size_t)c->n_layers, sizeof *shapes);
    if (!shapes) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for %d layers", c->n_layers);
    cw_model_tensors t = {0};
    cw_status s;
    CW_TRY_GOTO(s, cw_expert_shapes_read(g, c, shapes, err));
    CW_TRY_GOTO(s, cw_model_tensors_find(g, c, &t, err));

    bool all_f32 = true;
    for (size_t i = 0; i < cw_gguf_tensor_count(g); i++) {
        const cw_gguf_tensor *x = cw_gguf_tensor_at(g, i);
        uint64_t n = 1;
        for (int d = 0; d < 4; d++) n *= (uint64_t)x->ne[d];
        f.n_params += n;
        f.file_bytes += x->bytes;
        all_f32 = all_f32 && x->type == CW_TYPE_F32;
        count_type(&f, x);
    }
    f.n_ignored = (uint32_t)(cw_gguf_tensor_count(g) - t.n_used);
    f.edge_bytes = (t.out == t.embd ? 0 : t.embd->bytes) + packed_tensor(t.out) + f32_tensor(t.out_norm);
    for (int l = 0; l < c->n_layers; l++) f.edge_bytes += layer_bytes(c, &t.layers[l]);
    count_experts(c, shapes, &f);
    uint64_t width =
        c->mla ? (uint64_t)(c->kv_lora + c->d_rope) : 2 * (uint64_t)c->n_kv_heads * (uint64_t)c->d_head;
    f.kv_bytes_per_token = (uint64_t)c->n_layers * width * (all_f32 ? 4 : 2);
    *out = f;
    s = CW_OK;
fail:
    cw_model_tensors_drop(&t);
    cw_free(shapes);
    return s;
}

cw_status cw_mtp_describe(const cw_gguf *model, const cw_model_config *c, const cw_gguf *companion,
                          cw_mtp_facts *out, cw_err *err)
{
    cw_mtp_tensors t;
    CW_TRY(cw_mtp_find(model, c, companion, &t, err));
    cw_mtp_facts f = {.block = c->n_layers, .moe = t.moe, .n_params = t.n_params};
    f.edge_bytes = f32_tensor(t.enorm) + f32_tensor(t.hnorm) + f32_tensor(t.norm) + packed_tensor(t.eh_proj) +
                   layer_bytes(c, &t.layer);
    if (t.moe) {
        cw_expert_shape shape;
        CW_TRY(cw_expert_shape_read(companion ? companion : model, c, c->n_layers, &shape, err));
        f.edge_bytes += cw_expert_packed_bytes(&shape) * (uint64_t)c->n_experts;
    }
    *out = f;
    return CW_OK;
}
