/*
 * The worker process. This thread owns the machine and the sockets of control and data; it does no disk I/O
 * (but for one small file on enrolment), and computes only where the worker has a single thread, as
 * docs/WIRE.md says. Compute stage and loader come back through queues and cw_net_wake.
 */
#include "cw/worker_shell.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cw/address.h"
#include "cw/clock.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "cw/member.h"
#include "cw/metrics.h"
#include "cw/net.h"
#include "cw/progress.h"
#include "cw/signal.h"
#include "shell_internal.h"

/* Rows of one job where the socket's thread computes: it must come back to its sockets soon. */
enum { ROWS_ALONE = 64, ROWS_POOL = 512, JOBS_POOL = 2, SAVED_MAX = 8 << 20 };

typedef struct {
    const cw_worker_options *o;
    char name[65];
    cw_member member;
    const cw_kernels *kernels;
    cw_pool *pool;
    cw_gguf *gguf;
    cw_manifest *manifest;
    cw_net *net;
    cw_worker *machine;
    cw_worker_config wc;
    compute *compute;
    loader *loader;
    disk *disk;
    char *cache_dir, *saved_path, *port_path, *saved;
    cw_progress bar; /* of loading experts */
    bool bar_on;
    bool computed;   /* one thread: a job was computed in this callback already */
    cw_job *waiting; /* and this one is for the next */
    int stops_seen;
    cw_metrics *metrics; /* NULL: not asked for */
    int64_t metrics_us;  /* when they are written next */
    int code;            /* of CW_WORKER_STOPPED; -1: not yet */
    char text[CW_TEXT_MAX];
} shell;

static void wake(void *ctx)
{
    cw_net_wake(((shell *)ctx)->net);
}

static void say(const shell *s, const char *text)
{
    fprintf(stderr, "causeway-worker %s: %s\n", s->name, text);
    fflush(stderr);
}

static void end(shell *s, int code, const char *text)
{
    if (s->code >= 0) return;
    s->code = code;
    snprintf(s->text, sizeof s->text, "%s", text);
    cw_net_stop(s->net);
}

/* --- role actions --- */

static void to_loader(shell *s, const cw_worker_act *a, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    load_job *j = cw_calloc(1, sizeof *j);
    if (j) {
        j->kind = a->kind == CW_WORKER_GET_MODEL ? LOADER_MODEL : LOADER_EXPERT;
        j->layer = a->layer;
        j->expert = a->expert;
        memcpy(j->digest, a->digest, sizeof j->digest);
        memcpy(j->store_address, a->store_address, sizeof j->store_address);
        if (loader_submit(s->loader, j)) return;
        cw_free(j);
    }
    if (a->kind == CW_WORKER_GET_MODEL)
        cw_worker_model_failed(s->machine, false, "out of memory", now_us, wall_ms, out);
    else
        cw_worker_loaded(s->machine, a->layer, a->expert, false, "out of memory", now_us, wall_ms, out);
}

static void read_chunk(shell *s, const cw_worker_act *a, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    disk_job *j = cw_calloc(1, sizeof *j);
    if (j) {
        *j = (disk_job){
            .kind = DISK_READ, .link = a->link, .chunk = a->chunk, .length = a->length, .offset = a->offset};
        if (disk_submit(s->disk, j)) return;
        cw_free(j);
    }
    cw_worker_read(s->machine, a->link, a->chunk, a->offset, 0, (cw_frame){0}, "this worker is busy", now_us,
                   wall_ms, out);
}

/* A state that could not be written now is written with its next change; until then the old one stands. */
static void save(shell *s)
{
    disk_job *j = cw_calloc(1, sizeof *j);
    if (j) *j = (disk_job){.kind = DISK_SAVE, .bytes = cw_worker_saved(s->machine)};
    if (!j || !j->bytes.data || !disk_submit(s->disk, j)) {
        CW_LOG_W("worker", "the state for the next start could not be saved: the disk is busy");
        disk_job_free(j);
    }
}

static void enrolled(shell *s)
{
    cw_err err = {0};
    if (cw_member_enrolled(&s->member, &err) == CW_OK) return;
    fprintf(stderr, "causeway-worker %s: the next start will need the join string again: %s\n", s->name,
            err.text);
}

