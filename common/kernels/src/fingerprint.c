/*
 * The fingerprint: built-in rows through every type and operation, hashed. Two machines whose fingerprints
 * differ would not give the same rows, whatever the reason: a compiler, a flag, flush-to-zero, bad memory.
 */
#include "internal.h"
#include "cw/bytes.h"
#include "cw/mem.h"

#include <string.h>

enum { N = 37, K = 512, M = 5, ROW_BYTES_MAX = K * 4 };

static uint32_t next(uint64_t *state)
{
    /* A 64-bit linear congruential generator (Knuth's constants), upper half. */
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

static float next_float(uint64_t *state)
{
    /* [-1, 1) in steps of 2^-23, times 1, 2, 4 or 8: no rounding. */
    float f = (float)((int32_t)next(state) >> 8) * 0x1p-23f;
    return f * (float)(1 << (next(state) >> 30));
}

/* FNV-1a, 64 bit. */
static uint64_t hash(uint64_t h, const void *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) h = (h ^ ((const uint8_t *)p)[i]) * 0x100000001b3u;
    return h;
}

static uint64_t hash_floats(uint64_t h, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint8_t b[4];
        cw_store_u32(b, cw_f32_bits(x[i]));
        h = hash(h, b, 4);
    }
    return h;
}

static void make_row(const cw_type_info *t, uint8_t *dst, uint64_t *rng)
{
    const cw_format *f = cw_format_get(t->type);
    if (!f) {
        for (int i = 0; i < K; i++) {
            float v = next_float(rng);
            if (t->type == CW_TYPE_F32) cw_store_u32(dst + 4 * i, cw_f32_bits(v));
            if (t->type == CW_TYPE_F16) cw_store_u16(dst + 2 * i, cw_f32_to_f16(v));
            if (t->type == CW_TYPE_BF16) cw_store_u16(dst + 2 * i, (uint16_t)(cw_f32_bits(v) >> 16));
        }
        return;
    }
    for (int u = 0; u < K / f->block; u++) {
        cw_block b;
        b.d = (uint16_t)(next(rng) % 0x3000); /* finite; subnormals among them */
        b.dmin = (uint16_t)(next(rng) % 0x3000);
        for (int i = 0; i < 16; i++)
            b.sc[i] = (uint8_t)(next(rng) >> 24), b.m[i] = (uint8_t)(next(rng) >> 24);
        for (int i = 0; i < 256; i++) b.code[i] = (uint8_t)((next(rng) >> 24) & ((1 << f->bits) - 1));
        if (!f->signed_sc)
            for (int i = 0; i < 16; i++) b.sc[i] &= 63, b.m[i] &= 63;
        if (f->d_form == CW_D_E8M0) b.d = (uint16_t)(96 + b.d % 64);
        f->join(&b, dst + u * t->block_bytes);
    }
}

typedef struct {
    float x[M * K], y[M * K], z[K];
    uint16_t h[K];
    uint8_t row[N * ROW_BYTES_MAX];
} scratch;

static bool hash_matmul(const cw_kernels *kn, const cw_type_info *t, scratch *s, const cw_a8 *a8, uint64_t *h)
{
    uint64_t rng = 0x5eed + t->type;
    size_t row_bytes = (size_t)(K / t->block) * (size_t)t->block_bytes, bytes;
    for (int n = 0; n < N; n++) make_row(t, s->row + n * row_bytes, &rng);
    if (cw_weight_bytes(t->type, N, K, &bytes, NULL) != CW_OK) return false;
    void *mem = cw_aligned_calloc(bytes, 1);
    cw_weight w;
    bool good = mem && cw_weight_init(&w, t->type, N, K, mem, NULL) == CW_OK &&
                cw_weight_pack(&w, 0, N, s->row, NULL) == CW_OK;
    if (good) {
        cw_mm mm = {.w = &w, .a8 = a8, .f32 = s->x, .ldx = K, .m = M, .y = s->y, .ldy = N};
        cw_matmul(NULL, kn, &mm);
        *h = hash_floats(*h, s->y, M * N);
    }
    cw_free(mem);
    return good;
}

