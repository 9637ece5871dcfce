/* Opening what the coordinator's process needs, in order, and closing it; see shell.h. */
#include <stdio.h>
#include <string.h>

#include "cw/address.h"
#include "cw/clock.h"
#include "cw/fs.h"
#include "cw/join.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "cw/progress.h"
#include "cw/ticket.h"
#include "shell_internal.h"

enum { STRANGERS = 32 /* links beside those of members: on their way in, or being refused */ };

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
    cw_net_role control = shell_control_role, store = shell_store_role;
    control.ctx = store.ctx = s;
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
    cw_random(&c.seed, sizeof c.seed);
    c.times.ticket_ms = s->opts.ticket_ms;
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
            !saved.keys[i].fenced && !shell_store_key(s, &saved.keys[i].key, true))
            return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the list of workers");
    store_config sc = shell_store_config(s);
    sc.heartbeat_ms = c.times.heartbeat_ms;
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
    CW_TRY(tokens_default_join(s, CW__PB__ROLE__ROLE_WORKER, wall_ms, worker, &wt, err));
    CW_TRY(tokens_default_join(s, CW__PB__ROLE__ROLE_EDGE, wall_ms, edge, &et, err));
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
    if (s->opts.metrics) CW_TRY(cw_metrics_start(s->opts.metrics, s->metrics_address, &s->metrics, err));
    CW_TRY(prepare_model(s->opts.model, s->opts.state_dir, &s->model, err));
    if (s->opts.fallback) {
        char text[256] = "";
        CW_TRY(prepare_compare_fallback(s->model.gguf, s->opts.fallback, text, sizeof text, err));
        printf("%s\n", text);
    }
    CW_TRY(open_nets(s, err));
    CW_TRY(open_machine(s, err));
    CW_TRY(announce(s, err));
    if (pthread_create(&s->store_thread, NULL, shell_run_store, s) != 0)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "cannot start the store's thread");
    s->store_running = true;
    CW_TRY(reference_start(&s->model, shell_wake, s, &s->reference, err));
    admin_hooks hooks = shell_admin_hooks;
    hooks.ctx = s;
    return admin_server_start(s->opts.state_dir, &hooks, &s->admin, err);
}

static void stop(shell *s)
{
    admin_server_stop(&s->admin);
    reference_stop(&s->reference);
    cw_metrics_stop(&s->metrics);
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
    if (shell_has_failed(&s)) {
        *err = s.failure;
        st = err->code;
    }
    stop(&s);
    return st;
}
