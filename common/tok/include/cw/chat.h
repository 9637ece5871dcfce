/*
 * Chat templates: a conversation -> the text a model was trained to continue.
 *
 * Model files carry a template as a Jinja program. It is not run: the family is recognised by its content,
 * and the details in which members of a family differ are read off its text. What a user or a model wrote can
 * never become a control token: rendering gives segments that say which parts are the template's own
 * (cw_tok_encode_segments).
 *
 * Pure functions; any thread.
 */
#pragma once
#include "cw/tok.h"

struct cw_gguf;

typedef enum {
    CW_CHAT_DEEPSEEK_CODER, /* ### Instruction: ... ### Response: */
    CW_CHAT_DEEPSEEK_2,     /* User: ... Assistant: (DeepSeek LLM, V2, V2-Lite) */
    CW_CHAT_DEEPSEEK_3, /* <｜User｜>...<｜Assistant｜> (V2.5, V3, V3.1, R1 and its distillations, the demo)
                         */
    CW_CHAT_CHATML,     /* <|im_start|>role ... <|im_end|> */
    CW_CHAT_LLAMA_3,    /* <|start_header_id|>role<|end_header_id|> */
    CW_CHAT_KIND_COUNT
} cw_chat_kind;

typedef struct cw_chat cw_chat;

/* Recognises a template. UNSUPPORTED, with a sentence that names --raw, when it is none of the above. */
CW_MUST_USE cw_status cw_chat_new(const char *tmpl, size_t len, cw_chat **out, cw_err *err);
/* The template in an open file (tokenizer.chat_template). UNSUPPORTED also when the file has none. */
CW_MUST_USE cw_status cw_chat_new_from_gguf(const struct cw_gguf *g, cw_chat **out, cw_err *err);
void cw_chat_free(cw_chat **c);

cw_chat_kind cw_chat_get_kind(const cw_chat *c);
/* "deepseek-3", ...; never NULL. */
const char *cw_chat_kind_name(cw_chat_kind kind);
/* Does the prompt that asks for an answer end in an open <think>? Then the answer begins as reasoning. */
bool cw_chat_prompt_opens_think(const cw_chat *c);

typedef struct {
    const char *role; /* "system", "user" or "assistant" */
    const char *content;
    size_t len;
} cw_chat_message;

/* A rendered conversation: segments, all in one block. */
typedef struct {
    cw_tok_segment *segs;
    size_t n_segs;
    char *block;
} cw_chat_prompt;

/*
 * Renders the messages for `t`'s vocabulary (its BOS and EOS texts). `add_generation_prompt`: end where the
 * model is to write its answer. Reasoning in earlier answers is dropped where the template does so. The BOS
 * is in the text where the template has one: encode the segments with CW_TOK_ADD_BOS, there will be one.
 * INVALID: an unknown role. Caller frees with cw_chat_prompt_clear.
 */
CW_MUST_USE cw_status cw_chat_render(const cw_chat *c, const cw_tok *t, const cw_chat_message *messages,
                                     size_t n, bool add_generation_prompt, cw_chat_prompt *out, cw_err *err);
void cw_chat_prompt_clear(cw_chat_prompt *p);

/* Renders and encodes; exactly one BOS where the vocabulary or the template has one. Caller owns *ids
 * (cw_free). */
CW_MUST_USE cw_status cw_chat_encode(const cw_chat *c, const cw_tok *t, const cw_chat_message *messages,
                                     size_t n, bool add_generation_prompt, int32_t **ids, size_t *n_ids,
                                     cw_err *err);
