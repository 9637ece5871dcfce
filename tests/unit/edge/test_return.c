/*
 * Offline and back: when the main model takes an answer back from the fallback, its session (tokens, KV rows,
 * logits) equals, byte for byte, one that was never offline and was given the same text; and so does the
 * fallback's. The experts are local ones behind a gate that closes after a number of calls and opens again
 * after a number of the fallback's tokens. Models are the shipped demo pair; a fallback with another
 * vocabulary is the student with tokens exchanged.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/demo_path.h"
#include "cw/fs.h"
#include "cw/mem.h"
#include "cw/shadow.h"
#include "cw/talk.h"

enum { CTX = 512, MAX_CUTS = 4 };

/* Sanitizers are some 20 times slower: every third story will do. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { STRIDE = 3 };
#else
enum { STRIDE = 1 };
#endif

/* After so many calls out of reach, until the fallback has been asked so many times. */
typedef struct {
    int calls, away;
} cut;

typedef struct {
    cw_experts base;
    cw_experts *inner;
    cut cuts[MAX_CUTS + 1]; /* calls 0 with away 0: none any more */
    int at, n_calls, n_asked;
    bool closed;
} gate;

static struct {
    cw_speaker *teacher, *student, *mini, *stranger;
    cw_expert_set *set;
    gate gate;
} demo;

static cw_status gate_submit(cw_experts *self, const cw_expert_call *call, uint64_t *ticket, cw_err *err)
{
    gate *g = (gate *)self;
    const cut *c = &g->cuts[g->at];
    if (g->closed) return CW_FAIL(err, CW_STATUS_UNREACHABLE, "the gate is closed");
    if (c->away && g->n_calls == c->calls) {
        g->closed = true;
        g->n_asked = 0;
        return CW_FAIL(err, CW_STATUS_UNREACHABLE, "the gate closes");
    }
    g->n_calls++;
    return cw_experts_submit(g->inner, call, ticket, err);
}

static cw_status gate_collect(cw_experts *self, uint64_t ticket, cw_expert_reply *out, cw_err *err)
{
    return cw_experts_collect(((gate *)self)->inner, ticket, out, err);
}

static void gate_destroy(cw_experts *self)
{
    (void)self;
}

static const cw_experts_vtable gate_vtable = {gate_submit, gate_collect, gate_destroy};

static bool gate_opens(void *ctx)
{
    gate *g = ctx;
    if (g->closed && g->n_asked++ >= g->cuts[g->at].away) {
        g->closed = false;
        g->at++;
        g->n_calls = 0;
    }
    return !g->closed;
}

static bool always_back(void *ctx)
{
    (void)ctx;
    return true;
}

static void set_gate(const cut cuts[MAX_CUTS])
{
    memset(demo.gate.cuts, 0, sizeof demo.gate.cuts);
    if (cuts) memcpy(demo.gate.cuts, cuts, MAX_CUTS * sizeof *cuts);
    demo.gate.at = demo.gate.n_calls = demo.gate.n_asked = 0;
    demo.gate.closed = false;
}

static cw_speaker *open_file(const char *path, cw_engine_role role)
{
    cw_err err;
    cw_speaker *s = NULL;
    cw_speaker_options o = {
        .path = path, .engine = {.role = role, .n_threads = 1}, .session = {.n_ctx = CTX}};
    if (cw_speaker_open(&o, &s, &err) != CW_OK) fail_msg("%s", err.text);
    return s;
}

static char *path_of(const char *file)
{
    cw_err err;
    char *path = NULL;
    if (cw_demo_path(file, &path, &err) != CW_OK) fail_msg("%s", err.text);
    return path;
}

