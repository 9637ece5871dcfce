/* See rope.h. YaRN: Peng et al. 2023, section 3.2 ("NTK-by-
 * parts"), with the constants of DeepSeek's published code. */
#include "rope.h"
#include "cw/fmath.h"

#include <math.h>

enum { BETA_FAST = 32, BETA_SLOW = 1 };

/* The dimension whose wave turns `rotations` times within the original context. */
static double correction_dim(const cw_model_config *c, double rotations)
{
    const double two_pi = 6.283185307179586;
    return c->d_rope * cw_log(c->rope_orig_ctx / (rotations * two_pi)) / (2 * cw_log(c->rope_base));
}

void cw_rope_frequencies(const cw_model_config *c, const float *divisors, double *inv_freq)
{
    int n = c->d_rope / 2;
    double low = 0, high = 0;
    if (c->rope_scaling == CW_ROPE_SCALING_YARN) {
        low = fmax(floor(correction_dim(c, BETA_FAST)), 0);
        high = fmin(ceil(correction_dim(c, BETA_SLOW)), c->d_rope - 1);
        if (low == high) high += 0.001;
    }
    for (int i = 0; i < n; i++) {
        double f = cw_pow(c->rope_base, -2.0 * i / c->d_rope);
        if (c->rope_scaling == CW_ROPE_SCALING_LINEAR) f /= c->rope_factor;
        if (c->rope_scaling == CW_ROPE_SCALING_YARN) {
            /* 0 below low: keep the frequency; 1 above high: interpolate fully. */
            double ramp = fmin(fmax((i - low) / (high - low), 0), 1);
            f = f / c->rope_factor * ramp + f * (1 - ramp);
        }
        inv_freq[i] = divisors ? f / (double)divisors[i] : f;
    }
}

void cw_rope_row(const double *inv_freq, int n, int position, float *cos_row, float *sin_row)
{
    for (int i = 0; i < n; i++) {
        double s, c;
        cw_sincos(position * inv_freq[i], &s, &c);
        cos_row[i] = (float)c;
        sin_row[i] = (float)s;
    }
}

void cw_rope_apply(float *x, const float *cos_row, const float *sin_row, int n, bool halves)
{
    int step = halves ? 1 : 2, other = halves ? n : 1;
    for (int i = 0; i < n; i++) {
        float a = x[i * step], b = x[i * step + other];
        x[i * step] = a * cos_row[i] - b * sin_row[i];
        x[i * step + other] = a * sin_row[i] + b * cos_row[i];
    }
}