/* In the socket's thread. One job, then its replies leave and the sockets are looked at before the next. */
static void compute_here(shell *s, cw_job *job, cw_outbox *out)
{
    if (s->computed) {
        s->waiting = job;
        cw_net_wake(s->net);
        return;
    }
    s->computed = true;
    compute_now(s->compute, job);
    cw_worker_computed(s->machine, job, cw_now_us(), cw_wall_ms(), out);
}

static void act(shell *s, const cw_worker_act *a, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    cw_err err = {0};
    switch (a->kind) {
    case CW_WORKER_ENROLLED: enrolled(s); break;
    case CW_WORKER_GET_MODEL:
    case CW_WORKER_LOAD: to_loader(s, a, now_us, wall_ms, out); break;
    case CW_WORKER_UNLOAD: cw_expert_set_remove(loader_set(s->loader), (int)a->layer, (int)a->expert); break;
    case CW_WORKER_COMPUTE:
        if (s->wc.jobs_in_flight > 1)
            compute_submit(s->compute, a->job);
        else
            compute_here(s, a->job, out);
        break;
    case CW_WORKER_REVOKED:
        if (cw_net_revoke(s->net, &a->key, &err) != CW_OK)
            CW_LOG_W("worker", "a revoked key is only refused after its hello: %s", err.text);
        break;
    case CW_WORKER_SOURCE: loader_source(s->loader, a->source); break;
    case CW_WORKER_READ: read_chunk(s, a, now_us, wall_ms, out); break;
    case CW_WORKER_SAVE: save(s); break;
    case CW_WORKER_SAY: say(s, a->text); break;
    case CW_WORKER_STOPPED: end(s, a->code, a->text); break;
    }
}

static void drain(shell *s, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    cw_worker_act a;
    while (cw_worker_take_act(s->machine, &a)) act(s, &a, now_us, wall_ms, out);
}

static void model_came(shell *s, const load_job *j, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    cw_err err = {0};
    if (!j->ok) {
        cw_worker_model_failed(s->machine, j->fatal, j->text, now_us, wall_ms, out);
        return;
    }
    compute_config cc = {.kernels = s->kernels,
                         .pool = s->pool,
                         .rows_max = s->wc.job_rows_max,
                         .wake = s->wc.jobs_in_flight > 1 ? wake : NULL,
                         .wake_ctx = s};
    if (compute_new(&cc, loader_set(s->loader), loader_d_model(s->loader), &s->compute, &err) != CW_OK) {
        cw_worker_model_failed(s->machine, true, err.text, now_us, wall_ms, out);
        return;
    }
    disk_model dm = {
        .manifest = loader_manifest(s->loader), .local = s->gguf, .cache = loader_cache(s->loader)};
    disk_set_model(s->disk, &dm);
    cw_worker_model_ready(s->machine, loader_n_layers(s->loader), loader_n_experts(s->loader),
                          loader_d_model(s->loader), loader_layers(s->loader), now_us, wall_ms, out);
}

/* --- cw_net's callbacks --- */

/* At every tick: how far loading is, for the operator and for the loader's manners. */
static void watch(shell *s)
{
    cw_worker_facts f;
    uint64_t done, total;
    cw_worker_get_facts(s->machine, &f);
    loader_set_serving(s->loader, f.serving);
    bool loading = cw_worker_loading(s->machine, &done, &total);
    if (loading && !s->bar_on) cw_progress_begin(&s->bar, "loading experts", total);
    if (loading) {
        s->bar.total = total;
        cw_progress_update(&s->bar, done);
    } else if (s->bar_on) {
        cw_progress_end(&s->bar);
    }
    s->bar_on = loading;
}

static void on_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    shell *s = ctx;
    s->computed = s->waiting != NULL; /* its turn comes with the wake-up */
    cw_worker_event(s->machine, ev, out);
    while (s->stops_seen < cw_signal_stops()) {
        s->stops_seen++;
        cw_worker_stop(s->machine, ev->now_us, ev->wall_ms, out);
    }
    drain(s, ev->now_us, ev->wall_ms, out);
    if (s->metrics && ev->now_us >= s->metrics_us) {
        s->metrics_us = ev->now_us + 1000000;
        metrics_write(s->metrics, s->machine, s->net);
    }
    if (ev->kind == CW_EV_TICK) watch(s);
}

