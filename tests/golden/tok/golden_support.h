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
