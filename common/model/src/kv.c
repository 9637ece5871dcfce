/* See kv.h. Any thread. */
#include "kv.h"

#include <math.h>

static size_t padded(int width)
{
    return ((size_t)width + 31) / 32 * 32;
}

size_t cw_kv_row_bytes(cw_kv_type type, int width)
{
    CW_ASSERT(type != CW_KV_AUTO);
    if (type == CW_KV_Q8) return padded(width) / 32 * 36;
    return (size_t)width * (type == CW_KV_F32 ? 4 : 2);
}

static float *scales(const cw_kv *kv, uint8_t *row)
{
    return (float *)(void *)(row + padded(kv->width));
}

/* n values, a multiple of 32 and at most AT_ONCE, from value `at` on. */
enum { AT_ONCE = 512 };
static bool put_blocks(const cw_kernels *kn, const cw_kv *kv, uint8_t *row, int at, const float *x, int n)
{
    int32_t sum[AT_ONCE / 32], lo[AT_ONCE / 32]; /* what A8 derives for products is of no use here */
    float ssum[AT_ONCE / 32];
    cw_a8 a = {.m = 1,
               .k = n,
               .ld = n,
               .q = (int8_t *)row + at,
               .s = scales(kv, row) + at / 32,
               .sum = sum,
               .lo = lo,
               .ssum = ssum};
    return kn->a8_quantise(&a, 0, x);
}

static void put_q8(const cw_kernels *kn, const cw_kv *kv, uint8_t *row, const float *x)
{
    bool finite = true;
    int whole = kv->width / 32 * 32;
    for (int at = 0; at < whole; at += AT_ONCE)
        finite &= put_blocks(kn, kv, row, at, x + at, whole - at < AT_ONCE ? whole - at : AT_ONCE);
    if (whole < kv->width) {
        float tail[32] = {0};
        memcpy(tail, x + whole, (size_t)(kv->width - whole) * sizeof *x);
        finite &= put_blocks(kn, kv, row, whole, tail, 32);
    }
    /* A8 makes a block of zeros where a value is not finite; f32 and f16 keep it, and the pass fails by it.
     */
    for (size_t b = 0; !finite && b < padded(kv->width) / 32; b++) scales(kv, row)[b] = NAN;
}

void cw_kv_put(const cw_kernels *kn, const cw_kv *kv, uint8_t *row, const float *x)
{
    switch (kv->type) {
    case CW_KV_F32: memcpy(row, x, (size_t)kv->width * sizeof *x); break;
    case CW_KV_F16: kn->f32_to_f16((uint16_t *)(void *)row, x, kv->width); break;
    case CW_KV_Q8: put_q8(kn, kv, row, x); break;
    case CW_KV_AUTO: CW_ASSERT(!"a cache has a type");
    }
}

void cw_kv_get(const cw_kernels *kn, const cw_kv *kv, const uint8_t *row, int at, int n, float *y)
{
    switch (kv->type) {
    case CW_KV_F32: memcpy(y, row + (size_t)at * 4, (size_t)n * sizeof *y); break;
    case CW_KV_F16: kn->f16_to_f32(y, (const uint16_t *)(const void *)row + at, n); break;
    case CW_KV_Q8: {
        int first = at / 32 * 32, last = (at + n + 31) / 32 * 32;
        const float *s = (const float *)(const void *)(row + padded(kv->width));
        kn->a8_to_f32(y, (const int8_t *)row + first, s + first / 32, last - first);
        break;
    }
    case CW_KV_AUTO: CW_ASSERT(!"a cache has a type");
    }
}
