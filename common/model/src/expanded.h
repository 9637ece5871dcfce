/* The expanded form of latent attention: its memory, and when a pass takes it. See pass_expanded.c. */
#pragma once
#include "cw/status.h"

struct cw_engine;
struct cw_pass;

enum {
    CW_EXPANDED_KEYS = 512, /* made at once */
    CW_EXPANDED_ROWS = 256, /* whose scores against them are held at once */
    /* Rows from which making the keys pays (measured; docs/PERFORMANCE.md). */
    CW_EXPANDED_LEAST = 128,
};

typedef struct cw_expanded cw_expanded;
/* UNSUPPORTED without OpenBLAS. */
CW_MUST_USE cw_status cw_expanded_new(const struct cw_engine *e, cw_expanded **out, cw_err *err);
void cw_expanded_free(cw_expanded **x);

/* All rows are one session's that asked for it, and enough of them. */
bool cw_pass_is_expanded(const struct cw_pass *p);
/* p->o from p->q, the rotated parts in p->q_abs and the layer's cache rows, those of this pass written. */
void cw_pass_attend_expanded(struct cw_pass *p, int layer);
