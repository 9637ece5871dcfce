/* The account of phases: bytes are those of the matrices a pass reads, times cover the pass, off means off.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/clock.h"
#include "cw/phases.h"
#include "model_file.h"

typedef struct {
    cw_engine *e;
    cw_session *s;
} rig;

static rig rig_open(const model_spec *spec)
{
    cw_gguf *g = model_file_open(spec);
    rig r = {0};
    cw_err err;
    cw_engine_options opt = {.n_threads = 2, .max_rows = 16};
    if (cw_engine_open(g, &opt, &r.e, &err) != CW_OK) fail_msg("%s", err.text);
    model_file_close(&g);
    if (cw_session_new(r.e, NULL, &r.s, &err) != CW_OK) fail_msg("%s", err.text);
    return r;
}

static void rig_close(rig *r)
{
    cw_session_free(&r->s);
    cw_engine_close(&r->e);
}

/* One pass of n tokens; its account. */
static cw_engine_phases pass(rig *r, int n, bool logits)
{
    int32_t tokens[16];
    float out[256];
    cw_err err;
    cw_engine_phases p;
    for (int i = 0; i < n; i++) tokens[i] = (i * 11 + 5) % cw_engine_config(r->e)->n_vocab;
    cw_session_rewind(r->s, 0);
    cw_batch_item item = {
        .session = r->s, .tokens = tokens, .n_tokens = n, .n_logits = logits ? 1 : 0, .logits = out};
    if (cw_engine_forward(r->e, &item, 1, NULL, &err) != CW_OK) fail_msg("%s", err.text);
    cw_engine_phases_get(r->e, &p);
    return p;
}

static uint64_t packed(uint32_t type, int64_t n, int64_t k)
{
    size_t bytes;
    assert_int_equal(cw_weight_bytes(type, n, k, &bytes, NULL), CW_OK);
    return bytes;
}

static void a_token_reads_every_dense_matrix_and_its_experts(void **state)
{
    (void)state;
    model_spec spec = model_spec_v3();
    spec.type = CW_TYPE_Q8_0;
    rig r = rig_open(&spec);
    const cw_model_config *c = cw_engine_config(r.e);
    uint64_t expect[CW_PHASE_COUNT] = {0}, model[CW_PHASE_COUNT];
    uint32_t q8 = CW_TYPE_Q8_0;
    uint64_t heads = (uint64_t)c->n_heads;
    int moe = c->n_layers - c->n_dense;
    assert_true(c->mla && c->q_lora > 0 && c->n_dense > 0 && moe > 0 && c->d_shared > 0);
    /* kv_b in the file becomes k_b and v_b, head by head. */
    uint64_t attention = packed(q8, c->q_lora, c->d_model) + packed(q8, c->n_heads * c->d_head, c->q_lora) +
                         packed(q8, c->kv_lora + c->d_rope, c->d_model) +
                         packed(q8, c->d_model, c->n_heads * c->d_v) +
                         heads * (packed(q8, c->d_v, c->kv_lora) +
                                  packed(c->d_nope % 32 ? CW_TYPE_F32 : CW_TYPE_Q8_0, c->kv_lora, c->d_nope));
    uint64_t expert = 2 * packed(q8, c->d_expert, c->d_model) + packed(q8, c->d_model, c->d_expert);
    expect[CW_PHASE_ATTENTION] = (uint64_t)c->n_layers * attention;
    expect[CW_PHASE_ROUTER] = (uint64_t)moe * packed(CW_TYPE_F32, c->n_experts, c->d_model);
    expect[CW_PHASE_EXPERTS] = (uint64_t)moe * (uint64_t)c->n_used * expert;
    expect[CW_PHASE_FFN] =
        (uint64_t)c->n_dense * (2 * packed(q8, c->d_ff, c->d_model) + packed(q8, c->d_model, c->d_ff)) +
        (uint64_t)moe * (2 * packed(q8, c->d_shared, c->d_model) + packed(q8, c->d_model, c->d_shared));
    expect[CW_PHASE_LOGITS] = packed(q8, c->n_vocab, c->d_model);

    cw_engine_token_bytes(r.e, model);
    assert_memory_equal(model, expect, sizeof expect);
    cw_engine_phases_reset(r.e, true);
    cw_engine_phases p = pass(&r, 1, true);
    assert_memory_equal(p.weight_bytes, expect, sizeof expect);
    assert_int_equal(p.passes, 1);
    assert_int_equal(p.rows, 1);
    assert_int_equal(p.expert_rows, moe * c->n_used);
    assert_int_equal(p.experts_read, moe * c->n_used);
    rig_close(&r);
}

