/* Opening, waiting for coverage, closing, status; see cw/mainland.h. */
#include "cw/mainland.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cw/clock.h"
#include "cw/cpus.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "mainland_internal.h"

bool cw_mainland_is_stored(const char *state_dir, const char *name)
{
    return cw_member_is_stored(CW_JOIN_EDGE, state_dir, name);
}

static bool is_cancelled(const cw_mainland *m)
{
    return m->o.cancel && atomic_load(m->o.cancel);
}

static void say(cw_mainland *m, const char *text, uint64_t done, uint64_t total)
{
    if (m->o.say) m->o.say(m->o.say_ctx, text, done, total);
}

static bool hash_progress(void *ctx, uint64_t done, uint64_t total)
{
    cw_mainland *m = ctx;
    say(m, "hashing the model file, the first time only", done, total);
    return !is_cancelled(m);
}

/* The cluster must serve the very model the edge holds. */
static cw_status own_digest(cw_mainland *m, cw_err *err)
{
    cw_manifest *mf = NULL;
    cw_manifest_options mo = {.progress = hash_progress, .ctx = m};
    CW_TRY(cw_manifest_cached(m->o.gguf, m->member.dir, &mo, &mf, err));
    memcpy(m->ec.model_digest, cw_manifest_digest(mf), CW_DIGEST_BYTES);
    cw_manifest_free(&mf);
    return CW_OK;
}

static cw_status fill_config(cw_mainland *m, cw_err *err)
{
    cw_edge_config *c = &m->ec;
    const cw_kernels *kn = m->o.kernels ? m->o.kernels : cw_kernels_best();
    snprintf(c->name, sizeof c->name, "%s", m->name);
    snprintf(c->coordinator, sizeof c->coordinator, "%s", m->member.address);
    c->coordinator_key = m->member.coordinator;
    if (m->member.has_token) {
        memcpy(c->token, m->member.token, CW_TOKEN_BYTES);
        c->token_len = CW_TOKEN_BYTES;
    }
    c->enrolled = m->member.enrolled;
    cw_random(c->instance, sizeof c->instance);
    cw_random(&c->seed, sizeof c->seed);
    c->gives_way = m->o.gives_way;
    c->arithmetic_id = CW_ARITHMETIC_ID;
    c->fingerprint = cw_kernels_fingerprint(kn);
    c->n_layers = (uint32_t)m->o.config->n_layers;
    c->n_experts = (uint32_t)m->o.config->n_experts;
    c->d_model = (uint32_t)m->o.config->d_model;
    m->layers = cw_calloc(c->n_layers, sizeof *m->layers);
    if (!m->layers || !c->fingerprint)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the connection to the cluster");
    for (uint32_t l = 0; l < c->n_layers; l++) {
        const cw_expert_shape *s = &m->o.shapes[l];
        if (!s->d_model) continue;
        m->layers[l] = (cw_edge_layer){
            .act =
                cw_expert_rows_kind(s) == CW_ROWS_A8 ? CW__PB__ACT_KIND__ACT_A8 : CW__PB__ACT_KIND__ACT_F32,
            .rows = cw_expert_reply_kind(s) == CW_REPLY_ROWS_F16 ? CW__PB__REPLY_KIND__ROWS_F16
                                                                 : CW__PB__REPLY_KIND__ROWS_F32,
            .weight_bytes = cw_expert_packed_bytes(s)};
    }
    c->layers = m->layers;
    c->homeless_us = (int64_t)m->o.lost_ms * 1000;
    return CW_OK;
}

/* Room for a cluster of a thousand workers; where the system does not allow so many descriptors, for as many
 * as it usually does. */
static cw_status open_net(cw_mainland *m, cw_err *err)
{
    cw_err why = {0};
    /* Without that directory there are no same-host endpoints, and nothing is amiss. */
    if (!m->o.no_ipc && cw_net_local_dir(&m->local_dir, &why) != CW_OK)
        CW_LOG_I("edge", "workers on this machine are reached by their addresses: %s", why.text);
    cw_net_role role = land_role(m);
    cw_net_config c = {.self = CW_SIDE_EDGE,
                       .keys = m->member.keys,
                       .max_peers = 1100,
                       .peer_credit = 16 << 20,
                       /* Beside the engine's thread, which sleeps when they have something to do. */
                       .io_bound = cw_cpus_bound(),
                       .io_cpu = cw_cpus_get(0),
                       .local_dir = m->local_dir};
    if (cw_net_new(&c, &role, &m->net, NULL) == CW_OK) return CW_OK;
    c.max_peers = 128;
    return cw_net_new(&c, &role, &m->net, err);
}

