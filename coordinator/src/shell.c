/* The coordinator's process; see shell.h. */
#include "shell.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "admin.h"
#include "cw/address.h"
#include "cw/clock.h"
#include "cw/fs.h"
#include "cw/hash.h"
#include "cw/join.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "cw/net.h"
#include "cw/progress.h"
#include "cw/signal.h"
#include "cw/ticket.h"
#include "prepare.h"
#include "state_db.h"
#include "store_server.h"

enum {
    TOKEN_SECRET_BYTES = 32,
    WORKER_USES = 8,
    WORKER_HOURS = 1,
    EDGE_HOURS = 720,
    STRANGERS = 32 /* links beside those of members: on their way in, or being refused */
};

/* Keys that may use the store: written by the control thread, read by the store's. */
typedef struct {
    pthread_mutex_t lock;
    cw_key *keys;
    size_t n, cap;
} key_set;

struct shell {
    shell_options opts;
    cw_state *state;
    cw_keys *keys;
    cw_signer *signer;
    uint8_t token_secret[TOKEN_SECRET_BYTES];
    prepared_model model;
    cw_coordinator *machine;
    cw_net *control, *store;
    store_server *store_machine;
    admin_server *admin;
    pthread_t store_thread;
    bool store_running;
    key_set workers;
    char control_address[CW_ADDRESS_MAX], store_address[CW_ADDRESS_MAX];
    /* Why the process must end; the first one wins. Written by the control thread, and by the store's before
     * it stops the control net. */
    pthread_mutex_t failure_lock;
    cw_err failure;
};

cw_coordinator *shell_machine(shell *s)
{
    return s->machine;
}

const cw_signer *shell_signer(const shell *s)
{
    return s->signer;
}

void shell_get_facts(const shell *s, shell_facts *out)
{
    *out = (shell_facts){.model_name = s->model.config.name,
                         .control_address = s->control_address,
                         .store_address = s->store_address};
    for (int i = 0; i < 32; i++)
        snprintf(out->digest + 2 * i, 3, "%02x", cw_manifest_digest(s->model.manifest)[i]);
}

static void fail_with(shell *s, const cw_err *err)
{
    pthread_mutex_lock(&s->failure_lock);
    if (s->failure.code == CW_OK) s->failure = *err;
    pthread_mutex_unlock(&s->failure_lock);
    cw_net_stop(s->control);
}

/* ---- the store's keys
 * --------------------------------------------------------------------------------------- */

static bool key_set_has(key_set *k, const cw_key *key)
{
    bool found = false;
    pthread_mutex_lock(&k->lock);
    for (size_t i = 0; i < k->n && !found; i++) found = cw_key_equal(&k->keys[i], key);
    pthread_mutex_unlock(&k->lock);
    return found;
}

/* False: out of memory. */
static bool key_set_put(key_set *k, const cw_key *key, bool in)
{
    bool ok = true;
    pthread_mutex_lock(&k->lock);
    size_t i = 0;
    while (i < k->n && !cw_key_equal(&k->keys[i], key)) i++;
    if (!in && i < k->n) k->keys[i] = k->keys[--k->n];
    if (in && i == k->n) {
        if (k->n == k->cap) {
            size_t cap = k->cap ? 2 * k->cap : 16;
            cw_key *p = cw_realloc(k->keys, cap, sizeof *p);
            if (p) {
                k->keys = p;
                k->cap = cap;
            }
            ok = p != NULL;
        }
        if (ok) k->keys[k->n++] = *key;
    }
    pthread_mutex_unlock(&k->lock);
    return ok;
}

/* ---- the control port's thread
 * ------------------------------------------------------------------------------ */

/* The rule of the machine: on disk first, then on the wire. What cannot be saved is not said, and the process
 * ends. */
static void save_rows(shell *s, cw_outbox *out)
{
    size_t n;
    cw_err err;
    const cw_row *rows = cw_coordinator_rows(s->machine, &n);
    if (!n) return;
    cw_status st = cw_state_save(s->state, rows, n, &err);
    for (size_t i = 0; st == CW_OK && i < n; i++)
        if (rows[i].kind == CW_ROW_KEY && rows[i].key.role == CW__PB__ROLE__ROLE_WORKER &&
            !key_set_put(&s->workers, &rows[i].key.key, !rows[i].key.revoked && !rows[i].key.fenced))
            st = CW_FAIL(&err, CW_STATUS_NO_MEMORY, "out of memory for the list of workers");
    cw_coordinator_rows_clear(s->machine);
    if (st == CW_OK) return;
    cw_outbox_clear(out);
    fail_with(s, &err);
}

