/*
 * One line from the user: with editing and history on a terminal, plainly from anything else. History stays
 * in memory: what was asked is nobody's business tomorrow.
 */
#pragma once
#include "cw/status.h"

typedef struct cli_line cli_line;

CW_MUST_USE cw_status cli_line_new(const char *prompt, cli_line **out, cw_err *err);
void cli_line_free(cli_line **l);
bool cli_line_is_terminal(const cli_line *l);

typedef enum { CLI_LINE_TEXT, CLI_LINE_INTERRUPTED, CLI_LINE_END } cli_line_result;
/* Without the line break; borrowed until the next call. INTERRUPTED: Ctrl-C at the prompt. END: end of input
 * or a stop. */
cli_line_result cli_line_read(cli_line *l, const char **text);
/* A question that y, yes, or anything else answers; on a terminal only. Not kept in the history. */
bool cli_line_confirm(cli_line *l, const char *question);
