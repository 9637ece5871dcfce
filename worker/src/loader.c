/*
 * The loader: threads that bring experts into memory, each one expert at a time. From the coordinator's store
 * and from other workers, each chunk verified by its hash (and kept in a cache on disk), or from a local copy
 * of the model file. Every expert must reproduce its known answer before the machine hears that it is
 * loaded.
 *
 * All threads load while no calls come; while calls are served one goes on, at low priority, so that loading
 * and serving share the machine. The first job is the model, alone: nothing can be loaded before it.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "cw/fs.h"
#include "cw/known_answer.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "shell_internal.h"

enum { THREADS_MAX = 4, SOURCES_EARLY = 32 };
/* Raw slices in memory beside the packed experts, of all threads. */
static const size_t raw_bytes_max = (size_t)48 << 20;

typedef struct {
    loader *l;
    pthread_t thread;
    bool running;
    cw_expert_scratch *scratch;
    /* One expert on its way. The store's thread may hold the items until store_link_close, so they live here.
     */
    cw_fetch_item items[CW_N_SLICES];
    uint8_t *slice[CW_N_SLICES];
    size_t cap[CW_N_SLICES];
} hand;

struct loader {
    loader_config c;
    cw_queue *in, *out;
    pthread_mutex_t pop_lock; /* the queue has one consumer at a time */
    pthread_mutex_t turn_lock;
    pthread_cond_t turn; /* under turn_lock: how many are at work, and how many may be */
    int n_busy, n_most;
    atomic_bool serving;
    hand hands[THREADS_MAX];
    int n_hands;
    store_link *store;
    pthread_mutex_t store_lock; /* guards the pointer: loader_free stops a waiting get */
    bool stopping;
    cw_fetch_source *early[SOURCES_EARLY]; /* heard of before there was a store link */
    size_t n_early;
    cw_manifest *pulled;
    const cw_manifest *manifest;
    model_facts facts;
    cw_worker_layer *layers;
    cw_expert_set *set;
    cw_chunk_cache *cache;
};

/* --- the model --- */

static cw_status open_store(loader *l, const load_job *job, cw_err *err)
{
    if (l->store) return CW_OK;
    cw_fetch_config fc = {.key = l->c.coordinator,
                          .arithmetic_id = CW_ARITHMETIC_ID,
                          .fingerprint = l->c.fingerprint,
                          .seed = l->c.seed + 1,
                          .manifest_max = CW_MANIFEST_MAX_BYTES};
    snprintf(fc.name, sizeof fc.name, "%s", l->c.name);
    snprintf(fc.address, sizeof fc.address, "%s", job->store_address);
    memcpy(fc.instance, l->c.instance, sizeof fc.instance);
    memcpy(fc.digest, job->digest, sizeof fc.digest);
    store_link *s = NULL;
    CW_TRY(store_link_open(&fc, l->c.keys, &s, err));
    pthread_mutex_lock(&l->store_lock);
    l->store = s;
    bool stop = l->stopping;
    for (size_t i = 0; i < l->n_early; i++) store_link_source(s, l->early[i]);
    l->n_early = 0;
    pthread_mutex_unlock(&l->store_lock);
    if (stop) store_link_stop(s);
    return CW_OK;
}

static char *manifest_path(const loader *l)
{
    return l->c.manifest_dir ? cw_fs_join(l->c.manifest_dir, "manifest") : NULL;
}

/* The manifest that an earlier run pulled, where it is still the cluster's. */
static bool kept_manifest(loader *l, const load_job *job)
{
    char *path = manifest_path(l), *data = NULL;
    size_t n = 0;
    bool ok = path && cw_fs_read(path, CW_MANIFEST_MAX_BYTES, &data, &n, NULL) == CW_OK &&
              cw_manifest_parse(data, n, job->digest, &l->pulled, NULL) == CW_OK;
    cw_free(data);
    cw_free(path);
    return ok;
}

static void keep_manifest(const loader *l)
{
    size_t n;
    const void *bytes = cw_manifest_bytes(l->pulled, &n);
    char *path = manifest_path(l);
    cw_err err = {0};
    if (path && cw_fs_write(path, bytes, n, 0600, &err) != CW_OK)
        CW_LOG_W("loader", "the manifest is not kept for the next start: %s", err.text);
    cw_free(path);
}

