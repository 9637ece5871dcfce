/*
 * The multi-token-prediction head on small models: its rows are those of the session it follows whatever
 * passes, rewinds and guesses came before, and a file that does not fit is refused by name. What it computes
 * is held against a reference in tests/golden.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/mem.h"
#include "cw/mtp.h"
#include "cw/sampler.h"
#include "model_file.h"

enum { VOCAB = 96, LONG = 90 };

typedef struct {
    cw_engine *e;
    cw_mtp *m;
    cw_session *s;
    cw_mtp_line *l;
} rig;

static model_spec spec_with_head(void)
{
    model_spec s = model_spec_v3();
    s.type = CW_TYPE_Q8_0;
    s.nextn = 1;
    return s;
}

static void begin_session(rig *r, int n_ctx)
{
    cw_err err;
    if (cw_session_new(r->e, &(cw_session_options){.n_ctx = n_ctx}, &r->s, &err) != CW_OK)
        fail_msg("%s", err.text);
    if (cw_mtp_line_new(r->m, r->s, &r->l, &err) != CW_OK) fail_msg("%s", err.text);
}

static void end_session(rig *r)
{
    cw_mtp_line_free(&r->l);
    cw_session_free(&r->s);
}

static rig open_rig(const model_spec *spec, const model_spec *companion, int max_rows, int threads)
{
    rig r = {0};
    cw_err err;
    cw_gguf *g = model_file_open(spec), *c = companion ? model_file_open(companion) : NULL;
    cw_engine_options o = {.max_rows = max_rows, .n_threads = threads};
    if (cw_engine_open(g, &o, &r.e, &err) != CW_OK) fail_msg("%s", err.text);
    if (cw_mtp_open(r.e, g, c, &r.m, &err) != CW_OK) fail_msg("%s", err.text);
    if (c) model_file_close(&c);
    model_file_close(&g);
    begin_session(&r, 0);
    return r;
}

static void close_rig(rig *r)
{
    end_session(r);
    cw_mtp_close(&r->m);
    cw_engine_close(&r->e);
}

static void make_tokens(int32_t *t, int n, int seed)
{
    for (int i = 0; i < n; i++) t[i] = (i * i * 7 + i * 31 + seed) % VOCAB;
}

static void eval(rig *r, const int32_t *t, int n)
{
    cw_err err;
    if (cw_session_eval(r->s, t, n, NULL, NULL, &err) != CW_OK) fail_msg("%s", err.text);
}

/* The logits of both guesses, and what was chosen from them. */
typedef struct {
    float logits[CW_MTP_MAX][VOCAB];
    int64_t position[CW_MTP_MAX];
    int32_t last_before[CW_MTP_MAX];
    int n, n_out;
    int32_t out[CW_MTP_MAX];
} seen;

static int32_t look(void *ctx, const float *logits, int64_t position, const int32_t *before, int n)
{
    seen *s = ctx;
    memcpy(s->logits[s->n], logits, sizeof s->logits[0]);
    s->position[s->n] = position;
    s->last_before[s->n] = before[n - 1];
    s->n++;
    return cw_argmax(logits, VOCAB);
}

static seen guess(rig *r, int32_t next)
{
    seen s = {0};
    s.n_out = cw_mtp_guess(r->l, next, CW_MTP_MAX, look, &s, s.out);
    assert_int_equal(s.n, s.n_out);
    return s;
}

static void assert_equal_guesses(const seen *a, const seen *b, int at)
{
    assert_int_equal(a->n_out, CW_MTP_MAX);
    assert_int_equal(b->n_out, CW_MTP_MAX);
    if (memcmp(a->logits, b->logits, sizeof a->logits) != 0) fail_msg("other logits behind %d tokens", at);
    assert_memory_equal(a->out, b->out, sizeof a->out);
}

/* What a head says that saw t[n] in one go. */
static seen fresh(rig *r, const int32_t *t, int n, int32_t next)
{
    cw_session_rewind(r->s, 0);
    eval(r, t, n);
    return guess(r, next);
}

