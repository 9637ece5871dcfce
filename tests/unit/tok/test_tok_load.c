/* What a vocabulary may be: refusals by a sentence, tolerance where real files need it, end tokens,
 * comparison. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>
#include "cw/gguf.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "gguf_writer.h"
#include "vocab_maker.h"

static void refused(vocab *v, cw_status want, const char *word)
{
    cw_tok *t = (cw_tok *)&want;
    cw_err err = {0};
    cw_status s = cw_tok_new_from_spec(&v->spec, &t, &err);
    if (s != want) fail_msg("expected %s for \"%s\", got %s", cw_status_name(want), word, cw_status_name(s));
    assert_ptr_equal(t, &want); /* outputs stay as they were */
    if (!strstr(err.text, word) || !strstr(err.text, "test"))
        fail_msg("\"%s\" does not speak of \"%s\" and the file", err.text, word);
    vocab_free(&v);
}

static vocab *good(void)
{
    vocab *v = vocab_bpe("gpt-2");
    vocab_merge(v, "a", "b");
    return v;
}

static void malformed_vocabularies_are_refused_in_words(void **state)
{
    (void)state;
    vocab *v;
    (v = good())->spec.n_types--, refused(v, CW_STATUS_FORMAT, "256 token types for 257");
    (v = good())->types[7] = 0, refused(v, CW_STATUS_FORMAT, "token 7 has the unknown type 0");
    (v = good())->types[7] = 99, refused(v, CW_STATUS_FORMAT, "type 99");
    (v = good())->spec.bos = 257, refused(v, CW_STATUS_FORMAT, "BOS");
    (v = good())->spec.eos = INT64_MAX, refused(v, CW_STATUS_FORMAT, "EOS");
    (v = good())->spec.eot = -2, refused(v, CW_STATUS_FORMAT, "EOT");
    (v = good())->spec.eom = 300, refused(v, CW_STATUS_FORMAT, "EOM");
    (v = good())->spec.unk = 300, refused(v, CW_STATUS_FORMAT, "unknown");
    (v = good())->spec.pad = 1 << 30, refused(v, CW_STATUS_FORMAT, "padding");
    v = good();
    v->spec.scores = v->scores;
    v->spec.n_scores = 3;
    refused(v, CW_STATUS_FORMAT, "3 token scores");
    (v = good())->spec.model = "wordpiece", refused(v, CW_STATUS_UNSUPPORTED, "wordpiece");
    (v = good())->spec.model = NULL, refused(v, CW_STATUS_NOT_FOUND, "no tokenizer model");
    (v = vocab_bpe("gpt-2")), refused(v, CW_STATUS_FORMAT, "needs merges");
    static const char *const merges[] = {"ab", "", " ", "a ", " b", "a", "  "};
    for (size_t i = 0; i < CW_ARRAY_LEN(merges); i++)
        v = good(), vocab_merge_raw(v, merges[i]), refused(v, CW_STATUS_FORMAT, "merge 1 is not two parts");
    v = vocab_bpe("gpt-2");
    vocab_merge_raw(v, "q r");
    refused(v, CW_STATUS_FORMAT, "none of the 1 merges");
    (v = vocab_spm())->spec.n_scores = 0, refused(v, CW_STATUS_FORMAT, "needs token scores");
    (v = vocab_spm())->scores[5] = NAN, refused(v, CW_STATUS_FORMAT, "token 5");
    (v = good())->spec.n_tokens = 0, v->spec.n_types = 0, refused(v, CW_STATUS_FORMAT, "no tokens");
    (v = good())->spec.n_tokens = (size_t)1 << 40, refused(v, CW_STATUS_LIMIT, "1099511627776");
    (v = good())->spec.n_merges = (size_t)1 << 40, refused(v, CW_STATUS_LIMIT, "merges");
}

