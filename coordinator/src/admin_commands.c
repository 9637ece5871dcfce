/* The requests of the admin socket, answered from the machine. One function a command, one table. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/counters.h"
#include "cw/join.h"
#include "cw/json.h"
#include "cw/mem.h"
#include "cw/ticket.h"
#include "shell.h"

typedef struct {
    shell *sh;
    cw_coordinator *c;
    const cJSON *request;
    int64_t now_us, wall_ms;
    cw_outbox *out;
    cw_json *j; /* the value of "result" is written here */
} call;

static void put_key(cw_json *j, const cw_key *k)
{
    char hex[CW_KEY_HEX];
    cw_key_hex(k, hex);
    cw_json_kstr(j, "key", hex);
}

static void put_counter(void *ctx, cw_counter *c)
{
    char name[256];
    snprintf(name, sizeof name, c->labels[0] ? "%s{%s}" : "%s%s", c->name, c->labels);
    cw_json_kint(ctx, name, cw_counter_read(c));
}

static cw_status do_status(call *a, cw_err *err)
{
    (void)err;
    cw_coordinator_status s;
    shell_facts f;
    cw_coordinator_get_status(a->c, &s);
    shell_get_facts(a->sh, &f);
    cw_json *j = a->j;
    cw_json_object(j);
    cw_json_kstr(j, "model", f.model_name);
    cw_json_kstr(j, "digest", f.digest);
    cw_json_kstr(j, "control", f.control_address);
    cw_json_kstr(j, "store", f.store_address);
    cw_json_kuint(j, "term", s.term);
    cw_json_kuint(j, "epoch", s.number);
    cw_json_kuint(j, "workers", s.n_workers);
    cw_json_kuint(j, "live_workers", s.n_live_workers);
    cw_json_kuint(j, "ready_workers", s.n_ready_workers);
    cw_json_kuint(j, "edges", s.n_edges);
    cw_json_kuint(j, "experts", s.n_experts);
    cw_json_kuint(j, "covered", s.n_covered);
    cw_json_kuint(j, "min_homes", s.min_homes);
    cw_json_kuint(j, "missing_bytes", s.missing_bytes);
    cw_json_kbool(j, "settling", s.settling);
    cw_json_kuint(j, "fenced", s.n_fenced);
    cw_json_kuint(j, "leaving", s.n_leaving);
    if (f.metrics_address[0]) cw_json_kstr(j, "metrics", f.metrics_address);
    cw_json_kstr(j, "trouble", s.trouble);
    cw_json_key(j, "counters");
    cw_json_object(j);
    cw_counters_each(put_counter, j);
    cw_json_end(j);
    cw_json_end(j);
    return CW_OK;
}

static const char *worker_state_name(const cw_coordinator_worker *w)
{
    if (w->fenced) return "fenced";
    if (w->drained && !w->in_epoch) return "drained";
    if (w->drained) return "draining";
    if (!w->live) return "away";
    if (w->aside) return "aside";
    return w->leaving ? "leaving" : w->ready ? "ready" : "loading";
}

static cw_status do_workers(call *a, cw_err *err)
{
    (void)err;
    cw_json *j = a->j;
    cw_coordinator_worker w;
    cw_json_array(j);
    for (size_t i = 0; cw_coordinator_get_worker(a->c, i, &w); i++) {
        cw_json_object(j);
        cw_json_kuint(j, "id", w.id);
        cw_json_kstr(j, "name", w.name);
        put_key(j, &w.key);
        cw_json_kstr(j, "address", w.address);
        cw_json_kstr(j, "state", worker_state_name(&w));
        cw_json_kbool(j, "fenced", w.fenced);
        if (w.fenced) cw_json_kstr(j, "why", w.note);
        cw_json_kuint(j, "still_needed", w.n_needed);
        cw_json_kuint(j, "still_needed_bytes", w.needed_bytes);
        cw_json_kuint(j, "audits", w.n_audits);
        cw_json_kuint(j, "experts", w.n_ready);
        cw_json_kuint(j, "wanted", w.n_wanted);
        cw_json_kuint(j, "memory", w.memory_bytes);
        cw_json_kuint(j, "used", w.memory_used);
        cw_json_kuint(j, "threads", w.threads);
        cw_json_kstr(j, "isa", w.isa);
        cw_json_kfixed(j, "gb_per_s", w.speed, 2);
        cw_json_kbool(j, "local_model", w.local_model);
        cw_json_kuint(j, "calls", w.calls);
        cw_json_kuint(j, "rows", w.rows);
        cw_json_kuint(j, "bytes_in", w.bytes_in);
        cw_json_kuint(j, "bytes_out", w.bytes_out);
        cw_json_kstr(j, "trouble", w.trouble);
        cw_json_end(j);
    }
    cw_json_end(j);
    return CW_OK;
}

