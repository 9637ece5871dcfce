/* See bench_report.h. The tables are for eyes, the objects for scripts: these hold every number. */
#include "bench_report.h"
#include "cw/json.h"

#include <string.h>

/* A table's heading, once. */
static void begin_table(cli_report *r, const char *heading)
{
    if (r->table && strcmp(r->table, heading) == 0) return;
    fprintf(r->out, "%s%s\n", r->table ? "\n" : "", heading);
    r->table = heading;
}

static void begin_object(cli_report *r, cw_json *j, const char *kind)
{
    cw_json_to_file(j, r->out);
    cw_json_object(j);
    cw_json_kstr(j, "bench", kind);
}

static void end_object(cw_json *j)
{
    cw_json_end(j);
    bool written = cw_json_done(j);
    (void)written; /* a broken output is noticed once, at the end, by who owns it */
}

static void json_stats(cw_json *j, const char *key, const cw_bench_stats *s)
{
    cw_json_key(j, key);
    cw_json_object(j);
    cw_json_kfixed(j, "median", s->median, 4);
    cw_json_kfixed(j, "min", s->min, 4);
    cw_json_kfixed(j, "max", s->max, 4);
    cw_json_kfixed(j, "spread", cw_bench_spread(s), 4);
    cw_json_kint(j, "rounds", s->n);
    cw_json_end(j);
}

/* Half the spread, in per cent: what stands behind +-. */
static double plus_minus(double spread)
{
    return spread * 50;
}

/* --- memory --- */

void cli_report_memory(cli_report *r, const cli_report_memory_line *m)
{
    double huge = m->huge_bytes >= m->bytes ? 1 : (double)m->huge_bytes / (double)m->bytes;
    if (r->json) {
        cw_json j;
        begin_object(r, &j, "memory");
        cw_json_kint(&j, "threads", m->threads);
        cw_json_kuint(&j, "bytes", m->bytes);
        cw_json_kint(&j, "prefetch_bytes", m->ahead);
        cw_json_kfixed(&j, "huge_pages", huge, 3);
        json_stats(&j, "gb_per_second", &m->gb_s);
        end_object(&j);
        return;
    }
    begin_table(r, "memory    threads    GB/s    best     +-   read          huge pages");
    fprintf(r->out, "read      %7d  %6.2f  %6.2f  %4.1f%%   %5.0f MiB     %6.0f %%\n", m->threads,
            m->gb_s.median, m->gb_s.max, plus_minus(cw_bench_spread(&m->gb_s)), (double)m->bytes / 1048576,
            100 * huge);
}

/* --- prefill and decode --- */

typedef struct {
    cw_bench_stats speed;
    double tokens;                  /* of all rounds */
    double bytes_token, here_token; /* weights: all, and those that this process read */
    double gb_s, read_gb_s, share;  /* of what this process read */
    uint64_t ns;
    double of_partner;
} case_numbers;

static case_numbers numbers_of(const cw_bench_case *c, const cw_bench_case *partner)
{
    case_numbers n = {.tokens = (double)c->tokens * c->batch * c->n_rounds};
    double gb[CW_BENCH_MAX_ROUNDS], sorted[CW_BENCH_MAX_ROUNDS];
    cw_bench_stats s;
    n.bytes_token = (double)cw_bench_case_bytes(c, true) / n.tokens;
    n.here_token = (double)cw_bench_case_bytes(c, false) / n.tokens;
    for (int i = 0; i < CW_PHASE_COUNT; i++) n.ns += c->phases.ns[i];
    for (int i = 0; i < c->n_rounds; i++) gb[i] = n.here_token * c->speed[i] * 1e-9;
    n.share = cw_bench_median_ratio(gb, c->read, c->n_rounds);
    cw_bench_stats_of(gb, c->n_rounds, &s);
    n.gb_s = s.median;
    memcpy(sorted, c->read, (size_t)c->n_rounds * sizeof *sorted);
    cw_bench_stats_of(sorted, c->n_rounds, &s);
    n.read_gb_s = s.median;
    memcpy(sorted, c->speed, (size_t)c->n_rounds * sizeof *sorted);
    cw_bench_stats_of(sorted, c->n_rounds, &n.speed);
    if (partner) n.of_partner = cw_bench_median_ratio(c->speed, partner->speed, c->n_rounds);
    return n;
}

static const char *kind_name(cw_bench_kind k)
{
    static const char *const names[] = {"prefill", "decode", "prefill_all_logits"};
    return names[k];
}

