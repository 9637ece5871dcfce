/* Little-endian loads and stores at any alignment, and f16/bf16 <-> f32 by bit operations (exact, all platforms). */
#pragma once
#include <stdint.h>
#include <string.h>

static inline uint16_t cw_load_u16(const void *p) { const uint8_t *b = p; return (uint16_t)(b[0] | b[1] << 8); }
static inline uint32_t cw_load_u32(const void *p)
{
    const uint8_t *b = p;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}
static inline uint64_t cw_load_u64(const void *p)
{
    return (uint64_t)cw_load_u32(p) | (uint64_t)cw_load_u32((const uint8_t *)p + 4) << 32;
}
static inline void cw_store_u16(void *p, uint16_t v) { uint8_t *b = p; b[0] = (uint8_t)v; b[1] = (uint8_t)(v >> 8); }
static inline void cw_store_u32(void *p, uint32_t v)
{
    uint8_t *b = p;
    for (int i = 0; i < 4; i++) b[i] = (uint8_t)(v >> (8 * i));
}
static inline void cw_store_u64(void *p, uint64_t v)
{
    uint8_t *b = p;
    for (int i = 0; i < 8; i++) b[i] = (uint8_t)(v >> (8 * i));
}

static inline float cw_f32_from_bits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t cw_f32_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

/* IEEE binary16 -> binary32, exact, subnormals and infinities included. */
static inline float cw_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = (h >> 10) & 31, man = h & 0x3ff;
    if (exp == 31) return cw_f32_from_bits(sign | 0x7f800000 | man << 13);
    if (exp) return cw_f32_from_bits(sign | (exp + 112) << 23 | man << 13);
    /* subnormal: man * 2^-24, exact in binary32 */
    float f = (float)man * 0x1p-24f;
    return cw_f32_from_bits(sign | cw_f32_bits(f));
}

/* binary32 -> binary16, round to nearest even, subnormals kept, overflow to infinity. */
static inline uint16_t cw_f32_to_f16(float f)
{
    uint32_t u = cw_f32_bits(f), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
    if (a >= 0x7f800000) return (uint16_t)(sign | 0x7c00 | (a > 0x7f800000 ? 0x200 : 0));
    if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* >= 65520 rounds to infinity */
    if (a < 0x33000001) return (uint16_t)sign;             /* <= 2^-25 rounds to zero */
    uint32_t exp = a >> 23, man = (a & 0x7fffff) | 0x800000, shift = exp < 113 ? 126 - exp : 13;
    uint32_t half = 1u << (shift - 1), rest = man & ((1u << shift) - 1), q = man >> shift;
    if (rest > half || (rest == half && (q & 1))) q++;
    /* In a normal result the hidden bit of q adds one to the exponent field; a carry does the same. */
    uint32_t out = exp < 113 ? q : ((exp - 113) << 10) + q;
    return (uint16_t)(sign | out);
}

static inline float cw_bf16_to_f32(uint16_t h) { return cw_f32_from_bits((uint32_t)h << 16); }
