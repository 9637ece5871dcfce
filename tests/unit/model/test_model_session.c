/* Sessions and the forward pass: reuse, rewinding, limits, cancellation, failure, memory. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "cw/engine.h"
#include "cw/mem.h"
#include "cw/sampler.h"
#include "model_file.h"

enum { VOCAB = 96 };

static cw_engine *open_with(const model_spec *s, cw_engine_options opt)
{
    cw_gguf *g = model_file_open(s);
    cw_engine *e = NULL;
    cw_err err;
    if (!opt.n_threads) opt.n_threads = 2;
    if (cw_engine_open(g, &opt, &e, &err) != CW_OK) fail_msg("%s", err.text);
    model_file_close(&g);
    return e;
}

static cw_engine *open_v3(void)
{
    model_spec s = model_spec_v3();
    s.type = CW_TYPE_Q8_0;
    return open_with(&s, (cw_engine_options){.max_rows = 16});
}

static cw_session *session(cw_engine *e, int n_ctx)
{
    cw_session *s = NULL;
    cw_err err;
    if (cw_session_new(e, &(cw_session_options){.n_ctx = n_ctx}, &s, &err) != CW_OK) fail_msg("%s", err.text);
    return s;
}

static void count_up(int32_t *t, int n, int from)
{
    for (int i = 0; i < n; i++) t[i] = (from + i * 7) % VOCAB;
}

static void sync_reuses_the_common_prefix(void **state)
{
    (void)state;
    cw_engine *e = open_v3();
    cw_session *a = session(e, 0), *fresh;
    int32_t t[60];
    float got[VOCAB], want[VOCAB];
    int reused, n;
    count_up(t, 60, 3);
    static const struct {
        int n, change_at, reused; /* tokens asked for; position whose token differs from before (-1: none) */
    } rows[] = {{40, -1, 0},  {40, -1, 39}, {50, -1, 40}, {30, -1, 29},
                {30, 10, 10}, {1, -1, 0},   {60, -1, 1},  {60, 59, 59}};
    for (size_t i = 0; i < CW_ARRAY_LEN(rows); i++) {
        if (rows[i].change_at >= 0) t[rows[i].change_at] ^= 1;
        assert_int_equal(cw_session_sync(a, t, rows[i].n, got, &reused, NULL, NULL), CW_OK);
        assert_int_equal(reused, rows[i].reused);
        assert_memory_equal(cw_session_tokens(a, &n), t, (size_t)rows[i].n * sizeof *t);
        assert_int_equal(n, rows[i].n);
        fresh = session(e, 0);
        assert_int_equal(cw_session_sync(fresh, t, rows[i].n, want, NULL, NULL, NULL), CW_OK);
        assert_memory_equal(got, want, sizeof got);
        cw_session_free(&fresh);
    }
    cw_session_free(&a);
    cw_engine_close(&e);
}

static void a_rewound_session_continues_as_if_never_ahead(void **state)
{
    (void)state;
    cw_engine *e = open_v3();
    cw_session *a = session(e, 0), *b = session(e, 0);
    int32_t t[30], other[30];
    float got[VOCAB], want[VOCAB];
    count_up(t, 30, 3);
    count_up(other, 30, 50);
    assert_int_equal(cw_session_eval(a, t, 10, NULL, NULL, NULL), CW_OK);
    assert_int_equal(cw_session_eval(a, other, 20, NULL, NULL, NULL), CW_OK);
    cw_session_rewind(a, 10);
    assert_int_equal(cw_session_eval(a, t + 10, 20, got, NULL, NULL), CW_OK);
    assert_int_equal(cw_session_eval(b, t, 30, want, NULL, NULL), CW_OK);
    assert_memory_equal(got, want, sizeof got);
    cw_session_free(&a);
    cw_session_free(&b);
    cw_engine_close(&e);
}

