/*
 * What a coordinator makes ready before it listens: the model file and its manifest with known answers, the
 * facts the machine needs, and whether the fallback shares the model's vocabulary. Blocks for as long as the
 * file takes to hash.
 */
#pragma once
#include "cw/gguf.h"
#include "cw/manifest.h"
#include "cw/model_config.h"

typedef struct {
    cw_gguf *gguf;
    cw_manifest *manifest;
    cw_model_config config;
    uint64_t *expert_bytes; /* [config.n_layers] packed */
    uint32_t arithmetic_id;
    uint64_t fingerprint;
} prepared_model;

/* `dir` keeps the manifest. UNSUPPORTED: a model without routed experts. Progress on stderr. SIGTERM:
 * CANCELLED. */
CW_MUST_USE cw_status prepare_model(const char *path, const char *dir, prepared_model *out, cw_err *err);
void prepared_model_free(prepared_model *p);

/* Opens the fallback and says in `text` whether it can draft for the model. Errors: it is no model at all. */
CW_MUST_USE cw_status prepare_compare_fallback(const cw_gguf *model, const char *fallback_path, char *text,
                                               size_t text_size, cw_err *err);