static cw_status start(cw_mainland *m, cw_err *err)
{
    CW_TRY(cw_member_name(m->o.name, m->name, err));
    CW_TRY(cw_member_open(CW_JOIN_EDGE, m->o.state_dir, m->name, m->o.join, &m->member, err));
    CW_TRY(own_digest(m, err));
    CW_TRY(fill_config(m, err));
    saved_load(m->member.dir, &m->ec, &m->saved);
    CW_TRY(cw_edge_new(&m->ec, &m->edge, err));
    m->max_entries = (size_t)m->o.max_rows * (size_t)m->o.config->n_used;
    CW_TRY(land_slots_new(m, err));
    CW_TRY(open_net(m, err));
    if (pthread_create(&m->thread, NULL, land_thread, m) != 0)
        return CW_FAIL(err, CW_STATUS_LIMIT, "no thread for the network");
    m->running = true;
    return CW_OK;
}

static cw_status refusal_status(Cw__Pb__RefusalCode code)
{
    switch ((int)code) {
    case CW__PB__REFUSAL_CODE__REFUSAL_TOKEN:
    case CW__PB__REFUSAL_CODE__REFUSAL_REVOKED:
    case CW__PB__REFUSAL_CODE__REFUSAL_UNKNOWN_KEY: return CW_STATUS_AUTH;
    case CW__PB__REFUSAL_CODE__REFUSAL_MODEL:
    case CW__PB__REFUSAL_CODE__REFUSAL_NUMERICS: return CW_STATUS_MISMATCH;
    default: return CW_STATUS_REFUSED;
    }
}

static void pause_locked(cw_mainland *m, int ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += (long)ms * 1000000;
    if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
    pthread_cond_timedwait(&m->changed, &m->lock, &t);
}

/* Until every expert has a home that can be reached. */
static cw_status wait_covered(cw_mainland *m, cw_err *err)
{
    int64_t begin = cw_now_us(), deadline = begin + (int64_t)m->o.wait_ms * 1000;
    char last[CW_TEXT_MAX] = "", why[CW_TEXT_MAX];
    for (;;) {
        land_refresh_locked(m);
        bool covered = m->facts.covered, admitted = m->facts.admitted, ended = m->ended, refused = m->refused;
        cw_err gone = m->end_err;
        memcpy(why, refused ? m->refused_text : m->facts.why, sizeof why);
        Cw__Pb__RefusalCode code = m->refused_code;
        if (!covered && !ended && !refused) pause_locked(m, 20);
        pthread_mutex_unlock(&m->lock);
        if (covered) return CW_OK;
        if (ended) return CW_FAIL(err, gone.code, "%s", gone.text);
        if (refused) return CW_FAIL(err, refusal_status(code), "%s", why);
        if (is_cancelled(m))
            return CW_FAIL(err, CW_STATUS_CANCELLED, "stopped while waiting for the cluster");
        if (cw_now_us() > deadline)
            return CW_FAIL(err, admitted ? CW_STATUS_TIMEOUT : CW_STATUS_UNREACHABLE,
                           "the cluster was not ready within %d s: %s", (m->o.wait_ms + 500) / 1000, why);
        /* What takes a moment on every start is not worth a line. */
        if (strcmp(why, last) && cw_now_us() - begin > 1000000) {
            char text[CW_TEXT_MAX + 32];
            snprintf(text, sizeof text, "waiting for the cluster: %s", why);
            say(m, text, 0, 0);
            memcpy(last, why, sizeof last);
        }
    }
}