static void a_full_context_and_bad_tokens_are_refused_and_change_nothing(void **state)
{
    (void)state;
    cw_engine *e = open_v3();
    cw_session *s = session(e, 20);
    int32_t t[32];
    int n;
    float logits[VOCAB];
    cw_err err;
    count_up(t, 32, 1);
    assert_int_equal(cw_session_eval(s, t, 15, NULL, NULL, NULL), CW_OK);
    assert_int_equal(cw_session_eval(s, t, 6, logits, NULL, &err), CW_STATUS_LIMIT);
    assert_int_equal(cw_session_sync(s, t, 21, logits, NULL, NULL, &err), CW_STATUS_LIMIT);
    assert_int_equal(cw_session_sync(s, t, 0, logits, NULL, NULL, &err), CW_STATUS_INVALID);
    t[2] = VOCAB;
    assert_int_equal(cw_session_eval(s, t, 5, logits, NULL, &err), CW_STATUS_INVALID);
    t[2] = -1;
    assert_int_equal(cw_session_eval(s, t, 5, logits, NULL, &err), CW_STATUS_INVALID);
    t[2] = 0;
    cw_batch_item twice[2] = {{s, t, 1, 0, NULL}, {s, t, 1, 0, NULL}};
    assert_int_equal(cw_engine_forward(e, twice, 2, NULL, &err), CW_STATUS_INVALID);
    cw_batch_item many = {s, t, 17, 0, NULL}; /* max_rows is 16 */
    cw_session *wide = session(e, 0);
    many.session = wide;
    assert_int_equal(cw_engine_forward(e, &many, 1, NULL, &err), CW_STATUS_LIMIT);
    cw_session_tokens(s, &n);
    assert_int_equal(n, 15);
    assert_int_equal(cw_engine_forward(e, twice, 1, NULL, &err), CW_OK); /* usable after every refusal */
    assert_int_equal(cw_session_eval(s, t, 4, logits, NULL, NULL), CW_OK);
    cw_session_free(&s);
    cw_session_free(&wide);
    assert_int_equal(cw_session_new(e, &(cw_session_options){.n_ctx = 513}, &s, &err), CW_STATUS_INVALID);
    assert_int_equal(cw_session_new(e, &(cw_session_options){.n_ctx = -1}, &s, &err), CW_STATUS_INVALID);
    cw_engine_close(&e);
}

/* --- failures of experts --- */

/* Passes calls on, but fails the n-th collect, or sets the cancel flag there. */
typedef struct {
    cw_experts base;
    cw_experts *inner;
    int collects, fail_at, in_flight;
    atomic_bool *cancel;
} faulty;

static cw_status faulty_submit(cw_experts *self, const cw_expert_call *call, uint64_t *ticket, cw_err *err)
{
    faulty *x = (faulty *)self;
    x->in_flight++;
    return cw_experts_submit(x->inner, call, ticket, err);
}

static cw_status faulty_collect(cw_experts *self, uint64_t ticket, cw_expert_reply *out, cw_err *err)
{
    faulty *x = (faulty *)self;
    x->in_flight--;
    if (x->collects++ == x->fail_at) {
        if (x->cancel) atomic_store(x->cancel, true);
        cw_expert_reply drop;
        cw_status s = cw_experts_collect(x->inner, ticket, &drop, err);
        return x->cancel ? s : CW_FAIL(err, CW_STATUS_UNREACHABLE, "the mainland is gone");
    }
    return cw_experts_collect(x->inner, ticket, out, err);
}

static const cw_experts_vtable faulty_vtable = {faulty_submit, faulty_collect, NULL};

