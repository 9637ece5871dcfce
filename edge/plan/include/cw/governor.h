/*
 * The governor: how many tokens the fallback guesses before the next pass, none included, so that most
 * tokens come a second. With none allowed it also chooses between split and draft, from pass to pass.
 *
 * What it knows of passes is a line and a curve: a pass of m rows takes
 *
 *     first + (m - 1) * row + curve * S(m)
 *
 * where S is the shape in which m rows read more experts (cw/plan.h). The plan gives the three numbers to
 * begin with, and how little they are to be trusted; every pass of whatever length corrects all three
 * (a Kalman filter), so what short runs cost tells what long ones would. Passes far beyond what is expected
 * are stalls, counted apart, since they befall every length alike; several in a row are another link. The
 * time of a guess and how often the guess at each place of a run was right are measured too. Old rounds fade.
 * It moves only when another length promises clearly more, and looks at another where what it does not know
 * might be worth it.
 *
 * Pure: no clock and no threads; the same calls give the same choices. Whatever it chooses, the text is the
 * same (docs/NUMERICS.md).
 */
#pragma once
#include "cw/plan.h"

enum { CW_GOVERNOR_RUNGS = 14, CW_GOVERNOR_PARTS = 3 };

typedef struct {
    /* Of a pass: first, row, curve, in microseconds; and how uncertain (covariance). */
    double x[CW_GOVERNOR_PARTS], p[CW_GOVERNOR_PARTS][CW_GOVERNOR_PARTS];
    double shape[CW_PLAN_DRAFT_MAX + 2]; /* S by rows, S(1) = 0, S(2) = 1 */
    double planned_us;                   /* first, as the plan has it */
    double guess_us;                     /* of one guess */
    double shown;      /* part of the guessing that is waited for when all guesses before were right */
    double stalled_us; /* a round, beyond what is usual */
    double right[CW_PLAN_DRAFT_MAX + 1], tried[CW_PLAN_DRAFT_MAX + 1]; /* by place in the run, from 1 */
    double acceptance;                                                 /* expected before any guess */
    int low, high;                                                     /* rungs that may be chosen */
    int rung;                                                          /* the choice */
    int probe; /* a rung that is looked at in this round; -1: none */
    int probe_in, probe_gap;
    int streak;        /* of passes that took far more (or less, negative) than expected */
    int stayed;        /* rounds since the choice changed */
    int asked;         /* by the last cw_governor_length */
    int n_before;      /* guesses of the round before; */
    bool wrong_before; /* one of them was wrong, or it is the first */
    uint64_t n_rounds, n_changes, n_probes;
} cw_governor;

/* Runs of at most `max` (1..CW_PLAN_DRAFT_MAX); may_rest: 0 may be chosen. */
void cw_governor_init(cw_governor *g, const cw_plan *p, int max, bool may_rest);
/* The link has become another, by the plan's knowledge of it. */
void cw_governor_plan(cw_governor *g, const cw_plan *p);

/* The length for the next round. */
int cw_governor_length(cw_governor *g);
/* A round is over: guesses that were made, how many were right, how long the pass had to wait for them, and
 * how long it took. */
void cw_governor_tell(cw_governor *g, int n_drafted, int n_accepted, int64_t wait_us, int64_t pass_us);

/* Passes cost the same whoever guesses: of them `to` knows from now on what `from` does. For several
 * governors of one link, of which one at a time is told of rounds. */
void cw_governor_learn_passes(cw_governor *to, const cw_governor *from);
/* Guesses that were begun while the pass before was away are not there: others guessed, or nobody. */
void cw_governor_begin_anew(cw_governor *g);

/* Tokens a microsecond that it expects of its choice. */
double cw_governor_rate(const cw_governor *g);
/* What it expects of runs of n guesses. */
double cw_governor_round_us(const cw_governor *g, int n);
double cw_governor_yield(const cw_governor *g, int n);
/* Share of guesses that were right, lately. */
double cw_governor_acceptance(const cw_governor *g);
/* Its choice now, an exploration apart. */
int cw_governor_choice(const cw_governor *g);
/* A sentence: what it chose and why. */
void cw_governor_why(const cw_governor *g, char *text, size_t cap);
