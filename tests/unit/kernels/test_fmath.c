/* Our elementary functions against libm (long double where it helps). */
#include "kit.h"

static double ulps32(float got, double want)
{
    float w = (float)want;
    float ulp = nextafterf(fabsf(w), INFINITY) - fabsf(w);
    return fabs((double)got - want) / (double)ulp;
}

static void expf_is_within_two_ulps(void **state)
{
    (void)state;
    double worst = 0;
    /* Every 997th float between the limits, both signs. */
    for (uint32_t u = 0; u < 0x42b17218; u += 997) {
        for (int sign = 0; sign < 2; sign++) {
            float x = cw_f32_from_bits(u | (uint32_t)sign << 31);
            if (x < -87.3365f) continue;
            double e = ulps32(cw_expf(x), exp((double)x));
            worst = e > worst ? e : worst;
        }
    }
    assert_true(worst <= 1.5);
}

static void expf_at_its_ends(void **state)
{
    (void)state;
    assert_true(cw_expf(0.0f) == 1.0f && cw_expf(-0.0f) == 1.0f);
    assert_true(cw_expf(INFINITY) == INFINITY);
    assert_true(cw_expf(-INFINITY) == 0.0f && !signbit(cw_expf(-INFINITY)));
    assert_true(isnan(cw_expf(NAN)) && isnan(cw_expf(-NAN)));
    assert_true(cw_expf(88.73f) == INFINITY && cw_expf(3e38f) == INFINITY);
    assert_true(cw_expf(88.7228f) < INFINITY && cw_expf(88.7228f) > 3.40e38f);
    assert_true(cw_expf(-87.34f) == 0.0f && cw_expf(-3e38f) == 0.0f);
    assert_true(cw_expf(-87.336f) >= 0x1p-126f);
    assert_true(cw_sigmoidf(0.0f) == 0.5f && cw_sigmoidf(200.0f) == 1.0f && cw_sigmoidf(-200.0f) == 0.0f);
    assert_true(fabsf(cw_sigmoidf(1.5f) - 0.81757448f) < 1e-7f);
}

static double ulps64(double got, long double want)
{
    double w = (double)want, ulp = nextafter(fabs(w), (double)INFINITY) - fabs(w);
    return (double)(fabsl((long double)got - want) / (long double)ulp);
}

static void double_exp_and_log_are_within_two_ulps(void **state)
{
    (void)state;
    uint64_t rng = 31;
    double worst_exp = 0, worst_log = 0;
    for (int i = 0; i < 200000; i++) {
        double x = (double)kit_unit(&rng) * (i % 3 == 0   ? 700.0
                                             : i % 3 == 1 ? 10.0
                                                          : 0.5) +
                   (double)kit_unit(&rng) * 1e-9;
        if (fabs(x) > 700.0) continue;
        double e = ulps64(cw_exp(x), expl((long double)x));
        worst_exp = e > worst_exp ? e : worst_exp;
        double y = cw_exp(x * (i % 2 ? 1.0 : 0.01));
        e = ulps64(cw_log(y), logl((long double)y));
        worst_log = e > worst_log ? e : worst_log;
    }
    assert_true(worst_exp <= 2.0);
    assert_true(worst_log <= 2.0);
    assert_true(cw_exp(0.0) == 1.0 && cw_log(1.0) == 0.0);
    assert_true(isnan(cw_log(0.0)) && isnan(cw_log(-1.0)) && isnan(cw_log((double)INFINITY)) &&
                isnan(cw_log((double)NAN)));
    assert_true(cw_exp(701.0) == (double)INFINITY && cw_exp(-701.0) == 0.0 && isnan(cw_exp((double)NAN)));
}

static void double_pow_serves_rope_bases(void **state)
{
    (void)state;
    static const double bases[] = {10000.0, 500000.0, 1000000.0, 50000.0};
    for (size_t b = 0; b < CW_ARRAY_LEN(bases); b++) {
        for (int i = 0; i < 128; i++) {
            double e = -2.0 * i / 256.0, want = pow(bases[b], e);
            assert_true(fabs(cw_pow(bases[b], e) - want) <= 0x1p-51 * (2 + fabs(e) * log(bases[b])) * want);
        }
    }
}

static void double_sincos_is_within_its_bound(void **state)
{
    (void)state;
    uint64_t rng = 32;
    for (int i = 0; i < 200000; i++) {
        double x = (double)kit_unit(&rng) * (i % 4 == 0   ? 0x1p27
                                             : i % 4 == 1 ? 163840.0
                                             : i % 4 == 2 ? 100.0
                                                          : 1.0);
        if (i % 5 == 0) x = (double)(kit_next(&rng) % 163840);
        double s, c;
        cw_sincos(x, &s, &c);
        assert_true(fabsl((long double)s - sinl((long double)x)) <= 0x1p-51L);
        assert_true(fabsl((long double)c - cosl((long double)x)) <= 0x1p-51L);
    }
    double s, c;
    cw_sincos(0.0, &s, &c);
    assert_true(s == 0.0 && c == 1.0);
    cw_sincos(0x1p28, &s, &c);
    assert_true(isnan(s) && isnan(c));
    cw_sincos((double)NAN, &s, &c);
    assert_true(isnan(s) && isnan(c));
}

int main(void)
{
    cw_fp_setup();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(expf_is_within_two_ulps),
        cmocka_unit_test(expf_at_its_ends),
        cmocka_unit_test(double_exp_and_log_are_within_two_ulps),
        cmocka_unit_test(double_pow_serves_rope_bases),
        cmocka_unit_test(double_sincos_is_within_its_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
