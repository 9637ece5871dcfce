/*
 * Tokenizer: text <-> token ids for the vocabulary inside a model file.
 *
 * Two kinds: byte-level BPE behind a pre-tokenizer (tokenizer.ggml.model = "gpt2") and SentencePiece
 * (tokenizer.ggml.model = "llama", merging by score, byte fallback). The vocabulary is outside data: it is
 * checked at load, and what cannot be used gives a status with a sentence.
 *
 * A cw_tok never changes after cw_tok_new: any number of threads may use one. Nothing here blocks. Encoding
 * allocates; looking at pieces does not.
 *
 * Bytes that are not UTF-8 are kept: each becomes the token of that byte where the vocabulary has one,
 * otherwise the tokens of U+FFFD. Valid text comes back from cw_tok_decode byte for byte, except where the
 * vocabulary itself says otherwise (NFC of qwen2, U+2581 standing for a space in SentencePiece).
 */
#pragma once
#include "cw/status.h"

struct cw_gguf;
typedef struct cw_tok cw_tok;

/* Longest text one call takes. */
#define CW_TOK_MAX_TEXT ((size_t)64 << 20)
/* Longest text that is found as a whole token (USER_DEFINED, CONTROL) in a text; longer ones are only ever
 * printed. */
#define CW_TOK_MAX_SPECIAL 512

/* GGUF's tokenizer.ggml.token_type. */
typedef enum {
    CW_TOKEN_NORMAL = 1,
    CW_TOKEN_UNKNOWN = 2,
    CW_TOKEN_CONTROL = 3,      /* steers the model; found in text only with CW_TOK_PARSE_SPECIAL */
    CW_TOKEN_USER_DEFINED = 4, /* found in any text */
    CW_TOKEN_UNUSED = 5,       /* never produced */
    CW_TOKEN_BYTE = 6,         /* one byte, written <0xNN> */
} cw_token_type;

typedef struct {
    const char *data;
    size_t len;
} cw_tok_str;

/*
 * A vocabulary as plain data: what cw_tok_new reads from a file, and what tests make by hand. The strings are
 * copied. Ids are -1 where there is none.
 */
typedef struct {
    const char *model; /* "gpt2" or "llama" */
    const char *pre;   /* pre-tokenizer of "gpt2"; NULL is "default", with a warning */
    const char *label; /* names the file in errors and warnings; NULL: "vocabulary" */
    size_t n_tokens;
    const cw_tok_str *tokens; /* [n_tokens] */
    size_t n_types;           /* 0 (all NORMAL) or n_tokens */
    const int32_t *types;
    size_t n_scores; /* 0 or n_tokens; "llama" needs them */
    const float *scores;
    size_t n_merges; /* "A B", best first; "gpt2" needs them, but kimi-k2 can do without */
    const cw_tok_str *merges;
    int64_t bos, eos, eot, eom, unk, pad;
    int add_bos, add_eos, add_space_prefix; /* 0, 1, or -1: what the kind of tokenizer does by default */
    bool no_jit;                            /* match with PCRE2's interpreter */
} cw_tok_spec;

/* Everything absent. */
void cw_tok_spec_init(cw_tok_spec *spec);

/* From an open file, which may be closed afterwards. NOT_FOUND: the file holds no tokenizer. UNSUPPORTED: a
 * tokenizer or pre-tokenizer this version does not know, named. FORMAT: malformed. The environment variable
 * CAUSEWAY_PCRE_JIT=0 turns the JIT off. */
CW_MUST_USE cw_status cw_tok_new(const struct cw_gguf *g, cw_tok **out, cw_err *err);
CW_MUST_USE cw_status cw_tok_new_from_spec(const cw_tok_spec *spec, cw_tok **out, cw_err *err);
/* NULL and a pointer to NULL are fine. */
void cw_tok_free(cw_tok **t);