/* The first string equal to `text` (a length and the bytes) behind byte `from`. */
static uint8_t *find_string(uint8_t *data, size_t n, size_t from, const char *text)
{
    size_t len = strlen(text);
    for (size_t i = from; i + 8 + len <= n; i++) {
        uint64_t l;
        memcpy(&l, data + i, 8);
        if (l == len && memcmp(data + i + 8, text, len) == 0) return data + i + 8;
    }
    fail_msg("the model file has no token '%s'", text);
    return NULL;
}

/* The student with the names of some of its tokens exchanged: it writes other words, and speaks another
 * vocabulary. */
static cw_speaker *open_stranger(void)
{
    static const char *const pairs[][2] = {{"\xc4\xa0the", "\xc4\xa0"
                                                           "and"},
                                           {"0", "5"},
                                           {"\xc4\xa0was", "\xc4\xa0you"}};
    cw_err err;
    char *data = NULL;
    size_t n;
    char *from = path_of(CW_DEMO_FALLBACK), to[] = "/tmp/cw_strangerXXXXXX";
    if (cw_fs_read(from, 1 << 24, &data, &n, &err) != CW_OK) fail_msg("%s", err.text);
    size_t tokens = (size_t)(find_string((uint8_t *)data, n, 0, "tokenizer.ggml.tokens") - (uint8_t *)data);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        uint8_t *a = find_string((uint8_t *)data, n, tokens, pairs[i][0]),
                *b = find_string((uint8_t *)data, n, tokens, pairs[i][1]);
        memcpy(a, pairs[i][1], strlen(pairs[i][1]));
        memcpy(b, pairs[i][0], strlen(pairs[i][0]));
    }
    int fd = mkstemp(to);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, n), (ssize_t)n);
    close(fd);
    cw_speaker *s = open_file(to, CW_ENGINE_LOCAL);
    unlink(to);
    cw_free(data);
    cw_free(from);
    return s;
}

static int open_models(void **state)
{
    (void)state;
    cw_err err;
    char *teacher = path_of(CW_DEMO_MODEL), *student = path_of(CW_DEMO_FALLBACK);
    char *mini = path_of("causeway-demo-student-mini.gguf");
    demo.teacher = open_file(teacher, CW_ENGINE_EDGE);
    demo.student = open_file(student, CW_ENGINE_LOCAL);
    demo.mini = open_file(mini, CW_ENGINE_LOCAL);
    demo.stranger = open_stranger();
    cw_free(mini);
    cw_free(teacher);
    cw_free(student);
    assert_false(cw_tok_same_vocab(cw_speaker_tok(demo.teacher), cw_speaker_tok(demo.stranger)));
    cw_engine *e = cw_speaker_engine(demo.teacher);
    const cw_model_config *c = cw_engine_config(e);
    if (cw_expert_set_new(c->n_layers, c->n_experts, cw_engine_expert_shapes(e), &demo.set, &err) != CW_OK)
        return -1;
    for (int l = c->n_dense; l < c->n_layers; l++)
        for (int x = 0; x < c->n_experts; x++)
            if (cw_expert_set_add_from_gguf(demo.set, cw_speaker_file(demo.teacher), l, x, &err) != CW_OK)
                return -1;
    demo.gate.base.vt = &gate_vtable;
    if (cw_experts_local_new(demo.set, cw_engine_kernels(e), NULL, cw_engine_max_rows(e), c->n_used,
                             &demo.gate.inner, &err) != CW_OK)
        return -1;
    cw_engine_set_experts(e, &demo.gate.base);
    return 0;
}

static int close_models(void **state)
{
    (void)state;
    cw_speaker_close(&demo.teacher);
    cw_speaker_close(&demo.student);
    cw_speaker_close(&demo.mini);
    cw_speaker_close(&demo.stranger);
    cw_experts_free(&demo.gate.inner);
    cw_expert_set_free(&demo.set);
    return 0;
}

/* --- one answer --- */

typedef struct {
    const char *question;
    cw_speaker *fallback;
    bool follows; /* the fallback's cache follows the conversation, on a thread of its own */
    int draft;
    enum { UNSEEN, LOOK, REDO } verify;
    cw_sampler_params sampler;
    int max_tokens;
} how;

