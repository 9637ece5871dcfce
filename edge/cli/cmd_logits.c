/* causeway logits: raw rows for tests and comparisons. Feeds token ids, so the file's tokenizer plays no
 * part. */
#include "cw/bytes.h"
#include "cw/mem.h"
#include "cw/signal.h"
#include "digest.h"
#include "lists.h"
#include "setup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int32_t *tokens, *after;
    size_t n_tokens, n_after;
    int chunk, n_vocab;
    bool digest;       /* of the state after the last token */
    const float *last; /* its logits */
    float *rows;       /* [most rows wanted from one pass, n_vocab] */
    FILE *out;
} job;

static cw_status read_lists(const cli_options *o, job *j, cw_err *err)
{
    CW_TRY(cli_list_read(o->tokens, "--tokens", &j->tokens, &j->n_tokens, err));
    if (!o->digest && (!o->after || !o->out))
        return CW_FAIL(err, CW_STATUS_INVALID, "--after and --out are needed, or --digest");
    if (!o->after != !o->out) return CW_FAIL(err, CW_STATUS_INVALID, "--after and --out belong together");
    j->digest = o->digest;
    if (o->after) CW_TRY(cli_list_read(o->after, "--after", &j->after, &j->n_after, err));
    for (size_t i = 0; i < j->n_after; i++)
        if (j->after[i] < 1 || (size_t)j->after[i] > j->n_tokens)
            return CW_FAIL(err, CW_STATUS_INVALID, "--after %d: there are %zu tokens", j->after[i],
                           j->n_tokens);
    return CW_OK;
}

/* How many of the last rows of the pass over tokens [from, to) are needed to have every wanted one. */
static int rows_wanted(const job *j, size_t from, size_t to)
{
    size_t first = j->digest && to == j->n_tokens ? to - 1 : to;
    for (size_t i = 0; i < j->n_after; i++) {
        size_t row = (size_t)j->after[i] - 1;
        if (row >= from && row < first) first = row;
    }
    return (int)(to - first);
}

static size_t pass_end(const job *j, size_t from)
{
    size_t to = from + (size_t)j->chunk;
    return to < j->n_tokens ? to : j->n_tokens;
}

static cw_status write_row(const job *j, size_t entry, const float *row, cw_err *err)
{
    uint8_t bytes[4096];
    int done = 0;
    bool ok = fseeko(j->out, (off_t)entry * j->n_vocab * 4, SEEK_SET) == 0;
    while (ok && done < j->n_vocab) {
        int n = j->n_vocab - done < 1024 ? j->n_vocab - done : 1024;
        for (int i = 0; i < n; i++) cw_store_u32(bytes + 4 * i, cw_f32_bits(row[done + i]));
        ok = fwrite(bytes, 4, (size_t)n, j->out) == (size_t)n;
        done += n;
    }
    return ok ? CW_OK : CW_FAIL(err, CW_STATUS_IO, "cannot write the logits: %s", strerror(errno));
}

static cw_status write_pass(const job *j, size_t from, size_t to, int n_rows, cw_err *err)
{
    for (size_t i = 0; i < j->n_after; i++) {
        size_t row = (size_t)j->after[i] - 1;
        if (row < from || row >= to) continue;
        size_t k = row - (to - (size_t)n_rows);
        CW_TRY(write_row(j, i, j->rows + k * (size_t)j->n_vocab, err));
    }
    return CW_OK;
}

