/*
 * Choosing the next token. Pure: the choice depends on logits, parameters, the position and the tokens before
 * it, and on nothing else. Noise is counter-based, u(seed, position, token id), and a token is the argmax
 * over the surviving tokens of logit/T + Gumbel(u) (docs/NUMERICS.md), so a drafter and a verifier, or a
 * retry, make the same choice.
 *
 * Order: repetition penalty, temperature, top-k, top-p, min-p, argmax with noise. Ties: the lower token id.
 */
#pragma once
#include "cw/status.h"

typedef struct {
    float temperature;    /* 0: greedy (penalty applies, noise and filters do not) */
    int top_k;            /* 0: off */
    float top_p;          /* 1: off */
    float min_p;          /* 0: off */
    float repeat_penalty; /* 1: off; a seen token's logit is divided by it when positive, else multiplied */
    int repeat_last_n;    /* tokens of history that count as seen; -1: all */
    uint64_t seed;
} cw_sampler_params;

/* Greedy, everything off. */
#define CW_SAMPLER_GREEDY                                                                                    \
    ((cw_sampler_params){.temperature = 0, .top_p = 1, .repeat_penalty = 1, .repeat_last_n = 64})

typedef struct cw_sampler cw_sampler;

/* INVALID names the parameter that is out of range. One
 * sampler per thread (it owns working memory, no state). */
CW_MUST_USE cw_status cw_sampler_new(const cw_sampler_params *p, int n_vocab, cw_sampler **out, cw_err *err);
void cw_sampler_free(cw_sampler **s);

/*
 * The token for `position` (= the number of tokens before it) from logits [n_vocab], which are not changed.
 * history[n_history]: the tokens before it, oldest first. A NaN logit is never chosen unless all are NaN.
 * Allocates nothing.
 */
int32_t cw_sampler_pick(cw_sampler *s, const float *logits, int64_t position, const int32_t *history,
                        int n_history);

/* The index of the largest value, lower index at ties, NaN last. */
int32_t cw_argmax(const float *v, int n);