static cw_status pull_manifest(loader *l, const load_job *job, cw_err *err)
{
    CW_TRY(open_store(l, job, err));
    if (kept_manifest(l, job)) return CW_OK;
    if (!job->store_address[0])
        return CW_FAIL(
            err, CW_STATUS_UNREACHABLE,
            "the coordinator names no store to pull the model from; give this worker the file with --model");
    cw_fetch_item *i = &l->hands[0].items[0];
    *i = (cw_fetch_item){.manifest = true};
    if (!store_link_get(l->store, i, 1)) return CW_FAIL(err, CW_STATUS_CANCELLED, "stopped");
    cw_status s = i->ok ? cw_manifest_parse(i->dst, i->len, job->digest, &l->pulled, err)
                        : CW_FAIL(err, CW_STATUS_UNREACHABLE, "%s", i->text);
    cw_free(i->dst);
    *i = (cw_fetch_item){0};
    if (s == CW_OK) keep_manifest(l);
    return s;
}

static cw_status set_up(loader *l, cw_err *err)
{
    CW_TRY(model_facts_read(l->manifest, &l->facts, err));
    l->layers = cw_calloc(l->facts.n_layers, sizeof *l->layers);
    if (!l->layers) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the model's layers");
    CW_TRY(cw_expert_set_new((int)l->facts.n_layers, (int)l->facts.n_experts, l->facts.shapes, &l->set, err));
    for (int i = 0; i < l->n_hands; i++) CW_TRY(cw_expert_scratch_new(l->set, 1, &l->hands[i].scratch, err));
    size_t raw_most = 1;
    for (uint32_t i = 0; i < l->facts.n_layers; i++) {
        const cw_expert_shape *s = &l->facts.shapes[i];
        if (!s->d_model) continue;
        size_t raw = 0;
        for (int k = 0; k < CW_N_SLICES; k++) raw += cw_expert_slice_bytes(s, k);
        if (raw > raw_most) raw_most = raw;
        l->layers[i] = (cw_worker_layer){
            .act =
                cw_expert_rows_kind(s) == CW_ROWS_A8 ? CW__PB__ACT_KIND__ACT_A8 : CW__PB__ACT_KIND__ACT_F32,
            .rows = cw_expert_reply_kind(s) == CW_REPLY_ROWS_F16 ? CW__PB__REPLY_KIND__ROWS_F16
                                                                 : CW__PB__REPLY_KIND__ROWS_F32,
            .packed_bytes = cw_expert_packed_bytes(s)};
    }
    size_t fit = raw_bytes_max / raw_most;
    int most = l->c.local || fit >= (size_t)l->n_hands ? l->n_hands : fit ? (int)fit : 1;
    pthread_mutex_lock(&l->turn_lock);
    l->n_most = most;
    pthread_cond_broadcast(&l->turn);
    pthread_mutex_unlock(&l->turn_lock);
    return CW_OK;
}

static void open_cache(loader *l)
{
    cw_err err = {0};
    cw_chunk_cache_options o = {
        .dir = l->c.cache_dir, .limit_bytes = l->c.cache_bytes, .reserve_bytes = (uint64_t)256 << 20};
    if (l->c.local || !l->c.cache_bytes) return;
    if (cw_chunk_cache_open(&o, &l->cache, &err) != CW_OK) CW_LOG_W("loader", "no chunk cache: %s", err.text);
}

static void load_model(loader *l, load_job *job)
{
    cw_err err = {0};
    cw_status s = CW_OK;
    if (l->c.local)
        l->manifest = l->c.local_manifest;
    else
        s = pull_manifest(l, job, &err);
    if (s == CW_OK && !l->c.local) l->manifest = l->pulled;
    /* A manifest that matches its digest will not become better by asking again. */
    job->fatal = s == CW_STATUS_FORMAT || s == CW_STATUS_LIMIT;
    if (s == CW_OK) {
        s = set_up(l, &err);
        job->fatal = s != CW_OK;
    }
    if (s == CW_OK) open_cache(l);
    job->ok = s == CW_OK;
    snprintf(job->text, sizeof job->text, "%s", err.text);
}

/* --- one expert --- */

