/* One run of a cluster in the simulator; see cluster.h. */
#include "cluster.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/bytes.h"
#include "cw/coordinator.h"
#include "cw/edge_machine.h"
#include "cw/join.h"
#include "cw/kernels.h"
#include "cw/mem.h"
#include "cw/ticket.h"
#include "cw/worker_machine.h"

enum { LAYERS = 4, EXPERTS = 12, D = 32, EXPERT_BYTES = 1000, MODEL_BYTES = 3 * EXPERTS * EXPERT_BYTES };
enum { WORKERS = 2, EDGES = 2, MAX_ROWS = 20, MAX_K = 3, MAX_ENTRIES = MAX_ROWS * MAX_K, OPEN_REQUESTS = 2 };
enum { MAX_ROWS_SAVED = 32, FINGERPRINT = 4711 };
static const int64_t start_bound = 8 * SIM_S, recovery_bound = 35 * SIM_S, drain_bound = 12 * SIM_S;
static const char control_address[] = "tcp://10.0.0.1:5570", store_address[] = "tcp://10.0.0.1:5571";

typedef struct cluster cluster;

/* What the coordinator has on disk. */
typedef struct {
    uint64_t term, serial, epoch_term, number;
    uint8_t epoch[8192];
    size_t epoch_bytes;
    cw_token_row tokens[4];
    cw_key_row keys[8];
    size_t n_tokens, n_keys;
} disk;

typedef struct {
    cluster *cl;
    int proc;
    cw_coordinator *m;
    disk disk, backup;
    bool die_before_save, die_after_save, restored;
    int64_t down_us;
} coordinator;

typedef enum { NOT_HERE, LOADING, HERE } presence;

typedef struct {
    cluster *cl;
    int proc, index;
    cw_worker *m;
    bool enrolled;
    uint64_t memory;
    presence here[LAYERS][EXPERTS];
    uint32_t n_here;
    uint64_t term, number; /* highest epoch this incarnation has seen */
    uint32_t incarnation;
    int64_t restart_us;
} worker;

typedef struct {
    cw_edge_request r;
    bool open;
    int8_t q[MAX_ROWS * D];
    float s[MAX_ROWS * (D / 32)], x[MAX_ROWS * D];
    cw_edge_entry entries[MAX_ENTRIES];
    uint16_t f16[MAX_ENTRIES * D];
    int8_t e[MAX_ENTRIES];
    float f32[MAX_ENTRIES * D];
} request;

typedef struct {
    cluster *cl;
    int proc, index;
    cw_edge *m;
    bool enrolled, has_saved;
    uint8_t ticket[1024], epoch[8192], cluster_id[CW_CLUSTER_BYTES];
    size_t ticket_len, epoch_len;
    cw_key sign_key;
    request requests[OPEN_REQUESTS];
    uint64_t done, cancelled;
    uint64_t term, number;
    uint32_t incarnation;
} edge;

struct cluster {
    sim *s;
    cw_signer *signer;
    uint8_t token[2][CW_TOKEN_BYTES]; /* worker, edge */
    coordinator co;
    worker w[WORKERS];
    edge e[EDGES];
    bool submitting, counting_down; /* counting down: the last fault has begun */
    int64_t faults_end;
    cluster_counts *counts;
    uint32_t n_steps;
};

static const uint64_t expert_bytes[LAYERS] = {0, EXPERT_BYTES, EXPERT_BYTES, EXPERT_BYTES};
static const char *const fault_names[N_FAULTS] = {
    "cut", "hole", "pause", "kill", "stop", "slow", "wall clock", "death at saving", "old backup"};

const char *cluster_fault_name(int fault)
{
    return fault_names[fault];
}

static bool is_f32(uint32_t layer)
{
    return layer == 3;
}

/* ---- the pure function
 * -------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h, const void *data, size_t n)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

/* Any fixed function of its arguments will do: bits that nobody can guess, all finite. */
static void expert_row(uint32_t layer, uint32_t expert, const void *q, const void *s, const void *x,
                       uint16_t *f16, int8_t *e, float *f32)
{
    uint32_t key[2] = {layer, expert};
    uint64_t h = mix(0xcbf29ce484222325u, key, sizeof key);
    if (is_f32(layer)) {
        h = mix(h, x, D * 4);
        for (int i = 0; i < D; i++)
            f32[i] = (float)(int32_t)((h = h * 6364136223846793005u + 1) >> 40) / 64.0f;
    } else {
        h = mix(mix(h, q, D), s, D / 32 * 4);
        for (int i = 0; i < D; i++) f16[i] = (uint16_t)(((h = h * 6364136223846793005u + 1) >> 48) & 0xbbff);
        *e = (int8_t)((h >> 33) % 40) - 20;
    }
}

/* ---- the coordinator's process
 * ------------------------------------------------------------------------------ */

