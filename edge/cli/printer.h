/*
 * What the user sees of an answer: plain text on a terminal or in a pipe, or JSON objects a line. One thread.
 *
 * On a terminal reasoning is dim, what the fallback wrote in the big model's place is cyan, and control
 * characters that a model might write are left out, so that no model can move the cursor or change the
 * window's title. In a pipe the text is what the model wrote, byte for byte.
 */
#pragma once
#include "cw/mainland.h"
#include "cw/governor.h"
#include "cw/talk.h"
#include "cli.h"
#include "digest.h"
#include <stdio.h>

typedef struct {
    FILE *out, *note; /* answer; notices and summary */
    bool json, tty, quiet;
    const char
        *main_model; /* on a terminal text by any other is coloured; NULL: nothing is. Set by the caller */
    int style;       /* bits, see printer.c */
    bool failed;
    void (*on_failure)(void); /* called once when the output cannot be written; NULL: nobody */
    char last;                /* last character written of the answer, 0 at its beginning */
} cli_printer;

void cli_printer_init(cli_printer *p, bool json, bool quiet, FILE *out, FILE *note);
/* For cw_talk_sink; ctx is the printer. */
void cli_printer_piece(void *ctx, const char *model, cw_span_kind kind, const char *text, size_t len);
void cli_printer_notice(void *ctx, const char *sentence);
/* For cw_talk_sink: a JSON line; on a terminal what was shown stays, and the notice before it said so. */
void cli_printer_withdraw(void *ctx, size_t reasoning_bytes, size_t answer_bytes);
/* What the big model makes of the fallback's part. A sentence, or with --json a line; before redo is known.
 */
void cli_printer_verdict(cli_printer *p, const cw_talk_verdict *v, bool redo);
/* Why --redo-offline cannot be had with these options and this output, or NULL. */
const char *cli_redo_problem(const cli_options *o, const cli_printer *p);
/* After an answer: ends its line. */
void cli_printer_end(cli_printer *p);

/* Text from anywhere, without what a terminal would obey, and a line break. */
void cli_printer_plain(FILE *f, const char *text, size_t len);

/* Calls served by one worker and the bytes each way, as seen from here. */
typedef struct {
    char name[65];
    uint64_t calls, rows, bytes_out, bytes_in;
    bool up;
} cli_worker_line;

typedef struct {
    const char *mode, *main_model;
    const cw_talk_stats *stats;
    const cli_worker_line *workers;
    size_t n_workers;
    const cw_mainland_counts *counts; /* NULL: no workers */
    const cw_governor *governor;      /* NULL: lengths of drafts were not chosen */
    uint64_t guesses_by_head;         /* passes for which the prediction head guessed, of those */
    cli_digest state;                 /* --digest */
} cli_summary;

void cli_printer_summary(cli_printer *p, const cli_summary *s);
/* Tokens a second of the decode phase; 0 when there was none. */
double cli_tokens_per_second(const cw_talk_stats *s);
