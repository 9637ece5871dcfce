/*
 * Whole clusters under faults, one a seed:  test_sim [--seeds FIRST-LAST] [--trace]
 * A failure prints its seed; the same seed gives the same run, with --trace every message of it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster.h"
#include "cw/log.h"

int main(int argc, char **argv)
{
    unsigned long long first = 1, last = 500;
    bool trace = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--trace")) {
            trace = true;
        } else if (!strcmp(argv[i], "--seeds") && i + 1 < argc) {
            int n = sscanf(argv[++i], "%llu-%llu", &first, &last);
            if (n == 1) last = first;
            if (n < 1 || last < first) return 2;
        } else {
            fprintf(stderr, "usage: %s [--seeds FIRST-LAST] [--trace]\n", argv[0]);
            return 2;
        }
    }
    if (!trace) cw_log_set_level(CW_LOG_ERROR);
    cluster_counts c = {0};
    for (unsigned long long seed = first; seed <= last; seed++) {
        const char *why = cluster_run(seed, trace, &c);
        if (!why) continue;
        printf("seed %llu FAILED %s\n", seed, why);
        return 1;
    }
    printf("%llu clusters: %llu answers, %llu epochs, %llu messages (%llu lost on the way), %llu events\n",
           last - first + 1, (unsigned long long)c.requests, (unsigned long long)c.epochs,
           (unsigned long long)c.messages, (unsigned long long)c.lost, (unsigned long long)c.events);
    for (int i = 0; i < N_FAULTS; i++) printf("  %s: %u\n", cluster_fault_name(i), c.faults[i]);
    return 0;
}
