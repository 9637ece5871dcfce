/*
 * Peers that break the rules: each is cut, alone, and another peer goes on undisturbed. The attackers speak
 * through libzmq or through bare sockets; those whose own memory must not be counted run in another process
 * (this program with --endless).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>
#include <cmocka.h>

#include "cw/address.h"
#include "cw/clock.h"
#include "cw/mem.h"
#include "party.h"

extern char **environ;

/* An emulator of one program cannot start it again, nor does it tell the bytes that the watchdog looks at. */
static void skip_where_emulated(void)
{
    if (getenv("CW_EMULATED")) skip();
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum {
    GROWTH_MAX_KIB = 768 << 10
}; /* freed memory stays in the sanitizer's quarantine, and every byte has a shadow */
#else
enum { GROWTH_MAX_KIB = 64 << 10 };
#endif

static party server, friend;
static cw_link friendly;

static int setup(void **state)
{
    (void)state;
    party_init(&server, CW_SIDE_WORKER);
    party_init(&friend, CW_SIDE_EDGE);
    snprintf(server.address, sizeof server.address, "tcp://127.0.0.1:0");
    server.cfg.ban_s = 2;
    return 0;
}

static void start_both(void)
{
    party_start(&server);
    party_start(&friend);
    friendly = party_join(&friend, &server);
}

static int teardown(void **state)
{
    (void)state;
    party_free(&friend);
    party_free(&server);
    return 0;
}

/* The friend has had one link all the time, and it still works. */
static void friend_is_undisturbed_and_all_stop(void)
{
    party_check_echo(&friend, friendly, 4711);
    assert_false(party_wait_ms(&friend, NULL, CW_EV_LINK_DOWN, friendly, 0, 0, NULL));
    party_stop(&friend);
    party_stop(&server);
    if (server.result != CW_OK) fail_msg("server: %s", server.err.text);
}

/* --- a raw client --- */

typedef struct {
    void *ctx, *sock;
    cw_keys *keys;
} raw;

static void raw_setup(raw *r, const char *address, const uint8_t server_key[32], const char *routing_id)
{
    int linger = 0, timeout = TEST_WAIT_MS, hwm = 1000, never = -1;
    assert_int_equal(cw_keys_new(&r->keys, NULL), CW_OK);
    r->ctx = zmq_ctx_new();
    r->sock = zmq_socket(r->ctx, ZMQ_DEALER);
    if (routing_id)
        assert_int_equal(zmq_setsockopt(r->sock, ZMQ_ROUTING_ID, routing_id, strlen(routing_id)), 0);
    assert_int_equal(zmq_setsockopt(r->sock, ZMQ_LINGER, &linger, sizeof linger), 0);
    assert_int_equal(zmq_setsockopt(r->sock, ZMQ_RCVTIMEO, &timeout, sizeof timeout), 0);
    assert_int_equal(zmq_setsockopt(r->sock, ZMQ_SNDTIMEO, &timeout, sizeof timeout), 0);
    assert_int_equal(zmq_setsockopt(r->sock, ZMQ_SNDHWM, &hwm, sizeof hwm), 0);
    assert_int_equal(zmq_setsockopt(r->sock, ZMQ_RECONNECT_IVL, &never, sizeof never), 0);
    assert_int_equal(zmq_setsockopt(r->sock, ZMQ_CURVE_SERVERKEY, server_key, 32), 0);
    assert_int_equal(zmq_setsockopt(r->sock, ZMQ_CURVE_PUBLICKEY, cw_keys_public(r->keys)->b, 32), 0);
    assert_int_equal(zmq_setsockopt(r->sock, ZMQ_CURVE_SECRETKEY, cw_keys_secret(r->keys), 32), 0);
    assert_int_equal(zmq_connect(r->sock, address), 0);
}

static void raw_open(raw *r)
{
    raw_setup(r, server.address, cw_keys_public(server.keys)->b, NULL);
}

static void raw_close(raw *r)
{
    zmq_close(r->sock);
    zmq_ctx_term(r->ctx);
    cw_keys_free(&r->keys);
}

static void raw_hello(raw *r)
{
    uint8_t h[CW_HELLO_MAX];
    size_t n = pack_hello(h, sizeof h, CW_SIDE_EDGE, CW__PB__PURPOSE__PURPOSE_DATA, 5);
    assert_int_equal(zmq_send(r->sock, h, n, 0), (int)n);
}

/* hello and welcome */
static void raw_join(raw *r)
{
    uint8_t answer[1024];
    raw_hello(r);
    assert_true(zmq_recv(r->sock, answer, sizeof answer, 0) > 0);
}

/* The server's end of the link whose key is r's. */
static cw_link link_of(const raw *r)
{
    size_t from = 0;
    for (;;) {
        party_event e = party_wait(&server, &from, CW_EV_LINK_UP, 0, 0);
        if (cw_key_equal(&e.key, cw_keys_public(r->keys))) return e.link;
    }
}

static void assert_cut(const raw *r, const char *why)
{
    party_event e = party_wait(&server, NULL, CW_EV_LINK_DOWN, link_of(r), 0);
    assert_says(e.text, why);
}

static uint64_t blamed(void)
{
    cw_net_stats s;
    cw_net_get_stats(server.net, &s);
    return s.blamed;
}

/* --- breaking the protocol --- */

static void a_second_message_before_admission_is_cut(void **state)
{
    (void)state;
    start_both();
    /* From here on hellos get no answer; the machine's thread reads this between events. */
    server.answer = PARTY_IGNORES;
    raw r;
    uint8_t ping[64];
    raw_open(&r);
    raw_hello(&r);
    size_t n = pack_ping(ping, sizeof ping, 1);
    assert_int_equal(zmq_send(r.sock, ping, n, 0), (int)n);
    assert_cut(&r, "not let in yet");
    size_t messages = 0;
    for (size_t i = 0; i < server.n_events; i++)
        messages += server.events[i].kind == CW_EV_MESSAGE && server.events[i].link == link_of(&r);
    assert_int_equal(messages, 1);
    raw_close(&r);
    friend_is_undisturbed_and_all_stop();
}

static void who_is_neither_admitted_nor_refused_is_cut(void **state)
{
    (void)state;
    start_both();
    server.answer = PARTY_IGNORES;
    raw r;
    raw_open(&r);
    raw_hello(&r);
    assert_cut(&r, "neither admitted nor refused");
    raw_close(&r);
    friend_is_undisturbed_and_all_stop();
}

static void who_says_nothing_is_cut(void **state)
{
    (void)state;
    start_both();
    raw r;
    raw_open(&r);
    int64_t start = cw_now_us();
    cw_net_stats s = {0};
    while (s.silent == 0 && cw_now_us() - start < (int64_t)TEST_WAIT_MS * 1000) {
        usleep(20000);
        cw_net_get_stats(server.net, &s);
    }
    assert_int_equal(s.silent, 1);
    raw_close(&r);
    friend_is_undisturbed_and_all_stop();
}

static void a_hello_that_is_too_long_is_cut(void **state)
{
    (void)state;
    start_both();
    raw r;
    uint8_t h[2 * CW_HELLO_MAX];
    raw_open(&r);
    size_t n = pack_hello(h, sizeof h, CW_SIDE_EDGE, CW__PB__PURPOSE__PURPOSE_DATA, CW_HELLO_MAX);
    assert_int_equal(zmq_send(r.sock, h, n, 0), (int)n);
    assert_cut(&r, "a header of");
    raw_close(&r);
    friend_is_undisturbed_and_all_stop();
}

static void what_cannot_be_decoded_costs_the_connection_and_a_while(void **state)
{
    (void)state;
    start_both();
    raw r;
    raw_open(&r);
    raw_join(&r);
    assert_int_equal(zmq_send(r.sock, "\xff\xff\xff\xff", 4, 0), 4);
    assert_cut(&r, "broke the protocol: a header that is not a valid protobuf envelope");
    assert_int_equal(blamed(), 1);
    /* The same key again: not before the ban is over. */
    party_event e;
    party guest;
    party_init(&guest, CW_SIDE_EDGE);
    guest.keys = r.keys;
    party_start(&guest);
    cw_link link = party_connect(&guest, server.address, cw_keys_public(server.keys));
    e = party_wait(&guest, NULL, CW_EV_LINK_DOWN, link, 0);
    assert_says(e.text, "refuses this key");
    bool back = false;
    for (int i = 0; i < 50 && !back; i++) {
        size_t from = 0;
        link = party_connect(&guest, server.address, cw_keys_public(server.keys));
        while (!back &&
               party_wait_ms(&guest, &from, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_WELCOME, 200, NULL))
            back = true;
    }
    assert_true(back);
    party_stop(&guest);
    guest.keys = NULL; /* r's */
    party_free(&guest);
    raw_close(&r);
    friend_is_undisturbed_and_all_stop();
}

static void too_many_frames_are_cut(void **state)
{
    (void)state;
    start_both();
    raw r;
    uint8_t ping[64];
    raw_open(&r);
    raw_join(&r);
    size_t n = pack_ping(ping, sizeof ping, 1);
    zmq_send(r.sock, ping, n, ZMQ_SNDMORE);
    for (int i = 0; i < 100; i++) zmq_send(r.sock, "x", 1, ZMQ_SNDMORE);
    zmq_send(r.sock, "x", 1, 0);
    assert_cut(&r, "a message of 102 parts");
    raw_close(&r);
    friend_is_undisturbed_and_all_stop();
}

static void a_frame_that_is_too_large_ends_the_connection(void **state)
{
    (void)state;
    start_both();
    raw r;
    uint8_t ping[64], *big = cw_calloc(CW_DATA_FRAME_MAX + (64 << 10), 1);
    raw_open(&r);
    raw_join(&r);
    size_t n = pack_ping(ping, sizeof ping, 1);
    zmq_send(r.sock, ping, n, ZMQ_SNDMORE);
    zmq_send(r.sock, big, CW_DATA_FRAME_MAX + (64 << 10), 0);
    assert_cut(&r, "the connection was closed or lost");
    cw_free(big);
    raw_close(&r);
    friend_is_undisturbed_and_all_stop();
}

static void a_routing_id_of_ones_own_is_not_accepted(void **state)
{
    (void)state;
    start_both();
    raw r;
    raw_setup(&r, server.address, cw_keys_public(server.keys)->b, "myself");
    raw_hello(&r);
    int64_t start = cw_now_us();
    while (blamed() == 0 && cw_now_us() - start < (int64_t)TEST_WAIT_MS * 1000) usleep(10000);
    assert_int_equal(blamed(), 1);
    raw_close(&r);
    friend_is_undisturbed_and_all_stop();
}

static void who_does_not_read_is_let_go(void **state)
{
    (void)state;
    server.cfg.queue_bytes = 8 << 20;
    start_both();
    raw r;
    uint8_t header[256], entry[8] = {0};
    raw_open(&r);
    raw_join(&r);
    Cw__Pb__Call call = CW__PB__CALL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    call.id = 1, call.n_rows = call.n_entries = 1, call.budget_us = 1000;
    env.body_case = CW__PB__ENVELOPE__BODY_CALL, env.call = &call;
    size_t n = cw_msg_header_bytes(&env), row_bytes = 256 << 10;
    uint8_t *row = cw_calloc(row_bytes, 1);
    cw_msg_header_pack(&env, header);
    /* Every call is answered with 256 KiB that nobody takes: 1,000 receive slots here, but a small one for
     * the connection. */
    int small = 1;
    zmq_setsockopt(r.sock, ZMQ_RCVHWM, &small, sizeof small);
    cw_link link = link_of(&r);
    bool down = false;
    for (int i = 0; i < 4000 && !down; i++) {
        zmq_send(r.sock, header, n, ZMQ_SNDMORE | ZMQ_DONTWAIT);
        zmq_send(r.sock, entry, sizeof entry, ZMQ_SNDMORE | ZMQ_DONTWAIT);
        zmq_send(r.sock, row, row_bytes, ZMQ_DONTWAIT);
        down = party_wait_ms(&server, NULL, CW_EV_LINK_DOWN, link, 0, 2, NULL);
    }
    /* "reads too slowly", or, on a slow machine, no heartbeat because its libzmq has stopped reading too. */
    party_wait(&server, NULL, CW_EV_LINK_DOWN, link, 0);
    cw_free(row);
    raw_close(&r);
    friend_is_undisturbed_and_all_stop();
}

/* --- memory --- */

static long status_kib(const char *field)
{
    char line[256];
    long v = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, field, strlen(field)) == 0) v = strtol(line + strlen(field), NULL, 10);
    if (f) fclose(f);
    return v;
}

