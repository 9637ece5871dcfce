/* The fetch machine with several sources: workers first, and whatever they do the chunk comes. */
#include "machine_rig.h"

#include "cw/fetch_machine.h"

enum { LEN = 1500000, CHUNKS = 6 };

typedef struct {
    rig r;
    cw_fetch *f;
    cw_key store, peer[2];
    cw_link link[3]; /* of source 0, 1, 2; 0: none */
    uint8_t dst[CHUNKS][LEN], model[CHUNKS][LEN];
    cw_fetch_item items[CHUNKS];
    int parts[3]; /* answered by each */
} world;

/* How a peer behaves. */
typedef enum { GOOD, LACKS, SILENT, REFUSES, LIES, CUTS, TRICKLES, BABBLES } manner;

static void event(void *m, cw_event *ev, cw_outbox *out)
{
    cw_fetch_event(m, ev, out);
}

static world *world_new(int n_peers)
{
    world *x = calloc(1, sizeof *x);
    assert_non_null(x);
    memset(x->store.b, 7, CW_KEY_BYTES);
    cw_fetch_config c = {
        .name = "w", .address = "tcp://127.0.0.1:5571", .key = x->store, .seed = 1, .manifest_max = 4 << 20};
    assert_int_equal(cw_fetch_new(&c, &x->f, NULL), CW_OK);
    x->r = (rig){.machine = x->f, .event = event, .now_us = 1000000, .wall_ms = 1};
    cw_outbox_init(&x->r.out);
    for (int k = 0; k < CHUNKS; k++)
        for (int i = 0; i < LEN; i++) x->model[k][i] = (uint8_t)(i * (k + 3) >> 4);
    for (int i = 0; i < n_peers; i++) {
        memset(x->peer[i].b, 20 + i, CW_KEY_BYTES);
        cw_fetch_source s = {.key = x->peer[i], .ticket = "ticket", .ticket_len = 6};
        snprintf(s.name, sizeof s.name, "peer%d", i);
        snprintf(s.address, sizeof s.address, "tcp://127.0.0.1:%d", 6000 + i);
        cw_fetch_add_source(x->f, &s, x->r.now_us);
    }
    return x;
}

static void world_free(world *x)
{
    cw_outbox_free(&x->r.out);
    cw_fetch_free(&x->f);
    free(x);
}

static void get(world *x, int k)
{
    x->items[k] = (cw_fetch_item){.chunk = (uint32_t)k, .dst = x->dst[k], .len = LEN};
    cw_fetch_get(x->f, &x->items[k], x->r.now_us, &x->r.out);
}

static int source_of(const world *x, cw_link link)
{
    for (int i = 0; i < 3; i++)
        if (x->link[i] == link) return i;
    return -1;
}

static void opened(world *x, const cw_action *a)
{
    int n = cw_key_equal(&a->key, &x->store) ? 0 : cw_key_equal(&a->key, &x->peer[0]) ? 1 : 2;
    x->link[n] = a->link;
    cw_port port = n ? CW_PORT_DATA : CW_PORT_STORE;
    cw_key key = a->key;
    rig_up(&x->r, x->link[n], port, &key);
}

static void greet(world *x, int n, const Cw__Pb__Hello *h, manner m)
{
    assert_int_equal(h->purpose, n ? CW__PB__PURPOSE__PURPOSE_DATA : CW__PB__PURPOSE__PURPOSE_STORE);
    assert_int_equal(h->ticket.len, n ? 6 : 0);
    Cw__Pb__Welcome w = CW__PB__WELCOME__INIT;
    Cw__Pb__Refusal r = CW__PB__REFUSAL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    r.text = (char *)"no", env.body_case = MSG(WELCOME), env.welcome = &w;
    if (n && m == REFUSES) env.body_case = MSG(REFUSAL), env.refusal = &r;
    rig_message(&x->r, x->link[n], CW_PORT_DATA, &x->store, &env, NULL, 0);
}

static void give(world *x, int n, const Cw__Pb__ChunkGet *g, manner m)
{
    if (n && m == SILENT && x->parts[n] >= 2) return;
    if (n && m == CUTS && x->parts[n] >= 2) {
        cw_link link = x->link[n];
        x->link[n] = 0;
        rig_down(&x->r, link, "reset by peer");
        return;
    }
    x->parts[n]++;
    if (n && (m == LACKS || m == BABBLES)) {
        Cw__Pb__StoreFail f = CW__PB__STORE_FAIL__INIT;
        f.chunk = m == LACKS ? g->chunk : 1000, f.text = (char *)"not here";
        ENV(env, STORE_FAIL, store_fail, &f);
        rig_message(&x->r, x->link[n], CW_PORT_DATA, &x->store, &env, NULL, 0);
        return;
    }
    Cw__Pb__ChunkPart p = CW__PB__CHUNK_PART__INIT;
    p.chunk = g->chunk, p.offset = g->offset, p.total = LEN;
    uint8_t *mem;
    uint32_t length = n && m == TRICKLES ? 1 : g->length;
    cw_frame f = cw_frame_new(length, &mem);
    memcpy(mem, x->model[g->chunk] + g->offset, length);
    if (n && m == LIES) mem[g->length / 2] ^= 1;
    ENV(env, CHUNK_PART, chunk_part, &p);
    rig_message(&x->r, x->link[n], CW_PORT_DATA, &x->store, &env, &f, 1);
}