/* Which chunk slice `s` of the expert is, with room for it in the hand. */
static cw_status prepare(hand *h, const load_job *job, int s, uint32_t *chunk, cw_manifest_chunk *info,
                         cw_err *err)
{
    char name[64];
    loader *l = h->l;
    CW_TRY(cw_manifest_expert_chunk(l->manifest, cw_expert_tensor_name(name, sizeof name, (int)job->layer, s),
                                    (int)job->expert, chunk, err));
    CW_TRY(cw_manifest_chunk_at(l->manifest, *chunk, info, err));
    if (h->cap[s] >= info->bytes) return CW_OK;
    cw_free(h->slice[s]);
    h->cap[s] = 0;
    h->slice[s] = cw_aligned_calloc(info->bytes, 1);
    if (!h->slice[s])
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a chunk of %u bytes", info->bytes);
    h->cap[s] = info->bytes;
    return CW_OK;
}

/* What was fetched into items[n] is verified; bytes that are wrong are fetched once more, from somebody else
 * than those who sent them. */
static cw_status verify(hand *h, size_t n, cw_err *err)
{
    loader *l = h->l;
    for (size_t i = 0; i < n; i++) {
        cw_fetch_item *it = &h->items[i];
        cw_status s = it->ok ? cw_manifest_verify(l->manifest, it->chunk, it->dst, it->len, err)
                             : CW_FAIL(err, CW_STATUS_UNREACHABLE, "%s", it->text);
        if (s == CW_STATUS_MISMATCH && it->from >> 1) {
            store_link_distrust(l->store, it->from);
            it->avoid = ~(uint64_t)1; /* the coordinator alone now */
            if (!store_link_get(l->store, it, 1)) return CW_FAIL(err, CW_STATUS_CANCELLED, "stopped");
            s = it->ok ? cw_manifest_verify(l->manifest, it->chunk, it->dst, it->len, err)
                       : CW_FAIL(err, CW_STATUS_UNREACHABLE, "%s", it->text);
        }
        if (s != CW_OK) return s;
    }
    return CW_OK;
}

static void keep(loader *l, const cw_manifest_chunk *info, const void *data)
{
    cw_err err = {0};
    static atomic_bool said;
    if (!l->cache || cw_chunk_cache_put(l->cache, info->hash, data, info->bytes, &err) == CW_OK) return;
    if (!atomic_exchange(&said, true))
        CW_LOG_W("loader", "chunks go into memory only from here on: %s", err.text);
}

/* The three slices into the hand, from the cache or from sources, verified. `fresh`: not from the cache. */
static cw_status get_slices(hand *h, const load_job *job, bool fresh, size_t bytes[CW_N_SLICES], cw_err *err)
{
    loader *l = h->l;
    cw_manifest_chunk info[CW_N_SLICES];
    uint32_t chunk[CW_N_SLICES];
    size_t n = 0;
    int slice_of[CW_N_SLICES];
    for (int s = 0; s < CW_N_SLICES; s++) {
        CW_TRY(prepare(h, job, s, &chunk[s], &info[s], err));
        bytes[s] = info[s].bytes;
        if (fresh && l->cache) cw_chunk_cache_drop(l->cache, info[s].hash);
        if (l->cache && cw_chunk_cache_get(l->cache, info[s].hash, h->slice[s], info[s].bytes, NULL) == CW_OK)
            continue;
        slice_of[n] = s;
        h->items[n++] = (cw_fetch_item){
            .chunk = chunk[s], .dst = h->slice[s], .len = info[s].bytes, .avoid = fresh ? ~(uint64_t)1 : 0};
    }
    if (n && !store_link_get(l->store, h->items, n)) return CW_FAIL(err, CW_STATUS_CANCELLED, "stopped");
    CW_TRY(verify(h, n, err));
    for (size_t i = 0; i < n; i++) keep(l, &info[slice_of[i]], h->slice[slice_of[i]]);
    return CW_OK;
}

