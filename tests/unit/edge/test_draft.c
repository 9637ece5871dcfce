/*
 * Drafting changes nothing but speed: the same tokens, text, KV rows and ends as without, for every length of
 * the drafted runs, greedy and seeded, with penalties, with limits that fall into a run, and with runs whose
 * length changes from pass to pass; whether the fallback guesses, the model's own prediction head, or now one
 * and now the other. Models are the shipped demo pair and head; every expert is in this process.
 *
 *     test_draft [--all | --acceptance]
 *
 * --all: 50 prompts with runs of 1 to 8 (minutes); without, a few of each (seconds). --acceptance: only
 * counts, over all 320 prompts of the evaluation set, how often guesses are right.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/clock.h"
#include "cw/demo_path.h"
#include "cw/mem.h"
#include "cw/mtp.h"
#include "cw/mtp_drafter.h"
#include "cw/talk.h"
#include "cw/shadow.h"

enum { CTX = 700, MAX_PROMPTS = 320, SOME = 50, MAX_TEXT = 16384 };

static struct {
    cw_speaker *teacher, *student;
    bool all, count_only;
    char prompts[MAX_PROMPTS][512];
    int n_prompts;
} demo;

static cw_speaker *open_demo(const char *file)
{
    cw_err err;
    char *path = NULL;
    cw_speaker *s = NULL;
    if (cw_demo_path(file, &path, &err) != CW_OK) fail_msg("%s", err.text);
    cw_speaker_options o = {
        .path = path, .engine = {.role = CW_ENGINE_LOCAL, .n_threads = 1}, .session = {.n_ctx = CTX}};
    if (cw_speaker_open(&o, &s, &err) != CW_OK) fail_msg("%s", err.text);
    cw_free(path);
    return s;
}

/* The "prompt" strings of the evaluation set, all or every seventh, so that all kinds of tasks occur. */
static void read_prompts(void)
{
    FILE *f = fopen("deploy/demo/eval/prompts.jsonl", "r");
    assert_non_null(f);
    static char line[1 << 16];
    for (int i = 0; fgets(line, sizeof line, f); i++) {
        if (!demo.count_only && (i % 7 || demo.n_prompts == SOME)) continue;
        if (demo.n_prompts == MAX_PROMPTS) break;
        char *p = strstr(line, "\"prompt\": \""), *out = demo.prompts[demo.n_prompts];
        if (!p || !(p = strstr(p, "<｜User｜>")))
            continue; /* the beginning of the text is added when it is read */
        size_t n = 0;
        while (*p && *p != '"' && n < sizeof demo.prompts[0] - 1) {
            if (*p == '\\') p++;
            out[n++] = *p++;
        }
        if (n) demo.n_prompts++;
    }
    fclose(f);
    assert_in_range(demo.n_prompts, 10, MAX_PROMPTS);
}

static int open_models(void **state)
{
    (void)state;
    demo.teacher = open_demo(CW_DEMO_MODEL);
    demo.student = open_demo(CW_DEMO_FALLBACK);
    read_prompts();
    return 0;
}

static int close_models(void **state)
{
    (void)state;
    cw_speaker_close(&demo.teacher);
    cw_speaker_close(&demo.student);
    return 0;
}

static const char a_sum[] = "<｜User｜>What is 347 + 285?<｜Assistant｜>";

typedef struct {
    char text[MAX_TEXT];
    int32_t tokens[CTX];
    int n_tokens;
    uint8_t *kv; /* every layer's row of every position */
    size_t kv_bytes;
    cw_talk_stats stats;
} outcome;

static void hear(void *ctx, const char *model, cw_span_kind kind, const char *text, size_t len)
{
    (void)model, (void)kind;
    outcome *o = ctx;
    strncat(o->text, text, len < MAX_TEXT - 1 - strlen(o->text) ? len : 0);
}

static void notice(void *ctx, const char *sentence)
{
    (void)ctx, (void)sentence;
}

