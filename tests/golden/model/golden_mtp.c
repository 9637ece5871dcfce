/*
 * The demo model's prediction head against what a float64 reference foresees with the dequantised weights
 * (tests/golden/make_mtp.py): at every recorded position the head's first and second guess. The engine
 * quantises activations, so where two experts are nearly tied a row may take the other one and differ: seldom
 * with the model's own hidden states, now and then with the head's.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <cjson/cJSON.h>
#include "cw/mtp.h"
#include "cw/sampler.h"
#include "golden_model.h"

static const char teacher[] = "deploy/demo/causeway-demo-teacher.gguf";
static const char head[] = "deploy/demo/causeway-demo-teacher-mtp.gguf";

enum { MAX_TOKENS = 256, KEEP = 5 };
#define CLOSE 0.5f

typedef struct {
    int n_vocab;
    const cJSON *want[CW_MTP_MAX]; /* of the first and the second guess */
    int n, far[CW_MTP_MAX];
    float sum[CW_MTP_MAX]; /* of the largest difference at each position */
} comparing;

/* Goes on with the recorded token, so that the second guess is about the same line. */
static int32_t compare(void *ctx, const float *logits, int64_t position, const int32_t *before, int n)
{
    (void)before;
    comparing *c = ctx;
    int guess = c->n++;
    const cJSON *ids = cJSON_GetObjectItem(c->want[guess], "ids"),
                *values = cJSON_GetObjectItem(c->want[guess], "logits");
    assert_int_equal(position, n);
    assert_int_equal(cJSON_GetArraySize(ids), KEEP);
    float worst = 0;
    for (int i = 0; i < KEEP; i++) {
        int id = cJSON_GetArrayItem(ids, i)->valueint;
        assert_in_range(id, 0, c->n_vocab - 1);
        worst = fmaxf(worst, fabsf(logits[id] - (float)cJSON_GetArrayItem(values, i)->valuedouble));
    }
    c->sum[guess] += worst;
    if (worst > CLOSE) {
        c->far[guess]++;
    } else { /* then the best token can only be another one where two are nearly tied */
        int32_t best = cw_argmax(logits, c->n_vocab), recorded = cJSON_GetArrayItem(ids, 0)->valueint;
        assert_true(logits[best] - logits[recorded] <= 2 * CLOSE);
    }
    return cJSON_GetArrayItem(ids, 0)->valueint;
}

static void the_head_foresees_what_is_recorded(void **state)
{
    (void)state;
    char *text = golden_read("tests/golden/data/demo-mtp.json", NULL);
    cJSON *json = cJSON_Parse(text), *item, *row;
    assert_non_null(json);
    cw_err err;
    cw_gguf *g = NULL, *companion = NULL;
    cw_engine *e = NULL;
    cw_mtp *m = NULL;
    if (cw_gguf_open(teacher, &g, &err) != CW_OK || cw_gguf_open(head, &companion, &err) != CW_OK ||
        cw_engine_open(g, &(cw_engine_options){.n_threads = 2}, &e, &err) != CW_OK ||
        cw_mtp_open(e, g, companion, &m, &err) != CW_OK)
        fail_msg("%s", err.text);
    comparing c = {.n_vocab = cw_engine_config(e)->n_vocab};
    int rows = 0;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(json, "cases"))
    {
        int32_t tokens[MAX_TOKENS], out[CW_MTP_MAX];
        int n = 0;
        const cJSON *v;
        cJSON_ArrayForEach(v, cJSON_GetObjectItem(item, "tokens"))
        {
            assert_true(n < MAX_TOKENS);
            tokens[n++] = v->valueint;
        }
        cw_session *s = golden_session(e, CW_KV_AUTO);
        cw_mtp_line *l = NULL;
        assert_int_equal(cw_mtp_line_new(m, s, &l, &err), CW_OK);
        cJSON_ArrayForEach(row, cJSON_GetObjectItem(item, "rows"))
        {
            int at = cJSON_GetObjectItem(row, "at")->valueint, held;
            assert_in_range(at, 0, n - 2);
            (void)cw_session_tokens(s, &held);
            assert_int_equal(cw_session_eval(s, tokens + held, at + 1 - held, NULL, NULL, &err), CW_OK);
            c.want[0] = cJSON_GetObjectItem(row, "first");
            c.want[1] = cJSON_GetObjectItem(row, "second");
            c.n = 0;
            assert_int_equal(cw_mtp_guess(l, tokens[at + 1], CW_MTP_MAX, compare, &c, out), CW_MTP_MAX);
            rows++;
        }
        cw_mtp_line_free(&l);
        cw_session_free(&s);
    }
    print_message("%d positions: top-%d logits of the first guess within %.3f on average, %d far off; of the "
                  "second %.3f, %d\n",
                  rows, KEEP, (double)c.sum[0] / rows, c.far[0], (double)c.sum[1] / rows, c.far[1]);
    assert_true(rows > 100);
    assert_true(c.sum[0] < 0.15f * (float)rows && c.far[0] * 50 < rows);
    assert_true(c.sum[1] < 0.3f * (float)rows && c.far[1] * 20 < rows);
    cw_mtp_close(&m);
    cw_engine_close(&e);
    cw_gguf_close(&companion);
    cw_gguf_close(&g);
    cJSON_Delete(json);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_head_foresees_what_is_recorded)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
