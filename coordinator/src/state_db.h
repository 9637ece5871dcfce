/*
 * What a coordinator must not forget, in one SQLite file of its state directory: tokens (hashed), keys, term,
 * epoch, serial.
 *
 * The directory is private (0700) and locked: a second coordinator is told who holds it. Rows of one event
 * are saved in one transaction that is on disk before cw_state_save returns. One thread at a time; blocks on
 * the disk.
 */
#pragma once
#include "cw/coordinator.h"

typedef struct cw_state cw_state;

/* Makes what is missing. BUSY: another process holds the directory. FORMAT: the file is damaged or of a later
 * version; the sentence says what to do. */
CW_MUST_USE cw_status cw_state_open(const char *dir, cw_state **out, cw_err *err);
void cw_state_close(cw_state **s);
/* 16 bytes made with the state. */
const uint8_t *cw_state_cluster(const cw_state *s);
/* Everything saved; pointers are good until the next load or close. */
CW_MUST_USE cw_status cw_state_load(cw_state *s, cw_coordinator_state *out, cw_err *err);
CW_MUST_USE cw_status cw_state_save(cw_state *s, const cw_row *rows, size_t n, cw_err *err);
