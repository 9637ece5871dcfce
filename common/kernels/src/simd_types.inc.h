/*
 * Part of the vector matrix products: Q_TYPE(name, q_spec's fields) for each quantised type. The including
 * file defines Q_TYPE.
 */

static const int8_t mxfp4_lut[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
static const int8_t iq4_lut[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* The rows of the tensor room's format table, as constants the compiler can unfold. */
#define PLAIN   CW_D_F16, CW_SC_BYTES
#define NO_GRID GRID_NONE, 0, 1.0f
Q_TYPE(q8_0, 32, 0, false, CW_MIN_NONE, 8, 128, NULL, PLAIN, NO_GRID)
Q_TYPE(q4_0, 32, 0, false, CW_MIN_NONE, 4, 8, NULL, PLAIN, NO_GRID)
Q_TYPE(q4_1, 32, 0, false, CW_MIN_F16, 4, 0, NULL, PLAIN, NO_GRID)
Q_TYPE(q5_0, 32, 0, false, CW_MIN_NONE, 5, 16, NULL, PLAIN, NO_GRID)
Q_TYPE(q5_1, 32, 0, false, CW_MIN_F16, 5, 0, NULL, PLAIN, NO_GRID)
Q_TYPE(iq4_nl, 32, 0, false, CW_MIN_NONE, 4, 0, iq4_lut, PLAIN, NO_GRID)
Q_TYPE(q4_k, 256, 8, false, CW_MIN_SUB, 4, 0, NULL, PLAIN, NO_GRID)
Q_TYPE(q5_k, 256, 8, false, CW_MIN_SUB, 5, 0, NULL, PLAIN, NO_GRID)
Q_TYPE(q6_k, 256, 16, true, CW_MIN_NONE, 6, 32, NULL, PLAIN, NO_GRID)
Q_TYPE(mxfp4, 32, 0, false, CW_MIN_NONE, 4, 0, mxfp4_lut, CW_D_E8M0, CW_SC_BYTES, NO_GRID)
Q_TYPE(q2_k, 256, 16, false, CW_MIN_SUB, 2, 0, NULL, CW_D_F16, CW_SC_NIBBLES, NO_GRID)
Q_TYPE(q3_k, 256, 16, true, CW_MIN_NONE, 3, 4, NULL, CW_D_F16, CW_SC_SIX, NO_GRID)
Q_TYPE(iq4_xs, 256, 8, true, CW_MIN_NONE, 4, 0, iq4_lut, PLAIN, NO_GRID)
#define GRID_TYPE(type, n_sub, kind, words, factor, d_form)                                                  \
    Q_TYPE(type, 256, n_sub, false, CW_MIN_NONE, 7, 0, NULL, d_form, CW_SC_BYTES, kind, words, factor)
GRID_TYPE(iq1_s, 8, GRID_IQ1_S, 12, 0.125f, CW_D_F16)
GRID_TYPE(iq1_m, 16, GRID_IQ1_M, 14, 0.125f, CW_D_IN_WORDS)
GRID_TYPE(iq2_xxs, 8, GRID_IQ2_XXS, 16, 0.125f, CW_D_F16)
GRID_TYPE(iq2_xs, 16, GRID_IQ2_XS, 18, 0.125f, CW_D_F16)
GRID_TYPE(iq2_s, 16, GRID_IQ2_S, 20, 0.125f, CW_D_F16)
GRID_TYPE(iq3_xxs, 8, GRID_IQ3_XXS, 24, 0.25f, CW_D_F16)
GRID_TYPE(iq3_s, 8, GRID_IQ3_S, 27, 1.0f, CW_D_F16)
#undef GRID_TYPE
#undef PLAIN
#undef NO_GRID