static void guesses_do_not_depend_on_what_came_before(void **state)
{
    (void)state;
    model_spec spec = spec_with_head();
    rig a = open_rig(&spec, NULL, 16, 2), b = open_rig(&spec, NULL, 256, 1);
    int32_t t[LONG], other[LONG];
    make_tokens(t, LONG, 3);
    make_tokens(other, LONG, 50);
    int from, held = 0;
    for (int n = 1; n < LONG - 4;) {
        eval(&a, t + held, n - held);
        seen first = guess(&a, t[n]), again = guess(&a, t[n]);
        assert_equal_guesses(&first, &again, n);
        assert_int_equal(cw_mtp_line_held(a.l, &from), n);
        seen want = fresh(&b, t, n, t[n]);
        assert_equal_guesses(&first, &want, n);
        assert_int_equal(first.position[0], n + 1);
        assert_int_equal(first.position[1], n + 2);
        assert_int_equal(first.last_before[0], t[n]);
        assert_int_equal(first.last_before[1], first.out[0]);
        /* A guess that came to nothing: another token follows; then a verified run that is cut short. */
        (void)guess(&a, other[n]);
        int32_t run[3] = {t[n], other[n + 1], other[n + 2]};
        eval(&a, run, 3);
        held = n + 1;
        cw_session_rewind(a.s, held);
        n = held + n % 5; /* passes with a guess between each, and with none for a while */
    }
    close_rig(&a);
    close_rig(&b);
}

static void a_session_that_turns_back_is_followed(void **state)
{
    (void)state;
    model_spec spec = spec_with_head();
    rig a = open_rig(&spec, NULL, 32, 2);
    int32_t t[LONG], other[LONG];
    make_tokens(t, LONG, 3);
    make_tokens(other, LONG, 50);
    eval(&a, t, 60);
    (void)guess(&a, t[60]);
    /* The hidden state of position 39 is long gone: its row stays as it was, all others are right. */
    cw_session_rewind(a.s, 40);
    eval(&a, other + 40, 20);
    seen got = guess(&a, 5);
    int from;
    assert_int_equal(cw_mtp_line_held(a.l, &from), 60);
    assert_int_equal(from, 0);
    assert_int_equal(got.n_out, CW_MTP_MAX);
    /* To the beginning: nothing of before is left. */
    seen again = fresh(&a, other, 30, 7);
    end_session(&a);
    begin_session(&a, 0);
    seen want = fresh(&a, other, 30, 7);
    assert_equal_guesses(&again, &want, 30);
    close_rig(&a);
}

static cw_status put(void *ctx, const void *data, size_t n, cw_err *err)
{
    (void)err;
    uint8_t **at = ctx;
    memcpy(*at, data, n);
    *at += n;
    return CW_OK;
}

static cw_status get(void *ctx, void *data, size_t n, cw_err *err)
{
    (void)err;
    uint8_t **at = ctx;
    memcpy(data, *at, n);
    *at += n;
    return CW_OK;
}

static void a_session_from_a_file_is_followed_from_its_next_pass_on(void **state)
{
    (void)state;
    model_spec spec = spec_with_head();
    rig a = open_rig(&spec, NULL, 16, 1);
    int32_t t[LONG];
    make_tokens(t, LONG, 3);
    eval(&a, t, 40);
    uint8_t *kept = cw_calloc(cw_session_export_bytes(a.s), 1), *at = kept;
    assert_int_equal(cw_session_export(a.s, put, &at, NULL), CW_OK);
    at = kept;
    (void)guess(&a, t[40]);
    assert_int_equal(cw_session_import(a.s, t, 40, 40, get, &at, NULL), CW_OK);
    assert_int_equal(guess(&a, t[40]).n_out, 0);
    eval(&a, t + 40, 3);
    seen got = guess(&a, t[43]);
    int from;
    assert_int_equal(got.n_out, CW_MTP_MAX);
    assert_int_equal(cw_mtp_line_held(a.l, &from), 43);
    assert_int_equal(from, 40);
    cw_free(kept);
    close_rig(&a);
}

