/* Reading a model's configuration: what the keys mean, what
 * absent keys default to, what a hostile file may not say. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/engine.h"
#include "cw/model_config.h"
#include "model_file.h"
#include "rope.h"

static cw_model_config read_ok(const model_spec *s, const cw_model_options *opt)
{
    cw_gguf *g = model_file_open(s);
    cw_model_config c;
    cw_err err;
    if (cw_model_config_read(g, opt, &c, &err) != CW_OK) fail_msg("%s", err.text);
    model_file_close(&g);
    return c;
}

static void read_fails(const model_spec *s, cw_status code, const char *part)
{
    cw_gguf *g = model_file_open(s);
    cw_model_config c;
    memset(&c, 0x5a, sizeof c);
    const cw_model_config untouched = c;
    cw_err err;
    cw_status got = cw_model_config_read(g, NULL, &c, &err);
    if (got != code)
        fail_msg("%s instead of %s: %s", cw_status_name(got), cw_status_name(code), got ? err.text : "");
    if (!strstr(err.text, part)) fail_msg("\"%s\" does not name %s", err.text, part);
    assert_memory_equal(&c, &untouched, sizeof c);
    model_file_close(&g);
}

static void absent_keys_get_the_defaults_of_their_model(void **state)
{
    (void)state;
    model_spec s = model_spec_v3();
    cw_model_config c = read_ok(&s, NULL);
    assert_int_equal(c.gate, CW_GATE_SOFTMAX);
    assert_false(c.norm_weights);
    assert_true(c.weights_scale == 1);
    assert_int_equal(c.n_groups, 1);
    assert_int_equal(c.n_groups_used, 1);
    assert_true(c.gate_bias);
    assert_int_equal(c.inferred,
                     CW_INFERRED_GATE | CW_INFERRED_NORM | CW_INFERRED_SCALE | CW_INFERRED_GROUPS);
    assert_true(fabsf(c.attn_scale - 1 / sqrtf(48)) < 1e-7f);

    s.keys[0] =
        (model_key){"expert_weights_scale", SET_F32, 0, NULL}; /* some converters write 0 for "none" */
    s.keys[1] = (model_key){"expert_gating_func", SET_U32, 2, NULL};
    s.keys[2] = (model_key){"expert_weights_norm", SET_BOOL, 1, NULL};
    s.keys[3] = (model_key){"expert_group_count", SET_U32, 4, NULL};
    s.keys[4] = (model_key){"expert_group_used_count", SET_U32, 2, NULL};
    c = read_ok(&s, NULL);
    assert_true(c.weights_scale == 1);
    assert_int_equal(c.gate, CW_GATE_SIGMOID);
    assert_true(c.norm_weights);
    assert_int_equal(c.n_groups, 4);
    assert_int_equal(c.n_groups_used, 2);
    assert_int_equal(c.inferred, CW_INFERRED_SCALE);
}

static void groups_are_inferred_for_the_models_that_need_them(void **state)
{
    (void)state;
    static const struct {
        int experts;
        bool bias;
        int gate, groups, used;
    } rows[] = {{256, true, 2, 8, 4},  {256, false, 2, 1, 1}, {160, false, 1, 8, 3},
                {160, false, 2, 1, 1}, {64, false, 1, 1, 1},  {64, true, 2, 1, 1}};
    for (size_t i = 0; i < CW_ARRAY_LEN(rows); i++) {
        model_spec s = model_spec_v3();
        s.experts = rows[i].experts;
        s.gate_bias = rows[i].bias;
        s.keys[0] = (model_key){"expert_gating_func", SET_U32, rows[i].gate, NULL};
        cw_model_config c = read_ok(&s, NULL);
        assert_int_equal(c.n_groups, rows[i].groups);
        assert_int_equal(c.n_groups_used, rows[i].used);
        assert_true(c.inferred & CW_INFERRED_GROUPS);
    }
}

static void an_option_overrides_the_groups(void **state)
{
    (void)state;
    model_spec s = model_spec_v3();
    cw_model_config c = read_ok(&s, &(cw_model_options){.n_groups = 4, .n_groups_used = 2});
    assert_int_equal(c.n_groups, 4);
    assert_int_equal(c.n_groups_used, 2);
    assert_false(c.inferred & CW_INFERRED_GROUPS);

    cw_gguf *g = model_file_open(&s);
    cw_err err;
    assert_int_equal(cw_model_config_read(g, &(cw_model_options){.n_groups = 3}, &c, &err),
                     CW_STATUS_INVALID);
    assert_int_equal(cw_model_config_read(g, &(cw_model_options){4, 5}, &c, &err), CW_STATUS_INVALID);
    assert_int_equal(cw_model_config_read(g, &(cw_model_options){-4, 1}, &c, &err), CW_STATUS_INVALID);
    model_file_close(&g);
}

