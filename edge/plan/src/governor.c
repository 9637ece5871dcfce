/*
 * The lengths lie on a ladder, so that neighbours differ by enough to be told apart and the work of a choice
 * is a few hundred operations. Figures below are rounds unless they say otherwise.
 */
#include "cw/governor.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST, ROW, CURVE, PARTS = CW_GOVERNOR_PARTS };

static const int rungs[CW_GOVERNOR_RUNGS] = {0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32};

enum {
    FIRST_RUN = 4,    /* guesses: the longest run to begin with */
    FIRST_LOOK = 3,   /* before the first exploration */
    LONGEST_GAP = 48, /* between explorations that gain nothing */
    YOUNG = 8,        /* the plan may be wrong by far: follow the first news at once */
    STAY = 4,         /* at least, between changes */
    STREAK = 4,       /* of passes far from what is expected, before they count as another link */
    STALL_MEMORY = 60,
    PLACE_WEIGHT = 6, /* guesses: how much the run's mean counts at one place */
    FIRST_WEIGHT = 4, /* guesses: how much the expected acceptance counts */
};

static const double fade = 0.98;       /* of what is known of guesses, by a round */
static const double better = 1.04;     /* by which another length must promise more */
static const double noise = 0.12;      /* of a pass's time, from one to the next */
static const double drift = 0.006;     /* of the first row's time, from one round to the next */
static const double row_drift = 0.005; /* of a further row's time, in parts of the first's */
static const double far_off = 4;       /* standard deviations: no noise any more */

/* --- passes --- */

static void features(const cw_governor *g, int rows, double h[PARTS])
{
    h[FIRST] = 1, h[ROW] = rows - 1, h[CURVE] = g->shape[rows];
}

static double pass_us(const cw_governor *g, int rows)
{
    double h[PARTS], us = 0;
    features(g, rows, h);
    for (int i = 0; i < PARTS; i++) us += h[i] * g->x[i];
    return us > 1 ? us : 1;
}

/* Variance of what is expected; of its difference from what is expected of `than` rows, where that is not 0.
 */
static double variance(const cw_governor *g, int rows, int than)
{
    double h[PARTS], o[PARTS], v = 0;
    features(g, rows, h);
    if (than) {
        features(g, than, o);
        for (int i = 0; i < PARTS; i++) h[i] -= o[i];
    }
    for (int i = 0; i < PARTS; i++)
        for (int k = 0; k < PARTS; k++) v += h[i] * g->p[i][k] * h[k];
    return v > 0 ? v : 0;
}

/* Kalman's correction: h . x was measured, with that standard deviation. */
static void correct(cw_governor *g, const double h[PARTS], double value, double sd)
{
    double ph[PARTS] = {0}, s = sd * sd, miss = value;
    for (int i = 0; i < PARTS; i++) {
        miss -= h[i] * g->x[i];
        for (int k = 0; k < PARTS; k++) ph[i] += g->p[i][k] * h[k];
    }
    for (int i = 0; i < PARTS; i++) s += ph[i] * h[i];
    for (int i = 0; i < PARTS; i++) g->x[i] += ph[i] / s * miss;
    for (int i = 0; i < PARTS; i++)
        for (int k = 0; k < PARTS; k++) g->p[i][k] -= ph[i] * ph[k] / s;
}

static double square(double x)
{
    return x * x;
}

/* A pass was measured. No part is negative: where one would be, that is known too, and the others follow. */
static void correct_pass(cw_governor *g, int rows, double us, double sd)
{
    double h[PARTS];
    features(g, rows, h);
    correct(g, h, us, sd);
    for (int i = PARTS - 1; i >= 0; i--) {
        double least = i == FIRST ? us / (2 * rows) : 0, unit[PARTS] = {0};
        if (g->x[i] >= least) continue;
        unit[i] = 1;
        correct(g, unit, least, us / (4 * rows));
        if (g->x[i] < least) g->x[i] = least;
    }
}

