/*
 * Answers of the shipped demo models, and what happens to an answer when the experts go away in the middle of
 * it. The experts here are local ones behind a gate that closes after a number of calls.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/demo_path.h"
#include "cw/mem.h"
#include "cw/talk.h"

typedef struct {
    cw_experts base;
    cw_experts *inner;
    int calls_left; /* then out of reach */
    cw_status lost; /* with this status */
} gated;

static cw_status gated_submit(cw_experts *self, const cw_expert_call *call, uint64_t *ticket, cw_err *err)
{
    gated *g = (gated *)self;
    if (g->calls_left == 0) return CW_FAIL(err, g->lost, "the gate is closed");
    g->calls_left--;
    return cw_experts_submit(g->inner, call, ticket, err);
}

static cw_status gated_collect(cw_experts *self, uint64_t ticket, cw_expert_reply *out, cw_err *err)
{
    return cw_experts_collect(((gated *)self)->inner, ticket, out, err);
}

static void gated_destroy(cw_experts *self)
{
    (void)self;
}

static const cw_experts_vtable gated_vtable = {gated_submit, gated_collect, gated_destroy};

static struct {
    cw_speaker *teacher, *student;
    cw_expert_set *set;
    gated experts;
} demo;

static cw_speaker *open_demo(const char *file, cw_engine_role role)
{
    cw_err err;
    char *path = NULL;
    cw_speaker *s = NULL;
    if (cw_demo_path(file, &path, &err) != CW_OK) fail_msg("%s", err.text);
    cw_speaker_options o = {
        .path = path, .engine = {.role = role, .n_threads = 1}, .session = {.n_ctx = 512}};
    if (cw_speaker_open(&o, &s, &err) != CW_OK) fail_msg("%s", err.text);
    cw_free(path);
    return s;
}

static int open_models(void **state)
{
    (void)state;
    cw_err err;
    demo.teacher = open_demo(CW_DEMO_MODEL, CW_ENGINE_EDGE);
    demo.student = open_demo(CW_DEMO_FALLBACK, CW_ENGINE_LOCAL);
    cw_engine *e = cw_speaker_engine(demo.teacher);
    const cw_model_config *c = cw_engine_config(e);
    if (cw_expert_set_new(c->n_layers, c->n_experts, cw_engine_expert_shapes(e), &demo.set, &err) != CW_OK)
        return -1;
    for (int l = c->n_dense; l < c->n_layers; l++)
        for (int x = 0; x < c->n_experts; x++)
            if (cw_expert_set_add_from_gguf(demo.set, cw_speaker_file(demo.teacher), l, x, &err) != CW_OK)
                return -1;
    demo.experts.base.vt = &gated_vtable;
    demo.experts.lost = CW_STATUS_UNREACHABLE;
    if (cw_experts_local_new(demo.set, cw_engine_kernels(e), NULL, cw_engine_max_rows(e), c->n_used,
                             &demo.experts.inner, &err) != CW_OK)
        return -1;
    cw_engine_set_experts(e, &demo.experts.base);
    return 0;
}

static int close_models(void **state)
{
    (void)state;
    cw_speaker_close(&demo.teacher);
    cw_speaker_close(&demo.student);
    cw_experts_free(&demo.experts.inner);
    cw_expert_set_free(&demo.set);
    return 0;
}

/* Everything the sink was given. */
typedef struct {
    char answer[16384], reasoning[16384], notice[1024];
    int n_teacher, n_student; /* pieces */
    atomic_bool cancel;
    int cancel_after; /* pieces; 0: never */
    bool guard;       /* count allocations from the third piece on */
} heard;

static void hear_piece(void *ctx, const char *model, cw_span_kind kind, const char *text, size_t len)
{
    heard *h = ctx;
    if (kind == CW_SPAN_ANSWER) strncat(h->answer, text, len);
    if (kind == CW_SPAN_REASONING) strncat(h->reasoning, text, len);
    if (strcmp(model, cw_speaker_name(demo.teacher)) == 0)
        h->n_teacher++;
    else if (strcmp(model, cw_speaker_name(demo.student)) == 0)
        h->n_student++;
    else
        fail_msg("unknown model %s", model);
    if (h->guard && h->n_teacher == 3) cw_alloc_guard_begin(false);
    if (h->cancel_after && h->n_teacher + h->n_student == h->cancel_after) atomic_store(&h->cancel, true);
}

static void hear_notice(void *ctx, const char *sentence)
{
    snprintf(((heard *)ctx)->notice, sizeof((heard *)0)->notice, "%s", sentence);
}

static cw_talk *new_talk(heard *h, bool with_fallback, int max_tokens)
{
    cw_talk_options o = {
        .main = demo.teacher,
        .fallback = with_fallback ? demo.student : NULL,
        .sampler = CW_SAMPLER_GREEDY,
        .max_tokens = max_tokens,
        .cancel = &h->cancel,
        .sink = {hear_piece, hear_notice, NULL, h},
    };
    cw_talk *t = NULL;
    cw_err err;
    memset(h, 0, sizeof *h);
    if (cw_talk_new(&o, &t, &err) != CW_OK) fail_msg("%s", err.text);
    return t;
}

static cw_status ask(cw_talk *t, const char *question, cw_talk_stats *st, cw_err *err)
{
    cw_chat_message m = {"user", question, strlen(question)};
    cw_talk_prompt p = {.messages = &m, .n_messages = 1};
    return cw_talk_answer(t, &p, st, err);
}

