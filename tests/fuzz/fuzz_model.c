/* Any bytes as a model: describing and loading give a status, and what loads can be run. */
#include <string.h>

#include "cw/engine.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void run(cw_engine *e)
{
    const cw_model_config *c = cw_engine_config(e);
    static float logits[1 << 16];
    static const int32_t tokens[] = {0, 1, 0};
    int n = c->n_vocab > 1 ? 3 : 1;
    cw_session *s = NULL;
    cw_err err;
    if (cw_session_new(e, &(cw_session_options){.n_ctx = c->n_ctx_train < 8 ? c->n_ctx_train : 8}, &s,
                       &err) != CW_OK)
        return;
    cw_status st = cw_session_eval(s, tokens, n, logits, NULL, &err);
    CW_ASSERT(st == CW_OK || strlen(err.text) > 6);
    cw_session_free(&s);
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
    if (e && facts.config.n_vocab <= 1 << 16) run(e);
    cw_engine_close(&e);
    cw_gguf_close(&g);
    return 0;
}
