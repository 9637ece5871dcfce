/* See weights.h. */
#include "weights_internal.h"
#include "cw/mem.h"
#include "rope.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* --- the store: blocks of pages, small things share one --- */

enum { SHARED_BLOCK = 1 << 20 };

typedef struct block {
    struct block *next;
    uint8_t *mem;
    size_t bytes, used;
} block;

struct cw_weight_store {
    block *head;
    size_t bytes;
};

void *cw_weight_store_alloc(cw_weight_store *s, size_t bytes)
{
    if (bytes > SIZE_MAX - 63) return NULL;
    bytes = (bytes + 63) & ~(size_t)63;
    if (!s->head || s->head->bytes - s->head->used < bytes) {
        block *b = cw_calloc(1, sizeof *b);
        if (!b) return NULL;
        b->bytes = bytes < SHARED_BLOCK ? SHARED_BLOCK : bytes;
        b->mem = cw_pages_alloc_spread(b->bytes);
        if (!b->mem) {
            cw_free(b);
            return NULL;
        }
        b->next = s->head;
        s->head = b;
    }
    void *p = s->head->mem + s->head->used;
    s->head->used += bytes;
    s->bytes += bytes;
    return p;
}

static void store_free(cw_weight_store **s)
{
    if (!*s) return;
    for (block *b = (*s)->head, *next; b; b = next) {
        next = b->next;
        cw_pages_free(b->mem, b->bytes);
        cw_free(b);
    }
    cw_free(*s);
    *s = NULL;
}

size_t cw_weights_bytes(const cw_weights *w)
{
    return w->store->bytes;
}

/* --- reading --- */

cw_status cw_load_progress_add(cw_load_progress *p, uint64_t bytes, cw_err *err)
{
    if (!p) return CW_OK;
    p->done += bytes;
    if (p->fn && !p->fn(p->ctx, p->done, p->total))
        return CW_FAIL(err, CW_STATUS_CANCELLED, "loading was stopped");
    return CW_OK;
}

bool cw_load_forgets(const cw_gguf *g)
{
    uint64_t file = 0;
    for (int i = 0; i < cw_gguf_shard_count(g); i++) file += cw_gguf_identity(g, i).size;
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages <= 0 || page <= 0) return true;
    return file > (uint64_t)pages * (uint64_t)page / 8 * 3;
}

/* A run of rows, cut into pieces of whole panels that are read and packed side by side. */
typedef struct {
    const cw_weight_reader *r;
    const cw_gguf_tensor *t;
    int64_t first_row; /* of the weight, in the tensor */
    cw_weight *w;
    int64_t row, n; /* of the run, in the weight */
    int pieces;
    bool forgets;
    atomic_bool failed;
} reading;

/* Piece `piece` of so many, through its own part of the bounce buffer, a few panels at a time: what was read
 * is packed while the second-level cache holds it, and little of the buffer is ever touched. */
static cw_status read_piece(const reading *x, int piece, int pieces, cw_err *err)
{
    const size_t row_bytes = x->t->row_bytes;
    int64_t panels = (x->n + CW_PANEL_ROWS - 1) / CW_PANEL_ROWS;
    int64_t from = panels * piece / pieces * CW_PANEL_ROWS,
            to = panels * (piece + 1) / pieces * CW_PANEL_ROWS;
    if (to > x->n) to = x->n;
    int64_t step = (int64_t)(CW_PIECE_BYTES / row_bytes) / CW_PANEL_ROWS * CW_PANEL_ROWS;
    if (step == 0) step = CW_PANEL_ROWS;
    uint8_t *buf = (uint8_t *)x->r->bounce + (size_t)from * row_bytes;
    for (int64_t row = from; row < to; row += step) {
        int64_t n = to - row < step ? to - row : step;
        size_t bytes = (size_t)n * row_bytes;
        uint64_t offset = (uint64_t)(x->first_row + x->row + row) * row_bytes;
        CW_TRY(cw_gguf_read(x->r->g, x->t, offset, bytes, buf, err));
        if (x->forgets) cw_gguf_forget(x->r->g, x->t, offset, bytes);
        if (cw_weight_pack(x->w, x->row + row, n, buf, err) != CW_OK)
            return err ? cw_err_prefix(err, "tensor %s", x->t->name) : CW_STATUS_FORMAT;
    }
    return CW_OK;
}

static void read_task(void *ctx, int task, int thread)
{
    (void)thread;
    reading *x = ctx;
    if (read_piece(x, task, x->pieces, NULL) != CW_OK) atomic_store(&x->failed, true);
}

