/* The worker machine: what outlives the process, and chunks for other workers. */
#include "worker_rig.h"

/* A worker as another process start: with what the first one saved, and its coordinator away. */
static void reborn(worker_rig *y, worker_rig *x, cw_frame saved)
{
    wr_new(y, NULL);
    cw_worker_config c;
    wr_config(y, &c);
    cw_worker_free(&y->w);
    cw_signer_free(&y->signer);
    y->signer = x->signer;
    x->signer = NULL;
    c.enrolled = true;
    c.saved = saved.data;
    c.saved_len = saved.len;
    assert_int_equal(cw_worker_new(&c, &y->w, NULL), CW_OK);
    y->r.machine = y->w;
    y->r.now_us = 50000000;
    y->r.wall_ms = x->r.wall_ms + 20000;
}

static void away(worker_rig *y, int64_t us)
{
    for (int64_t t = 0; t < us; t += 100000) {
        rig_tick(&y->r, 100000);
        cw_action *a = rig_action(&y->r, CW_ACT_OPEN, 0, 0, 0);
        if (a) {
            cw_link link = a->link;
            rig_clear(&y->r);
            rig_down(&y->r, link, "connection refused");
        }
        wr_acts(y);
    }
}

static void saved_state_serves_again_without_a_coordinator(void **state)
{
    (void)state;
    worker_rig x, y;
    wr_boot(&x, NULL);
    wr_epoch_news(&x, 3, 7);
    wr_assign(&x, false, 1, 0x10);
    rig_tick(&x.r, 2000000);
    wr_acts(&x);
    assert_true(x.n_saves > 0);
    cw_frame saved = cw_worker_saved(x.w);
    assert_non_null(saved.data);
    reborn(&y, &x, saved);
    saved.release(saved.owner);

    away(&y, 1000000);
    assert_int_equal(y.n_get_model, 0); /* the coordinator has its chance first */
    away(&y, 2000000);
    assert_int_equal(y.n_get_model, 1);
    wr_model(&y);
    for (int i = 0; i < 20; i++) wr_acts(&y);
    cw_worker_facts f;
    cw_worker_get_facts(y.w, &f);
    assert_int_equal(f.n_ready, 2 * EXPERTS - 1);
    assert_int_equal(f.epoch_term, 3);
    assert_int_equal(f.epoch_number, 7);
    assert_false(f.admitted);

    /* An edge is let in by its ticket, and told the epoch. */
    Cw__Pb__Hello h;
    uint8_t *ticket;
    wr_good_hello(&y, &h, &y.edge_a, y.r.wall_ms + 3600 * 1000, &ticket);
    rig_clear(&y.r);
    wr_hello(&y, 1, &y.edge_a, &h);
    cw_free(ticket);
    cw_action *a = rig_sent(&y.r, 1, MSG(WELCOME));
    assert_non_null(a);
    assert_int_equal(a->msg->n_frames, 1);
    rig_clear(&y.r);
    static const cw_entry e[] = {{0, 3, 1}}, gone[] = {{0, 4, 1}};
    wr_send_call(&y, 1, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
    wr_compute(&y, -1);
    assert_non_null(rig_sent(&y.r, 1, MSG(REPLY)));
    wr_send_call(&y, 1, &(wr_call){.id = 2, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = gone});
    assert_int_equal(rig_sent(&y.r, 1, MSG(CALL_FAIL))->msg->env->call_fail->code,
                     CW__PB__FAIL_CODE__FAIL_NOT_HERE);
    wr_free(&y);
    wr_free(&x);
}

static void a_coordinator_that_is_there_says_itself_what_to_hold(void **state)
{
    (void)state;
    worker_rig x, y;
    wr_boot(&x, NULL);
    cw_frame saved = cw_worker_saved(x.w);
    reborn(&y, &x, saved);
    saved.release(saved.owner);
    wr_connect(&y);
    wr_welcome(&y, NULL, 0);
    wr_model(&y);
    for (int i = 0; i < 50; i++) {
        rig_tick(&y.r, 100000);
        wr_acts(&y);
    }
    assert_int_equal(y.n_loads, 0);
    wr_assign(&y, true, 1, 0x01);
    assert_int_equal(y.n_loads, 1);
    wr_free(&y);
    wr_free(&x);
}

static void revoked_keys_stay_revoked(void **state)
{
    (void)state;
    worker_rig x, y;
    wr_new(&x, NULL);
    wr_connect(&x);
    wr_welcome(&x, &x.edge_a, 1);
    wr_model(&x);
    wr_assign(&x, true, 1, 0xff);
    cw_frame saved = cw_worker_saved(x.w);
    reborn(&y, &x, saved);
    saved.release(saved.owner);
    away(&y, 3000000);
    assert_int_equal(y.n_revoked, 1);
    wr_model(&y);
    Cw__Pb__Hello h;
    uint8_t *ticket;
    wr_good_hello(&y, &h, &y.edge_a, y.r.wall_ms + 3600 * 1000, &ticket);
    rig_clear(&y.r);
    wr_hello(&y, 1, &y.edge_a, &h);
    cw_free(ticket);
    assert_int_equal(rig_sent(&y.r, 1, MSG(REFUSAL))->msg->env->refusal->code,
                     CW__PB__REFUSAL_CODE__REFUSAL_REVOKED);
    wr_free(&y);
    wr_free(&x);
}

static void damaged_state_is_a_fresh_start(void **state)
{
    (void)state;
    worker_rig x, y;
    wr_boot(&x, NULL);
    wr_epoch_news(&x, 3, 7);
    cw_frame saved = cw_worker_saved(x.w);
    wr_new(&y, NULL);
    cw_worker_config c;
    wr_config(&y, &c);
    for (size_t n = 1; n < saved.len; n++) {
        cw_worker *w = NULL;
        c.saved = saved.data;
        c.saved_len = n;
        assert_int_equal(cw_worker_new(&c, &w, NULL), CW_OK);
        cw_worker_facts f;
        cw_worker_get_facts(w, &f);
        assert_int_equal(f.epoch_term, 0);
        cw_worker_free(&w);
    }
    uint8_t *copy = malloc(saved.len);
    assert_non_null(copy);
    for (size_t i = 0; i < saved.len; i++) { /* whatever it makes of it, it lives */
        cw_worker *w = NULL;
        memcpy(copy, saved.data, saved.len);
        copy[i] ^= 0x55;
        c.saved = copy;
        c.saved_len = saved.len;
        assert_int_equal(cw_worker_new(&c, &w, NULL), CW_OK);
        cw_worker_free(&w);
    }
    memcpy(copy, saved.data, saved.len);
    memset(copy + 8, 0xff, 7); /* a clock that is off by millions of years */
    copy[15] = 0x7f;
    cw_worker *w = NULL;
    cw_worker_facts f;
    c.saved = copy;
    c.saved_len = saved.len;
    assert_int_equal(cw_worker_new(&c, &w, NULL), CW_OK);
    cw_worker_get_facts(w, &f);
    assert_int_equal(f.epoch_term, 0);
    cw_worker_free(&w);
    free(copy);
    saved.release(saved.owner);
    wr_free(&y);
    wr_free(&x);
}

static void steps_of_the_local_clock_change_no_ticket(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    Cw__Pb__Hello h;
    uint8_t *ticket;
    wr_good_hello(&x, &h, &x.edge_a, x.r.wall_ms + 5000 + 3600 * 1000, &ticket);
    for (int i = 0; i < 2; i++) {
        x.r.wall_ms += i ? -(int64_t)20 * 365 * 86400000 : (int64_t)10 * 365 * 86400000;
        rig_tick(&x.r, 100000);
        rig_clear(&x.r);
        wr_hello(&x, 1 + (cw_link)i, &x.edge_a, &h);
        assert_non_null(rig_sent(&x.r, 1 + (cw_link)i, MSG(WELCOME)));
    }
    cw_free(ticket);
    wr_free(&x);
}

/* --- chunks --- */

static void worker_hello(worker_rig *x, cw_link link, cw_right right)
{
    Cw__Pb__Hello h;
    uint8_t *old, *bytes;
    size_t n;
    wr_good_hello(x, &h, &x->edge_b, x->r.wall_ms + 5000 + 3600 * 1000, &old);
    cw_ticket t = {.edge = x->edge_b,
                   .right = right,
                   .not_after_ms = (uint64_t)x->r.wall_ms + 5000 + 3600 * 1000,
                   .streams = 1};
    memcpy(t.cluster, x->cluster, sizeof t.cluster);
    memcpy(t.model_digest, x->digest, sizeof t.model_digest);
    assert_int_equal(cw_ticket_sign(x->signer, &t, &bytes, &n, NULL), CW_OK);
    h.role = CW__PB__ROLE__ROLE_WORKER;
    h.ticket = (ProtobufCBinaryData){n, bytes};
    rig_clear(&x->r);
    wr_hello(x, link, &x->edge_b, &h);
    cw_free(old);
    cw_free(bytes);
}

static void ask(worker_rig *x, cw_link link, uint32_t chunk, uint64_t offset, uint32_t length)
{
    Cw__Pb__ChunkGet m = CW__PB__CHUNK_GET__INIT;
    m.chunk = chunk, m.offset = offset, m.length = length;
    ENV(env, CHUNK_GET, chunk_get, &m);
    rig_message(&x->r, link, CW_PORT_DATA, &x->edge_b, &env, NULL, 0);
    wr_acts(x);
}

static void giver(worker_rig *x, uint64_t rate)
{
    cw_worker_config c;
    wr_new(x, NULL);
    wr_config(x, &c);
    wr_free(x);
    c.gives_chunks = true;
    c.chunk_rate = rate;
    wr_boot(x, &c);
}

static void read_back(worker_rig *x, size_t n, const char *text)
{
    uint8_t *mem;
    cw_frame f = n ? cw_frame_new(n, &mem) : (cw_frame){0};
    if (n) memset(mem, 7, n);
    cw_worker_act a = x->read;
    x->read = (cw_worker_act){0};
    cw_worker_read(x->w, a.link, a.chunk, a.offset, 5000, f, text, x->r.now_us, x->r.wall_ms, &x->r.out);
    wr_acts(x);
}

static void a_worker_with_a_ticket_for_chunks_gets_them_one_at_a_time(void **state)
{
    (void)state;
    worker_rig x;
    giver(&x, 0);
    worker_hello(&x, 1, CW_RIGHT_CALLS);
    assert_non_null(rig_sent(&x.r, 1, MSG(REFUSAL)));
    worker_hello(&x, 2, CW_RIGHT_CHUNKS);
    assert_non_null(rig_sent(&x.r, 2, MSG(WELCOME)));
    rig_clear(&x.r);
    ask(&x, 2, 11, 0, 1000);
    ask(&x, 2, 12, 1000, 1000);
    assert_int_equal(x.read.chunk, 11);
    read_back(&x, 1000, "");
    cw_action *a = rig_sent(&x.r, 2, MSG(CHUNK_PART));
    assert_non_null(a);
    assert_int_equal(a->msg->env->chunk_part->chunk, 11);
    assert_int_equal(a->msg->env->chunk_part->total, 5000);
    assert_int_equal(a->msg->frames[0].len, 1000);
    assert_int_equal(x.read.chunk, 12);
    assert_int_equal(x.read.offset, 1000);
    read_back(&x, 0, "it is not here");
    a = rig_sent(&x.r, 2, MSG(STORE_FAIL));
    assert_non_null(a);
    assert_string_equal(a->msg->env->store_fail->text, "it is not here");
    /* Gone while its part is being read. */
    ask(&x, 2, 13, 0, 1000);
    rig_down(&x.r, 2, "gone");
    rig_clear(&x.r);
    read_back(&x, 1000, "");
    assert_int_equal(rig_count(&x.r, CW_ACT_SEND, 2, 0), 0);
    wr_free(&x);
}

static void too_many_requests_or_the_wrong_peer_cost_the_link(void **state)
{
    (void)state;
    worker_rig x;
    giver(&x, 0);
    worker_hello(&x, 2, CW_RIGHT_CHUNKS);
    rig_clear(&x.r);
    for (int i = 0; i < 40; i++) ask(&x, 2, 1, 0, 1000);
    assert_non_null(rig_action(&x.r, CW_ACT_BLAME, 2, 0, 0));
    wr_edge(&x, 3, &x.edge_a);
    ask(&x, 3, 1, 0, 1000);
    assert_non_null(rig_action(&x.r, CW_ACT_BLAME, 3, 0, 0));
    wr_free(&x);
}

static void chunks_are_given_slowly_while_calls_are_served(void **state)
{
    (void)state;
    worker_rig x;
    giver(&x, 100000); /* bytes a second */
    wr_edge(&x, 1, &x.edge_a);
    worker_hello(&x, 2, CW_RIGHT_CHUNKS);
    static const cw_entry e[] = {{0, 3, 1}};
    int parts[2] = {0};
    bool asked = false; /* and waiting for its turn */
    uint64_t id = 0;
    for (int serving = 0; serving < 2; serving++)
        for (int i = 0; i < 100; i++) {
            if (serving) {
                wr_send_call(&x, 1,
                             &(wr_call){.id = ++id, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
                wr_compute(&x, -1);
            }
            if (!asked) ask(&x, 2, 1, 0, 10000);
            asked = !x.read.length;
            if (x.read.length) read_back(&x, 10000, "");
            parts[serving] += rig_count(&x.r, CW_ACT_SEND, 2, MSG(CHUNK_PART));
            rig_clear(&x.r);
            rig_tick(&x.r, 20000);
            wr_acts(&x);
        }
    assert_true(parts[0] >= 95);
    assert_in_range(parts[1], 15, 25); /* two seconds of ten parts each */
    wr_free(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(saved_state_serves_again_without_a_coordinator),
        cmocka_unit_test(a_coordinator_that_is_there_says_itself_what_to_hold),
        cmocka_unit_test(revoked_keys_stay_revoked),
        cmocka_unit_test(damaged_state_is_a_fresh_start),
        cmocka_unit_test(steps_of_the_local_clock_change_no_ticket),
        cmocka_unit_test(a_worker_with_a_ticket_for_chunks_gets_them_one_at_a_time),
        cmocka_unit_test(too_many_requests_or_the_wrong_peer_cost_the_link),
        cmocka_unit_test(chunks_are_given_slowly_while_calls_are_served),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
