/* The queue: order, bound, descriptor, closing, several producers. */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "cw/queue.h"

static int destroyed;
static void destroy(void *item)
{
    destroyed += *(int *)item;
}

static bool readable(cw_queue *q)
{
    struct pollfd p = {.fd = cw_queue_fd(q), .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void keeps_order_and_refuses_when_full(void **state)
{
    (void)state;
    int v[4] = {1, 2, 3, 4};
    cw_queue *q = NULL;
    assert_int_equal(cw_queue_new(0, NULL, &q, NULL), CW_STATUS_INVALID);
    assert_int_equal(cw_queue_new(3, destroy, &q, NULL), CW_OK);
    assert_null(cw_queue_pop(q));
    for (int round = 0; round < 5; round++) { /* the ring wraps */
        for (int i = 0; i < 3; i++) assert_int_equal(cw_queue_push(q, &v[i]), CW_OK);
        assert_int_equal(cw_queue_push(q, &v[3]), CW_STATUS_BUSY);
        assert_int_equal(cw_queue_depth(q), 3);
        for (int i = 0; i < 3; i++) assert_ptr_equal(cw_queue_pop(q), &v[i]);
        assert_null(cw_queue_pop(q));
        assert_int_equal(cw_queue_push(q, &v[3]), CW_OK);
        assert_ptr_equal(cw_queue_pop_wait(q, -1), &v[3]);
    }
    assert_null(cw_queue_pop_wait(q, 1));
    destroyed = 0;
    assert_int_equal(cw_queue_push(q, &v[1]), CW_OK);
    assert_int_equal(cw_queue_push(q, &v[3]), CW_OK);
    cw_queue_free(&q);
    assert_int_equal(destroyed, 6);
    assert_null(q);
}

static void descriptor_is_readable_exactly_while_items_wait(void **state)
{
    (void)state;
    int v = 1;
    cw_queue *q = NULL;
    assert_int_equal(cw_queue_new(2, NULL, &q, NULL), CW_OK);
    assert_false(readable(q));
    assert_int_equal(cw_queue_push(q, &v), CW_OK);
    assert_int_equal(cw_queue_push(q, &v), CW_OK);
    assert_true(readable(q));
    assert_non_null(cw_queue_pop(q));
    assert_true(readable(q));
    assert_non_null(cw_queue_pop(q));
    assert_false(readable(q));
    cw_queue_close(q);
    cw_queue_close(q);
    assert_true(readable(q));
    cw_queue_free(&q);
}

static void closed_queue_refuses_and_drains(void **state)
{
    (void)state;
    int v = 1;
    cw_queue *q = NULL;
    assert_int_equal(cw_queue_new(2, NULL, &q, NULL), CW_OK);
    assert_int_equal(cw_queue_push(q, &v), CW_OK);
    cw_queue_close(q);
    assert_true(cw_queue_closed(q));
    assert_int_equal(cw_queue_push(q, &v), CW_STATUS_CANCELLED);
    assert_ptr_equal(cw_queue_pop_wait(q, -1), &v);
    assert_null(cw_queue_pop_wait(q, -1));
    cw_queue_free(&q);
}

enum { PRODUCERS = 3, EACH = 5000 };
typedef struct {
    cw_queue *q;
    int items[EACH]; /* producer * EACH + sequence */
} producer;

static void *produce(void *arg)
{
    producer *p = arg;
    for (int i = 0; i < EACH; i++)
        while (cw_queue_push(p->q, &p->items[i]) == CW_STATUS_BUSY) sched_yield();
    return NULL;
}

static void every_item_of_every_producer_arrives_once_in_order(void **state)
{
    (void)state;
    static producer producers[PRODUCERS];
    pthread_t threads[PRODUCERS];
    int next[PRODUCERS] = {0};
    cw_queue *q = NULL;
    assert_int_equal(cw_queue_new(16, NULL, &q, NULL), CW_OK);
    for (int p = 0; p < PRODUCERS; p++) {
        producers[p].q = q;
        for (int i = 0; i < EACH; i++) producers[p].items[i] = p * EACH + i;
        assert_int_equal(pthread_create(&threads[p], NULL, produce, &producers[p]), 0);
    }
    for (int got = 0; got < PRODUCERS * EACH; got++) {
        int *item = cw_queue_pop_wait(q, 30000);
        assert_non_null(item);
        assert_int_equal(*item % EACH, next[*item / EACH]++);
    }
    for (int p = 0; p < PRODUCERS; p++) pthread_join(threads[p], NULL);
    assert_null(cw_queue_pop(q));
    cw_queue_free(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_order_and_refuses_when_full),
        cmocka_unit_test(descriptor_is_readable_exactly_while_items_wait),
        cmocka_unit_test(closed_queue_refuses_and_drains),
        cmocka_unit_test(every_item_of_every_producer_arrives_once_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