static void the_context_s_end_is_respected(void **state)
{
    (void)state;
    model_spec spec = spec_with_head();
    rig a = open_rig(&spec, NULL, 16, 1);
    end_session(&a);
    begin_session(&a, 8);
    int32_t t[8];
    make_tokens(t, 8, 1);
    eval(&a, t, 7);
    assert_int_equal(guess(&a, t[7]).n_out, CW_MTP_MAX);
    eval(&a, t + 7, 1);
    assert_int_equal(guess(&a, 1).n_out, 0); /* the model itself can go no further */
    close_rig(&a);
}

static int32_t pick_quietly(void *ctx, const float *logits, int64_t position, const int32_t *before, int n)
{
    (void)ctx, (void)position, (void)before, (void)n;
    return cw_argmax(logits, VOCAB);
}

static void following_and_guessing_allocate_nothing(void **state)
{
    (void)state;
    model_spec spec = spec_with_head();
    rig a = open_rig(&spec, NULL, 16, 2);
    int32_t t[LONG], out[2];
    make_tokens(t, LONG, 3);
    eval(&a, t, 20);
    cw_alloc_guard_begin(true);
    for (int n = 20; n < 60; n++) {
        assert_int_equal(cw_mtp_guess(a.l, t[n], 2, pick_quietly, NULL, out), 2);
        cw_err err;
        assert_int_equal(cw_session_eval(a.s, t + n, 1, NULL, NULL, &err), CW_OK);
    }
    assert_int_equal(cw_alloc_guard_end(), 0);
    close_rig(&a);
}

/* Every shape a head may have, in the model's file and beside it. */
static void heads_in_the_file_and_beside_it_are_the_same(void **state)
{
    (void)state;
    for (int i = 0; i < 16; i++) {
        model_spec spec = spec_with_head();
        spec.type = i & 1 ? CW_TYPE_F32 : CW_TYPE_Q8_0;
        spec.dense_nextn = i & 2;
        spec.tied = i & 4;
        spec.shared = !(i & 8);
        spec.split_kv = i & 8;
        spec.omit_tensor = i & 4 ? "blk.3.nextn.shared_head_norm.weight" : NULL;
        model_spec alone = spec, companion = spec;
        rig a = open_rig(&spec, NULL, 16, 1);
        /* The builder draws values in order: a companion's are other ones, so only its own file is compared.
         */
        alone.nextn = 0;
        companion.only_nextn = true;
        rig b = open_rig(&alone, &companion, 16, 1), c = open_rig(&spec, &companion, 16, 1);
        int32_t t[LONG];
        make_tokens(t, LONG, i);
        seen x = fresh(&a, t, 20, 1), y = fresh(&b, t, 20, 1), z = fresh(&c, t, 20, 1);
        assert_int_equal(x.n_out, CW_MTP_MAX);
        assert_equal_guesses(&y, &z, 20);
        assert_true(memcmp(x.logits, y.logits, sizeof x.logits) != 0);
        assert_true(cw_mtp_weight_bytes(a.m) > 0);
        close_rig(&a);
        close_rig(&b);
        close_rig(&c);
    }
}

static void a_head_changes_nothing_in_the_model(void **state)
{
    (void)state;
    model_spec spec = spec_with_head();
    rig a = open_rig(&spec, NULL, 16, 2);
    int32_t t[40];
    make_tokens(t, 40, 3);
    float with[VOCAB], without[VOCAB];
    eval(&a, t, 20);
    for (int n = 20; n < 40; n++) {
        (void)guess(&a, t[n]);
        assert_int_equal(cw_session_eval(a.s, t + n, 1, with, NULL, NULL), CW_OK);
    }
    cw_mtp_line_free(&a.l);
    cw_session_rewind(a.s, 0);
    assert_int_equal(cw_session_eval(a.s, t, 40, without, NULL, NULL), CW_OK);
    assert_memory_equal(with, without, sizeof with);
    cw_session_free(&a.s);
    begin_session(&a, 0);
    close_rig(&a);
}

typedef struct {
    cw_status want;
    const char *names; /* what the sentence must name */
    model_spec model, companion;
    bool in_file;
} refusal;

