/* Placement's promises: coverage, capacity, replication, determinism, few moves, missing bytes by name. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#include "cw/mem.h"
#include "cw/placement.h"

enum { MAX_WORKERS = 128 };

typedef struct {
    uint32_t n_layers, n_experts, n_workers;
    uint64_t bytes[64];
    const float *load;
    uint64_t move_bytes;
    cw_placement_worker workers[MAX_WORKERS];
    cw_expert_bits sets[MAX_WORKERS];
    cw_expert_bits before[MAX_WORKERS];
    cw_placement_result res;
} world;

static void world_new(world *w, uint32_t n_layers, uint32_t n_experts, uint64_t bytes, uint32_t n_workers)
{
    memset(w, 0, sizeof *w);
    w->n_layers = n_layers;
    w->n_experts = n_experts;
    w->n_workers = n_workers;
    for (uint32_t l = 0; l < n_layers; l++) w->bytes[l] = bytes;
    for (uint32_t i = 0; i < MAX_WORKERS; i++) {
        assert_true(cw_expert_bits_init(&w->sets[i], n_layers, n_experts));
        assert_true(cw_expert_bits_init(&w->before[i], n_layers, n_experts));
    }
}

static void world_free(world *w)
{
    for (uint32_t i = 0; i < MAX_WORKERS; i++) {
        cw_expert_bits_free(&w->sets[i]);
        cw_expert_bits_free(&w->before[i]);
    }
}

static void place(world *w)
{
    cw_placement_input in = {.n_layers = w->n_layers,
                             .n_experts = w->n_experts,
                             .expert_bytes = w->bytes,
                             .load = w->load,
                             .workers = w->workers,
                             .n_workers = w->n_workers,
                             .move_bytes = w->move_bytes};
    assert_true(cw_placement(&in, w->sets, NULL, &w->res));
}

/* What was placed becomes what is held. */
static void settle(world *w)
{
    for (uint32_t i = 0; i < w->n_workers; i++) {
        cw_expert_bits_copy(&w->before[i], &w->sets[i]);
        w->workers[i].previous = &w->before[i];
    }
}

static uint32_t homes(const world *w, uint32_t l, uint32_t e)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < w->n_workers; i++) n += cw_expert_bits_has(&w->sets[i], l, e);
    return n;
}

static uint64_t total_bytes(const world *w)
{
    uint64_t n = 0;
    for (uint32_t l = 0; l < w->n_layers; l++) n += w->bytes[l] * w->n_experts;
    return n;
}

static void check_limits(const world *w, bool reserve_kept)
{
    for (uint32_t i = 0; i < w->n_workers; i++) {
        uint64_t used = cw_expert_bits_bytes(&w->sets[i], w->bytes), memory = w->workers[i].memory;
        uint64_t largest = 0;
        for (uint32_t l = 0; l < w->n_layers; l++)
            if (w->bytes[l] > largest) largest = w->bytes[l];
        assert_true(used <= memory);
        if (reserve_kept && memory < total_bytes(w))
            assert_true(used + cw_placement_reserve(memory, largest) <= memory);
    }
}

static void check_covered(const world *w)
{
    assert_int_equal(w->res.n_unplaced, 0);
    assert_string_equal(w->res.text, "");
    for (uint32_t l = 0; l < w->n_layers; l++)
        for (uint32_t e = 0; w->bytes[l] && e < w->n_experts; e++) assert_true(homes(w, l, e) >= 1);
}

/* Experts that must be loaded because of the new placement. */
static uint32_t moves(const world *w)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < w->n_workers; i++)
        for (uint32_t l = 0; l < w->n_layers; l++)
            for (uint32_t e = 0; e < w->n_experts; e++)
                n += cw_expert_bits_has(&w->sets[i], l, e) && !cw_expert_bits_has(&w->before[i], l, e);
    return n;
}

static void workers_with_room_hold_everything(void **state)
{
    (void)state;
    world w;
    world_new(&w, 4, 16, 1000, 3);
    w.bytes[0] = 0; /* a dense layer */
    for (int i = 0; i < 3; i++) w.workers[i].memory = 3 * 16 * 1000;
    place(&w);
    check_covered(&w);
    check_limits(&w, true);
    for (int i = 0; i < 3; i++) assert_int_equal(cw_expert_bits_count(&w.sets[i]), 3 * 16);
    world_free(&w);
}

