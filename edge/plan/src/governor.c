/*
 * The lengths lie on a ladder, so that neighbours differ by enough to be told apart and the work of a choice
 * is a few hundred operations. Figures below are rounds unless they say otherwise.
 */
#include "cw/governor.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int rungs[CW_GOVERNOR_RUNGS] = {0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32};

enum {
    FIRST_LOOK = 6,   /* before the first exploration */
    LONGEST_GAP = 96, /* between explorations that gain nothing */
    LOOK = 4,         /* of one exploration, the first of which is not counted */
    YOUNG = 16,
    FIRST_RUN = 8, /* guesses: the longest run to begin with */
    STAY = 6,      /* at least, between changes */
    STALL_MEMORY = 60,
    MEMORY = 40,      /* that the mean time of a length reaches back */
    STREAK = 5,       /* of surprises, before they count as a change */
    PLACE_WEIGHT = 6, /* guesses: how much the run's mean counts at one place */
    FIRST_WEIGHT = 4, /* guesses: how much the expected acceptance counts */
};

static const double fade = 0.98;         /* of what is known of guesses, by a round */
static const double fade_others = 0.995; /* of what is known of times */
static const double guess_weight = 0.3;  /* rounds: of what lengths nearby say of one */
static const double better = 1.06;       /* by which another length must promise more */
static const double worth_a_look = 0.8;  /* an exploration must promise at least that part of the choice */
static const double far = 0.35;          /* lengths whose logarithms differ by that much inform by a half */
static const double wildest = 2.5;       /* times the usual: what is more is a stall */

static double nearness(int a, int b)
{
    double x = log((1.0 + rungs[a]) / (1.0 + rungs[b])) / far;
    return 1 / (1 + x * x);
}

/* Measured to planned: what lengths nearby say is a guess, which a few rounds of its own outweigh. */
static double ratio_at(const cw_governor *g, int r)
{
    double sum = 0.05, weight = 0.05; /* with nothing measured: as planned */
    for (int k = 0; k < CW_GOVERNOR_RUNGS; k++) {
        double near = nearness(r, k);
        sum += near * g->weight[k] * g->ratio[k];
        weight += near * g->weight[k];
    }
    return (guess_weight * sum / weight + g->weight[r] * g->ratio[r]) / (guess_weight + g->weight[r]);
}

double cw_governor_acceptance(const cw_governor *g)
{
    double right = FIRST_WEIGHT * g->acceptance, tried = FIRST_WEIGHT;
    for (int i = 1; i <= CW_PLAN_DRAFT_MAX; i++) right += g->right[i], tried += g->tried[i];
    return right / tried;
}

double cw_governor_yield(const cw_governor *g, int n)
{
    double a = cw_governor_acceptance(g), reached = 1, yield = 1;
    for (int i = 1; i <= n; i++) {
        reached *= (g->right[i] + PLACE_WEIGHT * a) / (g->tried[i] + PLACE_WEIGHT);
        yield += reached;
    }
    return yield;
}

static int rung_of(int n)
{
    int r = 0;
    while (r + 1 < CW_GOVERNOR_RUNGS && rungs[r + 1] <= n) r++;
    return r;
}

double cw_governor_round_us(const cw_governor *g, int n)
{
    int r = rung_of(n);
    return g->planned_us[r] * ratio_at(g, r) + g->stalled_us;
}

/* Tokens a microsecond. */
static double rate(const cw_governor *g, int r)
{
    return cw_governor_yield(g, rungs[r]) / (g->planned_us[r] * ratio_at(g, r) + g->stalled_us);
}

static int best_rung(const cw_governor *g)
{
    int best = g->low;
    for (int r = g->low + 1; r <= g->high; r++)
        if (rate(g, r) > rate(g, best)) best = r;
    return best;
}

static void read_plan(cw_governor *g, const cw_plan *p)
{
    for (int r = 0; r < CW_GOVERNOR_RUNGS; r++) {
        double us = cw_plan_round_us(p, rungs[r]);
        g->planned_us[r] = us >= 1 ? us : 1;
    }
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
    g->skip = 1;
    read_plan(g, p);
    g->rung = best_rung(g);
    if (rungs[g->rung] > FIRST_RUN) g->rung = rung_of(FIRST_RUN);
}

