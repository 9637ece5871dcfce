/* causeway: the edge's command. Only this file exits. */
#include "cli.h"
#include "cw/cpus.h"
#include "cw/signal.h"

#include <string.h>

static const struct {
    const char *name;
    int (*run)(const cli_options *, const cw_parsed *);
} commands[] = {
    {"run", cli_run},
    {"chat", cli_chat},
    {"logits", cli_logits},
    {"tokenize", cli_tokenize},
    {"inspect", cli_inspect},
    {"plan", cli_plan},
    {"bench", cli_bench},
    {"perplexity", cli_perplexity},
};

int main(int argc, char **argv)
{
    static cli_options options;
    cw_parsed parsed;
    int code = cw_program_start(&cli_program, argc, argv, &options, &parsed);
    if (code >= 0) return code;
    cw_err err;
    if (options.cpus && cw_cpus_bind(options.cpus, &err) != CW_OK)
        return cw_program_usage(&cli_program, &err);
    if (cw_signal_install(&err) != CW_OK) return cli_fail(&err);
    for (size_t i = 0; i < CW_ARRAY_LEN(commands); i++)
        if (strcmp(commands[i].name, parsed.command->name) == 0) return commands[i].run(&options, &parsed);
    return 2;
}
