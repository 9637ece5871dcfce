/*
 * The machine's life and its events: links, the dispatch of messages, heartbeats, and what the operator asks
 * for. The decisions are in admission.c, mover.c and epochs.c.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator_internal.h"
#include "cw/log.h"
#include "cw/mem.h"

enum { STEP_MS = 20, MANY_MEMBERS = 64, SILENT_HEARTBEATS = 5, FORGET_MS = 60000 };

void cw_coordinator_config_init(cw_coordinator_config *c)
{
    *c = (cw_coordinator_config){
        .max_workers = 1024,
        .max_edges = 10000,
        .ticket_streams = 64,
        .ticket_rows_per_s = 0,
        .times = {.heartbeat_ms = 2000,
                  .hello_ms = 2000,
                  .ticket_ms = 3600 * 1000,
                  .gather_ms = 300,
                  .settle_ms = 10000,
                  .lost_ms = 5000,
                  .replace_ms = 30000,
                  .progress_ms = 5000,
                  .drop_grace_ms = 10000,
                  .retry_ms = 10000,
                  .balance_ms = 60000,
                  .audit_ms = 4000,
                  .epoch_gap_ms = 250,
                  .release_ms = 300},
    };
}

/* ---- life
 * --------------------------------------------------------------------------------------------------- */

static int by_id(const void *a, const void *b)
{
    const member *x = *(member *const *)a, *y = *(member *const *)b;
    return x->row.id < y->row.id ? -1 : x->row.id > y->row.id;
}

static cw_status restore(cw_coordinator *c, const cw_coordinator_state *state, int64_t now_us, cw_err *err)
{
    for (size_t i = 0; i < state->n_tokens; i++) {
        if (!state->tokens[i].id || token_find(c, state->tokens[i].id))
            return CW_FAIL(err, CW_STATUS_FORMAT, "the saved state has token %u twice", state->tokens[i].id);
        if (!token_append(c, &state->tokens[i]))
            return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for saved tokens");
    }
    for (size_t i = 0; i < state->n_keys; i++) {
        const cw_key_row *k = &state->keys[i];
        if (k->forgotten) continue;
        if (member_find(c, &k->key)) return CW_FAIL(err, CW_STATUS_FORMAT, "the saved state has a key twice");
        if (k->role != CW__PB__ROLE__ROLE_WORKER && k->role != CW__PB__ROLE__ROLE_EDGE)
            return CW_FAIL(err, CW_STATUS_FORMAT, "the saved state has a key of role %d", (int)k->role);
        if (!member_add(c, k)) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for saved keys");
    }
    /* Epochs list workers by rising id, whatever order the rows came in; ids of new ones are higher still. */
    if (c->n_members) qsort(c->members, c->n_members, sizeof *c->members, by_id);
    if (state->term >= (uint64_t)1 << 62)
        return CW_FAIL(err, CW_STATUS_FORMAT, "the saved term is impossible");
    c->term = state->term + 1;
    c->serial = c->serial_saved = state->serial;
    save_term(c);
    return epochs_adopt(c, state, now_us, err);
}

cw_status cw_coordinator_new(const cw_coordinator_config *config, const cw_coordinator_state *state,
                             int64_t now_us, cw_coordinator **out, cw_err *err)
{
    CW_ASSERT(config->n_layers && config->n_layers <= CW_WIRE_MAX_LAYERS && config->n_experts &&
              config->n_experts <= CW_WIRE_MAX_EXPERTS);
    CW_ASSERT(config->signer);
    cw_status s = CW_OK;
    cw_coordinator *c = cw_calloc(1, sizeof *c);
    if (!c) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the coordinator");
    c->cfg = *config;
    c->next_worker_id = 1;
    c->random = config->seed;
    count_names();
    c->last_us = now_us;
    c->published_us = now_us - (int64_t)config->times.epoch_gap_ms * 1000;
    c->replan_us = INT64_MAX;
    c->model_name = cw_strdup(config->model_name);
    c->store_address = cw_strdup(config->store_address);
    c->expert_bytes = cw_calloc(config->n_layers, sizeof *c->expert_bytes);
    if (!c->model_name || !c->store_address || !c->expert_bytes) {
        s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the coordinator");
        goto fail;
    }
    memcpy(c->expert_bytes, config->expert_bytes, config->n_layers * sizeof *c->expert_bytes);
    c->cfg.expert_bytes = c->expert_bytes;
    for (uint32_t l = 0; l < config->n_layers; l++)
        c->n_model_experts += c->expert_bytes[l] ? config->n_experts : 0;
    CW_TRY_GOTO(s, restore(c, state, now_us, err));
    if (c->failed) {
        s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the coordinator");
        goto fail;
    }
    *out = c;
    return CW_OK;
fail:
    cw_coordinator_free(&c);
    return s;
}

