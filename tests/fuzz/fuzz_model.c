/*
 * Any bytes as a model, with a prediction head in it or without, and as the companion file of a sound model:
 * describing and loading give a status, and what loads can be run.
 */
#include <string.h>

#include "cw/mtp.h"
#include "cw/sampler.h"
#include "model_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_VOCAB = 1 << 16 };

static int32_t pick(void *ctx, const float *logits, int64_t position, const int32_t *before, int n)
{
    CW_ASSERT(position == n && before[n - 1] >= 0);
    return cw_argmax(logits, *(const int *)ctx);
}

static void guess(cw_mtp *head, cw_session *s)
{
    int n_vocab = cw_engine_config(cw_session_engine(s))->n_vocab, n;
    int32_t out[CW_MTP_MAX], token = 0;
    cw_mtp_line *line = NULL;
    cw_err err;
    if (cw_mtp_line_new(head, s, &line, &err) != CW_OK) return;
    if (cw_session_eval(s, &token, 1, NULL, NULL, &err) == CW_OK) {
        n = cw_mtp_guess(line, token, CW_MTP_MAX, pick, &n_vocab, out);
        for (int i = 0; i < n; i++) CW_ASSERT(out[i] >= 0 && out[i] < n_vocab);
    }
    cw_mtp_line_free(&line);
}

/* Runs the engine, and the head of `companion`, or where that is NULL of the model's own file. */
static void run(cw_engine *e, const cw_gguf *g, const cw_gguf *companion)
{
    const cw_model_config *c = cw_engine_config(e);
    static float logits[MAX_VOCAB];
    static const int32_t tokens[] = {0, 1, 0};
    int n = c->n_vocab > 1 ? 3 : 1;
    cw_session *s = NULL;
    cw_mtp *head = NULL;
    cw_mtp_facts facts;
    cw_err err;
    cw_status described = cw_mtp_describe(g, c, companion, &facts, &err);
    CW_ASSERT(described == CW_OK || strlen(err.text) > 6);
    cw_status opened = cw_mtp_open(e, g, companion, &head, &err);
    CW_ASSERT(opened == CW_OK || strlen(err.text) > 6);
    CW_ASSERT(opened != CW_OK || described == CW_OK);
    if (cw_session_new(e, &(cw_session_options){.n_ctx = c->n_ctx_train < 8 ? c->n_ctx_train : 8}, &s,
                       &err) == CW_OK) {
        cw_status st = cw_session_eval(s, tokens, n, logits, NULL, &err);
        CW_ASSERT(st == CW_OK || strlen(err.text) > 6);
        if (head) guess(head, s);
    }
    cw_session_free(&s);
    cw_mtp_close(&head);
}

/* A sound model for companions, opened once. */
static cw_engine *sound_model(cw_gguf **file)
{
    static cw_gguf *g;
    static cw_engine *e;
    if (!e) {
        cw_err err;
        model_spec spec = model_spec_tiny();
        g = model_file_open(&spec);
        CW_ASSERT(cw_engine_open(g, &(cw_engine_options){.n_threads = 1, .max_rows = 2}, &e, &err) == CW_OK);
    }
    *file = g;
    return e;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cw_gguf *g = NULL;
    cw_engine *e = NULL;
    cw_model_facts facts;
    cw_err err = {0};
    if (cw_gguf_open_memory(data, size, "fuzz", &g, &err) != CW_OK) return 0;
    cw_status described = cw_model_describe(g, NULL, &facts, &err);
    CW_ASSERT(described == CW_OK || strlen(err.text) > 6);
    cw_status opened = cw_engine_open(g, &(cw_engine_options){.n_threads = 1, .max_rows = 2}, &e, &err);
    CW_ASSERT(opened == CW_OK || strlen(err.text) > 6);
    CW_ASSERT(opened != CW_OK || described == CW_OK);
    if (e && facts.config.n_vocab <= MAX_VOCAB) run(e, g, NULL);
    cw_engine_close(&e);
    cw_gguf *model;
    cw_engine *sound = sound_model(&model);
    run(sound, model, g);
    cw_gguf_close(&g);
    return 0;
}