cw_status cw_weight_read(const cw_weight_reader *r, const cw_gguf_tensor *t, int64_t first_row, cw_weight *w)
{
    size_t room = r->bounce_bytes ? r->bounce_bytes : CW_BOUNCE_BYTES;
    int64_t at_once = (int64_t)(room / t->row_bytes) / CW_PANEL_ROWS * CW_PANEL_ROWS;
    bool forgets = cw_load_forgets(r->g);
    if (at_once == 0)
        return CW_FAIL(r->err, CW_STATUS_UNSUPPORTED, "tensor %s: rows of %zu bytes are too long", t->name,
                       t->row_bytes);
    for (int64_t row = 0; row < w->n; row += at_once) {
        int64_t n = w->n - row < at_once ? w->n - row : at_once;
        reading x = {r, t, first_row, w, row, n, cw_pool_threads(r->pool), forgets, false};
        cw_pool_run(r->pool, read_task, &x, x.pieces);
        /* What went wrong is found by doing it again in order: the same sentence whatever the threads. */
        if (atomic_load(&x.failed)) CW_TRY(read_piece(&x, 0, 1, r->err));
        CW_TRY(cw_load_progress_add(r->progress, (size_t)n * t->row_bytes, r->err));
    }
    return CW_OK;
}

cw_status cw_weight_make(loader *l, cw_weight *w, uint32_t type, int64_t n, int64_t k)
{
    size_t bytes;
    CW_TRY(cw_weight_bytes(type, n, k, &bytes, l->err));
    void *mem = cw_weight_store_alloc(l->w->store, bytes);
    if (!mem) return CW_FAIL(l->err, CW_STATUS_NO_MEMORY, "out of memory for %zu bytes of weights", bytes);
    return cw_weight_init(w, type, n, k, mem, l->err);
}

cw_status cw_load_matrix(loader *l, const cw_gguf_tensor *t, cw_weight *w)
{
    if (!t) return CW_OK;
    if (cw_weight_make(l, w, t->type, t->ne[1], t->ne[0]) != CW_OK)
        return l->err ? cw_err_prefix(l->err, "tensor %s", t->name) : CW_STATUS_FORMAT;
    l->w->all_f32 &= t->type == CW_TYPE_F32;
    return cw_weight_read(l->r, t, 0, w);
}

/* Vectors (norms, biases) and the router's matrix become f32, whatever they are in the file. */
cw_status cw_load_f32(loader *l, const cw_gguf_tensor *t, float **out)
{
    if (!t) return CW_OK;
    const cw_type_info *info = cw_type_get(t->type);
    int64_t rows = t->ne[1];
    float *v = cw_weight_store_alloc(l->w->store, (size_t)(t->ne[0] * rows) * sizeof *v);
    if (!v) return CW_FAIL(l->err, CW_STATUS_NO_MEMORY, "out of memory for tensor %s", t->name);
    for (int64_t r = 0; r < rows; r++) {
        CW_TRY(cw_gguf_read(l->r->g, t, (uint64_t)r * t->row_bytes, t->row_bytes, l->r->bounce, l->err));
        info->to_f32(l->r->bounce, v + r * t->ne[0], t->ne[0]);
    }
    for (int64_t i = 0; i < t->ne[0] * rows; i++)
        if (!isfinite(v[i]))
            return CW_FAIL(l->err, CW_STATUS_FORMAT, "tensor %s: value %lld is not finite", t->name,
                           (long long)i);
    CW_TRY(cw_load_progress_add(l->r->progress, t->bytes, l->err));
    *out = v;
    return CW_OK;
}

/* The router reads the f32 row of the norm, so its weights are held in f32. */
static cw_status load_router(loader *l, const cw_gguf_tensor *t, cw_weight *w)
{
    float *rows;
    CW_TRY(cw_load_f32(l, t, &rows));
    CW_TRY(cw_weight_make(l, w, CW_TYPE_F32, t->ne[1], t->ne[0]));
    return cw_weight_pack(w, 0, w->n, rows, l->err);
}

static cw_status load_embedding(loader *l, const cw_model_tensors *t)
{
    cw_weights *w = l->w;
    w->embd_type = cw_type_get(t->embd->type);
    w->embd_row_bytes = t->embd->row_bytes;
    if (t->out == t->embd) return CW_OK; /* tied: rows come from the packed output */
    uint8_t *rows = cw_weight_store_alloc(w->store, t->embd->bytes);
    if (!rows) return CW_FAIL(l->err, CW_STATUS_NO_MEMORY, "out of memory for tensor %s", t->embd->name);
    for (size_t at = 0; at < t->embd->bytes;) {
        size_t n = t->embd->bytes - at < CW_BOUNCE_BYTES ? t->embd->bytes - at : CW_BOUNCE_BYTES;
        CW_TRY(cw_gguf_read(l->r->g, t->embd, at, n, rows + at, l->err));
        if (cw_load_forgets(l->r->g)) cw_gguf_forget(l->r->g, t->embd, at, n);
        CW_TRY(cw_load_progress_add(l->r->progress, n, l->err));
        at += n;
    }
    w->embd = rows;
    return CW_OK;
}

