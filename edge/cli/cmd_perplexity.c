/*
 * causeway perplexity: how well a model foresees a text, to compare types of the KV cache and forms of
 * prefill on the same words. The loss of a token is the natural logarithm of what its probability lacks to 1;
 * perplexity is e to the mean of it.
 *
 * A document is cut into windows of the context's size, and each window stands alone: its first token is
 * given, every further one is foreseen from those before it. Sums are in double; they are a report, not part
 * of the model's arithmetic.
 */
#include "cw/fs.h"
#include "cw/json.h"
#include "cw/mem.h"
#include "cw/signal.h"
#include "setup.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_LIMIT = 64 << 20, DEFAULT_WINDOW = 512, ROWS = 64 };

typedef struct {
    double loss;
    uint64_t tokens, best; /* foreseen; of these, how often the token was the likeliest */
    uint64_t documents;
} sums;

typedef struct {
    const cli_options *o;
    cw_tok *tok;
    cw_engine *e;
    cw_session *s;
    int window, rows, n_vocab;
    float *logits; /* [rows, n_vocab] */
    sums sum;
} job;

/* --- scoring --- */

static void score(job *j, const float *row, int32_t token)
{
    float max = row[0];
    for (int i = 1; i < j->n_vocab; i++)
        if (row[i] > max) max = row[i];
    double sum = 0;
    for (int i = 0; i < j->n_vocab; i++) sum += exp((double)row[i] - (double)max);
    j->sum.loss += log(sum) - ((double)row[token] - (double)max);
    j->sum.best += row[token] == max;
    j->sum.tokens++;
}

/* Tokens [0, n) stand alone. The last one is only foreseen, so n - 1 go through the model. */
static cw_status window(job *j, const int32_t *tokens, int n, cw_err *err)
{
    cw_session_rewind(j->s, 0);
    for (int at = 0; at < n - 1;) {
        int now = n - 1 - at < j->rows ? n - 1 - at : j->rows;
        cw_batch_item item = {
            .session = j->s, .tokens = tokens + at, .n_tokens = now, .n_logits = now, .logits = j->logits};
        CW_TRY(cw_engine_forward(j->e, &item, 1, cw_signal_interrupt_flag(), err));
        for (int i = 0; i < now; i++)
            score(j, j->logits + (size_t)i * (size_t)j->n_vocab, tokens[at + i + 1]);
        at += now;
    }
    return CW_OK;
}

static cw_status document(job *j, const char *text, size_t len, cw_err *err)
{
    int32_t *ids = NULL;
    size_t n = 0;
    CW_TRY(cw_tok_encode(j->tok, text, len, CW_TOK_ADD_BOS | CW_TOK_PARSE_SPECIAL, &ids, &n, err));
    cw_status s = CW_OK;
    j->sum.documents++;
    for (size_t at = 0; at < n && s == CW_OK; at += (size_t)j->window)
        s = window(j, ids + at, n - at < (size_t)j->window ? (int)(n - at) : j->window, err);
    cw_free(ids);
    return s;
}

/* --- documents of a file --- */

/* A line of a .jsonl file: its "prompt" and "reference" joined, or its "text". */
static cw_status line_document(job *j, const char *line, size_t len, size_t number, cw_err *err)
{
    cJSON *o = cJSON_ParseWithLength(line, len);
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "text"));
    const char *prompt = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "prompt"));
    const char *reference = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "reference"));
    cw_status s;
    if (text) {
        s = document(j, text, strlen(text), err);
    } else if (prompt && reference) {
        size_t n = strlen(prompt) + strlen(reference) + 1;
        char *both = cw_calloc(n, 1);
        if (both) snprintf(both, n, "%s%s", prompt, reference);
        s = both ? document(j, both, n - 1, err) : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
        cw_free(both);
    } else {
        s = CW_FAIL(err, CW_STATUS_FORMAT,
                    "line %zu of %s is no JSON object with \"text\", or \"prompt\" and \"reference\"", number,
                    j->o->file);
    }
    cJSON_Delete(o);
    return s;
}

static cw_status documents(job *j, cw_err *err)
{
    char *text = NULL;
    size_t n = 0, len = strlen(j->o->file);
    CW_TRY(strcmp(j->o->file, "-") == 0 ? cw_fs_read_stdin(TEXT_LIMIT, &text, &n, err)
                                        : cw_fs_read(j->o->file, TEXT_LIMIT, &text, &n, err));
    cw_status s = CW_OK;
    if (len < 6 || strcmp(j->o->file + len - 6, ".jsonl") != 0) {
        s = document(j, text, n, err);
    } else {
        size_t number = 1;
        for (size_t at = 0; at < n && s == CW_OK; number++) {
            const char *end = memchr(text + at, '\n', n - at);
            size_t line = end ? (size_t)(end - (text + at)) : n - at;
            if (line > 0) s = line_document(j, text + at, line, number, err);
            at += line + 1;
        }
    }
    cw_free(text);
    return s;
}