static cw_status check_answer(hand *h, const load_job *job, cw_err *err)
{
    loader *l = h->l;
    const uint8_t *want =
        cw_manifest_answer(l->manifest, CW_ARITHMETIC_ID, (int)job->layer, (int)job->expert);
    uint8_t got[CW_KNOWN_ANSWER_BYTES];
    if (!want) return CW_OK;
    CW_TRY(cw_expert_known_answer(l->c.kernels, l->set, (int)job->layer, (int)job->expert, h->scratch, got,
                                  err));
    if (!memcmp(want, got, sizeof got)) return CW_OK;
    return CW_FAIL(err, CW_STATUS_MISMATCH,
                   "it does not give the known answer of the manifest: this machine computes wrongly, or its "
                   "memory or copy of the model is damaged");
}

/* Into the set and checked; `fresh`: all of it fetched anew. */
static cw_status bring_in(hand *h, const load_job *job, bool fresh, cw_err *err)
{
    loader *l = h->l;
    if (l->c.local) {
        CW_TRY(cw_gguf_check_unchanged(l->c.local, err));
        CW_TRY(cw_expert_set_add_from_gguf(l->set, l->c.local, (int)job->layer, (int)job->expert, err));
    } else {
        size_t bytes[CW_N_SLICES];
        CW_TRY(get_slices(h, job, fresh, bytes, err));
        const void *slices[CW_N_SLICES] = {h->slice[0], h->slice[1], h->slice[2]};
        CW_TRY(cw_expert_set_add(l->set, (int)job->layer, (int)job->expert, slices, bytes, err));
    }
    cw_status s = check_answer(h, job, err);
    if (s != CW_OK) cw_expert_set_remove(l->set, (int)job->layer, (int)job->expert);
    return s;
}

static void load_expert(hand *h, load_job *job)
{
    cw_err err = {0};
    cw_status s = bring_in(h, job, false, &err);
    if (s == CW_STATUS_MISMATCH) {
        CW_LOG_W("loader", "layer=%u expert=%u is loaded once more: %s", job->layer, job->expert, err.text);
        s = bring_in(h, job, true, &err);
    }
    job->ok = s == CW_OK;
    snprintf(job->text, sizeof job->text, "%s", err.text);
}

/* --- threads --- */

static int allowed(loader *l)
{
    return atomic_load_explicit(&l->serving, memory_order_relaxed) ? 1 : l->n_most;
}

static void take_turn(loader *l)
{
    pthread_mutex_lock(&l->turn_lock);
    while (l->n_busy >= allowed(l) && !cw_queue_closed(l->in)) pthread_cond_wait(&l->turn, &l->turn_lock);
    l->n_busy++;
    pthread_mutex_unlock(&l->turn_lock);
}

static void end_turn(loader *l)
{
    pthread_mutex_lock(&l->turn_lock);
    l->n_busy--;
    pthread_cond_broadcast(&l->turn);
    pthread_mutex_unlock(&l->turn_lock);
}

static void *run(void *arg)
{
    hand *h = arg;
    loader *l = h->l;
    cw_fp_setup();
    (void)setpriority(PRIO_PROCESS, 0, 10); /* of this thread: calls come first */
    for (;;) {
        pthread_mutex_lock(&l->pop_lock);
        load_job *job = cw_queue_pop_wait(l->in, -1);
        pthread_mutex_unlock(&l->pop_lock);
        if (cw_queue_closed(l->in)) {
            cw_free(job);
            return NULL;
        }
        if (!job) continue;
        take_turn(l);
        if (cw_queue_closed(l->in)) {
            cw_free(job);
            return NULL;
        }
        if (job->kind == LOADER_MODEL)
            load_model(l, job);
        else
            load_expert(h, job);
        end_turn(l);
        CW_ASSERT(cw_queue_push(l->out, job) == CW_OK); /* no more are under way than fit */
        l->c.wake(l->c.wake_ctx);
    }
}

static cw_status start_threads(loader *l, cw_err *err)
{
    l->n_hands = l->c.threads < 1 ? 1 : l->c.threads > THREADS_MAX ? THREADS_MAX : l->c.threads;
    l->n_most = 1;
    for (int i = 0; i < l->n_hands; i++) {
        hand *h = &l->hands[i];
        h->l = l;
        if (pthread_create(&h->thread, NULL, run, h) != 0)
            return CW_FAIL(err, CW_STATUS_LIMIT, "no thread for the loader");
        h->running = true;
    }
    return CW_OK;
}

