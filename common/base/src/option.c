/*
 * The option parser: which row an argument, an environment variable or a line of the config file means, in
 * which order of precedence, and what to say when it means none. Values themselves are option_value.c, texts
 * option_help.c.
 */
#include "option_internal.h"
#include "cw/fs.h"
#include "cw/log.h"
#include "cw/mem.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 128, CONFIG_LIMIT = 1 << 20 };

/* What the built-in rows fill. */
typedef struct {
    bool help, version;
    const char *config;
    int log;
} builtin;

const cw_option cw_option_builtin[] = {
    {"config", 0, CW_OPT_STRING, offsetof(builtin, config), "FILE", NULL, 0, 0, NULL, NULL, "General", 0,
     "read options from FILE: one 'name = value' a line, # starts a comment"},
    {"log", 0, CW_OPT_ENUM, offsetof(builtin, log), "LEVEL", "error|warn|info|debug", 0, 0, "warn", NULL,
     NULL, 0, "how much to report on stderr: error, warn, info or debug"},
    {"help", 'h', CW_OPT_FLAG, offsetof(builtin, help), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "this text"},
    {"version", 0, CW_OPT_FLAG, offsetof(builtin, version), NULL, NULL, 0, 0, NULL, NULL, NULL, CW_OPT_NO_ENV,
     "the version, and nothing else"},
    {0},
};

/* Where a value came from; a higher source wins. */
typedef enum { FROM_NOWHERE, FROM_FILE, FROM_ENV, FROM_ARGS } source;

typedef struct {
    const cw_option *row;
    void *target;
    source from;
} slot;

static struct {
    slot slots[MAX_ROWS];
    size_t n;
} table; /* of the last parse, for cw_option_given */

static void table_add(const cw_option *rows, void *target)
{
    for (; rows->name; rows++) {
        CW_ASSERT(table.n < MAX_ROWS);
        table.slots[table.n++] = (slot){rows, target, FROM_NOWHERE};
    }
}

static slot *find_long(const char *name, size_t len)
{
    for (size_t i = 0; i < table.n; i++)
        if (strlen(table.slots[i].row->name) == len && memcmp(table.slots[i].row->name, name, len) == 0)
            return &table.slots[i];
    return NULL;
}

static slot *find_short(char c)
{
    for (size_t i = 0; i < table.n; i++)
        if (table.slots[i].row->short_name == c) return &table.slots[i];
    return NULL;
}

bool cw_option_given(const char *name)
{
    slot *s = find_long(name, strlen(name));
    return s && s->from != FROM_NOWHERE;
}

static cw_status assign(slot *s, const char *text, source from, cw_err *err)
{
    if (s->from > from) return CW_OK;
    CW_TRY(cw_option_set(s->row, text, s->target, err));
    s->from = from;
    return CW_OK;
}

