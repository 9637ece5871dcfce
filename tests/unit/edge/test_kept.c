/*
 * Conversations and KV caches that outlive the program: what is taken up again equals what was never put
 * down, and a file that is damaged, foreign or of something else is refused with a sentence.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/conversation.h"
#include "cw/demo_path.h"
#include "cw/fs.h"
#include "cw/kept_kv.h"
#include "cw/mem.h"
#include "cw/talk.h"

static char dir[] = "/tmp/cw_test_kept_XXXXXX", path[64];
static cw_seal_key *key;
static cw_speaker *teacher, *student;
static uint8_t teacher_print[CW_FINGERPRINT_BYTES], student_print[CW_FINGERPRINT_BYTES];

static cw_speaker *open_demo(const char *file, cw_session_options session)
{
    cw_err err;
    char *p = NULL;
    cw_speaker *s = NULL;
    if (cw_demo_path(file, &p, &err) != CW_OK) fail_msg("%s", err.text);
    cw_speaker_options o = {
        .path = p, .engine = {.role = CW_ENGINE_LOCAL, .n_threads = 1}, .session = session};
    if (cw_speaker_open(&o, &s, &err) != CW_OK) fail_msg("%s", err.text);
    cw_free(p);
    return s;
}

static int begin(void **state)
{
    (void)state;
    cw_err err;
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/file", dir);
    if (cw_seal_key_new(&key, &err) != CW_OK) return -1;
    teacher = open_demo(CW_DEMO_MODEL, (cw_session_options){.n_ctx = 512});
    student = open_demo(CW_DEMO_FALLBACK, (cw_session_options){.n_ctx = 512});
    if (cw_speaker_fingerprint(teacher, teacher_print, &err) != CW_OK) return -1;
    return cw_speaker_fingerprint(student, student_print, &err) == CW_OK ? 0 : -1;
}

static int end(void **state)
{
    (void)state;
    cw_speaker_close(&teacher);
    cw_speaker_close(&student);
    cw_seal_key_free(&key);
    unlink(path);
    return rmdir(dir);
}

static void no_piece(void *ctx, const char *model, cw_span_kind kind, const char *text, size_t len)
{
    (void)ctx, (void)model, (void)kind, (void)text, (void)len;
}

static void no_notice(void *ctx, const char *sentence)
{
    (void)ctx;
    fail_msg("%s", sentence);
}

/* A question and its answer become part of the conversation. */
static cw_talk_stats turn(cw_speaker *s, cw_conversation *c, const char *question)
{
    cw_err err;
    cw_talk *t = NULL;
    cw_talk_stats st;
    cw_talk_options o = {
        .main = s, .sampler = CW_SAMPLER_GREEDY, .max_tokens = 60, .sink = {no_piece, no_notice, NULL, NULL}};
    assert_int_equal(cw_talk_new(&o, &t, &err), CW_OK);
    assert_int_equal(cw_conversation_add(c, "user", question, strlen(question), &err), CW_OK);
    cw_talk_prompt p = {.messages = c->messages, .n_messages = c->n};
    assert_int_equal(cw_talk_answer(t, &p, &st, &err), CW_OK);
    size_t len, at;
    const char *said = cw_talk_text(t, &len), *model;
    assert_int_equal(cw_conversation_add(c, "assistant", said, len, &err), CW_OK);
    for (int i = 0; cw_talk_part(t, i, &model, &at); i++)
        assert_int_equal(cw_conversation_written_by(c, model, at, &err), CW_OK);
    cw_talk_free(&t);
    return st;
}

static void assert_same_session(cw_speaker *a, cw_speaker *b)
{
    int n, m;
    cw_session *x = cw_speaker_session(a), *y = cw_speaker_session(b);
    const int32_t *s = cw_session_tokens(x, &n), *t = cw_session_tokens(y, &m);
    assert_int_equal(n, m);
    assert_memory_equal(s, t, (size_t)n * sizeof *s);
    for (int l = 0; l < cw_engine_config(cw_speaker_engine(a))->n_layers; l++)
        for (int p = 0; p < n; p++) {
            size_t bytes;
            const void *row = cw_session_kv_row(x, l, p, &bytes);
            assert_memory_equal(row, cw_session_kv_row(y, l, p, NULL), bytes);
        }
}

static void assert_same_logits(cw_speaker *a, cw_speaker *b)
{
    cw_err err;
    int n_vocab = cw_engine_config(cw_speaker_engine(a))->n_vocab;
    float *x = calloc((size_t)n_vocab, sizeof *x), *y = calloc((size_t)n_vocab, sizeof *y);
    const int32_t more[] = {5, 9};
    assert_int_equal(cw_session_eval(cw_speaker_session(a), more, 2, x, NULL, &err), CW_OK);
    assert_int_equal(cw_session_eval(cw_speaker_session(b), more, 2, y, NULL, &err), CW_OK);
    assert_memory_equal(x, y, (size_t)n_vocab * sizeof *x);
    free(x);
    free(y);
}

static void a_conversation_taken_up_again_is_the_same_to_the_bit(void **state)
{
    (void)state;
    cw_err err;
    cw_conversation c = {0}, again = {0};
    cw_speaker *other = open_demo(CW_DEMO_MODEL, (cw_session_options){.n_ctx = 600});
    turn(teacher, &c, "What is 347 + 285?");
    assert_int_equal(cw_conversation_write(&c, path, key, &err), CW_OK);
    assert_int_equal(cw_conversation_read(path, key, &again, &err), CW_OK);
    assert_int_equal(cw_kept_kv_write(teacher, teacher_print, path, key, &err), CW_OK);
    assert_int_equal(cw_kept_kv_read(other, teacher_print, path, key, &err), CW_OK);
    assert_same_session(teacher, other);
    cw_talk_stats a = turn(teacher, &c, "Who are you?"), b = turn(other, &again, "Who are you?");
    assert_true(b.n_reused > 10);
    assert_int_equal(a.n_reused, b.n_reused);
    assert_string_equal(c.messages[3].content, again.messages[3].content);
    assert_same_session(teacher, other);
    assert_same_logits(teacher, other);
    cw_conversation_clear(&c);
    cw_conversation_clear(&again);
    cw_speaker_close(&other);
}

