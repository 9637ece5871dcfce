/* causeway-coordinator: the coordinator itself, and the commands that ask a running one. Only this file
 * exits. */
#include <stdio.h>
#include <string.h>

#include "admin_cli.h"
#include "cw/fs.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "cw/option.h"
#include "cw/signal.h"
#include "shell.h"

typedef struct {
    const char *state, *model, *fallback, *listen, *advertise, *store_listen, *store_advertise, *metrics;
    int64_t ticket_lifetime;
    uint64_t store_rate;
    int64_t max_workers, max_edges, max_edges_per_token;
    bool json, no_wait;
    int role;
    int64_t uses;
    double hours;
} options;

#define AT(field) offsetof(options, field)

static const cw_option state_rows[] = {
    {"state", 0, CW_OPT_STRING, AT(state), "DIR", NULL, 0, 0, NULL, "CAUSEWAY_COORDINATOR_STATE", "State", 0,
     "private directory for keys, tokens and epochs; one coordinator a directory"},
    {0},
};

static const cw_option serve_rows[] = {
    {"model", 'm', CW_OPT_STRING, AT(model), "FILE", NULL, 0, 0, NULL, NULL, "Model", CW_OPT_REQUIRED,
     "GGUF file of the model whose experts the workers hold, any shard of it"},
    {"fallback", 0, CW_OPT_STRING, AT(fallback), "FILE", NULL, 0, 0, NULL, NULL, NULL, 0,
     "fallback model of the edges: its vocabulary is compared with the model's and the outcome said"},
    {"listen", 0, CW_OPT_STRING, AT(listen), "ADDR", NULL, 0, 0, "tcp://127.0.0.1:5570", NULL, "Network", 0,
     "where workers and edges connect; the store listens on the next port"},
    {"advertise", 0, CW_OPT_STRING, AT(advertise), "ADDR", NULL, 0, 0, NULL, NULL, NULL, 0,
     "address in the join strings, where it differs from --listen"},
    {"store-listen", 0, CW_OPT_STRING, AT(store_listen), "ADDR", NULL, 0, 0, NULL, NULL, NULL, 0,
     "where workers fetch the model, where it is not the port after --listen's"},
    {"store-advertise", 0, CW_OPT_STRING, AT(store_advertise), "ADDR", NULL, 0, 0, NULL, NULL, NULL, 0,
     "address of the store that workers are told"},
    {"store-rate", 0, CW_OPT_SIZE, AT(store_rate), "BYTES", NULL, 0, 0, "0", NULL, NULL, 0,
     "most bytes a second that one worker fetches; 0: no limit"},
    {"metrics", 0, CW_OPT_STRING, AT(metrics), "ADDR", NULL, 0, 0, NULL, NULL, NULL, 0,
     "serve numbers for Prometheus at http://ADDR/metrics, 127.0.0.1:PORT or another loopback address"},
    {"max-workers", 0, CW_OPT_INT, AT(max_workers), "N", NULL, 1, 4096, "128", NULL, "Limits", 0,
     "workers connected at once"},
    {"max-edges", 0, CW_OPT_INT, AT(max_edges), "N", NULL, 1, 100000, "512", NULL, NULL, 0,
     "edges connected at once"},
    {"max-edges-per-token", 0, CW_OPT_INT, AT(max_edges_per_token), "N", NULL, 0, 100000, "256", NULL, NULL,
     0, "edges connected at once through one join string; 0: any number"},
    {"ticket-lifetime", 0, CW_OPT_DURATION, AT(ticket_lifetime), "TIME", NULL, 2, 86400, "1h", NULL, NULL, 0,
     "how long an edge's ticket is good; it is renewed at half, and honoured for a day longer while this "
     "coordinator "
     "is away"},
    {0},
};

static const cw_option json_rows[] = {
    {"json", 0, CW_OPT_FLAG, AT(json), NULL, NULL, 0, 0, NULL, NULL, "Output", CW_OPT_NO_ENV,
     "one JSON object a line"},
    {0},
};

static const cw_option drain_rows[] = {
    {"no-wait", 0, CW_OPT_FLAG, AT(no_wait), NULL, NULL, 0, 0, NULL, NULL, "Drain", CW_OPT_NO_ENV,
     "only begin it; `workers` shows how far it is"},
    {0},
};

static const cw_option token_rows[] = {
    {"role", 0, CW_OPT_ENUM, AT(role), NULL, "worker|edge", 0, 0, NULL, NULL, "Token",
     CW_OPT_REQUIRED | CW_OPT_NO_ENV, "who may join with it"},
    {"uses", 0, CW_OPT_INT, AT(uses), "N", NULL, -1, 1000000, "-1", NULL, NULL, CW_OPT_NO_ENV,
     "how many may join; 0: any number; -1: 8 workers, any number of edges"},
    {"hours", 0, CW_OPT_FLOAT, AT(hours), "H", NULL, 0, 87600, "0", NULL, NULL, CW_OPT_NO_ENV,
     "how long it is good; 0: 1 hour for workers, 30 days for edges"},
    {0},
};

