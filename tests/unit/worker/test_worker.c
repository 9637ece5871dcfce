/* The worker machine: the control link, holdings, who may call. */
#include "worker_rig.h"

static void never_enrolled_says_enrol_then_hello(void **state)
{
    (void)state;
    worker_rig x;
    wr_new(&x, NULL);
    wr_connect(&x);
    cw_action *a = rig_sent(&x.r, x.co, MSG(ENROL));
    assert_non_null(a);
    assert_memory_equal(a->msg->env->enrol->token.data, "token", 5);
    assert_string_equal(a->msg->env->enrol->hello->worker->data_address, "tcp://127.0.0.1:6000");
    rig_clear(&x.r);
    wr_welcome(&x, NULL, 0);
    assert_int_equal(x.n_enrolled, 1);
    assert_int_equal(x.n_get_model, 1);
    /* Holdings at once, though nothing is loaded. */
    a = rig_sent(&x.r, x.co, MSG(HOLDINGS));
    assert_non_null(a);
    assert_int_equal(a->msg->env->holdings->n_ready, 0);
    /* The link is lost: the next introduction is a Hello. */
    rig_clear(&x.r);
    rig_down(&x.r, x.co, "gone");
    wr_connect(&x);
    assert_non_null(rig_sent(&x.r, x.co, MSG(HELLO)));
    assert_null(rig_sent(&x.r, x.co, MSG(ENROL)));
    wr_free(&x);
}

static void unknown_key_with_a_token_enrols(void **state)
{
    (void)state;
    worker_rig x;
    wr_new(&x, NULL);
    cw_worker_config c;
    wr_config(&x, &c);
    wr_free(&x);
    c.enrolled = true;
    wr_new(&x, &c);
    wr_connect(&x);
    assert_non_null(rig_sent(&x.r, x.co, MSG(HELLO)));
    rig_clear(&x.r);
    wr_refusal(&x, x.co, CW__PB__REFUSAL_CODE__REFUSAL_UNKNOWN_KEY, 0);
    assert_int_equal(x.stopped, -1);
    wr_connect(&x);
    assert_non_null(rig_sent(&x.r, x.co, MSG(ENROL)));
    wr_free(&x);
}

static void a_final_refusal_ends_the_process_in_words(void **state)
{
    (void)state;
    static const Cw__Pb__RefusalCode codes[] = {
        CW__PB__REFUSAL_CODE__REFUSAL_TOKEN,      CW__PB__REFUSAL_CODE__REFUSAL_REVOKED,
        CW__PB__REFUSAL_CODE__REFUSAL_PROTOCOL,   CW__PB__REFUSAL_CODE__REFUSAL_NUMERICS,
        CW__PB__REFUSAL_CODE__REFUSAL_MODEL,      CW__PB__REFUSAL_CODE__REFUSAL_NAME,
        CW__PB__REFUSAL_CODE__REFUSAL_UNKNOWN_KEY};
    for (size_t i = 0; i < CW_ARRAY_LEN(codes); i++) {
        worker_rig x;
        wr_new(&x, NULL);
        wr_connect(&x);
        rig_clear(&x.r);
        wr_refusal(&x, x.co, codes[i], 0);
        assert_int_equal(x.stopped, 1);
        assert_non_null(strstr(x.stop_text, "because"));
        assert_non_null(strstr(x.stop_text, "5570"));
        wr_free(&x);
    }
}

static void a_refusal_for_now_is_tried_again(void **state)
{
    (void)state;
    worker_rig x;
    wr_new(&x, NULL);
    wr_connect(&x);
    rig_clear(&x.r);
    wr_refusal(&x, x.co, CW__PB__REFUSAL_CODE__REFUSAL_BUSY, 3000);
    assert_int_equal(x.stopped, -1);
    assert_non_null(rig_action(&x.r, CW_ACT_CLOSE, x.co, 0, 0));
    rig_clear(&x.r);
    for (int i = 0; i < 29; i++) rig_tick(&x.r, 100000);
    assert_null(rig_action(&x.r, CW_ACT_OPEN, 0, 0, 0));
    rig_tick(&x.r, 200000);
    assert_non_null(rig_action(&x.r, CW_ACT_OPEN, 0, 0, 0));
    wr_free(&x);
}

