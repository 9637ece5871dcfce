/* causeway bench: what is measured and in which order; memory and kernels. One thread, and the pool's. */
#include "cmd_bench.h"
#include "cw/mem.h"
#include "cw/signal.h"
#include "lists.h"

#include <stdarg.h>
#include <string.h>
#include <unistd.h>

enum { MATRIX_K = 2048, MANY_ROWS = 64, PRODUCT_MS = 50, OP_MS = 4, TUNE_ROUNDS = 3 };

void cli_bench_say(cli_bench_run *b, const char *fmt, ...)
{
    if (b->o->quiet) return;
    va_list ap;
    va_start(ap, fmt);
    fputs(b->tty ? "\r\033[K" : "causeway: ", stderr);
    vfprintf(stderr, fmt, ap);
    if (!b->tty) fputc('\n', stderr);
    fflush(stderr);
    b->line_open = b->tty;
    va_end(ap);
}

void cli_bench_quiet(cli_bench_run *b)
{
    if (b->line_open) fputs("\r\033[K", stderr);
    b->line_open = false;
}

cw_status cli_bench_go_on(cw_err *err)
{
    return cw_signal_interrupted() ? CW_FAIL(err, CW_STATUS_CANCELLED, "stopped") : CW_OK;
}

/* --- memory --- */

static cw_status bench_memory(cli_bench_run *b, cw_pool *pool, cw_err *err)
{
    cw_bench_memory *m = NULL;
    CW_TRY(cw_bench_memory_new((size_t)b->o->memory_size, pool, &m, err));
    cli_bench_say(b, "memory, %d threads", cw_pool_threads(pool));
    cw_bench_memory_tune(m, pool, TUNE_ROUNDS);
    double v[CW_BENCH_MAX_ROUNDS];
    int n = 0;
    cw_status s = CW_OK;
    for (; n < b->o->rounds && (s = cli_bench_go_on(err)) == CW_OK; n++) v[n] = cw_bench_memory_read(m, pool);
    if (s == CW_OK) {
        cli_report_memory_line line = {.threads = cw_pool_threads(pool),
                                       .bytes = cw_bench_memory_bytes(m),
                                       .huge_bytes = cw_bench_huge_bytes(),
                                       .ahead = cw_bench_memory_ahead(m)};
        cw_bench_stats_of(v, n, &line.gb_s);
        cli_bench_quiet(b);
        cli_report_memory(&b->report, &line);
    }
    cw_bench_memory_free(&m);
    return s;
}

/* --- kernels --- */

/* The instruction sets asked for that this machine has. */
static int list_kernels(const cli_options *o, const cw_kernels **list)
{
    int n = 0;
    for (int i = 0; i < CW_ISA_COUNT; i++) {
        const cw_kernels *kn = cw_kernels_get((cw_isa)i);
        if (kn && (o->isa == 0 || o->isa - 1 == i)) list[n++] = kn;
    }
    return n;
}

/* Every instruction set with one row and with many, in turn; a cell is one of them. */
static const int product_rows[] = {1, MANY_ROWS};
enum { N_ROWS = CW_ARRAY_LEN(product_rows) };

typedef struct {
    const cw_kernels *list[CW_ISA_COUNT];
    int n_cells, n_rounds;
    double *gb_s;          /* [n_cells, n_rounds] */
    double *read;          /* [n_rounds] */
    double weights_a_byte; /* of the type at hand */
} products;

static cw_status product_rounds(products *p, cw_bench_matrix *x, cw_pool *pool, cw_bench_memory *memory,
                                cw_err *err)
{
    for (int r = 0; r < p->n_rounds; r++) {
        p->read[r] = cw_bench_memory_read(memory, pool);
        for (int c = 0; c < p->n_cells; c++) {
            CW_TRY(cli_bench_go_on(err));
            int m = product_rows[c % N_ROWS];
            cw_bench_mm_speed v = cw_bench_matrix_run(x, p->list[c / N_ROWS], pool, m, PRODUCT_MS);
            p->gb_s[c * p->n_rounds + r] = v.gb_s;
            p->weights_a_byte = v.gmac_s / v.gb_s / m;
        }
    }
    return CW_OK;
}

static void report_products(cli_bench_run *b, products *p, const char *type, int threads)
{
    cli_bench_quiet(b);
    for (int c = 0; c < p->n_cells; c++) {
        double *gb_s = p->gb_s + c * p->n_rounds, read[CW_BENCH_MAX_ROUNDS];
        cw_bench_stats s, memory;
        double share = cw_bench_median_ratio(gb_s, p->read, p->n_rounds);
        memcpy(read, p->read, (size_t)p->n_rounds * sizeof *read);
        cw_bench_stats_of(read, p->n_rounds, &memory);
        cw_bench_stats_of(gb_s, p->n_rounds, &s);
        int m = product_rows[c % N_ROWS];
        cli_report_product(&b->report, &(cli_report_product_line){
                                           .isa = p->list[c / N_ROWS]->name,
                                           .type = type,
                                           .threads = threads,
                                           .m = m,
                                           .speed = {s.median, s.median * p->weights_a_byte * m},
                                           .spread = cw_bench_spread(&s),
                                           .read_gb_s = memory.median,
                                           .read_share = share,
                                       });
    }
}