typedef struct {
    char said[2][16384]; /* answer and reasoning, as pieces came and were withdrawn */
    char text[16384];    /* the whole answer, marks included */
    char notices[4096];
    const how *how;
    const char *want; /* the text without a cut; NULL: not known */
    int n_verdicts, n_otherwise;
    cw_talk_stats stats;
    float *logits; /* the teacher's */
} outcome;

static void hear(void *ctx, const char *model, cw_span_kind kind, const char *text, size_t len)
{
    (void)model;
    outcome *o = ctx;
    if (kind != CW_SPAN_MARKER) strncat(o->said[kind], text, len);
}

static void withdraw(void *ctx, size_t reasoning, size_t answer)
{
    outcome *o = ctx;
    size_t n[2] = {[CW_SPAN_ANSWER] = answer, [CW_SPAN_REASONING] = reasoning};
    for (int k = 0; k < 2; k++) {
        size_t len = strlen(o->said[k]);
        assert_true(n[k] <= len);
        o->said[k][len - n[k]] = 0;
    }
}

/* Up to the place that it names, the main model would have written just that, and there what it says. */
static bool hear_verdict(void *ctx, const cw_talk_verdict *v)
{
    outcome *o = ctx;
    o->n_verdicts++;
    assert_string_equal(v->by, cw_speaker_name(demo.teacher));
    assert_string_equal(v->of, cw_speaker_name(o->how->fallback));
    assert_true(v->n_tokens > 0 && v->n_same <= v->n_tokens);
    bool otherwise = v->n_same < v->n_tokens;
    o->n_otherwise += otherwise;
    if (otherwise) assert_true(v->can_redo);
    /* Only while nothing but the main model's own choices is before the place. */
    if (o->want && (o->how->verify == REDO || o->n_otherwise <= otherwise)) {
        size_t n = strlen(o->want);
        assert_true(v->n_kept <= n);
        assert_memory_equal(v->kept, o->want, v->n_kept);
        if (v->would_end) assert_int_equal(v->n_kept, n);
        assert_true(v->n_kept + v->n_would <= n);
        assert_memory_equal(o->want + v->n_kept, v->would, v->n_would);
        if (otherwise) assert_true(v->n_would || v->would_end);
    }
    return otherwise && o->how->verify == REDO;
}

static void notice(void *ctx, const char *sentence)
{
    outcome *o = ctx;
    size_t n = strlen(o->notices);
    snprintf(o->notices + n, sizeof o->notices - n, "%s\n", sentence);
}

static cw_talk *open_talk(const how *h, outcome *o)
{
    cw_talk_draft d = {.max = h->draft};
    cw_talk_options to = {.main = demo.teacher,
                          .fallback = h->fallback,
                          .experts = h->follows ? &demo.gate.base : NULL,
                          .draft = h->draft ? &d : NULL,
                          .is_back = gate_opens,
                          .is_back_ctx = &demo.gate,
                          .verdict = h->verify ? hear_verdict : NULL,
                          .verdict_ctx = o,
                          .sampler = h->sampler,
                          .max_tokens = h->max_tokens,
                          .sink = {hear, notice, withdraw, o}};
    cw_talk *t = NULL;
    cw_err err;
    if (cw_talk_new(&to, &t, &err) != CW_OK) fail_msg("%s", err.text);
    return t;
}

