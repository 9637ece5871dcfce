/*
 * causeway bench with a model: prefill and decode, and --wire.
 *
 * A round runs every case once, and before each reads memory once, so that a case and the bandwidth it is
 * held against, and cases that are compared with each other, suffer the same neighbours.
 */
#include "cmd_bench.h"
#include "cw/address.h"
#include "cw/bench_others.h"
#include "cw/mem.h"
#include "cw/progress.h"
#include "cw/signal.h"

#include <string.h>
#include <unistd.h>

enum { WAIT_MS = 30000, TUNE_ROUNDS = 2, WIRE_CALLS = 400, ALL_LOGITS_PASSES = 4 };

/* --- the loaded model --- */

typedef struct {
    cw_gguf *g;
    cw_engine *e;
    cw_mainland *land; /* NULL: experts are here */
} loaded;

static bool show_progress(void *ctx, uint64_t done, uint64_t total)
{
    cw_progress *p = ctx;
    p->total = total;
    cw_progress_update(p, done);
    return !cw_signal_interrupted();
}

static void unload(loaded *l)
{
    cw_engine_close(&l->e);
    cw_mainland_close(&l->land);
    cw_gguf_close(&l->g);
}

static int most_rows(const cli_bench_run *b)
{
    int rows = b->o->chunk ? (int)b->o->chunk : b->o->prefill_form == CW_PREFILL_EXPANDED ? 1024 : 256;
    for (size_t i = 0; i < b->n_batch; i++)
        if (b->batch[i] > rows) rows = b->batch[i];
    return rows;
}

static cw_status load(cli_bench_run *b, cw_pool *pool, loaded *l, cw_err *err)
{
    const cli_options *o = b->o;
    cw_engine_options eo;
    cw_progress bar;
    char *path = NULL;
    cw_status s;
    CW_TRY_GOTO(s, cli_engine_options(o, o->join ? CW_ENGINE_EDGE : CW_ENGINE_LOCAL, pool, &eo, err));
    eo.max_rows = most_rows(b);
    CW_TRY_GOTO(s, cli_model_path(o, &path, err));
    CW_TRY_GOTO(s, cw_gguf_open(path, &l->g, err));
    cw_progress_begin(&bar, "loading", 0);
    eo.progress = show_progress;
    eo.progress_ctx = &bar;
    if (o->quiet) eo.progress = NULL;
    s = cw_engine_open(l->g, &eo, &l->e, err);
    cw_progress_end(&bar);
    if (s == CW_OK && o->join) s = cli_join(o, l->g, l->e, WAIT_MS, false, &l->land, err);
fail:
    cw_free(path);
    if (s != CW_OK) unload(l);
    return s;
}

/* --- prefill and decode --- */

/* Prompts, then batches, each beside what it is held against; at most n_prefill + 2 n_batch. */
static int plan(const cli_bench_run *b, cw_bench_case *cases)
{
    int n = 0, depth = (int)b->o->depth, steps = (int)b->o->generate;
    for (size_t i = 0; i < b->n_prefill; i++)
        if (b->prefill[i] > 0)
            cases[n++] = (cw_bench_case){
                .kind = CW_BENCH_PREFILL, .tokens = b->prefill[i], .batch = 1, .depth = depth};
    for (size_t i = 0; i < b->n_batch && steps > 0; i++) {
        cw_bench_case c = {.kind = CW_BENCH_DECODE, .tokens = steps, .batch = b->batch[i], .depth = depth};
        cases[n++] = c;
        if (c.batch == 1) continue;
        c.kind = CW_BENCH_ALL_LOGITS;
        c.tokens = steps < ALL_LOGITS_PASSES ? steps : ALL_LOGITS_PASSES;
        cases[n++] = c;
    }
    return n;
}

static const char *what(const cw_bench_case *c, char *buf, size_t cap)
{
    static const char *const names[] = {"prefill", "decode", "all logits"};
    snprintf(buf, cap, "%s %d, batch %d", names[c->kind], c->tokens, c->batch);
    return buf;
}

