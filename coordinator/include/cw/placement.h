/*
 * Placement: which worker holds which expert. A pure function, no state, any thread.
 *
 * Rules, in this order. A worker with room for the whole model holds the whole model. Else each layer's
 * experts are spread over all workers in proportion to their memory, every expert once; then what memory
 * remains is filled with replicas, evenly over the layers, experts with the fewest homes first. Experts stay
 * where `previous` has them as far as these counts allow; a placement fed back as `previous` comes out
 * unchanged. On a worker that cannot hold everything a move reserve (2 %, at least the largest expert) stays
 * free, so that a later move has room to make before it breaks. Same input, same output; the order of
 * `workers` is the tie-break, so callers order by something stable.
 */
#pragma once
#include "cw/status.h"

/* A set of (layer, expert), one bit each, layers of `words` 64-bit words. */
typedef struct {
    uint32_t n_layers, n_experts, words;
    uint64_t *bits; /* [n_layers, words] */
} cw_expert_bits;

CW_MUST_USE bool cw_expert_bits_init(cw_expert_bits *b, uint32_t n_layers, uint32_t n_experts);
void cw_expert_bits_free(cw_expert_bits *b);
void cw_expert_bits_clear(cw_expert_bits *b);
static inline bool cw_expert_bits_has(const cw_expert_bits *b, uint32_t layer, uint32_t expert)
{
    return b->bits[(size_t)layer * b->words + expert / 64] >> (expert % 64) & 1;
}
static inline void cw_expert_bits_put(cw_expert_bits *b, uint32_t layer, uint32_t expert, bool on)
{
    uint64_t *w = &b->bits[(size_t)layer * b->words + expert / 64], m = (uint64_t)1 << (expert % 64);
    *w = on ? *w | m : *w & ~m;
}
uint32_t cw_expert_bits_count(const cw_expert_bits *b);
/* Experts of layer l times layer_bytes[l]. */
uint64_t cw_expert_bits_bytes(const cw_expert_bits *b, const uint64_t *layer_bytes);
void cw_expert_bits_copy(cw_expert_bits *dst, const cw_expert_bits *src); /* of equal shape, like all below */
void cw_expert_bits_or(cw_expert_bits *dst, const cw_expert_bits *src);
void cw_expert_bits_andnot(cw_expert_bits *dst, const cw_expert_bits *src);
bool cw_expert_bits_equal(const cw_expert_bits *a, const cw_expert_bits *b);
bool cw_expert_bits_empty(const cw_expert_bits *b);

typedef struct {
    uint64_t memory;
    const cw_expert_bits *previous; /* what it holds or was to hold; NULL: nothing */
} cw_placement_worker;

typedef struct {
    uint32_t n_layers, n_experts;
    const uint64_t *expert_bytes; /* [n_layers]; 0: a layer without experts */
    const float *load; /* [n_layers, n_experts] or NULL; of experts with equally many homes the busier is
                          replicated first. Nothing else uses it yet. */
    const cw_placement_worker *workers;
    uint32_t n_workers;
} cw_placement_input;

typedef struct {
    uint32_t n_unplaced;    /* experts without any home */
    uint64_t missing_bytes; /* of those */
    char text[256];         /* a sentence about them; "" when everything has a home */
} cw_placement_result;

/* `sets` [n_workers], made by the caller with the model's shape, are overwritten. false: out of memory. */
CW_MUST_USE bool cw_placement(const cw_placement_input *in, cw_expert_bits *sets, cw_placement_result *out);
/* What stays free on a worker that cannot hold the whole model. */
uint64_t cw_placement_reserve(uint64_t memory, uint64_t largest_expert);
