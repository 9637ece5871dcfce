/*
 * Time. Intervals use CLOCK_BOOTTIME, so that a laptop that slept notices; wall time is for ticket expiry and logs only.
 * State machines never call this: they are handed the time.
 */
#pragma once
#include <stdint.h>

/* Microseconds since boot, sleep included. */
int64_t cw_now_us(void);
/* Nanoseconds of a clock that nothing sets and that stands still in sleep: for measuring short spans of work. */
uint64_t cw_mono_ns(void);
/* CPU time of all threads of this process. */
uint64_t cw_cpu_ns(void);
/* Wall clock, milliseconds since 1970. */
int64_t cw_wall_ms(void);
