/* Who gets in, who does not and in which words; the life of tokens; revoking. */
#include "rig.h"

#define WORKER  CW__PB__ROLE__ROLE_WORKER
#define EDGE    CW__PB__ROLE__ROLE_EDGE
#define BODY(x) CW__PB__ENVELOPE__BODY_##x

/* The peer is refused with this code, in words that contain `words`, and its link is closed. */
static void expect_refusal(rig *r, int key, rig_intro *in, Cw__Pb__RefusalCode code, const char *words,
                           bool retry)
{
    cw_key k = rig_key(key);
    cw_outbox_clear(&r->out);
    cw_link link = rig_link(r, &k);
    rig_say(r, link, &k, in);
    cw_msg *m = rig_sent(r, link, BODY(REFUSAL));
    assert_non_null(m);
    assert_null(rig_sent(r, link, BODY(WELCOME)));
    assert_false(rig_acted(r, link, CW_ACT_ADMIT));
    if (m->env->refusal->code != code || !strstr(m->env->refusal->text, words))
        fail_msg("refused with %d \"%s\"", (int)m->env->refusal->code, m->env->refusal->text);
    assert_int_equal(m->env->refusal->retry_after_ms != 0, retry);
    assert_true(rig_acted(r, link, CW_ACT_CLOSE));
    assert_true(strlen(m->env->refusal->text) <= CW_TEXT_MAX);
}

static cw_link expect_welcome(rig *r, int key, rig_intro *in)
{
    cw_key k = rig_key(key);
    cw_outbox_clear(&r->out);
    cw_link link = rig_link(r, &k);
    rig_say(r, link, &k, in);
    cw_msg *m = rig_sent(r, link, BODY(REFUSAL));
    if (m) fail_msg("refused: %s", m->env->refusal->text);
    assert_non_null(rig_sent(r, link, BODY(WELCOME)));
    assert_true(rig_acted(r, link, CW_ACT_ADMIT));
    return link;
}

static void every_refusal_has_its_words(void **state)
{
    (void)state;
    rig r;
    rig_intro in;
    uint8_t worker_token[CW_TOKEN_BYTES], edge_token[CW_TOKEN_BYTES];
    rig_open(&r);
    rig_token(&r, WORKER, 8, 3600000, 0, 1, worker_token);
    rig_token(&r, EDGE, 0, 3600000, 2, 2, edge_token);

    rig_introduce(&in, WORKER, "a", RIG_MODEL_BYTES);
    expect_refusal(&r, 1, &in, CW__PB__REFUSAL_CODE__REFUSAL_UNKNOWN_KEY, "--join", false);

    in.enrol = true;
    memset(in.token, 99, sizeof in.token);
    expect_refusal(&r, 1, &in, CW__PB__REFUSAL_CODE__REFUSAL_TOKEN, "not one of this cluster's", false);
    memcpy(in.token, edge_token, sizeof in.token);
    expect_refusal(&r, 1, &in, CW__PB__REFUSAL_CODE__REFUSAL_ROLE, "is for edges, and this is a worker",
                   false);
    memcpy(in.token, worker_token, sizeof in.token);

    in.h.proto_min = in.h.proto_max = CW_PROTO_MAX + 1;
    expect_refusal(&r, 1, &in, CW__PB__REFUSAL_CODE__REFUSAL_PROTOCOL, "update the coordinator", false);
    in.h.proto_min = CW_PROTO_MIN;
    in.h.arithmetic_id = 8;
    expect_refusal(&r, 1, &in, CW__PB__REFUSAL_CODE__REFUSAL_NUMERICS, "arithmetic 8 and this cluster with 7",
                   false);
    in.h.arithmetic_id = RIG_ARITHMETIC;
    in.h.fingerprint = 5;
    expect_refusal(&r, 1, &in, CW__PB__REFUSAL_CODE__REFUSAL_NUMERICS, "test rows come out differently",
                   false);
    in.h.fingerprint = RIG_FINGERPRINT;
    memset(in.digest, 0xee, sizeof in.digest);
    in.h.model_digest = (ProtobufCBinaryData){sizeof in.digest, in.digest};
    expect_refusal(&r, 1, &in, CW__PB__REFUSAL_CODE__REFUSAL_MODEL,
                   "eeeeeeeeeeeeeeee, the cluster serves toy with digest d1d1d1d1d1d1d1d1", false);
    memset(in.digest, 0xd1, sizeof in.digest);
    in.w.data_address = (char *)"tcp://0.0.0.0:4000";
    expect_refusal(&r, 1, &in, CW__PB__REFUSAL_CODE__REFUSAL_NAME, "--advertise", false);
    in.w.data_address = (char *)"tcp://10.0.0.1:4000";

    /* None of these has cost a use. */
    assert_int_equal(r.disk.tokens[0].uses, 0);
    expect_welcome(&r, 1, &in);
    assert_int_equal(r.disk.tokens[0].uses, 1);

    expect_refusal(&r, 2, &in, CW__PB__REFUSAL_CODE__REFUSAL_NAME, "named a is connected already", true);
    rig_introduce(&in, EDGE, "a", 0);
    expect_refusal(&r, 1, &in, CW__PB__REFUSAL_CODE__REFUSAL_ROLE,
                   "admitted as a worker and now says it is an edge", false);
    rig_close(&r);
}