static void limited_memory_spreads_every_layer_by_capacity(void **state)
{
    (void)state;
    world w;
    world_new(&w, 10, 64, 1 << 20, 2);
    uint64_t total = total_bytes(&w);
    w.workers[0].memory = total * 80 / 100;
    w.workers[1].memory = total * 40 / 100;
    place(&w);
    check_covered(&w);
    check_limits(&w, true);
    for (uint32_t l = 0; l < 10; l++) {
        uint32_t n[2] = {0};
        for (uint32_t e = 0; e < 64; e++)
            for (int i = 0; i < 2; i++) n[i] += cw_expert_bits_has(&w.sets[i], l, e);
        /* both take part in every layer, near their share of memory (less the reserve) */
        assert_in_range(n[0], 48, 51);
        assert_in_range(n[1], 23, 26);
        assert_true(n[0] + n[1] > 64); /* what is left over holds replicas */
    }
    world_free(&w);
}

static void replicas_use_what_memory_remains(void **state)
{
    (void)state;
    world w;
    world_new(&w, 6, 32, 4096, 4);
    for (int i = 0; i < 4; i++) w.workers[i].memory = total_bytes(&w) * 60 / 100;
    place(&w);
    check_covered(&w);
    check_limits(&w, true);
    uint32_t twice = 0;
    for (uint32_t l = 0; l < 6; l++)
        for (uint32_t e = 0; e < 32; e++) {
            assert_in_range(homes(&w, l, e), 2,
                            3); /* 4 x 58 % of the model: two homes for all, three for some */
            twice += homes(&w, l, e) == 3;
        }
    assert_true(twice > 0);
    world_free(&w);
}

static void missing_memory_is_named(void **state)
{
    (void)state;
    world w;
    world_new(&w, 2, 8, 1 << 20, 1);
    w.workers[0].memory = 10 << 20;
    place(&w);
    check_limits(&w, false);
    assert_int_equal(w.res.n_unplaced, 6);
    assert_int_equal(w.res.missing_bytes, 6 << 20);
    assert_non_null(strstr(w.res.text, "6 of the model's experts"));
    assert_non_null(strstr(w.res.text, "6.0 MiB more"));
    w.n_workers = 0;
    place(&w);
    assert_int_equal(w.res.n_unplaced, 16);
    world_free(&w);
}

static void coverage_goes_before_the_reserve(void **state)
{
    (void)state;
    world w;
    world_new(&w, 2, 8, 1000, 2);
    w.workers[0].memory = w.workers[1].memory =
        8 * 1000; /* exactly the model in two halves, no reserve left */
    place(&w);
    check_covered(&w);
    check_limits(&w, false);
    world_free(&w);
}

static void same_input_same_output(void **state)
{
    (void)state;
    world w;
    world_new(&w, 5, 40, 777, 5);
    for (uint32_t i = 0; i < 5; i++) w.workers[i].memory = total_bytes(&w) * (10 + 12 * i) / 100;
    place(&w);
    settle(&w);
    for (int i = 0; i < 5; i++) w.workers[i].previous = NULL;
    place(&w);
    for (int i = 0; i < 5; i++) assert_true(cw_expert_bits_equal(&w.sets[i], &w.before[i]));
    world_free(&w);
}

static void nothing_moves_without_a_reason(void **state)
{
    (void)state;
    world w;
    world_new(&w, 7, 48, 900, 6);
    for (uint32_t i = 0; i < 6; i++) w.workers[i].memory = total_bytes(&w) * (15 + 7 * i) / 100;
    place(&w);
    check_covered(&w);
    settle(&w);
    place(&w);
    assert_int_equal(moves(&w), 0);
    world_free(&w);
}

static void a_new_worker_moves_no_more_than_it_takes(void **state)
{
    (void)state;
    world w;
    world_new(&w, 8, 64, 1000, 4);
    for (int i = 0; i < 4; i++) w.workers[i].memory = total_bytes(&w) * 27 / 100;
    w.n_workers = 3;
    for (int i = 0; i < 3; i++) w.workers[i].memory = total_bytes(&w) * 36 / 100;
    place(&w);
    check_covered(&w);
    settle(&w);
    w.n_workers = 4;
    w.workers[3].memory = total_bytes(&w) * 36 / 100;
    w.workers[3].previous = NULL;
    place(&w);
    check_covered(&w);
    uint32_t on_new = cw_expert_bits_count(&w.sets[3]);
    assert_true(on_new > 0);
    /* everybody keeps what they have, so only the new worker loads, give or take roundings */
    assert_in_range(moves(&w), on_new, on_new + on_new / 10);
    world_free(&w);
}

