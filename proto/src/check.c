/*
 * What a correct peer may put into a header, kind by kind. Ranges only: whether the sender may say it now is
 * legal.c, whether it is true is for the roles.
 */
#include "check.h"

#include <math.h>
#include <string.h>

#include "cw/address.h"

#define BAD(...) CW_FAIL(err, CW_STATUS_PROTOCOL, __VA_ARGS__)

static bool is_len(ProtobufCBinaryData b, size_t n)
{
    return b.len == n;
}
static bool is_len_or_none(ProtobufCBinaryData b, size_t n)
{
    return b.len == 0 || b.len == n;
}

/* protobuf-c gives "" for an absent string, never NULL. Control characters would reach logs and terminals. */
static bool is_text(const char *s, size_t max)
{
    size_t n = strnlen(s, max + 1);
    if (n > max) return false;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] < 0x20 || s[i] == 0x7f) return false;
    return true;
}

static bool is_speed(float v)
{
    return isfinite(v) && v >= 0.0f && v < 1e9f;
}

static cw_status check_sets(size_t n, Cw__Pb__LayerSet **sets, cw_err *err)
{
    if (n > CW_WIRE_MAX_LAYERS) return BAD("%zu layer sets, at most %d are allowed", n, CW_WIRE_MAX_LAYERS);
    for (size_t i = 0; i < n; i++) {
        if (sets[i]->layer >= CW_WIRE_MAX_LAYERS) return BAD("layer %u is out of range", sets[i]->layer);
        if (i && sets[i]->layer <= sets[i - 1]->layer) return BAD("layer sets are not in ascending order");
        if (sets[i]->experts.len > CW_WIRE_MAX_EXPERTS / 8)
            return BAD("an expert set of %zu bytes is too long", sets[i]->experts.len);
    }
    return CW_OK;
}

static cw_status check_hello_body(const Cw__Pb__Hello *h, cw_err *err)
{
    if (h->proto_min == 0 || h->proto_min > h->proto_max)
        return BAD("protocol range %u..%u is empty", h->proto_min, h->proto_max);
    if (!is_text(h->software, CW_NAME_MAX))
        return BAD("the software name is not plain text of at most %d bytes", CW_NAME_MAX);
    if (!is_text(h->name, CW_NAME_MAX))
        return BAD("the name is not plain text of at most %d bytes", CW_NAME_MAX);
    if (h->role != CW__PB__ROLE__ROLE_WORKER && h->role != CW__PB__ROLE__ROLE_EDGE)
        return BAD("role %d does not exist", (int)h->role);
    if ((unsigned)h->purpose > CW__PB__PURPOSE__PURPOSE_DATA)
        return BAD("purpose %d does not exist", (int)h->purpose);
    if (!is_len_or_none(h->model_digest, CW_DIGEST_BYTES))
        return BAD("the model digest has %zu bytes", h->model_digest.len);
    if (!is_len(h->instance, CW_INSTANCE_BYTES)) return BAD("the instance id has %zu bytes", h->instance.len);
    if (h->ticket.len > 1024) return BAD("the ticket has %zu bytes", h->ticket.len);
    if (h->worker) {
        if (h->role != CW__PB__ROLE__ROLE_WORKER)
            return BAD("worker facts from something that is not a worker");
        /* It goes into an epoch, which every edge refuses whole if an address in it is none. */
        cw_err why;
        if (cw_address_parse(h->worker->data_address, CW_ADDRESS_CONNECT, NULL, &why) != CW_OK)
            return BAD("a data address nobody can connect to: %.200s", why.text);
        if (!is_text(h->worker->isa, 32)) return BAD("the instruction set's name is not plain text");
        if (!is_speed(h->worker->speed)) return BAD("the speed is not a number in range");
    } else if (h->role == CW__PB__ROLE__ROLE_WORKER && h->purpose == CW__PB__PURPOSE__PURPOSE_CONTROL) {
        return BAD("a worker's hello lacks its facts");
    }
    return CW_OK;
}

static cw_status check_hello(const Cw__Pb__Envelope *env, cw_err *err)
{
    return check_hello_body(env->hello, err);
}

