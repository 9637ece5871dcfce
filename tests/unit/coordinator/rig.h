/* A coordinator's machine on a bench: peers that say what a test wants them to say, and what they were
 * answered. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "cw/coordinator.h"
#include "cw/join.h"
#include "cw/mem.h"
#include "cw/ticket.h"

enum { RIG_LAYERS = 4, RIG_EXPERTS = 16, RIG_ARITHMETIC = 7, RIG_MAX_PEERS = 32, RIG_FIRST_MOE = 1 };
#define RIG_FINGERPRINT UINT64_C(0x1234)
enum {
    RIG_TOTAL_EXPERTS = (RIG_LAYERS - RIG_FIRST_MOE) * RIG_EXPERTS,
    RIG_EXPERT_BYTES = 1000,
    RIG_MODEL_BYTES = RIG_TOTAL_EXPERTS * RIG_EXPERT_BYTES
};

typedef struct {
    uint64_t term, serial, number;
    uint8_t epoch[1 << 16];
    size_t epoch_bytes;
    cw_token_row tokens[16];
    size_t n_tokens;
    cw_key_row keys[RIG_MAX_PEERS];
    size_t n_keys;
    int n_rows; /* saved so far */
} rig_disk;

typedef struct {
    cw_coordinator *c;
    cw_coordinator_config cfg;
    cw_signer *signer;
    cw_outbox out;
    int64_t now_us, wall_ms;
    cw_link next_link;
    rig_disk disk;
    uint64_t bytes[RIG_LAYERS];
} rig;

static inline void rig_save(rig *r)
{
    size_t n;
    const cw_row *rows = cw_coordinator_rows(r->c, &n);
    rig_disk *d = &r->disk;
    for (size_t i = 0; i < n; i++) {
        const cw_row *w = &rows[i];
        d->n_rows++;
        size_t k = 0;
        switch (w->kind) {
        case CW_ROW_TERM: d->term = w->term; break;
        case CW_ROW_SERIAL: d->serial = w->serial; break;
        case CW_ROW_EPOCH:
            assert_true(w->epoch.len <= sizeof d->epoch);
            assert_true(w->term <= d->term); /* the term is on disk before anything of it */
            memcpy(d->epoch, w->epoch.data, w->epoch.len);
            d->epoch_bytes = w->epoch.len;
            d->number = w->number;
            break;
        case CW_ROW_TOKEN:
            while (k < d->n_tokens && d->tokens[k].id != w->token.id) k++;
            d->tokens[k] = w->token;
            if (k == d->n_tokens) d->n_tokens++;
            break;
        case CW_ROW_KEY:
            while (k < d->n_keys && memcmp(&d->keys[k].key, &w->key.key, sizeof(cw_key)) != 0) k++;
            if (w->key.forgotten) { /* the order of the others stays */
                memmove(&d->keys[k], &d->keys[k + 1], (d->n_keys - k - 1) * sizeof *d->keys);
                d->n_keys--;
                break;
            }
            d->keys[k] = w->key;
            if (k == d->n_keys) d->n_keys++;
            break;
        }
    }
    cw_coordinator_rows_clear(r->c);
}

static inline void rig_boot(rig *r)
{
    cw_coordinator_state s = {.tokens = r->disk.tokens,
                              .n_tokens = r->disk.n_tokens,
                              .keys = r->disk.keys,
                              .n_keys = r->disk.n_keys,
                              .term = r->disk.term,
                              .serial = r->disk.serial,
                              .epoch = r->disk.epoch,
                              .epoch_bytes = r->disk.epoch_bytes};
    cw_err err;
    if (cw_coordinator_new(&r->cfg, &s, r->now_us, &r->c, &err) != CW_OK) fail_msg("%s", err.text);
    rig_save(r);
}

