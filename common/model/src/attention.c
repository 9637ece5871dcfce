/* See attention.h. Any thread; scratch is the thread's own. */
#include "attention.h"

#include <math.h>
#include <string.h>

enum {
    QUERIES = CW_ATTN_MAX_ROWS * CW_ATTN_MAX_GROUP,
    LEAST_KEYS = 16,
    /* From how many queries on reading f16 keys back into f32 costs less than converting them in the
       products, which do it once for every few heads. The values are the same. */
    WORTH_READING_BACK = 9,
};

/* Floats from one key to the next: whole blocks of 8-bit rows with what lies around them, and not a distance
 * at which keys share the sets of a cache. */
static int64_t stride_of(int d)
{
    int64_t ld = (d + 62 + 15) / 16 * 16;
    return ld % 128 == 0 ? ld + 16 : ld;
}

/* Whether values are a part of the keys, as in multi-head latent attention. */
static bool within(const cw_attn_shape *s)
{
    return s->v_at >= s->k_at && s->v_at + s->v_dim <= s->k_at + s->k_dim;
}

cw_attn_plan cw_attn_plan_for(const cw_attn_shape *s, int threads)
{
    cw_attn_plan p = {.keys = CW_ATTN_TILE, .rows = CW_ATTN_MAX_ROWS};
    size_t share = CW_ATTN_SCRATCH_BYTES / sizeof(float) / (size_t)threads;
    size_t fixed = (size_t)CW_ATTN_MAX_GROUP * ((size_t)CW_ATTN_TILE + (size_t)s->v_dim) + 2 * QUERIES;
    size_t key = (size_t)stride_of(s->k_dim) + (within(s) ? 0 : (size_t)stride_of(s->v_dim));
    for (;; p.keys /= 2, p.rows = 1) { /* pieces of a tile are read back twice: for one row at a time */
        p.floats = (fixed + (size_t)p.keys * key + 15) & ~(size_t)15;
        if (p.floats <= share || p.keys == LEAST_KEYS) return p;
    }
}

/* A part of the rows as the kernels take it. */
typedef struct {
    const void *at;
    int64_t ld;
    uint32_t type;
} operand;

typedef struct {
    const cw_attn *a;
    bool read_back;       /* into f32; else the kernels read the cache */
    float *keys, *values; /* read back, [plan->keys, stride] each; the same where values are within keys */
    float *scores;        /* [n_q, TILE] of one row */
    float *tile;          /* [n_q, v_dim] of one row */
    float *max, *sum;     /* [n_rows, n_q] */
} state;

static void read_part(const state *s, float *to, int from, int n, int at, int dim)
{
    const cw_attn *a = s->a;
    int64_t ld = stride_of(dim);
    for (int j = 0; j < n; j++)
        cw_kv_get(a->kn, a->kv, cw_kv_row(a->kv, a->layer, from + j), at, dim, to + j * ld);
}

static void read_keys(const state *s, int from, int n)
{
    const cw_attn_shape *p = &s->a->shape;
    if (s->read_back) read_part(s, s->keys, from, n, p->k_at, p->k_dim);
}

static void read_values(const state *s, int from, int n)
{
    const cw_attn_shape *p = &s->a->shape;
    if (!s->read_back) return;
    if (s->values == s->keys)
        read_part(s, s->keys, from, n, p->k_at, p->k_dim);
    else
        read_part(s, s->values, from, n, p->v_at, p->v_dim);
}

static operand in_cache(const state *s, int from, int at)
{
    const cw_kv *kv = s->a->kv;
    bool f32 = kv->type == CW_KV_F32;
    const uint8_t *row = cw_kv_row(kv, s->a->layer, from);
    return (operand){row + (size_t)at * (f32 ? 4 : 2), kv->width, f32 ? CW_TYPE_F32 : CW_TYPE_F16};
}

/* Scores of `row` against n keys from position `from` on, which is key `at` of the tile. */
static void scores_of(const state *s, int row, int from, int at, int n)
{
    const cw_attn *a = s->a;
    const cw_attn_shape *p = &a->shape;
    operand k = s->read_back
                    ? (operand){s->keys + cw_kv_lead(a->kv, p->k_at), stride_of(p->k_dim), CW_TYPE_F32}
                    : in_cache(s, from, p->k_at);
    a->kn->qk(s->scores + at, CW_ATTN_TILE, a->q + row * a->q_row, a->q_head, a->n_q, k.type, k.at, k.ld, n,
              p->k_dim, p->scale);
}

