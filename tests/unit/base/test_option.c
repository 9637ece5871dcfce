/* Options: precedence, bounds, what a wrong word is told, and that one table serves command line, environment
 * and file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/log.h"
#include "cw/option.h"

typedef struct {
    bool json;
    int64_t n, wait;
    double temp;
    uint64_t memory;
    const char *model;
    int kv;
} opts;

#define AT(f) offsetof(opts, f)
static const cw_option model_rows[] = {
    {"model", 'm', CW_OPT_STRING, AT(model), "FILE", NULL, 0, 0, NULL, NULL, "Model", CW_OPT_REQUIRED,
     "the model file"},
    {0},
};
static const cw_option rows[] = {
    {"json", 0, CW_OPT_FLAG, AT(json), NULL, NULL, 0, 0, NULL, NULL, "Output", 0, "one object a line"},
    {"max-tokens", 'n', CW_OPT_INT, AT(n), "N", NULL, 1, 1000, "256", NULL, NULL, 0, "longest answer"},
    {"temp", 0, CW_OPT_FLOAT, AT(temp), NULL, NULL, 0, 10, "0", NULL, NULL, 0, "temperature"},
    {"memory", 0, CW_OPT_SIZE, AT(memory), NULL, NULL, 0, 0, NULL, NULL, NULL, 0, "memory"},
    {"wait", 0, CW_OPT_DURATION, AT(wait), NULL, NULL, 0, 0, "2s", NULL, NULL, 0, "patience"},
    {"kv", 0, CW_OPT_ENUM, AT(kv), NULL, "auto|f32|f16", 0, 0, "auto", NULL, NULL, 0, "cache type"},
    {0},
};
static const cw_option only_other[] = {
    {"uses", 0, CW_OPT_INT, AT(n), NULL, NULL, 1, 0x1p53, "8", NULL, NULL, 0, "how often"},
    {0},
};
static const cw_command commands[] = {
    {"run", "-m FILE [options]", "answer", NULL, NULL, {model_rows, rows}, 0, 0, NULL},
    {"token create", "[options]", "make a token", NULL, NULL, {only_other}, 0, 0, NULL},
    {"token list", "", "list tokens", NULL, NULL, {NULL}, 0, 0, NULL},
    {"inspect", "FILE", "look at a file", NULL, NULL, {NULL}, 1, 1, "FILE"},
};
static const cw_program program = {"prog", "tests", NULL, commands, 4};

static cw_status parse(opts *o, cw_parsed *p, cw_err *err, const char *line)
{
    static char copy[512];
    static char *argv[32];
    int argc = 1;
    argv[0] = (char *)"prog";
    snprintf(copy, sizeof copy, "%s", line);
    for (char *w = strtok(copy, " "); w; w = strtok(NULL, " ")) argv[argc++] = w;
    memset(o, 0, sizeof *o);
    memset(err, 0, sizeof *err);
    return cw_program_parse(&program, argc, argv, o, p, err);
}

static void values_reach_their_fields(void **state)
{
    (void)state;
    opts o;
    cw_parsed p;
    cw_err err;
    assert_int_equal(
        parse(&o, &p, &err, "run -m a.gguf --json -n7 --temp=0.5 --memory 1.5G --wait 250ms --kv F16"),
        CW_OK);
    assert_string_equal(o.model, "a.gguf");
    assert_true(o.json);
    assert_int_equal(o.n, 7);
    assert_true(o.temp == 0.5);
    assert_int_equal(o.memory, 3ull << 29);
    assert_int_equal(o.wait, 250000);
    assert_int_equal(o.kv, 2);
    assert_true(cw_option_given("temp"));
    assert_int_equal(parse(&o, &p, &err, "run -m a"), CW_OK);
    assert_int_equal(o.n, 256);
    assert_int_equal(o.wait, 2000000);
    assert_false(cw_option_given("temp"));
}

static void refuses(const char *line, const char *part)
{
    opts o;
    cw_parsed p;
    cw_err err;
    assert_int_equal(parse(&o, &p, &err, line), CW_STATUS_INVALID);
    if (!strstr(err.text, part)) fail_msg("'%s' said '%s', not '%s'", line, err.text, part);
}

static void wrong_usage_is_explained(void **state)
{
    (void)state;
    refuses("run -m a --tepm 1", "did you mean --temp");
    refuses("run -m a --zzzzzzz", "unknown option --zzzzzzz");
    refuses("run -m a -x", "unknown option -x");
    refuses("run -m a -n 0", "between 1 and 1000");
    refuses("run -m a -n 1001", "between 1 and 1000");
    refuses("run -m a -n 7x", "whole number");
    refuses("run -m a -n", "needs a value");
    refuses("run -m a --temp nan", "a number");
    refuses("run -m a --memory -1", "a size");
    refuses("run -m a --memory 99999999999T", "a size");
    refuses("run -m a --wait 3parsecs", "a time");
    refuses("run -m a --kv f8", "auto|f32|f16");
    refuses("run -m a stray", "unexpected argument 'stray'");
    refuses("run", "-m (--model) is missing");
    refuses("rnu -m a", "did you mean 'run'");
    refuses("inspect", "FILE is missing");
    refuses("inspect a b", "unexpected argument 'b'");
    refuses("", "which command");
    refuses("token", "unknown command 'token'");
}

static void commands_may_have_two_words(void **state)
{
    (void)state;
    opts o;
    cw_parsed p;
    cw_err err;
    assert_int_equal(parse(&o, &p, &err, "token create --uses 3"), CW_OK);
    assert_string_equal(p.command->name, "token create");
    assert_int_equal(o.n, 3);
    assert_int_equal(parse(&o, &p, &err, "inspect -- --odd-name"), CW_OK);
    assert_int_equal(p.n_args, 1);
    assert_string_equal(p.args[0], "--odd-name");
}

static void typed_beats_environment_beats_file(void **state)
{
    (void)state;
    char path[] = "/tmp/cw-option-XXXXXX", line[128];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    static const char text[] =
        "# comment\n temp = 3 \nmax-tokens=30\n\nkv = f32\nuses = 4\nlog=error\nmodel = from file.gguf";
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
    opts o;
    cw_parsed p;
    cw_err err;
    setenv("CAUSEWAY_TEMP", "2", 1);
    setenv("CAUSEWAY_MAX_TOKENS", "20", 1);
    snprintf(line, sizeof line, "run -n 10 --config %s", path);
    assert_int_equal(parse(&o, &p, &err, line), CW_OK);
    assert_int_equal(o.n, 10);
    assert_true(o.temp == 2);
    assert_int_equal(o.kv, 1);
    assert_string_equal(o.model, "from file.gguf");
    assert_int_equal(cw_log_get_level(), CW_LOG_ERROR);
    setenv("CAUSEWAY_TEMP", "hot", 1);
    refuses("run -m a", "environment variable CAUSEWAY_TEMP");
    unsetenv("CAUSEWAY_TEMP");
    unsetenv("CAUSEWAY_MAX_TOKENS");

    FILE *f = fopen(path, "w");
    fputs("temp = 1\ntmep = 2\n", f);
    fclose(f);
    refuses(line, "line 2: unknown option --tmep; did you mean --temp");
    f = fopen(path, "w");
    fputs("config = x\n", f);
    fclose(f);
    refuses(line, "no place in a config file");
    unlink(path);
    snprintf(line, sizeof line, "run -m a --config %s", path);
    assert_int_equal(parse(&o, &p, &err, line), CW_STATUS_NOT_FOUND);
}

/* Standard output of a parse, read back. */
static const char *printed(const char *line)
{
    static char text[16384];
    opts o;
    cw_parsed p;
    cw_err err;
    FILE *tmp = tmpfile();
    assert_non_null(tmp);
    fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    dup2(fileno(tmp), STDOUT_FILENO);
    cw_status s = parse(&o, &p, &err, line);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    assert_int_equal(s, CW_OK);
    assert_true(p.help_printed);
    rewind(tmp);
    text[fread(text, 1, sizeof text - 1, tmp)] = 0;
    fclose(tmp);
    return text;
}

static void help_shows_every_row(void **state)
{
    (void)state;
    const char *t = printed("run --help");
    for (const cw_option *o = rows; o->name; o++) assert_non_null(strstr(t, o->name));
    assert_non_null(strstr(t, "usage: prog run -m FILE"));
    assert_non_null(strstr(t, "CAUSEWAY_MAX_TOKENS"));
    assert_non_null(strstr(t, "[default: 256]"));
    for (const char *l = t, *e; (e = strchr(l, '\n')); l = e + 1) assert_true(e - l <= 110);
    t = printed("--help");
    for (size_t i = 0; i < CW_ARRAY_LEN(commands); i++) assert_non_null(strstr(t, commands[i].summary));
    assert_string_equal(printed("--version"), "prog " CW_VERSION "\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_reach_their_fields),   cmocka_unit_test(wrong_usage_is_explained),
        cmocka_unit_test(commands_may_have_two_words), cmocka_unit_test(typed_beats_environment_beats_file),
        cmocka_unit_test(help_shows_every_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
