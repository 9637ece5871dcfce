/* Same-host peers that break the rules, through bare sockets: each costs itself the connection, and an honest
 * one beside it goes on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/bytes.h"
#include "cw/clock.h"
#include "local.h"
#include "party.h"

enum { PREFIX = 24 }; /* of a message, net/src/stream.h */

static party server, client;
static cw_keys *raw_keys; /* the raw peer's */
static cw_link honest;
static char dir[64];
static const char nowhere[] = "tcp://127.0.0.1:1";

static int setup(void **state)
{
    (void)state;
    cw_err err = {0};
    party_init(&server, CW_SIDE_WORKER);
    party_init(&client, CW_SIDE_EDGE);
    snprintf(server.address, sizeof server.address, "tcp://127.0.0.1:0");
    party_dir_new(dir);
    server.local_dir = client.cfg.local_dir = dir;
    return cw_keys_new(&raw_keys, &err) == CW_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    party_free(&client);
    party_free(&server);
    cw_keys_free(&raw_keys);
    return party_dir_remove(dir);
}

static void start_both(void)
{
    party_start(&server);
    party_start(&client);
    honest = party_connect(&client, nowhere, cw_keys_public(server.keys));
    party_wait(&client, NULL, CW_EV_MESSAGE, honest, CW__PB__ENVELOPE__BODY_WELCOME);
}

static void the_honest_one_is_undisturbed(void)
{
    party_check_echo(&client, honest, 4711);
    assert_false(party_wait_ms(&client, NULL, CW_EV_LINK_DOWN, honest, 0, 0, NULL));
    party_stop(&client);
    party_stop(&server);
    if (server.result != CW_OK) fail_msg("server: %s", server.err.text);
}

/* --- a peer of our own --- */

static int raw_open(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    char path[CW_ADDRESS_MAX];
    struct timeval patience = {.tv_sec = TEST_WAIT_MS / 1000};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(net_local_path(dir, cw_keys_public(server.keys), path));
    memcpy(a.sun_path, path, strlen(path) + 1);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    return fd;
}

static void raw_send(int fd, const void *header, size_t n)
{
    uint8_t bytes[512] = {0};
    cw_store_u32(bytes, 1);
    cw_store_u32(bytes + 4, (uint32_t)n);
    assert_true(PREFIX + n <= sizeof bytes);
    memcpy(bytes + PREFIX, header, n);
    assert_int_equal(send(fd, bytes, PREFIX + n, MSG_NOSIGNAL), PREFIX + (ssize_t)n);
}

/* The header of the next message that is no heartbeat; 0: the connection has ended. */
static size_t raw_receive(int fd, uint8_t *header, size_t cap)
{
    uint8_t prefix[PREFIX];
    do {
        if (recv(fd, prefix, sizeof prefix, MSG_WAITALL) != sizeof prefix) return 0;
    } while (cw_load_u32(prefix) == 0);
    size_t n = cw_load_u32(prefix + 4);
    assert_true(cw_load_u32(prefix) == 1 && n <= cap);
    return recv(fd, header, n, MSG_WAITALL) == (ssize_t)n ? n : 0;
}

static void raw_hello(int fd)
{
    uint8_t hello[256];
    raw_send(fd, hello, pack_hello(hello, sizeof hello, CW_SIDE_EDGE, CW__PB__PURPOSE__PURPOSE_DATA, 4));
}

static int raw_join(void)
{
    int fd = raw_open();
    net_proof proof = {0};
    uint8_t first[NET_LOCAL_FIRST], second[NET_LOCAL_SECOND], third[NET_LOCAL_THIRD], welcome[256];
    net_proof_first(&proof, raw_keys, cw_keys_public(server.keys), first);
    raw_send(fd, first, sizeof first);
    assert_int_equal(raw_receive(fd, second, sizeof second), sizeof second);
    assert_true(net_proof_third(&proof, raw_keys, second, sizeof second, third));
    raw_send(fd, third, sizeof third);
    raw_hello(fd);
    assert_true(raw_receive(fd, welcome, sizeof welcome) > 0);
    return fd;
}

static cw_link raw_link(void)
{
    cw_link link = 0;
    pthread_mutex_lock(&server.lock);
    for (size_t i = 0; i < server.n_events; i++)
        if (server.events[i].kind == CW_EV_LINK_UP &&
            cw_key_equal(&server.events[i].key, cw_keys_public(raw_keys)))
            link = server.events[i].link;
    pthread_mutex_unlock(&server.lock);
    assert_true(link != 0);
    return link;
}

static void assert_ends(const char *why)
{
    party_event down = party_wait(&server, NULL, CW_EV_LINK_DOWN, raw_link(), 0);
    assert_says(down.text, why);
}

static void assert_closed(int fd)
{
    uint8_t any[512];
    while (recv(fd, any, sizeof any, 0) > 0) {
    }
    close(fd);
}

/* --- the tests --- */

static void impossible_lengths_cost_the_connection_and_a_while(void **state)
{
    (void)state;
    start_both();
    int fd = raw_join();
    uint8_t prefix[PREFIX] = {0};
    cw_store_u32(prefix, 2);
    cw_store_u32(prefix + 4, 100);
    cw_store_u32(prefix + 8, CW_DATA_FRAME_MAX + 1);
    assert_int_equal(send(fd, prefix, sizeof prefix, MSG_NOSIGNAL), sizeof prefix);
    assert_ends("lengths");
    assert_closed(fd);
    /* The key is refused for a while. */
    net_proof proof = {0};
    uint8_t first[NET_LOCAL_FIRST], second[NET_LOCAL_SECOND];
    fd = raw_open();
    net_proof_first(&proof, raw_keys, cw_keys_public(server.keys), first);
    raw_send(fd, first, sizeof first);
    assert_int_equal(raw_receive(fd, second, sizeof second), 0);
    close(fd);
    the_honest_one_is_undisturbed();
}

