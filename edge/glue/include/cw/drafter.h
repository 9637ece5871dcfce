/*
 * A drafter guesses the tokens that come next, for the big model to verify in one pass. Whether it is right
 * changes speed, never text (docs/NUMERICS.md, "Sampling and drafting"), so it cannot fail: who cannot guess
 * guesses nothing.
 *
 * The fallback drafts from a thread of its own (cw/shadow.h), while the big model verifies. What this
 * interface is for drafts between two passes, in the answering thread; it sees for itself what the big
 * model's session holds and where that was rewound.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct cw_drafter cw_drafter;

typedef struct {
    /*
     * At most n guesses, in order, for what follows `next`: the token that was chosen behind the session's
     * last one and which the session does not hold yet. Returns how many; fewer when the answer seems to end
     * there. Allocates nothing.
     */
    int (*propose)(cw_drafter *self, int32_t next, int n, int32_t *out);
    void (*destroy)(cw_drafter *self);
} cw_drafter_vtable;

/* Implementations embed this as their first member. */
struct cw_drafter {
    const cw_drafter_vtable *vt;
    int max; /* guesses it can make in a row */
};

static inline int cw_drafter_propose(cw_drafter *d, int32_t next, int n, int32_t *out)
{
    if (n > d->max) n = d->max;
    return n > 0 ? d->vt->propose(d, next, n, out) : 0;
}

static inline void cw_drafter_free(cw_drafter **d)
{
    if (!d || !*d) return;
    (*d)->vt->destroy(*d);
    *d = NULL;
}
