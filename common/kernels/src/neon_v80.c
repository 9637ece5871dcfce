/*
 * Advanced SIMD of the first 64-bit ARM (Armv8.0: Raspberry Pi 4 and older servers): neon.c compiled without
 * the dot-product instructions. dispatch.c takes it where the system names none.
 */
#define NEON_TABLE cw_kernels_neon_v80
#include "neon.c"