static void coordinator_restart(void *ctx, void *arg);

static void save(coordinator *c)
{
    size_t n;
    const cw_row *rows = cw_coordinator_rows(c->m, &n);
    disk *d = &c->disk;
    for (size_t i = 0; i < n; i++) {
        const cw_row *r = &rows[i];
        size_t k = 0;
        switch (r->kind) {
        case CW_ROW_TERM: d->term = r->term; break;
        case CW_ROW_SERIAL: d->serial = r->serial; break;
        case CW_ROW_EPOCH:
            CW_ASSERT(r->epoch.len <= sizeof d->epoch);
            memcpy(d->epoch, r->epoch.data, r->epoch.len);
            d->epoch_bytes = r->epoch.len;
            if (r->term < d->epoch_term || (r->term == d->epoch_term && r->number <= d->number))
                sim_fail(c->cl->s, "epoch %llu.%llu follows %llu.%llu", (unsigned long long)r->term,
                         (unsigned long long)r->number, (unsigned long long)d->epoch_term,
                         (unsigned long long)d->number);
            d->epoch_term = r->term;
            d->number = r->number;
            c->cl->counts->epochs++;
            sim_trace(c->cl->s, "epoch %llu.%llu", (unsigned long long)r->term,
                      (unsigned long long)r->number);
            break;
        case CW_ROW_TOKEN:
            while (k < d->n_tokens && d->tokens[k].id != r->token.id) k++;
            CW_ASSERT(k < CW_ARRAY_LEN(d->tokens));
            d->tokens[k] = r->token;
            if (k == d->n_tokens) d->n_tokens++;
            break;
        case CW_ROW_KEY:
            while (k < d->n_keys && !cw_key_equal(&d->keys[k].key, &r->key.key)) k++;
            CW_ASSERT(k < CW_ARRAY_LEN(d->keys));
            d->keys[k] = r->key;
            if (k == d->n_keys) d->n_keys++;
            break;
        }
    }
    cw_coordinator_rows_clear(c->m);
}

/* The process ends in the middle of an event: before the rows are on disk, or between disk and network. */
static bool die_at_save(coordinator *c, bool before)
{
    size_t n;
    (void)cw_coordinator_rows(c->m, &n);
    if (!n || !(before ? c->die_before_save : c->die_after_save)) return false;
    c->die_before_save = c->die_after_save = false;
    sim_die_now(c->cl->s, c->proc);
    sim_at(c->cl->s, sim_now(c->cl->s) + c->down_us, coordinator_restart, c, NULL);
    return true;
}

static void coordinator_after(void *ctx, cw_outbox *out)
{
    (void)out;
    coordinator *c = ctx;
    if (die_at_save(c, true)) return;
    bool die = die_at_save(c, false);
    save(c);
    (void)die;
}

static void coordinator_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    cw_coordinator_event(((coordinator *)ctx)->m, ev, out);
}

static void coordinator_start(coordinator *c)
{
    cluster *cl = c->cl;
    cw_coordinator_config cfg;
    cw_coordinator_config_init(&cfg);
    memset(cfg.cluster_id, 7, sizeof cfg.cluster_id);
    memset(cfg.model_digest, 8, sizeof cfg.model_digest);
    cfg.model_name = "sim";
    cfg.store_address = store_address;
    cfg.signer = cl->signer;
    cfg.arithmetic_id = 1;
    cfg.fingerprint = FINGERPRINT;
    cfg.n_layers = LAYERS;
    cfg.n_experts = EXPERTS;
    cfg.expert_bytes = expert_bytes;
    const disk *d = &c->disk;
    cw_coordinator_state st = {.tokens = d->tokens,
                               .n_tokens = d->n_tokens,
                               .keys = d->keys,
                               .n_keys = d->n_keys,
                               .term = d->term,
                               .serial = d->serial,
                               .epoch = d->epoch,
                               .epoch_bytes = d->epoch_bytes};
    cw_err err;
    cw_coordinator_free(&c->m);
    if (cw_coordinator_new(&cfg, &st, sim_now(cl->s), &c->m, &err) != CW_OK) {
        sim_fail(cl->s, "the coordinator does not start: %s", err.text);
        return;
    }
    if (!d->n_tokens)
        for (int i = 0; i < 2; i++) {
            cw_token_row t = {.role = i ? CW__PB__ROLE__ROLE_EDGE : CW__PB__ROLE__ROLE_WORKER,
                              .created_ms = 1,
                              .expires_ms = INT64_C(1) << 60};
            uint32_t id;
            cw_token_hash(cl->token[i], CW_TOKEN_BYTES, t.hash);
            CW_ASSERT(cw_coordinator_token_add(c->m, &t, &id, NULL) == CW_OK);
        }
    save(c);
    sim_start(cl->s, c->proc, c, control_address, CW_PORT_CONTROL);
}

