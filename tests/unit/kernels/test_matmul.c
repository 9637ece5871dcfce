/*
 * The products of every instruction set against the scalar reference, bit for bit, over every type, the
 * shapes of real models and adversarial blocks; and their independence of the number of rows, of the threads
 * and of where rows lie.
 */
#include "kit.h"

static const int32_t all_m[] = {1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 37, 64, 512};

/* The scalar result for all rows at once, then each number of rows on each instruction set. */
static void compare(const cw_type_info *t, kit_fill fill, int64_t n, int64_t k, int32_t m_max, float large,
                    uint64_t *rng)
{
    cw_weight w = kit_weight(t, fill, n, k, rng, NULL);
    float *x = kit_mem((size_t)m_max * (size_t)k * 4), *want = kit_mem((size_t)(m_max * n) * 4);
    float *got = kit_mem((size_t)(m_max * n) * 4);
    cw_a8 a = kit_a8(m_max, k);
    kit_x(x, m_max, k, large, rng);
    assert_true(cw_a8_quantise_rows(NULL, cw_kernels_get(CW_ISA_SCALAR), &a, x, k, m_max));
    cw_mm mm = {.w = &w, .a8 = &a, .f32 = x, .ldx = k, .m = m_max, .y = want, .ldy = n};
    cw_matmul(NULL, cw_kernels_get(CW_ISA_SCALAR), &mm);
    for (int v = 0; kit_vector(v); v++) {
        for (size_t i = 0; i < CW_ARRAY_LEN(all_m) && all_m[i] <= m_max; i++) {
            memset(got, 0x7f, (size_t)(m_max * n) * 4);
            mm.y = got;
            mm.m = all_m[i];
            cw_matmul(NULL, kit_vector(v), &mm);
            if (!kit_same(got, want, all_m[i] * n))
                fail_msg("%s %s fill %d: n=%d k=%d m=%d differ", kit_vector(v)->name, t->name, fill, (int)n,
                         (int)k, (int)all_m[i]);
            /* Nothing beyond the last row is written. */
            if (all_m[i] < m_max) assert_int_equal(cw_f32_bits(got[all_m[i] * n]), 0x7f7f7f7f);
        }
    }
    kit_a8_free(&a);
    cw_free(w.data);
    cw_free(x);
    cw_free(want);
    cw_free(got);
}

static void vector_products_equal_scalar_on_model_shapes(void **state)
{
    (void)state;
    static const int64_t ks[] = {32, 256, 1408, 2048, 7168, 10944};
    uint64_t rng = 21;
    for (size_t i = 0; cw_type_at(i); i++) {
        for (size_t k = 0; k < CW_ARRAY_LEN(ks); k++) {
            const cw_type_info *t = cw_type_at(i);
            if (ks[k] % t->block != 0) continue;
            int64_t n = KIT_SLOW ? 17 : 33;
            int32_t m = ks[k] <= 256 ? 512 : KIT_SLOW || !t->quantised ? 37 : ks[k] <= 2048 ? 512 : 64;
            compare(t, KIT_RANDOM, n, ks[k], m, 3e4f, &rng);
        }
    }
}

