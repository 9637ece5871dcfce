#include "cw/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[CW_STATUS_COUNT] = {
#define X(code, name, text) name,
    CW_STATUS_MAP(X)
#undef X
};

const char *cw_status_name(cw_status s)
{
    return (unsigned)s < CW_STATUS_COUNT ? names[s] : "unknown";
}

/* Bytes of the character at s, 0 where it is not UTF-8; s ends with NUL, which continues no character. */
static size_t character_len(const unsigned char *s)
{
    size_t n = s[0] < 0x80                    ? 1
               : s[0] >= 0xc2 && s[0] <= 0xdf ? 2
               : (s[0] & 0xf0) == 0xe0        ? 3
               : s[0] >= 0xf0 && s[0] <= 0xf4 ? 4
                                              : 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if (n == 3 && ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f))) return 0;
    if (n == 4 && ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))) return 0;
    return n;
}

void cw_text_printable(char *text)
{
    unsigned char *s = (unsigned char *)text;
    while (*s) {
        size_t n = character_len(s);
        if (n == 0 || *s < 0x20 || *s == 0x7f)
            *s++ = '?';
        else if (*s == 0xc2 && s[1] < 0xa0)
            s[0] = s[1] = '?', s += 2;
        else
            s += n;
    }
}

cw_status cw_err_set(cw_err *err, cw_status code, const char *file, int line, const char *fmt, ...)
{
    if (err) {
        err->code = code;
        err->file = file;
        err->line = line;
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
        cw_text_printable(err->text);
    }
    return code;
}

cw_status cw_err_prefix(cw_err *err, const char *fmt, ...)
{
    if (!err) return CW_STATUS_INVALID;
    char old[sizeof err->text];
    memcpy(old, err->text, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    /* The sentence may lose its end; the precision says so to compilers that warn of it. */
    int room = (int)sizeof err->text - n - 3;
    if (n >= 0 && room > 0) snprintf(err->text + n, (size_t)room + 3, ": %.*s", room, old);
    cw_text_printable(err->text);
    return err->code;
}

void cw_assert_failed(const char *what, const char *file, int line)
{
    fprintf(stderr, "causeway: internal error: %s does not hold (%s:%d)\n", what, file, line);
    abort();
}
