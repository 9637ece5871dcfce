/* The JSON writer. State is the nesting; a value knows from it whether a comma comes first. RFC 8259. */
#include "cw/json.h"
#include "cw/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void put(cw_json *j, const char *s, size_t n)
{
    if (j->failed) return;
    if (j->file) {
        j->failed = fwrite(s, 1, n, j->file) != n;
        return;
    }
    if (n >= j->cap - j->len) { /* one byte stays for NUL */
        size_t want;
        if (!j->heap || !cw_add_size(j->len, n + 1, &want) || !cw_add_size(want, want / 2 + 64, &want)) {
            j->failed = true;
            return;
        }
        char *p = cw_realloc(j->buf, want, 1);
        if (!p) {
            j->failed = true;
            return;
        }
        j->buf = p;
        j->cap = want;
    }
    memcpy(j->buf + j->len, s, n);
    j->len += n;
    j->buf[j->len] = 0;
}

static void puts_(cw_json *j, const char *s)
{
    put(j, s, strlen(s));
}

void cw_json_to_file(cw_json *j, FILE *f)
{
    *j = (cw_json){.file = f};
}

void cw_json_to_buf(cw_json *j, char *buf, size_t cap)
{
    CW_ASSERT(cap > 0);
    *j = (cw_json){.buf = buf, .cap = cap};
    buf[0] = 0;
}

void cw_json_to_heap(cw_json *j)
{
    *j = (cw_json){.heap = true};
}

void cw_json_free(cw_json *j)
{
    if (j->heap) cw_free(j->buf);
    *j = (cw_json){.failed = true};
}

/* Before any value: the comma, and the check that an object got its key. */
static void begin_value(cw_json *j)
{
    if (j->depth > 0) {
        CW_ASSERT(!j->is_object[j->depth - 1] || j->after_key);
        if (!j->after_key && j->has_item[j->depth - 1]) put(j, ",", 1);
        j->has_item[j->depth - 1] = true;
    }
    j->after_key = false;
}

static void open_level(cw_json *j, bool object)
{
    begin_value(j);
    CW_ASSERT(j->depth < CW_JSON_MAX_DEPTH);
    j->has_item[j->depth] = false;
    j->is_object[j->depth++] = object;
    put(j, object ? "{" : "[", 1);
}

void cw_json_object(cw_json *j)
{
    open_level(j, true);
}

void cw_json_array(cw_json *j)
{
    open_level(j, false);
}

void cw_json_end(cw_json *j)
{
    CW_ASSERT(j->depth > 0 && !j->after_key);
    put(j, j->is_object[--j->depth] ? "}" : "]", 1);
}

/* Length of the UTF-8 sequence at s (no overlongs, surrogates or values above U+10FFFF), 0 if there is none.
 */
static size_t utf8_len(const uint8_t *s, size_t n)
{
    if (s[0] < 0x80) return 1;
    size_t len = s[0] >= 0xc2 && s[0] <= 0xdf   ? 2
                 : s[0] >= 0xe0 && s[0] <= 0xef ? 3
                 : s[0] >= 0xf0 && s[0] <= 0xf4 ? 4
                                                : 0;
    if (len == 0 || n < len) return 0;
    for (size_t i = 1; i < len; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f)) return 0;
    if ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f)) return 0;
    return len;
}

static void put_string(cw_json *j, const char *text, size_t n)
{
    const uint8_t *s = (const uint8_t *)text;
    put(j, "\"", 1);
    size_t plain = 0; /* start of the run not written yet */
    for (size_t i = 0; i < n;) {
        size_t len = utf8_len(s + i, n - i);
        if (len && s[i] >= 0x20 && s[i] != '"' && s[i] != '\\' && s[i] != 0x7f) {
            i += len;
            continue;
        }
        put(j, text + plain, i - plain);
        char esc[8];
        static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
        const char *known = len && s[i] ? strchr(from, s[i]) : NULL;
        if (!len)
            snprintf(esc, sizeof esc, "\xef\xbf\xbd");
        else if (known)
            snprintf(esc, sizeof esc, "\\%c", to[known - from]);
        else
            snprintf(esc, sizeof esc, "\\u%04x", s[i]);
        puts_(j, esc);
        plain = ++i;
    }
    put(j, text + plain, n - plain);
    put(j, "\"", 1);
}

void cw_json_key(cw_json *j, const char *key)
{
    CW_ASSERT(j->depth > 0 && j->is_object[j->depth - 1] && !j->after_key);
    if (j->has_item[j->depth - 1]) put(j, ",", 1);
    put_string(j, key, strlen(key));
    put(j, ":", 1);
    j->after_key = true;
}

void cw_json_strn(cw_json *j, const char *s, size_t n)
{
    begin_value(j);
    put_string(j, s, n);
}

void cw_json_str(cw_json *j, const char *s)
{
    if (s)
        cw_json_strn(j, s, strlen(s));
    else
        cw_json_null(j);
}

static void put_word(cw_json *j, const char *word)
{
    begin_value(j);
    puts_(j, word);
}

void cw_json_int(cw_json *j, int64_t v)
{
    char t[32];
    snprintf(t, sizeof t, "%lld", (long long)v);
    put_word(j, t);
}

void cw_json_uint(cw_json *j, uint64_t v)
{
    char t[32];
    snprintf(t, sizeof t, "%llu", (unsigned long long)v);
    put_word(j, t);
}

void cw_json_num(cw_json *j, double v)
{
    char t[40] = "null";
    for (int digits = 15; isfinite(v) && digits <= 17; digits++) {
        snprintf(t, sizeof t, "%.*g", digits, v);
        if (strtod(t, NULL) == v) break;
    }
    put_word(j, t);
}

void cw_json_fixed(cw_json *j, double v, int decimals)
{
    char t[360] = "null"; /* the largest double has 309 digits before the point */
    if (isfinite(v)) snprintf(t, sizeof t, "%.*f", decimals, v);
    put_word(j, t);
}

void cw_json_bool(cw_json *j, bool v)
{
    put_word(j, v ? "true" : "false");
}

void cw_json_null(cw_json *j)
{
    put_word(j, "null");
}

void cw_json_kstr(cw_json *j, const char *key, const char *s)
{
    cw_json_key(j, key);
    cw_json_str(j, s);
}

void cw_json_kint(cw_json *j, const char *key, int64_t v)
{
    cw_json_key(j, key);
    cw_json_int(j, v);
}

void cw_json_kuint(cw_json *j, const char *key, uint64_t v)
{
    cw_json_key(j, key);
    cw_json_uint(j, v);
}

void cw_json_kfixed(cw_json *j, const char *key, double v, int decimals)
{
    cw_json_key(j, key);
    cw_json_fixed(j, v, decimals);
}

void cw_json_kbool(cw_json *j, const char *key, bool v)
{
    cw_json_key(j, key);
    cw_json_bool(j, v);
}

bool cw_json_done(cw_json *j)
{
    CW_ASSERT(j->depth == 0 && !j->after_key);
    put(j, "\n", 1);
    if (j->file && fflush(j->file) != 0) j->failed = true;
    return !j->failed;
}