static void next_token_blocks_do_not_run(void **state)
{
    (void)state;
    model_spec s = model_spec_v3();
    s.nextn = 1;
    cw_model_config c = read_ok(&s, NULL);
    assert_int_equal(c.n_layers, 3);
    assert_int_equal(c.n_nextn, 1);
}

static void both_layouts_give_the_same_sizes(void **state)
{
    (void)state;
    model_spec s = model_spec_v3();
    cw_model_config joint = read_ok(&s, NULL);
    s.split_kv = true;
    cw_model_config split = read_ok(&s, NULL);
    assert_true(split.split_kv && !joint.split_kv);
    split.split_kv = false;
    assert_memory_equal(&joint, &split, sizeof joint);
    assert_int_equal(joint.d_nope, 32);
    assert_int_equal(joint.d_rope, 16);
    assert_int_equal(joint.d_v, 32);
    assert_int_equal(joint.q_lora, 32);
}

static void dense_architectures_read_their_heads(void **state)
{
    (void)state;
    model_spec s = model_spec_qwen2();
    cw_model_config c = read_ok(&s, NULL);
    assert_int_equal(c.arch, CW_ARCH_QWEN2);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.d_head, 16);
    assert_true(c.rope_halves && c.tied_output && !c.mla);
    assert_int_equal(c.n_dense, c.n_layers);
    s = model_spec_llama();
    c = read_ok(&s, NULL);
    assert_false(c.rope_halves);
    assert_false(c.tied_output);
}

/* --- rope --- */

static void yarn_has_the_published_numbers(void **state)
{
    (void)state;
    /* DeepSeek-V3: 64 rope dimensions, base 10000, factor 40 over 4096, multiplier 0.1. */
    cw_model_config c = {.d_rope = 64,
                         .rope_base = 10000,
                         .rope_scaling = CW_ROPE_SCALING_YARN,
                         .rope_factor = 40,
                         .rope_orig_ctx = 4096};
    double f[32];
    cw_rope_frequencies(&c, NULL, f);
    /* The ramp goes from dimension 10 (floor of 10.5) to 23 (ceil of 22.5). */
    for (int i = 0; i < 32; i++) {
        double plain = pow(10000, -2.0 * i / 64), ramp = fmin(fmax((i - 10) / 13.0, 0), 1);
        double want = plain / 40 * ramp + plain * (1 - ramp);
        assert_true(fabs(f[i] - want) <= 1e-13 * want);
    }
    assert_true(fabs(f[10] / pow(10000, -20.0 / 64) - 1) < 1e-13);
    assert_true(fabs(f[23] * 40 / pow(10000, -46.0 / 64) - 1) < 1e-13);

    model_spec s = model_spec_v3();
    s.keys[0] = (model_key){"rope.scaling.type", SET_STR, 0, "yarn"};
    s.keys[1] = (model_key){"rope.scaling.factor", SET_F32, 40, NULL};
    s.keys[2] = (model_key){"rope.scaling.original_context_length", SET_U32, 64, NULL};
    s.keys[3] = (model_key){"rope.scaling.yarn_log_multiplier", SET_F32, 0.1, NULL};
    cw_model_config read = read_ok(&s, NULL);
    double m = 1 + (double)0.1f * log(40);
    assert_true(fabs((double)read.attn_scale - m * m / sqrt(48)) < 1e-7);
    assert_int_equal(read.rope_orig_ctx, 64);
}

static void scaling_none_ignores_what_stands_beside_it(void **state)
{
    (void)state;
    model_spec s = model_spec_v3();
    s.keys[0] = (model_key){"rope.scaling.type", SET_STR, 0, "none"};
    s.keys[1] = (model_key){"rope.scaling.yarn_log_multiplier", SET_F32, 0.1, NULL};
    s.keys[2] = (model_key){"rope.scaling.factor", SET_F32, 40, NULL};
    cw_model_config c = read_ok(&s, NULL);
    assert_int_equal(c.rope_scaling, CW_ROPE_SCALING_NONE);
    assert_true(c.rope_factor == 1);
    assert_true(fabsf(c.attn_scale - 1 / sqrtf(48)) < 1e-7f);
}