static bool has_failed(shell *s)
{
    pthread_mutex_lock(&s->failure_lock);
    bool failed = s->failure.code != CW_OK;
    pthread_mutex_unlock(&s->failure_lock);
    return failed;
}

static void on_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    shell *s = ctx;
    if (has_failed(s)) return;
    cw_coordinator_event(s->machine, ev, out);
    save_rows(s, out);
}

static void on_wake(void *ctx, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    shell *s = ctx;
    const cJSON *request = s->admin ? admin_take(s->admin) : NULL;
    if (!request || has_failed(s)) return;
    char *reply = admin_execute(s, request, now_us, wall_ms, out);
    save_rows(s, out);
    /* What could not be saved did not happen: the client sees the connection end. */
    admin_answer(s->admin, has_failed(s) ? NULL : reply);
    cw_free(reply);
}

static void on_stop(void *ctx, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    (void)wall_ms;
    shell *s = ctx;
    if (has_failed(s)) return;
    cw_coordinator_stop(s->machine, now_us, out);
    save_rows(s, out);
}

static void admin_wake(void *ctx)
{
    cw_net_wake(((shell *)ctx)->control);
}

static void admin_stopped(void *ctx)
{
    cw_net_stop(((shell *)ctx)->control);
}

/* ---- the store's thread
 * ------------------------------------------------------------------------------------- */

static bool store_is_worker(void *ctx, const cw_key *key)
{
    return key_set_has(&((shell *)ctx)->workers, key);
}

static cw_status store_chunk_bytes(void *ctx, uint32_t chunk, uint64_t *out, cw_err *err)
{
    cw_manifest_chunk c;
    CW_TRY(cw_manifest_chunk_at(((shell *)ctx)->model.manifest, chunk, &c, err));
    *out = c.bytes;
    return CW_OK;
}

static cw_status store_read(void *ctx, uint32_t chunk, uint64_t offset, size_t n, void *dst, cw_err *err)
{
    const prepared_model *m = &((shell *)ctx)->model;
    return cw_manifest_read(m->manifest, m->gguf, chunk, offset, n, dst, err);
}

static void on_store_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    store_server_event(((shell *)ctx)->store_machine, ev, out);
}

static void *run_store(void *arg)
{
    shell *s = arg;
    cw_err err;
    if (cw_net_run(s->store, &err) != CW_OK) {
        cw_err_prefix(&err, "the store port");
        fail_with(s, &err);
    }
    return NULL;
}

/* ---- tokens
 * ------------------------------------------------------------------------------------------------- */

/*
 * Tokens are made from a secret of the state directory, their role and their time of making, which is unique:
 * the database holds hashes only, and still a restart prints the join strings that are in people's notes
 * instead of new ones.
 */
static void token_secret(const shell *s, Cw__Pb__Role role, int64_t created_ms, uint8_t token[CW_TOKEN_BYTES])
{
    uint8_t hash[CW_HASH_BYTES];
    int64_t salt[2] = {role, created_ms};
    cw_hash_state h;
    cw_hash_begin(&h, "causeway token secret 1");
    cw_hash_add(&h, s->token_secret, sizeof s->token_secret);
    cw_hash_add(&h, salt, sizeof salt);
    cw_hash_end(&h, hash);
    memcpy(token, hash, CW_TOKEN_BYTES);
}

static cw_status make_join(const shell *s, Cw__Pb__Role role, int64_t created_ms, char join[CW_JOIN_TEXT_MAX],
                           cw_err *err)
{
    cw_join j = {.role = role == CW__PB__ROLE__ROLE_WORKER ? CW_JOIN_WORKER : CW_JOIN_EDGE,
                 .coordinator = *cw_keys_public(s->keys)};
    snprintf(j.address, sizeof j.address, "%s", s->control_address);
    token_secret(s, role, created_ms, j.token);
    cw_status st = cw_join_make(&j, join, err);
    cw_join_wipe(&j);
    return st;
}

cw_status shell_token_create(shell *s, Cw__Pb__Role role, uint32_t uses, int64_t lifetime_ms, int64_t wall_ms,
                             uint32_t *id, char *join, cw_err *err)
{
    cw_token_row t = {.role = role,
                      .uses_max = uses,
                      .created_ms = wall_ms,
                      .expires_ms = wall_ms + lifetime_ms},
                 other;
    if (role == CW__PB__ROLE__ROLE_EDGE) t.max_live = s->opts.max_edges_per_token;
    for (size_t i = 0; cw_coordinator_get_token(s->machine, i, &other);)
        if (other.created_ms == t.created_ms) {
            t.created_ms++;
            i = 0;
        } else {
            i++;
        }
    uint8_t token[CW_TOKEN_BYTES];
    token_secret(s, role, t.created_ms, token);
    cw_token_hash(token, sizeof token, t.hash);
    CW_TRY(make_join(s, role, t.created_ms, join, err));
    return cw_coordinator_token_add(s->machine, &t, id, err);
}

