/*
 * A worker that is asked for more than it can do, in fake time: edges with streams that send the next call
 * some time after the last answer, and with prefill that keeps several calls under way. The machine is not
 * told what computing costs; it has to learn it.
 */
#include "worker_rig.h"

enum {
    EDGES_MAX = 64,
    IDS = 4096,
    READ_US = 20, /* true costs: an expert's weights, and a row */
    ROW_US = 40,
    BUDGET_US = 50000,
    PREFILL_ROWS = 48
};

typedef struct {
    int n_edges;
    int streams[EDGES_MAX]; /* of each edge */
    int prefill[EDGES_MAX]; /* prefill calls it keeps under way */
    int64_t think_us, run_us;
    float speed; /* what the machine is told at the start; 0: far too much */
} load;

typedef struct {
    bool prefill;
    int edge;
    uint32_t stream;
    int64_t next_us; /* INT64_MAX: waits for an answer */
    int64_t sent_us;
} client;

typedef struct {
    uint64_t decodes[EDGES_MAX], prefills[EDGES_MAX]; /* answered in time */
    uint64_t decode_failed[EDGES_MAX], prefill_busy, prefill_failed;
    int64_t worst_decode_us;
    uint64_t queue_bytes_most;
    float speed;
} outcome;

typedef struct {
    worker_rig x;
    const load *l;
    outcome *o;
    client c[1024];
    int n_clients;
    uint64_t next_id[EDGES_MAX];
    int who[EDGES_MAX][IDS];
    uint64_t random;
    int64_t job_end_us, learnt_us; /* before that the machine knows little of what computing costs */
} world;

static uint32_t pick(world *s, uint32_t n)
{
    s->random = s->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(s->random >> 33) % n;
}

static void send_call(world *s, client *c)
{
    static cw_entry e[PREFILL_ROWS * EXPERTS];
    uint32_t rows = c->prefill ? PREFILL_ROWS : 1, n = 0;
    uint8_t used[PREFILL_ROWS] = {0};
    for (uint32_t r = 0; r < rows; r++)
        while (__builtin_popcount(used[r]) < 3) used[r] |= (uint8_t)(1u << pick(s, EXPERTS));
    for (uint32_t x = 0; x < EXPERTS; x++)
        for (uint32_t r = 0; r < rows; r++)
            if (used[r] >> x & 1) e[n++] = (cw_entry){(uint16_t)r, (uint16_t)x, 1};
    uint64_t id = ++s->next_id[c->edge];
    s->who[c->edge][id % IDS] = (int)(c - s->c);
    c->sent_us = s->x.r.now_us;
    c->next_us = INT64_MAX;
    wr_send_call(
        &s->x, (cw_link)c->edge + 1,
        &(wr_call){.id = id,
                   .layer = 1,
                   .n_rows = rows,
                   .n_entries = n,
                   .entries = e,
                   .klass = c->prefill ? CW__PB__CALL_CLASS__CLASS_PREFILL : CW__PB__CALL_CLASS__CLASS_DECODE,
                   .budget_us = c->prefill ? 2000000 : BUDGET_US,
                   .stream = c->stream});
}

static void read_answers(world *s)
{
    for (size_t i = 0; i < s->x.r.out.n; i++) {
        cw_action *a = &s->x.r.out.items[i];
        assert_int_not_equal(a->kind, CW_ACT_BLAME);
        if (a->kind != CW_ACT_SEND || !a->link || a->link > EDGES_MAX) continue;
        bool ok = a->msg->env->body_case == MSG(REPLY);
        if (!ok && a->msg->env->body_case != MSG(CALL_FAIL)) continue;
        const Cw__Pb__CallFail *f = ok ? NULL : a->msg->env->call_fail;
        int edge = (int)a->link - 1;
        client *c = &s->c[s->who[edge][(ok ? a->msg->env->reply->id : f->id) % IDS]];
        int64_t took = s->x.r.now_us - c->sent_us, pause = s->l->think_us;
        if (c->prefill) {
            s->o->prefills[edge] += ok;
            s->o->prefill_busy += !ok && f->code == CW__PB__FAIL_CODE__FAIL_BUSY;
            s->o->prefill_failed += !ok && f->code != CW__PB__FAIL_CODE__FAIL_BUSY;
            pause = ok ? 100 : (int64_t)f->retry_after_ms * 1000;
            assert_true(pause > 0);
        } else {
            s->o->decode_failed[edge] += !ok;
            s->o->decodes[edge] += ok && took <= BUDGET_US;
            if (took > s->o->worst_decode_us && s->x.r.now_us > s->learnt_us) s->o->worst_decode_us = took;
        }
        c->next_us = s->x.r.now_us + pause / 2 + pick(s, (uint32_t)pause + 1);
    }
    rig_clear(&s->x.r);
}