static void full_clusters_say_so(void **state)
{
    (void)state;
    rig r;
    rig_intro in;
    uint8_t token[CW_TOKEN_BYTES];
    rig_open(&r);
    cw_coordinator_free(&r.c);
    r.cfg.max_workers = 1;
    r.cfg.max_edges = 3;
    rig_boot(&r);
    rig_token(&r, WORKER, 8, 3600000, 0, 1, token);
    rig_introduce(&in, WORKER, "a", RIG_MODEL_BYTES);
    in.enrol = true;
    memcpy(in.token, token, sizeof token);
    cw_link link = expect_welcome(&r, 1, &in);
    in.h.name = (char *)"b";
    expect_refusal(&r, 2, &in, CW__PB__REFUSAL_CODE__REFUSAL_FULL, "limit of 1 connected worker", true);
    rig_down(&r, link);
    expect_welcome(&r, 2, &in);

    rig_token(&r, EDGE, 0, 3600000, 2, 2, token);
    rig_introduce(&in, EDGE, "laptop", 0);
    in.enrol = true;
    memcpy(in.token, token, sizeof token);
    expect_welcome(&r, 10, &in);
    link = expect_welcome(&r, 11, &in); /* edges may share a name */
    expect_refusal(&r, 12, &in, CW__PB__REFUSAL_CODE__REFUSAL_FULL,
                   "join string's limit of 2 connected edges", true);
    in.enrol = false;
    expect_welcome(&r, 11, &in); /* a known key comes back in its own place */
    rig_down(&r, link);          /* the old link, which it has left already */
    assert_int_equal(r.disk.tokens[1].uses, 2);
    rig_close(&r);
}

static void tokens_have_uses_and_a_lifetime(void **state)
{
    (void)state;
    rig r;
    rig_intro in;
    uint8_t token[CW_TOKEN_BYTES];
    rig_open(&r);
    rig_token(&r, WORKER, 2, 60000, 0, 1, token);
    rig_introduce(&in, WORKER, "a", RIG_MODEL_BYTES);
    in.enrol = true;
    memcpy(in.token, token, sizeof token);
    expect_welcome(&r, 1, &in);
    in.h.name = (char *)"b";
    expect_welcome(&r, 2, &in);
    in.h.name = (char *)"c";
    expect_refusal(&r, 3, &in, CW__PB__REFUSAL_CODE__REFUSAL_TOKEN, "used up (2 of 2)", false);
    in.h.name = (char *)"b";
    expect_welcome(&r, 2, &in); /* the same string again changes nothing for a known key */
    assert_int_equal(r.disk.tokens[0].uses, 2);

    uint8_t late[CW_TOKEN_BYTES];
    rig_token(&r, WORKER, 8, 60000, 0, 2, late);
    memcpy(in.token, late, sizeof late);
    r.wall_ms += 60000 + 3 * 60000;
    in.h.name = (char *)"d";
    expect_refusal(&r, 4, &in, CW__PB__REFUSAL_CODE__REFUSAL_TOKEN, "expired 3 minutes ago", false);
    in.h.name = (char *)"a";
    in.enrol = false;
    expect_welcome(&r, 1, &in); /* known keys need no token */
    rig_close(&r);
}

static void bad_tokens_are_not_made(void **state)
{
    (void)state;
    rig r;
    rig_open(&r);
    uint32_t id;
    cw_token_row t = {.role = CW__PB__ROLE__ROLE_NONE, .created_ms = 1, .expires_ms = 2};
    assert_int_equal(cw_coordinator_token_add(r.c, &t, &id, NULL), CW_STATUS_INVALID);
    t.role = EDGE;
    t.expires_ms = 1;
    assert_int_equal(cw_coordinator_token_add(r.c, &t, &id, NULL), CW_STATUS_INVALID);
    rig_close(&r);
}