/* The join string that is printed at the start: the newest one that is still good for a while, else a new
 * one. */
static cw_status default_join(shell *s, Cw__Pb__Role role, int64_t wall_ms, char join[CW_JOIN_TEXT_MAX],
                              cw_token_row *row, cw_err *err)
{
    bool worker = role == CW__PB__ROLE__ROLE_WORKER;
    uint32_t uses = worker ? WORKER_USES : 0, id = 0;
    int64_t lifetime_ms = (int64_t)(worker ? WORKER_HOURS : EDGE_HOURS) * 3600000;
    cw_token_row t, best = {0};
    for (size_t i = 0; cw_coordinator_get_token(s->machine, i, &t); i++) {
        uint8_t token[CW_TOKEN_BYTES], hash[CW_TOKEN_HASH_BYTES];
        token_secret(s, t.role, t.created_ms, token);
        cw_token_hash(token, sizeof token, hash);
        bool good = t.role == role && !t.revoked && t.uses_max == uses && (!uses || t.uses < uses) &&
                    t.expires_ms - wall_ms > lifetime_ms / 4;
        if (good && memcmp(hash, t.hash, sizeof hash) == 0) best = t;
    }
    if (best.id) {
        CW_TRY(make_join(s, role, best.created_ms, join, err));
    } else {
        CW_TRY(shell_token_create(s, role, uses, lifetime_ms, wall_ms, &id, join, err));
        for (size_t i = 0; cw_coordinator_get_token(s->machine, i, &t); i++)
            if (t.id == id) best = t;
    }
    *row = best;
    return CW_OK;
}

/* ---- start
 * -------------------------------------------------------------------------------------------------- */

static cw_status open_secrets(shell *s, cw_err *err)
{
    cw_status st = CW_OK;
    const char *dir = s->opts.state_dir;
    char *curve = cw_fs_join(dir, "curve.key"), *sign = cw_fs_join(dir, "sign.key"),
         *token = cw_fs_join(dir, "token.key"), *bytes = NULL;
    size_t n = 0;
    if (!curve || !sign || !token) {
        st = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for key files");
        goto fail;
    }
    CW_TRY_GOTO(st, cw_keys_open(curve, &s->keys, err));
    CW_TRY_GOTO(st, cw_signer_open(sign, &s->signer, err));
    if (!cw_fs_is_file(token)) {
        cw_random(s->token_secret, sizeof s->token_secret);
        CW_TRY_GOTO(st, cw_fs_write(token, s->token_secret, sizeof s->token_secret, 0600, err));
    }
    CW_TRY_GOTO(st, cw_fs_read(token, 4096, &bytes, &n, err));
    if (n != TOKEN_SECRET_BYTES)
        st = CW_FAIL(err, CW_STATUS_FORMAT, "%s is damaged: remove it and make new join strings", token);
    else
        memcpy(s->token_secret, bytes, n);
fail:
    cw_free(bytes);
    cw_free(curve);
    cw_free(sign);
    cw_free(token);
    return st;
}

/* `given`, or the next port on the control port's host. */
static cw_status store_listen_address(const shell *s, const char *control_bound, char out[CW_ADDRESS_MAX],
                                      cw_err *err)
{
    if (s->opts.store_listen) {
        snprintf(out, CW_ADDRESS_MAX, "%s", s->opts.store_listen);
        return CW_OK;
    }
    cw_address a;
    CW_TRY(cw_address_parse(control_bound, CW_ADDRESS_LISTEN, &a, err));
    if (a.port == 65535)
        return CW_FAIL(
            err, CW_STATUS_INVALID,
            "the store needs the port after --listen's, and there is none after 65535: give --store-listen");
    cw_address_text(a.host, (uint16_t)(a.port + 1), out);
    return CW_OK;
}

