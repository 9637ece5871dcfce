/* Messages: what a correct peer sends survives, everything else is refused before it is used. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/bytes.h"
#include "cw/machine.h"
#include "cw/mem.h"

enum { D = 64, ROWS = 3, ENTRIES = 5 };
static const cw_model_limits lim = {
    .n_layers = 4, .n_experts = 16, .d_model = D, .max_rows = 64, .max_entries = 512};

typedef struct {
    uint8_t header[1024];
    size_t header_len;
    uint8_t entries[ENTRIES * CW_ENTRY_BYTES];
    int8_t q[ROWS * D];
    uint8_t s[ROWS * D / 8];
    cw_frame frames[3];
} call_bytes;

static void make_call(call_bytes *c)
{
    static const cw_entry e[ENTRIES] = {
        {0, 1, 0.5f}, {2, 1, 0.25f}, {1, 3, 1.0f}, {0, 9, 0.5f}, {2, 15, 0.75f}};
    Cw__Pb__Call call = CW__PB__CALL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    call.id = 77, call.layer = 2, call.n_rows = ROWS, call.n_entries = ENTRIES, call.budget_us = 1000;
    env.body_case = CW__PB__ENVELOPE__BODY_CALL, env.call = &call;
    c->header_len = cw_msg_header_bytes(&env);
    cw_msg_header_pack(&env, c->header);
    for (uint32_t i = 0; i < ENTRIES; i++) cw_entry_put(c->entries, i, e[i]);
    for (int i = 0; i < ROWS * D; i++) c->q[i] = (int8_t)(i % 255 - 127);
    for (int i = 0; i < ROWS * D / 32; i++) cw_store_u32(c->s + 4 * i, cw_f32_bits(0.125f * (float)i));
    c->frames[0] = (cw_frame){.data = c->entries, .len = sizeof c->entries};
    c->frames[1] = (cw_frame){.data = (uint8_t *)c->q, .len = sizeof c->q};
    c->frames[2] = (cw_frame){.data = c->s, .len = sizeof c->s};
}

/* Decode and view; true when both accept. */
static bool accepts(const call_bytes *c, uint32_t n_frames)
{
    cw_msg *m = NULL;
    cw_err err = {0};
    cw_call_view v;
    if (cw_msg_decode(c->header, c->header_len, CW_HEADER_MAX, c->frames, n_frames, &m, &err) != CW_OK) {
        assert_int_equal(err.code, CW_STATUS_PROTOCOL);
        assert_true(err.text[0]);
        return false;
    }
    bool ok = cw_call_view_get(m, &lim, &v, &err) == CW_OK;
    cw_msg_free(&m);
    return ok;
}

static void a_good_call_is_read_back(void **state)
{
    (void)state;
    call_bytes c;
    make_call(&c);
    cw_msg *m = NULL;
    cw_call_view v;
    assert_int_equal(cw_msg_decode(c.header, c.header_len, CW_HEADER_MAX, c.frames, 3, &m, NULL), CW_OK);
    assert_int_equal(cw_call_view_get(m, &lim, &v, NULL), CW_OK);
    assert_int_equal(v.id, 77);
    assert_int_equal(v.layer, 2);
    assert_int_equal(cw_entry_get(v.entries, 4).expert, 15);
    assert_true(cw_entry_get(v.entries, 4).weight == 0.75f);
    cw_msg_free(&m);
    assert_null(m);
}

static void every_truncation_of_a_call_is_refused(void **state)
{
    (void)state;
    call_bytes c;
    make_call(&c);
    assert_true(accepts(&c, 3));
    for (uint32_t n = 0; n < 3; n++) assert_false(accepts(&c, n));
    for (uint32_t f = 0; f < 3; f++)
        for (size_t len = 0; len < c.frames[f].len; len++) {
            call_bytes t;
            make_call(&t);
            t.frames[f].len = len;
            assert_false(accepts(&t, 3));
        }
    /* A shorter header may still parse as protobuf (fields are optional), but never as this call. */
    for (size_t len = 0; len < c.header_len; len++) {
        call_bytes t;
        make_call(&t);
        t.header_len = len;
        assert_false(accepts(&t, 3));
    }
}

