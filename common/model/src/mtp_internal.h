/* What the files of the multi-token-prediction head share. */
#pragma once
#include "cw/mtp.h"
#include "engine_internal.h"
#include "tensors.h"

/*
 * An engine of one block without a place for tokens to come in: its embedding, output and rope frequencies
 * are the model's, its input is what `join` makes.
 */
struct cw_mtp {
    const cw_engine *model;
    cw_engine *engine;
    cw_weight eh_proj;
    float *enorm, *hnorm; /* [d_model] */
    cw_act pair;          /* 2 d_model: [embedding ; hidden state], both normalised */
    cw_arena *arena;
};

/* mtp_file.c: the head's tensors in `companion`, or where that is NULL in the model's own file, every shape
 * checked against the model's configuration, and a companion's metadata against the model's. */
CW_MUST_USE cw_status cw_mtp_find(const cw_gguf *model, const cw_model_config *c, const cw_gguf *companion,
                                  cw_mtp_tensors *out, cw_err *err);

/*
 * n <= the head's max_rows rows behind what `s` (a session of m->engine) holds: tokens[i] with the hidden
 * state hidden[i]. logits [n_vocab] of the last row, or NULL. The rows' outputs lie in cw_mtp_output until
 * the next call. A failure changes nothing.
 */
CW_MUST_USE cw_status cw_mtp_forward(cw_mtp *m, cw_session *s, const int32_t *tokens, const float *hidden,
                                     int n, float *logits, cw_err *err);
const float *cw_mtp_output(const cw_mtp *m, int row);