static void rows_share_what_they_read(void **state)
{
    (void)state;
    model_spec spec = model_spec_v3();
    spec.type = CW_TYPE_Q8_0;
    rig r = rig_open(&spec);
    const cw_model_config *c = cw_engine_config(r.e);
    uint64_t token[CW_PHASE_COUNT];
    cw_engine_token_bytes(r.e, token);
    cw_engine_phases_reset(r.e, true);
    cw_engine_phases p = pass(&r, 16, false);
    uint64_t moe = (uint64_t)(c->n_layers - c->n_dense), most = moe * (uint64_t)c->n_experts;
    assert_int_equal(p.rows, 16);
    assert_int_equal(p.weight_bytes[CW_PHASE_ATTENTION], token[CW_PHASE_ATTENTION]);
    assert_int_equal(p.weight_bytes[CW_PHASE_LOGITS], 0); /* nobody asked for any */
    assert_int_equal(p.expert_rows, 16 * moe * (uint64_t)c->n_used);
    assert_in_range(p.experts_read, moe * (uint64_t)c->n_used + 1, most);
    assert_int_equal(p.weight_bytes[CW_PHASE_EXPERTS] * moe * (uint64_t)c->n_used,
                     token[CW_PHASE_EXPERTS] * p.experts_read);
    rig_close(&r);
}

static void a_dense_model_has_no_experts_to_count(void **state)
{
    (void)state;
    model_spec spec = model_spec_llama();
    rig r = rig_open(&spec);
    uint64_t token[CW_PHASE_COUNT];
    cw_engine_token_bytes(r.e, token);
    cw_engine_phases_reset(r.e, true);
    cw_engine_phases p = pass(&r, 1, true);
    assert_memory_equal(p.weight_bytes, token, sizeof token);
    assert_int_equal(p.weight_bytes[CW_PHASE_EXPERTS] + p.weight_bytes[CW_PHASE_ROUTER], 0);
    assert_int_equal(p.ns[CW_PHASE_EXPERTS] + p.ns[CW_PHASE_ROUTER] + p.ns[CW_PHASE_NETWORK], 0);
    assert_true(p.ns[CW_PHASE_FFN] > 0 && p.weight_bytes[CW_PHASE_FFN] > 0);
    rig_close(&r);
}

static void times_add_up_to_the_pass(void **state)
{
    (void)state;
    model_spec spec = model_spec_v3();
    rig r = rig_open(&spec);
    uint64_t before = cw_mono_ns(), sum = 0;
    cw_engine_phases_reset(r.e, true);
    cw_engine_phases p = pass(&r, 16, true);
    uint64_t wall = cw_mono_ns() - before;
    for (int i = 0; i < CW_PHASE_COUNT; i++) {
        sum += p.ns[i];
        assert_true(i == CW_PHASE_NETWORK ? p.ns[i] == 0 : p.ns[i] > 0);
    }
    assert_in_range(sum, 1, wall);
    rig_close(&r);
}

static void off_counts_nothing_and_reset_forgets(void **state)
{
    (void)state;
    model_spec spec = model_spec_v3();
    rig r = rig_open(&spec);
    cw_engine_phases zero = {0}, p = pass(&r, 2, true);
    assert_memory_equal(&p, &zero, sizeof zero);
    cw_engine_phases_reset(r.e, true);
    p = pass(&r, 2, true);
    assert_int_equal(p.passes, 1);
    cw_engine_phases_reset(r.e, true);
    p = pass(&r, 3, true);
    assert_int_equal(p.rows, 3);
    cw_engine_phases_reset(r.e, false);
    p = pass(&r, 2, true);
    assert_memory_equal(&p, &zero, sizeof zero);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_token_reads_every_dense_matrix_and_its_experts),
        cmocka_unit_test(rows_share_what_they_read),
        cmocka_unit_test(a_dense_model_has_no_experts_to_count),
        cmocka_unit_test(times_add_up_to_the_pass),
        cmocka_unit_test(off_counts_nothing_and_reset_forgets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
