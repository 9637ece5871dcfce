/* What links do between parties that behave: over CURVE on loopback, with ports the system chooses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/address.h"
#include "cw/clock.h"
#include "cw/mem.h"
#include "party.h"

static party server, client;

static int setup(void **state)
{
    (void)state;
    party_init(&server, CW_SIDE_WORKER);
    party_init(&client, CW_SIDE_EDGE);
    snprintf(server.address, sizeof server.address, "tcp://127.0.0.1:0");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    party_free(&client);
    party_free(&server);
    return 0;
}

static void start_both(void)
{
    party_start(&server);
    party_start(&client);
}

static void stop_both(void)
{
    party_stop(&client);
    party_stop(&server);
    if (server.result != CW_OK) fail_msg("server: %s", server.err.text);
    if (client.result != CW_OK) fail_msg("client: %s", client.err.text);
}

static uint64_t pattern_sum(uint64_t id, size_t n)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) sum = sum * 31 + (uint8_t)(i * 13 + id);
    return sum;
}

static void messages_come_back_in_order_and_whole(void **state)
{
    (void)state;
    start_both();
    cw_link link = party_join(&client, &server);
    party_event hello = party_wait(&server, NULL, CW_EV_MESSAGE, 0, CW__PB__ENVELOPE__BODY_HELLO);
    assert_true(cw_key_equal(&hello.key, cw_keys_public(client.keys)));
    size_t from = 0;
    for (uint64_t t = 1; t <= 50; t++) party_ping(&client, link, t);
    for (uint64_t t = 1; t <= 50; t++)
        assert_int_equal(party_wait(&client, &from, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_PONG).value,
                         t);
    static const size_t sizes[] = {0, 1, 29, 33, 511, 512, 8192, 300 << 10, CW_DATA_FRAME_MAX};
    for (size_t i = 0; i < CW_ARRAY_LEN(sizes); i++) {
        party_call(&client, link, i + 1, sizes[i]);
        party_event e = party_wait(&client, &from, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_REPLY);
        assert_int_equal(e.value, i + 1);
        assert_int_equal(e.bytes, sizes[i]);
        assert_true(e.sum == pattern_sum(i + 1, sizes[i]));
    }
    cw_net_stats s, c;
    stop_both();
    cw_net_get_stats(server.net, &s);
    cw_net_get_stats(client.net, &c);
    assert_int_equal(s.links_in, 1);
    assert_int_equal(c.links_out, 1);
    assert_int_equal(s.blamed + c.blamed + s.overrun + c.overrun, 0);
    assert_true(s.bytes_in == c.bytes_out && s.bytes_out == c.bytes_in && c.bytes_out > 4 << 20);
}

static void a_wrong_server_key_is_said_so(void **state)
{
    (void)state;
    start_both();
    cw_key wrong = *cw_keys_public(client.keys);
    cw_link link = party_connect(&client, server.address, &wrong);
    party_event e = party_wait(&client, NULL, CW_EV_LINK_DOWN, link, 0);
    assert_says(e.text, "the server's key is not the one in the join string");
    assert_false(party_wait_ms(&client, NULL, CW_EV_LINK_UP, link, 0, 0, NULL));
    stop_both();
    assert_int_equal(server.n_events, 0);
}

/* A worker with as many edges as it takes must still find back to its coordinator. */
static void a_full_house_can_still_go_out(void **state)
{
    (void)state;
    static party other;
    party_init(&other, CW_SIDE_WORKER);
    snprintf(other.address, sizeof other.address, "tcp://127.0.0.1:0");
    server.cfg.max_peers = 1;
    start_both();
    party_start(&other);
    cw_link in = party_join(&client, &server);
    cw_link out = party_connect(&server, other.address, cw_keys_public(other.keys));
    party_wait(&server, NULL, CW_EV_LINK_UP, out, 0);
    party_check_echo(&client, in, 1);
    party_free(&other);
    stop_both();
}

static void what_cannot_be_reached_is_down_soon(void **state)
{
    (void)state;
    start_both();
    /* A port that was just free, and addresses that are none. */
    cw_link gone = party_connect(&client, "tcp://127.0.0.1:1", cw_keys_public(server.keys));
    party_event e = party_wait(&client, NULL, CW_EV_LINK_DOWN, gone, 0);
    assert_says(e.text, "nobody answers");
    static const char *const bad[] = {"",
                                      "tcp://127.0.0.1",
                                      "inproc://zeromq.zap.01",
                                      "ipc:///tmp/x",
                                      "tcp://127.0.0.1:x",
                                      "tcp://127.0.0.1:5;127.0.0.1:6"};
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++) {
        cw_link link = party_connect(&client, bad[i], cw_keys_public(server.keys));
        e = party_wait(&client, NULL, CW_EV_LINK_DOWN, link, 0);
        assert_true(e.text[0]);
    }
    stop_both();
}

