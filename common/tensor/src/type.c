/*
 * The type table, and dequantisation of file rows.
 *
 * Dequantised values: every product below is exact in f32 (11-bit scale, at most 8-bit sub-scale and code),
 * so a value is rounded once, where a minimum is added.
 */
#include "cw/block.h"
#include "cw/bytes.h"
#include "cw/mem.h"
#include "cw/type.h"

static void f32_to_f32(const void *src, float *dst, int64_t k)
{
    const uint8_t *p = src;
    for (int64_t i = 0; i < k; i++) dst[i] = cw_f32_from_bits(cw_load_u32(p + 4 * i));
}

static void f16_to_f32(const void *src, float *dst, int64_t k)
{
    const uint8_t *p = src;
    for (int64_t i = 0; i < k; i++) dst[i] = cw_f16_to_f32(cw_load_u16(p + 2 * i));
}

static void bf16_to_f32(const void *src, float *dst, int64_t k)
{
    const uint8_t *p = src;
    for (int64_t i = 0; i < k; i++) dst[i] = cw_bf16_to_f32(cw_load_u16(p + 2 * i));
}

static void block_to_f32(const cw_format *f, const cw_block *b, float *dst)
{
    cw_values v;
    cw_block_values(f, b, &v);
    for (int i = 0; i < f->block; i++) {
        int sub = i / v.per_sub;
        float y = v.d * (float)v.sc[sub] * (float)v.v[i];
        if (v.has_min) y = y - v.dmin * (float)v.m[sub];
        dst[i] = y;
    }
}

static void blocks_to_f32(uint32_t type, int block_bytes, const void *src, float *dst, int64_t k)
{
    const cw_format *f = cw_format_get(type);
    cw_block b = {0};
    for (int64_t i = 0; i < k / f->block; i++) {
        f->split((const uint8_t *)src + i * block_bytes, &b);
        block_to_f32(f, &b, dst + i * f->block);
    }
}

#define BLOCK_TYPE(name, bytes)                                                                              \
    static void name##_to_f32(const void *src, float *dst, int64_t k)                                        \
    {                                                                                                        \
        blocks_to_f32(CW_TYPE_##name, bytes, src, dst, k);                                                   \
    }
BLOCK_TYPE(Q4_0, 18)
BLOCK_TYPE(Q4_1, 20)
BLOCK_TYPE(Q5_0, 22)
BLOCK_TYPE(Q5_1, 24)
BLOCK_TYPE(Q8_0, 34)
BLOCK_TYPE(IQ4_NL, 18)
BLOCK_TYPE(MXFP4, 17)
BLOCK_TYPE(Q2_K, 84)
BLOCK_TYPE(Q3_K, 110)
BLOCK_TYPE(IQ4_XS, 136)
BLOCK_TYPE(Q4_K, 144)
BLOCK_TYPE(IQ1_S, 50)
BLOCK_TYPE(IQ1_M, 56)
BLOCK_TYPE(IQ2_XXS, 66)
BLOCK_TYPE(IQ2_XS, 74)
BLOCK_TYPE(IQ2_S, 82)
BLOCK_TYPE(IQ3_XXS, 98)
BLOCK_TYPE(IQ3_S, 110)
BLOCK_TYPE(Q5_K, 176)
BLOCK_TYPE(Q6_K, 210)

static const cw_type_info infos[] = {
    {CW_TYPE_F32, "F32", 1, 4, false, f32_to_f32},
    {CW_TYPE_F16, "F16", 1, 2, false, f16_to_f32},
    {CW_TYPE_BF16, "BF16", 1, 2, false, bf16_to_f32},
    {CW_TYPE_Q8_0, "Q8_0", 32, 34, true, Q8_0_to_f32},
    {CW_TYPE_Q4_0, "Q4_0", 32, 18, true, Q4_0_to_f32},
    {CW_TYPE_Q4_1, "Q4_1", 32, 20, true, Q4_1_to_f32},
    {CW_TYPE_Q5_0, "Q5_0", 32, 22, true, Q5_0_to_f32},
    {CW_TYPE_Q5_1, "Q5_1", 32, 24, true, Q5_1_to_f32},
    {CW_TYPE_IQ4_NL, "IQ4_NL", 32, 18, true, IQ4_NL_to_f32},
    {CW_TYPE_MXFP4, "MXFP4", 32, 17, true, MXFP4_to_f32},
    {CW_TYPE_Q2_K, "Q2_K", 256, 84, true, Q2_K_to_f32},
    {CW_TYPE_Q3_K, "Q3_K", 256, 110, true, Q3_K_to_f32},
    {CW_TYPE_Q4_K, "Q4_K", 256, 144, true, Q4_K_to_f32},
    {CW_TYPE_Q5_K, "Q5_K", 256, 176, true, Q5_K_to_f32},
    {CW_TYPE_Q6_K, "Q6_K", 256, 210, true, Q6_K_to_f32},
    {CW_TYPE_IQ4_XS, "IQ4_XS", 256, 136, true, IQ4_XS_to_f32},
    {CW_TYPE_IQ1_S, "IQ1_S", 256, 50, true, IQ1_S_to_f32},
    {CW_TYPE_IQ1_M, "IQ1_M", 256, 56, true, IQ1_M_to_f32},
    {CW_TYPE_IQ2_XXS, "IQ2_XXS", 256, 66, true, IQ2_XXS_to_f32},
    {CW_TYPE_IQ2_XS, "IQ2_XS", 256, 74, true, IQ2_XS_to_f32},
    {CW_TYPE_IQ2_S, "IQ2_S", 256, 82, true, IQ2_S_to_f32},
    {CW_TYPE_IQ3_XXS, "IQ3_XXS", 256, 98, true, IQ3_XXS_to_f32},
    {CW_TYPE_IQ3_S, "IQ3_S", 256, 110, true, IQ3_S_to_f32},
};

/* Every number the format defines and has not withdrawn. */
static const struct {
    uint32_t type;
    const char *name;
    int32_t block, block_bytes;
} known[] = {
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},      {3, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},      {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},
    {10, "Q2_K", 256, 84},    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74},
    {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},   {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},
    {22, "IQ2_S", 256, 82},   {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
    {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56},
    {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},   {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},
};

