/*
 * The per-head matrices of absorbed multi-head latent attention.
 *
 * With attn_kv_b in the file, its rows of head h are d_nope key rows and then d_v value rows over the latent.
 * The value rows are v_b as they stand. The key rows are needed transposed (latent rows over d_nope), so k_b
 * is derived once: f32, f16 and bf16 keep their values bit for bit; a quantised kv_b cannot be transposed in
 * its blocks and becomes Q8_0.
 *
 * Q8_0 as everywhere: blocks of 32, d = amax/127 rounded to f16, q = x * (127/amax). Where others round
 * halves away from zero we round to even, as all rounding in this project does.
 */
#include "weights_internal.h"
#include "cw/bytes.h"
#include "cw/mem.h"

#include <math.h>

uint32_t cw_derived_k_b_type(uint32_t kv_b_type, int d_nope)
{
    if (!cw_type_get(kv_b_type)->quantised) return kv_b_type;
    return d_nope % 32 == 0 ? CW_TYPE_Q8_0 : CW_TYPE_F32;
}

/* A block that is not finite gets a scale that is not either, which packing refuses with a sentence. */
static void put_q8_0(uint8_t *dst, const float *x, int n)
{
    for (int b = 0; b < n / 32; b++, dst += 34, x += 32) {
        float amax = 0;
        bool finite = true;
        for (int i = 0; i < 32; i++) {
            amax = fmaxf(amax, fabsf(x[i]));
            finite = finite && isfinite(x[i]);
        }
        cw_store_u16(dst, finite ? cw_f32_to_f16(amax / 127) : 0x7e00);
        float inv = finite && amax >= 0x1p-100f ? 127 / amax : 0;
        for (int i = 0; i < 32; i++) dst[2 + i] = finite ? (uint8_t)(int8_t)rintf(x[i] * inv) : 0;
    }
}

/* One row of n values in a file's form; for f16 and bf16 x
 * holds values that came from that type, so nothing is lost. */
static void put_row(uint32_t type, uint8_t *dst, const float *x, int n)
{
    switch (type) {
    case CW_TYPE_Q8_0: put_q8_0(dst, x, n); return;
    case CW_TYPE_F32:
        for (int i = 0; i < n; i++) cw_store_u32(dst + 4 * i, cw_f32_bits(x[i]));
        return;
    case CW_TYPE_F16:
        for (int i = 0; i < n; i++) cw_store_u16(dst + 2 * i, cw_f32_to_f16(x[i]));
        return;
    case CW_TYPE_BF16:
        for (int i = 0; i < n; i++) cw_store_u16(dst + 2 * i, (uint16_t)(cw_f32_bits(x[i]) >> 16));
        return;
    default: CW_ASSERT(!"a type that cw_derived_k_b_type does not give");
    }
}

/* Buffers for one head's derivation. */
typedef struct {
    uint8_t *raw;  /* d_nope rows as in the file */
    float *rows;   /* [d_nope, kv_lora] */
    float *column; /* [d_nope] */
    uint8_t *out;  /* kv_lora rows of the derived type */
} derivation;

static void drop(derivation *d)
{
    cw_free(d->raw);
    cw_free(d->rows);
    cw_free(d->column);
    cw_free(d->out);
}

static cw_status derive_k_b(loader *l, const cw_gguf_tensor *kv_b, int head, derivation *d, cw_weight *w)
{
    const cw_model_config *c = l->c;
    const cw_type_info *info = cw_type_get(kv_b->type);
    size_t bytes = (size_t)c->d_nope * kv_b->row_bytes, out_row;
    CW_ASSERT(cw_type_row_bytes(w->info->type, c->d_nope, &out_row));
    uint64_t first = (uint64_t)head * (uint64_t)(c->d_nope + c->d_v);
    CW_TRY(cw_gguf_read(l->r->g, kv_b, first * kv_b->row_bytes, bytes, d->raw, l->err));
    for (int i = 0; i < c->d_nope; i++)
        info->to_f32(d->raw + (size_t)i * kv_b->row_bytes, d->rows + (size_t)i * (size_t)c->kv_lora,
                     c->kv_lora);
    for (int r = 0; r < c->kv_lora; r++) {
        for (int i = 0; i < c->d_nope; i++)
            d->column[i] = d->rows[(size_t)i * (size_t)c->kv_lora + (size_t)r];
        put_row(w->info->type, d->out + (size_t)r * out_row, d->column, c->d_nope);
    }
    if (cw_weight_pack(w, 0, w->n, d->out, l->err) != CW_OK)
        return l->err ? cw_err_prefix(l->err, "tensor %s, head %d", kv_b->name, head) : CW_STATUS_FORMAT;
    return cw_load_progress_add(l->r->progress, bytes, l->err);
}

