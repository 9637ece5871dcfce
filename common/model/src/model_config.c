/*
 * GGUF metadata -> cw_model_config. Keys are "ARCH.suffix"; one table row each for the plain numbers, code
 * for what depends on something else. Sources: the GGUF specification's list of standardised keys, and the
 * configuration files DeepSeek publishes with its models for the defaults.
 */
#include "cw/model_config.h"
#include "cw/fmath.h"
#include "tensors.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* Bounds on what a file may claim: far above any known model, and small enough that the products of three of
 * them which the engine forms stay far inside 64 bits. */
enum { MAX_DIM = 1 << 18, MAX_VOCAB = 1 << 22, MAX_HEADS = 1024, MAX_CTX = 1 << 24 };

static const char *const arch_names[] = {"deepseek2", "llama", "qwen2"};

const char *cw_arch_name(cw_arch a)
{
    return arch_names[a];
}

typedef struct {
    const cw_gguf *g;
    cw_model_config *c;
    cw_err *err;
} reader;

static const char *key_of(const reader *r, const char *suffix, char buf[96])
{
    snprintf(buf, 96, "%s.%s", cw_arch_name(r->c->arch), suffix);
    return buf;
}

static bool has_key(const reader *r, const char *suffix)
{
    char key[96];
    return cw_gguf_kv_find(r->g, key_of(r, suffix, key)) != NULL;
}

enum { REQUIRED = -1 };

/* An integer in [min, max]; absent gives `def`, which is not checked against the bounds. */
static cw_status read_int(const reader *r, const char *suffix, int def, int min, int max, int *out)
{
    char key[96];
    uint32_t v;
    key_of(r, suffix, key);
    if (def == REQUIRED) {
        CW_TRY(cw_gguf_get_u32(r->g, key, &v, r->err));
    } else {
        if (!has_key(r, suffix)) {
            *out = def;
            return CW_OK;
        }
        CW_TRY(cw_gguf_get_u32(r->g, key, &v, r->err));
    }
    if (v < (uint32_t)min || v > (uint32_t)max)
        return CW_FAIL(r->err, CW_STATUS_FORMAT, "%s is %u, expected %d to %d", key, v, min, max);
    *out = (int)v;
    return CW_OK;
}

static cw_status read_float(const reader *r, const char *suffix, double def, double min, double max,
                            double *out)
{
    char key[96];
    float v;
    CW_TRY(cw_gguf_get_f32_or(r->g, key_of(r, suffix, key), (float)def, &v, r->err));
    if (!(v >= min && v <= max))
        return CW_FAIL(r->err, CW_STATUS_FORMAT, "%s is %g, expected %g to %g", key, (double)v, min, max);
    *out = (double)v;
    return CW_OK;
}

enum { IN_MLA = 1, IN_GQA = 2 };

/* The numbers that stand for themselves. */
static const struct {
    const char *suffix;
    unsigned where;
    int def, min, max;
    size_t offset;
} int_rows[] = {
#define ROW(suffix, where, def, min, max, field)                                                             \
    {                                                                                                        \
        suffix, where, def, min, max, offsetof(cw_model_config, field)                                       \
    }
    ROW("block_count", IN_MLA | IN_GQA, REQUIRED, 1, CW_MAX_LAYERS, n_layers),
    ROW("nextn_predict_layers", IN_MLA, 0, 0, CW_MAX_LAYERS, n_nextn),
    ROW("embedding_length", IN_MLA | IN_GQA, REQUIRED, 1, MAX_DIM, d_model),
    ROW("feed_forward_length", IN_GQA, REQUIRED, 1, MAX_DIM, d_ff),
    ROW("feed_forward_length", IN_MLA, 0, 1, MAX_DIM, d_ff), /* no use for it without dense blocks */
    ROW("context_length", IN_MLA | IN_GQA, 0, 1, MAX_CTX, n_ctx_train),
    ROW("attention.head_count", IN_MLA | IN_GQA, REQUIRED, 1, MAX_HEADS, n_heads),
    ROW("attention.kv_lora_rank", IN_MLA, REQUIRED, 1, MAX_DIM, kv_lora),
    ROW("rope.dimension_count", IN_MLA, REQUIRED, 2, MAX_DIM, d_rope),
    ROW("expert_count", IN_MLA | IN_GQA, 0, 0, CW_MAX_EXPERTS, n_experts),
    ROW("leading_dense_block_count", IN_MLA, 0, 0, CW_MAX_LAYERS, n_dense),
#undef ROW
};