static void linear_scaling_and_divisors_divide(void **state)
{
    (void)state;
    model_spec s = model_spec_llama();
    s.keys[0] = (model_key){"rope.scaling.factor", SET_F32, 4,
                            NULL}; /* without a type: linear, as older files mean it */
    cw_model_config c = read_ok(&s, NULL);
    assert_int_equal(c.rope_scaling, CW_ROPE_SCALING_LINEAR);
    double f[8];
    float divisors[8] = {1, 1, 1, 2, 2, 8, 8, 8};
    cw_rope_frequencies(&c, divisors, f);
    for (int i = 0; i < 8; i++)
        assert_true(fabs(f[i] * 4 * (double)divisors[i] / pow(10000, -i / 8.0) - 1) < 1e-13);
}

static void rotation_pairs_are_adjacent_or_halves(void **state)
{
    (void)state;
    const float cos_row[2] = {0, 1}, sin_row[2] = {1, 0}; /* the first pair turns by 90 degrees */
    float adjacent[4] = {1, 2, 3, 4}, halves[4] = {1, 2, 3, 4};
    cw_rope_apply(adjacent, cos_row, sin_row, 2, false);
    cw_rope_apply(halves, cos_row, sin_row, 2, true);
    assert_memory_equal(adjacent, ((float[]){-2, 1, 3, 4}), sizeof adjacent);
    assert_memory_equal(halves, ((float[]){-3, 2, 1, 4}), sizeof halves);
}

/* --- hostile files --- */

static void an_architecture_cannot_drive_a_terminal(void **state)
{
    (void)state;
    model_spec s = model_spec_llama();
    s.arch = "x\xc2\x9b"
             "2J\xff"; /* U+009B is CSI; ESC is refused in the keys that begin with it */
    read_fails(&s, CW_STATUS_UNSUPPORTED, "\"x??2J?\"");
}

static void bad_numbers_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        model_key key;
        cw_status code;
        const char *part;
    } rows[] = {
        {{"attention.head_count", SET_U32, 0, NULL}, CW_STATUS_FORMAT, "deepseek2.attention.head_count"},
        {{"attention.head_count", SET_U32, 4294967295.0, NULL},
         CW_STATUS_FORMAT,
         "deepseek2.attention.head_count"},
        {{"attention.head_count", SET_STR, 0, "four"}, CW_STATUS_FORMAT, "deepseek2.attention.head_count"},
        {{"attention.head_count", SET_NOTHING, 0, NULL},
         CW_STATUS_NOT_FOUND,
         "deepseek2.attention.head_count"},
        {{"attention.head_count", SET_U32, 5, NULL}, CW_STATUS_FORMAT, "attn_q_b.weight"},
        {{"block_count", SET_U32, 0, NULL}, CW_STATUS_FORMAT, "block_count"},
        {{"block_count", SET_U32, 1e9, NULL}, CW_STATUS_FORMAT, "block_count"},
        {{"block_count", SET_U32, 4, NULL}, CW_STATUS_NOT_FOUND, "blk.3."},
        {{"nextn_predict_layers", SET_U32, 3, NULL}, CW_STATUS_FORMAT, "nextn_predict_layers"},
        {{"embedding_length", SET_U32, 0, NULL}, CW_STATUS_FORMAT, "embedding_length"},
        {{"embedding_length", SET_U32, 65, NULL}, CW_STATUS_FORMAT, "token_embd.weight"},
        {{"context_length", SET_U32, 0, NULL}, CW_STATUS_FORMAT, "context_length"},
        {{"attention.kv_lora_rank", SET_U32, 0, NULL}, CW_STATUS_FORMAT, "kv_lora_rank"},
        {{"attention.kv_lora_rank", SET_U32, 64, NULL}, CW_STATUS_FORMAT, "attn_kv_a_mqa.weight"},
        {{"attention.key_length", SET_U32, 16, NULL}, CW_STATUS_FORMAT, "16"},
        {{"attention.key_length", SET_U32, 262144, NULL}, CW_STATUS_FORMAT, "too wide"},
        {{"attention.value_length", SET_U32, 0, NULL}, CW_STATUS_FORMAT, "value_length"},
        {{"attention.layer_norm_rms_epsilon", SET_F32, NAN, NULL}, CW_STATUS_FORMAT, "epsilon"},
        {{"attention.layer_norm_rms_epsilon", SET_F32, -1, NULL}, CW_STATUS_FORMAT, "epsilon"},
        {{"rope.dimension_count", SET_U32, 15, NULL}, CW_STATUS_FORMAT, "15"},
        {{"rope.dimension_count", SET_U32, 0, NULL}, CW_STATUS_FORMAT, "rope.dimension_count"},
        {{"rope.freq_base", SET_F32, 0, NULL}, CW_STATUS_FORMAT, "rope.freq_base"},
        {{"rope.freq_base", SET_F32, INFINITY, NULL}, CW_STATUS_FORMAT, "rope.freq_base"},
        {{"rope.scaling.type", SET_STR, 0, "longrope"}, CW_STATUS_UNSUPPORTED, "longrope"},
        {{"rope.scaling.factor", SET_F32, NAN, NULL}, CW_STATUS_FORMAT, "rope.scaling.factor"},
        {{"expert_count", SET_U32, 1e6, NULL}, CW_STATUS_FORMAT, "expert_count"},
        {{"expert_count", SET_U32, 9, NULL}, CW_STATUS_FORMAT, "ffn_gate_inp.weight"},
        {{"expert_used_count", SET_U32, 0, NULL}, CW_STATUS_FORMAT, "expert_used_count"},
        {{"expert_used_count", SET_U32, 9, NULL}, CW_STATUS_FORMAT, "9 of 8"},
        {{"expert_used_count", SET_U32, 65, NULL}, CW_STATUS_FORMAT, "expert_used_count"},
        {{"expert_shared_count", SET_U32, 1e9, NULL}, CW_STATUS_FORMAT, "expert_shared_count"},
        {{"expert_feed_forward_length", SET_U32, 33, NULL}, CW_STATUS_FORMAT, "ffn_gate_exps.weight"},
        {{"expert_gating_func", SET_U32, 3, NULL}, CW_STATUS_FORMAT, "expert_gating_func"},
        {{"expert_group_count", SET_U32, 3, NULL}, CW_STATUS_FORMAT, "3 groups"},
        {{"expert_group_count", SET_U32, 8, NULL}, CW_STATUS_FORMAT, "too small"},
        {{"expert_weights_scale", SET_F32, INFINITY, NULL}, CW_STATUS_FORMAT, "expert_weights_scale"},
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(rows); i++) {
        model_spec s = model_spec_v3();
        s.keys[0] = rows[i].key;
        read_fails(&s, rows[i].code, rows[i].part);
    }
}