static cw_status do_edges(call *a, cw_err *err)
{
    (void)err;
    cw_json *j = a->j;
    cw_coordinator_edge e;
    cw_json_array(j);
    for (size_t i = 0; cw_coordinator_get_edge(a->c, i, &e); i++) {
        cw_json_object(j);
        cw_json_kstr(j, "name", e.name);
        put_key(j, &e.key);
        cw_json_kuint(j, "token", e.token_id);
        cw_json_kstr(j, "mode", e.mode);
        cw_json_kuint(j, "tokens", e.tokens);
        cw_json_kuint(j, "calls", e.calls);
        cw_json_kuint(j, "retries", e.retries);
        cw_json_kuint(j, "hedges", e.hedges);
        cw_json_kuint(j, "hedge_wins", e.hedge_wins);
        cw_json_kuint(j, "mismatches", e.mismatches);
        cw_json_kuint(j, "fallback_tokens", e.fallback_tokens);
        cw_json_kuint(j, "busy", e.busy);
        cw_json_kuint(j, "reports", e.reports);
        cw_json_kuint(j, "unfounded", e.unfounded);
        cw_json_end(j);
    }
    cw_json_end(j);
    return CW_OK;
}

static const char *token_state(const cw_token_row *t, int64_t wall_ms)
{
    if (t->revoked) return "revoked";
    if (t->expires_ms <= wall_ms) return "expired";
    return t->uses_max && t->uses >= t->uses_max ? "used up" : "valid";
}

static cw_status do_tokens(call *a, cw_err *err)
{
    (void)err;
    cw_json *j = a->j;
    cw_token_row t;
    cw_json_array(j);
    for (size_t i = 0; cw_coordinator_get_token(a->c, i, &t); i++) {
        uint32_t admitted = 0;
        cw_key_row k;
        for (size_t n = 0; cw_coordinator_get_key(a->c, n, &k); n++) admitted += k.token_id == t.id;
        cw_json_object(j);
        cw_json_kuint(j, "id", t.id);
        cw_json_kstr(j, "role", t.role == CW__PB__ROLE__ROLE_WORKER ? "worker" : "edge");
        cw_json_kstr(j, "state", token_state(&t, a->wall_ms));
        cw_json_kuint(j, "uses", t.uses);
        cw_json_kuint(j, "uses_max", t.uses_max);
        cw_json_kuint(j, "max_live", t.max_live);
        cw_json_kuint(j, "keys", admitted);
        cw_json_kint(j, "created_ms", t.created_ms);
        cw_json_kint(j, "expires_ms", t.expires_ms);
        cw_json_end(j);
    }
    cw_json_end(j);
    return CW_OK;
}

/* A number of the request within bounds; `def` where it is absent. */
static cw_status get_number(const call *a, const char *name, double min, double max, double def, double *out,
                            cw_err *err)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(a->request, name);
    if (v && !cJSON_IsNumber(v)) return CW_FAIL(err, CW_STATUS_INVALID, "%s is not a number", name);
    double d = v ? v->valuedouble : def;
    if (!isfinite(d) || d < min || d > max)
        return CW_FAIL(err, CW_STATUS_INVALID, "%s must be between %g and %g", name, min, max);
    *out = d;
    return CW_OK;
}

static cw_status do_token_create(call *a, cw_err *err)
{
    const cJSON *role = cJSON_GetObjectItemCaseSensitive(a->request, "role");
    bool worker = cJSON_IsString(role) && strcmp(role->valuestring, "worker") == 0;
    if (!worker && !(cJSON_IsString(role) && strcmp(role->valuestring, "edge") == 0))
        return CW_FAIL(err, CW_STATUS_INVALID, "the role is worker or edge");
    double uses, hours;
    CW_TRY(get_number(a, "uses", 0, 1e6, worker ? 8 : 0, &uses, err));
    CW_TRY(get_number(a, "hours", 0.001, 87600, worker ? 1 : 720, &hours, err));
    uint32_t id;
    char join[640];
    CW_TRY(shell_token_create(a->sh, worker ? CW__PB__ROLE__ROLE_WORKER : CW__PB__ROLE__ROLE_EDGE,
                              (uint32_t)uses, (int64_t)(hours * 3600e3), a->wall_ms, &id, join, err));
    cw_json_object(a->j);
    cw_json_kstr(a->j, "join", join);
    cw_json_kuint(a->j, "id", id);
    cw_json_end(a->j);
    return CW_OK;
}