static void keep_state(outcome *o)
{
    cw_session *s = cw_speaker_session(demo.teacher);
    const int32_t *tokens = cw_session_tokens(s, &o->n_tokens);
    memcpy(o->tokens, tokens, (size_t)o->n_tokens * sizeof *tokens);
    int n_layers = cw_engine_config(cw_session_engine(s))->n_layers;
    size_t row = 0;
    (void)cw_session_kv_row(s, 0, 0, &row);
    o->kv_bytes = row * (size_t)o->n_tokens * (size_t)n_layers;
    o->kv = cw_calloc(o->kv_bytes, 1);
    assert_non_null(o->kv);
    uint8_t *at = o->kv;
    for (int l = 0; l < n_layers; l++)
        for (int p = 0; p < o->n_tokens; p++, at += row) memcpy(at, cw_session_kv_row(s, l, p, NULL), row);
}

static int vary(void *ctx)
{
    int *round = ctx;
    return (*round)++ * 5 % 9; /* 0 to 8 */
}

/* Now one, now the other, and the lengths vary on another beat. */
static bool alternate(void *ctx)
{
    int *round = ctx;
    return *round / 3 % 2;
}

typedef enum { FALLBACK, HEAD, BOTH } guesser;

typedef struct {
    guesser by;
    int draft; /* 0: off; -1: another length each pass */
    int max_tokens;
    cw_sampler_params sampler;
} how;

static outcome *answer(const char *prompt, how h)
{
    outcome *o = cw_calloc(1, sizeof *o);
    cw_err err;
    int round = 0;
    cw_talk_draft d = {.max = h.draft < 0 ? 8 : h.draft};
    if (h.draft < 0) d.length = vary, d.ctx = &round;
    if (h.by != FALLBACK) {
        char *path = NULL;
        if (cw_demo_path(CW_DEMO_HEAD, &path, &err) != CW_OK ||
            cw_mtp_drafter_new(demo.teacher, path, &h.sampler, &d.drafter, &err) != CW_OK)
            fail_msg("%s", err.text);
        cw_free(path);
        if (h.by == BOTH) d.use_drafter = alternate;
    }
    cw_talk_options to = {.main = demo.teacher,
                          .fallback = h.by == HEAD ? NULL : demo.student,
                          .draft = h.draft ? &d : NULL,
                          .sampler = h.sampler,
                          .max_tokens = h.max_tokens,
                          .sink = {hear, notice, NULL, o}};
    cw_talk *t = NULL;
    cw_session_rewind(cw_speaker_session(demo.teacher), 0);
    if (cw_talk_new(&to, &t, &err) != CW_OK) fail_msg("%s", err.text);
    cw_talk_prompt p = {.raw = prompt};
    if (cw_talk_answer(t, &p, &o->stats, &err) != CW_OK) fail_msg("%s", err.text);
    keep_state(o);
    cw_talk_free(&t);
    cw_drafter_free(&d.drafter);
    return o;
}

static void drop(outcome **o)
{
    cw_free((*o)->kv);
    cw_free(*o);
    *o = NULL;
}

static void assert_same(const outcome *a, const outcome *b, const char *prompt, int draft)
{
    if (strcmp(a->text, b->text) != 0)
        fail_msg("draft %d, '%s':\n%s\nbut\n%s", draft, prompt, a->text, b->text);
    assert_int_equal(a->stats.end, b->stats.end);
    assert_int_equal(a->stats.n_tokens, b->stats.n_tokens);
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_memory_equal(a->tokens, b->tokens, (size_t)a->n_tokens * sizeof *a->tokens);
    assert_int_equal(a->kv_bytes, b->kv_bytes);
    if (memcmp(a->kv, b->kv, a->kv_bytes) != 0) fail_msg("draft %d, '%s': other KV rows", draft, prompt);
}

typedef struct {
    int drafted, accepted;
} tally;

