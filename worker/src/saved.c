/*
 * What a worker keeps on disk, so that it serves again after a restart while the coordinator is away: whose
 * cluster it is in, the newest epoch, revoked keys, the coordinator's clock, and which experts it was to
 * hold. The file is its own, but old versions and torn files are as wrong as hostile ones, so it is read like
 * a message of a peer.
 *
 *     "cwws" | version u32 | clock offset i64 | three times: length u32, bytes
 *     bytes: Envelope{Welcome}, Envelope{Assign}, signed epoch (or nothing)
 *
 * At a start the coordinator is asked first. Only when it has not let us in after RESTORE_US is the old
 * assignment taken up again: whoever let us in says itself what to hold.
 */
#include <string.h>

#include "cw/bytes.h"
#include "cw/mem.h"
#include "worker_internal.h"

enum { VERSION = 1, HEAD_BYTES = 16 };
static const int64_t CLOCK_MOST_MS = INT64_C(100) * 366 * 24 * 3600 * 1000; /* more would overflow sums */
static const char magic[4] = {'c', 'w', 'w', 's'};

/* --- writing --- */

static void fill_welcome(const cw_worker *w, Cw__Pb__Welcome *m)
{
    cw__pb__welcome__init(m);
    m->proto = CW_PROTO_MAX;
    m->cluster_id = (ProtobufCBinaryData){CW_CLUSTER_BYTES, (uint8_t *)(uintptr_t)w->cluster_id};
    m->model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, (uint8_t *)(uintptr_t)w->digest};
    m->model_name = (char *)(uintptr_t)w->model_name;
    m->sign_key = (ProtobufCBinaryData){CW_KEY_BYTES, (uint8_t *)(uintptr_t)w->sign_key.b};
    m->store_address = (char *)(uintptr_t)w->store_address;
    m->heartbeat_ms = (uint32_t)(w->co.heartbeat_us / 1000);
    m->revoked = (ProtobufCBinaryData){w->n_revoked * CW_KEY_BYTES, (uint8_t *)w->revoked};
}

/* Sets of the experts wanted; memory of `sets` and `list` by the caller, [CW_WIRE_MAX_LAYERS]. */
static void fill_assign(const cw_worker *w, Cw__Pb__Assign *m, Cw__Pb__LayerSet *sets,
                        Cw__Pb__LayerSet **list)
{
    const size_t row = CW_WIRE_MAX_EXPERTS / 8;
    cw__pb__assign__init(m);
    for (uint32_t l = 0; l < CW_WIRE_MAX_LAYERS; l++) {
        size_t n = row;
        while (n && !w->wanted[l * row + n - 1]) n--;
        if (!n) continue;
        Cw__Pb__LayerSet *s = &sets[m->n_sets];
        cw__pb__layer_set__init(s);
        s->layer = l;
        s->experts = (ProtobufCBinaryData){n, w->wanted + l * row};
        list[m->n_sets++] = s;
    }
    m->sets = list;
}

static cw_frame pack(const cw_worker *w, const Cw__Pb__Envelope *a, const Cw__Pb__Envelope *b)
{
    size_t na = cw_msg_header_bytes(a), nb = cw_msg_header_bytes(b);
    uint8_t *p = NULL;
    cw_frame f = cw_frame_new(HEAD_BYTES + 12 + na + nb + w->epoch_len, &p);
    if (!f.data) return f;
    memcpy(p, magic, 4);
    cw_store_u32(p + 4, VERSION);
    cw_store_u64(p + 8, (uint64_t)(worker_cluster_ms(w) - w->wall_ms));
    p += HEAD_BYTES;
    cw_store_u32(p, (uint32_t)na);
    cw_msg_header_pack(a, p + 4);
    p += 4 + na;
    cw_store_u32(p, (uint32_t)nb);
    cw_msg_header_pack(b, p + 4);
    p += 4 + nb;
    cw_store_u32(p, (uint32_t)w->epoch_len);
    if (w->epoch_len) memcpy(p + 4, w->epoch, w->epoch_len);
    return f;
}

cw_frame cw_worker_saved(const cw_worker *w)
{
    Cw__Pb__Welcome m;
    Cw__Pb__Assign s;
    Cw__Pb__Envelope a = CW__PB__ENVELOPE__INIT, b = CW__PB__ENVELOPE__INIT;
    Cw__Pb__LayerSet *sets = cw_calloc(CW_WIRE_MAX_LAYERS, sizeof *sets);
    Cw__Pb__LayerSet **list = cw_calloc(CW_WIRE_MAX_LAYERS, sizeof *list);
    cw_frame f = {0};
    if (sets && list) {
        fill_welcome(w, &m);
        fill_assign(w, &s, sets, list);
        a.body_case = CW__PB__ENVELOPE__BODY_WELCOME, a.welcome = &m;
        b.body_case = CW__PB__ENVELOPE__BODY_ASSIGN, b.assign = &s;
        f = pack(w, &a, &b);
    }
    cw_free(sets);
    cw_free(list);
    return f;
}

