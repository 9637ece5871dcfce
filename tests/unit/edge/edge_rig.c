#include "edge_rig.h"

#include "cw/recycled.h"
#include "cw/bytes.h"

static void event(void *m, cw_event *ev, cw_outbox *out)
{
    cw_edge_event(m, ev, out);
}

static const cw_edge_layer layers[LAYERS] = {
    {0},
    {CW__PB__ACT_KIND__ACT_A8, CW__PB__REPLY_KIND__ROWS_F16, 100000},
    {CW__PB__ACT_KIND__ACT_F32, CW__PB__REPLY_KIND__ROWS_F32, 100000}};

void er_config(edge_rig *x, cw_edge_config *c)
{
    *c = (cw_edge_config){.name = "e1",
                          .coordinator = "tcp://127.0.0.1:5570",
                          .coordinator_key = x->coordinator,
                          .token = "token",
                          .token_len = 5,
                          .arithmetic_id = 1,
                          .fingerprint = 77,
                          .n_layers = LAYERS,
                          .n_experts = EXPERTS,
                          .d_model = D,
                          .layers = layers,
                          .seed = 3};
    memcpy(c->model_digest, x->digest, sizeof c->model_digest);
}

edge_rig *er_new(const cw_edge_config *c)
{
    edge_rig *x = calloc(1, sizeof *x);
    assert_non_null(x);
    assert_int_equal(cw_signer_new(&x->signer, NULL), CW_OK);
    memset(x->coordinator.b, 1, CW_KEY_BYTES);
    memset(x->key.b, 2, CW_KEY_BYTES);
    memset(x->cluster, 4, sizeof x->cluster);
    memset(x->digest, 5, sizeof x->digest);
    for (int i = 0; i < WORKERS; i++) {
        memset(x->worker[i].b, 10 + i, CW_KEY_BYTES);
        memset(x->sets[i], 0xff, LAYERS);
        x->speed[i] = 1;
    }
    x->ticket_ms = 3600 * 1000;
    x->refused = -1;
    cw_edge_config def;
    er_config(x, &def);
    assert_int_equal(cw_edge_new(c ? c : &def, &x->e, NULL), CW_OK);
    x->r = (rig){.machine = x->e, .event = event, .now_us = 1000000, .wall_ms = 1000000000};
    cw_outbox_init(&x->r.out);
    return x;
}

void er_free(edge_rig *x)
{
    cw_outbox_free(&x->r.out);
    cw_edge_free(&x->e);
    cw_signer_free(&x->signer);
    free(x);
}

void er_acts(edge_rig *x)
{
    cw_edge_act a;
    while (cw_edge_take_act(x->e, &a)) {
        switch (a.kind) {
        case CW_EDGE_DONE:
            x->n_done++;
            x->done = a.request;
            break;
        case CW_EDGE_ENROLLED: x->n_enrolled++; break;
        case CW_EDGE_SAVE: x->n_saved++; break;
        case CW_EDGE_SAY: memcpy(x->said, a.text, sizeof x->said); break;
        case CW_EDGE_REFUSED:
            x->refused = (int)a.code;
            memcpy(x->refused_text, a.text, sizeof x->refused_text);
            break;
        }
    }
}

void er_connect(edge_rig *x)
{
    cw_action *a = NULL;
    for (int i = 0; i < 100 && !a; i++) {
        rig_tick(&x->r, 100000);
        for (int k = 0; (a = rig_action(&x->r, CW_ACT_OPEN, 0, 0, k)); k++)
            if (cw_key_equal(&a->key, &x->coordinator)) break;
    }
    assert_non_null(a);
    x->co = a->link;
    a->kind = CW_ACT_CLOSE; /* taken; a marker that is looked for nowhere */
    a->link = 0;
    rig_up(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator);
    er_acts(x);
}