cw_status cw_mainland_open(const cw_mainland_options *o, cw_mainland **out, cw_err *err)
{
    CW_ASSERT(o->gguf && o->config && o->shapes && o->max_rows > 0 && o->config->n_experts > 0);
    cw_mainland *m = cw_calloc(1, sizeof *m);
    if (!m) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the connection to the cluster");
    m->o = *o;
    atomic_init(&m->online, true);
    m->n_slots = o->max_tickets ? o->max_tickets : 4;
    if (!m->o.wait_ms) m->o.wait_ms = 30000;
    if (!m->o.call_ms) m->o.call_ms = 30000;
    pthread_mutex_init(&m->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&m->changed, &attr);
    pthread_condattr_destroy(&attr);
    cw_status s = start(m, err);
    if (s == CW_OK) s = wait_covered(m, err);
    if (s != CW_OK) {
        cw_mainland_close(&m);
        return s;
    }
    /* What the options pointed to was needed for opening only. */
    m->o = (cw_mainland_options){.max_rows = o->max_rows, .call_ms = m->o.call_ms};
    *out = m;
    return CW_OK;
}

void cw_mainland_close(cw_mainland **mp)
{
    if (!mp || !*mp) return;
    cw_mainland *m = *mp;
    if (m->running) {
        cw_net_stop(m->net);
        pthread_join(m->thread, NULL);
    }
    cw_net_free(&m->net);
    cw_edge_free(&m->edge);
    land_slots_free(m);
    saved_free(&m->saved);
    cw_free(m->layers);
    cw_free(m->workers);
    cw_free(m->local_dir);
    cw_member_close(&m->member);
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
    cw_free(m);
    *mp = NULL;
}

bool cw_mainland_is_online(const cw_mainland *m)
{
    return atomic_load_explicit(&m->online, memory_order_relaxed);
}

void cw_mainland_on_waiting(cw_mainland *m, void (*tell)(void *ctx, const char *sentence), void *ctx)
{
    m->tell_waiting = tell;
    m->tell_ctx = ctx;
}

void cw_mainland_want(cw_mainland *m)
{
    atomic_store(&m->wanted_again, true);
    cw_net_wake(m->net);
}

void cw_mainland_tell(cw_mainland *m, uint64_t tokens, uint64_t fallback_tokens, const char *mode)
{
    pthread_mutex_lock(&m->lock);
    m->story = (cw_edge_story){.tokens = tokens, .fallback_tokens = fallback_tokens};
    snprintf(m->story.mode, sizeof m->story.mode, "%s", mode);
    m->story_is_new = true;
    pthread_mutex_unlock(&m->lock);
}

void cw_mainland_get_status(cw_mainland *m, cw_mainland_status *out)
{
    land_refresh_locked(m);
    const cw_edge_facts *f = &m->facts;
    bool up = !m->ended;
    *out = (cw_mainland_status){.admitted = f->admitted && up,
                                .covered = f->covered && up,
                                .n_workers = f->n_workers,
                                .n_up = up ? f->n_up : 0,
                                .epoch_term = f->epoch_term,
                                .epoch_number = f->epoch_number,
                                .n = {.calls = f->n.calls,
                                      .resent = f->n.resent,
                                      .hedges = f->n.hedges,
                                      .hedge_wins = f->n.hedge_wins,
                                      .doubled = f->n.doubled,
                                      .compared = f->n.compared,
                                      .mismatches = f->n.mismatches,
                                      .busy = f->n.busy,
                                      .suspects = f->n.suspects,
                                      .late = f->n.late}};
    memcpy(out->model_name, f->model_name, sizeof out->model_name);
    memcpy(out->waiting, f->waiting, sizeof out->waiting);
    snprintf(out->why, sizeof out->why, "%s", up ? f->why : m->end_err.text);
    pthread_mutex_unlock(&m->lock);
}

size_t cw_mainland_workers(cw_mainland *m, cw_mainland_worker *list, size_t max)
{
    land_refresh_locked(m);
    size_t n = m->n_workers;
    for (size_t i = 0; i < n && i < max; i++) {
        const cw_edge_worker_facts *w = &m->workers[i];
        list[i] = (cw_mainland_worker){.id = w->id,
                                       .up = w->up,
                                       .calls = w->calls,
                                       .rows = w->rows,
                                       .bytes_out = w->bytes_out,
                                       .bytes_in = w->bytes_in,
                                       .rtt_us = w->rtt_us,
                                       .delay_us = w->delay_us,
                                       .service_us = w->service_us,
                                       .bytes_per_s = w->bytes_per_s,
                                       .service_sum_us = w->service_sum_us};
        memcpy(list[i].name, w->name, sizeof list[i].name);
        memcpy(list[i].address, w->address, sizeof list[i].address);
    }
    pthread_mutex_unlock(&m->lock);
    return n;
}