static uint64_t hash_attention(const cw_kernels *kn, scratch *s, uint64_t h)
{
    float o[2 * 64] = {0}, p[2 * 7], max;
    kn->f32_to_f16(s->h, s->x, K);
    for (int f16 = 0; f16 < 2; f16++) {
        uint32_t type = f16 ? CW_TYPE_F16 : CW_TYPE_F32;
        const void *cache = f16 ? (const void *)s->h : (const void *)s->x;
        kn->qk(p, 7, s->x + K, 64, 2, type, cache, 64, 7, 61, 0.125f);
        for (int i = 0; i < 2; i++) {
            float sum = kn->softmax_tile(p + 7 * i, 7, &max);
            h = hash_floats(hash_floats(h, &max, 1), &sum, 1);
        }
        kn->pv(o, 64, p, 7, 2, type, cache, 64, 7, 61);
    }
    kn->merge(o, 0.75f, s->x, 0.375f, 2 * 64);
    return hash_floats(hash_floats(h, p, 14), o, 2 * 64);
}

static uint64_t hash_ops(const cw_kernels *kn, scratch *s, uint64_t h)
{
    float v[2] = {kn->dot(s->x, s->x + K, K - 3), kn->sum(s->x, K - 5)};
    h = hash_floats(h, v, 2);
    kn->rms_norm(s->y, s->x, s->x + K, K, 1e-6f);
    h = hash_floats(h, s->y, K);
    kn->exp(s->y, s->x, K);
    h = hash_floats(h, s->y, K);
    kn->silu_mul(s->y, s->x, s->x + K, K);
    kn->add(s->y, s->x, K);
    h = hash_floats(h, s->y, K);
    h = hash_attention(kn, s, h);
    int8_t e;
    /* Scaled into f32's subnormals, so that flush-to-zero shows. */
    for (int i = 0; i < K; i++) s->z[i] = s->x[i] * 0x1p-130f;
    for (int pass = 0; pass < 2; pass++) {
        const float *src = pass ? s->z : s->x;
        if (!kn->row_to_f16(s->h, &e, src, K)) return 0;
        kn->row_from_f16(s->y, s->h, e, K);
        kn->combine_f16(s->y, 0.3f, s->h, e, K);
        kn->combine_f32(s->y, 0.7f, src, K);
        h = hash_floats(hash(h, &e, 1), s->y, K);
    }
    double sc[2], d[3] = {cw_exp(1.25), cw_log(10000.0), 0.0};
    cw_sincos(12345.678, &sc[0], &sc[1]);
    d[2] = sc[0] * sc[1];
    for (int i = 0; i < 3; i++) {
        uint64_t u;
        uint8_t b[8];
        memcpy(&u, &d[i], 8);
        cw_store_u64(b, u);
        h = hash(h, b, 8);
    }
    return h;
}

uint64_t cw_kernels_fingerprint(const cw_kernels *kn)
{
    uint64_t h = 0xcbf29ce484222325u, rng = CW_ARITHMETIC_ID;
    size_t bytes;
    bool good = cw_a8_bytes(M, K, &bytes);
    scratch *s = cw_calloc(1, sizeof *s);
    void *mem = cw_aligned_calloc(bytes, 1);
    good = good && s && mem;
    if (good) {
        cw_a8 a8;
        for (int i = 0; i < M * K; i++) s->x[i] = next_float(&rng);
        cw_a8_init(&a8, M, K, mem);
        good = cw_a8_quantise_rows(NULL, kn, &a8, s->x, K, M);
        h = hash(h, a8.q, M * K);
        h = hash_floats(h, a8.ssum, M * K / 32);
        for (size_t i = 0; good && cw_type_at(i); i++) good = hash_matmul(kn, cw_type_at(i), s, &a8, &h);
        if (good) h = hash_ops(kn, s, h);
    }
    cw_free(s);
    cw_free(mem);
    return good ? h : 0;
}
