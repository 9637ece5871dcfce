#include "printer.h"
#include "cw/json.h"
#include "cw/progress.h"

#include <string.h>
#include <unistd.h>

void cli_printer_init(cli_printer *p, bool json, bool quiet, FILE *out, FILE *note)
{
    *p = (cli_printer){.out = out, .note = note, .json = json, .quiet = quiet};
    p->tty = !json && isatty(fileno(out)) != 0;
}

/* Whoever read the answer is gone: nothing of it will be read any more. */
static void fail(cli_printer *p)
{
    if (!p->failed && p->on_failure) p->on_failure();
    p->failed = true;
}

static void piece_json(cli_printer *p, const char *model, cw_span_kind kind, const char *text, size_t len)
{
    if (kind == CW_SPAN_MARKER) return;
    cw_json j;
    cw_json_to_file(&j, p->out);
    cw_json_object(&j);
    cw_json_key(&j, "text");
    cw_json_strn(&j, text, len);
    cw_json_kstr(&j, "model", model);
    cw_json_kstr(&j, "kind", kind == CW_SPAN_REASONING ? "reasoning" : "answer");
    cw_json_end(&j);
    if (!cw_json_done(&j)) fail(p);
}

/* Bytes at s that a terminal would obey instead of showing: C0 but tab and newline, DEL, and C1 in UTF-8. */
static size_t control_len(const unsigned char *s, size_t n)
{
    if ((s[0] < 0x20 && s[0] != '\n' && s[0] != '\t') || s[0] == 0x7f) return 1;
    return n > 1 && s[0] == 0xc2 && s[1] >= 0x80 && s[1] <= 0x9f ? 2 : 0;
}

static void write_visible(FILE *f, const char *text, size_t len)
{
    const unsigned char *s = (const unsigned char *)text;
    for (size_t i = 0; i < len;) {
        size_t skip = control_len(s + i, len - i);
        if (!skip) fputc(s[i], f);
        i += skip ? skip : 1;
    }
}

void cli_printer_plain(FILE *f, const char *text, size_t len)
{
    write_visible(f, text, len);
    fputc('\n', f);
}

enum { STYLE_DIM = 1, STYLE_FALLBACK = 2 };

static void set_style(cli_printer *p, int style)
{
    static const char *const codes[] = {"", "\033[2m", "\033[36m", "\033[2;36m"};
    if (p->style == style) return;
    if (p->style) fputs("\033[0m", p->out);
    fputs(codes[style], p->out);
    p->style = style;
}

static void piece_tty(cli_printer *p, const char *model, cw_span_kind kind, const char *text, size_t len)
{
    if (kind == CW_SPAN_MARKER) { /* the colour tells; a line break keeps thought and answer apart */
        set_style(p, 0);
        if (p->last && p->last != '\n') fputc('\n', p->out);
        p->last = p->last ? '\n' : 0;
        return;
    }
    int style = kind == CW_SPAN_REASONING ? STYLE_DIM : 0;
    if (p->main_model && strcmp(model, p->main_model) != 0) style |= STYLE_FALLBACK;
    set_style(p, style);
    write_visible(p->out, text, len);
    p->last = text[len - 1];
}

void cli_printer_piece(void *ctx, const char *model, cw_span_kind kind, const char *text, size_t len)
{
    cli_printer *p = ctx;
    if (p->json) {
        piece_json(p, model, kind, text, len);
        return;
    }
    if (p->tty) {
        piece_tty(p, model, kind, text, len);
    } else {
        fwrite(text, 1, len, p->out);
        p->last = text[len - 1];
    }
    if (fflush(p->out) != 0) fail(p);
}

void cli_printer_notice(void *ctx, const char *sentence)
{
    cli_printer *p = ctx;
    bool in_line = p->tty && p->last && p->last != '\n';
    if (p->tty) {
        set_style(p, 0);
        (void)fflush(p->out);
    }
    fprintf(p->note, "%scauseway: %s\n", in_line ? "\n" : "", sentence);
    if (in_line) p->last = '\n';
}

