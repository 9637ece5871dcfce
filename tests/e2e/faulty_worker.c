/*
 * causeway-worker whose machine errs: one bit of about one row in a hundred comes out wrong. The program itself, linked
 * with --wrap=compute_now (one thread: --threads 1). Which rows follows from a fixed seed, so that a test that fails can
 * be run again; experts are loaded and checked rightly, as with a fault that comes later.
 */
#include <stdint.h>

#include "cw/worker_machine.h"

typedef struct compute compute;
void __real_compute_now(compute *c, cw_job *job);
void __wrap_compute_now(compute *c, cw_job *job);

void __wrap_compute_now(compute *c, cw_job *job)
{
    static uint64_t state = 88172645463325252u;
    __real_compute_now(c, job);
    for (uint32_t i = 0; i < job->n_rows; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        if (state % 100 == 0) ((uint8_t *)job->rows[i].out)[state >> 20 & 31] ^= 0x10;
    }
}
