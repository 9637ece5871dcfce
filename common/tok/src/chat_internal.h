/* What chat.c reads off a template and chat_render.c writes by. */
#pragma once
#include "cw/chat.h"
#include "tok_internal.h"

typedef enum {
    THINK_KEEP,
    THINK_AFTER_FIRST,
    THINK_AFTER_LAST
} chat_think; /* which </think> an old answer is cut at */
typedef enum { TRIM_NONE, TRIM_SPACE, TRIM_NEWLINES } chat_trim;
typedef enum { SYSTEM_JOIN, SYSTEM_PARAGRAPHS, SYSTEM_LAST } chat_system; /* several system messages */

struct cw_chat {
    cw_chat_kind kind;
    bool bos;             /* the template writes the BOS */
    bool trim;            /* contents are stripped */
    chat_think think;     /* reasoning in earlier answers */
    chat_trim think_trim; /* and what is stripped after it */
    chat_system system;
    bool closed_think;    /* V3.1: an answer without reasoning begins with </think> */
    bool last_turn_think; /* Qwen 3: an answer after the last question keeps its reasoning */
    char *gen;            /* what follows the assistant's marker where the model is to write */
    char *default_system; /* used when there is no system message, or NULL */
    char *preamble;       /* Llama 3.1: what every system message begins with, or NULL */
};
