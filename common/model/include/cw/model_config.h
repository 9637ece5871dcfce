/*
 * What a model is: every number the engine needs, read once from GGUF metadata and tensor shapes.
 *
 * The file is hostile: each value is bounded here, and the derived numbers below are consistent with each
 * other and with the shape of every tensor the engine will read, or cw_model_config_read fails naming the key
 * or tensor. Formulas: docs/MODEL.md. Nothing here changes after reading; share freely between threads.
 */
#pragma once
#include "cw/gguf.h"
#include "cw/status.h"

typedef enum { CW_ARCH_DEEPSEEK2, CW_ARCH_LLAMA, CW_ARCH_QWEN2 } cw_arch;
typedef enum { CW_ROPE_SCALING_NONE, CW_ROPE_SCALING_LINEAR, CW_ROPE_SCALING_YARN } cw_rope_scaling;
/* Values as in GGUF's expert_gating_func. */
typedef enum { CW_GATE_SOFTMAX = 1, CW_GATE_SIGMOID = 2 } cw_gate;

/* Bits of cw_model_config.inferred: the file has no such key,
 * and this value is our default for its kind of model. */
enum {
    CW_INFERRED_GATE = 1 << 0,
    CW_INFERRED_NORM = 1 << 1,
    CW_INFERRED_SCALE = 1 << 2,
    CW_INFERRED_GROUPS = 1 << 3,
    CW_INFERRED_CTX = 1 << 4,
    CW_INFERRED_YARN_MUL = 1 << 5,
};

/* Upper bounds of what a file may claim; far above any known model, low enough that products fit in 64 bits.
 */
enum { CW_MAX_LAYERS = 512, CW_MAX_EXPERTS = 4096, CW_MAX_EXPERTS_USED = 64 };

typedef struct {
    cw_arch arch;
    char name[128]; /* general.name, or the architecture's name; printable */
    int n_layers;   /* blocks that run: block_count - nextn_predict_layers */
    int n_nextn;    /* multi-token-prediction blocks in the file, skipped */
    int n_vocab, d_model, d_ff;
    int n_ctx_train;
    float norm_eps;
    bool tied_output; /* no output.weight: token_embd.weight is used */

    /* Attention. MLA (deepseek2): per head d_nope + d_rope query values against a shared latent row.
       Otherwise grouped-query attention: d_head values a head, n_kv_heads shared by n_heads. */
    int n_heads, n_kv_heads;
    bool mla;
    bool split_kv; /* attn_k_b and attn_v_b instead of attn_kv_b */
    int q_lora;    /* 0: queries straight from the hidden state */
    int kv_lora, d_nope, d_rope, d_v;
    int d_head;
    float attn_scale; /* of q.k before the softmax; holds YaRN's factor */

    double rope_base;
    cw_rope_scaling rope_scaling;
    double rope_factor;
    int rope_orig_ctx;
    double yarn_log_mul;
    bool rope_halves; /* pairs (i, i + d/2) instead of (2i, 2i + 1) */

    /* Experts; n_experts = 0 for a dense model. */
    int n_experts, n_used, n_shared, d_expert, d_shared;
    int n_dense; /* leading blocks with an ordinary feed-forward */
    cw_gate gate;
    bool gate_bias; /* exp_probs_b.bias present */
    bool norm_weights;
    float weights_scale;
    int n_groups, n_groups_used;

    unsigned inferred;
} cw_model_config;

/* Overrides of what the file says or leaves open; zero means "as the file has it". */
typedef struct {
    int n_groups, n_groups_used;
} cw_model_options;

/* Reads and checks; `opt` may be NULL. FORMAT, UNSUPPORTED or INVALID (an override that does not fit). */
CW_MUST_USE cw_status cw_model_config_read(const cw_gguf *g, const cw_model_options *opt,
                                           cw_model_config *out, cw_err *err);

/* "deepseek2", ... */
const char *cw_arch_name(cw_arch a);

static inline bool cw_layer_is_moe(const cw_model_config *c, int layer)
{
    return c->n_experts > 0 && layer >= c->n_dense;
}

/* What `causeway inspect` prints: sizes in bytes as stored in
 * the file, and packed as they would be held in memory. */
typedef struct {
    cw_model_config config;
    uint64_t n_params;
    uint64_t file_bytes;         /* all tensors that are used */
    uint64_t edge_bytes;         /* packed: everything but routed experts */
    uint64_t expert_bytes;       /* packed: all routed experts */
    uint64_t one_expert_bytes;   /* packed: one routed expert of the largest layer */
    uint64_t kv_bytes_per_token; /* with KV type auto */
    uint32_t n_ignored;          /* tensors this version does not use */
    /* Tensors and stored bytes by GGUF type number, ascending; n_types entries. */
    struct {
        uint32_t type, n_tensors;
        uint64_t bytes;
    } types[48];
    int n_types;
} cw_model_facts;

CW_MUST_USE cw_status cw_model_describe(const cw_gguf *g, const cw_model_options *opt, cw_model_facts *out,
                                        cw_err *err);
