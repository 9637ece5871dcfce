/* Streaming text: complete UTF-8 only, and reasoning apart from the answer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/detok.h"
#include "cw/mem.h"
#include "vocab_maker.h"

/* Feeds bytes (id = byte) and writes what comes out, '|' after each push that gave something. */
static void stream(const cw_tok *t, const char *bytes, const char *want)
{
    cw_detok *d;
    char got[512];
    size_t n = 0, len, k = strlen(bytes);
    assert_int_equal(cw_detok_new(t, 0, &d, NULL), CW_OK);
    for (size_t i = 0; i <= k; i++) {
        const char *p = i < k ? cw_detok_push(d, (uint8_t)bytes[i], &len) : cw_detok_flush(d, &len);
        assert_int_equal(strlen(p), len);
        memcpy(got + n, p, len);
        n += len;
        if (len) got[n++] = '|';
    }
    got[n] = '\0';
    assert_string_equal(got, want);
    cw_detok_free(&d);
}

#define R "\xef\xbf\xbd"

static void only_complete_sequences_come_out(void **state)
{
    (void)state;
    vocab *v = vocab_bpe("gpt-2");
    vocab_merge(v, "x", "y");
    cw_tok *t = vocab_build(v);
    stream(t, "ab", "a|b|");
    stream(t, "\xc3\xa9\xe4\xb8\x96\xf0\x9f\xa6\x99!", "\xc3\xa9|\xe4\xb8\x96|\xf0\x9f\xa6\x99|!|");
    stream(t, "\xe4\xb8", R "|"); /* cut off: one for what was held */
    stream(t,
           "\xe4\xb8"
           "a",
           R "a|"); /* broken: one for the broken part */
    stream(t, "\xff\xfe", R "|" R "|");
    stream(t, "\xf0\x9f\xe4\xb8\x96", R "|\xe4\xb8\x96|");
    stream(t, "\xed\xa0\x80",
           R R "|" R "|"); /* a surrogate is no character, and neither byte can begin one */
    stream(t, "\xc0\x80", R "|" R "|");
    stream(t, "", "");
    cw_tok_free(&t);
    vocab_free(&v);
}

static void any_cut_of_a_text_streams_to_the_same_text(void **state)
{
    (void)state;
    static const char text[] = "a\xc3\xa9\xe4\xb8\x96\xff\xf0\x9f\xa6\x99\xe4\xb8z";
    static const char want[] = "a\xc3\xa9\xe4\xb8\x96" R "\xf0\x9f\xa6\x99" R "z";
    size_t n = sizeof text - 1;
    for (unsigned cuts = 0; cuts < 1u << (n - 1); cuts += 7) {
        vocab *v = vocab_bpe("gpt-2");
        vocab_merge(v, "x", "y");
        int32_t ids[32];
        size_t n_ids = 0, begin = 0, got = 0, len;
        for (size_t i = 1; i <= n; i++)
            if (i == n || (cuts >> (i - 1) & 1))
                ids[n_ids++] = vocab_add_bytes(v, text + begin, i - begin), begin = i;
        cw_tok *t = vocab_build(v);
        cw_detok *d;
        assert_int_equal(cw_detok_new(t, 0, &d, NULL), CW_OK);
        for (size_t i = 0; i <= n_ids; i++) {
            const char *p = i < n_ids ? cw_detok_push(d, ids[i], &len) : cw_detok_flush(d, &len);
            assert_true(got + len <= sizeof want - 1);
            assert_memory_equal(want + got, p, len);
            got += len;
        }
        assert_int_equal(got, sizeof want - 1);
        cw_detok_free(&d);
        cw_tok_free(&t);
        vocab_free(&v);
    }
}

static void streaming_allocates_nothing(void **state)
{
    (void)state;
    vocab *v = vocab_bpe("gpt-2");
    vocab_merge(v, "x", "y");
    cw_tok *t = vocab_build(v);
    cw_detok *d;
    cw_think *s;
    cw_span span;
    size_t len, spans = 0;
    assert_int_equal(cw_detok_new(t, 0, &d, NULL), CW_OK);
    assert_int_equal(cw_think_new(false, &s, NULL), CW_OK);
    cw_alloc_guard_begin(false);
    for (int32_t id = 0; id < 257; id++) {
        const char *p = cw_detok_push(d, id, &len);
        cw_think_push(s, p, len);
        while (cw_think_next(s, &span)) spans++;
    }
    assert_int_equal(cw_alloc_guard_end(), 0);
    assert_true(spans > 100);
    cw_think_free(&s);
    cw_detok_free(&d);
    cw_tok_free(&t);
    vocab_free(&v);
}