static void on_wake(void *ctx, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    shell *s = ctx;
    cw_job *job = s->waiting;
    s->computed = false;
    s->waiting = NULL;
    if (job) {
        compute_here(s, job, out);
        drain(s, now_us, wall_ms, out);
    }
    while (s->compute && (job = compute_take(s->compute))) {
        cw_worker_computed(s->machine, job, now_us, wall_ms, out);
        drain(s, now_us, wall_ms, out);
    }
    for (disk_job *j; (j = disk_take(s->disk));) {
        cw_frame bytes = j->bytes;
        j->bytes = (cw_frame){0};
        cw_worker_read(s->machine, j->link, j->chunk, j->offset, j->total, bytes, j->text, now_us, wall_ms,
                       out);
        disk_job_free(j);
        drain(s, now_us, wall_ms, out);
    }
    for (load_job *j; (j = loader_take(s->loader));) {
        if (j->kind == LOADER_MODEL)
            model_came(s, j, now_us, wall_ms, out);
        else
            cw_worker_loaded(s->machine, j->layer, j->expert, j->ok, j->text, now_us, wall_ms, out);
        cw_free(j);
        drain(s, now_us, wall_ms, out);
    }
}

/* --- starting --- */

static uint64_t memory_available(void)
{
    FILE *f = fopen("/proc/meminfo", "r");
    char line[128];
    unsigned long long kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) break;
    if (f) fclose(f);
    return kib ? (uint64_t)kib * 1024 : (uint64_t)1 << 30; /* a system that does not say: be modest */
}

static bool hash_progress(void *ctx, uint64_t done, uint64_t total)
{
    cw_progress *p = ctx;
    p->total = total;
    cw_progress_update(p, done);
    return !cw_signal_stopped();
}

/* --model: the file's manifest, from the cache where the file has not changed. */
static cw_status open_local(shell *s, cw_err *err)
{
    if (!s->o->model) return CW_OK;
    CW_TRY(cw_gguf_open(s->o->model, &s->gguf, err));
    cw_progress bar;
    cw_manifest_options mo = {.progress = hash_progress, .ctx = &bar};
    cw_progress_begin(&bar, "hashing the model file", 0);
    cw_status st = cw_manifest_cached(s->gguf, s->member.dir, &mo, &s->manifest, err);
    cw_progress_end(&bar);
    if (st != CW_OK) return st;
    memcpy(s->wc.local_digest, cw_manifest_digest(s->manifest), CW_DIGEST_BYTES);
    s->wc.has_local_model = true;
    return CW_OK;
}

static cw_status pick_address(shell *s, const char *bound, cw_err *err)
{
    cw_address at, co;
    const char *advertise = s->o->advertise ? s->o->advertise : bound;
    if (s->o->advertise) {
        cw_status st = cw_address_parse(advertise, CW_ADDRESS_CONNECT, NULL, err);
        if (st != CW_OK) return cw_err_prefix(err, "--advertise");
    } else {
        CW_TRY(cw_address_parse(bound, CW_ADDRESS_LISTEN, &at, err));
        if (at.wildcard)
            return CW_FAIL(err, CW_STATUS_INVALID,
                           "--listen %s needs --advertise tcp://HOST:PORT, the address by which edges reach "
                           "this machine",
                           s->o->listen);
        if (at.loopback && cw_address_parse(s->member.address, CW_ADDRESS_CONNECT, &co, NULL) == CW_OK &&
            !co.loopback)
            say(s, "listening on loopback only: edges on other machines cannot reach this worker; give "
                   "--listen tcp://ADDRESS:PORT");
    }
    snprintf(s->wc.data_address, sizeof s->wc.data_address, "%s", advertise);
    return CW_OK;
}

/* Without --listen a port that is free, the same as last time where that can be: edges that know this worker
 * from an epoch find it again although the coordinator, who could tell them otherwise, is away. */
