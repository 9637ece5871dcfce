/*
 * A speaker is a model with all it takes to answer: file, tokenizer, chat template, engine and one session.
 * Used by one thread at a time.
 */
#pragma once
#include "cw/chat.h"
#include "cw/engine.h"
#include "cw/tok.h"

typedef struct cw_speaker cw_speaker;

typedef struct {
    const char *path;
    cw_engine_options engine;
    cw_session_options session;
    bool progress; /* draw a progress line on stderr while loading */
} cw_speaker_options;

/* Loads the model; blocks. Errors name the file. */
CW_MUST_USE cw_status cw_speaker_open(const cw_speaker_options *opt, cw_speaker **out, cw_err *err);
void cw_speaker_close(cw_speaker **s);

/* The model's name, as pieces of an answer carry it; borrowed. */
const char *cw_speaker_name(const cw_speaker *s);
const cw_tok *cw_speaker_tok(const cw_speaker *s);
/* The open file, until the speaker is closed. */
const cw_gguf *cw_speaker_file(const cw_speaker *s);
cw_engine *cw_speaker_engine(cw_speaker *s);
cw_session *cw_speaker_session(cw_speaker *s);
/* The template, or NULL and in *err why there is none that can be used (`err` may be NULL). */
const cw_chat *cw_speaker_chat(const cw_speaker *s, cw_err *err);
