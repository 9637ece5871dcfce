/*
 * Small vocabularies for tests, made by hand: add tokens, merges and settings, then build. Aborts when memory
 * is out. Include after cmocka.h.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include "cw/tok.h"

typedef struct {
    cw_tok_spec spec;
    cw_tok_str *tokens, *merges;
    int32_t *types;
    float *scores;
    size_t n_tokens, n_merges; /* as made, whatever a test writes into spec */
    size_t cap_tokens, cap_merges;
} vocab;

/* A byte-level BPE vocabulary that begins with the 256 bytes in order: id = byte. */
vocab *vocab_bpe(const char *pre);
/* A SentencePiece vocabulary that begins with <unk>, <s>, </s> and the 256 byte tokens: ids 0, 1, 2, 3 +
 * byte. */
vocab *vocab_spm(void);
void vocab_free(vocab **v);
/* Text as the file would have it; the id. */
int32_t vocab_add(vocab *v, const char *text, cw_token_type type, float score);
int32_t vocab_add_n(vocab *v, const char *text, size_t len, cw_token_type type, float score);
/* Text given as bytes, written in the byte alphabet. */
int32_t vocab_add_bytes(vocab *v, const char *bytes, size_t len);
/* A merge of two byte strings, and its product as a token where it is not one yet; the product's id. */
int32_t vocab_merge(vocab *v, const char *a, const char *b);
void vocab_merge_raw(vocab *v, const char *text);
/* Fails the test when it cannot be built. */
cw_tok *vocab_build(const vocab *v);

/* Encodes and compares with `n` expected ids. */
void expect_ids(const cw_tok *t, const char *text, size_t len, unsigned flags, const int32_t *want, size_t n);
#define EXPECT_IDS(t, text, flags, ...)                                                                      \
    expect_ids((t), (text), strlen(text), (flags), (const int32_t[]){__VA_ARGS__},                           \
               sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))
