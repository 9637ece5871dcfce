/*
 * Cuts a stream of text at <think> and </think>. Both tags count wherever they stand, so an answer that never
 * opened the tag it closes (because the prompt did) is still cut at the right place. '<' occurs in a tag only
 * as its first character, so after a mismatch nothing needs to be looked at twice.
 */
#include "cw/detok.h"
#include "tok_internal.h"

static const char tag_open[] = "<think>", tag_close[] = "</think>";

struct cw_think {
    bool open, finished;
    bool after_tag; /* line breaks that follow a tag belong to it */
    char hold[8];   /* what may become a tag */
    size_t n_hold;
    char given[8]; /* the part of `hold` last handed out */
    const char *in;
    size_t len, at;
};

cw_status cw_think_new(bool open, cw_think **out, cw_err *err)
{
    cw_think *s = cw_calloc(1, sizeof *s);
    if (!s) return TOK_NO_MEMORY(err);
    cw_think_reset(s, open);
    *out = s;
    return CW_OK;
}

void cw_think_free(cw_think **s)
{
    if (!s || !*s) return;
    cw_free(*s);
    *s = NULL;
}

/* A prompt that opens the tag ends in "<think>\n" or just in "<think>", and then the model writes the line
 * break. */
void cw_think_reset(cw_think *s, bool open)
{
    *s = (cw_think){.open = open, .after_tag = open};
}

bool cw_think_is_open(const cw_think *s)
{
    return s->open;
}

void cw_think_push(cw_think *s, const char *text, size_t len)
{
    CW_ASSERT(s->at == s->len && !s->finished); /* the last text was taken whole */
    s->in = text;
    s->len = len;
    s->at = 0;
}

void cw_think_finish(cw_think *s)
{
    s->finished = true;
}

static bool give(cw_span *out, cw_span_kind kind, const char *text, size_t len)
{
    *out = (cw_span){kind, text, len};
    return true;
}

static bool give_held(cw_think *s, cw_span *out, cw_span_kind kind)
{
    size_t n = s->n_hold;
    memcpy(s->given, s->hold, n);
    s->n_hold = 0;
    return give(out, kind, s->given, n);
}

static bool begins_tag(const char *p, size_t n)
{
    return (n < sizeof tag_open && memcmp(p, tag_open, n) == 0) ||
           (n < sizeof tag_close && memcmp(p, tag_close, n) == 0);
}

/* Feeds characters to `hold`: true when a span came out. */
static bool feed_hold(cw_think *s, cw_span *out, cw_span_kind kind)
{
    while (s->at < s->len) {
        s->hold[s->n_hold] = s->in[s->at];
        if (!begins_tag(s->hold, s->n_hold + 1)) return give_held(s, out, kind);
        s->n_hold++;
        s->at++;
        bool opens = s->n_hold == sizeof tag_open - 1 && s->hold[1] == 't',
             closes = s->n_hold == sizeof tag_close - 1;
        if (opens || closes) {
            s->open = opens;
            s->after_tag = true;
            return give_held(s, out, CW_SPAN_MARKER);
        }
    }
    return s->finished ? give_held(s, out, kind) : false;
}

bool cw_think_next(cw_think *s, cw_span *out)
{
    cw_span_kind kind = s->open ? CW_SPAN_REASONING : CW_SPAN_ANSWER;
    size_t begin = s->at;
    if (s->after_tag) {
        while (s->at < s->len && (s->in[s->at] == '\n' || s->in[s->at] == '\r')) s->at++;
        if (s->at < s->len) s->after_tag = false;
        if (s->at > begin) return give(out, CW_SPAN_MARKER, s->in + begin, s->at - begin);
    }
    if (s->n_hold) return feed_hold(s, out, kind);
    if (s->at == s->len) return false;
    const char *lt = memchr(s->in + s->at, '<', s->len - s->at);
    s->at = lt ? (size_t)(lt - s->in) : s->len;
    if (s->at > begin) return give(out, kind, s->in + begin, s->at - begin);
    s->hold[s->n_hold++] = '<';
    s->at++;
    return feed_hold(s, out, kind);
}
