/* Golden cases (tests/golden/data): tokens, and the logits that the models' published code gives for them. */
#pragma once
#include "cw/engine.h"

typedef struct {
    char name[32];
    int n_tokens, n_rows, n_vocab;
    int32_t *tokens; /* [n_tokens] */
    int *after;      /* [n_rows] row i is the logits after that many tokens */
    int *argmax;     /* [n_rows] */
    float *logits;   /* [n_rows, n_vocab] */
} golden_case;

/* A whole file with a NUL behind it; free() it. *bytes may be NULL. */
char *golden_read(const char *path, size_t *bytes);
/* Fails the test where a file is missing or malformed. */
golden_case *golden_case_load(const char *name);
void golden_case_free(golden_case *c);

typedef struct {
    int n_threads; /* 0: 1 */
    int max_rows;  /* 0: 256 */
    cw_isa isa;    /* used where `has_isa` */
    bool has_isa;
} golden_options;

cw_engine *golden_engine(const char *name, const golden_options *opt);
cw_session *golden_session(cw_engine *e, cw_kv_type kv);
/* Logits after every token, [n, n_vocab], evaluated in passes of `chunk`; free() it. */
float *golden_run(cw_session *s, const int32_t *tokens, int n, int chunk);
/* Hash of all KV rows held. */
uint64_t golden_kv_hash(const cw_session *s, int n_layers);
/* Deterministic token ids below n_vocab. */
void golden_tokens(int32_t *out, int n, int n_vocab, uint64_t seed);
