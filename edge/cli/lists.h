/* Lists of numbers on the command line: "1,2,3", "1 2 3", and "@file" with either. */
#pragma once
#include "cw/status.h"

enum { CLI_LIST_LIMIT = 64 << 20 }; /* bytes of text */

/* Numbers of 0..2^31-1; at least one. Caller frees *out with cw_free. `what` names the list in errors. */
CW_MUST_USE cw_status cli_list_parse(const char *text, const char *what, int32_t **out, size_t *n,
                                     cw_err *err);
/* The same from an argument that may be "@file" or "-". */
CW_MUST_USE cw_status cli_list_read(const char *arg, const char *what, int32_t **out, size_t *n, cw_err *err);