static void a_lost_worker_is_replaced_from_what_is_left(void **state)
{
    (void)state;
    world w;
    world_new(&w, 8, 64, 1000, 4);
    for (int i = 0; i < 4; i++) w.workers[i].memory = total_bytes(&w) * 40 / 100;
    place(&w);
    settle(&w);
    uint32_t lost = cw_expert_bits_count(&w.sets[3]);
    w.n_workers = 3;
    place(&w);
    check_covered(&w);
    check_limits(&w, true);
    assert_true(moves(&w) <= lost);
    world_free(&w);
}

static uint64_t rnd_state;
static uint32_t rnd(uint32_t n)
{
    rnd_state = rnd_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rnd_state >> 33) % n;
}

/* Random clusters that change at random: the promises hold at every step. */
static void promises_hold_for_random_clusters(void **state)
{
    (void)state;
    const char *given = getenv("CW_TEST_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    rnd_state = seed;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < 60; round++) {
        world w;
        world_new(&w, 1 + rnd(12), 2 + rnd(100), 1, 1 + rnd(12));
        for (uint32_t l = 0; l < w.n_layers; l++) w.bytes[l] = rnd(5) ? 1000 + rnd(4) * 500 : 0;
        w.bytes[w.n_layers - 1] = 1000;
        for (int step = 0; step < 4; step++) {
            uint64_t sum = 0;
            for (uint32_t i = 0; i < w.n_workers; i++)
                if (step == 0 || rnd(3) == 0) w.workers[i].memory = (uint64_t)rnd(100) * total_bytes(&w) / 60;
            for (uint32_t i = 0; i < w.n_workers; i++) {
                uint64_t m = w.workers[i].memory,
                         waste = 2500; /* less than one expert is lost to granularity */
                sum += m >= total_bytes(&w) ? total_bytes(&w) : m > waste ? m - waste : 0;
            }
            place(&w);
            check_limits(&w, false);
            if (sum >= total_bytes(&w)) check_covered(&w);
            uint32_t bare = 0;
            for (uint32_t l = 0; l < w.n_layers; l++)
                for (uint32_t e = 0; w.bytes[l] && e < w.n_experts; e++) bare += homes(&w, l, e) == 0;
            assert_int_equal(bare, w.res.n_unplaced);
            settle(&w);
            place(&w);
            assert_int_equal(moves(&w), 0);
        }
        world_free(&w);
    }
}

static uint32_t homes_of_part(const world *w, uint32_t l, uint32_t e, cw_placement_part part)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < w->n_workers; i++)
        n += w->workers[i].part == part && cw_expert_bits_has(&w->sets[i], l, e);
    return n;
}

static void change_workers(world *w, bool all)
{
    static const float speeds[] = {1, 1, 3, 100, 0, -1, NAN, INFINITY};
    for (uint32_t i = 0; i < w->n_workers; i++) {
        if (!all && rnd(3)) continue;
        cw_placement_worker *pw = &w->workers[i];
        pw->memory = rnd(8) ? (uint64_t)rnd(100) * total_bytes(w) / 60 : rnd(3000);
        pw->speed = speeds[rnd(CW_ARRAY_LEN(speeds))];
        pw->part = rnd(4) ? CW_PLACEMENT_TAKES : rnd(2) ? CW_PLACEMENT_AWAY : CW_PLACEMENT_OUT;
    }
}

