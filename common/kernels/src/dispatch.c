/*
 * Which kernels this machine can run. The answer comes from cpuid and, for the wide registers, from XGETBV:
 * the operating system must save them. On ARM the system says. The answer is kept, because cpuid is slow
 * under a hypervisor.
 */
#include "internal.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__) && defined(CW_HAVE_AVX2)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t xgetbv0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

static bool bit(uint32_t reg, int i)
{
    return reg >> i & 1;
}

/*
 * Tiles are 8 KiB of state that Linux gives to a process which asks (ARCH_REQ_XCOMP_PERM for XTILEDATA), for
 * all its threads; an older kernel, another system call filter or a small signal stack refuses.
 */
static bool tiles_granted(void)
{
    enum { REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, REQ_XCOMP_PERM, XTILEDATA) == 0;
}

static bool x86_has(cw_isa isa)
{
    uint32_t a, b1, c1, d, b7, c7;
    if (!__get_cpuid(1, &a, &b1, &c1, &d)) return false;
    bool fma = bit(c1, 12), osxsave = bit(c1, 27), avx = bit(c1, 28), f16c = bit(c1, 29);
    if (!osxsave || !avx || !fma || !f16c || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d)) return false;
    uint64_t xcr0 = xgetbv0();
    bool avx2 = bit(b7, 5) && (xcr0 & 0x06) == 0x06; /* xmm, ymm */
    if (isa == CW_ISA_AVX2) return avx2;
    bool f = bit(b7, 16), dq = bit(b7, 17), bw = bit(b7, 30), vl = bit(b7, 31), vnni = bit(c7, 11);
    bool avx512 = avx2 && f && dq && bw && vl && vnni && (xcr0 & 0xe6) == 0xe6; /* and masks, upper zmm */
    if (isa == CW_ISA_AVX512) return avx512;
    bool amx = bit(d, 24) && bit(d, 25); /* tiles, int8 */
    return avx512 && amx && (xcr0 & 0x60000) == 0x60000 && tiles_granted();
}
#endif

#if defined(__aarch64__) && defined(CW_HAVE_NEON)
#include <sys/auxv.h>
/* Dot-product instructions, from the kernel's list of hardware capabilities. */
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#endif

static const char *const names[CW_ISA_COUNT] = {"scalar", "avx2", "avx512", "neon", "amx"};

const char *cw_isa_name(cw_isa isa)
{
    return (unsigned)isa < CW_ISA_COUNT ? names[isa] : "unknown";
}

bool cw_isa_parse(const char *text, cw_isa *out)
{
    for (int i = 0; i < CW_ISA_COUNT; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *out = (cw_isa)i;
        return true;
    }
    return false;
}

static const cw_kernels *find(cw_isa isa)
{
    switch (isa) {
    case CW_ISA_SCALAR: return &cw_kernels_scalar;
#if defined(__x86_64__) && defined(CW_HAVE_AVX2)
    case CW_ISA_AVX2: return x86_has(CW_ISA_AVX2) ? &cw_kernels_avx2 : NULL;
    case CW_ISA_AVX512: return x86_has(CW_ISA_AVX512) ? &cw_kernels_avx512 : NULL;
    case CW_ISA_AMX: return x86_has(CW_ISA_AMX) ? &cw_kernels_amx : NULL;
#endif
#if defined(__aarch64__) && defined(CW_HAVE_NEON)
    case CW_ISA_NEON: return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? &cw_kernels_neon : &cw_kernels_neon_v80;
#endif
    default: return NULL;
    }
}

/* Threads that ask at the same time store the same answer. */
const cw_kernels *cw_kernels_get(cw_isa isa)
{
    static _Atomic(const cw_kernels *) found[CW_ISA_COUNT];
    static atomic_bool asked[CW_ISA_COUNT];
    if ((unsigned)isa >= CW_ISA_COUNT) return NULL;
    if (!atomic_load(&asked[isa])) {
        atomic_store(&found[isa], find(isa));
        atomic_store(&asked[isa], true);
    }
    return atomic_load(&found[isa]);
}

const cw_kernels *cw_kernels_best(void)
{
    static const cw_isa order[] = {CW_ISA_AMX, CW_ISA_AVX512, CW_ISA_AVX2, CW_ISA_NEON};
    for (size_t i = 0; i < CW_ARRAY_LEN(order); i++) {
        const cw_kernels *kn = cw_kernels_get(order[i]);
        if (kn) return kn;
    }
    return &cw_kernels_scalar;
}
