/* A loaded model: file, tokenizer, template, engine, session; opened in that order, closed in the reverse. */
#include "cw/speaker.h"
#include "cw/mem.h"
#include "cw/progress.h"

#include <string.h>

struct cw_speaker {
    cw_gguf *file; /* stays open: it costs nothing, and an edge must name its model to the cluster */
    cw_tok *tok;
    cw_chat *chat;
    cw_err no_chat; /* why chat is NULL */
    cw_engine *engine;
    cw_session *session;
};

static bool show_progress(void *ctx, uint64_t done, uint64_t total)
{
    cw_progress *p = ctx;
    p->total = total;
    cw_progress_update(p, done);
    return true;
}

static cw_status load_engine(cw_speaker *s, const cw_speaker_options *opt, cw_err *err)
{
    cw_engine_options eo = opt->engine;
    cw_progress bar;
    cw_progress_begin(&bar, "loading", 0);
    if (opt->progress && !eo.progress) {
        eo.progress = show_progress;
        eo.progress_ctx = &bar;
    }
    cw_status st = cw_engine_open(s->file, &eo, &s->engine, err);
    cw_progress_end(&bar);
    return st;
}

static cw_status load(cw_speaker *s, const cw_speaker_options *opt, cw_err *err)
{
    CW_TRY(cw_gguf_open(opt->path, &s->file, err));
    CW_TRY(cw_tok_new(s->file, &s->tok, err));
    if (cw_chat_new_from_gguf(s->file, &s->chat, &s->no_chat) != CW_OK) s->chat = NULL;
    CW_TRY(load_engine(s, opt, err));
    /* Every token that can be written must have a text. */
    size_t n_text = cw_tok_n_vocab(s->tok);
    int n_vocab = cw_engine_config(s->engine)->n_vocab;
    if (n_text < (size_t)n_vocab)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: the vocabulary has %zu tokens, but the model writes %d",
                       opt->path, n_text, n_vocab);
    return cw_session_new(s->engine, &opt->session, &s->session, err);
}

cw_status cw_speaker_open(const cw_speaker_options *opt, cw_speaker **out, cw_err *err)
{
    cw_speaker *s = cw_calloc(1, sizeof *s);
    if (!s) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    cw_status st = load(s, opt, err);
    if (st != CW_OK) {
        cw_speaker_close(&s);
        return st;
    }
    *out = s;
    return CW_OK;
}

void cw_speaker_close(cw_speaker **s)
{
    if (!s || !*s) return;
    cw_session_free(&(*s)->session);
    cw_engine_close(&(*s)->engine);
    cw_chat_free(&(*s)->chat);
    cw_tok_free(&(*s)->tok);
    cw_gguf_close(&(*s)->file);
    cw_free(*s);
    *s = NULL;
}

const char *cw_speaker_name(const cw_speaker *s)
{
    return cw_engine_config(s->engine)->name;
}

const cw_tok *cw_speaker_tok(const cw_speaker *s)
{
    return s->tok;
}

const cw_gguf *cw_speaker_file(const cw_speaker *s)
{
    return s->file;
}

cw_engine *cw_speaker_engine(cw_speaker *s)
{
    return s->engine;
}

cw_session *cw_speaker_session(cw_speaker *s)
{
    return s->session;
}

const cw_chat *cw_speaker_chat(const cw_speaker *s, cw_err *err)
{
    if (!s->chat && err) *err = s->no_chat;
    return s->chat;
}