void cw_coordinator_free(cw_coordinator **pc)
{
    cw_coordinator *c = pc ? *pc : NULL;
    if (!c) return;
    cw_coordinator_rows_clear(c);
    for (size_t i = 0; i < c->n_members; i++) member_free(c, c->members[i]);
    shared_bytes_release(c->epoch);
    cw_free(c->members);
    cw_free(c->tokens);
    cw_free(c->links);
    cw_free(c->rows);
    cw_free(c->model_name);
    cw_free(c->store_address);
    cw_free(c->expert_bytes);
    cw_free(c->load);
    cw_free(c);
    *pc = NULL;
}

/* ---- events
 * ------------------------------------------------------------------------------------------------- */

void member_lost(cw_coordinator *c, member *m, int64_t now_us, bool farewell)
{
    m->link = 0;
    worker_state *w = m->worker;
    if (!w) return;
    if (!farewell) count_add(COUNT_LOST, 1);
    if (w->leave) w->planned = false; /* its part was given to others: if it returns, it joins */
    w->heard = w->leave = w->hidden = w->released = false;
    w->hidden_us = 0;
    cw_msg_free(&w->late);
    /* One that said goodbye is gone at once; its experts get other homes as soon as those of a lost one
     * without replicas. */
    w->lost_us = farewell ? now_us - (int64_t)c->cfg.times.lost_ms * 1000 : now_us;
    cw_expert_bits_clear(&w->asked);
    cw_expert_bits_clear(&w->first);
    cw_expert_bits_clear(&w->leaving);
    cw_expert_bits_clear(&w->dropping);
}

static void on_down(cw_coordinator *c, const cw_event *ev)
{
    link_state *l = link_find(c, ev->link);
    if (!l) return;
    if (l->who) {
        CW_LOG_I("coordinator", "lost name=\"%s\" why=\"%s\"", l->who->row.name, ev->text);
        member_lost(c, l->who, ev->now_us, false);
    }
    link_remove(c, ev->link);
}

static void send_ping(cw_link link, int64_t now_us, cw_outbox *out)
{
    Cw__Pb__Ping p = CW__PB__PING__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    p.t_us = (uint64_t)now_us;
    env.body_case = CW__PB__ENVELOPE__BODY_PING;
    env.ping = &p;
    cw_send(out, link, &env, NULL, 0);
}

static void send_pong(const cw_event *ev, cw_outbox *out)
{
    Cw__Pb__Pong p = CW__PB__PONG__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    p.t_us = ev->msg->env->ping->t_us;
    p.wall_ms = (uint64_t)ev->wall_ms;
    env.body_case = CW__PB__ENVELOPE__BODY_PONG;
    env.pong = &p;
    cw_send(out, ev->link, &env, NULL, 0);
}

/* Whoever breaks the protocol is cut off, and what follows from that follows at once. */
static void blame(cw_coordinator *c, link_state *l, int64_t now_us, const char *why, cw_outbox *out)
{
    if (l->who) {
        CW_LOG_W("coordinator", "cut off name=\"%s\" why=\"%s\"", l->who->row.name, why);
        member_lost(c, l->who, now_us, false);
    }
    count_add(COUNT_CUT, 1);
    cw_blame(out, l->link, why);
    link_remove(c, l->link);
}

static void on_load(cw_coordinator *c, member *m, const Cw__Pb__WorkerLoad *load, int64_t now_us)
{
    worker_state *w = m->worker;
    w->calls = load->calls;
    w->rows = load->rows;
    w->bytes_in = load->bytes_in;
    w->bytes_out = load->bytes_out;
    if (load->speed > 0) w->speed = load->speed;
    loads_add(c, load->n_loads, load->loads, now_us);
}

static void on_stats(member *m, const Cw__Pb__EdgeStats *s)
{
    m->edge.tokens = s->tokens;
    m->edge.calls = s->calls;
    m->edge.retries = s->retries;
    m->edge.hedges = s->hedges;
    m->edge.hedge_wins = s->hedge_wins;
    m->edge.mismatches = s->mismatches;
    m->edge.fallback_tokens = s->fallback_tokens;
    m->edge.busy = s->busy;
    snprintf(m->edge.mode, sizeof m->edge.mode, "%s", s->mode);
}

