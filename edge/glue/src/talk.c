/*
 * An answer from prompt to end: who speaks, and the changes of the speaker. Each change makes the new voice's
 * session equal to the conversation, answer so far included (cw_session_sync), so the big model that comes
 * back holds exactly what one that was never away would hold.
 */
#include "cw/talk.h"
#include "cw/clock.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "talk_internal.h"

#include <stdio.h>
#include <string.h>

enum { DOUBT = 4, DOUBT_MOST = 1024 }; /* tokens */

const char *cw_talk_end_name(cw_talk_end e)
{
    static const char *const names[] = {"stop", "length", "context", "cancelled"};
    return names[e];
}

/* The longest answer: a full context of the longest pieces, each byte at worst a three-byte U+FFFD. */
static void room_for(cw_talk *t, const cw_voice *v)
{
    if (!v->speaker) return;
    int n = cw_session_n_ctx(cw_speaker_session(v->speaker));
    if (n > t->cap_ids) t->cap_ids = n;
    size_t bytes = ((size_t)n + 1) * (cw_tok_max_piece(cw_speaker_tok(v->speaker)) + 4) * 3;
    if (bytes > t->text_cap) t->text_cap = bytes;
}

static cw_status open_shadow(cw_talk *t, cw_err *err)
{
    const cw_talk_options *o = &t->opt;
    t->fallback_drafts = o->draft && (!o->draft->drafter || o->draft->use_drafter);
    if (t->fallback_drafts) {
        if (!o->main || !o->fallback)
            return CW_FAIL(err, CW_STATUS_INVALID,
                           "drafting needs a big model and a small one: --fallback FILE");
        if (!t->same_vocab)
            return CW_FAIL(err, CW_STATUS_INVALID,
                           "%s cannot draft for %s: their vocabularies differ; it can only be the fallback",
                           cw_speaker_name(o->fallback), cw_speaker_name(o->main));
    }
    CW_ASSERT(!o->draft || (o->draft->max >= 1 && o->draft->max <= CW_SHADOW_GUESS_MAX));
    if (!o->main || !o->fallback || (!t->fallback_drafts && !o->experts)) return CW_OK;
    CW_ASSERT(cw_engine_pool(cw_speaker_engine(o->main)) != cw_engine_pool(cw_speaker_engine(o->fallback)));
    CW_TRY(cw_shadow_new(o->fallback, &o->sampler, &t->shadow, err));
    if (o->experts) cw_engine_set_experts(cw_speaker_engine(o->main), cw_shadow_watch(t->shadow, o->experts));
    return CW_OK;
}

static cw_status open_voices(cw_talk *t, cw_err *err)
{
    const cw_talk_options *o = &t->opt;
    t->same_vocab =
        o->main && o->fallback && cw_tok_same_vocab(cw_speaker_tok(o->main), cw_speaker_tok(o->fallback));
    if (o->draft) t->draft = *o->draft;
    CW_TRY(cw_voice_init(&t->main, o->main, &o->sampler, 1 + t->draft.max, err));
    CW_TRY(cw_voice_init(&t->fallback, o->fallback, &o->sampler, 1, err));
    if (t->same_vocab) { /* a character begun by one voice is ended by the other */
        cw_detok_free(&t->fallback.detok);
        t->fallback.detok = t->main.detok;
        t->fallback.owns_detok = false;
    }
    room_for(t, &t->main);
    room_for(t, &t->fallback);
    t->text_cap *= 2; /* either voice may fill its own context */
    t->cap_ids *= 2;
    t->ids = cw_calloc((size_t)t->cap_ids, sizeof *t->ids);
    t->text = cw_pages_alloc(t->text_cap);
    return t->ids && t->text ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
}

cw_status cw_talk_new(const cw_talk_options *opt, cw_talk **out, cw_err *err)
{
    CW_ASSERT(opt->main || opt->fallback);
    cw_talk *t = cw_calloc(1, sizeof *t);
    if (!t) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    t->opt = *opt;
    t->only_fallback = !opt->main;
    cw_status s = open_voices(t, err);
    if (s == CW_OK) s = cw_think_new(false, &t->think, err);
    if (s == CW_OK) s = open_shadow(t, err);
    if (s != CW_OK) {
        cw_talk_free(&t);
        return s;
    }
    t->opt.draft = NULL; /* the copy counts */
    *out = t;
    return CW_OK;
}

