/* The threads of the coordinator's process at work; see shell.h. */
#include <stdio.h>
#include <string.h>

#include "cw/log.h"
#include "cw/mem.h"
#include "shell_internal.h"

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
                         .store_address = s->store_address,
                         .metrics_address = s->metrics_address};
    for (int i = 0; i < 32; i++)
        snprintf(out->digest + 2 * i, 3, "%02x", cw_manifest_digest(s->model.manifest)[i]);
}

void shell_fail_with(shell *s, const cw_err *err)
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

bool shell_store_key(shell *s, const cw_key *key, bool in)
{
    return key_set_put(&s->workers, key, in);
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
            !shell_store_key(s, &rows[i].key.key, !rows[i].key.revoked && !rows[i].key.fenced))
            st = CW_FAIL(&err, CW_STATUS_NO_MEMORY, "out of memory for the list of workers");
    cw_coordinator_rows_clear(s->machine);
    if (st == CW_OK) return;
    cw_outbox_clear(out);
    shell_fail_with(s, &err);
}

bool shell_has_failed(shell *s)
{
    pthread_mutex_lock(&s->failure_lock);
    bool failed = s->failure.code != CW_OK;
    pthread_mutex_unlock(&s->failure_lock);
    return failed;
}

static void ask_reference(shell *s, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    cw_coordinator_audit a;
    while (s->reference && cw_coordinator_take_audit(s->machine, &a))
        if (!reference_ask(s->reference, &a))
            cw_coordinator_audited(s->machine, a.id, NULL, 0, now_us, wall_ms, out);
}

static void on_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    shell *s = ctx;
    if (shell_has_failed(s)) return;
    cw_coordinator_event(s->machine, ev, out);
    save_rows(s, out);
    ask_reference(s, ev->now_us, ev->wall_ms, out);
    metrics_step(s, ev->now_us);
}

static void judge_audits(shell *s, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    for (reference_result *x; s->reference && (x = reference_take(s->reference));) {
        cw_coordinator_audited(s->machine, x->audit.id, x->ok ? x->hashes : NULL, x->took_us, now_us, wall_ms,
                               out);
        cw_free(x);
    }
    save_rows(s, out);
}

static void on_wake(void *ctx, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    shell *s = ctx;
    if (shell_has_failed(s)) return;
    judge_audits(s, now_us, wall_ms, out);
    const cJSON *request = s->admin ? admin_take(s->admin) : NULL;
    if (!request || shell_has_failed(s)) return;
    char *reply = admin_execute(s, request, now_us, wall_ms, out);
    save_rows(s, out);
    /* What could not be saved did not happen: the client sees the connection end. */
    admin_answer(s->admin, shell_has_failed(s) ? NULL : reply);
    cw_free(reply);
}

static void on_stop(void *ctx, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    (void)wall_ms;
    shell *s = ctx;
    if (shell_has_failed(s)) return;
    cw_coordinator_stop(s->machine, now_us, out);
    save_rows(s, out);
}

void shell_wake(void *ctx)
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

void *shell_run_store(void *arg)
{
    shell *s = arg;
    cw_err err;
    if (cw_net_run(s->store, &err) != CW_OK) {
        cw_err_prefix(&err, "the store port");
        shell_fail_with(s, &err);
    }
    return NULL;
}

store_config shell_store_config(shell *s)
{
    return (store_config){.rate = s->opts.store_rate,
                          .ctx = s,
                          .is_worker = store_is_worker,
                          .chunk_bytes = store_chunk_bytes,
                          .read = store_read};
}

const cw_net_role shell_control_role = {.on_event = on_event, .on_wake = on_wake, .on_stop = on_stop};
const cw_net_role shell_store_role = {.on_event = on_store_event};
const admin_hooks shell_admin_hooks = {.wake = shell_wake, .stopped = admin_stopped};
