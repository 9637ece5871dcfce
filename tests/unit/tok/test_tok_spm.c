/* SentencePiece: scores, the leading space, byte fallback. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/mem.h"
#include "vocab_maker.h"

#define SP "\xe2\x96\x81" /* U+2581 */

enum { UNK, BOS, EOS, BYTE0 };

static void expect_text(const cw_tok *t, const int32_t *ids, size_t n, const char *want)
{
    char *text;
    size_t len;
    assert_int_equal(cw_tok_decode(t, ids, n, 0, &text, &len, NULL), CW_OK);
    assert_string_equal(text, want);
    assert_int_equal(len, strlen(want));
    cw_free(text);
}

static void the_best_score_merges_first_and_then_the_leftmost(void **state)
{
    (void)state;
    vocab *v = vocab_spm();
    int32_t space = vocab_add(v, SP, CW_TOKEN_NORMAL, -9), a = vocab_add(v, "a", CW_TOKEN_NORMAL, -10);
    int32_t b = vocab_add(v, "b", CW_TOKEN_NORMAL, -10), ab = vocab_add(v, "ab", CW_TOKEN_NORMAL, -2);
    int32_t ba = vocab_add(v, "ba", CW_TOKEN_NORMAL, -1), aa = vocab_add(v, "aa", CW_TOKEN_NORMAL, -2);
    int32_t sab = vocab_add(v, SP "ab", CW_TOKEN_NORMAL, -5);
    cw_tok *t = vocab_build(v);
    EXPECT_IDS(t, "ab", 0, sab);
    EXPECT_IDS(t, "aba", 0, space, a, ba);
    EXPECT_IDS(t, "aab", 0, space, aa, b); /* equal scores: the left pair */
    EXPECT_IDS(t, "b ab", 0, space, b, sab);
    EXPECT_IDS(t, "xab", 0, space, BYTE0 + 'x', ab);
    cw_tok_free(&t);
    vocab_free(&v);
}

static void a_space_stands_before_the_text_and_goes_away_again(void **state)
{
    (void)state;
    vocab *v = vocab_spm();
    int32_t space = vocab_add(v, SP, CW_TOKEN_NORMAL, -9), a = vocab_add(v, "a", CW_TOKEN_NORMAL, -10);
    int32_t tag = vocab_add(v, "<tag>", CW_TOKEN_USER_DEFINED, 0);
    cw_tok *t = vocab_build(v);
    assert_true(cw_tok_adds_space(t));
    EXPECT_IDS(t, "a a", 0, space, a, space, a);
    EXPECT_IDS(t, " a", 0, space, space, a);
    EXPECT_IDS(t, "", 0 | CW_TOK_ADD_SPECIAL, BOS); /* adds a BOS by default, and no space before nothing */
    EXPECT_IDS(t, "</s>a", CW_TOK_PARSE_SPECIAL, EOS, space, a);
    EXPECT_IDS(t, "a</s>", CW_TOK_ADD_SPECIAL | CW_TOK_PARSE_SPECIAL, BOS, space, a, EOS);
    EXPECT_IDS(t, "a<tag>a<tag>", 0, space, a, tag, a, tag); /* a user-defined token is a part of the text */
    EXPECT_IDS(t, "<tag>a", 0, tag, a);
    expect_text(t, (const int32_t[]){BOS, space, a, space, a}, 5, "a a");
    expect_text(t, (const int32_t[]){space, space, a}, 3, " a");
    cw_tok_free(&t);
    v->spec.add_space_prefix = 0;
    v->spec.add_bos = 0;
    t = vocab_build(v);
    EXPECT_IDS(t, "a a", CW_TOK_ADD_SPECIAL, a, space, a);
    expect_text(t, (const int32_t[]){space, a}, 2, " a");
    cw_tok_free(&t);
    vocab_free(&v);
}

static void characters_without_a_token_become_their_bytes(void **state)
{
    (void)state;
    vocab *v = vocab_spm();
    v->spec.add_space_prefix = 0;
    int32_t e = vocab_add(v, "\xc3\xa9", CW_TOKEN_NORMAL, -1);
    cw_tok *t = vocab_build(v);
    EXPECT_IDS(t, "\xc3\xa9\xc3\xa8", 0, e, BYTE0 + 0xc3, BYTE0 + 0xa8);
    EXPECT_IDS(t, "\xff\xc3", 0, BYTE0 + 0xff, BYTE0 + 0xc3); /* not text: the bytes, too */
    EXPECT_IDS(t, "<s>", 0, BYTE0 + '<', BYTE0 + 's',
               BYTE0 + '>'); /* control tokens are not made from text */
    EXPECT_IDS(t, "<0x41>", 0, BYTE0 + '<', BYTE0 + '0', BYTE0 + 'x', BYTE0 + '4', BYTE0 + '1', BYTE0 + '>');
    expect_text(t, (const int32_t[]){e, BYTE0 + 0xc3, BYTE0 + 0xa8}, 3, "\xc3\xa9\xc3\xa8");
    cw_tok_free(&t);
    vocab_free(&v);
}

static void without_byte_tokens_the_unknown_token_stands_in(void **state)
{
    (void)state;
    vocab *v = vocab_spm();
    v->spec.add_space_prefix = 0;
    for (int i = 0; i < 256; i++) v->types[BYTE0 + i] = CW_TOKEN_UNUSED;
    int32_t a = vocab_add(v, "a", CW_TOKEN_NORMAL, -1);
    cw_tok *t = vocab_build(v);
    EXPECT_IDS(t,
               "a\xc3\xa9"
               "b",
               0, a, UNK, UNK); /* one for each character */
    cw_tok_free(&t);
    v->types[UNK] = CW_TOKEN_UNUSED;
    t = vocab_build(v);
    int32_t *ids;
    size_t n;
    cw_err err;
    assert_int_equal(cw_tok_encode(t, "b", 1, 0, &ids, &n, &err), CW_STATUS_INVALID);
    assert_non_null(strstr(err.text, "0x62"));
    cw_tok_free(&t);
    vocab_free(&v);
}

static void a_long_text_without_words_takes_no_quadratic_time(void **state)
{
    (void)state;
    size_t n = (size_t)1 << 20, got;
    char *text = malloc(n);
    memset(text, 'a', n);
    vocab *v = vocab_spm();
    v->spec.add_space_prefix = 0;
    char part[65];
    memset(part, 'a', sizeof part);
    int32_t id = 0;
    for (int len = 1; len <= 64; len *= 2)
        id = vocab_add_n(v, part, (size_t)len, CW_TOKEN_NORMAL, (float)-len);
    cw_tok *t = vocab_build(v);
    int32_t *ids;
    assert_int_equal(cw_tok_encode(t, text, n, 0, &ids, &got, NULL), CW_OK);
    assert_int_equal(got, n / 64);
    for (size_t i = 0; i < got; i++) assert_int_equal(ids[i], id);
    cw_free(ids);
    cw_tok_free(&t);
    vocab_free(&v);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_best_score_merges_first_and_then_the_leftmost),
        cmocka_unit_test(a_space_stands_before_the_text_and_goes_away_again),
        cmocka_unit_test(characters_without_a_token_become_their_bytes),
        cmocka_unit_test(without_byte_tokens_the_unknown_token_stands_in),
        cmocka_unit_test(a_long_text_without_words_takes_no_quadratic_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