/* Two sessions of one engine hold the same tokens; do they hold the same rows? */
static void assert_same_rows(cw_session *a, cw_session *b)
{
    int n, n_b, n_layers = cw_engine_config(cw_session_engine(a))->n_layers;
    const int32_t *tokens = cw_session_tokens(a, &n), *tokens_b = cw_session_tokens(b, &n_b);
    assert_int_equal(n, n_b);
    assert_memory_equal(tokens, tokens_b, (size_t)n * sizeof *tokens);
    for (int l = 0; l < n_layers; l++)
        for (int p = 0; p < n; p++) {
            size_t bytes, bytes_b;
            const void *row = cw_session_kv_row(a, l, p, &bytes),
                       *row_b = cw_session_kv_row(b, l, p, &bytes_b);
            assert_int_equal(bytes, bytes_b);
            if (memcmp(row, row_b, bytes) != 0) fail_msg("layer %d, position %d: other rows", l, p);
        }
}

/* What the speaker's session holds against a session that reads its tokens in one go. */
static void assert_as_if_never_away(cw_speaker *s, const float *logits)
{
    cw_err err;
    cw_session *fresh = NULL;
    cw_session_options so = {.n_ctx = CTX};
    int n, n_vocab = cw_engine_config(cw_speaker_engine(s))->n_vocab;
    const int32_t *tokens = cw_session_tokens(cw_speaker_session(s), &n);
    float *want = cw_calloc((size_t)n_vocab, sizeof *want);
    assert_non_null(want);
    if (cw_session_new(cw_speaker_engine(s), &so, &fresh, &err) != CW_OK) fail_msg("%s", err.text);
    if (n > 0 && cw_session_eval(fresh, tokens, n, want, NULL, &err) != CW_OK) fail_msg("%s", err.text);
    assert_same_rows(cw_speaker_session(s), fresh);
    if (logits) assert_memory_equal(logits, want, (size_t)n_vocab * sizeof *want);
    cw_session_free(&fresh);
    cw_free(want);
}

/* The session holds the prompt and what was said, in its own tokens and no others. */
static void assert_holds_the_answer(cw_speaker *s, const how *h, const cw_talk *t, const outcome *o)
{
    int n, n_prompt = o->stats.n_prompt;
    const int32_t *tokens = cw_session_tokens(cw_speaker_session(s), &n);
    int32_t *ids = NULL;
    size_t n_ids, len, n_text;
    cw_err err;
    char *said = NULL;
    const char *text = cw_talk_text(t, &len);
    cw_chat_message m = {"user", (char *)h->question, strlen(h->question)};
    const cw_chat *chat = cw_speaker_chat(s, &err);
    assert_int_equal(cw_chat_encode(chat, cw_speaker_tok(s), &m, 1, true, &ids, &n_ids, &err), CW_OK);
    assert_int_equal(n_ids, n_prompt);
    assert_true(n >= n_prompt);
    assert_memory_equal(tokens, ids, n_ids * sizeof *ids);
    assert_int_equal(
        cw_tok_decode(cw_speaker_tok(s), tokens + n_prompt, (size_t)(n - n_prompt), 0, &said, &n_text, &err),
        CW_OK);
    if (o->stats.end == CW_TALK_STOP) assert_int_equal(n_text, len);
    assert_true(n_text <= len);
    assert_memory_equal(said, text, n_text);
    cw_free(said);
    cw_free(ids);
}

/* Everything that was handed out and not withdrawn is the answer. */
static void assert_pieces_are_the_answer(const outcome *o)
{
    cw_think *think = NULL;
    cw_err err;
    cw_span span;
    static char said[2][16384];
    said[0][0] = said[1][0] = 0;
    assert_int_equal(cw_think_new(false, &think, &err), CW_OK);
    cw_think_push(think, o->text, strlen(o->text));
    for (int end = 0; end < 2; end++, cw_think_finish(think))
        while (cw_think_next(think, &span))
            if (span.kind != CW_SPAN_MARKER) strncat(said[span.kind], span.text, span.len);
    cw_think_free(&think);
    for (int k = 0; k < 2; k++) assert_string_equal(o->said[k], said[k]);
}

