/*
 * See sampler.h. Everything is computed from logits in double with the project's own exp and log, so that
 * equal logits give equal tokens on every machine. A sampler owns two arrays of n_vocab entries and nothing
 * that outlives a pick.
 */
#include "cw/sampler.h"
#include "cw/fmath.h"
#include "cw/mem.h"

#include <math.h>
#include <string.h>

typedef struct {
    float score; /* (logit - largest logit) / temperature, penalties applied; at most 0, never NaN */
    int32_t id;
} candidate;

struct cw_sampler {
    cw_sampler_params p;
    int n_vocab;
    candidate *heap; /* [n_vocab] */
    float *logits;   /* [n_vocab] after penalties */
    uint8_t *seen;   /* [n_vocab]; all zero between picks */
};

cw_status cw_sampler_new(const cw_sampler_params *p, int n_vocab, cw_sampler **out, cw_err *err)
{
    if (n_vocab < 1) return CW_FAIL(err, CW_STATUS_INVALID, "a vocabulary of %d tokens", n_vocab);
    if (!(p->temperature >= 0 && p->temperature <= 1000))
        return CW_FAIL(err, CW_STATUS_INVALID, "temperature %g is not in 0..1000", (double)p->temperature);
    if (p->top_k < 0) return CW_FAIL(err, CW_STATUS_INVALID, "top-k %d is negative", p->top_k);
    if (!(p->top_p > 0 && p->top_p <= 1))
        return CW_FAIL(err, CW_STATUS_INVALID, "top-p %g is not in (0, 1]", (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return CW_FAIL(err, CW_STATUS_INVALID, "min-p %g is not in 0..1", (double)p->min_p);
    if (!(p->repeat_penalty > 0 && p->repeat_penalty <= 100))
        return CW_FAIL(err, CW_STATUS_INVALID, "repetition penalty %g is not in (0, 100]",
                       (double)p->repeat_penalty);
    if (p->repeat_last_n < -1)
        return CW_FAIL(err, CW_STATUS_INVALID, "repetition window %d is below -1", p->repeat_last_n);

    cw_sampler *s = cw_calloc(1, sizeof *s);
    if (!s) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a sampler");
    s->p = *p;
    s->n_vocab = n_vocab;
    s->heap = cw_calloc((size_t)n_vocab, sizeof *s->heap);
    s->logits = cw_calloc((size_t)n_vocab, sizeof *s->logits);
    s->seen = cw_calloc((size_t)n_vocab, 1);
    if (!s->heap || !s->logits || !s->seen) {
        cw_sampler_free(&s);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a sampler");
    }
    *out = s;
    return CW_OK;
}

void cw_sampler_free(cw_sampler **s)
{
    if (!s || !*s) return;
    cw_free((*s)->heap);
    cw_free((*s)->logits);
    cw_free((*s)->seen);
    cw_free(*s);
    *s = NULL;
}

int32_t cw_argmax(const float *v, int n)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (!isnan(v[i]) && (best < 0 || v[i] > v[best])) best = i;
    return best < 0 ? 0 : best;
}

/* --- noise --- */

/* The finaliser of splitmix64 (Steele, Lea, Flood 2014): a
 * bijection whose output bits all depend on all input bits. */
static uint64_t mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* u(seed, position, id) in (0, 1), exactly representable and
 * never 0 or 1. `base` is mix(mix(seed) ^ position). */
static double uniform(uint64_t base, int32_t id)
{
    uint64_t bits = mix(base ^ (uint32_t)id) >> 12;
    return ((double)bits + 0.5) * 0x1p-52;
}

/* -ln(-ln u). */
static double gumbel(double u)
{
    return -cw_log(-cw_log(u));
}

/* No Gumbel value of u is above this: -ln u >= 1 - u, and 1 - u = m * 2^e with m >= 1/2; a little more for
 * rounding. Saves nearly all logarithms. */
static double gumbel_bound(double u)
{
    int e;
    (void)frexp(1 - u, &e);
    return (1 - e) * 0.6931471805599454 + 1e-9;
}

/* --- survivors --- */

/* Higher score first, then lower id. */
static bool before(candidate a, candidate b)
{
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

static void sift_down(candidate *h, int n, int i)
{
    candidate x = h[i];
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(h[child + 1], h[child])) child++;
        if (!before(h[child], x)) break;
        h[i] = h[child];
    }
    h[i] = x;
}

