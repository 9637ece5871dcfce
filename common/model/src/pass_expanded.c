/*
 * The expanded form of multi-head latent attention, for long prompts of sessions that asked for it.
 *
 * Every head's keys and values are made from the cached latents (k = latent k_b, v = latent v_b) and queries
 * meet them as they are: a query and a key cost d_nope + d_rope + d_v products instead of 2 kv_lora + d_rope,
 * at the price of making the keys once a pass. So it pays where many rows share a pass.
 *
 * Outside the promise of equal bits: its products are OpenBLAS's, and weights and latents meet in f32, not in
 * A8. Cache rows are written by the same code as always, but from hidden states that went through here.
 */
#include "blas.h"
#include "engine_internal.h"
#include "expanded.h"

#include <math.h>
#include <string.h>

/* Working memory of one thread. */
typedef struct {
    float *k_b, *v_b;     /* [kv_lora, d_nope], [d_v, kv_lora] of the head */
    float *latent;        /* [KEYS, width + slack] cache rows read back */
    float *keys, *values; /* [KEYS, d_nope], [KEYS, d_v] */
    float *scores;        /* [ROWS, KEYS] */
    float *tile;          /* [ROWS, d_v] */
    float *max, *sum;     /* [max_rows] */
    uint8_t *row;         /* a weight's row as the file has it */
} scratch;

struct cw_expanded {
    cw_arena *arena;
    scratch *of; /* [threads] */
};

static size_t width_of(const cw_model_config *c)
{
    return (size_t)c->kv_lora + (size_t)c->d_rope + 62;
}

/* Twice: to add up, and to take. */
static size_t take(cw_arena *a, void **out, size_t n, size_t size)
{
    if (a) *out = cw_arena_alloc(a, n, size);
    return n * size + 64;
}

static size_t lay_out(cw_arena *a, scratch *s, const cw_engine *e)
{
    const cw_model_config *c = &e->config;
    size_t lora = (size_t)c->kv_lora, nope = (size_t)c->d_nope, v = (size_t)c->d_v, f = sizeof(float);
    return take(a, (void **)&s->k_b, lora * nope, f) + take(a, (void **)&s->v_b, lora * v, f) +
           take(a, (void **)&s->latent, CW_EXPANDED_KEYS * width_of(c), f) +
           take(a, (void **)&s->keys, CW_EXPANDED_KEYS * nope, f) +
           take(a, (void **)&s->values, CW_EXPANDED_KEYS * v, f) +
           take(a, (void **)&s->scores, (size_t)CW_EXPANDED_ROWS * CW_EXPANDED_KEYS, f) +
           take(a, (void **)&s->tile, CW_EXPANDED_ROWS * v, f) +
           take(a, (void **)&s->max, (size_t)e->max_rows, f) +
           take(a, (void **)&s->sum, (size_t)e->max_rows, f) +
           take(a, (void **)&s->row, (lora > nope ? lora : nope) * f, 1);
}

cw_status cw_expanded_new(const cw_engine *e, cw_expanded **out, cw_err *err)
{
    CW_TRY(cw_blas_load(err));
    cw_expanded *x = cw_calloc(1, sizeof *x);
    int threads = cw_pool_threads(e->pool);
    if (x) x->of = cw_calloc((size_t)threads, sizeof *x->of);
    cw_status s =
        x && x->of ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for --prefill expanded");
    if (s == CW_OK) s = cw_arena_new((size_t)threads * lay_out(NULL, x->of, e), &x->arena, err);
    if (s != CW_OK) {
        cw_expanded_free(&x);
        return s;
    }
    for (int i = 0; i < threads; i++) {
        (void)lay_out(x->arena, &x->of[i], e);
        CW_ASSERT(x->of[i].row);
    }
    *out = x;
    return CW_OK;
}

void cw_expanded_free(cw_expanded **x)
{
    if (!x || !*x) return;
    cw_arena_free(&(*x)->arena);
    cw_free((*x)->of);
    cw_free(*x);
    *x = NULL;
}

/* --- one head --- */

typedef struct {
    cw_pass *p;
    const cw_layer_weights *w;
    int layer;
} step;

typedef struct {
    const step *st;
    const scratch *s;
    int head;
    int64_t ld; /* of `latent` */
} work;

/* Positions [from, from + n) of the cache to latents, keys and values in f32. */
static void make_keys(const work *k, int from, int n)
{
    cw_pass *p = k->st->p;
    const cw_model_config *c = &p->e->config;
    const cw_kv *kv = &p->rows[0].session->kv;
    for (int j = 0; j < n; j++)
        cw_kv_get(p->e->kn, kv, cw_kv_row(kv, k->st->layer, from + j), 0, c->kv_lora + c->d_rope,
                  k->s->latent + j * k->ld);
    cw_blas_gemm(false, n, c->d_nope, c->kv_lora, 1, k->s->latent, (int)k->ld, k->s->k_b, c->d_nope, 0,
                 k->s->keys, c->d_nope);
    cw_blas_gemm(true, n, c->d_v, c->kv_lora, 1, k->s->latent, (int)k->ld, k->s->v_b, c->kv_lora, 0,
                 k->s->values, c->d_v);
}

