/*
 * Advanced SIMD of 64-bit ARM with the dot-product instructions (Armv8.2): a quarter of a panel at a time.
 * Compiled with those flags only, and once more without them by neon_v80.c; dispatch.c asks the system. All
 * codes are below 128 or taken as int8, so the signed dot product serves every type.
 */
#include "internal.h"
#include "ref.h"
#include "cw/bytes.h"

#include <arm_neon.h>
#include <string.h>

#if !defined(NEON_TABLE)
#define NEON_TABLE cw_kernels_neon
#endif
#define ALWAYS_INLINE inline __attribute__((always_inline))

/* clang-format off: a verb a line */
/* 16 f32 lanes in four registers, in order. */
typedef struct {
    float32x4_t v[4];
} v16;
#define OPS(name) neon_##name
enum { QK_H = 2, QK_K = 1, PV_H = 2, PV_R = 2 };

#define EACH(expr)                                                                                           \
    v16 r_;                                                                                                  \
    _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) r_.v[i] = (expr);                                    \
    return r_
static inline v16 v16_set1(float x)
{
    EACH(vdupq_n_f32(x));
}
static inline v16 v16_zero(void)
{
    return v16_set1(0.0f);
}
static inline v16 v16_load(const float *p)
{
    EACH(vld1q_f32(p + 4 * i));
}
static inline v16 v16_load_n(const float *p, int n)
{
    float t[16] = {0};
    memcpy(t, p, (size_t)n * 4);
    return v16_load(t);
}
static inline void v16_store(float *p, v16 x)
{
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
}
static inline void v16_store_n(float *p, v16 x, int n)
{
    float t[16];
    v16_store(t, x);
    memcpy(p, t, (size_t)n * 4);
}
static inline float32x4_t halves(const void *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
static inline v16 v16_from_i8(const int8_t *p)
{
    int8x16_t b = vld1q_s8(p);
    int16x8_t lo = vmovl_s8(vget_low_s8(b)), hi = vmovl_s8(vget_high_s8(b));
    return (v16){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(lo))),
                  vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(hi)))}};
}
static inline v16 v16_from_f16(const uint16_t *p)
{
    EACH(halves(p + 4 * i));
}
static inline v16 v16_from_f16_n(const uint16_t *p, int n)
{
    uint16_t t[16] = {0};
    memcpy(t, p, (size_t)n * 2);
    return v16_from_f16(t);
}
static inline void v16_to_f16(uint16_t *p, v16 x)
{
    for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
static inline void v16_to_f16_n(uint16_t *p, v16 x, int n)
{
    uint16_t t[16];
    v16_to_f16(t, x);
    memcpy(p, t, (size_t)n * 2);
}
static inline v16 v16_add(v16 x, v16 y)
{
    EACH(vaddq_f32(x.v[i], y.v[i]));
}
static inline v16 v16_sub(v16 x, v16 y)
{
    EACH(vsubq_f32(x.v[i], y.v[i]));
}
static inline v16 v16_mul(v16 x, v16 y)
{
    EACH(vmulq_f32(x.v[i], y.v[i]));
}
static inline v16 v16_div(v16 x, v16 y)
{
    EACH(vdivq_f32(x.v[i], y.v[i]));
}
static inline v16 v16_abs(v16 x)
{
    EACH(vabsq_f32(x.v[i]));
}
static inline v16 v16_fma(v16 x, v16 y, v16 z)
{
    EACH(vfmaq_f32(z.v[i], x.v[i], y.v[i]));
}
static inline v16 v16_fnma(v16 x, v16 y, v16 z)
{
    EACH(vfmsq_f32(z.v[i], x.v[i], y.v[i]));
}
/* Not vmaxq_f32, which orders zeros and passes NaNs. */
static inline float32x4_t max4(float32x4_t a, float32x4_t b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
static inline v16 v16_max(v16 x, v16 y)
{
    EACH(max4(x.v[i], y.v[i]));
}

static inline float v16_fold_add(v16 x)
{
    float32x4_t h = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
    float32x2_t t = vadd_f32(vget_low_f32(h), vget_high_f32(h));
    return vget_lane_f32(t, 0) + vget_lane_f32(t, 1);
}
static inline void store_folds(float *s, int64_t lds, v16 acc[QK_H][QK_K], float scale)
{
    for (int h = 0; h < QK_H; h++)
        for (int j = 0; j < QK_K; j++) s[h * lds + j] = scale * v16_fold_add(acc[h][j]);
}
static inline float v16_fold_max(v16 x)
{
    float32x4_t h = max4(max4(x.v[0], x.v[2]), max4(x.v[1], x.v[3]));
    float32x4_t t = max4(h, vextq_f32(h, h, 2));
    float a = vgetq_lane_f32(t, 0), b = vgetq_lane_f32(t, 1);
    return a > b ? a : b;
}

static inline void v16_pow2_of_magic(v16 t, v16 *s1, v16 *s2)
{
    int32x4_t magic = vreinterpretq_s32_f32(vdupq_n_f32(CW_ROUND_MAGIC)), bias = vdupq_n_s32(127);
    for (int i = 0; i < 4; i++) {
        int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(t.v[i]), magic), n1 = vshrq_n_s32(n, 1);
        s1->v[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n1, bias), 23));
        s2->v[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vsubq_s32(n, n1), bias), 23));
    }
}
static inline float32x4_t exp_limits4(float32x4_t x, float32x4_t y)
{
    y = vbslq_f32(vcltq_f32(x, vdupq_n_f32(CW_EXP_MIN)), vdupq_n_f32(0.0f), y);
    return vbslq_f32(vcgtq_f32(x, vdupq_n_f32(CW_EXP_MAX)), vdupq_n_f32(INFINITY), y);
}
static inline v16 v16_exp_limits(v16 x, v16 y)
{
    EACH(exp_limits4(x.v[i], y.v[i]));
}

