/* Life of the edge machine, events to its parts, requests in and out; see cw/edge_machine.h. */
#include "edge_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"

enum { FIRST_TOKENS = 4 }; /* hedges before there were messages to count them against */

uint64_t edge_random(cw_edge *e)
{
    /* splitmix64 */
    uint64_t z = e->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void defaults(cw_edge_config *c)
{
    if (!c->idle_us) c->idle_us = 60000000;
    if (!c->homeless_us) c->homeless_us = 10000000;
    if (!c->reply_us) c->reply_us = 5000000;
    if (!c->hedge_least_us) c->hedge_least_us = 25000;
    if (!c->hedge_most_us) c->hedge_most_us = 150000;
    if (!c->silent_us) c->silent_us = 120000;
    if (!c->verdict_us) c->verdict_us = 3000000;
    if (!c->double_every) c->double_every = 512;
}

/* What an earlier run left; anything that does not hold is left aside, the coordinator gives new ones. */
static void restore(cw_edge *e)
{
    const cw_edge_config *c = &e->c;
    if (!c->has_saved) return;
    e->has_cluster = true;
    e->sign_key = c->sign_key;
    memcpy(e->cluster_id, c->cluster_id, CW_CLUSTER_BYTES);
    if (c->saved_ticket_len && !control_take_ticket(e, c->saved_ticket, c->saved_ticket_len))
        edge_say(e, "the stored ticket is not usable");
    if (c->saved_epoch_len && !homes_take_epoch(e, c->saved_epoch, c->saved_epoch_len))
        edge_say(e, "the stored epoch is not usable");
    /* Nothing new to store in that. */
    e->n_acts = 0;
}

cw_status cw_edge_new(const cw_edge_config *c, cw_edge **out, cw_err *err)
{
    CW_ASSERT(c->n_layers && c->n_experts && c->d_model && c->n_experts <= CW_WIRE_MAX_EXPERTS);
    cw_edge *e = cw_calloc(1, sizeof *e);
    if (e) {
        e->c = *c;
        defaults(&e->c);
        e->co.backoff = (cw_backoff){.first_us = 100000, .most_us = 5000000, .random = c->seed};
        e->co.enrolled = c->enrolled;
        e->co.heartbeat_us = 2000000;
        snprintf(e->co.why, sizeof e->co.why, "not connected yet");
        e->set_bytes = (c->n_experts + 7) / 8;
        e->layers = cw_calloc(c->n_layers, sizeof *e->layers);
        e->x_rows = cw_calloc(c->n_experts, sizeof *e->x_rows);
        e->x_home = cw_calloc(c->n_experts, sizeof *e->x_home);
        e->x_order = cw_calloc(c->n_experts, sizeof *e->x_order);
        e->x_group = cw_calloc(c->n_experts, sizeof *e->x_group);
        e->random = c->seed;
        e->tokens = FIRST_TOKENS;
        e->busy_retry_us = INT64_MIN / 2;
    }
    if (!e || !e->layers || !e->x_rows || !e->x_home || !e->x_order || !e->x_group) {
        cw_edge_free(&e);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the edge");
    }
    memcpy(e->layers, c->layers, c->n_layers * sizeof *e->layers);
    e->c.layers = e->layers;
    restore(e);
    *out = e;
    return CW_OK;
}

static void free_list(piece_list *l)
{
    for (piece *p = l->head, *next; p; p = next) {
        next = p->next;
        piece_free(p);
    }
}

void cw_edge_free(cw_edge **ep)
{
    if (!ep || !*ep) return;
    cw_edge *e = *ep;
    for (size_t i = 0; i < e->n_homes; i++) {
        free_list(&e->homes[i]->queued);
        free_list(&e->homes[i]->sent);
        ghosts_free(e->homes[i]);
        cw_free(e->homes[i]->sets);
        cw_free(e->homes[i]);
    }
    free_list(&e->homeless);
    disputes_free(e);
    rows_free(e);
    cw_free(e->homes);
    cw_free(e->finish);
    cw_free(e->share);
    cw_free(e->layers);
    cw_free(e->x_rows);
    cw_free(e->x_home);
    cw_free(e->x_order);
    cw_free(e->x_group);
    cw_free(e->ticket);
    cw_free(e->epoch);
    cw_free(e->acts);
    cw_free(e);
    *ep = NULL;
}

cw_edge_act *edge_act(cw_edge *e, cw_edge_act_kind kind)
{
    if (e->n_acts == e->cap_acts) {
        size_t cap = e->cap_acts ? 2 * e->cap_acts : 32;
        cw_edge_act *acts = cw_calloc(cap, sizeof *acts);
        if (!acts) {
            fprintf(stderr, "causeway: out of memory\n");
            abort();
        }
        for (size_t i = 0; i < e->n_acts; i++) acts[i] = e->acts[(e->act_head + i) % e->cap_acts];
        cw_free(e->acts);
        e->acts = acts;
        e->cap_acts = cap;
        e->act_head = 0;
    }
    cw_edge_act *a = &e->acts[(e->act_head + e->n_acts++) % e->cap_acts];
    memset(a, 0, sizeof *a);
    a->kind = kind;
    return a;
}

bool cw_edge_take_act(cw_edge *e, cw_edge_act *act)
{
    if (!e->n_acts) return false;
    *act = e->acts[e->act_head];
    e->act_head = (e->act_head + 1) % e->cap_acts;
    e->n_acts--;
    return true;
}

void edge_say(cw_edge *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    cw_edge_act *a = edge_act(e, CW_EDGE_SAY);
    vsnprintf(a->text, sizeof a->text, fmt, ap);
    va_end(ap);
}

cw_link edge_new_link(cw_edge *e)
{
    return CW_LINK_OUT | ++e->next_link;
}

int64_t edge_cluster_ms(const cw_edge *e)
{
    return e->wall_ms + e->wall_offset_ms;
}

bool edge_keep(uint8_t **dst, size_t *dst_len, const void *data, size_t len)
{
    uint8_t *copy = cw_realloc(NULL, len ? len : 1, 1);
    if (!copy) return false;
    memcpy(copy, data, len);
    cw_free(*dst);
    *dst = copy;
    *dst_len = len;
    return true;
}

void edge_hello(cw_edge *e, Cw__Pb__Hello *h, Cw__Pb__Purpose purpose)
{
    cw__pb__hello__init(h);
    h->proto_min = CW_PROTO_MIN, h->proto_max = CW_PROTO_MAX;
    h->software = (char *)"causeway " CW_VERSION;
    h->role = CW__PB__ROLE__ROLE_EDGE, h->purpose = purpose;
    h->name = e->c.name;
    h->arithmetic_id = e->c.arithmetic_id, h->fingerprint = e->c.fingerprint;
    h->model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, e->c.model_digest};
    h->epoch_term = e->epoch_term, h->epoch_number = e->epoch_number;
    h->instance = (ProtobufCBinaryData){CW_INSTANCE_BYTES, e->c.instance};
    if (purpose == CW__PB__PURPOSE__PURPOSE_DATA) h->ticket = (ProtobufCBinaryData){e->ticket_len, e->ticket};
}