static void run_towards(const how *h, const cut cuts[MAX_CUTS], const char *want, outcome *o)
{
    cw_err err;
    memset(o, 0, sizeof *o);
    o->how = h;
    o->want = want;
    set_gate(cuts);
    cw_session_rewind(cw_speaker_session(demo.teacher), 0);
    cw_talk *t = open_talk(h, o);
    cw_chat_message m = {"user", (char *)h->question, strlen(h->question)};
    cw_talk_prompt p = {.messages = &m, .n_messages = 1};
    if (cw_talk_answer(t, &p, &o->stats, &err) != CW_OK) fail_msg("%s", err.text);
    size_t len;
    snprintf(o->text, sizeof o->text, "%s", cw_talk_text(t, &len));
    assert_pieces_are_the_answer(o);
    if (strcmp(o->stats.model, cw_speaker_name(demo.teacher)) == 0) {
        size_t n = (size_t)cw_engine_config(cw_speaker_engine(demo.teacher))->n_vocab;
        o->logits = cw_calloc(n, sizeof *o->logits);
        assert_non_null(o->logits);
        const cw_session *session;
        const float *logits;
        assert_true(cw_talk_state(t, &session, &logits));
        assert_ptr_equal(session, cw_speaker_session(demo.teacher));
        memcpy(o->logits, logits, n * sizeof *o->logits);
        assert_holds_the_answer(demo.teacher, h, t, o);
    }
    cw_talk_free(&t); /* the fallback's thread has ended, the experts are the gate again */
    set_gate(NULL);
    if (o->logits) assert_as_if_never_away(demo.teacher, o->logits);
    assert_as_if_never_away(h->fallback, NULL);
    cw_free(o->logits);
}

static void run(const how *h, const cut cuts[MAX_CUTS], outcome *o)
{
    run_towards(h, cuts, NULL, o);
}

/* Calls of the four MoE layers: 4 of the prompt, then 4 of each token. */
static const struct {
    const char *when;
    cut cuts[MAX_CUTS];
} stories[] = {
    {"before the prompt", {{0, 3}}},
    {"in the prompt", {{2, 5}}},
    {"at the first token", {{4, 4}}},
    {"in thinking", {{4 * 13, 6}}},
    {"in a token's third layer", {{4 * 20 + 2, 1}}},
    {"in the answer", {{4 * 58 + 1, 3}}},
    {"thrice, with one token between", {{4 * 6, 7}, {8, 1}, {4, 12}}},
    {"at once again", {{4 * 9, 5}, {1, 4}, {0, 3}}},
    {"for a token only", {{4 * 11 + 3, 0 + 1}, {4 * 2, 1}}},
};

static int first_story;

static void tell(const how *h, const outcome *o, const char *when)
{
    int want = 0;
    for (size_t i = 0; i < sizeof stories / sizeof *stories; i++)
        if (strcmp(stories[i].when, when) == 0)
            while (want < MAX_CUTS && stories[i].cuts[want].away) want++;
    if (o->stats.n_changes != 2 * want || strcmp(o->stats.model, cw_speaker_name(demo.teacher)) != 0)
        fail_msg("%s, %s: %d changes instead of %d, ended by %s\n%s", h->question, when, o->stats.n_changes,
                 2 * want, o->stats.model, o->notices);
    assert_true(o->stats.n_fallback > 0);
}

static void every_story(how h)
{
    outcome o;
    for (size_t i = (size_t)(first_story++ % STRIDE); i < sizeof stories / sizeof *stories; i += STRIDE) {
        run(&h, stories[i].cuts, &o);
        tell(&h, &o, stories[i].when);
    }
}

static const char sum[] = "What is 347 + 285?", fox[] = "Tell me a story about a brave fox.";

static void a_cold_fallback_gives_the_answer_back_unchanged(void **state)
{
    (void)state;
    how h = {.question = sum, .fallback = demo.student, .sampler = CW_SAMPLER_GREEDY};
    every_story(h);
    h.question = fox, h.sampler.temperature = 0.8f, h.sampler.seed = 5, h.max_tokens = 90;
    every_story(h);
}

