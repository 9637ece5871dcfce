/* When the mainland counts as lost, and when its return is believed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/tide.h"

enum { MS = 1000, TICK = 100 * MS };

/* A tide with a clock; views are stepped every tick and whenever it asked for it. */
typedef struct {
    cw_tide t;
    cw_tide_view v;
    bool speaks; /* a worker answers pings */
} sea;

static sea begin(void)
{
    sea s = {.v = {.now_us = 5000000, .wanted = true, .waiting = true, .connected = true, .covered = true},
             .speaks = true};
    return s;
}

static int64_t step(sea *s)
{
    int64_t wake;
    if (s->speaks && s->v.connected) s->v.heard_us = s->v.now_us;
    cw_tide_step(&s->t, &s->v, &wake);
    return wake;
}

static void run(sea *s, int64_t us)
{
    int64_t end = s->v.now_us + us;
    for (;;) {
        int64_t wake = step(s), next = s->v.now_us + TICK;
        if (wake < next) next = wake > s->v.now_us ? wake : s->v.now_us + 1;
        if (next > end) break;
        s->v.now_us = next;
    }
    s->v.now_us = end;
    step(s);
}

/* How long from now until that state; fails after 100 s. */
static int64_t until(sea *s, cw_tide_state state)
{
    int64_t from = s->v.now_us;
    while (s->t.state != state) {
        if (s->v.now_us - from > 100000000) fail_msg("never %s", cw_tide_name(state));
        int64_t wake = step(s), next = s->v.now_us + TICK;
        if (s->t.state == state) break;
        s->v.now_us = wake < next && wake > s->v.now_us ? wake : next;
    }
    return s->v.now_us - from;
}

static void a_cut_of_all_connections_is_believed_soon(void **state)
{
    (void)state;
    sea s = begin();
    run(&s, 3000000);
    assert_int_equal(s.t.state, CW_TIDE_ONLINE);
    s.v.connected = s.v.covered = false;
    step(&s);
    assert_int_equal(s.t.state, CW_TIDE_SUSPECT);
    assert_in_range(until(&s, CW_TIDE_OFFLINE), 100 * MS, 150 * MS);
}

static void a_connection_made_anew_at_once_is_no_loss(void **state)
{
    (void)state;
    sea s = begin();
    run(&s, 1000000);
    for (int i = 0; i < 50; i++) {
        s.v.connected = s.v.covered = false;
        run(&s, 80 * MS);
        s.v.connected = s.v.covered = true;
        run(&s, 200 * MS);
        assert_int_equal(s.t.state, CW_TIDE_ONLINE);
    }
    assert_int_equal(s.t.n_offline, 0);
}

static void silence_is_believed_within_its_time_and_only_while_words_are_due(void **state)
{
    (void)state;
    sea s = begin();
    s.v.waiting = false; /* nobody asks: nobody need speak */
    s.speaks = false;
    run(&s, 60000000);
    assert_int_equal(s.t.state, CW_TIDE_ONLINE);
    s.v.waiting = true; /* the wait begins with the question, not with the last word a minute ago */
    int64_t t = until(&s, CW_TIDE_OFFLINE);
    assert_in_range(t, CW_TIDE_SILENT_US, CW_TIDE_SILENT_US + 200 * MS);
    /* A worker that is slow but answers pings never makes it suspect. */
    s = begin();
    run(&s, 600000000);
    assert_int_equal(s.t.state, CW_TIDE_ONLINE);
}

static void a_pause_in_the_words_makes_it_suspect_and_no_more(void **state)
{
    (void)state;
    sea s = begin();
    run(&s, 1000000);
    s.speaks = false;
    run(&s, 800 * MS);
    assert_int_equal(s.t.state, CW_TIDE_SUSPECT);
    s.speaks = true;
    run(&s, 200 * MS);
    assert_int_equal(s.t.state, CW_TIDE_ONLINE);
    assert_int_equal(s.t.n_offline, 0);
}

static void a_return_must_hold_and_longer_after_each_that_did_not(void **state)
{
    (void)state;
    sea s = begin();
    int64_t hold = 0;
    for (int i = 0; i < 10; i++) {
        s.v.connected = s.v.covered = false;
        until(&s, CW_TIDE_OFFLINE);
        run(&s, 500 * MS);
        s.v.connected = s.v.covered = true;
        int64_t t = until(&s, CW_TIDE_ONLINE);
        assert_true(t >= hold); /* never shorter than the last */
        assert_true(t <= CW_TIDE_HOLD_MOST_US + 200 * MS);
        hold = t;
        run(&s, 1000000); /* does not last */
    }
    assert_true(hold >= CW_TIDE_HOLD_MOST_US);
    run(&s, 30000000); /* this one lasts */
    s.v.connected = s.v.covered = false;
    until(&s, CW_TIDE_OFFLINE);
    s.v.connected = s.v.covered = true;
    assert_in_range(until(&s, CW_TIDE_ONLINE), CW_TIDE_HOLD_US, CW_TIDE_HOLD_US + 200 * MS);
}

static void a_part_of_the_experts_is_no_return(void **state)
{
    (void)state;
    sea s = begin();
    s.v.connected = s.v.covered = false;
    run(&s, 3000000);
    s.v.connected = true;
    run(&s, 60000000);
    assert_int_equal(s.t.state, CW_TIDE_OFFLINE);
}

