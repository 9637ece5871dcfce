/* What the tokenizer's golden tests share. Include after cmocka.h. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include "cw/tok.h"

/* The whole file, NUL added; free() it. */
char *golden_read(const char *path, size_t *len);
cw_tok *golden_load(const char *path);
/* The ids decode to the text they came from, at once and as a stream. Texts with U+2581, which SentencePiece
 * cannot tell from a space, and texts that are not NFC, for the vocabularies that normalise, are the caller's
 * to keep out. */
void golden_round_trip(const cw_tok *t, const char *text, size_t len, const int32_t *ids, size_t n);
/* CW_TEST_SEED, or one from the clock; printed. */
unsigned golden_seed(void);
enum { GOLDEN_NFC = 1, GOLDEN_SPM = 2 };
/* `count` random texts through golden_round_trip: all planes, runs of one script, white space, digits,
 * combining marks. GOLDEN_NFC: texts are normalised first. GOLDEN_SPM: none holds U+2581. */
void golden_random_texts(const cw_tok *t, unsigned flags, int count);

#define GOLDEN_DEMO_VOCAB_HASH 0xc64e7f30b56211b1ull