static inline void rig_open(rig *r)
{
    memset(r, 0, sizeof *r);
    r->now_us = 5000000000;
    r->wall_ms = 1800000000000;
    r->next_link = 100;
    assert_int_equal(cw_crypto_init(NULL), CW_OK);
    assert_int_equal(cw_signer_new(&r->signer, NULL), CW_OK);
    for (int l = RIG_FIRST_MOE; l < RIG_LAYERS; l++) r->bytes[l] = RIG_EXPERT_BYTES;
    cw_coordinator_config_init(&r->cfg);
    memset(r->cfg.cluster_id, 0xc1, sizeof r->cfg.cluster_id);
    memset(r->cfg.model_digest, 0xd1, sizeof r->cfg.model_digest);
    r->cfg.model_name = "toy";
    r->cfg.store_address = "tcp://127.0.0.1:5571";
    r->cfg.signer = r->signer;
    r->cfg.arithmetic_id = RIG_ARITHMETIC;
    r->cfg.fingerprint = RIG_FINGERPRINT;
    r->cfg.n_layers = RIG_LAYERS;
    r->cfg.n_experts = RIG_EXPERTS;
    r->cfg.expert_bytes = r->bytes;
    cw_outbox_init(&r->out);
    rig_boot(r);
}

static inline void rig_close(rig *r)
{
    cw_coordinator_free(&r->c);
    cw_outbox_free(&r->out);
    cw_signer_free(&r->signer);
}

/* Everything on disk, nothing in memory. */
static inline void rig_restart(rig *r)
{
    cw_outbox_clear(&r->out);
    cw_coordinator_free(&r->c);
    rig_boot(r);
}

static inline void rig_event(rig *r, cw_event *ev)
{
    ev->now_us = r->now_us;
    ev->wall_ms = r->wall_ms;
    cw_coordinator_event(r->c, ev, &r->out);
    assert_false(r->out.failed);
    rig_save(r);
    cw_msg_free(&ev->msg);
}

static inline void rig_ticks(rig *r, int64_t ms)
{
    for (int64_t t = 0; t < ms; t += 100) {
        r->now_us += 100000;
        r->wall_ms += 100;
        rig_event(r, &(cw_event){.kind = CW_EV_TICK});
    }
}

static inline cw_key rig_key(int i)
{
    cw_key k = {{0}};
    k.b[0] = (uint8_t)i;
    k.b[31] = 0x77;
    return k;
}

static inline void rig_message(rig *r, cw_link link, const cw_key *key, const Cw__Pb__Envelope *env)
{
    cw_event ev = {.kind = CW_EV_MESSAGE, .link = link, .key = *key, .msg = cw_msg_new(env, NULL, 0)};
    rig_event(r, &ev);
}

/* How a peer introduces itself; rig_intro fills in what is right. */
typedef struct {
    Cw__Pb__Hello h;
    Cw__Pb__WorkerInfo w;
    uint8_t instance[CW_INSTANCE_BYTES], digest[CW_DIGEST_BYTES], token[CW_TOKEN_BYTES];
    bool enrol;
} rig_intro;

static inline void rig_introduce(rig_intro *in, Cw__Pb__Role role, const char *name, uint64_t memory)
{
    cw__pb__hello__init(&in->h);
    cw__pb__worker_info__init(&in->w);
    memset(in->instance, 1, sizeof in->instance);
    memset(in->digest, 0xd1, sizeof in->digest);
    in->enrol = false;
    in->h.proto_min = CW_PROTO_MIN;
    in->h.proto_max = CW_PROTO_MAX;
    in->h.software = (char *)"causeway test";
    in->h.role = role;
    in->h.name = (char *)name;
    in->h.arithmetic_id = RIG_ARITHMETIC;
    in->h.fingerprint = RIG_FINGERPRINT;
    in->h.instance = (ProtobufCBinaryData){sizeof in->instance, in->instance};
    if (role == CW__PB__ROLE__ROLE_WORKER) {
        in->w.data_address = (char *)"tcp://127.0.0.1:7001";
        in->w.memory_bytes = memory;
        in->w.threads = 2;
        in->w.isa = (char *)"avx2";
        in->w.speed = 5.0f;
        in->h.worker = &in->w;
    }
}

static inline cw_link rig_link(rig *r, const cw_key *key)
{
    cw_link link = r->next_link++;
    rig_event(r, &(cw_event){.kind = CW_EV_LINK_UP, .link = link, .key = *key});
    return link;
}

