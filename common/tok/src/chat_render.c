/*
 * Writes a conversation the way its template would. The template's own parts are trusted segments, in which
 * control tokens are found; everything that came from a message is not.
 */
#include "chat_internal.h"
#include "utf8.h"

#define BAR "\xef\xbd\x9c" /* U+FF5C */

typedef struct {
    size_t off, len;
    bool trusted;
} part;

typedef struct {
    const cw_chat *c;
    const cw_tok *t;
    char *buf;
    size_t n, cap;
    part *parts;
    size_t n_parts, cap_parts;
    cw_err *err;
    cw_status status; /* the first failure; later writes do nothing */
} writer;

static void put(writer *w, const char *text, size_t len, bool trusted)
{
    if (w->status != CW_OK || len == 0) return;
    size_t need;
    if (!cw_add_size(w->n, len, &need)) {
        w->status = TOK_NO_MEMORY(w->err);
        return;
    }
    w->status = tok_reserve((void **)&w->buf, &w->cap, need, 1, w->err);
    if (w->status == CW_OK)
        w->status = tok_reserve((void **)&w->parts, &w->cap_parts, w->n_parts + 1, sizeof *w->parts, w->err);
    if (w->status != CW_OK) return;
    memcpy(w->buf + w->n, text, len);
    if (w->n_parts && w->parts[w->n_parts - 1].trusted == trusted)
        w->parts[w->n_parts - 1].len += len;
    else
        w->parts[w->n_parts++] = (part){w->n, len, trusted};
    w->n = need;
}

static void own(writer *w, const char *text)
{
    put(w, text, strlen(text), true);
}
static void said(writer *w, cw_tok_str s)
{
    put(w, s.data, s.len, false);
}

/* The name of a token that the encoder will find again. */
static void token(writer *w, int32_t id)
{
    cw_token_type type = cw_tok_type(w->t, id);
    size_t len;
    if (type != CW_TOKEN_CONTROL && type != CW_TOKEN_USER_DEFINED && type != CW_TOKEN_UNKNOWN) return;
    const char *text = cw_tok_text(w->t, id, &len);
    put(w, text, len, true);
}

/* White space as Python's str.strip means it, which is what Jinja's trim calls. */
static bool is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
           c == 0x3000;
}

static cw_tok_str strip(cw_tok_str s)
{
    while (s.len) {
        int k = utf8_at(s.data, s.len);
        if (k <= 0 || !is_space(utf8_decode(s.data, k))) break;
        s.data += k;
        s.len -= (size_t)k;
    }
    while (s.len) {
        size_t k = 1;
        while (k < 4 && k < s.len && ((uint8_t)s.data[s.len - k] & 0xc0) == 0x80) k++;
        if (utf8_at(s.data + s.len - k, k) != (int)k || !is_space(utf8_decode(s.data + s.len - k, (int)k)))
            break;
        s.len -= k;
    }
    return s;
}

static cw_tok_str strip_newlines(cw_tok_str s, bool end)
{
    while (s.len && *s.data == '\n') s.data++, s.len--;
    while (end && s.len && s.data[s.len - 1] == '\n') s.len--;
    return s;
}

/* First or last place of `what`; NULL when absent. */
static const char *find(cw_tok_str s, const char *what, bool last)
{
    const char *p = s.data, *found = NULL;
    size_t n = strlen(what);
    while ((p = memmem(p, s.len - (size_t)(p - s.data), what, n))) {
        found = p++;
        if (!last) break;
    }
    return found;
}

static cw_tok_str content_of(const writer *w, const cw_chat_message *m)
{
    cw_tok_str s = {m->content, m->len};
    return w->c->trim ? strip(s) : s;
}

/* An answer without its reasoning, where the template drops it. */
static cw_tok_str answer_of(const writer *w, const cw_chat_message *m)
{
    cw_tok_str s = content_of(w, m);
    const char *tag =
        w->c->think == THINK_KEEP || !s.len ? NULL : find(s, "</think>", w->c->think == THINK_AFTER_LAST);
    if (!tag) return s;
    const char *rest = tag + strlen("</think>");
    cw_tok_str a = {rest, s.len - (size_t)(rest - s.data)};
    if (w->c->think_trim == TRIM_SPACE) return strip(a);
    return w->c->think_trim == TRIM_NEWLINES ? strip_newlines(a, false) : a;
}

