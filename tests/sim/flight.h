/*
 * A long flight: many edges over days, whose links come and go, that sleep and wake, above a cluster whose
 * machines come and go too. Every edge has a fallback: what answers is a copy of the token loop's rule (one
 * request a layer; out of reach: the fallback goes on; the tide is in again: the main model reads what it
 * missed). Compressed: most edges sleep most of the time, and simulated sleep costs nothing.
 *
 * Beside everything that holds in a cluster (cluster.h):
 *
 *   an answer never fails: its tokens come from the main model, bit for bit, or from the fallback, and it
 * ends; connectivity decides: no edge goes offline while its link has been good and every expert was served
 * for some seconds, however slow the answers; nor before its waits are over, in which sleep does not count;
 *   the fallback speaks within the bound once the link is dead; the main model is asked again within the
 * bound once it is good; a return is believed no sooner than its hold, which doubles with each that did not
 * last, so changes of the speaker are bounded; at rest, workers and coordinator keep nothing of edges that
 * are gone, and the memory of all is what it was on the first night.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

typedef struct {
    int edges, hours;
} flight_plan;

typedef struct {
    uint64_t events, messages, answers, by_main, by_fallback, changes, offline, timeouts, visits, sleeps,
        weather, faults;
    uint64_t renewed;    /* tickets that replaced another */
    uint64_t rest_bytes; /* of all machines and the simulator, on the last night */
    int64_t slept_s;
    uint32_t most_awake;
} flight_counts;

/* NULL: everything held; else a sentence in static memory. `trace`: 0 nothing is printed, 1 the end of the
 * story when it failed, 2 every message. */
const char *flight_run(uint64_t seed, const flight_plan *plan, int trace, flight_counts *counts);