/* The computer slept, and nobody could answer: what requests wait for gets that time once more. */
static void after_sleep(cw_edge *e, int64_t us)
{
    for (cw_edge_request *r = e->requests; r; r = r->next) r->deadline_us += us;
    for (piece *p = e->homeless.head; p; p = p->next) p->since_us += us;
    for (size_t i = 0; i < e->n_homes; i++)
        for (piece *p = e->homes[i]->sent.head; p; p = p->next) p->give_up_us += us;
}

void cw_edge_event(cw_edge *e, cw_event *ev, cw_outbox *out)
{
    int64_t pause_us = e->event_us ? ev->now_us - e->event_us : 0; /* ticks are more frequent */
    e->now_us = e->event_us = ev->now_us;
    e->wall_ms = ev->wall_ms;
    if (e->stopped) return;
    if (pause_us > CW_TIDE_SLEPT_US) after_sleep(e, pause_us);
    if (ev->kind == CW_EV_TICK) {
        control_tick(e, out);
        links_tick(e, out);
        calls_tick(e, out);
        reach_look(e, out);
        homes_tick(e);
    } else if (ev->link == e->co.link) {
        control_event(e, ev, out);
    } else {
        links_event(e, ev, out);
        /* Words can only mend it, and the next tick is soon enough for that. */
        if (ev->kind != CW_EV_MESSAGE) reach_look(e, out);
    }
}