static const cw_command commands[] = {
    {"",
     "--model FILE [options]",
     "run a coordinator until SIGTERM",
     "Decides which worker holds which expert of the model and lets workers and edges in. It prints a join "
     "string for each at "
     "the start; a restart with the same --state changes nothing for those who have joined.",
     "  causeway-coordinator --model model.gguf --listen tcp://0.0.0.0:5570 --advertise "
     "tcp://gpu0.example:5570\n",
     {serve_rows, state_rows},
     0,
     0,
     NULL},
    {"status", "[options]", "what the cluster is doing", NULL, NULL, {state_rows, json_rows}, 0, 0, NULL},
    {"workers",
     "[options]",
     "the workers: what they hold and serve",
     NULL,
     NULL,
     {state_rows, json_rows},
     0,
     0,
     NULL},
    {"edges", "[options]", "the edges that are connected", NULL, NULL, {state_rows, json_rows}, 0, 0, NULL},
    {"token create",
     "--role worker|edge [--uses N] [--hours H]",
     "make a join string",
     NULL,
     NULL,
     {token_rows, state_rows, json_rows},
     0,
     0,
     NULL},
    {"token list",
     "[options]",
     "tokens, without their secrets",
     NULL,
     NULL,
     {state_rows, json_rows},
     0,
     0,
     NULL},
    {"token revoke",
     "ID",
     "revoke a token and every key it admitted",
     NULL,
     NULL,
     {state_rows, json_rows},
     1,
     1,
     "the token's ID"},
    {"revoke",
     "WHO",
     "shut somebody out: a worker, an edge, or a token with all it admitted",
     "WHO is a key or a name as `workers` and `edges` list them, a token's number, or a join string. "
     "Revoking cannot be "
     "undone: whoever was revoked by mistake joins again with a new state directory and a new join string.",
     "  causeway-coordinator revoke kiosk-3\n  causeway-coordinator revoke 4\n",
     {state_rows, json_rows},
     1,
     1,
     "WHO: a key, a name, a token's number or a join string"},
    {"drain",
     "WORKER",
     "empty a worker, so that it can be stopped without anybody noticing",
     "Its experts get other homes first and edges learn of them; then edges are sent to it no more. Shows "
     "how far it is "
     "and ends when it is done; Ctrl-C ends only the watching. Refused, with the bytes that are missing, "
     "when the other "
     "workers have no room. It stays drained over restarts, until `undrain`. (A worker that is stopped with "
     "SIGTERM "
     "does the same by itself, for as long as its --drain-timeout.)",
     "  causeway-coordinator drain w1 && ssh w1 systemctl stop causeway-worker\n",
     {drain_rows, state_rows, json_rows},
     1,
     1,
     "a WORKER, by name or key"},
    {"undrain",
     "WORKER",
     "let a drained worker take part again",
     NULL,
     NULL,
     {state_rows, json_rows},
     1,
     1,
     "a WORKER, by name or key"},
    {"unfence",
     "WORKER",
     "let a worker in again that was fenced for wrong rows",
     "A fenced worker gave rows that differ from the reference: bad memory, a faulty processor, a damaged or "
     "changed "
     "program. `workers` shows what was wrong. Mend or replace the machine first; it is fenced again if it "
     "still errs.",
     NULL,
     {state_rows, json_rows},
     1,
     1,
     "a WORKER, by name or key"},
    {"epoch",
     "[options]",
     "the newest epoch: who holds how much",
     NULL,
     NULL,
     {state_rows, json_rows},
     0,
     0,
     NULL},
};

static const cw_program program = {
    "causeway-coordinator",
    "places a model's experts on workers and lets workers and edges in",
    NULL,
    commands,
    CW_ARRAY_LEN(commands),
};

static cw_status serve(const options *o, cw_err *err)
{
    CW_TRY(cw_signal_install(err));
    shell_options s = {.model = o->model,
                       .fallback = o->fallback,
                       .listen = o->listen,
                       .advertise = o->advertise,
                       .store_listen = o->store_listen,
                       .store_advertise = o->store_advertise,
                       .state_dir = o->state,
                       .metrics = o->metrics,
                       .ticket_ms = (uint32_t)(o->ticket_lifetime / 1000),
                       .store_rate = o->store_rate,
                       .max_workers = (uint32_t)o->max_workers,
                       .max_edges = (uint32_t)o->max_edges,
                       .max_edges_per_token = (uint32_t)o->max_edges_per_token};
    cw_status st = coordinator_run(&s, err);
    return st == CW_STATUS_CANCELLED && cw_signal_stopped() ? CW_OK
                                                            : st; /* stopped while it was still hashing */
}

int main(int argc, char **argv)
{
    static options o;
    cw_parsed parsed;
    cw_err err;
    int code = cw_program_start(&program, argc, argv, &o, &parsed);
    if (code >= 0) return code;
    char *dir = NULL;
    if (!o.state) {
        if (cw_fs_state_dir("coordinator", &dir, &err) != CW_OK) return cw_program_fail(&program, &err);
        o.state = dir;
    }
    cw_status s;
    if (!parsed.command->name[0]) {
        s = serve(&o, &err);
    } else if (cw_signal_install(&err) != CW_OK) {
        s = err.code;
    } else {
        admin_options a = {.state_dir = o.state,
                           .json = o.json,
                           .no_wait = o.no_wait,
                           .role = o.role,
                           .uses = o.uses,
                           .hours = o.hours,
                           .arg = parsed.n_args ? parsed.args[0] : NULL};
        s = admin_command(parsed.command->name, &a, &err);
    }
    code = s == CW_OK ? 0 : cw_program_fail(&program, &err);
    cw_free(dir);
    return code;
}