static cw_status load_rope(loader *l, const cw_gguf_tensor *divisor_tensor)
{
    float *divisors = NULL;
    int n = l->c->d_rope / 2;
    CW_TRY(cw_load_f32(l, divisor_tensor, &divisors));
    for (int i = 0; divisors && i < n; i++)
        if (!(divisors[i] > 0))
            return CW_FAIL(l->err, CW_STATUS_FORMAT, "tensor %s: divisor %d is not positive",
                           divisor_tensor->name, i);
    l->w->inv_freq = cw_weight_store_alloc(l->w->store, (size_t)n * sizeof(double));
    if (!l->w->inv_freq) return CW_FAIL(l->err, CW_STATUS_NO_MEMORY, "out of memory for rope frequencies");
    cw_rope_frequencies(l->c, divisors, l->w->inv_freq);
    return CW_OK;
}

static cw_status load_attention(loader *l, const cw_layer_tensors *t, cw_layer_weights *w)
{
    CW_TRY(cw_load_f32(l, t->attn_norm, &w->attn_norm));
    CW_TRY(cw_load_matrix(l, t->q ? t->q : t->q_b, &w->q));
    CW_TRY(cw_load_matrix(l, t->attn_out, &w->attn_out));
    if (l->c->mla) {
        CW_TRY(cw_load_matrix(l, t->q_a, &w->q_a));
        CW_TRY(cw_load_f32(l, t->q_a_norm, &w->q_a_norm));
        CW_TRY(cw_load_matrix(l, t->kv_a, &w->kv_a));
        CW_TRY(cw_load_f32(l, t->kv_a_norm, &w->kv_a_norm));
        return cw_load_mla_heads(l, t, w);
    }
    CW_TRY(cw_load_matrix(l, t->k, &w->k));
    CW_TRY(cw_load_matrix(l, t->v, &w->v));
    CW_TRY(cw_load_f32(l, t->q_bias, &w->q_bias));
    CW_TRY(cw_load_f32(l, t->k_bias, &w->k_bias));
    return cw_load_f32(l, t->v_bias, &w->v_bias);
}

static cw_status load_feed_forward(loader *l, const cw_layer_tensors *t, cw_layer_weights *w)
{
    CW_TRY(cw_load_f32(l, t->ffn_norm, &w->ffn_norm));
    if (t->router) CW_TRY(load_router(l, t->router, &w->router));
    CW_TRY(cw_load_f32(l, t->router_bias, &w->router_bias));
    CW_TRY(cw_load_matrix(l, t->gate ? t->gate : t->sh_gate, &w->gate));
    CW_TRY(cw_load_matrix(l, t->up ? t->up : t->sh_up, &w->up));
    if (t->ex_down)
        l->w->all_f32 &= t->ex_gate->type == CW_TYPE_F32 && t->ex_up->type == CW_TYPE_F32 &&
                         t->ex_down->type == CW_TYPE_F32;
    return cw_load_matrix(l, t->down ? t->down : t->sh_down, &w->down);
}

cw_status cw_load_layer(loader *l, const cw_layer_tensors *t, cw_layer_weights *w)
{
    CW_TRY(load_attention(l, t, w));
    return load_feed_forward(l, t, w);
}

static cw_status load_all(loader *l, const cw_model_tensors *t)
{
    CW_TRY(load_embedding(l, t));
    CW_TRY(cw_load_matrix(l, t->out, &l->w->out));
    CW_TRY(cw_load_f32(l, t->out_norm, &l->w->out_norm));
    CW_TRY(load_rope(l, t->rope_freqs));
    for (int i = 0; i < l->c->n_layers; i++) CW_TRY(cw_load_layer(l, &t->layers[i], &l->w->layers[i]));
    return CW_OK;
}

cw_status cw_weights_empty(int n_layers, cw_weights *out, cw_err *err)
{
    cw_weights w = {.all_f32 = true};
    w.layers = cw_calloc((size_t)n_layers, sizeof *w.layers);
    w.store = cw_calloc(1, sizeof *w.store);
    if (!w.layers || !w.store) {
        cw_weights_drop(&w);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for %d layers", n_layers);
    }
    *out = w;
    return CW_OK;
}

cw_status cw_weights_load(const cw_weight_reader *r, const cw_model_config *c, const cw_model_tensors *t,
                          cw_weights *out)
{
    cw_weights w;
    CW_TRY(cw_weights_empty(c->n_layers, &w, r->err));
    loader l = {r, c, &w, r->err};
    cw_status s = load_all(&l, t);
    if (s != CW_OK) {
        cw_weights_drop(&w);
        return s;
    }
    *out = w;
    return CW_OK;
}

void cw_weights_drop(cw_weights *w)
{
    cw_free(w->layers);
    store_free(&w->store);
    memset(w, 0, sizeof *w);
}

void cw_weights_embed(const cw_weights *w, int32_t token, float *x, void *scratch)
{
    if (w->embd)
        w->embd_type->to_f32(w->embd + (size_t)token * w->embd_row_bytes, x, w->out.k);
    else
        cw_weight_row_f32(&w->out, token, x, scratch);
}
