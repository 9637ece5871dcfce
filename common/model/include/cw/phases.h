/*
 * Where an engine's time goes, for measurements: an account by phase of the pass, off until asked for. While
 * it is off a pass pays a few tests of a flag; while it is on, a dozen readings of the clock a layer.
 *
 * Times are those of the engine's thread. Bytes are packed weights, each matrix counted once for a
 * (half-)batch of rows however often it is read from a cache: what has to come from memory when the weights
 * are larger than the caches. The cache of keys and values, norms and biases are not counted.
 */
#pragma once
#include "cw/engine.h"

typedef enum {
    CW_PHASE_ATTENTION, /* norm, projections, scores, output, residual */
    CW_PHASE_ROUTER,    /* norm, scores, choice, rounding of the rows that go to the experts */
    CW_PHASE_EXPERTS,   /* routed experts computed here; combining rows wherever they come from */
    CW_PHASE_FFN,       /* dense layers and shared experts */
    CW_PHASE_LOGITS,
    CW_PHASE_NETWORK, /* routed experts elsewhere: handing calls over and waiting for rows */
    CW_PHASE_OTHER,   /* embedding, rope tables */
    CW_PHASE_COUNT
} cw_phase;

/* "attention", ... */
const char *cw_phase_name(cw_phase p);

typedef struct {
    uint64_t ns[CW_PHASE_COUNT];
    /* Under NETWORK: what the experts called read, by whoever holds them. */
    uint64_t weight_bytes[CW_PHASE_COUNT];
    uint64_t passes, rows;
    uint64_t expert_rows;  /* (row, expert) pairs */
    uint64_t experts_read; /* different experts of a call, added up */
} cw_engine_phases;

/* Starts from zero, or stops counting. Between forwards, by the engine's thread; so does get. */
void cw_engine_phases_reset(cw_engine *e, bool on);
void cw_engine_phases_get(const cw_engine *e, cw_engine_phases *out);

/* Packed bytes that one token of one session reads, from the model alone: what is always used and n_used
 * experts in each layer that has them. bytes[CW_PHASE_COUNT]. */
void cw_engine_token_bytes(const cw_engine *e, uint64_t *bytes);