uint8_t *er_epoch(edge_rig *x, uint64_t term, uint64_t number, size_t *n)
{
    Cw__Pb__EpochWorker w[WORKERS], *list[WORKERS];
    Cw__Pb__LayerSet s[WORKERS][LAYERS], *sets[WORKERS][LAYERS];
    char name[WORKERS][16], address[WORKERS][48];
    for (int i = 0; i < x->n_workers; i++) {
        cw__pb__epoch_worker__init(&w[i]);
        snprintf(name[i], sizeof name[i], "w%d", i);
        snprintf(address[i], sizeof address[i], "tcp://127.0.0.1:%d", 6000 + i);
        w[i].id = (uint32_t)i + (x->first_id ? x->first_id : 1), w[i].name = name[i],
        w[i].address = address[i], w[i].speed = x->speed[i];
        w[i].key = (ProtobufCBinaryData){CW_KEY_BYTES, x->worker[i].b};
        for (int l = 1; l < LAYERS; l++) {
            cw__pb__layer_set__init(&s[i][l]);
            s[i][l].layer = (uint32_t)l, s[i][l].experts = (ProtobufCBinaryData){1, &x->sets[i][l]};
            sets[i][l - 1] = &s[i][l];
        }
        w[i].n_sets = LAYERS - 1, w[i].sets = sets[i];
        list[i] = &w[i];
    }
    Cw__Pb__EpochBody b = CW__PB__EPOCH_BODY__INIT;
    b.cluster_id = (ProtobufCBinaryData){CW_CLUSTER_BYTES, x->cluster};
    b.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, x->digest};
    b.term = term, b.number = number, b.n_workers = (size_t)x->n_workers, b.workers = list;
    uint8_t *bytes = NULL;
    cw_err err = {0};
    if (cw_epoch_sign(x->signer, &b, &bytes, n, &err) != CW_OK) fail_msg("%s", err.text);
    return bytes;
}

uint8_t *er_ticket(edge_rig *x, size_t *n)
{
    cw_ticket t = {.edge = x->key, .not_after_ms = (uint64_t)(x->r.wall_ms + x->ticket_ms), .streams = 4};
    memcpy(t.cluster, x->cluster, sizeof t.cluster);
    memcpy(t.model_digest, x->digest, sizeof t.model_digest);
    uint8_t *bytes = NULL;
    assert_int_equal(cw_ticket_sign(x->signer, &t, &bytes, n, NULL), CW_OK);
    return bytes;
}

void er_welcome(edge_rig *x, uint64_t term, uint64_t number)
{
    size_t n_ticket, n_epoch = 0;
    uint8_t *ticket = er_ticket(x, &n_ticket), *epoch = number ? er_epoch(x, term, number, &n_epoch) : NULL;
    Cw__Pb__Welcome m = CW__PB__WELCOME__INIT;
    m.proto = 1, m.model_name = (char *)"demo", m.heartbeat_ms = 2000, m.wall_ms = (uint64_t)x->r.wall_ms;
    m.cluster_id = (ProtobufCBinaryData){CW_CLUSTER_BYTES, x->cluster};
    m.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, x->digest};
    m.sign_key = (ProtobufCBinaryData){CW_KEY_BYTES, (uint8_t *)(uintptr_t)cw_signer_public(x->signer)->b};
    m.ticket = (ProtobufCBinaryData){n_ticket, ticket};
    ENV(env, WELCOME, welcome, &m);
    cw_frame f = number ? cw_frame_copy(epoch, n_epoch) : (cw_frame){0};
    rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, &f, number ? 1 : 0);
    cw_free(ticket);
    cw_free(epoch);
    er_acts(x);
}

void er_epoch_news(edge_rig *x, uint64_t term, uint64_t number)
{
    size_t n;
    uint8_t *bytes = er_epoch(x, term, number, &n);
    Cw__Pb__EpochNews m = CW__PB__EPOCH_NEWS__INIT;
    ENV(env, EPOCH_NEWS, epoch_news, &m);
    cw_frame f = cw_frame_copy(bytes, n);
    rig_message(&x->r, x->co, CW_PORT_CONTROL, &x->coordinator, &env, &f, 1);
    cw_free(bytes);
    er_acts(x);
}