static cw_status evaluate(job *j, cw_engine *e, cw_session *s, cw_err *err)
{
    int most = 0;
    for (size_t from = 0; from < j->n_tokens; from = pass_end(j, from)) {
        int n = rows_wanted(j, from, pass_end(j, from));
        if (n > most) most = n;
    }
    size_t bytes;
    if (!cw_mul_size((size_t)most, (size_t)j->n_vocab, &bytes) ||
        !(j->rows = cw_calloc(bytes, sizeof *j->rows)))
        return CW_FAIL(err, CW_STATUS_NO_MEMORY,
                       "no memory for %d rows of logits; a smaller --chunk needs less", most);
    for (size_t from = 0, to; from < j->n_tokens; from = to) {
        to = pass_end(j, from);
        cw_batch_item item = {
            .session = s,
            .tokens = j->tokens + from,
            .n_tokens = (int)(to - from),
            .n_logits = rows_wanted(j, from, to),
            .logits = j->rows,
        };
        CW_TRY(cw_engine_forward(e, &item, 1, cw_signal_interrupt_flag(), err));
        CW_TRY(write_pass(j, from, to, item.n_logits, err));
        if (item.n_logits) j->last = j->rows + (size_t)(item.n_logits - 1) * (size_t)j->n_vocab;
    }
    return CW_OK;
}

static cw_status print_digest(const job *j, const cw_session *s, cw_err *err)
{
    cli_digest d;
    cw_json out;
    CW_TRY(cli_digest_session(s, j->last, &d, err));
    cw_json_to_file(&out, stdout);
    cli_digest_json(&out, &d);
    return cw_json_done(&out) ? CW_OK : CW_FAIL(err, CW_STATUS_IO, "standard output could not be written");
}

static cw_status with_engine(const cli_options *o, job *j, const cw_gguf *g, cw_engine *e, cw_err *err)
{
    cw_mainland *land = NULL;
    cw_session *s = NULL;
    cw_status st = CW_OK;
    if (o->join) st = cli_join(o, g, e, 30000, false, &land, err);
    j->n_vocab = cw_engine_config(e)->n_vocab;
    j->chunk = cw_engine_max_rows(e);
    int need = (int)j->n_tokens, ctx = o->ctx ? (int)o->ctx : 0;
    cw_session_options so = cli_session_options(o);
    so.n_ctx = ctx ? ctx : need;
    if (st == CW_OK) st = cw_session_new(e, &so, &s, err);
    if (st == CW_OK && o->out) {
        j->out = fopen(o->out, "wb");
        if (!j->out) st = CW_FAIL(err, CW_STATUS_IO, "cannot write %s: %s", o->out, strerror(errno));
    }
    if (st == CW_OK) st = evaluate(j, e, s, err);
    if (st == CW_OK && j->digest) st = print_digest(j, s, err);
    if (j->out && fclose(j->out) != 0 && st == CW_OK)
        st = CW_FAIL(err, CW_STATUS_IO, "cannot write %s: %s", o->out, strerror(errno));
    cw_session_free(&s);
    cw_mainland_close(&land);
    return st;
}

static cw_status run(const cli_options *o, job *j, cw_err *err)
{
    cw_gguf *g = NULL;
    cw_engine *e = NULL;
    char *path = NULL;
    cw_engine_options eo;
    cw_status st;
    CW_TRY_GOTO(st, read_lists(o, j, err));
    CW_TRY_GOTO(st, cli_engine_options(o, o->join ? CW_ENGINE_EDGE : CW_ENGINE_LOCAL, NULL, &eo, err));
    CW_TRY_GOTO(st, cli_model_path(o, &path, err));
    CW_TRY_GOTO(st, cw_gguf_open(path, &g, err));
    CW_TRY_GOTO(st, cw_engine_open(g, &eo, &e, err));
    st = with_engine(o, j, g, e, err);
fail:
    cw_engine_close(&e);
    cw_gguf_close(&g);
    cw_free(path);
    return st;
}

int cli_logits(const cli_options *o, const cw_parsed *p)
{
    (void)p;
    job j = {0};
    cw_err err = {0};
    cw_status st = run(o, &j, &err);
    cw_free(j.tokens);
    cw_free(j.after);
    cw_free(j.rows);
    if (st == CW_STATUS_INVALID) return cli_usage(err.text);
    return st == CW_OK ? 0 : cli_fail(&err);
}