static int64_t true_cost(world *s, const cw_job *job)
{
    int64_t us = READ_US * (int64_t)job->n_experts + ROW_US * (int64_t)job->n_rows;
    return us * (90 + pick(s, 21)) / 100;
}

static void run(const load *l, outcome *o)
{
    static world s;
    memset(&s, 0, sizeof s);
    memset(o, 0, sizeof *o);
    s.l = l, s.o = o, s.random = 7;
    cw_worker_config c;
    wr_new(&s.x, NULL);
    wr_config(&s.x, &c);
    wr_free(&s.x);
    c.jobs_in_flight = 2;
    if (l->speed) c.speed = l->speed;
    wr_boot(&s.x, &c);
    for (int i = 0; i < l->n_edges; i++) {
        cw_key key = {.b = {9, (uint8_t)i}};
        wr_edge_with(&s.x, (cw_link)i + 1, &key, 64);
        for (int k = 0; k < l->streams[i] + l->prefill[i]; k++)
            s.c[s.n_clients++] = (client){.edge = i,
                                          .stream = (uint32_t)k + 1,
                                          .prefill = k >= l->streams[i],
                                          .next_us = s.x.r.now_us + pick(&s, (uint32_t)l->think_us)};
    }
    int64_t end = s.x.r.now_us + l->run_us, tick = 0;
    s.job_end_us = INT64_MAX;
    s.learnt_us = s.x.r.now_us + 100000;
    while (s.x.r.now_us < end) {
        client *next = &s.c[0];
        for (int i = 1; i < s.n_clients; i++)
            if (s.c[i].next_us < next->next_us) next = &s.c[i];
        int64_t at = next->next_us < s.job_end_us ? next->next_us : s.job_end_us;
        if (at > s.x.r.now_us) s.x.r.wall_ms += (at - s.x.r.now_us) / 1000, s.x.r.now_us = at;
        if (s.x.r.now_us >= tick) {
            tick = s.x.r.now_us + 100000;
            rig_tick(&s.x.r, 0);
            wr_acts(&s.x);
        }
        if (s.job_end_us <= s.x.r.now_us) {
            s.job_end_us = INT64_MAX;
            wr_compute(&s.x, -1);
        } else if (next->next_us <= s.x.r.now_us) {
            send_call(&s, next);
        }
        if (s.job_end_us == INT64_MAX && s.x.n_jobs) s.job_end_us = s.x.r.now_us + true_cost(&s, s.x.jobs[0]);
        read_answers(&s);
        cw_worker_facts f;
        cw_worker_get_facts(s.x.w, &f);
        if (f.queue_bytes > o->queue_bytes_most) o->queue_bytes_most = f.queue_bytes;
        o->speed = f.speed;
    }
    wr_free(&s.x);
}

static uint64_t total(const uint64_t *v, int n)
{
    uint64_t t = 0;
    for (int i = 0; i < n; i++) t += v[i];
    return t;
}

static void assert_equal_shares(const uint64_t *v, int n)
{
    double mean = (double)total(v, n) / n;
    for (int i = 0; i < n; i++) {
        if ((double)v[i] < 0.9 * mean || (double)v[i] > 1.1 * mean)
            fail_msg("edge %d got %llu, the mean is %.0f", i, (unsigned long long)v[i], mean);
    }
}

