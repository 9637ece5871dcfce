/* A8 activations: memory, views, rows received from outside. The quantiser itself is in the kernel table. */
#include "cw/a8.h"
#include "cw/bytes.h"
#include "cw/mem.h"

#include <string.h>

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

bool cw_a8_bytes(int64_t m, int64_t k, size_t *bytes)
{
    size_t q, total;
    if (m < 0 || m > INT32_MAX || k <= 0 || k % 32 != 0 || k > INT64_C(1) << 40) return false;
    /* 1 byte of q and 4 * 4 / 32 bytes of the other arrays for each value, and room to align the five arrays.
     */
    if (!cw_mul_size((size_t)m, (size_t)k, &q) || !cw_add_size(q, q / 2 + 5 * 64, &total)) return false;
    *bytes = total;
    return true;
}

void cw_a8_init(cw_a8 *a, int32_t m, int64_t k, void *mem)
{
    CW_ASSERT(m >= 0 && k > 0 && k % 32 == 0 && (uintptr_t)mem % 64 == 0);
    size_t q_bytes = align64((size_t)m * (size_t)k), blocks_bytes = align64((size_t)m * (size_t)(k / 32) * 4);
    uint8_t *p = mem;
    *a = (cw_a8){.m = m, .k = k, .ld = k};
    a->q = (int8_t *)p;
    p += q_bytes;
    a->s = (float *)(void *)p;
    p += blocks_bytes;
    a->sum = (int32_t *)(void *)p;
    p += blocks_bytes;
    a->lo = (int32_t *)(void *)p;
    p += blocks_bytes;
    a->ssum = (float *)(void *)p;
}

cw_a8 cw_a8_view(const cw_a8 *a, int32_t row0, int32_t m, int64_t k0, int64_t k)
{
    CW_ASSERT(row0 >= 0 && m >= 0 && row0 <= a->m - m);
    CW_ASSERT(k0 >= 0 && k > 0 && k0 % 32 == 0 && k % 32 == 0 && k0 <= a->k - k);
    int64_t block = (row0 * a->ld + k0) / 32;
    return (cw_a8){.m = m,
                   .k = k,
                   .ld = a->ld,
                   .q = a->q + row0 * a->ld + k0,
                   .s = a->s + block,
                   .sum = a->sum + block,
                   .lo = a->lo + block,
                   .ssum = a->ssum + block};
}

bool cw_a8_set_row(cw_a8 *a, int32_t row, const void *q, const void *s)
{
    CW_ASSERT(row >= 0 && row < a->m);
    const int8_t *src = q;
    int64_t at = row * (a->ld / 32), n = a->k / 32;
    int8_t *dst = cw_a8_q(a, row);
    bool good = true;
    for (int64_t b = 0; b < n && good; b++) {
        uint32_t bits = cw_load_u32((const uint8_t *)s + 4 * b);
        good = bits < 0x7f800000; /* finite, sign clear */
        int32_t lo = 0, hi = 0;
        for (int i = 0; i < 16; i++) {
            int8_t u = src[32 * b + i], v = src[32 * b + 16 + i];
            good = good && u != -128 && v != -128;
            lo += u;
            hi += v;
        }
        a->s[at + b] = cw_f32_from_bits(bits);
        a->lo[at + b] = lo;
        a->sum[at + b] = lo + hi;
        a->ssum[at + b] = a->s[at + b] * (float)(lo + hi);
    }
    if (good) {
        memcpy(dst, src, (size_t)a->k);
        return true;
    }
    memset(dst, 0, (size_t)a->k);
    memset(a->s + at, 0, (size_t)n * 4);
    memset(a->sum + at, 0, (size_t)n * 4);
    memset(a->lo + at, 0, (size_t)n * 4);
    memset(a->ssum + at, 0, (size_t)n * 4);
    return false;
}

void cw_a8_copy_row(cw_a8 *dst, int32_t dst_row, const cw_a8 *src, int32_t src_row)
{
    CW_ASSERT(dst->k == src->k && dst_row >= 0 && dst_row < dst->m && src_row >= 0 && src_row < src->m);
    int64_t d = dst_row * (dst->ld / 32), s = src_row * (src->ld / 32);
    size_t bytes = (size_t)(src->k / 32) * 4;
    memcpy(cw_a8_q(dst, dst_row), cw_a8_q(src, src_row), (size_t)src->k);
    memcpy(dst->s + d, src->s + s, bytes);
    memcpy(dst->sum + d, src->sum + s, bytes);
    memcpy(dst->lo + d, src->lo + s, bytes);
    memcpy(dst->ssum + d, src->ssum + s, bytes);
}

void cw_a8_row_f32(const cw_a8 *a, int32_t row, float *y)
{
    const int8_t *q = cw_a8_q(a, row);
    const float *s = cw_a8_s(a, row);
    for (int64_t i = 0; i < a->k; i++) y[i] = s[i / 32] * (float)q[i];
}
