/* causeway-worker: options and exit codes; the work is in cw/worker_shell.h. */
#include <stddef.h>
#include <stdio.h>

#include "cw/cpus.h"
#include "cw/option.h"
#include "cw/signal.h"
#include "cw/worker_shell.h"

typedef struct {
    const char *join, *name, *state, *listen, *advertise, *model, *isa, *metrics, *cpus;
    uint64_t memory, disk, pull_limit;
    int64_t threads, fault_zap;
    int64_t drain_timeout;
    bool no_ipc;
} options;

#define AT(field) offsetof(options, field)

static const cw_option rows[] = {
    {"join", 0, CW_OPT_STRING, AT(join), "STRING|@file|-", NULL, 0, 0, NULL, NULL, "Cluster", 0,
     "join string from `causeway-coordinator token create --role worker`, a file that holds it, or - for "
     "standard input; needed the first time only"},
    {"name", 0, CW_OPT_STRING, AT(name), "NAME", NULL, 0, 0, NULL, NULL, NULL, 0,
     "what this worker is called in the cluster; without it the host's name"},
    {"state", 0, CW_OPT_STRING, AT(state), "DIR", NULL, 0, 0, NULL, "CAUSEWAY_STATE", NULL, 0,
     "private directory for this worker's key and its copies of chunks; one per worker"},
    {"listen", 0, CW_OPT_STRING, AT(listen), "ADDR", NULL, 0, 0, NULL, NULL, NULL, 0,
     "where edges connect, tcp://ADDRESS:PORT; without it a free port on loopback"},
    {"advertise", 0, CW_OPT_STRING, AT(advertise), "ADDR", NULL, 0, 0, NULL, NULL, NULL, 0,
     "the address edges are told, where it differs from --listen"},
    {"no-ipc", 0, CW_OPT_FLAG, AT(no_ipc), NULL, NULL, 0, 0, NULL, "CAUSEWAY_NO_IPC", NULL, 0,
     "no socket for edges of the same user on this machine, which is quicker than TCP and not encrypted"},
    {"memory", 0, CW_OPT_SIZE, AT(memory), "SIZE", NULL, 0, 0, "0", NULL, "Resources", 0,
     "memory for experts, for instance 4G; 0: four fifths of what is free"},
    {"threads", 0, CW_OPT_INT, AT(threads), "N", NULL, 0, 256, "0", NULL, NULL, 0,
     "threads that compute; 0: one per CPU"},
    {"cpus", 0, CW_OPT_STRING, AT(cpus), "LIST", NULL, 0, 0, NULL, NULL, NULL, 0,
     "stay on these CPUs, such as 0-15; for several workers on one machine, one for each socket of it; "
     "without "
     "it anywhere"},
    {"model", 0, CW_OPT_STRING, AT(model), "FILE", NULL, 0, 0, NULL, NULL, NULL, 0,
     "local copy of the cluster's model, so that nothing has to be pulled from the coordinator"},
    {"disk", 0, CW_OPT_SIZE, AT(disk), "SIZE", NULL, 0, 0, "4G", NULL, NULL, 0,
     "keep pulled chunks on disk up to this size, so that a restart is quick; 0: keep none"},
    {"pull-limit", 0, CW_OPT_SIZE, AT(pull_limit), "SIZE", NULL, 0, 0, "64M", NULL, NULL, 0,
     "bytes of weights a second, pulled or given to other workers, while calls are served; 0: no limit"},
    {"isa", 0, CW_OPT_STRING, AT(isa), "NAME", NULL, 0, 0, NULL, NULL, NULL, 0,
     "instruction set: scalar, avx2, avx512 or neon; without it the best of this machine (results are the "
     "same)"},
    {"drain-timeout", 0, CW_OPT_DURATION, AT(drain_timeout), "TIME", NULL, 0, 3600, "30s", NULL, "Stopping",
     0,
     "SIGTERM: how long the coordinator may take to give the experts here other homes, while this worker "
     "goes "
     "on "
     "serving; a second SIGTERM ends it at once; 0: do not wait"},
    {"metrics", 0, CW_OPT_STRING, AT(metrics), "ADDR", NULL, 0, 0, NULL, NULL, "Watching", 0,
     "serve numbers for Prometheus at http://ADDR/metrics, 127.0.0.1:PORT or another loopback address"},
    {"fault-zap", 0, CW_OPT_INT, AT(fault_zap), "MS", NULL, 0, 3600000, "0", NULL, "Faults on purpose", 0,
     "for tests: the thread that lets peers in ends after MS milliseconds, upon which the worker must stop; "
     "0: "
     "never"},
    {0},
};

static const cw_command commands[] = {
    {"",
     "--join STRING [options]",
     "computes experts for the edges of a cluster",
     "Enters the cluster of the join string, loads the experts the coordinator gives it, and serves edges "
     "until it is\n"
     "stopped. The key made at the first start is this worker's identity: keep the state directory.",
     "  causeway-worker --join @worker.join --name w1 --memory 4G\n"
     "  causeway-worker --name w1 --listen tcp://192.168.1.20:6000\n",
     {rows},
     0,
     0,
     NULL},
};

static const cw_program program = {"causeway-worker", "computes experts for the edges of a cluster", NULL,
                                   commands, 1};

static cw_status kernels_of(const char *isa, const cw_kernels **out, cw_err *err)
{
    cw_isa which;
    if (!isa) return *out = cw_kernels_best(), CW_OK;
    if (!cw_isa_parse(isa, &which))
        return CW_FAIL(err, CW_STATUS_INVALID, "--isa takes scalar, avx2, avx512 or neon, not \"%.40s\"",
                       isa);
    *out = cw_kernels_get(which);
    return *out ? CW_OK : CW_FAIL(err, CW_STATUS_UNSUPPORTED, "this machine or build has no %s", isa);
}

int main(int argc, char **argv)
{
    options o = {0};
    cw_parsed parsed;
    cw_err err = {0};
    int code = cw_program_start(&program, argc, argv, &o, &parsed);
    if (code >= 0) return code;
    if (o.cpus && cw_cpus_bind(o.cpus, &err) != CW_OK) return cw_program_usage(&program, &err);
    if (cw_signal_install(&err) != CW_OK) return cw_program_fail(&program, &err);
    cw_worker_options wo = {.join = o.join,
                            .name = o.name,
                            .state = o.state,
                            .listen = o.listen,
                            .advertise = o.advertise,
                            .memory = o.memory,
                            .threads = (int)o.threads,
                            .model = o.model,
                            .disk = o.disk,
                            .metrics = o.metrics,
                            .drain_ms = (uint32_t)(o.drain_timeout / 1000),
                            .pull_limit = o.pull_limit,
                            .no_ipc = o.no_ipc,
                            .fault_zap_ms = (uint32_t)o.fault_zap};
    cw_status s = kernels_of(o.isa, &wo.kernels, &err);
    if (s == CW_STATUS_INVALID) return cw_program_usage(&program, &err);
    if (s == CW_OK) s = cw_worker_run(&wo, &err);
    /* Told to stop while it was still hashing the model: that is a clean stop too. */
    if (s == CW_STATUS_CANCELLED && cw_signal_stopped()) return 0;
    return s == CW_OK ? 0 : cw_program_fail(&program, &err);
}