static void compare_with(const outcome *plain, const char *prompt, how h, tally *count)
{
    outcome *drafted = answer(prompt, h);
    assert_same(plain, drafted, prompt, h.draft);
    count->drafted += drafted->stats.n_drafted;
    count->accepted += drafted->stats.n_accepted;
    assert_true(drafted->stats.n_passes <= plain->stats.n_passes);
    drop(&drafted);
}

/* Every run length against none, with every guesser. */
static void compare(const cw_sampler_params *sampler, int max_tokens, int stride)
{
    tally counts[3] = {0};
    for (int i = 0; i < demo.n_prompts; i += demo.all ? 1 : stride) {
        how h = {.max_tokens = max_tokens, .sampler = *sampler};
        h.sampler.seed += (uint64_t)i;
        outcome *plain = answer(demo.prompts[i], h);
        assert_int_equal(plain->stats.n_drafted, 0);
        for (int n = -1; n <= 8; n++) {
            if (n == 0 || (!demo.all && n > 1 && n < 8 && n != 3)) continue;
            h.by = FALLBACK, h.draft = n;
            compare_with(plain, demo.prompts[i], h, &counts[FALLBACK]);
        }
        for (int n = demo.all ? -1 : 1; n <= CW_MTP_MAX; n++) {
            if (n == 0) continue;
            h.by = HEAD, h.draft = n;
            compare_with(plain, demo.prompts[i], h, &counts[HEAD]);
        }
        h.by = BOTH, h.draft = -1;
        compare_with(plain, demo.prompts[i], h, &counts[BOTH]);
        drop(&plain);
    }
    print_message(
        "temperature %.1f: %d of %d guesses of the fallback accepted, %d of %d of the head, %d of %d "
        "of both in turn\n",
        (double)sampler->temperature, counts[FALLBACK].accepted, counts[FALLBACK].drafted,
        counts[HEAD].accepted, counts[HEAD].drafted, counts[BOTH].accepted, counts[BOTH].drafted);
    for (int by = FALLBACK; by <= BOTH; by++) /* both ways of a round were taken */
        assert_true(counts[by].accepted > 0 && counts[by].accepted < counts[by].drafted);
    if (sampler->temperature == 0) assert_true(counts[HEAD].accepted > counts[HEAD].drafted * 8 / 10);
}

static void greedy_answers_are_the_same(void **state)
{
    (void)state;
    cw_sampler_params p = CW_SAMPLER_GREEDY;
    compare(&p, 0, 9);
}

static void seeded_answers_are_the_same(void **state)
{
    (void)state;
    cw_sampler_params p = CW_SAMPLER_GREEDY;
    p.temperature = 0.8f, p.top_k = 40, p.top_p = 0.95f, p.seed = 7;
    compare(&p, 160, 11);
}

static void penalties_see_each_position_s_own_history(void **state)
{
    (void)state;
    cw_sampler_params p = CW_SAMPLER_GREEDY;
    p.temperature = 0.5f, p.repeat_penalty = 1.3f, p.repeat_last_n = 16, p.seed = 11;
    compare(&p, 120, 17);
}

static void a_limit_inside_a_run_ends_it_there(void **state)
{
    (void)state;
    cw_sampler_params p = CW_SAMPLER_GREEDY;
    int last = demo.all ? 24 : 12;
    for (int max = 1; max <= last; max++) {
        how h = {.max_tokens = max, .sampler = p};
        outcome *plain = answer(a_sum, h);
        for (h.by = FALLBACK; h.by <= HEAD; h.by++) {
            if (h.by == HEAD && max > 4 && !demo.all) break; /* longer than a run of its guesses */
            h.draft = h.by == HEAD ? CW_MTP_MAX : 8;
            outcome *drafted = answer(a_sum, h);
            assert_same(plain, drafted, "sum", h.draft);
            assert_int_equal(drafted->stats.n_tokens, max);
            drop(&drafted);
        }
        drop(&plain);
    }
}

