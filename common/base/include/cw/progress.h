/*
 * Progress of something long on stderr: one line redrawn on a terminal, a line every five seconds elsewhere,
 * nothing at all for what ends within a second. One thread at a time.
 */
#pragma once
#include "cw/status.h"

typedef struct {
    const char *label; /* borrowed */
    uint64_t total, done;
    int64_t start_us, last_us;
    bool tty, shown;
} cw_progress;

/* `total` in bytes; 0 when unknown. */
void cw_progress_begin(cw_progress *p, const char *label, uint64_t total);
void cw_progress_update(cw_progress *p, uint64_t done);
void cw_progress_end(cw_progress *p);

/* The line itself, for tests: "loading  12.0 MiB of 24.0 MiB  50 %  3 s left". Elapsed in microseconds. */
void cw_progress_text(const cw_progress *p, int64_t elapsed_us, char *buf, size_t cap);
/* "12.0 MiB", "640 B". */
const char *cw_bytes_text(uint64_t bytes, char *buf, size_t cap);
