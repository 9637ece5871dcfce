/*
 * SIGINT and SIGTERM as data: a flag for loops that compute and a descriptor for loops that poll. SIGPIPE is
 * ignored. A third SIGINT kills the process, should a stop hang.
 */
#pragma once
#include "cw/status.h"
#include <stdatomic.h>

/* Once, in main, before threads start. SIGINT stays ignored where the parent ignores it. */
CW_MUST_USE cw_status cw_signal_install(cw_err *err);
/* Readable from the moment a stop is asked for, for ever (nobody reads it empty). -1 before install. */
int cw_signal_stop_fd(void);
bool cw_signal_stopped(void);
/* How often a stop was asked for: twice means at once. */
int cw_signal_stops(void);
/* Asks for the stop as SIGTERM does. */
void cw_signal_stop(void);

/* While on, SIGINT sets only the interrupt flag (chat: Ctrl-C ends the answer); SIGTERM still stops. A stop
 * sets the interrupt flag too, so that one flag is enough to end whatever is going on. */
void cw_signal_set_interrupt(bool on);
bool cw_signal_interrupted(void);
/* No effect after a stop. */
void cw_signal_clear_interrupt(void);
/* The flag itself, for calls that take one to watch. */
const atomic_bool *cw_signal_interrupt_flag(void);
