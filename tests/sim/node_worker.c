/* A worker's process: a loader that takes time and may fail, a compute stage that may lie. See nodes.h. */
#include "nodes.h"

#include <stdio.h>
#include <string.h>

#include "cw/mem.h"

static void give_model(void *ctx, void *arg, cw_outbox *out)
{
    node_worker *w = ctx;
    (void)arg;
    cw_worker_layer layers[LAYERS];
    pure_worker_layers(layers);
    cw_worker_model_ready(w->m, LAYERS, EXPERTS, D, layers, host_now(w->h), host_wall(w->h), out);
}

static void *pack(uint32_t layer, uint32_t expert)
{
    return (void *)(uintptr_t)(layer * 1000 + expert);
}

static void loaded(void *ctx, void *arg, cw_outbox *out)
{
    node_worker *w = ctx;
    uint32_t layer = (uint32_t)((uintptr_t)arg / 1000), expert = (uint32_t)((uintptr_t)arg % 1000);
    const char *why = "";
    if (host_now(w->h) < w->disk_lost_until)
        why = "the disk is gone";
    else if (host_below(w->h, 100) < w->load_fails_percent)
        why = "the chunk did not verify";
    w->here[layer][expert] = *why ? NOT_HERE : HERE;
    if (*why) w->n_here--;
    cw_worker_loaded(w->m, layer, expert, !*why, why, host_now(w->h), host_wall(w->h), out);
}

static bool job_is_honest(node_worker *w, const cw_job *job)
{
    for (uint32_t i = 0; i < job->n_experts; i++)
        if (w->here[job->experts[i].layer][job->experts[i].expert] != HERE) {
            host_fail(w->h, "worker %d computes expert %u of layer %u, which it does not hold", w->index,
                      job->experts[i].expert, job->experts[i].layer);
            return false;
        }
    return true;
}

/* One bit, where it stays a number. */
static void lie(node_worker *w, bool f32, uint16_t *f16, float *f)
{
    uint32_t i = host_below(w->h, D), bits;
    if (!w->lies_in || host_now(w->h) >= w->lies_until || host_below(w->h, w->lies_in)) return;
    w->lies++;
    f16[i] ^= 1;
    memcpy(&bits, &f[i], sizeof bits);
    bits ^= 1;
    if (f32) memcpy(&f[i], &bits, sizeof bits);
}

static void computed(void *ctx, void *arg, cw_outbox *out)
{
    node_worker *w = ctx;
    cw_job *job = arg;
    if (!job_is_honest(w, job)) return; /* nor may it be taken away meanwhile */
    for (uint32_t i = 0; i < job->n_experts; i++)
        for (uint32_t k = 0; k < job->experts[i].n; k++) {
            cw_job_row *r = &job->rows[job->experts[i].first + k];
            uint16_t f16[D] = {0};
            float f32[D] = {0};
            bool f = pure_is_f32(job->experts[i].layer);
            pure_row(job->experts[i].layer, job->experts[i].expert, r->q, r->s, r->x, f16, r->e, f32);
            lie(w, f, f16, f32);
            memcpy(r->out, f ? (void *)f32 : (void *)f16, D * (f ? 4 : 2));
        }
    cw_worker_computed(w->m, job, host_now(w->h), host_wall(w->h), out);
}

static int64_t compute_us(node_worker *w, const cw_job *job)
{
    int64_t us = 100 + host_below(w->h, 1500) + 100 * (int64_t)job->n_experts + 20 * (int64_t)job->n_rows;
    return host_now(w->h) < w->slow_until ? us * w->slow_factor : us;
}

static void load(node_worker *w, uint32_t layer, uint32_t expert)
{
    if (w->here[layer][expert] != NOT_HERE)
        host_fail(w->h, "worker %d loads expert %u of layer %u twice", w->index, expert, layer);
    w->here[layer][expert] = LOADING;
    w->n_here++;
    w->h->ops->after(w->h, 500 + host_below(w->h, w->load_us), loaded, pack(layer, expert));
}

static void unload(node_worker *w, uint32_t layer, uint32_t expert)
{
    if (w->here[layer][expert] != HERE) host_fail(w->h, "worker %d unloads what it does not hold", w->index);
    w->here[layer][expert] = NOT_HERE;
    w->n_here--;
}

void node_worker_after(void *ctx, cw_outbox *out)
{
    (void)out;
    node_worker *w = ctx;
    cw_worker_act a;
    while (cw_worker_take_act(w->m, &a)) {
        switch (a.kind) {
        case CW_WORKER_ENROLLED: w->enrolled = true; break;
        case CW_WORKER_GET_MODEL:
            w->h->ops->after(w->h, 1000 + host_below(w->h, 50000), give_model, NULL);
            break;
        case CW_WORKER_LOAD: load(w, a.layer, a.expert); break;
        case CW_WORKER_UNLOAD: unload(w, a.layer, a.expert); break;
        case CW_WORKER_SOURCE: cw_free(a.source); break;
        case CW_WORKER_READ: host_fail(w->h, "worker %d is asked for a chunk", w->index); break;
        case CW_WORKER_SAVE: break; /* restarts here are with empty disks */
        case CW_WORKER_COMPUTE:
            if (job_is_honest(w, a.job)) w->h->ops->after(w->h, compute_us(w, a.job), computed, a.job);
            break;
        case CW_WORKER_SAY: host_say(w->h, "worker %d says: %s", w->index, a.text); break;
        case CW_WORKER_REVOKED: w->n_revoked++; break;
        case CW_WORKER_STOPPED:
            w->stopped = true;
            w->stop_code = a.code;
            snprintf(w->why, sizeof w->why, "%s", a.text);
            host_say(w->h, "worker %d stops: %s", w->index, a.text);
            w->h->ops->die(w->h);
            break;
        }
    }
}

void node_worker_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    cw_worker_event(((node_worker *)ctx)->m, ev, out);
}

void node_worker_stop(void *ctx, void *arg, cw_outbox *out)
{
    node_worker *w = ctx;
    (void)arg;
    cw_worker_stop(w->m, host_now(w->h), host_wall(w->h), out);
}

void node_worker_start(node_worker *w)
{
    cw_worker_config c = {.coordinator_key = w->place->coordinator_key,
                          .token_len = CW_TOKEN_BYTES,
                          .enrolled = w->enrolled,
                          .memory_bytes = w->memory,
                          .threads = 1,
                          .speed = 1.0f + (float)(w->index % 4),
                          .arithmetic_id = 1,
                          .fingerprint = FINGERPRINT,
                          .kernels = cw_kernels_get(CW_ISA_SCALAR),
                          .seed = w->h->ops->random(w->h),
                          .drain_ms = w->drain_ms,
                          .jobs_in_flight = w->jobs_in_flight};
    snprintf(c.name, sizeof c.name, "w%d", w->index);
    snprintf(c.coordinator, sizeof c.coordinator, "%s", w->place->control);
    snprintf(c.data_address, sizeof c.data_address, "%s", w->address);
    snprintf(c.isa, sizeof c.isa, "scalar");
    memcpy(c.token, w->place->token[0], CW_TOKEN_BYTES);
    for (size_t i = 0; i < sizeof c.instance; i++) c.instance[i] = (uint8_t)w->h->ops->random(w->h);
    memset(w->here, 0, sizeof w->here);
    w->n_here = 0;
    w->stopped = false;
    cw_worker_free(&w->m);
    CW_ASSERT(cw_worker_new(&c, &w->m, NULL) == CW_OK);
}
