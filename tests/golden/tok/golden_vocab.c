/*
 * The seven published vocabularies with the ids their models' own tokenizers give. The files are other
 * projects' data, are read in place and are not part of the repository: CW_TOKENIZER_GOLDEN names their
 * folder (default
 * ../shared/golden/tokenizer, from the source root). Where they are absent this test is skipped, visibly.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/chat.h"
#include "cw/gguf.h"
#include "cw/mem.h"
#include "cw/tok.h"
#include "golden_support.h"

static const char *const names[] = {"deepseek-v3", "deepseek-llm", "deepseek-coder", "qwen2",
                                    "llama-bpe",   "gpt-2",        "llama-spm"};

static const char *folder(void)
{
    const char *env = getenv("CW_TOKENIZER_GOLDEN");
    return env && *env ? env : "../shared/golden/tokenizer";
}

static cw_tok *load(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.gguf", folder(), name);
    return golden_load(path);
}

static void check_texts(const char *name, const cw_tok *t)
{
    static const char gap[] = "\n__ggml_vocab_test__\n";
    char path[1024];
    size_t n_in, n_out, cases = 0;
    snprintf(path, sizeof path, "%s/%s.inp", folder(), name);
    char *in = golden_read(path, &n_in);
    snprintf(path, sizeof path, "%s/%s.out", folder(), name);
    char *out = golden_read(path, &n_out), *line = out;
    for (char *text = in; text;) {
        char *end = strstr(text, gap);
        size_t len = end ? (size_t)(end - text) : strlen(text);
        int32_t *ids;
        size_t n;
        cw_err err;
        assert_int_equal(cw_tok_encode(t, text, len, 0, &ids, &n, &err), CW_OK);
        char *stop = strchr(line, '\n'), *p = line;
        if (stop) *stop = '\0';
        for (size_t i = 0; i < n; i++) {
            char *after;
            long want = strtol(p, &after, 10);
            if (after == p || want != ids[i])
                fail_msg("%s, text %zu \"%.*s\": token %zu is %d, expected \"%.40s\"", name, cases, (int)len,
                         text, i, (int)ids[i], p);
            p = after;
        }
        p += strspn(p, " \r");
        if (*p) fail_msg("%s, text %zu \"%.*s\": ids missing from \"%.40s\"", name, cases, (int)len, text, p);
        golden_round_trip(t, text, len, ids, n);
        cw_free(ids);
        cases++;
        text = end ? end + sizeof gap - 1 : NULL;
        line = stop ? stop + 1 : line + strlen(line);
    }
    assert_true(cases >= 40);
    free(in);
    free(out);
}

static void every_text_gets_the_published_ids(void **state)
{
    (void)state;
    for (size_t i = 0; i < CW_ARRAY_LEN(names); i++) {
        cw_tok *t = load(names[i]);
        check_texts(names[i], t);
        cw_tok_free(&t);
    }
}

static void any_text_comes_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < CW_ARRAY_LEN(names); i++) {
        cw_tok *t = load(names[i]);
        golden_random_texts(t,
                            !strcmp(names[i], "qwen2")       ? GOLDEN_NFC
                            : !strcmp(names[i], "llama-spm") ? GOLDEN_SPM
                                                             : 0,
                            300);
        cw_tok_free(&t);
    }
}

/* What the files' own templates make of one conversation. */
static void published_templates_are_recognised(void **state)
{
    (void)state;
#define BAR "\xef\xbd\x9c"
#define SAID(role, text)                                                                                     \
    {                                                                                                        \
        role, text, sizeof text - 1                                                                          \
    }
    static const cw_chat_message m[] = {
        SAID("system", "S"),
        SAID("user", " q1"),
        SAID("assistant", "<think>\nhm\n</think>\n\na1"),
        SAID("user", "q2"),
    };
    static const struct {
        const char *name;
        cw_chat_kind kind;
        const char *want;
    } cases[] = {
        {"deepseek-v3", CW_CHAT_DEEPSEEK_3,
         "<" BAR "begin\xe2\x96\x81of\xe2\x96\x81sentence" BAR ">S<" BAR "User" BAR "> q1<" BAR
         "Assistant" BAR "><think>\nhm\n</think>\n\na1<" BAR "end\xe2\x96\x81of\xe2\x96\x81sentence" BAR
         "><" BAR "User" BAR ">q2<" BAR "Assistant" BAR ">"},
        {"qwen2", CW_CHAT_CHATML,
         "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n "
         "q1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
         "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"},
        {"llama-bpe", CW_CHAT_LLAMA_3,
         "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|"
         "end_header_id|>\n\nq1<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n<think>\nhm\n</think>\n\na1<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nq2<|eot_id|><|start_header_id|>assistant<|end_header_"
         "id|>\n\n"},
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(cases); i++) {
        char path[1024], got[1024] = "";
        cw_gguf *g;
        cw_chat *c;
        cw_chat_prompt p;
        cw_err err;
        int32_t *ids, *whole;
        size_t n, n_whole;
        snprintf(path, sizeof path, "%s/%s.gguf", folder(), cases[i].name);
        cw_tok *t = load(cases[i].name);
        assert_int_equal(cw_gguf_open(path, &g, &err), CW_OK);
        if (cw_chat_new_from_gguf(g, &c, &err) != CW_OK) fail_msg("%s", err.text);
        cw_gguf_close(&g);
        assert_int_equal(cw_chat_get_kind(c), cases[i].kind);
        assert_int_equal(cw_chat_render(c, t, m, 4, true, &p, &err), CW_OK);
        for (size_t k = 0; k < p.n_segs; k++) strncat(got, p.segs[k].text, p.segs[k].len);
        assert_string_equal(got, cases[i].want);
        cw_chat_prompt_clear(&p);
        /* nobody wrote a control token here, so the parts give the ids of the whole */
        assert_int_equal(cw_chat_encode(c, t, m, 4, true, &ids, &n, &err), CW_OK);
        assert_int_equal(
            cw_tok_encode(t, got, strlen(got), CW_TOK_ADD_BOS | CW_TOK_PARSE_SPECIAL, &whole, &n_whole, &err),
            CW_OK);
        assert_int_equal(n, n_whole);
        assert_memory_equal(ids, whole, n * sizeof *ids);
        cw_free(ids);
        cw_free(whole);
        cw_chat_free(&c);
        cw_tok_free(&t);
    }
}

int main(void)
{
    char path[1024];
    for (size_t i = 0; i < CW_ARRAY_LEN(names); i++) {
        snprintf(path, sizeof path, "%s/%s.gguf", folder(), names[i]);
        FILE *f = fopen(path, "rb");
        if (!f) {
            printf(
                "skipped: %s is not there (CW_TOKENIZER_GOLDEN names the folder of published vocabularies)\n",
                path);
            return 77;
        }
        fclose(f);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_text_gets_the_published_ids),
        cmocka_unit_test(any_text_comes_back),
        cmocka_unit_test(published_templates_are_recognised),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
