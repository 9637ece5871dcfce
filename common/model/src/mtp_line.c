/*
 * A head's view of one session.
 *
 * Row i of the head needs the model's hidden state of position i and token i+1. Hidden states are kept as
 * passes bring them, `hidden` for positions [first, first + n); rows are computed when guesses are asked for,
 * or when `hidden` is full, many at once. The head's own session holds the rows of positions [base, ready):
 * its token number j is the model's token base + j + 1.
 *
 * Where hidden states are missing (the line began late, or a session's rows came from a file) the rows before
 * are given up and base moves: attention sees differences of positions only, so what is lost is what the head
 * could have looked back at.
 */
#include "mtp_internal.h"
#include "cw/log.h"
#include "cw/mem.h"

#include <string.h>

struct cw_mtp_line {
    cw_mtp *m;
    cw_session *of; /* followed */
    cw_session *own;
    int base;
    float *hidden; /* [cap, d_model] */
    int first, n, cap;
    int last_row;    /* of the last pass that computed rows */
    float *output;   /* [d_model] the head's own, for the second guess */
    float *logits;   /* [n_vocab] */
    int32_t *before; /* [n_ctx + CW_MTP_MAX + 1] the timeline with what is guessed */
    bool failed;     /* a row could not be computed: no more guesses until the session begins anew */
};

static int ready(const cw_mtp_line *l)
{
    return l->base + l->own->n_past;
}

static bool has_hidden(const cw_mtp_line *l, int position)
{
    return position >= l->first && position < l->first + l->n;
}

static const float *hidden_of(const cw_mtp_line *l, int position)
{
    return l->hidden + (int64_t)(position - l->first) * l->m->engine->config.d_model;
}

/* Rows from `position` on do not count any more. */
static void give_up(cw_mtp_line *l, int position)
{
    if (ready(l) > position) cw_session_rewind(l->own, position > l->base ? position - l->base : 0);
}

/* Rows [ready, upto), token i+1 of row i being tokens[i + 1]; logits of the last, or NULL. false: failed. */
static bool compute(cw_mtp_line *l, const int32_t *tokens, int upto, float *logits)
{
    cw_err err;
    while (ready(l) < upto) {
        int at = ready(l), n = upto - at, max = l->m->engine->max_rows;
        if (n > max) n = max;
        bool last = at + n == upto;
        l->last_row = n - 1;
        if (cw_mtp_forward(l->m, l->own, tokens + at + 1, hidden_of(l, at), n, last ? logits : NULL, &err) ==
            CW_OK)
            continue;
        CW_LOG_W("model", "prediction head gives up: %s", err.text);
        l->failed = true;
        return false;
    }
    return true;
}

/*
 * Computes what is missing of rows [base, upto); `tokens` reaches to upto. The last row there is may have
 * been made with another token than the one that followed in the end: it is made again where its hidden state
 * is still here. Where not it stays: a row like that is a worse memory, not a wrong answer.
 */
static bool catch_up(cw_mtp_line *l, const int32_t *tokens, int upto, float *logits)
{
    CW_ASSERT(l->own->n_past == 0 || ready(l) <= upto);
    if (l->own->n_past > 0 && has_hidden(l, ready(l) - 1) &&
        l->own->tokens[l->own->n_past - 1] != tokens[ready(l)])
        give_up(l, ready(l) - 1);
    if (l->own->n_past == 0 || ready(l) < l->first) {
        cw_session_rewind(l->own, 0);
        l->base = l->first;
    }
    return compute(l, tokens, upto, logits);
}

/* --- what the session tells --- */

static void see_rows(void *ctx, int first, int n, const float *x)
{
    cw_mtp_line *l = ctx;
    size_t d = (size_t)l->m->engine->config.d_model;
    if (l->failed) return;
    if (first != l->first + l->n) l->n = 0; /* a gap */
    if (l->n > 0 && n > l->cap - l->n) {
        if (!catch_up(l, l->of->tokens, first, NULL)) return;
        l->n = 0;
    }
    if (l->n == 0) l->first = first;
    memcpy(l->hidden + (size_t)l->n * d, x, (size_t)n * d * sizeof *x);
    l->n += n;
}