static void equal_texts_give_the_lowest_id(void **state)
{
    (void)state;
    vocab *v = good();
    int32_t first =
        vocab_add(v, "x y", CW_TOKEN_NORMAL, 0); /* a space is not in the alphabet: never produced */
    vocab_add(v, "ab", CW_TOKEN_NORMAL, 0);
    vocab_add(v, "", CW_TOKEN_NORMAL, 0);
    vocab_add(v, "", CW_TOKEN_CONTROL, 0);
    int32_t tag = vocab_add(v, "<t>", CW_TOKEN_CONTROL, 0);
    vocab_add(v, "<t>", CW_TOKEN_CONTROL, 0);
    cw_tok *t = vocab_build(v);
    EXPECT_IDS(t, "ab", 0, 256);
    EXPECT_IDS(t, "x y", 0, 'x', ' ', 'y');
    EXPECT_IDS(t, "<t>", CW_TOK_PARSE_SPECIAL, tag);
    assert_int_equal(cw_tok_find(t, "<t>", 3), tag);
    assert_int_equal(cw_tok_find(t, "nothing", 7), -1);
    assert_int_equal(first, 257);
    cw_tok_free(&t);
    vocab_free(&v);
}

static void merges_of_no_tokens_are_skipped(void **state)
{
    (void)state;
    vocab *v = vocab_bpe("gpt-2");
    vocab_merge_raw(v, "a b"); /* the product is no token */
    vocab_merge_raw(v, "zz a");
    vocab_merge_raw(v, "\xff \xfe");
    int32_t bc = vocab_merge(v, "b", "c");
    cw_tok *t = vocab_build(v);
    EXPECT_IDS(t, "abc", 0, 'a', bc);
    cw_tok_free(&t);
    vocab_free(&v);
}

static void control_tokens_are_never_merged_from_text(void **state)
{
    (void)state;
    vocab *v = vocab_bpe("gpt-2");
    int32_t ab = vocab_add(v, "ab", CW_TOKEN_CONTROL, 0), cd = vocab_merge(v, "c", "d");
    vocab_merge_raw(v, "a b");
    cw_tok *t = vocab_build(v);
    EXPECT_IDS(t, "ab", 0, 'a', 'b');
    EXPECT_IDS(t, "abcd", CW_TOK_PARSE_SPECIAL, ab, cd);
    cw_tok_free(&t);
    vocab_free(&v);
}

static void a_very_long_special_token_is_not_looked_for(void **state)
{
    (void)state;
    vocab *v = good();
    char *text = malloc(CW_TOK_MAX_SPECIAL + 1);
    memset(text, 'q', CW_TOK_MAX_SPECIAL + 1);
    int32_t fits = vocab_add_n(v, text, CW_TOK_MAX_SPECIAL, CW_TOKEN_USER_DEFINED, 0);
    vocab_add_n(v, text, CW_TOK_MAX_SPECIAL + 1, CW_TOKEN_USER_DEFINED, 0);
    cw_tok *t = vocab_build(v);
    const int32_t want[] = {fits, 'q'};
    expect_ids(t, text, CW_TOK_MAX_SPECIAL + 1, 0, want, 2);
    assert_int_equal(cw_tok_max_piece(t), CW_TOK_MAX_SPECIAL + 1);
    cw_tok_free(&t);
    vocab_free(&v);
    free(text);
}

