/*
 * The demo models that ship with the project: recorded greedy answers and top logits, and the accuracy on the
 * 320 held-out prompts. The recording is a float32 reference on dequantised weights; the engine quantises
 * activations, so where two tokens are nearly tied it may choose the other one.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <cjson/cJSON.h>
#include "cw/mem.h"
#include "cw/sampler.h"
#include "cw/tok.h"
#include "golden_model.h"

static const char teacher[] = "deploy/demo/causeway-demo-teacher.gguf";
static const char student[] = "deploy/demo/causeway-demo-student.gguf";

enum { MAX_ANSWER = 200, RECORDED = 160, STREAMS = 32, MAX_PROMPTS = 320 };
#define NEAR_TIE 0.2f

static int ints(const cJSON *a, int32_t *out, int room)
{
    int n = 0;
    const cJSON *v;
    cJSON_ArrayForEach(v, a)
    {
        assert_true(n < room);
        out[n++] = v->valueint;
    }
    return n;
}

/* At every position of the recorded answer, the recorded token is our best one or nearly ties with it; and so
 * is the end. */
static int check_answer(cw_engine *e, const int32_t *prompt, int n_prompt, const int32_t *answer,
                        int n_answer)
{
    int32_t all[512];
    int n_vocab = cw_engine_config(e)->n_vocab, n = n_prompt + n_answer, ties = 0;
    assert_true(n <= (int)CW_ARRAY_LEN(all));
    memcpy(all, prompt, (size_t)n_prompt * sizeof *all);
    memcpy(all + n_prompt, answer, (size_t)n_answer * sizeof *all);
    cw_session *s = golden_session(e, CW_KV_AUTO);
    float *logits = golden_run(s, all, n, 256);
    for (int i = 0; i <= n_answer; i++) {
        if (i == n_answer && n_answer == RECORDED) break; /* the recording stopped there */
        const float *row = logits + (size_t)(n_prompt - 1 + i) * (size_t)n_vocab;
        int32_t want = i < n_answer ? answer[i] : 1, best = cw_argmax(row, n_vocab);
        if (best == want) continue;
        ties++;
        if (row[best] - row[want] > NEAR_TIE) fail_msg("answer token %d is %d, recorded %d", i, best, want);
    }
    free(logits);
    cw_session_free(&s);
    return ties;
}

static void check_recording(const char *path, const char *key)
{
    char *text = golden_read("deploy/demo/eval/golden.json", NULL);
    cJSON *json = cJSON_Parse(text), *item;
    assert_non_null(json);
    cw_engine *e = golden_engine(path, &(golden_options){.n_threads = 2});
    int n_vocab = cw_engine_config(e)->n_vocab, answers = 0, ties = 0;
    float worst = 0;
    cJSON_ArrayForEach(item, json)
    {
        int32_t prompt[256], answer[RECORDED], top[5];
        const cJSON *want = cJSON_GetObjectItem(item, key);
        int n_prompt = ints(cJSON_GetObjectItem(item, "tokens"), prompt, 256);
        int n_answer = ints(cJSON_GetObjectItem(want, "greedy_tokens"), answer, RECORDED);
        assert_int_equal(ints(cJSON_GetObjectItem(want, "top5_ids"), top, 5), 5);
        cw_session *s = golden_session(e, CW_KV_AUTO);
        float *logits = golden_run(s, prompt, n_prompt, 256);
        for (int i = 0; i < 5; i++) {
            double v = cJSON_GetArrayItem(cJSON_GetObjectItem(want, "top5_logits"), i)->valuedouble;
            worst = fmaxf(
                worst, fabsf(logits[(size_t)(n_prompt - 1) * (size_t)n_vocab + (size_t)top[i]] - (float)v));
        }
        free(logits);
        cw_session_free(&s);
        ties += check_answer(e, prompt, n_prompt, answer, n_answer);
        answers++;
    }
    print_message("%s: %d answers, %d tokens at near-ties, top-5 logits within %g\n", key, answers, ties,
                  (double)worst);
    assert_int_equal(answers, 10);
    assert_true(worst < 0.5f);
    cw_engine_close(&e);
    cJSON_Delete(json);
    free(text);
}

static void the_expert_model_answers_as_recorded(void **state)
{
    (void)state;
    check_recording(teacher, "teacher");
}

static void the_fallback_answers_as_recorded(void **state)
{
    (void)state;
    check_recording(student, "student");
}

/* --- accuracy --- */

typedef struct {
    int32_t *prompt;
    int n_prompt;
    char *reference;
    int32_t answer[MAX_ANSWER];
    int n_answer;
} question;

/* What follows the reasoning, without white space around it. */
static void final_answer(const char *text, const char **from, size_t *len)
{
    for (const char *p; (p = strstr(text, "</think>"));) text = p + strlen("</think>");
    text += strspn(text, " \n\t");
    size_t n = strlen(text);
    while (n > 0 && strchr(" \n\t", text[n - 1])) n--;
    *from = text;
    *len = n;
}

