/*
 * Our own elementary functions, from + - * / fmaf and bit operations only, so that every machine gets the
 * same bits (docs/NUMERICS.md). Any thread in the arithmetic of cw_fp_setup.
 */
#pragma once
#include <stdint.h>

/* e^x, within 1.5 ulp of the true value. +inf above 88.72283, NaN for NaN, and +0 below -87.33654, where the
 * result would be subnormal. The vector kernels compute exactly this. */
float cw_expf(float x);
/* 1 / (1 + exp(-x)). */
float cw_sigmoidf(float x);

/* Doubles for rope tables and YaRN. */

/* Within 2 ulp for |x| <= 700; beyond: 0 or +inf. */
double cw_exp(double x);
/* Within 2 ulp for normal x > 0; NaN for anything else. */
double cw_log(double x);
/* exp(e * log(base)), base > 0: the error grows with the exponent (within 2^-51 * (2 + |e log base|)). */
double cw_pow(double base, double e);
/* Absolute error within 2^-51 for |x| <= 2^27; NaN beyond. */
void cw_sincos(double x, double *sin_x, double *cos_x);
