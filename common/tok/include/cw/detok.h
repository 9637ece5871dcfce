/*
 * Streaming: token ids in, text out that is safe to print at any moment.
 *
 * cw_detok holds back bytes until a UTF-8 sequence is complete; bytes that can never become one are U+FFFD.
 * cw_think cuts that text into reasoning (<think>...</think>) and answer.
 *
 * One thread at a time; neither allocates after its _new, so both may run in the token loop.
 */
#pragma once
#include "cw/tok.h"

typedef struct cw_detok cw_detok;

enum {
    CW_DETOK_TEXT_START = 1,   /* the first token begins a text: a SentencePiece leading space is left out */
    CW_DETOK_KEEP_SPECIAL = 2, /* CONTROL tokens are printed by name; otherwise they give nothing */
};

/* `t` must outlive it. */
CW_MUST_USE cw_status cw_detok_new(const cw_tok *t, unsigned flags, cw_detok **out, cw_err *err);
void cw_detok_free(cw_detok **d);
/* Back to the state after _new. */
void cw_detok_reset(cw_detok *d);
/* Text that became complete with this token: valid UTF-8, perhaps empty, NUL-terminated, borrowed until the
 * next call. An id outside the vocabulary gives nothing. */
const char *cw_detok_push(cw_detok *d, int32_t id, size_t *len);
/* What is held back at the end: U+FFFD for an incomplete sequence, or nothing. */
const char *cw_detok_flush(cw_detok *d, size_t *len);

typedef enum {
    CW_SPAN_ANSWER,
    CW_SPAN_REASONING,
    CW_SPAN_MARKER, /* <think> or </think>, with the line breaks that follow it: markup, not content */
} cw_span_kind;

typedef struct {
    cw_span_kind kind;
    const char *text; /* borrowed until the next call */
    size_t len;
} cw_span;

typedef struct cw_think cw_think;

/* `open`: the prompt itself ended in <think>, so the answer begins as reasoning (cw_chat_prompt_opens_think).
 */
CW_MUST_USE cw_status cw_think_new(bool open, cw_think **out, cw_err *err);
void cw_think_free(cw_think **s);
void cw_think_reset(cw_think *s, bool open);
/*
 * Hands in text, in pieces of any size. Then cw_think_next gives the spans that are settled, until it returns
 * false; text that may be the beginning of a tag waits. `text` must stay as it is until then. All spans
 * together, those after cw_think_finish included, are exactly the text that went in.
 */
void cw_think_push(cw_think *s, const char *text, size_t len);
/* The end: what waits is now settled. */
void cw_think_finish(cw_think *s);
bool cw_think_next(cw_think *s, cw_span *out);
/* Is the text at this point reasoning? */
bool cw_think_is_open(const cw_think *s);
