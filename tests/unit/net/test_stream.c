/* Messages over a Unix stream socket: whole however the bytes are cut, refused before anything is allocated
 * for lengths that nobody may name, in order and within limits when the other end does not read. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/bytes.h"
#include "stream.h"

enum { PREFIX = 24, SEED = 4711 };
static const net_stream_limits wide = {.header = 1 << 20, .frame = 4 << 20, .message = 8 << 20};

static uint32_t chance(uint32_t *state, uint32_t below)
{
    *state = *state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)*state * below) >> 32);
}

static void pair_of(net_stream **a, net_stream **b)
{
    int fd[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), 0);
    assert_non_null(*a = net_stream_new(fd[0]));
    assert_non_null(*b = net_stream_new(fd[1]));
}

/* A stream, and the bare other end. */
static int half_pair(net_stream **a)
{
    int fd[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), 0);
    assert_non_null(*a = net_stream_new(fd[0]));
    return fd[1];
}

/* A ping with that number, and frames whose bytes tell what they are. */
static cw_msg *message(uint32_t number, const uint32_t *lens, uint32_t n_frames)
{
    Cw__Pb__Ping ping = CW__PB__PING__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    cw_frame f[CW_MSG_MAX_FRAMES];
    ping.t_us = number;
    env.body_case = CW__PB__ENVELOPE__BODY_PING, env.ping = &ping;
    for (uint32_t i = 0; i < n_frames; i++) {
        uint8_t *bytes = NULL;
        f[i] = cw_frame_new(lens[i], &bytes);
        for (uint32_t j = 0; j < lens[i]; j++) bytes[j] = (uint8_t)(number * 7 + i * 31 + j % 251);
    }
    cw_msg *m = cw_msg_new(&env, f, n_frames);
    assert_non_null(m);
    return m;
}

static void check_message(net_parts *p, uint32_t number, const uint32_t *lens, uint32_t n_frames)
{
    Cw__Pb__Envelope *env = cw__pb__envelope__unpack(NULL, p->header.len, p->header.data);
    assert_non_null(env);
    assert_int_equal(env->ping->t_us, number);
    cw__pb__envelope__free_unpacked(env, NULL);
    assert_int_equal(p->n_parts, 1 + n_frames);
    assert_int_equal(p->n_frames, n_frames);
    for (uint32_t i = 0; i < n_frames; i++) {
        assert_int_equal(p->frames[i].len, lens[i]);
        for (uint32_t j = 0; j < lens[i]; j++)
            if (p->frames[i].data[j] != (uint8_t)(number * 7 + i * 31 + j % 251))
                fail_msg("message %u, frame %u, byte %u", number, i, j);
    }
    net_parts_free(p);
}

static void send_one(net_stream *s, uint32_t number, const uint32_t *lens, uint32_t n)
{
    uint64_t bytes;
    cw_msg *m = message(number, lens, n);
    assert_int_equal(net_stream_send(s, &m, false, 64 << 20, 256, &bytes), NET_SENT);
    assert_null(m);
}

static void draw(uint32_t *state, uint32_t lens[CW_MSG_MAX_FRAMES], uint32_t *n)
{
    static const uint32_t top[] = {1, 40, 5000, 200000};
    *n = chance(state, CW_MSG_MAX_FRAMES + 1);
    for (uint32_t i = 0; i < *n; i++) lens[i] = chance(state, top[chance(state, 4)]);
}

static void a_message_comes_whole_however_its_bytes_are_cut(void **state)
{
    enum { MESSAGES = 200 };
    (void)state;
    uint32_t write_seed = SEED, check_seed = SEED, cut_seed = SEED;
    uint32_t lens[CW_MSG_MAX_FRAMES], n, got = 0, said = 0, beats = 0;
    net_stream *from, *to;
    int out = half_pair(&from), in = half_pair(&to);
    uint8_t piece[3000];
    print_message("seed %d\n", SEED);
    while (got < MESSAGES) {
        if (said < MESSAGES && !net_stream_waits(from)) {
            draw(&write_seed, lens, &n);
            send_one(from, said++, lens, n);
            if (said % 7 == 0) assert_int_equal(net_stream_beat(from), NET_SENT);
        }
        /* One byte, a few, or many at a time. */
        size_t want = 1 + chance(&cut_seed, chance(&cut_seed, 3) ? sizeof piece : 8);
        ssize_t r = read(out, piece, want > sizeof piece ? sizeof piece : want);
        if (r > 0) assert_int_equal(write(in, piece, (size_t)r), r);
        assert_int_equal(net_stream_flush(from), NET_SENT);
        net_parts p;
        net_stream_readable(to);
        net_recv got_one;
        while ((got_one = net_stream_receive(to, &wide, &p)) == NET_RECV_GOT) {
            beats += p.n_parts == 0;
            if (p.n_parts == 0) continue;
            draw(&check_seed, lens, &n);
            check_message(&p, got++, lens, n);
        }
        assert_int_equal(got_one, NET_RECV_NONE);
    }
    assert_in_range(beats, 1, MESSAGES / 7); /* none is sent where messages wait */
    close(out);
    net_stream_readable(from);
    net_parts p;
    assert_int_equal(net_stream_receive(from, &wide, &p), NET_RECV_GONE);
    close(in);
    net_stream_free(&from);
    net_stream_free(&to);
}

