/*
 * Recognises a chat template by its content. The Jinja program is not interpreted: it is searched for the
 * markers of the five families, and for the few expressions in which members of one family differ. The
 * template is outside data; whatever it holds, the worst outcome is "not recognised" or a prompt the model
 * was not trained on.
 */
#include "chat_internal.h"

#include <stdio.h>
#include "cw/gguf.h"

#define USER3 "<\xef\xbd\x9cUser\xef\xbd\x9c>"
#define ASSISTANT3                                                                                           \
    "<\xef\xbd\x9c"                                                                                          \
    "Assistant\xef\xbd\x9c>"

#define MAX_TEMPLATE ((size_t)1 << 20)

static bool contains(const char *s, const char *what)
{
    return strstr(s, what) != NULL;
}

/*
 * The rest of a Jinja string literal from p to its closing quote, escapes undone; NULL when there is none
 * within `max` characters or it holds a brace (then it was not a literal).
 */
static char *literal_rest(const char *p, size_t max)
{
    char *out = cw_calloc(max + 1, 1);
    size_t n = 0;
    for (; out && *p && n < max; p++) {
        if (*p == '\'' || *p == '"') return out;
        if (*p == '{' || *p == '}') break;
        if (*p == '\\' && p[1]) {
            p++;
            out[n++] = *p == 'n' ? '\n' : *p == 't' ? '\t' : *p;
        } else {
            out[n++] = *p;
        }
    }
    cw_free(out);
    return NULL;
}

static const char *last_of(const char *s, const char *what)
{
    const char *found = NULL;
    for (const char *p = s; (p = strstr(p, what)); p++) found = p;
    return found;
}

/* What the template's last use of `marker` writes after it; `def` when it cannot be read. */
static char *after_marker(const char *tmpl, const char *marker, const char *def)
{
    const char *p = last_of(tmpl, marker);
    char *lit = p ? literal_rest(p + strlen(marker), 64) : NULL;
    return lit ? lit : cw_strdup(def);
}

static void read_think(cw_chat *c, const char *tmpl)
{
    const char *last = strstr(tmpl, "split('</think>')[-1]"),
               *first = strstr(tmpl, "split('</think>', 1)[1]");
    c->think = last ? THINK_AFTER_LAST : first ? THINK_AFTER_FIRST : THINK_KEEP;
    const char *p = last ? strchr(last, ']') : first ? strchr(first, ']') : NULL;
    if (!p) return;
    const char *end = strstr(p, "%}"), *line = strchr(p, '\n');
    if (line && line < end) end = line;
    char rest[48] = "";
    if (end) {
        size_t n = (size_t)(end - p) < sizeof rest - 1 ? (size_t)(end - p) : sizeof rest - 1;
        memcpy(rest, p, n);
    }
    if (contains(rest, ".lstrip('\\n')"))
        c->think_trim = TRIM_NEWLINES;
    else if (contains(rest, ".strip()") || contains(rest, "|trim") || contains(rest, "| trim"))
        c->think_trim = TRIM_SPACE;
}

static bool trims_contents(const char *tmpl)
{
    static const char *const forms[] = {"content'] | trim", "content']|trim",         "content\"] | trim",
                                        "content\"]|trim",  "message.content | trim", "message.content|trim"};
    for (size_t i = 0; i < CW_ARRAY_LEN(forms); i++)
        if (contains(tmpl, forms[i])) return true;
    return false;
}

/* ChatML templates that speak for the absent system message do it in one literal. */
static char *chatml_default_system(const char *tmpl)
{
    static const char *const heads[] = {"<|im_start|>system\\n", "<|im_start|>system\n"};
    for (size_t h = 0; h < CW_ARRAY_LEN(heads); h++)
        for (const char *p = tmpl; (p = strstr(p, heads[h]));) {
            p += strlen(heads[h]);
            char *lit = literal_rest(p, 2048), *end = lit ? strstr(lit, "<|im_end|>") : NULL;
            if (end && end > lit) {
                *end = '\0';
                return lit;
            }
            cw_free(lit);
        }
    return NULL;
}

static char *llama31_preamble(const char *tmpl)
{
    static const char known[] = "Cutting Knowledge Date: ", today[] = "date_string = \"";
    const char *k = strstr(tmpl, known), *d = strstr(tmpl, today);
    if (!k || !contains(tmpl, "Today Date: ")) return NULL;
    char *head = literal_rest(k, 128);
    /* The template's own date where the caller gives none: a prompt must not change from day to day. */
    char *date = d ? literal_rest(d + strlen(today), 32) : NULL;
    char *out = NULL;
    if (head && date) {
        size_t n = strlen(head) + strlen(date) + 32;
        out = cw_calloc(n, 1);
        if (out) snprintf(out, n, "%sToday Date: %s\n\n", head, date);
    }
    cw_free(head);
    cw_free(date);
    return out;
}