enum {
    CW_TOK_ADD_BOS = 1,       /* BOS where the vocabulary asks for one and the text does not begin with it */
    CW_TOK_PARSE_SPECIAL = 2, /* CONTROL tokens written in the text become tokens */
    CW_TOK_ADD_EOS = 4,       /* EOS where the vocabulary asks for one and the text does not end in it */
    CW_TOK_ADD_SPECIAL = CW_TOK_ADD_BOS | CW_TOK_ADD_EOS,
};

/* Caller owns *ids (cw_free); never NULL on success. INVALID or LIMIT for text that cannot be taken,
 * NO_MEMORY. */
CW_MUST_USE cw_status cw_tok_encode(const cw_tok *t, const char *text, size_t len, unsigned flags,
                                    int32_t **ids, size_t *n, cw_err *err);

/* A stretch of a text that was put together from trusted and untrusted parts. */
typedef struct {
    const char *text;
    size_t len;
    bool parse_special;
} cw_tok_segment;

/*
 * Encodes the segments as the one text they make together (words may span a border), but a CONTROL token is
 * found only inside stretches that parse specials. In the other stretches USER_DEFINED tokens are found as
 * always, save those written like control tokens (<|...|> and <｜...｜>): some vocabularies give a chat's
 * role markers that type, and a user must not be able to write one. `flags`: CW_TOK_ADD_BOS and
 * CW_TOK_ADD_EOS only.
 */
CW_MUST_USE cw_status cw_tok_encode_segments(const cw_tok *t, const cw_tok_segment *segs, size_t n_segs,
                                             unsigned flags, int32_t **ids, size_t *n, cw_err *err);

/* Bytes the token stands for, borrowed from t; a CONTROL token's are its name. Not NUL-terminated, possibly a
 * part of a UTF-8 sequence. An id outside the vocabulary gives "" and length 0. */
const char *cw_tok_piece(const cw_tok *t, int32_t id, size_t *len);
/* The token's text as the file has it. */
const char *cw_tok_text(const cw_tok *t, int32_t id, size_t *len);
/* UNUSED for an id outside the vocabulary. */
cw_token_type cw_tok_type(const cw_tok *t, int32_t id);
/* The lowest id with exactly this text as the file has it, or -1. */
int32_t cw_tok_find(const cw_tok *t, const char *text, size_t len);

enum {
    CW_TOK_KEEP_SPECIAL = 1, /* CONTROL and UNKNOWN tokens are written by name; otherwise left out */
};
/* All bytes of the ids, NUL added; caller owns *text (cw_free). A SentencePiece text loses the one space that
 * encoding puts before it. INVALID names an id outside the vocabulary. */
CW_MUST_USE cw_status cw_tok_decode(const cw_tok *t, const int32_t *ids, size_t n, unsigned flags,
                                    char **text, size_t *len, cw_err *err);

/* Does this token end an answer? By the file's eos, eot and eom ids, and by texts that are known to. */
bool cw_tok_is_eog(const cw_tok *t, int32_t id);
size_t cw_tok_n_vocab(const cw_tok *t);
/* -1 where there is none. */
int32_t cw_tok_bos(const cw_tok *t);
int32_t cw_tok_eos(const cw_tok *t);
int32_t cw_tok_unk(const cw_tok *t);
bool cw_tok_adds_bos(const cw_tok *t);
bool cw_tok_adds_eos(const cw_tok *t);
/* Does encoding put a space before the text (SentencePiece)? */
bool cw_tok_adds_space(const cw_tok *t);
/* Longest piece in bytes, for sizing buffers. */
size_t cw_tok_max_piece(const cw_tok *t);

/* Do two vocabularies give every id the same text? Only then can one model draft for the other. */
bool cw_tok_same_vocab(const cw_tok *a, const cw_tok *b);
/* Hash of count and texts in order; equal vocabularies have equal hashes on every machine. Not cryptographic.
 */
uint64_t cw_tok_vocab_hash(const cw_tok *t);