static void impossible_lengths_are_refused(void **state)
{
    (void)state;
    static const uint32_t bad[][5] = {
        {5, 10, 0, 0, 0},          /* parts */
        {UINT32_MAX, 0, 0, 0, 0},  /* parts */
        {1, 10, 1, 0, 0},          /* a length beyond the count */
        {0, 1, 0, 0, 0},           /* a heartbeat of a byte */
        {1, 101, 0, 0, 0},         /* header */
        {2, 10, 1001, 0, 0},       /* frame */
        {4, 10, 900, 900, 900},    /* all together */
        {4, 10, 900, 900, UINT32_MAX - 1800},
        {1, UINT32_MAX, 0, 0, 0},
    };
    const net_stream_limits tight = {.header = 100, .frame = 1000, .message = 2000};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        net_stream *s;
        net_parts p;
        uint8_t prefix[PREFIX] = {0};
        int fd = half_pair(&s);
        for (size_t k = 0; k < 5; k++) cw_store_u32(prefix + 4 * k, bad[i][k]);
        assert_int_equal(write(fd, prefix, sizeof prefix), PREFIX);
        if (net_stream_receive(s, &tight, &p) != NET_RECV_BAD) fail_msg("row %zu was not refused", i);
        close(fd);
        net_stream_free(&s);
    }
}

static void what_is_not_read_waits_in_order_and_has_a_limit(void **state)
{
    (void)state;
    net_stream *from, *to;
    const uint32_t lens[] = {100000};
    uint32_t sent = 0, got = 0;
    uint64_t bytes;
    pair_of(&from, &to);
    for (;; sent++) {
        cw_msg *m = message(sent, lens, 1);
        net_send r = net_stream_send(from, &m, false, 2 << 20, 256, &bytes);
        assert_null(m);
        if (r == NET_SEND_FULL) break;
        assert_int_equal(r, NET_SENT);
        assert_true(sent < 1000);
    }
    assert_true(net_stream_waits(from) && sent > 19); /* what the socket holds, and 2 MiB */
    assert_int_equal(net_stream_beat(from), NET_SENT); /* is not queued behind */
    net_parts p;
    while (got < sent) {
        net_stream_readable(to);
        while (net_stream_receive(to, &wide, &p) == NET_RECV_GOT) check_message(&p, got++, lens, 1);
        assert_int_equal(net_stream_flush(from), NET_SENT);
    }
    assert_false(net_stream_waits(from));
    /* The number of messages has a limit too. */
    for (sent = 0;; sent++) {
        cw_msg *m = message(sent, lens, 1);
        if (net_stream_send(from, &m, false, 64 << 20, 3, &bytes) == NET_SEND_FULL) break;
        assert_true(sent < 1000);
    }
    net_stream_free(&from); /* with what waits */
    net_stream_free(&to);
}

static void the_end_comes_after_the_last_message(void **state)
{
    (void)state;
    net_stream *from, *to;
    net_parts p;
    const uint32_t lens[] = {10, 20};
    uint64_t bytes;
    pair_of(&from, &to);
    send_one(from, 1, lens, 2);
    assert_int_equal(net_stream_send_bytes(from, "half", 4), NET_SENT);
    net_stream_free(&from);
    assert_int_equal(net_stream_receive(to, &wide, &p), NET_RECV_GOT);
    check_message(&p, 1, lens, 2);
    assert_int_equal(net_stream_receive(to, &wide, &p), NET_RECV_GOT);
    assert_memory_equal(p.header.data, "half", 4);
    net_parts_free(&p);
    net_stream_readable(to);
    assert_int_equal(net_stream_receive(to, &wide, &p), NET_RECV_GONE);
    cw_msg *m = message(2, lens, 1);
    assert_int_equal(net_stream_send(to, &m, false, 64 << 20, 256, &bytes), NET_SEND_GONE);
    assert_null(m);
    net_stream_free(&to);
}

/* Who has many to read may stop between two; what has come is not lost. */
static void a_reading_can_pause(void **state)
{
    (void)state;
    net_stream *from, *to;
    net_parts p;
    const uint32_t lens[] = {10, 20};
    pair_of(&from, &to);
    for (uint32_t i = 0; i < 3; i++) send_one(from, i, lens, 2);
    assert_int_equal(net_stream_receive(to, &wide, &p), NET_RECV_GOT);
    check_message(&p, 0, lens, 2);
    assert_true(net_stream_pause(to));
    send_one(from, 3, lens, 2); /* stays in the socket until the poll has told of it */
    for (uint32_t i = 1; i < 3; i++) {
        assert_int_equal(net_stream_receive(to, &wide, &p), NET_RECV_GOT);
        check_message(&p, i, lens, 2);
    }
    assert_int_equal(net_stream_receive(to, &wide, &p), NET_RECV_NONE);
    assert_false(net_stream_pause(to));
    net_stream_readable(to);
    assert_int_equal(net_stream_receive(to, &wide, &p), NET_RECV_GOT);
    check_message(&p, 3, lens, 2);
    net_stream_free(&from);
    net_stream_free(&to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reading_can_pause),
        cmocka_unit_test(a_message_comes_whole_however_its_bytes_are_cut),
        cmocka_unit_test(impossible_lengths_are_refused),
        cmocka_unit_test(what_is_not_read_waits_in_order_and_has_a_limit),
        cmocka_unit_test(the_end_comes_after_the_last_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