static cw_status rounds(cli_bench_run *b, cw_pool *pool, cw_bench_memory *memory, cw_bench_model *m,
                        cw_bench_case *cases, int n, cw_err *err)
{
    const atomic_bool *cancel = cw_signal_interrupt_flag();
    char text[64];
    for (int i = 0; i < n; i++) {
        cli_bench_say(b, "warming up: %s", what(&cases[i], text, sizeof text));
        CW_TRY(cw_bench_model_warm(m, &cases[i], cancel, err));
    }
    for (int r = 0; r < b->o->rounds; r++) {
        for (int i = 0; i < n; i++) {
            cli_bench_say(b, "%d threads, round %d of %d: %s", cw_pool_threads(pool), r + 1,
                          (int)b->o->rounds, what(&cases[i], text, sizeof text));
            cases[i].read[r] = cw_bench_memory_read(memory, pool);
            CW_TRY(cw_bench_model_round(m, &cases[i], cancel, err));
        }
    }
    return CW_OK;
}

/* All readings of memory beside the cases. */
static void report_memory(cli_bench_run *b, cw_pool *pool, cw_bench_memory *memory, uint64_t huge,
                          const cw_bench_case *cases, int n)
{
    double best[CW_BENCH_MAX_ROUNDS];
    /* The best of a round: a round's other readings met more neighbours. */
    for (int r = 0; r < b->o->rounds; r++) {
        best[r] = 0;
        for (int i = 0; i < n; i++)
            if (cases[i].read[r] > best[r]) best[r] = cases[i].read[r];
    }
    cli_report_memory_line line = {.threads = cw_pool_threads(pool),
                                   .bytes = cw_bench_memory_bytes(memory),
                                   .huge_bytes = huge,
                                   .ahead = cw_bench_memory_ahead(memory)};
    cw_bench_stats_of(best, (int)b->o->rounds, &line.gb_s);
    cli_report_memory(&b->report, &line);
}

static const cw_bench_case *partner_of(const cw_bench_case *c, const cw_bench_case *cases, int n)
{
    for (int i = 0; i < n && c->kind == CW_BENCH_DECODE; i++)
        if (cases[i].kind == CW_BENCH_ALL_LOGITS && cases[i].batch == c->batch) return &cases[i];
    return NULL;
}

static cw_status measure(cli_bench_run *b, cw_pool *pool, cw_bench_memory *memory, uint64_t huge, loaded *l,
                         cw_err *err)
{
    cw_bench_model *m = NULL;
    cw_bench_case *cases = cw_calloc(b->n_prefill + 2 * b->n_batch, sizeof *cases);
    if (!cases) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    int n = plan(b, cases);
    cw_session_options so = cli_session_options(b->o);
    cw_status s = n > 0 ? cw_bench_model_new(l->e, &so, cases, n, &m, err)
                        : CW_FAIL(err, CW_STATUS_INVALID, "neither -p nor -n asks for anything");
    if (s == CW_OK) s = rounds(b, pool, memory, m, cases, n, err);
    cli_report_engine who = {.model = cw_engine_config(l->e)->name,
                             .isa = cw_engine_kernels(l->e)->name,
                             .mode = cli_mode_name(l->land ? CLI_MODE_SPLIT : CLI_MODE_LOCAL),
                             .threads = cw_pool_threads(pool)};
    if (s == CW_OK) {
        cli_bench_quiet(b);
        if (!b->o->json && !b->report.table)
            fprintf(b->report.out, "%s, %s, mode %s\n\n", who.model, who.isa, who.mode);
        for (int i = 0; i < n; i++)
            cli_report_case(&b->report, &who, &cases[i], partner_of(&cases[i], cases, n));
        report_memory(b, pool, memory, huge, cases, n);
    }
    cw_bench_model_free(&m);
    cw_free(cases);
    return s;
}