static void doubt(cw_governor *g, double first_sd)
{
    g->p[FIRST][FIRST] += square(first_sd);
    g->p[ROW][ROW] += square(0.3 * g->x[ROW] + 0.1 * first_sd);
    g->p[CURVE][CURVE] += square(0.3 * g->x[CURVE]);
}

/* What goes far beyond what is expected is a stall; again and again it is a change of the link. */
static void learn_pass(cw_governor *g, int rows, double us)
{
    double expected = pass_us(g, rows), sd = noise * expected;
    double most = far_off * sqrt(variance(g, rows, 0) + sd * sd), miss = us - expected, stalled = 0;
    int side = miss > most ? 1 : miss < -0.6 * expected && miss < -most / 2 ? -1 : 0;
    g->streak = side && (side > 0) == (g->streak > 0) ? g->streak + side : side;
    bool changed = abs(g->streak) >= STREAK;
    if (side > 0) stalled = miss;
    g->stalled_us += ((changed ? 0 : stalled) - g->stalled_us) / STALL_MEMORY;
    if (side && !changed) return;
    if (changed) {
        /* What was taken for stalls was the link. */
        g->stalled_us = fmax(0, g->stalled_us - (STREAK - 1) * stalled / STALL_MEMORY);
        g->streak = 0;
        doubt(g, fabs(miss));
        g->probe_gap = g->probe_in = FIRST_LOOK;
    }
    /* Of the two the less, so that a plan that was far too high does not make what is measured vague. */
    correct_pass(g, rows, us, noise * (changed ? us : fmin(expected, us)));
    g->p[FIRST][FIRST] += square(drift * g->x[FIRST]);
    g->p[ROW][ROW] += square(drift * g->x[ROW] + row_drift * g->x[FIRST]);
    g->p[CURVE][CURVE] += square(drift * g->x[CURVE]);
}

/* --- guesses --- */

double cw_governor_acceptance(const cw_governor *g)
{
    double right = FIRST_WEIGHT * g->acceptance, tried = FIRST_WEIGHT;
    for (int i = 1; i <= CW_PLAN_DRAFT_MAX; i++) right += g->right[i], tried += g->tried[i];
    return right / tried;
}

/* Tokens a round of n guesses yields where the guesses at all places are right `more` more often; *all: how
 * often all are right. */
static double yield_of(const cw_governor *g, int n, double more, double *all)
{
    double a = cw_governor_acceptance(g), reached = 1, yield = 1;
    for (int i = 1; i <= n; i++) {
        double here = (g->right[i] + PLACE_WEIGHT * a) / (g->tried[i] + PLACE_WEIGHT) + more;
        reached *= here < 1 ? here : 1;
        yield += reached;
    }
    if (all) *all = reached;
    return yield;
}

double cw_governor_yield(const cw_governor *g, int n)
{
    return yield_of(g, n, 0, NULL);
}

/* Runs behind a wrong guess are made with nothing to hide behind, others while the pass before was away. */
static double wait_us(const cw_governor *g, int n)
{
    double all;
    yield_of(g, n, 0, &all);
    return n * g->guess_us * (1 - all + all * g->shown);
}

static void learn_guesses(cw_governor *g, int n_drafted, int n_accepted, double wait)
{
    for (int i = 1; i <= CW_PLAN_DRAFT_MAX; i++) g->right[i] *= fade, g->tried[i] *= fade;
    for (int i = 1; i <= n_accepted; i++) g->right[i]++, g->tried[i]++;
    /* The first wrong guess; and where the fallback made none at all, none was right. */
    if (n_accepted < n_drafted || (n_drafted == 0 && g->asked > 0)) g->tried[n_accepted + 1]++;
    if (n_drafted > 0 && g->wrong_before) {
        /* A fallback that had to read first took longer: what is less is believed sooner. */
        double one = wait / n_drafted;
        g->guess_us += (one - g->guess_us) * (one < g->guess_us ? 0.25 : 0.1);
    } else if (n_drafted > 0 && n_drafted <= g->n_before && g->guess_us > 0) {
        double part = wait / (n_drafted * g->guess_us);
        g->shown += ((part < 1 ? part : 1) - g->shown) * 0.15;
    }
    g->wrong_before = n_accepted < n_drafted || n_drafted == 0;
    g->n_before = n_drafted;
}