static cw_status bench_types(cli_bench_run *b, products *p, cw_pool *pool, cw_bench_memory *memory,
                             cw_err *err)
{
    const cw_type_info *t;
    for (size_t i = 0; (t = cw_type_at(i)); i++) {
        cw_bench_matrix *x = NULL;
        cli_bench_say(b, "%s, %d threads", t->name, cw_pool_threads(pool));
        /* Half of what measures memory: still more than most last-level caches. */
        CW_TRY(
            cw_bench_matrix_new(t->type, MATRIX_K, (size_t)b->o->memory_size / 2, MANY_ROWS, pool, &x, err));
        cw_status s = product_rounds(p, x, pool, memory, err);
        if (s == CW_OK) report_products(b, p, t->name, cw_pool_threads(pool));
        cw_bench_matrix_free(&x);
        if (s != CW_OK) return s;
    }
    return CW_OK;
}

static cw_status bench_products(cli_bench_run *b, cw_pool *pool, cw_err *err)
{
    products p = {.n_rounds = (int)b->o->rounds};
    p.n_cells = list_kernels(b->o, p.list) * N_ROWS;
    cw_bench_memory *memory = NULL;
    cw_status s;
    p.gb_s = cw_calloc((size_t)p.n_cells * (size_t)p.n_rounds, sizeof *p.gb_s);
    p.read = cw_calloc((size_t)p.n_rounds, sizeof *p.read);
    if (!p.gb_s || !p.read) {
        s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
        goto fail;
    }
    CW_TRY_GOTO(s, cw_bench_memory_new((size_t)b->o->memory_size, pool, &memory, err));
    cw_bench_memory_tune(memory, pool, TUNE_ROUNDS);
    s = bench_types(b, &p, pool, memory, err);
fail:
    cw_bench_memory_free(&memory);
    cw_free(p.gb_s);
    cw_free(p.read);
    return s;
}

static cw_status bench_ops(cli_bench_run *b, cw_err *err)
{
    const cw_kernels *list[CW_ISA_COUNT];
    int n_list = list_kernels(b->o, list);
    for (int i = 0; i < n_list; i++) {
        cw_bench_op_speed ops[CW_BENCH_MAX_OPS];
        cli_bench_say(b, "kernels, %s", list[i]->name);
        int n = cw_bench_ops_run(list[i], OP_MS, (int)b->o->rounds, ops);
        if (n < 0) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
        CW_TRY(cli_bench_go_on(err));
        cli_bench_quiet(b);
        for (int k = 0; k < n; k++) cli_report_op(&b->report, list[i]->name, &ops[k]);
    }
    return CW_OK;
}

/* --- the command --- */

static cw_status read_list(const char *text, const char *what, int32_t most, int32_t **out, size_t *n,
                           cw_err *err)
{
    CW_TRY(cli_list_parse(text, what, out, n, err));
    for (size_t i = 0; i < *n; i++)
        if ((*out)[i] > most)
            return CW_FAIL(err, CW_STATUS_INVALID, "%s: %d is more than %d", what, (*out)[i], most);
    return CW_OK;
}

static cw_status check(cli_bench_run *b, cw_err *err)
{
    const cli_options *o = b->o;
    CW_TRY(read_list(o->thread_list, "--threads", CW_POOL_MAX_THREADS, &b->threads, &b->n_threads, err));
    CW_TRY(read_list(o->prompts, "--prompts", 1 << 20, &b->prefill, &b->n_prefill, err));
    CW_TRY(read_list(o->batch, "--batch", 4096, &b->batch, &b->n_batch, err));
    for (size_t i = 0; i < b->n_batch; i++)
        if (b->batch[i] == 0) return CW_FAIL(err, CW_STATUS_INVALID, "--batch: 0 sessions decode nothing");
    if (o->wire && !o->join)
        return CW_FAIL(err, CW_STATUS_INVALID, "--wire measures a cluster: name it with --join");
    if (o->isa && !cw_kernels_get((cw_isa)(o->isa - 1)))
        return CW_FAIL(err, CW_STATUS_INVALID, "this machine has no %s; leave out --isa",
                       cw_isa_name((cw_isa)(o->isa - 1)));
    return CW_OK;
}

/* Everything that was asked for, with one number of threads. */
static cw_status with_pool(cli_bench_run *b, cw_pool *pool, cw_err *err)
{
    const cli_options *o = b->o;
    if (o->memory) CW_TRY(bench_memory(b, pool, err));
    if (o->kernels) CW_TRY(bench_products(b, pool, err));
    if (o->wire) CW_TRY(cli_bench_wire(b, pool, err));
    if (!o->memory && !o->kernels && !o->wire) CW_TRY(cli_bench_model(b, pool, err));
    return CW_OK;
}

static cw_status run(cli_bench_run *b, cw_err *err)
{
    CW_TRY(check(b, err));
    for (size_t i = 0; i < b->n_threads; i++) {
        cw_pool *pool = NULL;
        CW_TRY(cw_pool_new(b->threads[i], &pool, err));
        cw_pool_settle(pool);
        cw_status s = with_pool(b, pool, err);
        cw_pool_free(&pool);
        if (s != CW_OK) return s;
    }
    return b->o->kernels ? bench_ops(b, err) : CW_OK;
}

int cli_bench(const cli_options *o, const cw_parsed *p)
{
    (void)p;
    cli_bench_run b = {.o = o, .report = {.out = stdout, .json = o->json}, .tty = isatty(STDERR_FILENO)};
    cw_err err = {0};
    cw_status s = run(&b, &err);
    cli_bench_quiet(&b);
    cw_free(b.threads);
    cw_free(b.prefill);
    cw_free(b.batch);
    if (s == CW_OK && (fflush(stdout) != 0 || ferror(stdout)))
        s = CW_FAIL(&err, CW_STATUS_IO, "the results could not be written");
    if (s == CW_STATUS_INVALID) return cli_usage(err.text);
    return s == CW_OK ? 0 : cli_fail(&err);
}
