#include "lists.h"
#include "cw/fs.h"
#include "cw/mem.h"

#include <string.h>

static bool is_separator(char c)
{
    return c == ',' || c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '[' || c == ']';
}

cw_status cli_list_parse(const char *text, const char *what, int32_t **out, size_t *n, cw_err *err)
{
    /* Every number has a digit and, but for the last, a separator. */
    int32_t *list = cw_calloc(strlen(text) / 2 + 1, sizeof *list);
    if (!list) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    size_t count = 0;
    const char *c = text;
    for (;;) {
        while (is_separator(*c)) c++;
        if (!*c) break;
        int64_t v = 0;
        const char *start = c;
        for (; *c >= '0' && *c <= '9' && v <= INT32_MAX; c++) v = v * 10 + (*c - '0');
        if (c == start || v > INT32_MAX || (*c && !is_separator(*c))) {
            cw_free(list);
            return CW_FAIL(err, CW_STATUS_INVALID, "%s: '%.20s' is not a number", what, start);
        }
        list[count++] = (int32_t)v;
    }
    if (count == 0) {
        cw_free(list);
        return CW_FAIL(err, CW_STATUS_INVALID, "%s: the list is empty", what);
    }
    *out = list;
    *n = count;
    return CW_OK;
}

cw_status cli_list_read(const char *arg, const char *what, int32_t **out, size_t *n, cw_err *err)
{
    char *text = NULL;
    CW_TRY(cw_fs_read_arg(arg, CLI_LIST_LIMIT, &text, err));
    cw_status s = cli_list_parse(text, what, out, n, err);
    cw_free(text);
    return s;
}
