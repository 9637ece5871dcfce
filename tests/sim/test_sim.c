/*
 * Whole clusters under faults, one a seed:
 *
 *   test_sim [--seeds FIRST-LAST] [--jobs N] [--progress]
 *   test_sim --seeds SEED --trace
 *
 * Seeds 1 to 500, where sanitizers or emulators slow it 60, unless told; $CW_SEED: as many others. --trace:
 * that one, every message of it.
 *
 * The same seed gives the same run. Of a seed that failed the end of the story is printed.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cluster.h"
#include "cw/log.h"

#ifndef SIM_SEEDS
#define SIM_SEEDS 500
#endif

typedef struct {
    uint64_t first, last;
    int jobs;
    bool trace, progress;
} options;

typedef struct {
    uint64_t seed;
    bool failed;
    char why[400];
    cluster_counts counts;
} result;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void run_seed(uint64_t seed, int trace, result *r)
{
    memset(r, 0, sizeof *r);
    r->seed = seed;
    const char *why = cluster_run(seed, trace, &r->counts);
    r->failed = why != NULL;
    if (why) snprintf(r->why, sizeof r->why, "%s", why);
}

static void add(cluster_counts *sum, const cluster_counts *c)
{
    sum->requests += c->requests;
    sum->events += c->events;
    sum->messages += c->messages;
    sum->lost += c->lost;
    sum->epochs += c->epochs;
    sum->calls += c->calls;
    sum->drops += c->drops;
    sum->hedges += c->hedges;
    sum->lies += c->lies;
    sum->fenced += c->fenced;
    sum->wrong += c->wrong;
    for (int i = 0; i < N_FAULTS; i++) sum->faults[i] += c->faults[i];
    if (c->most_workers > sum->most_workers) sum->most_workers = c->most_workers;
    if (c->most_edges > sum->most_edges) sum->most_edges = c->most_edges;
}

/* Every jobs-th seed in a process of its own; the records are smaller than what a pipe writes at once. */
static void child(const options *o, int index, int fd, uint64_t *at)
{
    _Static_assert(sizeof(result) < 4096, "one write");
    result r;
    for (uint64_t seed = o->first + (uint64_t)index; seed <= o->last; seed += (uint64_t)o->jobs) {
        *at = seed;
        run_seed(seed, 0, &r);
        if (write(fd, &r, sizeof r) != (ssize_t)sizeof r) _exit(3);
    }
    _exit(0);
}

static void show_progress(const options *o, uint64_t done, double begin)
{
    double s = now_s() - begin;
    fprintf(stderr, "\r%llu of %llu seeds, %.0f a second ", (unsigned long long)done,
            (unsigned long long)(o->last - o->first + 1), s > 0 ? (double)done / s : 0);
}

/* 0: all held; else the seed that failed. */
static uint64_t run_all(const options *o, cluster_counts *sum, bool *failed)
{
    int fd[2];
    pid_t pids[64];
    uint64_t done = 0, bad = 0;
    double begin = now_s(), shown = begin;
    result r;
    uint64_t *at = mmap(NULL, sizeof pids / sizeof *pids * sizeof *at, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0); /* what each is doing */
    *failed = true;
    if (at == MAP_FAILED || pipe(fd) != 0) return 0;
    fflush(stdout);
    for (int i = 0; i < o->jobs; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            close(fd[0]);
            child(o, i, fd[1], &at[i]);
        }
    }
    close(fd[1]);
    *failed = false;
    while (!*failed && read(fd[0], &r, sizeof r) == (ssize_t)sizeof r) {
        add(sum, &r.counts);
        done++;
        *failed = r.failed;
        bad = r.seed;
        if (o->progress && now_s() - shown > 0.5) {
            shown = now_s();
            show_progress(o, done, begin);
        }
    }
    for (int i = 0; i < o->jobs; i++) {
        int status = 0;
        if (*failed) kill(pids[i], SIGKILL);
        if (waitpid(pids[i], &status, 0) != pids[i] || (!*failed && status != 0)) {
            printf("seed %llu FAILED at 0 s: its process ended with status %d\n", (unsigned long long)at[i],
                   status);
            *failed = true;
            bad = 0;
        }
    }
    close(fd[0]);
    if (o->progress) {
        show_progress(o, done, begin);
        fprintf(stderr, "\n");
    }
    return bad;
}

static bool parse(int argc, char **argv, options *o)
{
    const char *other = getenv("CW_SEED");
    unsigned long long first = other ? strtoull(other, NULL, 10) * 1000 + 1 : 1, last = first + SIM_SEEDS - 1;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--trace")) {
            o->trace = true;
        } else if (!strcmp(argv[i], "--progress")) {
            o->progress = true;
        } else if (!strcmp(argv[i], "--jobs") && i + 1 < argc) {
            o->jobs = atoi(argv[++i]);
        } else if (!strcmp(argv[i], "--seeds") && i + 1 < argc) {
            int n = sscanf(argv[++i], "%llu-%llu", &first, &last);
            if (n == 1) last = first;
            if (n < 1) return false;
        } else {
            return false;
        }
    }
    o->first = first;
    o->last = last;
    return last >= first && o->jobs >= 1 && o->jobs <= 64;
}

int main(int argc, char **argv)
{
    options o = {.jobs = 1};
    if (!parse(argc, argv, &o)) {
        fprintf(stderr, "usage: %s [--seeds FIRST-LAST] [--jobs N] [--progress] [--trace]\n", argv[0]);
        return 2;
    }
    if (!o.trace) cw_log_set_level(CW_LOG_ERROR);
    cluster_counts c = {0};
    bool failed = false;
    uint64_t seed = o.first;
    result r;
    if (o.trace) {
        run_seed(seed, 2, &r);
        c = r.counts;
        failed = r.failed;
    } else {
        seed = run_all(&o, &c, &failed);
        if (failed && seed) run_seed(seed, 1, &r); /* again, for the story */
    }
    if (failed) {
        if (seed)
            printf("seed %llu FAILED %s\nagain, with every message: %s --seeds %llu --trace\n",
                   (unsigned long long)seed, r.why, argv[0], (unsigned long long)seed);
        return 1;
    }
    printf("%llu clusters of up to %u workers and %u edges: %llu answers of %llu calls (%llu hedged), %llu "
           "epochs, "
           "%llu drops, %llu messages (%llu lost on the way), %llu events\n",
           (unsigned long long)(o.last - o.first + 1), c.most_workers, c.most_edges,
           (unsigned long long)c.requests, (unsigned long long)c.calls, (unsigned long long)c.hedges,
           (unsigned long long)c.epochs, (unsigned long long)c.drops, (unsigned long long)c.messages,
           (unsigned long long)c.lost, (unsigned long long)c.events);
    printf("%llu lies made %llu answers wrong before %llu workers were fenced\n", (unsigned long long)c.lies,
           (unsigned long long)c.wrong, (unsigned long long)c.fenced);
    for (int i = 0; i < N_FAULTS; i++) printf("  %s: %u\n", cluster_fault_name(i), c.faults[i]);
    return 0;
}
