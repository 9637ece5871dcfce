/* Calls and replies against the model: sizes of the raw frames, entry ranges, forbidden values. */
#include <math.h>

#include "cw/bytes.h"
#include "cw/msg.h"

#define BAD(...) CW_FAIL(err, CW_STATUS_PROTOCOL, __VA_ARGS__)

cw_entry cw_entry_get(const uint8_t *entries, uint32_t i)
{
    const uint8_t *p = entries + (size_t)i * CW_ENTRY_BYTES;
    return (cw_entry){
        .row = cw_load_u16(p), .expert = cw_load_u16(p + 2), .weight = cw_f32_from_bits(cw_load_u32(p + 4))};
}

void cw_entry_put(uint8_t *entries, uint32_t i, cw_entry e)
{
    uint8_t *p = entries + (size_t)i * CW_ENTRY_BYTES;
    cw_store_u16(p, e.row);
    cw_store_u16(p + 2, e.expert);
    cw_store_u32(p + 4, cw_f32_bits(e.weight));
}

static bool all_finite_f32(const uint8_t *p, size_t n)
{
    uint32_t worst = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t a = cw_load_u32(p + 4 * i) & 0x7fffffff;
        worst = a > worst ? a : worst;
    }
    return worst < 0x7f800000;
}

/* A8 scales are amax / 127: finite, and never negative (minus zero included). */
static bool all_scales(const uint8_t *p, size_t n)
{
    uint32_t worst = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t a = cw_load_u32(p + 4 * i);
        worst = a > worst ? a : worst;
    }
    return worst < 0x7f800000;
}

static bool all_finite_f16(const uint8_t *p, size_t n)
{
    uint16_t worst = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t a = cw_load_u16(p + 2 * i) & 0x7fff;
        worst = a > worst ? a : worst;
    }
    return worst < 0x7c00;
}

static bool has_min_int8(const int8_t *q, size_t n)
{
    int seen = 0;
    for (size_t i = 0; i < n; i++) seen |= q[i] == -128;
    return seen;
}

static cw_status check_entries(const cw_call_view *v, const cw_model_limits *lim, cw_err *err)
{
    uint32_t last = 0;
    uint8_t seen[8192] = {0}; /* a bit a row: n_rows <= 65535 */
    uint32_t n_seen = 0;
    for (uint32_t i = 0; i < v->n_entries; i++) {
        cw_entry e = cw_entry_get(v->entries, i);
        if (e.row >= v->n_rows) return BAD("entry %u asks for row %u of %u", i, e.row, v->n_rows);
        if (e.expert >= lim->n_experts)
            return BAD("entry %u asks for expert %u of %u", i, e.expert, lim->n_experts);
        if (!isfinite(e.weight)) return BAD("the weight of entry %u is not finite", i);
        uint32_t order = (uint32_t)e.expert << 16 | e.row;
        if (i && order <= last) return BAD("entries are not in ascending order of expert and row");
        last = order;
        if (!(seen[e.row >> 3] & 1 << (e.row & 7))) n_seen++;
        seen[e.row >> 3] |= (uint8_t)(1 << (e.row & 7));
    }
    return n_seen == v->n_rows ? CW_OK : BAD("%u of %u rows have no entry", v->n_rows - n_seen, v->n_rows);
}