/* Leaves in h[0..return) the best tokens, best first: k of them, or fewer once their unnormalised
 * probabilities reach `mass`; always one. */
static int keep_best(candidate *h, int n, int k, double mass)
{
    double sum = 0;
    int left = n;
    for (int i = n / 2 - 1; i >= 0; i--) sift_down(h, n, i);
    do {
        candidate best = h[0];
        h[0] = h[--left];
        sift_down(h, left, 0);
        h[left] = best; /* the run of survivors grows downwards from the end */
        sum += cw_exp(best.score);
    } while (n - left < k && sum < mass);
    for (int i = left, j = n - 1; i < j; i++, j--) {
        candidate t = h[i];
        h[i] = h[j];
        h[j] = t;
    }
    memmove(h, h + left, (size_t)(n - left) * sizeof *h);
    return n - left;
}

/*
 * Leaves in h[0..return) the tokens that survive top-k, then top-p, then min-p. Scores are relative to the
 * best, which is 0. top_p: the shortest run of best tokens whose share of the probability reaches it. min_p:
 * at least that part of the best's.
 */
static int filter(const cw_sampler_params *p, candidate *h, int n)
{
    if (p->top_k > 0 && p->top_k < n) n = keep_best(h, n, p->top_k, INFINITY);
    if (p->top_p < 1) {
        double total = 0;
        for (int i = 0; i < n; i++) total += cw_exp(h[i].score);
        n = keep_best(h, n, n, (double)p->top_p * total);
    }
    if (p->min_p > 0) {
        double least = cw_log((double)p->min_p);
        int kept = 0;
        for (int i = 0; i < n; i++)
            if (h[i].score >= least) h[kept++] = h[i];
        n = kept;
    }
    return n;
}

/* --- picking --- */

static const float *penalise(cw_sampler *s, const float *logits, const int32_t *history, int n_history)
{
    float penalty = s->p.repeat_penalty;
    if (penalty == 1 || n_history <= 0 || s->p.repeat_last_n == 0) return logits;
    memcpy(s->logits, logits, (size_t)s->n_vocab * sizeof *logits);
    int n = s->p.repeat_last_n < 0 || s->p.repeat_last_n > n_history ? n_history : s->p.repeat_last_n;
    const int32_t *window = history + (n_history - n);
    for (int i = 0; i < n; i++) {
        int32_t id = window[i];
        if (id < 0 || id >= s->n_vocab || s->seen[id]) continue;
        s->seen[id] = 1;
        s->logits[id] = s->logits[id] > 0 ? s->logits[id] / penalty : s->logits[id] * penalty;
    }
    for (int i = 0; i < n; i++)
        if (window[i] >= 0 && window[i] < s->n_vocab) s->seen[window[i]] = 0;
    return s->logits;
}

int32_t cw_sampler_pick(cw_sampler *s, const float *logits, int64_t position, const int32_t *history,
                        int n_history)
{
    logits = penalise(s, logits, history, n_history);
    int32_t greedy = cw_argmax(logits, s->n_vocab);
    if (s->p.temperature == 0 || isinf(logits[greedy])) return greedy;

    int n = 0;
    float largest = logits[greedy];
    for (int32_t i = 0; i < s->n_vocab; i++)
        if (!isnan(logits[i])) s->heap[n++] = (candidate){(logits[i] - largest) / s->p.temperature, i};
    if (n == 0) return greedy;
    n = filter(&s->p, s->heap, n);

    uint64_t base = mix(mix(s->p.seed) ^ (uint64_t)position);
    int32_t choice = greedy; /* the best token survives every filter */
    double best = gumbel(uniform(base, greedy));
    for (int i = 0; i < n; i++) {
        double u = uniform(base, s->heap[i].id);
        if (s->heap[i].score + gumbel_bound(u) < best) continue;
        double key = s->heap[i].score + gumbel(u);
        if (key > best || (key == best && s->heap[i].id < choice)) {
            best = key;
            choice = s->heap[i].id;
        }
    }
    return choice;
}