static void coordinator_restart(void *ctx, void *arg)
{
    coordinator *c = ctx;
    (void)arg;
    if (sim_is_up(c->cl->s, c->proc)) return;
    coordinator_start(c);
}

/* ---- a worker's process
 * ------------------------------------------------------------------------------------- */

static void worker_restart(void *ctx, void *arg);

static void give_model(void *ctx, void *arg, cw_outbox *out)
{
    worker *w = ctx;
    (void)arg;
    cw_worker_layer layers[LAYERS];
    for (uint32_t l = 0; l < LAYERS; l++)
        layers[l] = (cw_worker_layer){is_f32(l) ? CW__PB__ACT_KIND__ACT_F32 : CW__PB__ACT_KIND__ACT_A8,
                                      is_f32(l) ? CW__PB__REPLY_KIND__ROWS_F32 : CW__PB__REPLY_KIND__ROWS_F16,
                                      expert_bytes[l]};
    cw_worker_model_ready(w->m, LAYERS, EXPERTS, D, layers, sim_now(w->cl->s), sim_wall(w->cl->s, w->proc),
                          out);
}

static void *pack(uint32_t layer, uint32_t expert)
{
    return (void *)(uintptr_t)(layer * 1000 + expert);
}

static void loaded(void *ctx, void *arg, cw_outbox *out)
{
    worker *w = ctx;
    uint32_t layer = (uint32_t)((uintptr_t)arg / 1000), expert = (uint32_t)((uintptr_t)arg % 1000);
    bool ok = !sim_chance(w->cl->s, 1);
    w->here[layer][expert] = ok ? HERE : NOT_HERE;
    if (!ok) w->n_here--;
    cw_worker_loaded(w->m, layer, expert, ok, ok ? "" : "the chunk did not verify", sim_now(w->cl->s),
                     sim_wall(w->cl->s, w->proc), out);
}

static bool job_is_honest(worker *w, const cw_job *job)
{
    for (uint32_t i = 0; i < job->n_experts; i++)
        if (w->here[job->experts[i].layer][job->experts[i].expert] != HERE) {
            sim_fail(w->cl->s, "worker %d computes expert %u of layer %u, which it does not hold", w->index,
                     job->experts[i].expert, job->experts[i].layer);
            return false;
        }
    return true;
}

static void computed(void *ctx, void *arg, cw_outbox *out)
{
    worker *w = ctx;
    cw_job *job = arg;
    if (!job_is_honest(w, job)) return; /* nor may it be taken away meanwhile */
    for (uint32_t i = 0; i < job->n_experts; i++)
        for (uint32_t k = 0; k < job->experts[i].n; k++) {
            cw_job_row *r = &job->rows[job->experts[i].first + k];
            uint16_t f16[D];
            float f32[D];
            bool f = is_f32(job->experts[i].layer);
            expert_row(job->experts[i].layer, job->experts[i].expert, r->q, r->s, r->x, f16, r->e, f32);
            memcpy(r->out, f ? (void *)f32 : (void *)f16, D * (f ? 4 : 2));
        }
    cw_worker_computed(w->m, job, sim_now(w->cl->s), sim_wall(w->cl->s, w->proc), out);
}

static void worker_stopped(worker *w, const cw_worker_act *a)
{
    if (a->code != 0) sim_fail(w->cl->s, "worker %d gives up: %s", w->index, a->text);
    sim_die_now(w->cl->s, w->proc);
    sim_at(w->cl->s, sim_now(w->cl->s) + w->restart_us, worker_restart, w, NULL);
}

static void worker_after(void *ctx, cw_outbox *out)
{
    (void)out;
    worker *w = ctx;
    sim *s = w->cl->s;
    cw_worker_act a;
    while (cw_worker_take_act(w->m, &a)) {
        switch (a.kind) {
        case CW_WORKER_ENROLLED: w->enrolled = true; break;
        case CW_WORKER_GET_MODEL: sim_after(s, w->proc, 1000 + sim_below(s, 50000), give_model, NULL); break;
        case CW_WORKER_LOAD:
            if (w->here[a.layer][a.expert] != NOT_HERE)
                sim_fail(s, "worker %d loads expert %u of layer %u twice", w->index, a.expert, a.layer);
            w->here[a.layer][a.expert] = LOADING;
            w->n_here++;
            sim_after(s, w->proc, 500 + sim_below(s, 20000), loaded, pack(a.layer, a.expert));
            break;
        case CW_WORKER_UNLOAD:
            if (w->here[a.layer][a.expert] != HERE)
                sim_fail(s, "worker %d unloads what it does not hold", w->index);
            w->here[a.layer][a.expert] = NOT_HERE;
            w->n_here--;
            break;
        case CW_WORKER_COMPUTE:
            if (job_is_honest(w, a.job)) sim_after(s, w->proc, 100 + sim_below(s, 3000), computed, a.job);
            break;
        case CW_WORKER_SAY: sim_trace(s, "worker %d says: %s", w->index, a.text); break;
        case CW_WORKER_REVOKED:
            sim_fail(s, "worker %d hears of a revocation that nobody made", w->index);
            break;
        case CW_WORKER_STOPPED: worker_stopped(w, &a); break;
        }
    }
}

