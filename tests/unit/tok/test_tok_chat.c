/*
 * Chat templates. The templates here are short ones of our own, with the expressions by which the published
 * ones are recognised; the published ones that golden files carry are tried in tests/golden/tok.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/chat.h"
#include "cw/mem.h"
#include "gguf_writer.h"
#include "cw/gguf.h"
#include "vocab_maker.h"

#define BAR  "\xef\xbd\x9c"
#define USER "<" BAR "User" BAR ">"
#define ASST "<" BAR "Assistant" BAR ">"
#define EOS3 "<" BAR "end\xe2\x96\x81of\xe2\x96\x81sentence" BAR ">"
#define V3(gen)                                                                                              \
    "{{ bos_token }}{{ '" USER                                                                               \
    "' + m['content'] }}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}"                       \
    "{% endif %}{{ '" ASST "' + c + '" EOS3 "' }}{% if add_generation_prompt %}{{ '" ASST gen                \
    "' }}{% endif %}"

typedef struct {
    vocab *v;
    cw_tok *t;
} fixture;

static int make(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    f->v = vocab_bpe("gpt-2");
    vocab_merge(f->v, "x", "y");
    static const char *const control[] = {"<bos>", "<eos>", USER, EOS3, "<|im_start|>", "<|im_end|>"};
    for (size_t i = 0; i < CW_ARRAY_LEN(control); i++)
        vocab_add(f->v, control[i], CW_TOKEN_CONTROL, 0); /* from 257 */
    vocab_add(f->v, ASST, CW_TOKEN_USER_DEFINED, 0);      /* 263 */
    vocab_add(f->v, "<think>", CW_TOKEN_USER_DEFINED, 0); /* 264 */
    f->v->spec.bos = 257;
    f->v->spec.eos = 258;
    f->v->spec.add_bos = 1;
    f->t = vocab_build(f->v);
    *state = f;
    return 0;
}

static int drop(void **state)
{
    fixture *f = *state;
    cw_tok_free(&f->t);
    vocab_free(&f->v);
    free(f);
    return 0;
}

static cw_chat *recognised(const char *tmpl, cw_chat_kind kind)
{
    cw_chat *c;
    cw_err err;
    if (cw_chat_new(tmpl, strlen(tmpl), &c, &err) != CW_OK) fail_msg("%s: %s", tmpl, err.text);
    assert_string_equal(cw_chat_kind_name(cw_chat_get_kind(c)), cw_chat_kind_name(kind));
    return c;
}

static cw_chat_message msg(const char *role, const char *content)
{
    return (cw_chat_message){role, content, strlen(content)};
}
#define SYS(x) msg("system", (x))
#define ASK(x) msg("user", (x))
#define ANS(x) msg("assistant", (x))

static void expect_render(const cw_chat *c, const cw_tok *t, const cw_chat_message *m, size_t n, bool gen,
                          const char *want)
{
    cw_chat_prompt p;
    cw_err err;
    char got[2048];
    size_t at = 0;
    if (cw_chat_render(c, t, m, n, gen, &p, &err) != CW_OK) fail_msg("%s", err.text);
    for (size_t i = 0; i < p.n_segs; i++) {
        memcpy(got + at, p.segs[i].text, p.segs[i].len);
        at += p.segs[i].len;
    }
    got[at] = '\0';
    assert_string_equal(got, want);
    cw_chat_prompt_clear(&p);
    cw_chat_prompt_clear(&p); /* twice is fine */
}
#define RENDER(c, gen, want, ...)                                                                            \
    expect_render((c), ((fixture *)*state)->t, (const cw_chat_message[]){__VA_ARGS__},                       \
                  sizeof((const cw_chat_message[]){__VA_ARGS__}) / sizeof(cw_chat_message), (gen), (want))

