/*
 * The scalar products against double precision: the reference may differ only by its own roundings. The error
 * bound per output is (number of f32 roundings) * 2^-24 * sum |w x|, from the definition of the arithmetic.
 */
#include "kit.h"

static void check(const cw_type_info *t, kit_fill fill, int64_t k, uint64_t *rng)
{
    enum { N = 19, M = 5 };
    const cw_kernels *kn = cw_kernels_get(CW_ISA_SCALAR);
    uint8_t *rows;
    size_t row_bytes = kit_row_bytes(t, k);
    cw_weight w = kit_weight(t, fill, N, k, rng, &rows);
    float *x = kit_mem((size_t)(M * k) * 4), *wrow = kit_mem((size_t)k * 4), *y = kit_mem(M * N * 4);
    cw_a8 a = kit_a8(M, k);
    kit_x(x, M, k, 1000.0f, rng);
    assert_true(cw_a8_quantise_rows(NULL, kn, &a, x, k, M));
    if (t->quantised)
        for (int i = 0; i < M; i++) cw_a8_row_f32(&a, i, x + i * k);
    cw_mm mm = {.w = &w, .a8 = &a, .f32 = x, .ldx = k, .m = M, .y = y, .ldy = N};
    cw_matmul(NULL, kn, &mm);
    const cw_format *f = cw_format_get(t->type);
    double roundings = f ? 5.0 * (double)(k / 32) + 4 : (double)k + 1;
    for (int n = 0; n < N; n++) {
        t->to_f32(rows + (size_t)n * row_bytes, wrow, k);
        for (int i = 0; i < M; i++) {
            double sum = 0, size = 0;
            for (int64_t j = 0; j < k; j++) {
                double p = (double)wrow[j] * (double)x[i * k + j];
                sum += p;
                size += fabs(p);
            }
            /* Minima come as a separate term, which may be larger than the weights themselves. */
            if (f && f->min != CW_MIN_NONE) size *= 16;
            /* d of E8M0 goes down to 2^-128, so that p itself is subnormal: half an ulp times the largest
             * isum. */
            double tiny = f && f->d_form == CW_D_E8M0 ? 12 * 127 : 1;
            double error = fabs((double)y[i * N + n] - sum),
                   budget = roundings * 0x1p-24 * size + (double)k * tiny * 0x1p-149;
            if (!(error <= budget))
                fail_msg("%s k=%d row %d column %d: error %g, budget %g", t->name, (int)k, i, n, error,
                         budget);
        }
    }
    kit_a8_free(&a);
    cw_free(w.data);
    cw_free(rows);
    cw_free(x);
    cw_free(wrow);
    cw_free(y);
}

static void scalar_products_are_within_their_roundings(void **state)
{
    (void)state;
    static const int64_t ks[] = {32, 256, 1408, 2048, 7168};
    uint64_t rng = 11;
    for (size_t i = 0; cw_type_at(i); i++)
        for (size_t k = 0; k < CW_ARRAY_LEN(ks); k++)
            for (int fill = 0; fill < KIT_FILLS; fill++)
                if (ks[k] % cw_type_at(i)->block == 0) check(cw_type_at(i), (kit_fill)fill, ks[k], &rng);
}

/* One product small enough to do by hand, so that the order of operations itself is pinned. */
static void a_product_done_by_hand(void **state)
{
    (void)state;
    const cw_kernels *kn = cw_kernels_get(CW_ISA_SCALAR);
    uint8_t row[2 * 20] = {0};
    cw_store_u16(row, 0x3555);      /* d = 0.33325195 */
    cw_store_u16(row + 2, 0xb266);  /* m = -0.19995117 */
    memset(row + 4, 0x31, 16);      /* codes 1 and 3 */
    cw_store_u16(row + 20, 0x2e66); /* d = 0.09997559 */
    cw_store_u16(row + 22, 0x3c00);
    memset(row + 24, 0xf0, 16); /* codes 0 and 15 */
    float x[64], y;
    for (int i = 0; i < 64; i++) x[i] = (float)(i % 7) * 0.3f - 0.5f;
    size_t bytes;
    assert_int_equal(cw_weight_bytes(CW_TYPE_Q4_1, 1, 64, &bytes, NULL), CW_OK);
    cw_weight w;
    assert_int_equal(cw_weight_init(&w, CW_TYPE_Q4_1, 1, 64, kit_mem(bytes), NULL), CW_OK);
    assert_int_equal(cw_weight_pack(&w, 0, 1, row, NULL), CW_OK);
    cw_a8 a = kit_a8(1, 64);
    assert_true(kn->a8_quantise(&a, 0, x));
    float acc = 0;
    static const int codes[2][2] = {{1, 3}, {0, 15}};
    for (int b = 0; b < 2; b++) {
        int isum = 0, xsum = 0;
        for (int i = 0; i < 32; i++) isum += codes[b][i / 16] * a.q[32 * b + i], xsum += a.q[32 * b + i];
        float s = a.s[b], d = cw_f16_to_f32(cw_load_u16(row + 20 * b)),
              m = cw_f16_to_f32(cw_load_u16(row + 20 * b + 2));
        float p = d * s, xs = s * (float)xsum;
        acc = fmaf(p, (float)isum, acc);
        acc = fmaf(m, xs, acc);
    }
    cw_mm mm = {.w = &w, .a8 = &a, .m = 1, .y = &y, .ldy = 1};
    cw_matmul(NULL, kn, &mm);
    assert_true(y == acc);
    kit_a8_free(&a);
    cw_free(w.data);
}

int main(void)
{
    cw_fp_setup();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scalar_products_are_within_their_roundings),
        cmocka_unit_test(a_product_done_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
