/*
 * The demo's own tokenizer and template (deploy/demo): the ids its recorded prompts were made with, its chat
 * format as the model card states it, and any text and any bytes there and back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <cjson/cJSON.h>
#include "cw/chat.h"
#include "cw/gguf.h"
#include "cw/mem.h"
#include "golden_support.h"

#define DEMO "deploy/demo/"
#define BAR  "\xef\xbd\x9c"
#define BOS  "<" BAR "begin\xe2\x96\x81of\xe2\x96\x81sentence" BAR ">"
#define EOS  "<" BAR "end\xe2\x96\x81of\xe2\x96\x81sentence" BAR ">"
#define USER "<" BAR "User" BAR ">"
#define ASST "<" BAR "Assistant" BAR ">"

static cw_tok *teacher;
static cw_chat *chat;

static void expect_array(const cJSON *want, const int32_t *ids, size_t n, const char *prompt)
{
    assert_int_equal(cJSON_GetArraySize(want), n);
    const cJSON *w;
    size_t i = 0;
    cJSON_ArrayForEach(w, want)
    {
        if (w->valueint != ids[i])
            fail_msg("\"%s\": token %zu is %d, expected %d", prompt, i, (int)ids[i], w->valueint);
        i++;
    }
}

/* A recorded prompt without its markers, as one question; false when it is not that simple. */
static bool question_of(const char *prompt, cw_chat_message *m)
{
    static const char head[] = BOS USER, tail[] = ASST;
    size_t n = strlen(prompt);
    if (n < sizeof head + sizeof tail || memcmp(prompt, head, sizeof head - 1) != 0) return false;
    if (strcmp(prompt + n - (sizeof tail - 1), tail) != 0 ||
        strstr(prompt + sizeof head - 1, ASST) != prompt + n - (sizeof tail - 1))
        return false;
    *m = (cw_chat_message){"user", prompt + sizeof head - 1, n - (sizeof head - 1) - (sizeof tail - 1)};
    return true;
}

static void recorded_prompts_have_the_recorded_ids(void **state)
{
    (void)state;
    size_t len, n, simple = 0;
    char *text = golden_read(DEMO "eval/golden.json", &len);
    cJSON *all = cJSON_ParseWithLength(text, len), *one;
    assert_true(cJSON_GetArraySize(all) >= 10);
    cJSON_ArrayForEach(one, all)
    {
        const char *prompt = cJSON_GetObjectItem(one, "prompt")->valuestring;
        const cJSON *want = cJSON_GetObjectItem(one, "tokens"), *model;
        int32_t *ids;
        assert_int_equal(cw_tok_encode(teacher, prompt, strlen(prompt),
                                       CW_TOK_ADD_SPECIAL | CW_TOK_PARSE_SPECIAL, &ids, &n, NULL),
                         CW_OK);
        expect_array(want, ids, n, prompt);
        cw_free(ids);
        cw_chat_message m;
        if (question_of(prompt, &m)) { /* the template comes to the same */
            assert_int_equal(cw_chat_encode(chat, teacher, &m, 1, true, &ids, &n, NULL), CW_OK);
            expect_array(want, ids, n, prompt);
            cw_free(ids);
            simple++;
        }
        if (!(model = cJSON_GetObjectItem(one, "teacher"))) continue;
        const cJSON *greedy = cJSON_GetObjectItem(model, "greedy_tokens"), *id;
        int32_t made[512];
        size_t n_made = 0;
        cJSON_ArrayForEach(id, greedy) if (n_made < 512) made[n_made++] = id->valueint;
        char *back;
        assert_int_equal(cw_tok_decode(teacher, made, n_made, 0, &back, &n, NULL), CW_OK);
        assert_string_equal(back, cJSON_GetObjectItem(model, "greedy_text")->valuestring);
        cw_free(back);
    }
    assert_true(simple >= 5);
    cJSON_Delete(all);
    free(text);
}

