/*
 * The set of loaded experts: a table of pointers indexed (layer, expert), one lock, reference counts.
 *
 * The lock covers the table only; packing and reading happen outside it, on memory nobody else can see yet.
 * An expert's memory is one block of pages holding its three packed matrices, so that dropping one gives its
 * memory back.
 */
#include "expert_internal.h"
#include "cw/mem.h"
#include "weights.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct cw_expert_set {
    int n_layers, n_experts;
    cw_expert_shape *shapes; /* [n_layers] */
    pthread_mutex_t lock;
    cw_expert **table; /* [n_layers * n_experts], under lock */
    size_t bytes;      /* under lock */
    int count;         /* under lock */
};

/* --- shapes --- */

static uint32_t slice_type(const cw_expert_shape *s, int slice)
{
    return slice == CW_SLICE_GATE ? s->gate_type : slice == CW_SLICE_UP ? s->up_type : s->down_type;
}

static int slice_n(const cw_expert_shape *s, int slice)
{
    return slice == CW_SLICE_DOWN ? s->d_model : s->d_ff;
}

static int slice_k(const cw_expert_shape *s, int slice)
{
    return slice == CW_SLICE_DOWN ? s->d_ff : s->d_model;
}

static bool is_quantised(uint32_t type)
{
    return cw_type_get(type)->quantised;
}

cw_rows_kind cw_expert_rows_kind(const cw_expert_shape *s)
{
    return is_quantised(s->gate_type) && is_quantised(s->up_type) ? CW_ROWS_A8 : CW_ROWS_F32;
}

cw_reply_kind cw_expert_reply_kind(const cw_expert_shape *s)
{
    return is_quantised(s->down_type) ? CW_REPLY_ROWS_F16 : CW_REPLY_ROWS_F32;
}

size_t cw_expert_slice_bytes(const cw_expert_shape *s, int slice)
{
    size_t row;
    CW_ASSERT(cw_type_row_bytes(slice_type(s, slice), slice_k(s, slice), &row));
    return row * (size_t)slice_n(s, slice);
}

/* Packed bytes of one slice, rounded up so that the next starts aligned. */
static size_t packed_slice(const cw_expert_shape *s, int slice)
{
    size_t bytes = 0;
    cw_status st = cw_weight_bytes(slice_type(s, slice), slice_n(s, slice), slice_k(s, slice), &bytes, NULL);
    CW_ASSERT(st == CW_OK);
    return (bytes + 63) & ~(size_t)63;
}

size_t cw_expert_packed_bytes(const cw_expert_shape *s)
{
    return packed_slice(s, CW_SLICE_GATE) + packed_slice(s, CW_SLICE_UP) + packed_slice(s, CW_SLICE_DOWN);
}

static const char *const slice_names[CW_N_SLICES] = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"};

char *cw_expert_tensor_name(char *buf, size_t size, int layer, int slice)
{
    snprintf(buf, size, "blk.%d.%s.weight", layer, slice_names[slice]);
    return buf;
}

static cw_status check_shape(const cw_expert_shape *s, int layer, cw_err *err)
{
    for (int i = 0; i < CW_N_SLICES; i++) {
        size_t bytes;
        if (s->d_model < 1 || s->d_ff < 1 || s->d_model > CW_MAX_EXPERT_DIM || s->d_ff > CW_MAX_EXPERT_DIM)
            return CW_FAIL(err, CW_STATUS_INVALID, "layer %d: experts of %d x %d", layer, s->d_model,
                           s->d_ff);
        cw_status st = cw_weight_bytes(slice_type(s, i), slice_n(s, i), slice_k(s, i), &bytes, err);
        if (st != CW_OK) {
            char name[64];
            return err ? cw_err_prefix(err, "%s", cw_expert_tensor_name(name, sizeof name, layer, i)) : st;
        }
    }
    return CW_OK;
}

