/*
 * Codebooks of the IQ formats: the values a code stands for, before signs and scales. Immutable; any thread.
 */
#pragma once
#include "cw/type.h"

extern const int8_t cw_grid_iq1[2048][8]; /* eighths: -8, 0, 8. IQ1_S, IQ1_M */
extern const int8_t cw_grid_iq2_xxs[256][8];
extern const int8_t cw_grid_iq2_xs[512][8];
extern const int8_t cw_grid_iq2_s[1024][8];
extern const int8_t cw_grid_iq3_xxs[256][4];
extern const int8_t cw_grid_iq3_s[512][4];
