/* Packing: nothing lost, any slicing gives the same panels, sizes bounded, bad files named. */
#include "kit.h"

static void packed_rows_unpack_to_the_same_bytes(void **state)
{
    (void)state;
    uint64_t rng = 1;
    for (size_t i = 0; cw_type_at(i); i++) {
        const cw_type_info *t = cw_type_at(i);
        for (int64_t n = 1; n <= 33; n += n < 15 ? 7 : 1) {
            uint8_t *rows, back[256 * 4], scratch[256 * 4];
            float want[256], got[256];
            size_t row_bytes = kit_row_bytes(t, 256);
            cw_weight w = kit_weight(t, KIT_RANDOM, n, 256, &rng, &rows);
            for (int64_t r = 0; r < n; r++) {
                memset(back, 0x5a, sizeof back);
                cw_weight_unpack_row(&w, r, back);
                assert_memory_equal(back, rows + (size_t)r * row_bytes, row_bytes);
                t->to_f32(rows + (size_t)r * row_bytes, want, 256);
                cw_weight_row_f32(&w, r, got, scratch);
                assert_memory_equal(want, got, sizeof want);
            }
            cw_free(rows);
            cw_free(w.data);
        }
    }
}

static void slices_give_the_same_panels_as_one_piece(void **state)
{
    (void)state;
    uint64_t rng = 2;
    for (size_t i = 0; cw_type_at(i); i++) {
        const cw_type_info *t = cw_type_at(i);
        uint8_t *rows;
        size_t row_bytes = kit_row_bytes(t, 512);
        cw_weight w = kit_weight(t, KIT_RANDOM, 83, 512, &rng, &rows), v = w;
        v.data = kit_mem(w.bytes);
        memset(v.data, 0xa5, v.bytes); /* packing must not rely on cleared memory */
        static const int order[][2] = {{64, 19}, {0, 16}, {32, 32}, {16, 16}};
        for (int s = 0; s < 4; s++)
            assert_int_equal(
                cw_weight_pack(&v, order[s][0], order[s][1], rows + (size_t)order[s][0] * row_bytes, NULL),
                CW_OK);
        assert_memory_equal(w.data, v.data, w.bytes);
        cw_free(rows);
        cw_free(w.data);
        cw_free(v.data);
    }
}

static void packed_size_is_at_most_three_percent_more(void **state)
{
    (void)state;
    for (size_t i = 0; cw_type_at(i); i++) {
        const cw_type_info *t = cw_type_at(i);
        static const int64_t ks[] = {256, 2048, 7168};
        for (size_t k = 0; k < CW_ARRAY_LEN(ks); k++) {
            size_t bytes, file = 64 * kit_row_bytes(t, ks[k]);
            assert_int_equal(cw_weight_bytes(t->type, 64, ks[k], &bytes, NULL), CW_OK);
            assert_true(bytes * 100 <= file * 103);
        }
    }
}

static void impossible_shapes_are_refused(void **state)
{
    (void)state;
    size_t bytes = 7;
    cw_err err;
    assert_int_equal(cw_weight_bytes(CW_TYPE_TQ2_0, 16, 256, &bytes, &err), CW_STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "TQ2_0"));
    assert_int_equal(cw_weight_bytes(CW_TYPE_Q4_K, 16, 128, &bytes, &err), CW_STATUS_INVALID);
    assert_int_equal(cw_weight_bytes(CW_TYPE_Q8_0, 0, 32, &bytes, &err), CW_STATUS_INVALID);
    assert_int_equal(cw_weight_bytes(CW_TYPE_Q8_0, -1, 32, &bytes, &err), CW_STATUS_INVALID);
    assert_int_equal(cw_weight_bytes(CW_TYPE_F32, 1, 0, &bytes, &err), CW_STATUS_INVALID);
    assert_int_equal(cw_weight_bytes(CW_TYPE_F32, INT64_MAX, 32, &bytes, &err), CW_STATUS_INVALID);
    assert_int_equal(cw_weight_bytes(CW_TYPE_F32, 16, INT64_MAX, &bytes, &err), CW_STATUS_INVALID);
    assert_int_equal(bytes, 7);
}

static void values_that_are_not_finite_are_named(void **state)
{
    (void)state;
    uint64_t rng = 3;
    for (size_t i = 0; cw_type_at(i); i++) {
        const cw_type_info *t = cw_type_at(i);
        const cw_format *f = cw_format_get(t->type);
        uint8_t *rows;
        size_t row_bytes = kit_row_bytes(t, 256);
        cw_weight w = kit_weight(t, KIT_RANDOM, 20, 256, &rng, &rows);
        uint8_t *at = rows + 18 * row_bytes;
        if (f) {
            cw_block b;
            f->split(at, &b);
            b.d = f->d_form == CW_D_E8M0 ? 255 : 0x7c00;
            f->join(&b, at);
        } else if (t->type == CW_TYPE_F32) {
            cw_store_u32(at + 40, 0x7fc00000);
        } else {
            cw_store_u16(at + 40, t->type == CW_TYPE_F16 ? 0xfc00 : 0xff80);
        }
        cw_err err;
        assert_int_equal(cw_weight_pack(&w, 0, 20, rows, &err), CW_STATUS_FORMAT);
        assert_non_null(strstr(err.text, "row 18"));
        cw_free(rows);
        cw_free(w.data);
    }
}

int main(void)
{
    cw_fp_setup();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_rows_unpack_to_the_same_bytes),
        cmocka_unit_test(slices_give_the_same_panels_as_one_piece),
        cmocka_unit_test(packed_size_is_at_most_three_percent_more),
        cmocka_unit_test(impossible_shapes_are_refused),
        cmocka_unit_test(values_that_are_not_finite_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