static void want(cw_edge *e, int64_t now_us, cw_outbox *out)
{
    bool first = !e->wanted;
    e->now_us = now_us;
    e->wanted = true;
    e->wanted_us = now_us;
    if (first) links_tick(e, out);
}

void cw_edge_want(cw_edge *e, int64_t now_us, cw_outbox *out)
{
    if (!e->stopped) want(e, now_us, out);
}

void cw_edge_submit(cw_edge *e, cw_edge_request *r, int64_t now_us, cw_outbox *out)
{
    CW_ASSERT(!r->active && r->n_entries && r->layer < e->c.n_layers && e->layers[r->layer].weight_bytes);
    r->active = true;
    r->status = CW_OK;
    r->text[0] = 0;
    r->n_left = r->n_entries;
    r->marks = NULL;
    r->prev = NULL;
    r->next = e->requests;
    if (r->next) r->next->prev = r;
    e->requests = r;
    if (e->stopped) {
        edge_end_request(e, r, CW_STATUS_CANCELLED, "the connection to the cluster is being closed", out);
        return;
    }
    want(e, now_us, out);
    e->asked = true;
    if (e->c.gives_way && !cw_tide_is_up(&e->tide)) {
        edge_end_request(e, r, CW_STATUS_UNREACHABLE, "no worker can be reached", out);
        return;
    }
    r->allowed_us = r->deadline_us - now_us;
    piece *p = rows_begin(e, r) ? piece_new(r, r->n_entries) : NULL;
    if (!p) {
        edge_end_request(e, r, CW_STATUS_NO_MEMORY, "out of memory for a call", out);
        return;
    }
    for (uint32_t i = 0; i < r->n_entries; i++) p->index[i] = i;
    piece_cover(p);
    p->since_us = now_us;
    place(e, p, out);
}

void edge_end_request(cw_edge *e, cw_edge_request *r, cw_status status, const char *text, cw_outbox *out)
{
    if (!r->active) return;
    calls_drop_request(e, r, status == CW_OK, out);
    rows_end(e, r);
    if (r->prev)
        r->prev->next = r->next;
    else
        e->requests = r->next;
    if (r->next) r->next->prev = r->prev;
    r->active = false;
    r->status = status;
    snprintf(r->text, sizeof r->text, "%s", text);
    edge_act(e, CW_EDGE_DONE)->request = r;
}

void cw_edge_cancel(cw_edge *e, cw_edge_request *r, int64_t now_us, cw_outbox *out)
{
    e->now_us = now_us;
    edge_end_request(e, r, CW_STATUS_CANCELLED, "stopped on request", out);
}

void cw_edge_stop(cw_edge *e, int64_t now_us, cw_outbox *out)
{
    e->now_us = now_us;
    if (e->stopped) return;
    while (e->requests)
        edge_end_request(e, e->requests, CW_STATUS_CANCELLED, "the connection to the cluster is being closed",
                         out);
    links_bye(e, out);
    control_bye(e, out);
    e->stopped = true;
}

bool cw_edge_get_saved(const cw_edge *e, cw_edge_saved *out)
{
    if (!e->has_cluster || !e->ticket_len) return false;
    *out = (cw_edge_saved){.sign_key = e->sign_key,
                           .ticket = e->ticket,
                           .ticket_len = e->ticket_len,
                           .epoch = e->epoch,
                           .epoch_len = e->epoch_len};
    memcpy(out->cluster_id, e->cluster_id, CW_CLUSTER_BYTES);
    return true;
}
