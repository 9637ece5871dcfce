/* What surrounds a node (nodes.h) in the simulator. */
#pragma once
#include "nodes.h"
#include "sim.h"

typedef struct {
    host base; /* first: nodes are given a pointer to it */
    sim *s;
    int proc;
} sim_host;

/* Adds the process. */
sim_host sim_host_new(sim *s, const sim_proc *p);