static void revoking_a_token_revokes_all_it_admitted(void **state)
{
    (void)state;
    rig r;
    rig_intro in;
    uint8_t bad[CW_TOKEN_BYTES], good[CW_TOKEN_BYTES], workers[CW_TOKEN_BYTES];
    rig_worker w = {0};
    rig_open(&r);
    uint32_t bad_id = rig_token(&r, EDGE, 0, 3600000, 0, 1, bad);
    rig_token(&r, EDGE, 0, 3600000, 0, 2, good);
    rig_token(&r, WORKER, 0, 3600000, 0, 3, workers);
    rig_worker_join(&r, &w, 1, "w", RIG_MODEL_BYTES, workers);
    rig_introduce(&in, EDGE, "e", 0);
    in.enrol = true;
    memcpy(in.token, bad, sizeof bad);
    cw_link l10 = expect_welcome(&r, 10, &in);
    cw_link l11 = expect_welcome(&r, 11, &in);
    memcpy(in.token, good, sizeof good);
    cw_link l12 = expect_welcome(&r, 12, &in);
    rig_down(&r, l11); /* one of them is away */
    cw_outbox_clear(&r.out);
    uint32_t n = 0;
    assert_int_equal(cw_coordinator_token_revoke(r.c, bad_id, r.now_us, r.wall_ms, &r.out, &n, NULL), CW_OK);
    rig_save(&r);
    assert_int_equal(n, 2);
    assert_true(rig_acted(&r, l10, CW_ACT_CLOSE));
    assert_non_null(rig_sent(&r, l10, BODY(BYE)));
    assert_false(rig_acted(&r, l12, CW_ACT_CLOSE));
    /* workers hear which edges they must not serve any more */
    cw_msg *m = rig_sent(&r, w.link, BODY(TICKET));
    assert_non_null(m);
    assert_int_equal(m->env->ticket->revoked.len, 2 * CW_KEY_BYTES);
    assert_memory_equal(m->env->ticket->revoked.data, rig_key(10).b, CW_KEY_BYTES);

    in.enrol = false;
    expect_refusal(&r, 10, &in, CW__PB__REFUSAL_CODE__REFUSAL_REVOKED, "revoked by the operator", false);
    in.enrol = true; /* with a good token too: the key is burnt */
    expect_refusal(&r, 11, &in, CW__PB__REFUSAL_CODE__REFUSAL_REVOKED, "revoked by the operator", false);
    memcpy(in.token, bad, sizeof bad);
    expect_refusal(&r, 13, &in, CW__PB__REFUSAL_CODE__REFUSAL_TOKEN, "was revoked", false);
    assert_int_equal(cw_coordinator_token_revoke(r.c, 77, r.now_us, r.wall_ms, &r.out, &n, NULL),
                     CW_STATUS_NOT_FOUND);

    /* and it stays so */
    rig_restart(&r);
    expect_refusal(&r, 13, &in, CW__PB__REFUSAL_CODE__REFUSAL_TOKEN, "was revoked", false);
    in.enrol = false;
    expect_refusal(&r, 10, &in, CW__PB__REFUSAL_CODE__REFUSAL_REVOKED, "revoked by the operator", false);
    expect_welcome(&r, 12, &in);
    rig_close(&r);
}

/* A leaked token without a limit of uses may have admitted more keys than a Welcome holds. */
static void any_number_of_revoked_edges_keeps_no_worker_out(void **state)
{
    (void)state;
    enum { N = 9000, MOST = CW_HEADER_MAX / 4 + CW_HELLO_MAX };
    rig r;
    rig_open(&r);
    cw_coordinator_free(&r.c);
    cw_key_row *keys = cw_calloc(N, sizeof *keys);
    assert_non_null(keys);
    for (uint32_t i = 0; i < N; i++) {
        keys[i] = (cw_key_row){.role = EDGE, .token_id = 1, .revoked = true};
        memcpy(keys[i].key.b, &i, sizeof i);
    }
    cw_coordinator_state s = {.keys = keys, .n_keys = N, .term = 1};
    assert_int_equal(cw_coordinator_new(&r.cfg, &s, r.now_us, &r.c, NULL), CW_OK);
    cw_coordinator_rows_clear(r.c);
    uint8_t token[CW_TOKEN_BYTES];
    rig_token(&r, WORKER, 8, 3600000, 0, 5, token);
    rig_worker w = {0};
    rig_worker_join(&r, &w, 1, "w", RIG_MODEL_BYTES, token);
    cw_msg *m = rig_sent(&r, w.link, BODY(WELCOME));
    assert_true(cw_msg_header_bytes(m->env) <= MOST);
    /* The last of them is among those that are told. */
    ProtobufCBinaryData list = m->env->welcome->revoked;
    assert_true(list.len >= CW_KEY_BYTES);
    assert_memory_equal(list.data + list.len - CW_KEY_BYTES, keys[N - 1].key.b, CW_KEY_BYTES);
    cw_free(keys);
    rig_close(&r);
}

