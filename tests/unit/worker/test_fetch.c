/* The store link's machine: parts, lost links, a store that cannot or will not, a store that lies. */
#include "machine_rig.h"

#include "cw/fetch_machine.h"

enum { LEN = 1000000, AHEAD_MAX = 32 };

typedef struct {
    rig r;
    cw_fetch *f;
    cw_key key;
    cw_link link;
    uint8_t dst[2][LEN], model[2][LEN], manifest[3 << 20];
    cw_fetch_item items[3];
} fetch_rig;

static void event(void *m, cw_event *ev, cw_outbox *out)
{
    cw_fetch_event(m, ev, out);
}

static fetch_rig *rig_new(void)
{
    fetch_rig *x = calloc(1, sizeof *x);
    assert_non_null(x);
    memset(x->key.b, 7, CW_KEY_BYTES);
    cw_fetch_config c = {
        .name = "w", .address = "tcp://127.0.0.1:5571", .key = x->key, .seed = 1, .manifest_max = 4 << 20};
    assert_int_equal(cw_fetch_new(&c, &x->f, NULL), CW_OK);
    x->r = (rig){.machine = x->f, .event = event, .now_us = 1000000, .wall_ms = 1};
    cw_outbox_init(&x->r.out);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < LEN; i++) x->model[k][i] = (uint8_t)(i * (k + 3) >> 4);
    for (size_t i = 0; i < sizeof x->manifest; i++) x->manifest[i] = (uint8_t)(i >> 3);
    return x;
}

static void rig_free(fetch_rig *x)
{
    cw_outbox_free(&x->r.out);
    cw_fetch_free(&x->f);
    free(x);
}

static void get_chunk(fetch_rig *x, int k)
{
    x->items[k] = (cw_fetch_item){.chunk = (uint32_t)k, .dst = x->dst[k], .len = LEN};
    cw_fetch_get(x->f, &x->items[k], x->r.now_us, &x->r.out);
}

/* Takes the OPEN, says hello, is welcomed. */
static void connect_link(fetch_rig *x)
{
    cw_action *a = NULL;
    for (int i = 0; i < 100 && !(a = rig_action(&x->r, CW_ACT_OPEN, 0, 0, 0)); i++) rig_tick(&x->r, 100000);
    assert_non_null(a);
    x->link = a->link;
    rig_clear(&x->r);
    rig_up(&x->r, x->link, CW_PORT_STORE, &x->key);
    cw_action *h = rig_sent(&x->r, x->link, MSG(HELLO));
    assert_non_null(h);
    assert_int_equal(h->msg->env->hello->purpose, CW__PB__PURPOSE__PURPOSE_STORE);
    rig_clear(&x->r);
    Cw__Pb__Welcome m = CW__PB__WELCOME__INIT;
    ENV(env, WELCOME, welcome, &m);
    rig_message(&x->r, x->link, CW_PORT_STORE, &x->key, &env, NULL, 0);
}

static void part(fetch_rig *x, bool manifest, uint32_t chunk, uint64_t offset, uint64_t total,
                 const uint8_t *data, size_t len)
{
    Cw__Pb__ManifestPart mp = CW__PB__MANIFEST_PART__INIT;
    Cw__Pb__ChunkPart cp = CW__PB__CHUNK_PART__INIT;
    mp.offset = cp.offset = offset, mp.total = cp.total = total, cp.chunk = chunk;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    if (manifest)
        env.body_case = MSG(MANIFEST_PART), env.manifest_part = &mp;
    else
        env.body_case = MSG(CHUNK_PART), env.chunk_part = &cp;
    cw_frame f = cw_frame_copy(data, len);
    rig_message(&x->r, x->link, CW_PORT_STORE, &x->key, &env, &f, 1);
}

/* Answers the oldest request in the outbox as the coordinator's store does; false: there is none. `most`
 * bytes a part. */
