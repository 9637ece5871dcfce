/*
 * Rotary position embedding: inverse frequencies of a model (plain, linear or YaRN; divisors of Llama 3.1
 * files) and the table of cos and sin for the positions of one pass. Angles are formed in double, so position
 * 100 000 is as good as 1.
 */
#pragma once
#include "cw/model_config.h"

/* inv_freq [d_rope / 2]. divisors [d_rope / 2] or NULL. */
void cw_rope_frequencies(const cw_model_config *c, const float *divisors, double *inv_freq);
/* cos and sin of position * inv_freq, [n] each. */
void cw_rope_row(const double *inv_freq, int n, int position, float *cos_row, float *sin_row);
/* Rotates x [2n] in place: pairs (2i, 2i+1), or (i, i+n) with `halves`. */
void cw_rope_apply(float *x, const float *cos_row, const float *sin_row, int n, bool halves);
