#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include "cw/bytes.h"
#include "gguf_writer.h"
#include "model_file.h"

model_spec model_spec_v3(void)
{
    return (model_spec){.arch = "deepseek2",
                        .vocab = 96,
                        .layers = 3,
                        .ctx = 512,
                        .d = 64,
                        .ff = 96,
                        .heads = 4,
                        .q_lora = 32,
                        .kv_lora = 32,
                        .nope = 32,
                        .rope = 16,
                        .v = 32,
                        .experts = 8,
                        .used = 2,
                        .shared = 1,
                        .d_expert = 32,
                        .dense = 1,
                        .gate_bias = true,
                        .seed = 1};
}

model_spec model_spec_tiny(void)
{
    model_spec s = model_spec_v3();
    s.vocab = s.d = s.ff = s.d_expert = s.nope = s.v = 32;
    s.layers = s.heads = 2;
    s.experts = 4;
    return s;
}

model_spec model_spec_llama(void)
{
    return (model_spec){.arch = "llama",
                        .vocab = 96,
                        .layers = 2,
                        .ctx = 512,
                        .d = 64,
                        .ff = 96,
                        .heads = 4,
                        .kv_heads = 2,
                        .d_head = 16,
                        .rope = 16,
                        .seed = 2};
}

model_spec model_spec_qwen2(void)
{
    model_spec s = model_spec_llama();
    s.arch = "qwen2";
    s.qkv_bias = true;
    s.tied = true;
    return s;
}

typedef struct {
    const model_spec *s;
    gguf_writer *w;
    uint64_t rng;
} builder;

static double uniform(builder *b)
{
    b->rng = b->rng * 6364136223846793005u + 1442695040888963407u;
    return (double)(b->rng >> 11) * 0x1p-53 * 2 - 1;
}

static const model_key *override_of(const builder *b, const char *suffix)
{
    for (size_t i = 0; i < CW_ARRAY_LEN(b->s->keys); i++)
        if (b->s->keys[i].suffix && strcmp(b->s->keys[i].suffix, suffix) == 0) return &b->s->keys[i];
    return NULL;
}

static void put_key(builder *b, const char *suffix, const model_key *k)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", b->s->arch, suffix);
    switch (k->kind) {
    case SET_U32: gguf_writer_u32(b->w, key, (uint32_t)k->number); break;
    case SET_F32: gguf_writer_f32(b->w, key, (float)k->number); break;
    case SET_BOOL: gguf_writer_bool(b->w, key, k->number != 0); break;
    case SET_STR: gguf_writer_str(b->w, key, k->text); break;
    case SET_NOTHING: break;
    }
}

static void u32(builder *b, const char *suffix, int v)
{
    if (!override_of(b, suffix)) put_key(b, suffix, &(model_key){.kind = SET_U32, .number = v});
}

static void f32(builder *b, const char *suffix, double v)
{
    if (!override_of(b, suffix)) put_key(b, suffix, &(model_key){.kind = SET_F32, .number = v});
}

/* Values around 1/sqrt(k), so that activations stay near 1 through the layers. */
static void fill(builder *b, uint32_t type, uint8_t *dst, int64_t n, int64_t k, double centre)
{
    double scale = centre != 0 ? 0.1 : 1.7 / sqrt((double)k);
    if (type == CW_TYPE_F32)
        for (int64_t i = 0; i < n; i++)
            cw_store_u32(dst + 4 * i, cw_f32_bits((float)(centre + scale * uniform(b))));
    else if (type == CW_TYPE_F16)
        for (int64_t i = 0; i < n; i++)
            cw_store_u16(dst + 2 * i, cw_f32_to_f16((float)(centre + scale * uniform(b))));
    else if (type == CW_TYPE_BF16)
        for (int64_t i = 0; i < n; i++)
            cw_store_u16(dst + 2 * i, (uint16_t)(cw_f32_bits((float)(centre + scale * uniform(b))) >> 16));
    else if (type == CW_TYPE_Q8_0)
        for (int64_t i = 0; i < n / 32; i++) {
            cw_store_u16(dst + 34 * i, cw_f32_to_f16((float)(scale / 127)));
            for (int j = 0; j < 32; j++) dst[34 * i + 2 + j] = (uint8_t)(int8_t)lrint(127 * uniform(b));
        }
    else
        abort();
}

