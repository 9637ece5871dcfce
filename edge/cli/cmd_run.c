/* causeway run: one prompt, one answer. */
#include "cw/fs.h"
#include "cw/mem.h"
#include "cw/signal.h"
#include "keep.h"
#include "setup.h"

#include <string.h>

enum { PROMPT_LIMIT = 64 << 20 };

/* The question behind what --session holds, or behind --system. */
static cw_status add_question(const cli_options *o, cw_conversation *c, const char *prompt, cw_err *err)
{
    if (c->n == 0 && o->system) CW_TRY(cw_conversation_add(c, "system", o->system, strlen(o->system), err));
    if (cw_conversation_is_open(c)) cw_conversation_drop(c);
    return cw_conversation_add(c, "user", prompt, strlen(prompt), err);
}

static cw_status keep_answer(cli_keep *k, cw_conversation *c, const cw_talk *talk, cw_err *err)
{
    size_t len, begin;
    const char *said = cw_talk_text(talk, &len), *model;
    if (!k->path || !len) return CW_OK;
    CW_TRY(cw_conversation_add(c, "assistant", said, len, err));
    for (int i = 0; cw_talk_part(talk, i, &model, &begin); i++)
        CW_TRY(cw_conversation_written_by(c, model, begin, err));
    CW_TRY(cli_keep_conversation(k, c, err));
    cli_keep_cache(k, true);
    return CW_OK;
}

static cw_status summarise(const cli_options *o, cli_setup *s, const cw_talk *talk,
                           const cw_talk_stats *stats, cli_printer *printer, cw_err *err)
{
    static cli_worker_line workers[CLI_MAX_WORKERS];
    cli_summary sum = {
        .mode = cli_mode_name(cli_setup_mode(s)),
        .main_model = cw_speaker_name(s->main ? s->main : s->fallback),
        .stats = stats,
        .workers = workers,
        .n_workers = cli_setup_workers(s, workers),
        .counts = cli_setup_counts(s),
        .governor = stats->n_passes ? cli_governed_governor(&s->governed) : NULL,
        .guesses_by_head = s->governed.n_by_head,
    };
    if (o->digest) CW_TRY(cli_digest_talk(talk, &sum.state, err));
    cli_printer_summary(printer, &sum);
    return CW_OK;
}

typedef struct {
    cli_printer *printer;
    bool redo;
} judge;

static bool on_verdict(void *ctx, const cw_talk_verdict *v)
{
    judge *j = ctx;
    bool redo = j->redo && v->n_same < v->n_tokens && v->can_redo;
    cli_printer_verdict(j->printer, v, redo);
    return redo;
}

static cw_status answer(const cli_options *o, cli_setup *s, const char *prompt, cli_printer *printer,
                        cw_err *err)
{
    cw_talk_options to = cli_talk_options(o, s);
    to.sink = (cw_talk_sink){cli_printer_piece, cli_printer_notice, cli_printer_withdraw, printer};
    judge j = {printer, o->redo_offline == CLI_REDO_ALWAYS};
    if (o->verify_offline) to.verdict = on_verdict, to.verdict_ctx = &j;
    printer->main_model = cw_speaker_name(s->main ? s->main : s->fallback);
    cw_talk *talk = NULL;
    cli_keep keep = {0};
    cw_conversation c = {0};
    cw_talk_stats stats = {0};
    char *raw = NULL;
    cw_status st = cli_keep_open(&keep, o, s, &c, err);
    if (st == CW_OK) st = cw_talk_new(&to, &talk, err);
    if (st == CW_OK) st = add_question(o, &c, prompt, err);
    if (st == CW_OK) st = cli_keep_conversation(&keep, &c, err);
    if (st == CW_OK && o->raw && !(raw = cw_conversation_text(&c)))
        st = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    if (st == CW_OK) {
        cw_talk_prompt p = {.messages = c.messages, .n_messages = c.n, .raw = raw};
        if (s->land) cw_mainland_tell(s->land, 0, 0, cli_mode_name(s->mode));
        st = cw_talk_answer(talk, &p, &stats, err);
        if (stats.n_tokens > 0 || st == CW_OK) cli_printer_end(printer);
        if (st == CW_OK) st = keep_answer(&keep, &c, talk, err);
        if (st == CW_OK) st = summarise(o, s, talk, &stats, printer, err);
    }
    cw_free(raw);
    cw_conversation_clear(&c);
    cw_talk_free(&talk);
    cli_keep_close(&keep);
    return st;
}

int cli_run(const cli_options *o, const cw_parsed *p)
{
    (void)p;
    if (o->raw && o->system) return cli_usage("--system is part of a chat template, which --raw leaves out");
    if (o->digest && !o->json) return cli_usage("--digest is part of the summary of --json");
    if (strcmp(o->prompt, "-") == 0 && o->join && strcmp(o->join, "-") == 0)
        return cli_usage("--prompt and --join cannot both be read from standard input");
    char *prompt = NULL;
    cw_err err = {0};
    /* Only "-" is indirect here: a prompt may well begin with an at sign. */
    size_t n;
    if (strcmp(o->prompt, "-") == 0) {
        if (cw_fs_read_stdin(PROMPT_LIMIT, &prompt, &n, &err) != CW_OK) return cli_fail(&err);
    } else if (!(prompt = cw_strdup(o->prompt))) {
        return 1;
    }
    cli_printer printer;
    cli_printer_init(&printer, o->json, o->quiet, stdout, stderr);
    if (cli_redo_problem(o, &printer)) return cli_usage(cli_redo_problem(o, &printer));
    printer.on_failure = cw_signal_stop; /* a closed pipe ends the answer, as a signal would */
    cli_setup s;
    cw_status st = cli_setup_open(o, &s, &err);
    if (st == CW_OK) {
        if (s.land && !o->quiet) cw_mainland_on_waiting(s.land, cli_printer_notice, &printer);
        st = answer(o, &s, prompt, &printer, &err);
        cli_setup_close(&s);
    }
    cw_free(prompt);
    if (st != CW_OK && !cw_signal_stopped()) return cli_fail(&err);
    if (printer.failed) {
        err = (cw_err){.text = "standard output could not be written"};
        return cli_fail(&err);
    }
    return 0;
}
