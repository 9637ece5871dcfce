/*
 * The scalar reference of the matrix products. It reads the same panels as the vector kernels, one output row
 * at a time, taking each block apart with the code that packed it; y itself is the accumulator.
 */
#include "ref.h"
#include "cw/bytes.h"

#include <string.h>

/* What 32 values of one output row come to: signed codes with the sub-scales of 16 already in, the factor of
 * w_scale; minima, likewise. */
typedef struct {
    int32_t v[32];
    int32_t m[2]; /* of the first and the last 16 values, in integers where w_min is only the block's dmin */
    float w_scale, w_min;
    bool has_min, min_in_integers;
} ref_sub;

static void sub_of(const cw_values *v, int s, ref_sub *out)
{
    bool sub16 = v->per_sub == 16;
    for (int i = 0; i < 32; i++) out->v[i] = v->v[32 * s + i] * (sub16 ? v->sc[2 * s + i / 16] : 1);
    out->w_scale = sub16 ? v->d : v->d * (float)v->sc[s];
    out->has_min = v->has_min;
    out->min_in_integers = v->has_min && sub16;
    out->m[0] = sub16 ? v->m[2 * s] : 1;
    out->m[1] = sub16 ? v->m[2 * s + 1] : 1;
    out->w_min = sub16 ? v->dmin : v->dmin * (float)v->m[s];
}

/* One block of 32 values of one row of x; at: its scale and sums. */
static float add_block(float acc, const ref_sub *sub, const cw_a8 *a, const int8_t *q, int64_t at)
{
    int32_t isum = 0;
    for (int t = 0; t < 32; t++) isum += sub->v[t] * q[t];
    acc = fmaf(sub->w_scale * a->s[at], (float)isum, acc);
    if (sub->min_in_integers) {
        int32_t msum = sub->m[0] * a->lo[at] + sub->m[1] * (a->sum[at] - a->lo[at]);
        return fmaf(-(sub->w_min * a->s[at]), (float)msum, acc);
    }
    return sub->has_min ? fmaf(-sub->w_min, a->ssum[at], acc) : acc;
}

static void quantised_row(const cw_mm *mm, const cw_format *f, int64_t n, int32_t row0, int32_t row1)
{
    cw_block b = {0};
    cw_values values;
    ref_sub sub;
    for (int32_t i = row0; i < row1; i++) mm->y[i * mm->ldy + n] = 0.0f;
    for (int64_t u = 0; u < mm->w->k / f->block; u++) {
        cw_panel_get(mm->w, f, n, u, &b);
        cw_block_values(f, &b, &values);
        for (int s = 0; s < f->block / 32; s++) {
            int64_t block = u * (f->block / 32) + s;
            sub_of(&values, s, &sub);
            for (int32_t i = row0; i < row1; i++) {
                int32_t src = cw_mm_source(mm, i);
                float *acc = &mm->y[i * mm->ldy + n];
                *acc = add_block(*acc, &sub, mm->a8, cw_a8_q(mm->a8, src) + 32 * block,
                                 src * (mm->a8->ld / 32) + block);
            }
        }
    }
}

static float float_at(const cw_weight *w, int64_t n, int64_t i)
{
    const uint8_t *p = w->data + (size_t)(n / CW_PANEL_ROWS) * w->panel_bytes;
    int64_t at = i * CW_PANEL_ROWS + n % CW_PANEL_ROWS;
    if (w->info->type == CW_TYPE_F32) return ((const float *)(const void *)p)[at];
    uint16_t h = ((const uint16_t *)(const void *)p)[at];
    return w->info->type == CW_TYPE_F16 ? cw_f16_to_f32(h) : cw_bf16_to_f32(h);
}

static void float_row(const cw_mm *mm, int64_t n, int32_t row0, int32_t row1)
{
    for (int32_t i = row0; i < row1; i++) {
        const float *x = mm->f32 + cw_mm_source(mm, i) * mm->ldx;
        float acc = 0.0f;
        for (int64_t k = 0; k < mm->w->k; k++) acc = fmaf(float_at(mm->w, n, k), x[k], acc);
        mm->y[i * mm->ldy + n] = acc;
    }
}

void cw_ref_matmul(const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0, int32_t row1)
{
    const cw_format *f = cw_format_get(mm->w->info->type);
    int64_t end = panel1 * CW_PANEL_ROWS < mm->w->n ? panel1 * CW_PANEL_ROWS : mm->w->n;
    for (int64_t n = panel0 * CW_PANEL_ROWS; n < end; n++) {
        if (f)
            quantised_row(mm, f, n, row0, row1);
        else
            float_row(mm, n, row0, row1);
    }
}
