/* The same-host endpoint: it is taken where it can be trusted, left for the address where not, and shows
 * whose keys are whose; and a guest that drives the net in place of its thread. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "party.h"

static party server, client;
static char dir[64];
static const char nowhere[] = "tcp://127.0.0.1:1";

static int setup(void **state)
{
    (void)state;
    party_init(&server, CW_SIDE_WORKER);
    party_init(&client, CW_SIDE_EDGE);
    snprintf(server.address, sizeof server.address, "tcp://127.0.0.1:0");
    party_dir_new(dir);
    server.local_dir = client.cfg.local_dir = dir;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    party_free(&client);
    party_free(&server);
    return party_dir_remove(dir);
}

static void start_both(void)
{
    party_start(&server);
    party_start(&client);
}

static void path_of(const party *p, char out[108])
{
    char hex[CW_KEY_HEX];
    cw_key_hex(cw_keys_public(p->keys), hex);
    snprintf(out, 108, "%s/%.32s", dir, hex);
}

/* How the link came that the server heard a hello through. */
static party_event came_by(void)
{
    return party_wait(&server, NULL, CW_EV_LINK_UP, 0, 0);
}

static void messages_pass_under_the_proven_key(void **state)
{
    (void)state;
    start_both();
    /* The address would lead nowhere. */
    cw_link link = party_connect(&client, nowhere, cw_keys_public(server.keys));
    party_wait(&client, NULL, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_WELCOME);
    party_event up = came_by(),
                hello = party_wait(&server, NULL, CW_EV_MESSAGE, 0, CW__PB__ENVELOPE__BODY_HELLO);
    assert_string_equal(up.text, "this host");
    assert_true(up.same_host);
    assert_true(party_wait(&client, NULL, CW_EV_LINK_UP, link, 0).same_host);
    assert_true(cw_key_equal(&up.key, cw_keys_public(client.keys)));
    assert_true(cw_key_equal(&hello.key, cw_keys_public(client.keys)));
    size_t from = 0;
    for (uint64_t id = 1; id <= 20; id++) {
        size_t bytes = (size_t)(id * id) << 10;
        party_call(&client, link, id, bytes);
        party_event e = party_wait(&client, &from, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_REPLY);
        assert_int_equal(e.value, id);
        assert_int_equal(e.bytes, bytes);
    }
    party_stop(&client);
    party_wait(&server, NULL, CW_EV_LINK_DOWN, up.link, 0);
    party_stop(&server);
    assert_int_equal(server.result, CW_OK);
}

static void check_by_address(void)
{
    cw_link link = party_join(&client, &server);
    party_check_echo(&client, link, 7);
    assert_string_equal(came_by().text, "127.0.0.1");
    assert_false(party_wait(&client, NULL, CW_EV_LINK_UP, link, 0).same_host);
}

static void a_file_that_nobody_serves_is_left_for_the_address(void **state)
{
    (void)state;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    server.local_dir = NULL;
    start_both();
    path_of(&server, a.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    check_by_address();
    close(fd);
}

static void a_listener_that_never_answers_is_left_for_the_address(void **state)
{
    (void)state;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    server.local_dir = NULL;
    start_both();
    path_of(&server, a.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(fd, 4), 0);
    check_by_address();
    close(fd);
}

static void another_key_behind_the_file_is_left_for_the_address(void **state)
{
    (void)state;
    party other;
    char is[108], should_be[108];
    server.local_dir = NULL;
    party_init(&other, CW_SIDE_WORKER);
    other.local_dir = dir;
    start_both();
    party_start(&other);
    path_of(&other, is);
    path_of(&server, should_be);
    assert_int_equal(rename(is, should_be), 0);
    check_by_address();
    assert_int_equal(other.n_events, 0); /* its machine has heard nothing of it */
    party_free(&other);
}

static void a_directory_that_is_open_to_others_is_not_used(void **state)
{
    (void)state;
    start_both();
    assert_int_equal(chmod(dir, 0755), 0);
    check_by_address();
}

static void a_revoked_key_does_not_come_in_there_either(void **state)
{
    (void)state;
    cw_err err = {0};
    start_both();
    assert_int_equal(cw_net_revoke(server.net, cw_keys_public(client.keys), &err), CW_OK);
    cw_link link = party_connect(&client, server.address, cw_keys_public(server.keys));
    party_wait(&client, NULL, CW_EV_LINK_DOWN, link, 0);
    assert_int_equal(server.n_events, 0);
}

static void a_link_whose_key_is_revoked_is_cut_there_too(void **state)
{
    (void)state;
    cw_err err = {0};
    start_both();
    cw_link link = party_connect(&client, nowhere, cw_keys_public(server.keys));
    party_wait(&client, NULL, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_WELCOME);
    assert_int_equal(cw_net_revoke(server.net, cw_keys_public(client.keys), &err), CW_OK);
    party_wait(&client, NULL, CW_EV_LINK_DOWN, link, 0);
}

static void what_a_peer_says_last_is_heard(void **state)
{
    (void)state;
    server.answer = PARTY_REFUSES;
    start_both();
    cw_link link = party_connect(&client, nowhere, cw_keys_public(server.keys));
    size_t from = 0;
    party_event e = party_wait(&client, &from, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_REFUSAL);
    assert_string_equal(e.text, "this worker is full");
    party_wait(&client, &from, CW_EV_LINK_DOWN, link, 0);
}

/* --- guests --- */

static void a_guest_sends_and_waits_in_its_own_thread(void **state)
{
    (void)state;
    start_both();
    cw_link link = party_join(&client, &server);
    for (uint64_t t = 1; t <= 400; t++) {
        assert_true(party_guest_ping(&client, link, t));
        if (t % 50 == 0) cw_net_resume(client.net);
    }
    /* The net's thread goes on by itself when the guest stays away. */
    party_check_echo(&client, link, 1000);
    cw_net_enter(client.net);
    cw_net_leave(client.net);
    party_stop(&client);
    assert_int_equal(client.result, CW_OK);
    cw_net_enter(client.net);
    assert_false(cw_net_round(client.net, 1000)); /* it has ended */
    cw_net_leave(client.net);
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* An answer that came before the guest looks is found at once, not when the next timer ends the poll (in
 * the middle 50 ms later). Where it has not come yet, the look takes as long as it needs: also good. */
static void a_guest_does_not_sleep_on_its_answer(void **state)
{
    enum { PINGS = 41, MOST_US = 30000 };
    int64_t us[PINGS];
    (void)state;
    start_both();
    cw_link link = party_join(&client, &server);
    for (int i = 0; i < PINGS; i++) {
        us[i] = party_guest_late_ping(&client, link, (uint64_t)i + 1);
        assert_true(us[i] >= 0);
    }
    qsort(us, PINGS, sizeof us[0], ascending);
    assert_in_range(us[PINGS / 2], 0, MOST_US);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(messages_pass_under_the_proven_key),
        T(a_file_that_nobody_serves_is_left_for_the_address),
        T(a_listener_that_never_answers_is_left_for_the_address),
        T(another_key_behind_the_file_is_left_for_the_address),
        T(a_directory_that_is_open_to_others_is_not_used),
        T(a_revoked_key_does_not_come_in_there_either),
        T(a_link_whose_key_is_revoked_is_cut_there_too),
        T(what_a_peer_says_last_is_heard),
        T(a_guest_sends_and_waits_in_its_own_thread),
        T(a_guest_does_not_sleep_on_its_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
