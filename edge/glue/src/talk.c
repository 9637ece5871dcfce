/*
 * Sampling history is the session's own timeline, so the choice at a position depends on nothing but the
 * tokens before it; that is what makes a changed speaker or a retry harmless to the noise (docs/NUMERICS.md).
 */
#include "cw/talk.h"
#include "cw/clock.h"
#include "cw/log.h"
#include "cw/mem.h"

#include <stdio.h>
#include <string.h>

/* What one speaker needs beside its session. */
typedef struct {
    cw_speaker *speaker; /* NULL: absent */
    cw_sampler *sampler;
    cw_detok *detok;
    float *logits; /* [n_vocab] */
} voice;

struct cw_talk {
    cw_talk_options opt;
    voice main, fallback;
    bool only_fallback;
    cw_think *think;
    /* The answer so far: room for a full context, touched as it grows. */
    int32_t *ids;
    int n_ids, cap_ids;
    char *text;
    size_t text_len, text_cap;
};

const char *cw_talk_end_name(cw_talk_end e)
{
    static const char *const names[] = {"stop", "length", "context", "cancelled"};
    return names[e];
}

static cw_status voice_init(voice *v, cw_speaker *s, const cw_sampler_params *p, cw_err *err)
{
    if (!s) return CW_OK;
    v->speaker = s;
    int n_vocab = cw_engine_config(cw_speaker_engine(s))->n_vocab;
    CW_TRY(cw_sampler_new(p, n_vocab, &v->sampler, err));
    CW_TRY(cw_detok_new(cw_speaker_tok(s), 0, &v->detok, err));
    v->logits = cw_calloc((size_t)n_vocab, sizeof *v->logits);
    return v->logits ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
}

static void voice_clear(voice *v)
{
    cw_sampler_free(&v->sampler);
    cw_detok_free(&v->detok);
    cw_free(v->logits);
}

/* The longest answer: a full context of the longest pieces, each byte at worst a three-byte U+FFFD. */
static void room_for(cw_talk *t, const voice *v)
{
    if (!v->speaker) return;
    int n = cw_session_n_ctx(cw_speaker_session(v->speaker));
    if (n > t->cap_ids) t->cap_ids = n;
    size_t bytes = ((size_t)n + 1) * (cw_tok_max_piece(cw_speaker_tok(v->speaker)) + 4) * 3;
    if (bytes > t->text_cap) t->text_cap = bytes;
}

cw_status cw_talk_new(const cw_talk_options *opt, cw_talk **out, cw_err *err)
{
    CW_ASSERT(opt->main || opt->fallback);
    cw_talk *t = cw_calloc(1, sizeof *t);
    if (!t) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    t->opt = *opt;
    t->only_fallback = !opt->main;
    cw_status s;
    CW_TRY_GOTO(s, voice_init(&t->main, opt->main, &opt->sampler, err));
    CW_TRY_GOTO(s, voice_init(&t->fallback, opt->fallback, &opt->sampler, err));
    CW_TRY_GOTO(s, cw_think_new(false, &t->think, err));
    room_for(t, &t->main);
    room_for(t, &t->fallback);
    t->text_cap *= 2; /* one answer may change speakers once, and either may fill its context */
    t->cap_ids *= 2;
    t->ids = cw_calloc((size_t)t->cap_ids, sizeof *t->ids);
    t->text = cw_pages_alloc(t->text_cap);
    if (!t->ids || !t->text) {
        s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
        goto fail;
    }
    *out = t;
    return CW_OK;
fail:
    cw_talk_free(&t);
    return s;
}

void cw_talk_free(cw_talk **t)
{
    if (!t || !*t) return;
    voice_clear(&(*t)->main);
    voice_clear(&(*t)->fallback);
    cw_think_free(&(*t)->think);
    cw_free((*t)->ids);
    cw_pages_free((*t)->text, (*t)->text_cap);
    cw_free(*t);
    *t = NULL;
}