static bool is(const cw_chat_message *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

static bool any_system(const cw_chat_message *m, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (is(&m[i], "system")) return true;
    return false;
}

static void render_coder(writer *w, const cw_chat_message *m, size_t n, bool gen)
{
    if (w->c->default_system && !any_system(m, n)) own(w, w->c->default_system);
    for (size_t i = 0; i < n; i++) {
        bool user = is(&m[i], "user");
        if (!is(&m[i], "system")) own(w, user ? "### Instruction:\n" : "### Response:\n");
        said(w, content_of(w, &m[i]));
        if (!is(&m[i], "system")) own(w, user ? "\n" : "\n<|EOT|>\n");
    }
    if (gen) own(w, "### Response:"), own(w, w->c->gen);
}

static void render_deepseek2(writer *w, const cw_chat_message *m, size_t n, bool gen)
{
    for (size_t i = 0; i < n; i++) {
        bool answer = is(&m[i], "assistant");
        if (!is(&m[i], "system")) own(w, answer ? "Assistant: " : "User: ");
        said(w, answer ? answer_of(w, &m[i]) : content_of(w, &m[i]));
        if (answer)
            token(w, w->t->eos);
        else
            own(w, "\n\n");
    }
    if (gen) own(w, "Assistant:");
}

/* The system text stands first, wherever its messages stood. */
static void render_system3(writer *w, const cw_chat_message *m, size_t n)
{
    bool first = true;
    size_t last = n;
    for (size_t i = 0; i < n; i++)
        if (is(&m[i], "system")) last = i;
    for (size_t i = w->c->system == SYSTEM_LAST ? last : 0; i < n; i++) {
        if (!is(&m[i], "system")) continue;
        if (!first && w->c->system == SYSTEM_PARAGRAPHS) own(w, "\n\n");
        said(w, content_of(w, &m[i]));
        first = false;
    }
}

static void render_deepseek3(writer *w, const cw_chat_message *m, size_t n, bool gen)
{
    bool asked = false; /* a question stands open */
    render_system3(w, m, n);
    for (size_t i = 0; i < n; i++) {
        if (is(&m[i], "user")) {
            own(w, "<" BAR "User" BAR ">");
            said(w, content_of(w, &m[i]));
            asked = true;
        } else if (is(&m[i], "assistant")) {
            if (asked || !w->c->closed_think) own(w, "<" BAR "Assistant" BAR ">");
            if (asked && w->c->closed_think) own(w, "</think>");
            said(w, answer_of(w, &m[i]));
            own(w, "<" BAR "end\xe2\x96\x81of\xe2\x96\x81sentence" BAR ">");
            asked = false;
        }
    }
    if (gen && (asked || !w->c->closed_think)) own(w, "<" BAR "Assistant" BAR ">"), own(w, w->c->gen);
}

/* Qwen 3: an answer after the last question is written with its reasoning, even an empty one when it stands
 * last. */
static bool chatml_last_turn(writer *w, const cw_chat_message *m, bool last)
{
    cw_tok_str s = content_of(w, m), reasoning = {"", 0};
    const char *tag = s.len ? find(s, "</think>", false) : NULL;
    if (tag) {
        reasoning = strip_newlines((cw_tok_str){s.data, (size_t)(tag - s.data)}, true);
        const char *open = reasoning.len ? find(reasoning, "<think>", true) : NULL;
        if (open) {
            open += strlen("<think>");
            reasoning = (cw_tok_str){open, reasoning.len - (size_t)(open - reasoning.data)};
        }
        reasoning = strip_newlines(reasoning, true);
    }
    if (!last && !reasoning.len) return false;
    own(w, "<think>\n");
    said(w, reasoning);
    own(w, "\n</think>\n\n");
    said(w, strip_newlines(answer_of(w, m), false));
    return true;
}

static void render_chatml(writer *w, const cw_chat_message *m, size_t n, bool gen)
{
    if (w->c->default_system && !(n && is(&m[0], "system"))) {
        own(w, "<|im_start|>system\n");
        own(w, w->c->default_system);
        own(w, "<|im_end|>\n");
    }
    size_t last_question = n;
    for (size_t i = 0; i < n; i++)
        if (is(&m[i], "user")) last_question = i;
    if (last_question == n && n) last_question = n - 1; /* as the template has it when nothing was asked */
    for (size_t i = 0; i < n; i++) {
        own(w, "<|im_start|>");
        own(w, m[i].role); /* one of the three known */
        own(w, "\n");
        bool answer = is(&m[i], "assistant");
        if (!(answer && w->c->last_turn_think && i > last_question && chatml_last_turn(w, &m[i], i + 1 == n)))
            said(w, answer ? answer_of(w, &m[i]) : content_of(w, &m[i]));
        own(w, "<|im_end|>\n");
    }
    if (gen) own(w, "<|im_start|>assistant"), own(w, w->c->gen);
}

static void render_llama3(writer *w, const cw_chat_message *m, size_t n, bool gen)
{
    size_t i = 0;
    if (w->c->preamble) {
        own(w, "<|start_header_id|>system<|end_header_id|>\n\n");
        own(w, w->c->preamble);
        if (n && is(&m[0], "system")) said(w, strip((cw_tok_str){m[i].content, m[i].len})), i++;
        own(w, "<|eot_id|>");
    }
    for (; i < n; i++) {
        own(w, "<|start_header_id|>");
        own(w, m[i].role);
        own(w, "<|end_header_id|>\n\n");
        said(w, is(&m[i], "assistant") ? answer_of(w, &m[i]) : content_of(w, &m[i]));
        own(w, "<|eot_id|>");
    }
    if (gen) own(w, "<|start_header_id|>assistant<|end_header_id|>"), own(w, w->c->gen);
}

static cw_status finish(writer *w, cw_chat_prompt *out)
{
    if (w->status == CW_OK && !w->buf) w->status = tok_reserve((void **)&w->buf, &w->cap, 1, 1, w->err);
    cw_tok_segment *segs = w->status == CW_OK ? cw_calloc(w->n_parts, sizeof *segs) : NULL;
    if (w->status == CW_OK && !segs) w->status = TOK_NO_MEMORY(w->err);
    for (size_t i = 0; w->status == CW_OK && i < w->n_parts; i++)
        segs[i] = (cw_tok_segment){w->buf + w->parts[i].off, w->parts[i].len, w->parts[i].trusted};
    cw_free(w->parts);
    if (w->status != CW_OK) {
        cw_free(w->buf);
        return w->status;
    }
    *out = (cw_chat_prompt){segs, w->n_parts, w->buf};
    return CW_OK;
}

cw_status cw_chat_render(const cw_chat *c, const cw_tok *t, const cw_chat_message *messages, size_t n,
                         bool add_generation_prompt, cw_chat_prompt *out, cw_err *err)
{
    static void (*const render[CW_CHAT_KIND_COUNT])(writer *, const cw_chat_message *, size_t, bool) = {
        [CW_CHAT_DEEPSEEK_CODER] = render_coder, [CW_CHAT_DEEPSEEK_2] = render_deepseek2,
        [CW_CHAT_DEEPSEEK_3] = render_deepseek3, [CW_CHAT_CHATML] = render_chatml,
        [CW_CHAT_LLAMA_3] = render_llama3,
    };
    for (size_t i = 0; i < n; i++)
        if (!is(&messages[i], "system") && !is(&messages[i], "user") && !is(&messages[i], "assistant"))
            return CW_FAIL(err, CW_STATUS_INVALID,
                           "message %zu has the role \"%.40s\"; it must be system, user or assistant", i,
                           messages[i].role);
    writer w = {.c = c, .t = t, .err = err};
    if (c->bos) token(&w, t->bos);
    render[c->kind](&w, messages, n, add_generation_prompt);
    return finish(&w, out);
}

void cw_chat_prompt_clear(cw_chat_prompt *p)
{
    cw_free(p->segs);
    cw_free(p->block);
    *p = (cw_chat_prompt){0};
}

cw_status cw_chat_encode(const cw_chat *c, const cw_tok *t, const cw_chat_message *messages, size_t n,
                         bool add_generation_prompt, int32_t **ids, size_t *n_ids, cw_err *err)
{
    cw_chat_prompt p;
    CW_TRY(cw_chat_render(c, t, messages, n, add_generation_prompt, &p, err));
    cw_status s = cw_tok_encode_segments(t, p.segs, p.n_segs, CW_TOK_ADD_BOS, ids, n_ids, err);
    cw_chat_prompt_clear(&p);
    return s;
}
