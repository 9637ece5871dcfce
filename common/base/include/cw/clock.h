/*
 * Time. Intervals use CLOCK_BOOTTIME, so that a laptop that slept notices; wall time is for ticket expiry and logs only.
 * State machines never call this: they are handed the time.
 */
#pragma once
#include <stdint.h>

/* Microseconds since boot, sleep included. */
int64_t cw_now_us(void);
/* Wall clock, milliseconds since 1970. */
int64_t cw_wall_ms(void);