static cw_status read_arch(reader *r)
{
    cw_gguf_str s;
    CW_TRY(cw_gguf_get_str(r->g, "general.architecture", &s, r->err));
    for (size_t i = 0; i < CW_ARRAY_LEN(arch_names); i++) {
        if (!cw_gguf_str_eq(s, arch_names[i])) continue;
        r->c->arch = (cw_arch)i;
        r->c->mla = r->c->arch == CW_ARCH_DEEPSEEK2;
        return CW_OK;
    }
    return CW_FAIL(r->err, CW_STATUS_UNSUPPORTED,
                   "architecture \"%.*s\" is not supported (deepseek2, llama, qwen2 are)",
                   (int)(s.len < 64 ? s.len : 64), s.data);
}

static void read_name(reader *r)
{
    cw_gguf_str s = {cw_arch_name(r->c->arch), strlen(cw_arch_name(r->c->arch))};
    if (cw_gguf_get_str(r->g, "general.name", &s, NULL) != CW_OK || s.len == 0)
        s = (cw_gguf_str){cw_arch_name(r->c->arch), strlen(cw_arch_name(r->c->arch))};
    size_t n = s.len < sizeof r->c->name - 1 ? s.len : sizeof r->c->name - 1;
    memcpy(r->c->name, s.data, n);
    for (char *p = r->c->name; p < r->c->name + n; p++)
        if (!*p) *p = '?';
    cw_text_printable(r->c->name);
}

static cw_status read_ints(reader *r)
{
    cw_model_config *c = r->c;
    for (size_t i = 0; i < CW_ARRAY_LEN(int_rows); i++) {
        if (!(int_rows[i].where & (c->mla ? IN_MLA : IN_GQA))) continue;
        int *field = (int *)((char *)c + int_rows[i].offset);
        CW_TRY(read_int(r, int_rows[i].suffix, int_rows[i].def, int_rows[i].min, int_rows[i].max, field));
    }
    if (c->n_nextn >= c->n_layers)
        return CW_FAIL(r->err, CW_STATUS_FORMAT, "nextn_predict_layers is %d of %d blocks", c->n_nextn,
                       c->n_layers);
    c->n_layers -= c->n_nextn;
    if (c->n_ctx_train == 0) {
        c->n_ctx_train = 4096;
        c->inferred |= CW_INFERRED_CTX;
    }
    double eps;
    CW_TRY(read_float(r, "attention.layer_norm_rms_epsilon", 1e-6, 0, 1, &eps));
    c->norm_eps = (float)eps;
    return CW_OK;
}

static cw_status read_vocab(reader *r)
{
    cw_model_config *c = r->c;
    const cw_gguf_tensor *embd;
    CW_TRY(cw_gguf_tensor_require(r->g, "token_embd.weight", &embd, r->err));
    if (embd->ne[1] < 1 || embd->ne[1] > MAX_VOCAB)
        return CW_FAIL(r->err, CW_STATUS_FORMAT, "tensor token_embd.weight has %lld rows, expected 1 to %d",
                       (long long)embd->ne[1], MAX_VOCAB);
    c->n_vocab = (int)embd->ne[1];
    c->tied_output = !cw_gguf_find(r->g, "output.weight");
    return CW_OK;
}

/* Head sizes stand in key_length and value_length; files with a compressed
 * cache (head_count_kv 1) give those of the cache there and the heads' own
 * in *_mla. Which layout the second projection has is told by its tensors. */