static void sums_of(const state *s, int from, int at, int n)
{
    const cw_attn *a = s->a;
    const cw_attn_shape *p = &a->shape;
    operand v;
    if (!s->read_back)
        v = in_cache(s, from, p->v_at);
    else if (s->values == s->keys)
        v = (operand){s->keys + cw_kv_lead(a->kv, p->k_at) + (p->v_at - p->k_at), stride_of(p->k_dim),
                      CW_TYPE_F32};
    else
        v = (operand){s->values + cw_kv_lead(a->kv, p->v_at), stride_of(p->v_dim), CW_TYPE_F32};
    a->kn->pv(s->tile, p->v_dim, s->scores + at, CW_ATTN_TILE, a->n_q, v.type, v.at, v.ld, n, p->v_dim);
}

/* One row against the tile at position `from`, of which it sees n keys; pieces of `piece` keys are read back
 * as they are needed where a whole tile has no room. */
static void row_of_tile(const state *s, int row, int from, int n, int piece)
{
    const cw_attn *a = s->a;
    int v_dim = a->shape.v_dim;
    for (int at = 0; at < n; at += piece) {
        int now = n - at < piece ? n - at : piece;
        if (piece < CW_ATTN_TILE) read_keys(s, from + at, now);
        scores_of(s, row, from + at, at, now);
    }
    float tile_max[CW_ATTN_MAX_GROUP], tile_sum[CW_ATTN_MAX_GROUP];
    for (int h = 0; h < a->n_q; h++)
        tile_sum[h] = a->kn->softmax_tile(s->scores + h * CW_ATTN_TILE, n, &tile_max[h]);
    memset(s->tile, 0, (size_t)a->n_q * (size_t)v_dim * sizeof *s->tile);
    for (int at = 0; at < n; at += piece) {
        int now = n - at < piece ? n - at : piece;
        if (piece < CW_ATTN_TILE) read_values(s, from + at, now);
        sums_of(s, from + at, at, now);
    }
    for (int h = 0; h < a->n_q; h++) {
        int i = row * a->n_q + h;
        cw_softmax_merge(a->kn, &s->max[i], &s->sum[i], a->o + row * a->o_row + h * a->o_head, tile_max[h],
                         tile_sum[h], s->tile + (int64_t)h * v_dim, v_dim);
    }
}

static state lay_out(const cw_attn *a)
{
    const cw_attn_shape *p = &a->shape;
    bool can_read = a->kv->type != CW_KV_F32;
    state s = {.a = a,
               .read_back =
                   a->kv->type == CW_KV_Q8 || (can_read && a->n_rows * a->n_q >= WORTH_READING_BACK)};
    s.scores = a->scratch;
    s.tile = s.scores + CW_ATTN_MAX_GROUP * CW_ATTN_TILE;
    s.max = s.tile + (size_t)CW_ATTN_MAX_GROUP * (size_t)p->v_dim;
    s.sum = s.max + QUERIES;
    s.keys = s.sum + QUERIES;
    s.values = within(p) ? s.keys : s.keys + (size_t)a->plan->keys * (size_t)stride_of(p->k_dim);
    return s;
}

void cw_attend(const cw_attn *a)
{
    CW_ASSERT(a->n_q >= 1 && a->n_q <= CW_ATTN_MAX_GROUP && a->n_rows >= 1 && a->n_rows <= a->plan->rows);
    state s = lay_out(a);
    for (int i = 0; i < a->n_rows * a->n_q; i++) {
        s.max[i] = -INFINITY;
        s.sum[i] = 0;
    }
    size_t row_bytes = (size_t)a->shape.v_dim * sizeof *a->o;
    for (int r = 0; r < a->n_rows; r++)
        for (int h = 0; h < a->n_q; h++) memset(a->o + r * a->o_row + h * a->o_head, 0, row_bytes);

    int n_keys = a->first + a->n_rows; /* of the last row */
    int piece = s.read_back ? a->plan->keys : CW_ATTN_TILE;
    for (int from = 0; from < n_keys; from += CW_ATTN_TILE) {
        int n = n_keys - from < CW_ATTN_TILE ? n_keys - from : CW_ATTN_TILE;
        if (piece == CW_ATTN_TILE) {
            read_keys(&s, from, n);
            if (s.values != s.keys) read_values(&s, from, n);
        }
        for (int r = 0; r < a->n_rows; r++) {
            int sees = a->first + r + 1 - from;
            if (sees > 0) row_of_tile(&s, r, from, sees < CW_ATTN_TILE ? sees : CW_ATTN_TILE, piece);
        }
    }
    for (int r = 0; r < a->n_rows; r++)
        for (int h = 0; h < a->n_q; h++)
            cw_softmax_finish(a->kn, a->o + r * a->o_row + h * a->o_head, s.sum[r * a->n_q + h],
                              a->shape.v_dim);
}
