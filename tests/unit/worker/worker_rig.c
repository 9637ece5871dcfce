#include "worker_rig.h"

#include "cw/bytes.h"

static void event(void *m, cw_event *ev, cw_outbox *out)
{
    cw_worker_event(m, ev, out);
}

void wr_config(worker_rig *x, cw_worker_config *c)
{
    *c = (cw_worker_config){.coordinator = "tcp://127.0.0.1:5570",
                            .coordinator_key = x->coordinator,
                            .token = "token",
                            .token_len = 5,
                            .data_address = "tcp://127.0.0.1:6000",
                            .memory_bytes = 1 << 20,
                            .threads = 1,
                            .isa = "scalar",
                            .speed = 1,
                            .arithmetic_id = 1,
                            .fingerprint = 77,
                            .kernels = cw_kernels_get(CW_ISA_SCALAR),
                            .seed = 5};
    snprintf(c->name, sizeof c->name, "w1");
}

void wr_new(worker_rig *x, const cw_worker_config *c)
{
    memset(x, 0, sizeof *x);
    x->stopped = -1;
    assert_int_equal(cw_signer_new(&x->signer, NULL), CW_OK);
    memset(x->coordinator.b, 1, CW_KEY_BYTES);
    memset(x->edge_a.b, 2, CW_KEY_BYTES);
    memset(x->edge_b.b, 3, CW_KEY_BYTES);
    memset(x->cluster, 4, sizeof x->cluster);
    memset(x->digest, 5, sizeof x->digest);
    cw_worker_config def;
    wr_config(x, &def);
    assert_int_equal(cw_worker_new(c ? c : &def, &x->w, NULL), CW_OK);
    x->r = (rig){.machine = x->w, .event = event, .now_us = 1000000, .wall_ms = 1000000000};
    cw_outbox_init(&x->r.out);
}

void wr_free(worker_rig *x)
{
    cw_outbox_free(&x->r.out);
    cw_worker_free(&x->w);
    cw_signer_free(&x->signer);
}

void wr_acts(worker_rig *x)
{
    cw_worker_act a;
    while (cw_worker_take_act(x->w, &a)) {
        switch (a.kind) {
        case CW_WORKER_ENROLLED: x->n_enrolled++; break;
        case CW_WORKER_GET_MODEL:
            x->n_get_model++;
            assert_memory_equal(a.digest, x->digest, CW_DIGEST_BYTES);
            break;
        case CW_WORKER_LOAD:
            x->n_loads++;
            if (x->hold_loads)
                x->held[x->n_held][0] = a.layer, x->held[x->n_held++][1] = a.expert;
            else
                cw_worker_loaded(x->w, a.layer, a.expert, !x->load_fails, "the disk is on fire", x->r.now_us,
                                 x->r.wall_ms, &x->r.out);
            break;
        case CW_WORKER_UNLOAD: x->n_unloads++; break;
        case CW_WORKER_SOURCE:
            x->n_sources++;
            cw_free(a.source);
            break;
        case CW_WORKER_READ: x->read = a; break;
        case CW_WORKER_SAVE: x->n_saves++; break;
        case CW_WORKER_COMPUTE: x->jobs[x->n_jobs++] = a.job; break;
        case CW_WORKER_REVOKED: x->n_revoked++; break;
        case CW_WORKER_SAY: memcpy(x->said, a.text, sizeof x->said); break;
        case CW_WORKER_STOPPED:
            x->stopped = a.code;
            memcpy(x->stop_text, a.text, sizeof x->stop_text);
            break;
        }
    }
}

void wr_connect(worker_rig *x)
{
    cw_action *a = NULL;
    for (int i = 0; i < 100 && !(a = rig_action(&x->r, CW_ACT_OPEN, 0, 0, 0)); i++) rig_tick(&x->r, 100000);
    assert_non_null(a);
    assert_true(cw_key_equal(&a->key, &x->coordinator));
    x->co = a->link;
    rig_clear(&x->r);
    rig_up(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator);
    wr_acts(x);
}

void wr_welcome(worker_rig *x, const cw_key *revoked, size_t n_revoked)
{
    Cw__Pb__Welcome m = CW__PB__WELCOME__INIT;
    m.proto = 1, m.model_name = (char *)"demo", m.store_address = (char *)"tcp://127.0.0.1:5571",
    m.heartbeat_ms = 2000, m.wall_ms = (uint64_t)x->r.wall_ms + 5000;
    m.cluster_id = (ProtobufCBinaryData){CW_CLUSTER_BYTES, x->cluster};
    m.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, x->digest};
    m.sign_key = (ProtobufCBinaryData){CW_KEY_BYTES, (uint8_t *)(uintptr_t)cw_signer_public(x->signer)->b};
    m.revoked = (ProtobufCBinaryData){n_revoked * CW_KEY_BYTES, (uint8_t *)(uintptr_t)revoked};
    ENV(env, WELCOME, welcome, &m);
    rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, NULL, 0);
    rig_tick(&x->r, 1000);
    wr_acts(x);
}

