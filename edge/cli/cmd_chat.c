/*
 * causeway chat: a conversation. The whole of it is rendered for every answer; the session keeps the common
 * prefix, so only what is new is computed.
 */
#include "cw/mem.h"
#include "cw/signal.h"
#include "line.h"
#include "setup.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    const cli_options *o;
    cli_setup setup;
    cw_talk *talk;
    cli_printer printer;
    cw_chat_message *messages; /* contents are ours */
    size_t n, cap;
    bool offline; /* the fallback speaks by the user's wish */
    bool away;    /* it speaks because the experts were lost and are not back */
    cw_talk_stats last;
    int64_t n_answers, n_tokens, decode_us;
    cli_worker_line workers[CLI_MAX_WORKERS];
} chat;

static const char help_text[] =
    "  /mode             which model answers and where its experts are\n"
    "  /mode offline     let the fallback model answer;  /mode auto: the big one again\n"
    "  /stats            tokens, speed, and what each worker served\n"
    "  /new              forget the conversation\n"
    "  /quit             leave (as Ctrl-D)\n"
    "  Ctrl-C            stop the answer\n";

static cw_status add_message(chat *c, const char *role, const char *text, size_t len, cw_err *err)
{
    if (c->n == c->cap) {
        size_t cap = c->cap ? c->cap * 2 : 16;
        cw_chat_message *more = cw_realloc(c->messages, cap, sizeof *more);
        if (!more) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
        c->messages = more;
        c->cap = cap;
    }
    char *copy = cw_strndup(text, len);
    if (!copy) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    c->messages[c->n++] = (cw_chat_message){role, copy, len};
    return CW_OK;
}

static void drop_message(chat *c)
{
    cw_free((void *)(uintptr_t)c->messages[--c->n].content);
}

static cw_status start_over(chat *c, cw_err *err)
{
    while (c->n) drop_message(c);
    return c->o->system ? add_message(c, "system", c->o->system, strlen(c->o->system), err) : CW_OK;
}

static const char *mode_now(const chat *c)
{
    return c->offline || c->away ? "offline" : cli_mode_name(cli_setup_mode(&c->setup));
}

static void print_summary(chat *c)
{
    cli_summary sum = {
        .mode = mode_now(c),
        .main_model = cw_speaker_name(c->setup.main ? c->setup.main : c->setup.fallback),
        .stats = &c->last,
        .workers = c->workers,
        .n_workers = cli_setup_workers(&c->setup, c->workers),
        .counts = cli_setup_counts(&c->setup),
        .governor = c->setup.governed.on && c->last.n_passes ? &c->setup.governed.g : NULL,
    };
    cli_printer_summary(&c->printer, &sum);
}

/* The conversation as raw text: what was said, end to end. */
static char *raw_text(const chat *c)
{
    size_t bytes = 1;
    for (size_t i = 0; i < c->n; i++) bytes += c->messages[i].len;
    char *text = cw_calloc(bytes, 1), *p = text;
    for (size_t i = 0; p && i < c->n; i++) {
        memcpy(p, c->messages[i].content, c->messages[i].len);
        p += c->messages[i].len;
    }
    return text;
}

/*
 * An answer waits some seconds for experts that are out of reach before the fallback goes on. Once that has
 * happened, the next answers are the fallback's at once, until every expert can be reached again.
 */
static void look_for_experts(chat *c)
{
    if (c->offline || !c->setup.land || !c->setup.fallback) return;
    bool was_away = c->away;
    if (c->last.n_fallback > 0 && strcmp(c->last.model, cw_speaker_name(c->setup.fallback)) == 0)
        c->away = true;
    if (!c->away) return;
    cw_mainland_status st;
    cw_mainland_get_status(c->setup.land, &st);
    c->away = !st.covered || !cw_mainland_is_online(c->setup.land);
    char sentence[sizeof st.why + 256];
    if (c->away)
        snprintf(sentence, sizeof sentence, "%s is out of reach (%s); %s answers",
                 cw_speaker_name(c->setup.main),
                 *st.why ? st.why : "it is back, and that must hold for a moment",
                 cw_speaker_name(c->setup.fallback));
    else
        snprintf(sentence, sizeof sentence, "%s can be reached again", cw_speaker_name(c->setup.main));
    if (c->away || was_away) cli_printer_notice(&c->printer, sentence);
    cw_err err;
    CW_ASSERT(cw_talk_use_fallback(c->talk, c->away, &err) == CW_OK); /* both are there */
}

/* One question. Errors end the answer, not the chat. */
static void ask(chat *c, const char *text)
{
    cw_err err = {0};
    char *raw = NULL;
    cw_status s = add_message(c, "user", text, strlen(text), &err);
    if (s == CW_OK && c->o->raw && !(raw = raw_text(c)))
        s = CW_FAIL(&err, CW_STATUS_NO_MEMORY, "out of memory");
    if (s == CW_OK) {
        look_for_experts(c);
        if (c->setup.land) cli_governed_look(&c->setup.governed, c->setup.land);
        cw_talk_prompt p = {.messages = c->messages, .n_messages = c->n, .raw = raw};
        s = cw_talk_answer(c->talk, &p, &c->last, &err);
        size_t len;
        const char *said = cw_talk_text(c->talk, &len);
        if (len) cli_printer_end(&c->printer);
        if (s == CW_OK && len)
            s = add_message(c, "assistant", said, len, &err);
        else if (c->n)
            drop_message(c); /* nothing was answered: the next question must not follow this one */
        c->n_answers++;
        c->n_tokens += c->last.n_tokens;
        c->decode_us += c->last.decode_us;
    }
    cw_free(raw);
    cw_signal_clear_interrupt();
    if (s != CW_OK)
        (void)cli_fail(&err);
    else if (c->o->json)
        print_summary(c);
}

