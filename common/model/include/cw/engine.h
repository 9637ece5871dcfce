/*
 * The engine: a loaded model. The session: one mutable timeline (tokens and their KV cache) on it.
 *
 * An engine advances a batch of sessions layer by layer. What it promises: the logits and the KV row of
 * position p depend on tokens 0..p, the model, the KV type and the arithmetic, and on nothing else: not on
 * chunking, companions in the batch, threads, instruction set, or where experts are computed
 * (docs/NUMERICS.md).
 *
 * Threads: an engine and its sessions are used by one thread at a time; inside a call the pool helps.
 */
#pragma once
#include <stdatomic.h>
#include "cw/experts.h"
#include "cw/expert_ffn.h"
#include "cw/gguf.h"
#include "cw/kernels.h"
#include "cw/model_config.h"
#include "cw/pool.h"

typedef struct cw_engine cw_engine;
typedef struct cw_session cw_session;

typedef enum {
    CW_ENGINE_LOCAL, /* holds everything, experts too */
    CW_ENGINE_EDGE,  /* holds everything but routed experts; cw_engine_set_experts before the first forward */
} cw_engine_role;

typedef struct {
    cw_engine_role role;
    cw_pool *pool;             /* not owned; NULL: the engine makes its own with n_threads */
    int n_threads;             /* 0: one per core */
    const cw_kernels *kernels; /* NULL: the best this machine has */
    int max_rows;              /* rows of one forward pass, 0: 256 */
    cw_model_options model;
    /* Called from the opening thread, bytes of the file read so far and in all. A false return cancels. */
    bool (*progress)(void *ctx, uint64_t done, uint64_t total);
    void *progress_ctx;
} cw_engine_options;

/*
 * Loads the model; blocks. Peak memory is the packed size + 64 MiB. The file may be closed afterwards. `opt`
 * may be NULL. FORMAT, UNSUPPORTED, IO, NO_MEMORY, CANCELLED; the text names the tensor or key.
 */
CW_MUST_USE cw_status cw_engine_open(const cw_gguf *g, const cw_engine_options *opt, cw_engine **out,
                                     cw_err *err);
/* Sessions must be gone. */
void cw_engine_close(cw_engine **e);

/* Where an edge engine's experts are computed; not owned, must
 * outlive its use. May be changed between forwards. */
void cw_engine_set_experts(cw_engine *e, cw_experts *x);

const cw_model_config *cw_engine_config(const cw_engine *e);
/* Shapes of the routed experts, [n_layers]; d_model = 0 for dense layers. Borrowed. */
const cw_expert_shape *cw_engine_expert_shapes(const cw_engine *e);
const cw_kernels *cw_engine_kernels(const cw_engine *e);
cw_pool *cw_engine_pool(cw_engine *e);
int cw_engine_max_rows(const cw_engine *e);
/* Packed weights held, bytes. */
size_t cw_engine_weight_bytes(const cw_engine *e);

typedef enum { CW_KV_AUTO, CW_KV_F32, CW_KV_F16, CW_KV_Q8 } cw_kv_type;

/*
 * How the rows of a long prompt attend (multi-head latent attention only; elsewhere it changes nothing).
 * EXPANDED makes every head's keys and values and multiplies with OpenBLAS: less work where many rows share a
 * pass, but outside the promise above. What is computed so is near the absorbed form, not equal to it, and
 * may differ with chunking and machine.
 */
typedef enum { CW_PREFILL_ABSORBED, CW_PREFILL_EXPANDED } cw_prefill;

typedef struct {
    int n_ctx;          /* 0: the smaller of what the file says and 8192 */
    cw_kv_type kv_type; /* auto: f32 for a model of f32 weights, else f16; q8: 1.125 bytes a value */
    cw_prefill prefill;
} cw_session_options;

/* `opt` may be NULL. Address space for n_ctx positions is reserved; memory is taken as positions are filled.
 * UNSUPPORTED: prefill EXPANDED without OpenBLAS on this machine. */
CW_MUST_USE cw_status cw_session_new(cw_engine *e, const cw_session_options *opt, cw_session **out,
                                     cw_err *err);
void cw_session_free(cw_session **s);