static void a_failed_pass_changes_nothing_and_can_be_repeated(void **state)
{
    (void)state;
    model_spec spec = model_spec_v3();
    spec.type = CW_TYPE_Q8_0;
    for (int big = 0; big < 2; big++) /* with 128 rows two half-batches are under way */
        for (int how = 0; how < 2; how++)
            for (int at = 0; at < 2; at++) {
                cw_engine *local = open_with(&spec, (cw_engine_options){.max_rows = 128});
                cw_engine *e = open_with(&spec, (cw_engine_options){.role = CW_ENGINE_EDGE, .max_rows = 128});
                cw_gguf *g = model_file_open(&spec);
                cw_expert_set *set = NULL;
                assert_int_equal(cw_expert_set_new(3, 8, cw_engine_expert_shapes(e), &set, NULL), CW_OK);
                for (int i = 0; i < 16; i++)
                    assert_int_equal(cw_expert_set_add_from_gguf(set, g, 1 + i / 8, i % 8, NULL), CW_OK);
                model_file_close(&g);
                atomic_bool cancel = false;
                faulty x = {.base.vt = &faulty_vtable, .fail_at = at, .cancel = how ? &cancel : NULL};
                assert_int_equal(cw_experts_local_new(set, cw_kernels_best(), NULL, 128, 2, &x.inner, NULL),
                                 CW_OK);
                cw_engine_set_experts(e, &x.base);

                int32_t t[128];
                float got[VOCAB], want[VOCAB];
                int n, tokens = big ? 128 : 5;
                cw_err err;
                count_up(t, 128, 3);
                cw_session *s = session(e, 0), *other = session(local, 0);
                cw_batch_item item = {s, t, tokens, 1, got};
                assert_int_equal(cw_engine_forward(e, &item, 1, &cancel, &err),
                                 how ? CW_STATUS_CANCELLED : CW_STATUS_UNREACHABLE);
                assert_int_equal(x.in_flight, 0); /* every call was collected */
                cw_session_tokens(s, &n);
                assert_int_equal(n, 0);
                atomic_store(&cancel, false);
                assert_int_equal(cw_engine_forward(e, &item, 1, &cancel, &err), CW_OK);
                assert_int_equal(cw_session_eval(other, t, tokens, want, NULL, NULL), CW_OK);
                assert_memory_equal(got, want, sizeof got);
                cw_session_free(&s);
                cw_session_free(&other);
                cw_engine_close(&e);
                cw_engine_close(&local);
                cw_experts_free(&x.inner);
                cw_expert_set_free(&set);
            }
}

static void overflow_in_the_model_is_a_status_with_a_place(void **state)
{
    (void)state;
    model_spec spec = model_spec_llama();
    spec.keys[0] = (model_key){"attention.layer_norm_rms_epsilon", SET_F32, 0, NULL};
    size_t n;
    uint8_t *bytes = model_file_bytes(&spec, &n);
    cw_gguf *g = NULL;
    assert_int_equal(cw_gguf_open_memory(bytes, n, "made", &g, NULL), CW_OK);
    /* Embedding rows of zeros: 0 / sqrt(0) with an epsilon of 0 is not a number. */
    const cw_gguf_tensor *embd = cw_gguf_find(g, "token_embd.weight");
    memset(bytes + (size_t)((const uint8_t *)embd->data - bytes), 0, embd->bytes);
    cw_engine *e = NULL;
    assert_int_equal(cw_engine_open(g, &(cw_engine_options){.n_threads = 1}, &e, NULL), CW_OK);
    cw_session *s = session(e, 0);
    float logits[VOCAB];
    cw_err err;
    assert_int_equal(cw_session_eval(s, (int32_t[]){1, 2}, 2, logits, NULL, &err), CW_STATUS_NUMERIC);
    cw_session_free(&s);
    cw_engine_close(&e);
    cw_gguf_close(&g);
    free(bytes);
}

/* --- memory --- */