static void take_holdings(cw_coordinator *c, link_state *l, const Cw__Pb__Holdings *h, int64_t now_us,
                          cw_outbox *out)
{
    const char *bad = sets_check(c, h->n_ready, h->ready);
    if (bad)
        blame(c, l, now_us, bad, out);
    else
        on_holdings(c, l->who, h, now_us);
}

static void take_late_holdings(cw_coordinator *c, int64_t now_us, cw_outbox *out)
{
    for (size_t i = 0; i < c->n_members; i++) {
        cw_msg *late = holdings_late(c->members[i], now_us);
        if (!late) continue;
        take_holdings(c, link_find(c, c->members[i]->link), late->env->holdings, now_us, out);
        cw_msg_free(&late);
    }
}

/* A look at everybody takes milliseconds where there are a thousand workers, and when all of them load,
 * reports come by the thousand: many are looked at together. */
static bool step_now(const cw_coordinator *c, int64_t now_us, cw_outbox *out)
{
    int64_t at = after_ms(c->stepped_us, STEP_MS);
    if (c->n_members < MANY_MEMBERS || now_us >= at) return true;
    cw_outbox_wake(out, at);
    return false;
}

/* A message of an admitted peer, legal for its role. True: who holds what may have changed. */
static bool on_member_message(cw_coordinator *c, link_state *l, cw_event *ev, cw_outbox *out)
{
    const Cw__Pb__Envelope *env = ev->msg->env;
    switch (env->body_case) {
    case CW__PB__ENVELOPE__BODY_HOLDINGS:
        if (!holdings_in_time(l->who->worker, ev)) return false;
        take_holdings(c, l, env->holdings, ev->now_us, out);
        return step_now(c, ev->now_us, out);
    case CW__PB__ENVELOPE__BODY_LEAVE: on_leave(c, l->who, env->leave->text, ev->now_us); return true;
    case CW__PB__ENVELOPE__BODY_BYE:
        CW_LOG_I("coordinator", "left name=\"%s\" why=\"%s\"", l->who->row.name, env->bye->text);
        member_lost(c, l->who, ev->now_us, true);
        cw_close(out, l->link, "it said goodbye");
        link_remove(c, l->link);
        return true;
    case CW__PB__ENVELOPE__BODY_TICKET_RENEW: send_ticket(c, l->who, ev, out); return false;
    case CW__PB__ENVELOPE__BODY_WORKER_LOAD: on_load(c, l->who, env->worker_load, ev->now_us); return false;
    case CW__PB__ENVELOPE__BODY_EDGE_STATS: on_stats(l->who, env->edge_stats); return false;
    case CW__PB__ENVELOPE__BODY_MISMATCH: on_mismatch(c, l->who, env->mismatch, ev->now_us); return false;
    case CW__PB__ENVELOPE__BODY_AUDIT_RESULT: on_audit_result(c, l->who, env->audit_result); return false;
    case CW__PB__ENVELOPE__BODY_PING: send_pong(ev, out); return false;
    default: return false; /* Pong: being heard is all it is for */
    }
}

static bool on_message(cw_coordinator *c, cw_event *ev, cw_outbox *out)
{
    link_state *l = link_find(c, ev->link);
    if (!l) return false; /* closed by us; what was still on its way is nobody's */
    const Cw__Pb__Envelope *env = ev->msg->env;
    const Cw__Pb__Hello *h = env->body_case == CW__PB__ENVELOPE__BODY_HELLO   ? env->hello
                             : env->body_case == CW__PB__ENVELOPE__BODY_ENROL ? env->enrol->hello
                                                                              : NULL;
    Cw__Pb__Role role = l->who ? l->who->row.role : h ? h->role : CW__PB__ROLE__ROLE_EDGE;
    cw_side side = role == CW__PB__ROLE__ROLE_WORKER ? CW_SIDE_WORKER : CW_SIDE_EDGE;
    cw_peer_state state = l->who ? CW_PEER_ADMITTED : CW_PEER_NEW;
    if (!cw_msg_legal(CW_SIDE_COORDINATOR, side, CW__PB__PURPOSE__PURPOSE_CONTROL, state, env->body_case) ||
        (!l->who && (!h || h->purpose != CW__PB__PURPOSE__PURPOSE_CONTROL))) {
        char why[96];
        snprintf(why, sizeof why, "a %s that may not be sent here now", cw_msg_kind_name(env->body_case));
        blame(c, l, ev->now_us, why, out);
        return true;
    }
    l->heard_us = ev->now_us;
    if (l->who) return on_member_message(c, l, ev, out);
    admit(c, l, ev, out);
    return true;
}