void wr_refusal(worker_rig *x, cw_link link, Cw__Pb__RefusalCode code, uint32_t retry_ms)
{
    Cw__Pb__Refusal m = CW__PB__REFUSAL__INIT;
    m.code = code, m.text = (char *)"because", m.retry_after_ms = retry_ms;
    ENV(env, REFUSAL, refusal, &m);
    rig_message(&x->r, link, CW_PORT_CONTROL, &x->coordinator, &env, NULL, 0);
    wr_acts(x);
}

void wr_model(worker_rig *x)
{
    static const cw_worker_layer layers[LAYERS] = {
        {0},
        {CW__PB__ACT_KIND__ACT_A8, CW__PB__REPLY_KIND__ROWS_F16, PACKED},
        {CW__PB__ACT_KIND__ACT_F32, CW__PB__REPLY_KIND__ROWS_F32, PACKED}};
    cw_worker_model_ready(x->w, LAYERS, EXPERTS, D, layers, x->r.now_us, x->r.wall_ms, &x->r.out);
    wr_acts(x);
}

void wr_assign(worker_rig *x, bool assign, uint32_t layer, uint8_t mask)
{
    Cw__Pb__LayerSet set = CW__PB__LAYER_SET__INIT, *sets[1] = {&set};
    set.layer = layer, set.experts = (ProtobufCBinaryData){1, &mask};
    if (assign) {
        Cw__Pb__Assign m = CW__PB__ASSIGN__INIT;
        m.seq = ++x->seq, m.n_sets = 1, m.sets = sets;
        ENV(env, ASSIGN, assign, &m);
        rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, NULL, 0);
    } else {
        Cw__Pb__Drop m = CW__PB__DROP__INIT;
        m.seq = ++x->seq, m.n_sets = 1, m.sets = sets;
        ENV(env, DROP, drop, &m);
        rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, NULL, 0);
    }
    wr_acts(x);
}

void wr_boot(worker_rig *x, const cw_worker_config *c)
{
    wr_new(x, c);
    wr_connect(x);
    wr_welcome(x, NULL, 0);
    wr_model(x);
    wr_assign(x, true, 1, 0xff);
    wr_assign(x, true, 2, 0xff);
    for (int i = 0; i < 20; i++) wr_acts(x);
    cw_worker_facts f;
    cw_worker_get_facts(x->w, &f);
    assert_int_equal(f.n_ready, 2 * EXPERTS);
    rig_clear(&x->r);
}

uint8_t *wr_epoch(worker_rig *x, uint64_t term, uint64_t number, size_t *n)
{
    Cw__Pb__EpochBody b = CW__PB__EPOCH_BODY__INIT;
    b.cluster_id = (ProtobufCBinaryData){CW_CLUSTER_BYTES, x->cluster};
    b.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, x->digest};
    b.term = term, b.number = number;
    uint8_t *bytes = NULL;
    assert_int_equal(cw_epoch_sign(x->signer, &b, &bytes, n, NULL), CW_OK);
    return bytes;
}

void wr_epoch_news(worker_rig *x, uint64_t term, uint64_t number)
{
    size_t n;
    uint8_t *bytes = wr_epoch(x, term, number, &n);
    Cw__Pb__EpochNews m = CW__PB__EPOCH_NEWS__INIT;
    ENV(env, EPOCH_NEWS, epoch_news, &m);
    cw_frame f = cw_frame_copy(bytes, n);
    rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, &f, 1);
    cw_free(bytes);
    wr_acts(x);
}

void wr_hello_with(worker_rig *x, Cw__Pb__Hello *h, const cw_key *key, int64_t not_after_ms, uint32_t streams,
                   uint8_t **ticket)
{
    static uint8_t instance[CW_INSTANCE_BYTES];
    cw_ticket t = {.edge = *key, .not_after_ms = (uint64_t)not_after_ms, .streams = streams};
    memcpy(t.cluster, x->cluster, sizeof t.cluster);
    memcpy(t.model_digest, x->digest, sizeof t.model_digest);
    size_t n;
    assert_int_equal(cw_ticket_sign(x->signer, &t, ticket, &n, NULL), CW_OK);
    cw__pb__hello__init(h);
    h->proto_min = h->proto_max = 1;
    h->role = CW__PB__ROLE__ROLE_EDGE, h->purpose = CW__PB__PURPOSE__PURPOSE_DATA;
    h->arithmetic_id = 1, h->fingerprint = 77;
    h->model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, x->digest};
    h->instance = (ProtobufCBinaryData){CW_INSTANCE_BYTES, instance};
    h->ticket = (ProtobufCBinaryData){n, *ticket};
}

