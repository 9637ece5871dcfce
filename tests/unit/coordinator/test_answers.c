/* Known answers: the same on every instruction set, different for every expert, not blind to damage. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#include "cw/known_answer.h"
#include "cw/mem.h"

static const char *files[] = {"tests/golden/data/v3.gguf", "deploy/demo/causeway-demo-teacher.gguf"};

typedef struct {
    cw_gguf *g;
    cw_model_config config;
    cw_expert_shape *shapes;
} model;

static void model_open(model *m, const char *path)
{
    cw_err err;
    if (cw_gguf_open(path, &m->g, &err) != CW_OK ||
        cw_model_config_read(m->g, NULL, &m->config, &err) != CW_OK)
        fail_msg("%s", err.text);
    m->shapes = cw_calloc((size_t)m->config.n_layers, sizeof *m->shapes);
    assert_non_null(m->shapes);
    assert_int_equal(cw_expert_shapes_read(m->g, &m->config, m->shapes, &err), CW_OK);
}

static void model_close(model *m)
{
    cw_free(m->shapes);
    cw_gguf_close(&m->g);
}

static void answer(const model *m, const cw_kernels *kn, int layer, int expert,
                   uint8_t out[CW_KNOWN_ANSWER_BYTES])
{
    cw_expert_set *set = NULL;
    cw_expert_scratch *scratch = NULL;
    cw_err err;
    assert_int_equal(cw_expert_set_new(m->config.n_layers, m->config.n_experts, m->shapes, &set, &err),
                     CW_OK);
    if (cw_expert_set_add_from_gguf(set, m->g, layer, expert, &err) != CW_OK) fail_msg("%s", err.text);
    assert_int_equal(cw_expert_scratch_new(set, 1, &scratch, &err), CW_OK);
    if (cw_expert_known_answer(kn, set, layer, expert, scratch, out, &err) != CW_OK) fail_msg("%s", err.text);
    assert_int_equal(
        cw_expert_known_answer(kn, set, layer, (expert + 1) % m->config.n_experts, scratch, out, &err),
        CW_STATUS_NOT_HERE);
    cw_expert_scratch_free(&scratch);
    cw_expert_set_free(&set);
}

static void answers_do_not_depend_on_the_instruction_set(void **state)
{
    (void)state;
    for (size_t f = 0; f < CW_ARRAY_LEN(files); f++) {
        model m;
        model_open(&m, files[f]);
        int layer = m.config.n_dense;
        uint8_t a[CW_KNOWN_ANSWER_BYTES], b[CW_KNOWN_ANSWER_BYTES], c[CW_KNOWN_ANSWER_BYTES];
        const cw_kernels *scalar = cw_kernels_get(CW_ISA_SCALAR);
        answer(&m, scalar, layer, 0, a);
        answer(&m, scalar, layer, 1, c);
        assert_memory_not_equal(a, c, sizeof a);
        static const cw_isa isas[] = {CW_ISA_SCALAR, CW_ISA_AVX2, CW_ISA_AVX512, CW_ISA_NEON, CW_ISA_AMX};
        for (size_t i = 0; i < CW_ARRAY_LEN(isas); i++) {
            if (!cw_kernels_get(isas[i])) continue;
            answer(&m, cw_kernels_get(isas[i]), layer, 0, b);
            assert_memory_equal(a, b, sizeof a);
        }
        model_close(&m);
    }
}

/* Damage of 64 bytes in any of the three matrices is seen. (One bit need not be: rounding may swallow it.
 * Chunk hashes are for that.) */
