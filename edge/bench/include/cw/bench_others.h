/*
 * Processor time of other processes of this machine, as Linux tells it to anybody who may look: /proc. For
 * the part of a cluster that runs beside the edge.
 */
#pragma once
#include "cw/status.h"

/* The process that listens on that TCP port of this machine; 0: none that we may see. */
int cw_bench_listener_pid(uint16_t port);
/* Nanoseconds its threads have run; -1: it is gone, or not told. */
int64_t cw_bench_process_ns(int pid);
