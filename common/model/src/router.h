/*
 * The router: which experts a row goes to, and with what weights. Pure; see docs/NUMERICS.md for the order of
 * every tie. Formula: the gate of DeepSeek's published inference code (V2: softmax, groups by their maximum;
 * V3: sigmoid with a correction bias that takes part in the choice only, groups by the sum of their best
 * two).
 */
#pragma once
#include "cw/experts.h"
#include "cw/kernels.h"
#include "cw/model_config.h"

/*
 * logits [n_experts] become scores in place; bias [n_experts] or NULL. Writes c->n_used entries for `row`,
 * ascending by expert. false where a logit is not finite: nothing is written then.
 */
CW_MUST_USE bool cw_router_select(const cw_kernels *kn, const cw_model_config *c, const float *bias,
                                  float *logits, uint32_t row, cw_expert_entry *out);