cw_status cw_expert_shape_read(const cw_gguf *g, const cw_model_config *c, int block, cw_expert_shape *out,
                               cw_err *err)
{
    const cw_gguf_tensor *t[CW_N_SLICES];
    for (int i = 0; i < CW_N_SLICES; i++) {
        char name[64];
        CW_TRY(cw_gguf_tensor_require(g, cw_expert_tensor_name(name, sizeof name, block, i), &t[i], err));
    }
    cw_expert_shape s = {c->d_model, c->d_expert, t[0]->type, t[1]->type, t[2]->type};
    CW_TRY(check_shape(&s, block, err));
    *out = s;
    return CW_OK;
}

cw_status cw_expert_shapes_read(const cw_gguf *g, const cw_model_config *c, cw_expert_shape *shapes,
                                cw_err *err)
{
    for (int l = 0; l < c->n_layers; l++) {
        shapes[l] = (cw_expert_shape){0};
        if (cw_layer_is_moe(c, l)) CW_TRY(cw_expert_shape_read(g, c, l, &shapes[l], err));
    }
    return CW_OK;
}

/* --- the set --- */

cw_status cw_expert_set_new(int n_layers, int n_experts, const cw_expert_shape *shapes, cw_expert_set **out,
                            cw_err *err)
{
    if (n_layers < 1 || n_layers > CW_MAX_LAYERS || n_experts < 1 || n_experts > CW_MAX_EXPERTS)
        return CW_FAIL(err, CW_STATUS_INVALID, "%d layers of %d experts", n_layers, n_experts);
    for (int l = 0; l < n_layers; l++)
        if (shapes[l].d_model) CW_TRY(check_shape(&shapes[l], l, err));
    cw_expert_set *s = cw_calloc(1, sizeof *s);
    if (!s) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a set of experts");
    s->n_layers = n_layers;
    s->n_experts = n_experts;
    pthread_mutex_init(&s->lock, NULL);
    s->shapes = cw_calloc((size_t)n_layers, sizeof *s->shapes);
    s->table = cw_calloc((size_t)n_layers * (size_t)n_experts, sizeof *s->table);
    if (!s->shapes || !s->table) {
        cw_expert_set_free(&s);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a set of experts");
    }
    memcpy(s->shapes, shapes, (size_t)n_layers * sizeof *shapes);
    *out = s;
    return CW_OK;
}

void cw_expert_set_free(cw_expert_set **set)
{
    if (!set || !*set) return;
    cw_expert_set *s = *set;
    for (int i = 0; s->table && i < s->n_layers * s->n_experts; i++)
        if (s->table[i]) cw_expert_release(s->table[i]);
    cw_free(s->table);
    cw_free(s->shapes);
    pthread_mutex_destroy(&s->lock);
    cw_free(s);
    *set = NULL;
}

/* NULL when out of range or the layer has no experts. */
static cw_expert **slot_of(const cw_expert_set *s, int layer, int expert)
{
    if (!cw_expert_set_shape(s, layer) || expert < 0 || expert >= s->n_experts) return NULL;
    return &s->table[(size_t)layer * (size_t)s->n_experts + (size_t)expert];
}

const cw_expert *cw_expert_set_acquire(cw_expert_set *s, int layer, int expert)
{
    cw_expert **slot = slot_of(s, layer, expert);
    if (!slot) return NULL;
    pthread_mutex_lock(&s->lock);
    cw_expert *e = *slot;
    if (e) atomic_fetch_add_explicit(&e->refs, 1, memory_order_relaxed);
    pthread_mutex_unlock(&s->lock);
    return e;
}

void cw_expert_release(const cw_expert *expert)
{
    cw_expert *e = (cw_expert *)expert; /* the count is the one mutable part */
    if (atomic_fetch_sub_explicit(&e->refs, 1, memory_order_acq_rel) > 1) return;
    cw_pages_free(e->mem, e->bytes);
    cw_free(e);
}

/* --- adding --- */