static cw_status listen_somewhere(shell *s, char bound[CW_ADDRESS_MAX], cw_err *err)
{
    if (s->o->listen) {
        cw_status st = cw_address_parse(s->o->listen, CW_ADDRESS_LISTEN, NULL, err);
        if (st != CW_OK) return cw_err_prefix(err, "--listen");
        return cw_net_listen(s->net, CW_PORT_DATA, s->o->listen, bound, err);
    }
    char *last = NULL;
    size_t n;
    cw_address a;
    bool ok = cw_fs_read(s->port_path, CW_ADDRESS_MAX - 1, &last, &n, NULL) == CW_OK &&
              cw_address_parse(last, CW_ADDRESS_LISTEN, &a, NULL) == CW_OK && a.loopback &&
              cw_net_listen(s->net, CW_PORT_DATA, last, bound, NULL) == CW_OK;
    cw_free(last);
    if (ok) return CW_OK;
    CW_TRY(cw_net_listen(s->net, CW_PORT_DATA, "tcp://127.0.0.1:*", bound, err));
    if (cw_fs_write(s->port_path, bound, strlen(bound), 0600, NULL) != CW_OK)
        CW_LOG_W("worker", "the port is not remembered for the next start");
    return CW_OK;
}

/* Edges of this user on this machine come a shorter way. Without it they come by the address. */
static void listen_local(shell *s)
{
    cw_err err = {0};
    char *dir = NULL;
    cw_status st = cw_net_local_dir(&dir, &err);
    if (st == CW_OK) st = cw_net_listen_local(s->net, CW_PORT_DATA, dir, &err);
    if (st != CW_OK) CW_LOG_W("worker", "no endpoint for edges on this machine: %s", err.text);
    cw_free(dir);
}

static cw_status open_net(shell *s, cw_err *err)
{
    cw_net_role role = {.ctx = s, .on_event = on_event, .on_wake = on_wake};
    cw_net_config nc = {.self = CW_SIDE_WORKER,
                        .keys = s->member.keys,
                        .fault_zap_ms = s->o->fault_zap_ms,
                        /* Above the 512 edges that a coordinator admits by default: one too many is cut
                           without a word. */
                        .max_peers = 576}; /* default credit: small parts take three times their bytes in
                                              memory, and 64 MiB is the promise */
    char bound[CW_ADDRESS_MAX];
    CW_TRY(cw_net_new(&nc, &role, &s->net, err));
    CW_TRY(listen_somewhere(s, bound, err));
    if (!s->o->no_ipc) listen_local(s);
    return pick_address(s, bound, err);
}

static void fill_config(shell *s, int threads)
{
    cw_worker_config *c = &s->wc;
    snprintf(c->name, sizeof c->name, "%s", s->name);
    snprintf(c->coordinator, sizeof c->coordinator, "%s", s->member.address);
    c->coordinator_key = s->member.coordinator;
    if (s->member.has_token) {
        memcpy(c->token, s->member.token, CW_TOKEN_BYTES);
        c->token_len = CW_TOKEN_BYTES;
    }
    c->enrolled = s->member.enrolled;
    cw_random(c->instance, sizeof c->instance);
    cw_random(&c->seed, sizeof c->seed);
    c->memory_bytes = s->o->memory ? s->o->memory : memory_available() / 5 * 4;
    c->threads = (uint32_t)threads;
    snprintf(c->isa, sizeof c->isa, "%s", s->kernels->name);
    c->arithmetic_id = CW_ARITHMETIC_ID;
    c->fingerprint = cw_kernels_fingerprint(s->kernels);
    c->kernels = s->kernels;
    c->drain_ms = s->o->drain_ms;
    c->speed = bench_speed(s->kernels, s->pool);
    c->gives_chunks = s->gguf || s->o->disk;
    c->chunk_rate = s->o->pull_limit;
    c->jobs_in_flight = threads > 1 ? JOBS_POOL : 1;
    c->job_rows_max = threads > 1 ? ROWS_POOL : ROWS_ALONE;
}