cw_status cli_bench_model(cli_bench_run *b, cw_pool *pool, cw_err *err)
{
    loaded l = {0};
    cw_bench_memory *memory = NULL;
    CW_TRY(cw_bench_memory_new((size_t)b->o->memory_size, pool, &memory, err));
    uint64_t huge = cw_bench_huge_bytes(); /* before the model's own pages are there */
    cli_bench_say(b, "memory, %d threads", cw_pool_threads(pool));
    cw_bench_memory_tune(memory, pool, TUNE_ROUNDS);
    cw_status s = load(b, pool, &l, err);
    if (s == CW_OK) {
        s = measure(b, pool, memory, huge, &l, err);
        unload(&l);
    }
    cw_bench_memory_free(&memory);
    return s;
}

/* --- wire --- */

/* What the workers have done so far. */
typedef struct {
    uint64_t bytes_out, bytes_in, service_us;
    int64_t cpu_ns; /* -1: some are elsewhere */
} workers_sum;

static int64_t cpu_of(const cw_mainland_worker *w)
{
    cw_address a;
    if (cw_address_parse(w->address, CW_ADDRESS_CONNECT, &a, NULL) != CW_OK || !a.loopback) return -1;
    int pid = cw_bench_listener_pid(a.port);
    return pid ? cw_bench_process_ns(pid) : -1;
}

static workers_sum sum_up(cw_mainland *land)
{
    static cw_mainland_worker list[CLI_MAX_WORKERS];
    size_t n = cw_mainland_workers(land, list, CLI_MAX_WORKERS);
    workers_sum s = {0};
    for (size_t i = 0; i < n && i < CLI_MAX_WORKERS; i++) {
        s.bytes_out += list[i].bytes_out;
        s.bytes_in += list[i].bytes_in;
        s.service_us += list[i].service_sum_us;
        int64_t cpu = list[i].up ? cpu_of(&list[i]) : 0;
        s.cpu_ns = cpu < 0 || s.cpu_ns < 0 ? -1 : s.cpu_ns + cpu;
    }
    return s;
}

static cw_status wire_case(cli_bench_run *b, const loaded *l, const cw_bench_wire_case *c, cw_err *err)
{
    cw_bench_wire_result r;
    uint64_t calls = (uint64_t)c->calls + (uint64_t)c->calls / 8 + 1;
    cli_bench_say(b, "calls of %d rows to %d experts each, %d threads busy", c->n_rows, c->n_used, c->busy);
    workers_sum before = sum_up(l->land);
    CW_TRY(cw_bench_wire_run(cw_mainland_experts(l->land), cw_engine_config(l->e),
                             cw_engine_expert_shapes(l->e), cw_engine_kernels(l->e), c,
                             cw_signal_interrupt_flag(), &r, err));
    workers_sum after = sum_up(l->land);
    if (before.cpu_ns >= 0 && after.cpu_ns >= 0)
        r.workers_cpu_us = (double)(after.cpu_ns - before.cpu_ns) * 1e-3 / (double)calls;
    r.service_us = (double)(after.service_us - before.service_us) / (double)calls;
    cli_bench_quiet(b);
    cli_report_wire(&b->report, c, &r, (after.bytes_out - before.bytes_out) / calls,
                    (after.bytes_in - before.bytes_in) / calls);
    return CW_OK;
}

cw_status cli_bench_wire(cli_bench_run *b, cw_pool *pool, cw_err *err)
{
    loaded l = {0};
    CW_TRY(load(b, pool, &l, err));
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores < 1) cores = 1;
    if (cores > CW_POOL_MAX_THREADS) cores = CW_POOL_MAX_THREADS;
    const cw_model_config *c = cw_engine_config(l.e);
    cw_status s = CW_OK;
    /* The least call there is, then a layer of each batch; idle, and with every core of this machine busy. */
    for (size_t i = 0; i <= b->n_batch && s == CW_OK; i++) {
        for (int busy = 0; busy < 2 && s == CW_OK; busy++) {
            cw_bench_wire_case w = {.n_rows = i == 0 ? 1 : b->batch[i - 1],
                                    .n_used = i == 0 ? 1 : c->n_used,
                                    .calls = WIRE_CALLS,
                                    .busy = busy ? (int)cores : 0};
            s = wire_case(b, &l, &w, err);
        }
    }
    unload(&l);
    return s;
}
