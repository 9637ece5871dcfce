/* Byte-level BPE: merging, whole tokens, BOS and EOS, bytes that are no text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/mem.h"
#include "vocab_maker.h"

static void merges_go_by_rank_then_from_the_left(void **state)
{
    (void)state;
    vocab *v = vocab_bpe("gpt-2");
    int32_t bc = vocab_merge(v, "b", "c"), ab = vocab_merge(v, "a", "b"), aa = vocab_merge(v, "a", "a");
    int32_t abc = vocab_merge(v, "a", "bc");
    cw_tok *t = vocab_build(v);
    EXPECT_IDS(t, "abc", 0, abc); /* bc first, though ab stands further left */
    EXPECT_IDS(t, "abd", 0, ab, 'd');
    EXPECT_IDS(t, "aaa", 0, aa, 'a');       /* equal rank: leftmost */
    EXPECT_IDS(t, "aaaab", 0, aa, 'a', ab); /* ab outranks aa */
    EXPECT_IDS(t, "bc bc", 0, bc, ' ', bc);
    cw_tok_free(&t);
    vocab_free(&v);
}

/* The plain quadratic way, to compare with. */
static size_t naive(const char *text, size_t n, int32_t *ids, const int32_t (*merge)[3], size_t n_merge)
{
    for (size_t i = 0; i < n; i++) ids[i] = (uint8_t)text[i];
    for (;;) {
        size_t best = n_merge, at = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (size_t k = 0; k < best; k++)
                if (merge[k][0] == ids[i] && merge[k][1] == ids[i + 1]) best = k, at = i;
        if (best == n_merge) return n;
        ids[at] = merge[best][2];
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
        n--;
    }
}

static void random_words_merge_as_the_definition_says(void **state)
{
    (void)state;
    unsigned seed = 20240611;
    print_message("seed %u\n", seed);
    srand(seed);
    for (int round = 0; round < 40; round++) {
        vocab *v = vocab_bpe("gpt-2");
        int32_t merge[40][3];
        size_t n_merge = 0;
        while (n_merge < 40) {
            char part[2][64];
            int32_t id[2];
            for (int s = 0; s < 2; s++) { /* a letter, or what an earlier merge made */
                id[s] = rand() % 3 && n_merge ? merge[(size_t)rand() % n_merge][2] : 'a' + rand() % 3;
                snprintf(part[s], sizeof part[s], "%.*s", (int)v->tokens[id[s]].len, v->tokens[id[s]].data);
            }
            if (strlen(part[0]) + strlen(part[1]) > 20) continue;
            merge[n_merge][0] = id[0];
            merge[n_merge][1] = id[1];
            merge[n_merge++][2] = vocab_merge(v, part[0], part[1]);
        }
        cw_tok *t = vocab_build(v);
        for (int k = 0; k < 50; k++) {
            char text[80];
            int32_t want[80];
            size_t n = (size_t)rand() % 79 + 1;
            for (size_t i = 0; i < n; i++) text[i] = (char)('a' + rand() % 3);
            size_t n_want = naive(text, n, want, (const int32_t(*)[3])merge, n_merge);
            expect_ids(t, text, n, 0, want, n_want);
        }
        cw_tok_free(&t);
        vocab_free(&v);
    }
}