static void json_phases(cw_json *j, const cw_bench_case *c, const case_numbers *n)
{
    cw_json_key(j, "phases");
    cw_json_object(j);
    for (int i = 0; i < CW_PHASE_COUNT; i++) {
        uint64_t ns = c->phases.ns[i], bytes = c->phases.weight_bytes[i];
        double gb_s = i == CW_PHASE_NETWORK ? 0 : cw_bench_gb_s(bytes, ns);
        cw_json_key(j, cw_phase_name((cw_phase)i));
        cw_json_object(j);
        cw_json_kfixed(j, "share", n->ns ? (double)ns / (double)n->ns : 0, 4);
        cw_json_kfixed(j, "ms_per_token", (double)ns * 1e-6 / n->tokens, 5);
        cw_json_kuint(j, "weight_bytes_per_token", (uint64_t)((double)bytes / n->tokens));
        cw_json_kfixed(j, "gb_per_second", gb_s, 3);
        cw_json_kfixed(j, "read_share", n->read_gb_s > 0 ? gb_s / n->read_gb_s : 0, 4);
        cw_json_end(j);
    }
    cw_json_end(j);
}

static void json_case(cli_report *r, const cli_report_engine *e, const cw_bench_case *c,
                      const case_numbers *n, bool has_partner)
{
    cw_json j;
    begin_object(r, &j, kind_name(c->kind));
    cw_json_kstr(&j, "model", e->model);
    cw_json_kstr(&j, "mode", e->mode);
    cw_json_kstr(&j, "isa", e->isa);
    cw_json_kint(&j, "threads", e->threads);
    cw_json_kint(&j, "batch", c->batch);
    cw_json_kint(&j, "tokens", c->tokens);
    cw_json_kint(&j, "depth", c->depth);
    json_stats(&j, "tokens_per_second", &n->speed);
    cw_json_kuint(&j, "weight_bytes_per_token", (uint64_t)n->bytes_token);
    cw_json_kuint(&j, "weight_bytes_per_token_here", (uint64_t)n->here_token);
    cw_json_kfixed(&j, "experts_read_per_pass",
                   (double)c->phases.experts_read / (double)(c->phases.passes ? c->phases.passes : 1), 2);
    cw_json_kfixed(&j, "gb_per_second", n->gb_s, 3);
    cw_json_kfixed(&j, "read_gb_per_second", n->read_gb_s, 3);
    cw_json_kfixed(&j, "read_share", n->share, 4);
    if (has_partner) cw_json_kfixed(&j, "of_prefill_all_logits", n->of_partner, 4);
    json_phases(&j, c, n);
    end_object(&j);
}

void cli_report_case(cli_report *r, const cli_report_engine *e, const cw_bench_case *c,
                     const cw_bench_case *partner)
{
    case_numbers n = numbers_of(c, partner);
    if (r->json) {
        json_case(r, e, c, &n, partner != NULL);
        return;
    }
    begin_table(r,
                "test              threads  batch     tok/s     +-  MB/token    GB/s  of read   attn  router "
                "experts  ffn  logits  net  other");
    char test[32];
    snprintf(test, sizeof test, "%s %d", c->kind == CW_BENCH_ALL_LOGITS ? "all logits" : kind_name(c->kind),
             c->kind == CW_BENCH_ALL_LOGITS ? c->batch : c->tokens);
    fprintf(r->out, "%-16s  %7d  %5d  %8.2f  %4.1f%%  %8.2f  %6.2f  %5.0f %%", test, e->threads, c->batch,
            n.speed.median, plus_minus(cw_bench_spread(&n.speed)), n.bytes_token * 1e-6, n.gb_s,
            100 * n.share);
    static const int width[CW_PHASE_COUNT] = {5, 6, 6, 3, 6, 3, 5};
    for (int i = 0; i < CW_PHASE_COUNT; i++)
        fprintf(r->out, "  %*.0f%%", width[i] - 1, n.ns ? 100 * (double)c->phases.ns[i] / (double)n.ns : 0);
    if (partner) fprintf(r->out, "   %.2f of all logits %d", n.of_partner, partner->batch);
    fputc('\n', r->out);
}

/* --- kernels --- */

