/*
 * One option's value from text to its field: numbers with bounds, sizes, durations, words. Knows nothing of
 * where the text came from.
 */
#include "option_internal.h"
#include "cw/mem.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

typedef struct {
    const char *suffix;
    double factor;
} unit;

/* A number followed by one of `units` (the first is the empty suffix's factor). */
static bool parse_scaled(const char *text, const unit *units, size_t n, double *out)
{
    char *end;
    errno = 0;
    if (isspace((unsigned char)*text)) return false;
    double v = strtod(text, &end);
    if (end == text || errno || !isfinite(v)) return false;
    for (size_t i = 0; i < n; i++)
        if (strcasecmp(end, units[i].suffix) == 0) {
            *out = v * units[i].factor;
            return isfinite(*out);
        }
    return false;
}

static const unit size_units[] = {
    {"", 1},         {"B", 1},       {"K", 0x1p10},   {"KB", 0x1p10},  {"KiB", 0x1p10},
    {"M", 0x1p20},   {"MB", 0x1p20}, {"MiB", 0x1p20}, {"G", 0x1p30},   {"GB", 0x1p30},
    {"GiB", 0x1p30}, {"T", 0x1p40},  {"TB", 0x1p40},  {"TiB", 0x1p40},
};
static const unit time_units[] = {
    {"", 1e6}, {"us", 1}, {"ms", 1e3}, {"s", 1e6}, {"m", 60e6}, {"min", 60e6}, {"h", 3600e6}, {"d", 86400e6},
};

static cw_status bad(const cw_option *o, const char *text, const char *want, cw_err *err)
{
    return CW_FAIL(err, CW_STATUS_INVALID, "--%s takes %s, not '%.80s'", o->name, want, text);
}

static cw_status check_bounds(const cw_option *o, const char *text, double v, cw_err *err)
{
    if ((o->min == 0 && o->max == 0) || (v >= o->min && v <= o->max)) return CW_OK;
    return CW_FAIL(err, CW_STATUS_INVALID, "--%s must lie between %.15g and %.15g, not %.80s", o->name,
                   o->min, o->max, text);
}

static bool parse_bool(const char *text, bool *out)
{
    static const char *const words[] = {"no", "yes", "false", "true", "off", "on", "0", "1"};
    for (size_t i = 0; i < CW_ARRAY_LEN(words); i++)
        if (strcasecmp(text, words[i]) == 0) {
            *out = i & 1;
            return true;
        }
    return false;
}

static bool parse_choice(const char *choices, const char *text, int *out)
{
    size_t n = strlen(text);
    int index = 0;
    for (const char *c = choices; *c; index++) {
        size_t len = strcspn(c, "|");
        if (len == n && strncasecmp(c, text, n) == 0) {
            *out = index;
            return true;
        }
        c += len;
        if (*c) c++;
    }
    return false;
}

static cw_status set_int(const cw_option *o, const char *text, void *field, cw_err *err)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno || isspace((unsigned char)*text))
        return bad(o, text, "a whole number", err);
    CW_TRY(check_bounds(o, text, (double)v, err));
    *(int64_t *)field = v;
    return CW_OK;
}

static cw_status set_real(const cw_option *o, const char *text, void *field, cw_err *err)
{
    static const unit none[] = {{"", 1}};
    double v;
    switch (o->type) {
    case CW_OPT_FLOAT:
        if (!parse_scaled(text, none, 1, &v)) return bad(o, text, "a number", err);
        CW_TRY(check_bounds(o, text, v, err));
        *(double *)field = v;
        return CW_OK;
    case CW_OPT_SIZE:
        if (!parse_scaled(text, size_units, CW_ARRAY_LEN(size_units), &v) || v < 0 || v >= 0x1p63)
            return bad(o, text, "a size such as 512M or 4G", err);
        CW_TRY(check_bounds(o, text, v, err));
        *(uint64_t *)field = (uint64_t)v;
        return CW_OK;
    default:
        if (!parse_scaled(text, time_units, CW_ARRAY_LEN(time_units), &v) || v < 0 || v >= 0x1p62)
            return bad(o, text, "a time such as 250ms, 5s or 2h", err);
        CW_TRY(check_bounds(o, text, v / 1e6, err));
        *(int64_t *)field = (int64_t)llround(v);
        return CW_OK;
    }
}

cw_status cw_option_set(const cw_option *o, const char *text, void *target, cw_err *err)
{
    void *field = (char *)target + o->offset;
    switch (o->type) {
    case CW_OPT_FLAG:
        if (!parse_bool(text, field)) return bad(o, text, "yes or no", err);
        return CW_OK;
    case CW_OPT_INT: return set_int(o, text, field, err);
    case CW_OPT_FLOAT:
    case CW_OPT_SIZE:
    case CW_OPT_DURATION: return set_real(o, text, field, err);
    case CW_OPT_ENUM:
        if (!parse_choice(o->choices, text, field))
            return CW_FAIL(err, CW_STATUS_INVALID, "--%s is one of %s, not '%.80s'", o->name, o->choices,
                           text);
        return CW_OK;
    case CW_OPT_STRING: *(const char **)field = text; return CW_OK;
    }
    return CW_OK;
}
