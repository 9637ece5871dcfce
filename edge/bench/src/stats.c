/* See cw/bench_stats.h. */
#include "cw/bench_stats.h"

#include <stdlib.h>

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double cw_bench_quantile(const double *v, int n, double q)
{
    CW_ASSERT(n >= 1 && q >= 0 && q <= 1);
    double at = q * (n - 1);
    int i = (int)at;
    if (i == n - 1) return v[i];
    return v[i] + (at - i) * (v[i + 1] - v[i]);
}

void cw_bench_stats_of(double *v, int n, cw_bench_stats *out)
{
    CW_ASSERT(n >= 1);
    qsort(v, (size_t)n, sizeof *v, ascending);
    *out = (cw_bench_stats){.n = n,
                            .min = v[0],
                            .q1 = cw_bench_quantile(v, n, 0.25),
                            .median = cw_bench_quantile(v, n, 0.5),
                            .q3 = cw_bench_quantile(v, n, 0.75),
                            .max = v[n - 1]};
}

double cw_bench_spread(const cw_bench_stats *s)
{
    return s->median != 0 ? (s->q3 - s->q1) / s->median : 0;
}

double cw_bench_median_ratio(const double *a, const double *b, int n)
{
    double ratio[CW_BENCH_MAX_ROUNDS];
    int valid = 0;
    CW_ASSERT(n >= 1 && n <= CW_BENCH_MAX_ROUNDS);
    for (int i = 0; i < n; i++)
        if (b[i] > 0) ratio[valid++] = a[i] / b[i];
    if (valid == 0) return 0;
    cw_bench_stats s;
    cw_bench_stats_of(ratio, valid, &s);
    return s.median;
}