void cli_report_product(cli_report *r, const cli_report_product_line *p)
{
    if (r->json) {
        cw_json j;
        begin_object(r, &j, "matmul");
        cw_json_kstr(&j, "isa", p->isa);
        cw_json_kstr(&j, "type", p->type);
        cw_json_kint(&j, "threads", p->threads);
        cw_json_kint(&j, "m", p->m);
        cw_json_kfixed(&j, "gb_per_second", p->speed.gb_s, 3);
        cw_json_kfixed(&j, "gmac_per_second", p->speed.gmac_s, 3);
        cw_json_kfixed(&j, "spread", p->spread, 4);
        cw_json_kfixed(&j, "read_gb_per_second", p->read_gb_s, 3);
        cw_json_kfixed(&j, "read_share", p->read_share, 4);
        end_object(&j);
        return;
    }
    begin_table(r, "matmul    isa      threads    m    GB/s  of read    GMAC/s     +-");
    fprintf(r->out, "%-8s  %-7s  %7d  %3d  %6.2f  %5.0f %%  %8.2f  %4.1f%%\n", p->type, p->isa, p->threads,
            p->m, p->speed.gb_s, 100 * p->read_share, p->speed.gmac_s, plus_minus(p->spread));
}

void cli_report_op(cli_report *r, const char *isa, const cw_bench_op_speed *op)
{
    if (r->json) {
        cw_json j;
        begin_object(r, &j, "kernel");
        cw_json_kstr(&j, "isa", isa);
        cw_json_kstr(&j, "name", op->name);
        cw_json_kfixed(&j, "values_per_ns", op->values_s, 4);
        cw_json_kfixed(&j, "gb_per_second", op->gb_s, 3);
        end_object(&j);
        return;
    }
    begin_table(r, "kernel          isa      values/ns      GB/s");
    fprintf(r->out, "%-14s  %-7s  %9.2f  %8.2f\n", op->name, isa, op->values_s, op->gb_s);
}

/* --- wire --- */

static void json_core_ms(cw_json *j, const char *key, double us)
{
    cw_json_key(j, key);
    if (us < 0)
        cw_json_null(j);
    else
        cw_json_fixed(j, us * 1e-3, 4);
}

static const char *core_ms(char text[16], double us)
{
    if (us < 0) return "-";
    snprintf(text, 16, "%.3f", us * 1e-3);
    return text;
}

void cli_report_wire(cli_report *r, const cw_bench_wire_case *c, const cw_bench_wire_result *w,
                     uint64_t bytes_out, uint64_t bytes_in)
{
    /* All processes, but for what computes the rows. With busy threads nothing can be told apart. */
    bool known = w->own_cpu_us >= 0 && w->workers_cpu_us >= 0;
    double all = known ? w->own_cpu_us + w->workers_cpu_us - w->service_us : -1;
    if (known && all < 0) all = 0;
    if (r->json) {
        cw_json j;
        begin_object(r, &j, "wire");
        cw_json_kint(&j, "rows", c->n_rows);
        cw_json_kint(&j, "experts_per_row", c->n_used);
        cw_json_kint(&j, "calls", c->calls);
        cw_json_kint(&j, "busy_threads", c->busy);
        cw_json_kfixed(&j, "p50_us", w->p50_us, 1);
        cw_json_kfixed(&j, "p99_us", w->p99_us, 1);
        cw_json_kfixed(&j, "min_us", w->min_us, 1);
        cw_json_kfixed(&j, "max_us", w->max_us, 1);
        json_core_ms(&j, "own_core_ms_per_layer", w->own_cpu_us);
        json_core_ms(&j, "workers_core_ms_per_layer", w->workers_cpu_us);
        json_core_ms(&j, "compute_core_ms_per_layer", w->service_us);
        json_core_ms(&j, "wire_core_ms_per_layer", all);
        cw_json_kuint(&j, "bytes_out_per_call", bytes_out);
        cw_json_kuint(&j, "bytes_in_per_call", bytes_in);
        end_object(&j);
        return;
    }
    char own[16], workers[16], wire[16];
    begin_table(r, "core-ms a layer: own process, workers where they are on this machine, both without the "
                   "rows' computing\n"
                   "wire   rows  experts  busy   p50 us   p99 us   max us      own  workers     wire  bytes "
                   "out  bytes in");
    fprintf(r->out, "layer  %4d  %7d  %4d  %7.0f  %7.0f  %7.0f  %7s  %7s  %7s  %9llu  %8llu\n", c->n_rows,
            c->n_used, c->busy, w->p50_us, w->p99_us, w->max_us, core_ms(own, w->own_cpu_us),
            core_ms(workers, w->workers_cpu_us), core_ms(wire, all), (unsigned long long)bytes_out,
            (unsigned long long)bytes_in);
}
