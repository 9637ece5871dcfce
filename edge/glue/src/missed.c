/*
 * What the main model missed: while it reads the fallback's part of an answer, it chooses at every position
 * of it and compares (cw/talk.h, cw_talk_verdict); and where that is wanted, the answer is cut at the first
 * place where it would have written otherwise, in the text, in the tokens and in its session.
 *
 * The choice for position p comes from the logits of position p - 1, so reading begins at the latest one
 * token before the missed part. Working memory is that of one pass and freed at the end: this is a change of
 * speaker, not the token loop.
 */
#include "cw/mem.h"
#include "talk_internal.h"

#include <string.h>

enum { MOST_BYTES = 64 << 20 }; /* of logits in one pass */

typedef struct {
    cw_talk *t;
    cw_voice *v;
    const cw_told *w;
    int first;   /* missed position */
    float *rows; /* [n_rows, n_vocab] of one pass */
    int n_rows;
    int n_compared, n_same; /* missed tokens; of these, before `at` */
    int at;                 /* the first position that would have been otherwise; -1: none */
    int32_t would;
    float *there; /* [n_vocab] the logits it was chosen from */
} reading;

static bool is_missed_span(const cw_talk *t, int i)
{
    return i >= t->n_read && t->spans[i].by == &t->fallback;
}

static int span_end(const cw_talk *t, const cw_told *w, int i)
{
    return i + 1 < t->n_spans ? w->at[i + 1] : w->n;
}

/* The span that position p of w is in, the last one for the position behind all; -1: the prompt. */
static int span_of(const cw_talk *t, const cw_told *w, int p)
{
    for (int i = 0; i < t->n_spans; i++)
        if (p >= w->at[i] && p < span_end(t, w, i)) return i;
    return p == w->n ? t->n_spans - 1 : -1;
}

bool cw_missed_any(const cw_talk *t)
{
    if (!t->opt.verdict) return false;
    for (int i = t->n_read; i < t->n_spans; i++) {
        const cw_said *a = &t->spans[i];
        if (is_missed_span(t, i) && (i + 1 < t->n_spans ? a[1].first_id : t->n_ids) > a->first_id)
            return true;
    }
    return false;
}

/* --- comparing --- */

/* Is the choice another text than the tokens from p on? Where one of the two is the other's beginning,
 * nothing is known against it. */
static bool is_other_text(const cw_told *w, const cw_tok *tok, int p, int32_t would)
{
    size_t n_would, done = 0;
    const char *text = cw_tok_piece(tok, would, &n_would);
    for (; p < w->n && done < n_would; p++) {
        size_t n;
        const char *there = cw_tok_piece(tok, w->ids[p], &n);
        if (n > n_would - done) n = n_would - done;
        if (memcmp(there, text + done, n) != 0) return true;
        done += n;
    }
    return false;
}

static bool is_otherwise(const reading *r, int p, int32_t would)
{
    const cw_tok *tok = cw_speaker_tok(r->v->speaker);
    if (p == r->w->n) return !cw_tok_is_eog(tok, would);
    if (would == r->w->ids[p]) return false;
    return r->t->same_vocab || cw_tok_is_eog(tok, would) || is_other_text(r->w, tok, p, would);
}

/* rows: those of the positions [from, to). */
static void compare(reading *r, const float *rows, int from, int to)
{
    size_t n_vocab = (size_t)cw_voice_n_vocab(r->v);
    for (int q = from; q < to && r->at < 0; q++, rows += n_vocab) {
        int p = q + 1, i = span_of(r->t, r->w, p);
        if (p < r->w->n ? i < 0 || !is_missed_span(r->t, i) : !r->t->stopped) continue;
        int32_t would = cw_sampler_pick(r->v->sampler, rows, p, r->w->ids, p);
        if (!is_otherwise(r, p, would)) {
            r->n_same++;
            continue;
        }
        r->at = p;
        r->would = would;
        memcpy(r->there, rows, n_vocab * sizeof *rows);
    }
}