static cw_status check_enrol(const Cw__Pb__Envelope *env, cw_err *err)
{
    if (env->enrol->token.len == 0 || env->enrol->token.len > 64)
        return BAD("the token has %zu bytes", env->enrol->token.len);
    if (!env->enrol->hello) return BAD("an enrolment without a hello");
    return check_hello_body(env->enrol->hello, err);
}

static cw_status check_welcome(const Cw__Pb__Envelope *env, cw_err *err)
{
    const Cw__Pb__Welcome *w = env->welcome;
    if (w->proto < CW_PROTO_MIN || w->proto > CW_PROTO_MAX)
        return BAD("protocol %u is not one we offered", w->proto);
    if (!is_len(w->cluster_id, CW_CLUSTER_BYTES))
        return BAD("the cluster id has %zu bytes", w->cluster_id.len);
    if (!is_len_or_none(w->model_digest, CW_DIGEST_BYTES))
        return BAD("the model digest has %zu bytes", w->model_digest.len);
    if (!is_len_or_none(w->sign_key, CW_KEY_BYTES))
        return BAD("the signing key has %zu bytes", w->sign_key.len);
    if (!is_text(w->model_name, 256)) return BAD("the model's name is not plain text");
    if (w->store_address[0] && cw_address_parse(w->store_address, CW_ADDRESS_CONNECT, NULL, NULL) != CW_OK)
        return BAD("the store's address is none");
    if (w->ticket.len > 1024) return BAD("the ticket has %zu bytes", w->ticket.len);
    if (w->heartbeat_ms < 10 || w->heartbeat_ms > 600000)
        return BAD("a heartbeat of %u ms is out of range", w->heartbeat_ms);
    if (w->revoked.len % CW_KEY_BYTES) return BAD("the revocation list is not whole");
    return CW_OK;
}

static cw_status check_refusal(const Cw__Pb__Envelope *env, cw_err *err)
{
    return is_text(env->refusal->text, CW_TEXT_MAX) ? CW_OK : BAD("a refusal's text is not plain text");
}

static cw_status check_ticket(const Cw__Pb__Envelope *env, cw_err *err)
{
    if (env->ticket->signed_ticket.len > 1024)
        return BAD("the ticket has %zu bytes", env->ticket->signed_ticket.len);
    if (env->ticket->revoked.len % CW_KEY_BYTES) return BAD("the revocation list is not whole");
    return CW_OK;
}

static cw_status check_assign(const Cw__Pb__Envelope *env, cw_err *err)
{
    const Cw__Pb__Assign *a = env->assign;
    if (a->n_sources > CW_MAX_SOURCES) return BAD("%zu chunk sources", a->n_sources);
    for (size_t i = 0; i < a->n_sources; i++) {
        const Cw__Pb__ChunkSource *c = a->sources[i];
        if (cw_address_parse(c->address, CW_ADDRESS_CONNECT, NULL, NULL) != CW_OK)
            return BAD("a chunk source's address is none");
        if (!is_len(c->key, CW_KEY_BYTES)) return BAD("a chunk source's key has %zu bytes", c->key.len);
        if (c->ticket.len > 1024) return BAD("the ticket has %zu bytes", c->ticket.len);
        if (!is_text(c->name, CW_NAME_MAX)) return BAD("a chunk source's name is not plain text");
    }
    return check_sets(a->n_sets, a->sets, err);
}
static cw_status check_drop(const Cw__Pb__Envelope *env, cw_err *err)
{
    return check_sets(env->drop->n_sets, env->drop->sets, err);
}

static cw_status check_holdings(const Cw__Pb__Envelope *env, cw_err *err)
{
    if (!is_text(env->holdings->trouble, CW_TEXT_MAX)) return BAD("a worker's trouble is not plain text");
    return check_sets(env->holdings->n_ready, env->holdings->ready, err);
}

