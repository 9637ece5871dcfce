/*
 * Secrets of 32 bytes, new or from a file, on their way to what is made of them. A key file is one line,
 * "KIND HEX", mode 0600. Every buffer a secret passes through is wiped.
 */
#pragma once
#include "cw/status.h"

enum { CW_SEED_BYTES = 32 };

/* What is made of a secret; the seed is gone after the call. */
typedef cw_status (*cw_seed_use)(const uint8_t seed[CW_SEED_BYTES], void *out, cw_err *err);

CW_MUST_USE cw_status cw_seed_new(cw_seed_use use, void *out, cw_err *err);
/*
 * From the file; where there is none a new secret, and the file. Of several processes that make it at once
 * one makes it and all have the same. AUTH when others can read it, FORMAT when it is damaged, IO.
 */
CW_MUST_USE cw_status cw_seed_open(const char *path, const char *kind, cw_seed_use use, void *out,
                                   cw_err *err);
