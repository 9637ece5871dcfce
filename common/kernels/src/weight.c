/* Packed weights: sizes, packing of file rows into panels (blocks: pack.c), and the way back. The layout is
 * drawn in internal.h. */
#include "internal.h"
#include "cw/bytes.h"
#include "cw/mem.h"

#include <string.h>

#define MAX_K ((int64_t)1 << 24)
#define MAX_N ((int64_t)1 << 31)

/* Bytes of a unit and values in it. */
static void unit_of(const cw_type_info *t, int *block, size_t *bytes)
{
    const cw_format *f = cw_format_get(t->type);
    *block = t->block;
    *bytes = f ? (size_t)cw_layout_of(cw_shape_of(f)).unit_bytes : (size_t)t->block_bytes * CW_PANEL_ROWS;
}

cw_status cw_weight_bytes(uint32_t type, int64_t n, int64_t k, size_t *bytes, cw_err *err)
{
    const cw_type_info *t = cw_type_get(type);
    if (!t)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "tensor type %u (%s) is not supported", (unsigned)type,
                       cw_type_name(type));
    if (n < 1 || n > MAX_N || k < 1 || k > MAX_K || k % t->block != 0)
        return CW_FAIL(err, CW_STATUS_INVALID,
                       "a %s matrix of %lld rows by %lld is not possible (rows are multiples of %d)", t->name,
                       (long long)n, (long long)k, (int)t->block);
    int block;
    size_t unit, total;
    unit_of(t, &block, &unit);
    if (!cw_mul_size(unit, (size_t)(k / block), &unit) ||
        !cw_mul_size(unit, (size_t)((n + CW_PANEL_ROWS - 1) / CW_PANEL_ROWS), &total))
        return CW_FAIL(err, CW_STATUS_INVALID, "a %s matrix of %lld by %lld is too large", t->name,
                       (long long)n, (long long)k);
    *bytes = total;
    return CW_OK;
}

cw_status cw_weight_init(cw_weight *w, uint32_t type, int64_t n, int64_t k, void *mem, cw_err *err)
{
    size_t bytes;
    CW_TRY(cw_weight_bytes(type, n, k, &bytes, err));
    CW_ASSERT((uintptr_t)mem % 64 == 0);
    *w = (cw_weight){.info = cw_type_get(type), .n = n, .k = k, .bytes = bytes, .data = mem};
    w->panel_bytes = bytes / (size_t)cw_weight_panels(w);
    return CW_OK;
}

static uint32_t word(const void *p)
{
    uint32_t u;
    memcpy(&u, p, 4);
    return u;
}
static void put_word(void *p, uint32_t u)
{
    memcpy(p, &u, 4);
}
static uint16_t half(const void *p)
{
    uint16_t u;
    memcpy(&u, p, 2);
    return u;
}
static void put_half(void *p, uint16_t u)
{
    memcpy(p, &u, 2);
}

/* 32 codes of lane r out of the planes at q; four codes at a time, each in its own byte. */
static void planes_get(const uint8_t *q, int bits, int r, uint8_t *code)
{
    const uint8_t *at = q + 4 * r;
    if (bits == 8) {
        for (int g = 0; g < 8; g++) memcpy(code + 4 * g, at + 64 * g, 4);
        return;
    }
    for (int g = 0; g < 8; g++) {
        uint32_t c = bits <= 3 ? word(at + 64 * (g / 4)) >> (2 * (g % 4)) & 0x03030303
                               : word(at + 64 * (g % 4)) >> (g < 4 ? 0 : 4) & 0x0f0f0f0f;
        if (bits == 3) c |= (word(at + 128) >> g & 0x01010101) << 2;
        if (bits == 5) c |= (word(at + 256) >> g & 0x01010101) << 4;
        if (bits == 6) c |= (word(at + 256 + 64 * (g / 4)) >> (2 * (g % 4)) & 0x03030303) << 4;
        put_word(code + 4 * g, c);
    }
}

/* The sub-block scales and minima of lane r; u: the unit. */
static void scales_get(const uint8_t *u, const cw_format *f, const cw_layout *l, int r, cw_block *b)
{
    const uint8_t *sc = u + l->sc + r;
    for (int s = 0; s < f->n_sub; s++) {
        if (f->sc_form == CW_SC_SIX) {
            int low = sc[16 * (s / 2)] >> (4 * (s % 2)) & 15,
                high = sc[128 + 16 * (s / 4)] >> (2 * (s % 4)) & 3;
            b->sc[s] = (uint8_t)((low | high << 4) - 32);
        } else if (f->sc_form == CW_SC_NIBBLES) {
            b->sc[s] = sc[16 * s] & 15;
            b->m[s] = sc[16 * s] >> 4;
        } else {
            b->sc[s] = sc[16 * s];
            if (f->min == CW_MIN_SUB) b->m[s] = u[l->m + 16 * s + r];
        }
    }
}