static void conversations_are_written_as_the_model_card_says(void **state)
{
    (void)state;
    assert_int_equal(cw_chat_get_kind(chat), CW_CHAT_DEEPSEEK_3);
    assert_false(cw_chat_prompt_opens_think(chat));
#define SAID(role, text)                                                                                     \
    {                                                                                                        \
        role, text, sizeof text - 1                                                                          \
    }
    static const cw_chat_message m[] = {
        SAID("system", "You are brief."),
        SAID("user", "What is 1 + 1?"),
        SAID("assistant", "<think>\n1+1=2\n</think>\n\n2"),
        SAID("user", "And 2 + 2?"),
    };
    static const char want[] = BOS "You are brief." USER "What is 1 + 1?" ASST "2" EOS USER "And 2 + 2?" ASST;
    cw_chat_prompt p;
    assert_int_equal(cw_chat_render(chat, teacher, m, 4, true, &p, NULL), CW_OK);
    char got[512] = "";
    for (size_t i = 0; i < p.n_segs; i++) strncat(got, p.segs[i].text, p.segs[i].len);
    assert_string_equal(got, want);
    cw_chat_prompt_clear(&p);
}

static void all_demo_models_share_one_vocabulary(void **state)
{
    (void)state;
    static const char *const others[] = {DEMO "causeway-demo-student.gguf",
                                         DEMO "causeway-demo-student-mini.gguf"};
    for (int i = 0; i < 2; i++) {
        cw_tok *t = golden_load(others[i]);
        assert_true(cw_tok_same_vocab(teacher, t));
        assert_int_equal(cw_tok_vocab_hash(teacher), cw_tok_vocab_hash(t));
        cw_tok_free(&t);
    }
    assert_int_equal(cw_tok_n_vocab(teacher), 2048);
    assert_true(cw_tok_is_eog(teacher, 1));
    /* A fixed number: the hash is the same on every machine and in every run. */
    assert_int_equal(cw_tok_vocab_hash(teacher), GOLDEN_DEMO_VOCAB_HASH);
}

static void any_text_comes_back(void **state)
{
    (void)state;
    golden_random_texts(teacher, 0, 2000);
}

static void any_bytes_come_back(void **state)
{
    (void)state;
    unsigned seed = golden_seed();
    for (int k = 0; k < 2000; k++) {
        char bytes[200], *back;
        size_t n = (size_t)rand_r(&seed) % sizeof bytes, n_ids, n_back;
        for (size_t i = 0; i < n; i++)
            bytes[i] = (char)(rand_r(&seed) % 3 ? rand_r(&seed) : "\xe4\xb8\x96 <think>"[rand_r(&seed) % 11]);
        int32_t *ids;
        assert_int_equal(cw_tok_encode(teacher, bytes, n, 0, &ids, &n_ids, NULL), CW_OK);
        assert_int_equal(cw_tok_decode(teacher, ids, n_ids, 0, &back, &n_back, NULL), CW_OK);
        assert_int_equal(n_back, n);
        assert_memory_equal(back, bytes, n);
        cw_free(back);
        cw_free(ids);
    }
}

static int load(void **state)
{
    (void)state;
    cw_gguf *g;
    cw_err err;
    teacher = golden_load(DEMO "causeway-demo-teacher.gguf");
    if (cw_gguf_open(DEMO "causeway-demo-teacher.gguf", &g, &err) != CW_OK ||
        cw_chat_new_from_gguf(g, &chat, &err) != CW_OK) {
        print_error("%s\n", err.text);
        return -1;
    }
    cw_gguf_close(&g);
    return 0;
}

static int unload(void **state)
{
    (void)state;
    cw_chat_free(&chat);
    cw_tok_free(&teacher);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recorded_prompts_have_the_recorded_ids),
        cmocka_unit_test(conversations_are_written_as_the_model_card_says),
        cmocka_unit_test(all_demo_models_share_one_vocabulary),
        cmocka_unit_test(any_text_comes_back),
        cmocka_unit_test(any_bytes_come_back),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