static void control_tokens_are_printed_only_on_request(void **state)
{
    (void)state;
    vocab *v = vocab_spm();
    int32_t a = vocab_add(v,
                          "\xe2\x96\x81"
                          "a",
                          CW_TOKEN_NORMAL, -1),
            tag = vocab_add(v, "<tag>", CW_TOKEN_USER_DEFINED, 0);
    const int32_t ids[] = {1, a, tag, a, 2, -5, 99999};
    static const char *const want[] = {"a<tag> a", "<s>a<tag> a</s>", " a<tag> a"};
    static const unsigned flags[] = {CW_DETOK_TEXT_START, CW_DETOK_TEXT_START | CW_DETOK_KEEP_SPECIAL, 0};
    cw_tok *t = vocab_build(v);
    for (int k = 0; k < 3; k++) {
        cw_detok *d;
        assert_int_equal(cw_detok_new(t, flags[k], &d, NULL), CW_OK);
        for (int again = 0; again < 2; again++) { /* the same after a reset */
            char got[64] = "";
            size_t len;
            for (size_t i = 0; i < CW_ARRAY_LEN(ids); i++) strcat(got, cw_detok_push(d, ids[i], &len));
            assert_string_equal(got, want[k]);
            cw_detok_reset(d);
        }
        cw_detok_free(&d);
    }
    cw_tok_free(&t);
    vocab_free(&v);
}

/* Writes spans as A(..) R(..) M(..), neighbours of one kind joined; feeds `step` bytes at a time. */
static void split(const char *text, bool open, size_t step, char *out)
{
    cw_think *s;
    cw_span span;
    size_t n = strlen(text), at = 0;
    char last = 0;
    *out = '\0';
    assert_int_equal(cw_think_new(open, &s, NULL), CW_OK);
    for (bool more = true; more;) {
        size_t k = n - at < step ? n - at : step;
        char *copy = malloc(k + 1); /* so that a sanitizer sees a look beyond it */
        memcpy(copy, text + at, k);
        cw_think_push(s, copy, k);
        at += k;
        if (at == n) {
            cw_think_finish(s);
            more = false;
        }
        while (cw_think_next(s, &span)) {
            assert_true(span.len > 0);
            char kind = "ARM"[span.kind];
            if (kind != last) sprintf(out + strlen(out), "%s%c(", last ? ")" : "", kind);
            last = kind;
            strncat(out, span.text, span.len);
        }
        free(copy);
    }
    if (last) strcat(out, ")");
    cw_think_free(&s);
}

static void reasoning_is_told_from_the_answer_however_the_text_is_cut(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool open;
        const char *want;
    } cases[] = {
        {"<think>\nhm\n</think>\n\nYes.", false, "M(<think>\n)R(hm\n)M(</think>\n\n)A(Yes.)"},
        {"\nhm</think>Yes.", true, "M(\n)R(hm)M(</think>)A(Yes.)"},
        {"hm</think>\n", true, "R(hm)M(</think>\n)"},
        {"No tag at all", false, "A(No tag at all)"},
        {"a < b <thin <<think>c", false, "A(a < b <thin <)M(<think>)R(c)"},
        {"<think></think>x", false, "M(<think></think>)A(x)"},
        {"x</thinker <think", false, "A(x</thinker <think)"},
        {"</think>x<think>y", false, "M(</think>)A(x)M(<think>)R(y)"},
        {"a<</think>\r\nb", true, "R(a<)M(</think>\r\n)A(b)"},
        {"", false, ""},
        {"<", true, "R(<)"},
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(cases); i++)
        for (size_t step = 1; step < 12; step++) {
            char got[256];
            split(cases[i].text, cases[i].open, step, got);
            assert_string_equal(got, cases[i].want);
        }
}

static void open_reasoning_shows(void **state)
{
    (void)state;
    cw_think *s;
    cw_span span;
    assert_int_equal(cw_think_new(true, &s, NULL), CW_OK);
    assert_true(cw_think_is_open(s));
    cw_think_push(s, "x</think>", 9);
    while (cw_think_next(s, &span)) continue;
    assert_false(cw_think_is_open(s));
    cw_think_reset(s, true);
    assert_true(cw_think_is_open(s));
    cw_think_free(&s);
    cw_think_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_complete_sequences_come_out),
        cmocka_unit_test(any_cut_of_a_text_streams_to_the_same_text),
        cmocka_unit_test(streaming_allocates_nothing),
        cmocka_unit_test(control_tokens_are_printed_only_on_request),
        cmocka_unit_test(reasoning_is_told_from_the_answer_however_the_text_is_cut),
        cmocka_unit_test(open_reasoning_shows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
