/*
 * Placement: which worker holds which expert, and how much of its work each home should take. A pure
 * function, no state, any thread. Same input, same output; the order of `workers` is the tie-break, so
 * callers order by something stable.
 *
 * Promises, in this order:
 *   1. No worker holds more than its memory. Where it cannot hold the whole model a move reserve (2 %, at
 * least the largest expert) stays free, so that a later move can make before it breaks; only an expert that
 *      would have no home at all may take that.
 *   2. Every expert has a home, or the result says how many bytes are missing. What does not fit is what is
 *      asked for least.
 *   3. Where memory reaches for two homes of everything, everything has two, on different workers. Where it
 * does not, balance comes first (it needs less than one more home a worker and layer), then second homes, the
 *      busiest experts first.
 *   4. What memory remains holds replicas, the busiest experts first.
 *   5. Homes are chosen so that the busiest worker's time is near the bound below, whatever the workers'
 * sizes and speeds.
 *   6. What is there stays: loaded is only what 1 to 4 ask for, and with `move_bytes` as much as balance is
 *      worth. A placement that lacks nothing comes out unchanged when it is fed back as `previous`.
 *
 * Load and time. An expert's load is the rows computed for it, times its bytes: what has to be read. A
 * worker's time in a layer is the load it takes there over its speed; calls are divisible over the homes of
 * an expert, since every row may go to another one. A batch passes the layers one after the other and each as
 * fast as its slowest worker, so what placement makes small is the *layer time*: the sum over the layers of
 * the longest time there. The longest *total* of any worker is what limits the throughput of many streams.
 *
 * Bounds, for any placement whatever and any division of calls:
 *   total: worker w cannot take more than speed(w) * T in time T, nor more than the load K(w) of the best set
 *     that fits into its memory (experts by load a byte, the last one in part: the linear relaxation can only
 *     be more). Hence T >= the T where sum over w of min(speed(w) * T, K(w)) reaches the whole load.
 *   layer time: the same for each layer alone, as if all memory were for that layer. And the memory of all
 *     workers together: to be done with layer l in time t, expert e needs at least r homes, where the r
 * fastest workers take its load in t (and two, where promise 3 says so); let n_l(t) be the sum of these.
 * Summed over the layers the n_l(t_l) * bytes_l fit into the memory, so for any price u >= 0 a byte, sum t_l
 * >= sum over l of min over t of (t + u * bytes_l * n_l(t)) - u * memory; the best price gives the bound.
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
uint32_t cw_expert_bits_count_layer(const cw_expert_bits *b, uint32_t layer);
/* Experts of layer l times layer_bytes[l]. */
uint64_t cw_expert_bits_bytes(const cw_expert_bits *b, const uint64_t *layer_bytes);
void cw_expert_bits_copy(cw_expert_bits *dst, const cw_expert_bits *src); /* of equal shape, like all below */
void cw_expert_bits_or(cw_expert_bits *dst, const cw_expert_bits *src);
void cw_expert_bits_and(cw_expert_bits *dst, const cw_expert_bits *src);
void cw_expert_bits_andnot(cw_expert_bits *dst, const cw_expert_bits *src);
bool cw_expert_bits_equal(const cw_expert_bits *a, const cw_expert_bits *b);
bool cw_expert_bits_empty(const cw_expert_bits *b);
/* The next member at or after (*layer, *expert), which are moved to it; false: there is none. */
bool cw_expert_bits_next(const cw_expert_bits *b, uint32_t *layer, uint32_t *expert);

typedef enum {
    CW_PLACEMENT_TAKES, /* holds what it is given */
    CW_PLACEMENT_AWAY,  /* not here now, may be back soon: keeps its part and counts as a home for promises 3
                           and  4, but an expert that only such workers have gets another home */
    CW_PLACEMENT_OUT    /* draining or fenced: gets nothing, and what it holds counts for nothing */
} cw_placement_part;

typedef struct {
    uint64_t memory;
    float speed; /* any unit; not above 0, or not a number: like the mean of the others */
    cw_placement_part part;
    const cw_expert_bits *previous; /* what it holds or was to hold; NULL: nothing */
} cw_placement_worker;

typedef struct {
    uint32_t n_layers, n_experts;
    const uint64_t *expert_bytes; /* [n_layers]; 0: a layer without experts */
    const float *load;            /* [n_layers, n_experts] rows, in any unit; NULL: all alike */
    const cw_placement_worker *workers;
    uint32_t n_workers;
    uint64_t move_bytes; /* may be loaded for nothing but a better balance */
} cw_placement_input;

typedef struct {
    uint32_t n_unplaced;    /* experts without any home */
    uint64_t missing_bytes; /* of those */
    uint64_t load_bytes;    /* to be loaded: in a set and not in `previous` */
    double layer_time;      /* of the new sets; in units of load * bytes / speed */
    char text[256];         /* a sentence about what is missing; "" when everything has a home */
} cw_placement_result;

/*
 * `sets` [n_workers], made by the caller with the model's shape, are overwritten. `weights`, if not NULL, is
 * [n_layers, n_experts, n_workers]: the part of an expert's calls that each home takes where the times are
 * least; 0 elsewhere. Edges are not told: they see queues and round trips as they are and find the division
 * themselves (docs/COORDINATOR.md). false: out of memory.
 */
CW_MUST_USE bool cw_placement(const cw_placement_input *in, cw_expert_bits *sets, float *weights,
                              cw_placement_result *out);
/* What stays free on a worker that cannot hold the whole model. */
uint64_t cw_placement_reserve(uint64_t memory, uint64_t largest_expert);

/* Times of given sets under the input's load, calls divided as well as water-filling does it; workers that
 * are not TAKES take nothing. Infinite where an expert that is asked for has no home. */
typedef struct {
    double layer_time, worst_total;
} cw_placement_times;
CW_MUST_USE bool cw_placement_measure(const cw_placement_input *in, const cw_expert_bits *sets,
                                      cw_placement_times *out);
/* The bounds above for this input; slower than the placement itself, for tests and reports. */
CW_MUST_USE bool cw_placement_bound(const cw_placement_input *in, cw_placement_times *out);
