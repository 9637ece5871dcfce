/* Pauses between attempts to reach a peer: doubled from `first` up to `most`, each shortened by up to half at
 * random, so that a thousand edges do not come back in step after an outage. Pure; the seed is the owner's.
 */
#pragma once
#include <stdint.h>

typedef struct {
    int64_t first_us, most_us, next_us; /* next_us 0: at the beginning */
    uint64_t random;                    /* state: any value, different in every process */
} cw_backoff;

static inline void cw_backoff_reset(cw_backoff *b)
{
    b->next_us = 0;
}

/* How long to wait now; the following pause is twice as long. */
static inline int64_t cw_backoff_take(cw_backoff *b)
{
    int64_t base = b->next_us ? b->next_us : b->first_us;
    b->next_us = base > b->most_us / 2 ? b->most_us : 2 * base;
    /* splitmix64 */
    uint64_t z = b->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return base - (int64_t)(z % (uint64_t)(base / 2 + 1));
}