/* Every width of the last panel: the columns beyond n must not be written. */
static void every_number_of_columns(void **state)
{
    (void)state;
    uint64_t rng = 22;
    enum { K = 256, M = 9, N = 33, PAD = 3 };
    for (size_t i = 0; cw_type_at(i); i++) {
        const cw_type_info *t = cw_type_at(i);
        uint8_t *rows;
        cw_weight w = kit_weight(t, KIT_RANDOM, N, K, &rng, &rows);
        float x[M * K], want[M * N], got[M * (N + PAD)];
        cw_a8 a = kit_a8(M, K);
        kit_x(x, M, K, 10, &rng);
        assert_true(cw_a8_quantise_rows(NULL, cw_kernels_get(CW_ISA_SCALAR), &a, x, K, M));
        cw_mm mm = {.w = &w, .a8 = &a, .f32 = x, .ldx = K, .m = M, .y = want, .ldy = N};
        cw_matmul(NULL, cw_kernels_get(CW_ISA_SCALAR), &mm);
        for (int isa = 0; isa < CW_ISA_COUNT; isa++) {
            const cw_kernels *kn = cw_kernels_get((cw_isa)isa);
            for (int64_t n = 1; kn && n <= N; n++) {
                cw_weight part = {.info = t, .n = n, .k = K, .panel_bytes = w.panel_bytes, .data = w.data};
                memset(got, 0x7f, sizeof got);
                mm = (cw_mm){.w = &part, .a8 = &a, .f32 = x, .ldx = K, .m = M, .y = got, .ldy = n + PAD};
                cw_matmul(NULL, kn, &mm);
                for (int r = 0; r < M; r++) {
                    assert_true(kit_same(got + r * (n + PAD), want + r * N, n));
                    for (int p = 0; p < PAD; p++)
                        assert_int_equal(cw_f32_bits(got[r * (n + PAD) + n + p]), 0x7f7f7f7f);
                }
            }
        }
        kit_a8_free(&a);
        cw_free(rows);
        cw_free(w.data);
    }
}

static void vector_products_equal_scalar_on_adversarial_blocks(void **state)
{
    (void)state;
    uint64_t rng = 23;
    for (size_t i = 0; cw_type_at(i); i++) {
        for (int fill = KIT_MIN_CODES; fill < KIT_FILLS; fill++) {
            compare(cw_type_at(i), (kit_fill)fill, 18, 512, 17, 3e38f, &rng);
            compare(cw_type_at(i), (kit_fill)fill, 16, 7168, 8, 1e3f, &rng);
        }
    }
}

/* Codes and activations at their extremes, where 16-bit intermediate sums would saturate. */
static void extreme_codes_meet_extreme_activations(void **state)
{
    (void)state;
    enum { K = 512, M = 6, N = 16 };
    uint64_t rng = 24;
    for (size_t i = 0; cw_type_at(i); i++) {
        const cw_type_info *t = cw_type_at(i);
        if (!t->quantised) continue;
        for (int fill = KIT_MIN_CODES; fill <= KIT_MAX_CODES; fill++) {
            cw_weight w = kit_weight(t, (kit_fill)fill, N, K, &rng, NULL);
            cw_a8 a = kit_a8(M, K);
            for (int r = 0; r < M; r++) {
                int8_t q[K];
                float s[K / 32];
                for (int j = 0; j < K; j++)
                    q[j] = (int8_t)(r == 0 || (r == 2 && j % 2) || (r > 2 && j % r) ? 127 : -127);
                for (int j = 0; j < K / 32; j++) s[j] = 0.01f;
                assert_true(cw_a8_set_row(&a, r, q, s));
            }
            float want[M * N], got[M * N];
            cw_mm mm = {.w = &w, .a8 = &a, .m = M, .y = want, .ldy = N};
            cw_matmul(NULL, cw_kernels_get(CW_ISA_SCALAR), &mm);
            mm.y = got;
            for (int v = 0; kit_vector(v); v++) {
                cw_matmul(NULL, kit_vector(v), &mm);
                assert_memory_equal(got, want, sizeof want);
            }
            kit_a8_free(&a);
            cw_free(w.data);
        }
    }
}

/* Threads, several products under one barrier, gathered rows, column views: the same bits, and no allocation.
 */
