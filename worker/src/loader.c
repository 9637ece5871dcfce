/*
 * The loader: one thread that brings experts into memory, one after the other. From the coordinator's store,
 * each chunk verified by its hash (and kept in a cache on disk), or from a local copy of the model file.
 * Every expert must reproduce its known answer before the machine hears that it is loaded.
 */
#include <stdio.h>
#include <string.h>

#include "cw/known_answer.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "shell_internal.h"

struct loader {
    loader_config c;
    cw_queue *in, *out;
    pthread_t thread;
    bool running;
    store_link *store;
    pthread_mutex_t store_lock; /* guards the pointer: loader_free stops a waiting get */
    bool stopping;
    cw_manifest *pulled;
    const cw_manifest *manifest;
    model_facts facts;
    cw_worker_layer *layers;
    cw_expert_set *set;
    cw_expert_scratch *scratch;
    cw_chunk_cache *cache;
    /* One expert on its way. The store's thread may hold the items until store_link_close, so they live here.
     */
    cw_fetch_item items[CW_N_SLICES];
    uint8_t *slice[CW_N_SLICES];
    size_t cap[CW_N_SLICES];
};

static cw_status open_store(loader *l, const char *address, cw_err *err)
{
    cw_fetch_config fc = {.key = l->c.coordinator,
                          .arithmetic_id = CW_ARITHMETIC_ID,
                          .fingerprint = l->c.fingerprint,
                          .seed = l->c.seed + 1,
                          .manifest_max = CW_MANIFEST_MAX_BYTES};
    snprintf(fc.name, sizeof fc.name, "%s", l->c.name);
    snprintf(fc.address, sizeof fc.address, "%s", address);
    memcpy(fc.instance, l->c.instance, sizeof fc.instance);
    if (l->store) return CW_OK;
    store_link *s = NULL;
    CW_TRY(store_link_open(&fc, l->c.keys, &s, err));
    pthread_mutex_lock(&l->store_lock);
    l->store = s;
    bool stop = l->stopping;
    pthread_mutex_unlock(&l->store_lock);
    if (stop) store_link_stop(s);
    return CW_OK;
}

static cw_status pull_manifest(loader *l, const load_job *job, cw_err *err)
{
    if (!job->store_address[0])
        return CW_FAIL(
            err, CW_STATUS_UNREACHABLE,
            "the coordinator names no store to pull the model from; give this worker the file with --model");
    CW_TRY(open_store(l, job->store_address, err));
    cw_fetch_item *i = &l->items[0];
    *i = (cw_fetch_item){.manifest = true};
    if (!store_link_get(l->store, i, 1)) return CW_FAIL(err, CW_STATUS_CANCELLED, "stopped");
    cw_status s = i->ok ? cw_manifest_parse(i->dst, i->len, job->digest, &l->pulled, err)
                        : CW_FAIL(err, CW_STATUS_UNREACHABLE, "%s", i->text);
    cw_free(i->dst);
    *i = (cw_fetch_item){0};
    l->manifest = l->pulled;
    return s;
}