static void pauses_grow_and_links_are_never_reused(void **state)
{
    (void)state;
    worker_rig x;
    wr_new(&x, NULL);
    cw_link last = 0;
    int64_t gaps[8], opened = 0;
    for (int i = 0; i < 8; i++) {
        cw_action *a;
        while (!(a = rig_action(&x.r, CW_ACT_OPEN, 0, 0, 0))) rig_tick(&x.r, 10000);
        assert_true(a->link != last);
        last = a->link;
        gaps[i] = x.r.now_us - opened;
        opened = x.r.now_us;
        rig_clear(&x.r);
        rig_down(&x.r, last, "connection refused");
        wr_acts(&x);
        assert_non_null(strstr(x.said, "connection refused"));
    }
    assert_true(gaps[7] > 4 * gaps[1]);
    assert_true(gaps[7] <= 5100000);
    wr_free(&x);
}

static void a_silent_coordinator_is_left_and_edges_are_still_served(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    cw_link old = x.co;
    for (int i = 0; i < 110; i++) rig_tick(&x.r, 100000);
    assert_non_null(rig_action(&x.r, CW_ACT_CLOSE, old, 0, 0));
    assert_null(rig_action(&x.r, CW_ACT_CLOSE, 1, 0, 0));
    static const cw_entry e[] = {{0, 3, 1.0f}};
    wr_send_call(&x, 1, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
    rig_clear(&x.r);
    wr_compute(&x, -1);
    assert_non_null(rig_sent(&x.r, 1, MSG(REPLY)));
    wr_free(&x);
}

static void holdings_tell_what_is_ready_and_the_last_seq(void **state)
{
    (void)state;
    worker_rig x;
    wr_new(&x, NULL);
    wr_connect(&x);
    wr_welcome(&x, NULL, 0);
    wr_model(&x);
    rig_clear(&x.r);
    x.hold_loads = true;
    wr_assign(&x, true, 1, 0x05);
    assert_int_equal(x.n_held, 2);
    cw_worker_loaded(x.w, 1, x.held[0][1], true, "", x.r.now_us, x.r.wall_ms, &x.r.out);
    rig_tick(&x.r, 600000);
    cw_action *a = rig_sent(&x.r, x.co, MSG(HOLDINGS));
    assert_non_null(a);
    assert_int_equal(a->msg->env->holdings->seq, 0); /* not carried out whole yet */
    assert_int_equal(a->msg->env->holdings->n_ready, 1);
    assert_int_equal(a->msg->env->holdings->ready[0]->experts.data[0], 0x01);
    rig_clear(&x.r);
    cw_worker_loaded(x.w, 1, x.held[1][1], true, "", x.r.now_us, x.r.wall_ms, &x.r.out);
    a = rig_sent(&x.r, x.co, MSG(HOLDINGS));
    assert_non_null(a);
    assert_int_equal(a->msg->env->holdings->seq, 1);
    assert_int_equal(a->msg->env->holdings->ready[0]->experts.data[0], 0x05);
    assert_int_equal(a->msg->env->holdings->memory_used, 2 * PACKED);
    rig_clear(&x.r);
    x.hold_loads = false;
    wr_assign(&x, false, 1, 0x01);
    rig_tick(&x.r, 100);
    wr_acts(&x);
    assert_int_equal(x.n_unloads, 1);
    a = rig_sent(&x.r, x.co, MSG(HOLDINGS));
    assert_int_equal(a->msg->env->holdings->seq, 2);
    assert_int_equal(a->msg->env->holdings->ready[0]->experts.data[0], 0x04);
    assert_false(cw_worker_is_ready(x.w, 1, 0));
    assert_true(cw_worker_is_ready(x.w, 1, 2));
    wr_free(&x);
}

static void the_memory_limit_takes_less_and_says_so(void **state)
{
    (void)state;
    worker_rig x;
    wr_new(&x, NULL);
    cw_worker_config c;
    wr_config(&x, &c);
    wr_free(&x);
    c.memory_bytes = 3 * PACKED + PACKED / 2;
    wr_new(&x, &c);
    wr_connect(&x);
    wr_welcome(&x, NULL, 0);
    wr_model(&x);
    rig_clear(&x.r);
    wr_assign(&x, true, 1, 0xff);
    for (int i = 0; i < 5; i++) rig_tick(&x.r, 100000), wr_acts(&x);
    cw_worker_facts f;
    cw_worker_get_facts(x.w, &f);
    assert_int_equal(f.n_ready, 3);
    assert_true(f.memory_used <= c.memory_bytes);
    assert_non_null(strstr(x.said, "serving 3 of 16 experts"));
    cw_action *a = NULL;
    for (int i = 0; rig_action(&x.r, CW_ACT_SEND, x.co, MSG(HOLDINGS), i); i++)
        a = rig_action(&x.r, CW_ACT_SEND, x.co, MSG(HOLDINGS), i);
    assert_non_null(strstr(a->msg->env->holdings->trouble, "no room for 5"));
    /* Room made by a Drop is used. */
    wr_assign(&x, false, 1, 0x01);
    for (int i = 0; i < 5; i++) rig_tick(&x.r, 100000), wr_acts(&x);
    cw_worker_get_facts(x.w, &f);
    assert_int_equal(f.n_ready, 3);
    wr_free(&x);
}

static void a_failed_load_is_trouble_and_is_tried_again(void **state)
{
    (void)state;
    worker_rig x;
    wr_new(&x, NULL);
    wr_connect(&x);
    wr_welcome(&x, NULL, 0);
    wr_model(&x);
    x.load_fails = true;
    wr_assign(&x, true, 1, 0x01);
    rig_clear(&x.r);
    rig_tick(&x.r, 600000);
    cw_worker_facts f;
    cw_worker_get_facts(x.w, &f);
    assert_int_equal(f.n_ready, 0);
    x.load_fails = false;
    for (int i = 0; i < 60; i++) rig_tick(&x.r, 100000), wr_acts(&x);
    cw_worker_get_facts(x.w, &f);
    assert_int_equal(f.n_ready, 1);
    assert_int_equal(x.n_loads, 2);
    wr_free(&x);
}

static void another_model_than_the_local_file_is_said_with_both_digests(void **state)
{
    (void)state;
    worker_rig x;
    wr_new(&x, NULL);
    cw_worker_config c;
    wr_config(&x, &c);
    wr_free(&x);
    c.has_local_model = true;
    memset(c.local_digest, 0xab, sizeof c.local_digest);
    wr_new(&x, &c);
    wr_connect(&x);
    assert_int_equal(rig_sent(&x.r, x.co, MSG(ENROL))->msg->env->enrol->hello->model_digest.len,
                     CW_DIGEST_BYTES);
    rig_clear(&x.r);
    wr_welcome(&x, NULL, 0);
    assert_int_equal(x.stopped, 1);
    assert_non_null(strstr(x.stop_text, "abababab"));
    assert_non_null(strstr(x.stop_text, "05050505"));
    wr_free(&x);
}

static void epochs_only_rise_and_must_be_signed(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    cw_worker_facts f;
    wr_epoch_news(&x, 2, 7);
    wr_epoch_news(&x, 2, 6);
    wr_epoch_news(&x, 1, 99);
    cw_worker_get_facts(x.w, &f);
    assert_int_equal(f.epoch_term, 2);
    assert_int_equal(f.epoch_number, 7);
    /* Signed by somebody else. */
    cw_signer *mine = x.signer;
    assert_int_equal(cw_signer_new(&x.signer, NULL), CW_OK);
    wr_epoch_news(&x, 9, 9);
    cw_signer_free(&x.signer);
    x.signer = mine;
    cw_worker_get_facts(x.w, &f);
    assert_int_equal(f.epoch_term, 2);
    wr_epoch_news(&x, 3, 1);
    cw_worker_get_facts(x.w, &f);
    assert_int_equal(f.epoch_term, 3);
    wr_free(&x);
}

static Cw__Pb__RefusalCode refused_with(worker_rig *x, cw_link link)
{
    cw_action *a = rig_sent(&x->r, link, MSG(REFUSAL));
    assert_non_null(a);
    assert_true(a->msg->env->refusal->text[0]);
    assert_non_null(rig_action(&x->r, CW_ACT_CLOSE, link, 0, 0));
    assert_null(rig_action(&x->r, CW_ACT_ADMIT, link, 0, 0));
    Cw__Pb__RefusalCode code = a->msg->env->refusal->code;
    rig_clear(&x->r);
    return code;
}

static void edges_are_refused_in_words(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    Cw__Pb__Hello h, good;
    uint8_t *ticket, *other, digest[CW_DIGEST_BYTES] = {9};
    int64_t good_until = x.r.wall_ms + 5000 + 3600 * 1000;
    cw_link link = 1;
    wr_good_hello(&x, &good, &x.edge_a, good_until, &ticket);

    h = good, h.proto_min = h.proto_max = 2;
    wr_hello(&x, ++link, &x.edge_a, &h);
    assert_int_equal(refused_with(&x, link), CW__PB__REFUSAL_CODE__REFUSAL_PROTOCOL);
    h = good, h.arithmetic_id = 2;
    wr_hello(&x, ++link, &x.edge_a, &h);
    assert_int_equal(refused_with(&x, link), CW__PB__REFUSAL_CODE__REFUSAL_NUMERICS);
    h = good, h.fingerprint = 78;
    wr_hello(&x, ++link, &x.edge_a, &h);
    assert_int_equal(refused_with(&x, link), CW__PB__REFUSAL_CODE__REFUSAL_NUMERICS);
    h = good, h.model_digest.data = digest;
    wr_hello(&x, ++link, &x.edge_a, &h);
    assert_int_equal(refused_with(&x, link), CW__PB__REFUSAL_CODE__REFUSAL_MODEL);
    h = good, h.ticket.len = 0;
    wr_hello(&x, ++link, &x.edge_a, &h);
    assert_int_equal(refused_with(&x, link), CW__PB__REFUSAL_CODE__REFUSAL_TICKET);
    /* One flipped bit. */
    ticket[20] ^= 1;
    wr_hello(&x, ++link, &x.edge_a, &good);
    assert_int_equal(refused_with(&x, link), CW__PB__REFUSAL_CODE__REFUSAL_TICKET);
    ticket[20] ^= 1;
    /* A ticket copied to another key. */
    rig_clear(&x.r);
    wr_hello(&x, ++link, &x.edge_b, &good);
    assert_non_null(strstr(rig_sent(&x.r, link, MSG(REFUSAL))->msg->env->refusal->text, "another key"));
    assert_int_equal(refused_with(&x, link), CW__PB__REFUSAL_CODE__REFUSAL_TICKET);
    /* Of another cluster. */
    x.cluster[0] ^= 1;
    wr_good_hello(&x, &h, &x.edge_a, good_until, &other);
    x.cluster[0] ^= 1;
    wr_hello(&x, ++link, &x.edge_a, &h);
    assert_int_equal(refused_with(&x, link), CW__PB__REFUSAL_CODE__REFUSAL_TICKET);
    cw_free(other);
    /* And the good one is let in. */
    wr_hello(&x, ++link, &x.edge_a, &good);
    assert_non_null(rig_action(&x.r, CW_ACT_ADMIT, link, 0, 0));
    cw_free(ticket);
    wr_free(&x);
}

static bool let_in(worker_rig *x, cw_link link, int64_t not_after_ms)
{
    Cw__Pb__Hello h;
    uint8_t *ticket;
    wr_good_hello(x, &h, &x->edge_a, not_after_ms, &ticket);
    rig_clear(&x->r);
    wr_hello(x, link, &x->edge_a, &h);
    cw_free(ticket);
    bool in = rig_action(&x->r, CW_ACT_ADMIT, link, 0, 0) != NULL;
    if (in) rig_down(&x->r, link, "done");
    rig_clear(&x->r);
    return in;
}

static void tickets_end_by_the_coordinators_clock_with_a_days_grace_in_its_absence(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    const int64_t hour = 3600 * 1000, cluster = 5000;
    cw_key nobody = {{8}};
    (void)nobody;
    /* Long after the coordinator came (a fresh admission gives edges time to renew): keep it alive with
     * pongs. */
    for (int i = 0; i < 130; i++) {
        rig_tick(&x.r, 1000000);
        Cw__Pb__Pong p = CW__PB__PONG__INIT;
        p.wall_ms = (uint64_t)(x.r.wall_ms + cluster);
        ENV(env, PONG, pong, &p);
        rig_message(&x.r, x.co, CW_PORT_CONTROL, &x.coordinator, &env, NULL, 0);
        rig_clear(&x.r);
    }
    int64_t now = x.r.wall_ms + cluster;
    assert_true(let_in(&x, 11, now + 1000));
    assert_false(let_in(&x, 12, now - 1000));         /* over by the coordinator's clock */
    assert_false(let_in(&x, 13, x.r.wall_ms + 1000)); /* good only by ours */
    rig_down(&x.r, x.co, "gone");
    assert_true(let_in(&x, 14, now - 1000));
    assert_true(let_in(&x, 15, now - 23 * hour));
    assert_false(let_in(&x, 16, now - 25 * hour));
    wr_free(&x);
}

/* A second with the coordinator there; whether the link of this edge was closed in it. */
static bool a_second_closes(worker_rig *x, cw_link link)
{
    rig_clear(&x->r);
    rig_tick(&x->r, 1000000);
    bool closed = rig_action(&x->r, CW_ACT_CLOSE, link, 0, 0) != NULL;
    Cw__Pb__Pong p = CW__PB__PONG__INIT;
    p.wall_ms = (uint64_t)x->r.wall_ms;
    ENV(env, PONG, pong, &p);
    rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, NULL, 0);
    return closed;
}