static void a_host_name_is_looked_up(void **state)
{
    (void)state;
    snprintf(server.address, sizeof server.address, "tcp://localhost:0");
    start_both();
    cw_address a;
    char named[CW_ADDRESS_MAX];
    assert_int_equal(cw_address_parse(server.address, CW_ADDRESS_CONNECT, &a, NULL), CW_OK);
    cw_address_text("localhost", a.port, named);
    bool in = false;
    for (int i = 0; i < 20 && !in; i++) { /* it may also mean ::1, where nobody listens */
        size_t from = 0;
        cw_link link = party_connect(&client, named, cw_keys_public(server.keys));
        in = party_wait_ms(&client, &from, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_WELCOME, 500, NULL);
    }
    assert_true(in);
    cw_link link = party_connect(&client, "tcp://no-such-host.invalid:5570", cw_keys_public(server.keys));
    party_event e = party_wait(&client, NULL, CW_EV_LINK_DOWN, link, 0);
    if (!strstr(e.text, "no answer from"))
        assert_says(e.text, "no host of the name"); /* where a name server is out of reach */
    stop_both();
}

static void a_refusal_in_words_arrives_before_the_end(void **state)
{
    (void)state;
    server.answer = PARTY_REFUSES;
    start_both();
    for (int i = 0; i < 5; i++) {
        size_t from = 0;
        cw_link link = party_connect(&client, server.address, cw_keys_public(server.keys));
        party_event e = party_wait(&client, &from, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_REFUSAL);
        assert_string_equal(e.text, "this worker is full");
        party_wait(&client, &from, CW_EV_LINK_DOWN, link, 0);
    }
    assert_false(party_wait_ms(&server, NULL, CW_EV_LINK_DOWN, 0, 0, 0, NULL)); /* it closed them itself */
    stop_both();
}

static void do_many_pings_and_close(party *p, cw_outbox *out, void *arg)
{
    (void)p;
    cw_link link = *(cw_link *)arg;
    Cw__Pb__Ping ping = CW__PB__PING__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    env.body_case = CW__PB__ENVELOPE__BODY_PING, env.ping = &ping;
    for (ping.t_us = 1; ping.t_us <= 100; ping.t_us++) cw_send(out, link, &env, NULL, 0);
    cw_close(out, link, "done");
}

static void a_close_lets_what_was_sent_before_it_leave(void **state)
{
    (void)state;
    start_both();
    cw_link link = party_join(&client, &server);
    size_t from = 0, events = client.n_events;
    party_do(&client, do_many_pings_and_close, &link);
    for (uint64_t t = 1; t <= 100; t++)
        assert_int_equal(party_wait(&server, &from, CW_EV_MESSAGE, 0, CW__PB__ENVELOPE__BODY_PING).value, t);
    party_wait(&server, &from, CW_EV_LINK_DOWN, 0, 0);
    stop_both();
    assert_int_equal(client.n_events, events); /* no event of a link that its machine closed */
}

static void the_last_words_of_a_party_that_stops_arrive(void **state)
{
    (void)state;
    server.says_bye = true;
    start_both();
    cw_link link = party_join(&client, &server);
    party_stop(&server);
    cw_net_free(&server.net);
    size_t from = 0;
    party_wait(&client, &from, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_BYE);
    party_wait(&client, &from, CW_EV_LINK_DOWN, link, 0);
    party_stop(&client);
}

static void a_listener_that_comes_back_gets_a_new_link(void **state)
{
    (void)state;
    start_both();
    cw_link first = party_join(&client, &server);
    party_check_echo(&client, first, 7);
    party_stop(&server);
    cw_net_free(&server.net);
    party_wait(&client, NULL, CW_EV_LINK_DOWN, first, 0);
    server.n_events = 0;
    party_start(&server); /* the same keys, the same port */
    cw_link second = 0;
    for (int i = 0; i < 50 && !second; i++) {
        size_t from = 0;
        cw_link link = party_connect(&client, server.address, cw_keys_public(server.keys));
        if (party_wait_ms(&client, &from, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_WELCOME, 3000, NULL))
            second = link;
    }
    assert_true(second != 0 && second != first);
    party_check_echo(&client, second, 8);
    party_ping(&client, first, 9); /* to a link that is gone: nothing happens */
    party_check_echo(&client, second, 10);
    stop_both();
}