const cw_type_info *cw_type_get(uint32_t gguf_type)
{
    for (size_t i = 0; i < CW_ARRAY_LEN(infos); i++)
        if (infos[i].type == gguf_type) return &infos[i];
    return NULL;
}

const cw_type_info *cw_type_at(size_t i)
{
    return i < CW_ARRAY_LEN(infos) ? &infos[i] : NULL;
}

const char *cw_type_name(uint32_t gguf_type)
{
    for (size_t i = 0; i < CW_ARRAY_LEN(known); i++)
        if (known[i].type == gguf_type) return known[i].name;
    return "unknown";
}

bool cw_type_extent(uint32_t gguf_type, int32_t *block, int32_t *block_bytes)
{
    for (size_t i = 0; i < CW_ARRAY_LEN(known); i++) {
        if (known[i].type != gguf_type) continue;
        *block = known[i].block;
        *block_bytes = known[i].block_bytes;
        return true;
    }
    return false;
}

bool cw_type_row_bytes(uint32_t gguf_type, int64_t k, size_t *bytes)
{
    int32_t block, block_bytes;
    if (!cw_type_extent(gguf_type, &block, &block_bytes) || k <= 0 || k % block != 0) return false;
    return cw_mul_size((size_t)(k / block), (size_t)block_bytes, bytes);
}

void cw_type_quantise_q8_0(const float *src, void *dst, int64_t k)
{
    uint8_t *p = dst;
    for (int64_t b = 0; b < k / 32; b++, src += 32, p += 34) {
        float amax = 0;
        for (int i = 0; i < 32; i++) {
            float a = src[i] < 0 ? -src[i] : src[i];
            if (a > amax) amax = a;
        }
        uint16_t h = cw_f32_to_f16(amax / 127.0f);
        if ((h & 0x7c00) == 0x7c00) h = 0x7bff; /* a scale stays finite; the values saturate */
        float d = cw_f16_to_f32(h);
        cw_store_u16(p, h);
        for (int i = 0; i < 32; i++) {
            float v = d > 0 ? src[i] / d : 0.0f;
            v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
            /* Adding and taking away 1.5 * 2^23 rounds to the nearest integer, ties to even. */
            float r = v + 0x1.8p23f;
            p[2 + i] = (uint8_t)(int8_t)(r - 0x1.8p23f);
        }
    }
}
