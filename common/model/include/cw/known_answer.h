/*
 * The known answer of an expert: the hash of its output for one built-in row. The coordinator writes it into
 * the manifest from its own file; a worker must come to the same hash before it serves the expert, which
 * catches a bad chunk, a miscompiled kernel and bad memory in one.
 */
#pragma once
#include "cw/expert_ffn.h"

enum { CW_KNOWN_ANSWER_BYTES = 32 };

/*
 * Computes the row with (layer, expert) of the set, which must be there (NOT_HERE), in the calling thread. A
 * row that is not finite has a known answer too: some file may hold such an expert, and it must be the same
 * on every machine. Allocates a row; `scratch` is of this set and free.
 */
CW_MUST_USE cw_status cw_expert_known_answer(const cw_kernels *kn, cw_expert_set *set, int layer, int expert,
                                             cw_expert_scratch *scratch, uint8_t out[CW_KNOWN_ANSWER_BYTES],
                                             cw_err *err);

/*
 * Audits: many such rows made from a seed that nobody knows beforehand. Who asks computes them with the
 * reference, who is asked with its ordinary compute path, and the hashes of the rows are compared. Row i of a
 * seed is the same wherever and with however many others it is made.
 *
 * Fills a row of d values in the form the layer takes (cw_expert_rows_kind): A8 as q [d] and s [d / 32] (q
 * never -128, s a power of two), or x [d]; the pointers of the other form are NULL. Both forms stand for the
 * same values. Any thread.
 */
void cw_audit_row(uint64_t seed, uint32_t i, int d, int8_t *q, float *s, float *x);
/* Of one output row: its bytes as the layer gives them (f16 or f32, cw_expert_reply_kind), the exponent (0
 * for f32 rows). `bad`: it is not finite; then bytes and exponent are not looked at. */
uint64_t cw_audit_hash(const void *row, size_t bytes, int8_t exponent, bool bad);
/*
 * The hashes of rows 0 .. n_rows - 1 as the reference: (layer, expert) of the set, which must be there
 * (NOT_HERE), in the calling thread, as many rows at a time as `scratch` takes. Allocates those rows.
 */
CW_MUST_USE cw_status cw_expert_audit(const cw_kernels *kn, cw_expert_set *set, int layer, int expert,
                                      uint64_t seed, uint32_t n_rows, cw_expert_scratch *scratch,
                                      uint64_t *hashes, cw_err *err);
