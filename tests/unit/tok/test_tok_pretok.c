/*
 * Where each pre-tokenizer cuts. The vocabulary of each case holds every substring of its text, and every
 * merge that makes one, so whatever is not cut apart becomes one token and the tokens are the words. The cuts
 * expected here were checked against the published patterns run by another regular expression engine.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/log.h"
#include "cw/mem.h"
#include "vocab_maker.h"

static void add_substrings(vocab *v, const char *text, size_t n)
{
    for (size_t len = 2; len <= n; len++)
        for (size_t at = 0; at + len <= n; at++)
            for (size_t cut = 1; cut < len; cut++) {
                char a[64], b[64];
                snprintf(a, sizeof a, "%.*s", (int)cut, text + at);
                snprintf(b, sizeof b, "%.*s", (int)(len - cut), text + at + cut);
                vocab_merge(v, a, b);
            }
}

/* `words`: the text with '|' at each cut. */
static void check(const char *pre, const char *words, bool no_jit)
{
    char text[64], got[128];
    size_t n = 0, n_ids, at = 0;
    for (const char *p = words; *p; p++)
        if (*p != '|') text[n++] = *p;
    vocab *v = vocab_bpe(pre);
    add_substrings(v, text, n);
    v->spec.add_bos = 0;
    v->spec.no_jit = no_jit;
    cw_tok *t = vocab_build(v);
    int32_t *ids;
    cw_err err;
    if (cw_tok_encode(t, text, n, 0, &ids, &n_ids, &err) != CW_OK) fail_msg("%s: %s", pre, err.text);
    for (size_t i = 0; i < n_ids; i++) {
        size_t len;
        const char *p = cw_tok_piece(t, ids[i], &len);
        if (i) got[at++] = '|';
        memcpy(got + at, p, len);
        at += len;
    }
    got[at] = '\0';
    if (strcmp(got, words) != 0) fail_msg("%s: got \"%s\", expected \"%s\"", pre, got, words);
    cw_free(ids);
    cw_tok_free(&t);
    vocab_free(&v);
}

static const struct {
    const char *pre, *words;
} cases[] = {
    {"deepseek-v3", "123|45|abc"},
    {"deepseek-v3", "I|'m| not|.com|\n\n"},
    {"deepseek-v3", "a|\xe4\xb8\x96\xe7\x95\x8c|b"},
    {"deepseek-v3", "x|  | y"},
    {"deepseek-v3", "\xc3\xa9"
                    "e\xcc\x81| +|1"},
    {"deepseek-v3", "  \n| z|!!\n"},
    {"deepseek-llm", "ab| cd|\n|\n|1|2"},
    {"deepseek-llm", "F|\xc3\xbc|\xe4\xb8\x96\xe7\x95\x8c| x|!?"},
    {"deepseek-llm", "   | a|  "},
    {"deepseek-coder", "ab| cd|\r|\n|1|2|!?|$"},
    {"qwen2", "I|'M| ok|1|2| !!\n|  | x"},
    {"deepseek-r1-qwen", "a|1|2|\n\n|b"},
    {"llama-bpe", "I|'LL|123|4| !!\n"},
    {"dbrx", "123|4| a"},
    {"gpt-2", "I|'m|'|M|1234| 56| !?|  | x"},
    {"smollm", "a|1|2|3| b| |1"},
    {"kimi-k2", "\xe4\xb8\x96\xe7\x95\x8c|abc's"},
    {"kimi-k2", "abc's|Abc|DEF|123|4|\xe3\x81\x82"},
    {"default", "a|$|b|123|4| |!!"},
};

static void words_are_cut_as_in_training(void **state)
{
    (void)state;
    for (size_t i = 0; i < CW_ARRAY_LEN(cases); i++) check(cases[i].pre, cases[i].words, false);
}

static void the_interpreter_cuts_like_the_jit(void **state)
{
    (void)state;
    for (size_t i = 0; i < CW_ARRAY_LEN(cases); i++) check(cases[i].pre, cases[i].words, true);
}

static int warnings;
static void count_warning(void *ctx, cw_log_level level, const char *line)
{
    (void)ctx;
    if (level == CW_LOG_WARN && strstr(line, "pre-tokenizer")) warnings++;
}

static void a_missing_name_warns_and_an_unknown_one_is_refused(void **state)
{
    (void)state;
    vocab *v = vocab_bpe(NULL);
    vocab_merge(v, "x", "y");
    cw_log_set_sink(count_warning, NULL);
    cw_tok *t = vocab_build(v);
    cw_tok_free(&t);
    assert_int_equal(warnings, 1);
    v->spec.pre = "gpt-2";
    t = vocab_build(v);
    cw_tok_free(&t);
    cw_log_set_sink(NULL, NULL);
    assert_int_equal(warnings, 1);
    cw_err err;
    v->spec.pre = "pre-of-tomorrow";
    assert_int_equal(cw_tok_new_from_spec(&v->spec, &t, &err), CW_STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "pre-of-tomorrow"));
    vocab_free(&v);
}

/* Runs that an unwise pattern would scan again from every place: minutes instead of a moment. */
static void long_runs_are_cut_in_linear_time(void **state)
{
    (void)state;
    static const char *const pre[] = {"deepseek-v3", "deepseek-llm", "deepseek-coder", "qwen2",  "llama-bpe",
                                      "gpt-2",       "smollm",       "kimi-k2",        "default"};
    static const char *const runs[] = {" ",
                                       "\n",
                                       " \n",
                                       "A",
                                       "a",
                                       "1",
                                       "!",
                                       "'",
                                       "\t\xc2\xa0",
                                       "\xe0\xb8\x81"
                                       "A"};
    size_t n = (size_t)1 << 18;
    char *text = malloc(n + 4);
    for (size_t i = 0; i < CW_ARRAY_LEN(pre); i++) {
        vocab *v = vocab_bpe(pre[i]);
        vocab_merge(v, "x", "y");
        for (int jit = 0; jit < 2; jit++) {
            v->spec.no_jit = !jit;
            cw_tok *t = vocab_build(v);
            for (size_t r = 0; r < CW_ARRAY_LEN(runs); r++) {
                size_t k = strlen(runs[r]), len = n / k * k, got;
                for (size_t at = 0; at < len; at += k) memcpy(text + at, runs[r], k);
                memcpy(text + len, "\xe4\xb8\x96!", 4); /* so that the run is not at the end */
                int32_t *ids;
                assert_int_equal(cw_tok_encode(t, text, len + 4, 0, &ids, &got, NULL), CW_OK);
                assert_int_equal(got, len + 4);
                cw_free(ids);
            }
            cw_tok_free(&t);
        }
        vocab_free(&v);
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_are_cut_as_in_training),
        cmocka_unit_test(the_interpreter_cuts_like_the_jit),
        cmocka_unit_test(a_missing_name_warns_and_an_unknown_one_is_refused),
        cmocka_unit_test(long_runs_are_cut_in_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