/* From now on VmHWM counts anew. */
static long begin_memory_watch(void)
{
    int fd = open("/proc/self/clear_refs", O_WRONLY);
    if (fd >= 0) {
        assert_int_equal(write(fd, "5", 1), 1);
        close(fd);
    }
    return status_kib("VmRSS:");
}

static void assert_little_growth(long before)
{
    long grown = status_kib("VmHWM:") - before;
    if (grown >= GROWTH_MAX_KIB) fail_msg("the process grew by %ld KiB", grown);
    print_message("             grew by %ld KiB\n", grown);
}

/*
 * Another process: joins, then sends one message of very many parts. libzmq hands a message to its I/O thread
 * only when it is complete, so this attacker's has an end, which the server must not live to see; the parts
 * share one buffer.
 */
static int endless_main(char **argv)
{
    static char buffer[65536];
    cw_key key;
    raw r;
    size_t bytes = strtoul(argv[4], NULL, 10), parts = ((size_t)192 << 20) / (bytes < 256 ? 256 : bytes);
    if (bytes > sizeof buffer || !cw_key_parse(argv[3], &key)) return 2;
    raw_setup(&r, argv[2], key.b, NULL);
    raw_join(&r);
    uint8_t ping[64];
    zmq_send(r.sock, ping, pack_ping(ping, sizeof ping, 1), ZMQ_SNDMORE);
    for (size_t i = 0; i < parts; i++) {
        zmq_msg_t m;
        zmq_msg_init_data(&m, buffer, bytes, NULL, NULL);
        zmq_msg_send(&m, r.sock, i + 1 < parts ? ZMQ_SNDMORE : 0);
    }
    usleep(TEST_WAIT_MS * 1000); /* killed before that */
    _exit(0);
}

