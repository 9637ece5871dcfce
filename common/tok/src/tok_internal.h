/* What the files of this room share. Nothing here is seen outside it. */
#pragma once
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>
#include "cw/mem.h"
#include "cw/tok.h"

#define TOK_MAX_VOCAB    ((size_t)1 << 24)
#define TOK_MAX_MERGES   ((size_t)1 << 26)
#define TOK_MAX_PATTERNS 6
#define TOK_LOWER_BLOCK  "\xe2\x96\x81" /* U+2581, SentencePiece's space */

#define TOK_NO_MEMORY(err) CW_FAIL((err), CW_STATUS_NO_MEMORY, "out of memory in the tokenizer")

/* --- strmap.c: byte strings -> index into an array of them; open addressing, seeded against chosen
 * collisions --- */
typedef struct {
    uint32_t *slot; /* index + 1; 0 is empty */
    uint32_t mask;
    uint64_t seed;
    const cw_tok_str *keys; /* borrowed */
} strmap;

uint64_t tok_random_seed(void);
uint64_t tok_hash_bytes(const char *data, size_t len, uint64_t seed);
uint64_t tok_hash_pair(uint64_t a, uint64_t b, uint64_t seed);
/* Room for n keys out of `keys`. */
CW_MUST_USE bool strmap_init(strmap *m, const cw_tok_str *keys, size_t n, uint64_t seed);
void strmap_free(strmap *m);
/* Keeps what is there already: the first of equal strings wins. */
void strmap_add(strmap *m, uint32_t index);
/* -1 when absent. */
int32_t strmap_find(const strmap *m, const char *data, size_t len);

/* --- pretok.c --- */
typedef struct {
    const char *name;
    const char *const *patterns; /* NULL-terminated; each works on the pieces of the one before */
    bool nfc, ignore_merges, add_bos;
} pretok_kind;

typedef struct {
    uint32_t begin, end;
} tok_span;

typedef struct {
    tok_span *v;
    size_t n, cap;
} tok_spans;

/* NULL when unknown. */
const pretok_kind *pretok_find(const char *name);

/* --- vocabulary --- */
typedef struct {
    uint32_t a, b; /* token ids */
    uint32_t id;   /* of both together */
    uint32_t rank; /* lower merges first */
} tok_merge;

typedef struct {
    uint32_t key; /* node << 8 | byte, + 1; 0 is empty */
    uint32_t node;
} trie_edge;

typedef struct {
    uint32_t root[256]; /* node after the first byte, 0: none */
    trie_edge *edge;
    uint32_t edge_mask;
    int32_t *token; /* [n_nodes] the token that ends here, or -1 */
    uint32_t n_nodes;
} tok_trie;

struct cw_tok {
    bool spm;
    char *label;
    const pretok_kind *pre;
    pcre2_code *code[TOK_MAX_PATTERNS];
    int n_code;

    size_t n;
    cw_tok_str *text, *piece; /* [n] views of blob; piece is bytes, text as in the file */
    char *blob;
    uint8_t *type;    /* [n] cw_token_type */
    uint8_t *flags;   /* [n] TOKF_* */
    size_t max_piece; /* longest piece */
    size_t max_key;   /* longest string in `keys` */

    strmap by_text;
    strmap keys;    /* what merging may produce: pieces (BPE) or texts (SentencePiece) */
    uint32_t *rank; /* [n] SentencePiece: order by score, equal scores alike */

    tok_merge *merge; /* BPE */
    size_t n_merge;
    uint32_t *merge_slot; /* index + 1 */
    uint32_t merge_mask;
    uint64_t seed;

    int32_t byte_id[256]; /* -1: none */
    tok_trie trie;

    int32_t bos, eos, eot, eom, unk, pad;
    bool add_bos, add_eos, add_space;
};

enum {
    TOKF_EOG = 1,
    TOKF_MARKER = 2, /* written like a control token: <|...|> or <｜...｜> */
};

/* vocab_merges.c */
CW_MUST_USE cw_status tok_load_merges(cw_tok *t, const cw_tok_spec *spec, cw_err *err);
CW_MUST_USE cw_status tok_load_ranks(cw_tok *t, const cw_tok_spec *spec, cw_err *err);
/* The merge of two ids, or NULL. */
const tok_merge *tok_find_merge(const cw_tok *t, uint32_t a, uint32_t b);

/* special.c */
CW_MUST_USE cw_status trie_build(cw_tok *t, cw_err *err);
void trie_free(tok_trie *trie);
uint32_t trie_step(const tok_trie *trie, uint32_t node, uint8_t byte);

/* byte-level BPE's alphabet: each byte is written as one character; vocab.c */
int tok_alphabet_byte(uint32_t cp); /* -1: not in the alphabet */
/* Text in that alphabet -> bytes; false when a character is not in it. `out` has room for len. */
bool tok_alphabet_decode(const char *text, size_t len, char *out, size_t *out_len);

/* --- encode.c: what one call works with --- */
typedef struct {
    uint32_t off, len; /* of the text being merged; len 0: merged away */
    int32_t id;        /* -1: no token */
    int32_t prev, next;
} tok_sym;

typedef struct {
    const cw_tok *t;
    cw_err *err;
    int32_t *ids;
    size_t n_ids, cap_ids;
    pcre2_match_data *md;
    pcre2_match_context *mc;
    tok_spans spans[2];
    tok_sym *sym;
    size_t n_sym, cap_sym;
    uint64_t *heap; /* rank << 32 | left symbol */
    size_t n_heap, cap_heap;
    char *buf; /* SentencePiece: the text with U+2581 */
    size_t cap_buf;
} tok_work;

CW_MUST_USE cw_status tok_emit(tok_work *w, int32_t id);
/* Grows *p to hold n elements of `size`; contents kept. */
CW_MUST_USE cw_status tok_reserve(void **p, size_t *cap, size_t n, size_t size, cw_err *err);
/* merge.c: merges w->sym over `text` and emits the result. */
CW_MUST_USE cw_status tok_merge_bytes(tok_work *w, const char *text, size_t len);
CW_MUST_USE cw_status tok_merge_chars(tok_work *w, const char *text, size_t len);
/* The byte as a token: in valid text the unknown token stands in for a missing one, else U+FFFD does. */
CW_MUST_USE cw_status tok_emit_byte(tok_work *w, uint8_t byte, bool valid);

/* pretok.c */
CW_MUST_USE cw_status pretok_compile(cw_tok *t, const pretok_kind *kind, bool no_jit, cw_err *err);
/* Cuts valid UTF-8 into words; the result is borrowed from w. */
CW_MUST_USE cw_status pretok_split(tok_work *w, const char *text, size_t len, const tok_spans **out);

/* nfc.c: valid UTF-8 in; *out is NULL when the text is NFC as it is, else a block for cw_free. */
CW_MUST_USE cw_status nfc_normalise(const char *text, size_t len, char **out, size_t *out_len, cw_err *err);
