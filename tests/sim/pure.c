/* The pure function; see pure.h. Any fixed function of its arguments will do. */
#include "pure.h"

const uint64_t pure_expert_bytes[LAYERS] = {0, EXPERT_BYTES, EXPERT_BYTES, EXPERT_BYTES};

bool pure_is_f32(uint32_t layer)
{
    return layer == 3;
}

void pure_worker_layers(cw_worker_layer layers[LAYERS])
{
    for (uint32_t l = 0; l < LAYERS; l++)
        layers[l] =
            (cw_worker_layer){pure_is_f32(l) ? CW__PB__ACT_KIND__ACT_F32 : CW__PB__ACT_KIND__ACT_A8,
                              pure_is_f32(l) ? CW__PB__REPLY_KIND__ROWS_F32 : CW__PB__REPLY_KIND__ROWS_F16,
                              pure_expert_bytes[l]};
}

void pure_edge_layers(cw_edge_layer layers[LAYERS])
{
    for (uint32_t l = 0; l < LAYERS; l++)
        layers[l] =
            (cw_edge_layer){pure_is_f32(l) ? CW__PB__ACT_KIND__ACT_F32 : CW__PB__ACT_KIND__ACT_A8,
                            pure_is_f32(l) ? CW__PB__REPLY_KIND__ROWS_F32 : CW__PB__REPLY_KIND__ROWS_F16,
                            pure_expert_bytes[l]};
}

static uint64_t mix(uint64_t h, const void *data, size_t n)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

void pure_row(uint32_t layer, uint32_t expert, const void *q, const void *s, const void *x, uint16_t *f16,
              int8_t *e, float *f32)
{
    uint32_t key[2] = {layer, expert};
    uint64_t h = mix(0xcbf29ce484222325u, key, sizeof key);
    if (pure_is_f32(layer)) {
        h = mix(h, x, D * 4);
        for (int i = 0; i < D; i++)
            f32[i] = (float)(int32_t)((h = h * 6364136223846793005u + 1) >> 40) / 64.0f;
    } else {
        h = mix(mix(h, q, D), s, D / 32 * 4);
        for (int i = 0; i < D; i++) f16[i] = (uint16_t)(((h = h * 6364136223846793005u + 1) >> 48) & 0xbbff);
        *e = (int8_t)((h >> 33) % 40) - 20;
    }
}