static cw_status read_mla(reader *r)
{
    cw_model_config *c = r->c;
    bool mla_keys = has_key(r, "attention.key_length_mla");
    int d_key;
    CW_TRY(read_int(r, mla_keys ? "attention.key_length_mla" : "attention.key_length", REQUIRED, 1, MAX_DIM,
                    &d_key));
    CW_TRY(read_int(r, mla_keys ? "attention.value_length_mla" : "attention.value_length", REQUIRED, 1,
                    MAX_DIM, &c->d_v));
    c->d_nope = d_key - c->d_rope;
    if (c->d_nope < 1 || c->d_rope % 2)
        return CW_FAIL(r->err, CW_STATUS_FORMAT,
                       "key length %d does not hold %d rope dimensions (an even number) and more", d_key,
                       c->d_rope);
    c->split_kv =
        !cw_layer_tensor(r->g, 0, "attn_kv_b.weight") && cw_layer_tensor(r->g, 0, "attn_k_b.weight");
    c->n_kv_heads = 1;
    c->d_head = d_key;
    int64_t widest = d_key > c->d_v ? d_key : c->d_v;
    if (widest * c->n_heads > MAX_DIM)
        return CW_FAIL(r->err, CW_STATUS_FORMAT, "%d heads of %lld values are too wide", c->n_heads,
                       (long long)widest);
    const cw_gguf_tensor *q_a = cw_layer_tensor(r->g, 0, "attn_q_a.weight");
    if (q_a) {
        if (q_a->ne[1] < 1 || q_a->ne[1] > MAX_DIM)
            return CW_FAIL(r->err, CW_STATUS_FORMAT, "tensor blk.0.attn_q_a.weight has %lld rows",
                           (long long)q_a->ne[1]);
        c->q_lora = (int)q_a->ne[1];
    }
    return CW_OK;
}

static cw_status read_gqa(reader *r)
{
    cw_model_config *c = r->c;
    if (c->n_experts > 0)
        return CW_FAIL(r->err, CW_STATUS_UNSUPPORTED,
                       "%s with %d experts is not supported, only dense models are", cw_arch_name(c->arch),
                       c->n_experts);
    CW_TRY(read_int(r, "attention.head_count_kv", c->n_heads, 1, MAX_HEADS, &c->n_kv_heads));
    if (c->n_heads % c->n_kv_heads)
        return CW_FAIL(r->err, CW_STATUS_FORMAT, "%d heads do not divide by %d key/value heads", c->n_heads,
                       c->n_kv_heads);
    if (!has_key(r, "attention.key_length") && c->d_model % c->n_heads)
        return CW_FAIL(r->err, CW_STATUS_FORMAT, "embedding length %d does not divide by %d heads",
                       c->d_model, c->n_heads);
    CW_TRY(read_int(r, "attention.key_length", c->d_model / c->n_heads, 1, MAX_DIM, &c->d_head));
    if ((int64_t)c->d_head * c->n_heads > MAX_DIM)
        return CW_FAIL(r->err, CW_STATUS_FORMAT, "%d heads of %d values are too wide", c->n_heads, c->d_head);
    CW_TRY(read_int(r, "attention.value_length", c->d_head, 1, MAX_DIM, &c->d_v));
    if (c->d_v != c->d_head)
        return CW_FAIL(r->err, CW_STATUS_UNSUPPORTED, "value length %d differs from key length %d", c->d_v,
                       c->d_head);
    CW_TRY(read_int(r, "rope.dimension_count", c->d_head, 2, MAX_DIM, &c->d_rope));
    if (c->d_rope > c->d_head || c->d_rope % 2)
        return CW_FAIL(r->err, CW_STATUS_FORMAT,
                       "rope.dimension_count %d does not fit heads of %d (an even number)", c->d_rope,
                       c->d_head);
    c->rope_halves = c->arch == CW_ARCH_QWEN2;
    return CW_OK;
}

/* No type key: older files give a linear factor, or nothing. */
static cw_status read_scaling_type(reader *r)
{
    cw_model_config *c = r->c;
    char key[96];
    cw_gguf_str s;
    c->rope_scaling = CW_ROPE_SCALING_LINEAR;
    if (!has_key(r, "rope.scaling.type")) return CW_OK;
    CW_TRY(cw_gguf_get_str(r->g, key_of(r, "rope.scaling.type", key), &s, r->err));
    if (cw_gguf_str_eq(s, "none"))
        c->rope_scaling = CW_ROPE_SCALING_NONE;
    else if (cw_gguf_str_eq(s, "yarn"))
        c->rope_scaling = CW_ROPE_SCALING_YARN;
    else if (!cw_gguf_str_eq(s, "linear"))
        return CW_FAIL(r->err, CW_STATUS_UNSUPPORTED, "%s \"%.*s\" is not supported (none, linear, yarn are)",
                       key, (int)(s.len < 64 ? s.len : 64), s.data);
    return CW_OK;
}