static void worker_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    cw_worker_event(((worker *)ctx)->m, ev, out);
}

static cw_key key_of(int kind, int index)
{
    cw_key k = {{0}};
    k.b[0] = (uint8_t)kind;
    k.b[1] = (uint8_t)(index + 1);
    return k;
}

static void worker_start(worker *w)
{
    cluster *cl = w->cl;
    w->incarnation++;
    cw_worker_config c = {.coordinator_key = key_of(1, 0),
                          .token_len = CW_TOKEN_BYTES,
                          .enrolled = w->enrolled,
                          .memory_bytes = w->memory,
                          .threads = 1,
                          .speed = 1.0f + (float)w->index,
                          .arithmetic_id = 1,
                          .fingerprint = FINGERPRINT,
                          .kernels = cw_kernels_get(CW_ISA_SCALAR),
                          .seed = sim_random(cl->s),
                          .jobs_in_flight = 1 + sim_below(cl->s, 2)};
    snprintf(c.name, sizeof c.name, "w%d", w->index);
    snprintf(c.coordinator, sizeof c.coordinator, "%s", control_address);
    snprintf(c.data_address, sizeof c.data_address, "tcp://10.0.1.%d:%u", w->index + 1,
             6000 + w->incarnation); /* ephemeral ports */
    snprintf(c.isa, sizeof c.isa, "scalar");
    memcpy(c.token, cl->token[0], CW_TOKEN_BYTES);
    for (size_t i = 0; i < sizeof c.instance; i++) c.instance[i] = (uint8_t)sim_random(cl->s);
    memset(w->here, 0, sizeof w->here);
    w->n_here = 0;
    w->term = w->number = 0;
    cw_worker_free(&w->m);
    CW_ASSERT(cw_worker_new(&c, &w->m, NULL) == CW_OK);
    sim_start(cl->s, w->proc, w, c.data_address, CW_PORT_DATA);
}

static void worker_restart(void *ctx, void *arg)
{
    worker *w = ctx;
    (void)arg;
    if (!sim_is_up(w->cl->s, w->proc)) worker_start(w);
}

/* ---- an edge's process
 * -------------------------------------------------------------------------------------- */

static void submit_later(edge *e);

static void check_answer(edge *e, request *q)
{
    for (uint32_t i = 0; i < q->r.n_entries; i++) {
        uint32_t row = q->entries[i].row;
        uint16_t f16[D] = {0};
        float f32[D] = {0};
        int8_t exponent = 0;
        expert_row(q->r.layer, q->entries[i].expert, q->q + row * D, q->s + row * (D / 32), q->x + row * D,
                   f16, &exponent, f32);
        bool same = is_f32(q->r.layer) ? !memcmp(f32, q->f32 + i * D, sizeof f32)
                                       : !memcmp(f16, q->f16 + i * D, sizeof f16) && exponent == q->e[i];
        if (!same) {
            sim_fail(e->cl->s, "edge %d got a wrong row: layer %u, expert %u, entry %u of %u", e->index,
                     q->r.layer, q->entries[i].expert, i, q->r.n_entries);
            return;
        }
    }
}

static void request_done(edge *e, cw_edge_request *r)
{
    sim *s = e->cl->s;
    request *q = NULL;
    for (int i = 0; i < OPEN_REQUESTS; i++)
        if (&e->requests[i].r == r) q = &e->requests[i];
    if (!q || !q->open) {
        sim_fail(s, "edge %d: a request ended twice", e->index);
        return;
    }
    q->open = false;
    if (r->status == CW_OK) {
        check_answer(e, q);
        e->done++;
        e->cl->counts->requests++;
    } else if (r->status == CW_STATUS_CANCELLED) {
        e->cancelled++;
    } else {
        sim_fail(s, "edge %d lost an answer: %s", e->index, r->text);
    }
    submit_later(e);
}

static void keep_saved(edge *e)
{
    cw_edge_saved saved;
    if (!cw_edge_get_saved(e->m, &saved)) return;
    CW_ASSERT(saved.ticket_len <= sizeof e->ticket && saved.epoch_len <= sizeof e->epoch);
    e->has_saved = true;
    e->sign_key = saved.sign_key;
    memcpy(e->cluster_id, saved.cluster_id, sizeof e->cluster_id);
    memcpy(e->ticket, saved.ticket, saved.ticket_len);
    if (saved.epoch_len) memcpy(e->epoch, saved.epoch, saved.epoch_len);
    e->ticket_len = saved.ticket_len;
    e->epoch_len = saved.epoch_len;
}