static void forbidden_values_are_refused(void **state)
{
    (void)state;
    call_bytes c;
    make_call(&c);
    c.q[100] = -128;
    assert_false(accepts(&c, 3));
    const float bad_scales[] = {NAN, INFINITY, -INFINITY, -1.0f, -0.0f};
    for (size_t i = 0; i < CW_ARRAY_LEN(bad_scales); i++) {
        make_call(&c);
        cw_store_u32(c.s + 8, cw_f32_bits(bad_scales[i]));
        assert_false(accepts(&c, 3));
    }
    const cw_entry bad_entries[] = {{ROWS, 1, 1.0f}, {0, 16, 1.0f}, {0, 1, NAN}, {2, 9, 1.0f}};
    for (size_t i = 0; i < CW_ARRAY_LEN(bad_entries); i++) {
        make_call(&c);
        cw_entry_put(c.entries, 1, bad_entries[i]); /* the last: order broken */
        assert_false(accepts(&c, 3));
    }
    make_call(&c);
    cw_entry_put(c.entries, 2, (cw_entry){0, 3, 1.0f}); /* row 1 is asked for by nobody */
    assert_false(accepts(&c, 3));
}

static void random_damage_never_crashes_the_decoder(void **state)
{
    (void)state;
    unsigned seed = 12345;
    for (int round = 0; round < 20000; round++) {
        call_bytes c;
        make_call(&c);
        for (int k = 0; k < 1 + round % 4; k++)
            c.header[(size_t)rand_r(&seed) % c.header_len] = (uint8_t)rand_r(&seed);
        (void)accepts(&c, 3);
    }
}

static void a_reply_must_be_the_one_asked_for(void **state)
{
    (void)state;
    Cw__Pb__Reply r = CW__PB__REPLY__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    r.id = 5, r.n = 2, r.kind = CW__PB__REPLY_KIND__ROWS_F16;
    env.body_case = CW__PB__ENVELOPE__BODY_REPLY, env.reply = &r;
    uint8_t rows[2 * D * 2] = {0}, exps[2] = {0};
    cw_frame f[2] = {{.data = rows, .len = sizeof rows}, {.data = exps, .len = 2}};
    cw_msg *m = cw_msg_new(&env, f, 2);
    cw_reply_view v;
    assert_int_equal(cw_reply_view_get(m, &lim, CW__PB__REPLY_KIND__ROWS_F16, 2, &v, NULL), CW_OK);
    assert_int_equal(cw_reply_view_get(m, &lim, CW__PB__REPLY_KIND__ROWS_F16, 3, &v, NULL),
                     CW_STATUS_PROTOCOL);
    assert_int_equal(cw_reply_view_get(m, &lim, CW__PB__REPLY_KIND__ROWS_F32, 2, &v, NULL),
                     CW_STATUS_PROTOCOL);
    rows[1] = 0x7c; /* f16 infinity */
    assert_int_equal(cw_reply_view_get(m, &lim, CW__PB__REPLY_KIND__ROWS_F16, 2, &v, NULL),
                     CW_STATUS_PROTOCOL);
    cw_msg_free(&m);
}