/* --- the choice --- */

static int rung_of(int n)
{
    int r = 0;
    while (r + 1 < CW_GOVERNOR_RUNGS && rungs[r + 1] <= n) r++;
    return r;
}

double cw_governor_round_us(const cw_governor *g, int n)
{
    return pass_us(g, 1 + n) + wait_us(g, n) + g->stalled_us;
}

/* Tokens a microsecond. */
static double rate(const cw_governor *g, int r)
{
    return cw_governor_yield(g, rungs[r]) / cw_governor_round_us(g, rungs[r]);
}

double cw_governor_rate(const cw_governor *g)
{
    return rate(g, g->rung);
}

static int best_rung(const cw_governor *g)
{
    int best = g->low;
    for (int r = g->low + 1; r <= g->high; r++)
        if (rate(g, r) > rate(g, best)) best = r;
    return best;
}

/* The same if what is not known of that rung turns out well, compared with the choice. */
static double hopeful_rate(const cw_governor *g, int r)
{
    int n = rungs[r];
    double a = cw_governor_acceptance(g), tried = FIRST_WEIGHT, us = cw_governor_round_us(g, n);
    for (int i = 1; i <= CW_PLAN_DRAFT_MAX; i++) tried += g->tried[i];
    double more = rungs[g->rung] ? 0 : sqrt(a * (1 - a) / tried) / 2; /* while resting nothing is guessed */
    double less = sqrt(variance(g, 1 + n, 1 + rungs[g->rung]));
    return yield_of(g, n, more, NULL) / (us - (less < us / 2 ? less : us / 2));
}

static int to_look_at(const cw_governor *g)
{
    int found = -1;
    double most = better * rate(g, g->rung);
    for (int r = g->low; r <= g->high; r++) {
        double hope = r == g->rung ? 0 : hopeful_rate(g, r);
        if (hope > most) most = hope, found = r;
    }
    return found;
}

static void explore(cw_governor *g)
{
    g->probe = -1;
    if (--g->probe_in > 0) return;
    g->probe = to_look_at(g);
    if (g->probe >= 0) {
        g->n_probes++;
        g->probe_gap = g->probe_gap * 2 < LONGEST_GAP ? g->probe_gap * 2 : LONGEST_GAP;
    }
    g->probe_in = g->probe_gap;
}

static void choose(cw_governor *g)
{
    g->stayed++;
    bool young = g->n_rounds < YOUNG;
    int best = best_rung(g);
    if (best == g->rung || (!young && g->stayed < STAY)) return;
    if (rate(g, best) < (young ? 1 : better) * rate(g, g->rung)) return;
    g->rung = best;
    g->stayed = 0;
    g->n_changes++;
}

/* --- from outside --- */

static void read_shape(cw_governor *g, const cw_plan *p)
{
    double one = cw_plan_experts_read(&p->model, 1), two = cw_plan_experts_read(&p->model, 2);
    for (int m = 1; m <= CW_PLAN_DRAFT_MAX + 1; m++)
        g->shape[m] = two > one ? (cw_plan_experts_read(&p->model, m) - one) / (two - one) : 0;
}

