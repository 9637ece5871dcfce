/*
 * Known answers; see cw/known_answer.h. The row is made of small integers and one scale that is a power of
 * two, so it is the same f32 values wherever it is made: A8 layers take them as they are, f32 layers as
 * products.
 */
#include "cw/known_answer.h"

#include <string.h>

#include "cw/hash.h"
#include "cw/mem.h"

static const char context[] = "causeway known answer 1";

/* Like a normalised activation: values in [-2, 2), every block with the same scale. */
static const float scale = 0x1p-6f;

/* x [d] always; the same row as A8 where the layer takes that. */
static bool fill(int d, float *x, cw_a8 *a8)
{
    uint64_t state = 0x243f6a8885a308d3u; /* digits of pi: nothing up the sleeve */
    int8_t q[32];
    float s[1] = {scale};
    for (int i = 0; i < d; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        q[i % 32] = (int8_t)((int)((state >> 33) % 255) - 127);
        x[i] = (float)q[i % 32] * scale;
        if (!a8 || i % 32 != 31) continue;
        cw_a8 block = cw_a8_view(a8, 0, 1, i - 31, 32);
        if (!cw_a8_set_row(&block, 0, q, s)) return false;
    }
    return true;
}

static cw_status run(const cw_kernels *kn, const cw_expert *e, const cw_expert_shape *shape,
                     cw_expert_scratch *scratch, uint8_t *mem, size_t a8_bytes,
                     uint8_t out[CW_KNOWN_ANSWER_BYTES], cw_err *err)
{
    size_t d = (size_t)shape->d_model;
    bool is_a8 = cw_expert_rows_kind(shape) == CW_ROWS_A8,
         f16 = cw_expert_reply_kind(shape) == CW_REPLY_ROWS_F16;
    float *x = (float *)(mem + a8_bytes), *y = x + d;
    cw_a8 a8;
    if (is_a8) cw_a8_init(&a8, 1, shape->d_model, mem);
    CW_ASSERT(fill(shape->d_model, x, is_a8 ? &a8 : NULL));
    int8_t exponent = 0;
    cw_expert_job job = {.expert = e, .n_rows = 1};
    if (is_a8)
        job.a8 = &a8;
    else
        job.x = x;
    if (f16)
        job.f16 = (uint16_t *)y;
    else
        job.f32 = y;
    job.e = &exponent;
    cw_status s = cw_expert_run(kn, NULL, &job, 1, scratch, err);
    if (s != CW_OK && s != CW_STATUS_NUMERIC) return s;
    cw_hash_state h;
    cw_hash_begin(&h, context);
    if (s == CW_STATUS_NUMERIC) {
        cw_hash_add(&h, "not finite", 10);
    } else {
        cw_hash_add(&h, y, d * (f16 ? 2 : 4)); /* little-endian hosts only, as everywhere */
        cw_hash_add(&h, &exponent, 1);
    }
    cw_hash_end(&h, out);
    return CW_OK;
}

cw_status cw_expert_known_answer(const cw_kernels *kn, cw_expert_set *set, int layer, int expert,
                                 cw_expert_scratch *scratch, uint8_t out[CW_KNOWN_ANSWER_BYTES], cw_err *err)
{
    const cw_expert *e = cw_expert_set_acquire(set, layer, expert);
    if (!e) return CW_FAIL(err, CW_STATUS_NOT_HERE, "expert %d of layer %d is not loaded", expert, layer);
    const cw_expert_shape *shape = cw_expert_set_shape(set, layer);
    size_t a8_bytes = 0;
    uint8_t *mem = NULL;
    if (cw_expert_rows_kind(shape) != CW_ROWS_A8 || cw_a8_bytes(1, shape->d_model, &a8_bytes)) {
        a8_bytes = (a8_bytes + 63) / 64 * 64;
        mem = cw_aligned_calloc(a8_bytes + (size_t)shape->d_model * 8, 1);
    }
    cw_status s =
        mem ? run(kn, e, shape, scratch, mem, a8_bytes, out, err)
            : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a test row of %d values", shape->d_model);
    cw_free(mem);
    cw_expert_release(e);
    return s;
}