static void a_stranger_may_only_introduce_himself(void **state)
{
    (void)state;
    assert_true(cw_msg_legal(CW_SIDE_WORKER, CW_SIDE_EDGE, CW__PB__PURPOSE__PURPOSE_DATA, CW_PEER_NEW,
                             CW__PB__ENVELOPE__BODY_HELLO));
    assert_false(cw_msg_legal(CW_SIDE_WORKER, CW_SIDE_EDGE, CW__PB__PURPOSE__PURPOSE_DATA, CW_PEER_NEW,
                              CW__PB__ENVELOPE__BODY_CALL));
    assert_false(cw_msg_legal(CW_SIDE_WORKER, CW_SIDE_EDGE, CW__PB__PURPOSE__PURPOSE_DATA, CW_PEER_ADMITTED,
                              CW__PB__ENVELOPE__BODY_HELLO));
    assert_true(cw_msg_legal(CW_SIDE_WORKER, CW_SIDE_EDGE, CW__PB__PURPOSE__PURPOSE_DATA, CW_PEER_ADMITTED,
                             CW__PB__ENVELOPE__BODY_CALL));
    assert_false(cw_msg_legal(CW_SIDE_COORDINATOR, CW_SIDE_EDGE, CW__PB__PURPOSE__PURPOSE_CONTROL,
                              CW_PEER_ADMITTED, CW__PB__ENVELOPE__BODY_HOLDINGS));
    assert_false(cw_msg_legal(CW_SIDE_COORDINATOR, CW_SIDE_EDGE, CW__PB__PURPOSE__PURPOSE_STORE,
                              CW_PEER_ADMITTED, CW__PB__ENVELOPE__BODY_CHUNK_GET));
    int allowed = 0;
    for (int k = -1; k < 64; k++)
        allowed += cw_msg_legal(CW_SIDE_WORKER, CW_SIDE_EDGE, CW__PB__PURPOSE__PURPOSE_DATA, CW_PEER_NEW,
                                (cw_msg_kind)k);
    assert_int_equal(allowed, 1);
}

static bool decodes(const Cw__Pb__Envelope *env)
{
    uint8_t header[1024];
    size_t n = cw_msg_header_bytes(env);
    assert_true(n <= sizeof header);
    cw_msg_header_pack(env, header);
    cw_msg *m = NULL;
    cw_err err;
    cw_status s = cw_msg_decode(header, n, CW_HEADER_MAX, NULL, 0, &m, &err);
    cw_msg_free(&m);
    return s == CW_OK;
}

static void loads_come_in_order_with_a_number_each(void **state)
{
    (void)state;
    uint32_t experts[] = {3, 7}, rows[] = {10, 300};
    Cw__Pb__LayerLoad layer = CW__PB__LAYER_LOAD__INIT, *layers[] = {&layer, &layer};
    Cw__Pb__WorkerLoad load = CW__PB__WORKER_LOAD__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    env.body_case = CW__PB__ENVELOPE__BODY_WORKER_LOAD, env.worker_load = &load;
    layer.layer = 1, layer.n_experts = layer.n_rows = 2, layer.experts = experts, layer.rows = rows;
    load.n_loads = 1, load.loads = layers;
    assert_true(decodes(&env));
    load.n_loads = 2; /* the same layer twice */
    assert_false(decodes(&env));
    load.n_loads = 1, layer.n_rows = 1;
    assert_false(decodes(&env));
    layer.n_rows = 2, experts[1] = 3;
    assert_false(decodes(&env));
    experts[1] = CW_WIRE_MAX_EXPERTS;
    assert_false(decodes(&env));
}

static void audits_are_bounded(void **state)
{
    (void)state;
    Cw__Pb__Audit audit = CW__PB__AUDIT__INIT;
    Cw__Pb__AuditResult result = CW__PB__AUDIT_RESULT__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    env.body_case = CW__PB__ENVELOPE__BODY_AUDIT, env.audit = &audit;
    assert_false(decodes(&env)); /* no rows */
    audit.n_rows = CW_AUDIT_ROWS_MAX;
    assert_true(decodes(&env));
    audit.n_rows++;
    assert_false(decodes(&env));
    uint64_t hashes[4] = {1, 2, 3, 4};
    env.body_case = CW__PB__ENVELOPE__BODY_AUDIT_RESULT, env.audit_result = &result;
    result.n_row_hashes = 4, result.row_hashes = hashes, result.text = (char *)"";
    assert_true(decodes(&env));
    result.text = (char *)"two\nlines";
    assert_false(decodes(&env));
}

static void workers_fetch_chunks_from_workers_and_nothing_else(void **state)
{
    (void)state;
    int allowed = 0;
    for (int k = 0; k < 64; k++)
        allowed += cw_msg_legal(CW_SIDE_WORKER, CW_SIDE_WORKER, CW__PB__PURPOSE__PURPOSE_DATA,
                                CW_PEER_ADMITTED, (cw_msg_kind)k);
    assert_int_equal(allowed, 7); /* chunk get, part, failure; ping, pong, bye; epoch news */
    assert_false(cw_msg_legal(CW_SIDE_WORKER, CW_SIDE_WORKER, CW__PB__PURPOSE__PURPOSE_DATA, CW_PEER_ADMITTED,
                              CW__PB__ENVELOPE__BODY_CALL));
}

