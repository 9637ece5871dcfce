/* Shared by the parser and the help text of options. */
#pragma once
#include "cw/option.h"

/* The rows every program has; defined in option.c. */
extern const cw_option cw_option_builtin[];

/* "CAUSEWAY_KV" for row "kv"; buf is returned. */
const char *cw_option_env_name(const cw_option *o, char *buf, size_t cap);
void cw_option_print_help(const cw_program *p, const cw_command *c);