void wr_good_hello(worker_rig *x, Cw__Pb__Hello *h, const cw_key *key, int64_t not_after_ms, uint8_t **ticket)
{
    wr_hello_with(x, h, key, not_after_ms, 4, ticket);
}

void wr_hello(worker_rig *x, cw_link link, const cw_key *key, const Cw__Pb__Hello *h)
{
    rig_up(&x->r, link, CW_PORT_DATA, key);
    Cw__Pb__Hello copy = *h;
    ENV(env, HELLO, hello, &copy);
    rig_message(&x->r, link, CW_PORT_DATA, key, &env, NULL, 0);
    wr_acts(x);
}

void wr_edge(worker_rig *x, cw_link link, const cw_key *key)
{
    wr_edge_with(x, link, key, 4);
}

void wr_edge_with(worker_rig *x, cw_link link, const cw_key *key, uint32_t streams)
{
    Cw__Pb__Hello h;
    uint8_t *ticket;
    /* The coordinator's clock is five seconds ahead (wr_welcome). */
    wr_hello_with(x, &h, key, x->r.wall_ms + 5000 + 3600 * 1000, streams, &ticket);
    wr_hello(x, link, key, &h);
    cw_free(ticket);
    assert_non_null(rig_action(&x->r, CW_ACT_ADMIT, link, 0, 0));
    assert_non_null(rig_sent(&x->r, link, MSG(WELCOME)));
    rig_clear(&x->r);
}

void wr_send_call(worker_rig *x, cw_link link, const wr_call *c)
{
    Cw__Pb__Call m = CW__PB__CALL__INIT;
    bool a8 = c->layer == 1;
    m.id = c->id, m.layer = c->layer, m.n_rows = c->n_rows, m.n_entries = c->n_entries;
    m.act = a8 ? CW__PB__ACT_KIND__ACT_A8 : CW__PB__ACT_KIND__ACT_F32;
    m.reply = c->reply, m.klass = c->klass, m.stream = c->stream,
    m.budget_us = c->budget_us ? c->budget_us : 1000000;
    uint8_t *mem[3];
    cw_frame f[3] = {cw_frame_new(c->n_entries * CW_ENTRY_BYTES, &mem[0])};
    for (uint32_t i = 0; i < c->n_entries; i++) cw_entry_put(mem[0], i, c->entries[i]);
    if (a8) {
        f[1] = cw_frame_new(c->n_rows * D, &mem[1]);
        f[2] = cw_frame_new(c->n_rows * D / 8, &mem[2]);
        for (uint32_t i = 0; i < c->n_rows * D; i++) mem[1][i] = (uint8_t)(c->seed + (int8_t)(i / D));
        for (uint32_t i = 0; i < c->n_rows * D / 32; i++) cw_store_u32(mem[2] + 4 * i, cw_f32_bits(0.5f));
    } else {
        f[1] = cw_frame_new(c->n_rows * D * 4, &mem[1]);
        for (uint32_t i = 0; i < c->n_rows * D; i++)
            cw_store_u32(mem[1] + 4 * i, cw_f32_bits((float)(c->seed + (int8_t)(i / D))));
    }
    ENV(env, CALL, call, &m);
    rig_message(&x->r, link, CW_PORT_DATA, &x->edge_a, &env, f, a8 ? 3 : 2);
    wr_acts(x);
}

float wr_value(uint32_t layer, uint32_t expert, int8_t q0, int k)
{
    return (float)(layer * 100 + expert * 10) + (float)q0 + (float)k / 64.0f;
}

void wr_compute(worker_rig *x, int bad_expert)
{
    assert_true(x->n_jobs > 0);
    cw_job *job = x->jobs[0];
    memmove(x->jobs, x->jobs + 1, (size_t)--x->n_jobs * sizeof *x->jobs);
    for (uint32_t i = 0; i < job->n_experts; i++) {
        const cw_job_expert *e = &job->experts[i];
        for (uint32_t k = e->first; k < e->first + e->n; k++) {
            cw_job_row *row = &job->rows[k];
            int8_t q0 = row->q ? row->q[0] : (int8_t)cw_f32_from_bits(cw_load_u32(row->x));
            row->bad = (int)e->expert == bad_expert;
            for (int j = 0; j < D; j++) {
                float v = wr_value(e->layer, e->expert, q0, j);
                if (row->e)
                    ((uint16_t *)row->out)[j] = cw_f32_to_f16(v);
                else
                    ((float *)row->out)[j] = v;
            }
            if (row->e) *row->e = 1;
        }
    }
    cw_worker_computed(x->w, job, x->r.now_us, x->r.wall_ms, &x->r.out);
    wr_acts(x);
}
