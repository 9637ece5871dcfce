/* The engine, its sessions and its passes, as the files of this room see them. */
#pragma once
#include "act.h"
#include "attention.h"
#include "cw/engine.h"
#include "cw/filler.h"
#include "cw/phases.h"
#include "expanded.h"
#include "kv.h"
#include "weights.h"

typedef struct cw_pass cw_pass;

enum {
    CW_DEFAULT_ROWS = 256,
    CW_MAX_ROWS = 4096,
    CW_DEFAULT_CTX = 8192,
    /* Two half-batches overlap (one computes attention while the other's experts are away) from this many
       rows on: below, reading the weights twice costs more than the wait. */
    CW_OVERLAP_ROWS = 64,
};

/* One row of a forward pass. */
typedef struct {
    cw_session *session;
    int position;
    int32_t token;
    float *logits; /* where this row's logits go, or NULL */
} cw_row;

/* What cw_engine_phases_get tells, while it is being gathered. */
typedef struct {
    bool on;
    cw_phase now;
    uint64_t since; /* cw_mono_ns when `now` began */
    cw_engine_phases sum;
} cw_phase_clock;

struct cw_engine {
    cw_model_config config;
    cw_engine_role role;
    const cw_kernels *kn;
    cw_pool *pool;
    bool owns_pool;
    int max_rows;
    cw_weights weights;
    cw_expert_shape *shapes; /* [n_layers] */
    cw_expert_set *set;      /* local only */
    cw_experts *local;       /* local only; what `experts` is until set */
    cw_experts *experts;
    cw_filler *filler; /* while others compute the experts on our cores: for the gaps they leave */
    cw_pass *pass[2]; /* the second only for overlapping, edge only */
    cw_row *rows;     /* [max_rows] of the forward in progress */
    cw_phase_clock clock;
    cw_attn_plan attn_plan;
    cw_expanded *expanded; /* from the first session that asks for it on */
};

/* Who needs to know what a session's passes compute; called by the engine's thread. */
typedef struct {
    /* A pass is over and its tokens are in the session: the hidden states behind the last layer of positions
     * first .. first + n - 1, [n, d_model]; valid during the call. */
    void (*rows)(void *ctx, int first, int n, const float *x);
    /* Only the first n_past positions are left. */
    void (*rewound)(void *ctx, int n_past);
    void *ctx;
} cw_follower;

struct cw_session {
    cw_engine *engine;
    uint32_t stream; /* its number in the process: the workers let streams in, not calls */
    int n_ctx, n_past;
    int32_t *tokens; /* [n_ctx] */
    cw_kv kv;
    cw_arena *arena; /* tokens and kv */
    bool in_batch;   /* while a forward checks its items */
    cw_prefill prefill;
    int exact; /* positions before this one are under the promise of equal bits */
    cw_follower follower;
};

/* The layer's own feed-forward on its way through its stages. */
typedef struct {
    cw_act gated; /* a view of the pass's */
    cw_mm mm[3];  /* gate, up, down */
    cw_mm_job job[2];
    atomic_bool bad; /* a value is not finite */
} cw_ffn;

/* --- pass.c: the rows of one (half-)batch on their way through the layers --- */

struct cw_pass {
    cw_engine *e;
    int n; /* rows */
    const cw_row *rows;
    const atomic_bool *cancel;
    cw_arena *arena;