static void the_token_loop_allocates_nothing(void **state)
{
    (void)state;
    cw_engine *e = open_v3();
    cw_session *s = session(e, 0);
    cw_sampler *sampler = NULL;
    cw_sampler_params p = {0.8f, 40, 0.95f, 0.05f, 1.1f, 64, 7};
    assert_int_equal(cw_sampler_new(&p, VOCAB, &sampler, NULL), CW_OK);
    int32_t t[20];
    float logits[VOCAB];
    count_up(t, 20, 3);
    cw_alloc_guard_begin(true);
    assert_int_equal(cw_session_sync(s, t, 20, logits, NULL, NULL, NULL), CW_OK);
    for (int i = 0; i < 20; i++) {
        int n;
        const int32_t *history = cw_session_tokens(s, &n);
        int32_t next = cw_sampler_pick(sampler, logits, n, history, n);
        assert_int_equal(cw_session_eval(s, &next, 1, logits, NULL, NULL), CW_OK);
    }
    assert_int_equal(cw_alloc_guard_end(), 0);
    cw_sampler_free(&sampler);
    cw_session_free(&s);
    cw_engine_close(&e);
}

static size_t resident_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long size = 0, resident = 0;
    if (!f || fscanf(f, "%lu %lu", &size, &resident) != 2) resident = 0;
    if (f) fclose(f);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

static void the_cache_takes_memory_only_as_it_fills(void **state)
{
    (void)state;
    model_spec spec = model_spec_llama();
    spec.ctx = 1 << 20; /* two layers of 2^20 rows of 64 f32 values: 512 MiB */
    cw_engine *e = open_with(&spec, (cw_engine_options){0});
    size_t before = resident_bytes();
    if (before == 0) skip();
    cw_session *s = session(e, 1 << 20);
    int32_t t[32];
    count_up(t, 32, 0);
    assert_int_equal(cw_session_eval(s, t, 32, NULL, NULL, NULL), CW_OK);
    assert_true(resident_bytes() - before < 16u << 20);
    assert_int_equal(cw_session_n_ctx(s), 1 << 20);
    cw_session_free(&s);
    s = session(e, 0);
    assert_int_equal(cw_session_n_ctx(s), 8192); /* the default is bounded */
    cw_session_free(&s);
    cw_engine_close(&e);
}

static bool count_progress(void *ctx, uint64_t done, uint64_t total)
{
    uint64_t *last = ctx;
    assert_true(done > last[0] && done <= total);
    last[0] = done;
    last[1] = total;
    return done < last[2];
}

static void loading_reports_every_byte_and_can_be_stopped(void **state)
{
    (void)state;
    model_spec spec = model_spec_v3();
    for (int tied = 0; tied < 2; tied++)
        for (int role = CW_ENGINE_LOCAL; role <= CW_ENGINE_EDGE; role++) {
            spec.tied = tied;
            cw_gguf *g = model_file_open(&spec);
            uint64_t seen[3] = {0, 0, UINT64_MAX};
            cw_engine *e = NULL;
            cw_err err;
            cw_engine_options opt = {.role = (cw_engine_role)role,
                                     .n_threads = 1,
                                     .progress = count_progress,
                                     .progress_ctx = seen};
            assert_int_equal(cw_engine_open(g, &opt, &e, &err), CW_OK);
            assert_int_equal(seen[0], seen[1]);
            cw_engine_close(&e);
            memcpy(seen, (uint64_t[]){0, 0, 5000}, sizeof seen);
            assert_int_equal(cw_engine_open(g, &opt, &e, &err), CW_STATUS_CANCELLED);
            assert_null(e);
            model_file_close(&g);
        }
}

