/*
 * Answers a conversation token by token: prompt -> prefill -> sample -> text, with the fallback going on in
 * mid-sentence when the big model's experts are out of reach. Every piece of text carries the model that
 * wrote it.
 *
 * Knows nothing of networks and terminals: experts are in the speaker's engine, text goes to a sink. One
 * thread. The token loop allocates nothing; a change of speaker does.
 */
#pragma once
#include "cw/detok.h"
#include "cw/sampler.h"
#include "cw/speaker.h"

typedef struct {
    /* Valid UTF-8, never empty; borrowed during the call. */
    void (*piece)(void *ctx, const char *model, cw_span_kind kind, const char *text, size_t len);
    /* The speaker changes: a sentence for the user. */
    void (*notice)(void *ctx, const char *sentence);
    void *ctx;
} cw_talk_sink;

typedef struct {
    cw_speaker *main;     /* NULL: only the fallback speaks */
    cw_speaker *fallback; /* NULL: there is none; at least one of the two */
    cw_sampler_params sampler;
    int max_tokens;            /* of one answer; 0: until the context is full */
    const atomic_bool *cancel; /* ends the answer; may be NULL */
    cw_talk_sink sink;
} cw_talk_options;

typedef struct {
    const cw_chat_message *messages; /* the conversation, or */
    size_t n_messages;
    const char *raw; /* text taken as it is, special tokens parsed */
} cw_talk_prompt;

typedef enum {
    CW_TALK_STOP,      /* the model ended its answer */
    CW_TALK_LENGTH,    /* max_tokens */
    CW_TALK_CONTEXT,   /* no room for another token */
    CW_TALK_CANCELLED, /* on request */
} cw_talk_end;
const char *cw_talk_end_name(cw_talk_end e);

typedef struct {
    cw_talk_end end;
    const char *model; /* who spoke last */
    int n_prompt;      /* tokens of the prompt */
    int n_reused;      /* of these, already in the KV cache */
    int n_tokens;      /* generated, the end token not counted */
    int n_fallback;    /* of these, by the fallback after the main model was lost */
    int64_t prefill_us, decode_us;
} cw_talk_stats;

typedef struct cw_talk cw_talk;

/* Speakers are borrowed. INVALID names a sampler parameter out of range. */
CW_MUST_USE cw_status cw_talk_new(const cw_talk_options *opt, cw_talk **out, cw_err *err);
void cw_talk_free(cw_talk **t);

/* Only the fallback speaks from now on, or the main model again. STATE when that speaker is missing. */
CW_MUST_USE cw_status cw_talk_use_fallback(cw_talk *t, bool on, cw_err *err);

/*
 * One answer; blocks. A cancelled answer is CW_OK with that end. UNSUPPORTED: no chat template (names --raw);
 * LIMIT: the prompt does not fit the context; what the experts return, when no fallback could go on. `stats`
 * is filled in any case.
 */
CW_MUST_USE cw_status cw_talk_answer(cw_talk *t, const cw_talk_prompt *prompt, cw_talk_stats *stats,
                                     cw_err *err);

/* Text of the last answer, reasoning and its marks included; borrowed until the next. */
const char *cw_talk_text(const cw_talk *t, size_t *len);