static char *coder_default_system(const char *tmpl)
{
    const char *p = strstr(tmpl, "You are an AI programming assistant");
    return p ? literal_rest(p, 2048) : NULL;
}

static void read_deepseek3(cw_chat *c, const char *s)
{
    c->gen = after_marker(s, ASSISTANT3, "");
    if (contains(s, "ns.system_prompt"))
        c->system = contains(s, "ns.system_prompt + message['content']") ? SYSTEM_PARAGRAPHS : SYSTEM_LAST;
    /* V3.1 thinks only when its variable `thinking` says so, and it is false by default */
    if (contains(s, "if not thinking %}{{'</think>'}}") && c->gen && !*c->gen) {
        cw_free(c->gen);
        c->gen = cw_strdup("</think>");
        c->closed_think = true;
    }
}

static bool recognise(cw_chat *c, const char *s)
{
    c->bos = contains(s, "bos_token");
    c->trim = trims_contents(s);
    read_think(c, s);
    if (contains(s, "### Instruction") && contains(s, "### Response:") && contains(s, "<|EOT|>")) {
        c->kind = CW_CHAT_DEEPSEEK_CODER;
        c->gen = after_marker(s, "### Response:", "");
        c->default_system = coder_default_system(s);
    } else if (contains(s, "'User: ' + ") && contains(s, "'Assistant: ' + ") && contains(s, "eos_token")) {
        c->kind = CW_CHAT_DEEPSEEK_2;
        c->gen = cw_strdup("");
    } else if (contains(s, USER3) && contains(s, ASSISTANT3)) {
        c->kind = CW_CHAT_DEEPSEEK_3;
        read_deepseek3(c, s);
    } else if (contains(s, "<|start_header_id|>") && contains(s, "<|end_header_id|>") &&
               contains(s, "<|eot_id|>")) {
        c->kind = CW_CHAT_LLAMA_3;
        c->bos = true;
        c->gen = after_marker(s, "<|start_header_id|>assistant<|end_header_id|>", "\n\n");
        c->preamble = llama31_preamble(s);
    } else if (contains(s, "<|im_start|>") && contains(s, "<|im_end|>") && !contains(s, "<|im_sep|>")) {
        c->kind = CW_CHAT_CHATML;
        c->gen = after_marker(s, "<|im_start|>assistant", "\n");
        c->default_system = chatml_default_system(s);
        c->last_turn_think =
            contains(s, "last_query_index") && contains(s, "\\n<think>\\n' + reasoning_content");
    } else {
        return false;
    }
    return true;
}

cw_status cw_chat_new(const char *tmpl, size_t len, cw_chat **out, cw_err *err)
{
    if (len > MAX_TEMPLATE) return CW_FAIL(err, CW_STATUS_LIMIT, "the chat template is %zu bytes long", len);
    cw_chat *c = cw_calloc(1, sizeof *c);
    char *s = cw_strndup(tmpl, len); /* ends at the first NUL, if it holds one */
    cw_status st = CW_OK;
    if (!c || !s)
        st = TOK_NO_MEMORY(err);
    else if (!recognise(c, s))
        st = CW_FAIL(err, CW_STATUS_UNSUPPORTED,
                     "the model's chat template is not one this version knows (DeepSeek, ChatML, Llama 3); "
                     "use `causeway run --raw` with a prompt written for the model");
    else if (!c->gen)
        st = TOK_NO_MEMORY(err);
    cw_free(s);
    if (st == CW_OK)
        *out = c;
    else
        cw_chat_free(&c);
    return st;
}

cw_status cw_chat_new_from_gguf(const struct cw_gguf *g, cw_chat **out, cw_err *err)
{
    cw_gguf_str s;
    cw_status st = cw_gguf_get_str(g, "tokenizer.chat_template", &s, err);
    if (st == CW_STATUS_NOT_FOUND)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED,
                       "the model file has no chat template; use `causeway run --raw` with a prompt written "
                       "for the model");
    CW_TRY(st);
    return cw_chat_new(s.data, s.len, out, err);
}

void cw_chat_free(cw_chat **c)
{
    if (!c || !*c) return;
    cw_free((*c)->gen);
    cw_free((*c)->default_system);
    cw_free((*c)->preamble);
    cw_free(*c);
    *c = NULL;
}

cw_chat_kind cw_chat_get_kind(const cw_chat *c)
{
    return c->kind;
}

const char *cw_chat_kind_name(cw_chat_kind kind)
{
    static const char *const names[CW_CHAT_KIND_COUNT] = {"deepseek-coder", "deepseek-2", "deepseek-3",
                                                          "chatml", "llama-3"};
    return (unsigned)kind < CW_CHAT_KIND_COUNT ? names[kind] : "?";
}

bool cw_chat_prompt_opens_think(const cw_chat *c)
{
    const char *open = last_of(c->gen, "<think>"), *close = last_of(c->gen, "</think>");
    return open && (!close || close < open);
}
