/*
 * The line L is the conversation [0, n_said) and the guesses behind it [n_said, n_line). The session holds a
 * beginning of L, except that tokens from `stale` on may be of an older line; the thread rewinds before it
 * computes. A step computes outside the lock on a copy of the tokens; what it found is thrown away when the
 * line changed meanwhile (`change`).
 */
#include "cw/shadow.h"
#include "cw/clock.h"
#include "cw/mem.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum {
    STEP_ROWS = 16,  /* one step's batch: short, so that taking the speaker is quick */
    FOLLOW_ROWS = 8, /* following waits for that many tokens: weights are read once for all of them */
};

typedef struct {
    cw_experts base;
    cw_experts *inner;
    cw_shadow *shadow;
} watched;

struct cw_shadow {
    cw_speaker *speaker;
    cw_session *session;
    cw_sampler *sampler;
    float *logits; /* [n_vocab], after the session's token logits_at - 1 */
    int logits_at;
    watched watch;
    atomic_bool interrupt; /* ends a forward pass under way */
    pthread_t thread;
    bool started;

    pthread_mutex_t lock;
    pthread_cond_t work, done;
    /* Under the lock: */
    int32_t *line; /* [cap] */
    int cap, n_said, n_line, stale, ahead;
    uint64_t change;
    int n_held; /* tokens in the session, as the thread last saw it */
    bool ended; /* the guess behind the line is an end token */
    bool full;  /* the line is longer than the small model's context, or its pass failed */
    bool hurry, away, taken, busy, stop;
    int waiting; /* guesses somebody waits for */
    cw_shadow_facts facts;
};

static int lower(int a, int b)
{
    return a < b ? a : b;
}

/* --- the thread --- */

typedef struct {
    int from, n; /* tokens to evaluate: session positions */
    bool guess;  /* and choose the one that follows */
    int32_t tokens[STEP_ROWS];
} step;

/* What is to be done now, if anything. */
static bool plan(cw_shadow *s, step *p)
{
    if (s->taken || s->full || s->n_line == 0) return false;
    int held = lower(lower(s->n_held, s->stale), s->n_line);
    int behind = s->n_said - held;
    int wanted = s->waiting > s->ahead ? s->waiting : s->ahead;
    bool guess = wanted > s->n_line - s->n_said && !s->ended;
    bool follow =
        behind >= FOLLOW_ROWS && (s->away || (s->hurry && behind >= CW_SHADOW_LAG - FOLLOW_ROWS / 2));
    /* While the big model computes a long prompt, a draft is not worth its cores. */
    if (!s->hurry && !s->away) guess = false;
    if (!guess && !follow) return false;
    if (held == s->n_line && s->logits_at != held) held--; /* the logits are of another line's token */
    p->from = held;
    p->n = lower(s->n_line - held, STEP_ROWS);
    p->guess = guess && held + p->n == s->n_line;
    memcpy(p->tokens, s->line + held, (size_t)p->n * sizeof *p->tokens);
    return true;
}

/* Outside the lock: rewinds, evaluates, chooses. *next: the guess, or -1. */
static cw_status carry_out(cw_shadow *s, const step *p, int32_t *next)
{
    int n_held;
    cw_session_tokens(s->session, &n_held);
    if (n_held > p->from) cw_session_rewind(s->session, p->from);
    *next = -1;
    if (p->n > 0) {
        cw_batch_item item = {.session = s->session,
                              .tokens = p->tokens,
                              .n_tokens = p->n,
                              .n_logits = p->guess ? 1 : 0,
                              .logits = s->logits};
        s->logits_at = -1;
        CW_TRY(cw_engine_forward(cw_speaker_engine(s->speaker), &item, 1, &s->interrupt, NULL));
        if (p->guess) s->logits_at = p->from + p->n;
    }
    if (p->guess) {
        const int32_t *past = cw_session_tokens(s->session, &n_held);
        *next = cw_sampler_pick(s->sampler, s->logits, n_held, past, n_held);
    }
    return CW_OK;
}