static void check_parts(const world *w, const float *weights)
{
    uint64_t room = 0, loaded = 0;
    for (uint32_t i = 0; i < w->n_workers; i++) {
        const cw_placement_worker *pw = &w->workers[i];
        if (pw->part == CW_PLACEMENT_OUT) assert_true(cw_expert_bits_empty(&w->sets[i]));
        if (pw->part == CW_PLACEMENT_AWAY) {
            assert_true(!pw->previous || cw_expert_bits_equal(&w->sets[i], pw->previous));
            assert_true(pw->previous || cw_expert_bits_empty(&w->sets[i]));
        }
        if (pw->part != CW_PLACEMENT_TAKES) continue;
        assert_true(cw_expert_bits_bytes(&w->sets[i], w->bytes) <= pw->memory);
        room += pw->memory >= total_bytes(w) ? total_bytes(w) : pw->memory > 2500 ? pw->memory - 2500 : 0;
        for (uint32_t l = 0; l < w->n_layers; l++)
            for (uint32_t e = 0; e < w->n_experts; e++)
                loaded += cw_expert_bits_has(&w->sets[i], l, e) &&
                                  !(pw->previous && cw_expert_bits_has(pw->previous, l, e))
                              ? w->bytes[l]
                              : 0;
    }
    assert_int_equal(loaded, w->res.load_bytes);
    uint32_t bare = 0;
    uint64_t missing = 0;
    for (uint32_t l = 0; l < w->n_layers; l++)
        for (uint32_t e = 0; w->bytes[l] && e < w->n_experts; e++) {
            uint32_t n = homes_of_part(w, l, e, CW_PLACEMENT_TAKES);
            if (!n) bare++, missing += w->bytes[l];
            double sum = 0;
            for (uint32_t i = 0; i < w->n_workers; i++) {
                double x = (double)weights[((size_t)l * w->n_experts + e) * w->n_workers + i];
                assert_true(x >= 0 && (x == 0 || cw_expert_bits_has(&w->sets[i], l, e)));
                sum += x;
            }
            assert_true(n ? sum > 0.999 && sum < 1.001 : sum == 0);
        }
    assert_int_equal(bare, w->res.n_unplaced);
    assert_int_equal(missing, w->res.missing_bytes);
    if (room >= total_bytes(w)) assert_int_equal(bare, 0);
}

/* Workers of any size and speed that come, go, drain and are away, loads that change or are none, budgets for
 * moves: whatever was before. */
static void promises_hold_for_odd_clusters(void **state)
{
    (void)state;
    const char *given = getenv("CW_TEST_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    rnd_state = seed;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < 60; round++) {
        world w;
        world_new(&w, 1 + rnd(12), 1 + rnd(100), 1, rnd(6) ? 1 + rnd(14) : 1);
        for (uint32_t l = 0; l < w.n_layers; l++) w.bytes[l] = rnd(5) ? 1000 + rnd(4) * 500 : 0;
        w.bytes[w.n_layers - 1] = 1000;
        float *load = cw_calloc((size_t)w.n_layers * w.n_experts, sizeof *load);
        float *weights = cw_calloc((size_t)w.n_layers * w.n_experts * w.n_workers, sizeof *weights);
        change_workers(&w, true);
        for (int step = 0; step < 6; step++) {
            uint32_t kind = rnd(4);
            for (size_t i = 0; i < (size_t)w.n_layers * w.n_experts; i++)
                load[i] = kind == 0   ? 0
                          : kind == 1 ? (float)rnd(10)
                          : kind == 2 ? powf(rnd(1000), 3)
                                      : load[i];
            w.load = rnd(5) ? load : NULL;
            w.move_bytes = rnd(3) ? 0 : rnd(2) ? UINT64_MAX : rnd(20000);
            cw_placement_input in = {.n_layers = w.n_layers,
                                     .n_experts = w.n_experts,
                                     .expert_bytes = w.bytes,
                                     .load = w.load,
                                     .workers = w.workers,
                                     .n_workers = w.n_workers,
                                     .move_bytes = w.move_bytes};
            assert_true(cw_placement(&in, w.sets, weights, &w.res));
            check_parts(&w, weights);
            for (uint32_t i = 0; i < w.n_workers; i++) { /* fed back, nothing changes */
                cw_expert_bits_copy(&w.before[i], &w.sets[i]);
                w.workers[i].previous = &w.before[i];
            }
            w.move_bytes = 0;
            uint32_t lacking = w.res.n_unplaced; /* what lacks memory may find some at a second look */
            place(&w);
            assert_true(w.res.n_unplaced <= lacking);
            if (moves(&w) && !lacking)
                fail_msg("round %d step %d: %u loads without a reason", round, step, moves(&w));
            cw_placement_times bound, mine;
            assert_true(cw_placement_bound(&in, &bound));
            assert_true(cw_placement_measure(&in, w.sets, &mine));
            if (w.res.n_unplaced == 0) {
                assert_true(mine.layer_time >= 0.999 * bound.layer_time);
                assert_true(mine.worst_total >= 0.999 * bound.worst_total);
            }
            change_workers(&w, false);
        }
        cw_free(load);
        cw_free(weights);
        world_free(&w);
    }
}