static void unit_get(const uint8_t *u, const cw_format *f, const cw_layout *l, int r, cw_block *b)
{
    if (f->words) {
        uint8_t file[256]; /* the block as a file holds it, d first where it is not among the words */
        int at = l->q ? 2 : 0;
        if (at) cw_store_u16(file, half(u + 2 * r));
        for (int i = 0; i < f->words; i++) memcpy(file + at + 4 * i, u + l->q + 64 * i + 4 * r, 4);
        f->split(file, b);
        return;
    }
    b->d = f->d_form == CW_D_E8M0 ? u[r] : half(u + 2 * r);
    if (f->min != CW_MIN_NONE) b->dmin = half(u + l->dmin + 2 * r);
    scales_get(u, f, l, r, b);
    for (int s = 0; s < f->block / 32; s++)
        planes_get(u + l->q + s * l->sub_bytes, f->bits, r, b->code + 32 * s);
}

static uint8_t *panel_of(const cw_weight *w, int64_t row)
{
    return w->data + (size_t)(row / CW_PANEL_ROWS) * w->panel_bytes;
}

void cw_panel_get(const cw_weight *w, const cw_format *f, int64_t row, int64_t unit, cw_block *b)
{
    cw_layout l = cw_layout_of(cw_shape_of(f));
    unit_get(panel_of(w, row) + unit * l.unit_bytes, f, &l, (int)(row % CW_PANEL_ROWS), b);
}

/* `good` receives, for each of the n rows, whether its values are finite. */
static void pack_float_panel(cw_weight *w, uint8_t *panel, int n, const uint8_t *src, size_t row_bytes,
                             bool *good)
{
    if (w->info->type == CW_TYPE_F32) {
        for (int64_t i = 0; i < w->k; i++, panel += 4 * CW_PANEL_ROWS, src += 4) {
            for (int r = 0; r < n; r++) {
                uint32_t v = cw_load_u32(src + (size_t)r * row_bytes);
                good[r] = good[r] && (v & 0x7f800000) != 0x7f800000;
                put_word(panel + 4 * r, v);
            }
        }
        return;
    }
    uint16_t exponent = w->info->type == CW_TYPE_F16 ? 0x7c00 : 0x7f80;
    for (int64_t i = 0; i < w->k; i++, panel += 2 * CW_PANEL_ROWS, src += 2) {
        for (int r = 0; r < n; r++) {
            uint16_t v = cw_load_u16(src + (size_t)r * row_bytes);
            good[r] = good[r] && (v & exponent) != exponent;
            put_half(panel + 2 * r, v);
        }
    }
}

cw_status cw_weight_pack(cw_weight *w, int64_t row0, int64_t n_rows, const void *gguf_rows, cw_err *err)
{
    CW_ASSERT(row0 >= 0 && n_rows >= 0 && row0 <= w->n - n_rows && row0 % CW_PANEL_ROWS == 0);
    CW_ASSERT(n_rows % CW_PANEL_ROWS == 0 || row0 + n_rows == w->n);
    const cw_format *f = cw_format_get(w->info->type);
    size_t row_bytes = (size_t)(w->k / w->info->block) * (size_t)w->info->block_bytes;
    const uint8_t *src = gguf_rows;
    for (int64_t row = row0; row < row0 + n_rows; row += CW_PANEL_ROWS, src += CW_PANEL_ROWS * row_bytes) {
        int64_t left = row0 + n_rows - row;
        int n = left < CW_PANEL_ROWS ? (int)left : CW_PANEL_ROWS;
        bool good[CW_PANEL_ROWS];
        for (int r = 0; r < n; r++) good[r] = true;
        /* Rows that fill the last panel are all zero bits: scale +0, which gives +0 whatever the codes. */
        if (n < CW_PANEL_ROWS) memset(panel_of(w, row), 0, w->panel_bytes);
        if (f)
            cw_pack_panel(f, panel_of(w, row), w->k / f->block, src, row_bytes, n, good);
        else
            pack_float_panel(w, panel_of(w, row), n, src, row_bytes, good);
        for (int r = 0; r < n; r++)
            if (!good[r])
                return CW_FAIL(err, CW_STATUS_FORMAT, "row %lld holds a %s that is not a finite number",
                               (long long)(row + r), f ? "scale" : "value");
    }
    return CW_OK;
}

void cw_weight_unpack_row(const cw_weight *w, int64_t row, void *gguf_row)
{
    CW_ASSERT(row >= 0 && row < w->n);
    const cw_format *f = cw_format_get(w->info->type);
    uint8_t *dst = gguf_row;
    if (f) {
        cw_block b = {0};
        for (int64_t i = 0; i < w->k / f->block; i++, dst += w->info->block_bytes) {
            cw_panel_get(w, f, row, i, &b);
            f->join(&b, dst);
        }
        return;
    }
    const uint8_t *p = panel_of(w, row);
    int64_t r = row % CW_PANEL_ROWS, size = w->info->block_bytes;
    for (int64_t i = 0; i < w->k; i++) {
        if (size == 4)
            cw_store_u32(dst + 4 * i, word(p + 4 * (CW_PANEL_ROWS * i + r)));
        else
            cw_store_u16(dst + 2 * i, half(p + 2 * (CW_PANEL_ROWS * i + r)));
    }
}

void cw_weight_row_f32(const cw_weight *w, int64_t row, float *y, void *scratch)
{
    cw_weight_unpack_row(w, row, scratch);
    w->info->to_f32(scratch, y, w->k);
}