static void a_revoked_worker_leaves_the_epoch_at_once(void **state)
{
    (void)state;
    rig r;
    uint8_t token[CW_TOKEN_BYTES];
    rig_worker a = {0}, b = {0}, *ws[] = {&a, &b};
    rig_open(&r);
    rig_token(&r, WORKER, 8, 3600000, 0, 1, token);
    rig_worker_join(&r, &a, 1, "a", RIG_MODEL_BYTES, token);
    rig_worker_join(&r, &b, 2, "b", RIG_MODEL_BYTES, token);
    rig_run(&r, ws, 2, 2000);
    assert_int_equal(rig_in_epoch(&r, &a.key), RIG_TOTAL_EXPERTS);
    assert_true(cw_coordinator_is_worker(r.c, &a.key));
    assert_int_equal(cw_coordinator_key_revoke(r.c, &a.key, r.now_us, r.wall_ms, &r.out, NULL), CW_OK);
    rig_save(&r);
    assert_int_equal(rig_in_epoch(&r, &a.key), -1);
    assert_int_equal(rig_in_epoch(&r, &b.key), RIG_TOTAL_EXPERTS);
    assert_false(cw_coordinator_is_worker(r.c, &a.key));
    cw_key nobody = rig_key(50);
    assert_int_equal(cw_coordinator_key_revoke(r.c, &nobody, r.now_us, r.wall_ms, &r.out, NULL),
                     CW_STATUS_NOT_FOUND);
    rig_close(&r);
}

static void welcome_carries_what_the_role_needs(void **state)
{
    (void)state;
    rig r;
    rig_intro in;
    uint8_t wt[CW_TOKEN_BYTES], et[CW_TOKEN_BYTES];
    rig_worker w = {0}, *ws[] = {&w};
    rig_open(&r);
    rig_token(&r, WORKER, 8, 3600000, 0, 1, wt);
    rig_token(&r, EDGE, 0, 3600000, 0, 2, et);
    rig_worker_join(&r, &w, 1, "", RIG_MODEL_BYTES, wt);
    cw_msg *m = rig_sent(&r, w.link, BODY(WELCOME));
    assert_string_equal(m->env->welcome->store_address, "tcp://127.0.0.1:5571");
    assert_int_equal(m->env->welcome->ticket.len, 0);
    cw_coordinator_worker facts;
    assert_true(cw_coordinator_get_worker(r.c, 0, &facts));
    assert_memory_equal(facts.name, "worker-01", 9); /* a name from the key for one without */
    rig_run(&r, ws, 1, 2000);

    rig_introduce(&in, EDGE, "e", 0);
    in.enrol = true;
    memcpy(in.token, et, sizeof et);
    cw_link link = expect_welcome(&r, 10, &in);
    m = rig_sent(&r, link, BODY(WELCOME));
    assert_int_equal(m->n_frames, 1); /* the newest epoch */
    assert_memory_equal(m->env->welcome->sign_key.data, cw_signer_public(r.signer)->b, CW_KEY_BYTES);
    cw_ticket t;
    cw_err err;
    if (cw_ticket_verify(cw_signer_public(r.signer), m->env->welcome->ticket.data,
                         m->env->welcome->ticket.len, &t, &err) != CW_OK)
        fail_msg("%s", err.text);
    assert_memory_equal(t.edge.b, rig_key(10).b, CW_KEY_BYTES);
    assert_int_equal(t.not_after_ms, r.wall_ms + 3600000);
    assert_memory_equal(t.model_digest, r.cfg.model_digest, CW_DIGEST_BYTES);

    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__TicketRenew renew = CW__PB__TICKET_RENEW__INIT;
    env.body_case = BODY(TICKET_RENEW);
    env.ticket_renew = &renew;
    cw_key k = rig_key(10);
    r.wall_ms += 1800000;
    rig_message(&r, link, &k, &env);
    m = rig_sent(&r, link, BODY(TICKET));
    cw_ticket t2;
    assert_int_equal(cw_ticket_verify(cw_signer_public(r.signer), m->env->ticket->signed_ticket.data,
                                      m->env->ticket->signed_ticket.len, &t2, &err),
                     CW_OK);
    assert_true(t2.serial > t.serial && t2.not_after_ms > t.not_after_ms);
    /* no serial is ever made twice, not even by a coordinator that died without a word */
    rig_restart(&r);
    in.enrol = false;
    link = expect_welcome(&r, 10, &in);
    m = rig_sent(&r, link, BODY(WELCOME));
    assert_int_equal(cw_ticket_verify(cw_signer_public(r.signer), m->env->welcome->ticket.data,
                                      m->env->welcome->ticket.len, &t, &err),
                     CW_OK);
    assert_true(t.serial > t2.serial);
    rig_close(&r);
}