static void tensor(builder *b, const char *name, uint32_t type, int64_t n0, int64_t n1, int64_t n2,
                   double centre)
{
    const model_spec *s = b->s;
    if (s->omit_tensor && strcmp(name, s->omit_tensor) == 0) return;
    bool bent = s->bend_tensor && strcmp(name, s->bend_tensor) == 0;
    int64_t ne[3] = {n0, n1, n2};
    int dims = n2 > 1 ? 3 : n1 > 1 ? 2 : 1;
    if (bent) ne[dims - 1]++;
    size_t row;
    if (!cw_type_row_bytes(type, ne[0], &row)) abort();
    int64_t rows = ne[1] * ne[2];
    uint8_t *data = calloc((size_t)rows, row);
    fill(b, type, data, ne[0] * rows, ne[0], centre);
    if (s->nan_tensor && strcmp(name, s->nan_tensor) == 0) cw_store_u32(data, 0x7fc00000);
    gguf_writer_tensor(b->w, name, type, dims, ne, data, row * (size_t)rows);
    free(data);
}

static void matrix(builder *b, int layer, const char *suffix, int64_t n0, int64_t n1)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, suffix);
    tensor(b, name, b->s->type, n0, n1, 1, 0);
}

static void cube(builder *b, int layer, const char *suffix, uint32_t type, int64_t n0, int64_t n1, int64_t n2)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, suffix);
    tensor(b, name, type ? type : b->s->type, n0, n1, n2, 0);
}

static void vector(builder *b, int layer, const char *suffix, int64_t n, double centre)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%d.%s", layer, suffix);
    tensor(b, name, CW_TYPE_F32, n, 1, 1, centre);
}

static void mla_block(builder *b, int l)
{
    const model_spec *s = b->s;
    int d_q = s->heads * (s->nope + s->rope);
    if (s->q_lora) {
        matrix(b, l, "attn_q_a", s->d, s->q_lora);
        vector(b, l, "attn_q_a_norm.weight", s->q_lora, 1);
        matrix(b, l, "attn_q_b", s->q_lora, d_q);
    } else {
        matrix(b, l, "attn_q", s->d, d_q);
    }
    matrix(b, l, "attn_kv_a_mqa", s->d, s->kv_lora + s->rope);
    vector(b, l, "attn_kv_a_norm.weight", s->kv_lora, 1);
    if (s->split_kv) {
        cube(b, l, "attn_k_b", 0, s->nope, s->kv_lora, s->heads);
        cube(b, l, "attn_v_b", 0, s->kv_lora, s->v, s->heads);
    } else {
        matrix(b, l, "attn_kv_b", s->kv_lora, s->heads * (s->nope + s->v));
    }
    matrix(b, l, "attn_output", s->heads * s->v, s->d);
}

static void gqa_block(builder *b, int l)
{
    const model_spec *s = b->s;
    matrix(b, l, "attn_q", s->d, s->heads * s->d_head);
    matrix(b, l, "attn_k", s->d, s->kv_heads * s->d_head);
    matrix(b, l, "attn_v", s->d, s->kv_heads * s->d_head);
    if (s->qkv_bias) {
        vector(b, l, "attn_q.bias", s->heads * s->d_head, 0.5);
        vector(b, l, "attn_k.bias", s->kv_heads * s->d_head, -0.5);
        vector(b, l, "attn_v.bias", s->kv_heads * s->d_head, 0.25);
    }
    matrix(b, l, "attn_output", s->heads * s->d_head, s->d);
}

static void feed_forward(builder *b, int l, const char *end, int width)
{
    char name[32];
    snprintf(name, sizeof name, "ffn_gate%.8s", end);
    matrix(b, l, name, b->s->d, width);
    snprintf(name, sizeof name, "ffn_up%.8s", end);
    matrix(b, l, name, b->s->d, width);
    snprintf(name, sizeof name, "ffn_down%.8s", end);
    matrix(b, l, name, width, b->s->d);
}

static void moe_block(builder *b, int l)
{
    const model_spec *s = b->s;
    char name[64];
    snprintf(name, sizeof name, "blk.%d.ffn_gate_inp.weight", l);
    tensor(b, name, CW_TYPE_F32, s->d, s->experts, 1, 0);
    if (s->gate_bias) vector(b, l, "exp_probs_b.bias", s->experts, 0);
    cube(b, l, "ffn_gate_exps", s->gate_type, s->d, s->d_expert, s->experts);
    cube(b, l, "ffn_up_exps", 0, s->d, s->d_expert, s->experts);
    cube(b, l, "ffn_down_exps", s->down_type, s->d_expert, s->d, s->experts);
    if (s->shared) feed_forward(b, l, "_shexp", s->shared * s->d_expert);
}