static cw_status make_expert(const cw_expert_shape *shape, int layer, int id, cw_expert **out, cw_err *err)
{
    cw_expert *e = cw_calloc(1, sizeof *e);
    size_t bytes = cw_expert_packed_bytes(shape);
    uint8_t *mem = cw_pages_alloc_spread(bytes);
    if (!e || !mem) {
        cw_free(e);
        cw_pages_free(mem, bytes);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for expert %d of layer %d (%zu bytes)", id,
                       layer, bytes);
    }
    *e = (cw_expert){.shape = *shape, .layer = layer, .id = id, .mem = mem, .bytes = bytes};
    atomic_init(&e->refs, 1);
    for (int i = 0; i < CW_N_SLICES; i++) {
        cw_status s =
            cw_weight_init(&e->w[i], slice_type(shape, i), slice_n(shape, i), slice_k(shape, i), mem, err);
        CW_ASSERT(s == CW_OK); /* the shape was checked when the set was made */
        mem += packed_slice(shape, i);
    }
    *out = e;
    return CW_OK;
}

/* Puts a finished expert into its slot, or drops it where another thread was faster. */
static cw_status publish(cw_expert_set *s, cw_expert *e, cw_err *err)
{
    pthread_mutex_lock(&s->lock);
    cw_expert **slot = slot_of(s, e->layer, e->id);
    bool taken = *slot != NULL;
    if (!taken) {
        *slot = e;
        s->bytes += e->bytes;
        s->count++;
    }
    pthread_mutex_unlock(&s->lock);
    if (!taken) return CW_OK;
    cw_status st = CW_FAIL(err, CW_STATUS_STATE, "expert %d of layer %d is loaded already", e->id, e->layer);
    cw_expert_release(e);
    return st;
}

static cw_status check_free(cw_expert_set *s, int layer, int expert, cw_err *err)
{
    if (!slot_of(s, layer, expert))
        return CW_FAIL(err, CW_STATUS_INVALID, "there is no expert %d in layer %d", expert, layer);
    if (cw_expert_set_has(s, layer, expert))
        return CW_FAIL(err, CW_STATUS_STATE, "expert %d of layer %d is loaded already", expert, layer);
    return CW_OK;
}

cw_status cw_expert_set_add(cw_expert_set *s, int layer, int expert, const void *const slices[CW_N_SLICES],
                            const size_t bytes[CW_N_SLICES], cw_err *err)
{
    CW_TRY(check_free(s, layer, expert, err));
    const cw_expert_shape *shape = &s->shapes[layer];
    for (int i = 0; i < CW_N_SLICES; i++)
        if (bytes[i] != cw_expert_slice_bytes(shape, i))
            return CW_FAIL(err, CW_STATUS_INVALID, "expert %d of layer %d: %s has %zu bytes, expected %zu",
                           expert, layer, slice_names[i], bytes[i], cw_expert_slice_bytes(shape, i));
    cw_expert *e;
    CW_TRY(make_expert(shape, layer, expert, &e, err));
    for (int i = 0; i < CW_N_SLICES; i++) {
        cw_status st = cw_weight_pack(&e->w[i], 0, e->w[i].n, slices[i], err);
        if (st == CW_OK) continue;
        cw_expert_release(e);
        return err ? cw_err_prefix(err, "expert %d of layer %d, %s", expert, layer, slice_names[i]) : st;
    }
    return publish(s, e, err);
}

/* The three tensors of a layer, held against the set's shape: the file may be another model's. */
static cw_status find_slices(const cw_expert_set *s, const cw_gguf *g, int layer, int block,
                             const cw_gguf_tensor **t, cw_err *err)
{
    const cw_expert_shape *shape = &s->shapes[layer];
    for (int i = 0; i < CW_N_SLICES; i++) {
        char name[64];
        CW_TRY(cw_gguf_tensor_require(g, cw_expert_tensor_name(name, sizeof name, block, i), &t[i], err));
        if (t[i]->type != slice_type(shape, i) || t[i]->ne[0] != slice_k(shape, i) ||
            t[i]->ne[1] != slice_n(shape, i) || t[i]->ne[2] != s->n_experts || t[i]->ne[3] != 1)
            return CW_FAIL(err, CW_STATUS_MISMATCH, "tensor %s is not the one this model has", name);
    }
    return CW_OK;
}

