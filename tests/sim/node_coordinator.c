/* The coordinator's process: a disk, and nothing said before it is on it. See nodes.h. */
#include "nodes.h"

#include <stdio.h>
#include <string.h>

#include "cw/known_answer.h"
#include "cw/mem.h"

void host_say(host *h, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    h->ops->say(h, text);
}

void host_fail(host *h, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    h->ops->fail(h, text);
}

static void save_epoch(node_coordinator *c, const cw_row *r)
{
    node_disk *d = &c->disk;
    CW_ASSERT(r->epoch.len <= sizeof d->epoch);
    if (r->term < d->epoch_term || (r->term == d->epoch_term && r->number <= d->number))
        host_fail(c->h, "epoch %llu.%llu follows %llu.%llu", (unsigned long long)r->term,
                  (unsigned long long)r->number, (unsigned long long)d->epoch_term,
                  (unsigned long long)d->number);
    memcpy(d->epoch, r->epoch.data, r->epoch.len);
    d->epoch_bytes = r->epoch.len;
    d->epoch_term = r->term;
    d->number = r->number;
    if (c->on_epoch) c->on_epoch(c->owner, r);
}

static void save_key(node_coordinator *c, const cw_key_row *row)
{
    node_disk *d = &c->disk;
    size_t k = 0;
    while (k < d->n_keys && !cw_key_equal(&d->keys[k].key, &row->key)) k++;
    if (row->fenced && !(k < d->n_keys && d->keys[k].fenced) && c->on_fenced) c->on_fenced(c->owner, row);
    if (row->forgotten) {
        if (k < d->n_keys) d->keys[k] = d->keys[--d->n_keys];
        return;
    }
    CW_ASSERT(k < DISK_KEYS);
    d->keys[k] = *row;
    if (k == d->n_keys) d->n_keys++;
}

void node_coordinator_save(node_coordinator *c)
{
    size_t n;
    const cw_row *rows = cw_coordinator_rows(c->m, &n);
    node_disk *d = &c->disk;
    for (size_t i = 0; i < n; i++) {
        const cw_row *r = &rows[i];
        size_t k = 0;
        switch (r->kind) {
        case CW_ROW_TERM: d->term = r->term; break;
        case CW_ROW_SERIAL: d->serial = r->serial; break;
        case CW_ROW_EPOCH: save_epoch(c, r); break;
        case CW_ROW_TOKEN:
            while (k < d->n_tokens && d->tokens[k].id != r->token.id) k++;
            CW_ASSERT(k < DISK_TOKENS);
            d->tokens[k] = r->token;
            if (k == d->n_tokens) d->n_tokens++;
            break;
        case CW_ROW_KEY: save_key(c, &r->key); break;
        }
    }
    cw_coordinator_rows_clear(c->m);
}

/* The process ends in the middle of an event: before the rows are on disk, or between disk and network. */
static bool dies_at_save(node_coordinator *c, bool before)
{
    size_t n;
    (void)cw_coordinator_rows(c->m, &n);
    if (!n || !(before ? c->die_before_save : c->die_after_save)) return false;
    c->die_before_save = c->die_after_save = false;
    c->died = true;
    c->h->ops->die(c->h);
    return true;
}

/* The reference of an audit: what an honest worker makes of the same rows. */
static void reference(void *ctx, void *arg, cw_outbox *out)
{
    node_coordinator *c = ctx;
    const cw_coordinator_audit *a = &c->audits[(uintptr_t)arg].a;
    uint64_t hashes[CW_AUDIT_ROWS_MAX];
    bool f32 = pure_is_f32(a->layer);
    CW_ASSERT(a->n_rows <= CW_AUDIT_ROWS_MAX);
    for (uint32_t i = 0; i < a->n_rows; i++) {
        int8_t q[D], e = 0;
        float s[D / 32], x[D], y[D];
        uint16_t f16[D];
        cw_audit_row(a->seed, i, D, f32 ? NULL : q, f32 ? NULL : s, f32 ? x : NULL);
        pure_row(a->layer, a->expert, q, s, x, f16, &e, y);
        hashes[i] = f32 ? cw_audit_hash(y, sizeof y, 0, false) : cw_audit_hash(f16, sizeof f16, e, false);
    }
    cw_coordinator_audited(c->m, a->id, hashes, 2000, host_now(c->h), host_wall(c->h), out);
    c->audits[(uintptr_t)arg].used = false;
}

static void start_audits(node_coordinator *c)
{
    cw_coordinator_audit a;
    while (cw_coordinator_take_audit(c->m, &a)) {
        size_t k = 0;
        while (k < CW_ARRAY_LEN(c->audits) && c->audits[k].used) k++;
        CW_ASSERT(k < CW_ARRAY_LEN(c->audits));
        c->audits[k].used = true;
        c->audits[k].a = a;
        c->h->ops->after(c->h, 2000 + host_below(c->h, 20000), reference, (void *)(uintptr_t)k);
    }
}

void node_coordinator_after(void *ctx, cw_outbox *out)
{
    (void)out;
    node_coordinator *c = ctx;
    start_audits(c);
    if (dies_at_save(c, true)) return;
    (void)dies_at_save(c, false);
    node_coordinator_save(c);
}

void node_coordinator_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    cw_coordinator_event(((node_coordinator *)ctx)->m, ev, out);
}

static void make_tokens(node_coordinator *c)
{
    for (int i = 0; i < 2; i++) {
        cw_token_row t = {.role = i ? CW__PB__ROLE__ROLE_EDGE : CW__PB__ROLE__ROLE_WORKER,
                          .created_ms = 1,
                          .expires_ms = INT64_C(1) << 60};
        uint32_t id;
        cw_token_hash(c->place->token[i], CW_TOKEN_BYTES, t.hash);
        CW_ASSERT(cw_coordinator_token_add(c->m, &t, &id, NULL) == CW_OK);
    }
}

bool node_coordinator_start(node_coordinator *c)
{
    const node_disk *d = &c->disk;
    cw_coordinator_config cfg;
    cw_coordinator_config_init(&cfg);
    memset(cfg.cluster_id, CLUSTER_BYTE, sizeof cfg.cluster_id);
    memset(cfg.model_digest, MODEL_BYTE, sizeof cfg.model_digest);
    cfg.model_name = "sim";
    cfg.store_address = c->place->store;
    cfg.signer = c->signer;
    cfg.arithmetic_id = 1;
    cfg.fingerprint = FINGERPRINT;
    cfg.seed = c->seed;
    if (c->configure) c->configure(&cfg);
    if (c->ticket_ms) cfg.times.ticket_ms = c->ticket_ms;
    cfg.n_layers = LAYERS;
    cfg.n_experts = EXPERTS;
    cfg.expert_bytes = pure_expert_bytes;
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
    memset(c->audits, 0, sizeof c->audits);
    if (cw_coordinator_new(&cfg, &st, host_now(c->h), &c->m, &err) != CW_OK) {
        host_fail(c->h, "the coordinator does not start: %s", err.text);
        return false;
    }
    if (!d->n_tokens) make_tokens(c);
    node_coordinator_save(c);
    return true;
}
