/*
 * Who guesses before the next pass, where there are two who could: the fallback, which makes long runs while
 * the pass before is away, and the model's own prediction head, which makes short ones between passes. Each
 * has a governor of its own, for the time of a guess and how often it is right are its own; what passes cost
 * they learn together.
 *
 * The one that promises more guesses. The other is tried when it might be better by what is not known of it:
 * half as much again for one that was never tried, and ever more for one that was not tried for long.
 *
 * Pure, as the governor is.
 */
#pragma once
#include "cw/governor.h"

typedef enum { CW_BY_FALLBACK, CW_BY_HEAD, CW_N_GUESSERS } cw_guesser;

typedef struct {
    bool can[CW_N_GUESSERS];
    cw_governor g[CW_N_GUESSERS];
    cw_plan plan[CW_N_GUESSERS];
    cw_guesser now;
    int stay;                    /* rounds before the other may be chosen */
    double known[CW_N_GUESSERS]; /* rounds it guessed for, fading */
    uint64_t n_changes;
} cw_guessers;

/* Nobody can yet. */
void cw_guessers_init(cw_guessers *s);
/* That one can: at most `max` in a row; what the plan says of the machine's fallback and acceptance is said
 * of it. The first that is added begins. may_rest: where no draft pays there is none. */
void cw_guessers_add(cw_guessers *s, cw_guesser who, const cw_plan *p, int max, bool may_rest);
/* The link has become another, by what is known of it and of the workers. */
void cw_guessers_link(cw_guessers *s, const cw_plan_link *link, const cw_plan_workers *workers);

/* Guesses for the next round, made by s->now. */
int cw_guessers_length(cw_guessers *s);
/* As cw_governor_tell. */
void cw_guessers_tell(cw_guessers *s, int n_drafted, int n_accepted, int64_t wait_us, int64_t pass_us);

static inline const cw_governor *cw_guessers_governor(const cw_guessers *s)
{
    return &s->g[s->now];
}
