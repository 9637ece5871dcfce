/*
 * Routed experts as weights and as arithmetic: a set of loaded experts keyed (layer, expert), and the
 * feed-forward down(silu(gate x) * up x) for queued rows. The same code serves local mode and the worker, so
 * their rows are the same bits.
 *
 * A set is filled from a GGUF file or from the raw bytes of the three slices (chunks of the model store). The
 * packed form is the only one kept. add, remove, acquire and release may be called from any thread; weights
 * are immutable once added.
 */
#pragma once
#include "cw/experts.h"
#include "cw/gguf.h"
#include "cw/kernels.h"
#include "cw/model_config.h"
#include "cw/pool.h"

/* The routed experts of one layer: dimensions and GGUF tensor
 * types of the three matrices. d_model = 0: no experts. */
typedef struct {
    int d_model, d_ff;
    uint32_t gate_type, up_type, down_type;
} cw_expert_shape;

enum { CW_SLICE_GATE, CW_SLICE_UP, CW_SLICE_DOWN, CW_N_SLICES };

/* What rows a layer's experts take and give (docs/NUMERICS.md). */
cw_rows_kind cw_expert_rows_kind(const cw_expert_shape *s);
cw_reply_kind cw_expert_reply_kind(const cw_expert_shape *s);
/* Bytes of one slice as stored in the file. */
size_t cw_expert_slice_bytes(const cw_expert_shape *s, int slice);
/* Bytes one loaded expert takes in memory. */
size_t cw_expert_packed_bytes(const cw_expert_shape *s);
/* "blk.3.ffn_gate_exps.weight" into buf; returns buf. */
char *cw_expert_tensor_name(char *buf, size_t size, int layer, int slice);
/* Shapes of all layers, shapes[n_layers] by the caller. Types
 * and dimensions are checked: FORMAT, UNSUPPORTED. */
CW_MUST_USE cw_status cw_expert_shapes_read(const cw_gguf *g, const cw_model_config *c,
                                            cw_expert_shape *shapes, cw_err *err);

typedef struct cw_expert_set cw_expert_set;
/* One loaded expert; opaque, held by cw_expert_set_acquire until released. */
typedef struct cw_expert cw_expert;

/* Copies the shapes (they are checked: a worker gets them over the wire). The packed form is the same for
 * every instruction set. */
CW_MUST_USE cw_status cw_expert_set_new(int n_layers, int n_experts, const cw_expert_shape *shapes,
                                        cw_expert_set **out, cw_err *err);
/* No expert may be held any more. */
void cw_expert_set_free(cw_expert_set **set);

/* Packs raw slice bytes as the file stores them. INVALID (no such layer/expert, wrong length), STATE (is
 * there already), NO_MEMORY. */
CW_MUST_USE cw_status cw_expert_set_add(cw_expert_set *set, int layer, int expert,
                                        const void *const slices[CW_N_SLICES],
                                        const size_t bytes[CW_N_SLICES], cw_err *err);
/* Reads the slices from the file piece by piece. Errors as above and IO. Blocks on the disk. */
CW_MUST_USE cw_status cw_expert_set_add_from_gguf(cw_expert_set *set, const cw_gguf *g, int layer, int expert,
                                                  cw_err *err);
/* Takes the expert out at once; its memory goes when the last holder releases it. false: was not there. */
bool cw_expert_set_remove(cw_expert_set *set, int layer, int expert);

bool cw_expert_set_has(const cw_expert_set *set, int layer, int expert);
/* Packed bytes of all experts present (not of those removed but still held). */
size_t cw_expert_set_bytes(const cw_expert_set *set);
int cw_expert_set_count(const cw_expert_set *set);
int cw_expert_set_n_layers(const cw_expert_set *set);
int cw_expert_set_n_experts(const cw_expert_set *set);
/* Borrowed from the set; NULL when the layer has no experts or is out of range. */
const cw_expert_shape *cw_expert_set_shape(const cw_expert_set *set, int layer);

/* Held until cw_expert_release; NULL when not present. */
const cw_expert *cw_expert_set_acquire(cw_expert_set *set, int layer, int expert);
void cw_expert_release(const cw_expert *e);

/*
 * Rows queued for one expert. Inputs as the layer's rows kind says (a8 or x), outputs as its reply kind says
 * (f16 and e, or f32). All memory is the caller's; rows of a8 and x may be shared between jobs, rows of the
 * outputs may not.
 */
typedef struct {
    const cw_expert *expert;
    int n_rows;              /* at least 1 */
    const cw_a8 *a8;         /* rows of d_model values (cw_a8_set_row checks what came from a peer) */
    const float *x;          /* rows of d_model values, dense */
    const int32_t *in_rows;  /* [n_rows] row of a8 or x that is input i; NULL: row i */
    const int32_t *out_rows; /* [n_rows] row of the outputs where result i goes; NULL: row i */
    uint16_t *f16;           /* rows of d_model values, dense */
    int8_t *e;               /* one per row of f16 */
    float *f32;              /* rows of d_model values, dense */
    uint8_t *bad;            /* NULL or [n_rows]: set to 1 where result i is not finite, else 0 */
    int n_bad;               /* result: rows that are not finite; their output is not to be used */
} cw_expert_job;

/* Working memory for up to max_rows rows and as many jobs in one run, for any shape in the set. */
typedef struct cw_expert_scratch cw_expert_scratch;
CW_MUST_USE cw_status cw_expert_scratch_new(const cw_expert_set *set, int max_rows, cw_expert_scratch **out,
                                            cw_err *err);
void cw_expert_scratch_free(cw_expert_scratch **s);
int cw_expert_scratch_max_rows(const cw_expert_scratch *s);

/*
 * Computes all jobs, which may be of different experts and layers; the rows of all jobs together at most
 * max_rows. `pool` NULL: in the calling thread. Bits do not depend on pool, kernels, job order or how rows
 * are grouped into jobs. Allocates nothing. NUMERIC when any row is not finite (text names the first layer
 * and expert; n_bad and bad say which rows), with all other rows valid.
 */
CW_MUST_USE cw_status cw_expert_run(const cw_kernels *kn, cw_pool *pool, cw_expert_job *jobs, int n_jobs,
                                    cw_expert_scratch *scratch, cw_err *err);