static cw_status check_worker_load(const Cw__Pb__Envelope *env, cw_err *err)
{
    const Cw__Pb__WorkerLoad *w = env->worker_load;
    if (!is_speed(w->speed)) return BAD("the speed is not a number in range");
    if (w->n_loads > CW_WIRE_MAX_LAYERS) return BAD("loads of %zu layers", w->n_loads);
    for (size_t i = 0; i < w->n_loads; i++) {
        const Cw__Pb__LayerLoad *l = w->loads[i];
        if (l->layer >= CW_WIRE_MAX_LAYERS || (i && l->layer <= w->loads[i - 1]->layer))
            return BAD("loads of layer %u: out of range or order", l->layer);
        if (l->n_experts != l->n_rows || l->n_experts > CW_WIRE_MAX_EXPERTS)
            return BAD("loads of %zu experts with %zu numbers", l->n_experts, l->n_rows);
        for (size_t k = 0; k < l->n_experts; k++)
            if (l->experts[k] >= CW_WIRE_MAX_EXPERTS || (k && l->experts[k] <= l->experts[k - 1]))
                return BAD("the load of expert %u: out of range or order", l->experts[k]);
    }
    return CW_OK;
}

static cw_status check_leave(const Cw__Pb__Envelope *env, cw_err *err)
{
    return is_text(env->leave->text, CW_TEXT_MAX) ? CW_OK : BAD("a reason to leave is not plain text");
}

static cw_status check_released(const Cw__Pb__Envelope *env, cw_err *err)
{
    return is_text(env->released->text, CW_TEXT_MAX) ? CW_OK : BAD("a release's text is not plain text");
}

static cw_status check_mismatch(const Cw__Pb__Envelope *env, cw_err *err)
{
    const Cw__Pb__Mismatch *m = env->mismatch;
    if (m->layer >= CW_WIRE_MAX_LAYERS || m->expert >= CW_WIRE_MAX_EXPERTS)
        return BAD("layer %u, expert %u: out of range", m->layer, m->expert);
    return m->worker_a != m->worker_b ? CW_OK : BAD("worker %u against itself", m->worker_a);
}

static cw_status check_audit(const Cw__Pb__Envelope *env, cw_err *err)
{
    const Cw__Pb__Audit *a = env->audit;
    if (a->layer >= CW_WIRE_MAX_LAYERS || a->expert >= CW_WIRE_MAX_EXPERTS)
        return BAD("layer %u, expert %u: out of range", a->layer, a->expert);
    return a->n_rows && a->n_rows <= CW_AUDIT_ROWS_MAX ? CW_OK : BAD("an audit of %u rows", a->n_rows);
}

static cw_status check_audit_result(const Cw__Pb__Envelope *env, cw_err *err)
{
    const Cw__Pb__AuditResult *r = env->audit_result;
    if (r->n_row_hashes > CW_AUDIT_ROWS_MAX) return BAD("an audit's %zu hashes", r->n_row_hashes);
    return is_text(r->text, CW_TEXT_MAX) ? CW_OK : BAD("an audit's text is not plain text");
}

static cw_status check_edge_stats(const Cw__Pb__Envelope *env, cw_err *err)
{
    return is_text(env->edge_stats->mode, 16) ? CW_OK : BAD("the mode's name is not plain text");
}

static cw_status check_chunk_get(const Cw__Pb__Envelope *env, cw_err *err)
{
    const Cw__Pb__ChunkGet *g = env->chunk_get;
    if (g->length == 0 || g->length > CW_STORE_PART_MAX)
        return BAD("a part of %u bytes is out of range", g->length);
    return g->offset <= (uint64_t)1 << 48 ? CW_OK : BAD("a chunk offset is out of range");
}

static cw_status check_store_fail(const Cw__Pb__Envelope *env, cw_err *err)
{
    return is_text(env->store_fail->text, CW_TEXT_MAX) ? CW_OK
                                                       : BAD("a store failure's text is not plain text");
}

static cw_status check_call(const Cw__Pb__Envelope *env, cw_err *err)
{
    const Cw__Pb__Call *c = env->call;
    if (c->layer >= CW_WIRE_MAX_LAYERS) return BAD("layer %u is out of range", c->layer);
    if (c->n_rows == 0 || c->n_rows > 65535) return BAD("a call of %u rows", c->n_rows);
    if (c->n_entries < c->n_rows || c->n_entries > 1 << 20)
        return BAD("a call of %u entries for %u rows", c->n_entries, c->n_rows);
    if ((unsigned)c->act > CW__PB__ACT_KIND__ACT_F32)
        return BAD("activation kind %d does not exist", (int)c->act);
    if ((unsigned)c->reply > CW__PB__REPLY_KIND__COMBINED_F32)
        return BAD("reply kind %d does not exist", (int)c->reply);
    if ((unsigned)c->klass > CW__PB__CALL_CLASS__CLASS_PROBE)
        return BAD("call class %d does not exist", (int)c->klass);
    if (c->budget_us == 0) return BAD("a call without a budget");
    return CW_OK;
}

