/*
 * Workers that are to go: drained by the operator, told to stop and leaving by themselves, or set aside
 * because they answer no audits. The placement gives them nothing; their experts get other homes the usual
 * way, make before break (mover.c); this file asks whether the others have room, watches how far it is, and
 * lets a leaving worker go when nothing needs it any more.
 */
#include <stdio.h>
#include <string.h>

#include "coordinator_internal.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "cw/progress.h"

/* ---- may it go? */

/* Experts and bytes that would have no home if `m` held nothing, over what has none today. False: out of
 * memory. */
static bool missing_without(const cw_coordinator *c, const member *m, uint64_t *bytes, uint32_t *n)
{
    cw_placement_worker *in = cw_calloc(c->n_members, sizeof *in);
    cw_expert_bits *sets = cw_calloc(c->n_members, sizeof *sets);
    cw_placement_result res = {0};
    uint32_t k = 0;
    bool ok = in && sets;
    for (size_t i = 0; ok && i < c->n_members; i++) {
        const member *o = c->members[i];
        if (o == m || !is_counted(o) || is_departing(o)) continue;
        ok = cw_expert_bits_init(&sets[k], c->cfg.n_layers, c->cfg.n_experts);
        in[k++] = (cw_placement_worker){.memory = o->worker->memory_bytes, .previous = &o->worker->held};
    }
    cw_placement_input input = {.n_layers = c->cfg.n_layers,
                                .n_experts = c->cfg.n_experts,
                                .expert_bytes = c->expert_bytes,
                                .workers = in,
                                .n_workers = k};
    ok = ok && cw_placement(&input, sets, NULL, &res);
    for (uint32_t i = 0; sets && i < k; i++) cw_expert_bits_free(&sets[i]);
    cw_free(sets);
    cw_free(in);
    *bytes = res.missing_bytes > c->missing_bytes ? res.missing_bytes - c->missing_bytes : 0;
    *n = res.n_unplaced > c->n_unplaced ? res.n_unplaced - c->n_unplaced : 0;
    return ok;
}

bool can_do_without(const cw_coordinator *c, const member *m)
{
    uint64_t bytes;
    uint32_t n;
    return missing_without(c, m, &bytes, &n) && !bytes && !n;
}

static cw_status check_drain(const cw_coordinator *c, const member *m, cw_err *err)
{
    uint64_t bytes;
    uint32_t n;
    char size[32];
    if (!is_counted(m)) return CW_OK; /* it is away: nothing that could be lost */
    if (!missing_without(c, m, &bytes, &n)) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    if (!bytes) return CW_OK;
    return CW_FAIL(
        err, CW_STATUS_LIMIT,
        "worker %s cannot be drained: the others lack %s (%llu bytes) of memory for %u of its experts; start "
        "another worker first, or one of them again with more --memory",
        m->row.name, cw_bytes_text(bytes, size, sizeof size), (unsigned long long)bytes, n);
}

cw_status cw_coordinator_drain(cw_coordinator *c, const cw_key *key, bool on, int64_t now_us, int64_t wall_ms,
                               cw_outbox *out, cw_err *err)
{
    member *m = member_find(c, key);
    if (!m || !m->worker) return CW_FAIL(err, CW_STATUS_NOT_FOUND, "no worker has this key");
    if (m->row.revoked || m->row.fenced)
        return CW_FAIL(err, CW_STATUS_STATE, "worker %s is %s already", m->row.name,
                       m->row.revoked ? "revoked" : "fenced");
    if (m->row.drained == on) return CW_OK;
    if (on) CW_TRY(check_drain(c, m, err));
    m->row.drained = on;
    save_key(c, &m->row);
    CW_LOG_I("coordinator", "%s worker=\"%s\"", on ? "drain" : "undrain", m->row.name);
    replan_now(c, now_us);
    mover_step(c, now_us, out);
    depart_step(c, now_us, out);
    epochs_step(c, now_us, wall_ms, out);
    if (c->failed) out->failed = true;
    return CW_OK;
}

/* ---- going */

