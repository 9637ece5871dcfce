/*
 * Bounded queue of owned pointers between threads: many producers, one consumer, with an eventfd so that the
 * consumer can sit in poll() beside its sockets. A full queue is backpressure, a status, never a block.
 * Memory is allocated at creation only.
 */
#pragma once
#include "cw/status.h"

typedef struct cw_queue cw_queue;

/* `destroy` frees an item that nobody took (at cw_queue_free); NULL when items need no freeing. Errors:
 * INVALID (capacity 0), NO_MEMORY, LIMIT (no descriptor left). */
CW_MUST_USE cw_status cw_queue_new(size_t capacity, void (*destroy)(void *item), cw_queue **out, cw_err *err);
/* No other thread may use the queue any more. Destroys what is left in it. */
void cw_queue_free(cw_queue **q);

/* Any thread; never blocks. CW_OK: the queue owns `item` (not NULL). CW_STATUS_BUSY: full;
 * CW_STATUS_CANCELLED: closed; in both cases the caller still owns it. */
CW_MUST_USE cw_status cw_queue_push(cw_queue *q, void *item);
/* Consumer only; never blocks. The oldest item, now the caller's, or NULL when empty. */
CW_MUST_USE void *cw_queue_pop(cw_queue *q);
/* Consumer only. Sleeps until an item is there, the queue is closed, or timeout_ms passed (-1: for ever, 0:
 * no wait). The item, or NULL. */
CW_MUST_USE void *cw_queue_pop_wait(cw_queue *q, int timeout_ms);

/* Readable exactly while the queue holds an item or is closed. Only for poll; never read it. Borrowed. */
int cw_queue_fd(const cw_queue *q);
/* Items now in the queue; for statistics. Any thread. */
size_t cw_queue_depth(cw_queue *q);
/* Later pushes are refused with CANCELLED; what is inside can still be popped. Any thread, more than once. */
void cw_queue_close(cw_queue *q);
bool cw_queue_closed(cw_queue *q);
