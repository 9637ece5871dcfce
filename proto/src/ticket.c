/* Tickets and epochs; see cw/ticket.h. The signature is checked before a byte of the body is parsed. */
#include "cw/ticket.h"

#include <math.h>
#include <string.h>

#include "cw/address.h"
#include "cw/mem.h"

static const char ticket_context[] = "causeway ticket 1", epoch_context[] = "causeway epoch 1";

enum { TICKET_MAX = 1024 };

#define BAD(...) CW_FAIL(err, CW_STATUS_PROTOCOL, __VA_ARGS__)

static cw_status sign_body(const cw_signer *s, const char *context, const ProtobufCMessage *body, size_t max,
                           uint8_t **bytes, size_t *n, cw_err *err)
{
    size_t body_len = protobuf_c_message_get_packed_size(body);
    /* Two fields: a tag byte and a length of at most 10 bytes each. */
    if (body_len > max || body_len + CW_SIGNATURE_BYTES + 22 > max)
        return CW_FAIL(err, CW_STATUS_LIMIT, "%zu bytes are too many to sign, at most %zu are allowed",
                       body_len, max);
    uint8_t *packed = cw_calloc(body_len + 1, 1), signature[CW_SIGNATURE_BYTES];
    if (!packed) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "no memory to sign %zu bytes", body_len);
    protobuf_c_message_pack(body, packed);
    cw_sign(s, context, packed, body_len, signature);
    Cw__Pb__Signed out = CW__PB__SIGNED__INIT;
    out.body.data = packed, out.body.len = body_len;
    out.signature.data = signature, out.signature.len = sizeof signature;
    size_t out_len = cw__pb__signed__get_packed_size(&out);
    uint8_t *result = cw_calloc(out_len, 1);
    if (result) {
        cw__pb__signed__pack(&out, result);
        *bytes = result;
        *n = out_len;
    }
    cw_free(packed);
    return result ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "no memory to sign %zu bytes", body_len);
}

/* The body inside, verified; points into the returned Signed, which the caller frees. */
static cw_status verify_body(const cw_key *key, const char *context, const void *bytes, size_t n, size_t max,
                             const char *what, Cw__Pb__Signed **out, cw_err *err)
{
    if (n == 0 || n > max) return BAD("%s of %zu bytes", what, n);
    Cw__Pb__Signed *s = cw__pb__signed__unpack(NULL, n, bytes);
    if (!s) return BAD("%s that is not a signed message", what);
    if (s->signature.len != CW_SIGNATURE_BYTES ||
        !cw_sign_verify(key, context, s->body.data, s->body.len, s->signature.data)) {
        cw__pb__signed__free_unpacked(s, NULL);
        return CW_FAIL(err, CW_STATUS_AUTH, "%s that this cluster's coordinator did not sign", what);
    }
    *out = s;
    return CW_OK;
}

cw_status cw_ticket_sign(const cw_signer *s, const cw_ticket *t, uint8_t **bytes, size_t *n, cw_err *err)
{
    Cw__Pb__TicketBody b = CW__PB__TICKET_BODY__INIT;
    cw_ticket copy = *t; /* protobuf-c wants pointers to non-const */
    b.cluster_id = (ProtobufCBinaryData){CW_CLUSTER_BYTES, copy.cluster};
    b.edge_key = (ProtobufCBinaryData){CW_KEY_BYTES, copy.edge.b};
    b.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, copy.model_digest};
    b.not_after_ms = t->not_after_ms, b.streams = t->streams, b.rows_per_s = t->rows_per_s,
    b.serial = t->serial, b.rights = t->right;
    return sign_body(s, ticket_context, &b.base, TICKET_MAX, bytes, n, err);
}

