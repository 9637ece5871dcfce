/*
 * A cluster in the simulator: the real coordinator, two real workers, two real edges, the faults that a seed
 * chooses, and what must hold while they happen:
 *
 *   every request ends once, and what it gives is what the pure function gives (no answer lost or changed);
 *   no worker computes an expert it does not hold, none holds more than its memory;
 *   nobody ever sees an epoch go back, or one that the coordinator had not saved;
 *   no honest process is blamed, refused, or sends something illegal;
 *   when the last fault is over, answers flow again within a bound, every worker is ready and everybody knows
 * the newest epoch.
 */
#pragma once
#include "sim.h"

enum {
    FAULT_CUT,
    FAULT_HOLE,
    FAULT_PAUSE,
    FAULT_KILL,
    FAULT_STOP,
    FAULT_SLOW,
    FAULT_WALL,
    FAULT_SAVE,
    FAULT_BACKUP,
    N_FAULTS
};

typedef struct {
    uint64_t requests, events, messages, lost, epochs;
    uint32_t faults[N_FAULTS];
} cluster_counts;

/* NULL: everything held; else a sentence in static memory, after the end of the trace was printed. */
const char *cluster_run(uint64_t seed, bool trace, cluster_counts *counts);
const char *cluster_fault_name(int fault);