/* Everything that the session does not hold, in passes with logits from the token before the missed part on.
 */
static cw_status read_all(reading *r, int from, cw_err *err)
{
    cw_session *s = cw_speaker_session(r->v->speaker);
    size_t n_vocab = (size_t)cw_voice_n_vocab(r->v);
    for (int to; from < r->w->n; from = to) {
        to = r->w->n - from < r->n_rows ? r->w->n : from + r->n_rows;
        int wanted = from > r->first - 1 ? from : r->first - 1; /* the first row with logits */
        if (wanted >= to) wanted = to - 1;
        cw_batch_item item = {.session = s,
                              .tokens = r->w->ids + from,
                              .n_tokens = to - from,
                              .n_logits = to - wanted,
                              .logits = r->rows};
        CW_TRY(cw_engine_forward(cw_session_engine(s), &item, 1, r->t->opt.cancel, err));
        compare(r, r->rows, wanted, to);
        if (to == r->w->n)
            memcpy(r->v->rows, r->rows + (size_t)(to - wanted - 1) * n_vocab, n_vocab * sizeof(float));
    }
    return CW_OK;
}

/* --- cutting --- */

/*
 * The text of the tokens before position p ends at this byte of the answer; `d` is left as it is there.
 * false: the tokens do not spell the text that was shown (a vocabulary that changes what it encodes).
 */
static bool find_byte(const cw_talk *t, const cw_told *w, cw_detok *d, int p, size_t *byte)
{
    int i = span_of(t, w, p), from = t->same_vocab ? w->n_prompt : w->at[i];
    size_t at = t->same_vocab ? 0 : t->spans[i].first_byte;
    cw_detok_reset(d);
    for (; from < p; from++) {
        size_t n;
        const char *text = cw_detok_push(d, w->ids[from], &n);
        if (n > t->text_len - at || memcmp(t->text + at, text, n) != 0) return false;
        at += n;
    }
    *byte = at;
    return true;
}

/* The answer's marks and pieces as if it had only ever been this text; what was shown beyond is withdrawn. */
static void show_again(cw_talk *t)
{
    size_t before[3];
    cw_span span;
    memcpy(before, t->shown, sizeof before);
    memset(t->shown, 0, sizeof t->shown);
    cw_think_reset(t->think, t->opens_think);
    cw_think_push(t->think, t->text, t->text_len);
    while (cw_think_next(t->think, &span)) t->shown[span.kind] += span.len;
    t->opt.sink.withdraw(t->opt.sink.ctx, before[CW_SPAN_REASONING] - t->shown[CW_SPAN_REASONING],
                         before[CW_SPAN_ANSWER] - t->shown[CW_SPAN_ANSWER]);
}

/* Nothing behind position p was ever said. What stays of the fallback's is kept in the main model's tokens:
 * its text alone might be cut into others. */
static void cut_answer(cw_talk *t, cw_told *w, int p, size_t byte, cw_talk_stats *st)
{
    int i = span_of(t, w, p), before = t->n_ids, kept = p - w->at[i];
    if (t->same_vocab) {
        t->n_ids = p - w->n_prompt;
    } else {
        memcpy(t->ids + t->spans[i].first_id, w->ids + w->at[i], (size_t)kept * sizeof *t->ids);
        t->n_ids = t->spans[i].first_id + kept;
        t->spans[i].in = &t->main;
    }
    t->n_spans = kept ? i + 1 : i;
    t->text_len = byte;
    t->text[byte] = 0;
    w->n = p;
    st->n_withdrawn += before - t->n_ids;
    st->n_fallback -= before - t->n_ids;
    st->n_tokens = t->n_ids;
    show_again(t);
}

/* --- the verdict --- */