cw_status cw_expert_set_read(cw_expert_set *s, const cw_weight_reader *r, int layer, int block, int expert)
{
    CW_TRY(check_free(s, layer, expert, r->err));
    const cw_gguf_tensor *t[CW_N_SLICES];
    CW_TRY(find_slices(s, r->g, layer, block, t, r->err));
    cw_expert *e;
    CW_TRY(make_expert(&s->shapes[layer], layer, expert, &e, r->err));
    for (int i = 0; i < CW_N_SLICES; i++) {
        cw_status st = cw_weight_read(r, t[i], (int64_t)expert * e->w[i].n, &e->w[i]);
        if (st == CW_OK) continue;
        cw_expert_release(e);
        return st;
    }
    return publish(s, e, r->err);
}

/* What reading one expert needs; an expert is small, and a buffer of its own for each is cleared by the
 * kernel. */
static size_t bounce_for(const cw_expert_set *s, int layer)
{
    size_t bytes = CW_PIECE_BYTES;
    for (int i = 0; cw_expert_set_shape(s, layer) && i < CW_N_SLICES; i++) {
        const cw_expert_shape *shape = &s->shapes[layer];
        size_t panel = cw_expert_slice_bytes(shape, i) / (size_t)slice_n(shape, i) * CW_PANEL_ROWS;
        if (panel > bytes) bytes = panel;
    }
    return bytes;
}

cw_status cw_expert_set_add_from_gguf(cw_expert_set *s, const cw_gguf *g, int layer, int expert, cw_err *err)
{
    cw_weight_reader r = {.g = g, .bounce_bytes = bounce_for(s, layer), .err = err};
    r.bounce = cw_calloc(1, r.bounce_bytes);
    if (!r.bounce) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for reading an expert");
    cw_status st = cw_expert_set_read(s, &r, layer, layer, expert);
    cw_free(r.bounce);
    return st;
}

bool cw_expert_set_remove(cw_expert_set *s, int layer, int expert)
{
    cw_expert **slot = slot_of(s, layer, expert);
    if (!slot) return false;
    pthread_mutex_lock(&s->lock);
    cw_expert *e = *slot;
    if (e) {
        *slot = NULL;
        s->bytes -= e->bytes;
        s->count--;
    }
    pthread_mutex_unlock(&s->lock);
    if (e) cw_expert_release(e);
    return e != NULL;
}

/* --- questions --- */

bool cw_expert_set_has(const cw_expert_set *s, int layer, int expert)
{
    const cw_expert *e = cw_expert_set_acquire((cw_expert_set *)s, layer, expert);
    if (e) cw_expert_release(e);
    return e != NULL;
}

size_t cw_expert_set_bytes(const cw_expert_set *s)
{
    pthread_mutex_lock((pthread_mutex_t *)&s->lock);
    size_t bytes = s->bytes;
    pthread_mutex_unlock((pthread_mutex_t *)&s->lock);
    return bytes;
}

int cw_expert_set_count(const cw_expert_set *s)
{
    pthread_mutex_lock((pthread_mutex_t *)&s->lock);
    int count = s->count;
    pthread_mutex_unlock((pthread_mutex_t *)&s->lock);
    return count;
}

int cw_expert_set_n_layers(const cw_expert_set *s)
{
    return s->n_layers;
}

int cw_expert_set_n_experts(const cw_expert_set *s)
{
    return s->n_experts;
}

const cw_expert_shape *cw_expert_set_shape(const cw_expert_set *s, int layer)
{
    return layer >= 0 && layer < s->n_layers && s->shapes[layer].d_model ? &s->shapes[layer] : NULL;
}
