/*
 * The bits themselves, recorded: every machine, whatever its architecture, instruction set and compiler,
 * computes these logits and these KV rows. 300 tokens pass YaRN's boundary (64) and the first key tile (256).
 * Where a change of the arithmetic is meant, CW_ARITHMETIC_ID is raised and the values that this test prints
 * are recorded anew.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/bytes.h"
#include "golden_model.h"

enum { N = 300, CHUNK = 100 };

static const struct {
    const char *model;
    uint64_t logits, kv;
} pins[] = {
    {"v2-lite", 0xe9cb2ee8fe9755ad, 0x515a0a02e69f1bed},
    {"v2", 0x45dda7cdba7d2f60, 0xa8eee3fd8fdd86a4},
    {"v3", 0x15578244e3a289c7, 0xaebdcb599f635be5},
    {"v3-flat", 0xa30cad0eb598e53b, 0xaebcca2b7e0f4641},
    {"v3-splitkv", 0x15578244e3a289c7, 0xaebdcb599f635be5},
    {"quant-iq4_nl", 0x1f534b3349b3989d, 0xa17ba782f1bc9068},
    {"quant-q4_0", 0x39419e8ebe01a7c1, 0x7d37835b102a7603},
    {"quant-q4_k", 0x202e1ebeec3af34c, 0x3faa08c608c0926c},
    {"quant-q5_0", 0xe0677d522519a508, 0xa0999742e991d92b},
    {"quant-q5_k", 0x6dcbc4458e418c91, 0x533e290e80570d35},
    {"quant-q6_k", 0x9cba182213ca994e, 0x2f954a9cd36b6283},
    {"quant-q8_0", 0xf6025063948af7fe, 0x0ed63039fd5e9928},
    {"deploy/demo/causeway-demo-teacher.gguf", 0xd5c46d089c39f759, 0x2100bf538aa1c230},
    {"deploy/demo/causeway-demo-student.gguf", 0x9eb5670ced19adda, 0xb9e1660e17f4cdb6},
};

/* FNV-1a over the values' bytes, little-endian. */
static uint64_t hash_floats(const float *x, size_t n)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < n; i++) {
        uint8_t b[4];
        uint32_t u;
        memcpy(&u, &x[i], 4);
        cw_store_u32(b, u);
        for (int k = 0; k < 4; k++) h = (h ^ b[k]) * UINT64_C(0x100000001b3);
    }
    return h;
}

static void logits_and_kv_rows_are_the_recorded_bits(void **state)
{
    (void)state;
    int wrong = 0;
    for (size_t i = 0; i < CW_ARRAY_LEN(pins); i++) {
        cw_engine *e = golden_engine(pins[i].model, &(golden_options){.n_threads = 2});
        cw_session *s = golden_session(e, CW_KV_AUTO);
        const cw_model_config *c = cw_engine_config(e);
        int32_t tokens[N];
        golden_tokens(tokens, N, c->n_vocab, 7);
        float *logits = golden_run(s, tokens, N, CHUNK);
        uint64_t h = hash_floats(logits, (size_t)N * (size_t)c->n_vocab), kv = golden_kv_hash(s, c->n_layers);
        if (h != pins[i].logits || kv != pins[i].kv) {
            print_message("    {\"%s\", 0x%016llx, 0x%016llx},\n", pins[i].model, (unsigned long long)h,
                          (unsigned long long)kv);
            wrong++;
        }
        free(logits);
        cw_session_free(&s);
        cw_engine_close(&e);
    }
    assert_int_equal(wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_and_kv_rows_are_the_recorded_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