static cw_status name_files(shell *s, cw_err *err)
{
    s->cache_dir = cw_fs_join(s->member.dir, "chunks");
    s->saved_path = cw_fs_join(s->member.dir, "saved");
    s->port_path = cw_fs_join(s->member.dir, "port");
    return s->cache_dir && s->saved_path && s->port_path ? CW_OK
                                                         : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
}

static cw_status start_loader(shell *s, cw_err *err)
{
    disk_config dc = {.saved_path = s->saved_path, .wake = wake, .wake_ctx = s};
    CW_TRY(disk_new(&dc, &s->disk, err));
    loader_config lc = {.name = s->name,
                        .keys = s->member.keys,
                        .coordinator = s->member.coordinator,
                        .fingerprint = s->wc.fingerprint,
                        .seed = s->wc.seed,
                        .kernels = s->kernels,
                        .local = s->gguf,
                        .local_manifest = s->manifest,
                        .cache_dir = s->cache_dir,
                        .cache_bytes = s->o->disk,
                        .manifest_dir = s->member.dir,
                        .threads = (int)s->wc.threads,
                        .pull_limit = s->o->pull_limit,
                        .wake = wake,
                        .wake_ctx = s};
    memcpy(lc.instance, s->wc.instance, sizeof lc.instance);
    return loader_new(&lc, &s->loader, err);
}

static void tell_start(const shell *s)
{
    char text[512], mem[32];
    snprintf(text, sizeof text,
             "%u thread%s, %s, %.1f GB/s of weights, at most %s of experts, edges at %.200s", s->wc.threads,
             s->wc.threads == 1 ? "" : "s", s->wc.isa, (double)s->wc.speed,
             cw_bytes_text(s->wc.memory_bytes, mem, sizeof mem), s->wc.data_address);
    say(s, text);
}

static cw_status start(shell *s, cw_err *err)
{
    char port[CW_METRICS_ADDRESS] = "";
    CW_TRY(cw_member_name(s->o->name, s->name, err));
    if (s->o->metrics) CW_TRY(cw_metrics_start(s->o->metrics, port, &s->metrics, err));
    CW_TRY(cw_member_open(CW_JOIN_WORKER, s->o->state, s->name, s->o->join, &s->member, err));
    CW_TRY(name_files(s, err));
    CW_TRY(cw_pool_new(s->o->threads, &s->pool, err));
    CW_TRY(open_local(s, err));
    fill_config(s, cw_pool_threads(s->pool));
    if (!s->wc.fingerprint)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the built-in test rows");
    CW_TRY(open_net(s, err));
    CW_TRY(start_loader(s, err));
    if (cw_fs_is_file(s->saved_path) &&
        cw_fs_read(s->saved_path, SAVED_MAX, &s->saved, &s->wc.saved_len, err) != CW_OK)
        CW_LOG_W("worker", "the state of the last run cannot be read: %s", err->text);
    s->wc.saved = (const uint8_t *)s->saved;
    CW_TRY(cw_worker_new(&s->wc, &s->machine, err));
    tell_start(s);
    if (port[0]) {
        char text[120];
        snprintf(text, sizeof text, "metrics at http://%s/metrics", port);
        say(s, text);
    }
    return CW_OK;
}

cw_status cw_worker_run(const cw_worker_options *o, cw_err *err)
{
    shell s = {.o = o, .kernels = o->kernels, .code = -1};
    cw_status st = start(&s, err);
    if (st == CW_OK) {
        st = cw_net_run(s.net, err);
        if (st == CW_OK && s.code > 0) st = CW_FAIL(err, CW_STATUS_REFUSED, "%s", s.text);
    }
    /* The stages first: they hold jobs of the machine and experts of the loader's set. */
    cw_metrics_stop(&s.metrics);
    compute_free(&s.compute);
    disk_free(&s.disk); /* it reads through the loader's cache */
    loader_free(&s.loader);
    cw_worker_free(&s.machine);
    cw_net_free(&s.net);
    cw_manifest_free(&s.manifest);
    cw_gguf_close(&s.gguf);
    cw_pool_free(&s.pool);
    cw_free(s.cache_dir);
    cw_free(s.saved_path);
    cw_free(s.port_path);
    cw_free(s.saved);
    cw_member_close(&s.member);
    return st;
}