static void the_context_s_end_inside_a_run_ends_it_there(void **state)
{
    (void)state;
    how h = {.sampler = CW_SAMPLER_GREEDY};
    h.sampler.temperature = 5; /* hardly ever finds an end */
    outcome *plain = answer("Once upon a time", h);
    while (plain->stats.end != CW_TALK_CONTEXT && h.sampler.seed < 20) {
        drop(&plain);
        h.sampler.seed++;
        plain = answer("Once upon a time", h);
    }
    assert_int_equal(plain->stats.end, CW_TALK_CONTEXT);
    for (h.by = FALLBACK; h.by <= HEAD; h.by++) {
        h.draft = h.by == HEAD ? CW_MTP_MAX : 5;
        outcome *drafted = answer("Once upon a time", h);
        assert_same(plain, drafted, "endless", h.draft);
        drop(&drafted);
    }
    drop(&plain);
}

/* A second question rewinds the session far: what the head holds follows. */
static void the_head_follows_a_conversation(void **state)
{
    (void)state;
    static const char *const lines[] = {"<｜User｜>What is 12 + 30?<｜Assistant｜>",
                                        "<｜User｜>What is 12 + 31?<｜Assistant｜>",
                                        "<｜User｜>What is 12 + 31?<｜Assistant｜>\n",
                                        "<｜User｜>Tell me a story about a brave fox.<｜Assistant｜>"};
    char *path = NULL;
    cw_err err;
    cw_sampler_params p = CW_SAMPLER_GREEDY;
    cw_talk_draft d = {.max = CW_MTP_MAX};
    outcome *plain[CW_ARRAY_LEN(lines)];
    for (size_t i = 0; i < CW_ARRAY_LEN(lines); i++)
        plain[i] = answer(lines[i], (how){.sampler = p, .max_tokens = 60});
    assert_int_equal(cw_demo_path(CW_DEMO_HEAD, &path, &err), CW_OK);
    assert_int_equal(cw_mtp_drafter_new(demo.teacher, path, &p, &d.drafter, &err), CW_OK);
    outcome *o = cw_calloc(1, sizeof *o);
    cw_talk_options to = {
        .main = demo.teacher, .draft = &d, .sampler = p, .max_tokens = 60, .sink = {hear, notice, NULL, o}};
    cw_talk *t = NULL;
    cw_session_rewind(cw_speaker_session(demo.teacher), 0);
    assert_int_equal(cw_talk_new(&to, &t, &err), CW_OK);
    int drafted = 0, accepted = 0;
    for (size_t i = 0; i < CW_ARRAY_LEN(lines); i++) {
        memset(o, 0, sizeof *o);
        assert_int_equal(cw_talk_answer(t, &(cw_talk_prompt){.raw = lines[i]}, &o->stats, &err), CW_OK);
        keep_state(o);
        assert_same(plain[i], o, lines[i], CW_MTP_MAX);
        drafted += o->stats.n_drafted;
        accepted += o->stats.n_accepted;
        cw_free(o->kv);
        drop(&plain[i]);
    }
    assert_true(accepted > drafted * 8 / 10);
    cw_talk_free(&t);
    cw_drafter_free(&d.drafter);
    cw_free(o);
    cw_free(path);
}

static void other_vocabularies_do_not_draft(void **state)
{
    (void)state;
    cw_talk_draft d = {.max = 4};
    cw_talk_options to = {.main = demo.teacher, .draft = &d, .sampler = CW_SAMPLER_GREEDY};
    cw_talk *t = NULL;
    cw_err err;
    assert_int_equal(cw_talk_new(&to, &t, &err), CW_STATUS_INVALID);
    assert_non_null(strstr(err.text, "--fallback"));
    assert_null(t);
}

/* --- the shadow by itself --- */

static void wait_until_behind(cw_shadow *s, int most)
{
    cw_shadow_facts f;
    for (int64_t until = cw_now_us() + 20000000;;) {
        cw_shadow_get_facts(s, &f);
        if (f.n_behind <= most) return;
        if (cw_now_us() > until) fail_msg("the shadow stays %d tokens behind", f.n_behind);
    }
}

