/* Small models of every kind the engine knows, as GGUF files in memory, well formed or bent in one place. */
#pragma once
#include "cw/gguf.h"
#include "cw/type.h"

/* A metadata value that replaces or adds to what the builder writes. */
typedef struct {
    const char *suffix; /* "expert_count": the architecture is put before it */
    enum { SET_U32 = 1, SET_F32, SET_BOOL, SET_STR, SET_NOTHING } kind; /* SET_NOTHING: the key is left out */
    double number;
    const char *text;
} model_key;

typedef struct {
    const char *arch;
    int vocab, layers, nextn, ctx, d, ff, heads, kv_heads, d_head;
    int q_lora, kv_lora, nope, rope, v;
    int experts, used, shared, d_expert, dense;
    bool gate_bias, split_kv, tied, qkv_bias, rope_divisors;
    bool only_nextn;  /* a companion file: the nextn blocks of a model that is otherwise the same */
    bool dense_nextn; /* they have no experts */
    uint32_t type, gate_type,
        down_type; /* matrices; routed gate_exps and down_exps where not 0 (F32 as in `type`) */
    model_key keys[8];
    const char *omit_tensor; /* left out */
    const char *bend_tensor; /* its row count is one more */
    const char *nan_tensor;  /* its first value is NaN (f32 tensors) */
    uint64_t seed;
} model_spec;

/* As small as a V3-like model can be, for fuzzing. */
model_spec model_spec_tiny(void);
/* A V3-like model with everything, a Llama and a Qwen 2, all in f32. */
model_spec model_spec_v3(void);
model_spec model_spec_llama(void);
model_spec model_spec_qwen2(void);

uint8_t *model_file_bytes(const model_spec *spec, size_t *n);
/* Opens it from memory; model_file_close frees both. Aborts when it does not open. */
cw_gguf *model_file_open(const model_spec *spec);
void model_file_close(cw_gguf **g);
