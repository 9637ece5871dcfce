/*
 * causeway chat: a conversation. The whole of it is rendered for every answer; the session keeps the common
 * prefix, so only what is new is computed.
 */
#include "cw/mem.h"
#include "cw/signal.h"
#include "keep.h"
#include "line.h"
#include "setup.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    const cli_options *o;
    cli_setup setup;
    cw_talk *talk;
    cli_printer printer;
    cw_conversation conv;
    cli_keep keep;
    cli_line *line;
    bool offline;  /* the fallback speaks by the user's wish */
    bool answered; /* the last message is the talk's last answer */
    bool away;     /* it speaks because the experts were lost and are not back */
    cw_talk_stats last;
    int64_t n_answers, n_tokens, n_fallback, decode_us;
    cli_worker_line workers[CLI_MAX_WORKERS];
} chat;

static const char help_text[] =
    "  /mode             which model answers and where its experts are\n"
    "  /mode offline     let the fallback model answer;  /mode auto: the big one again\n"
    "  /stats            tokens, speed, and what each worker served\n"
    "  /redo             answer the question that has no answer\n"
    "  /history          what was said, and which model wrote it\n"
    "  /new              forget the conversation; with --session, in the file too\n"
    "  /quit             leave (as Ctrl-D)\n"
    "  Ctrl-C            stop the answer\n";

static cw_status start_over(chat *c, cw_err *err)
{
    c->answered = false;
    cw_conversation_clear(&c->conv);
    if (!c->o->system) return CW_OK;
    return cw_conversation_add(&c->conv, "system", c->o->system, strlen(c->o->system), err);
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
        .governor = c->last.n_passes ? cli_governed_governor(&c->setup.governed) : NULL,
        .guesses_by_head = c->setup.governed.n_by_head,
    };
    cw_err err;
    if (c->o->digest && cli_digest_talk(c->talk, &sum.state, &err) != CW_OK) (void)cli_fail(&err);
    cli_printer_summary(&c->printer, &sum);
}

static void set_away(chat *c, bool away)
{
    cw_err err;
    c->away = away;
    CW_ASSERT(cw_talk_begin_away(c->talk, away, &err) == CW_OK || !c->setup.fallback);
}

/*
 * An answer waits some seconds for experts that are out of reach before the fallback goes on. Once that has
 * happened, the fallback begins the next answers at once, until every expert can be reached again.
 */
static void look_for_experts(chat *c)
{
    if (c->offline || !c->setup.land || !c->setup.fallback) return;
    bool was_away = c->away;
    if (c->last.n_fallback > 0 && strcmp(c->last.model, cw_speaker_name(c->setup.fallback)) == 0)
        c->away = true;
    if (!c->away) return;
    cw_mainland_status st;
    cw_mainland_want(c->setup.land);
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
    set_away(c, c->away);
}

/* The answer becomes part of the conversation, with who wrote what. */
static cw_status add_answer(chat *c, cw_err *err)
{
    size_t len, begin;
    const char *said = cw_talk_text(c->talk, &len), *model;
    CW_TRY(cw_conversation_add(&c->conv, "assistant", said, len, err));
    for (int i = 0; cw_talk_part(c->talk, i, &model, &begin); i++)
        CW_TRY(cw_conversation_written_by(&c->conv, model, begin, err));
    return CW_OK;
}

/* For the coordinator's list of edges. */
static void tell_cluster(const chat *c)
{
    if (c->setup.land)
        cw_mainland_tell(c->setup.land, (uint64_t)c->n_tokens, (uint64_t)c->n_fallback, mode_now(c));
}

