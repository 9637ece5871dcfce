/* See cw/cpus.h. */
#include "cw/cpus.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

static bool bound;
static cpu_set_t bound_to;

/* One "A" or "A-B" at *s, which moves behind it. */
static bool take_range(const char **s, cpu_set_t *set)
{
    char *end;
    if (**s < '0' || **s > '9') return false;
    unsigned long first = strtoul(*s, &end, 10), last = first;
    if (*end == '-') {
        const char *second = end + 1;
        if (*second < '0' || *second > '9') return false;
        last = strtoul(second, &end, 10);
    }
    if (last < first || last >= CPU_SETSIZE) return false;
    for (unsigned long i = first; i <= last; i++) CPU_SET(i, set);
    *s = end;
    return true;
}

cw_status cw_cpus_bind(const char *list, cw_err *err)
{
    cpu_set_t set, ours;
    CPU_ZERO(&set);
    const char *s = list;
    bool ok = take_range(&s, &set);
    while (ok && *s == ',') s++, ok = take_range(&s, &set);
    if (!ok || *s)
        return CW_FAIL(err, CW_STATUS_INVALID, "--cpus takes numbers and ranges such as 0-3,8, not \"%.40s\"",
                       list);
    if (sched_getaffinity(0, sizeof ours, &ours) != 0)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "this system does not bind processes to CPUs: %s",
                       strerror(errno));
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &set) && !CPU_ISSET(i, &ours))
            return CW_FAIL(err, CW_STATUS_INVALID,
                           "--cpus %.40s: there is no CPU %d here that this process may use", list, i);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        return CW_FAIL(err, CW_STATUS_INVALID, "--cpus %.40s: %s", list, strerror(errno));
    bound_to = set;
    bound = true;
    return CW_OK;
}

bool cw_cpus_bound(void)
{
    return bound;
}

static bool get_set(cpu_set_t *set)
{
    if (bound) *set = bound_to;
    return bound || sched_getaffinity(0, sizeof *set, set) == 0;
}

int cw_cpus_count(void)
{
    cpu_set_t set;
    int n = get_set(&set) ? CPU_COUNT(&set) : 1;
    return n > 0 ? n : 1;
}

int cw_cpus_get(int i)
{
    cpu_set_t set;
    if (!get_set(&set)) return 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set) && i-- == 0) return cpu;
    return 0;
}

bool cw_cpus_one_each(int n_threads)
{
    return bound && n_threads == cw_cpus_count();
}

void cw_cpus_keep(pthread_t thread, int i)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cw_cpus_get(i), &one);
    (void)pthread_setaffinity_np(thread, sizeof one, &one);
}