static void show_mode(const chat *c)
{
    const cli_setup *s = &c->setup;
    const cw_speaker *who = c->offline || c->away || !s->main ? s->fallback : s->main;
    fprintf(stderr, "mode %s with %s%s%s\n", mode_now(c), cw_speaker_name(who), *s->why ? ": " : "", s->why);
    if (s->land) {
        cw_mainland_status st;
        cw_mainland_get_status(s->land, &st);
        fprintf(stderr, "%u of %u workers connected, epoch %llu.%llu%s%s\n", st.n_up, st.n_workers,
                (unsigned long long)st.epoch_term, (unsigned long long)st.epoch_number,
                st.covered ? "" : "; ", st.covered ? "" : st.why);
    }
    if (s->main && s->fallback) fprintf(stderr, "fallback %s\n", cw_speaker_name(s->fallback));
}

static void set_mode(chat *c, const char *word)
{
    cw_err err = {0};
    bool offline = strcmp(word, "offline") == 0;
    if (!offline && strcmp(word, "auto") != 0 && strcmp(word, cli_mode_name(c->setup.mode)) != 0) {
        fprintf(stderr, "/mode takes offline or auto; other modes are chosen when the program starts\n");
        return;
    }
    if (cw_talk_use_fallback(c->talk, offline, &err) != CW_OK) {
        fprintf(stderr, "%s\n", err.text);
        return;
    }
    c->offline = offline;
    c->away = false;
    show_mode(c);
}

static void show_stats(chat *c)
{
    if (c->n_answers == 0) {
        fprintf(stderr, "nothing has been answered yet\n");
        return;
    }
    bool json = c->printer.json, quiet = c->printer.quiet;
    c->printer.json = c->printer.quiet = false;
    fprintf(stderr, "%lld answers, %lld tokens, %.1f tokens/s; the last one:", (long long)c->n_answers,
            (long long)c->n_tokens, c->decode_us > 0 ? (double)c->n_tokens * 1e6 / (double)c->decode_us : 0);
    print_summary(c);
    c->printer.json = json;
    c->printer.quiet = quiet;
}

/* A line that begins with a slash. false: leave. */
static bool command(chat *c, const char *line)
{
    cw_err err = {0};
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0) return false;
    if (strcmp(line, "/help") == 0)
        fputs(help_text, stderr);
    else if (strcmp(line, "/mode") == 0)
        show_mode(c);
    else if (strncmp(line, "/mode ", 6) == 0)
        set_mode(c, line + 6);
    else if (strcmp(line, "/stats") == 0)
        show_stats(c);
    else if (strcmp(line, "/new") == 0) {
        if (start_over(c, &err) != CW_OK)
            (void)cli_fail(&err);
        else
            fprintf(stderr, "the conversation is forgotten\n");
    } else
        fprintf(stderr, "unknown command %.40s; /help lists them\n", line);
    return true;
}

static void converse(chat *c, cli_line *line)
{
    const char *text;
    if (cli_line_is_terminal(line)) fprintf(stderr, "/help lists the commands, Ctrl-D leaves\n");
    for (;;) {
        cli_line_result r = cli_line_read(line, &text);
        if (r == CLI_LINE_END) return;
        if (r == CLI_LINE_INTERRUPTED) {
            if (cli_line_is_terminal(line)) fprintf(stderr, "(/quit or Ctrl-D leaves)\n");
            continue;
        }
        if (text[strspn(text, " \t")] == 0) continue;
        if (text[0] == '/') {
            if (!command(c, text)) return;
        } else {
            ask(c, text);
        }
        if (cw_signal_stopped()) return;
    }
}

static cw_status open_talk(chat *c, cw_err *err)
{
    const cli_options *o = c->o;
    cw_speaker *who = c->setup.main ? c->setup.main : c->setup.fallback;
    cw_talk_options to = cli_talk_options(o, &c->setup);
    to.sink = (cw_talk_sink){cli_printer_piece, cli_printer_notice, &c->printer};
    /* Better to refuse before the first question than after it. */
    if (!o->raw && !cw_speaker_chat(who, err)) return err->code;
    CW_TRY(cw_talk_new(&to, &c->talk, err));
    return start_over(c, err);
}

int cli_chat(const cli_options *o, const cw_parsed *p)
{
    (void)p;
    static chat c;
    cw_err err = {0};
    cli_line *line = NULL;
    c.o = o;
    if (o->raw && o->system) return cli_usage("--system is part of a chat template, which --raw leaves out");
    cli_printer_init(&c.printer, o->json, o->quiet, stdout, stderr);
    c.printer.on_failure = cw_signal_stop;
    cw_status s = cli_setup_open(o, &c.setup, &err);
    if (s == CW_OK) {
        if (c.setup.land && !o->quiet) cw_mainland_on_waiting(c.setup.land, cli_printer_notice, &c.printer);
        s = open_talk(&c, &err);
        if (s == CW_OK) s = cli_line_new("> ", &line, &err);
        if (s == CW_OK) {
            cw_signal_set_interrupt(true);
            converse(&c, line);
        }
        cli_line_free(&line);
        while (c.n) drop_message(&c);
        cw_free(c.messages);
        cw_talk_free(&c.talk);
        cli_setup_close(&c.setup);
    }
    if (s != CW_OK && !cw_signal_stopped()) return cli_fail(&err);
    if (c.printer.failed) {
        err = (cw_err){.text = "standard output could not be written"};
        return cli_fail(&err);
    }
    return 0;
}