void saved_dirty(cw_worker *w)
{
    if (!w->save_us) w->save_us = w->now_us + SAVE_US;
}

void saved_tick(cw_worker *w, bool now)
{
    if (!w->save_us || (!now && w->now_us < w->save_us) || !w->has_cluster) return;
    w->save_us = 0;
    worker_act(w, CW_WORKER_SAVE);
}

/* --- reading --- */

static cw_status part(const uint8_t **p, size_t *left, size_t max, const uint8_t **data, size_t *n,
                      cw_err *err)
{
    size_t len = *left >= 4 ? cw_load_u32(*p) : SIZE_MAX;
    if (len > max || *left - 4 < len)
        return CW_FAIL(err, CW_STATUS_FORMAT, "the worker's saved state is not whole");
    *data = *p + 4;
    *n = len;
    *p += 4 + len;
    *left -= 4 + len;
    return CW_OK;
}

static cw_status message(const uint8_t **p, size_t *left, cw_msg_kind kind, cw_msg **out, cw_err *err)
{
    const uint8_t *data = NULL;
    size_t n = 0;
    CW_TRY(part(p, left, CW_HEADER_MAX, &data, &n, err));
    CW_TRY(cw_msg_decode(data, n, CW_HEADER_MAX, NULL, 0, out, err));
    if ((*out)->env->body_case == kind) return CW_OK;
    cw_msg_free(out);
    return CW_FAIL(err, CW_STATUS_FORMAT, "the worker's saved state has a part of another kind");
}

static bool fits(const cw_worker *w, const Cw__Pb__Welcome *m)
{
    if (m->cluster_id.len != CW_CLUSTER_BYTES || m->model_digest.len != CW_DIGEST_BYTES ||
        m->sign_key.len != CW_KEY_BYTES || m->revoked.len % CW_KEY_BYTES)
        return false;
    /* A worker that was given another file since then has nothing to take up. */
    return !w->c.has_local_model || !memcmp(w->c.local_digest, m->model_digest.data, CW_DIGEST_BYTES);
}

cw_status saved_restore(cw_worker *w, const uint8_t *bytes, size_t n, cw_err *err)
{
    if (n < HEAD_BYTES || memcmp(bytes, magic, 4) || cw_load_u32(bytes + 4) != VERSION)
        return CW_FAIL(err, CW_STATUS_FORMAT, "the worker's saved state is of another version");
    const uint8_t *p = bytes + HEAD_BYTES, *epoch = NULL;
    size_t left = n - HEAD_BYTES, epoch_len = 0;
    cw_msg *a = NULL, *b = NULL;
    cw_status s = message(&p, &left, CW__PB__ENVELOPE__BODY_WELCOME, &a, err);
    if (s == CW_OK) s = message(&p, &left, CW__PB__ENVELOPE__BODY_ASSIGN, &b, err);
    if (s == CW_OK) s = part(&p, &left, CW_EPOCH_MAX, &epoch, &epoch_len, err);
    int64_t offset = (int64_t)cw_load_u64(bytes + 8);
    if (s == CW_OK && (offset > CLOCK_MOST_MS || offset < -CLOCK_MOST_MS || !fits(w, a->env->welcome)))
        s = CW_FAIL(err, CW_STATUS_FORMAT, "the worker's saved state does not fit this start");
    if (s == CW_OK) {
        coordinator_cluster(w, a->env->welcome);
        w->wall_offset_ms = offset;
        coordinator_revoked(w, a->env->welcome->revoked, NULL); /* there are no edges yet */
        cw_frame f = {.data = epoch, .len = epoch_len};
        if (epoch_len) coordinator_epoch(w, &f);
        w->restored = b;
        w->save_us = 0;
        b = NULL;
    }
    cw_msg_free(&a);
    cw_msg_free(&b);
    return s;
}

/* The coordinator did not come: what was held before is loaded again. */
void saved_take_up(cw_worker *w, cw_outbox *out)
{
    if (!w->restored) return;
    if (w->co.state == CO_ADMITTED) { /* it says itself what to hold */
        cw_msg_free(&w->restored);
        return;
    }
    if (!w->restore_us) w->restore_us = w->now_us + RESTORE_US;
    if (w->now_us < w->restore_us) return;
    cw_msg *m = w->restored;
    w->restored = NULL;
    if (m->env->assign->n_sets) {
        worker_say(w, "the coordinator is out of reach: loading what was held before");
        w->took_up = true;
        holdings_change(w, true, 0, m->env->assign->sets, m->env->assign->n_sets, out);
        if (!w->model_asked) {
            w->model_asked = true;
            w->model_retry_us = w->now_us; /* the manifest is kept on disk, or comes from --model */
        }
    }
    cw_msg_free(&m);
}