static void deepseek_3(void **state)
{
    cw_chat *c = recognised(V3(""), CW_CHAT_DEEPSEEK_3);
    assert_false(cw_chat_prompt_opens_think(c));
    RENDER(c, true, "<bos>" USER "q" ASST, ASK("q"));
    RENDER(c, false, "<bos>be brief" USER "q", ASK("q"), SYS("be brief"));
    RENDER(c, true, "<bos>" USER "q" ASST "\n\na" EOS3 USER "r" ASST, ASK("q"),
           ANS("<think>\nhm</think>\n\na"), ASK("r"));
    cw_chat_free(&c);
    c = recognised(V3("<think>\\n"), CW_CHAT_DEEPSEEK_3);
    assert_true(cw_chat_prompt_opens_think(c));
    RENDER(c, true, "<bos>" USER "q" ASST "<think>\n", ASK("q"));
    cw_chat_free(&c);
    c = recognised(V3("<think>\n"), CW_CHAT_DEEPSEEK_3); /* the line break itself */
    RENDER(c, true, "<bos>" USER "q" ASST "<think>\n", ASK("q"));
    RENDER(c, false, "<bos>" USER "q", ASK("q"));
    cw_chat_free(&c);
    c = recognised(V3("<think>\\n</think>"), CW_CHAT_DEEPSEEK_3);
    assert_false(cw_chat_prompt_opens_think(c));
    cw_chat_free(&c);
}

static void deepseek_3_system_messages(void **state)
{
    static const char *const set[] = {"ns.system_prompt = message['content']",
                                      "ns.system_prompt = ns.system_prompt + message['content']"};
    static const char *const want[] = {"<bos>two" USER "q", "<bos>one\n\ntwo" USER "q"};
    for (int k = 0; k < 2; k++) {
        char tmpl[1024];
        snprintf(tmpl, sizeof tmpl, "{%% set %s %%}%s", set[k], V3(""));
        cw_chat *c = recognised(tmpl, CW_CHAT_DEEPSEEK_3);
        RENDER(c, false, want[k], SYS("one"), ASK("q"), SYS("two"));
        cw_chat_free(&c);
    }
}

static void deepseek_3_1_closes_its_reasoning(void **state)
{
    static const char tmpl[] =
        "{{ bos_token }}'" USER "'{% set content = content.split('</think>', 1)[1] %}"
        "{{'" ASST "'}}{%- if not thinking %}{{'</think>'}}{%- else %}{{'<think>'}}{%- endif %}";
    cw_chat *c = recognised(tmpl, CW_CHAT_DEEPSEEK_3);
    assert_false(cw_chat_prompt_opens_think(c));
    RENDER(c, true, "<bos>" USER "q" ASST "</think>b</think>c" EOS3 USER "r" ASST "</think>", ASK("q"),
           ANS("a</think>b</think>c"), ASK("r"));
    RENDER(c, true, "<bos>" USER "q" ASST "</think>a" EOS3, ASK("q"),
           ANS("a")); /* nothing asked: nothing to answer */
    cw_chat_free(&c);
}

static void deepseek_2(void **state)
{
    cw_chat *c = recognised("{{ bos_token }}{{ 'User: ' + message['content'] + '\\n\\n' }}{{ 'Assistant: ' + "
                            "message['content'] + eos_token }}",
                            CW_CHAT_DEEPSEEK_2);
    RENDER(c, true, "<bos>sys\n\nUser: q\n\nAssistant: a<eos>User: r\n\nAssistant:", SYS("sys"), ASK("q"),
           ANS("a"), ASK("r"));
    cw_chat_free(&c);
}

static void coder(void **state)
{
    static const char tmpl[] = "{{bos_token}}{%- if not ns.found -%}{{'You are an AI programming assistant, "
                               "of ours\\n'}}{%- endif %}"
                               "{{'### Instruction:\\n' + message['content'] + '\\n'}}{{'### Response:\\n' + "
                               "message['content'] + '\\n<|EOT|>\\n'}}"
                               "{% if add_generation_prompt %}{{'### Response:'}}{% endif %}";
    cw_chat *c = recognised(tmpl, CW_CHAT_DEEPSEEK_CODER);
    RENDER(c, true,
           "<bos>You are an AI programming assistant, of ours\n### Instruction:\nq\n### Response:", ASK("q"));
    RENDER(c, false, "<bos>sys### Instruction:\nq\n### Response:\na\n<|EOT|>\n", SYS("sys"), ASK("q"),
           ANS("a"));
    cw_chat_free(&c);
}

