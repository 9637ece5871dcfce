/*
 * Position purity: the logits and KV rows of a position are the same bits whatever the chunking, threads,
 * instruction set, companions in the batch, and wherever the experts are computed. 300 tokens pass YaRN's
 * boundary (64) and the first key tile (256), so 255, 256 and 257 keys are among them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "golden_model.h"

enum { N = 300 };

static const char *const models[] = {"v3",
                                     "v2-lite",
                                     "v2",
                                     "quant-q4_k",
                                     "quant-q6_k",
                                     "deploy/demo/causeway-demo-student.gguf",
                                     "deploy/demo/causeway-demo-teacher.gguf"};

typedef struct {
    float *logits; /* [N, n_vocab] */
    size_t bytes;
    uint64_t kv;
} outcome;

static outcome run(const char *model, const golden_options *opt, int chunk, cw_kv_type kv)
{
    cw_engine *e = golden_engine(model, opt);
    cw_session *s = golden_session(e, kv);
    const cw_model_config *c = cw_engine_config(e);
    int32_t tokens[N];
    golden_tokens(tokens, N, c->n_vocab, 7);
    outcome o = {golden_run(s, tokens, N, chunk), (size_t)N * (size_t)c->n_vocab * sizeof(float),
                 golden_kv_hash(s, c->n_layers)};
    cw_session_free(&s);
    cw_engine_close(&e);
    return o;
}

static void expect_same(const char *model, const char *what, int value, outcome want, outcome got)
{
    if (memcmp(want.logits, got.logits, want.bytes) != 0)
        fail_msg("%s: %s %d gives other logits", model, what, value);
    if (want.kv != got.kv) fail_msg("%s: %s %d gives other KV rows", model, what, value);
    free(got.logits);
}

/* One thread, scalar kernels, everything at once; computed once a model and KV type. */
static outcome reference(const char *model, cw_kv_type kv)
{
    static struct {
        const char *model;
        cw_kv_type kv;
        outcome o;
    } seen[32];
    size_t i = 0;
    while (seen[i].model && (seen[i].kv != kv || strcmp(seen[i].model, model) != 0)) i++;
    assert_true(i + 1 < CW_ARRAY_LEN(seen));
    if (!seen[i].model) {
        golden_options opt = {.max_rows = 512, .isa = CW_ISA_SCALAR, .has_isa = true};
        seen[i].o = run(model, &opt, 512, kv);
        seen[i].model = model;
        seen[i].kv = kv;
    }
    return seen[i].o;
}

static void chunking_does_not_change_a_bit(void **state)
{
    (void)state;
    static const int chunks[] = {1, 3, 64, 256};
    for (size_t m = 0; m < CW_ARRAY_LEN(models); m++) {
        outcome want = reference(models[m], CW_KV_AUTO);
        for (size_t i = 0; i < CW_ARRAY_LEN(chunks); i++)
            expect_same(models[m], "chunk", chunks[i], want, run(models[m], NULL, chunks[i], CW_KV_AUTO));
        expect_same(models[m], "chunk, 8-bit cache,", 7, reference(models[m], CW_KV_Q8),
                    run(models[m], &(golden_options){.n_threads = 3}, 7, CW_KV_Q8));
    }
}

static void threads_do_not_change_a_bit(void **state)
{
    (void)state;
    static const int threads[] = {2, 3, 5};
    for (size_t m = 0; m < CW_ARRAY_LEN(models); m++) {
        outcome want = reference(models[m], CW_KV_AUTO);
        for (size_t i = 0; i < CW_ARRAY_LEN(threads); i++)
            expect_same(
                models[m], "threads", threads[i], want,
                run(models[m], &(golden_options){.n_threads = threads[i]}, i == 0 ? 7 : 200, CW_KV_AUTO));
    }
}

static void instruction_sets_do_not_change_a_bit(void **state)
{
    (void)state;
    for (size_t m = 0; m < CW_ARRAY_LEN(models); m++)
        for (int kv = CW_KV_F32; kv <= CW_KV_Q8; kv++) {
            outcome want = reference(models[m], (cw_kv_type)kv);
            for (int isa = CW_ISA_SCALAR + 1; isa < CW_ISA_COUNT; isa++) {
                if (!cw_kernels_get((cw_isa)isa)) continue;
                golden_options opt = {.n_threads = 2, .isa = (cw_isa)isa, .has_isa = true};
                expect_same(models[m], cw_isa_name((cw_isa)isa), isa, want,
                            run(models[m], &opt, 100, (cw_kv_type)kv));
            }
        }
}

/* --- companions --- */

enum { SESSIONS = 32 };

/* Every session's tokens come in pieces of its own size, all
 * sessions in every batch; prefill and decode mixed. */
