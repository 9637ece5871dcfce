/*
 * The scalar reference of the matrix products. It reads the same panels as the vector kernels, one output row
 * at a time, taking each block apart with the code that packed it; y itself is the accumulator.
 */
#include "ref.h"
#include "cw/bytes.h"

#include <string.h>

/* What 32 values of one output row come to: signed codes with the sub-scales of 16 already in, and two f32
 * factors. */
typedef struct {
    int32_t v[32];
    float w_scale, w_min; /* acc += w_scale * x_scale * isum - w_min * x_scale * xsum */
    bool has_min;
} ref_sub;

static void sub_of(const cw_format *f, const cw_block *b, int s, ref_sub *out)
{
    int per_sub = f->n_sub ? f->block / f->n_sub : 32;
    float d = cw_f16_to_f32(b->d), dmin = cw_f16_to_f32(b->dmin);
    for (int i = 0; i < 32; i++) {
        int c = b->code[32 * s + i], v = f->lut ? f->lut[c] : c - f->offset;
        if (per_sub == 16) {
            uint8_t sc = b->sc[2 * s + i / 16];
            v *= f->signed_sc ? (int8_t)sc : sc;
        }
        out->v[i] = v;
    }
    out->w_scale = per_sub == 32 && f->n_sub ? d * (float)b->sc[s] : d;
    out->has_min = f->min != CW_MIN_NONE;
    out->w_min = f->min == CW_MIN_SUB ? dmin * (float)b->m[s] : -dmin;
}

static void quantised_row(const cw_mm *mm, const cw_format *f, int64_t n, int32_t row0, int32_t row1)
{
    cw_block b = {0};
    ref_sub sub;
    for (int32_t i = row0; i < row1; i++) mm->y[i * mm->ldy + n] = 0.0f;
    for (int64_t u = 0; u < mm->w->k / f->block; u++) {
        cw_panel_get(mm->w, f, n, u, &b);
        for (int s = 0; s < f->block / 32; s++) {
            int64_t block = u * (f->block / 32) + s;
            sub_of(f, &b, s, &sub);
            for (int32_t i = row0; i < row1; i++) {
                int32_t src = cw_mm_source(mm, i), isum = 0;
                const int8_t *q = cw_a8_q(mm->a8, src) + 32 * block;
                int64_t at = src * (mm->a8->ld / 32) + block;
                for (int t = 0; t < 32; t++) isum += sub.v[t] * q[t];
                float *acc = &mm->y[i * mm->ldy + n];
                float p = sub.w_scale * mm->a8->s[at];
                *acc = fmaf(p, (float)isum, *acc);
                if (sub.has_min) *acc = fmaf(-sub.w_min, mm->a8->ssum[at], *acc);
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