static void everything_has_two_homes_where_memory_reaches(void **state)
{
    (void)state;
    for (uint32_t n = 2; n < 12; n++) {
        world w;
        float load[4 * 48];
        world_new(&w, 4, 48, 1000, n);
        for (size_t i = 0; i < CW_ARRAY_LEN(load); i++)
            load[i] = i % 48 ? 1 : 500; /* one of each layer is hot */
        w.load = load;
        for (uint32_t i = 0; i < n; i++)
            w.workers[i] = (cw_placement_worker){.memory = total_bytes(&w) * 21 / 10 / n * 50 / 49 + 2000,
                                                 .speed = i ? 1 : 100};
        place(&w);
        check_covered(&w);
        for (uint32_t l = 0; l < 4; l++)
            for (uint32_t e = 0; e < 48; e++) assert_true(homes(&w, l, e) >= 2);
        /* One dies: what it had gets a second home again as far as memory reaches; until it is given up
         * nothing moves, since the others have it. */
        settle(&w);
        w.workers[n - 1].part = CW_PLACEMENT_AWAY;
        place(&w);
        assert_int_equal(moves(&w), 0);
        world_free(&w);
    }
}

/* What only an absent worker has gets a home elsewhere; what others have too does not move. */
static void only_what_nobody_has_is_placed_while_a_worker_is_away(void **state)
{
    (void)state;
    world w;
    world_new(&w, 6, 40, 1000, 3);
    for (int i = 0; i < 3; i++) w.workers[i].memory = total_bytes(&w) * 48 / 100;
    place(&w);
    check_covered(&w);
    settle(&w);
    uint32_t sole = 0;
    for (uint32_t l = 0; l < 6; l++)
        for (uint32_t e = 0; e < 40; e++)
            sole += homes(&w, l, e) == 1 && cw_expert_bits_has(&w.sets[0], l, e);
    w.workers[0].part = CW_PLACEMENT_AWAY;
    place(&w);
    assert_true(sole > 0);
    uint32_t lacking = w.res.n_unplaced; /* two of three have 92 % of the model */
    assert_int_equal(moves(&w), sole - lacking);
    assert_true(lacking < sole);
    for (uint32_t l = 0; l < 6; l++)
        for (uint32_t e = 0; e < 40; e++) assert_true(homes(&w, l, e) >= 1);
    world_free(&w);
}

static void the_largest_cluster_is_placed_in_time(void **state)
{
    (void)state;
    world w;
    world_new(&w, 58, 256, 44 << 20, 100);
    for (int i = 0; i < 100; i++) w.workers[i].memory = total_bytes(&w) * 3 / 100;
    struct timespec a, b;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    place(&w);
    settle(&w);
    w.n_workers = 99;
    place(&w);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    check_covered(&w);
    double s = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9;
    print_message("two placements of 58 x 256 experts on 100 workers: %.3f s\n", s);
    assert_true(s < 5.0); /* generous: sanitizers are on in one of the builds */
    world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(workers_with_room_hold_everything),
        cmocka_unit_test(limited_memory_spreads_every_layer_by_capacity),
        cmocka_unit_test(replicas_use_what_memory_remains),
        cmocka_unit_test(missing_memory_is_named),
        cmocka_unit_test(coverage_goes_before_the_reserve),
        cmocka_unit_test(same_input_same_output),
        cmocka_unit_test(nothing_moves_without_a_reason),
        cmocka_unit_test(a_new_worker_moves_no_more_than_it_takes),
        cmocka_unit_test(a_lost_worker_is_replaced_from_what_is_left),
        cmocka_unit_test(promises_hold_for_random_clusters),
        cmocka_unit_test(promises_hold_for_odd_clusters),
        cmocka_unit_test(everything_has_two_homes_where_memory_reaches),
        cmocka_unit_test(only_what_nobody_has_is_placed_while_a_worker_is_away),
        cmocka_unit_test(the_largest_cluster_is_placed_in_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