static void who_always_has_a_call_under_way_cannot_stay_for_ever(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    for (int i = 0; i < 130; i++) (void)a_second_closes(&x, 0);
    for (cw_link link = 1; link <= 2; link++) {
        Cw__Pb__Hello h;
        uint8_t *ticket;
        wr_good_hello(&x, &h, &x.edge_a, x.r.wall_ms + 10000, &ticket);
        wr_hello(&x, link, &x.edge_a, &h);
        assert_non_null(rig_action(&x.r, CW_ACT_ADMIT, link, 0, 0));
        cw_free(ticket);
    }
    static const cw_entry e[] = {{0, 3, 1}};
    wr_send_call(&x, 1, &(wr_call){.id = 1, .layer = 1, .n_rows = 1, .n_entries = 1, .entries = e});
    assert_int_equal(x.n_jobs, 1);
    int idle_s = 0, busy_s = 0;
    while (++idle_s < 100 && !a_second_closes(&x, 2)) {
    }
    while (idle_s + ++busy_s < 200 && !a_second_closes(&x, 1)) {
    }
    assert_in_range(idle_s, 10, 12);
    assert_in_range(idle_s + busy_s, 69, 73);
    wr_compute(&x, -1); /* its answer is for nobody */
    assert_null(rig_sent(&x.r, 1, MSG(REPLY)));
    wr_free(&x);
}