static void kv_type_follows_the_weights(void **state)
{
    (void)state;
    static const struct {
        uint32_t type, down;
        cw_kv_type want;
    } rows[] = {{CW_TYPE_F32, 0, CW_KV_F32},
                {CW_TYPE_F16, 0, CW_KV_F16},
                {CW_TYPE_Q8_0, 0, CW_KV_F16},
                {CW_TYPE_F32, CW_TYPE_Q8_0, CW_KV_F16}};
    for (size_t i = 0; i < CW_ARRAY_LEN(rows); i++) {
        model_spec spec = model_spec_v3();
        spec.type = rows[i].type;
        spec.down_type = rows[i].down;
        cw_engine *e = open_with(&spec, (cw_engine_options){0});
        cw_session *s = session(e, 0);
        assert_int_equal(cw_session_kv_type(s), rows[i].want);
        size_t bytes;
        assert_int_equal(cw_session_eval(s, (int32_t[]){1}, 1, NULL, NULL, NULL), CW_OK);
        cw_session_kv_row(s, 2, 0, &bytes);
        assert_int_equal(bytes, 48 * (rows[i].want == CW_KV_F32 ? 4 : 2));
        cw_session_free(&s);
        cw_engine_close(&e);
    }
}

/* No experts shared, no q_lora, every block routed: the optional parts are optional. */
static void models_without_the_optional_parts_run(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        model_spec spec = model_spec_v3();
        spec.shared = i & 1;
        spec.q_lora = i & 2 ? 32 : 0;
        spec.dense = i & 4 ? 0 : 1;
        spec.gate_bias = i & 1;
        spec.tied = i & 2;
        spec.nextn = i & 1;
        cw_engine *e = open_with(&spec, (cw_engine_options){0});
        cw_session *s = session(e, 0);
        float logits[VOCAB], sum = 0;
        assert_int_equal(cw_session_eval(s, (int32_t[]){1, 2, 3}, 3, logits, NULL, NULL), CW_OK);
        for (int v = 0; v < VOCAB; v++) sum += fabsf(logits[v]);
        assert_true(isfinite(sum) && sum > 1);
        cw_session_free(&s);
        cw_engine_close(&e);
    }
}

/* Between two barriers every thread waits for the slowest; each is worth a look before it is added. */
static void a_layer_takes_few_barriers(void **state)
{
    (void)state;
    enum { ONE_ROW = 11, MANY_ROWS = 20, AT_THE_END = 2 };
    model_spec spec = model_spec_v3();
    spec.type = CW_TYPE_Q8_0;
    cw_engine *e = open_with(&spec, (cw_engine_options){.max_rows = 32, .n_threads = 3});
    cw_session *s = session(e, 0);
    int32_t t[32];
    float logits[VOCAB];
    count_up(t, 32, 1);
    static const struct {
        int rows, most;
    } passes[] = {{32, MANY_ROWS}, {1, ONE_ROW}};
    for (size_t i = 0; i < CW_ARRAY_LEN(passes); i++) {
        uint64_t before = cw_pool_barriers(cw_engine_pool(e));
        assert_int_equal(cw_session_eval(s, t, passes[i].rows, logits, NULL, NULL), CW_OK);
        uint64_t n = cw_pool_barriers(cw_engine_pool(e)) - before;
        uint64_t most = (uint64_t)(passes[i].most * cw_engine_config(e)->n_layers + AT_THE_END);
        if (n == 0 || n > most)
            fail_msg("%d rows: %llu barriers, at most %llu", passes[i].rows, (unsigned long long)n,
                     (unsigned long long)most);
    }
    cw_session_free(&s);
    cw_engine_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sync_reuses_the_common_prefix),
        cmocka_unit_test(a_rewound_session_continues_as_if_never_ahead),
        cmocka_unit_test(a_full_context_and_bad_tokens_are_refused_and_change_nothing),
        cmocka_unit_test(a_failed_pass_changes_nothing_and_can_be_repeated),
        cmocka_unit_test(overflow_in_the_model_is_a_status_with_a_place),
        cmocka_unit_test(the_token_loop_allocates_nothing),
        cmocka_unit_test(the_cache_takes_memory_only_as_it_fills),
        cmocka_unit_test(loading_reports_every_byte_and_can_be_stopped),
        cmocka_unit_test(kv_type_follows_the_weights),
        cmocka_unit_test(models_without_the_optional_parts_run),
        cmocka_unit_test(a_layer_takes_few_barriers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