static void a_megabyte_of_one_letter_takes_no_quadratic_time(void **state)
{
    (void)state;
    size_t n = (size_t)1 << 20, got; /* quadratic would be hours, and the test's time limit is minutes */
    char *text = malloc(n);
    vocab *v = vocab_bpe("deepseek-v3");
    char part[65] = "a";
    int32_t id = 'a';
    for (size_t len = 1; len <= 32; len *= 2) {
        id = vocab_merge(v, part, part);
        memset(part, 'a', len * 2);
        part[len * 2] = '\0';
    }
    memset(text, 'a', n);
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

static void a_run_of_combining_marks_takes_no_quadratic_time(void **state)
{
    (void)state;
    size_t pairs = (size_t)1 << 18, got;
    char *text = malloc(pairs * 4);
    for (size_t i = 0; i < pairs; i++) memcpy(text + i * 4, "\xcc\x81\xcc\xa3", 4); /* classes 230, 220 */
    vocab *v = vocab_bpe("qwen2");
    vocab_merge(v, "x", "y");
    cw_tok *t = vocab_build(v);
    int32_t *ids;
    assert_int_equal(cw_tok_encode(t, text, pairs * 4, 0, &ids, &got, NULL), CW_OK);
    assert_int_equal(got, pairs * 4);
    assert_int_equal(ids[1], 0xa3); /* ordered: the marks of class 220 are all before the others */
    assert_int_equal(ids[got - 1], 0x81);
    cw_free(ids);
    cw_tok_free(&t);
    vocab_free(&v);
    free(text);
}

static void qwen2_composes_before_it_cuts(void **state)
{
    (void)state;
    vocab *v = vocab_bpe("qwen2"), *w = vocab_bpe("gpt-2");
    int32_t e = vocab_merge(v, "\xc3", "\xa9"), f = vocab_merge(w, "\xc3", "\xa9");
    cw_tok *t = vocab_build(v), *u = vocab_build(w);
    EXPECT_IDS(t, "e\xcc\x81", 0, e);
    EXPECT_IDS(t, "\xc3\xa9", 0, e);
    EXPECT_IDS(t, "q\xcc\x81\xcc\xa3", 0, 'q', 0xcc, 0xa3, 0xcc, 0x81); /* nothing to compose, but to order */
    EXPECT_IDS(u, "e\xcc\x81", 0, 'e', 0xcc, 0x81);                     /* others leave the text as it is */
    EXPECT_IDS(u, "\xc3\xa9", 0, f);
    cw_tok_free(&t);
    cw_tok_free(&u);
    vocab_free(&v);
    vocab_free(&w);
}

static void ignore_merges_takes_whole_words(void **state)
{
    (void)state;
    static const char *const pre[] = {"llama-bpe", "gpt-2"};
    for (int k = 0; k < 2; k++) {
        vocab *v = vocab_bpe(pre[k]);
        int32_t ab = vocab_merge(v, "a", "b"), whole = vocab_add(v, "abc", CW_TOKEN_NORMAL, 0);
        v->spec.add_bos = 0;
        cw_tok *t = vocab_build(v);
        if (k == 0)
            EXPECT_IDS(t, "abc", 0, whole);
        else
            EXPECT_IDS(t, "abc", 0, ab, 'c'); /* no merge makes it */
        cw_tok_free(&t);
        vocab_free(&v);
    }
}

static void without_merges_kimi_k2_merges_what_makes_the_lowest_id(void **state)
{
    (void)state;
    vocab *v = vocab_bpe("kimi-k2");
    int32_t bc = vocab_add(v, "bc", CW_TOKEN_NORMAL, 0), ab = vocab_add(v, "ab", CW_TOKEN_NORMAL, 0);
    int32_t abcd = vocab_add(v, "abcd", CW_TOKEN_NORMAL, 0), abc = vocab_add(v, "abc", CW_TOKEN_NORMAL, 0);
    cw_tok *t = vocab_build(v);
    EXPECT_IDS(t, "abc", 0, abc);
    EXPECT_IDS(t, "abd", 0, ab, 'd');
    EXPECT_IDS(t, "bcx", 0, bc, 'x');
    EXPECT_IDS(t, "abcd", 0, abcd); /* bc, then abc, then abcd */
    cw_tok_free(&t);
    v->spec.pre = "gpt-2";
    cw_err err;
    assert_int_equal(cw_tok_new_from_spec(&v->spec, &t, &err), CW_STATUS_FORMAT);
    assert_non_null(strstr(err.text, "merges"));
    vocab_free(&v);
}

typedef struct {
    vocab *v;
    cw_tok *t;
    int32_t bos, eos, tag, long_tag, user;
} specials;

static specials make_specials(void)
{
    specials s = {.v = vocab_bpe("gpt-2")};
    vocab_merge(s.v, "x", "y");
    s.bos = vocab_add(s.v, "<bos>", CW_TOKEN_CONTROL, 0);
    s.eos = vocab_add(s.v, "<eos>", CW_TOKEN_CONTROL, 0);
    s.tag = vocab_add(s.v, "<tag>", CW_TOKEN_USER_DEFINED, 0);
    s.long_tag = vocab_add(s.v, "<tag>more", CW_TOKEN_USER_DEFINED, 0);
    s.user = vocab_add(s.v, "<|user|>", CW_TOKEN_USER_DEFINED, 0);
    s.v->spec.bos = s.bos;
    s.v->spec.eos = s.eos;
    return s;
}

static void free_specials(specials *s)
{
    cw_tok_free(&s->t);
    vocab_free(&s->v);
}

static void user_defined_tokens_match_always_and_control_only_when_asked(void **state)
{
    (void)state;
    specials s = make_specials();
    s.t = vocab_build(s.v);
    EXPECT_IDS(s.t, "a<tag>b", 0, 'a', s.tag, 'b');
    EXPECT_IDS(s.t, "<tag>morf", 0, s.tag, 'm', 'o', 'r', 'f');
    EXPECT_IDS(s.t, "<tag>more", 0, s.long_tag); /* the longest wins */
    EXPECT_IDS(s.t, "<<tag>", 0, '<', s.tag);
    EXPECT_IDS(s.t, "<eos>", 0, '<', 'e', 'o', 's', '>');
    EXPECT_IDS(s.t, "a<eos>", CW_TOK_PARSE_SPECIAL, 'a', s.eos);
    EXPECT_IDS(s.t, "<|user|>", 0, s.user);
    free_specials(&s);
}

static void segments_keep_control_tokens_out_of_what_users_wrote(void **state)
{
    (void)state;
    specials s = make_specials();
    s.t = vocab_build(s.v);
    const cw_tok_segment segs[] = {
        {"<|user|>", 8, true}, {"x", 1, true},   {"y<eos><tag><|user|>", 19, false},
        {"<e", 2, false},      {"os>", 3, true}, {"<eo", 3, true},
        {"", 0, true},         {"s>", 2, true},
    };
    const int32_t want[] = {
        s.user, 256, '<', 'e', 'o', 's', '>', s.tag, '<', '|', 'u',
        's',    'e', 'r', '|', '>', '<', 'e', 'o',   's', '>', /* half of it was the user's */
        s.eos};
    int32_t *ids;
    size_t n;
    assert_int_equal(cw_tok_encode_segments(s.t, segs, CW_ARRAY_LEN(segs), 0, &ids, &n, NULL), CW_OK);
    assert_int_equal(n, CW_ARRAY_LEN(want));
    for (size_t i = 0; i < n; i++) assert_int_equal(ids[i], want[i]); /* 256: x and y met across a border */
    cw_free(ids);
    const cw_tok_segment half[] = {{"<e", 2, true}, {"os>", 3, false}}; /* the user's half is the other one */
    assert_int_equal(cw_tok_encode_segments(s.t, half, 2, 0, &ids, &n, NULL), CW_OK);
    assert_int_equal(n, 5);
    cw_free(ids);
    assert_int_equal(cw_tok_encode_segments(s.t, NULL, 0, 0, &ids, &n, NULL), CW_OK);
    assert_int_equal(n, 0);
    cw_free(ids);
    free_specials(&s);
}

static void there_is_one_bos_and_one_eos(void **state)
{
    (void)state;
    specials s = make_specials();
    s.v->spec.add_bos = s.v->spec.add_eos = 1;
    s.t = vocab_build(s.v);
    unsigned both = CW_TOK_ADD_SPECIAL | CW_TOK_PARSE_SPECIAL;
    EXPECT_IDS(s.t, "a", 0, 'a');
    EXPECT_IDS(s.t, "a", CW_TOK_ADD_SPECIAL, s.bos, 'a', s.eos);
    EXPECT_IDS(s.t, "a", CW_TOK_ADD_BOS, s.bos, 'a');
    EXPECT_IDS(s.t, "", CW_TOK_ADD_SPECIAL, s.bos, s.eos);
    EXPECT_IDS(s.t, "<bos>a", both, s.bos, 'a', s.eos);
    EXPECT_IDS(s.t, "<bos>a<eos>", both, s.bos, 'a', s.eos);
    EXPECT_IDS(s.t, "a<bos>", both, s.bos, 'a', s.bos, s.eos); /* further in it is the caller's wish */
    EXPECT_IDS(s.t, "<bos>", CW_TOK_ADD_BOS, s.bos, '<', 'b', 'o', 's', '>');
    cw_tok_free(&s.t);
    s.v->spec.add_bos = -1; /* gpt-2's default is none */
    s.t = vocab_build(s.v);
    EXPECT_IDS(s.t, "a", CW_TOK_ADD_BOS, 'a');
    cw_tok_free(&s.t);
    s.v->spec.pre = "llama-bpe"; /* and Llama 3's is one */
    s.t = vocab_build(s.v);
    EXPECT_IDS(s.t, "a", CW_TOK_ADD_BOS, s.bos, 'a');
    free_specials(&s);
}

static void bytes_that_are_no_text_are_kept(void **state)
{
    (void)state;
    vocab *v = vocab_bpe("gpt-2");
    int32_t e = vocab_merge(v, "\xc3", "\xa9");
    cw_tok *t = vocab_build(v);
    EXPECT_IDS(t, "a\xff\xc3(\xc3\xa9\xe4\xb8", 0, 'a', 0xff, 0xc3, '(', e, 0xe4, 0xb8);
    EXPECT_IDS(t, "\xed\xa0\x80\xc0\x80\xf4\x90\x80\x80", 0, 0xed, 0xa0, 0x80, 0xc0, 0x80, 0xf4, 0x90, 0x80,
               0x80);
    const int32_t nul[] = {'a', 0, 'b'};
    expect_ids(t, "a\0b", 3, 0, nul, 3);
    cw_tok_free(&t);
    vocab_free(&v);
}

static void a_byte_without_a_token_becomes_a_replacement_character(void **state)
{
    (void)state;
    vocab *v = vocab_bpe("gpt-2");
    vocab_merge(v, "x", "y");
    v->types[0xff] = v->types['q'] = CW_TOKEN_UNUSED;
    cw_tok *t = vocab_build(v);
    EXPECT_IDS(t, "a\xff", 0, 'a', 0xef, 0xbf, 0xbd);
    int32_t *ids;
    size_t n;
    cw_err err;
    assert_int_equal(cw_tok_encode(t, "q", 1, 0, &ids, &n, &err), CW_STATUS_INVALID);
    assert_non_null(strstr(err.text, "0x71"));
    cw_tok_free(&t);
    int32_t unk = vocab_add(v, "<unk>", CW_TOKEN_UNKNOWN, 0);
    t = vocab_build(v);
    EXPECT_IDS(t, "aq", 0, 'a', unk);
    cw_tok_free(&t);
    vocab_free(&v);
}

static void nothing_becomes_nothing(void **state)
{
    (void)state;
    vocab *v = vocab_bpe("gpt-2");
    vocab_merge(v, "x", "y");
    cw_tok *t = vocab_build(v);
    int32_t *ids = NULL;
    size_t n = 7;
    assert_int_equal(cw_tok_encode(t, "", 0, CW_TOK_ADD_SPECIAL | CW_TOK_PARSE_SPECIAL, &ids, &n, NULL),
                     CW_OK);
    assert_non_null(ids);
    assert_int_equal(n, 0);
    cw_free(ids);
    cw_tok_free(&t);
    vocab_free(&v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_go_by_rank_then_from_the_left),
        cmocka_unit_test(random_words_merge_as_the_definition_says),
        cmocka_unit_test(a_megabyte_of_one_letter_takes_no_quadratic_time),
        cmocka_unit_test(a_run_of_combining_marks_takes_no_quadratic_time),
        cmocka_unit_test(qwen2_composes_before_it_cuts),
        cmocka_unit_test(ignore_merges_takes_whole_words),
        cmocka_unit_test(without_merges_kimi_k2_merges_what_makes_the_lowest_id),
        cmocka_unit_test(user_defined_tokens_match_always_and_control_only_when_asked),
        cmocka_unit_test(segments_keep_control_tokens_out_of_what_users_wrote),
        cmocka_unit_test(there_is_one_bos_and_one_eos),
        cmocka_unit_test(bytes_that_are_no_text_are_kept),
        cmocka_unit_test(a_byte_without_a_token_becomes_a_replacement_character),
        cmocka_unit_test(nothing_becomes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
