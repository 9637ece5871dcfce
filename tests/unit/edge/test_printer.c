/* What the user sees: JSON lines, terminal and pipe text, the summary; and the lists of numbers on the
 * command line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/mem.h"
#include "lists.h"
#include "printer.h"

static FILE *out, *note;

static int open_files(void **state)
{
    (void)state;
    out = tmpfile();
    note = tmpfile();
    return out && note ? 0 : -1;
}

static int close_files(void **state)
{
    (void)state;
    fclose(out);
    fclose(note);
    return 0;
}

static const char *content(FILE *f)
{
    static char text[8192];
    fflush(f);
    rewind(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    return text;
}

static void piece(cli_printer *p, cw_span_kind kind, const char *text)
{
    cli_printer_piece(p, "big", kind, text, strlen(text));
}

static void speak(cli_printer *p)
{
    piece(p, CW_SPAN_MARKER, "<think>\n");
    piece(p, CW_SPAN_REASONING, "2+2");
    piece(p, CW_SPAN_MARKER, "\n</think>\n\n");
    piece(p, CW_SPAN_ANSWER, "four \"4\"");
    cli_printer_end(p);
}

static void json_pieces_name_model_and_kind(void **state)
{
    (void)state;
    cli_printer p;
    cli_printer_init(&p, true, false, out, note);
    speak(&p);
    assert_string_equal(content(out),
                        "{\"text\":\"2+2\",\"model\":\"big\",\"kind\":\"reasoning\"}\n"
                        "{\"text\":\"four \\\"4\\\"\",\"model\":\"big\",\"kind\":\"answer\"}\n");
    assert_false(p.failed);
}

static void a_pipe_gets_the_text_as_it_is(void **state)
{
    (void)state;
    cli_printer p;
    cli_printer_init(&p, false, false, out, note);
    assert_false(p.tty);
    speak(&p);
    piece(&p, CW_SPAN_ANSWER, "\033[31mred\n");
    cli_printer_end(&p);
    assert_string_equal(content(out), "<think>\n2+2\n</think>\n\nfour \"4\"\n\033[31mred\n");
}

static void a_terminal_gets_no_control_characters_from_a_model(void **state)
{
    (void)state;
    cli_printer p;
    cli_printer_init(&p, false, false, out, note);
    p.tty = true;
    speak(&p);
    piece(&p, CW_SPAN_ANSWER,
          "a\033]0;title\007b\xc2\x9b"
          "31mc\r\x7f\td\xc3\xa9\n");
    cli_printer_end(&p);
    assert_string_equal(content(out), "\033[2m2+2\033[0m\nfour \"4\"\na]0;titleb31mc\td\xc3\xa9\n");
}

static void a_terminal_shows_what_the_fallback_wrote(void **state)
{
    (void)state;
    cli_printer p;
    cli_printer_init(&p, false, false, out, note);
    p.tty = true;
    p.main_model = "big";
    piece(&p, CW_SPAN_REASONING, "2+");
    cli_printer_piece(&p, "small", CW_SPAN_REASONING, "2", 1);
    piece(&p, CW_SPAN_MARKER, "</think>");
    cli_printer_piece(&p, "small", CW_SPAN_ANSWER, "fo", 2);
    piece(&p, CW_SPAN_ANSWER, "ur");
    cli_printer_end(&p);
    assert_string_equal(content(out), "\033[2m2+\033[0m\033[2;36m2\033[0m\n\033[36mfo\033[0mur\n");
}

static void a_verdict_is_a_sentence_or_a_line(void **state)
{
    (void)state;
    static const char kept[] = "Once upon a time there was a brave fox who saw",
                      wrote[] = " a b\033ig house in the deep green forest and went in";
    cw_talk_verdict v = {.by = "big", .of = "small", .n_tokens = 20, .n_same = 20};
    cli_printer p;
    cli_printer_init(&p, false, false, out, note);
    cli_printer_verdict(&p, &v, false);
    v = (cw_talk_verdict){.by = "big",
                          .of = "small",
                          .n_tokens = 20,
                          .n_same = 7,
                          .kept = kept,
                          .wrote = wrote,
                          .would = " the",
                          .n_kept = strlen(kept),
                          .n_wrote = strlen(wrote),
                          .n_would = 4,
                          .can_redo = true};
    cli_printer_verdict(&p, &v, true);
    v.n_kept = 4, v.n_wrote = 7, v.n_would = 0, v.would_end = true;
    cli_printer_verdict(&p, &v, false);
    cli_printer_withdraw(&p, 1, 2);
    assert_string_equal(content(note), "causeway: big would have written all of it the same (20 tokens)\n"
                                       "causeway: behind \"on a time there was a brave fox who saw\", where "
                                       "small wrote \" a b?ig house in the deep "
                                       "green forest \", big would have written \" the\" (7 of 20 tokens are "
                                       "the same); it writes on from there\n"
                                       "causeway: behind \"Once\", where small wrote \" a b?ig\", big would "
                                       "have ended (7 of 20 tokens are the "
                                       "same)\n");
    assert_string_equal(content(out), "");
    cli_printer_init(&p, true, false, out, note);
    cli_printer_verdict(&p, &v, true);
    cli_printer_withdraw(&p, 0, 7);
    v.n_same = 20;
    cli_printer_verdict(&p, &v, false);
    assert_string_equal(
        content(out),
        "{\"verified\":{\"by\":\"big\",\"of\":\"small\",\"tokens\":20,\"same\":7,\"wrote\":\" a b\\u001big\","
        "\"would_write\":\"\",\"would_end\":true,\"redone\":true}}\n"
        "{\"withdrawn\":{\"reasoning_bytes\":0,\"answer_bytes\":7}}\n"
        "{\"verified\":{\"by\":\"big\",\"of\":\"small\",\"tokens\":20,\"same\":20}}\n");
}

static void what_a_pipe_was_given_is_not_redone(void **state)
{
    (void)state;
    cli_printer p;
    cli_printer_init(&p, false, false, out, note);
    cli_options o = {.verify_offline = true, .redo_offline = CLI_REDO_ALWAYS};
    assert_non_null(strstr(cli_redo_problem(&o, &p), "pipe"));
    p.tty = true;
    assert_null(cli_redo_problem(&o, &p));
    o.verify_offline = false;
    assert_non_null(strstr(cli_redo_problem(&o, &p), "--verify-offline"));
    o.redo_offline = CLI_REDO_ASK;
    assert_null(cli_redo_problem(&o, &p));
}

static void the_summary_holds_every_worker(void **state)
{
    (void)state;
    cw_talk_stats st = {.end = CW_TALK_LENGTH,
                        .model = "small",
                        .n_prompt = 9,
                        .n_reused = 4,
                        .n_tokens = 50,
                        .n_fallback = 3,
                        .n_changes = 1,
                        .n_passes = 20,
                        .n_drafted = 40,
                        .n_accepted = 30,
                        .n_wrong = 6,
                        .prefill_us = 1500,
                        .decode_us = 2000000};
    cli_worker_line w[2] = {
        {.name = "a", .calls = 7, .rows = 8, .bytes_out = 1024, .bytes_in = 2048, .up = true},
        {.name = "b", .calls = 1}};
    cli_summary s = {.mode = "split", .main_model = "big", .stats = &st, .workers = w, .n_workers = 2};
    cli_printer p;
    cli_printer_init(&p, true, false, out, note);
    cli_printer_summary(&p, &s);
    assert_string_equal(
        content(out),
        "{\"summary\":{\"mode\":\"split\",\"model\":\"big\",\"ended_by_model\":\"small\",\"end\":\"length\","
        "\"prompt_tokens\":9,\"reused_tokens\":4,\"tokens\":50,\"fallback_tokens\":3,"
        "\"changes_of_model\":1,\"passes\":20,\"drafted\":40,\"accepted\":30,\"wrong_passes\":6,\"tokens_per_"
        "second\":25.00,"
        "\"prefill_ms\":1.500,\"decode_ms\":2000.000,\"workers\":["
        "{\"name\":\"a\",\"calls\":7,\"rows\":8,\"bytes_out\":1024,\"bytes_in\":2048,\"up\":true},"
        "{\"name\":\"b\",\"calls\":1,\"rows\":0,\"bytes_out\":0,\"bytes_in\":0,\"up\":false}]}}\n");
    cli_printer_init(&p, false, false, out, note);
    cli_printer_summary(&p, &s);
    const char *t = content(note);
    assert_non_null(strstr(t, "mode split"));
    assert_non_null(strstr(t, "25.0 tokens/s"));
    assert_non_null(strstr(t, "3 tokens by the fallback"));
    assert_non_null(strstr(t, "(gone)"));
}

static void a_broken_sink_is_noticed(void **state)
{
    (void)state;
    FILE *full = fopen("/dev/full", "w");
    assert_non_null(full);
    cli_printer p;
    cli_printer_init(&p, false, false, full, note);
    piece(&p, CW_SPAN_ANSWER, "x");
    assert_true(p.failed);
    cli_printer_init(&p, true, false, full, note);
    piece(&p, CW_SPAN_ANSWER, "x");
    assert_true(p.failed);
    fclose(full);
}

static void lists_take_commas_and_white_space(void **state)
{
    (void)state;
    cw_err err;
    int32_t *v;
    size_t n;
    assert_int_equal(cli_list_parse("[1, 22,3\n2147483647]", "ids", &v, &n, &err), CW_OK);
    assert_int_equal(n, 4);
    assert_int_equal(v[1], 22);
    assert_int_equal(v[3], INT32_MAX);
    cw_free(v);
    static const char *const bad[] = {"",    " , ", "1,x", "-1", "1.5", "2147483648", "99999999999999999999",
                                      "1 2a"};
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++)
        assert_int_equal(cli_list_parse(bad[i], "ids", &v, &n, &err), CW_STATUS_INVALID);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, open_files, close_files)
    const struct CMUnitTest tests[] = {
        T(json_pieces_name_model_and_kind),
        T(a_pipe_gets_the_text_as_it_is),
        T(a_terminal_gets_no_control_characters_from_a_model),
        T(a_terminal_shows_what_the_fallback_wrote),
        T(a_verdict_is_a_sentence_or_a_line),
        T(what_a_pipe_was_given_is_not_redone),
        T(the_summary_holds_every_worker),
        T(a_broken_sink_is_noticed),
        T(lists_take_commas_and_white_space),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
