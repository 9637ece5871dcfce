#include "plan_measure.h"
#include "cw/clock.h"
#include "cw/mem.h"
#include "cw/signal.h"

#include <stdlib.h>
#include <string.h>

enum {
    PASSES = 60,      /* of one number of rows, */
    PASSES_LEAST = 5, /* fewer where they take longer than */
    PASSES_US = 600000,
    WARM = 1,        /* passes at least, and at least so long, are not counted */
    WARM_US = 60000, /* caches, clocks and connections */
    MANY = 5,        /* rows, where two points are enough */
    WAIT_MS = 30000,
    CTX = 512,
};
const int cli_measured_rows[CLI_MEASURED] = {1, 5, 9, 17, CW_PLAN_DRAFT_MAX + 1};

/* --- experts that cost nothing: what is left is the edge's own time --- */

typedef struct {
    cw_experts base;
    float *zeros; /* [max_rows, d_model] */
} silent;

static cw_status silent_submit(cw_experts *self, const cw_expert_call *call, uint64_t *ticket, cw_err *err)
{
    (void)self, (void)call, (void)err;
    *ticket = 0;
    return CW_OK;
}

static cw_status silent_collect(cw_experts *self, uint64_t ticket, cw_expert_reply *out, cw_err *err)
{
    (void)ticket, (void)err;
    *out = (cw_expert_reply){.kind = CW_REPLY_COMBINED_F32, .f32 = ((silent *)self)->zeros};
    return CW_OK;
}

static const cw_experts_vtable silent_vt = {silent_submit, silent_collect, NULL};

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median time of a pass of `rows` rows behind some context. */
static cw_status time_pass(cw_speaker *s, int rows, double *us, cw_err *err)
{
    cw_session *session = cw_speaker_session(s);
    cw_engine *e = cw_speaker_engine(s);
    int n_vocab = cw_engine_config(e)->n_vocab;
    float *logits = cw_calloc((size_t)rows * (size_t)n_vocab, sizeof *logits);
    if (!logits) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    double times[PASSES];
    int32_t tokens[CW_PLAN_DRAFT_MAX + 1];
    int n = 0, past = CTX;
    cw_status st = CW_OK;
    int64_t began = cw_now_us(), now = began, warm_until = 0;
    for (int i = 0; st == CW_OK && n < PASSES; i++) {
        if (n >= PASSES_LEAST && now - warm_until > PASSES_US) break;
        if (past + rows > CTX) cw_session_rewind(session, past = 0);
        for (int k = 0; k < rows; k++) tokens[k] = (int32_t)(i * 97 + k * 13) % n_vocab;
        cw_batch_item item = {
            .session = session, .tokens = tokens, .n_tokens = rows, .n_logits = rows, .logits = logits};
        int64_t t0 = cw_now_us();
        st = cw_engine_forward(e, &item, 1, cw_signal_interrupt_flag(), err);
        now = cw_now_us();
        past += rows;
        if (i < WARM || now - began < WARM_US)
            warm_until = now;
        else
            times[n++] = (double)(now - t0);
    }
    cw_free(logits);
    if (st != CW_OK) return st;
    qsort(times, (size_t)n, sizeof *times, by_size);
    *us = times[n / 2];
    return CW_OK;
}

static cw_status open_one(const cli_options *o, const char *path, cw_engine_role role, cw_speaker **out,
                          cw_err *err)
{
    cw_speaker_options so = {.path = path, .progress = !o->quiet};
    CW_TRY(cli_engine_options(o, role, NULL, &so.engine, err));
    so.session = cli_session_options(o);
    so.session.n_ctx = CTX;
    return cw_speaker_open(&so, out, err);
}

static cw_status measure_edge(cw_speaker *s, cli_measured *m, cw_err *err)
{
    cw_engine *e = cw_speaker_engine(s);
    silent none = {{.vt = &silent_vt}, NULL};
    none.zeros =
        cw_calloc((size_t)cw_engine_max_rows(e) * (size_t)cw_engine_config(e)->d_model, sizeof *none.zeros);
    if (!none.zeros) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    cw_engine_set_experts(e, &none.base);
    double many = 0;
    cw_status st = time_pass(s, 1, &m->edge_us, err);
    if (st == CW_OK) st = time_pass(s, MANY, &many, err);
    m->edge_row_us = many > m->edge_us ? (many - m->edge_us) / (MANY - 1) : 0;
    cw_engine_set_experts(e, NULL);
    cw_free(none.zeros);
    return st;
}

static cw_status measure_cluster(const cli_options *o, cw_speaker *s, cli_measured *m, cw_err *err)
{
    cw_mainland *land = NULL;
    CW_TRY(cli_join(o, cw_speaker_file(s), cw_speaker_engine(s), WAIT_MS, false, &land, err));
    cw_status st = CW_OK;
    for (int i = 0; i < CLI_MEASURED && st == CW_OK; i++)
        st = time_pass(s, cli_measured_rows[i], &m->pass_us[i], err);
    if (st == CW_OK) m->joined = cli_plan_link(land, &m->link);
    cw_engine_set_experts(cw_speaker_engine(s), NULL);
    cw_mainland_close(&land);
    if (st == CW_OK && !m->joined)
        st = CW_FAIL(err, CW_STATUS_UNREACHABLE, "no worker has answered yet; try again in a moment");
    return st;
}

static cw_status measure_main(const cli_options *o, const char *path, cli_measured *m, cw_tok **tok,
                              cw_err *err)
{
    cw_speaker *s = NULL;
    cw_gguf *g = NULL;
    cw_model_options mo;
    CW_TRY(cli_model_options(o, &mo, err));
    CW_TRY(cw_gguf_open(path, &g, err));
    cw_status st = cw_model_describe(g, &mo, &m->facts, err);
    if (st == CW_OK) st = cw_tok_new(g, tok, err);
    cw_gguf_close(&g);
    if (st != CW_OK) return st;
    if (m->facts.config.n_experts) {
        CW_TRY(open_one(o, path, CW_ENGINE_EDGE, &s, err));
        m->model = cli_plan_model(cw_engine_config(cw_speaker_engine(s)),
                                  cw_engine_expert_shapes(cw_speaker_engine(s)));
        st = measure_edge(s, m, err);
        if (st == CW_OK && o->join) st = measure_cluster(o, s, m, err);
        cw_speaker_close(&s);
        if (st != CW_OK) return st;
    }
    if (cli_check_fits(o, path, err) != CW_OK) return CW_OK; /* not possible is an answer too */
    CW_TRY(open_one(o, path, CW_ENGINE_LOCAL, &s, err));
    st = time_pass(s, 1, &m->local_us, err);
    cw_speaker_close(&s);
    return st;
}

cw_status cli_plan_measure(const cli_options *o, const char *path, const char *fallback, cli_measured *m,
                           cw_err *err)
{
    memset(m, 0, sizeof *m);
    cw_tok *tok = NULL;
    cw_status st = measure_main(o, path, m, &tok, err);
    if (st == CW_OK && fallback) {
        cw_speaker *s = NULL;
        st = open_one(o, fallback, CW_ENGINE_LOCAL, &s, err);
        if (st == CW_OK) st = time_pass(s, 1, &m->fallback_us, err);
        if (st == CW_OK) m->can_draft = cw_tok_same_vocab(tok, cw_speaker_tok(s));
        cw_speaker_close(&s);
    }
    cw_tok_free(&tok);
    return st;
}