/* Edit distance with transpositions; names are short. */
static size_t distance(const char *a, size_t n, const char *b)
{
    enum { MAX = 40 };
    size_t m = strlen(b), d[MAX + 1][MAX + 1];
    if (n > MAX || m > MAX) return MAX;
    for (size_t i = 0; i <= n; i++) d[i][0] = i;
    for (size_t j = 0; j <= m; j++) d[0][j] = j;
    for (size_t i = 1; i <= n; i++)
        for (size_t j = 1; j <= m; j++) {
            size_t best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    return d[n][m];
}

static bool is_near(size_t dist, size_t len)
{
    return dist <= 1 + len / 4;
}

static cw_status unknown_option(const char *name, size_t len, cw_err *err)
{
    const char *best = NULL;
    size_t best_dist = SIZE_MAX;
    for (size_t i = 0; i < table.n; i++) {
        size_t dist = distance(name, len, table.slots[i].row->name);
        if (dist < best_dist && !(table.slots[i].row->flags & CW_OPT_HIDDEN)) {
            best_dist = dist;
            best = table.slots[i].row->name;
        }
    }
    if (best && is_near(best_dist, len))
        return CW_FAIL(err, CW_STATUS_INVALID, "unknown option --%.*s; did you mean --%s?", (int)len, name,
                       best);
    return CW_FAIL(err, CW_STATUS_INVALID, "unknown option --%.*s", (int)len, name);
}

static cw_status parse_long(char **argv, int argc, int *i, cw_err *err)
{
    const char *name = argv[*i] + 2;
    size_t len = strcspn(name, "=");
    slot *s = find_long(name, len);
    if (!s) return unknown_option(name, len, err);
    if (name[len]) return assign(s, name + len + 1, FROM_ARGS, err);
    if (s->row->type == CW_OPT_FLAG) return assign(s, "yes", FROM_ARGS, err);
    if (*i + 1 >= argc) return CW_FAIL(err, CW_STATUS_INVALID, "--%s needs a value", s->row->name);
    return assign(s, argv[++*i], FROM_ARGS, err);
}

static cw_status parse_short(char **argv, int argc, int *i, cw_err *err)
{
    for (const char *c = argv[*i] + 1; *c; c++) {
        slot *s = find_short(*c);
        if (!s) return CW_FAIL(err, CW_STATUS_INVALID, "unknown option -%c", *c);
        if (s->row->type == CW_OPT_FLAG) {
            CW_TRY(assign(s, "yes", FROM_ARGS, err));
            continue;
        }
        if (c[1]) return assign(s, c + 1, FROM_ARGS, err);
        if (*i + 1 >= argc) return CW_FAIL(err, CW_STATUS_INVALID, "-%c needs a value", *c);
        return assign(s, argv[++*i], FROM_ARGS, err);
    }
    return CW_OK;
}

/* Options and positional arguments in any order; positional ones are moved to the front of argv. */
static cw_status parse_args(const cw_command *c, char **argv, int argc, cw_parsed *out, cw_err *err)
{
    bool only_args = false;
    out->args = argv;
    for (int i = 0; i < argc; i++) {
        char *a = argv[i];
        if (!only_args && strcmp(a, "--") == 0) {
            only_args = true;
        } else if (!only_args && a[0] == '-' && a[1] == '-') {
            CW_TRY(parse_long(argv, argc, &i, err));
        } else if (!only_args && a[0] == '-' && a[1]) {
            CW_TRY(parse_short(argv, argc, &i, err));
        } else {
            if (c->max_args >= 0 && out->n_args >= c->max_args)
                return CW_FAIL(err, CW_STATUS_INVALID, "unexpected argument '%.80s'", a);
            argv[out->n_args++] = a;
        }
    }
    return CW_OK;
}

const char *cw_option_env_name(const cw_option *o, char *buf, size_t cap)
{
    if (o->env) return o->env;
    size_t n = (size_t)snprintf(buf, cap, "CAUSEWAY_%s", o->name);
    CW_ASSERT(n < cap);
    for (char *c = buf; *c; c++) *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    return buf;
}

static cw_status parse_env(cw_err *err)
{
    for (size_t i = 0; i < table.n; i++) {
        const cw_option *o = table.slots[i].row;
        if (o->flags & CW_OPT_NO_ENV) continue;
        char name[80];
        const char *v = getenv(cw_option_env_name(o, name, sizeof name));
        if (!v || !*v) continue;
        if (assign(&table.slots[i], v, FROM_ENV, err) != CW_OK)
            return cw_err_prefix(err, "environment variable %s", cw_option_env_name(o, name, sizeof name));
    }
    return CW_OK;
}

static char *trim(char *s)
{
    while (isspace((unsigned char)*s)) s++;
    size_t n = strlen(s);
    while (n && isspace((unsigned char)s[n - 1])) s[--n] = 0;
    return s;
}

/* One file may serve all commands of a program: a name that another command knows is passed over. */
static bool other_command_knows(const cw_program *p, const char *name)
{
    for (size_t c = 0; c < p->n_commands; c++)
        for (size_t t = 0; p->commands[c].tables[t]; t++)
            for (const cw_option *o = p->commands[c].tables[t]; o->name; o++)
                if (strcmp(o->name, name) == 0) return true;
    return false;
}

static cw_status parse_config_line(const cw_program *p, char *line, cw_err *err)
{
    char *name = trim(line);
    if (!*name || *name == '#') return CW_OK;
    char *eq = strchr(name, '=');
    if (!eq) return CW_FAIL(err, CW_STATUS_INVALID, "'%.80s' is not 'name = value'", name);
    *eq = 0;
    name = trim(name);
    slot *s = find_long(name, strlen(name));
    if (!s && other_command_knows(p, name)) return CW_OK;
    if (!s) return unknown_option(name, strlen(name), err);
    if (s->row == &cw_option_builtin[0] || (s->row->flags & CW_OPT_NO_ENV))
        return CW_FAIL(err, CW_STATUS_INVALID, "'%s' has no place in a config file", name);
    return assign(s, trim(eq + 1), FROM_FILE, err);
}

/* Texts of config files: STRING fields point into them and live as long as the process. */
typedef struct config_text {
    struct config_text *next;
    char *text;
} config_text;
static config_text *kept;

static cw_status parse_config(const cw_program *p, const char *path, cw_err *err)
{
    config_text *c = cw_calloc(1, sizeof *c);
    if (!c) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    c->next = kept;
    kept = c;
    size_t bytes;
    CW_TRY(cw_fs_read(path, CONFIG_LIMIT, &c->text, &bytes, err));
    int line_no = 0;
    for (char *line = c->text, *next; line; line = next) {
        line_no++;
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        if (parse_config_line(p, line, err) != CW_OK) return cw_err_prefix(err, "%s line %d", path, line_no);
    }
    return CW_OK;
}

static size_t words_matched(const char *name, int argc, char **argv)
{
    size_t n = 0;
    while (*name) {
        size_t len = strcspn(name, " ");
        if ((int)n >= argc || strlen(argv[n]) != len || memcmp(argv[n], name, len) != 0) return 0;
        n++;
        name += len;
        while (*name == ' ') name++;
    }
    return n;
}

/* The command with the most words in front of argv; the unnamed one where argv starts with an option or
 * nothing. */
static cw_status pick_command(const cw_program *p, int argc, char **argv, const cw_command **out,
                              size_t *words, cw_err *err)
{
    const cw_command *best = NULL, *unnamed = NULL, *near = NULL;
    size_t best_words = 0, near_dist = SIZE_MAX;
    for (size_t i = 0; i < p->n_commands; i++) {
        const cw_command *c = &p->commands[i];
        if (!*c->name) unnamed = c;
        size_t n = words_matched(c->name, argc, argv);
        if (n > best_words) best_words = n, best = c;
        if (argc && *c->name) {
            size_t d = distance(argv[0], strlen(argv[0]), c->name);
            if (d < near_dist) near_dist = d, near = c;
        }
    }
    if (!best && (argc == 0 || argv[0][0] == '-' || (unnamed && unnamed->max_args != 0))) best = unnamed;
    if (best) {
        *out = best;
        *words = best_words;
        return CW_OK;
    }
    if (argc == 0) return CW_FAIL(err, CW_STATUS_INVALID, "which command? See %s --help", p->name);
    if (argv[0][0] == '-')
        return CW_FAIL(err, CW_STATUS_INVALID, "which command? '%.40s' would come after it; see %s --help", argv[0],
                       p->name);
    if (near && is_near(near_dist, strlen(argv[0])))
        return CW_FAIL(err, CW_STATUS_INVALID, "unknown command '%.40s'; did you mean '%s'?", argv[0],
                       near->name);
    return CW_FAIL(err, CW_STATUS_INVALID, "unknown command '%.40s'; see %s --help", argv[0], p->name);
}

static cw_status apply_defaults(cw_err *err)
{
    for (size_t i = 0; i < table.n; i++)
        if (table.slots[i].row->def)
            CW_TRY(cw_option_set(table.slots[i].row, table.slots[i].row->def, table.slots[i].target, err));
    return CW_OK;
}

static cw_status check_complete(const cw_command *c, const cw_parsed *out, cw_err *err)
{
    for (size_t i = 0; i < table.n; i++)
        if ((table.slots[i].row->flags & CW_OPT_REQUIRED) && table.slots[i].from == FROM_NOWHERE) {
            const cw_option *o = table.slots[i].row;
            if (o->short_name)
                return CW_FAIL(err, CW_STATUS_INVALID, "-%c (--%s) is missing: %s", o->short_name, o->name,
                               o->help);
            return CW_FAIL(err, CW_STATUS_INVALID, "--%s is missing: %s", o->name, o->help);
        }
    if (out->n_args < c->min_args)
        return CW_FAIL(err, CW_STATUS_INVALID, "%s is missing", c->args_hint ? c->args_hint : "an argument");
    return CW_OK;
}

static bool is_word(int argc, char **argv, const char *word)
{
    return argc == 1 && strcmp(argv[0], word) == 0;
}

cw_status cw_program_parse(const cw_program *p, int argc, char **argv, void *target, cw_parsed *out,
                           cw_err *err)
{
    static builtin own;
    memset(&own, 0, sizeof own);
    *out = (cw_parsed){0};
    argc--, argv++;
    if (is_word(argc, argv, "--help") || is_word(argc, argv, "-h") || is_word(argc, argv, "help")) {
        cw_option_print_help(p, NULL);
        out->help_printed = true;
        return CW_OK;
    }
    if (is_word(argc, argv, "--version")) {
        printf("%s %s\n", p->name, CW_VERSION);
        out->help_printed = true;
        return CW_OK;
    }
    size_t words = 0;
    CW_TRY(pick_command(p, argc, argv, &out->command, &words, err));
    table.n = 0;
    for (size_t t = 0; out->command->tables[t]; t++) table_add(out->command->tables[t], target);
    table_add(cw_option_builtin, &own);
    CW_TRY(apply_defaults(err));
    CW_TRY(parse_args(out->command, argv + words, argc - (int)words, out, err));
    if (own.help) {
        cw_option_print_help(p, out->command);
        out->help_printed = true;
        return CW_OK;
    }
    if (own.version) {
        printf("%s %s\n", p->name, CW_VERSION);
        out->help_printed = true;
        return CW_OK;
    }
    CW_TRY(parse_env(err));
    if (own.config) CW_TRY(parse_config(p, own.config, err));
    cw_log_set_level((cw_log_level)own.log);
    return check_complete(out->command, out, err);
}

int cw_program_fail(const cw_program *p, const cw_err *err)
{
    fprintf(stderr, "%s: %s\n", p->name, err->text);
    return 1;
}

int cw_program_usage(const cw_program *p, const cw_err *err)
{
    fprintf(stderr, "%s: %s\n", p->name, err->text);
    fprintf(stderr, "Try '%s --help'.\n", p->name);
    return 2;
}

int cw_program_start(const cw_program *p, int argc, char **argv, void *target, cw_parsed *out)
{
    cw_err err = {0};
    cw_status s = cw_program_parse(p, argc, argv, target, out, &err);
    if (s != CW_OK) return s == CW_STATUS_INVALID ? cw_program_usage(p, &err) : cw_program_fail(p, &err);
    return out->help_printed ? 0 : -1;
}