/* What others connect to. An address for all interfaces is none that anybody can connect to. */
static cw_status advertised(const char *given, const char *given_host_of, const char *bound,
                            const char *option, char out[CW_ADDRESS_MAX], cw_err *err)
{
    cw_address b, a;
    if (given) {
        CW_TRY(cw_address_parse(given, CW_ADDRESS_CONNECT, NULL, err));
        snprintf(out, CW_ADDRESS_MAX, "%s", given);
        return CW_OK;
    }
    CW_TRY(cw_address_parse(bound, CW_ADDRESS_LISTEN, &b, err));
    if (given_host_of) { /* the store beside an advertised control port: same host, own port */
        CW_TRY(cw_address_parse(given_host_of, CW_ADDRESS_CONNECT, &a, err));
        cw_address_text(a.host, b.port, out);
        return CW_OK;
    }
    if (b.wildcard)
        return CW_FAIL(err, CW_STATUS_INVALID,
                       "%s is no address that others can connect to: say which with %s tcp://HOST:PORT",
                       bound, option);
    snprintf(out, CW_ADDRESS_MAX, "%s", bound);
    return CW_OK;
}

static cw_status open_nets(shell *s, cw_err *err)
{
    char bound[CW_ADDRESS_MAX], store_listen[CW_ADDRESS_MAX], store_bound[CW_ADDRESS_MAX];
    cw_coordinator_config defaults;
    cw_coordinator_config_init(&defaults);
    cw_net_role control = {.ctx = s, .on_event = on_event, .on_wake = on_wake, .on_stop = on_stop},
                store = {.ctx = s, .on_event = on_store_event};
    cw_net_config nc = {.self = CW_SIDE_COORDINATOR,
                        .keys = s->keys,
                        .max_peers = s->opts.max_workers + s->opts.max_edges + STRANGERS,
                        .heartbeat_ms = defaults.times.heartbeat_ms};
    cw_net_config sc = {.self = CW_SIDE_COORDINATOR,
                        .keys = s->keys,
                        .max_peers = s->opts.max_workers + STRANGERS,
                        .heartbeat_ms = defaults.times.heartbeat_ms,
                        .queue_messages = 2 * STORE_PENDING_MAX};
    CW_TRY(cw_net_new(&nc, &control, &s->control, err));
    CW_TRY(cw_net_new(&sc, &store, &s->store, err));
    CW_TRY(cw_net_listen(s->control, CW_PORT_CONTROL, s->opts.listen, bound, err));
    CW_TRY(store_listen_address(s, bound, store_listen, err));
    CW_TRY(cw_net_listen(s->store, CW_PORT_STORE, store_listen, store_bound, err));
    CW_TRY(advertised(s->opts.advertise, NULL, bound, "--advertise", s->control_address, err));
    return advertised(s->opts.store_advertise, s->control_address, store_bound, "--store-advertise",
                      s->store_address, err);
}

static cw_status open_machine(shell *s, cw_err *err)
{
    cw_coordinator_config c;
    cw_coordinator_state saved;
    cw_coordinator_config_init(&c);
    memcpy(c.cluster_id, cw_state_cluster(s->state), sizeof c.cluster_id);
    memcpy(c.model_digest, cw_manifest_digest(s->model.manifest), sizeof c.model_digest);
    c.model_name = s->model.config.name;
    c.store_address = s->store_address;
    c.signer = s->signer;
    c.arithmetic_id = s->model.arithmetic_id;
    c.fingerprint = s->model.fingerprint;
    c.max_workers = s->opts.max_workers;
    c.max_edges = s->opts.max_edges;
    c.n_layers = (uint32_t)s->model.config.n_layers;
    c.n_experts = (uint32_t)s->model.config.n_experts;
    c.expert_bytes = s->model.expert_bytes;
    CW_TRY(cw_state_load(s->state, &saved, err));
    if (saved.epoch_bytes) { /* somebody may have swapped the key file or the database */
        Cw__Pb__EpochBody *b = NULL;
        if (cw_epoch_verify(cw_signer_public(s->signer), saved.epoch, saved.epoch_bytes, &b, NULL) != CW_OK) {
            CW_LOG_W("coordinator", "the saved epoch was not signed with this key; it is left aside");
            saved.epoch_bytes = 0;
        }
        cw_epoch_free(&b);
    }
    CW_TRY(cw_coordinator_new(&c, &saved, cw_now_us(), &s->machine, err));
    for (size_t i = 0; i < saved.n_keys; i++)
        if (saved.keys[i].role == CW__PB__ROLE__ROLE_WORKER && !saved.keys[i].revoked &&
            !saved.keys[i].fenced && !key_set_put(&s->workers, &saved.keys[i].key, true))
            return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the list of workers");
    store_config sc = {.heartbeat_ms = c.times.heartbeat_ms,
                       .rate = s->opts.store_rate,
                       .ctx = s,
                       .is_worker = store_is_worker,
                       .chunk_bytes = store_chunk_bytes,
                       .read = store_read};
    memcpy(sc.cluster_id, c.cluster_id, sizeof sc.cluster_id);
    memcpy(sc.model_digest, c.model_digest, sizeof sc.model_digest);
    sc.manifest = cw_manifest_bytes(s->model.manifest, &sc.manifest_bytes);
    return store_server_new(&sc, &s->store_machine, err);
}