void cli_printer_withdraw(void *ctx, size_t reasoning_bytes, size_t answer_bytes)
{
    cli_printer *p = ctx;
    if (!p->json) return;
    cw_json j;
    cw_json_to_file(&j, p->out);
    cw_json_object(&j);
    cw_json_key(&j, "withdrawn");
    cw_json_object(&j);
    cw_json_kuint(&j, "reasoning_bytes", reasoning_bytes);
    cw_json_kuint(&j, "answer_bytes", answer_bytes);
    cw_json_end(&j);
    cw_json_end(&j);
    if (!cw_json_done(&j)) fail(p);
}

static void verdict_json(cli_printer *p, const cw_talk_verdict *v, bool redo)
{
    cw_json j;
    cw_json_to_file(&j, p->out);
    cw_json_object(&j);
    cw_json_key(&j, "verified");
    cw_json_object(&j);
    cw_json_kstr(&j, "by", v->by);
    cw_json_kstr(&j, "of", v->of);
    cw_json_kint(&j, "tokens", v->n_tokens);
    cw_json_kint(&j, "same", v->n_same);
    if (v->n_same < v->n_tokens) {
        cw_json_key(&j, "wrote");
        cw_json_strn(&j, v->wrote, v->n_wrote);
        cw_json_key(&j, "would_write");
        cw_json_strn(&j, v->would ? v->would : "", v->n_would);
        cw_json_kbool(&j, "would_end", v->would_end);
        cw_json_kbool(&j, "redone", redo);
    }
    cw_json_end(&j);
    cw_json_end(&j);
    if (!cw_json_done(&j)) fail(p);
}

/* The beginning (or the end) of a text, as part of a sentence: whole characters, one line, nothing that a
 * terminal would obey. */
static const char *excerpt(char *out, size_t cap, const char *text, size_t n, bool end)
{
    size_t most = cap - 1, from = end && n > most ? n - most : 0,
           to = from + (n - from < most ? n - from : most);
    while (from < to && from > 0 && ((unsigned char)text[from] & 0xc0) == 0x80) from++;
    while (to > from && to < n && ((unsigned char)text[to] & 0xc0) == 0x80) to--;
    memcpy(out, text + from, to - from);
    out[to - from] = 0;
    for (char *c = out; *c; c++)
        if (*c == '\n' || *c == '\t') *c = ' ';
    cw_text_printable(out);
    return out;
}

static void verdict_text(cli_printer *p, const cw_talk_verdict *v, bool redo)
{
    char kept[40], wrote[40], would[40], sentence[768];
    if (v->n_same == v->n_tokens) {
        snprintf(sentence, sizeof sentence, "%.100s would have written all of it the same (%d tokens)", v->by,
                 v->n_tokens);
    } else {
        excerpt(kept, sizeof kept, v->kept, v->n_kept, true);
        excerpt(wrote, sizeof wrote, v->wrote, v->n_wrote, false);
        int n = snprintf(sentence, sizeof sentence, "behind \"%s\", where %.100s %s%s%s, %.100s would have ",
                         kept, v->of, v->n_wrote ? "wrote \"" : "ended", v->n_wrote ? wrote : "",
                         v->n_wrote ? "\"" : "", v->by);
        if (v->would_end)
            n += snprintf(sentence + n, sizeof sentence - (size_t)n, "ended");
        else
            n += snprintf(sentence + n, sizeof sentence - (size_t)n, "written \"%s\"",
                          excerpt(would, sizeof would, v->would, v->n_would, false));
        snprintf(sentence + n, sizeof sentence - (size_t)n, " (%d of %d tokens are the same)%s", v->n_same,
                 v->n_tokens, redo ? "; it writes on from there" : "");
    }
    cli_printer_notice(p, sentence);
}

void cli_printer_verdict(cli_printer *p, const cw_talk_verdict *v, bool redo)
{
    if (p->json)
        verdict_json(p, v, redo);
    else
        verdict_text(p, v, redo);
}