cw_status cw_call_view_get(const cw_msg *m, const cw_model_limits *lim, cw_call_view *out, cw_err *err)
{
    if (m->env->body_case != CW__PB__ENVELOPE__BODY_CALL)
        return BAD("a %s where a call was expected", cw_msg_kind_name(m->env->body_case));
    const Cw__Pb__Call *c = m->env->call;
    cw_call_view v = {.id = c->id,
                      .layer = c->layer,
                      .n_rows = c->n_rows,
                      .n_entries = c->n_entries,
                      .budget_us = c->budget_us,
                      .act = c->act,
                      .reply = c->reply,
                      .klass = c->klass};
    if (v.layer >= lim->n_layers) return BAD("layer %u of %u", v.layer, lim->n_layers);
    if (v.n_rows > lim->max_rows || v.n_entries > lim->max_entries)
        return BAD("a call of %u rows and %u entries, at most %u and %u are allowed", v.n_rows, v.n_entries,
                   lim->max_rows, lim->max_entries);
    uint32_t want = v.act == CW__PB__ACT_KIND__ACT_A8 ? 3 : 2;
    if (m->n_frames != want) return BAD("a call with %u raw frames instead of %u", m->n_frames, want);
    size_t n = (size_t)v.n_rows * lim->d_model; /* 65535 * d_model cannot overflow 64 bits */
    if (m->frames[0].len != (size_t)v.n_entries * CW_ENTRY_BYTES)
        return BAD("an entry frame of %zu bytes for %u entries", m->frames[0].len, v.n_entries);
    v.entries = m->frames[0].data;
    if (v.act == CW__PB__ACT_KIND__ACT_A8) {
        if (lim->d_model % 32) return BAD("8-bit rows for a model whose width is no multiple of 32");
        if (m->frames[1].len != n || m->frames[2].len != n / 8)
            return BAD("row frames of %zu and %zu bytes for %u rows of %u", m->frames[1].len,
                       m->frames[2].len, v.n_rows, lim->d_model);
        v.q = (const int8_t *)m->frames[1].data;
        v.s = m->frames[2].data;
        if (has_min_int8(v.q, n)) return BAD("a row value of -128");
        if (!all_scales(v.s, n / 32)) return BAD("a row scale that is negative or not finite");
    } else {
        if (m->frames[1].len != n * 4)
            return BAD("a row frame of %zu bytes for %u rows of %u", m->frames[1].len, v.n_rows,
                       lim->d_model);
        v.x = m->frames[1].data;
        if (!all_finite_f32(v.x, n)) return BAD("a row value that is not finite");
    }
    CW_TRY(check_entries(&v, lim, err));
    *out = v;
    return CW_OK;
}

cw_status cw_reply_view_get(const cw_msg *m, const cw_model_limits *lim, Cw__Pb__ReplyKind kind, uint32_t n,
                            cw_reply_view *out, cw_err *err)
{
    if (m->env->body_case != CW__PB__ENVELOPE__BODY_REPLY)
        return BAD("a %s where a reply was expected", cw_msg_kind_name(m->env->body_case));
    const Cw__Pb__Reply *r = m->env->reply;
    if (r->kind != kind)
        return BAD("a reply of kind %d where kind %d was asked for", (int)r->kind, (int)kind);
    if (r->n != n) return BAD("a reply of %u rows where %u were asked for", r->n, n);
    bool f16 = kind == CW__PB__REPLY_KIND__ROWS_F16;
    size_t values = (size_t)n * lim->d_model;
    if (m->n_frames != (f16 ? 2u : 1u)) return BAD("a reply with %u raw frames", m->n_frames);
    if (m->frames[0].len != values * (f16 ? 2 : 4))
        return BAD("a reply frame of %zu bytes for %u rows of %u", m->frames[0].len, n, lim->d_model);
    if (f16 && m->frames[1].len != n)
        return BAD("an exponent frame of %zu bytes for %u rows", m->frames[1].len, n);
    if (!(f16 ? all_finite_f16(m->frames[0].data, values) : all_finite_f32(m->frames[0].data, values)))
        return BAD("a row that is not finite");
    *out = (cw_reply_view){.id = r->id,
                           .kind = kind,
                           .n = n,
                           .queue_us = r->queue_us,
                           .service_us = r->service_us,
                           .queue_rows = r->queue_rows,
                           .rows = m->frames[0].data,
                           .exps = f16 ? (const int8_t *)m->frames[1].data : NULL};
    return CW_OK;
}
