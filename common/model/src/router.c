/* See router.h. */
#include "router.h"

#include <math.h>
#include <string.h>

static void softmax(const cw_kernels *kn, float *x, int n)
{
    float max = x[0];
    for (int i = 1; i < n; i++)
        if (x[i] > max) max = x[i];
    for (int i = 0; i < n; i++) x[i] -= max;
    kn->exp(x, x, n);
    float sum = kn->sum(x, n);
    for (int i = 0; i < n; i++) x[i] /= sum;
}

/* The best `k` of v[n] with allowed[i] set, by value and then lower index; picked[i] tells which. */
static void best_k(const float *v, const bool *allowed, int n, int k, bool *picked)
{
    memset(picked, 0, (size_t)n * sizeof *picked);
    for (int found = 0; found < k; found++) {
        int best = -1;
        for (int i = 0; i < n; i++)
            if ((!allowed || allowed[i]) && !picked[i] && (best < 0 || v[i] > v[best])) best = i;
        CW_ASSERT(best >= 0); /* the configuration leaves at least k allowed */
        picked[best] = true;
    }
}

/* A group's worth: its maximum, or with a correction bias the sum of its best two. */
static float group_score(const float *key, int n, bool best_two)
{
    float first = -INFINITY, second = -INFINITY;
    for (int i = 0; i < n; i++) {
        if (key[i] > first)
            second = first, first = key[i];
        else if (key[i] > second)
            second = key[i];
    }
    return best_two ? first + second : first;
}

/* allowed[i]: expert i lies in one of the best groups. */
static void limit_groups(const cw_model_config *c, const float *key, bool *allowed)
{
    float worth[CW_MAX_EXPERTS];
    bool chosen[CW_MAX_EXPERTS];
    int size = c->n_experts / c->n_groups;
    for (int g = 0; g < c->n_groups; g++) worth[g] = group_score(key + g * size, size, c->gate_bias);
    best_k(worth, NULL, c->n_groups, c->n_groups_used, chosen);
    for (int i = 0; i < c->n_experts; i++) allowed[i] = chosen[i / size];
}

bool cw_router_select(const cw_kernels *kn, const cw_model_config *c, const float *bias, float *logits,
                      uint32_t row, cw_expert_entry *out)
{
    int n = c->n_experts;
    CW_ASSERT(n > 0 && n <= CW_MAX_EXPERTS);
    if (!kn->all_finite(logits, n)) return false;
    float *score = logits;
    if (c->gate == CW_GATE_SOFTMAX)
        softmax(kn, score, n);
    else
        for (int i = 0; i < n; i++) score[i] = cw_sigmoidf(score[i]);

    float key[CW_MAX_EXPERTS];
    bool allowed[CW_MAX_EXPERTS], picked[CW_MAX_EXPERTS];
    for (int i = 0; i < n; i++) key[i] = bias ? score[i] + bias[i] : score[i];
    if (c->n_groups > 1) limit_groups(c, key, allowed);
    best_k(key, c->n_groups > 1 ? allowed : NULL, n, c->n_used, picked);

    int n_out = 0;
    float sum = 0;
    for (int i = 0; i < n; i++) {
        if (!picked[i]) continue;
        out[n_out++] = (cw_expert_entry){row, (uint32_t)i, score[i]};
        sum += score[i];
    }
    /* Scores that all underflowed give weights of zero instead of NaN; no other sum changes. */
    sum += 1e-20f;
    for (int i = 0; i < n_out; i++) {
        if (c->norm_weights) out[i].weight /= sum;
        out[i].weight *= c->weights_scale;
    }
    return true;
}