void er_worker_welcome(edge_rig *x, int w)
{
    Cw__Pb__Welcome m = CW__PB__WELCOME__INIT;
    m.proto = 1, m.heartbeat_ms = 2000;
    m.cluster_id = (ProtobufCBinaryData){CW_CLUSTER_BYTES, x->cluster};
    m.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, x->digest};
    ENV(env, WELCOME, welcome, &m);
    rig_message(&x->r, x->link[w], CW_PORT_DATA, &x->worker[w], &env, NULL, 0);
    er_acts(x);
}

void er_workers_up(edge_rig *x)
{
    for (int k = 0;; k++) {
        cw_action *a = rig_action(&x->r, CW_ACT_OPEN, 0, 0, k);
        if (!a) break;
        for (int w = 0; w < WORKERS; w++) {
            if (!cw_key_equal(&a->key, &x->worker[w])) continue;
            x->link[w] = a->link;
            a->kind = CW_ACT_CLOSE, a->link = 0, k--; /* taken */
            rig_event(&x->r, &(cw_event){.kind = CW_EV_LINK_UP,
                                         .link = x->link[w],
                                         .port = CW_PORT_DATA,
                                         .key = x->worker[w],
                                         .same_host = x->same_host});
            assert_non_null(rig_sent(&x->r, x->link[w], MSG(HELLO)));
            er_worker_welcome(x, w);
            break;
        }
    }
}

edge_rig *er_boot(int n_workers, const cw_edge_config *c)
{
    edge_rig *x = er_new(c);
    x->n_workers = n_workers;
    er_connect(x);
    er_welcome(x, 1, 1);
    cw_edge_want(x->e, x->r.now_us, &x->r.out);
    er_workers_up(x);
    cw_edge_facts f;
    cw_edge_get_facts(x->e, &f);
    assert_true(f.covered);
    rig_clear(&x->r);
    return x;
}

void er_submit(edge_rig *x, uint32_t layer, uint32_t n_rows, uint8_t mask)
{
    uint32_t n = 0;
    for (uint32_t r = 0; r < n_rows; r++) {
        for (int k = 0; k < D; k++)
            x->q[r * D + (uint32_t)k] = (int8_t)(r % 100), x->x[r * D + (uint32_t)k] = (float)(r % 100);
        for (int k = 0; k < D / 32; k++) x->s[r * D / 32 + (uint32_t)k] = 1;
        for (uint32_t e = 0; e < EXPERTS; e++)
            if (mask >> e & 1) x->entries[n++] = (cw_edge_entry){r, e, 0.5f};
    }
    x->req = (cw_edge_request){.layer = layer,
                               .n_rows = n_rows,
                               .n_entries = n,
                               .q = x->q,
                               .s = x->s,
                               .x = x->x,
                               .ld = D,
                               .entries = x->entries,
                               .klass = x->next_class,
                               .stream = x->next_stream,
                               .deadline_us = x->r.now_us + 30000000,
                               .f16 = x->f16,
                               .e = x->exp,
                               .f32 = x->f32};
    memset(x->f16, 0, sizeof x->f16);
    memset(x->f32, 0, sizeof x->f32);
    cw_edge_submit(x->e, &x->req, x->r.now_us, &x->r.out);
    er_acts(x);
}

cw_action *er_call(edge_rig *x, int w, int nth)
{
    return rig_action(&x->r, CW_ACT_SEND, x->link[w], MSG(CALL), nth);
}

float er_value(uint32_t layer, uint32_t expert, int8_t q0, int k)
{
    return (float)(layer * 100 + expert * 10) + (float)q0 + (float)k / 64.0f;
}