/*
 * YaRN's attention temperature multiplies cos and sin by 1 + m ln(factor) in some engines; here rope stays a
 * rotation and the softmax scale takes the square, as DeepSeek's own code does. m: 0.1 in the paper, a key in
 * deepseek2 files.
 */
static cw_status read_rope(reader *r)
{
    cw_model_config *c = r->c;
    double factor, attn_factor;
    CW_TRY(read_float(r, "rope.freq_base", 10000, 1.0001, 1e12, &c->rope_base));
    CW_TRY(read_scaling_type(r));
    const char *factor_key = has_key(r, "rope.scale_linear") && !has_key(r, "rope.scaling.factor")
                                 ? "rope.scale_linear"
                                 : "rope.scaling.factor";
    CW_TRY(read_float(r, factor_key, 1, 0, 1e6, &factor));
    CW_TRY(read_float(r, "rope.scaling.attn_factor", 1, 0, 1e6, &attn_factor));
    if (attn_factor != 1)
        return CW_FAIL(r->err, CW_STATUS_UNSUPPORTED,
                       "rope.scaling.attn_factor %g is not supported, only 1 is", attn_factor);
    if (factor == 0) factor = 1;
    if (c->rope_scaling == CW_ROPE_SCALING_LINEAR && factor == 1) c->rope_scaling = CW_ROPE_SCALING_NONE;
    CW_TRY(
        read_int(r, "rope.scaling.original_context_length", c->n_ctx_train, 1, MAX_CTX, &c->rope_orig_ctx));
    CW_TRY(read_float(r, "rope.scaling.yarn_log_multiplier", c->mla ? 0 : 0.1, 0, 100, &c->yarn_log_mul));
    c->rope_factor = c->rope_scaling == CW_ROPE_SCALING_NONE ? 1 : factor;
    double temperature = 1;
    if (c->rope_scaling == CW_ROPE_SCALING_YARN) {
        if (factor < 1)
            return CW_FAIL(r->err, CW_STATUS_FORMAT, "YaRN's rope.scaling.factor is %g, below 1", factor);
        if (!has_key(r, "rope.scaling.yarn_log_multiplier")) c->inferred |= CW_INFERRED_YARN_MUL;
        temperature = 1 + c->yarn_log_mul * cw_log(factor);
    }
    c->attn_scale = (float)(temperature * temperature / sqrt((double)c->d_head));
    return CW_OK;
}

/* Files from before group-limited routing was written down lack its keys: the models that need it are known
 * by their expert count (V3 and R1: 256 with a correction bias; V2: 160 with a softmax gate). */
static cw_status read_groups(reader *r, const cw_model_options *opt)
{
    cw_model_config *c = r->c;
    if (has_key(r, "expert_group_count")) {
        CW_TRY(read_int(r, "expert_group_count", REQUIRED, 0, CW_MAX_EXPERTS, &c->n_groups));
        CW_TRY(read_int(r, "expert_group_used_count", c->n_groups, 0, CW_MAX_EXPERTS, &c->n_groups_used));
    } else {
        c->inferred |= CW_INFERRED_GROUPS;
        if (c->n_experts == 256 && c->gate_bias) c->n_groups = 8, c->n_groups_used = 4;
        if (c->n_experts == 160 && c->gate == CW_GATE_SOFTMAX) c->n_groups = 8, c->n_groups_used = 3;
    }
    cw_status code = CW_STATUS_FORMAT;
    if (opt && opt->n_groups) {
        c->n_groups = opt->n_groups;
        c->n_groups_used = opt->n_groups_used ? opt->n_groups_used : opt->n_groups;
        c->inferred &= ~(unsigned)CW_INFERRED_GROUPS;
        code = CW_STATUS_INVALID;
    }
    if (c->n_groups == 0) c->n_groups = c->n_groups_used = 1;
    if (c->n_groups_used == 0) c->n_groups_used = c->n_groups;
    if (c->n_groups < 0 || c->n_groups_used < 0 || c->n_experts % c->n_groups ||
        c->n_groups_used > c->n_groups)
        return CW_FAIL(r->err, code, "%d experts cannot be routed in the best %d of %d groups", c->n_experts,
                       c->n_groups_used, c->n_groups);
    int per_group = c->n_experts / c->n_groups;
    if (per_group * c->n_groups_used < c->n_used || (c->n_groups > 1 && c->gate_bias && per_group < 2))
        return CW_FAIL(r->err, code,
                       "%d groups of %d experts are too small to choose %d experts from %d of them",
                       c->n_groups, per_group, c->n_used, c->n_groups_used);
    return CW_OK;
}