static inline void rig_say(rig *r, cw_link link, const cw_key *key, rig_intro *in)
{
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__Enrol e = CW__PB__ENROL__INIT;
    e.token = (ProtobufCBinaryData){sizeof in->token, in->token};
    e.hello = &in->h;
    env.body_case = in->enrol ? CW__PB__ENVELOPE__BODY_ENROL : CW__PB__ENVELOPE__BODY_HELLO;
    if (in->enrol)
        env.enrol = &e;
    else
        env.hello = &in->h;
    rig_message(r, link, key, &env);
}

static inline void rig_down(rig *r, cw_link link)
{
    rig_event(r, &(cw_event){.kind = CW_EV_LINK_DOWN, .link = link, .text = "cut"});
}

/* Newest message of a kind that was sent on a link since the outbox was cleared, or NULL. */
static inline cw_msg *rig_sent(rig *r, cw_link link, cw_msg_kind kind)
{
    for (size_t i = r->out.n; i-- > 0;) {
        cw_action *a = &r->out.items[i];
        if (a->kind == CW_ACT_SEND && a->link == link && a->msg->env->body_case == kind) return a->msg;
    }
    return NULL;
}

static inline bool rig_acted(rig *r, cw_link link, cw_action_kind kind)
{
    for (size_t i = 0; i < r->out.n; i++)
        if (r->out.items[i].kind == kind && r->out.items[i].link == link) return true;
    return false;
}

static inline uint32_t rig_token(rig *r, Cw__Pb__Role role, uint32_t uses, int64_t lifetime_ms,
                                 uint32_t max_live, uint8_t fill, uint8_t token[CW_TOKEN_BYTES])
{
    memset(token, fill, CW_TOKEN_BYTES);
    cw_token_row t = {.role = role,
                      .uses_max = uses,
                      .max_live = max_live,
                      .created_ms = r->wall_ms,
                      .expires_ms = r->wall_ms + lifetime_ms};
    cw_token_hash(token, CW_TOKEN_BYTES, t.hash);
    uint32_t id = 0;
    assert_int_equal(cw_coordinator_token_add(r->c, &t, &id, NULL), CW_OK);
    rig_save(r);
    return id;
}

/* What the newest epoch says. Free with cw_epoch_free. */
static inline Cw__Pb__EpochBody *rig_epoch(rig *r)
{
    cw_frame f = cw_coordinator_get_epoch(r->c);
    Cw__Pb__EpochBody *b = NULL;
    cw_err err;
    if (f.len && cw_epoch_verify(cw_signer_public(r->signer), f.data, f.len, &b, &err) != CW_OK)
        fail_msg("%s", err.text);
    return b;
}

static inline uint32_t rig_count_sets(size_t n, Cw__Pb__LayerSet *const *sets)
{
    uint32_t c = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < sets[i]->experts.len; k++)
            c += (uint32_t)__builtin_popcount(sets[i]->experts.data[k]);
    return c;
}

static inline bool rig_set_has(size_t n, Cw__Pb__LayerSet *const *sets, uint32_t layer, uint32_t e)
{
    for (size_t i = 0; i < n; i++)
        if (sets[i]->layer == layer)
            return e / 8 < sets[i]->experts.len && (sets[i]->experts.data[e / 8] >> e % 8 & 1);
    return false;
}

/* Experts of worker `id` in the newest epoch; -1: it is not there. */
static inline int rig_in_epoch(rig *r, const cw_key *key)
{
    Cw__Pb__EpochBody *b = rig_epoch(r);
    int n = -1;
    for (size_t i = 0; b && i < b->n_workers; i++)
        if (memcmp(b->workers[i]->key.data, key->b, CW_KEY_BYTES) == 0)
            n = (int)rig_count_sets(b->workers[i]->n_sets, b->workers[i]->sets);
    if (b) cw_epoch_free(&b);
    return n;
}

/* A worker that does what it is told: holdings follow assign and drop. */
typedef struct {
    cw_key key;
    cw_link link;
    uint8_t held[RIG_LAYERS][RIG_EXPERTS / 8];
    uint64_t seq;
    int n_assigned, n_dropped;
} rig_worker;