cw_engine *cw_session_engine(const cw_session *s);
int cw_session_n_ctx(const cw_session *s);
cw_kv_type cw_session_kv_type(const cw_session *s); /* never AUTO */
/* Whether every KV row it holds is under the promise of equal bits: no part of it was prefilled in expanded
 * form. */
bool cw_session_is_exact(const cw_session *s);
/*
 * What its bits depend on beside model and tokens, as a line: "arithmetic 2, kv f16" and, for a session that
 * asked for it, ", prefill expanded". Two sessions may be expected to agree to the bit when their lines are
 * equal and both are exact.
 */
enum { CW_SESSION_IDENTITY_MAX = 80 };
void cw_session_identity(const cw_session *s, char line[CW_SESSION_IDENTITY_MAX]);
/* Tokens whose KV rows are valid, oldest first; borrowed until the session changes. */
const int32_t *cw_session_tokens(const cw_session *s, int *n_past);
/* Forgets everything from position n_past on. n_past at most the present one. */
void cw_session_rewind(cw_session *s, int n_past);

/* One session's part in a forward pass. A session occurs at most once in a batch. */
typedef struct {
    cw_session *session;
    const int32_t *tokens; /* appended at the session's n_past */
    int n_tokens;
    int n_logits;  /* logits are wanted for the last n_logits of them */
    float *logits; /* [n_logits, n_vocab], by the caller */
} cw_batch_item;

/*
 * One pass over the model for all items; at most cw_engine_max_rows rows together. On success every session's
 * n_past has grown by its n_tokens. On failure no session has changed and the pass may be repeated. INVALID
 * (token out of range), LIMIT (context full, too many rows), STATE (edge engine without experts), CANCELLED
 * (`*cancel` became true; may be NULL), and whatever the experts return. Allocates nothing.
 */
CW_MUST_USE cw_status cw_engine_forward(cw_engine *e, const cw_batch_item *items, int n_items,
                                        const atomic_bool *cancel, cw_err *err);

/* Appends n tokens in passes of at most max_rows; logits [n_vocab] after the last, or NULL. n_past grows by
   whole passes, so after a failure the session holds a prefix. */
CW_MUST_USE cw_status cw_session_eval(cw_session *s, const int32_t *tokens, int n, float *logits,
                                      const atomic_bool *cancel, cw_err *err);
/* Makes the timeline equal to tokens[n] (n >= 1): keeps the common prefix, evaluates the rest (at least the
   last token, so that there are logits). *n_reused (may be NULL): tokens that needed no evaluation. */
CW_MUST_USE cw_status cw_session_sync(cw_session *s, const int32_t *tokens, int n, float *logits,
                                      int *n_reused, const atomic_bool *cancel, cw_err *err);

/*
 * Keeping a session: its KV rows, layer after layer, each layer's positions together. `put` and `get` move n
 * bytes; what they return ends the work and is returned.
 */
typedef cw_status (*cw_session_put)(void *ctx, const void *data, size_t n, cw_err *err);
typedef cw_status (*cw_session_get)(void *ctx, void *data, size_t n, cw_err *err);
/* Bytes of the rows of one position and layer, and of everything that cw_session_export puts. */
size_t cw_session_row_bytes(const cw_session *s);
size_t cw_session_export_bytes(const cw_session *s);
CW_MUST_USE cw_status cw_session_export(const cw_session *s, cw_session_put put, void *ctx, cw_err *err);
/*
 * The session becomes tokens[n] with rows from elsewhere. The caller answers for the rows: that they are of
 * this model, of an equal identity (cw_session_identity) and row size, and unchanged. n_exact: how many
 * positions, counted from the first, are under the promise of equal bits. LIMIT: more than the context holds;
 * INVALID: a token that the model does not have; after a failure of `get` the session is empty.
 */
CW_MUST_USE cw_status cw_session_import(cw_session *s, const int32_t *tokens, int n, int n_exact,
                                        cw_session_get get, void *ctx, cw_err *err);
/* How many positions are under that promise; cw_session_is_exact: all. */
int cw_session_n_exact(const cw_session *s);

/* The KV rows of one position and layer as stored (latent and
 * rope part, or keys and values); borrowed. For tests. */
const void *cw_session_kv_row(const cw_session *s, int layer, int position, size_t *bytes);