static void edge_after(void *ctx, cw_outbox *out)
{
    (void)out;
    edge *e = ctx;
    cw_edge_act a;
    while (cw_edge_take_act(e->m, &a)) {
        switch (a.kind) {
        case CW_EDGE_DONE: request_done(e, a.request); break;
        case CW_EDGE_ENROLLED: e->enrolled = true; break;
        case CW_EDGE_SAVE: keep_saved(e); break;
        case CW_EDGE_SAY: sim_trace(e->cl->s, "edge %d says: %s", e->index, a.text); break;
        case CW_EDGE_REFUSED: sim_fail(e->cl->s, "edge %d is refused: %s", e->index, a.text); break;
        }
    }
}

static void edge_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    cw_edge_event(((edge *)ctx)->m, ev, out);
}

static void make_request(edge *e, request *q)
{
    sim *s = e->cl->s;
    memset(q, 0, sizeof *q);
    q->r.layer = 1 + sim_below(s, LAYERS - 1);
    q->r.n_rows = sim_chance(s, 70) ? 1 : 2 + sim_below(s, MAX_ROWS - 1);
    for (uint32_t i = 0; i < q->r.n_rows * D; i++) {
        q->q[i] = (int8_t)((int)sim_below(s, 255) - 127);
        q->x[i] = (float)(int32_t)sim_below(s, 100000) / 8.0f;
    }
    for (uint32_t i = 0; i < q->r.n_rows * (D / 32); i++) q->s[i] = (float)sim_below(s, 1000) / 1024.0f;
    for (uint32_t row = 0; row < q->r.n_rows; row++) {
        uint32_t first = sim_below(s, EXPERTS / 2), step = 1 + sim_below(s, 2), k = 1 + sim_below(s, MAX_K);
        for (uint32_t i = 0; i < k; i++)
            q->entries[q->r.n_entries++] = (cw_edge_entry){row, first + i * step, 0.5f};
    }
    q->r.q = q->q;
    q->r.s = q->s;
    q->r.x = q->x;
    q->r.entries = q->entries;
    q->r.f16 = q->f16;
    q->r.e = q->e;
    q->r.f32 = q->f32;
    q->r.klass = q->r.n_rows > 1 ? CW__PB__CALL_CLASS__CLASS_PREFILL : CW__PB__CALL_CLASS__CLASS_DECODE;
    q->r.deadline_us = sim_now(s) + 300 * SIM_S;
}

static void cancel(void *ctx, void *arg, cw_outbox *out)
{
    edge *e = ctx;
    request *q = arg;
    if (q->open) cw_edge_cancel(e->m, &q->r, sim_now(e->cl->s), out);
}

static void submit(void *ctx, void *arg, cw_outbox *out)
{
    (void)arg;
    edge *e = ctx;
    sim *s = e->cl->s;
    if (!e->cl->submitting) return;
    for (int i = 0; i < OPEN_REQUESTS; i++) {
        request *q = &e->requests[i];
        if (q->open) continue;
        make_request(e, q);
        q->open = true;
        cw_edge_submit(e->m, &q->r, sim_now(s), out);
        if (sim_chance(s, 3)) sim_after(s, e->proc, sim_below(s, 3000), cancel, q);
        return;
    }
}

static void submit_later(edge *e)
{
    sim *s = e->cl->s;
    /* Busy while faults begin, then just enough to see that it goes on. */
    uint32_t pause_us = e->cl->counting_down ? 2000000 : 60000;
    sim_after(s, e->proc, 2000 + sim_below(s, pause_us), submit, NULL);
}

