/*
 * How long computing takes here, learnt from the jobs that come back. Two things cost time: reading weights,
 * once per expert of a job however many rows it has, and multiplying, per row. So
 *
 *     us = by_byte * bytes + by_row_byte * row_bytes       bytes: packed weights of the job's experts
 *                                                          row_bytes: the same, times its rows
 *
 * fitted by least squares of the relative error over the latest jobs (older ones fade), with a weak pull to
 * the last fit, because a queue of one-row calls cannot tell the two apart; the first fit is what the machine
 * measured at its start. A job that was held up weighs little: its relative features are small.
 */
#include <math.h>

#include "worker_internal.h"

static const double fade = 0.98, pull = 0.1, ratio_fade = 0.95;

void pace_start(pace *p, double gb_per_s)
{
    if (!(gb_per_s > 0.001)) gb_per_s = 1;
    double one_row = 0.001 / gb_per_s; /* us a byte */
    /* Two rows as dear as reading: the first jobs are rather too small than too long. */
    *p = (pace){.by_byte = one_row * 2 / 3, .by_row_byte = one_row / 3, .together = 1};
}

double pace_us(const pace *p, work x)
{
    return p->by_byte * x.bytes + p->by_row_byte * x.row_bytes;
}

/* In units of the last fit (u, v), so that the pull is to (1, 1) whatever the scale. */
static void solve(pace *p)
{
    double x = p->by_byte, z = p->by_row_byte;
    double a = x * x * p->s11 + pull, b = x * z * p->s12, c = z * z * p->s22 + pull;
    double y1 = x * p->s1 + pull, y2 = z * p->s2 + pull;
    double det = a * c - b * b; /* > 0: pull makes it definite */
    double u = (y1 * c - y2 * b) / det, v = (a * y2 - b * y1) / det;
    /* Both cost something; a fit that says otherwise only says that it cannot tell. */
    if (!(u > 0.5)) u = 0.5;
    if (!(v > 0.5)) v = 0.5;
    if (x * u > 1e-12) p->by_byte = x * u;
    if (z * v > 1e-12) p->by_row_byte = z * v;
}

int64_t pace_learn(pace *p, const job_slot *s, int64_t now_us)
{
    /* With two jobs given out the second begins when the first ends. */
    int64_t from = s->given_us > p->last_end_us ? s->given_us : p->last_end_us, us = now_us - from;
    p->last_end_us = now_us;
    if (us < 1) us = 1;
    double t = (double)us, f1 = s->work.bytes / t, f2 = s->work.row_bytes / t;
    p->s11 = fade * p->s11 + f1 * f1;
    p->s12 = fade * p->s12 + f1 * f2;
    p->s22 = fade * p->s22 + f2 * f2;
    p->s1 = fade * p->s1 + f1;
    p->s2 = fade * p->s2 + f2;
    solve(p);
    if (p->n_jobs < UINT32_MAX) p->n_jobs++;
    double alone = pace_us(p, s->alone);
    if (alone > 0) {
        double ratio = t / alone;
        if (ratio > 4) ratio = 4;
        p->together = ratio_fade * p->together + (1 - ratio_fade) * ratio;
    }
    return us;
}

int64_t pace_queue_us(const pace *p, work queued)
{
    double us = pace_us(p, queued) * p->together;
    return us < 1e12 ? (int64_t)us : (int64_t)1e12;
}

float pace_speed(const pace *p)
{
    double gb = 0.001 / (p->by_byte + p->by_row_byte);
    return (float)(gb < 1e5 ? gb : 1e5);
}