static void scheduling_does_not_change_bits(void **state)
{
    (void)state;
    enum { K = 512, M = 150, N = 200, PICK = 70 };
    const cw_kernels *kn = cw_kernels_best();
    static const int threads[] = {1, 2, 3, 5};
    uint64_t rng = 25;
    const cw_type_info *types[] = {cw_type_get(CW_TYPE_Q8_0), cw_type_get(CW_TYPE_Q4_K),
                                   cw_type_get(CW_TYPE_F32)};
    float *x = kit_mem(M * K * 4), *base = kit_mem(M * N * 4), *y = kit_mem(M * N * 4),
          *z = kit_mem(PICK * N * 4);
    kit_x(x, M, K, 10, &rng);
    cw_a8 a = kit_a8(M, K);
    int32_t pick[PICK];
    for (int i = 0; i < PICK; i++) pick[i] = (int32_t)(kit_next(&rng) % M);
    for (size_t t = 0; t < CW_ARRAY_LEN(types); t++) {
        cw_weight w = kit_weight(types[t], KIT_RANDOM, N, K, &rng, NULL);
        assert_true(cw_a8_quantise_rows(NULL, kn, &a, x, K, M));
        cw_mm one = {.w = &w, .a8 = &a, .f32 = x, .ldx = K, .m = M, .y = base, .ldy = N};
        cw_matmul(NULL, kn, &one);
        for (size_t i = 0; i < CW_ARRAY_LEN(threads); i++) {
            cw_pool *pool = NULL;
            assert_int_equal(cw_pool_new(threads[i], &pool, NULL), CW_OK);
            cw_mm two[] = {one, one, one};
            memset(y, 0, M * N * 4);
            memset(z, 0, PICK * N * 4);
            two[0].y = y;
            two[1].m = 0;
            two[2].y = z;
            two[2].m = PICK;
            two[2].rows = pick;
            cw_alloc_guard_begin(false);
            assert_true(cw_a8_quantise_rows(pool, kn, &a, x, K, M));
            cw_matmul_many(pool, kn, two, 3);
            assert_int_equal(cw_alloc_guard_end(), 0);
            assert_memory_equal(y, base, M * N * 4);
            for (int r = 0; r < PICK; r++) assert_memory_equal(z + r * N, base + pick[r] * N, N * 4);
            cw_pool_free(&pool);
        }
        cw_free(w.data);
    }
    kit_a8_free(&a);
    cw_free(x);
    cw_free(base);
    cw_free(y);
    cw_free(z);
}

static void a_view_multiplies_its_columns(void **state)
{
    (void)state;
    enum { K = 96, WIDE = 320, M = 7, N = 21, AT = 128, ROW = 2 };
    uint64_t rng = 26;
    float x[(M + ROW) * WIDE], part[M * K], want[M * N], got[M * N];
    kit_x(x, M + ROW, WIDE, 10, &rng);
    for (int r = 0; r < M; r++) memcpy(part + r * K, x + (r + ROW) * WIDE + AT, K * 4);
    cw_weight w = kit_weight(cw_type_get(CW_TYPE_Q5_1), KIT_RANDOM, N, K, &rng, NULL);
    cw_a8 wide = kit_a8(M + ROW, WIDE), own = kit_a8(M, K);
    for (int isa = 0; isa < CW_ISA_COUNT; isa++) {
        const cw_kernels *kn = cw_kernels_get((cw_isa)isa);
        if (!kn) continue;
        assert_true(cw_a8_quantise_rows(NULL, kn, &wide, x, WIDE, M + ROW));
        assert_true(cw_a8_quantise_rows(NULL, kn, &own, part, K, M));
        cw_a8 view = cw_a8_view(&wide, ROW, M, AT, K);
        cw_mm mm = {.w = &w, .a8 = &own, .m = M, .y = want, .ldy = N};
        cw_matmul(NULL, kn, &mm);
        mm.a8 = &view;
        mm.y = got;
        cw_matmul(NULL, kn, &mm);
        assert_memory_equal(got, want, sizeof want);
    }
    kit_a8_free(&wide);
    kit_a8_free(&own);
    cw_free(w.data);
}

int main(void)
{
    cw_fp_setup();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vector_products_equal_scalar_on_model_shapes),
        cmocka_unit_test(every_number_of_columns),
        cmocka_unit_test(vector_products_equal_scalar_on_adversarial_blocks),
        cmocka_unit_test(extreme_codes_meet_extreme_activations),
        cmocka_unit_test(scheduling_does_not_change_bits),
        cmocka_unit_test(a_view_multiplies_its_columns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