static inline bool v16_finite(v16 x)
{
    uint32x4_t good = vdupq_n_u32(UINT32_MAX);
    for (int i = 0; i < 4; i++) good = vandq_u32(good, vcaleq_f32(x.v[i], vdupq_n_f32(0x1.fffffep127f)));
    return vminvq_u32(good) != 0;
}

static inline int32_t to_i8(int8_t *q, v16 x)
{
    int32x4_t a = vcvtq_s32_f32(x.v[0]), b = vcvtq_s32_f32(x.v[1]);
    int32x4_t c = vcvtq_s32_f32(x.v[2]), d = vcvtq_s32_f32(x.v[3]);
    int16x8_t lo = vcombine_s16(vmovn_s32(a), vmovn_s32(b)), hi = vcombine_s16(vmovn_s32(c), vmovn_s32(d));
    vst1q_s8(q, vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
    return vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
}
static inline void v16_to_i8(int8_t *q, v16 lo, v16 hi, int32_t *sum_lo, int32_t *sum)
{
    *sum_lo = to_i8(q, lo);
    *sum = *sum_lo + to_i8(q + 16, hi);
}

/* clang-format on */
#include "simd_ops.inc.h"

/* clang-format off */
/* The matrix products. */
#define MATMUL(name) neon_matmul_##name
enum { LANES = 4, Q_STRIPS = 2, Q_STRIPS_ONE = 2, Q_ROWS = 4, F_STRIPS = 2, F_ROWS = 8, PREFETCH_BYTES = 1024 };
typedef float32x4_t vf;
typedef int32x4_t vi;

static inline uint8x16_t u8(vi v) { return vreinterpretq_u8_s32(v); }
static inline uint16x8_t u16(vi v) { return vreinterpretq_u16_s32(v); }
static inline vi of_u8(uint8x16_t v) { return vreinterpretq_s32_u8(v); }
static inline vi of_u16(uint16x8_t v) { return vreinterpretq_s32_u16(v); }

static inline vf vf_zero(void) { return vdupq_n_f32(0.0f); }
static inline vf vf_set1(float x) { return vdupq_n_f32(x); }
static inline vf vf_load(const void *p) { return vld1q_f32(p); }
static inline void vf_store_n(float *p, vf v, int n)
{
    if (n == 4) {
        vst1q_f32(p, v);
        return;
    }
    float t[4];
    vst1q_f32(t, v);
    memcpy(p, t, (size_t)n * 4);
}
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf vf_fnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
static inline vf vf_from_i32(vi v) { return vcvtq_f32_s32(v); }
static inline vf vf_f16(const void *p) { return halves(p); }
static inline vf vf_bf16(const void *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline uint8x8_t four_bytes(const void *p) { return vcreate_u8(cw_load_u32(p)); }
static inline vf vf_u8(const void *p) { return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four_bytes(p))))); }
static inline vf vf_cast(vi v) { return vreinterpretq_f32_s32(v); }
static inline vi vi_u8(const void *p) { return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four_bytes(p))))); }
static inline vi vi_set1_i32(int32_t v) { return vdupq_n_s32(v); }
static ALWAYS_INLINE vi vi_shl32(vi v, int n) { return vshlq_s32(v, vdupq_n_s32(n)); }
static ALWAYS_INLINE vi vi_shr32(vi v, int n)
{
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-n)));
}
static inline vi vi_i8(const void *p)
{
    return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(four_bytes(p)))));
}
static inline vi vi_load(const void *p) { return of_u8(vld1q_u8(p)); }
static inline vi vi_and(vi a, vi b) { return vandq_s32(a, b); }
static inline vi vi_or(vi a, vi b) { return vorrq_s32(a, b); }
static inline vi vi_xor(vi a, vi b) { return veorq_s32(a, b); }
static inline vi vi_set1_8(char c) { return of_u8(vdupq_n_u8((uint8_t)c)); }
static inline vi vi_add32(vi a, vi b) { return vaddq_s32(a, b); }
static inline vi vi_add8(vi a, vi b) { return of_u8(vaddq_u8(u8(a), u8(b))); }
static ALWAYS_INLINE vi vi_negated(vi v, vi signs, const int h)
{
    const uint8x16_t spread = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
    const uint8x16_t bits = u8(vdupq_n_s32(h ? (int32_t)0x80402010 : 0x08040201));
    uint8x16_t is = vtstq_u8(vqtbl1q_u8(u8(signs), spread), bits);
    return of_u8(vsubq_u8(veorq_u8(u8(v), is), is));
}
static inline vi vi_gather4(const int8_t *p, vi v)
{
    int32_t at[4];
    uint32_t r[4];
    vst1q_s32(at, v);
    for (int i = 0; i < 4; i++) r[i] = cw_load_u32((const uint8_t *)p + 4 * at[i]);
    return vreinterpretq_s32_u32(vld1q_u32(r));
}
static inline void vi_gather8(const int8_t *p, vi v, vi *out)
{
    int32_t at[4];
    vst1q_s32(at, v);
    int32x4_t a = vreinterpretq_s32_s8(vcombine_s8(vld1_s8(p + 8 * at[0]), vld1_s8(p + 8 * at[1])));
    int32x4_t b = vreinterpretq_s32_s8(vcombine_s8(vld1_s8(p + 8 * at[2]), vld1_s8(p + 8 * at[3])));
    out[0] = vuzp1q_s32(a, b);
    out[1] = vuzp2q_s32(a, b);
}
static inline vi vi_mul32(vi a, vi b) { return vmulq_s32(a, b); }
static ALWAYS_INLINE vi vi_shl(vi v, int n) { return of_u16(vshlq_u16(u16(v), vdupq_n_s16((int16_t)n))); }
static ALWAYS_INLINE vi vi_shr(vi v, int n) { return of_u16(vshlq_u16(u16(v), vdupq_n_s16((int16_t)-n))); }
static inline vi vi_lut_load(const int8_t *lut, bool sgn)
{
    (void)sgn; /* always as int8, see SIGNED_CODES */
    return vreinterpretq_s32_s8(vld1q_s8(lut));
}
static inline vi vi_lut(vi table, vi v) { return of_u8(vqtbl1q_u8(u8(table), u8(v))); }

#define SIGNED_CODES(bits, lut) ((bits) >= 7 || (lut))

typedef vi vq;
static inline vi vi_set1_32(const int8_t *p) { return vreinterpretq_s32_u32(vdupq_n_u32(cw_load_u32(p))); }
static inline vq vq_begin(int32_t init) { return vdupq_n_s32(init); }
static inline vi vq_end(vq q) { return q; }
static ALWAYS_INLINE vq vq_add(vq q, vi w, vi x, int g, int bits, bool sgn)
{
    (void)g, (void)bits, (void)sgn;
    int8x16_t a = vreinterpretq_s8_s32(w), b = vreinterpretq_s8_s32(x);
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(q, a, b);
#else
    /* Two products fit 16 bits, as no x is -128: 2 * 128 * 127 = 32512. */
    return vpadalq_s16(q, vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b)));
#endif
}

/* clang-format on */
#include "simd_matmul.inc.h"

const cw_kernels NEON_TABLE = {
    .isa = CW_ISA_NEON,
    .name = "neon",
    .matmul = MATMUL(any),
    OPS_TABLE,
};