static void edge_start(edge *e)
{
    cluster *cl = e->cl;
    cw_edge_layer layers[LAYERS];
    for (uint32_t l = 0; l < LAYERS; l++)
        layers[l] = (cw_edge_layer){is_f32(l) ? CW__PB__ACT_KIND__ACT_F32 : CW__PB__ACT_KIND__ACT_A8,
                                    is_f32(l) ? CW__PB__REPLY_KIND__ROWS_F32 : CW__PB__REPLY_KIND__ROWS_F16,
                                    expert_bytes[l]};
    e->incarnation++;
    cw_edge_config c = {.coordinator_key = key_of(1, 0),
                        .token_len = CW_TOKEN_BYTES,
                        .enrolled = e->enrolled,
                        .arithmetic_id = 1,
                        .fingerprint = FINGERPRINT,
                        .n_layers = LAYERS,
                        .n_experts = EXPERTS,
                        .d_model = D,
                        .layers = layers,
                        .seed = sim_random(cl->s),
                        .homeless_us = 300 * SIM_S,
                        .has_saved = e->has_saved,
                        .sign_key = e->sign_key,
                        .saved_ticket = e->ticket,
                        .saved_ticket_len = e->ticket_len,
                        .saved_epoch = e->epoch,
                        .saved_epoch_len = e->epoch_len};
    snprintf(c.name, sizeof c.name, "e%d", e->index);
    snprintf(c.coordinator, sizeof c.coordinator, "%s", control_address);
    memcpy(c.token, cl->token[1], CW_TOKEN_BYTES);
    memset(c.model_digest, 8, sizeof c.model_digest);
    memcpy(c.cluster_id, e->cluster_id, sizeof c.cluster_id);
    for (size_t i = 0; i < sizeof c.instance; i++) c.instance[i] = (uint8_t)sim_random(cl->s);
    cw_edge_free(&e->m); /* open requests die with the process, as they should */
    for (int i = 0; i < OPEN_REQUESTS; i++) e->requests[i].open = false;
    CW_ASSERT(cw_edge_new(&c, &e->m, NULL) == CW_OK);
    sim_start(cl->s, e->proc, e, NULL, 0);
    for (int i = 0; i < OPEN_REQUESTS; i++) submit_later(e);
}

static void edge_restart(void *ctx, void *arg)
{
    edge *e = ctx;
    (void)arg;
    if (!sim_is_up(e->cl->s, e->proc)) edge_start(e);
}

/* ---- what must hold
 * ----------------------------------------------------------------------------------------- */

static void see_epoch(cluster *cl, const char *who, int index, uint64_t *term, uint64_t *number, uint64_t t,
                      uint64_t n)
{
    if (t < *term || (t == *term && n < *number))
        sim_fail(cl->s, "%s %d saw epoch %llu.%llu after %llu.%llu", who, index, (unsigned long long)t,
                 (unsigned long long)n, (unsigned long long)*term, (unsigned long long)*number);
    const disk *d = &cl->co.disk;
    if (!cl->co.restored && (t > d->epoch_term || (t == d->epoch_term && n > d->number)))
        sim_fail(cl->s, "%s %d saw epoch %llu.%llu, which was never saved", who, index, (unsigned long long)t,
                 (unsigned long long)n);
    *term = t;
    *number = n;
}

static void step(void *ctx)
{
    cluster *cl = ctx;
    for (int i = 0; i < WORKERS; i++) {
        worker *w = &cl->w[i];
        if (w->n_here * (uint64_t)EXPERT_BYTES > w->memory)
            sim_fail(cl->s, "worker %d holds %u experts, more than its memory", i, w->n_here);
    }
    if (cl->n_steps++ % 4) return; /* the rest costs more and cannot come and go in between */
    for (int i = 0; i < WORKERS; i++) {
        worker *w = &cl->w[i];
        if (!sim_is_up(cl->s, w->proc)) continue;
        cw_worker_facts f;
        cw_worker_get_facts(w->m, &f);
        if (f.memory_used > w->memory)
            sim_fail(cl->s, "worker %d says it uses %llu bytes of %llu", i, (unsigned long long)f.memory_used,
                     (unsigned long long)w->memory);
        see_epoch(cl, "worker", i, &w->term, &w->number, f.epoch_term, f.epoch_number);
    }
    for (int i = 0; i < EDGES; i++) {
        edge *e = &cl->e[i];
        if (!sim_is_up(cl->s, e->proc)) continue;
        cw_edge_facts f;
        cw_edge_get_facts(e->m, &f);
        see_epoch(cl, "edge", i, &e->term, &e->number, f.epoch_term, f.epoch_number);
    }
}

/* ---- faults
 * ------------------------------------------------------------------------------------------------- */

static int64_t some_time(sim *s, int64_t from_ms, int64_t to_ms)
{
    return (from_ms + (int64_t)(sim_random(s) % (uint64_t)(to_ms - from_ms))) * SIM_MS;
}

static int any_proc(cluster *cl)
{
    return (int)sim_below(cl->s, 1 + WORKERS + EDGES);
}

static void restart_at(cluster *cl, int proc, int64_t at)
{
    if (proc == cl->co.proc) sim_at(cl->s, at, coordinator_restart, &cl->co, NULL);
    for (int i = 0; i < WORKERS; i++)
        if (cl->w[i].proc == proc) sim_at(cl->s, at, worker_restart, &cl->w[i], NULL);
    for (int i = 0; i < EDGES; i++)
        if (cl->e[i].proc == proc) sim_at(cl->s, at, edge_restart, &cl->e[i], NULL);
}

static void stop_worker(void *ctx, void *arg, cw_outbox *out)
{
    (void)arg;
    worker *w = ctx;
    cw_worker_stop(w->m, sim_now(w->cl->s), sim_wall(w->cl->s, w->proc), out);
}

