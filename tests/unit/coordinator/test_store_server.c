/* The store port: who is served, what is sent, what is refused, and that nobody gets more than its share. */
#include "rig.h"

#include "store_server.h"

enum { MANIFEST = (1 << 20) + 300000, CHUNK = 3 << 20, N_CHUNKS = 4 };

typedef struct {
    store_server *s;
    cw_outbox out;
    uint8_t manifest[MANIFEST];
    bool revoked;
    int64_t now_us;
    int reads;
} bench;

static uint8_t chunk_byte(uint32_t chunk, uint64_t at)
{
    return (uint8_t)(chunk * 31 + at % 251);
}

static bool is_worker(void *ctx, const cw_key *key)
{
    return key->b[0] == 1 && !((bench *)ctx)->revoked;
}

static cw_status chunk_bytes(void *ctx, uint32_t chunk, uint64_t *out, cw_err *err)
{
    (void)ctx;
    if (chunk >= N_CHUNKS) return CW_FAIL(err, CW_STATUS_NOT_FOUND, "there is no chunk %u", chunk);
    *out = CHUNK;
    return CW_OK;
}

static cw_status read_chunk(void *ctx, uint32_t chunk, uint64_t offset, size_t n, void *dst, cw_err *err)
{
    ((bench *)ctx)->reads++;
    if (chunk == 3) return CW_FAIL(err, CW_STATUS_IO, "the model file ends before tensor x");
    for (size_t i = 0; i < n; i++) ((uint8_t *)dst)[i] = chunk_byte(chunk, offset + i);
    return CW_OK;
}

static void bench_open(bench *b, uint64_t rate)
{
    memset(b, 0, sizeof *b);
    b->now_us = 1000000;
    for (size_t i = 0; i < MANIFEST; i++) b->manifest[i] = (uint8_t)(i % 249);
    store_config c = {.heartbeat_ms = 2000,
                      .rate = rate,
                      .manifest = b->manifest,
                      .manifest_bytes = MANIFEST,
                      .ctx = b,
                      .is_worker = is_worker,
                      .chunk_bytes = chunk_bytes,
                      .read = read_chunk};
    memset(c.model_digest, 0xd1, sizeof c.model_digest);
    assert_int_equal(store_server_new(&c, &b->s, NULL), CW_OK);
    cw_outbox_init(&b->out);
}

static void bench_close(bench *b)
{
    store_server_free(&b->s);
    cw_outbox_free(&b->out);
}

static void event(bench *b, cw_event_kind kind, cw_link link, int key, const Cw__Pb__Envelope *env)
{
    cw_event ev = {.kind = kind,
                   .link = link,
                   .key = rig_key(key),
                   .port = CW_PORT_STORE,
                   .now_us = b->now_us,
                   .msg = env ? cw_msg_new(env, NULL, 0) : NULL};
    store_server_event(b->s, &ev, &b->out);
    assert_false(b->out.failed);
    cw_msg_free(&ev.msg);
}

static void hello(bench *b, cw_link link, int key, Cw__Pb__Role role, uint8_t digest)
{
    rig_intro in;
    rig_introduce(&in, role, "w", 1);
    memset(in.digest, digest, sizeof in.digest);
    in.h.purpose = CW__PB__PURPOSE__PURPOSE_STORE;
    in.h.model_digest = (ProtobufCBinaryData){sizeof in.digest, in.digest};
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    env.body_case = CW__PB__ENVELOPE__BODY_HELLO;
    env.hello = &in.h;
    event(b, CW_EV_LINK_UP, link, key, NULL);
    event(b, CW_EV_MESSAGE, link, key, &env);
}

static void get_chunk(bench *b, cw_link link, uint32_t chunk, uint64_t offset, uint32_t length)
{
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__ChunkGet g = CW__PB__CHUNK_GET__INIT;
    g.chunk = chunk;
    g.offset = offset;
    g.length = length;
    env.body_case = CW__PB__ENVELOPE__BODY_CHUNK_GET;
    env.chunk_get = &g;
    event(b, CW_EV_MESSAGE, link, 1, &env);
}

static void get_manifest(bench *b, cw_link link, uint64_t offset)
{
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__ManifestGet g = CW__PB__MANIFEST_GET__INIT;
    g.offset = offset;
    env.body_case = CW__PB__ENVELOPE__BODY_MANIFEST_GET;
    env.manifest_get = &g;
    event(b, CW_EV_MESSAGE, link, 1, &env);
}

static cw_msg *last(bench *b)
{
    for (size_t i = b->out.n; i-- > 0;)
        if (b->out.items[i].kind == CW_ACT_SEND) return b->out.items[i].msg;
    return NULL;
}

static bool acted(bench *b, cw_link link, cw_action_kind kind)
{
    for (size_t i = 0; i < b->out.n; i++)
        if (b->out.items[i].kind == kind && b->out.items[i].link == link) return true;
    return false;
}