static void a_newer_link_of_a_key_takes_the_place(void **state)
{
    (void)state;
    rig r;
    rig_intro in;
    uint8_t token[CW_TOKEN_BYTES];
    rig_open(&r);
    rig_token(&r, EDGE, 0, 3600000, 0, 2, token);
    rig_introduce(&in, EDGE, "e", 0);
    in.enrol = true;
    memcpy(in.token, token, sizeof token);
    cw_link first = expect_welcome(&r, 10, &in);
    expect_welcome(&r, 10, &in);
    assert_true(rig_acted(&r, first, CW_ACT_CLOSE));
    cw_coordinator_status s;
    cw_coordinator_get_status(r.c, &s);
    assert_int_equal(s.n_edges, 1);
    rig_close(&r);
}

static void silence_ends_a_link_but_our_own_sleep_does_not(void **state)
{
    (void)state;
    rig r;
    rig_intro in;
    uint8_t token[CW_TOKEN_BYTES];
    rig_open(&r);
    rig_token(&r, EDGE, 0, 36000000, 0, 2, token);
    rig_introduce(&in, EDGE, "e", 0);
    in.enrol = true;
    memcpy(in.token, token, sizeof token);
    cw_key mute = rig_key(9);
    cw_link link = expect_welcome(&r, 10, &in), mute_link = rig_link(&r, &mute);
    rig_ticks(&r, 1500);
    assert_false(rig_acted(&r, mute_link, CW_ACT_CLOSE));
    rig_ticks(&r, 1000);
    assert_true(rig_acted(&r, mute_link, CW_ACT_CLOSE)); /* no hello in 2 s */
    assert_non_null(rig_sent(&r, link, BODY(PING)));
    r.now_us += 3600 * INT64_C(1000000); /* the machine was suspended for an hour */
    rig_ticks(&r, 1000);
    assert_false(rig_acted(&r, link, CW_ACT_CLOSE));
    rig_ticks(&r, 10000);
    assert_true(rig_acted(&r, link, CW_ACT_CLOSE));
    rig_close(&r);
}

static void illegal_messages_cost_the_link(void **state)
{
    (void)state;
    rig r;
    rig_intro in;
    uint8_t token[CW_TOKEN_BYTES];
    rig_worker w = {0};
    rig_open(&r);
    rig_token(&r, EDGE, 0, 36000000, 0, 2, token);
    rig_introduce(&in, EDGE, "e", 0);
    in.enrol = true;
    memcpy(in.token, token, sizeof token);
    w.link = expect_welcome(&r, 10, &in);
    w.key = rig_key(10);
    rig_holdings(&r, &w, ""); /* from an edge */
    assert_true(rig_acted(&r, w.link, CW_ACT_BLAME));

    rig_token(&r, WORKER, 0, 36000000, 0, 3, token);
    rig_worker_join(&r, &w, 1, "w", RIG_MODEL_BYTES, token);
    w.held[0][0] = 1; /* an expert of the dense layer */
    rig_holdings(&r, &w, "");
    assert_true(rig_acted(&r, w.link, CW_ACT_BLAME));
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_refusal_has_its_words),
        cmocka_unit_test(full_clusters_say_so),
        cmocka_unit_test(tokens_have_uses_and_a_lifetime),
        cmocka_unit_test(bad_tokens_are_not_made),
        cmocka_unit_test(revoking_a_token_revokes_all_it_admitted),
        cmocka_unit_test(any_number_of_revoked_edges_keeps_no_worker_out),
        cmocka_unit_test(a_revoked_worker_leaves_the_epoch_at_once),
        cmocka_unit_test(welcome_carries_what_the_role_needs),
        cmocka_unit_test(a_newer_link_of_a_key_takes_the_place),
        cmocka_unit_test(silence_ends_a_link_but_our_own_sleep_does_not),
        cmocka_unit_test(illegal_messages_cost_the_link),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
