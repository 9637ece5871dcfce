/*
 * Options: one table row drives the command line, the environment, the config file and --help.
 *
 * A program is a list of commands, a command is a list of option tables, and every row names the field of the
 * program's one options struct that it fills. Precedence: command line, then environment, then config file,
 * then the row's default. Unknown options, bad values and missing arguments are usage errors (exit code 2)
 * and say what was probably meant. Every program has --help, --version, --config FILE (key = value lines, #
 * comments) and --log LEVEL without a row.
 *
 * Runs once, in main, before any thread starts.
 */
#pragma once
#include "cw/status.h"

typedef enum {
    CW_OPT_FLAG,     /* bool: --name; in files and the environment yes/no, true/false, on/off, 1/0 */
    CW_OPT_INT,      /* int64_t */
    CW_OPT_FLOAT,    /* double */
    CW_OPT_SIZE,     /* uint64_t, bytes: 4096, 512K, 1.5G, 4GiB (powers of 1024) */
    CW_OPT_STRING,   /* const char *, lives as long as the process */
    CW_OPT_ENUM,     /* int: the index of the word in `choices` */
    CW_OPT_DURATION, /* int64_t, microseconds: 250ms, 5s, 10m, 2h, 1d; a bare number means seconds */
} cw_opt_type;

enum {
    CW_OPT_REQUIRED = 1, /* must be given somewhere */
    CW_OPT_NO_ENV = 2,   /* not read from the environment */
    CW_OPT_HIDDEN = 4,   /* works, but is not in --help */
};

typedef struct {
    const char *name; /* long name without dashes; NULL ends a table */
    char short_name;  /* 0: none */
    cw_opt_type type;
    size_t offset;       /* of the field in the options struct */
    const char *value;   /* word for the value in --help: "FILE"; NULL: one that suits the type */
    const char *choices; /* CW_OPT_ENUM: "auto|f32|f16" */
    double min, max;     /* INT, FLOAT, SIZE (bytes), DURATION (seconds); both 0: no bounds */
    const char *def;     /* as a user would write it; NULL: the field stays as it was */
    const char *env;     /* NULL: CAUSEWAY_ and the name in capitals */
    const char *group;   /* heading in --help; NULL: that of the row before */
    unsigned flags;
    const char *help; /* one sentence, no final full stop */
} cw_option;

enum { CW_OPT_MAX_TABLES = 8 };

typedef struct {
    const char *name;     /* "run", "token create"; "" is what the program does without a sub-command */
    const char *usage;    /* what follows the name: "-m MODEL -p PROMPT [options]" */
    const char *summary;  /* one line for the list of commands */
    const char *about;    /* paragraphs for --help, may be NULL */
    const char *examples; /* indented lines for --help, may be NULL */
    const cw_option *tables[CW_OPT_MAX_TABLES + 1]; /* NULL-terminated */
    int min_args, max_args;                         /* positional arguments; max -1: any number */
    const char *args_hint;                          /* what to say when there are too few: "a FILE" */
} cw_command;

typedef struct {
    const char *name;
    const char *summary;
    const char *about;
    const cw_command *commands;
    size_t n_commands;
} cw_program;

typedef struct {
    const cw_command *command;
    char **args; /* positional arguments, borrowed from argv */
    int n_args;
    bool help_printed; /* --help or --version was answered: leave with 0 */
} cw_parsed;

/* Parses argv into `target` (the options struct). CW_STATUS_INVALID: wrong usage, err says what. Prints help
 * to stdout. */
CW_MUST_USE cw_status cw_program_parse(const cw_program *p, int argc, char **argv, void *target,
                                       cw_parsed *out, cw_err *err);
/* The same for main(): prints the error as "NAME: sentence". -1: go on; otherwise main's exit code (0 or 2).
 */
CW_MUST_USE int cw_program_start(const cw_program *p, int argc, char **argv, void *target, cw_parsed *out);

/* Whether the field of option `name` was set by the user (command line, environment or file) in the last
 * parse. */
bool cw_option_given(const char *name);

/* Prints "NAME: sentence" to stderr and gives the exit code: 1 for work that failed, 2 (and a pointer to
 * --help) for wrong usage. */
int cw_program_fail(const cw_program *p, const cw_err *err);
int cw_program_usage(const cw_program *p, const cw_err *err);

/* One value by one row's rules, for admin sockets and tests. */
CW_MUST_USE cw_status cw_option_set(const cw_option *o, const char *text, void *target, cw_err *err);