/* Another process: joins, and is stopped by a signal then. */
static int quiet_main(char **argv)
{
    cw_key key;
    raw r;
    if (!cw_key_parse(argv[3], &key)) return 2;
    raw_setup(&r, argv[2], key.b, NULL);
    raw_join(&r);
    raise(SIGSTOP);
    _exit(0);
}

static void a_process_that_hangs_is_noticed(void **state)
{
    (void)state;
    skip_where_emulated();
    server.cfg.heartbeat_ms = 200;
    friend.cfg.heartbeat_ms = 200;
    start_both();
    char hex[CW_KEY_HEX];
    cw_key_hex(cw_keys_public(server.keys), hex);
    char *argv[] = {(char *)"test_hostile", (char *)"--quiet", server.address, hex, (char *)"0", NULL};
    pid_t child;
    size_t from = server.n_events;
    assert_int_equal(posix_spawn(&child, "/proc/self/exe", NULL, NULL, argv, environ), 0);
    party_event up = party_wait(&server, &from, CW_EV_LINK_UP, 0, 0);
    int64_t start = cw_now_us();
    party_event down = party_wait(&server, &from, CW_EV_LINK_DOWN, up.link, 0);
    assert_true(cw_now_us() - start >= 400000); /* not because it was refused */
    assert_says(down.text, "closed or lost");
    int status;
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    friend_is_undisturbed_and_all_stop();
}