static void a_revoked_key_is_cut_and_stays_out(void **state)
{
    (void)state;
    start_both();
    cw_link link = party_join(&client, &server);
    assert_int_equal(cw_net_revoke(server.net, cw_keys_public(client.keys), NULL), CW_OK);
    party_event e = party_wait(&server, NULL, CW_EV_LINK_DOWN, 0, 0);
    assert_string_equal(e.text, "its key was revoked");
    party_wait(&client, NULL, CW_EV_LINK_DOWN, link, 0);
    size_t seen = server.n_events;
    link = party_connect(&client, server.address, cw_keys_public(server.keys));
    e = party_wait(&client, NULL, CW_EV_LINK_DOWN, link, 0);
    assert_says(e.text, "refuses this key");
    assert_int_equal(server.n_events, seen);
    cw_net_unrevoke(server.net, cw_keys_public(client.keys));
    link = party_join(&client, &server);
    party_check_echo(&client, link, 3);
    stop_both();
    cw_net_stats s;
    cw_net_get_stats(server.net, &s);
    assert_true(s.zap_refused >= 1);
}

static void an_address_that_comes_too_often_is_refused(void **state)
{
    (void)state;
    server.cfg.connect_rate = 3;
    server.answer = PARTY_REFUSES;
    start_both();
    for (int i = 0; i < 3; i++) {
        cw_link link = party_connect(&client, server.address, cw_keys_public(server.keys));
        party_wait(&client, NULL, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_REFUSAL);
    }
    cw_link link = party_connect(&client, server.address, cw_keys_public(server.keys));
    party_event e = party_wait(&client, NULL, CW_EV_LINK_DOWN, link, 0);
    assert_says(e.text, "came too often");
    stop_both();
}

static void without_its_zap_handler_a_net_stops(void **state)
{
    (void)state;
    server.cfg.fault_zap_ms = 100;
    party_start(&server);
    int64_t start = cw_now_us();
    pthread_join(server.thread, NULL);
    server.running = false;
    assert_true(cw_now_us() - start < (int64_t)TEST_WAIT_MS * 1000);
    assert_int_equal(server.result, CW_STATUS_AUTH);
    assert_says(server.err.text, "ZAP handler has ended");
}

static void there_is_no_net_without_keys(void **state)
{
    (void)state;
    cw_net_config cfg = {.self = CW_SIDE_WORKER};
    cw_net_role role = {.on_event = (void (*)(void *, cw_event *, cw_outbox *))abort};
    cw_net *n = NULL;
    cw_err err;
    assert_int_equal(cw_net_new(&cfg, &role, &n, &err), CW_STATUS_INVALID);
    assert_null(n);
}

static void a_port_that_is_taken_is_named(void **state)
{
    (void)state;
    party_start(&server);
    cw_net_config cfg = {.self = CW_SIDE_WORKER, .keys = server.keys};
    cw_net_role role = {.on_event = (void (*)(void *, cw_event *, cw_outbox *))abort};
    cw_net *n = NULL;
    cw_err err;
    assert_int_equal(cw_net_new(&cfg, &role, &n, &err), CW_OK);
    assert_int_equal(cw_net_listen(n, CW_PORT_DATA, server.address, NULL, &err), CW_STATUS_IO);
    assert_non_null(strstr(err.text, server.address));
    assert_int_equal(cw_net_listen(n, CW_PORT_DATA, "tcp://192.0.2.1:0", NULL, &err), CW_STATUS_IO);
    assert_int_equal(cw_net_listen(n, CW_PORT_DATA, "ipc:///tmp/x", NULL, &err), CW_STATUS_INVALID);
    cw_net_free(&n);
    party_stop(&server);
}

/* Connections come and go on the same descriptors while one stays: every one is its own link. */
static void descriptors_that_are_reused_are_told_apart(void **state)
{
    (void)state;
    start_both();
    cw_link steady = party_join(&client, &server);
    for (int i = 0; i < 40; i++) {
        cw_link link = party_join(&client, &server);
        party_check_echo(&client, link, (uint64_t)i);
        party_do(&client, do_many_pings_and_close, &link);
    }
    party_check_echo(&client, steady, 99);
    stop_both();
    size_t up = 0;
    for (size_t i = 0; i < server.n_events; i++) up += server.events[i].kind == CW_EV_LINK_UP;
    assert_int_equal(up, 41);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(messages_come_back_in_order_and_whole),
        T(a_wrong_server_key_is_said_so),
        T(a_full_house_can_still_go_out),
        T(what_cannot_be_reached_is_down_soon),
        T(a_host_name_is_looked_up),
        T(a_refusal_in_words_arrives_before_the_end),
        T(a_close_lets_what_was_sent_before_it_leave),
        T(the_last_words_of_a_party_that_stops_arrive),
        T(a_listener_that_comes_back_gets_a_new_link),
        T(a_revoked_key_is_cut_and_stays_out),
        T(an_address_that_comes_too_often_is_refused),
        T(without_its_zap_handler_a_net_stops),
        T(there_is_no_net_without_keys),
        T(a_port_that_is_taken_is_named),
        T(descriptors_that_are_reused_are_told_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
