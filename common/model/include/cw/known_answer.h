/*
 * The known answer of an expert: the hash of its output for one built-in row. The coordinator writes it into the
 * manifest from its own file; a worker must come to the same hash before it serves the expert, which catches a bad chunk,
 * a miscompiled kernel and bad memory in one.
 */
#pragma once
#include "cw/expert_ffn.h"

enum { CW_KNOWN_ANSWER_BYTES = 32 };

/*
 * Computes the row with (layer, expert) of the set, which must be there (NOT_HERE), in the calling thread. A row that is
 * not finite has a known answer too: some file may hold such an expert, and it must be the same on every machine.
 * Allocates a row; `scratch` is of this set and free.
 */
CW_MUST_USE cw_status cw_expert_known_answer(const cw_kernels *kn, cw_expert_set *set, int layer, int expert,
                                             cw_expert_scratch *scratch, uint8_t out[CW_KNOWN_ANSWER_BYTES], cw_err *err);