static cw_status check_reply(const Cw__Pb__Envelope *env, cw_err *err)
{
    if ((unsigned)env->reply->kind > CW__PB__REPLY_KIND__COMBINED_F32)
        return BAD("reply kind %d does not exist", (int)env->reply->kind);
    return env->reply->n <= 1 << 20 ? CW_OK : BAD("a reply of %u rows", env->reply->n);
}

static cw_status check_call_fail(const Cw__Pb__Envelope *env, cw_err *err)
{
    const Cw__Pb__CallFail *f = env->call_fail;
    if (f->code == CW__PB__FAIL_CODE__FAIL_NONE || (unsigned)f->code > CW__PB__FAIL_CODE__FAIL_STOPPING)
        return BAD("failure code %d does not exist", (int)f->code);
    return is_text(f->text, CW_TEXT_MAX) ? CW_OK : BAD("a failure's text is not plain text");
}

static cw_status check_bye(const Cw__Pb__Envelope *env, cw_err *err)
{
    return is_text(env->bye->text, CW_TEXT_MAX) ? CW_OK : BAD("a farewell is not plain text");
}

#define K(kind) [CW__PB__ENVELOPE__BODY_##kind]
static const cw_msg_rule rules[] = {
    K(HELLO) = {"hello", 0, 0, check_hello},
    K(ENROL) = {"enrol", 0, 0, check_enrol},
    K(WELCOME) = {"welcome", 0, 1, check_welcome},
    K(REFUSAL) = {"refusal", 0, 0, check_refusal},
    K(TICKET_RENEW) = {"ticket_renew", 0, 0, NULL},
    K(TICKET) = {"ticket", 0, 0, check_ticket},
    K(EPOCH_NEWS) = {"epoch_news", 1, 1, NULL},
    K(ASSIGN) = {"assign", 0, 0, check_assign},
    K(DROP) = {"drop", 0, 0, check_drop},
    K(HOLDINGS) = {"holdings", 0, 0, check_holdings},
    K(WORKER_LOAD) = {"worker_load", 0, 0, check_worker_load},
    K(EDGE_STATS) = {"edge_stats", 0, 0, check_edge_stats},
    K(MANIFEST_GET) = {"manifest_get", 0, 0, NULL},
    K(MANIFEST_PART) = {"manifest_part", 1, 1, NULL},
    K(CHUNK_GET) = {"chunk_get", 0, 0, check_chunk_get},
    K(CHUNK_PART) = {"chunk_part", 1, 1, NULL},
    K(STORE_FAIL) = {"store_fail", 0, 0, check_store_fail},
    K(CALL) = {"call", 2, 3, check_call},
    K(REPLY) = {"reply", 1, 2, check_reply},
    K(CALL_FAIL) = {"call_fail", 0, 1, check_call_fail},
    K(CANCEL) = {"cancel", 0, 0, NULL},
    K(PING) = {"ping", 0, 0, NULL},
    K(PONG) = {"pong", 0, 0, NULL},
    K(BYE) = {"bye", 0, 0, check_bye},
    K(LEAVE) = {"leave", 0, 0, check_leave},
    K(RELEASED) = {"released", 0, 0, check_released},
    K(MISMATCH) = {"mismatch", 0, 0, check_mismatch},
    K(AUDIT) = {"audit", 0, 0, check_audit},
    K(AUDIT_RESULT) = {"audit_result", 0, 0, check_audit_result},
};

const cw_msg_rule *cw_msg_rule_get(cw_msg_kind kind)
{
    return (unsigned)kind < CW_ARRAY_LEN(rules) && rules[kind].name ? &rules[kind] : NULL;
}