static void a_following_fallback_gives_the_answer_back_unchanged(void **state)
{
    (void)state;
    how h = {.question = sum, .fallback = demo.student, .follows = true, .sampler = CW_SAMPLER_GREEDY};
    every_story(h);
    h.question = fox, h.sampler.temperature = 0.8f, h.sampler.repeat_penalty = 1.2f, h.max_tokens = 90;
    every_story(h);
}

static void an_answer_that_began_away_is_taken_back(void **state)
{
    (void)state;
    how h = {.question = sum, .fallback = demo.student, .sampler = CW_SAMPLER_GREEDY, .verify = REDO};
    static outcome o, whole;
    cw_err err;
    run(&h, NULL, &whole);
    for (int follows = 0; follows < 2; follows++) {
        h.follows = follows;
        memset(&o, 0, sizeof o);
        o.how = &h;
        o.want = whole.text;
        set_gate((cut[MAX_CUTS]){{0, 7}});
        demo.gate.closed = true;
        cw_talk *t = open_talk(&h, &o);
        cw_chat_message m = {"user", (char *)h.question, strlen(h.question)};
        cw_talk_prompt p = {.messages = &m, .n_messages = 1};
        assert_int_equal(cw_talk_begin_away(t, true, &err), CW_OK);
        if (cw_talk_answer(t, &p, &o.stats, &err) != CW_OK) fail_msg("%s", err.text);
        size_t len;
        assert_string_equal(cw_talk_text(t, &len), whole.text);
        assert_int_equal(o.stats.n_changes, 1);
        assert_int_equal(o.stats.n_fallback, 7);
        assert_int_equal(o.stats.n_compared, 7);
        assert_int_equal(cw_talk_begin_away(t, false, &err), CW_OK);
        if (cw_talk_answer(t, &p, &o.stats, &err) != CW_OK) fail_msg("%s", err.text);
        assert_int_equal(o.stats.n_changes + o.stats.n_fallback, 0);
        cw_talk_free(&t);
        assert_as_if_never_away(demo.teacher, NULL);
    }
}

/* It can be reached, so they say, but whenever it is asked it cannot. */
static void returns_that_bring_nothing_are_tried_ever_more_seldom(void **state)
{
    (void)state;
    how h = {.question = sum, .fallback = demo.student, .sampler = CW_SAMPLER_GREEDY};
    static const cut cuts[MAX_CUTS] = {{4 * 5, 1}, {0, 1}, {0, 1}, {0, 1 << 20}};
    static outcome o;
    run(&h, cuts, &o);
    assert_string_equal(o.stats.model, cw_speaker_name(demo.student));
    assert_int_equal(o.stats.n_changes, 7);
    static outcome endless;
    h.max_tokens = 60;
    memset(&endless, 0, sizeof endless);
    endless.how = &h;
    set_gate((cut[MAX_CUTS]){{4 * 5, 1 << 20}});
    cw_talk_options to = {.main = demo.teacher,
                          .fallback = demo.student,
                          .is_back = always_back,
                          .sampler = h.sampler,
                          .max_tokens = 60,
                          .sink = {hear, notice, withdraw, &endless}};
    cw_talk *t = NULL;
    cw_err err;
    if (cw_talk_new(&to, &t, &err) != CW_OK) fail_msg("%s", err.text);
    cw_talk_prompt p = {.messages = &(cw_chat_message){"user", (char *)h.question, strlen(h.question)},
                        .n_messages = 1};
    assert_int_equal(cw_talk_answer(t, &p, &endless.stats, &err), CW_OK);
    assert_int_equal(endless.stats.n_tokens, 60);
    assert_in_range(endless.stats.n_changes, 3, 15); /* 4, 8, 16, 32 tokens between */
    cw_talk_free(&t);
    set_gate(NULL);
}

