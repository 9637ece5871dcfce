/*
 * Our own elementary functions, from + - * / fmaf and bit operations only, so that every machine gets the same bits
 * (docs/NUMERICS.md). Any thread in the arithmetic of cw_fp_setup.
 */
#pragma once
#include <stdint.h>

/* e^x, within 1.5 ulp of the true value. +inf above 88.7228394, NaN for NaN, and results below 2^-126 flush to +0
 * (x < -87.3365448). The vector kernels compute exactly this. */
float cw_expf(float x);
/* 1 / (1 + exp(-x)). */
float cw_sigmoidf(float x);

/* Doubles for rope tables and YaRN: within 2 ulp over the ranges named. */
double cw_exp(double x);                               /* |x| <= 700; beyond: 0 or +inf */
double cw_log(double x);                               /* x > 0 and normal; NaN for anything else */
double cw_pow(double base, double e);                  /* base > 0; exp(e * log(base)), so its error grows with the exponent */
void cw_sincos(double x, double *sin_x, double *cos_x); /* |x| <= 2^27; NaN beyond */
