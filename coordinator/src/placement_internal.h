/*
 * One layer of a placement in work: placement.c decides how many experts of it each worker holds,
 * placement_layer.c which, placement_balance.c improves, placement_flow.c divides the calls over the homes.
 */
#pragma once
#include "cw/placement.h"

enum { NOBODY = UINT32_MAX };

/* ---- placement_pack.c */
typedef struct {
    const cw_placement_input *in;
    cw_expert_bits *sets; /* of all layers, written as homes come and go */
    uint32_t n_workers, n_experts, n_part;
    double *speed;   /* [n_workers] 0: takes no part */
    double *total;   /* [n_workers] time over the layers that are done */
    uint32_t *share; /* [n_workers, n_layers] how many experts it may hold */
    double mean;     /* load of an expert, over the whole model */

    uint32_t layer;
    double *load; /* [n_experts] of this layer, never 0 */
    double sum;
    uint32_t *by_load; /* [n_experts] heaviest first */
    uint32_t *n_home, *n_away;
    uint16_t *home; /* [n_experts, n_workers] the first n_home count */
    float *x;       /* [n_experts, n_workers] load that home takes */
    int32_t *room;  /* [n_workers] experts it may still take */
    double *busy;   /* [n_workers] sum of its x */
    double *top;    /* [n_experts + 1] sums of the heaviest */
    uint32_t *fast; /* [n_workers] those that take part, fastest first */
    uint32_t need;  /* homes that every expert is to have, as far as places reach: 2, else 1 */
    uint64_t budget;

    /* scratch */
    uint32_t *open, *shares; /* [n_workers] */
    uint32_t *list;          /* [the greater of both] */
    uint32_t *extra;         /* [n_experts] */
    double *rest;            /* [n_experts] */
    struct {
        uint32_t e, w;
    } * log; /* [log_cap] homes made by the try in work */
    size_t n_log, log_cap;
} pack;

bool pack_new(pack *p, const cw_placement_input *in, cw_expert_bits *sets);
void pack_free(pack *p);
/* Homes as in `sets`, nothing divided yet. */
void pack_layer(pack *p, uint32_t layer);
void pack_add(pack *p, uint32_t e, uint32_t w);
void pack_remove(pack *p, uint32_t e, uint32_t w);
/* Which of e's homes w is. It must be one. */
uint32_t pack_index(const pack *p, uint32_t e, uint32_t w);
static inline bool pack_has(const pack *p, uint32_t e, uint32_t w)
{
    return cw_expert_bits_has(&p->sets[w], p->layer, e);
}
static inline bool takes_part(const pack *p, uint32_t w)
{
    return p->speed[w] > 0;
}
static inline double time_of(const pack *p, uint32_t w)
{
    return p->busy[w] / p->speed[w];
}
static inline double load_per_home(const pack *p, uint32_t e)
{
    uint32_t n = p->n_home[e] + p->n_away[e];
    return p->load[e] / (n ? n : 1);
}
/* The next expert of w in this layer at or after e; NOBODY: none. */
uint32_t pack_next(const pack *p, uint32_t w, uint32_t e);

/* Indices by falling value, then rising index. False: out of memory. */
bool pack_rank(const double *v, uint32_t n, uint32_t *out);

/* ---- placement_flow.c */
/* Divides the load of e anew over its homes so that the later ones end together; the rest stays. */
void flow_divide(pack *p, uint32_t e);
/* All experts, until nobody takes longer than `enough` or a round gains nothing. The longest time. */
double flow_solve(pack *p, double enough, int rounds);
double flow_worst(const pack *p, uint32_t *who);
/* Nothing that fits into these shares (NULL: into any number of homes) is done with the layer earlier. */
double flow_bound(pack *p, const uint32_t *shares_of_worker /* [n_workers] */);
/* Homes that the layer needs to be done in time t. */
uint64_t flow_homes_needed(const pack *p, double t);

/* ---- placement_layer.c */
void layer_place(pack *p, cw_placement_result *out);

/* ---- placement_balance.c */
/* Exchanges homes as long as it pays, within p->budget. */
void balance(pack *p, double bound);