const char *cli_redo_problem(const cli_options *o, const cli_printer *p)
{
    if (o->redo_offline == CLI_REDO_ASK) return NULL;
    if (!o->verify_offline) return "--redo-offline needs --verify-offline";
    if (o->redo_offline == CLI_REDO_ALWAYS && !p->json && !p->tty)
        return "--redo-offline always needs --json or a terminal: what a pipe was given cannot be taken back";
    return NULL;
}

void cli_printer_end(cli_printer *p)
{
    if (p->json) return;
    set_style(p, 0);
    if (p->last != '\n') fputc('\n', p->out);
    p->last = 0;
    if (fflush(p->out) != 0) fail(p);
}

double cli_tokens_per_second(const cw_talk_stats *s)
{
    return s->decode_us > 0 ? (double)s->n_tokens * 1e6 / (double)s->decode_us : 0;
}

static void governor_json(cw_json *j, const cw_governor *g, uint64_t by_head)
{
    char why[256];
    int n = cw_governor_choice(g);
    cw_governor_why(g, why, sizeof why);
    cw_json_key(j, "governor");
    cw_json_object(j);
    cw_json_kstr(j, "chose", n ? "draft" : "split");
    cw_json_kint(j, "draft", n);
    cw_json_kfixed(j, "acceptance", cw_governor_acceptance(g), 4);
    cw_json_kfixed(j, "pass_ms", cw_governor_round_us(g, n) / 1e3, 3);
    cw_json_kfixed(j, "tokens_a_pass", cw_governor_yield(g, n), 3);
    cw_json_kfixed(j, "split_ms", cw_governor_round_us(g, 0) / 1e3, 3);
    cw_json_kuint(j, "rounds", g->n_rounds);
    cw_json_kuint(j, "rounds_by_head", by_head);
    cw_json_kuint(j, "changes", g->n_changes);
    cw_json_kuint(j, "explorations", g->n_probes);
    cw_json_kstr(j, "why", why);
    cw_json_end(j);
}

static void summary_json(cli_printer *p, const cli_summary *s)
{
    const cw_talk_stats *t = s->stats;
    cw_json j;
    cw_json_to_file(&j, p->out);
    cw_json_object(&j);
    cw_json_key(&j, "summary");
    cw_json_object(&j);
    cw_json_kstr(&j, "mode", s->mode);
    cw_json_kstr(&j, "model", s->main_model);
    cw_json_kstr(&j, "ended_by_model", t->model);
    cw_json_kstr(&j, "end", cw_talk_end_name(t->end));
    cw_json_kint(&j, "prompt_tokens", t->n_prompt);
    cw_json_kint(&j, "reused_tokens", t->n_reused);
    cw_json_kint(&j, "tokens", t->n_tokens);
    cw_json_kint(&j, "fallback_tokens", t->n_fallback);
    cw_json_kint(&j, "changes_of_model", t->n_changes);
    if (t->n_compared) {
        cw_json_kint(&j, "compared_tokens", t->n_compared);
        cw_json_kint(&j, "otherwise", t->n_otherwise);
        cw_json_kint(&j, "withdrawn_tokens", t->n_withdrawn);
    }
    cw_json_kint(&j, "passes", t->n_passes);
    cw_json_kint(&j, "drafted", t->n_drafted);
    cw_json_kint(&j, "accepted", t->n_accepted);
    cw_json_kint(&j, "wrong_passes", t->n_wrong);
    cw_json_kfixed(&j, "tokens_per_second", cli_tokens_per_second(t), 2);
    cw_json_kfixed(&j, "prefill_ms", (double)t->prefill_us / 1e3, 3);
    cw_json_kfixed(&j, "decode_ms", (double)t->decode_us / 1e3, 3);
    if (s->counts) {
        const cw_mainland_counts *n = s->counts;
        cw_json_kuint(&j, "calls", n->calls);
        cw_json_kuint(&j, "resent", n->resent);
        cw_json_kuint(&j, "hedges", n->hedges);
        cw_json_kuint(&j, "hedge_wins", n->hedge_wins);
        cw_json_kuint(&j, "doubled", n->doubled);
        cw_json_kuint(&j, "compared", n->compared);
        cw_json_kuint(&j, "mismatches", n->mismatches);
        cw_json_kuint(&j, "busy", n->busy);
        cw_json_kuint(&j, "suspects", n->suspects);
        cw_json_kuint(&j, "late", n->late);
    }
    if (s->governor) governor_json(&j, s->governor, s->guesses_by_head);
    if (s->state.known) {
        cw_json_key(&j, "state");
        cli_digest_json(&j, &s->state);
    }
    cw_json_key(&j, "workers");
    cw_json_array(&j);
    for (size_t i = 0; i < s->n_workers; i++) {
        const cli_worker_line *w = &s->workers[i];
        cw_json_object(&j);
        cw_json_kstr(&j, "name", w->name);
        cw_json_kuint(&j, "calls", w->calls);
        cw_json_kuint(&j, "rows", w->rows);
        cw_json_kuint(&j, "bytes_out", w->bytes_out);
        cw_json_kuint(&j, "bytes_in", w->bytes_in);
        cw_json_kbool(&j, "up", w->up);
        cw_json_end(&j);
    }
    cw_json_end(&j);
    cw_json_end(&j);
    cw_json_end(&j);
    if (!cw_json_done(&j)) fail(p);
}