static void decoding_memory_is_bounded(void **state)
{
    (void)state;
    /* Enrol { hello { worker ... } } cannot repeat, but Assign.sets can: 2 bytes of wire for an empty set
     * each. */
    size_t n = 200000;
    uint8_t *h = cw_calloc(2 * n + 16, 1);
    size_t body = 2 * n, at = 0;
    h[at++] = 8 << 3 | 2; /* Envelope.assign */
    for (size_t v = body;; v >>= 7) {
        h[at++] = (uint8_t)((v & 127) | (v > 127 ? 128 : 0));
        if (v <= 127) break;
    }
    for (size_t i = 0; i < n; i++) h[at++] = 2 << 3 | 2, h[at++] = 0;
    cw_msg *m = NULL;
    cw_err err;
    assert_int_equal(cw_msg_decode(h, at, CW_HEADER_MAX, NULL, 0, &m, &err), CW_STATUS_PROTOCOL);
    assert_int_equal(cw_msg_decode(h, at, CW_HELLO_MAX, NULL, 0, &m, &err), CW_STATUS_PROTOCOL);
    assert_null(m);
    cw_free(h);
}

static void fields_of_a_later_version_are_dropped(void **state)
{
    (void)state;
    /* Envelope.ping { t_us 7, and unknown fields 9 (varint) and 0 (eight bytes, which no parser should take)
     * } */
    static const uint8_t h[] = {0xb2, 0x01, 13, 0x08, 7, 0x48, 1, 0x81, 0x00, 0, 0, 0, 0, 0, 0, 0};
    uint8_t header[sizeof h + 1] = {0};
    memcpy(header, h, sizeof h);
    header[2] = 14;
    cw_msg *m = NULL;
    assert_int_equal(cw_msg_decode(header, sizeof header, CW_HELLO_MAX, NULL, 0, &m, NULL), CW_OK);
    assert_int_equal(m->env->ping->t_us, 7);
    assert_int_equal(cw_msg_header_bytes(m->env), 5);
    cw_msg_free(&m);
}

static void an_outbox_hands_actions_over_in_order(void **state)
{
    (void)state;
    cw_outbox o;
    cw_outbox_init(&o);
    Cw__Pb__Ping ping = CW__PB__PING__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    env.body_case = CW__PB__ENVELOPE__BODY_PING, env.ping = &ping;
    cw_key key = {{1}};
    cw_open(&o, CW_LINK_OUT | 1, "tcp://127.0.0.1:1", &key);
    for (uint64_t i = 0; i < 100; i++) {
        ping.t_us = i;
        cw_send(&o, 5, &env, NULL, 0);
    }
    cw_blame(&o, 5, "because");
    assert_int_equal(o.n, 102);
    assert_int_equal(o.items[0].kind, CW_ACT_OPEN);
    assert_int_equal(o.items[100].msg->env->ping->t_us, 99);
    assert_string_equal(o.items[101].text, "because");
    cw_outbox_free(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_call_is_read_back),
        cmocka_unit_test(every_truncation_of_a_call_is_refused),
        cmocka_unit_test(forbidden_values_are_refused),
        cmocka_unit_test(random_damage_never_crashes_the_decoder),
        cmocka_unit_test(a_reply_must_be_the_one_asked_for),
        cmocka_unit_test(a_stranger_may_only_introduce_himself),
        cmocka_unit_test(loads_come_in_order_with_a_number_each),
        cmocka_unit_test(audits_are_bounded),
        cmocka_unit_test(workers_fetch_chunks_from_workers_and_nothing_else),
        cmocka_unit_test(decoding_memory_is_bounded),
        cmocka_unit_test(fields_of_a_later_version_are_dropped),
        cmocka_unit_test(an_outbox_hands_actions_over_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