cw_status cw_talk_use_fallback(cw_talk *t, bool on, cw_err *err)
{
    if (on && !t->fallback.speaker)
        return CW_FAIL(err, CW_STATUS_STATE, "there is no fallback model; start with --fallback FILE");
    if (!on && !t->main.speaker) return CW_FAIL(err, CW_STATUS_STATE, "only the fallback model is loaded");
    t->only_fallback = on;
    return CW_OK;
}

const char *cw_talk_text(const cw_talk *t, size_t *len)
{
    *len = t->text_len;
    return t->text;
}

static void settle_spans(cw_talk *t, const char *model)
{
    cw_span span;
    while (cw_think_next(t->think, &span))
        if (span.len) t->opt.sink.piece(t->opt.sink.ctx, model, span.kind, span.text, span.len);
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

static bool cancelled(const cw_talk *t)
{
    return t->opt.cancel && atomic_load_explicit(t->opt.cancel, memory_order_relaxed);
}

static bool ends_in_think(const char *raw)
{
    static const char mark[] = "<think>";
    size_t n = strlen(raw);
    while (n && (raw[n - 1] == '\n' || raw[n - 1] == ' ')) n--;
    return n >= sizeof mark - 1 && memcmp(raw + n - (sizeof mark - 1), mark, sizeof mark - 1) == 0;
}

/* The prompt in this voice's tokens. */
static cw_status encode_prompt(const voice *v, const cw_talk_prompt *p, int32_t **ids, size_t *n,
                               bool *opens_think, cw_err *err)
{
    const cw_tok *tok = cw_speaker_tok(v->speaker);
    if (p->raw) {
        *opens_think = ends_in_think(p->raw);
        return cw_tok_encode(tok, p->raw, strlen(p->raw), CW_TOK_ADD_SPECIAL | CW_TOK_PARSE_SPECIAL, ids, n,
                             err);
    }
    const cw_chat *chat = cw_speaker_chat(v->speaker, err);
    if (!chat) return err ? err->code : CW_STATUS_UNSUPPORTED;
    *opens_think = cw_chat_prompt_opens_think(chat);
    return cw_chat_encode(chat, tok, p->messages, p->n_messages, true, ids, n, err);
}

/* Appends what has been said so far in another voice's tokens. */
static cw_status append_answer(const cw_talk *t, const voice *v, int32_t **ids, size_t *n, cw_err *err)
{
    int32_t *said = t->ids, *own = NULL;
    size_t n_said = (size_t)t->n_ids;
    if (n_said == 0) return CW_OK;
    if (!t->main.speaker || !cw_tok_same_vocab(cw_speaker_tok(t->main.speaker), cw_speaker_tok(v->speaker))) {
        CW_TRY(cw_tok_encode(cw_speaker_tok(v->speaker), t->text, t->text_len, 0, &own, &n_said, err));
        said = own;
    }
    int32_t *all = cw_realloc(*ids, *n + n_said, sizeof *all);
    if (all) {
        memcpy(all + *n, said, n_said * sizeof *all);
        *ids = all;
        *n += n_said;
    }
    cw_free(own);
    return all ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
}

/* Token after token until an end. The session holds the prompt, v->logits are those after its last token. */
static cw_status decode(cw_talk *t, voice *v, cw_talk_stats *st, cw_err *err)
{
    cw_session *s = cw_speaker_session(v->speaker);
    cw_engine *e = cw_speaker_engine(v->speaker);
    const cw_tok *tok = cw_speaker_tok(v->speaker);
    const char *model = cw_speaker_name(v->speaker);
    for (;;) {
        if (cancelled(t)) {
            st->end = CW_TALK_CANCELLED;
            return CW_OK;
        }
        int n_past;
        const int32_t *past = cw_session_tokens(s, &n_past);
        int32_t id = cw_sampler_pick(v->sampler, v->logits, n_past, past, n_past);
        if (cw_tok_is_eog(tok, id)) {
            st->end = CW_TALK_STOP;
            return CW_OK;
        }
        CW_ASSERT(t->n_ids < t->cap_ids);
        t->ids[t->n_ids++] = id;
        st->n_tokens++;
        size_t len;
        const char *text = cw_detok_push(v->detok, id, &len);
        emit(t, model, text, len);
        if (t->opt.max_tokens > 0 && st->n_tokens >= t->opt.max_tokens) {
            st->end = CW_TALK_LENGTH;
            return CW_OK;
        }
        if (n_past >= cw_session_n_ctx(s)) {
            st->end = CW_TALK_CONTEXT;
            return CW_OK;
        }
        cw_batch_item item = {.session = s, .tokens = &id, .n_tokens = 1, .n_logits = 1, .logits = v->logits};
        cw_status st2 = cw_engine_forward(e, &item, 1, t->opt.cancel, err);
        if (st2 != CW_OK) return st2;
    }
}

/* One voice from the prompt (and what was said before) to an end or a failure. */
static cw_status speak(cw_talk *t, voice *v, const cw_talk_prompt *prompt, cw_talk_stats *st, cw_err *err)
{
    int32_t *ids = NULL;
    size_t n = 0;
    bool opens_think = false, first = t->n_ids == 0 && t->text_len == 0;
    CW_TRY(encode_prompt(v, prompt, &ids, &n, &opens_think, err));
    int n_prompt = (int)n;
    cw_status s = append_answer(t, v, &ids, &n, err);
    if (s == CW_OK && n == 0) s = CW_FAIL(err, CW_STATUS_INVALID, "the prompt is empty");
    if (s != CW_OK) goto out;
    if (first) cw_think_reset(t->think, opens_think);
    cw_detok_reset(v->detok);
    int64_t t0 = cw_now_us();
    int reused = 0;
    s = cw_session_sync(cw_speaker_session(v->speaker), ids, (int)n, v->logits, &reused, t->opt.cancel, err);
    int64_t t1 = cw_now_us();
    st->prefill_us += t1 - t0;
    st->n_prompt = n_prompt;
    st->n_reused = reused;
    st->model = cw_speaker_name(v->speaker);
    if (s == CW_OK) {
        s = decode(t, v, st, err);
        st->decode_us += cw_now_us() - t1;
    }
    if (s == CW_STATUS_CANCELLED) {
        st->end = CW_TALK_CANCELLED;
        s = CW_OK;
    }
    size_t len;
    const char *rest = cw_detok_flush(v->detok, &len);
    emit(t, cw_speaker_name(v->speaker), rest, len);
out:
    cw_free(ids);
    return s;
}

/* Failures of the way to the experts, which another speaker does not share. */
static bool is_out_of_reach(cw_status s)
{
    switch (s) {
    case CW_STATUS_UNREACHABLE:
    case CW_STATUS_TIMEOUT:
    case CW_STATUS_BUSY:
    case CW_STATUS_REFUSED:
    case CW_STATUS_AUTH:
    case CW_STATUS_PROTOCOL:
    case CW_STATUS_MISMATCH: /* a worker that turned out to hold another model */
    case CW_STATUS_NOT_HERE: return true;
    default: return false;
    }
}

cw_status cw_talk_answer(cw_talk *t, const cw_talk_prompt *prompt, cw_talk_stats *stats, cw_err *err)
{
    memset(stats, 0, sizeof *stats);
    t->n_ids = 0;
    t->text_len = 0;
    t->text[0] = 0;
    cw_think_reset(t->think, false);
    voice *v = t->only_fallback ? &t->fallback : &t->main;
    stats->model = cw_speaker_name(v->speaker);
    cw_err why = {0};
    cw_status s = speak(t, v, prompt, stats, &why);
    if (s != CW_OK && v == &t->main && t->fallback.speaker && is_out_of_reach(s)) {
        char sentence[sizeof why.text + 160];
        snprintf(sentence, sizeof sentence, "%s is out of reach (%s); %s goes on",
                 cw_speaker_name(v->speaker), why.text, cw_speaker_name(t->fallback.speaker));
        t->opt.sink.notice(t->opt.sink.ctx, sentence);
        int before = stats->n_tokens;
        v = &t->fallback;
        s = speak(t, v, prompt, stats, &why);
        stats->n_fallback = stats->n_tokens - before;
    }
    cw_think_finish(t->think);
    settle_spans(t, cw_speaker_name(v->speaker));
    if (s != CW_OK && err) *err = why;
    return s;
}
