/* The real shell of the worker: shell.c (the thread that owns the sockets), compute.c (the compute stage),
 * loader.c (the threads that bring experts in), store.c (the store links' thread), disk.c (the disk's). */
#pragma once
#include <pthread.h>

#include "cw/chunk_cache.h"
#include "cw/expert_ffn.h"
#include "cw/fetch_machine.h"
#include "cw/gguf.h"
#include "cw/keys.h"
#include "cw/manifest.h"
#include "cw/metrics.h"
#include "cw/queue.h"
#include "cw/worker_machine.h"

/* --- compute.c: one thread of its own with a pool, or the socket's thread where the worker has only one ---
 */

typedef struct compute compute;
typedef struct {
    const cw_kernels *kernels;
    cw_pool *pool;           /* NULL: alone */
    uint32_t rows_max;       /* of one job */
    void (*wake)(void *ctx); /* a job is back; NULL: compute_now is used, no thread is started */
    void *wake_ctx;
} compute_config;
/* The set is known with the model; neither it nor the pool is owned. */
CW_MUST_USE cw_status compute_new(const compute_config *c, cw_expert_set *set, uint32_t d_model,
                                  compute **out, cw_err *err);
void compute_free(compute **c); /* ends the thread after the job it is at */
/* In the calling thread. */
void compute_now(compute *c, cw_job *job);
/* To the thread; compute_take gives it back. */
void compute_submit(compute *c, cw_job *job);
CW_MUST_USE cw_job *compute_take(compute *c);

/* --- store.c: blocking gets for the loader over the store link --- */

typedef struct store_link store_link;
CW_MUST_USE cw_status store_link_open(const cw_fetch_config *c, const cw_keys *keys, store_link **out,
                                      cw_err *err);
void store_link_close(store_link **s);
/* Starts getting the items and waits for all; any number of callers. false: the link is being closed, and
 * the items must live until it is. */
CW_MUST_USE bool store_link_get(store_link *s, cw_fetch_item *items, size_t n);
/* Any thread: waiting gets return false from now on. */
void store_link_stop(store_link *s);
/* Any thread. A worker that has chunks (taken over); sources of wrong bytes; bytes a second, 0: any. */
void store_link_source(store_link *s, cw_fetch_source *source);
void store_link_distrust(store_link *s, uint64_t bits);
void store_link_rate(store_link *s, uint64_t bytes_per_s);

/* --- loader.c --- */

typedef enum { LOADER_MODEL, LOADER_EXPERT } loader_kind;

/* A request on its way in, and its result on its way out. Owned by whoever holds it. */
typedef struct {
    loader_kind kind;
    uint32_t layer, expert;
    uint8_t digest[CW_DIGEST_BYTES];
    char store_address[CW_ADDRESS_MAX];
    bool ok, fatal;
    char text[CW_TEXT_MAX];
} load_job;

typedef struct {
    const char *name;
    const cw_keys *keys;
    cw_key coordinator;
    uint8_t instance[CW_INSTANCE_BYTES];
    uint64_t fingerprint, seed;
    const cw_kernels *kernels;
    const cw_gguf *local; /* --model, opened and hashed; NULL: from the store */
    const cw_manifest *local_manifest;
    const char *cache_dir;
    uint64_t cache_bytes;
    const char *manifest_dir; /* where a pulled manifest is kept for the next start; NULL: nowhere */
    int threads;              /* that may load at once */
    uint64_t pull_limit;      /* bytes a second while calls are served; 0: none */
    void (*wake)(void *ctx);
    void *wake_ctx;
} loader_config;

typedef struct loader loader;
CW_MUST_USE cw_status loader_new(const loader_config *c, loader **out, cw_err *err);
void loader_free(loader **l);
CW_MUST_USE bool loader_submit(loader *l, load_job *job); /* false: full; the job is still the caller's */
CW_MUST_USE load_job *loader_take(loader *l);
void loader_source(loader *l, cw_fetch_source *s); /* taken over */
void loader_set_serving(loader *l, bool serving);  /* whether calls are being served */
/* What a finished LOADER_MODEL job has brought; borrowed, fixed from then on. */
cw_expert_set *loader_set(loader *l);
uint32_t loader_n_layers(const loader *l);
uint32_t loader_n_experts(const loader *l);
uint32_t loader_d_model(const loader *l);
/* [n_layers] for the machine. */
const cw_worker_layer *loader_layers(const loader *l);

/* For the disk's thread; fixed once the model is there. cache NULL: nothing is kept. */
const cw_manifest *loader_manifest(const loader *l);
cw_chunk_cache *loader_cache(const loader *l);

/* --- disk.c --- */

typedef enum { DISK_READ, DISK_SAVE } disk_kind;

/* On its way in and, a READ, out again. Owned by whoever holds it. */
typedef struct {
    disk_kind kind;
    cw_link link;
    uint32_t chunk, length;
    uint64_t offset, total;
    cw_frame bytes; /* SAVE: to be written; READ: what was read, data NULL: `text` says why not */
    char text[CW_TEXT_MAX];
} disk_job;

typedef struct {
    const char *saved_path;
    void (*wake)(void *ctx);
    void *wake_ctx;
} disk_config;

/* Where chunks come from; all borrowed. */
typedef struct {
    const cw_manifest *manifest;
    const cw_gguf *local;
    cw_chunk_cache *cache;
} disk_model;

typedef struct disk disk;
CW_MUST_USE cw_status disk_new(const disk_config *c, disk **out, cw_err *err);
void disk_free(disk **d); /* after what is queued */
void disk_set_model(disk *d, const disk_model *m);
CW_MUST_USE bool disk_submit(disk *d, disk_job *j); /* false: full; the job is still the caller's */
CW_MUST_USE disk_job *disk_take(disk *d);
void disk_job_free(void *job);

/* --- model_facts.c: the experts' shapes from a manifest --- */

typedef struct {
    uint32_t n_layers, n_experts, d_model;
    cw_expert_shape *shapes; /* [n_layers]; freed with cw_free */
} model_facts;
CW_MUST_USE cw_status model_facts_read(const cw_manifest *m, model_facts *out, cw_err *err);

/* --- metrics.c --- */

/* What the machine and the net say of themselves, for the metrics port. */
void metrics_write(cw_metrics *m, const cw_worker *w, cw_net *net);

/* --- bench.c --- */

/* Gigabytes of packed weights read in a second by one-row products. Takes about a tenth of a second. */
float bench_speed(const cw_kernels *kn, cw_pool *pool);
