/* Gates and addresses: what may come through a link, and what may be connected to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/address.h"
#include "cw/gate.h"

static uint8_t instance[CW_INSTANCE_BYTES];

static cw_msg *hello(Cw__Pb__Role role, Cw__Pb__Purpose purpose)
{
    Cw__Pb__Hello h = CW__PB__HELLO__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    h.proto_min = h.proto_max = 1, h.role = role, h.purpose = purpose;
    h.instance.data = instance, h.instance.len = sizeof instance;
    env.body_case = CW__PB__ENVELOPE__BODY_HELLO, env.hello = &h;
    return cw_msg_new(&env, NULL, 0);
}

static cw_msg *of_kind(cw_msg_kind kind)
{
    Cw__Pb__Ping ping = CW__PB__PING__INIT;
    Cw__Pb__Welcome welcome = CW__PB__WELCOME__INIT;
    Cw__Pb__Refusal refusal = CW__PB__REFUSAL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    env.body_case = kind;
    if (kind == CW__PB__ENVELOPE__BODY_PING) env.ping = &ping;
    if (kind == CW__PB__ENVELOPE__BODY_WELCOME) env.welcome = &welcome;
    if (kind == CW__PB__ENVELOPE__BODY_REFUSAL) env.refusal = &refusal;
    return cw_msg_new(&env, NULL, 0);
}

static bool lets(cw_link_gate *g, cw_msg *m)
{
    cw_err err = {0};
    cw_status s = cw_gate_received(g, m, &err);
    cw_msg_free(&m);
    if (s != CW_OK) assert_true(s == CW_STATUS_PROTOCOL && err.text[0]);
    return s == CW_OK;
}

static void a_stranger_says_hello_once_and_waits(void **state)
{
    (void)state;
    cw_link_gate g;
    cw_gate_incoming(&g, CW_SIDE_WORKER, CW__PB__PURPOSE__PURPOSE_DATA);
    assert_int_equal(cw_gate_header_max(&g), CW_HELLO_MAX);
    assert_false(lets(&g, of_kind(CW__PB__ENVELOPE__BODY_PING)));
    assert_true(lets(&g, hello(CW__PB__ROLE__ROLE_EDGE, CW__PB__PURPOSE__PURPOSE_DATA)));
    assert_int_equal(cw_gate_header_max(&g), CW_HELLO_MAX);
    assert_false(lets(&g, of_kind(CW__PB__ENVELOPE__BODY_PING)));
    cw_gate_admit(&g);
    assert_int_equal(cw_gate_header_max(&g), CW_HEADER_MAX);
    assert_true(lets(&g, of_kind(CW__PB__ENVELOPE__BODY_PING)));
    assert_false(lets(&g, hello(CW__PB__ROLE__ROLE_EDGE, CW__PB__PURPOSE__PURPOSE_DATA)));
    assert_false(lets(&g, of_kind(CW__PB__ENVELOPE__BODY_WELCOME)));
}

static void a_hello_must_be_for_this_port(void **state)
{
    (void)state;
    cw_link_gate g;
    cw_gate_incoming(&g, CW_SIDE_COORDINATOR, CW__PB__PURPOSE__PURPOSE_STORE);
    assert_false(lets(&g, hello(CW__PB__ROLE__ROLE_WORKER, CW__PB__PURPOSE__PURPOSE_CONTROL)));
    cw_gate_admit(&g); /* nobody introduced himself */
    assert_false(lets(&g, of_kind(CW__PB__ENVELOPE__BODY_PING)));
    assert_true(lets(&g, hello(CW__PB__ROLE__ROLE_WORKER, CW__PB__PURPOSE__PURPOSE_STORE)));
}

static void our_hello_is_answered_before_anything_else(void **state)
{
    (void)state;
    for (int refused = 0; refused < 2; refused++) {
        cw_link_gate g;
        cw_gate_outgoing(&g, CW_SIDE_EDGE);
        assert_false(lets(&g, of_kind(CW__PB__ENVELOPE__BODY_WELCOME)));
        cw_msg *m = hello(CW__PB__ROLE__ROLE_EDGE, CW__PB__PURPOSE__PURPOSE_DATA);
        cw_gate_sent(&g, m);
        cw_msg_free(&m);
        assert_false(lets(&g, of_kind(CW__PB__ENVELOPE__BODY_PING)));
        assert_true(
            lets(&g, of_kind(refused ? CW__PB__ENVELOPE__BODY_REFUSAL : CW__PB__ENVELOPE__BODY_WELCOME)));
        assert_int_equal(lets(&g, of_kind(CW__PB__ENVELOPE__BODY_PING)), !refused);
        assert_false(lets(&g, of_kind(CW__PB__ENVELOPE__BODY_WELCOME)));
    }
}

static void addresses_are_checked(void **state)
{
    (void)state;
    static const char *const good[] = {"tcp://127.0.0.1:1", "tcp://a:65535", "tcp://[::1]:5570",
                                       "tcp://host-1.example.org:5570"};
    static const char *const bad[] = {"",
                                      "tcp://",
                                      "tcp://a",
                                      "tcp://:1",
                                      "tcp://a:0",
                                      "tcp://a:65536",
                                      "tcp://a:1x",
                                      "tcp://*:5",
                                      "tcp://0.0.0.0:5",
                                      "tcp://[::]:1",
                                      "tcp://[::1:5",
                                      "tcp://::1:5",
                                      "tcp://a;b:5",
                                      "tcp://a b:5",
                                      "tcp://1.2.3:5",
                                      "ipc:///tmp/x",
                                      "inproc://zeromq.zap.01",
                                      "tcp://a:1;b:2",
                                      "tcp://a\n:1",
                                      "tcp://eth0;host:1",
                                      "udp://a:1",
                                      "tcp://a..b:1",
                                      "tcp://[fe80::1%1]:5"};
    cw_address a;
    cw_err err;
    for (size_t i = 0; i < CW_ARRAY_LEN(good); i++) {
        char back[CW_ADDRESS_MAX];
        assert_int_equal(cw_address_parse(good[i], CW_ADDRESS_CONNECT, &a, &err), CW_OK);
        cw_address_text(a.host, a.port, back);
        assert_string_equal(back, good[i]);
    }
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++)
        assert_int_equal(cw_address_parse(bad[i], CW_ADDRESS_CONNECT, NULL, &err), CW_STATUS_INVALID);
    assert_int_equal(cw_address_parse("tcp://*:*", CW_ADDRESS_LISTEN, &a, &err), CW_OK);
    assert_true(a.wildcard && a.port == 0);
    assert_int_equal(cw_address_parse("tcp://127.3.2.1:0", CW_ADDRESS_LISTEN, &a, &err), CW_OK);
    assert_true(a.loopback && !a.wildcard);
    char huge[400];
    memset(huge, 'a', sizeof huge);
    memcpy(huge, "tcp://", 6);
    memcpy(huge + 390, ":1", 3);
    assert_int_equal(cw_address_parse(huge, CW_ADDRESS_CONNECT, &a, &err), CW_STATUS_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stranger_says_hello_once_and_waits),
        cmocka_unit_test(a_hello_must_be_for_this_port),
        cmocka_unit_test(our_hello_is_answered_before_anything_else),
        cmocka_unit_test(addresses_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