static const char sum[] = "What is 347 + 285?";

static void the_big_model_answers_and_thinks(void **state)
{
    (void)state;
    heard h;
    cw_err err;
    cw_talk_stats st;
    demo.experts.calls_left = -1;
    cw_talk *t = new_talk(&h, true, 0);
    assert_int_equal(ask(t, sum, &st, &err), CW_OK);
    assert_string_equal(h.answer, "347 + 285 = 632");
    assert_non_null(strstr(h.reasoning, "7+5=12"));
    assert_int_equal(st.end, CW_TALK_STOP);
    assert_int_equal(st.n_prompt, 15);
    assert_int_equal(h.n_student, 0);
    size_t len;
    const char *text = cw_talk_text(t, &len);
    assert_non_null(strstr(text, "<think>"));
    assert_int_equal(strlen(text), len);
    /* The same question again: all but the last token of the prompt is in the cache. */
    assert_int_equal(ask(t, sum, &st, &err), CW_OK);
    assert_int_equal(st.n_reused, 14);
    cw_talk_free(&t);
}

static void the_fallback_goes_on_in_mid_sentence(void **state)
{
    (void)state;
    heard h;
    cw_err err;
    cw_talk_stats st;
    cw_talk *t = new_talk(&h, true, 0);
    demo.experts.calls_left = 4 * 13; /* four MoE layers: the prefill and twelve tokens */
    assert_int_equal(ask(t, sum, &st, &err), CW_OK);
    assert_true(h.n_teacher > 5);
    assert_true(h.n_student > 5);
    assert_string_equal(h.answer, "347 + 285 = 632");
    assert_non_null(strstr(h.notice, "goes on"));
    assert_non_null(strstr(h.notice, "the gate is closed"));
    assert_string_equal(st.model, cw_speaker_name(demo.student));
    assert_int_equal(st.n_tokens - st.n_fallback, 13);
    /* Without a fallback the failure is the answer's. */
    cw_talk_free(&t);
    t = new_talk(&h, false, 0);
    demo.experts.calls_left = 0;
    assert_int_equal(ask(t, sum, &st, &err), CW_STATUS_UNREACHABLE);
    assert_string_equal(err.text, "the gate is closed");
    assert_int_equal(cw_talk_use_fallback(t, true, &err), CW_STATUS_STATE);
    cw_talk_free(&t);
}

static void the_fallback_answers_for_a_worker_with_another_model(void **state)
{
    (void)state;
    heard h;
    cw_err err;
    cw_talk_stats st;
    cw_talk *t = new_talk(&h, true, 0);
    demo.experts.calls_left = 0;
    demo.experts.lost = CW_STATUS_MISMATCH;
    assert_int_equal(ask(t, "Who are you?", &st, &err), CW_OK);
    demo.experts.lost = CW_STATUS_UNREACHABLE;
    assert_int_equal(h.n_teacher, 0);
    assert_true(h.n_student > 0);
    cw_talk_free(&t);
}

static void the_token_loop_allocates_nothing(void **state)
{
    (void)state;
    heard h;
    cw_err err;
    cw_talk_stats st;
    demo.experts.calls_left = -1;
    cw_talk *t = new_talk(&h, true, 0);
    h.guard = true;
    assert_int_equal(ask(t, sum, &st, &err), CW_OK);
    assert_int_equal(cw_alloc_guard_end(), 0);
    assert_true(h.n_teacher > 20);
    cw_talk_free(&t);
}

static void answers_end_where_they_are_told_to(void **state)
{
    (void)state;
    heard h;
    cw_err err;
    cw_talk_stats st;
    demo.experts.calls_left = -1;
    cw_talk *t = new_talk(&h, false, 5);
    assert_int_equal(ask(t, sum, &st, &err), CW_OK);
    assert_int_equal(st.end, CW_TALK_LENGTH);
    assert_int_equal(st.n_tokens, 5);
    cw_talk_free(&t);
    t = new_talk(&h, false, 0);
    h.cancel_after = 4;
    assert_int_equal(ask(t, sum, &st, &err), CW_OK);
    assert_int_equal(st.end, CW_TALK_CANCELLED);
    atomic_store(&h.cancel, false);
    h.cancel_after = 0;
    cw_talk_free(&t);
    /* At a high temperature the model never finds an end. */
    cw_talk_options o = {
        .main = demo.teacher, .sampler = CW_SAMPLER_GREEDY, .sink = {hear_piece, hear_notice, NULL, &h}};
    o.sampler.temperature = 5;
    memset(&h, 0, sizeof h);
    assert_int_equal(cw_talk_new(&o, &t, &err), CW_OK);
    cw_talk_prompt p = {.raw = "Once upon a time"};
    assert_int_equal(cw_talk_answer(t, &p, &st, &err), CW_OK);
    assert_int_equal(st.end, CW_TALK_CONTEXT);
    assert_int_equal(st.n_prompt + st.n_tokens, 512 + 1); /* the last token needs no place */
    cw_talk_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_big_model_answers_and_thinks),
        cmocka_unit_test(the_fallback_goes_on_in_mid_sentence),
        cmocka_unit_test(the_fallback_answers_for_a_worker_with_another_model),
        cmocka_unit_test(the_token_loop_allocates_nothing),
        cmocka_unit_test(answers_end_where_they_are_told_to),
    };
    return cmocka_run_group_tests(tests, open_models, close_models);
}
