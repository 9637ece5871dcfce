#include "line.h"
#include "cw/mem.h"
#include "cw/signal.h"

#include <errno.h>
#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include <wchar.h>

struct cli_line {
    const char *prompt;
    EditLine *el; /* NULL: not a terminal */
    History *history;
    char *buf; /* of the last line */
    size_t cap;
};

static char *give_prompt(EditLine *el)
{
    cli_line *l = NULL;
    el_get(el, EL_CLIENTDATA, &l);
    return (char *)(uintptr_t)l->prompt;
}

/* 1: *c was read; 0: end of input; -1: Ctrl-C or a stop. libedit's own reader would retry after a signal. */
static int read_char(EditLine *el, wchar_t *c)
{
    (void)el;
    mbstate_t state;
    memset(&state, 0, sizeof state);
    for (;;) {
        /* The flag may be set between the look and the poll, hence the time limit. */
        if (cw_signal_interrupted()) return -1;
        struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
        if (poll(&p, 1, 200) <= 0) continue;
        char byte;
        ssize_t n = read(STDIN_FILENO, &byte, 1);
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (n <= 0) return 0;
        size_t r = mbrtowc(c, &byte, 1, &state);
        if (r == (size_t)-2) continue; /* a character in the making */
        if (r == (size_t)-1) *c = L'?';
        return 1;
    }
}

static cw_status init_terminal(cli_line *l, cw_err *err)
{
    /* libedit works in wide characters: without a UTF-8 locale every accent would be lost. */
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8") != 0) setlocale(LC_CTYPE, "C.UTF-8");
    l->el = el_init("causeway", stdin, stdout, stderr);
    l->history = history_init();
    if (!l->el || !l->history)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "the line editor could not be started");
    HistEvent ev;
    history(l->history, &ev, H_SETSIZE, 500);
    el_set(l->el, EL_CLIENTDATA, l);
    el_set(l->el, EL_PROMPT, give_prompt);
    el_set(l->el, EL_EDITOR, "emacs");
    el_set(l->el, EL_SIGNAL, 0);
    el_set(l->el, EL_HIST, history, l->history);
    el_set(l->el, EL_GETCFN, read_char);
    return CW_OK;
}

cw_status cli_line_new(const char *prompt, cli_line **out, cw_err *err)
{
    cli_line *l = cw_calloc(1, sizeof *l);
    if (!l) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    l->prompt = prompt;
    if (isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)) {
        cw_status s = init_terminal(l, err);
        if (s != CW_OK) {
            cli_line_free(&l);
            return s;
        }
    }
    *out = l;
    return CW_OK;
}

void cli_line_free(cli_line **l)
{
    if (!l || !*l) return;
    if ((*l)->history) history_end((*l)->history);
    if ((*l)->el) el_end((*l)->el);
    free((*l)->buf); /* getline's */
    cw_free(*l);
    *l = NULL;
}

bool cli_line_is_terminal(const cli_line *l)
{
    return l->el != NULL;
}

static void cut_break(char *s)
{
    size_t n = strlen(s);
    while (n && (s[n - 1] == '\n' || s[n - 1] == '\r')) s[--n] = 0;
}

static cli_line_result read_terminal(cli_line *l, bool keep, const char **text)
{
    int n = 0;
    const char *line = el_gets(l->el, &n);
    if (cw_signal_stopped()) return CLI_LINE_END;
    if (cw_signal_interrupted()) {
        cw_signal_clear_interrupt();
        el_reset(l->el);
        fputs("\n", stdout);
        return CLI_LINE_INTERRUPTED;
    }
    if (!line || n <= 0) return CLI_LINE_END;
    free(l->buf);
    l->buf = strdup(line);
    if (!l->buf) return CLI_LINE_END;
    cut_break(l->buf);
    HistEvent ev;
    if (keep && *l->buf) history(l->history, &ev, H_ENTER, l->buf);
    *text = l->buf;
    return CLI_LINE_TEXT;
}

cli_line_result cli_line_read(cli_line *l, const char **text)
{
    if (l->el) return read_terminal(l, true, text);
    errno = 0;
    ssize_t n = getline(&l->buf, &l->cap, stdin);
    if (cw_signal_stopped() || n < 0) {
        bool interrupted = n < 0 && errno == EINTR && !cw_signal_stopped();
        if (!interrupted) return CLI_LINE_END;
        clearerr(stdin);
        cw_signal_clear_interrupt();
        return CLI_LINE_INTERRUPTED;
    }
    cut_break(l->buf);
    *text = l->buf;
    return CLI_LINE_TEXT;
}

bool cli_line_confirm(cli_line *l, const char *question)
{
    const char *prompt = l->prompt, *text;
    CW_ASSERT(l->el);
    l->prompt = question;
    cli_line_result r = read_terminal(l, false, &text);
    l->prompt = prompt;
    return r == CLI_LINE_TEXT && (strcasecmp(text, "y") == 0 || strcasecmp(text, "yes") == 0);
}