/* Rows [row, row + m) of the pass against the n keys made last, which begin at position `from`. */
static void attend(const work *k, int row, int m, int from, int n)
{
    cw_pass *p = k->st->p;
    const cw_model_config *c = &p->e->config;
    const scratch *s = k->s;
    int64_t ldq = (int64_t)c->n_heads * c->d_head, ldo = (int64_t)c->n_heads * c->d_v;
    int width = c->kv_lora + c->d_rope;
    const float *q = p->q + row * ldq + (int64_t)k->head * c->d_head;
    const float *rotated = p->q_abs + ((int64_t)row * c->n_heads + k->head) * width + c->kv_lora;
    cw_blas_gemm(true, m, n, c->d_nope, c->attn_scale, q, (int)ldq, s->keys, c->d_nope, 0, s->scores, n);
    cw_blas_gemm(true, m, n, c->d_rope, c->attn_scale, rotated, c->n_heads * width, s->latent + c->kv_lora,
                 (int)k->ld, 1, s->scores, n);
    float tile_max[CW_EXPANDED_ROWS], tile_sum[CW_EXPANDED_ROWS];
    for (int i = 0; i < m; i++) {
        int sees = p->rows[row + i].position + 1 - from;
        sees = sees < 0 ? 0 : sees > n ? n : sees;
        float *r = s->scores + (int64_t)i * n;
        tile_max[i] = -INFINITY;
        tile_sum[i] = sees ? p->e->kn->softmax_tile(r, sees, &tile_max[i]) : 0;
        memset(r + sees, 0, (size_t)(n - sees) * sizeof *r);
    }
    cw_blas_gemm(false, m, c->d_v, n, 1, s->scores, n, s->values, c->d_v, 0, s->tile, c->d_v);
    for (int i = 0; i < m; i++)
        if (tile_sum[i] > 0)
            cw_softmax_merge(p->e->kn, &s->max[row + i], &s->sum[row + i],
                             p->o.x + (row + i) * ldo + (int64_t)k->head * c->d_v, tile_max[i], tile_sum[i],
                             s->tile + (int64_t)i * c->d_v, c->d_v);
}

static void attend_head(void *ctx, int head, int thread)
{
    const step *st = ctx;
    cw_pass *p = st->p;
    const cw_model_config *c = &p->e->config;
    work k = {st, &p->e->expanded->of[thread], head, (int64_t)width_of(c)};
    for (int r = 0; r < c->kv_lora; r++)
        cw_weight_row_f32(&st->w->k_b[head], r, k.s->k_b + (int64_t)r * c->d_nope, k.s->row);
    for (int r = 0; r < c->d_v; r++)
        cw_weight_row_f32(&st->w->v_b[head], r, k.s->v_b + (int64_t)r * c->kv_lora, k.s->row);
    float *o = p->o.x + (int64_t)head * c->d_v;
    int64_t ldo = (int64_t)c->n_heads * c->d_v;
    for (int i = 0; i < p->n; i++) {
        k.s->max[i] = -INFINITY;
        k.s->sum[i] = 0;
        memset(o + i * ldo, 0, (size_t)c->d_v * sizeof *o);
    }
    int n_keys = p->rows[p->n - 1].position + 1;
    for (int from = 0; from < n_keys; from += CW_EXPANDED_KEYS) {
        int n = n_keys - from < CW_EXPANDED_KEYS ? n_keys - from : CW_EXPANDED_KEYS;
        make_keys(&k, from, n);
        for (int row = 0; row < p->n; row += CW_EXPANDED_ROWS) {
            int m = p->n - row < CW_EXPANDED_ROWS ? p->n - row : CW_EXPANDED_ROWS;
            if (p->rows[row + m - 1].position >= from) attend(&k, row, m, from, n);
        }
    }
    for (int i = 0; i < p->n; i++) cw_softmax_finish(p->e->kn, o + i * ldo, k.s->sum[i], c->d_v);
}

bool cw_pass_is_expanded(const cw_pass *p)
{
    const cw_session *s = p->rows[0].session;
    return s->prefill == CW_PREFILL_EXPANDED && p->n >= CW_EXPANDED_LEAST && p->rows[p->n - 1].session == s;
}

void cw_pass_attend_expanded(cw_pass *p, int layer)
{
    step st = {p, &p->e->weights.layers[layer], layer};
    cw_act_begin(&p->o, p->n);
    cw_pool_run(p->e->pool, attend_head, &st, p->e->config.n_heads);
}