static void pieces_and_types(void **state)
{
    (void)state;
    vocab *v = good();
    int32_t sp = vocab_merge(v, " ", "t"), tag = vocab_add(v, "<\xc4\xa0>", CW_TOKEN_USER_DEFINED, 0);
    cw_tok *t = vocab_build(v);
    size_t n;
    assert_memory_equal(cw_tok_piece(t, sp, &n), " t", 2);
    assert_int_equal(n, 2);
    assert_memory_equal(cw_tok_text(t, sp, &n), "\xc4\xa0t", 3);
    assert_memory_equal(cw_tok_piece(t, tag, &n), "<\xc4\xa0>", 4); /* user-defined text is as it stands */
    for (int b = 0; b < 256; b++) {
        assert_int_equal((uint8_t)cw_tok_piece(t, b, &n)[0], b);
        assert_int_equal(n, 1);
    }
    static const int32_t outside[] = {-1, INT32_MIN, INT32_MAX, 259};
    for (size_t i = 0; i < CW_ARRAY_LEN(outside); i++) {
        assert_string_equal(cw_tok_piece(t, outside[i], &n), "");
        assert_int_equal(n, 0);
        assert_int_equal(cw_tok_type(t, outside[i]), CW_TOKEN_UNUSED);
        assert_false(cw_tok_is_eog(t, outside[i]));
        char *text;
        assert_int_equal(cw_tok_decode(t, &outside[i], 1, 0, &text, &n, NULL), CW_STATUS_INVALID);
    }
    assert_int_equal(cw_tok_type(t, tag), CW_TOKEN_USER_DEFINED);
    assert_int_equal(cw_tok_n_vocab(t), 259);
    assert_int_equal(cw_tok_bos(t), -1);
    cw_tok_free(&t);
    vocab_free(&v);
}

static void answers_end_at_the_files_ids_and_at_known_texts(void **state)
{
    (void)state;
    static const char *const known[] = {"<|im_end|>",
                                        "<|eot_id|>",
                                        "<|endoftext|>",
                                        "<|end|>",
                                        "<end_of_turn>",
                                        "<|EOT|>",
                                        "<\xef\xbd\x9c"
                                        "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"};
    vocab *v = good();
    int32_t first = vocab_add(v, known[0], CW_TOKEN_CONTROL, 0);
    for (size_t i = 1; i < CW_ARRAY_LEN(known); i++) vocab_add(v, known[i], CW_TOKEN_CONTROL, 0);
    v->spec.eos = 'e';
    v->spec.eot = 't';
    v->spec.eom = 'm';
    cw_tok *t = vocab_build(v);
    for (size_t i = 0; i < CW_ARRAY_LEN(known); i++) assert_true(cw_tok_is_eog(t, first + (int32_t)i));
    assert_true(cw_tok_is_eog(t, 'e') && cw_tok_is_eog(t, 't') && cw_tok_is_eog(t, 'm'));
    assert_false(cw_tok_is_eog(t, 'a') || cw_tok_is_eog(t, 256));
    cw_tok_free(&t);
    vocab_free(&v);
}

static void vocabularies_are_compared_by_texts(void **state)
{
    (void)state;
    vocab *v[4] = {good(), good(), good(), good()};
    v[1]->types['a'] = CW_TOKEN_USER_DEFINED; /* types do not matter, texts and their places do */
    vocab_add(v[2], "more", CW_TOKEN_NORMAL, 0);
    cw_tok_str swap = v[3]->tokens[1];
    v[3]->tokens[1] = v[3]->tokens[2];
    v[3]->tokens[2] = swap;
    cw_tok *t[4];
    for (int i = 0; i < 4; i++) t[i] = vocab_build(v[i]);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++) {
            bool same = i == k || i + k == 1;
            assert_int_equal(cw_tok_same_vocab(t[i], t[k]), same);
            assert_int_equal(cw_tok_vocab_hash(t[i]) == cw_tok_vocab_hash(t[k]), same);
        }
    for (int i = 0; i < 4; i++) {
        cw_tok_free(&t[i]);
        vocab_free(&v[i]);
    }
}

/* --- from a file --- */

static gguf_writer *file_with_tokens(void)
{
    static const char *const tokens[] = {"<unk>", "<s>", "</s>", "a", "b", "ab"};
    static const uint8_t types[] = {2, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0};
    gguf_writer *w = gguf_writer_new();
    gguf_writer_str_array(w, "tokenizer.ggml.tokens", tokens, 6);
    gguf_writer_array(w, "tokenizer.ggml.token_type", CW_GGUF_I32, 6, types, sizeof types);
    return w;
}