static cw_status set_up(loader *l, cw_err *err)
{
    CW_TRY(model_facts_read(l->manifest, &l->facts, err));
    l->layers = cw_calloc(l->facts.n_layers, sizeof *l->layers);
    if (!l->layers) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the model's layers");
    CW_TRY(cw_expert_set_new((int)l->facts.n_layers, (int)l->facts.n_experts, l->facts.shapes, &l->set, err));
    CW_TRY(cw_expert_scratch_new(l->set, 1, &l->scratch, err));
    for (uint32_t i = 0; i < l->facts.n_layers; i++) {
        const cw_expert_shape *s = &l->facts.shapes[i];
        if (!s->d_model) continue;
        l->layers[i] = (cw_worker_layer){
            .act =
                cw_expert_rows_kind(s) == CW_ROWS_A8 ? CW__PB__ACT_KIND__ACT_A8 : CW__PB__ACT_KIND__ACT_F32,
            .rows = cw_expert_reply_kind(s) == CW_REPLY_ROWS_F16 ? CW__PB__REPLY_KIND__ROWS_F16
                                                                 : CW__PB__REPLY_KIND__ROWS_F32,
            .packed_bytes = cw_expert_packed_bytes(s)};
    }
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

/* Which chunk slice `s` of the expert is, with room for it in l->slice[s]. */
static cw_status prepare(loader *l, const load_job *job, int s, uint32_t *chunk, cw_manifest_chunk *info,
                         cw_err *err)
{
    char name[64];
    CW_TRY(cw_manifest_expert_chunk(l->manifest, cw_expert_tensor_name(name, sizeof name, (int)job->layer, s),
                                    (int)job->expert, chunk, err));
    CW_TRY(cw_manifest_chunk_at(l->manifest, *chunk, info, err));
    if (l->cap[s] >= info->bytes) return CW_OK;
    cw_free(l->slice[s]);
    l->cap[s] = 0;
    l->slice[s] = cw_aligned_calloc(info->bytes, 1);
    if (!l->slice[s])
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a chunk of %u bytes", info->bytes);
    l->cap[s] = info->bytes;
    return CW_OK;
}

/* The three slices into l->slice, from the cache or the store, verified. */
static cw_status get_slices(loader *l, const load_job *job, size_t bytes[CW_N_SLICES], cw_err *err)
{
    cw_manifest_chunk info[CW_N_SLICES];
    uint32_t chunk[CW_N_SLICES];
    size_t n = 0;
    for (int s = 0; s < CW_N_SLICES; s++) {
        CW_TRY(prepare(l, job, s, &chunk[s], &info[s], err));
        bytes[s] = info[s].bytes;
        if (l->cache && cw_chunk_cache_get(l->cache, info[s].hash, l->slice[s], info[s].bytes, NULL) == CW_OK)
            continue;
        l->items[n++] = (cw_fetch_item){.chunk = chunk[s], .dst = l->slice[s], .len = info[s].bytes};
    }
    if (n && !store_link_get(l->store, l->items, n)) return CW_FAIL(err, CW_STATUS_CANCELLED, "stopped");
    for (size_t i = 0; i < n; i++)
        if (!l->items[i].ok) return CW_FAIL(err, CW_STATUS_UNREACHABLE, "%s", l->items[i].text);
    for (int s = 0; s < CW_N_SLICES; s++) {
        CW_TRY(cw_manifest_verify(l->manifest, chunk[s], l->slice[s], bytes[s], err));
        bool fresh = false;
        for (size_t i = 0; i < n; i++) fresh |= l->items[i].chunk == chunk[s];
        if (l->cache && fresh &&
            cw_chunk_cache_put(l->cache, info[s].hash, l->slice[s], bytes[s], NULL) != CW_OK)
            CW_LOG_D("loader", "a chunk was not cached");
    }
    return CW_OK;
}

static cw_status check_answer(loader *l, const load_job *job, cw_err *err)
{
    const uint8_t *want =
        cw_manifest_answer(l->manifest, CW_ARITHMETIC_ID, (int)job->layer, (int)job->expert);
    uint8_t got[CW_KNOWN_ANSWER_BYTES];
    if (!want) return CW_OK;
    CW_TRY(cw_expert_known_answer(l->c.kernels, l->set, (int)job->layer, (int)job->expert, l->scratch, got,
                                  err));
    if (!memcmp(want, got, sizeof got)) return CW_OK;
    return CW_FAIL(err, CW_STATUS_MISMATCH,
                   "it does not give the known answer of the manifest: this machine computes wrongly, or its "
                   "memory or copy of the model is damaged");
}

static void load_expert(loader *l, load_job *job)
{
    cw_err err = {0};
    cw_status s;
    if (l->c.local) {
        s = cw_gguf_check_unchanged(l->c.local, &err);
        if (s == CW_OK)
            s = cw_expert_set_add_from_gguf(l->set, l->c.local, (int)job->layer, (int)job->expert, &err);
    } else {
        size_t bytes[CW_N_SLICES];
        s = get_slices(l, job, bytes, &err);
        const void *slices[CW_N_SLICES] = {l->slice[0], l->slice[1], l->slice[2]};
        if (s == CW_OK) s = cw_expert_set_add(l->set, (int)job->layer, (int)job->expert, slices, bytes, &err);
    }
    if (s == CW_OK) {
        s = check_answer(l, job, &err);
        if (s != CW_OK) cw_expert_set_remove(l->set, (int)job->layer, (int)job->expert);
    }
    job->ok = s == CW_OK;
    snprintf(job->text, sizeof job->text, "%s", err.text);
}

static void *run(void *arg)
{
    loader *l = arg;
    cw_fp_setup();
    for (;;) {
        load_job *job = cw_queue_pop_wait(l->in, -1);
        if (cw_queue_closed(l->in)) {
            cw_free(job);
            return NULL;
        }
        if (!job) continue;
        if (job->kind == LOADER_MODEL)
            load_model(l, job);
        else
            load_expert(l, job);
        CW_ASSERT(cw_queue_push(l->out, job) == CW_OK); /* no more are under way than fit */
        l->c.wake(l->c.wake_ctx);
    }
}

cw_status loader_new(const loader_config *c, loader **out, cw_err *err)
{
    loader *l = cw_calloc(1, sizeof *l);
    if (!l) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the loader");
    l->c = *c;
    pthread_mutex_init(&l->store_lock, NULL);
    cw_status s = cw_queue_new(64, cw_free, &l->in, err);
    if (s == CW_OK) s = cw_queue_new(128, cw_free, &l->out, err);
    if (s == CW_OK && pthread_create(&l->thread, NULL, run, l) != 0)
        s = CW_FAIL(err, CW_STATUS_LIMIT, "no thread for the loader");
    l->running = s == CW_OK;
    if (s != CW_OK)
        loader_free(&l);
    else
        *out = l;
    return s;
}

void loader_free(loader **lp)
{
    if (!lp || !*lp) return;
    loader *l = *lp;
    if (l->running) {
        /* Closed first: a thread that is woken out of one job must not begin another, whose items would be
           those that the store link still has. */
        cw_queue_close(l->in);
        pthread_mutex_lock(&l->store_lock);
        l->stopping = true;
        if (l->store) store_link_stop(l->store);
        pthread_mutex_unlock(&l->store_lock);
        pthread_join(l->thread, NULL);
    }
    store_link_close(&l->store); /* before the memory its items point to */
    if (l->items[0].manifest) cw_free(l->items[0].dst);
    for (int s = 0; s < CW_N_SLICES; s++) cw_free(l->slice[s]);
    cw_queue_free(&l->in);
    cw_queue_free(&l->out);
    cw_chunk_cache_close(&l->cache);
    cw_expert_scratch_free(&l->scratch);
    cw_expert_set_free(&l->set);
    cw_manifest_free(&l->pulled);
    cw_free(l->facts.shapes);
    cw_free(l->layers);
    pthread_mutex_destroy(&l->store_lock);
    cw_free(l);
    *lp = NULL;
}

bool loader_submit(loader *l, load_job *job)
{
    return cw_queue_push(l->in, job) == CW_OK;
}
load_job *loader_take(loader *l)
{
    return cw_queue_pop(l->out);
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
