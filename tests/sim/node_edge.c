/* An edge's process: it asks, checks every row against the pure function, and keeps ticket and epoch. See
 * nodes.h. */
#include "nodes.h"

#include <stdio.h>
#include <string.h>

/* NULL: every row is what the pure function gives; else which is not, in static memory. */
static const char *wrong_row(const node_request *q)
{
    static char text[160];
    for (uint32_t i = 0; i < q->r.n_entries; i++) {
        uint32_t row = q->entries[i].row;
        uint16_t f16[D] = {0};
        float f32[D] = {0};
        int8_t exponent = 0;
        pure_row(q->r.layer, q->entries[i].expert, q->q + row * D, q->s + row * (D / 32), q->x + row * D, f16,
                 &exponent, f32);
        bool same = pure_is_f32(q->r.layer) ? !memcmp(f32, q->f32 + i * D, sizeof f32)
                                            : !memcmp(f16, q->f16 + i * D, sizeof f16) && exponent == q->e[i];
        if (same) continue;
        snprintf(text, sizeof text, "layer %u, expert %u, entry %u of %u", q->r.layer, q->entries[i].expert,
                 i, q->r.n_entries);
        return text;
    }
    return NULL;
}

static void request_done(node_edge *e, cw_edge_request *r)
{
    node_request *q = NULL;
    for (int i = 0; i < MAX_REQUESTS; i++)
        if (&e->requests[i].r == r) q = &e->requests[i];
    if (!q || !q->open) {
        host_fail(e->h, "edge %d: a request ended twice", e->index);
        return;
    }
    q->open = false;
    const char *wrong = NULL;
    if (r->status == CW_OK) {
        e->done++;
        wrong = wrong_row(q);
    } else if (r->status == CW_STATUS_CANCELLED) {
        e->cancelled++;
        if (!q->cancelled) host_fail(e->h, "edge %d: a request is cancelled by itself", e->index);
    } else {
        e->failed++;
    }
    if (e->on_end) e->on_end(e, q, wrong);
}

static void keep_saved(node_edge *e)
{
    cw_edge_saved saved;
    if (!cw_edge_get_saved(e->m, &saved)) return;
    CW_ASSERT(saved.ticket_len <= sizeof e->ticket && saved.epoch_len <= sizeof e->epoch);
    e->has_saved = true;
    e->sign_key = saved.sign_key;
    memcpy(e->cluster_id, saved.cluster_id, sizeof e->cluster_id);
    memcpy(e->ticket, saved.ticket, saved.ticket_len);
    if (saved.epoch_len) memcpy(e->epoch, saved.epoch, saved.epoch_len);
    e->ticket_len = saved.ticket_len;
    e->epoch_len = saved.epoch_len;
}

void node_edge_after(void *ctx, cw_outbox *out)
{
    (void)out;
    node_edge *e = ctx;
    cw_edge_act a;
    while (cw_edge_take_act(e->m, &a)) {
        switch (a.kind) {
        case CW_EDGE_DONE: request_done(e, a.request); break;
        case CW_EDGE_ENROLLED: e->enrolled = true; break;
        case CW_EDGE_SAVE: keep_saved(e); break;
        case CW_EDGE_SAY: host_say(e->h, "edge %d says: %s", e->index, a.text); break;
        case CW_EDGE_REFUSED:
            e->refused = true;
            e->refusal = a.code;
            snprintf(e->why, sizeof e->why, "%s", a.text);
            host_say(e->h, "edge %d is refused: %s", e->index, a.text);
            break;
        }
    }
}

void node_edge_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    cw_edge_event(((node_edge *)ctx)->m, ev, out);
}

uint32_t node_edge_open(const node_edge *e)
{
    uint32_t n = 0;
    for (int i = 0; i < MAX_REQUESTS; i++) n += e->requests[i].open;
    return n;
}