void cw_governor_init(cw_governor *g, const cw_plan *p, int max, bool may_rest)
{
    memset(g, 0, sizeof *g);
    g->acceptance = p->machine.acceptance;
    g->low = may_rest ? 0 : 1;
    g->high = rung_of(max);
    if (g->high < g->low) g->high = g->low;
    g->probe = -1;
    g->probe_in = g->probe_gap = FIRST_LOOK;
    g->wrong_before = true;
    g->guess_us = p->machine.fallback_us;
    g->shown = p->machine.draft_waits ? 1 : 0;
    read_shape(g, p);
    /* The plan's line and curve through passes of 1, 2 and 33 rows. */
    const int last = CW_PLAN_DRAFT_MAX + 1;
    double one = cw_plan_pass_us(p, 1), two = cw_plan_pass_us(p, 2) - one,
           all = cw_plan_pass_us(p, last) - one;
    double bend = last - 1 - g->shape[last];
    g->x[FIRST] = g->planned_us = one > 1 ? one : 1;
    g->x[CURVE] = bend > 0 ? fmax(0, fmin(two, (two * (last - 1) - all) / bend)) : 0;
    g->x[ROW] = fmax(0, two - g->x[CURVE]);
    double sd = 0.5 * g->x[FIRST];
    g->p[FIRST][FIRST] = square(sd);
    g->p[ROW][ROW] = square(g->x[ROW] + 0.1 * g->x[FIRST]);
    g->p[CURVE][CURVE] = square(g->x[CURVE]);
    g->rung = best_rung(g);
    if (rungs[g->rung] > FIRST_RUN) g->rung = rung_of(FIRST_RUN);
}

void cw_governor_plan(cw_governor *g, const cw_plan *p)
{
    double one = cw_plan_pass_us(p, 1);
    read_shape(g, p);
    /* A governor that has found out by itself hardly moves; one that has not believes the news. */
    doubt(g, fabs(one - g->planned_us));
    correct_pass(g, 1, one, 0.4 * one);
    g->planned_us = one;
    g->rung = best_rung(g);
    g->probe = -1;
    g->probe_gap = g->probe_in = FIRST_LOOK;
}

void cw_governor_learn_passes(cw_governor *to, const cw_governor *from)
{
    memcpy(to->x, from->x, sizeof to->x);
    memcpy(to->p, from->p, sizeof to->p);
    to->stalled_us = from->stalled_us;
    to->streak = from->streak;
}

void cw_governor_begin_anew(cw_governor *g)
{
    g->wrong_before = true;
    g->n_before = 0;
}

int cw_governor_choice(const cw_governor *g)
{
    return rungs[g->rung];
}

int cw_governor_length(cw_governor *g)
{
    g->asked = rungs[g->probe >= 0 ? g->probe : g->rung];
    return g->asked;
}

void cw_governor_tell(cw_governor *g, int n_drafted, int n_accepted, int64_t wait, int64_t pass)
{
    if (n_drafted > CW_PLAN_DRAFT_MAX) n_drafted = CW_PLAN_DRAFT_MAX;
    if (n_accepted > n_drafted) n_accepted = n_drafted;
    g->n_rounds++;
    learn_guesses(g, n_drafted, n_accepted, wait > 0 ? (double)wait : 0);
    if (pass > 0) learn_pass(g, 1 + n_drafted, (double)pass);
    explore(g);
    choose(g);
}

void cw_governor_why(const cw_governor *g, char *text, size_t cap)
{
    int n = rungs[g->rung];
    double none = cw_governor_round_us(g, 0), pass = cw_governor_round_us(g, n),
           yield = cw_governor_yield(g, n);
    if (n > 0)
        snprintf(text, cap,
                 "runs of %d guesses, %.0f %% of which are right: %.1f tokens a pass of %.1f ms; without a "
                 "draft a "
                 "token would take %.1f ms",
                 n, 100 * cw_governor_acceptance(g), yield, pass / 1e3, none / 1e3);
    else
        snprintf(text, cap,
                 "no draft: a pass takes %.1f ms, and one that verifies 4 guesses would take %.1f ms for "
                 "%.1f tokens",
                 none / 1e3, cw_governor_round_us(g, 4) / 1e3, cw_governor_yield(g, 4));
}