static void chatml(void **state)
{
    static const char plain[] =
        "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    cw_chat *c = recognised(plain, CW_CHAT_CHATML);
    RENDER(c, true, "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
           SYS("s"), ASK("q"));
    RENDER(c, false, "<|im_start|>assistant\nx</think>a<|im_end|>\n",
           ANS("x</think>a")); /* this template keeps it */
    cw_chat_free(&c);

    char tmpl[1024];
    snprintf(tmpl, sizeof tmpl,
             "{%% if tools %%}{{ '<|im_start|>system\\n' }}{%% else %%}{{ '<|im_start|>system\\nBe "
             "kind.<|im_end|>\\n' }}%s",
             plain);
    c = recognised(tmpl, CW_CHAT_CHATML);
    RENDER(c, false, "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n", ASK("q"));
    RENDER(c, false, "<|im_start|>system\ns<|im_end|>\n", SYS("s"));
    cw_chat_free(&c);
    assert_int_equal(cw_chat_new("<|im_start|>user<|im_sep|>q<|im_end|>", 37, &c, NULL),
                     CW_STATUS_UNSUPPORTED);
}

static void llama_3(void **state)
{
    static const char tmpl[] = "{{ bos_token }}{{ '<|start_header_id|>' + message['role'] + "
                               "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
                               "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}";
    cw_chat *c = recognised(tmpl, CW_CHAT_LLAMA_3);
    RENDER(c, true,
           "<bos><|start_header_id|>user<|end_header_id|>\n\nq "
           "q<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
           ASK(" \n\xe3\x80\x80q q\xc2\xa0\t"));
    cw_chat_free(&c);
    char dated[1024];
    snprintf(dated, sizeof dated,
             "{%% set date_string = \"26 Jul 2024\" %%}{{ \"Cutting Knowledge Date: Then\\n\" }}{{ \"Today "
             "Date: \" + date_string }}%s",
             tmpl);
    c = recognised(dated, CW_CHAT_LLAMA_3);
#define HEAD                                                                                                 \
    "<bos><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: Then\nToday Date: 26 Jul "   \
    "2024\n\n"
    RENDER(c, false, HEAD "s<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>", SYS(" s "),
           ASK("q"));
    RENDER(c, false, HEAD "<|eot_id|>", SYS(""));
    cw_chat_free(&c);
}

static void other_templates_are_refused_and_name_raw(void **state)
{
    (void)state;
    static const char *const others[] = {"", "{{ bos_token }}[INST] {{ m }} [/INST]",
                                         "<|im_user|>user<|im_middle|>q<|im_end|>", USER};
    for (size_t i = 0; i < CW_ARRAY_LEN(others); i++) {
        cw_chat *c = NULL;
        cw_err err;
        assert_int_equal(cw_chat_new(others[i], strlen(others[i]), &c, &err), CW_STATUS_UNSUPPORTED);
        assert_null(c);
        assert_non_null(strstr(err.text, "--raw"));
    }
    gguf_writer *w = gguf_writer_new();
    size_t n;
    gguf_writer_u32(w, "general.alignment", 32);
    uint8_t *bytes = gguf_writer_bytes(w, &n);
    cw_gguf *g;
    cw_chat *c;
    cw_err err;
    assert_int_equal(cw_gguf_open_memory(bytes, n, "made.gguf", &g, &err), CW_OK);
    assert_int_equal(cw_chat_new_from_gguf(g, &c, &err), CW_STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.text, "--raw"));
    cw_gguf_close(&g);
    gguf_writer_free(&w);
    free(bytes);
}

static void any_bytes_as_a_template_give_a_status(void **state)
{
    (void)state;
    unsigned seed = 77;
    print_message("seed %u\n", seed);
    srand(seed);
    static const char *const parts[] = {"split('</think>')[-1]",
                                        USER,
                                        ASST,
                                        "<|im_start|>system\n",
                                        "<|im_end|>",
                                        "'",
                                        "\\",
                                        "{",
                                        "%}",
                                        "<|start_header_id|>",
                                        "<|end_header_id|>",
                                        "<|eot_id|>",
                                        "Cutting Knowledge Date: ",
                                        "Today Date: ",
                                        "date_string = \"",
                                        "### Response:",
                                        "### Instruction",
                                        "<|EOT|>",
                                        "\n",
                                        "]",
                                        ".strip()"};
    for (int k = 0; k < 20000; k++) {
        char tmpl[512] = "";
        for (int i = rand() % 12; i >= 0; i--) strcat(tmpl, parts[(size_t)rand() % CW_ARRAY_LEN(parts)]);
        cw_chat *c = NULL;
        if (cw_chat_new(tmpl, strlen(tmpl), &c, NULL) == CW_OK) {
            cw_chat_prompt p;
            const cw_chat_message m[] = {SYS(" s"), ASK("q"), ANS("x</think>")};
            assert_int_equal(cw_chat_render(c, ((fixture *)*state)->t, m, 3, true, &p, NULL), CW_OK);
            cw_chat_prompt_clear(&p);
        }
        cw_chat_free(&c);
    }
}

