/*
 * The shadow: the small model following, on a thread of its own, what the big one writes.
 *
 * It keeps the small model's KV cache at most CW_SHADOW_LAG tokens behind the conversation, so that the small
 * model can go on in mid-sentence, and it guesses the tokens that come next (drafting): the line it follows
 * is the conversation's tokens, then its own guesses. A pushed token that equals the next guess confirms it;
 * any other drops the guesses. So the next run is drafted while the big model still verifies the last one.
 *
 * Guesses use the same sampler and the same noise as the big model's choices (docs/NUMERICS.md, "Sampling and
 * drafting"). Whether they are right changes speed, never text.
 *
 * The shadow's thread owns the speaker except between cw_shadow_take and cw_shadow_give. Everything else is
 * called by one thread, the one that answers, and allocates nothing. Following works in small batches while
 * the big model waits for the network (cw_shadow_network); only a shadow that would fall too far behind
 * computes at other times.
 */
#pragma once
#include "cw/sampler.h"
#include "cw/speaker.h"

enum {
    CW_SHADOW_LAG = 16,      /* tokens it may be behind while the big model decodes */
    CW_SHADOW_GUESS_MAX = 32 /* guesses beyond the conversation's end */
};

typedef struct cw_shadow cw_shadow;

/* Borrows the speaker, which shares the big model's vocabulary wherever guesses are wanted. Starts the
 * thread. INVALID names a sampler parameter; NO_MEMORY, LIMIT. */
CW_MUST_USE cw_status cw_shadow_new(cw_speaker *small, const cw_sampler_params *p, cw_shadow **out,
                                    cw_err *err);
/* Joins the thread; not while the speaker is taken. */
void cw_shadow_free(cw_shadow **s);

/* The conversation is these tokens now, and `ahead` guesses are wanted beyond it (0: only follow). What is
 * cached of a common beginning stays. `hurry`: decoding begins, hold the lag from here on. */
void cw_shadow_set(cw_shadow *s, const int32_t *tokens, int n, int ahead, bool hurry);
/* The conversation has grown by one token. */
void cw_shadow_push(cw_shadow *s, int32_t token);
/* Other numbers of guesses from now on. */
void cw_shadow_ahead(cw_shadow *s, int ahead);
/*
 * Up to n guesses for what follows the conversation; waits for the guessing, not for a cache that is still
 * far behind (0 then). Fewer than n: the small model expects the answer to end there, or has no room left.
 */
int cw_shadow_guess(cw_shadow *s, int n, int32_t *out);
/* The big model waits for the network (true) or computes again (false). */
void cw_shadow_network(cw_shadow *s, bool away);

/* The caller has the speaker: its session may hold less or more than the conversation. Waits at most for one
 * small batch. */
void cw_shadow_take(cw_shadow *s);
void cw_shadow_give(cw_shadow *s);

typedef struct {
    int n_line, n_behind; /* tokens of the conversation; of these, not in the small model's cache yet */
    int max_behind;       /* the most while decoding, since the last cw_shadow_set with hurry */
    uint64_t n_evaluated; /* tokens the small model computed, dropped guesses included */
    int64_t guess_us;     /* smoothed time of one guess; 0: none made yet */
} cw_shadow_facts;
void cw_shadow_get_facts(cw_shadow *s, cw_shadow_facts *out);

/*
 * Experts that tell the shadow when the engine waits for `inner`. Owned by the shadow; give the engine
 * `inner` back before cw_shadow_free.
 */
cw_experts *cw_shadow_watch(cw_shadow *s, cw_experts *inner);
