/*
 * Recycled memory for what comes and goes with every message: headers, frames, calls. A freed block is kept,
 * by size, for the next of that size, so that a process in its steady state takes nothing from the system.
 * Any thread; a block may be freed by another thread than the one that took it. At most some megabytes are
 * kept; more goes back at once.
 */
#pragma once
#include "cw/status.h"

/* Uninitialised bytes; NULL when memory is out. n 0 is valid. A block that is not recycled counts as an
 * allocation for the guard of cw/mem.h. */
CW_MUST_USE void *cw_block_take(size_t n);
/* All zeros. */
CW_MUST_USE void *cw_block_zeroed(size_t n);
/* Makes sure that n blocks of that size wait, for a thread that must not allocate when more than ever are under way. */
void cw_block_stock(size_t size, size_t n);
/* NULL is fine. */
void cw_block_give(void *p);