static cw_status announce(shell *s, cw_err *err)
{
    char worker[CW_JOIN_TEXT_MAX], edge[CW_JOIN_TEXT_MAX], size[32];
    cw_token_row wt, et;
    int64_t wall_ms = cw_wall_ms();
    shell_facts f;
    CW_TRY(default_join(s, CW__PB__ROLE__ROLE_WORKER, wall_ms, worker, &wt, err));
    CW_TRY(default_join(s, CW__PB__ROLE__ROLE_EDGE, wall_ms, edge, &et, err));
    size_t n;
    const cw_row *rows = cw_coordinator_rows(s->machine, &n);
    CW_TRY(cw_state_save(s->state, rows, n, err));
    cw_coordinator_rows_clear(s->machine);
    shell_get_facts(s, &f);
    uint64_t bytes = 0;
    int moe = 0;
    for (int l = 0; l < s->model.config.n_layers; l++) {
        bytes += s->model.expert_bytes[l] * (uint64_t)s->model.config.n_experts;
        moe += s->model.expert_bytes[l] != 0;
    }
    printf("coordinator of %s, digest %.16s\n", f.model_name, f.digest);
    printf("%d layers of %d experts, %s in workers' memory\n", moe, s->model.config.n_experts,
           cw_bytes_text(bytes, size, sizeof size));
    printf("control %s, store %s, state %s\n\n", f.control_address, f.store_address, s->opts.state_dir);
    printf("workers join with (%u of %u uses left, %lld minutes):\n  causeway-worker --join %s\n\n",
           wt.uses_max - wt.uses, wt.uses_max, (long long)((wt.expires_ms - wall_ms) / 60000), worker);
    printf("edges join with (%lld days):\n  causeway chat -m MODEL --join %s\n",
           (long long)((et.expires_ms - wall_ms + 43200000) / 86400000), edge);
    fflush(stdout);
    return CW_OK;
}

static cw_status start(shell *s, cw_err *err)
{
    CW_TRY(cw_crypto_init(err));
    CW_TRY(cw_state_open(s->opts.state_dir, &s->state, err));
    CW_TRY(open_secrets(s, err));
    CW_TRY(prepare_model(s->opts.model, s->opts.state_dir, &s->model, err));
    if (s->opts.fallback) {
        char text[256] = "";
        CW_TRY(prepare_compare_fallback(s->model.gguf, s->opts.fallback, text, sizeof text, err));
        printf("%s\n", text);
    }
    CW_TRY(open_nets(s, err));
    CW_TRY(open_machine(s, err));
    CW_TRY(announce(s, err));
    if (pthread_create(&s->store_thread, NULL, run_store, s) != 0)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "cannot start the store's thread");
    s->store_running = true;
    admin_hooks hooks = {.ctx = s, .wake = admin_wake, .stopped = admin_stopped};
    return admin_server_start(s->opts.state_dir, &hooks, &s->admin, err);
}

static void stop(shell *s)
{
    admin_server_stop(&s->admin);
    if (s->store_running) {
        cw_net_stop(s->store);
        pthread_join(s->store_thread, NULL);
    }
    cw_net_free(&s->store);
    cw_net_free(&s->control);
    store_server_free(&s->store_machine);
    cw_coordinator_free(&s->machine);
    prepared_model_free(&s->model);
    cw_state_close(&s->state);
    cw_signer_free(&s->signer);
    cw_keys_free(&s->keys);
    memset(s->token_secret, 0, sizeof s->token_secret);
    cw_free(s->workers.keys);
    pthread_mutex_destroy(&s->workers.lock);
    pthread_mutex_destroy(&s->failure_lock);
}

cw_status coordinator_run(const shell_options *o, cw_err *err)
{
    shell s = {.opts = *o};
    pthread_mutex_init(&s.workers.lock, NULL);
    pthread_mutex_init(&s.failure_lock, NULL);
    cw_status st = start(&s, err);
    if (st == CW_OK) st = cw_net_run(s.control, err);
    if (has_failed(&s)) {
        *err = s.failure;
        st = err->code;
    }
    stop(&s);
    return st;
}
