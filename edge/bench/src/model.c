/* See cw/bench_model.h. */
#include "cw/bench_model.h"
#include "cw/clock.h"
#include "cw/mem.h"

#include <string.h>

struct cw_bench_model {
    cw_engine *e;
    int n_sessions, n_ctx, n_vocab;
    cw_session **sessions;
    int32_t *tokens;      /* [n_sessions, n_ctx] */
    cw_batch_item *items; /* [n_sessions] */
    float *logits;        /* [n_sessions, n_vocab] */
};

/* --- memory --- */

/* Positions a session of the case fills. */
static int positions(const cw_bench_case *c)
{
    return c->depth + (c->kind == CW_BENCH_ALL_LOGITS ? c->batch : c->tokens);
}

static int sessions(const cw_bench_case *c)
{
    return c->kind == CW_BENCH_DECODE ? c->batch : 1;
}

static cw_status measure(cw_bench_model *m, const cw_bench_case *cases, int n_cases, int n_ctx, int *rows,
                         cw_err *err)
{
    *rows = 1;
    for (int i = 0; i < n_cases; i++) {
        const cw_bench_case *c = &cases[i];
        CW_ASSERT(c->tokens >= 1 && c->batch >= 1 && c->depth >= 0);
        if (c->kind != CW_BENCH_PREFILL && c->batch > cw_engine_max_rows(m->e))
            return CW_FAIL(err, CW_STATUS_LIMIT, "a batch of %d, and one pass has at most %d rows", c->batch,
                           cw_engine_max_rows(m->e));
        if (n_ctx && positions(c) > n_ctx)
            return CW_FAIL(err, CW_STATUS_LIMIT, "%d positions do not fit into the context of %d",
                           positions(c), n_ctx);
        if (positions(c) > m->n_ctx) m->n_ctx = positions(c);
        if (sessions(c) > m->n_sessions) m->n_sessions = sessions(c);
        if (c->batch > *rows) *rows = c->batch;
    }
    return CW_OK;
}

static cw_status take(cw_bench_model *m, const cw_session_options *opt, int rows, cw_err *err)
{
    size_t n = (size_t)m->n_sessions, ids = 0, floats = 0;
    bool ok =
        cw_mul_size(n, (size_t)m->n_ctx, &ids) && cw_mul_size((size_t)rows, (size_t)m->n_vocab, &floats);
    if (ok) {
        m->sessions = cw_calloc(n, sizeof(cw_session *));
        m->items = cw_calloc(n, sizeof *m->items);
        m->tokens = cw_calloc(ids, sizeof *m->tokens);
        m->logits = cw_calloc(floats, sizeof *m->logits);
    }
    if (!m->sessions || !m->items || !m->tokens || !m->logits)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for %d sessions", m->n_sessions);
    cw_session_options so = *opt;
    so.n_ctx = m->n_ctx;
    for (size_t i = 0; i < n; i++) CW_TRY(cw_session_new(m->e, &so, &m->sessions[i], err));
    uint64_t seed = 1;
    for (size_t i = 0; i < ids; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        m->tokens[i] = (int32_t)((seed >> 33) % (uint64_t)m->n_vocab);
    }
    return CW_OK;
}

cw_status cw_bench_model_new(cw_engine *e, const cw_session_options *opt, const cw_bench_case *cases,
                             int n_cases, cw_bench_model **out, cw_err *err)
{
    cw_bench_model *m = cw_calloc(1, sizeof *m);
    if (!m) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    m->e = e;
    m->n_vocab = cw_engine_config(e)->n_vocab;
    int rows;
    cw_status s = measure(m, cases, n_cases, opt->n_ctx, &rows, err);
    if (s == CW_OK) s = take(m, opt, rows, err);
    if (s != CW_OK) {
        cw_bench_model_free(&m);
        return s;
    }
    *out = m;
    return CW_OK;
}

void cw_bench_model_free(cw_bench_model **model)
{
    if (!model || !*model) return;
    cw_bench_model *m = *model;
    for (int i = 0; m->sessions && i < m->n_sessions; i++) cw_session_free(&m->sessions[i]);
    cw_free(m->sessions);
    cw_free(m->items);
    cw_free(m->tokens);
    cw_free(m->logits);
    cw_free(m);
    *model = NULL;
}

/* --- rounds --- */

static const int32_t *tokens_of(const cw_bench_model *m, int session)
{
    return m->tokens + (size_t)session * (size_t)m->n_ctx;
}