    float *x;         /* [n, d_model] the residual stream */
    cw_act h;         /* d_model: norm outputs */
    float *y;         /* [n, d_model] what a block adds */
    float *cos, *sin; /* [n, d_rope / 2] */
    void *embd_row;   /* one row of the embedding in the file's form */
    /* attention */
    cw_act q_a;          /* q_lora */
    float *q;            /* [n, n_heads * d_head] */
    float *kv;           /* [n, kv width]: a new cache row in f32 */
    cw_act q_nope;       /* n_heads * d_nope */
    float *q_abs;        /* [n, n_heads, kv_lora + d_rope] queries against the cache */
    cw_act latent;       /* n_heads * kv_lora: attention outputs in the latent space */
    cw_act o;            /* n_heads * d_v */
    float *attn_scratch; /* [threads, attn_plan.floats] */
    int32_t *runs;       /* [n_runs + 1] first rows of runs of one session's consecutive positions */
    int n_runs;
    bool is_expanded;  /* of the rows in hand, see expanded.h */
    cw_a8 *head_views; /* [n_heads] */
    cw_mm *mm;         /* [n_heads + 2] */
    /* feed-forward */
    cw_act gated;             /* d_ff or d_shared */
    float *up;                /* the same */
    float *scores;            /* [n, n_experts] */
    cw_expert_entry *entries; /* [n, n_used] */
    float *combined;          /* [n, d_model] */
    cw_expert_call call;
    uint64_t ticket;
    bool waiting;     /* a ticket is to be collected */
    cw_ffn ffn;
    bool filling; /* ffn is with the filler */
    float *logits;    /* [n, n_vocab] for rows whose destinations do not lie together */
    uint8_t *row_bad; /* [n] */
};

CW_MUST_USE cw_status cw_pass_new(cw_engine *e, cw_pass **out, cw_err *err);
void cw_pass_free(cw_pass **p);

/* Embeds the rows; then for every layer begin and end, then finish, which writes the logits. */
void cw_pass_start(cw_pass *p, const cw_row *rows, int n, const atomic_bool *cancel);
/* Attention, router, submission of expert calls, shared experts. */
CW_MUST_USE cw_status cw_pass_layer_begin(cw_pass *p, int layer, cw_err *err);
/* Collects and combines. */
CW_MUST_USE cw_status cw_pass_layer_end(cw_pass *p, int layer, cw_err *err);
CW_MUST_USE cw_status cw_pass_finish(cw_pass *p, cw_err *err);
/* Takes back an expert call in flight after a failure elsewhere. */
void cw_pass_abandon(cw_pass *p);

/* --- parts of cw_pass_layer_begin --- */

/* pass_attention.c: p->y = attention of p->h; writes the layer's cache rows. */
CW_MUST_USE cw_status cw_pass_attention(cw_pass *p, int layer, cw_err *err);
/* Where keys and values of a key/value head (0 for MLA) are in a cache row. */
cw_attn_shape cw_pass_attn_shape(const cw_model_config *c, int kv_head);
/* pass_ffn.c: p->y = feed-forward of p->h with the layer's own (dense or shared) weights: in begin, or until
 * end in the gaps of those who compute the routed experts on our cores. After a begin that was CW_OK there
 * must be an end. */
CW_MUST_USE cw_status cw_pass_feed_forward_begin(cw_pass *p, int layer, cw_err *err);
CW_MUST_USE cw_status cw_pass_feed_forward_end(cw_pass *p, int layer, cw_err *err);
/* Routes p->h and submits the call. */
CW_MUST_USE cw_status cw_pass_route(cw_pass *p, int layer, cw_err *err);
/* p->combined = the routed experts' sum. */
CW_MUST_USE cw_status cw_pass_collect(cw_pass *p, int layer, cw_err *err);

/* One product, with NUMERIC naming `what` when its input cannot be quantised. */
CW_MUST_USE cw_status cw_pass_product(cw_pass *p, cw_act *in, const cw_weight *w, float *y, int layer,
                                      cw_err *err);
CW_MUST_USE cw_status cw_pass_check(const cw_act *a, int layer, cw_err *err);

/* --- phases.c: where the time goes; nothing but one test of a flag while nobody asks --- */

/* Around a forward of n rows. */
void cw_phase_begin(cw_engine *e, int n_rows);
void cw_phase_end(cw_engine *e);
void cw_phase_switch(cw_engine *e, cw_phase next);
void cw_phase_count_layer(cw_engine *e, int layer);
void cw_phase_count_experts(cw_engine *e, const cw_expert_call *call);
/* Expert calls are this process's work, or a wait. */
cw_phase cw_phase_of_experts(const cw_engine *e);

/* From here on the engine's thread is busy with `next`. */
static inline void cw_phase_enter(cw_engine *e, cw_phase next)
{
    if (e->clock.on) cw_phase_switch(e, next);
}
