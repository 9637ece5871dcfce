/*
 * Random lives of a worker: edges come, call, cancel and vanish, experts come and go, jobs end in their own
 * time. Whatever happens, every call that is not cancelled and whose link lives is answered exactly once,
 * rows are the right ones, and in the end nothing is left in the queue. The seed is printed; CW_SEED repeats
 * one.
 */
#include "worker_rig.h"

#include "cw/bytes.h"

enum { LIVES = 40, STEPS = 1500, LINKS = 4, OPEN_MAX = 4096 };

typedef struct {
    uint64_t id;
    uint32_t layer, n_entries;
    cw_entry entries[12];
    int8_t seed;
    bool open;
} sent;

typedef struct {
    cw_link link; /* 0: not connected */
    uint64_t next_id;
    sent calls[OPEN_MAX];
    int n;
} edge;

typedef struct {
    worker_rig x;
    edge e[LINKS];
    cw_link next_link;
    uint64_t random;
    uint8_t held[LAYERS]; /* what was assigned last */
    uint64_t answered, failed;
} life;

static uint32_t pick(life *l, uint32_t n)
{
    l->random = l->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(l->random >> 33) % n;
}

static edge *edge_of(life *l, cw_link link)
{
    for (int i = 0; i < LINKS; i++)
        if (l->e[i].link == link) return &l->e[i];
    return NULL;
}

static sent *take_answer(life *l, cw_link link, uint64_t id)
{
    edge *e = edge_of(l, link);
    assert_non_null(e);
    for (int i = 0; i < e->n; i++)
        if (e->calls[i].id == id) {
            assert_true(e->calls[i].open); /* a second answer, or one to a cancelled call */
            e->calls[i].open = false;
            return &e->calls[i];
        }
    fail_msg("an answer to call %llu, which was never made", (unsigned long long)id);
    return NULL;
}

static void check_reply(const sent *s, const cw_msg *m)
{
    static const cw_model_limits lim = {LAYERS, EXPERTS, D, 64, 64};
    cw_reply_view v;
    assert_int_equal(cw_reply_view_get(
                         m, &lim, s->layer == 1 ? CW__PB__REPLY_KIND__ROWS_F16 : CW__PB__REPLY_KIND__ROWS_F32,
                         s->n_entries, &v, NULL),
                     CW_OK);
    for (uint32_t i = 0; i < s->n_entries; i++) {
        float y = wr_value(s->layer, s->entries[i].expert, (int8_t)(s->seed + s->entries[i].row), 5);
        if (v.exps)
            assert_int_equal(cw_load_u16(v.rows + (i * D + 5) * 2), cw_f32_to_f16(y));
        else
            assert_int_equal(cw_load_u32(v.rows + (i * D + 5) * 4), cw_f32_bits(y));
    }
}

static void read_outbox(life *l)
{
    for (size_t i = 0; i < l->x.r.out.n; i++) {
        cw_action *a = &l->x.r.out.items[i];
        assert_int_not_equal(a->kind, CW_ACT_BLAME);
        if (a->kind != CW_ACT_SEND) continue;
        if (a->msg->env->body_case == MSG(REPLY)) {
            check_reply(take_answer(l, a->link, a->msg->env->reply->id), a->msg);
            l->answered++;
        } else if (a->msg->env->body_case == MSG(CALL_FAIL)) {
            (void)take_answer(l, a->link, a->msg->env->call_fail->id);
            l->failed++;
        }
    }
    rig_clear(&l->x.r);
}

static void connect_edge(life *l, edge *e)
{
    e->link = ++l->next_link;
    e->next_id = 0;
    e->n = 0;
    read_outbox(l);
    wr_edge(&l->x, e->link, e - l->e < LINKS / 2 ? &l->x.edge_a : &l->x.edge_b);
}

