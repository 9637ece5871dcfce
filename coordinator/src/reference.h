/*
 * The reference of audits: one thread that computes rows of any expert from the model file, by the arithmetic
 * that wrote the known answers. An expert must give its known answer here before its rows judge anybody: a
 * coordinator with bad memory accuses nobody.
 */
#pragma once
#include "cw/coordinator.h"
#include "prepare.h"

typedef struct reference reference;

/* What came of one audit. */
typedef struct {
    cw_coordinator_audit audit;
    bool ok; /* the hashes are there */
    int64_t took_us;
    uint64_t hashes[CW_AUDIT_ROWS_MAX];
} reference_result;

/* The model outlives it. `wake` is called in its thread when a result waits. */
CW_MUST_USE cw_status reference_start(const prepared_model *model, void (*wake)(void *ctx), void *ctx,
                                      reference **out, cw_err *err);
void reference_stop(reference **r); /* after the rows it is at */
/* False: as many wait as there is room for. */
CW_MUST_USE bool reference_ask(reference *r, const cw_coordinator_audit *audit);
/* The next result, cw_free'd by the caller; NULL: none. */
CW_MUST_USE reference_result *reference_take(reference *r);
