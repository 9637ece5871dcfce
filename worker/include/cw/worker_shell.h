/* The worker as a process: sockets, threads, files around the pure machine (cw/worker_machine.h). Called by
 * main. */
#pragma once
#include "cw/kernels.h"

typedef struct {
    const char *join;      /* string, "@file", "-", NULL: environment or what is stored */
    const char *name;      /* NULL: the host's name */
    const char *state;     /* NULL: the default directory for the name */
    const char *listen;    /* data port; NULL: any free port on loopback */
    const char *advertise; /* what edges connect to; NULL: what was bound */
    uint64_t memory;       /* bytes of packed experts; 0: four fifths of what is free */
    int threads;           /* 0: one per available CPU */
    const char *model;     /* local copy of the model file; NULL: pulled from the coordinator */
    uint64_t disk;         /* limit of the chunk cache; 0: none */
    uint64_t pull_limit;   /* bytes of chunks a second, pulled or given, while calls are served; 0: any */
    const cw_kernels *kernels;
    const char *metrics;   /* loopback address of the metrics port, or NULL */
    uint32_t drain_ms;     /* SIGTERM: how long to wait until the experts here have other homes */
    bool no_ipc;           /* no endpoint for edges of this user on this machine */
    uint32_t fault_zap_ms; /* fault injection: the process loses its ZAP handler after that time; 0: never */
} cw_worker_options;

/* Runs until it is stopped (CW_OK) or must not go on (a sentence). Blocks; signals must be installed. */
CW_MUST_USE cw_status cw_worker_run(const cw_worker_options *o, cw_err *err);