void on_leave(cw_coordinator *c, member *m, const char *text, int64_t now_us)
{
    if (m->worker->leave) return;
    CW_LOG_I("coordinator", "leaving worker=\"%s\" why=\"%s\"", m->row.name, text);
    m->worker->leave = true;
    replan_now(c, now_us);
}

bool somebody_waits_to_leave(const cw_coordinator *c)
{
    for (size_t i = 0; i < c->n_members; i++)
        if (is_counted(c->members[i]) && c->members[i]->worker->leave && c->members[i]->worker->n_needed)
            return true;
    return false;
}

static bool is_wanted_elsewhere(const cw_coordinator *c, const member *m, uint32_t layer, uint32_t e)
{
    for (size_t i = 0; i < c->n_members; i++) {
        const member *o = c->members[i];
        if (o != m && is_counted(o) && !is_departing(o) && cw_expert_bits_has(&o->worker->wanted, layer, e))
            return true;
    }
    return false;
}

/* Experts that are only here so far and that somebody is to take over. What nobody has room for is not waited
 * for. */
static void count_needed(cw_coordinator *c, member *m)
{
    worker_state *w = m->worker;
    w->n_needed = 0;
    w->needed_bytes = 0;
    for (uint32_t l = 0; l < c->cfg.n_layers; l++)
        for (uint32_t e = 0; c->expert_bytes[l] && e < c->cfg.n_experts; e++) {
            if (!cw_expert_bits_has(&w->held, l, e) || has_home_elsewhere(c, m, l, e, true)) continue;
            if (!is_wanted_elsewhere(c, m, l, e)) continue;
            w->n_needed++;
            w->needed_bytes += c->expert_bytes[l];
        }
}

static bool is_alone(const cw_coordinator *c, const member *m)
{
    for (size_t i = 0; i < c->n_members; i++)
        if (c->members[i] != m && is_counted(c->members[i]) && !is_departing(c->members[i])) return false;
    return true;
}

static void release(cw_coordinator *c, member *m, cw_outbox *out)
{
    Cw__Pb__Released r = CW__PB__RELEASED__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    uint32_t n = cw_expert_bits_count(&m->worker->held), lost = 0;
    char text[128] = "nothing here is needed any more";
    for (uint32_t l = 0; n && l < c->cfg.n_layers; l++)
        for (uint32_t e = 0; e < c->cfg.n_experts; e++)
            lost += cw_expert_bits_has(&m->worker->held, l, e) && !has_home_elsewhere(c, m, l, e, false);
    if (lost) snprintf(text, sizeof text, "no other worker has room for %u of the experts here", lost);
    r.text = text;
    env.body_case = CW__PB__ENVELOPE__BODY_RELEASED;
    env.released = &r;
    cw_send(out, m->link, &env, NULL, 0);
    m->worker->released = true;
    count_add(COUNT_RELEASED, 1);
    CW_LOG_I("coordinator", "released worker=\"%s\" lost=%u", m->row.name, lost);
}

static void let_go(cw_coordinator *c, member *m, int64_t now_us, cw_outbox *out)
{
    worker_state *w = m->worker;
    bool alone = is_alone(c, m), planned = c->replan_us == INT64_MAX && !c->settle_until;
    if (!w->hidden && (alone || (planned && !w->n_needed))) w->hidden = true;
    if (!w->hidden || w->is_published) return;
    if (!w->hidden_us) w->hidden_us = now_us;
    int64_t at = alone ? now_us : after_ms(w->hidden_us, c->cfg.times.release_ms);
    if (now_us >= at)
        release(c, m, out);
    else
        cw_outbox_wake(out, at);
}

void depart_step(cw_coordinator *c, int64_t now_us, cw_outbox *out)
{
    for (size_t i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        if (!is_departing(m)) {
            if (m->worker) m->worker->n_needed = 0, m->worker->needed_bytes = 0;
            continue;
        }
        if (!is_counted(m)) continue;
        count_needed(c, m);
        if (m->worker->leave && !m->worker->released) let_go(c, m, now_us, out);
    }
}