/* This process slept or the machine was suspended: peers were not silent, we were deaf. */
static void forgive_sleep(cw_coordinator *c, int64_t now_us)
{
    int64_t gap = now_us - c->last_us;
    c->last_us = now_us;
    if (gap < (int64_t)c->cfg.times.heartbeat_ms * 1000) return;
    for (size_t i = 0; i < c->n_links; i++) {
        c->links[i].heard_us += gap;
        c->links[i].up_us += gap;
    }
    for (size_t i = 0; i < c->n_members; i++)
        if (c->members[i]->worker) c->members[i]->worker->lost_us += gap;
}

static void on_tick(cw_coordinator *c, int64_t now_us, cw_outbox *out)
{
    const cw_coordinator_times *t = &c->cfg.times;
    for (size_t i = c->n_links; i-- > 0;) { /* from the end: links are removed on the way */
        link_state *l = &c->links[i];
        if (!l->who) {
            if (now_us < after_ms(l->up_us, t->hello_ms)) continue;
            cw_close(out, l->link, "no hello in time");
            link_remove(c, l->link);
        } else if (now_us >= after_ms(l->heard_us, t->heartbeat_ms * SILENT_HEARTBEATS)) {
            CW_LOG_W("coordinator", "silent name=\"%s\"", l->who->row.name);
            member_lost(c, l->who, now_us, false);
            cw_close(out, l->link, "silent for too long");
            link_remove(c, l->link);
        } else if (now_us >= after_ms(l->pinged_us, t->heartbeat_ms)) {
            l->pinged_us = now_us;
            send_ping(l->link, now_us, out);
        }
    }
}

void cw_coordinator_event(cw_coordinator *c, cw_event *ev, cw_outbox *out)
{
    c->wall_ms = ev->wall_ms;
    bool step = true;
    forgive_sleep(c, ev->now_us);
    switch (ev->kind) {
    case CW_EV_TICK:
        on_tick(c, ev->now_us, out);
        take_late_holdings(c, ev->now_us, out);
        audit_step(c, ev->now_us, out);
        if (ev->now_us >= c->forget_us) {
            c->forget_us = after_ms(ev->now_us, FORGET_MS);
            members_forget(c, ev->wall_ms);
        }
        break;
    case CW_EV_LINK_UP:
        if (!link_add(c, ev->link, &ev->key, ev->now_us)) c->failed = true;
        step = false;
        break;
    case CW_EV_LINK_DOWN: on_down(c, ev); break;
    case CW_EV_MESSAGE: step = on_message(c, ev, out); break;
    }
    if (step) {
        c->stepped_us = ev->now_us;
        mover_step(c, ev->now_us, out);
        if (ev->kind == CW_EV_TICK) depart_step(c, ev->now_us, out);
        epochs_step(c, ev->now_us, ev->wall_ms, out);
    }
    if (c->failed) out->failed = true;
}

void cw_coordinator_stop(cw_coordinator *c, int64_t now_us, cw_outbox *out)
{
    for (size_t i = 0; i < c->n_members; i++)
        part_with(c, c->members[i], now_us, "the coordinator stops", out);
    while (c->n_links) {
        cw_close(out, c->links[c->n_links - 1].link, "the coordinator stops");
        c->n_links--;
    }
}

/* ---- the operator
 * ------------------------------------------------------------------------------------------- */

cw_status cw_coordinator_token_add(cw_coordinator *c, const cw_token_row *t, uint32_t *id, cw_err *err)
{
    if (t->role != CW__PB__ROLE__ROLE_WORKER && t->role != CW__PB__ROLE__ROLE_EDGE)
        return CW_FAIL(err, CW_STATUS_INVALID, "a token is for workers or for edges");
    if (t->expires_ms <= t->created_ms)
        return CW_FAIL(err, CW_STATUS_INVALID, "a token must live for some time");
    cw_token_row row = *t;
    row.id = 1;
    for (size_t i = 0; i < c->n_tokens; i++)
        if (c->tokens[i].id >= row.id) row.id = c->tokens[i].id + 1;
    row.uses = 0;
    row.revoked = false;
    if (!token_append(c, &row)) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a token");
    save_token(c, &row);
    *id = row.id;
    return CW_OK;
}

static void revoke_member(cw_coordinator *c, member *m, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    m->row.revoked = true;
    m->row.seen_ms = wall_ms;
    save_key(c, &m->row);
    part_with(c, m, now_us, "the operator revoked this key", out);
}

