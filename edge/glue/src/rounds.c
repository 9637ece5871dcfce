/*
 * The token loop. A round chooses a token from the logits at hand, says it, and evaluates it together with a
 * drafted run behind it (perhaps empty). Every drafted token that equals the big model's own choice at its
 * place is said too; from the first that does not, the session is rewound. So a round with a draft leaves
 * exactly what as many rounds without would have left: the same tokens, KV rows and logits
 * (docs/NUMERICS.md, "Sampling and drafting").
 *
 * History for the sampler is the session's own timeline, so the choice at a position depends on nothing but
 * the tokens before it; that is what makes a changed speaker or a retry harmless to the noise.
 */
#include "cw/clock.h"
#include "talk_internal.h"

/* The drafted run behind `next`, the token that was just said, into out; 0 where there is nobody to draft. */
static int draft_run(cw_talk *t, const cw_voice *v, int n_past, const cw_talk_stats *st, int32_t next,
                     int32_t *out)
{
    const cw_talk_draft *d = &t->draft;
    if (v != &t->main || !d->max) return 0;
    int n = d->max;
    if (d->length) {
        int wanted = d->length(d->ctx);
        if (wanted < n) n = wanted;
    }
    bool by_drafter = d->drafter && (!d->use_drafter || (n > 0 && d->use_drafter(d->ctx)));
    /* This run, its pass's own token, and the next run; no guesses, no work, where none are asked for. */
    if (t->fallback_drafts && d->length) cw_shadow_ahead(t->shadow, n > 0 && !by_drafter ? 2 * n + 1 : 0);
    int room = cw_session_n_ctx(cw_speaker_session(v->speaker)) - n_past - 1;
    if (n > room) n = room;
    /* What would be said behind the last token that is wanted is not worth a row. */
    if (t->opt.max_tokens > 0 && n > t->opt.max_tokens - st->n_tokens) n = t->opt.max_tokens - st->n_tokens;
    if (n <= 0) return 0;
    return by_drafter ? cw_drafter_propose(d->drafter, next, n, out) : cw_shadow_guess(t->shadow, n, out);
}

static bool is_length_reached(const cw_talk *t, const cw_talk_stats *st)
{
    return t->opt.max_tokens > 0 && st->n_tokens >= t->opt.max_tokens;
}

/* Says the drafted tokens that are right. The number of them; *ended: the last is the answer's last token. */
static int accept(cw_talk *t, cw_voice *v, int n_past, const int32_t *run, int n, cw_talk_stats *st,
                  bool *ended)
{
    const int32_t *past = cw_session_tokens(cw_speaker_session(v->speaker), NULL);
    int n_vocab = cw_voice_n_vocab(v), j = 0;
    *ended = false;
    while (j < n && !*ended && !cw_talk_is_cancelled(t)) {
        int at = n_past + 1 + j;
        int32_t id = cw_sampler_pick(v->sampler, v->rows + (size_t)j * (size_t)n_vocab, at, past, at);
        if (id != run[j]) break;
        cw_talk_say(t, v, id, st);
        j++;
        *ended = is_length_reached(t, st);
    }
    return j;
}

cw_status cw_talk_rounds(cw_talk *t, cw_voice *v, cw_talk_stats *st, cw_err *err)
{
    cw_session *s = cw_speaker_session(v->speaker);
    const cw_tok *tok = cw_speaker_tok(v->speaker);
    bool in_place = v == &t->fallback && t->main.speaker && !t->only_fallback;
    int32_t tokens[1 + CW_SHADOW_GUESS_MAX];
    for (;;) {
        if (cw_talk_is_cancelled(t)) {
            st->end = CW_TALK_CANCELLED;
            return CW_OK;
        }
        if (in_place && t->n_doubt > 0) {
            t->n_doubt--;
        } else if (in_place && t->opt.is_back && t->n_spans < TALK_MAX_SPANS - 1 &&
                   t->opt.is_back(t->opt.is_back_ctx)) {
            t->main_is_back = true;
            return CW_OK;
        }
        int n_past;
        const int32_t *past = cw_session_tokens(s, &n_past);
        tokens[0] = cw_sampler_pick(v->sampler, v->logits, n_past, past, n_past);
        if (cw_tok_is_eog(tok, tokens[0])) {
            st->end = CW_TALK_STOP;
            return CW_OK;
        }
        cw_talk_say(t, v, tokens[0], st);
        if (is_length_reached(t, st)) {
            st->end = CW_TALK_LENGTH;
            return CW_OK;
        }
        if (n_past >= cw_session_n_ctx(s)) {
            st->end = CW_TALK_CONTEXT;
            return CW_OK;
        }
        int n = draft_run(t, v, n_past, st, tokens[0], tokens + 1);
        cw_batch_item item = {
            .session = s, .tokens = tokens, .n_tokens = 1 + n, .n_logits = 1 + n, .logits = v->rows};
        int64_t t0 = cw_now_us();
        CW_TRY(cw_engine_forward(cw_speaker_engine(v->speaker), &item, 1, t->opt.cancel, err));
        bool ended;
        int n_right = accept(t, v, n_past, tokens + 1, n, st, &ended);
        if (v == &t->main) {
            st->n_passes++;
            st->n_drafted += n;
            st->n_accepted += n_right;
            st->n_wrong += n_right < n && !ended;
            if (t->draft.tell) t->draft.tell(t->draft.ctx, n, n_right, cw_now_us() - t0);
        }
        /* The token that reached the length is said but, as without a draft, not kept in the session. */
        int n_kept = 1 + n_right - (ended ? 1 : 0);
        cw_session_rewind(s, n_past + n_kept);
        v->logits = v->rows + (size_t)(n_kept - 1) * (size_t)cw_voice_n_vocab(v);
        if (ended) {
            st->end = CW_TALK_LENGTH;
            return CW_OK;
        }
    }
}
