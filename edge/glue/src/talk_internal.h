/* What the files of the answering part share: voices, what was said, and the rounds of one voice. */
#pragma once
#include "cw/shadow.h"
#include "cw/talk.h"

enum { TALK_MAX_SPANS = 256 };

/* What one speaker needs beside its session. */
typedef struct {
    cw_speaker *speaker; /* NULL: absent */
    cw_sampler *sampler;
    cw_detok *detok; /* where vocabularies are the same both voices write into the main one's */
    bool owns_detok;
    float *rows;   /* [n_rows, n_vocab] logits of one pass */
    int n_rows;    /* 1 + the longest draft */
    float *logits; /* the row after the session's last token */
} cw_voice;

/* A stretch of the answer by one voice. */
typedef struct {
    const cw_voice *by, *in; /* in: whose tokens the ids are; another's only after a cut (missed.c) */
    int first_id;
    size_t first_byte;
} cw_said;

/* The conversation in one voice's tokens. */
typedef struct {
    int32_t *ids; /* prompt, then the answer so far; heap */
    int n, n_prompt;
    int at[TALK_MAX_SPANS]; /* where each stretch of the answer begins, the next one too */
    bool opens_think;
} cw_told;

struct cw_talk {
    cw_talk_options opt;
    cw_talk_draft draft; /* max 0: off */
    cw_voice main, fallback;
    bool same_vocab;
    bool fallback_drafts; /* else, with draft.max, the drafter alone */
    cw_shadow *shadow;    /* NULL: nobody follows */
    bool only_fallback;
    bool begins_away; /* the fallback begins, the main model may take over */
    /* Tokens that the fallback writes before it asks for the main model: more after each return that brought
     * none of its. */
    int doubt, n_doubt; /* how many; still to be written */
    bool main_is_back;  /* why the fallback's rounds ended */
    cw_think *think;
    /* The answer so far: room for a full context of each voice, touched as it grows. */
    int32_t *ids;
    int n_ids, cap_ids;
    char *text;
    size_t text_len, text_cap;
    cw_said spans[TALK_MAX_SPANS];
    int n_spans;
    bool stopped;     /* the answer ended with the fallback's end token, which the main model has not read */
    int n_read;       /* spans that the main model wrote or has read */
    bool opens_think; /* the prompt did */
    size_t shown[3];  /* bytes of the pieces of each kind (cw_span_kind) */
};

/* --- voice.c --- */

CW_MUST_USE cw_status cw_voice_init(cw_voice *v, cw_speaker *s, const cw_sampler_params *p, int n_rows,
                                    cw_err *err);
void cw_voice_clear(cw_voice *v);
int cw_voice_n_vocab(const cw_voice *v);
/* Prompt and answer so far in this voice's tokens; caller frees w->ids. INVALID: they are empty. */
CW_MUST_USE cw_status cw_voice_tell(const cw_talk *t, const cw_voice *v, const cw_talk_prompt *p, cw_told *w,
                                    cw_err *err);

/* --- talk.c --- */

/* One token is part of the answer: remembered, and its text handed out. */
void cw_talk_say(cw_talk *t, cw_voice *v, int32_t id, cw_talk_stats *st);
bool cw_talk_is_cancelled(const cw_talk *t);

/* The span that begins here is v's. */
void cw_talk_begin_span(cw_talk *t, const cw_voice *v);

/* --- missed.c --- */

/* There is something of the fallback's that the main model has not read, and somebody wants to know. */
bool cw_missed_any(const cw_talk *t);
/*
 * The main model's session and logits become those of w, as with cw_session_sync, and the verdict is told.
 * *cut: w has been shortened to what both models write, the answer with it, and the session holds just that.
 */
CW_MUST_USE cw_status cw_missed_read(cw_talk *t, cw_told *w, int *reused, bool *cut, cw_talk_stats *st,
                                     cw_err *err);

/* --- rounds.c --- */

/*
 * Pass after pass until an end, a failure, or (the fallback in the main model's place) until the main model
 * can be reached: then main_is_back is set and nothing else has ended. The session holds the prompt and what
 * was said; v->logits are those after its last token, and are again at return.
 */
CW_MUST_USE cw_status cw_talk_rounds(cw_talk *t, cw_voice *v, cw_talk_stats *st, cw_err *err);