static cw_status revoke_token(call *a, uint32_t id, cw_err *err);

static cw_status do_token_revoke(call *a, cw_err *err)
{
    double id;
    CW_TRY(get_number(a, "id", 1, 4294967295.0, 0, &id, err));
    return revoke_token(a, (uint32_t)id, err);
}

static cw_status get_text(const call *a, const char *name, const char **out, cw_err *err)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(a->request, name);
    if (!cJSON_IsString(v) || !v->valuestring[0])
        return CW_FAIL(err, CW_STATUS_INVALID, "\"%s\" is missing", name);
    *out = v->valuestring;
    return CW_OK;
}

/* A token by its number, or by a join string that holds it; 0: `who` is neither. */
static cw_status find_token(const call *a, const char *who, uint32_t *id, cw_err *err)
{
    cw_token_row t;
    cw_join join;
    uint8_t hash[CW_TOKEN_HASH_BYTES] = {0};
    char *end;
    unsigned long long n = strtoull(who, &end, 10);
    bool number = who[0] >= '0' && who[0] <= '9' && !*end, is_join = strncmp(who, "cw1-", 4) == 0;
    *id = 0;
    if (is_join) {
        CW_TRY(cw_join_parse(who, &join, err));
        cw_token_hash(join.token, sizeof join.token, hash);
        cw_join_wipe(&join);
    }
    for (size_t i = 0; (number || is_join) && cw_coordinator_get_token(a->c, i, &t); i++)
        if (is_join ? memcmp(t.hash, hash, sizeof hash) == 0 : t.id == n) *id = t.id;
    if (is_join && !*id)
        return CW_FAIL(err, CW_STATUS_NOT_FOUND, "the token of this join string is not this cluster's");
    return CW_OK;
}

static cw_status revoke_token(call *a, uint32_t id, cw_err *err)
{
    uint32_t n;
    CW_TRY(cw_coordinator_token_revoke(a->c, id, a->now_us, a->wall_ms, a->out, &n, err));
    cw_json_object(a->j);
    cw_json_kuint(a->j, "revoked", id);
    cw_json_kuint(a->j, "keys", n);
    cw_json_end(a->j);
    return CW_OK;
}

/* A key, a name, a token's number or a join string: whichever it is. */
static cw_status do_revoke(call *a, cw_err *err)
{
    const char *who;
    cw_key key;
    uint32_t token;
    cw_err unknown;
    CW_TRY(get_text(a, "who", &who, err));
    CW_TRY(find_token(a, who, &token, err));
    cw_status found = cw_coordinator_find(a->c, who, false, &key, &unknown);
    if (token && found == CW_OK)
        return CW_FAIL(
            err, CW_STATUS_INVALID,
            "%.20s is a token and also the name of a worker or edge: use `token revoke`, or name the key",
            who);
    if (token) return revoke_token(a, token, err);
    if (found != CW_OK) {
        *err = unknown;
        return found;
    }
    CW_TRY(cw_coordinator_key_revoke(a->c, &key, a->now_us, a->wall_ms, a->out, err));
    cw_json_object(a->j);
    put_key(a->j, &key);
    cw_json_end(a->j);
    return CW_OK;
}

static cw_status put_worker_key(call *a, const cw_key *key)
{
    cw_json_object(a->j);
    put_key(a->j, key);
    cw_json_end(a->j);
    return CW_OK;
}

static cw_status do_drain(call *a, cw_err *err)
{
    const char *who;
    cw_key key;
    CW_TRY(get_text(a, "who", &who, err));
    CW_TRY(cw_coordinator_find(a->c, who, true, &key, err));
    CW_TRY(cw_coordinator_drain(a->c, &key, true, a->now_us, a->wall_ms, a->out, err));
    return put_worker_key(a, &key);
}

static cw_status do_undrain(call *a, cw_err *err)
{
    const char *who;
    cw_key key;
    CW_TRY(get_text(a, "who", &who, err));
    CW_TRY(cw_coordinator_find(a->c, who, true, &key, err));
    CW_TRY(cw_coordinator_drain(a->c, &key, false, a->now_us, a->wall_ms, a->out, err));
    return put_worker_key(a, &key);
}