static void restore_backup(cluster *cl, int64_t down_us)
{
    sim_kill(cl->s, cl->co.proc);
    sim_trace(cl->s, "the coordinator's state is replaced by an older copy");
    cl->co.disk = cl->co.backup;
    cl->co.restored = true;
    sim_at(cl->s, sim_now(cl->s) + down_us, coordinator_restart, &cl->co, NULL);
}

static void fault(void *ctx, void *arg)
{
    cluster *cl = ctx;
    sim *s = cl->s;
    int kind = (int)(uintptr_t)arg, a = any_proc(cl), b = any_proc(cl);
    while (b == a) b = any_proc(cl);
    int64_t us = some_time(s, 100, 10000);
    cl->counts->faults[kind]++;
    switch (kind) {
    case FAULT_CUT:
        sim_cut(s, a, b);
        us = 0;
        break;
    case FAULT_HOLE: sim_hole(s, a, b, us); break;
    case FAULT_PAUSE: sim_pause(s, a, us); break;
    case FAULT_KILL:
        sim_kill(s, a);
        us = us / 2;
        restart_at(cl, a, sim_now(s) + us);
        break;
    case FAULT_STOP: {
        worker *w = &cl->w[sim_below(s, WORKERS)];
        w->restart_us = us / 2;
        if (sim_is_up(s, w->proc)) sim_after(s, w->proc, 0, stop_worker, NULL);
        us += 3 * SIM_S;
        break;
    }
    case FAULT_SLOW: sim_slow(s, a, 1000 * (int64_t)sim_below(s, 300), sim_below(s, 20000), us); break;
    case FAULT_WALL:
        sim_jump_wall(s, a, (int64_t)sim_below(s, 600000) - 300000);
        us = 0;
        break;
    case FAULT_SAVE:
        cl->co.die_before_save = sim_chance(s, 50);
        cl->co.die_after_save = !cl->co.die_before_save;
        cl->co.down_us = us / 2;
        sim_cut(s, cl->co.proc, cl->w[0].proc); /* something to save follows */
        us += 10 * SIM_S;
        break;
    case FAULT_BACKUP: restore_backup(cl, us / 2); break;
    }
    if (sim_now(s) + us > cl->faults_end) cl->faults_end = sim_now(s) + us;
}

/* Everybody is in: the state of now is what an old backup would be. */
static void take_backup(void *ctx, void *arg)
{
    (void)arg;
    coordinator *c = &((cluster *)ctx)->co;
    c->backup = c->disk;
}

/* ---- one run
 * ------------------------------------------------------------------------------------------------ */

static void setup(cluster *cl, uint64_t seed, bool trace)
{
    sim *s = cl->s = sim_new(seed, trace);
    CW_ASSERT(cw_crypto_init(NULL) == CW_OK && cw_signer_new(&cl->signer, NULL) == CW_OK);
    if (sim_chance(s, 40)) sim_set_latency(s, 5000, 60000); /* far apart: much is on its way at any moment */
    memset(cl->token[0], 0x11, CW_TOKEN_BYTES);
    memset(cl->token[1], 0x22, CW_TOKEN_BYTES);
    cl->submitting = true;
    cl->co.cl = cl;
    cl->co.proc = sim_add(s, &(sim_proc){.name = "coordinator",
                                         .side = CW_SIDE_COORDINATOR,
                                         .key = key_of(1, 0),
                                         .event = coordinator_event,
                                         .after = coordinator_after});
    static const char *const worker_names[WORKERS] = {"worker0", "worker1"}, *const edge_names[EDGES] = {
                                                                                 "edge0", "edge1"};
    static const uint32_t percent[] = {120, 100, 90, 70, 60, 55};
    bool big = sim_chance(s, 50);
    for (int i = 0; i < WORKERS; i++) {
        worker *w = &cl->w[i];
        *w = (worker){.cl = cl, .index = i, .restart_us = SIM_S};
        w->memory =
            big ? MODEL_BYTES : (uint64_t)MODEL_BYTES * percent[sim_below(s, CW_ARRAY_LEN(percent))] / 100;
        w->proc = sim_add(s, &(sim_proc){.name = worker_names[i],
                                         .side = CW_SIDE_WORKER,
                                         .key = key_of(2, i),
                                         .event = worker_event,
                                         .after = worker_after});
    }
    for (int i = 0; i < EDGES; i++) {
        cl->e[i].cl = cl;
        cl->e[i].index = i;
        cl->e[i].proc = sim_add(s, &(sim_proc){.name = edge_names[i],
                                               .side = CW_SIDE_EDGE,
                                               .key = key_of(3, i),
                                               .event = edge_event,
                                               .after = edge_after});
    }
    coordinator_start(&cl->co);
    for (int i = 0; i < WORKERS; i++) worker_start(&cl->w[i]);
    for (int i = 0; i < EDGES; i++) edge_start(&cl->e[i]);
}