/* Every session holds its first `depth` tokens and no more. */
static cw_status to_depth(cw_bench_model *m, int n, int depth, const atomic_bool *cancel, cw_err *err)
{
    for (int i = 0; i < n; i++) {
        int past;
        (void)cw_session_tokens(m->sessions[i], &past);
        if (past > depth) cw_session_rewind(m->sessions[i], depth);
        if (past < depth)
            CW_TRY(cw_session_eval(m->sessions[i], tokens_of(m, i) + past, depth - past, NULL, cancel, err));
    }
    return CW_OK;
}

static cw_status decode(cw_bench_model *m, const cw_bench_case *c, int steps, const atomic_bool *cancel,
                        cw_err *err)
{
    for (int step = 0; step < steps; step++) {
        for (int i = 0; i < c->batch; i++)
            m->items[i] = (cw_batch_item){.session = m->sessions[i],
                                          .tokens = tokens_of(m, i) + c->depth + step,
                                          .n_tokens = 1,
                                          .n_logits = 1,
                                          .logits = m->logits + (size_t)i * (size_t)m->n_vocab};
        CW_TRY(cw_engine_forward(m->e, m->items, c->batch, cancel, err));
    }
    return CW_OK;
}

static cw_status all_logits(cw_bench_model *m, const cw_bench_case *c, int passes, const atomic_bool *cancel,
                            cw_err *err)
{
    for (int i = 0; i < passes; i++) {
        cw_session_rewind(m->sessions[0], c->depth);
        cw_batch_item item = {.session = m->sessions[0],
                              .tokens = tokens_of(m, 0) + c->depth,
                              .n_tokens = c->batch,
                              .n_logits = c->batch,
                              .logits = m->logits};
        CW_TRY(cw_engine_forward(m->e, &item, 1, cancel, err));
    }
    return CW_OK;
}

/* The case with `tokens` of its tokens, from a timeline that is ready. */
static cw_status run(cw_bench_model *m, const cw_bench_case *c, int tokens, const atomic_bool *cancel,
                     cw_err *err)
{
    switch (c->kind) {
    case CW_BENCH_PREFILL:
        return cw_session_eval(m->sessions[0], tokens_of(m, 0) + c->depth, tokens, m->logits, cancel, err);
    case CW_BENCH_DECODE: return decode(m, c, tokens, cancel, err);
    case CW_BENCH_ALL_LOGITS: return all_logits(m, c, tokens, cancel, err);
    }
    CW_ASSERT(!"a kind of case");
    return CW_OK;
}

cw_status cw_bench_model_warm(cw_bench_model *m, const cw_bench_case *c, const atomic_bool *cancel,
                              cw_err *err)
{
    int few = c->kind == CW_BENCH_PREFILL ? 32 : 2;
    CW_TRY(to_depth(m, sessions(c), c->depth, cancel, err));
    return run(m, c, c->tokens < few ? c->tokens : few, cancel, err);
}

static void add_phases(cw_engine_phases *sum, const cw_engine_phases *p)
{
    for (int i = 0; i < CW_PHASE_COUNT; i++) {
        sum->ns[i] += p->ns[i];
        sum->weight_bytes[i] += p->weight_bytes[i];
    }
    sum->passes += p->passes;
    sum->rows += p->rows;
    sum->expert_rows += p->expert_rows;
    sum->experts_read += p->experts_read;
}

cw_status cw_bench_model_round(cw_bench_model *m, cw_bench_case *c, const atomic_bool *cancel, cw_err *err)
{
    CW_ASSERT(c->n_rounds < CW_BENCH_MAX_ROUNDS);
    CW_TRY(to_depth(m, sessions(c), c->depth, cancel, err));
    cw_engine_phases p;
    cw_engine_phases_reset(m->e, true);
    uint64_t start = cw_mono_ns();
    cw_status s = run(m, c, c->tokens, cancel, err);
    uint64_t ns = cw_mono_ns() - start;
    cw_engine_phases_get(m->e, &p);
    cw_engine_phases_reset(m->e, false);
    if (s != CW_OK) return s;
    add_phases(&c->phases, &p);
    c->speed[c->n_rounds++] = (double)c->tokens * c->batch / ((double)(ns ? ns : 1) * 1e-9);
    return CW_OK;
}

/* --- what the numbers say --- */

uint64_t cw_bench_case_bytes(const cw_bench_case *c, bool network)
{
    uint64_t sum = 0;
    for (int i = 0; i < CW_PHASE_COUNT; i++)
        if (i != CW_PHASE_NETWORK || network) sum += c->phases.weight_bytes[i];
    return sum;
}

double cw_bench_gb_s(uint64_t bytes, uint64_t ns)
{
    return ns ? (double)bytes / (double)ns : 0;
}