static void a_revoked_key_is_cut_and_gets_no_grace(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    wr_edge(&x, 2, &x.edge_b);
    Cw__Pb__Ticket m = CW__PB__TICKET__INIT;
    m.wall_ms = (uint64_t)x.r.wall_ms + 5000;
    m.revoked = (ProtobufCBinaryData){CW_KEY_BYTES, x.edge_a.b};
    ENV(env, TICKET, ticket, &m);
    rig_message(&x.r, x.co, CW_PORT_CONTROL, &x.coordinator, &env, NULL, 0);
    wr_acts(&x);
    assert_int_equal(x.n_revoked, 1);
    assert_non_null(rig_action(&x.r, CW_ACT_CLOSE, 1, 0, 0));
    assert_null(rig_action(&x.r, CW_ACT_CLOSE, 2, 0, 0));
    rig_down(&x.r, x.co, "gone");
    assert_false(let_in(&x, 3, x.r.wall_ms + 5000 + 1000000));
    wr_free(&x);
}

static void a_peer_that_says_nothing_is_let_go(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    rig_up(&x.r, 9, CW_PORT_DATA, &x.edge_a);
    rig_tick(&x.r, 1900000);
    assert_null(rig_action(&x.r, CW_ACT_CLOSE, 9, 0, 0));
    rig_tick(&x.r, 200000);
    assert_non_null(rig_action(&x.r, CW_ACT_CLOSE, 9, 0, 0));
    wr_free(&x);
}