void cw_talk_free(cw_talk **tp)
{
    if (!tp || !*tp) return;
    cw_talk *t = *tp;
    if (t->shadow && t->opt.experts) cw_engine_set_experts(cw_speaker_engine(t->opt.main), t->opt.experts);
    cw_shadow_free(&t->shadow);
    cw_voice_clear(&t->fallback);
    cw_voice_clear(&t->main);
    cw_think_free(&t->think);
    cw_free(t->ids);
    if (t->text) cw_pages_free(t->text, t->text_cap);
    cw_free(t);
    *tp = NULL;
}

cw_status cw_talk_use_fallback(cw_talk *t, bool on, cw_err *err)
{
    if (on && !t->fallback.speaker)
        return CW_FAIL(err, CW_STATUS_STATE, "there is no fallback model; start with --fallback FILE");
    if (!on && !t->main.speaker) return CW_FAIL(err, CW_STATUS_STATE, "only the fallback model is loaded");
    t->only_fallback = on;
    return CW_OK;
}

bool cw_talk_state(const cw_talk *t, const cw_session **session, const float **logits)
{
    const cw_voice *v = t->n_spans ? t->spans[t->n_spans - 1].by : NULL;
    if (!v || (t->shadow && v == &t->fallback)) return false;
    *session = cw_speaker_session(v->speaker);
    *logits = v->logits;
    return true;
}

cw_status cw_talk_begin_away(cw_talk *t, bool away, cw_err *err)
{
    if (away && !t->fallback.speaker)
        return CW_FAIL(err, CW_STATUS_STATE, "there is no fallback model; start with --fallback FILE");
    t->begins_away = away;
    return CW_OK;
}

const char *cw_talk_text(const cw_talk *t, size_t *len)
{
    *len = t->text_len;
    return t->text;
}

bool cw_talk_part(const cw_talk *t, int i, const char **model, size_t *begin)
{
    if (i < 0 || i >= t->n_spans) return false;
    *model = cw_speaker_name(t->spans[i].by->speaker);
    *begin = t->spans[i].first_byte;
    return true;
}

bool cw_talk_is_cancelled(const cw_talk *t)
{
    return t->opt.cancel && atomic_load_explicit(t->opt.cancel, memory_order_relaxed);
}

/* --- what is said --- */

static void settle_spans(cw_talk *t, const char *model)
{
    cw_span span;
    while (cw_think_next(t->think, &span))
        if (span.len) {
            t->shown[span.kind] += span.len;
            t->opt.sink.piece(t->opt.sink.ctx, model, span.kind, span.text, span.len);
        }
}

static void emit(cw_talk *t, const char *model, const char *text, size_t len)
{
    if (len == 0) return;
    CW_ASSERT(len < t->text_cap - t->text_len);
    memcpy(t->text + t->text_len, text, len);
    t->text_len += len;
    t->text[t->text_len] = 0;
    cw_think_push(t->think, text, len);
    settle_spans(t, model);
}

static void flush(cw_talk *t, const cw_voice *v)
{
    size_t len;
    const char *rest = cw_detok_flush(v->detok, &len);
    emit(t, cw_speaker_name(v->speaker), rest, len);
}

void cw_talk_say(cw_talk *t, cw_voice *v, int32_t id, cw_talk_stats *st)
{
    CW_ASSERT(t->n_ids < t->cap_ids);
    t->ids[t->n_ids++] = id;
    st->n_tokens++;
    if (v == &t->fallback && t->main.speaker && !t->only_fallback) st->n_fallback++;
    if (v == &t->main && t->shadow && t->same_vocab) cw_shadow_push(t->shadow, id);
    size_t len;
    const char *text = cw_detok_push(v->detok, id, &len);
    emit(t, cw_speaker_name(v->speaker), text, len);
}

void cw_talk_begin_span(cw_talk *t, const cw_voice *v)
{
    if (t->n_spans && t->spans[t->n_spans - 1].by == v) return;
    CW_ASSERT(t->n_spans < TALK_MAX_SPANS);
    t->spans[t->n_spans++] = (cw_said){.by = v, .in = v, .first_id = t->n_ids, .first_byte = t->text_len};
}