static cw_status load_joint(loader *l, const cw_gguf_tensor *kv_b, cw_layer_weights *out)
{
    const cw_model_config *c = l->c;
    uint32_t type = cw_derived_k_b_type(kv_b->type, c->d_nope);
    size_t out_row;
    CW_ASSERT(cw_type_row_bytes(type, c->d_nope, &out_row));
    derivation d = {
        .raw = cw_calloc((size_t)c->d_nope, kv_b->row_bytes),
        .rows = cw_calloc((size_t)c->d_nope * (size_t)c->kv_lora, sizeof(float)),
        .column = cw_calloc((size_t)c->d_nope, sizeof(float)),
        .out = cw_calloc((size_t)c->kv_lora, out_row),
    };
    cw_status s = CW_OK;
    if (!d.raw || !d.rows || !d.column || !d.out)
        s = CW_FAIL(l->err, CW_STATUS_NO_MEMORY, "out of memory for tensor %s", kv_b->name);
    for (int h = 0; h < c->n_heads && s == CW_OK; h++) {
        s = cw_weight_make(l, &out->k_b[h], type, c->kv_lora, c->d_nope);
        if (s == CW_OK) s = derive_k_b(l, kv_b, h, &d, &out->k_b[h]);
        if (s == CW_OK) s = cw_weight_make(l, &out->v_b[h], kv_b->type, c->d_v, c->kv_lora);
        int64_t first = (int64_t)h * (c->d_nope + c->d_v) + c->d_nope;
        if (s == CW_OK) s = cw_weight_read(l->r, kv_b, first, &out->v_b[h]);
    }
    drop(&d);
    return s;
}

static cw_status load_split(loader *l, const cw_layer_tensors *t, cw_layer_weights *out)
{
    const cw_model_config *c = l->c;
    for (int h = 0; h < c->n_heads; h++) {
        CW_TRY(cw_weight_make(l, &out->k_b[h], t->k_b->type, c->kv_lora, c->d_nope));
        CW_TRY(cw_weight_read(l->r, t->k_b, (int64_t)h * c->kv_lora, &out->k_b[h]));
        CW_TRY(cw_weight_make(l, &out->v_b[h], t->v_b->type, c->d_v, c->kv_lora));
        CW_TRY(cw_weight_read(l->r, t->v_b, (int64_t)h * c->d_v, &out->v_b[h]));
    }
    l->w->all_f32 &= t->k_b->type == CW_TYPE_F32 && t->v_b->type == CW_TYPE_F32;
    return CW_OK;
}

cw_status cw_load_mla_heads(loader *l, const cw_layer_tensors *t, cw_layer_weights *out)
{
    size_t n = (size_t)l->c->n_heads;
    out->k_b = cw_weight_store_alloc(l->w->store, n * sizeof *out->k_b);
    out->v_b = cw_weight_store_alloc(l->w->store, n * sizeof *out->v_b);
    if (!out->k_b || !out->v_b) return CW_FAIL(l->err, CW_STATUS_NO_MEMORY, "out of memory for %zu heads", n);
    if (!t->kv_b) return load_split(l, t, out);
    l->w->all_f32 &= t->kv_b->type == CW_TYPE_F32;
    return load_joint(l, t->kv_b, out);
}