static void what_is_no_message_costs_the_connection(void **state)
{
    (void)state;
    start_both();
    int fd = raw_join();
    raw_send(fd, "\xff\xff\xff", 3);
    assert_ends("protobuf");
    assert_closed(fd);
    the_honest_one_is_undisturbed();
}

static void a_hello_without_a_proof_is_cut_unheard(void **state)
{
    (void)state;
    start_both();
    int hello = raw_open(), zmtp = raw_open(), liar = raw_open();
    raw_hello(hello);
    /* libzmq's greeting, as an edge of another version would send it. */
    assert_int_equal(send(zmtp, "\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL", 16, MSG_NOSIGNAL), 16);
    assert_int_equal(send(zmtp, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16, MSG_NOSIGNAL), 16);
    /* The key of somebody else and a proof that is none; then a hello as if it had been one. */
    net_proof proof = {0};
    uint8_t first[NET_LOCAL_FIRST], second[NET_LOCAL_SECOND], third[NET_LOCAL_THIRD] = {1};
    net_proof_first(&proof, raw_keys, cw_keys_public(server.keys), first);
    raw_send(liar, first, sizeof first);
    assert_int_equal(raw_receive(liar, second, sizeof second), sizeof second);
    raw_send(liar, third, sizeof third);
    assert_closed(hello);
    assert_closed(zmtp);
    assert_closed(liar);
    size_t up = 0;
    for (size_t i = 0; i < server.n_events; i++) up += server.events[i].kind == CW_EV_LINK_UP;
    assert_int_equal(up, 1); /* the honest one */
    the_honest_one_is_undisturbed();
}

/* Heartbeats are for those who have proven a key, and cost nobody else anything. */
static void a_flood_of_heartbeats_keeps_nobody_waiting(void **state)
{
    enum { BLOCK = 48000, BLOCKS = 200 };
    static uint8_t zeros[BLOCK]; /* 2,000 of them */
    (void)state;
    start_both();
    int early = raw_open(), fd = raw_join();
    (void)!send(early, zeros, BLOCK, MSG_NOSIGNAL);
    assert_closed(early);
    for (uint64_t i = 0; i < BLOCKS; i++) {
        assert_int_equal(send(fd, zeros, BLOCK, MSG_NOSIGNAL), BLOCK);
        if (i % 20 == 0) party_check_echo(&client, honest, i + 1);
    }
    assert_false(party_wait_ms(&server, NULL, CW_EV_LINK_DOWN, raw_link(), 0, 0, NULL));
    close(fd);
    the_honest_one_is_undisturbed();
}

static void a_message_that_never_ends_is_not_delivered(void **state)
{
    (void)state;
    start_both();
    int fd = raw_join();
    uint8_t prefix[PREFIX] = {0};
    cw_store_u32(prefix, 1);
    cw_store_u32(prefix + 4, 1000);
    assert_int_equal(send(fd, prefix, sizeof prefix, MSG_NOSIGNAL), sizeof prefix);
    assert_int_equal(send(fd, prefix, sizeof prefix, MSG_NOSIGNAL), sizeof prefix);
    close(fd);
    assert_ends("closed or lost");
    the_honest_one_is_undisturbed();
}

static void who_is_silent_for_three_heartbeats_is_let_go(void **state)
{
    (void)state;
    server.cfg.heartbeat_ms = client.cfg.heartbeat_ms = 100;
    start_both();
    int fd = raw_join();
    assert_ends("nothing came");
    assert_closed(fd);
    /* The honest one had nothing to say either, but its heart beats. */
    the_honest_one_is_undisturbed();
}

static void who_does_not_read_is_let_go(void **state)
{
    (void)state;
    server.cfg.queue_bytes = 1 << 20;
    start_both();
    int fd = raw_join();
    cw_link link = raw_link();
    uint8_t ping[64];
    size_t n = pack_ping(ping, sizeof ping, 1);
    int64_t end = cw_now_us() + (int64_t)TEST_WAIT_MS * 1000;
    while (!party_wait_ms(&server, NULL, CW_EV_LINK_DOWN, link, 0, 0, NULL) && cw_now_us() < end) {
        uint8_t bytes[128] = {0};
        cw_store_u32(bytes, 1);
        cw_store_u32(bytes + 4, (uint32_t)n);
        memcpy(bytes + PREFIX, ping, n);
        if (send(fd, bytes, PREFIX + n, MSG_NOSIGNAL) != PREFIX + (ssize_t)n) break;
    }
    assert_ends("reads too slowly");
    close(fd);
    the_honest_one_is_undisturbed();
}

static void those_who_prove_nothing_keep_nobody_out(void **state)
{
    enum { MANY = 200 };
    (void)state;
    int fd[MANY];
    server.cfg.max_peers = 40;
    start_both();
    for (int i = 0; i < MANY; i++) fd[i] = raw_open();
    int late = raw_join();
    close(late);
    assert_ends("closed or lost");
    for (int i = 0; i < MANY; i++) close(fd[i]);
    the_honest_one_is_undisturbed();
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(impossible_lengths_cost_the_connection_and_a_while),
        T(what_is_no_message_costs_the_connection),
        T(a_hello_without_a_proof_is_cut_unheard),
        T(a_flood_of_heartbeats_keeps_nobody_waiting),
        T(a_message_that_never_ends_is_not_delivered),
        T(who_is_silent_for_three_heartbeats_is_let_go),
        T(who_does_not_read_is_let_go),
        T(those_who_prove_nothing_keep_nobody_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
