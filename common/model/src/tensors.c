/* See tensors.h. Names follow the GGUF convention of the
 * converters that write deepseek2, llama and qwen2 files. */
#include "tensors.h"
#include "cw/mem.h"
#include "cw/type.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* One lookup after another; after the first error the rest do nothing, so that the lists below read as lists.
 */
typedef struct {
    const cw_gguf *g;
    int layer; /* -1: not in a block */
    cw_status status;
    cw_err *err;
    size_t n_used;
    uint64_t bytes, expert_bytes, n_params;
} finder;

static void full_name(char *buf, size_t size, int layer, const char *suffix)
{
    if (layer < 0)
        snprintf(buf, size, "%s", suffix);
    else
        snprintf(buf, size, "blk.%d.%s", layer, suffix);
}

const cw_gguf_tensor *cw_layer_tensor(const cw_gguf *g, int layer, const char *suffix)
{
    char name[64];
    full_name(name, sizeof name, layer, suffix);
    return cw_gguf_find(g, name);
}

/* Finds `suffix` and checks that its dimensions are n0, n1, n2. */
static const cw_gguf_tensor *need3(finder *f, const char *suffix, int64_t n0, int64_t n1, int64_t n2)
{
    if (f->status != CW_OK) return NULL;
    char name[64];
    full_name(name, sizeof name, f->layer, suffix);
    const cw_gguf_tensor *t = NULL;
    f->status = cw_gguf_tensor_require(f->g, name, &t, f->err);
    if (f->status != CW_OK) return NULL;
    if (t->ne[0] != n0 || t->ne[1] != n1 || t->ne[2] != n2 || t->ne[3] != 1) {
        f->status = CW_FAIL(f->err, CW_STATUS_FORMAT,
                            "tensor %s is [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64
                            "], the metadata asks for [%" PRId64 ", %" PRId64 ", %" PRId64 ", 1]",
                            name, t->ne[0], t->ne[1], t->ne[2], t->ne[3], n0, n1, n2);
        return NULL;
    }
    f->n_used++;
    f->bytes += t->bytes;
    f->n_params += (uint64_t)(n0 * n1 * n2);
    return t;
}

static const cw_gguf_tensor *need(finder *f, const char *suffix, int64_t n0, int64_t n1)
{
    return need3(f, suffix, n0, n1, 1);
}

/* As need, but an absent tensor is NULL and no error. */
static const cw_gguf_tensor *may(finder *f, const char *suffix, int64_t n0, int64_t n1)
{
    if (f->status != CW_OK || !cw_layer_tensor(f->g, f->layer, suffix)) return NULL;
    return need(f, suffix, n0, n1);
}

static void find_mla(finder *f, const cw_model_config *c, cw_layer_tensors *t)
{
    int d_q = c->n_heads * (c->d_nope + c->d_rope);
    if (c->q_lora) {
        t->q_a = need(f, "attn_q_a.weight", c->d_model, c->q_lora);
        t->q_a_norm = need(f, "attn_q_a_norm.weight", c->q_lora, 1);
        t->q_b = need(f, "attn_q_b.weight", c->q_lora, d_q);
    } else {
        t->q = need(f, "attn_q.weight", c->d_model, d_q);
    }
    t->kv_a = need(f, "attn_kv_a_mqa.weight", c->d_model, c->kv_lora + c->d_rope);
    t->kv_a_norm = need(f, "attn_kv_a_norm.weight", c->kv_lora, 1);
    if (c->split_kv) {
        t->k_b = need3(f, "attn_k_b.weight", c->d_nope, c->kv_lora, c->n_heads);
        t->v_b = need3(f, "attn_v_b.weight", c->kv_lora, c->d_v, c->n_heads);
    } else {
        t->kv_b = need(f, "attn_kv_b.weight", c->kv_lora, (int64_t)c->n_heads * (c->d_nope + c->d_v));
    }
    t->attn_out = need(f, "attn_output.weight", (int64_t)c->n_heads * c->d_v, c->d_model);
}

static void find_gqa(finder *f, const cw_model_config *c, cw_layer_tensors *t)
{
    int d_q = c->n_heads * c->d_head, d_kv = c->n_kv_heads * c->d_head;
    t->q = need(f, "attn_q.weight", c->d_model, d_q);
    t->k = need(f, "attn_k.weight", c->d_model, d_kv);
    t->v = need(f, "attn_v.weight", c->d_model, d_kv);
    t->q_bias = may(f, "attn_q.bias", d_q, 1);
    t->k_bias = may(f, "attn_k.bias", d_kv, 1);
    t->v_bias = may(f, "attn_v.bias", d_kv, 1);
    t->attn_out = need(f, "attn_output.weight", d_q, c->d_model);
}

