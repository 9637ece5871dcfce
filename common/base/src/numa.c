/* See cw/numa.h. Any thread. */
#include "cw/numa.h"

#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* "12" at *c; false where there is no number of at most six digits. */
static bool number(const char **c, int *out)
{
    int n = 0, digits = 0;
    for (; **c >= '0' && **c <= '9' && digits < 6; (*c)++, digits++) n = n * 10 + (**c - '0');
    *out = n;
    return digits > 0;
}

bool cw_numa_parse(const char *list, uint64_t *nodes)
{
    uint64_t found = 0;
    for (const char *c = list;; c++) {
        int first, last;
        if (!number(&c, &first)) return false;
        last = first;
        if (*c == '-' && (c++, !number(&c, &last))) return false;
        if (last < first) return false;
        for (int i = first; i <= last && i < CW_NUMA_MAX_NODES; i++) found |= (uint64_t)1 << i;
        if (*c == ',') continue;
        if (*c != '\0' && strcmp(c, "\n") != 0) return false;
        *nodes = found;
        return true;
    }
}

uint64_t cw_numa_nodes(void)
{
    uint64_t nodes = 1;
    char text[512];
    FILE *f = fopen("/sys/devices/system/node/has_memory", "r");
    if (!f) return nodes;
    if (!fgets(text, sizeof text, f) || !cw_numa_parse(text, &nodes) || nodes == 0) nodes = 1;
    fclose(f);
    return nodes;
}

bool cw_numa_spread(void *p, size_t bytes, uint64_t nodes)
{
    if ((nodes & (nodes - 1)) == 0) return true;
    unsigned long mask = (unsigned long)nodes;
    return syscall(SYS_mbind, p, bytes, MPOL_INTERLEAVE, &mask, (unsigned long)CW_NUMA_MAX_NODES + 1, 0ul) ==
           0;
}
