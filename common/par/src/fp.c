/* The floating-point mode of a thread: round to nearest even, gradual underflow, no traps. */
#include "cw/pool.h"

#if defined(__x86_64__)
#include <xmmintrin.h>

/* MXCSR: flush-to-zero bit 15, rounding bits 14..13, exception masks bits 12..7, denormals-are-zero bit 6. */
enum { MXCSR_MODE = 0x8000 | 0x6000 | 0x0040, MXCSR_MASKS = 0x1f80 };

void cw_fp_setup(void)
{
    _mm_setcsr((_mm_getcsr() & ~(unsigned)MXCSR_MODE) | MXCSR_MASKS);
}

bool cw_fp_ok(void)
{
    return (_mm_getcsr() & (unsigned)MXCSR_MODE) == 0;
}

#elif defined(__aarch64__)

/* FPCR: FZ16 bit 19, RMode bits 23..22, FZ bit 24, DN bit 25 (default NaN), FIZ bit 0, AH bit 1, NEP bit 2.
 */
#define FPCR_MODE                                                                                            \
    ((uint64_t)1 << 19 | (uint64_t)3 << 22 | (uint64_t)1 << 24 | (uint64_t)1 << 26 | (uint64_t)7)

static uint64_t fpcr_get(void)
{
    uint64_t v;
    __asm__ volatile("mrs %0, fpcr" : "=r"(v));
    return v;
}

void cw_fp_setup(void)
{
    uint64_t v = fpcr_get() & ~FPCR_MODE;
    __asm__ volatile("msr fpcr, %0" : : "r"(v));
}

bool cw_fp_ok(void)
{
    return (fpcr_get() & FPCR_MODE) == 0;
}

#else
#include <fenv.h>

void cw_fp_setup(void)
{
    fesetround(FE_TONEAREST);
}

bool cw_fp_ok(void)
{
    volatile float tiny = 0x1p-126f;
    return fegetround() == FE_TONEAREST && tiny * 0.5f != 0.0f;
}
#endif