void er_reply(edge_rig *x, int w, cw_action *call)
{
    cw_msg *m = call->msg;
    call->kind = CW_ACT_CLOSE, call->link = 0, call->msg = NULL; /* taken */
    static const cw_model_limits lim = {LAYERS, EXPERTS, D, 4096, 4096};
    cw_call_view v;
    cw_err err = {0};
    if (cw_call_view_get(m, &lim, &v, &err) != CW_OK) fail_msg("the edge sent %s", err.text);
    bool f16 = v.reply == CW__PB__REPLY_KIND__ROWS_F16;
    uint8_t *mem[2];
    cw_frame f[2] = {cw_frame_new((size_t)v.n_entries * D * (f16 ? 2 : 4), &mem[0]),
                     cw_frame_new(v.n_entries, &mem[1])};
    for (uint32_t i = 0; i < v.n_entries; i++) {
        cw_entry e = cw_entry_get(v.entries, i);
        assert_true(e.weight == 0.5f);
        assert_true(x->sets[w][v.layer] >> e.expert & 1);
        int8_t q0 = v.q ? v.q[e.row * D] : (int8_t)cw_f32_from_bits(cw_load_u32(v.x + (size_t)e.row * D * 4));
        for (int k = 0; k < D; k++) {
            float y = er_value(v.layer, e.expert, q0, k);
            if (f16)
                cw_store_u16(mem[0] + (i * D + (uint32_t)k) * 2, cw_f32_to_f16(y));
            else
                cw_store_u32(mem[0] + (i * D + (uint32_t)k) * 4, cw_f32_bits(y));
        }
        mem[1][i] = (uint8_t)e.expert;
    }
    if (!f16) cw_block_give(mem[1]);
    if (x->lies[w]) mem[0][0] ^= 1;
    if (x->lies[w] > 0) x->lies[w]--;
    Cw__Pb__Reply r = CW__PB__REPLY__INIT;
    r.id = v.id, r.kind = v.reply, r.n = v.n_entries, r.queue_us = x->queue_us[w];
    r.service_us = x->service_us ? x->service_us : 100;
    ENV(env, REPLY, reply, &r);
    rig_message(&x->r, x->link[w], CW_PORT_DATA, &x->worker[w], &env, f, f16 ? 2 : 1);
    cw_msg_free(&m);
    er_acts(x);
}

void er_fail(edge_rig *x, int w, uint64_t id, Cw__Pb__FailCode code, uint32_t layer, uint32_t expert,
             const uint8_t *epoch, size_t n)
{
    Cw__Pb__CallFail m = CW__PB__CALL_FAIL__INIT;
    m.id = id, m.code = code, m.text = (char *)"because", m.layer = layer, m.expert = expert,
    m.retry_after_ms = 20;
    ENV(env, CALL_FAIL, call_fail, &m);
    cw_frame f = cw_frame_copy(epoch, n);
    rig_message(&x->r, x->link[w], CW_PORT_DATA, &x->worker[w], &env, &f, epoch ? 1 : 0);
    if (!epoch) cw_block_give(f.owner);
    er_acts(x);
}

void er_answer_all(edge_rig *x)
{
    for (int w = 0; w < x->n_workers; w++)
        for (cw_action *a; (a = er_call(x, w, 0)); w = 0) er_reply(x, w, a);
}

void er_check_rows(edge_rig *x)
{
    assert_ptr_equal(x->done, &x->req);
    assert_int_equal(x->req.status, CW_OK);
    for (uint32_t i = 0; i < x->req.n_entries; i++)
        for (int k = 0; k < D; k++) {
            float y = er_value(x->req.layer, x->entries[i].expert, (int8_t)(x->entries[i].row % 100), k);
            if (x->req.layer == 1) {
                assert_int_equal(x->f16[i * D + (uint32_t)k], cw_f32_to_f16(y));
                assert_int_equal(x->exp[i], (int8_t)x->entries[i].expert);
            } else {
                assert_true(x->f32[i * D + (uint32_t)k] == y);
            }
        }
}