static void drafting_makes_no_difference(void **state)
{
    (void)state;
    how h = {.question = sum, .fallback = demo.student, .draft = 4, .sampler = CW_SAMPLER_GREEDY};
    static const cut cuts[][MAX_CUTS] = {{{2, 3}}, {{4, 3}}, {{4 * 3 + 1, 9}}, {{4 * 2, 5}, {5, 2}}};
    for (int follows = 0; follows < 2; follows++)
        for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
            outcome o;
            h.follows = follows;
            run(&h, cuts[i], &o);
            assert_true(o.stats.n_changes >= 2 && o.stats.n_changes % 2 == 0);
            assert_true(o.stats.n_drafted > 0);
        }
}

static void another_vocabulary_makes_no_difference(void **state)
{
    (void)state;
    how h = {.question = fox, .fallback = demo.stranger, .sampler = CW_SAMPLER_GREEDY, .max_tokens = 100};
    every_story(h);
    h.follows = true, h.sampler.temperature = 1.2f, h.sampler.seed = 3; /* words in unusual pieces */
    every_story(h);
}

/* The text that is never away: what a verdict is compared with. */
static void verified_stories(how h, bool known)
{
    static outcome whole, o;
    int n_verdicts = 0, n_otherwise = 0;
    h.verify = UNSEEN;
    run(&h, NULL, &whole);
    for (h.verify = LOOK; h.verify <= REDO; h.verify++)
        for (size_t i = (size_t)(first_story++ % STRIDE); i < sizeof stories / sizeof *stories; i += STRIDE) {
            run_towards(&h, stories[i].cuts, known ? whole.text : NULL, &o);
            if (o.stats.n_changes == 0) continue; /* drafted: too few calls to get there */
            if (strcmp(o.stats.model, cw_speaker_name(demo.teacher)) != 0) continue;
            assert_true(o.n_verdicts > 0 && o.stats.n_compared > 0);
            assert_int_equal(o.n_otherwise, o.stats.n_otherwise);
            n_verdicts += o.n_verdicts;
            n_otherwise += o.n_otherwise;
            assert_int_equal(o.stats.n_withdrawn > 0, h.verify == REDO && o.n_otherwise > 0);
            /* All that was written otherwise is written anew: it is the answer of one who was never away. */
            if (known && h.verify == REDO) assert_string_equal(o.text, whole.text);
            if (known && o.n_otherwise == 0) assert_string_equal(o.text, whole.text);
        }
    print_message("%s: %d of %d verdicts otherwise\n", h.question, n_otherwise, n_verdicts);
    assert_true(n_verdicts > 9 / STRIDE && n_otherwise > 0 && (!known || n_otherwise < n_verdicts));
}

static void the_main_model_says_where_it_would_have_written_otherwise(void **state)
{
    (void)state;
    how h = {.question = fox, .fallback = demo.mini, .sampler = CW_SAMPLER_GREEDY, .max_tokens = 90};
    verified_stories(h, true);
    h.question = sum, h.max_tokens = 0;
    verified_stories(h, true);
    h.question = fox, h.follows = true, h.draft = 4, h.max_tokens = 80;
    h.sampler.temperature = 0.9f, h.sampler.top_p = 0.95f, h.sampler.repeat_penalty = 1.1f,
    h.sampler.seed = 9;
    verified_stories(h, true);
}

static void verdicts_on_another_vocabulary_cut_at_the_same_byte(void **state)
{
    (void)state;
    how h = {.question = fox, .fallback = demo.stranger, .sampler = CW_SAMPLER_GREEDY, .max_tokens = 90};
    verified_stories(h, false);
    h.follows = true, h.sampler.temperature = 1.5f, h.sampler.seed = 4;
    verified_stories(h, false);
}

/* The fallback wrote the answer to its end; the main model reads it when it is back, between two questions.
 */
