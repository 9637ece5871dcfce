/*
 * A cluster in the simulator: the real coordinator, as many real workers and edges as the seed says, the
 * faults it chooses, and what must hold while they happen (watch.c):
 *
 *   every request ends once, and what it gives is what the pure function gives: no answer lost or changed;
 *   no worker computes an expert it does not hold, none holds more than its memory;
 *   nobody ever sees an epoch go back, or one that the coordinator had not saved, or one that names a home
 * that was not ready;
 *   no call id is used twice, every call that arrived is answered at most once, and nothing else is;
 *   an expert is dropped only while another worker has it ready;
 *   hedges stay within 5 % of an edge's messages;
 *   a worker that lies now and then is fenced, and after that no answer is wrong;
 *   no honest process is blamed, refused or fenced, or sends something illegal; a stolen ticket opens
 * nothing; when the last fault is over, answers flow again within a bound, every worker is ready and
 * everybody knows the newest epoch.
 */
#pragma once
#include "sim.h"

typedef enum {
    FAULT_CUT,
    FAULT_HOLE,
    FAULT_PAUSE,
    FAULT_KILL,
    FAULT_STOP,
    FAULT_SLOW,
    FAULT_NARROW,
    FAULT_WALL,
    FAULT_SAVE,
    FAULT_BACKUP,
    FAULT_JOIN,
    FAULT_GONE,
    FAULT_DRAIN,
    FAULT_REVOKE_WORKER,
    FAULT_REVOKE_EDGE,
    FAULT_OVERLOAD,
    FAULT_BUSY,
    FAULT_DISK,
    FAULT_LIE,
    N_FAULTS
} cluster_fault;

typedef struct {
    uint64_t requests, events, messages, lost, epochs, calls, drops, hedges, lies, fenced, wrong;
    uint32_t faults[N_FAULTS], most_workers, most_edges;
} cluster_counts;

/* NULL: everything held; else a sentence in static memory. `trace`: 0 nothing is printed, 1 the end of the
 * story when it failed, 2 every message. */
const char *cluster_run(uint64_t seed, int trace, cluster_counts *counts);
const char *cluster_fault_name(int fault);
