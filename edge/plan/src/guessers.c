/* See cw/guessers.h. */
#include "cw/guessers.h"

#include <string.h>

enum {
    STAY = 8,     /* rounds with one guesser before the other may be tried */
    FORGET = 100, /* rounds over which what is known of the one that rests fades */
};

static const double worth_it = 1.04;  /* by which the other must promise more */
static const double unknown_is = 0.5; /* how much more than expected one never tried might give */

void cw_guessers_init(cw_guessers *s)
{
    memset(s, 0, sizeof *s);
}

static cw_guesser other_than(cw_guesser who)
{
    return who == CW_BY_HEAD ? CW_BY_FALLBACK : CW_BY_HEAD;
}

void cw_guessers_add(cw_guessers *s, cw_guesser who, const cw_plan *p, int max, bool may_rest)
{
    s->plan[who] = *p;
    cw_governor_init(&s->g[who], p, max, may_rest);
    s->can[who] = true;
    if (!s->can[other_than(who)]) s->now = who;
    s->stay = STAY;
}

void cw_guessers_link(cw_guessers *s, const cw_plan_link *link, const cw_plan_workers *workers)
{
    for (int who = 0; who < CW_N_GUESSERS; who++) {
        if (!s->can[who]) continue;
        s->plan[who].link = *link;
        s->plan[who].workers = *workers;
        cw_governor_plan(&s->g[who], &s->plan[who]);
    }
}

int cw_guessers_length(cw_guessers *s)
{
    cw_guesser other = other_than(s->now);
    if (s->can[other] && s->stay == 0) {
        double hope = 1 + unknown_is / (1 + s->known[other]);
        if (hope * cw_governor_rate(&s->g[other]) > worth_it * cw_governor_rate(&s->g[s->now])) {
            s->now = other;
            s->stay = STAY;
            s->n_changes++;
            cw_governor_begin_anew(&s->g[other]);
        }
    }
    return cw_governor_length(&s->g[s->now]);
}

void cw_guessers_tell(cw_guessers *s, int n_drafted, int n_accepted, int64_t wait_us, int64_t pass_us)
{
    cw_guesser other = other_than(s->now);
    cw_governor_tell(&s->g[s->now], n_drafted, n_accepted, wait_us, pass_us);
    if (n_drafted > 0) s->known[s->now]++;
    if (!s->can[other]) return;
    cw_governor_learn_passes(&s->g[other], &s->g[s->now]);
    s->known[other] *= 1 - 1.0 / FORGET;
    s->stay -= s->stay > 0;
}