static void finished_answers(how h, const cut *first)
{
    static outcome whole, o;
    cut cuts[MAX_CUTS] = {{first->calls, 1 << 20}};
    cw_err err;
    int n_otherwise = 0;
    h.verify = UNSEEN;
    run(&h, NULL, &whole);
    for (h.verify = LOOK; h.verify <= REDO; h.verify++) {
        memset(&o, 0, sizeof o);
        o.how = &h;
        o.want = whole.text;
        set_gate(cuts);
        cw_session_rewind(cw_speaker_session(demo.teacher), 0);
        cw_talk *t = open_talk(&h, &o);
        cw_chat_message m = {"user", (char *)h.question, strlen(h.question)};
        cw_talk_prompt p = {.messages = &m, .n_messages = 1};
        cw_talk_stats st;
        size_t len;
        if (cw_talk_answer(t, &p, &o.stats, &err) != CW_OK) fail_msg("%s", err.text);
        assert_string_equal(o.stats.model, cw_speaker_name(h.fallback));
        assert_int_equal(o.n_verdicts, 0);
        snprintf(o.text, sizeof o.text, "%s", cw_talk_text(t, &len));
        /* Not back yet: an error, and nothing has changed. */
        assert_int_equal(cw_talk_take_back(t, &p, &st, &err), CW_STATUS_UNREACHABLE);
        assert_string_equal(cw_talk_text(t, &len), o.text);
        set_gate(NULL);
        if (cw_talk_take_back(t, &p, &st, &err) != CW_OK) fail_msg("%s", err.text);
        assert_int_equal(o.n_verdicts, 1);
        assert_int_equal(st.n_redone, o.n_otherwise && h.verify == REDO);
        if (!st.n_redone) assert_string_equal(cw_talk_text(t, &len), o.text);
        if (st.n_redone || !o.n_otherwise) assert_string_equal(cw_talk_text(t, &len), whole.text);
        if (st.n_redone) assert_int_equal(st.n_tokens, whole.stats.n_tokens);
        snprintf(o.text, sizeof o.text, "%s", cw_talk_text(t, &len));
        assert_pieces_are_the_answer(&o);
        n_otherwise += o.n_otherwise;
        /* Once is enough. */
        assert_int_equal(cw_talk_take_back(t, &p, &st, &err), CW_OK);
        assert_int_equal(o.n_verdicts, 1);
        cw_talk_free(&t);
        assert_as_if_never_away(demo.teacher, NULL);
    }
    print_message("%d calls: %d otherwise\n", first->calls, n_otherwise);
}

static void an_answer_that_the_fallback_finished_is_read_later(void **state)
{
    (void)state;
    how h = {.question = fox, .fallback = demo.mini, .sampler = CW_SAMPLER_GREEDY};
    for (int calls = 0; calls < 200; calls += 41 * STRIDE) finished_answers(h, &(cut){.calls = calls});
    h.fallback = demo.student, h.question = sum, h.follows = true;
    finished_answers(h, &(cut){.calls = 100});
    h.question = fox, h.sampler.temperature = 0.8f, h.sampler.seed = 21, h.max_tokens = 70;
    finished_answers(h, &(cut){.calls = 60});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cold_fallback_gives_the_answer_back_unchanged),
        cmocka_unit_test(a_following_fallback_gives_the_answer_back_unchanged),
        cmocka_unit_test(an_answer_that_began_away_is_taken_back),
        cmocka_unit_test(returns_that_bring_nothing_are_tried_ever_more_seldom),
        cmocka_unit_test(drafting_makes_no_difference),
        cmocka_unit_test(another_vocabulary_makes_no_difference),
        cmocka_unit_test(the_main_model_says_where_it_would_have_written_otherwise),
        cmocka_unit_test(verdicts_on_another_vocabulary_cut_at_the_same_byte),
        cmocka_unit_test(an_answer_that_the_fallback_finished_is_read_later),
    };
    return cmocka_run_group_tests(tests, open_models, close_models);
}