/* Under the lock again: what the step found becomes part of the line, if it is still the same line. */
static void settle(cw_shadow *s, const step *p, cw_status st, int32_t next, uint64_t change, int64_t us)
{
    cw_session_tokens(s->session, &s->n_held);
    if (st == CW_OK)
        s->facts.n_evaluated += (uint64_t)p->n;
    else if (st != CW_STATUS_CANCELLED)
        s->full = true;
    if (st != CW_OK || next < 0 || change != s->change) return;
    if (cw_tok_is_eog(cw_speaker_tok(s->speaker), next))
        s->ended = true;
    else if (s->n_line < s->cap)
        s->line[s->n_line++] = next;
    else
        s->ended = true; /* no room for more */
    s->facts.guess_us = s->facts.guess_us ? (7 * s->facts.guess_us + us) / 8 : us;
}

static void *run(void *arg)
{
    cw_shadow *s = arg;
    cw_fp_setup();
    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        step p;
        if (!plan(s, &p)) {
            s->busy = false;
            pthread_cond_broadcast(&s->done);
            pthread_cond_wait(&s->work, &s->lock);
            continue;
        }
        s->busy = true;
        s->stale = INT_MAX; /* rewound below */
        s->n_held = p.from;
        uint64_t change = s->change;
        int32_t next;
        pthread_mutex_unlock(&s->lock);
        int64_t t0 = cw_now_us();
        cw_status st = carry_out(s, &p, &next);
        int64_t us = cw_now_us() - t0;
        pthread_mutex_lock(&s->lock);
        settle(s, &p, st, next, change, us);
        pthread_cond_broadcast(&s->done);
    }
    s->busy = false;
    pthread_cond_broadcast(&s->done);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* --- lifecycle --- */

cw_status cw_shadow_new(cw_speaker *small, const cw_sampler_params *p, cw_shadow **out, cw_err *err)
{
    cw_shadow *s = cw_calloc(1, sizeof *s);
    if (!s) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    s->speaker = small;
    s->session = cw_speaker_session(small);
    s->cap = cw_session_n_ctx(s->session);
    s->stale = INT_MAX;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, NULL);
    pthread_cond_init(&s->done, NULL);
    int n_vocab = cw_engine_config(cw_speaker_engine(small))->n_vocab;
    cw_status st = cw_sampler_new(p, n_vocab, &s->sampler, err);
    if (st != CW_OK) goto fail;
    s->logits = cw_calloc((size_t)n_vocab, sizeof *s->logits);
    s->line = cw_calloc((size_t)s->cap, sizeof *s->line);
    if (!s->logits || !s->line) {
        st = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
        goto fail;
    }
    cw_session_rewind(s->session, 0);
    if (pthread_create(&s->thread, NULL, run, s) != 0) {
        st = CW_FAIL(err, CW_STATUS_LIMIT, "the system gives no thread for the fallback model");
        goto fail;
    }
    s->started = true;
    *out = s;
    return CW_OK;
fail:
    cw_shadow_free(&s);
    return st;
}

void cw_shadow_free(cw_shadow **sp)
{
    if (!sp || !*sp) return;
    cw_shadow *s = *sp;
    if (s->started) {
        pthread_mutex_lock(&s->lock);
        CW_ASSERT(!s->taken);
        s->stop = true;
        atomic_store(&s->interrupt, true);
        pthread_cond_broadcast(&s->work);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->done);
    cw_sampler_free(&s->sampler);
    cw_free(s->logits);
    cw_free(s->line);
    cw_free(s);
    *sp = NULL;
}

/* --- the line; all under the lock --- */

/* From position `at` on the line is another one. */
static void diverge(cw_shadow *s, int at)
{
    s->stale = lower(s->stale, at);
    s->change++;
    s->ended = false;
}

static void note_lag(cw_shadow *s)
{
    int behind = s->n_said - lower(lower(s->n_held, s->stale), s->n_said);
    if (s->hurry && behind > s->facts.max_behind) s->facts.max_behind = behind;
}

void cw_shadow_set(cw_shadow *s, const int32_t *tokens, int n, int ahead, bool hurry)
{
    pthread_mutex_lock(&s->lock);
    int max = lower(n, s->cap), same = 0;
    while (same < max && same < s->n_line && s->line[same] == tokens[same]) same++;
    if (same < s->n_line || same < max) {
        diverge(s, same);
        memcpy(s->line + same, tokens + same, (size_t)(max - same) * sizeof *tokens);
    }
    s->n_said = s->n_line = max;
    s->full = n > s->cap;
    s->ahead = lower(ahead, CW_SHADOW_GUESS_MAX);
    s->hurry = hurry;
    s->facts.max_behind = 0;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
}