static void one_key_has_few_links(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    for (cw_link l = 1; l <= 4; l++) wr_edge(&x, l, &x.edge_a);
    Cw__Pb__Hello h;
    uint8_t *ticket;
    wr_good_hello(&x, &h, &x.edge_a, x.r.wall_ms + 1000000, &ticket);
    wr_hello(&x, 5, &x.edge_a, &h);
    assert_int_equal(refused_with(&x, 5), CW__PB__REFUSAL_CODE__REFUSAL_FULL);
    cw_free(ticket);
    wr_edge(&x, 6, &x.edge_b);
    wr_free(&x);
}

static void stopping_says_bye_to_everybody(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    wr_edge(&x, 1, &x.edge_a);
    cw_worker_stop(x.w, x.r.now_us, x.r.wall_ms, &x.r.out);
    wr_acts(&x);
    assert_non_null(rig_sent(&x.r, x.co, MSG(BYE)));
    assert_non_null(rig_sent(&x.r, 1, MSG(BYE)));
    assert_int_equal(x.stopped, 0);
    wr_free(&x);
}

static void an_edge_of_the_next_release_is_let_in_with_what_both_know(void **state)
{
    (void)state;
    worker_rig x;
    wr_boot(&x, NULL);
    Cw__Pb__Hello h;
    uint8_t *ticket;
    wr_good_hello(&x, &h, &x.edge_a, x.r.wall_ms + 1000000, &ticket);
    h.proto_min = CW_PROTO_MAX, h.proto_max = CW_PROTO_MAX + 1;
    wr_hello(&x, 1, &x.edge_a, &h);
    const cw_action *a = rig_sent(&x.r, 1, MSG(WELCOME));
    assert_non_null(a);
    assert_int_equal(a->msg->env->welcome->proto, CW_PROTO_MAX);
    cw_free(ticket);
    wr_free(&x);
}