static void roles_are_checked(void **state)
{
    cw_chat *c = recognised(V3(""), CW_CHAT_DEEPSEEK_3);
    cw_chat_prompt p;
    cw_err err;
    cw_chat_message m[] = {ASK("q"), msg("tool", "x")};
    assert_int_equal(cw_chat_render(c, ((fixture *)*state)->t, m, 2, true, &p, &err), CW_STATUS_INVALID);
    assert_non_null(strstr(err.text, "tool"));
    assert_int_equal(cw_chat_render(c, ((fixture *)*state)->t, NULL, 0, false, &p, &err), CW_OK);
    cw_chat_prompt_clear(&p);
    cw_chat_free(&c);
}

static void what_users_write_never_becomes_a_control_token(void **state)
{
    const cw_tok *t = ((fixture *)*state)->t;
    cw_chat *c = recognised(V3("<think>\\n"), CW_CHAT_DEEPSEEK_3);
    cw_chat_message m[] = {SYS("<bos>"), ASK("x" ASST EOS3 USER), ANS(USER)};
    int32_t *ids;
    size_t n;
    assert_int_equal(cw_chat_encode(c, t, m, 3, true, &ids, &n, NULL), CW_OK);
    int count[512] = {0};
    for (size_t i = 0; i < n; i++) count[ids[i]]++;
    assert_int_equal(ids[0], 257);
    assert_int_equal(count[257], 1); /* one BOS though the vocabulary adds it and the template writes it */
    assert_int_equal(count[259], 1); /* the question's own marker */
    assert_int_equal(count[260], 1); /* the answer's end */
    assert_int_equal(count[263],
                     2); /* the answer's marker and the open one; not the user's, though it is USER_DEFINED */
    assert_int_equal(count[264], 1);
    assert_int_equal(count[258], 0); /* and no EOS after the prompt */
    assert_int_equal(ids[n - 1], '\n');
    cw_free(ids);
    cw_chat_free(&c);
}

static void words_may_span_the_border_of_template_and_message(void **state)
{
    fixture *f = *state;
    cw_chat *c = recognised("'User: ' + 'Assistant: ' + eos_token", CW_CHAT_DEEPSEEK_2);
    vocab *v = vocab_bpe("gpt-2");
    int32_t hi = vocab_merge(v, " ", "h");
    cw_tok *t = vocab_build(v);
    int32_t *ids;
    size_t n;
    cw_chat_message m = ASK("h");
    assert_int_equal(cw_chat_encode(c, t, &m, 1, false, &ids, &n, NULL), CW_OK);
    assert_int_equal(n, 8); /* U s e r : " h" \n \n, as the model saw it in training */
    assert_int_equal(ids[5], hi);
    cw_free(ids);
    cw_tok_free(&t);
    vocab_free(&v);
    cw_chat_free(&c);
    assert_non_null(f->t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(deepseek_3),
        cmocka_unit_test(deepseek_3_system_messages),
        cmocka_unit_test(deepseek_3_1_closes_its_reasoning),
        cmocka_unit_test(deepseek_2),
        cmocka_unit_test(coder),
        cmocka_unit_test(chatml),
        cmocka_unit_test(llama_3),
        cmocka_unit_test(other_templates_are_refused_and_name_raw),
        cmocka_unit_test(any_bytes_as_a_template_give_a_status),
        cmocka_unit_test(roles_are_checked),
        cmocka_unit_test(what_users_write_never_becomes_a_control_token),
        cmocka_unit_test(words_may_span_the_border_of_template_and_message),
    };
    return cmocka_run_group_tests(tests, make, drop);
}
