/*
 * Numbers measured several times, on machines where any one of them may be spoilt by a neighbour: order
 * statistics, never means. Pure functions.
 */
#pragma once
#include "cw/status.h"

enum { CW_BENCH_MAX_ROUNDS = 1000 };

typedef struct {
    int n;
    double min, q1, median, q3, max;
} cw_bench_stats;

/* Sorts v[n], n >= 1. */
void cw_bench_stats_of(double *v, int n, cw_bench_stats *out);
/* Of ascending v[n], n >= 1, at 0 <= q <= 1; between neighbours by their distance. */
double cw_bench_quantile(const double *v, int n, double q);
/* The distance of the quartiles over the median: what half of the rounds stay within. 0 where the median is
 * 0. */
double cw_bench_spread(const cw_bench_stats *s);
/* Median of a[i] / b[i], measured in pairs: what both of a pair suffered goes out. 1 <= n <=
 * CW_BENCH_MAX_ROUNDS; pairs whose b is not positive are left out, 0 when none remain. */
double cw_bench_median_ratio(const double *a, const double *b, int n);