static bool answer(fetch_rig *x, size_t most)
{
    for (size_t i = 0; i < x->r.out.n; i++) {
        cw_action *a = &x->r.out.items[i];
        if (a->kind != CW_ACT_SEND || !a->msg) continue;
        cw_msg *m = a->msg;
        if (m->env->body_case != MSG(CHUNK_GET) && m->env->body_case != MSG(MANIFEST_GET)) continue;
        a->msg = NULL;
        a->kind = CW_ACT_CLOSE, a->link = 0; /* taken */
        if (m->env->body_case == MSG(CHUNK_GET)) {
            const Cw__Pb__ChunkGet *g = m->env->chunk_get;
            assert_true(g->offset + g->length <= LEN);
            part(x, false, g->chunk, g->offset, LEN, x->model[g->chunk] + g->offset,
                 g->length < most ? g->length : most);
        } else {
            uint64_t off = m->env->manifest_get->offset, n = sizeof x->manifest - off;
            part(x, true, 0, off, sizeof x->manifest, x->manifest + off, n < most ? n : most);
        }
        cw_msg_free(&m);
        return true;
    }
    return false;
}

static void chunks_arrive_whole_with_few_requests_open(void **state)
{
    (void)state;
    fetch_rig *x = rig_new();
    get_chunk(x, 0);
    get_chunk(x, 1);
    connect_link(x);
    assert_true(rig_count(&x->r, CW_ACT_SEND, x->link, MSG(CHUNK_GET)) <= AHEAD_MAX);
    while (answer(x, CW_STORE_PART_MAX)) {
    }
    for (int k = 0; k < 2; k++) {
        cw_fetch_item *i = cw_fetch_take_done(x->f);
        assert_non_null(i);
        assert_true(i->ok);
        assert_memory_equal(x->dst[k], x->model[k], LEN);
    }
    assert_null(cw_fetch_take_done(x->f));
    rig_free(x);
}

static void a_store_that_answers_short_is_asked_for_the_rest(void **state)
{
    (void)state;
    fetch_rig *x = rig_new();
    get_chunk(x, 0);
    connect_link(x);
    /* Every part shorter than asked: what was asked ahead no longer fits, and the store link is made anew. */
    int rounds = 0;
    while (!x->items[0].ok && rounds++ < 200) {
        if (!answer(x, 100000)) {
            cw_action *blame = rig_action(&x->r, CW_ACT_BLAME, 0, 0, 0);
            assert_non_null(blame);
            connect_link(x);
        }
    }
    assert_ptr_equal(cw_fetch_take_done(x->f), &x->items[0]);
    assert_true(x->items[0].ok);
    assert_memory_equal(x->dst[0], x->model[0], LEN);
    rig_free(x);
}

static void the_manifest_comes_in_parts_of_unknown_number(void **state)
{
    (void)state;
    fetch_rig *x = rig_new();
    x->items[0] = (cw_fetch_item){.manifest = true};
    cw_fetch_get(x->f, &x->items[0], x->r.now_us, &x->r.out);
    connect_link(x);
    while (answer(x, CW_STORE_PART_MAX)) {
    }
    assert_ptr_equal(cw_fetch_take_done(x->f), &x->items[0]);
    assert_true(x->items[0].ok);
    assert_int_equal(x->items[0].len, sizeof x->manifest);
    assert_memory_equal(x->items[0].dst, x->manifest, sizeof x->manifest);
    cw_free(x->items[0].dst);
    rig_free(x);
}

static void a_lost_link_costs_only_what_was_under_way(void **state)
{
    (void)state;
    fetch_rig *x = rig_new();
    get_chunk(x, 0);
    connect_link(x);
    assert_true(answer(x, CW_STORE_PART_MAX));
    rig_down(&x->r, x->link, "reset");
    cw_link old = x->link;
    rig_clear(&x->r);
    connect_link(x);
    assert_true(x->link != old);
    assert_true(rig_sent(&x->r, x->link, MSG(CHUNK_GET))->msg->env->chunk_get->offset > 0);
    while (answer(x, CW_STORE_PART_MAX)) {
    }
    assert_true(x->items[0].ok);
    assert_memory_equal(x->dst[0], x->model[0], LEN);
    rig_free(x);
}

