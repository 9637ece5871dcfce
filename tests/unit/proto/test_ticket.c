/* Tickets and epochs: what the coordinator signed is read back, anything else is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/mem.h"
#include "cw/ticket.h"

static cw_signer *signer;

static int setup(void **state)
{
    (void)state;
    return cw_signer_new(&signer, NULL) == CW_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    cw_signer_free(&signer);
    return 0;
}

static void a_ticket_is_read_back_and_no_other_byte_passes(void **state)
{
    (void)state;
    cw_ticket t = {.not_after_ms = 1700000000000, .streams = 4, .rows_per_s = 1000, .serial = 9}, back;
    memset(t.edge.b, 7, sizeof t.edge.b);
    uint8_t *bytes = NULL;
    size_t n = 0;
    assert_int_equal(cw_ticket_sign(signer, &t, &bytes, &n, NULL), CW_OK);
    assert_true(n <= 1024);
    assert_int_equal(cw_ticket_verify(cw_signer_public(signer), bytes, n, &back, NULL), CW_OK);
    assert_memory_equal(&t, &back, sizeof t);
    for (size_t i = 0; i < 8 * n; i++) {
        bytes[i / 8] ^= (uint8_t)(1 << i % 8);
        /* A changed tag can hide in an unknown field only if the signature still fits the body, which it then
         * must be. */
        if (cw_ticket_verify(cw_signer_public(signer), bytes, n, &back, NULL) == CW_OK)
            assert_memory_equal(&t, &back, sizeof t);
        bytes[i / 8] ^= (uint8_t)(1 << i % 8);
    }
    for (size_t cut = 0; cut < n; cut++)
        assert_int_not_equal(cw_ticket_verify(cw_signer_public(signer), bytes, cut, &back, NULL), CW_OK);
    cw_signer *other = NULL;
    assert_int_equal(cw_signer_new(&other, NULL), CW_OK);
    assert_int_equal(cw_ticket_verify(cw_signer_public(other), bytes, n, &back, NULL), CW_STATUS_AUTH);
    cw_signer_free(&other);
    cw_free(bytes);
}

typedef struct {
    uint8_t cluster[16], digest[32], key[32], set[2];
    Cw__Pb__LayerSet sets[2], *set_list[2];
    Cw__Pb__EpochWorker workers[2], *worker_list[2];
    Cw__Pb__EpochBody body;
} epoch_parts;

static void make_epoch(epoch_parts *p)
{
    *p = (epoch_parts){.set = {0xff, 1}};
    cw__pb__epoch_body__init(&p->body);
    p->body.cluster_id = (ProtobufCBinaryData){16, p->cluster};
    p->body.model_digest = (ProtobufCBinaryData){32, p->digest};
    p->body.term = 3, p->body.number = 8;
    for (uint32_t i = 0; i < 2; i++) {
        cw__pb__layer_set__init(&p->sets[i]);
        p->sets[i].layer = i + 1;
        p->sets[i].experts = (ProtobufCBinaryData){2, p->set};
        p->set_list[i] = &p->sets[i];
        cw__pb__epoch_worker__init(&p->workers[i]);
        p->workers[i].id = i + 1, p->workers[i].name = (char *)"w",
        p->workers[i].address = (char *)"tcp://127.0.0.1:1", p->workers[i].speed = 1.0f;
        p->workers[i].key = (ProtobufCBinaryData){32, p->key};
        p->workers[i].n_sets = 2, p->workers[i].sets = p->set_list;
        p->worker_list[i] = &p->workers[i];
    }
    p->body.n_workers = 2, p->body.workers = p->worker_list;
}

static cw_status round_trip(epoch_parts *p, Cw__Pb__EpochBody **out)
{
    uint8_t *bytes = NULL;
    size_t n = 0;
    assert_int_equal(cw_epoch_sign(signer, &p->body, &bytes, &n, NULL), CW_OK);
    cw_status s = cw_epoch_verify(cw_signer_public(signer), bytes, n, out, NULL);
    cw_ticket t;
    assert_int_equal(cw_ticket_verify(cw_signer_public(signer), bytes, n, &t, NULL),
                     CW_STATUS_AUTH); /* an epoch is no ticket */
    cw_free(bytes);
    return s;
}

static void an_epoch_is_checked_even_when_signed(void **state)
{
    (void)state;
    epoch_parts p;
    Cw__Pb__EpochBody *e = NULL;
    make_epoch(&p);
    assert_int_equal(round_trip(&p, &e), CW_OK);
    assert_int_equal(e->n_workers, 2);
    assert_int_equal(e->workers[1]->sets[1]->layer, 2);
    cw_epoch_free(&e);
    assert_null(e);
    make_epoch(&p), p.workers[1].id = 1;
    assert_int_equal(round_trip(&p, &e), CW_STATUS_PROTOCOL);
    make_epoch(&p), p.workers[0].address = (char *)"tcp://127.0.0.1";
    assert_int_equal(round_trip(&p, &e), CW_STATUS_PROTOCOL);
    make_epoch(&p), p.workers[0].key.len = 31;
    assert_int_equal(round_trip(&p, &e), CW_STATUS_PROTOCOL);
    make_epoch(&p), p.sets[1].layer = 1;
    assert_int_equal(round_trip(&p, &e), CW_STATUS_PROTOCOL);
    make_epoch(&p), p.body.model_digest.len = 0;
    assert_int_equal(round_trip(&p, &e), CW_STATUS_PROTOCOL);
    assert_null(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_ticket_is_read_back_and_no_other_byte_passes),
        cmocka_unit_test(an_epoch_is_checked_even_when_signed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
