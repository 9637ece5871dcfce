/*
 * Days of many edges whose links come and go, that sleep and wake (flight.h):
 *
 *   test_flight [--edges N] [--hours H] [--seeds FIRST-LAST] [--jobs N]
 *   test_flight ... --seeds SEED --trace
 *
 * 50 edges and 12 hours, where sanitizers or emulators slow it 2, unless told; one seed, $CW_SEED gives
 * another.
 * --trace: that one, every message of it.
 *
 * The same seed gives the same flight. Of one that failed the end of the story is printed.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cw/log.h"
#include "flight.h"

#ifndef FLIGHT_HOURS
#define FLIGHT_HOURS 12
#endif

typedef struct {
    flight_plan plan;
    uint64_t first, last;
    int jobs;
    bool trace;
} options;

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void print(const options *o, uint64_t seed, const flight_counts *c, double seconds)
{
    printf("seed %llu: %d edges (up to %u awake at once), %d hours in %.1f s: %llu events, %llu messages, "
           "%llu bytes "
           "at rest\n",
           (unsigned long long)seed, o->plan.edges, c->most_awake, o->plan.hours, seconds,
           (unsigned long long)c->events, (unsigned long long)c->messages, (unsigned long long)c->rest_bytes);
    printf("  %llu answers, %llu tokens by the main model, %llu by the fallback, %llu changes; offline %llu "
           "times, %llu requests timed out\n",
           (unsigned long long)c->answers, (unsigned long long)c->by_main, (unsigned long long)c->by_fallback,
           (unsigned long long)c->changes, (unsigned long long)c->offline, (unsigned long long)c->timeouts);
    printf("  %llu visits, %llu sleeps (%llu hours), %llu troubles of links, %llu of machines, %llu tickets "
           "renewed\n",
           (unsigned long long)c->visits, (unsigned long long)c->sleeps,
           (unsigned long long)c->slept_s / 3600, (unsigned long long)c->weather,
           (unsigned long long)c->faults, (unsigned long long)c->renewed);
}

static bool one(const options *o, const char *program, uint64_t seed)
{
    flight_counts c = {0};
    double begin = cpu_s();
    const char *why = flight_run(seed, &o->plan, o->trace ? 2 : 1, &c);
    if (!why) {
        print(o, seed, &c, cpu_s() - begin);
        return true;
    }
    printf("seed %llu FAILED %s\nagain, with every message: %s --edges %d --hours %d --seeds %llu --trace\n",
           (unsigned long long)seed, why, program, o->plan.edges, o->plan.hours, (unsigned long long)seed);
    return false;
}

/* Every jobs-th seed in a process of its own; the first that fails ends all. */
static bool all(const options *o, const char *program)
{
    pid_t pids[64];
    bool ok = true;
    fflush(stdout);
    for (int i = 0; i < o->jobs; i++) {
        pids[i] = fork();
        if (pids[i]) continue;
        for (uint64_t seed = o->first + (uint64_t)i; seed <= o->last; seed += (uint64_t)o->jobs) {
            bool good = one(o, program, seed);
            fflush(stdout);
            if (!good) _exit(1);
        }
        _exit(0);
    }
    for (int left = o->jobs; left; left--) {
        int status = 0;
        if (wait(&status) < 0) return false;
        if (status == 0 || !ok) continue;
        ok = false;
        for (int i = 0; i < o->jobs; i++) kill(pids[i], SIGKILL);
    }
    return ok;
}

static bool parse(int argc, char **argv, options *o)
{
    const char *other = getenv("CW_SEED");
    unsigned long long first = other ? strtoull(other, NULL, 10) * 1000 + 1 : 1, last = first;
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (!strcmp(argv[i], "--trace")) {
            o->trace = true;
        } else if (!strcmp(argv[i], "--edges") && more) {
            o->plan.edges = atoi(argv[++i]);
        } else if (!strcmp(argv[i], "--hours") && more) {
            o->plan.hours = atoi(argv[++i]);
        } else if (!strcmp(argv[i], "--jobs") && more) {
            o->jobs = atoi(argv[++i]);
        } else if (!strcmp(argv[i], "--seeds") && more) {
            int n = sscanf(argv[++i], "%llu-%llu", &first, &last);
            if (n == 1) last = first;
            if (n < 1) return false;
        } else {
            return false;
        }
    }
    o->first = first;
    o->last = last;
    return last >= first && o->jobs >= 1 && o->jobs <= 64 && o->plan.edges >= 3 && o->plan.edges <= 1000 &&
           o->plan.hours >= 1 && o->plan.hours <= 10000;
}

int main(int argc, char **argv)
{
    options o = {.jobs = 1, .plan = {.edges = 50, .hours = FLIGHT_HOURS}};
    if (!parse(argc, argv, &o)) {
        fprintf(stderr, "usage: %s [--edges 3..1000] [--hours H] [--seeds FIRST-LAST] [--jobs N] [--trace]\n",
                argv[0]);
        return 2;
    }
    if (!o.trace) cw_log_set_level(CW_LOG_ERROR);
    return (o.trace ? one(&o, argv[0], o.first) : all(&o, argv[0])) ? 0 : 1;
}
