/*
 * The governor: how many tokens the fallback guesses before the next pass, none included, so that most
 * tokens come a second. With none allowed it also chooses between split and draft, from pass to pass.
 *
 * It begins with the plan (cw/plan.h), which knows the shape: what a row more costs on this link. What it is
 * told of real rounds corrects that: the ratio of measured to planned time, smoothed over lengths near each
 * other, and how often the guess at each place of a run was right. Old rounds fade, so a link that changes is
 * noticed. It moves only when another length promises clearly more, and looks at others now and then, the
 * more seldom the longer that gained nothing.
 *
 * Pure: no clock and no threads; the same calls give the same choices. Whatever it chooses, the text is the
 * same (docs/NUMERICS.md).
 */
#pragma once
#include "cw/plan.h"

enum { CW_GOVERNOR_RUNGS = 14 };

typedef struct {
    /* The lengths that are considered, ascending, are cw_governor_rung(0..). */
    double planned_us[CW_GOVERNOR_RUNGS];
    double ratio[CW_GOVERNOR_RUNGS], weight[CW_GOVERNOR_RUNGS];        /* measured to planned; rounds */
    double usual[CW_GOVERNOR_RUNGS];                                   /* the same as a running median */
    double stalled_us;                                                 /* a round, beyond what is usual */
    double right[CW_PLAN_DRAFT_MAX + 1], tried[CW_PLAN_DRAFT_MAX + 1]; /* by place in the run, from 1 */
    double acceptance;                                                 /* expected before any guess */
    int low, high;                                                     /* rungs that may be chosen */
    int rung;                                                          /* the choice */
    int probe; /* a rung that is looked at for a few rounds; -1: none */
    int probe_left, probe_in, probe_gap;
    int skip;   /* rounds whose time is not typical: the first after a change has no guesses ready */
    int streak; /* of rounds that took longer (or less, negative) than expected */
    int stayed; /* rounds since the choice changed */
    int asked;  /* by the last cw_governor_length */
    uint64_t n_rounds, n_changes, n_probes;
} cw_governor;

/* Runs of at most `max` (1..CW_PLAN_DRAFT_MAX); may_rest: 0 may be chosen. */
void cw_governor_init(cw_governor *g, const cw_plan *p, int max, bool may_rest);
/* What is known of link and workers has changed: the measured ratios count for less from now on. */
void cw_governor_plan(cw_governor *g, const cw_plan *p);

/* The length for the next round. */
int cw_governor_length(cw_governor *g);
/* A round is over: guesses that were made, how many were right, and the time from asking for the length to
 * now. */
void cw_governor_tell(cw_governor *g, int n_drafted, int n_accepted, int64_t round_us);

/* What it expects of runs of n guesses. */
double cw_governor_round_us(const cw_governor *g, int n);
double cw_governor_yield(const cw_governor *g, int n);
/* Share of guesses that were right, lately. */
double cw_governor_acceptance(const cw_governor *g);
/* Its choice now, an exploration apart. */
int cw_governor_choice(const cw_governor *g);
/* A sentence: what it chose and why. */
void cw_governor_why(const cw_governor *g, char *text, size_t cap);