/* An answer to the conversation's last message. */
static cw_status answer_it(chat *c, cw_err *err)
{
    size_t len = 0;
    char *raw = NULL;
    if (c->o->raw && !(raw = cw_conversation_text(&c->conv)))
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    if (c->setup.land) cli_governed_look(&c->setup.governed, c->setup.land);
    tell_cluster(c);
    cw_talk_prompt p = {.messages = c->conv.messages, .n_messages = c->conv.n, .raw = raw};
    cw_status s = cw_talk_answer(c->talk, &p, &c->last, err);
    cw_talk_text(c->talk, &len);
    if (len) cli_printer_end(&c->printer);
    c->answered = s == CW_OK && len && c->last.end != CW_TALK_CANCELLED;
    if (s == CW_OK && len)
        s = add_answer(c, err);
    else
        cw_conversation_drop(&c->conv); /* nothing was answered: the next question must not follow this one */
    /* It came back in the middle. */
    if (c->away && c->setup.main && strcmp(c->last.model, cw_speaker_name(c->setup.main)) == 0)
        c->away = false;
    c->n_answers++;
    c->n_tokens += c->last.n_tokens;
    c->n_fallback += c->offline ? c->last.n_tokens : c->last.n_fallback;
    c->decode_us += c->last.decode_us;
    tell_cluster(c);
    cw_free(raw);
    return s;
}

/* --verify-offline: the big model can be reached again, and the last answer is the fallback's to its end. */
static cw_status take_back(chat *c, cw_err *err)
{
    size_t len;
    char *raw = NULL;
    if (!c->answered || !c->o->verify_offline || c->offline || c->away) return CW_OK;
    cw_talk_stats st;
    c->conv.n--; /* as it was asked */
    if (c->o->raw && !(raw = cw_conversation_text(&c->conv))) {
        c->conv.n++;
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    }
    cw_talk_prompt p = {.messages = c->conv.messages, .n_messages = c->conv.n, .raw = raw};
    cw_status s = cw_talk_take_back(c->talk, &p, &st, err);
    c->conv.n++;
    cw_free(raw);
    if (!st.n_redone) return s;
    cw_talk_text(c->talk, &len);
    cli_printer_end(&c->printer);
    cw_conversation_drop(&c->conv);
    c->last = st;
    if (len)
        CW_TRY(add_answer(c, err));
    else
        c->answered = false; /* and the question is open again */
    if (s == CW_OK && c->o->json) print_summary(c);
    return s;
}

/* One question, or NULL for one that is there and has no answer. Errors end the answer, not the chat. */
static void ask(chat *c, const char *text)
{
    cw_err err = {0};
    cw_status s;
    look_for_experts(c);
    s = take_back(c, &err);
    if (s == CW_STATUS_CANCELLED)
        cw_signal_clear_interrupt();
    else if (s != CW_OK)
        (void)cli_fail(&err); /* what was said stays said */
    s = CW_OK;
    if (text && cw_conversation_is_open(&c->conv)) cw_conversation_drop(&c->conv);
    if (text) s = cw_conversation_add(&c->conv, "user", text, strlen(text), &err);
    if (s == CW_OK) s = cli_keep_conversation(&c->keep, &c->conv, &err);
    if (s == CW_OK) {
        cw_err why = {0};
        s = answer_it(c, &err);
        if (cli_keep_conversation(&c->keep, &c->conv, &why) != CW_OK) (void)cli_fail(&why);
        if (s == CW_OK) cli_keep_cache(&c->keep, false);
    }
    cw_signal_clear_interrupt();
    if (s != CW_OK)
        (void)cli_fail(&err);
    else if (c->o->json)
        print_summary(c);
}

static void redo(chat *c)
{
    if (cw_conversation_is_open(&c->conv))
        ask(c, NULL);
    else
        fprintf(stderr, "every question has its answer\n");
}

/* What was said so far, and by whom. */
static void show_history(const chat *c)
{
    char name[160];
    for (size_t i = 0; i < c->conv.n; i++) {
        const cw_chat_message *m = &c->conv.messages[i];
        if (c->conv.authors[i].n == 0) {
            fprintf(stderr, "[%s]\n", m->role);
            cli_printer_plain(stderr, m->content, m->len);
        }
        for (size_t k = 0; k < c->conv.authors[i].n; k++) {
            const cw_written_part *w = &c->conv.authors[i].parts[k];
            size_t end = k + 1 < c->conv.authors[i].n ? w[1].begin : m->len;
            snprintf(name, sizeof name, "%s", w->model);
            cw_text_printable(name);
            fprintf(stderr, "[%s]\n", name);
            cli_printer_plain(stderr, m->content + w->begin, end - w->begin);
        }
    }
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
    set_away(c, false);
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
    else if (strcmp(line, "/redo") == 0)
        redo(c);
    else if (strcmp(line, "/history") == 0)
        show_history(c);
    else if (strcmp(line, "/new") == 0) {
        cli_keep_forget_cache(&c->keep);
        if (start_over(c, &err) != CW_OK || cli_keep_conversation(&c->keep, &c->conv, &err) != CW_OK)
            (void)cli_fail(&err);
        else
            fprintf(stderr, "the conversation is forgotten\n");
    } else
        fprintf(stderr, "unknown command %.40s; /help lists them\n", line);
    return true;
}