/* --- one voice --- */

/*
 * The shadow follows in the tokens with which it would go on: the main model's where it drafts (it must stand
 * where the main model stands), else those of its own template.
 */
static cw_status lead_shadow(cw_talk *t, const cw_talk_prompt *prompt, const cw_told *main, cw_err *err)
{
    if (t->fallback_drafts) {
        cw_shadow_set(t->shadow, main->ids, main->n, t->draft.length ? 0 : 2 * t->draft.max + 1, false);
        return CW_OK;
    }
    cw_told own;
    CW_TRY(cw_voice_tell(t, &t->fallback, prompt, &own, err));
    cw_shadow_set(t->shadow, own.ids, own.n, 0, false);
    cw_free(own.ids);
    return CW_OK;
}

/* The voice reads what it does not hold yet, the main model perhaps with a second look at what it missed. */
static cw_status read_on(cw_talk *t, cw_voice *v, const cw_talk_prompt *prompt, cw_told *w, int *reused,
                         cw_talk_stats *st, cw_err *err)
{
    if (v != &t->main || !cw_missed_any(t))
        return cw_session_sync(cw_speaker_session(v->speaker), w->ids, w->n, v->rows, reused, t->opt.cancel,
                               err);
    bool cut;
    CW_TRY(cw_missed_read(t, w, reused, &cut, st, err));
    if (!cut) return CW_OK;
    cw_talk_begin_span(t, v);
    return t->shadow ? lead_shadow(t, prompt, w, err) : CW_OK;
}

/* The voice's session and logits become those of the conversation so far. */
static cw_status catch_up(cw_talk *t, cw_voice *v, const cw_talk_prompt *prompt, cw_talk_stats *st,
                          cw_err *err)
{
    cw_told w;
    int reused = 0;
    bool first = t->n_spans == 0;
    CW_TRY(cw_voice_tell(t, v, prompt, &w, err));
    cw_status s = t->shadow && v == &t->main ? lead_shadow(t, prompt, &w, err) : CW_OK;
    if (s == CW_OK) {
        if (first) {
            t->opens_think = w.opens_think;
            cw_think_reset(t->think, w.opens_think);
        }
        if (first || !t->same_vocab) cw_detok_reset(v->detok);
        cw_talk_begin_span(t, v);
        st->model = cw_speaker_name(v->speaker);
        v->logits = v->rows;
        int64_t t0 = cw_now_us();
        s = read_on(t, v, prompt, &w, &reused, st, err);
        st->prefill_us += cw_now_us() - t0;
        if (first) st->n_prompt = w.n_prompt, st->n_reused = reused;
        if (s == CW_OK && v == &t->main) {
            t->n_read = t->n_spans;
            t->stopped = false;
        }
    }
    cw_free(w.ids);
    return s;
}

/* One voice from the prompt (and what was said before) to an end, a failure, or the main model's return. */
static cw_status speak(cw_talk *t, cw_voice *v, const cw_talk_prompt *prompt, cw_talk_stats *st, cw_err *err)
{
    bool takes = t->shadow && v == &t->fallback;
    t->main_is_back = false;
    if (takes) cw_shadow_take(t->shadow);
    cw_status s = catch_up(t, v, prompt, st, err);
    if (s == CW_OK) {
        int64_t t0 = cw_now_us();
        s = cw_talk_rounds(t, v, st, err);
        st->decode_us += cw_now_us() - t0;
    }
    if (takes) cw_shadow_give(t->shadow);
    if (s == CW_STATUS_CANCELLED) {
        st->end = CW_TALK_CANCELLED;
        s = CW_OK;
    }
    if (!t->same_vocab) flush(t, v);
    return s;
}

/* --- the answer --- */

/* Failures of the way to the experts, or of a worker, which another speaker does not share. */
static bool is_out_of_reach(cw_status s)
{
    switch (s) {
    case CW_STATUS_UNREACHABLE:
    case CW_STATUS_TIMEOUT:
    case CW_STATUS_BUSY:
    case CW_STATUS_REFUSED:
    case CW_STATUS_AUTH:
    case CW_STATUS_PROTOCOL:
    case CW_STATUS_NUMERIC:
    case CW_STATUS_MISMATCH: /* a worker that turned out to hold another model */
    case CW_STATUS_NOT_HERE: return true;
    default: return false;
    }
}