static void three_times_too_much_costs_no_goodput_and_no_admitted_answer(void **state)
{
    (void)state;
    /* A stream asks for 330 calls a second, the worker does about 8,000: 24 streams are enough. */
    static const int streams_of[] = {12, 24, 48, 72};
    uint64_t best = 0, last = 0;
    for (size_t k = 0; k < CW_ARRAY_LEN(streams_of); k++) {
        load l = {.n_edges = 12, .think_us = 3000, .run_us = 1500000};
        for (int i = 0; i < l.n_edges; i++) l.streams[i] = streams_of[k] / l.n_edges;
        outcome o;
        run(&l, &o);
        last = total(o.decodes, l.n_edges);
        print_message("%d streams: %llu calls in time, worst %lld us, speed %.3f GB/s\n", streams_of[k],
                      (unsigned long long)last, (long long)o.worst_decode_us, (double)o.speed);
        if (last > best) best = last;
        assert_int_equal(total(o.decode_failed, l.n_edges), 0);
        assert_equal_shares(o.decodes, l.n_edges);
        /* One row: 20 us of reading and 40 us for a kilobyte of weights. */
        assert_true(o.speed > 0.001 * 1000 / 60 * 0.7 && o.speed < 0.001 * 1000 / 60 * 1.4);
    }
    assert_true((double)last >= 0.9 * (double)best);
}

static void greedy_edges_get_no_more_than_their_share(void **state)
{
    (void)state;
    /* Two edges that never wait for anything, and six with a few streams each: all want more than an eighth.
     */
    load l = {.n_edges = 8, .think_us = 500, .run_us = 1500000};
    for (int i = 0; i < l.n_edges; i++) l.streams[i] = i < 2 ? 40 : 8;
    outcome o;
    run(&l, &o);
    uint64_t sum = total(o.decodes, l.n_edges);
    for (int i = 0; i < l.n_edges; i++)
        print_message("edge %d with %d streams: %.3f of all\n", i, l.streams[i],
                      (double)o.decodes[i] / (double)sum);
    /* Rows that come along with others' are cheap, so many streams may get somewhat more than few. */
    for (int i = 0; i < 2; i++) assert_true((double)o.decodes[i] <= 1.25 * (double)sum / l.n_edges);
    assert_equal_shares(o.decodes + 2, l.n_edges - 2);
    /* The greedy wait too long for some of theirs; nobody else does. */
    assert_int_equal(total(o.decode_failed + 2, l.n_edges - 2), 0);
}

static void decode_does_not_wait_behind_prefill(void **state)
{
    (void)state;
    /* A prefill call is 48 rows with three experts each: about 6 ms of computing, and dozens are under way.
     */
    load l = {
        .n_edges = 10, .think_us = 3000, .run_us = 2000000, .speed = 0.001f * PACKED / (READ_US + ROW_US)};
    for (int i = 0; i < l.n_edges; i++) {
        l.streams[i] = i < 4;
        l.prefill[i] = i < 4 ? 0 : 8;
    }
    outcome o;
    run(&l, &o);
    print_message("prefill: %llu answered, %llu busy, worst decode %lld us, at most %llu KiB queued\n",
                  (unsigned long long)total(o.prefills, l.n_edges), (unsigned long long)o.prefill_busy,
                  (long long)o.worst_decode_us, (unsigned long long)(o.queue_bytes_most >> 10));
    assert_int_equal(total(o.decode_failed, 4), 0);
    assert_int_equal(o.prefill_failed, 0); /* what is let in is computed in time */
    assert_true(o.prefill_busy > 0);
    /* What is out already (2 ms), the three other decodes, and the call itself. */
    assert_true(o.worst_decode_us < 5000);
    assert_equal_shares(o.decodes, 4);
    assert_equal_shares(o.prefills + 4, l.n_edges - 4);
    /* And the machine is not idle meanwhile: 48 * 3 rows at 40 us and 8 readings at 20 us. */
    assert_true((double)total(o.prefills, l.n_edges) * 48 * 3 * ROW_US > 0.6 * (double)l.run_us);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_times_too_much_costs_no_goodput_and_no_admitted_answer),
        cmocka_unit_test(greedy_edges_get_no_more_than_their_share),
        cmocka_unit_test(decode_does_not_wait_behind_prefill),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