void cw_governor_plan(cw_governor *g, const cw_plan *p)
{
    read_plan(g, p);
    for (int r = 0; r < CW_GOVERNOR_RUNGS; r++) {
        g->weight[r] *= 0.25;
    }
    g->probe_gap = FIRST_LOOK;
    if (g->probe_in > FIRST_LOOK) g->probe_in = FIRST_LOOK;
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

/* The rung of most promise among those little is known of: a step up or down, a stride, and both ends of the
 * choice between split and draft. -1: none is worth it. */
static int to_look_at(const cw_governor *g)
{
    int planned = g->rung == 0 ? (g->high < 4 ? g->high : 4) : 0;
    const int candidates[] = {g->rung - 1, g->rung + 1, g->rung - 3, g->rung + 3, planned};
    double now = rate(g, g->rung), most = worth_a_look * now;
    int found = -1;
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
        int r = candidates[i];
        if (r < g->low || r > g->high || r == g->rung) continue;
        /* Half again what is expected of a rung that was never tried; of a known one what is known. */
        double promise = rate(g, r) * (1 + 0.5 / (1 + g->weight[r]));
        if (promise > most) most = promise, found = r;
    }
    return found;
}

static void explore(cw_governor *g)
{
    if (g->probe >= 0) {
        if (--g->probe_left > 0) return;
        g->probe = -1;
        g->skip = 1;
        g->probe_gap = g->probe_gap * 2 < LONGEST_GAP ? g->probe_gap * 2 : LONGEST_GAP;
        g->probe_in = g->probe_gap;
    } else if (--g->probe_in <= 0) {
        g->probe_in = g->probe_gap;
        g->probe = to_look_at(g);
        g->probe_left = LOOK;
        if (g->probe < 0) return;
        g->skip = 1;
        g->n_probes++;
    }
}

static void choose(cw_governor *g)
{
    g->stayed++;
    bool young = g->n_rounds < YOUNG; /* the plan may be wrong by far: follow the first news at once */
    int best = best_rung(g);
    if (best == g->rung || (!young && g->stayed < STAY)) return;
    if (rate(g, best) < (young ? 1 : better) * rate(g, g->rung)) return;
    /* What an exploration is just looking at is warm, and fewer guesses than before are there already. */
    g->skip = g->probe == best || best < g->rung ? 0 : 1;
    g->rung = best;
    g->probe = -1;
    g->probe_gap = g->probe_in = FIRST_LOOK;
    g->stayed = 0;
    g->n_changes++;
}

/*
 * Several rounds in a row on the same side of what is usual: the link has changed, and what is known of other
 * lengths is of another link.
 */
static void notice_change(cw_governor *g, int r, double surprise)
{
    int side = surprise > 1.4 ? 1 : surprise < 1 / 1.4 ? -1 : 0;
    g->streak = side && (side > 0) == (g->streak > 0) ? g->streak + side : side;
    if (abs(g->streak) < STREAK) return;
    g->streak = 0;
    for (int k = 0; k < CW_GOVERNOR_RUNGS; k++) g->weight[k] *= k == r ? 0.25 : 0.05;
    g->usual[r] *= surprise;
    g->probe_gap = FIRST_LOOK;
    if (g->probe_in > FIRST_LOOK) g->probe_in = FIRST_LOOK;
}

/* What goes far beyond the usual is a stall, which befalls every length alike: it is counted apart. */
static void learn(cw_governor *g, int r, double us)
{
    double ratio = us / g->planned_us[r], stalled = 0;
    if (g->weight[r] < 1) g->usual[r] = ratio;
    double most = wildest * g->usual[r];
    if (ratio > most) stalled = (ratio - most) * g->planned_us[r], ratio = most;
    g->stalled_us += (stalled - g->stalled_us) / STALL_MEMORY;
    if (g->weight[r] > 2) notice_change(g, r, us / g->planned_us[r] / g->usual[r]);
    g->usual[r] *= ratio > g->usual[r] ? 1.1 : 1 / 1.1; /* a running median */
    if (g->weight[r] > MEMORY - 1) g->weight[r] = MEMORY - 1;
    g->ratio[r] = (g->weight[r] * g->ratio[r] + ratio) / (g->weight[r] + 1);
    g->weight[r]++;
}

void cw_governor_tell(cw_governor *g, int n_drafted, int n_accepted, int64_t round_us)
{
    if (n_drafted > CW_PLAN_DRAFT_MAX) n_drafted = CW_PLAN_DRAFT_MAX;
    if (n_accepted > n_drafted) n_accepted = n_drafted;
    for (int i = 1; i <= CW_PLAN_DRAFT_MAX; i++) g->right[i] *= fade, g->tried[i] *= fade;
    for (int i = 1; i <= n_accepted; i++) g->right[i]++, g->tried[i]++;
    /* The first wrong guess; and where the fallback made none at all, none was right. */
    if (n_accepted < n_drafted || (n_drafted == 0 && g->asked > 0)) g->tried[n_accepted + 1]++;
    g->n_rounds++;
    for (int r = 0; r < CW_GOVERNOR_RUNGS; r++) g->weight[r] *= fade_others;
    if (g->skip > 0)
        g->skip--;
    else if (n_drafted == g->asked && round_us > 0)
        learn(g, rung_of(n_drafted), (double)round_us);
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