static inline void rig_holdings(rig *r, rig_worker *w, const char *trouble)
{
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__Holdings h = CW__PB__HOLDINGS__INIT;
    Cw__Pb__LayerSet items[RIG_LAYERS], *ptrs[RIG_LAYERS];
    for (uint32_t l = 0; l < RIG_LAYERS; l++) {
        cw__pb__layer_set__init(&items[l]);
        items[l].layer = l;
        items[l].experts = (ProtobufCBinaryData){RIG_EXPERTS / 8, w->held[l]};
        ptrs[l] = &items[l];
    }
    h.seq = w->seq;
    h.n_ready = RIG_LAYERS;
    h.ready = ptrs;
    h.trouble = (char *)trouble;
    env.body_case = CW__PB__ENVELOPE__BODY_HOLDINGS;
    env.holdings = &h;
    rig_message(r, w->link, &w->key, &env);
}

static inline void rig_worker_join(rig *r, rig_worker *w, int i, const char *name, uint64_t memory,
                                   const uint8_t *token)
{
    rig_intro in;
    rig_introduce(&in, CW__PB__ROLE__ROLE_WORKER, name, memory);
    if (token) memcpy(in.token, token, CW_TOKEN_BYTES);
    in.enrol = token != NULL;
    w->key = rig_key(i);
    w->link = rig_link(r, &w->key);
    rig_say(r, w->link, &w->key, &in);
    assert_non_null(rig_sent(r, w->link, CW__PB__ENVELOPE__BODY_WELCOME));
    rig_holdings(r, w, "");
}

static inline void rig_apply(rig_worker *w, size_t n, Cw__Pb__LayerSet *const *sets, bool on)
{
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < sets[i]->experts.len; k++) {
            uint8_t *b = &w->held[sets[i]->layer][k], v = sets[i]->experts.data[k];
            *b = (uint8_t)(on ? *b | v : *b & ~v);
        }
}

/* Carries out what the outbox tells this worker; the outbox keeps other peers' messages. True: there was
 * something. */
static inline bool rig_worker_obey(rig *r, rig_worker *w)
{
    bool any = false;
    for (size_t i = 0; i < r->out.n; i++) {
        cw_action *a = &r->out.items[i];
        if (a->kind != CW_ACT_SEND || a->link != w->link || !a->msg) continue;
        const Cw__Pb__Envelope *env = a->msg->env;
        if (env->body_case == CW__PB__ENVELOPE__BODY_ASSIGN) {
            assert_true(env->assign->seq > w->seq);
            rig_apply(w, env->assign->n_sets, env->assign->sets, true);
            w->seq = env->assign->seq;
            w->n_assigned += (int)rig_count_sets(env->assign->n_sets, env->assign->sets);
        } else if (env->body_case == CW__PB__ENVELOPE__BODY_DROP) {
            assert_true(env->drop->seq > w->seq);
            rig_apply(w, env->drop->n_sets, env->drop->sets, false);
            w->seq = env->drop->seq;
            w->n_dropped += (int)rig_count_sets(env->drop->n_sets, env->drop->sets);
        } else {
            continue;
        }
        a->kind = CW_ACT_CLOSE; /* done; a neutral entry that nobody looks for */
        a->link = 0;
        cw_msg_free(&a->msg);
        any = true;
    }
    return any;
}

/* Lets `ms` pass with workers that obey and answer pings. */
static inline void rig_run(rig *r, rig_worker **ws, size_t n, int64_t ms)
{
    for (int64_t t = 0; t < ms; t += 100) {
        rig_ticks(r, 100);
        for (size_t i = 0; i < n; i++) {
            if (!ws[i]->link) continue;
            if (rig_worker_obey(r, ws[i])) rig_holdings(r, ws[i], "");
            Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
            Cw__Pb__Pong pong = CW__PB__PONG__INIT;
            env.body_case = CW__PB__ENVELOPE__BODY_PONG;
            env.pong = &pong;
            rig_message(r, ws[i]->link, &ws[i]->key, &env);
        }
    }
}

static inline int rig_held(const rig_worker *w)
{
    int n = 0;
    for (int l = 0; l < RIG_LAYERS; l++)
        for (int k = 0; k < RIG_EXPERTS / 8; k++) n += __builtin_popcount(w->held[l][k]);
    return n;
}