static void bad_dense_models_are_refused(void **state)
{
    (void)state;
    static const struct {
        model_key key;
        cw_status code;
        const char *part;
    } rows[] = {
        {{"attention.head_count_kv", SET_U32, 3, NULL}, CW_STATUS_FORMAT, "3 key/value heads"},
        {{"attention.head_count_kv", SET_U32, 0, NULL}, CW_STATUS_FORMAT, "head_count_kv"},
        {{"attention.head_count_kv", SET_U32, 1, NULL}, CW_STATUS_FORMAT, "attn_k.weight"},
        {{"attention.value_length", SET_U32, 8, NULL}, CW_STATUS_UNSUPPORTED, "value length 8"},
        {{"rope.dimension_count", SET_U32, 18, NULL}, CW_STATUS_FORMAT, "rope.dimension_count"},
        {{"expert_count", SET_U32, 8, NULL}, CW_STATUS_UNSUPPORTED, "8 experts"},
        {{"rope.scaling.attn_factor", SET_F32, 2, NULL}, CW_STATUS_UNSUPPORTED, "attn_factor"},
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(rows); i++) {
        model_spec s = model_spec_llama();
        s.keys[0] = rows[i].key;
        read_fails(&s, rows[i].code, rows[i].part);
    }
    model_spec s = model_spec_llama();
    s.arch = "mamba";
    read_fails(&s, CW_STATUS_UNSUPPORTED, "mamba");
}

static void every_tensor_is_missed_and_measured_by_name(void **state)
{
    (void)state;
    static const char *const names[] = {
        "token_embd.weight",           "output_norm.weight",         "blk.0.attn_norm.weight",
        "blk.0.attn_q_b.weight",       "blk.1.attn_q_a_norm.weight", "blk.2.attn_kv_a_mqa.weight",
        "blk.1.attn_kv_a_norm.weight", "blk.1.attn_kv_b.weight",     "blk.0.attn_output.weight",
        "blk.0.ffn_norm.weight",       "blk.0.ffn_gate.weight",      "blk.0.ffn_up.weight",
        "blk.0.ffn_down.weight",       "blk.1.ffn_gate_inp.weight",  "blk.2.exp_probs_b.bias",
        "blk.1.ffn_gate_exps.weight",  "blk.1.ffn_up_exps.weight",   "blk.2.ffn_down_exps.weight",
        "blk.1.ffn_gate_shexp.weight", "blk.2.ffn_up_shexp.weight",  "blk.1.ffn_down_shexp.weight"};
    for (size_t i = 0; i < CW_ARRAY_LEN(names); i++) {
        model_spec s = model_spec_v3();
        s.omit_tensor = names[i];
        read_fails(&s, CW_STATUS_NOT_FOUND, names[i]);
        s.omit_tensor = NULL;
        s.bend_tensor = names[i];
        /* The vocabulary and the width of the shared experts are what
         * their tensors say; others then disagree. */
        bool defines = i == 0 || strstr(names[i], "blk.1.ffn_gate_shexp");
        read_fails(&s, CW_STATUS_FORMAT, i == 0 ? "output.weight" : defines ? "shexp" : names[i]);
    }
}