/* --- the command --- */

static bool report(const job *j)
{
    const sums *r = &j->sum;
    double mean = r->loss / (double)r->tokens, best = (double)r->best / (double)r->tokens;
    char identity[CW_SESSION_IDENTITY_MAX];
    cw_session_identity(j->s, identity);
    if (!j->o->json) {
        printf(
            "perplexity %.5f   loss %.6f   likeliest token right %.2f %%   %llu tokens of %llu texts   %s\n",
            exp(mean), mean, 100 * best, (unsigned long long)r->tokens, (unsigned long long)r->documents,
            identity);
        return fflush(stdout) == 0;
    }
    cw_json w;
    cw_json_to_file(&w, stdout);
    cw_json_object(&w);
    cw_json_kstr(&w, "model", cw_engine_config(j->e)->name);
    cw_json_kstr(&w, "session", identity);
    cw_json_kuint(&w, "texts", r->documents);
    cw_json_kuint(&w, "tokens", r->tokens);
    cw_json_kfixed(&w, "loss", mean, 9);
    cw_json_kfixed(&w, "perplexity", exp(mean), 9);
    cw_json_kfixed(&w, "likeliest_right", best, 6);
    cw_json_end(&w);
    return cw_json_done(&w);
}

static cw_status measure(job *j, cw_err *err)
{
    const cw_model_config *c = cw_engine_config(j->e);
    j->n_vocab = c->n_vocab;
    j->window = j->o->ctx ? (int)j->o->ctx : DEFAULT_WINDOW;
    if (j->window > c->n_ctx_train) j->window = c->n_ctx_train;
    if (j->window < 2) return CW_FAIL(err, CW_STATUS_INVALID, "--ctx 1 leaves nothing to foresee");
    /* One row of logits may be half a megabyte; the whole window goes at once only where prefill differs. */
    j->rows = j->o->prefill_form ? cw_engine_max_rows(j->e) : ROWS;
    if (j->rows > cw_engine_max_rows(j->e)) j->rows = cw_engine_max_rows(j->e);
    size_t floats;
    if (!cw_mul_size((size_t)j->rows, (size_t)j->n_vocab, &floats) ||
        !(j->logits = cw_calloc(floats, sizeof *j->logits)))
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for %d rows of logits", j->rows);
    cw_session_options so = cli_session_options(j->o);
    so.n_ctx = j->window;
    CW_TRY(cw_session_new(j->e, &so, &j->s, err));
    CW_TRY(documents(j, err));
    if (j->sum.tokens == 0)
        return CW_FAIL(err, CW_STATUS_INVALID, "%s holds no text to foresee: at least two tokens",
                       j->o->file);
    return report(j) ? CW_OK : CW_FAIL(err, CW_STATUS_IO, "standard output could not be written");
}

static cw_status run(job *j, cw_err *err)
{
    cw_gguf *g = NULL;
    char *path = NULL;
    cw_mainland *land = NULL;
    cw_engine_options eo;
    cw_status st;
    CW_TRY_GOTO(st, cli_engine_options(j->o, j->o->join ? CW_ENGINE_EDGE : CW_ENGINE_LOCAL, NULL, &eo, err));
    CW_TRY_GOTO(st, cli_model_path(j->o, &path, err));
    CW_TRY_GOTO(st, cw_gguf_open(path, &g, err));
    CW_TRY_GOTO(st, cw_tok_new(g, &j->tok, err));
    CW_TRY_GOTO(st, cw_engine_open(g, &eo, &j->e, err));
    if (j->o->join) CW_TRY_GOTO(st, cli_join(j->o, g, j->e, 30000, false, &land, err));
    st = measure(j, err);
fail:
    cw_session_free(&j->s);
    cw_mainland_close(&land);
    cw_engine_close(&j->e);
    cw_tok_free(&j->tok);
    cw_gguf_close(&g);
    cw_free(j->logits);
    cw_free(path);
    return st;
}

int cli_perplexity(const cli_options *o, const cw_parsed *p)
{
    (void)p;
    job j = {.o = o};
    cw_err err = {0};
    cw_status st = run(&j, &err);
    if (st == CW_STATUS_INVALID) return cli_usage(err.text);
    return st == CW_OK ? 0 : cli_fail(&err);
}
