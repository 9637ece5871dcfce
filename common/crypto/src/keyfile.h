/* Key files: one line, "KIND HEX", of a secret of 32 bytes; mode 0600. */
#pragma once
#include "cw/status.h"

enum { CW_SEED_BYTES = 32 };

/* AUTH when others can read it, FORMAT when it is damaged. */
CW_MUST_USE cw_status cw_seed_read(const char *path, const char *kind, uint8_t seed[CW_SEED_BYTES],
                                   cw_err *err);
CW_MUST_USE cw_status cw_seed_write(const char *path, const char *kind, const uint8_t seed[CW_SEED_BYTES],
                                    cw_err *err);