void cw_shadow_push(cw_shadow *s, int32_t token)
{
    pthread_mutex_lock(&s->lock);
    s->hurry = true;
    if (s->n_said == s->cap) {
        s->full = true;
    } else if (s->n_said < s->n_line && s->line[s->n_said] == token) {
        s->n_said++;
    } else {
        diverge(s, s->n_said);
        s->line[s->n_said++] = token;
        s->n_line = s->n_said;
    }
    note_lag(s);
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
}

void cw_shadow_ahead(cw_shadow *s, int ahead)
{
    pthread_mutex_lock(&s->lock);
    s->ahead = lower(ahead, CW_SHADOW_GUESS_MAX);
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
}

int cw_shadow_guess(cw_shadow *s, int n, int32_t *out)
{
    pthread_mutex_lock(&s->lock);
    s->waiting = n = lower(n, CW_SHADOW_GUESS_MAX);
    pthread_cond_signal(&s->work);
    for (;;) {
        int there = s->n_line - s->n_said;
        int held = lower(lower(s->n_held, s->stale), s->n_said);
        if (there >= n || s->ended || s->full || s->taken || s->n_said - held > 2 * CW_SHADOW_LAG) break;
        pthread_cond_wait(&s->done, &s->lock);
    }
    s->waiting = 0;
    n = lower(n, s->n_line - s->n_said);
    memcpy(out, s->line + s->n_said, (size_t)n * sizeof *out);
    pthread_mutex_unlock(&s->lock);
    return n;
}

void cw_shadow_network(cw_shadow *s, bool away)
{
    pthread_mutex_lock(&s->lock);
    s->away = away;
    step p;
    if (away && !s->busy && plan(s, &p)) pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
}

void cw_shadow_take(cw_shadow *s)
{
    pthread_mutex_lock(&s->lock);
    CW_ASSERT(!s->taken);
    s->taken = true;
    atomic_store(&s->interrupt, true);
    pthread_cond_signal(&s->work);
    while (s->busy) pthread_cond_wait(&s->done, &s->lock);
    atomic_store(&s->interrupt, false);
    pthread_mutex_unlock(&s->lock);
}

void cw_shadow_give(cw_shadow *s)
{
    pthread_mutex_lock(&s->lock);
    CW_ASSERT(s->taken);
    int same = 0;
    const int32_t *held = cw_session_tokens(s->session, &s->n_held);
    while (same < s->n_held && same < s->n_line && held[same] == s->line[same]) same++;
    s->stale = same;
    s->logits_at = -1;
    s->change++;
    s->taken = false;
    s->full = false;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
}

void cw_shadow_get_facts(cw_shadow *s, cw_shadow_facts *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->facts;
    out->n_line = s->n_said;
    out->n_behind = s->n_said - lower(lower(s->n_held, s->stale), s->n_said);
    pthread_mutex_unlock(&s->lock);
}

/* --- experts that tell when they are away --- */

static cw_status watched_submit(cw_experts *self, const cw_expert_call *call, uint64_t *ticket, cw_err *err)
{
    return cw_experts_submit(((watched *)self)->inner, call, ticket, err);
}

static cw_status watched_collect(cw_experts *self, uint64_t ticket, cw_expert_reply *out, cw_err *err)
{
    watched *w = (watched *)self;
    cw_shadow_network(w->shadow, true);
    cw_status st = cw_experts_collect(w->inner, ticket, out, err);
    cw_shadow_network(w->shadow, false);
    return st;
}

static void watched_destroy(cw_experts *self)
{
    (void)self; /* lives in the shadow */
}

static const cw_experts_vtable watched_vtable = {watched_submit, watched_collect, watched_destroy};

cw_experts *cw_shadow_watch(cw_shadow *s, cw_experts *inner)
{
    s->watch = (watched){
        .base = {.vt = &watched_vtable, .on_our_cores = inner->on_our_cores}, .inner = inner, .shadow = s};
    return &s->watch.base;
}
