/* causeway run: one prompt, one answer. */
#include "cw/fs.h"
#include "cw/mem.h"
#include "cw/signal.h"
#include "setup.h"

#include <string.h>

enum { PROMPT_LIMIT = 64 << 20 };

static cw_status answer(const cli_options *o, cli_setup *s, const char *prompt, cli_printer *printer,
                        cw_err *err)
{
    cw_talk_options to = cli_talk_options(o, s);
    to.sink = (cw_talk_sink){cli_printer_piece, cli_printer_notice, printer};
    cw_talk *talk = NULL;
    CW_TRY(cw_talk_new(&to, &talk, err));
    cw_chat_message messages[2];
    size_t n = 0;
    if (o->system) messages[n++] = (cw_chat_message){"system", o->system, strlen(o->system)};
    messages[n++] = (cw_chat_message){"user", prompt, strlen(prompt)};
    cw_talk_prompt p = {.messages = messages, .n_messages = n, .raw = o->raw ? prompt : NULL};
    cw_talk_stats stats;
    cw_status st = cw_talk_answer(talk, &p, &stats, err);
    if (stats.n_tokens > 0 || st == CW_OK) cli_printer_end(printer);
    if (st == CW_OK) {
        static cli_worker_line workers[CLI_MAX_WORKERS];
        cli_summary sum = {
            .mode = cli_mode_name(cli_setup_mode(s)),
            .main_model = cw_speaker_name(s->main ? s->main : s->fallback),
            .stats = &stats,
            .workers = workers,
            .n_workers = cli_setup_workers(s, workers),
            .counts = cli_setup_counts(s),
            .governor = s->governed.on && stats.n_passes ? &s->governed.g : NULL,
        };
        cli_printer_summary(printer, &sum);
    }
    cw_talk_free(&talk);
    return st;
}

int cli_run(const cli_options *o, const cw_parsed *p)
{
    (void)p;
    if (o->raw && o->system) return cli_usage("--system is part of a chat template, which --raw leaves out");
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