/* The main model was lost: after a return on which it said nothing, another is not tried at once, or the
 * answer would be nothing but returns. */
static void doubt_returns(cw_talk *t, bool returned, bool spoke)
{
    if (!returned || spoke)
        t->doubt = 0;
    else
        t->doubt = t->doubt ? 2 * t->doubt : DOUBT;
    if (t->doubt > DOUBT_MOST) t->doubt = DOUBT_MOST;
    t->n_doubt = t->doubt;
}

static void announce(cw_talk *t, const char *format, const char *a, const char *why, const char *b)
{
    char sentence[768];
    snprintf(sentence, sizeof sentence, format, a, why, b);
    t->opt.sink.notice(t->opt.sink.ctx, sentence);
}

static cw_status answer(cw_talk *t, cw_voice **v, const cw_talk_prompt *prompt, cw_talk_stats *st,
                        cw_err *err)
{
    for (bool returned = false;;) {
        int n_before = st->n_tokens - st->n_fallback;
        cw_status s = speak(t, *v, prompt, st, err);
        if (s != CW_OK && *v == &t->main && t->fallback.speaker && is_out_of_reach(s)) {
            announce(t, "%s is out of reach (%s); %s goes on", cw_speaker_name(t->main.speaker), err->text,
                     cw_speaker_name(t->fallback.speaker));
            doubt_returns(t, returned, st->n_tokens - st->n_fallback > n_before);
            *v = &t->fallback;
        } else if (s == CW_OK && t->main_is_back) {
            announce(t, "%s is back%s and goes on from %s", cw_speaker_name(t->main.speaker), "",
                     cw_speaker_name(t->fallback.speaker));
            *v = &t->main;
            returned = true;
        } else {
            return s;
        }
        st->n_changes++;
    }
}

/* From here by *v to the end. */
static cw_status answer_and_end(cw_talk *t, cw_voice **v, const cw_talk_prompt *prompt, cw_talk_stats *st,
                                cw_err *err)
{
    cw_err why = {0};
    cw_status s = answer(t, v, prompt, st, &why);
    if (t->same_vocab) flush(t, *v);
    cw_think_finish(t->think);
    settle_spans(t, cw_speaker_name((*v)->speaker));
    t->stopped = s == CW_OK && *v == &t->fallback && st->end == CW_TALK_STOP;
    if (s != CW_OK && err) *err = why;
    return s;
}

cw_status cw_talk_answer(cw_talk *t, const cw_talk_prompt *prompt, cw_talk_stats *stats, cw_err *err)
{
    memset(stats, 0, sizeof *stats);
    t->n_ids = t->n_spans = t->n_read = 0;
    t->stopped = false;
    memset(t->shown, 0, sizeof t->shown);
    t->text_len = 0;
    t->text[0] = 0;
    cw_think_reset(t->think, false);
    t->n_doubt = t->doubt = 0;
    cw_voice *v = t->only_fallback || t->begins_away ? &t->fallback : &t->main;
    stats->model = cw_speaker_name(v->speaker);
    return answer_and_end(t, &v, prompt, stats, err);
}

cw_status cw_talk_take_back(cw_talk *t, const cw_talk_prompt *prompt, cw_talk_stats *stats, cw_err *err)
{
    memset(stats, 0, sizeof *stats);
    if (!t->main.speaker || t->only_fallback || !cw_missed_any(t) || t->n_spans == TALK_MAX_SPANS)
        return CW_OK;
    stats->n_tokens = t->n_ids;
    for (int i = 0; i < t->n_spans; i++)
        if (t->spans[i].by == &t->fallback)
            stats->n_fallback +=
                (i + 1 < t->n_spans ? t->spans[i + 1].first_id : t->n_ids) - t->spans[i].first_id;
    int n_spans = t->n_spans;
    cw_status s = catch_up(t, &t->main, prompt, stats, err);
    if (s != CW_OK || !stats->n_redone) {
        t->n_spans = n_spans; /* it said nothing */
        if (t->n_read > n_spans) t->n_read = n_spans;
        return s;
    }
    cw_voice *v = &t->main;
    stats->n_changes = 1;
    return answer_and_end(t, &v, prompt, stats, err);
}