static void summary_text(cli_printer *p, const cli_summary *s)
{
    const cw_talk_stats *t = s->stats;
    fprintf(p->note, "\nmode %s · %d tokens, %.1f tokens/s · prompt %d tokens in %.0f ms, answer in %.0f ms",
            s->mode, t->n_tokens, cli_tokens_per_second(t), t->n_prompt - t->n_reused,
            (double)t->prefill_us / 1e3, (double)t->decode_us / 1e3);
    if (t->n_fallback) fprintf(p->note, " · %d tokens by the fallback", t->n_fallback);
    if (t->n_drafted)
        fprintf(p->note, " · %d of %d guesses right, %.1f tokens a pass", t->n_accepted, t->n_drafted,
                (double)(t->n_tokens - t->n_fallback) / (t->n_passes ? t->n_passes : 1));
    if (t->end != CW_TALK_STOP) fprintf(p->note, " · ended by %s", cw_talk_end_name(t->end));
    fputc('\n', p->note);
    if (s->governor) {
        char why[256];
        cw_governor_why(s->governor, why, sizeof why);
        fprintf(p->note, "  %s", why);
        if (s->guesses_by_head)
            fprintf(p->note, "; %llu passes with the model's own head",
                    (unsigned long long)s->guesses_by_head);
        fputc('\n', p->note);
    }
    if (s->n_workers)
        fprintf(p->note, "  %-20s %10s %10s %12s %12s\n", "worker", "calls", "rows", "sent", "received");
    for (size_t i = 0; i < s->n_workers; i++) {
        const cli_worker_line *w = &s->workers[i];
        char out[32], in[32];
        fprintf(p->note, "  %-20s %10llu %10llu %12s %12s%s\n", w->name, (unsigned long long)w->calls,
                (unsigned long long)w->rows, cw_bytes_text(w->bytes_out, out, sizeof out),
                cw_bytes_text(w->bytes_in, in, sizeof in), w->up ? "" : "  (gone)");
    }
    const cw_mainland_counts *n = s->counts;
    if (n && (n->resent || n->hedges || n->busy || n->suspects))
        fprintf(p->note,
                "  %llu calls: %llu sent again, %llu hedged (%llu won), %llu put off, %llu times a worker "
                "hung or was late\n",
                (unsigned long long)n->calls, (unsigned long long)n->resent, (unsigned long long)n->hedges,
                (unsigned long long)n->hedge_wins, (unsigned long long)n->busy,
                (unsigned long long)n->suspects);
    if (n && n->compared)
        fprintf(p->note, "  %llu row%s came from two workers: %llu differed\n",
                (unsigned long long)n->compared, n->compared == 1 ? "" : "s",
                (unsigned long long)n->mismatches);
}

void cli_printer_summary(cli_printer *p, const cli_summary *s)
{
    if (p->json)
        summary_json(p, s);
    else if (!p->quiet)
        summary_text(p, s);
}