static void endless_attack(const char *part_bytes)
{
    skip_where_emulated();
    start_both();
    char hex[CW_KEY_HEX];
    cw_key_hex(cw_keys_public(server.keys), hex);
    char *argv[] = {(char *)"test_hostile",
                    (char *)"--endless",
                    server.address,
                    hex,
                    (char *)(uintptr_t)part_bytes,
                    NULL};
    long before = begin_memory_watch();
    pid_t child;
    assert_int_equal(posix_spawn(&child, "/proc/self/exe", NULL, NULL, argv, environ), 0);
    cw_net_stats s = {0};
    int64_t start = cw_now_us();
    uint64_t t = 0;
    while (s.overrun == 0 && cw_now_us() - start < (int64_t)TEST_WAIT_MS * 1000) {
        party_check_echo(&friend, friendly, ++t); /* the other one gets answers all the while */
        usleep(1000);
        cw_net_get_stats(server.net, &s);
    }
    assert_int_equal(s.overrun, 1);
    kill(child, SIGKILL);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_little_growth(before);
    friend_is_undisturbed_and_all_stop();
}

static void an_endless_message_of_large_parts_is_cut(void **state)
{
    (void)state;
    endless_attack("65536");
}

static void an_endless_message_of_small_parts_is_cut(void **state)
{
    (void)state;
    endless_attack("34");
}