static void values_that_are_not_finite_are_refused_at_load(void **state)
{
    (void)state;
    static const char *const names[] = {"blk.0.attn_norm.weight",    "blk.1.exp_probs_b.bias",
                                        "blk.1.ffn_gate_inp.weight", "blk.0.attn_output.weight",
                                        "blk.1.attn_kv_b.weight",    "blk.2.ffn_up_exps.weight"};
    for (size_t i = 0; i < 2 * CW_ARRAY_LEN(names); i++) { /* once with one thread, once with three */
        model_spec s = model_spec_v3();
        const char *name = s.nan_tensor = names[i / 2];
        cw_gguf *g = model_file_open(&s);
        cw_engine *e = NULL;
        cw_err err;
        assert_int_equal(cw_engine_open(g, &(cw_engine_options){.n_threads = 1}, &e, &err), CW_STATUS_FORMAT);
        assert_null(e);
        if (!strstr(err.text, name)) fail_msg("\"%s\" does not name %s", err.text, name);
        model_file_close(&g);
    }
}

static void description_adds_up(void **state)
{
    (void)state;
    model_spec s = model_spec_v3();
    s.type = CW_TYPE_Q8_0;
    cw_gguf *g = model_file_open(&s);
    cw_model_facts f;
    cw_engine *local = NULL, *edge = NULL;
    assert_int_equal(cw_model_describe(g, NULL, &f, NULL), CW_OK);
    assert_int_equal(cw_engine_open(g, &(cw_engine_options){.n_threads = 1}, &local, NULL), CW_OK);
    assert_int_equal(
        cw_engine_open(g, &(cw_engine_options){.role = CW_ENGINE_EDGE, .n_threads = 1}, &edge, NULL), CW_OK);
    assert_int_equal(f.expert_bytes, f.one_expert_bytes * 2 * 8);
    assert_int_equal(cw_engine_weight_bytes(local) - cw_engine_weight_bytes(edge), f.expert_bytes);
    /* The engine also holds rope frequencies, head tables and padding. */
    assert_in_range(cw_engine_weight_bytes(edge), f.edge_bytes, f.edge_bytes + 16384);
    assert_int_equal(f.n_types, 2);
    assert_int_equal(f.types[0].type, CW_TYPE_F32);
    assert_int_equal(f.types[1].type, CW_TYPE_Q8_0);
    assert_int_equal(f.types[0].bytes + f.types[1].bytes, f.file_bytes);
    assert_int_equal(f.n_ignored, 0);
    assert_int_equal(f.kv_bytes_per_token, 3 * 48 * 2);
    cw_engine_close(&local);
    cw_engine_close(&edge);
    model_file_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absent_keys_get_the_defaults_of_their_model),
        cmocka_unit_test(groups_are_inferred_for_the_models_that_need_them),
        cmocka_unit_test(an_option_overrides_the_groups),
        cmocka_unit_test(next_token_blocks_do_not_run),
        cmocka_unit_test(both_layouts_give_the_same_sizes),
        cmocka_unit_test(dense_architectures_read_their_heads),
        cmocka_unit_test(yarn_has_the_published_numbers),
        cmocka_unit_test(scaling_none_ignores_what_stands_beside_it),
        cmocka_unit_test(linear_scaling_and_divisors_divide),
        cmocka_unit_test(rotation_pairs_are_adjacent_or_halves),
        cmocka_unit_test(an_architecture_cannot_drive_a_terminal),
        cmocka_unit_test(bad_numbers_are_refused_by_name),
        cmocka_unit_test(bad_dense_models_are_refused),
        cmocka_unit_test(every_tensor_is_missed_and_measured_by_name),
        cmocka_unit_test(values_that_are_not_finite_are_refused_at_load),
        cmocka_unit_test(description_adds_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
