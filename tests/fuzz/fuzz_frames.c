/*
 * Any bytes as a message from a peer: header and raw frames. What is taken can be read in full, gives the
 * same message when it is packed again, and is judged by a gate without a crash; a call or reply that is
 * taken keeps every promise of cw/msg.h.
 *
 * An input is: 4 bytes of choices, the number of raw frames (mod 5), that many u16 lengths, the frames, the
 * header.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/bytes.h"
#include "cw/gate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink;

/* Each frame in a block of its own size, so that a read beyond it is seen. */
static void *own(const uint8_t *data, size_t n)
{
    void *p = malloc(n ? n : 1);
    if (n) memcpy(p, data, n);
    return p;
}

static void read_all(const cw_msg *m)
{
    for (uint32_t f = 0; f < m->n_frames; f++)
        for (size_t i = 0; i < m->frames[f].len; i++) sink += m->frames[f].data[i];
}

static void check_call(const cw_msg *m, const cw_model_limits *lim)
{
    cw_call_view v;
    cw_err err;
    if (cw_call_view_get(m, lim, &v, &err) != CW_OK) return;
    CW_ASSERT(v.layer < lim->n_layers && v.n_rows <= lim->max_rows && v.n_entries <= lim->max_entries);
    size_t n = (size_t)v.n_rows * lim->d_model;
    for (uint32_t i = 0; i < v.n_entries; i++) {
        cw_entry e = cw_entry_get(v.entries, i);
        CW_ASSERT(e.row < v.n_rows && e.expert < lim->n_experts && isfinite(e.weight));
    }
    for (size_t i = 0; v.q && i < n; i++) CW_ASSERT(v.q[i] != -128);
    for (size_t i = 0; v.s && i < n / 32; i++) {
        float s = cw_f32_from_bits(cw_load_u32(v.s + 4 * i));
        CW_ASSERT(isfinite(s) && s >= 0);
    }
    for (size_t i = 0; v.x && i < n; i++) CW_ASSERT(isfinite(cw_f32_from_bits(cw_load_u32(v.x + 4 * i))));
    CW_ASSERT(!v.x == (v.q && v.s));
}

static void check_reply(const cw_msg *m, const cw_model_limits *lim, Cw__Pb__ReplyKind kind, uint32_t asked)
{
    cw_reply_view v;
    cw_err err;
    if (cw_reply_view_get(m, lim, kind, asked, &v, &err) != CW_OK) return;
    CW_ASSERT(v.n == asked && v.kind == kind);
    for (size_t i = 0; i < (size_t)v.n * lim->d_model; i++) {
        if (kind == CW__PB__REPLY_KIND__ROWS_F16)
            CW_ASSERT(isfinite(cw_f16_to_f32(cw_load_u16(v.rows + 2 * i))));
        else
            CW_ASSERT(isfinite(cw_f32_from_bits(cw_load_u32(v.rows + 4 * i))));
    }
    for (uint32_t i = 0; v.exps && i < v.n; i++) sink += (uint8_t)v.exps[i];
}

/* What was taken packs, and the packed form is taken too and packs to the same bytes. */
static void check_round_trip(const cw_msg *m)
{
    size_t n = cw_msg_header_bytes(m->env);
    uint8_t *once = malloc(n + 1), *twice = malloc(n + 1);
    cw_frame frames[CW_MSG_MAX_FRAMES];
    for (uint32_t i = 0; i < m->n_frames; i++)
        frames[i] = (cw_frame){.data = m->frames[i].data, .len = m->frames[i].len};
    cw_msg_header_pack(m->env, once);
    cw_msg *again = NULL;
    cw_err err;
    /* Packing may be a little longer than what came: a packed enum or a repeated field has one form here and
     * several there. */
    if (n <= CW_HEADER_MAX) {
        cw_status s = cw_msg_decode(once, n, CW_HEADER_MAX, frames, m->n_frames, &again, &err);
        if (s != CW_OK) fprintf(stderr, "%s\n", err.text);
        CW_ASSERT(s == CW_OK);
        CW_ASSERT(cw_msg_header_bytes(again->env) == n);
        cw_msg_header_pack(again->env, twice);
        CW_ASSERT(memcmp(once, twice, n) == 0);
        cw_msg_free(&again);
    }
    free(once);
    free(twice);
}

static void check_gates(const cw_msg *m, uint8_t choice)
{
    cw_link_gate g;
    cw_err err;
    cw_gate_incoming(&g, (cw_side)(choice % 3), (Cw__Pb__Purpose)(choice / 4 % 3));
    if (choice & 64) g.state = CW_GATE_ADMITTED;
    if (cw_gate_received(&g, m, &err) == CW_OK && !(choice & 64)) CW_ASSERT(g.state == CW_GATE_INTRODUCED);
    cw_gate_outgoing(&g, CW_SIDE_EDGE);
    g.state = CW_GATE_INTRODUCED;
    g.peer = choice & 1 ? CW_SIDE_WORKER : CW_SIDE_COORDINATOR;
    g.purpose = choice & 1 ? CW__PB__PURPOSE__PURPOSE_DATA : CW__PB__PURPOSE__PURPOSE_CONTROL;
    if (cw_gate_received(&g, m, &err) == CW_OK)
        CW_ASSERT(m->env->body_case == CW__PB__ENVELOPE__BODY_WELCOME ||
                  m->env->body_case == CW__PB__ENVELOPE__BODY_REFUSAL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 5) return 0;
    const cw_model_limits lim = {
        .n_layers = 8, .n_experts = 16, .d_model = data[0] & 1 ? 64 : 40, .max_rows = 64, .max_entries = 512};
    uint32_t n_frames = data[4] % 5;
    size_t at = 5 + 2 * (size_t)n_frames;
    if (size < at) return 0;
    cw_frame frames[4] = {{0}};
    for (uint32_t i = 0; i < n_frames; i++) {
        size_t len = cw_load_u16(data + 5 + 2 * i);
        if (len > size - at) len = size - at;
        void *p = own(data + at, len);
        frames[i] = (cw_frame){.data = p, .len = len, .owner = p, .release = free};
        at += len;
    }
    uint8_t *header = own(data + at, size - at);
    cw_msg *m = NULL;
    cw_err err = {0};
    if (cw_msg_decode(header, size - at, data[0] & 2 ? CW_HELLO_MAX : CW_HEADER_MAX, frames, n_frames, &m,
                      &err) != CW_OK) {
        CW_ASSERT(err.code == CW_STATUS_PROTOCOL && err.text[0]);
        for (uint32_t i = 0; i < n_frames; i++) free(frames[i].owner);
    } else {
        read_all(m);
        check_call(m, &lim);
        check_reply(m, &lim, (Cw__Pb__ReplyKind)(data[1] % 3), data[2]);
        check_round_trip(m);
        check_gates(m, data[3]);
        cw_msg_free(&m);
    }
    free(header);
    return 0;
}