static void companions_in_the_batch_do_not_change_a_bit(void **state)
{
    (void)state;
    static const int pieces[8] = {1, 2, 3, 5, 1, 8, 1, 13};
    for (size_t m = 0; m < CW_ARRAY_LEN(models); m++) {
        cw_engine *e = golden_engine(models[m], &(golden_options){.n_threads = 2});
        const cw_model_config *c = cw_engine_config(e);
        size_t row = (size_t)c->n_vocab;
        cw_session *s[SESSIONS];
        int32_t tokens[SESSIONS][64];
        float *logits[SESSIONS];
        int at[SESSIONS] = {0};
        for (int i = 0; i < SESSIONS; i++) {
            s[i] = golden_session(e, CW_KV_AUTO);
            golden_tokens(tokens[i], 64, c->n_vocab, 100 + (uint64_t)i);
            logits[i] = calloc(64 * row, sizeof(float));
        }
        for (bool more = true; more;) {
            cw_batch_item items[SESSIONS];
            int n = 0;
            for (int i = 0; i < SESSIONS; i++) {
                int piece = pieces[i % 8], now = 64 - at[i] < piece ? 64 - at[i] : piece;
                if (now == 0) continue;
                items[n++] =
                    (cw_batch_item){s[i], tokens[i] + at[i], now, now, logits[i] + (size_t)at[i] * row};
                at[i] += now;
            }
            more = n > 0;
            assert_int_equal(cw_engine_forward(e, items, n, NULL, NULL), CW_OK);
        }
        for (int i = 0; i < SESSIONS; i++) {
            cw_session *alone = golden_session(e, CW_KV_AUTO);
            float *want = golden_run(alone, tokens[i], 64, 64);
            if (memcmp(want, logits[i], 64 * row * sizeof(float)) != 0)
                fail_msg("%s: session %d", models[m], i);
            assert_true(golden_kv_hash(alone, c->n_layers) == golden_kv_hash(s[i], c->n_layers));
            free(want);
            free(logits[i]);
            cw_session_free(&alone);
            cw_session_free(&s[i]);
        }
        cw_engine_close(&e);
    }
}

/* --- experts somewhere else --- */

/* Stands for a remote implementation: another set, other kernels, and a combining reply where asked. */
typedef struct {
    cw_experts base;
    cw_expert_set *set;
    cw_experts *local;
    const cw_kernels *kn;
    enum { ROWS, COMBINED, COMBINED_REVERSED } reply;
    cw_expert_call calls[8];
    float *combined;
    int in_flight, most_in_flight;
} elsewhere;

static cw_status elsewhere_submit(cw_experts *self, const cw_expert_call *call, uint64_t *ticket, cw_err *err)
{
    elsewhere *x = (elsewhere *)self;
    cw_status s = cw_experts_submit(x->local, call, ticket, err);
    if (s != CW_OK) return s;
    x->calls[*ticket] = *call;
    if (++x->in_flight > x->most_in_flight) x->most_in_flight = x->in_flight;
    return CW_OK;
}

static void combine_backwards(const elsewhere *x, const cw_expert_call *call, const cw_expert_reply *r)
{
    memset(x->combined, 0, (size_t)call->n_rows * (size_t)call->d_model * sizeof(float));
    for (int i = call->n_entries - 1; i >= 0; i--) {
        float *y = x->combined + (size_t)call->entries[i].row * (size_t)call->d_model,
              w = call->entries[i].weight;
        size_t at = (size_t)i * (size_t)call->d_model;
        if (r->kind == CW_REPLY_ROWS_F16)
            x->kn->combine_f16(y, w, r->f16 + at, r->e[i], call->d_model);
        else
            x->kn->combine_f32(y, w, r->f32 + at, call->d_model);
    }
}

static cw_status elsewhere_collect(cw_experts *self, uint64_t ticket, cw_expert_reply *out, cw_err *err)
{
    elsewhere *x = (elsewhere *)self;
    const cw_expert_call *call = &x->calls[ticket];
    x->in_flight--;
    cw_expert_reply r;
    cw_status s = cw_experts_collect(x->local, ticket, &r, err);
    if (s != CW_OK) return s;
    if (x->reply == COMBINED)
        cw_experts_combine(x->kn, NULL, call->n_rows, call->d_model, call->n_entries, call->entries, &r,
                           x->combined);
    else if (x->reply == COMBINED_REVERSED)
        combine_backwards(x, call, &r);
    *out = x->reply == ROWS ? r : (cw_expert_reply){.kind = CW_REPLY_COMBINED_F32, .f32 = x->combined};
    return CW_OK;
}

static void elsewhere_destroy(cw_experts *self)
{
    elsewhere *x = (elsewhere *)self;
    cw_experts_free(&x->local);
    cw_expert_set_free(&x->set);
    free(x->combined);
    free(x);
}