static void an_expert_that_was_waited_for_in_vain_is_a_loss_that_must_hold_again(void **state)
{
    (void)state;
    sea s = begin();
    run(&s, 1000000);
    s.v.covered = false;
    cw_tide_lose(&s.t, s.v.now_us);
    run(&s, 5000000);
    assert_int_equal(s.t.state, CW_TIDE_OFFLINE); /* though somebody is connected and speaks */
    s.v.covered = true;
    assert_in_range(until(&s, CW_TIDE_ONLINE), CW_TIDE_HOLD_US, CW_TIDE_HOLD_US + 200 * MS);
}

static void sleep_is_no_silence(void **state)
{
    (void)state;
    sea s = begin();
    run(&s, 1000000);
    s.v.now_us += 3600000000; /* the lid was closed for an hour */
    s.speaks = false;
    step(&s);
    assert_int_equal(s.t.state, CW_TIDE_ONLINE);
    run(&s, 300 * MS);
    s.speaks = true;
    run(&s, 300 * MS);
    assert_int_equal(s.t.state, CW_TIDE_ONLINE);
    assert_int_equal(s.t.n_offline, 0);
    /* A nap that is longer than silence may be, and shorter than connections live. */
    for (int i = 0; i < 20; i++) {
        s.v.now_us += 1900 * MS;
        s.speaks = false;
        step(&s);
        assert_int_equal(s.t.n_offline, 0);
        s.speaks = true;
        run(&s, 300 * MS);
    }
    /* And what was lost before stays so until it has held after the sleep. */
    s.v.connected = s.v.covered = false;
    run(&s, 1000000);
    s.v.now_us += 3600000000;
    s.v.connected = s.v.covered = true;
    step(&s);
    assert_int_equal(s.t.state, CW_TIDE_RETURNING);
    assert_in_range(until(&s, CW_TIDE_ONLINE), CW_TIDE_HOLD_US, CW_TIDE_HOLD_US + 200 * MS);
}

static void without_anybody_asking_there_is_nothing_to_lose(void **state)
{
    (void)state;
    sea s = begin();
    s.v.wanted = s.v.waiting = s.v.connected = s.v.covered = false; /* idle links are closed */
    run(&s, 600000000);
    assert_int_equal(s.t.state, CW_TIDE_ONLINE);
    /* Connections for a new question may take a while. */
    s.v.wanted = s.v.waiting = true;
    run(&s, CW_TIDE_OPEN_US - 300 * MS);
    assert_int_not_equal(s.t.state, CW_TIDE_OFFLINE);
    run(&s, 600 * MS);
    assert_int_equal(s.t.state, CW_TIDE_OFFLINE);
}

/* Whatever comes: no state without its reason, and no answer sooner than the waits allow. */
static void random_weather_breaks_no_rule(void **state)
{
    (void)state;
    uint64_t r = 88172645463325252u;
    sea s = begin();
    int64_t good_since = s.v.now_us, bad_since = 0;
    for (int i = 0; i < 200000; i++) {
        r ^= r << 13, r ^= r >> 7, r ^= r << 17;
        if (r % 7 == 0) {
            s.v.connected = r >> 8 & 1;
            s.v.covered = s.v.connected && (r >> 9 & 1);
            s.speaks = (r >> 10) % 3 != 0;
        }
        if (r % 997 == 0) s.v.now_us += 5000000;
        s.v.now_us += (int64_t)(r >> 20 & 0x1ffff);
        cw_tide_state before = s.t.state;
        bool bad = !s.v.connected || !s.speaks;
        if (bad && !bad_since) bad_since = s.v.now_us;
        if (!bad) bad_since = 0;
        if (!s.v.covered)
            good_since = 0;
        else if (!good_since)
            good_since = s.v.now_us;
        step(&s);
        if (before == CW_TIDE_ONLINE && s.t.state == CW_TIDE_OFFLINE)
            assert_true(bad_since && s.v.now_us - bad_since >= CW_TIDE_CUT_US);
        if (before == CW_TIDE_RETURNING && s.t.state == CW_TIDE_ONLINE)
            assert_true(good_since && s.v.now_us - good_since >= CW_TIDE_HOLD_US);
        assert_true(before != CW_TIDE_OFFLINE || s.t.state == CW_TIDE_OFFLINE ||
                    s.t.state == CW_TIDE_RETURNING);
    }
    assert_true(s.t.n_offline > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cut_of_all_connections_is_believed_soon),
        cmocka_unit_test(a_connection_made_anew_at_once_is_no_loss),
        cmocka_unit_test(silence_is_believed_within_its_time_and_only_while_words_are_due),
        cmocka_unit_test(a_pause_in_the_words_makes_it_suspect_and_no_more),
        cmocka_unit_test(a_return_must_hold_and_longer_after_each_that_did_not),
        cmocka_unit_test(a_part_of_the_experts_is_no_return),
        cmocka_unit_test(an_expert_that_was_waited_for_in_vain_is_a_loss_that_must_hold_again),
        cmocka_unit_test(sleep_is_no_silence),
        cmocka_unit_test(without_anybody_asking_there_is_nothing_to_lose),
        cmocka_unit_test(random_weather_breaks_no_rule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