static void find_moe(finder *f, const cw_model_config *c, cw_layer_tensors *t)
{
    t->router = need(f, "ffn_gate_inp.weight", c->d_model, c->n_experts);
    if (c->gate_bias) t->router_bias = need(f, "exp_probs_b.bias", c->n_experts, 1);
    uint64_t before = f->bytes;
    t->ex_gate = need3(f, "ffn_gate_exps.weight", c->d_model, c->d_expert, c->n_experts);
    t->ex_up = need3(f, "ffn_up_exps.weight", c->d_model, c->d_expert, c->n_experts);
    t->ex_down = need3(f, "ffn_down_exps.weight", c->d_expert, c->d_model, c->n_experts);
    f->expert_bytes += f->bytes - before;
    f->bytes = before;
    if (c->n_shared == 0) return;
    t->sh_gate = need(f, "ffn_gate_shexp.weight", c->d_model, c->d_shared);
    t->sh_up = need(f, "ffn_up_shexp.weight", c->d_model, c->d_shared);
    t->sh_down = need(f, "ffn_down_shexp.weight", c->d_shared, c->d_model);
}

static void find_dense(finder *f, const cw_model_config *c, cw_layer_tensors *t)
{
    t->gate = need(f, "ffn_gate.weight", c->d_model, c->d_ff);
    t->up = need(f, "ffn_up.weight", c->d_model, c->d_ff);
    t->down = need(f, "ffn_down.weight", c->d_ff, c->d_model);
}

static void find_block(finder *f, const cw_model_config *c, bool moe, cw_layer_tensors *t)
{
    t->attn_norm = need(f, "attn_norm.weight", c->d_model, 1);
    if (c->mla)
        find_mla(f, c, t);
    else
        find_gqa(f, c, t);
    t->ffn_norm = need(f, "ffn_norm.weight", c->d_model, 1);
    if (moe)
        find_moe(f, c, t);
    else
        find_dense(f, c, t);
}

cw_status cw_model_tensors_find(const cw_gguf *g, const cw_model_config *c, cw_model_tensors *out,
                                cw_err *err)
{
    cw_model_tensors m = {.layers = cw_calloc((size_t)c->n_layers, sizeof *m.layers)};
    if (!m.layers) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for %d layers", c->n_layers);
    finder f = {.g = g, .layer = -1, .status = CW_OK, .err = err};
    m.embd = need(&f, "token_embd.weight", c->d_model, c->n_vocab);
    m.out_norm = need(&f, "output_norm.weight", c->d_model, 1);
    m.out = c->tied_output ? m.embd : need(&f, "output.weight", c->d_model, c->n_vocab);
    if (!c->mla) m.rope_freqs = may(&f, "rope_freqs.weight", c->d_rope / 2, 1);
    for (int l = 0; l < c->n_layers; l++) {
        f.layer = l;
        find_block(&f, c, cw_layer_is_moe(c, l), &m.layers[l]);
    }
    if (f.status != CW_OK) {
        cw_model_tensors_drop(&m);
        return f.status;
    }
    m.n_used = f.n_used;
    m.bytes = f.bytes;
    m.expert_bytes = f.expert_bytes;
    *out = m;
    return CW_OK;
}

cw_status cw_mtp_tensors_find(const cw_gguf *g, const cw_model_config *c, cw_mtp_tensors *out, cw_err *err)
{
    finder f = {.g = g, .layer = c->n_layers, .status = CW_OK, .err = err};
    cw_mtp_tensors m = {0};
    m.moe = c->n_experts > 0 && cw_layer_tensor(g, f.layer, "ffn_gate_inp.weight");
    m.enorm = need(&f, "nextn.enorm.weight", c->d_model, 1);
    m.hnorm = need(&f, "nextn.hnorm.weight", c->d_model, 1);
    m.eh_proj = need(&f, "nextn.eh_proj.weight", 2 * (int64_t)c->d_model, c->d_model);
    m.norm = may(&f, "nextn.shared_head_norm.weight", c->d_model, 1);
    find_block(&f, c, m.moe, &m.layer);
    if (f.status != CW_OK) return f.status;
    m.n_params = f.n_params;
    *out = m;
    return CW_OK;
}

void cw_model_tensors_drop(cw_model_tensors *t)
{
    cw_free(t->layers);
    t->layers = NULL;
}