static const cw_experts_vtable elsewhere_vtable = {elsewhere_submit, elsewhere_collect, elsewhere_destroy};

static elsewhere *elsewhere_new(const cw_gguf *g, const cw_engine *e, int reply)
{
    const cw_model_config *c = cw_engine_config(e);
    elsewhere *x = calloc(1, sizeof *x);
    x->base.vt = &elsewhere_vtable;
    x->kn = cw_kernels_get(CW_ISA_SCALAR);
    x->reply = reply;
    x->combined = calloc((size_t)cw_engine_max_rows(e) * (size_t)c->d_model, sizeof(float));
    cw_err err;
    if (cw_expert_set_new(c->n_layers, c->n_experts, cw_engine_expert_shapes(e), &x->set, &err) != CW_OK)
        fail_msg("%s", err.text);
    for (int l = c->n_dense; l < c->n_layers; l++)
        for (int i = 0; i < c->n_experts; i++)
            if (cw_expert_set_add_from_gguf(x->set, g, l, i, &err) != CW_OK) fail_msg("%s", err.text);
    if (cw_experts_local_new(x->set, x->kn, NULL, cw_engine_max_rows(e), c->n_used, &x->local, &err) != CW_OK)
        fail_msg("%s", err.text);
    return x;
}

/* An edge engine with its experts elsewhere. *overlap: most calls in flight at once. */
static outcome run_edge(const char *name, int reply, int chunk, int *overlap)
{
    char path[256];
    snprintf(path, sizeof path, strchr(name, '/') ? "%s" : "tests/golden/data/%s.gguf", name);
    cw_gguf *g = NULL;
    cw_engine *e = NULL;
    cw_err err;
    cw_engine_options opt = {.role = CW_ENGINE_EDGE, .n_threads = 2};
    if (cw_gguf_open(path, &g, &err) != CW_OK || cw_engine_open(g, &opt, &e, &err) != CW_OK)
        fail_msg("%s", err.text);
    elsewhere *x = elsewhere_new(g, e, reply);
    cw_gguf_close(&g);
    const cw_model_config *c = cw_engine_config(e);
    int32_t tokens[N];
    golden_tokens(tokens, N, c->n_vocab, 7);
    cw_session *s = golden_session(e, CW_KV_AUTO);
    cw_batch_item early = {s, tokens, 1, 0, NULL};
    assert_int_equal(cw_engine_forward(e, &early, 1, NULL, &err), CW_STATUS_STATE); /* no experts yet */
    cw_engine_set_experts(e, &x->base);
    outcome o = {golden_run(s, tokens, N, chunk), (size_t)N * (size_t)c->n_vocab * sizeof(float),
                 golden_kv_hash(s, c->n_layers)};
    if (overlap) *overlap = x->most_in_flight;
    cw_session_free(&s);
    cw_engine_close(&e);
    cw_experts *base = &x->base;
    cw_experts_free(&base);
    return o;
}

static const char *const moe_models[] = {"v3", "v2-lite", "quant-q4_k",
                                         "deploy/demo/causeway-demo-teacher.gguf"};

static void experts_elsewhere_do_not_change_a_bit(void **state)
{
    (void)state;
    for (size_t m = 0; m < CW_ARRAY_LEN(moe_models); m++) {
        outcome want = reference(moe_models[m], CW_KV_AUTO);
        int overlap;
        expect_same(moe_models[m], "rows, chunk", 10, want, run_edge(moe_models[m], ROWS, 10, &overlap));
        assert_int_equal(overlap, 1);
        expect_same(moe_models[m], "rows, two half-batches of", 100, want,
                    run_edge(moe_models[m], ROWS, 200, &overlap));
        assert_int_equal(overlap, 2);
        expect_same(moe_models[m], "combined, chunk", 150, want,
                    run_edge(moe_models[m], COMBINED, 150, NULL));
    }
}

/* The comparison above has teeth: experts summed in another order are seen. */
static void another_combine_order_is_seen(void **state)
{
    (void)state;
    for (size_t m = 0; m < CW_ARRAY_LEN(moe_models); m++) {
        outcome want = reference(moe_models[m], CW_KV_AUTO);
        outcome got = run_edge(moe_models[m], COMBINED_REVERSED, 150, NULL);
        assert_memory_not_equal(want.logits, got.logits, want.bytes);
        free(got.logits);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunking_does_not_change_a_bit),
        cmocka_unit_test(threads_do_not_change_a_bit),
        cmocka_unit_test(instruction_sets_do_not_change_a_bit),
        cmocka_unit_test(companions_in_the_batch_do_not_change_a_bit),
        cmocka_unit_test(experts_elsewhere_do_not_change_a_bit),
        cmocka_unit_test(another_combine_order_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