static void a_store_failure_is_told_in_its_words(void **state)
{
    (void)state;
    fetch_rig *x = rig_new();
    get_chunk(x, 0);
    get_chunk(x, 1);
    connect_link(x);
    Cw__Pb__StoreFail m = CW__PB__STORE_FAIL__INIT;
    m.chunk = 0, m.text = (char *)"the file has become shorter";
    ENV(env, STORE_FAIL, store_fail, &m);
    rig_message(&x->r, x->link, CW_PORT_STORE, &x->key, &env, NULL, 0);
    assert_ptr_equal(cw_fetch_take_done(x->f), &x->items[0]);
    assert_false(x->items[0].ok);
    assert_non_null(strstr(x->items[0].text, "shorter"));
    rig_free(x);
}

static void parts_that_do_not_fit_cost_the_link_and_write_nothing(void **state)
{
    (void)state;
    static const struct {
        uint64_t offset, total;
        size_t len;
    } bad[] = {{1, LEN, 10},     {0, LEN + 1, 10}, {0, LEN, 0},
               {0, LEN - 1, 10}, {LEN, LEN, 10},   {UINT64_MAX, LEN, 10}};
    uint8_t junk[64];
    memset(junk, 0xee, sizeof junk);
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++) {
        fetch_rig *x = rig_new();
        get_chunk(x, 0);
        connect_link(x);
        part(x, false, 0, bad[i].offset, bad[i].total, junk, bad[i].len);
        assert_non_null(rig_action(&x->r, CW_ACT_BLAME, x->link, 0, 0));
        for (int k = 0; k < LEN; k++) assert_int_equal(x->dst[0][k], 0);
        rig_free(x);
    }
    /* A manifest larger than may be. */
    fetch_rig *x = rig_new();
    x->items[0] = (cw_fetch_item){.manifest = true};
    cw_fetch_get(x->f, &x->items[0], x->r.now_us, &x->r.out);
    connect_link(x);
    part(x, true, 0, 0, (4 << 20) + 1, junk, sizeof junk);
    assert_non_null(rig_action(&x->r, CW_ACT_BLAME, x->link, 0, 0));
    rig_free(x);
}

static void patience_ends_with_a_sentence_that_names_the_store(void **state)
{
    (void)state;
    fetch_rig *x = rig_new();
    get_chunk(x, 0);
    for (int i = 0; i < 400 && !x->items[0].text[0]; i++) {
        cw_action *a = rig_action(&x->r, CW_ACT_OPEN, 0, 0, 0);
        if (a) {
            cw_link l = a->link;
            rig_clear(&x->r);
            rig_down(&x->r, l, "connection refused");
        }
        rig_tick(&x->r, 100000);
    }
    assert_ptr_equal(cw_fetch_take_done(x->f), &x->items[0]);
    assert_false(x->items[0].ok);
    assert_non_null(strstr(x->items[0].text, "5571"));
    assert_non_null(strstr(x->items[0].text, "connection refused"));
    rig_free(x);
}

static void an_idle_link_is_closed_and_opened_again_when_needed(void **state)
{
    (void)state;
    fetch_rig *x = rig_new();
    get_chunk(x, 0);
    connect_link(x);
    while (answer(x, CW_STORE_PART_MAX)) {
    }
    assert_ptr_equal(cw_fetch_take_done(x->f), &x->items[0]);
    rig_tick(&x->r, 29000000);
    assert_null(rig_action(&x->r, CW_ACT_CLOSE, x->link, 0, 0));
    rig_tick(&x->r, 2000000);
    assert_non_null(rig_action(&x->r, CW_ACT_CLOSE, x->link, 0, 0));
    rig_clear(&x->r);
    get_chunk(x, 1);
    connect_link(x);
    while (answer(x, CW_STORE_PART_MAX)) {
    }
    assert_true(x->items[1].ok);
    rig_free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_arrive_whole_with_few_requests_open),
        cmocka_unit_test(a_store_that_answers_short_is_asked_for_the_rest),
        cmocka_unit_test(the_manifest_comes_in_parts_of_unknown_number),
        cmocka_unit_test(a_lost_link_costs_only_what_was_under_way),
        cmocka_unit_test(a_store_failure_is_told_in_its_words),
        cmocka_unit_test(parts_that_do_not_fit_cost_the_link_and_write_nothing),
        cmocka_unit_test(patience_ends_with_a_sentence_that_names_the_store),
        cmocka_unit_test(an_idle_link_is_closed_and_opened_again_when_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