static void the_shadow_keeps_close_and_survives_changes(void **state)
{
    (void)state;
    cw_sampler_params p = CW_SAMPLER_GREEDY;
    cw_shadow *s = NULL;
    cw_err err;
    int32_t line[300], out[8];
    cw_session *held = cw_speaker_session(demo.student);
    for (int i = 0; i < 300; i++) line[i] = 10 + i * 37 % 1000;
    assert_int_equal(cw_shadow_new(demo.student, &p, &s, &err), CW_OK);
    cw_shadow_set(s, line, 100, 0, false);
    cw_shadow_network(s, true); /* a prompt is read while the network is away */
    wait_until_behind(s, 7);
    cw_shadow_network(s, false);
    for (int i = 100; i < 300; i++) {
        cw_shadow_push(s, line[i]);
        wait_until_behind(s, CW_SHADOW_LAG);
    }
    /* Another line from the middle on, then guesses: what the session holds is the new line's beginning. */
    line[150] = 7;
    cw_shadow_set(s, line, 160, 4, true);
    assert_in_range(cw_shadow_guess(s, 3, out), 0, 3);
    cw_shadow_take(s);
    int n;
    const int32_t *tokens = cw_session_tokens(held, &n);
    assert_in_range(n, 1, 170);
    assert_memory_equal(tokens, line, (size_t)(n < 160 ? n : 160) * sizeof *tokens);
    cw_session_rewind(held, 40); /* whoever takes it may do as he likes */
    cw_shadow_give(s);
    cw_shadow_push(s, line[160]);
    wait_until_behind(s, CW_SHADOW_LAG);
    cw_shadow_free(&s);
}

/* Greedy; runs of one guess and of two, so that the second one's share follows. */
static void count_acceptance(void **state)
{
    (void)state;
    static const struct {
        guesser by;
        const char *name;
        int n;
    } rows[] = {{HEAD, "head", 1}, {HEAD, "head", 2}, {FALLBACK, "fallback", 1}, {FALLBACK, "fallback", 2}};
    for (size_t r = 0; r < CW_ARRAY_LEN(rows); r++) {
        cw_talk_stats sum = {0};
        for (int i = 0; i < demo.n_prompts; i++) {
            outcome *o = answer(
                demo.prompts[i],
                (how){.by = rows[r].by, .draft = rows[r].n, .sampler = CW_SAMPLER_GREEDY, .max_tokens = 160});
            sum.n_tokens += o->stats.n_tokens;
            sum.n_passes += o->stats.n_passes;
            sum.n_drafted += o->stats.n_drafted;
            sum.n_accepted += o->stats.n_accepted;
            drop(&o);
        }
        print_message(
            "%d prompts, %s, runs of %d: %d tokens, %d of %d guesses right (%.4f), %.3f tokens a pass\n",
            demo.n_prompts, rows[r].name, rows[r].n, sum.n_tokens, sum.n_accepted, sum.n_drafted,
            (double)sum.n_accepted / sum.n_drafted, (double)sum.n_tokens / sum.n_passes);
    }
}

int main(int argc, char **argv)
{
    demo.all = argc > 1 && strcmp(argv[1], "--all") == 0;
    demo.count_only = argc > 1 && strcmp(argv[1], "--acceptance") == 0;
    const struct CMUnitTest counting[] = {cmocka_unit_test(count_acceptance)};
    if (demo.count_only) return cmocka_run_group_tests(counting, open_models, close_models);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_answers_are_the_same),
        cmocka_unit_test(seeded_answers_are_the_same),
        cmocka_unit_test(penalties_see_each_position_s_own_history),
        cmocka_unit_test(a_limit_inside_a_run_ends_it_there),
        cmocka_unit_test(the_context_s_end_inside_a_run_ends_it_there),
        cmocka_unit_test(the_head_follows_a_conversation),
        cmocka_unit_test(other_vocabularies_do_not_draft),
        cmocka_unit_test(the_shadow_keeps_close_and_survives_changes),
    };
    return cmocka_run_group_tests(tests, open_models, close_models);
}
