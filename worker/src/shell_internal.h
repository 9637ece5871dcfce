/* The real shell of the worker: shell.c (the thread that owns the sockets), compute.c (the compute stage),
 * loader.c (the thread that brings experts in), store.c (the store link's thread). */
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
/* Starts getting the items and waits for all. One caller at a time. false: the link is being closed. */
CW_MUST_USE bool store_link_get(store_link *s, cw_fetch_item *items, size_t n);
/* Any thread: waiting gets return false from now on. */
void store_link_stop(store_link *s);

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
    void (*wake)(void *ctx);
    void *wake_ctx;
} loader_config;

typedef struct loader loader;
CW_MUST_USE cw_status loader_new(const loader_config *c, loader **out, cw_err *err);
void loader_free(loader **l);
CW_MUST_USE bool loader_submit(loader *l, load_job *job); /* false: full; the job is still the caller's */
CW_MUST_USE load_job *loader_take(loader *l);
/* What a finished LOADER_MODEL job has brought; borrowed, fixed from then on. */
cw_expert_set *loader_set(loader *l);
uint32_t loader_n_layers(const loader *l);
uint32_t loader_n_experts(const loader *l);
uint32_t loader_d_model(const loader *l);
/* [n_layers] for the machine. */
const cw_worker_layer *loader_layers(const loader *l);

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
