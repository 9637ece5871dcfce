/* One arithmetic: nothing is contracted, nothing flushed, and the fingerprint tells. */
#include "kit.h"
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

float contract_scalar_base(float a, float b, float c);
void contract_loop_base(float *restrict y, const float *restrict a, const float *restrict b, int n);
#if defined(CW_PROBE_X86)
float contract_scalar_avx2(float a, float b, float c);
void contract_loop_avx2(float *restrict y, const float *restrict a, const float *restrict b, int n);
float contract_scalar_avx512(float a, float b, float c);
void contract_loop_avx512(float *restrict y, const float *restrict a, const float *restrict b, int n);
#endif
#if defined(CW_PROBE_ARM64)
float contract_scalar_neon(float a, float b, float c);
void contract_loop_neon(float *restrict y, const float *restrict a, const float *restrict b, int n);
#endif

/* (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: the product rounds to 1 + 2^-11, a fused operation keeps the last bit.
 */
static const float A = 1.0f + 0x1p-12f, C = -(1.0f + 0x1p-11f);

static void check_probe(float (*scalar)(float, float, float),
                        void (*loop)(float *restrict, const float *restrict, const float *restrict, int))
{
    volatile float a = A, c = C;
    assert_true(scalar(a, a, c) == 0.0f);
    float x[64], y[64];
    for (int i = 0; i < 64; i++) x[i] = a, y[i] = c;
    loop(y, x, x, 64);
    for (int i = 0; i < 64; i++) assert_true(y[i] == 0.0f);
}

static void products_and_sums_are_not_contracted(void **state)
{
    (void)state;
    check_probe(contract_scalar_base, contract_loop_base);
#if defined(CW_PROBE_X86)
    if (cw_kernels_get(CW_ISA_AVX2)) check_probe(contract_scalar_avx2, contract_loop_avx2);
    if (cw_kernels_get(CW_ISA_AVX512)) check_probe(contract_scalar_avx512, contract_loop_avx512);
#endif
#if defined(CW_PROBE_ARM64)
    /* Sums and products are in every 64-bit ARM; only the flags are those of the dot-product kernels. */
    check_probe(contract_scalar_neon, contract_loop_neon);
#endif
}

static void fmaf_rounds_once(void **state)
{
    (void)state;
    volatile float a = A, c = C;
    assert_true(fmaf(a, a, c) == 0x1p-24f);
}

static void fingerprint_is_one_number_for_all_instruction_sets(void **state)
{
    (void)state;
    uint64_t h = cw_kernels_fingerprint(cw_kernels_get(CW_ISA_SCALAR));
    /* The recorded value of CW_ARITHMETIC_ID 2. If this fails, bits have changed: raise the id. */
    assert_int_equal(CW_ARITHMETIC_ID, 2);
    assert_true(h == UINT64_C(0x855c0b086877f9a6));
    for (int i = 0; kit_vector(i); i++) assert_true(cw_kernels_fingerprint(kit_vector(i)) == h);
}

static void flush_to_zero(void)
{
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | 0x8040);
#elif defined(__aarch64__)
    uint64_t v;
    __asm__ volatile("mrs %0, fpcr" : "=r"(v));
    __asm__ volatile("msr fpcr, %0" : : "r"(v | (uint64_t)1 << 24));
#endif
}

static void fingerprint_shows_flush_to_zero(void **state)
{
    (void)state;
    uint64_t h = cw_kernels_fingerprint(cw_kernels_best());
    flush_to_zero();
    if (cw_fp_ok()) skip(); /* an architecture this test does not know */
    uint64_t flushed = cw_kernels_fingerprint(cw_kernels_best());
    cw_fp_setup();
    assert_true(h != flushed);
    assert_true(h == cw_kernels_fingerprint(cw_kernels_best()));
}

static void dispatch_answers(void **state)
{
    (void)state;
    cw_isa isa = CW_ISA_NEON;
    assert_non_null(cw_kernels_get(CW_ISA_SCALAR));
    assert_non_null(cw_kernels_best());
    assert_null(cw_kernels_get(CW_ISA_COUNT));
    assert_true(cw_isa_parse("avx512", &isa));
    assert_int_equal(isa, CW_ISA_AVX512);
    assert_false(cw_isa_parse("sse", &isa));
    for (int i = 0; i < CW_ISA_COUNT; i++) {
        const cw_kernels *kn = cw_kernels_get((cw_isa)i);
        assert_true(cw_isa_parse(cw_isa_name((cw_isa)i), &isa));
        if (!kn) continue;
        assert_int_equal(kn->isa, i);
        assert_string_equal(kn->name, cw_isa_name((cw_isa)i));
    }
    assert_true(cw_kernels_get(CW_ISA_AVX2) || !cw_kernels_get(CW_ISA_AVX512));
}

int main(void)
{
    cw_fp_setup();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_and_sums_are_not_contracted),
        cmocka_unit_test(fmaf_rounds_once),
        cmocka_unit_test(fingerprint_is_one_number_for_all_instruction_sets),
        cmocka_unit_test(fingerprint_shows_flush_to_zero),
        cmocka_unit_test(dispatch_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