static void leaving(worker_rig *x, uint32_t drain_ms)
{
    cw_worker_config c;
    wr_new(x, NULL);
    wr_config(x, &c);
    wr_free(x);
    c.drain_ms = drain_ms;
    wr_boot(x, &c);
    wr_edge(x, 1, &x->edge_a);
    cw_worker_stop(x->w, x->r.now_us, x->r.wall_ms, &x->r.out);
    wr_acts(x);
    assert_non_null(rig_sent(&x->r, x->co, MSG(LEAVE)));
    assert_null(rig_sent(&x->r, x->co, MSG(BYE)));
    assert_int_equal(x->stopped, -1);
}

static void a_worker_that_is_told_to_stop_serves_until_it_is_released(void **state)
{
    (void)state;
    worker_rig x;
    leaving(&x, 30000);
    for (int i = 0; i < 50; i++) rig_tick(&x.r, 100000);
    wr_acts(&x);
    assert_int_equal(x.stopped, -1);
    wr_edge(&x, 2, &x.edge_b); /* still let in */
    Cw__Pb__Released r = CW__PB__RELEASED__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    env.body_case = MSG(RELEASED), env.released = &r;
    rig_message(&x.r, x.co, CW_PORT_CONTROL, &x.coordinator, &env, NULL, 0);
    wr_acts(&x);
    assert_non_null(rig_sent(&x.r, x.co, MSG(BYE)));
    assert_non_null(rig_sent(&x.r, 2, MSG(BYE)));
    assert_int_equal(x.stopped, 0);
    wr_free(&x);
}

static void a_worker_that_is_not_released_goes_in_time_or_when_asked_twice(void **state)
{
    (void)state;
    worker_rig x;
    leaving(&x, 3000);
    for (int i = 0; i < 32; i++) rig_tick(&x.r, 100000);
    wr_acts(&x);
    assert_int_equal(x.stopped, 0);
    wr_free(&x);
    leaving(&x, 30000);
    cw_worker_stop(x.w, x.r.now_us, x.r.wall_ms, &x.r.out);
    wr_acts(&x);
    assert_int_equal(x.stopped, 0);
    wr_free(&x);
    leaving(&x, 30000); /* nobody is left to wait for */
    rig_down(&x.r, x.co, "gone");
    rig_tick(&x.r, 100000);
    wr_acts(&x);
    assert_int_equal(x.stopped, 0);
    wr_free(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(never_enrolled_says_enrol_then_hello),
        cmocka_unit_test(unknown_key_with_a_token_enrols),
        cmocka_unit_test(a_final_refusal_ends_the_process_in_words),
        cmocka_unit_test(a_refusal_for_now_is_tried_again),
        cmocka_unit_test(pauses_grow_and_links_are_never_reused),
        cmocka_unit_test(a_silent_coordinator_is_left_and_edges_are_still_served),
        cmocka_unit_test(holdings_tell_what_is_ready_and_the_last_seq),
        cmocka_unit_test(the_memory_limit_takes_less_and_says_so),
        cmocka_unit_test(a_failed_load_is_trouble_and_is_tried_again),
        cmocka_unit_test(another_model_than_the_local_file_is_said_with_both_digests),
        cmocka_unit_test(epochs_only_rise_and_must_be_signed),
        cmocka_unit_test(edges_are_refused_in_words),
        cmocka_unit_test(tickets_end_by_the_coordinators_clock_with_a_days_grace_in_its_absence),
        cmocka_unit_test(who_always_has_a_call_under_way_cannot_stay_for_ever),
        cmocka_unit_test(a_revoked_key_is_cut_and_gets_no_grace),
        cmocka_unit_test(a_peer_that_says_nothing_is_let_go),
        cmocka_unit_test(one_key_has_few_links),
        cmocka_unit_test(stopping_says_bye_to_everybody),
        cmocka_unit_test(an_edge_of_the_next_release_is_let_in_with_what_both_know),
        cmocka_unit_test(a_worker_that_is_told_to_stop_serves_until_it_is_released),
        cmocka_unit_test(a_worker_that_is_not_released_goes_in_time_or_when_asked_twice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