static int tcp_connect(const cw_address *a)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(a->port)};
    assert_int_equal(inet_pton(AF_INET, a->host, &sa.sin_addr), 1);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&sa, sizeof sa) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static void a_thousand_half_open_connections_disturb_nobody(void **state)
{
    (void)state;
    enum { N = 1000 };
    static int fds[N];
    start_both();
    cw_address a;
    assert_int_equal(cw_address_parse(server.address, CW_ADDRESS_CONNECT, &a, NULL), CW_OK);
    long before = begin_memory_watch();
    int open_fds = 0;
    for (int i = 0; i < N; i++) {
        fds[i] = tcp_connect(&a);
        open_fds += fds[i] >= 0;
        /* Half of them begin the greeting and stop in the middle. */
        if (fds[i] >= 0 && i % 2) (void)!write(fds[i], "\xff\0\0\0\0\0\0\0\x01\x7f\x03", 11);
        if (i % 50 == 0) party_check_echo(&friend, friendly, (uint64_t)i);
    }
    assert_int_equal(open_fds, N);
    /* Somebody new gets in meanwhile, by trying again as machines do. */
    party guest;
    party_init(&guest, CW_SIDE_EDGE);
    party_start(&guest);
    cw_link link = 0;
    bool in = false;
    for (int i = 0; i < 20 && !in; i++) {
        size_t from = 0;
        link = party_connect(&guest, server.address, cw_keys_public(server.keys));
        in = party_wait_ms(&guest, &from, CW_EV_MESSAGE, link, CW__PB__ENVELOPE__BODY_WELCOME, 2000, NULL);
    }
    assert_true(in);
    party_check_echo(&guest, link, 1);
    assert_little_growth(before);
    /* All of them are cut in the end: nothing of ours keeps them. */
    int64_t start = cw_now_us();
    int cut = 0;
    while (cut < N && cw_now_us() - start < (int64_t)TEST_WAIT_MS * 1000) {
        cut = 0;
        for (int i = 0; i < N; i++) {
            char c;
            /* What the server greets with, then the end. */
            while (fds[i] >= 0) {
                ssize_t n = recv(fds[i], &c, 1, MSG_DONTWAIT);
                if (n > 0 || (n < 0 && errno == EAGAIN)) {
                    if (n > 0) continue;
                    break;
                }
                close(fds[i]);
                fds[i] = -1;
            }
            cut += fds[i] < 0;
        }
        party_check_echo(&friend, friendly, 1);
        usleep(20000);
    }
    assert_int_equal(cut, N);
    party_stop(&guest);
    party_free(&guest);
    friend_is_undisturbed_and_all_stop();
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "--endless") == 0) return endless_main(argv);
    if (argc == 5 && strcmp(argv[1], "--quiet") == 0) return quiet_main(argv);
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_second_message_before_admission_is_cut),
        T(who_is_neither_admitted_nor_refused_is_cut),
        T(who_says_nothing_is_cut),
        T(a_hello_that_is_too_long_is_cut),
        T(what_cannot_be_decoded_costs_the_connection_and_a_while),
        T(too_many_frames_are_cut),
        T(a_frame_that_is_too_large_ends_the_connection),
        T(a_routing_id_of_ones_own_is_not_accepted),
        T(who_does_not_read_is_let_go),
        T(a_process_that_hangs_is_noticed),
        T(an_endless_message_of_large_parts_is_cut),
        T(an_endless_message_of_small_parts_is_cut),
        T(a_thousand_half_open_connections_disturb_nobody),
    };
    if (argc == 2) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
