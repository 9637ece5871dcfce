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
    return err->code;
}

void cw_assert_failed(const char *what, const char *file, int line)
{
    fprintf(stderr, "causeway: internal error: %s does not hold (%s:%d)\n", what, file, line);
    abort();
}