static void expect_refusal(cw_speaker *s, const uint8_t *print, cw_status want, const char *words)
{
    cw_err err = {0};
    cw_session_rewind(cw_speaker_session(s), 0);
    assert_int_equal(cw_kept_kv_read(s, print, path, key, &err), want);
    if (!strstr(err.text, words)) fail_msg("%s", err.text);
    int n;
    cw_session_tokens(cw_speaker_session(s), &n);
    assert_int_equal(n, 0);
}

static void a_cache_of_something_else_is_refused(void **state)
{
    (void)state;
    cw_err err;
    cw_conversation c = {0};
    cw_session_rewind(cw_speaker_session(teacher), 0);
    for (int i = 0; i < 4; i++) turn(teacher, &c, "What is 347 + 285?");
    cw_conversation_clear(&c);
    assert_int_equal(cw_kept_kv_write(teacher, teacher_print, path, key, &err), CW_OK);
    expect_refusal(student, student_print, CW_STATUS_MISMATCH, "another model");
    cw_speaker *q8 = open_demo(CW_DEMO_MODEL, (cw_session_options){.n_ctx = 512, .kv_type = CW_KV_Q8});
    expect_refusal(q8, teacher_print, CW_STATUS_MISMATCH, "kv q8");
    cw_speaker_close(&q8);
    cw_speaker *small = open_demo(CW_DEMO_MODEL, (cw_session_options){.n_ctx = 16});
    expect_refusal(small, teacher_print, CW_STATUS_LIMIT, "the context holds 16");
    cw_speaker_close(&small);
    /* Cut at chunks and inside them, and changed in the middle. */
    char *bytes = NULL;
    size_t n;
    assert_int_equal(cw_fs_read(path, 64 << 20, &bytes, &n, &err), CW_OK);
    assert_true(n > CW_SEALED_CHUNK + 100); /* or a cut below is none */
    const size_t cuts[] = {0, 40, 32 + CW_SEALED_CHUNK + 17, n / 2, n - 1};
    for (size_t i = 0; i < CW_ARRAY_LEN(cuts); i++) {
        assert_int_equal(cw_fs_write(path, bytes, cuts[i], 0600, &err), CW_OK);
        cw_status s = cw_kept_kv_read(teacher, teacher_print, path, key, &err);
        assert_true(s == CW_STATUS_FORMAT || s == CW_STATUS_AUTH);
    }
    bytes[n / 2] ^= 4;
    assert_int_equal(cw_fs_write(path, bytes, n, 0600, &err), CW_OK);
    expect_refusal(teacher, teacher_print, CW_STATUS_AUTH, "damaged");
    cw_free(bytes);
}

static void a_conversation_keeps_who_wrote_what(void **state)
{
    (void)state;
    cw_err err;
    cw_conversation c = {0}, d = {0};
    void *data = NULL;
    size_t n;
    assert_int_equal(cw_conversation_add(&c, "system", "be brief", 8, &err), CW_OK);
    assert_int_equal(cw_conversation_add(&c, "user", "", 0, &err), CW_OK);
    assert_true(cw_conversation_is_open(&c));
    assert_int_equal(cw_conversation_add(&c, "assistant", "a\0bc", 4, &err), CW_OK);
    assert_int_equal(cw_conversation_written_by(&c, "big", 0, &err), CW_OK);
    assert_int_equal(cw_conversation_written_by(&c, "small", 3, &err), CW_OK);
    assert_false(cw_conversation_is_open(&c));
    assert_int_equal(cw_conversation_pack(&c, &data, &n, &err), CW_OK);
    assert_int_equal(cw_conversation_unpack(data, n, &d, &err), CW_OK);
    assert_int_equal(d.n, 3);
    assert_string_equal(d.messages[0].role, "system");
    assert_int_equal(d.messages[2].len, 4);
    assert_memory_equal(d.messages[2].content, "a\0bc", 4);
    assert_int_equal(d.authors[2].n, 2);
    assert_string_equal(d.authors[2].parts[1].model, "small");
    assert_int_equal(d.authors[2].parts[1].begin, 3);
    cw_conversation_clear(&d);
    /* Every cut, and every single byte set to the extreme, gives a status or a conversation. */
    for (size_t i = 0; i < n; i++) {
        uint8_t *copy = malloc(i + 1);
        memcpy(copy, data, i);
        assert_int_equal(cw_conversation_unpack(copy, i, &d, &err), CW_STATUS_FORMAT);
        free(copy);
        uint8_t was = ((uint8_t *)data)[i];
        ((uint8_t *)data)[i] = 0xff;
        if (cw_conversation_unpack(data, n, &d, &err) == CW_OK) cw_conversation_clear(&d);
        ((uint8_t *)data)[i] = was;
    }
    ((uint8_t *)data)[0] = 2;
    assert_int_equal(cw_conversation_unpack(data, n, &d, &err), CW_STATUS_UNSUPPORTED);
    cw_free(data);
    cw_conversation_clear(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_conversation_taken_up_again_is_the_same_to_the_bit),
        cmocka_unit_test(a_cache_of_something_else_is_refused),
        cmocka_unit_test(a_conversation_keeps_who_wrote_what),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