/* Carries out what is in the outbox as the store and the peers would; false: nothing was. */
static bool step(world *x, manner m)
{
    for (size_t i = 0; i < x->r.out.n; i++) {
        cw_action a = x->r.out.items[i];
        x->r.out.items[i].msg = NULL;
        x->r.out.items[i].kind = CW_ACT_ADMIT; /* taken */
        x->r.out.items[i].link = 1;
        int n = source_of(x, a.link);
        if (a.kind == CW_ACT_ADMIT) continue;
        if (a.kind == CW_ACT_OPEN) {
            opened(x, &a);
        } else if (a.kind == CW_ACT_SEND && n >= 0) {
            if (a.msg->env->body_case == MSG(HELLO)) greet(x, n, a.msg->env->hello, m);
            if (a.msg->env->body_case == MSG(CHUNK_GET)) give(x, n, a.msg->env->chunk_get, m);
        } else if (n >= 0) {
            x->link[n] = 0;
        }
        cw_msg_free(&a.msg);
        return true;
    }
    rig_clear(&x->r);
    return false;
}

static int run(world *x, manner m, int64_t most_us)
{
    int done = 0;
    for (int64_t end = x->r.now_us + most_us; x->r.now_us < end && done < CHUNKS;) {
        while (step(x, m)) {
        }
        for (cw_fetch_item *i; (i = cw_fetch_take_done(x->f));) done += i->ok;
        rig_tick(&x->r, 50000);
    }
    return done;
}

static void work_is_shared_and_workers_do_most(void **state)
{
    (void)state;
    world *x = world_new(2);
    for (int k = 0; k < CHUNKS; k++) get(x, k);
    assert_int_equal(run(x, GOOD, 5000000), CHUNKS);
    for (int k = 0; k < CHUNKS; k++) assert_memory_equal(x->dst[k], x->model[k], LEN);
    assert_true(x->parts[1] >= 12 && x->parts[2] >= 12);
    world_free(x);
}

static void whatever_workers_do_the_chunks_come(void **state)
{
    (void)state;
    static const manner all[] = {LACKS, SILENT, REFUSES, CUTS, TRICKLES, BABBLES};
    for (size_t i = 0; i < CW_ARRAY_LEN(all); i++) {
        world *x = world_new(2);
        for (int k = 0; k < CHUNKS; k++) get(x, k);
        assert_int_equal(run(x, all[i], 10000000), CHUNKS);
        for (int k = 0; k < CHUNKS; k++) assert_memory_equal(x->dst[k], x->model[k], LEN);
        assert_true(x->parts[0] > 0);
        if (all[i] == TRICKLES || all[i] == BABBLES) assert_true(x->parts[1] + x->parts[2] < 200);
        char text[CW_TEXT_MAX];
        if (all[i] != LACKS) assert_true(cw_fetch_take_say(x->f, text) && strstr(text, "asking elsewhere"));
        world_free(x);
    }
}

static void a_liar_is_named_and_not_asked_again(void **state)
{
    (void)state;
    world *x = world_new(1);
    for (int k = 0; k < CHUNKS; k++) get(x, k);
    assert_int_equal(run(x, LIES, 5000000), CHUNKS);
    uint64_t wrong = 0;
    for (int k = 0; k < CHUNKS; k++)
        if (memcmp(x->dst[k], x->model[k], LEN)) wrong |= x->items[k].from;
    assert_int_equal(wrong, 2); /* the bit of the one worker, and nobody else's */
    cw_fetch_distrust(x->f, wrong, x->r.now_us, &x->r.out);
    char text[CW_TEXT_MAX];
    assert_true(cw_fetch_take_say(x->f, text));
    assert_non_null(strstr(text, "peer0"));
    int before = x->parts[1];
    for (int k = 0; k < CHUNKS; k++) get(x, k);
    assert_int_equal(run(x, LIES, 5000000), CHUNKS);
    for (int k = 0; k < CHUNKS; k++) assert_memory_equal(x->dst[k], x->model[k], LEN);
    assert_int_equal(x->parts[1], before);
    world_free(x);
}

static void a_rate_is_kept_over_all_sources(void **state)
{
    (void)state;
    world *x = world_new(2);
    cw_fetch_set_rate(x->f, 1000000);
    for (int k = 0; k < CHUNKS; k++) get(x, k);
    int64_t start = x->r.now_us;
    assert_int_equal(run(x, GOOD, 60000000), CHUNKS);
    assert_in_range((x->r.now_us - start) / 1000, 8000, 11000); /* nine megabytes */
    world_free(x);
}

static void without_the_coordinator_workers_are_enough(void **state)
{
    (void)state;
    world *x = world_new(0);
    cw_fetch_free(&x->f);
    cw_fetch_config c = {.name = "w", .key = x->store, .seed = 1, .manifest_max = 4 << 20};
    assert_int_equal(cw_fetch_new(&c, &x->f, NULL), CW_OK);
    x->r.machine = x->f;
    get(x, 0);
    cw_fetch_item *i = cw_fetch_take_done(x->f);
    assert_non_null(i); /* nobody is known: at once, and in words */
    assert_false(i->ok);
    assert_true(i->text[0]);
    memset(x->peer[0].b, 20, CW_KEY_BYTES);
    cw_fetch_source s = {.name = "p",
                         .address = "tcp://127.0.0.1:6000",
                         .key = x->peer[0],
                         .ticket = "ticket",
                         .ticket_len = 6};
    cw_fetch_add_source(x->f, &s, x->r.now_us);
    for (int k = 0; k < CHUNKS; k++) get(x, k);
    assert_int_equal(run(x, GOOD, 5000000), CHUNKS);
    world_free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(work_is_shared_and_workers_do_most),
        cmocka_unit_test(whatever_workers_do_the_chunks_come),
        cmocka_unit_test(a_liar_is_named_and_not_asked_again),
        cmocka_unit_test(a_rate_is_kept_over_all_sources),
        cmocka_unit_test(without_the_coordinator_workers_are_enough),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