static void see_rewind(void *ctx, int n_past)
{
    cw_mtp_line *l = ctx;
    /* The last position's row was made with the token that is gone now. */
    give_up(l, n_past > 0 && has_hidden(l, n_past - 1) ? n_past - 1 : n_past);
    if (l->first + l->n > n_past) l->n = n_past > l->first ? n_past - l->first : 0;
    l->failed = l->failed && n_past > 0;
}

/* --- lifecycle --- */

cw_status cw_mtp_line_new(cw_mtp *m, cw_session *s, cw_mtp_line **out, cw_err *err)
{
    CW_ASSERT(s->engine == m->model && !s->follower.rows);
    const cw_model_config *c = &m->engine->config;
    cw_mtp_line *l = cw_calloc(1, sizeof *l);
    if (!l) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a prediction head's session");
    l->m = m;
    l->of = s;
    l->cap = m->model->max_rows;
    l->hidden = cw_calloc((size_t)l->cap * (size_t)c->d_model, sizeof *l->hidden);
    l->output = cw_calloc((size_t)c->d_model, sizeof *l->output);
    l->logits = cw_calloc((size_t)c->n_vocab, sizeof *l->logits);
    l->before = cw_calloc((size_t)s->n_ctx + CW_MTP_MAX + 1, sizeof *l->before);
    cw_status st = CW_OK;
    if (!l->hidden || !l->output || !l->logits || !l->before)
        st = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a prediction head's session");
    cw_session_options o = {.n_ctx = s->n_ctx + CW_MTP_MAX, .kv_type = s->kv.type};
    if (st == CW_OK) st = cw_session_new(m->engine, &o, &l->own, err);
    if (st != CW_OK) {
        cw_mtp_line_free(&l);
        return st;
    }
    s->follower = (cw_follower){see_rows, see_rewind, l};
    *out = l;
    return CW_OK;
}

void cw_mtp_line_free(cw_mtp_line **lp)
{
    if (!lp || !*lp) return;
    cw_mtp_line *l = *lp;
    if (l->own) l->of->follower = (cw_follower){0}; /* without it the line was never finished */
    cw_session_free(&l->own);
    cw_free(l->hidden);
    cw_free(l->output);
    cw_free(l->logits);
    cw_free(l->before);
    cw_free(l);
    *lp = NULL;
}

/* --- guessing --- */

int cw_mtp_guess(cw_mtp_line *l, int32_t next, int n, cw_mtp_pick pick, void *ctx, int32_t *out)
{
    int n_past = l->of->n_past, made = 0;
    CW_ASSERT(n <= CW_MTP_MAX);
    if (n < 1 || l->failed || n_past >= l->of->n_ctx || l->n == 0 || l->first + l->n != n_past) return 0;
    memcpy(l->before, l->of->tokens, (size_t)n_past * sizeof *l->before);
    l->before[n_past] = next;
    give_up(l, n_past - 1); /* asked again: its logits are wanted */
    if (!catch_up(l, l->before, n_past, l->logits)) return 0;
    while (made < n) {
        int at = n_past + 1 + made;
        int32_t id = pick(ctx, l->logits, at, l->before, at);
        if (id < 0) break;
        out[made++] = id;
        if (made == n) break;
        l->before[at] = id;
        memcpy(l->output, cw_mtp_output(l->m, made == 1 ? l->last_row : 0),
               (size_t)l->m->engine->config.d_model * sizeof *l->output);
        if (cw_mtp_forward(l->m, l->own, &id, l->output, 1, l->logits, NULL) != CW_OK) break;
    }
    give_up(l, n_past); /* rows on guesses end with the guessing */
    return made;
}

int cw_mtp_line_held(const cw_mtp_line *l, int *from)
{
    *from = l->base;
    return ready(l);
}