static node_request *blank(node_edge *e, uint32_t layer, uint32_t rows)
{
    host *h = e->h;
    node_request *q = NULL;
    for (int i = 0; !q && i < MAX_REQUESTS; i++)
        if (!e->requests[i].open) q = &e->requests[i];
    if (!q) return NULL;
    memset(q, 0, sizeof *q);
    q->since_us = host_now(h);
    q->r.layer = layer;
    q->r.n_rows = rows;
    for (uint32_t i = 0; i < rows * D; i++) {
        uint64_t z = h->ops->random(h);
        q->q[i] = (int8_t)((int)(z % 255) - 127);
        q->x[i] = (float)(int32_t)(z >> 20 & 0x1ffff) / 8.0f;
    }
    for (uint32_t i = 0; i < rows * (D / 32); i++) q->s[i] = (float)host_below(h, 1000) / 1024.0f;
    q->r.q = q->q;
    q->r.s = q->s;
    q->r.x = q->x;
    q->r.ld = D;
    q->r.entries = q->entries;
    q->r.f16 = q->f16;
    q->r.e = q->e;
    q->r.f32 = q->f32;
    q->r.klass = rows > 1 ? CW__PB__CALL_CLASS__CLASS_PREFILL : CW__PB__CALL_CLASS__CLASS_DECODE;
    q->r.deadline_us = q->since_us + e->deadline_us;
    return q;
}

static void submit(node_edge *e, node_request *q, cw_outbox *out)
{
    q->open = true;
    cw_edge_submit(e->m, &q->r, host_now(e->h), out);
}

node_request *node_edge_ask(node_edge *e, uint32_t layer, uint32_t rows, cw_outbox *out)
{
    host *h = e->h;
    node_request *q = blank(e, layer ? layer : 1 + host_below(h, LAYERS - 1), rows);
    if (!q) return NULL;
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t first = host_below(h, EXPERTS / 2), step = 1 + host_below(h, 2),
                 k = 1 + host_below(h, MAX_K);
        for (uint32_t i = 0; i < k; i++)
            q->entries[q->r.n_entries++] = (cw_edge_entry){row, first + i * step, 0.5f};
    }
    submit(e, q, out);
    return q;
}

node_request *node_edge_ask_all(node_edge *e, uint32_t layer, cw_outbox *out)
{
    node_request *q = blank(e, layer, 1);
    if (!q) return NULL;
    for (uint32_t i = 0; i < EXPERTS; i++) q->entries[q->r.n_entries++] = (cw_edge_entry){0, i, 0.5f};
    submit(e, q, out);
    return q;
}

void node_edge_start(node_edge *e)
{
    cw_edge_layer layers[LAYERS];
    pure_edge_layers(layers);
    cw_edge_config c = {.coordinator_key = e->place->coordinator_key,
                        .token_len = CW_TOKEN_BYTES,
                        .enrolled = e->enrolled,
                        .arithmetic_id = 1,
                        .fingerprint = FINGERPRINT,
                        .n_layers = LAYERS,
                        .n_experts = EXPERTS,
                        .d_model = D,
                        .layers = layers,
                        .seed = e->h->ops->random(e->h),
                        .homeless_us = e->homeless_us,
                        .double_every = e->double_every,
                        .gives_way = e->gives_way,
                        .has_saved = e->has_saved,
                        .sign_key = e->sign_key,
                        .saved_ticket = e->ticket,
                        .saved_ticket_len = e->ticket_len,
                        .saved_epoch = e->epoch,
                        .saved_epoch_len = e->epoch_len};
    snprintf(c.name, sizeof c.name, "e%d", e->index);
    snprintf(c.coordinator, sizeof c.coordinator, "%s", e->place->control);
    memcpy(c.token, e->place->token[1], CW_TOKEN_BYTES);
    memset(c.model_digest, MODEL_BYTE, sizeof c.model_digest);
    memcpy(c.cluster_id, e->cluster_id, sizeof c.cluster_id);
    for (size_t i = 0; i < sizeof c.instance; i++) c.instance[i] = (uint8_t)e->h->ops->random(e->h);
    cw_edge_free(&e->m); /* open requests die with the process, as they should */
    for (int i = 0; i < MAX_REQUESTS; i++) e->requests[i].open = false;
    e->refused = false;
    CW_ASSERT(cw_edge_new(&c, &e->m, NULL) == CW_OK);
}