static void only_admitted_workers_are_served(void **state)
{
    (void)state;
    static bench b;
    bench_open(&b, 0);
    static const struct {
        int key;
        Cw__Pb__Role role;
        uint8_t digest;
        Cw__Pb__RefusalCode code;
    } bad[] = {
        {2, CW__PB__ROLE__ROLE_WORKER, 0xd1, CW__PB__REFUSAL_CODE__REFUSAL_UNKNOWN_KEY},
        {1, CW__PB__ROLE__ROLE_EDGE, 0xd1, CW__PB__REFUSAL_CODE__REFUSAL_ROLE},
        {1, CW__PB__ROLE__ROLE_WORKER, 0xd2, CW__PB__REFUSAL_CODE__REFUSAL_MODEL},
    };
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++) {
        cw_link link = 10 + i;
        hello(&b, link, bad[i].key, bad[i].role, bad[i].digest);
        assert_int_equal(last(&b)->env->body_case, CW__PB__ENVELOPE__BODY_REFUSAL);
        assert_int_equal(last(&b)->env->refusal->code, bad[i].code);
        assert_true(acted(&b, link, CW_ACT_CLOSE));
        assert_false(acted(&b, link, CW_ACT_ADMIT));
        cw_outbox_clear(&b.out);
        get_chunk(&b, link, 0, 0, 100); /* nothing comes of it */
        assert_int_equal(b.out.n, 0);
    }
    hello(&b, 20, 1, CW__PB__ROLE__ROLE_WORKER, 0xd1);
    assert_true(acted(&b, 20, CW_ACT_ADMIT));
    assert_int_equal(last(&b)->env->body_case, CW__PB__ENVELOPE__BODY_WELCOME);
    b.revoked = true;
    event(&b, CW_EV_TICK, 0, 0, NULL);
    assert_true(acted(&b, 20, CW_ACT_CLOSE));
    bench_close(&b);
}

static void manifest_and_chunks_come_whole_in_parts(void **state)
{
    (void)state;
    static bench b;
    bench_open(&b, 0);
    hello(&b, 20, 1, CW__PB__ROLE__ROLE_WORKER, 0xd1);
    uint64_t at = 0;
    while (at < MANIFEST) {
        get_manifest(&b, 20, at);
        cw_msg *m = last(&b);
        assert_int_equal(m->env->body_case, CW__PB__ENVELOPE__BODY_MANIFEST_PART);
        assert_int_equal(m->env->manifest_part->total, MANIFEST);
        assert_int_equal(m->env->manifest_part->offset, at);
        assert_in_range(m->frames[0].len, 1, CW_STORE_PART_MAX);
        assert_memory_equal(m->frames[0].data, b.manifest + at, m->frames[0].len);
        at += m->frames[0].len;
    }
    assert_int_equal(at, MANIFEST);
    for (at = 0; at < CHUNK;) {
        get_chunk(&b, 20, 2, at, 700000);
        cw_msg *m = last(&b);
        assert_int_equal(m->env->body_case, CW__PB__ENVELOPE__BODY_CHUNK_PART);
        assert_int_equal(m->env->chunk_part->chunk, 2);
        assert_int_equal(m->env->chunk_part->total, CHUNK);
        assert_int_equal(m->env->chunk_part->offset, at);
        for (size_t i = 0; i < m->frames[0].len; i += 997)
            assert_int_equal(m->frames[0].data[i], chunk_byte(2, at + i));
        at += m->frames[0].len;
        cw_outbox_clear(&b.out);
    }
    assert_int_equal(at, CHUNK);
    bench_close(&b);
}

static void what_cannot_be_served_is_said(void **state)
{
    (void)state;
    static bench b;
    bench_open(&b, 0);
    hello(&b, 20, 1, CW__PB__ROLE__ROLE_WORKER, 0xd1);
    static const struct {
        uint32_t chunk;
        uint64_t offset;
        const char *words;
    } bad[] = {{N_CHUNKS, 0, "no chunk 4"},
               {UINT32_MAX, 0, "no chunk"},
               {1, CHUNK, "ends before that offset"},
               {3, 0, "the model file ends before tensor x"}};
    for (size_t i = 0; i < CW_ARRAY_LEN(bad); i++) {
        get_chunk(&b, 20, bad[i].chunk, bad[i].offset, 4096);
        cw_msg *m = last(&b);
        assert_int_equal(m->env->body_case, CW__PB__ENVELOPE__BODY_STORE_FAIL);
        assert_int_equal(m->env->store_fail->chunk, bad[i].chunk);
        assert_non_null(strstr(m->env->store_fail->text, bad[i].words));
    }
    get_manifest(&b, 20, MANIFEST);
    assert_int_equal(last(&b)->env->body_case, CW__PB__ENVELOPE__BODY_STORE_FAIL);
    bench_close(&b);
}

static void a_rate_is_kept_and_open_requests_are_bounded(void **state)
{
    (void)state;
    static bench b;
    bench_open(&b, 1 << 20); /* a part a second */
    hello(&b, 20, 1, CW__PB__ROLE__ROLE_WORKER, 0xd1);
    hello(&b, 21, 1, CW__PB__ROLE__ROLE_WORKER, 0xd1);
    for (int i = 0; i < 6; i++) get_chunk(&b, 20, 0, 0, 1 << 20);
    assert_int_equal(b.reads, 1);
    get_chunk(&b, 21, 0, 0, 1 << 20); /* each worker has its own allowance */
    assert_int_equal(b.reads, 2);
    for (int tick = 0; tick < 30; tick++) {
        b.now_us += 100000;
        cw_outbox_clear(&b.out);
        event(&b, CW_EV_TICK, 0, 0, NULL);
    }
    assert_int_equal(b.reads, 2 + 3);
    cw_outbox_clear(&b.out);
    for (int i = 0; i < STORE_PENDING_MAX; i++) get_chunk(&b, 20, 0, 0, 1 << 20);
    assert_true(acted(&b, 20, CW_ACT_BLAME));
    assert_false(acted(&b, 21, CW_ACT_BLAME));
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_admitted_workers_are_served),
        cmocka_unit_test(manifest_and_chunks_come_whole_in_parts),
        cmocka_unit_test(what_cannot_be_served_is_said),
        cmocka_unit_test(a_rate_is_kept_and_open_requests_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