cw_status loader_new(const loader_config *c, loader **out, cw_err *err)
{
    loader *l = cw_calloc(1, sizeof *l);
    if (!l) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the loader");
    l->c = *c;
    pthread_mutex_init(&l->store_lock, NULL);
    pthread_mutex_init(&l->pop_lock, NULL);
    pthread_mutex_init(&l->turn_lock, NULL);
    pthread_cond_init(&l->turn, NULL);
    cw_status s = cw_queue_new(64, cw_free, &l->in, err);
    if (s == CW_OK) s = cw_queue_new(128, cw_free, &l->out, err);
    if (s == CW_OK) s = start_threads(l, err);
    if (s != CW_OK)
        loader_free(&l);
    else
        *out = l;
    return s;
}

static void stop_threads(loader *l)
{
    /* Closed first: a thread that is woken out of one job must not begin another, whose items would be those
       that the store link still has. */
    if (l->in) cw_queue_close(l->in);
    pthread_mutex_lock(&l->store_lock);
    l->stopping = true;
    if (l->store) store_link_stop(l->store);
    pthread_mutex_unlock(&l->store_lock);
    pthread_mutex_lock(&l->turn_lock);
    pthread_cond_broadcast(&l->turn);
    pthread_mutex_unlock(&l->turn_lock);
    for (int i = 0; i < l->n_hands; i++)
        if (l->hands[i].running) pthread_join(l->hands[i].thread, NULL);
}

void loader_free(loader **lp)
{
    if (!lp || !*lp) return;
    loader *l = *lp;
    stop_threads(l);
    store_link_close(&l->store); /* before the memory its items point to */
    for (int i = 0; i < THREADS_MAX; i++) {
        hand *h = &l->hands[i];
        if (h->items[0].manifest) cw_free(h->items[0].dst);
        for (int s = 0; s < CW_N_SLICES; s++) cw_free(h->slice[s]);
        cw_expert_scratch_free(&h->scratch);
    }
    for (size_t i = 0; i < l->n_early; i++) cw_free(l->early[i]);
    cw_queue_free(&l->in);
    cw_queue_free(&l->out);
    cw_chunk_cache_close(&l->cache);
    cw_expert_set_free(&l->set);
    cw_manifest_free(&l->pulled);
    cw_free(l->facts.shapes);
    cw_free(l->layers);
    pthread_cond_destroy(&l->turn);
    pthread_mutex_destroy(&l->turn_lock);
    pthread_mutex_destroy(&l->pop_lock);
    pthread_mutex_destroy(&l->store_lock);
    cw_free(l);
    *lp = NULL;
}

/* --- the owner's side --- */

bool loader_submit(loader *l, load_job *job)
{
    return cw_queue_push(l->in, job) == CW_OK;
}
load_job *loader_take(loader *l)
{
    return cw_queue_pop(l->out);
}

void loader_source(loader *l, cw_fetch_source *s)
{
    pthread_mutex_lock(&l->store_lock);
    if (l->store)
        store_link_source(l->store, s);
    else if (l->n_early < SOURCES_EARLY)
        l->early[l->n_early++] = s;
    else
        cw_free(s);
    pthread_mutex_unlock(&l->store_lock);
}

void loader_set_serving(loader *l, bool serving)
{
    if (atomic_exchange(&l->serving, serving) == serving) return;
    pthread_mutex_lock(&l->turn_lock);
    pthread_cond_broadcast(&l->turn);
    pthread_mutex_unlock(&l->turn_lock);
    pthread_mutex_lock(&l->store_lock);
    if (l->store) store_link_rate(l->store, serving ? l->c.pull_limit : 0);
    pthread_mutex_unlock(&l->store_lock);
}

const cw_manifest *loader_manifest(const loader *l)
{
    return l->manifest;
}
cw_chunk_cache *loader_cache(const loader *l)
{
    return l->cache;
}
cw_expert_set *loader_set(loader *l)
{
    return l->set;
}
uint32_t loader_n_layers(const loader *l)
{
    return l->facts.n_layers;
}
uint32_t loader_n_experts(const loader *l)
{
    return l->facts.n_experts;
}
uint32_t loader_d_model(const loader *l)
{
    return l->facts.d_model;
}
const cw_worker_layer *loader_layers(const loader *l)
{
    return l->layers;
}