static void keys(builder *b)
{
    const model_spec *s = b->s;
    bool mla = strcmp(s->arch, "deepseek2") == 0;
    gguf_writer_str(b->w, "general.architecture", s->arch);
    u32(b, "block_count", s->layers + s->nextn);
    if (s->nextn) u32(b, "nextn_predict_layers", s->nextn);
    u32(b, "context_length", s->ctx);
    u32(b, "embedding_length", s->d);
    u32(b, "feed_forward_length", s->ff);
    u32(b, "attention.head_count", s->heads);
    u32(b, "attention.head_count_kv", mla ? (s->split_kv ? 1 : s->heads) : s->kv_heads);
    f32(b, "attention.layer_norm_rms_epsilon", 1e-6);
    f32(b, "rope.freq_base", 10000);
    u32(b, "rope.dimension_count", s->rope);
    if (mla) {
        u32(b, "attention.kv_lora_rank", s->kv_lora);
        u32(b, "attention.key_length", s->split_kv ? s->kv_lora + s->rope : s->nope + s->rope);
        u32(b, "attention.value_length", s->split_kv ? s->kv_lora : s->v);
        if (s->split_kv) u32(b, "attention.key_length_mla", s->nope + s->rope);
        if (s->split_kv) u32(b, "attention.value_length_mla", s->v);
        u32(b, "expert_count", s->experts);
        u32(b, "expert_used_count", s->used);
        u32(b, "expert_shared_count", s->shared);
        u32(b, "expert_feed_forward_length", s->d_expert);
        u32(b, "leading_dense_block_count", s->dense);
    }
    for (size_t i = 0; i < CW_ARRAY_LEN(s->keys); i++)
        if (s->keys[i].suffix) put_key(b, s->keys[i].suffix, &s->keys[i]);
}

static void block(builder *b, int l)
{
    const model_spec *s = b->s;
    vector(b, l, "attn_norm.weight", s->d, 1);
    if (strcmp(s->arch, "deepseek2") == 0)
        mla_block(b, l);
    else
        gqa_block(b, l);
    vector(b, l, "ffn_norm.weight", s->d, 1);
    if (s->experts && l >= s->dense && !(l >= s->layers && s->dense_nextn))
        moe_block(b, l);
    else
        feed_forward(b, l, "", s->ff);
}

static void nextn_block(builder *b, int l)
{
    vector(b, l, "nextn.enorm.weight", b->s->d, 1);
    vector(b, l, "nextn.hnorm.weight", b->s->d, 1);
    matrix(b, l, "nextn.eh_proj", 2 * b->s->d, b->s->d);
    vector(b, l, "nextn.shared_head_norm.weight", b->s->d, 1);
    block(b, l);
}

uint8_t *model_file_bytes(const model_spec *s, size_t *n)
{
    builder b = {s, gguf_writer_new(), s->seed};
    keys(&b);
    if (!s->only_nextn) {
        tensor(&b, "token_embd.weight", s->type, s->d, s->vocab, 1, 0);
        tensor(&b, "output_norm.weight", CW_TYPE_F32, s->d, 1, 1, 1);
        if (!s->tied) tensor(&b, "output.weight", s->type, s->d, s->vocab, 1, 0);
        if (s->rope_divisors) tensor(&b, "rope_freqs.weight", CW_TYPE_F32, s->rope / 2, 1, 1, 4);
        for (int l = 0; l < s->layers; l++) block(&b, l);
    }
    for (int l = 0; l < s->nextn; l++) nextn_block(&b, s->layers + l);
    uint8_t *bytes = gguf_writer_bytes(b.w, n);
    gguf_writer_free(&b.w);
    return bytes;
}

static struct {
    cw_gguf *g;
    uint8_t *bytes;
} opened[8];

cw_gguf *model_file_open(const model_spec *s)
{
    size_t i = 0, n;
    while (opened[i].g) i++;
    if (i + 1 >= CW_ARRAY_LEN(opened)) abort();
    cw_err err;
    opened[i].bytes = model_file_bytes(s, &n);
    if (cw_gguf_open_memory(opened[i].bytes, n, "made", &opened[i].g, &err) != CW_OK) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    return opened[i].g;
}

void model_file_close(cw_gguf **g)
{
    size_t i = 0;
    while (opened[i].g != *g) i++;
    cw_gguf_close(g);
    free(opened[i].bytes);
    opened[i].g = NULL;
}
