/* One speaker's part in an answer: its working memory, and the conversation in its own tokens. */
#include "cw/mem.h"
#include "talk_internal.h"

#include <string.h>

cw_status cw_voice_init(cw_voice *v, cw_speaker *s, const cw_sampler_params *p, int n_rows, cw_err *err)
{
    if (!s) return CW_OK;
    v->speaker = s;
    v->n_rows = n_rows;
    CW_TRY(cw_sampler_new(p, cw_voice_n_vocab(v), &v->sampler, err));
    CW_TRY(cw_detok_new(cw_speaker_tok(s), 0, &v->detok, err));
    v->owns_detok = true;
    size_t n;
    if (cw_mul_size((size_t)n_rows, (size_t)cw_voice_n_vocab(v), &n)) v->rows = cw_calloc(n, sizeof *v->rows);
    v->logits = v->rows;
    return v->rows ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
}

void cw_voice_clear(cw_voice *v)
{
    cw_sampler_free(&v->sampler);
    if (v->owns_detok) cw_detok_free(&v->detok);
    cw_free(v->rows);
}

int cw_voice_n_vocab(const cw_voice *v)
{
    return cw_engine_config(cw_speaker_engine(v->speaker))->n_vocab;
}

static bool ends_in_think(const char *raw)
{
    static const char mark[] = "<think>";
    size_t n = strlen(raw);
    while (n && (raw[n - 1] == '\n' || raw[n - 1] == ' ')) n--;
    return n >= sizeof mark - 1 && memcmp(raw + n - (sizeof mark - 1), mark, sizeof mark - 1) == 0;
}

static cw_status encode(const cw_voice *v, const cw_talk_prompt *p, int32_t **ids, size_t *n,
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

static cw_status append(int32_t **ids, size_t *n, const int32_t *more, size_t n_more, cw_err *err)
{
    int32_t *all = cw_realloc(*ids, *n + n_more, sizeof *all);
    if (!all) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    memcpy(all + *n, more, n_more * sizeof *all);
    *ids = all;
    *n += n_more;
    return CW_OK;
}

/* What has been said so far, by whomever, in this voice's tokens. */
static cw_status append_said(const cw_talk *t, const cw_voice *v, int32_t **ids, size_t *n, int *at,
                             cw_err *err)
{
    for (int i = 0; i < t->n_spans; i++) {
        const cw_said *a = &t->spans[i], *b = i + 1 < t->n_spans ? a + 1 : NULL;
        size_t n_ids = (size_t)((b ? b->first_id : t->n_ids) - a->first_id);
        size_t n_text = (b ? b->first_byte : t->text_len) - a->first_byte;
        at[i] = (int)*n;
        if (a->in == v || t->same_vocab) {
            if (n_ids) CW_TRY(append(ids, n, t->ids + a->first_id, n_ids, err));
            continue;
        }
        if (n_text == 0) continue;
        int32_t *own = NULL;
        size_t n_own = 0;
        CW_TRY(
            cw_tok_encode(cw_speaker_tok(v->speaker), t->text + a->first_byte, n_text, 0, &own, &n_own, err));
        cw_status s = n_own ? append(ids, n, own, n_own, err) : CW_OK;
        cw_free(own);
        CW_TRY(s);
    }
    if (t->n_spans < TALK_MAX_SPANS) at[t->n_spans] = (int)*n;
    return CW_OK;
}

cw_status cw_voice_tell(const cw_talk *t, const cw_voice *v, const cw_talk_prompt *p, cw_told *w, cw_err *err)
{
    *w = (cw_told){0};
    size_t n = 0;
    cw_status s = encode(v, p, &w->ids, &n, &w->opens_think, err);
    w->n_prompt = (int)n;
    if (s == CW_OK) s = append_said(t, v, &w->ids, &n, w->at, err);
    if (s == CW_OK && n == 0) s = CW_FAIL(err, CW_STATUS_INVALID, "the prompt is empty");
    w->n = (int)n;
    if (s != CW_OK) {
        cw_free(w->ids);
        w->ids = NULL;
    }
    return s;
}