static bool tell(reading *r, cw_detok *d, size_t *byte)
{
    const cw_talk *t = r->t;
    cw_talk_verdict v = {.by = cw_speaker_name(t->main.speaker),
                         .of = cw_speaker_name(t->fallback.speaker),
                         .n_tokens = r->n_compared,
                         .n_same = r->n_same,
                         .kept = t->text,
                         .n_kept = t->text_len};
    if (r->at >= 0) {
        int i = span_of(t, r->w, r->at);
        v.can_redo =
            find_byte(t, r->w, d, r->at, byte) && t->spans[i].first_id + r->at - r->w->at[i] <= t->cap_ids;
        if (v.can_redo) v.n_kept = *byte;
        v.wrote = t->text + v.n_kept;
        v.n_wrote = t->text_len - v.n_kept;
        v.would_end = cw_tok_is_eog(cw_speaker_tok(t->main.speaker), r->would);
        if (!v.would_end) v.would = cw_tok_piece(cw_speaker_tok(t->main.speaker), r->would, &v.n_would);
    }
    return t->opt.verdict(t->opt.verdict_ctx, &v) && v.can_redo;
}

static cw_status finish(reading *r, cw_told *w, bool *cut, cw_talk_stats *st, cw_err *err)
{
    cw_talk *t = r->t;
    cw_detok *d = NULL;
    size_t byte = 0;
    CW_TRY(cw_detok_new(cw_speaker_tok(t->main.speaker), 0, &d, err));
    st->n_compared += r->n_compared;
    st->n_otherwise += r->at >= 0;
    *cut = tell(r, d, &byte);
    if (*cut) {
        st->n_redone++;
        bool found = find_byte(t, w, t->main.detok, r->at, &byte); /* a character may be begun there */
        CW_ASSERT(found);
        cw_session_rewind(cw_speaker_session(t->main.speaker), r->at);
        memcpy(t->main.rows, r->there, (size_t)cw_voice_n_vocab(&t->main) * sizeof(float));
        cut_answer(t, w, r->at, byte, st);
    }
    cw_detok_free(&d);
    return CW_OK;
}

static cw_status open_reading(reading *r, cw_err *err)
{
    size_t n_vocab = (size_t)cw_voice_n_vocab(r->v);
    size_t most = MOST_BYTES / (n_vocab * sizeof(float));
    int max = cw_engine_max_rows(cw_speaker_engine(r->v->speaker));
    r->n_rows = most < 1 ? 1 : most < (size_t)max ? (int)most : max;
    r->rows = cw_calloc((size_t)r->n_rows * n_vocab, sizeof *r->rows);
    r->there = cw_calloc(n_vocab, sizeof *r->there);
    if (!r->rows || !r->there) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    return CW_OK;
}

cw_status cw_missed_read(cw_talk *t, cw_told *w, int *reused, bool *cut, cw_talk_stats *st, cw_err *err)
{
    reading r = {.t = t, .v = &t->main, .w = w, .first = w->n, .at = -1, .n_compared = t->stopped};
    for (int i = t->n_spans - 1; i >= 0; i--) {
        int n = span_end(t, w, i) - w->at[i];
        if (!is_missed_span(t, i) || n == 0) continue;
        r.first = w->at[i];
        r.n_compared += n;
    }
    *cut = false;
    cw_session *s = cw_speaker_session(t->main.speaker);
    if (w->n > cw_session_n_ctx(s) ||
        r.first == w->n) /* the sentence of an ordinary reading; nothing to see */
        return cw_session_sync(s, w->ids, w->n, t->main.rows, reused, t->opt.cancel, err);
    int held, same = 0;
    const int32_t *tokens = cw_session_tokens(s, &held);
    while (same < held && same < r.first - 1 && tokens[same] == w->ids[same]) same++;
    cw_session_rewind(s, same);
    *reused = same;
    cw_status status = open_reading(&r, err);
    if (status == CW_OK) status = read_all(&r, same, err);
    if (status == CW_OK) status = finish(&r, w, cut, st, err);
    cw_free(r.there);
    cw_free(r.rows);
    return status;
}