static void assert_refused(const refusal *r)
{
    cw_gguf *g = model_file_open(&r->model), *c = r->in_file ? NULL : model_file_open(&r->companion);
    cw_engine *e = NULL;
    cw_mtp *m = NULL;
    cw_mtp_facts facts;
    cw_err err = {0};
    assert_int_equal(cw_engine_open(g, &(cw_engine_options){.n_threads = 1, .max_rows = 4}, &e, &err), CW_OK);
    cw_status got = cw_mtp_open(e, g, c, &m, &err);
    if (got != r->want || !strstr(err.text, r->names))
        fail_msg("wanted %d naming %s, got %d: %s", r->want, r->names, got, err.text);
    assert_null(m);
    if (r->want != CW_STATUS_FORMAT || !strstr(err.text, "finite"))
        assert_int_equal(cw_mtp_describe(g, cw_engine_config(e), c, &facts, &err), r->want);
    cw_engine_close(&e);
    if (c) model_file_close(&c);
    model_file_close(&g);
}

static void what_does_not_fit_is_refused_by_name(void **state)
{
    (void)state;
    model_spec with = spec_with_head(), plain = with, only = with;
    plain.nextn = 0;
    only.only_nextn = true;
    refusal rows[16];
    int n = 0;
#define REFUSE(status, words)                                                                                \
    rows[n] = (refusal){status, words, plain, only, false};                                                  \
    for (refusal *r = &rows[n++]; r; r = NULL)
    REFUSE(CW_STATUS_NOT_FOUND, "no multi-token-prediction block") r->in_file = true;
    REFUSE(CW_STATUS_NOT_FOUND, "nextn_predict_layers") r->companion = plain;
    REFUSE(CW_STATUS_MISMATCH, "behind 4 blocks") r->companion.layers = 4;
    REFUSE(CW_STATUS_MISMATCH, "rope.freq_base")
    r->companion.keys[0] = (model_key){"rope.freq_base", SET_F32, 500000, NULL};
    REFUSE(CW_STATUS_MISMATCH, "expert_used_count") r->companion.used = 3;
    REFUSE(CW_STATUS_MISMATCH, "embedding_length") r->companion.d = 96;
    REFUSE(CW_STATUS_MISMATCH, "rope.scaling.type")
    {
        r->model.keys[0] = (model_key){"rope.scaling.type", SET_STR, 0, "none"};
        r->companion.keys[0] = (model_key){"rope.scaling.type", SET_STR, 0, "yarn"};
    }
    REFUSE(CW_STATUS_MISMATCH, "llama") r->companion = model_spec_llama();
    REFUSE(CW_STATUS_UNSUPPORTED, "llama") r->model = model_spec_llama();
    REFUSE(CW_STATUS_FORMAT, "blk.3.nextn.eh_proj.weight")
    r->companion.bend_tensor = "blk.3.nextn.eh_proj.weight";
    REFUSE(CW_STATUS_FORMAT, "blk.3.nextn.hnorm.weight")
    r->companion.bend_tensor = "blk.3.nextn.hnorm.weight";
    REFUSE(CW_STATUS_FORMAT, "blk.3.ffn_down_exps.weight")
    r->companion.bend_tensor = "blk.3.ffn_down_exps.weight";
    REFUSE(CW_STATUS_NOT_FOUND, "blk.3.attn_kv_b.weight") r->companion.omit_tensor = "blk.3.attn_kv_b.weight";
    REFUSE(CW_STATUS_FORMAT, "blk.3.nextn.enorm.weight") r->companion.nan_tensor = "blk.3.nextn.enorm.weight";
    REFUSE(CW_STATUS_NOT_FOUND, "blk.3.nextn.enorm.weight")
    {
        r->in_file = true;
        r->model = with;
        r->model.omit_tensor = "blk.3.nextn.enorm.weight";
    }
#undef REFUSE
    for (int i = 0; i < n; i++) assert_refused(&rows[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guesses_do_not_depend_on_what_came_before),
        cmocka_unit_test(a_session_that_turns_back_is_followed),
        cmocka_unit_test(a_session_from_a_file_is_followed_from_its_next_pass_on),
        cmocka_unit_test(the_context_s_end_is_respected),
        cmocka_unit_test(following_and_guessing_allocate_nothing),
        cmocka_unit_test(heads_in_the_file_and_beside_it_are_the_same),
        cmocka_unit_test(a_head_changes_nothing_in_the_model),
        cmocka_unit_test(what_does_not_fit_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