cw_status cw_ticket_verify(const cw_key *sign_key, const void *bytes, size_t n, cw_ticket *out, cw_err *err)
{
    Cw__Pb__Signed *signed_msg = NULL;
    CW_TRY(verify_body(sign_key, ticket_context, bytes, n, TICKET_MAX, "a ticket", &signed_msg, err));
    Cw__Pb__TicketBody *b = cw__pb__ticket_body__unpack(NULL, signed_msg->body.len, signed_msg->body.data);
    cw__pb__signed__free_unpacked(signed_msg, NULL);
    if (!b) return BAD("a ticket whose body cannot be read");
    cw_status s = CW_OK;
    if (b->cluster_id.len != CW_CLUSTER_BYTES || b->edge_key.len != CW_KEY_BYTES ||
        b->model_digest.len != CW_DIGEST_BYTES || b->streams == 0 || b->rights > CW_RIGHT_CHUNKS)
        s = BAD("a ticket whose body is out of range");
    if (s == CW_OK) {
        *out = (cw_ticket){.not_after_ms = b->not_after_ms,
                           .streams = b->streams,
                           .rows_per_s = b->rows_per_s,
                           .serial = b->serial,
                           .right = (cw_right)b->rights};
        memcpy(out->cluster, b->cluster_id.data, CW_CLUSTER_BYTES);
        memcpy(out->edge.b, b->edge_key.data, CW_KEY_BYTES);
        memcpy(out->model_digest, b->model_digest.data, CW_DIGEST_BYTES);
    }
    cw__pb__ticket_body__free_unpacked(b, NULL);
    return s;
}

cw_status cw_epoch_sign(const cw_signer *s, const Cw__Pb__EpochBody *body, uint8_t **bytes, size_t *n,
                        cw_err *err)
{
    return sign_body(s, epoch_context, &body->base, CW_EPOCH_MAX, bytes, n, err);
}

static cw_status check_worker(const Cw__Pb__EpochWorker *w, cw_err *err)
{
    if (strnlen(w->name, CW_NAME_MAX + 1) > CW_NAME_MAX)
        return BAD("an epoch with a worker's name that is too long");
    if (w->key.len != CW_KEY_BYTES) return BAD("an epoch with a key of %zu bytes", w->key.len);
    if (cw_address_parse(w->address, CW_ADDRESS_CONNECT, NULL, NULL) != CW_OK)
        return BAD("an epoch with an address nobody can connect to");
    if (!isfinite(w->speed) || w->speed < 0.0f)
        return BAD("an epoch with a speed that is not a number in range");
    if (w->n_sets > CW_WIRE_MAX_LAYERS) return BAD("an epoch with %zu layer sets of one worker", w->n_sets);
    for (size_t i = 0; i < w->n_sets; i++) {
        const Cw__Pb__LayerSet *set = w->sets[i];
        if (set->layer >= CW_WIRE_MAX_LAYERS || (i && set->layer <= w->sets[i - 1]->layer))
            return BAD("an epoch whose layer sets are out of order");
        if (set->experts.len > CW_WIRE_MAX_EXPERTS / 8)
            return BAD("an epoch with an expert set that is too long");
    }
    return CW_OK;
}

static cw_status check_epoch(const Cw__Pb__EpochBody *b, cw_err *err)
{
    if (b->cluster_id.len != CW_CLUSTER_BYTES || b->model_digest.len != CW_DIGEST_BYTES)
        return BAD("an epoch without cluster or model");
    if (b->n_workers > CW_MAX_WORKERS) return BAD("an epoch of %zu workers", b->n_workers);
    for (size_t i = 0; i < b->n_workers; i++) {
        if (i && b->workers[i]->id <= b->workers[i - 1]->id)
            return BAD("an epoch whose workers are out of order");
        CW_TRY(check_worker(b->workers[i], err));
    }
    return CW_OK;
}

cw_status cw_epoch_verify(const cw_key *sign_key, const void *bytes, size_t n, Cw__Pb__EpochBody **out,
                          cw_err *err)
{
    Cw__Pb__Signed *signed_msg = NULL;
    CW_TRY(verify_body(sign_key, epoch_context, bytes, n, CW_EPOCH_MAX, "an epoch", &signed_msg, err));
    Cw__Pb__EpochBody *b = cw__pb__epoch_body__unpack(NULL, signed_msg->body.len, signed_msg->body.data);
    cw__pb__signed__free_unpacked(signed_msg, NULL);
    if (!b) return BAD("an epoch whose body cannot be read");
    cw_status s = check_epoch(b, err);
    if (s == CW_OK)
        *out = b;
    else
        cw__pb__epoch_body__free_unpacked(b, NULL);
    return s;
}

void cw_epoch_free(Cw__Pb__EpochBody **e)
{
    if (*e) cw__pb__epoch_body__free_unpacked(*e, NULL);
    *e = NULL;
}