/* Workers honour tickets without asking us, so they hear of revoked edges at once. */
static void tell_workers(cw_coordinator *c, int64_t wall_ms, cw_outbox *out)
{
    size_t len;
    uint8_t *list = revoked_edges(c, &len);
    Cw__Pb__Ticket t = CW__PB__TICKET__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    t.wall_ms = (uint64_t)wall_ms;
    t.revoked = (ProtobufCBinaryData){len, list};
    env.body_case = CW__PB__ENVELOPE__BODY_TICKET;
    env.ticket = &t;
    for (size_t i = 0; len && i < c->n_members; i++)
        if (c->members[i]->worker && is_live(c->members[i])) cw_send(out, c->members[i]->link, &env, NULL, 0);
    cw_free(list);
}

static void after_revocation(cw_coordinator *c, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    tell_workers(c, wall_ms, out);
    mover_step(c, now_us, out);
    epochs_step(c, now_us, wall_ms, out);
    if (c->failed) out->failed = true;
}

cw_status cw_coordinator_token_revoke(cw_coordinator *c, uint32_t id, int64_t now_us, int64_t wall_ms,
                                      cw_outbox *out, uint32_t *n_keys, cw_err *err)
{
    cw_token_row *t = token_find(c, id);
    if (!t) return CW_FAIL(err, CW_STATUS_NOT_FOUND, "there is no token %u", id);
    t->revoked = true;
    save_token(c, t);
    *n_keys = 0;
    for (size_t i = 0; i < c->n_members; i++)
        if (c->members[i]->row.token_id == id && !c->members[i]->row.revoked) {
            revoke_member(c, c->members[i], now_us, wall_ms, out);
            ++*n_keys;
        }
    after_revocation(c, now_us, wall_ms, out);
    return CW_OK;
}

cw_status cw_coordinator_key_revoke(cw_coordinator *c, const cw_key *key, int64_t now_us, int64_t wall_ms,
                                    cw_outbox *out, cw_err *err)
{
    member *m = member_find(c, key);
    if (!m) return CW_FAIL(err, CW_STATUS_NOT_FOUND, "no such key was admitted");
    if (!m->row.revoked) revoke_member(c, m, now_us, wall_ms, out);
    after_revocation(c, now_us, wall_ms, out);
    return CW_OK;
}

bool cw_coordinator_is_worker(const cw_coordinator *c, const cw_key *key)
{
    const member *m = member_find(c, key);
    return m && m->worker && is_trusted(m);
}

/* ---- whom the operator means */

cw_status cw_coordinator_find(const cw_coordinator *c, const char *who, bool workers, cw_key *key,
                              cw_err *err)
{
    char text[400] = "", hex[CW_KEY_HEX];
    const member *found = NULL;
    size_t n = 0, used = 0;
    if (cw_key_parse(who, key)) {
        found = member_find(c, key);
        if (found && (!workers || found->worker)) return CW_OK;
        return CW_FAIL(err, CW_STATUS_NOT_FOUND,
                       found ? "this is the key of an edge, not of a worker" : "no such key was admitted");
    }
    for (size_t i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        if (m->row.revoked || (workers && !m->worker) || strcmp(m->row.name, who) != 0) continue;
        found = m;
        cw_key_hex(&m->row.key, hex);
        if (n++ < 4) used += (size_t)snprintf(text + used, sizeof text - used, " %s", hex);
    }
    if (n == 1) return *key = found->row.key, CW_OK;
    if (n > 1)
        return CW_FAIL(err, CW_STATUS_INVALID, "%zu are called %.64s: name the one you mean by its key:%s", n,
                       who, text);
    return CW_FAIL(err, CW_STATUS_NOT_FOUND,
                   "no %s is called %.64s; `causeway-coordinator %s` lists names and keys",
                   workers ? "worker" : "worker or edge", who, workers ? "workers" : "workers, and edges,");
}

cw_status cw_coordinator_unfence(cw_coordinator *c, const cw_key *key, cw_err *err)
{
    member *m = member_find(c, key);
    if (!m || !m->worker) return CW_FAIL(err, CW_STATUS_NOT_FOUND, "no worker has this key");
    if (!m->row.fenced) return CW_FAIL(err, CW_STATUS_STATE, "worker %s is not fenced", m->row.name);
    m->row.fenced = false;
    m->row.note[0] = 0;
    save_key(c, &m->row);
    CW_LOG_I("coordinator", "unfenced worker=\"%s\"", m->row.name);
    return CW_OK;
}