static void plan_faults(cluster *cl)
{
    sim *s = cl->s;
    int64_t now = sim_now(s);
    cl->faults_end = now;
    sim_at(s, now, take_backup, cl, NULL);
    sim_at(s, now + some_time(s, 10, 20000), fault, cl, (void *)(uintptr_t)FAULT_CUT); /* at least one cut */
    for (uint32_t n = sim_below(s, 5); n; n--)
        sim_at(s, now + some_time(s, 10, 20000), fault, cl, (void *)(uintptr_t)sim_below(s, N_FAULTS));
}

static void check_progress(cluster *cl, const uint64_t before[EDGES], const char *when)
{
    for (int i = 0; i < EDGES; i++)
        if (cl->e[i].done <= before[i]) {
            cw_edge_facts f;
            cw_edge_get_facts(cl->e[i].m, &f);
            sim_fail(cl->s, "edge %d got no answer %s: %u of %u links up, %u of %u experts; %s", i, when,
                     f.n_up, f.n_workers, f.n_homes, f.n_experts, f.why);
        }
}

/* When nothing has happened for long, everybody knows the coordinator's newest epoch. */
static void check_agreement(cluster *cl)
{
    cw_coordinator_status st;
    cw_coordinator_get_status(cl->co.m, &st);
    for (int i = 0; i < WORKERS; i++)
        if (cl->w[i].term != st.term || cl->w[i].number != st.number)
            sim_fail(cl->s, "worker %d believes in epoch %llu.%llu, the newest is %llu.%llu", i,
                     (unsigned long long)cl->w[i].term, (unsigned long long)cl->w[i].number,
                     (unsigned long long)st.term, (unsigned long long)st.number);
    for (int i = 0; i < EDGES; i++)
        if (cl->e[i].term != st.term || cl->e[i].number != st.number)
            sim_fail(cl->s, "edge %d believes in epoch %llu.%llu, the newest is %llu.%llu", i,
                     (unsigned long long)cl->e[i].term, (unsigned long long)cl->e[i].number,
                     (unsigned long long)st.term, (unsigned long long)st.number);
    if (st.n_live_workers != WORKERS || st.n_ready_workers != WORKERS)
        sim_fail(cl->s, "%u of %u workers are ready", st.n_ready_workers, st.n_live_workers);
}

static void run(cluster *cl)
{
    sim *s = cl->s;
    uint64_t before[EDGES] = {0};
    if (!sim_run(s, sim_now(s) + start_bound, step, cl)) return;
    check_progress(cl, before, "after the start");
    plan_faults(cl);
    if (!sim_run(s, sim_now(s) + 20 * SIM_S, step, cl))
        return; /* faults begin within these, and may last longer */
    cl->co.die_before_save = cl->co.die_after_save = false;
    cl->counting_down = true;
    int64_t end = cl->faults_end > sim_now(s) ? cl->faults_end : sim_now(s);
    if (!sim_run(s, end + recovery_bound - 10 * SIM_S, step, cl)) return;
    for (int i = 0; i < EDGES; i++) before[i] = cl->e[i].done;
    if (!sim_run(s, end + recovery_bound, step, cl)) return;
    check_progress(cl, before, "in 10 s after the recovery");
    check_agreement(cl);
    cl->submitting = false;
    if (!sim_run(s, sim_now(s) + drain_bound, step, cl)) return;
    for (int i = 0; i < EDGES; i++)
        for (int k = 0; k < OPEN_REQUESTS; k++)
            if (cl->e[i].requests[k].open) sim_fail(s, "edge %d: a request never ended", i);
}

const char *cluster_run(uint64_t seed, bool trace, cluster_counts *counts)
{
    static char failure[400];
    cluster *cl = calloc(1, sizeof *cl);
    CW_ASSERT(cl);
    cl->counts = counts;
    setup(cl, seed, trace);
    run(cl);
    const char *why = sim_failure(cl->s);
    if (why) {
        snprintf(failure, sizeof failure, "%s", why);
        if (!trace) sim_print_trace(cl->s);
    }
    counts->events += sim_events(cl->s);
    counts->messages += sim_messages(cl->s);
    counts->lost += sim_lost(cl->s);
    cw_coordinator_free(&cl->co.m);
    for (int i = 0; i < WORKERS; i++) cw_worker_free(&cl->w[i].m);
    for (int i = 0; i < EDGES; i++) cw_edge_free(&cl->e[i].m);
    sim_free(cl->s);
    cw_signer_free(&cl->signer);
    free(cl);
    return why ? failure : NULL;
}
