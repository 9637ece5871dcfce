/* The model of the simulator: its sizes, and the pure function that stands for an expert. */
#pragma once
#include "cw/edge_machine.h"
#include "cw/worker_machine.h"

enum { LAYERS = 4, EXPERTS = 12, D = 32, EXPERT_BYTES = 1000, MODEL_BYTES = 3 * EXPERTS * EXPERT_BYTES };
enum { FINGERPRINT = 4711, MODEL_BYTE = 8, CLUSTER_BYTE = 7 };

extern const uint64_t pure_expert_bytes[LAYERS]; /* layer 0 has no experts */
bool pure_is_f32(uint32_t layer);
void pure_worker_layers(cw_worker_layer layers[LAYERS]);
void pure_edge_layers(cw_edge_layer layers[LAYERS]);

/* One row: f16 and e, or f32, as the layer gives them. Bits that nobody can guess, all finite. */
void pure_row(uint32_t layer, uint32_t expert, const void *q, const void *s, const void *x, uint16_t *f16,
              int8_t *e, float *f32);