static int load_questions(const cw_tok *t, question *q)
{
    char *text = golden_read("deploy/demo/eval/prompts.jsonl", NULL), *save;
    int n = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        cJSON *json = cJSON_Parse(line);
        assert_non_null(json);
        assert_true(n < MAX_PROMPTS);
        const char *prompt = cJSON_GetObjectItem(json, "prompt")->valuestring;
        size_t n_ids;
        assert_int_equal(
            cw_tok_encode(t, prompt, strlen(prompt), CW_TOK_PARSE_SPECIAL, &q[n].prompt, &n_ids, NULL),
            CW_OK);
        q[n].n_prompt = (int)n_ids;
        q[n].reference = strdup(cJSON_GetObjectItem(json, "reference")->valuestring);
        n++;
        cJSON_Delete(json);
    }
    free(text);
    return n;
}

/* Greedy answers to all questions, STREAMS at a time in one
 * batch; a stream takes the next question when it is done. */
static void answer_all(cw_engine *e, question *q, int n)
{
    int n_vocab = cw_engine_config(e)->n_vocab, next = 0, asked[STREAMS], live = 0;
    cw_session *s[STREAMS];
    float *logits = calloc((size_t)STREAMS * (size_t)n_vocab, sizeof *logits);
    for (int i = 0; i < STREAMS; i++) {
        s[i] = golden_session(e, CW_KV_AUTO);
        asked[i] = -1;
    }
    do {
        cw_batch_item items[STREAMS];
        int rows = 0, slot[STREAMS];
        for (int i = live = 0; i < STREAMS; i++) {
            bool fresh = asked[i] < 0 && next < n;
            if (fresh && rows + q[next].n_prompt <= cw_engine_max_rows(e) - STREAMS) {
                asked[i] = next++;
                cw_session_rewind(s[i], 0);
            } else if (asked[i] < 0) {
                continue;
            } else {
                fresh = false;
            }
            question *x = &q[asked[i]];
            slot[live] = i;
            items[live++] = (cw_batch_item){.session = s[i],
                                            .tokens = fresh ? x->prompt : &x->answer[x->n_answer - 1],
                                            .n_tokens = fresh ? x->n_prompt : 1,
                                            .n_logits = 1,
                                            .logits = logits + (size_t)i * (size_t)n_vocab};
            rows += items[live - 1].n_tokens;
        }
        assert_int_equal(cw_engine_forward(e, items, live, NULL, NULL), CW_OK);
        for (int k = 0; k < live; k++) {
            question *x = &q[asked[slot[k]]];
            int32_t id = cw_argmax(logits + (size_t)slot[k] * (size_t)n_vocab, n_vocab);
            bool end = id == 1 || x->n_answer == MAX_ANSWER;
            if (!end) x->answer[x->n_answer++] = id;
            if (end) asked[slot[k]] = -1;
        }
    } while (live > 0);
    for (int i = 0; i < STREAMS; i++) cw_session_free(&s[i]);
    free(logits);
}

static void check_accuracy(const char *path, double recorded)
{
    cw_gguf *g = NULL;
    cw_tok *t = NULL;
    assert_int_equal(cw_gguf_open(path, &g, NULL), CW_OK);
    assert_int_equal(cw_tok_new(g, &t, NULL), CW_OK);
    cw_gguf_close(&g);
    cw_engine *e = golden_engine(path, &(golden_options){.n_threads = 2});
    question *q = calloc(MAX_PROMPTS, sizeof *q);
    int n = load_questions(t, q), right = 0;
    assert_int_equal(n, MAX_PROMPTS);
    answer_all(e, q, n);
    for (int i = 0; i < n; i++) {
        char *text;
        size_t len, n_got, n_want;
        const char *got, *want;
        assert_int_equal(cw_tok_decode(t, q[i].answer, (size_t)q[i].n_answer, 0, &text, &len, NULL), CW_OK);
        final_answer(text, &got, &n_got);
        final_answer(q[i].reference, &want, &n_want);
        right += n_got == n_want && memcmp(got, want, n_got) == 0;
        cw_free(text);
        cw_free(q[i].prompt);
        free(q[i].reference);
    }
    free(q);
    double percent = 100.0 * right / n;
    print_message("%s: %.1f %% of %d prompts, recorded %.1f %%\n", path, percent, n, recorded);
    assert_true(fabs(percent - recorded) <= 1.0);
    cw_engine_close(&e);
    cw_tok_free(&t);
}

static void the_expert_model_scores_as_recorded(void **state)
{
    (void)state;
    check_accuracy(teacher, 95.9);
}

static void the_fallback_scores_as_recorded(void **state)
{
    (void)state;
    check_accuracy(student, 88.8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_expert_model_answers_as_recorded),
        cmocka_unit_test(the_fallback_answers_as_recorded),
        cmocka_unit_test(the_expert_model_scores_as_recorded),
        cmocka_unit_test(the_fallback_scores_as_recorded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
