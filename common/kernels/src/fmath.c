/*
 * Elementary functions of our own. Single-precision exp is the scalar form of what the vector kernels do,
 * step by step; the double-precision ones make rope tables and use + - * / and bit operations only.
 */
#include "internal.h"
#include "cw/bytes.h"

#include <string.h>

float cw_expf(float x)
{
    /* n = x / ln 2 to the nearest integer, read from the low mantissa bits of t. */
    float t = fmaf(x, CW_EXP_LOG2E, CW_ROUND_MAGIC);
    float n = t - CW_ROUND_MAGIC;
    int32_t ni = (int32_t)(cw_f32_bits(t) - cw_f32_bits(CW_ROUND_MAGIC));
    float r = fmaf(-n, CW_EXP_LN2_HI, x);
    r = fmaf(-n, CW_EXP_LN2_LO, r);
    float p = CW_EXP_C4;
    p = fmaf(p, r, CW_EXP_C3);
    p = fmaf(p, r, CW_EXP_C2);
    p = fmaf(p, r, CW_EXP_C1);
    p = fmaf(p, r, CW_EXP_C0);
    p = fmaf(p, r * r, r) + 1.0f;
    /* 2^n in two factors, so that n = 128 is reached; unsigned, because NaN and overflow leave any bits here.
     */
    int32_t n1 = ni >> 1;
    uint32_t s1 = ((uint32_t)n1 + 127u) << 23, s2 = ((uint32_t)ni - (uint32_t)n1 + 127u) << 23;
    float y = p * cw_f32_from_bits(s1) * cw_f32_from_bits(s2);
    if (x < CW_EXP_MIN) y = 0.0f;
    if (x > CW_EXP_MAX) y = INFINITY;
    return x != x ? x : y;
}

float cw_sigmoidf(float x)
{
    return 1.0f / (1.0f + cw_expf(-x));
}

static double f64_from_bits(uint64_t u)
{
    double d;
    memcpy(&d, &u, 8);
    return d;
}
static uint64_t f64_bits(double d)
{
    uint64_t u;
    memcpy(&u, &d, 8);
    return u;
}

#define ROUND_MAGIC64 0x1.8p52

double cw_exp(double x)
{
    if (x != x) return x;
    if (x < -700.0) return 0.0;
    if (x > 700.0) return (double)INFINITY;
    double n = (x * 0x1.71547652b82fep+0 + ROUND_MAGIC64) - ROUND_MAGIC64;
    double r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
    /* Taylor to r^13 / 13!: below 2^-57 for |r| <= ln 2 / 2. */
    static const double inv_factorial[] = {1.0,
                                           1.0,
                                           1.0 / 2.0,
                                           1.0 / 6.0,
                                           1.0 / 24.0,
                                           1.0 / 120.0,
                                           1.0 / 720.0,
                                           1.0 / 5040.0,
                                           1.0 / 40320.0,
                                           1.0 / 362880.0,
                                           1.0 / 3628800.0,
                                           1.0 / 39916800.0,
                                           1.0 / 479001600.0,
                                           1.0 / 6227020800.0};
    double p = inv_factorial[13];
    for (int i = 12; i >= 2; i--) p = p * r + inv_factorial[i];
    p = 1.0 + (r + r * r * p);
    return p * f64_from_bits((uint64_t)((int64_t)n + 1023) << 52);
}

double cw_log(double x)
{
    if (!(x >= 0x1p-1022) || x > 0x1.fffffffffffffp+1023) return (double)NAN;
    uint64_t u = f64_bits(x);
    int e = (int)(u >> 52) - 1023;
    double m = f64_from_bits((u & 0xfffffffffffffu) | (uint64_t)1023 << 52); /* [1, 2) */
    if (m > 0x1.6a09e667f3bcdp+0) {
        m = m * 0.5;
        e++;
    }
    /* log m = 2 atanh(s) = 2 s + s (2/3 s^2 + 2/5 s^4 + ...), |s| <= 0.1716: the term of s^23 is below 2^-58.
     * With f = m - 1 exact, 2 s = f - s f: the large part carries no rounding of the division. */
    double f = m - 1.0, s = f / (m + 1.0), z = s * s, p = 0.0;
    for (int i = 23; i >= 3; i -= 2) p = (p + 2.0 / (double)i) * z;
    double tail = s * p - s * f;
    return (double)e * 0x1.62e42feep-1 + (f + (tail + (double)e * 0x1.a39ef35793c76p-33));
}

double cw_pow(double base, double e)
{
    return cw_exp(e * cw_log(base));
}

void cw_sincos(double x, double *sin_x, double *cos_x)
{
    if (!(x >= -0x1p27 && x <= 0x1p27)) {
        *sin_x = *cos_x = (double)NAN;
        return;
    }
    /* pi/2 in parts of 26 bits: their products with n (27 bits) are exact. */
    double n = (x * 0x1.45f306dc9c883p-1 + ROUND_MAGIC64) - ROUND_MAGIC64;
    double r =
        (((x - n * 0x1.921fb5p+0) - n * 0x1.110b46p-26) - n * 0x1.1a6262p-54) - n * 0x1.3145c06e0e689p-78;
    double z = r * r, s = 0.0, c = 0.0;
    /* Taylor series for |r| <= pi/4, to r^19 and r^18. */
    for (int i = 19; i >= 3; i -= 2) s = (1.0 - s) * z / (double)((i - 1) * i);
    for (int i = 18; i >= 4; i -= 2) c = (1.0 - c) * z / (double)((i - 1) * i);
    s = r - r * s;
    c = 1.0 - (z * 0.5 - z * 0.5 * c);
    switch ((int64_t)n & 3) {
    case 0: *sin_x = s, *cos_x = c; break;
    case 1: *sin_x = c, *cos_x = -s; break;
    case 2: *sin_x = -s, *cos_x = -c; break;
    default: *sin_x = -c, *cos_x = s; break;
    }
}