/* Shared experts are one feed-forward n_shared times as wide; its width is read off the tensor. */
static cw_status read_shared(reader *r)
{
    cw_model_config *c = r->c;
    const cw_gguf_tensor *t = cw_layer_tensor(r->g, c->n_dense, "ffn_gate_shexp.weight");
    CW_TRY(read_int(r, "expert_shared_count", t ? 1 : 0, 0, 1024, &c->n_shared));
    if (c->n_shared == 0) return CW_OK;
    if (!t)
        return CW_FAIL(r->err, CW_STATUS_NOT_FOUND,
                       "tensor blk.%d.ffn_gate_shexp.weight of %d shared experts is missing", c->n_dense,
                       c->n_shared);
    if (t->ne[1] < 1 || t->ne[1] > MAX_DIM)
        return CW_FAIL(r->err, CW_STATUS_FORMAT, "tensor blk.%d.ffn_gate_shexp.weight has %lld rows",
                       c->n_dense, (long long)t->ne[1]);
    c->d_shared = (int)t->ne[1];
    return CW_OK;
}

static cw_status read_moe(reader *r, const cw_model_options *opt)
{
    cw_model_config *c = r->c;
    char key[96];
    int gate;
    double scale;
    CW_TRY(read_int(r, "expert_used_count", REQUIRED, 1, CW_MAX_EXPERTS_USED, &c->n_used));
    if (c->n_used > c->n_experts)
        return CW_FAIL(r->err, CW_STATUS_FORMAT, "%d of %d experts are to be used", c->n_used, c->n_experts);
    CW_TRY(read_int(r, "expert_feed_forward_length", REQUIRED, 1, MAX_DIM, &c->d_expert));
    CW_TRY(read_shared(r));

    CW_TRY(read_int(r, "expert_gating_func", 0, 0, 2, &gate));
    if (gate == 0) c->inferred |= CW_INFERRED_GATE;
    c->gate = gate == 0 ? CW_GATE_SOFTMAX : (cw_gate)gate;
    if (!has_key(r, "expert_weights_norm")) c->inferred |= CW_INFERRED_NORM;
    CW_TRY(cw_gguf_get_bool_or(r->g, key_of(r, "expert_weights_norm", key), false, &c->norm_weights, r->err));
    CW_TRY(read_float(r, "expert_weights_scale", 0, 0, 1e6, &scale));
    if (scale == 0) c->inferred |= CW_INFERRED_SCALE;
    c->weights_scale = scale == 0 ? 1 : (float)scale;
    c->gate_bias = cw_layer_tensor(r->g, c->n_dense, "exp_probs_b.bias") != NULL;
    return read_groups(r, opt);
}

/* The last proof: every tensor the engine will read is there,
 * of a type it can compute with, in the shape the numbers ask. */
static cw_status check_tensors(reader *r)
{
    cw_model_tensors t;
    CW_TRY(cw_model_tensors_find(r->g, r->c, &t, r->err));
    cw_model_tensors_drop(&t);
    return CW_OK;
}

cw_status cw_model_config_read(const cw_gguf *g, const cw_model_options *opt, cw_model_config *out,
                               cw_err *err)
{
    cw_model_config c = {0};
    reader r = {g, &c, err};
    CW_TRY(read_arch(&r));
    read_name(&r);
    CW_TRY(read_ints(&r));
    CW_TRY(read_vocab(&r));
    CW_TRY(c.mla ? read_mla(&r) : read_gqa(&r));
    CW_TRY(read_rope(&r));
    if (c.n_experts == 0 || c.n_dense > c.n_layers) c.n_dense = c.n_layers;
    if (c.n_dense == c.n_layers) c.n_experts = 0; /* no block routes */
    if (c.n_dense > 0 && c.d_ff == 0)
        return CW_FAIL(err, CW_STATUS_FORMAT, "feed_forward_length is missing, and %d blocks need it",
                       c.n_dense);
    if (c.n_experts > 0) CW_TRY(read_moe(&r, opt));
    CW_TRY(check_tensors(&r));
    *out = c;
    return CW_OK;
}