static cw_status do_unfence(call *a, cw_err *err)
{
    const char *who;
    cw_key key;
    CW_TRY(get_text(a, "who", &who, err));
    CW_TRY(cw_coordinator_find(a->c, who, true, &key, err));
    CW_TRY(cw_coordinator_unfence(a->c, &key, err));
    return put_worker_key(a, &key);
}

/* {"layer": "bits in hex, expert 0 the lowest bit of the first byte", ...} */
static void put_sets(cw_json *j, const Cw__Pb__EpochWorker *w)
{
    char layer[16], hex[CW_WIRE_MAX_EXPERTS / 4 + 1];
    cw_json_key(j, "sets");
    cw_json_object(j);
    for (size_t s = 0; s < w->n_sets; s++) {
        const ProtobufCBinaryData *x = &w->sets[s]->experts;
        if (x->len > CW_WIRE_MAX_EXPERTS / 8) continue;
        for (size_t k = 0; k < x->len; k++) snprintf(hex + 2 * k, 3, "%02x", x->data[k]);
        hex[2 * x->len] = 0;
        snprintf(layer, sizeof layer, "%u", w->sets[s]->layer);
        cw_json_kstr(j, layer, hex);
    }
    cw_json_end(j);
}

static cw_status do_epoch(call *a, cw_err *err)
{
    cw_frame f = cw_coordinator_get_epoch(a->c);
    Cw__Pb__EpochBody *b = NULL;
    if (!f.len)
        return CW_FAIL(err, CW_STATUS_NOT_FOUND,
                       "no epoch was published yet: no worker has loaded an expert");
    CW_TRY(cw_epoch_verify(cw_signer_public(shell_signer(a->sh)), f.data, f.len, &b, err));
    cw_json *j = a->j;
    cw_json_object(j);
    cw_json_kuint(j, "term", b->term);
    cw_json_kuint(j, "number", b->number);
    cw_json_kuint(j, "made_ms", b->made_ms);
    cw_json_key(j, "workers");
    cw_json_array(j);
    for (size_t i = 0; i < b->n_workers; i++) {
        uint64_t n = 0;
        for (size_t s = 0; s < b->workers[i]->n_sets; s++)
            for (size_t k = 0; k < b->workers[i]->sets[s]->experts.len; k++)
                n += (uint64_t)__builtin_popcount(b->workers[i]->sets[s]->experts.data[k]);
        cw_json_object(j);
        cw_json_kuint(j, "id", b->workers[i]->id);
        cw_json_kstr(j, "name", b->workers[i]->name);
        cw_json_kstr(j, "address", b->workers[i]->address);
        cw_json_kuint(j, "experts", n);
        if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(a->request, "sets"))) put_sets(j, b->workers[i]);
        cw_json_end(j);
    }
    cw_json_end(j);
    cw_json_end(j);
    cw_epoch_free(&b);
    return CW_OK;
}

static const struct {
    const char *name;
    cw_status (*run)(call *a, cw_err *err);
} commands[] = {
    {"status", do_status},
    {"workers", do_workers},
    {"edges", do_edges},
    {"tokens", do_tokens},
    {"token_create", do_token_create},
    {"token_revoke", do_token_revoke},
    {"revoke", do_revoke},
    {"epoch", do_epoch},
    {"drain", do_drain},
    {"undrain", do_undrain},
    {"unfence", do_unfence},
};

char *admin_execute(shell *s, const cJSON *request, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    const cJSON *cmd = cJSON_GetObjectItemCaseSensitive(request, "cmd");
    cw_err err;
    cw_json j;
    cw_json_to_heap(&j);
    cw_json_object(&j);
    cw_json_kbool(&j, "ok", true);
    cw_json_key(&j, "result");
    call a = {.sh = s,
              .c = shell_machine(s),
              .request = request,
              .now_us = now_us,
              .wall_ms = wall_ms,
              .out = out,
              .j = &j};
    cw_status st = CW_FAIL(&err, CW_STATUS_INVALID, "there is no such command");
    for (size_t i = 0; cJSON_IsString(cmd) && i < CW_ARRAY_LEN(commands); i++)
        if (strcmp(cmd->valuestring, commands[i].name) == 0) st = commands[i].run(&a, &err);
    if (st == CW_OK) {
        cw_json_end(&j);
    } else { /* commands write nothing before they can fail no more */
        cw_json_free(&j);
        cw_json_to_heap(&j);
        cw_json_object(&j);
        cw_json_kbool(&j, "ok", false);
        cw_json_kstr(&j, "error", err.text);
        cw_json_end(&j);
    }
    char *reply = j.failed ? NULL : cw_strdup(j.buf);
    cw_json_free(&j);
    return reply;
}