static void damaged_weights_change_the_answer(void **state)
{
    (void)state;
    model m;
    model_open(&m, files[1]);
    int layer = m.config.n_dense;
    const cw_expert_shape *s = &m.shapes[layer];
    uint8_t *raw[CW_N_SLICES], want[CW_KNOWN_ANSWER_BYTES], got[CW_KNOWN_ANSWER_BYTES];
    size_t bytes[CW_N_SLICES];
    cw_err err;
    answer(&m, cw_kernels_best(), layer, 0, want);
    for (int i = 0; i < CW_N_SLICES; i++) {
        char name[80];
        bytes[i] = cw_expert_slice_bytes(s, i);
        raw[i] = cw_calloc(bytes[i], 1);
        const cw_gguf_tensor *t = cw_gguf_find(m.g, cw_expert_tensor_name(name, sizeof name, layer, i));
        assert_non_null(t);
        assert_int_equal(cw_gguf_read(m.g, t, 0, bytes[i], raw[i], &err), CW_OK);
    }
    for (int change = -1; change < CW_N_SLICES; change++) {
        for (size_t k = 0; change >= 0 && k < 64; k++) raw[change][bytes[change] / 2 + k] ^= 0x44;
        cw_expert_set *set = NULL;
        cw_expert_scratch *scratch = NULL;
        assert_int_equal(cw_expert_set_new(m.config.n_layers, m.config.n_experts, m.shapes, &set, &err),
                         CW_OK);
        assert_int_equal(cw_expert_set_add(set, layer, 0, (const void *const *)raw, bytes, &err), CW_OK);
        assert_int_equal(cw_expert_scratch_new(set, 1, &scratch, &err), CW_OK);
        assert_int_equal(cw_expert_known_answer(cw_kernels_best(), set, layer, 0, scratch, got, &err), CW_OK);
        if (change < 0)
            assert_memory_equal(got, want, sizeof got);
        else
            assert_memory_not_equal(got, want, sizeof got);
        cw_expert_scratch_free(&scratch);
        cw_expert_set_free(&set);
        for (size_t k = 0; change >= 0 && k < 64; k++) raw[change][bytes[change] / 2 + k] ^= 0x44;
    }
    for (int i = 0; i < CW_N_SLICES; i++) cw_free(raw[i]);
    model_close(&m);
}

enum { AUDIT_ROWS = 37 };

static void audit(const model *m, const cw_kernels *kn, int expert, uint64_t seed, int at_once, uint64_t out[AUDIT_ROWS])
{
    int layer = m->config.n_dense;
    cw_expert_set *set = NULL;
    cw_expert_scratch *scratch = NULL;
    cw_err err;
    assert_int_equal(cw_expert_set_new(m->config.n_layers, m->config.n_experts, m->shapes, &set, &err), CW_OK);
    assert_int_equal(cw_expert_set_add_from_gguf(set, m->g, layer, expert, &err), CW_OK);
    assert_int_equal(cw_expert_scratch_new(set, at_once, &scratch, &err), CW_OK);
    if (cw_expert_audit(kn, set, layer, expert, seed, AUDIT_ROWS, scratch, out, &err) != CW_OK) fail_msg("%s", err.text);
    cw_expert_scratch_free(&scratch);
    cw_expert_set_free(&set);
}

static void audits_are_the_same_in_any_pieces_and_differ_by_seed_row_and_expert(void **state)
{
    (void)state;
    for (size_t f = 0; f < CW_ARRAY_LEN(files); f++) {
        model m;
        model_open(&m, files[f]);
        uint64_t want[AUDIT_ROWS], got[AUDIT_ROWS], other[AUDIT_ROWS];
        audit(&m, cw_kernels_get(CW_ISA_SCALAR), 0, 7, AUDIT_ROWS, want);
        audit(&m, cw_kernels_best(), 0, 7, 5, got);
        assert_memory_equal(want, got, sizeof want);
        audit(&m, cw_kernels_best(), 1, 7, 64, got);
        audit(&m, cw_kernels_best(), 0, 8, 64, other);
        for (int i = 0; i < AUDIT_ROWS; i++) {
            assert_true(want[i] != got[i] && want[i] != other[i]);
            for (int k = 0; k < i; k++) assert_true(want[i] != want[k]);
        }
        model_close(&m);
    }
}

static void audit_rows_mean_the_same_in_both_forms(void **state)
{
    (void)state;
    int8_t q[2048];
    float s[64], x[2048];
    double square = 0;
    cw_audit_row(3, 9, 2048, q, s, NULL);
    cw_audit_row(3, 9, 2048, NULL, NULL, x);
    for (int k = 0; k < 2048; k++) {
        assert_true(q[k] != -128);
        assert_true(x[k] == (float)q[k] * s[k / 32]);
        square += (double)x[k] * (double)x[k];
    }
    /* Neither silence nor far outside of what a norm gives. */
    assert_true(square / 2048 > 0.05 && square / 2048 < 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_do_not_depend_on_the_instruction_set),
        cmocka_unit_test(damaged_weights_change_the_answer),
        cmocka_unit_test(audits_are_the_same_in_any_pieces_and_differ_by_seed_row_and_expert),
        cmocka_unit_test(audit_rows_mean_the_same_in_both_forms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