static cw_status open_tok(gguf_writer *w, cw_tok **t, cw_err *err)
{
    size_t n;
    uint8_t *bytes = gguf_writer_bytes(w, &n);
    cw_gguf *g;
    assert_int_equal(cw_gguf_open_memory(bytes, n, "made.gguf", &g, err), CW_OK);
    cw_status s = cw_tok_new(g, t, err);
    cw_gguf_close(&g);
    free(bytes); /* the tokenizer keeps nothing of it */
    gguf_writer_free(&w);
    return s;
}

static void a_file_is_read_whole(void **state)
{
    (void)state;
    static const float scores[] = {0, 0, 0, -3, -2, -1};
    gguf_writer *w = file_with_tokens();
    gguf_writer_str(w, "tokenizer.ggml.model", "llama");
    gguf_writer_array(w, "tokenizer.ggml.scores", CW_GGUF_F32, 6, scores, sizeof scores);
    gguf_writer_bool(w, "tokenizer.ggml.add_space_prefix", false);
    gguf_writer_bool(w, "tokenizer.ggml.add_eos_token", true);
    gguf_writer_u32(w, "tokenizer.ggml.eot_token_id", 4);
    cw_tok *t;
    cw_err err;
    if (open_tok(w, &t, &err) != CW_OK) fail_msg("%s", err.text);
    EXPECT_IDS(t, "abb", CW_TOK_ADD_SPECIAL, 1, 5, 4, 2); /* ids 1 and 2 by SentencePiece's custom */
    EXPECT_IDS(t, "z", 0, 0);
    assert_true(cw_tok_is_eog(t, 4) && cw_tok_is_eog(t, 2));
    cw_tok_free(&t);
}

static void bad_keys_are_named(void **state)
{
    (void)state;
    cw_tok *t;
    cw_err err;
    gguf_writer *w = gguf_writer_new();
    assert_int_equal(open_tok(w, &t, &err), CW_STATUS_NOT_FOUND);
    assert_non_null(strstr(err.text, "tokenizer.ggml.model"));
    w = file_with_tokens();
    gguf_writer_u32(w, "tokenizer.ggml.model", 3);
    assert_int_equal(open_tok(w, &t, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "tokenizer.ggml.model"));
    w = file_with_tokens();
    gguf_writer_str(w, "tokenizer.ggml.model", "rwkv");
    assert_int_equal(open_tok(w, &t, &err), CW_STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "rwkv"));
    w = file_with_tokens();
    gguf_writer_str(w, "tokenizer.ggml.model", "llama");
    gguf_writer_str(w, "tokenizer.ggml.scores", "none");
    assert_int_equal(open_tok(w, &t, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "tokenizer.ggml.scores"));
    w = file_with_tokens();
    gguf_writer_str(w, "tokenizer.ggml.model", "gpt2");
    gguf_writer_u32(w, "tokenizer.ggml.bos_token_id", 6);
    assert_int_equal(open_tok(w, &t, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "made.gguf"));
    assert_non_null(strstr(err.text, "BOS"));
}

int main(void)
{
    cw_log_set_level(CW_LOG_ERROR); /* the warnings of tolerated files are not this test's matter */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(malformed_vocabularies_are_refused_in_words),
        cmocka_unit_test(equal_texts_give_the_lowest_id),
        cmocka_unit_test(merges_of_no_tokens_are_skipped),
        cmocka_unit_test(control_tokens_are_never_merged_from_text),
        cmocka_unit_test(a_very_long_special_token_is_not_looked_for),
        cmocka_unit_test(pieces_and_types),
        cmocka_unit_test(answers_end_at_the_files_ids_and_at_known_texts),
        cmocka_unit_test(vocabularies_are_compared_by_texts),
        cmocka_unit_test(a_file_is_read_whole),
        cmocka_unit_test(bad_keys_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