static void converse(chat *c)
{
    const char *text;
    if (cli_line_is_terminal(c->line)) fprintf(stderr, "/help lists the commands, Ctrl-D leaves\n");
    for (;;) {
        cli_line_result r = cli_line_read(c->line, &text);
        if (r == CLI_LINE_END) return;
        if (r == CLI_LINE_INTERRUPTED) {
            if (cli_line_is_terminal(c->line)) fprintf(stderr, "(/quit or Ctrl-D leaves)\n");
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

/* What the fallback wrote is read by the big model again: the user decides whether it is to stay. */
static bool on_verdict(void *ctx, const cw_talk_verdict *v)
{
    chat *c = ctx;
    bool may = v->n_same < v->n_tokens && v->can_redo, redo = may && c->o->redo_offline == CLI_REDO_ALWAYS;
    cli_printer_verdict(&c->printer, v, redo);
    if (may && c->o->redo_offline == CLI_REDO_ASK && !c->printer.json && cli_line_is_terminal(c->line))
        redo = cli_line_confirm(c->line, "write on from there instead? [y/N] ");
    return redo;
}

static cw_status open_talk(chat *c, cw_err *err)
{
    const cli_options *o = c->o;
    cw_speaker *who = c->setup.main ? c->setup.main : c->setup.fallback;
    cw_talk_options to = cli_talk_options(o, &c->setup);
    to.sink = (cw_talk_sink){cli_printer_piece, cli_printer_notice, cli_printer_withdraw, &c->printer};
    if (o->verify_offline) to.verdict = on_verdict, to.verdict_ctx = c;
    c->printer.main_model = cw_speaker_name(who);
    /* Better to refuse before the first question than after it. */
    if (!o->raw && !cw_speaker_chat(who, err)) return err->code;
    CW_TRY(cli_keep_open(&c->keep, o, &c->setup, &c->conv, err));
    CW_TRY(cw_talk_new(&to, &c->talk, err));
    if (cw_conversation_is_open(&c->conv))
        fprintf(stderr, "causeway: the last question has no answer yet; /redo answers it\n");
    return c->conv.n ? CW_OK : start_over(c, err);
}

int cli_chat(const cli_options *o, const cw_parsed *p)
{
    (void)p;
    static chat c;
    cw_err err = {0};
    c.o = o;
    if (o->raw && o->system) return cli_usage("--system is part of a chat template, which --raw leaves out");
    if (o->digest && !o->json) return cli_usage("--digest is part of the summary of --json");
    cli_printer_init(&c.printer, o->json, o->quiet, stdout, stderr);
    if (cli_redo_problem(o, &c.printer)) return cli_usage(cli_redo_problem(o, &c.printer));
    c.printer.on_failure = cw_signal_stop;
    cw_status s = cli_setup_open(o, &c.setup, &err);
    if (s == CW_OK) {
        if (c.setup.land && !o->quiet) cw_mainland_on_waiting(c.setup.land, cli_printer_notice, &c.printer);
        s = open_talk(&c, &err);
        if (s == CW_OK) s = cli_line_new("> ", &c.line, &err);
        if (s == CW_OK) {
            cw_signal_set_interrupt(true);
            converse(&c);
        }
        cli_line_free(&c.line);
        if (s == CW_OK && c.n_answers) cli_keep_cache(&c.keep, true);
        cw_conversation_clear(&c.conv);
        cw_talk_free(&c.talk);
        cli_keep_close(&c.keep);
        cli_setup_close(&c.setup);
    }
    if (s != CW_OK && !cw_signal_stopped()) return cli_fail(&err);
    if (c.printer.failed) {
        err = (cw_err){.text = "standard output could not be written"};
        return cli_fail(&err);
    }
    return 0;
}
