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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