static void make_call(life *l, edge *e)
{
    if (e->n == OPEN_MAX) return;
    sent *s = &e->calls[e->n++];
    uint32_t n_rows = 1 + pick(l, 3), mask = 1 + pick(l, 255);
    *s = (sent){.id = ++e->next_id, .layer = 1 + pick(l, 2), .seed = (int8_t)pick(l, 90), .open = true};
    for (uint32_t x = 0; x < EXPERTS; x++)
        for (uint32_t r = 0; r < n_rows && s->n_entries < 12; r++)
            if (mask >> x & 1) s->entries[s->n_entries++] = (cw_entry){(uint16_t)r, (uint16_t)x, 1};
    /* Every row has an entry, or the call would be malformed. */
    n_rows = 0;
    for (uint32_t i = 0; i < s->n_entries; i++)
        if (s->entries[i].row >= n_rows) n_rows = s->entries[i].row + 1u;
    wr_send_call(
        &l->x, e->link,
        &(wr_call){.id = s->id,
                   .layer = s->layer,
                   .n_rows = n_rows,
                   .n_entries = s->n_entries,
                   .entries = s->entries,
                   .seed = s->seed,
                   .klass = (Cw__Pb__CallClass)pick(l, 2),
                   .budget_us = 1 + pick(l, 200000),
                   .reply = s->layer == 1 ? CW__PB__REPLY_KIND__ROWS_F16 : CW__PB__REPLY_KIND__ROWS_F32});
}

static void cancel_call(life *l, edge *e)
{
    if (!e->n) return;
    sent *s = &e->calls[pick(l, (uint32_t)e->n)];
    Cw__Pb__Cancel m = CW__PB__CANCEL__INIT;
    m.id = s->id;
    ENV(env, CANCEL, cancel, &m);
    read_outbox(l);
    rig_message(&l->x.r, e->link, CW_PORT_DATA, &l->x.edge_a, &env, NULL, 0);
    s->open = false;
    wr_acts(&l->x);
}

static void step(life *l)
{
    edge *e = &l->e[pick(l, LINKS)];
    uint32_t what = pick(l, 100);
    if (!e->link) {
        connect_edge(l, e);
    } else if (what < 45) {
        make_call(l, e);
    } else if (what < 75) {
        l->x.r.now_us += pick(l, 5000);
        if (l->x.n_jobs) wr_compute(&l->x, -1);
    } else if (what < 80) {
        cancel_call(l, e);
    } else if (what < 82) {
        read_outbox(l);
        rig_down(&l->x.r, e->link, "gone");
        wr_acts(&l->x);
        e->link = 0;
    } else if (what < 90) {
        rig_tick(&l->x.r, pick(l, 100000));
        wr_acts(&l->x);
    } else {
        uint32_t layer = 1 + pick(l, 2);
        uint8_t mask = (uint8_t)(1u << pick(l, 8));
        bool make = pick(l, 3) != 0;
        wr_assign(&l->x, make, layer, mask);
    }
    read_outbox(l);
}

static void one_life(uint64_t seed)
{
    static life l;
    memset(&l, 0, sizeof l);
    l.random = seed;
    cw_worker_config c;
    wr_new(&l.x, NULL);
    wr_config(&l.x, &c);
    wr_free(&l.x);
    c.job_rows_max = 1 + pick(&l, 20);
    c.jobs_in_flight = 1 + pick(&l, 3);
    c.peer_bytes_max = 2000 + pick(&l, 40000);
    wr_boot(&l.x, &c);
    for (int i = 0; i < STEPS; i++) step(&l);
    while (l.x.n_jobs) {
        wr_compute(&l.x, -1);
        read_outbox(&l);
    }
    rig_tick(&l.x.r, 1000000);
    wr_acts(&l.x);
    read_outbox(&l);
    while (l.x.n_jobs) {
        wr_compute(&l.x, -1);
        read_outbox(&l);
    }
    cw_worker_facts f;
    cw_worker_get_facts(l.x.w, &f);
    assert_int_equal(f.queued_calls, 0);
    assert_int_equal(f.queued_entries, 0);
    assert_int_equal(f.queue_bytes, 0);
    assert_int_equal(f.memory_used, f.n_ready * (uint64_t)PACKED);
    for (int i = 0; i < LINKS; i++)
        for (int k = 0; l.e[i].link && k < l.e[i].n; k++) assert_false(l.e[i].calls[k].open);
    assert_true(l.answered > 0);
    assert_true(l.failed > 0);
    wr_free(&l.x);
}

static void every_call_is_answered_once_and_nothing_stays_behind(void **state)
{
    (void)state;
    const char *given = getenv("CW_SEED");
    uint64_t first = given ? strtoull(given, NULL, 10) : 1;
    for (uint64_t seed = first; seed < first + (given ? 1 : LIVES); seed++) {
        print_message("seed %llu\n", (unsigned long long)seed);
        one_life(seed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_is_answered_once_and_nothing_stays_behind)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
