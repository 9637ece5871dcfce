/* Answers to calls. The combine order is NUMERICS.md's: from +0, y = fmaf(w, row, y) in ascending expert id,
 * on rounded rows. */
#include <string.h>

#include "cw/mem.h"
#include "worker_internal.h"

void reply_fail(cw_worker *w, peer *p, uint64_t id, Cw__Pb__FailCode code, uint32_t layer, uint32_t expert,
                uint32_t retry_ms, const char *text, cw_outbox *out)
{
    Cw__Pb__CallFail f = CW__PB__CALL_FAIL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    f.id = id, f.code = code, f.text = (char *)(uintptr_t)text, f.retry_after_ms = retry_ms, f.layer = layer,
    f.expert = expert;
    env.body_case = CW__PB__ENVELOPE__BODY_CALL_FAIL, env.call_fail = &f;
    cw_frame epoch = {0};
    if (code == CW__PB__FAIL_CODE__FAIL_NOT_HERE) epoch = edges_epoch_for(w, p);
    cw_send(out, p->link, &env, &epoch, epoch.data != NULL);
}

/* The f32 rows of a combined reply, or a frame without data when memory is out. */
static cw_frame combine(const cw_worker *w, const call *c)
{
    size_t d = w->d_model, bytes = (size_t)c->v.n_rows * d * 4;
    uint8_t *mem;
    cw_frame f = cw_frame_new(bytes, &mem);
    if (!mem) return f;
    memset(mem, 0, bytes);
    float *y = (float *)(void *)mem; /* fresh heap memory is aligned */
    /* Entries ascend by (expert, row): every row meets its experts in ascending order. */
    for (uint32_t i = 0; i < c->v.n_entries; i++) {
        cw_entry e = cw_entry_get(c->v.entries, i);
        if (c->exps_mem)
            w->c.kernels->combine_f16(y + e.row * d, e.weight,
                                      (const uint16_t *)(const void *)c->rows_mem + i * d, c->exps_mem[i],
                                      (int64_t)d);
        else
            w->c.kernels->combine_f32(y + e.row * d, e.weight,
                                      (const float *)(const void *)c->rows_mem + i * d, (int64_t)d);
    }
    return f;
}

void reply_send(cw_worker *w, call *c, cw_outbox *out)
{
    cw_frame frames[2] = {c->rows, c->exps};
    uint32_t n_frames = c->exps_mem ? 2 : 1;
    bool combined = c->v.reply == CW__PB__REPLY_KIND__COMBINED_F32;
    if (combined) {
        frames[0] = combine(w, c);
        n_frames = 1;
        size_t n = (size_t)c->v.n_rows * w->d_model;
        if (!frames[0].data ||
            !w->c.kernels->all_finite((const float *)(const void *)frames[0].data, (int64_t)n)) {
            bool memory = !frames[0].data;
            if (frames[0].release) frames[0].release(frames[0].owner);
            reply_fail(w, c->peer, c->v.id,
                       memory ? CW__PB__FAIL_CODE__FAIL_BUSY : CW__PB__FAIL_CODE__FAIL_NUMERIC, c->v.layer, 0,
                       memory ? BUSY_RETRY_MS : 0,
                       memory ? "out of memory" : "the combined row is not finite", out);
            return;
        }
    } else {
        c->rows = c->exps = (cw_frame){0}; /* they leave with the message */
    }
    uint32_t service = (uint32_t)(w->now_us - c->started_us);
    Cw__Pb__Reply r = CW__PB__REPLY__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    r.id = c->v.id, r.kind = c->v.reply, r.n = combined ? c->v.n_rows : c->v.n_entries;
    r.queue_us = (uint32_t)(c->started_us - c->received_us), r.service_us = service,
    r.queue_rows = w->n_entries;
    env.body_case = CW__PB__ENVELOPE__BODY_REPLY, env.reply = &r;
    w->calls++;
    w->rows += c->v.n_entries;
    w->bytes_out += cw_msg_header_bytes(&env) + frames[0].len + (n_frames == 2 ? frames[1].len : 0);
    w->service_us[w->n_service % SERVICE_RING] = service;
    if (++w->n_service == 2 * SERVICE_RING) w->n_service = SERVICE_RING;
    cw_send(out, c->peer->link, &env, frames, n_frames);
}
