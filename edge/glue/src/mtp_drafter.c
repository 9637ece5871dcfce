/* See cw/mtp_drafter.h. The answering thread. */
#include "cw/mtp_drafter.h"
#include "cw/mem.h"
#include "cw/mtp.h"

typedef struct {
    cw_drafter base;
    const cw_tok *tok;
    cw_sampler *sampler;
    cw_mtp *head;
    cw_mtp_line *line;
} mtp_drafter;

/* An end token is not guessed: the big model ends an answer by itself. */
static int32_t pick(void *ctx, const float *logits, int64_t position, const int32_t *before, int n)
{
    mtp_drafter *d = ctx;
    int32_t id = cw_sampler_pick(d->sampler, logits, position, before, n);
    return cw_tok_is_eog(d->tok, id) ? -1 : id;
}

static int propose(cw_drafter *self, int32_t next, int n, int32_t *out)
{
    mtp_drafter *d = (mtp_drafter *)self;
    return cw_mtp_guess(d->line, next, n, pick, d, out);
}

static void destroy(cw_drafter *self)
{
    mtp_drafter *d = (mtp_drafter *)self;
    cw_mtp_line_free(&d->line);
    cw_mtp_close(&d->head);
    cw_sampler_free(&d->sampler);
    cw_free(d);
}

static const cw_drafter_vtable vtable = {propose, destroy};

static cw_status open_head(mtp_drafter *d, cw_speaker *main, const char *companion, cw_err *err)
{
    cw_gguf *file = NULL;
    if (companion) CW_TRY(cw_gguf_open(companion, &file, err));
    cw_status s = cw_mtp_open(cw_speaker_engine(main), cw_speaker_file(main), file, &d->head, err);
    cw_gguf_close(&file);
    if (s == CW_OK) return s;
    return companion ? cw_err_prefix(err, "%s", companion) : s;
}

cw_status cw_mtp_drafter_new(cw_speaker *main, const char *companion, const cw_sampler_params *p,
                             cw_drafter **out, cw_err *err)
{
    mtp_drafter *d = cw_calloc(1, sizeof *d);
    if (!d) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    *d = (mtp_drafter){.base = {&vtable, CW_MTP_MAX}, .tok = cw_speaker_tok(main)};
    cw_status s = cw_sampler_new(p, cw_engine_config(cw_speaker_engine(main))->n_vocab, &d->sampler, err);
    if (s == CW_OK) s = open_head(d, main, companion, err);
    if (s == CW_OK) s = cw_mtp_line_new(d->head, cw_speaker_session(main), &d->line, err);
    if (s != CW_OK) {
        destroy(&d->base);
        return s;
    }
    *out = &d->base;
    return CW_OK;
}

size_t cw_mtp_drafter_bytes(const cw_drafter *d)
{
    return cw_mtp_weight_bytes(((const mtp_drafter *)d)->head);
}
