/*
 * A multi-token-prediction head (the `nextn` block of DeepSeek-V3 and what is trained like it): one more
 * block behind the model that, from the last hidden state of a position and the token that follows it,
 * foresees the token after that. Here it drafts: its guesses are verified by the model itself, so nothing
 * about it can change a bit of an answer.
 *
 *     head(i) = block( eh_proj [ enorm(embedding of token i+1) ; hnorm(hidden state of position i) ] )
 *     logits for token i+2 = output( shared_head_norm( head(i) ) )
 *
 * Hidden states are those before the model's output norm; embedding and output are the model's own
 * (DeepSeek-V3, section 2.2). For a second guess the head is applied to its own output in the hidden
 * state's place. The block has a KV cache of its own, which follows what the model's session holds: rows
 * whose token or hidden state is no longer the session's are computed again before they count.
 *
 * Its experts, where it has any, are held and computed here: a head whose rows came from workers would cost
 * the round trip that a draft is there to save.
 *
 * Threads: those of the engine. The head uses the engine's pool.
 */
#pragma once
#include "cw/engine.h"

enum { CW_MTP_MAX = 2 }; /* guesses in a row */

typedef struct cw_mtp cw_mtp;           /* a loaded head */
typedef struct cw_mtp_line cw_mtp_line; /* its view of one session */

/*
 * Loads the head of the model that `e` was opened from; `model` is that file, `companion` a file that holds
 * nothing but the head, or NULL: then it is looked for in the model's own file. Both may be closed
 * afterwards. Blocks. NOT_FOUND: there is no head; MISMATCH: the companion was made for another model; else
 * as cw_engine_open.
 */
CW_MUST_USE cw_status cw_mtp_open(cw_engine *e, const cw_gguf *model, const cw_gguf *companion, cw_mtp **out,
                                  cw_err *err);
/* Lines must be gone; before the engine. */
void cw_mtp_close(cw_mtp **m);
/* Packed weights held for it, bytes. */
size_t cw_mtp_weight_bytes(const cw_mtp *m);

/* What a file holds, without loading it. `c` is the model's configuration. Errors as cw_mtp_open. */
typedef struct {
    int block;           /* its number */
    bool moe;            /* its feed-forward is experts */
    uint64_t n_params;   /* of the tensors that are used */
    uint64_t edge_bytes; /* packed, experts included */
} cw_mtp_facts;
CW_MUST_USE cw_status cw_mtp_describe(const cw_gguf *model, const cw_model_config *c,
                                      const cw_gguf *companion, cw_mtp_facts *out, cw_err *err);

/* Follows the session from its next pass on. One line a session; freed before the session. */
CW_MUST_USE cw_status cw_mtp_line_new(cw_mtp *m, cw_session *s, cw_mtp_line **out, cw_err *err);
void cw_mtp_line_free(cw_mtp_line **l);

/* Chooses the token for `position` behind before[n], as cw_sampler_pick does; negative: guess no further. */
typedef int32_t (*cw_mtp_pick)(void *ctx, const float *logits, int64_t position, const int32_t *before,
                               int n);
/*
 * Up to n <= CW_MTP_MAX guesses for what follows `next`, which follows what the session holds and is not in
 * it yet. Returns how many; 0 also where the session's last pass was not seen (it was imported, or came
 * before the line). Allocates nothing.
 */
int cw_mtp_guess(cw_mtp_line *l, int32_t next, int n, cw_mtp_pick pick, void *ctx, int32_t *out);

/* Positions [*from, return value) whose rows are in the head's cache. For tests. */
int cw_mtp_line_held(const cw_mtp_line *l, int *from);
