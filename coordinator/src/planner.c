/*
 * When the placement runs, and on what: after joins, losses, drains and changes of memory; and from time to
 * time, when the measured loads have moved so far from it that a better balance is worth some moves. What
 * follows from a placement is mover.c's.
 */
#include <stdio.h>
#include <string.h>

#include "coordinator_internal.h"
#include "cw/log.h"
#include "cw/mem.h"

void replan_at(cw_coordinator *c, int64_t at_us)
{
    /* A gathering that goes on is put off, but never what is due already. */
    if (c->replan_us == INT64_MAX || at_us > c->replan_us) c->replan_us = at_us;
}

void replan_now(cw_coordinator *c, int64_t now_us)
{
    c->replan_us = now_us;
}

/* ---- who is away
 * -------------------------------------------------------------------------------------------- */

static bool is_sole_home(const cw_coordinator *c, const member *m)
{
    const cw_expert_bits *b = &m->worker->wanted;
    for (uint32_t l = 0, e = 0; cw_expert_bits_next(b, &l, &e); e++)
        if (!has_home_elsewhere(c, m, l, e, false)) return true;
    return false;
}

static bool all_back(const cw_coordinator *c)
{
    for (size_t i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        if (m->worker && m->worker->planned && is_trusted(m) && !is_counted(m)) return false;
    }
    return true;
}

/* What only a lost worker has gets other homes at once; the rest of its part when it stays away. */
static void watch_absent(cw_coordinator *c, int64_t now_us)
{
    if (c->settle_until) {
        if (now_us < c->settle_until && !all_back(c)) return;
        c->settle_until = 0;
        CW_LOG_I("coordinator", "settled");
        replan_at(c, now_us);
    }
    for (size_t i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        worker_state *w = m->worker;
        if (!w || !w->planned || (is_live(m) && is_trusted(m))) continue;
        bool gone = !is_trusted(m) || now_us >= after_ms(w->lost_us, c->cfg.times.replace_ms);
        if (!gone && !w->replaced && is_sole_home(c, m)) {
            w->replaced = true;
            replan_now(c, now_us);
            CW_LOG_W("coordinator", "worker \"%s\" is away: experts that only it has get other homes",
                     m->row.name);
        }
        if (!gone) continue;
        w->planned = w->replaced = false;
        cw_expert_bits_clear(&w->wanted);
        replan_now(c, now_us);
        CW_LOG_W("coordinator", "worker \"%s\" is away: its experts get other homes", m->row.name);
    }
}

/* ---- placement
 * ---------------------------------------------------------------------------------------------- */

/* What the placement may count on. A worker that has been away since we started did not say: what it held,
 * and its reserve. */
static uint64_t memory_of(const cw_coordinator *c, const worker_state *w)
{
    if (w->memory_bytes) return w->memory_bytes;
    uint64_t bytes = cw_expert_bits_bytes(&w->wanted, c->expert_bytes), largest = 0;
    for (uint32_t l = 0; l < c->cfg.n_layers; l++)
        if (c->expert_bytes[l] > largest) largest = c->expert_bytes[l];
    return bytes + bytes / 49 + 1 + largest;
}

/* A placement of everybody who counts, or what comes near: `who` and `sets` of them. */
typedef struct {
    size_t n;
    member **who;
    cw_placement_worker *in;
    cw_expert_bits *sets;
    cw_placement_input input;
    cw_placement_result res;
} proposal;

static void proposal_free(proposal *p)
{
    for (size_t i = 0; p->sets && i < p->n; i++) cw_expert_bits_free(&p->sets[i]);
    cw_free(p->sets);
    cw_free(p->in);
    cw_free(p->who);
}

static bool propose(cw_coordinator *c, uint64_t move_bytes, proposal *p)
{
    *p = (proposal){.who = cw_calloc(c->n_members, sizeof *p->who),
                    .in = cw_calloc(c->n_members, sizeof *p->in),
                    .sets = cw_calloc(c->n_members, sizeof *p->sets)};
    if (!p->who || !p->in || !p->sets) return false;
    for (size_t i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        worker_state *w = m->worker;
        if (!w || !w->planned) continue;
        if (is_departing(m)) { /* what it holds stays until others have it, and then leaves */
            cw_expert_bits_clear(&w->wanted);
            continue;
        }
        if (!cw_expert_bits_init(&p->sets[p->n], c->cfg.n_layers, c->cfg.n_experts)) return false;
        /* What is READY or on its way stays for nothing; `wanted` itself is about to be replaced. */
        if (is_counted(m)) {
            cw_expert_bits_copy(&w->wanted, &w->held);
            cw_expert_bits_or(&w->wanted, &w->asked);
        }
        p->who[p->n] = m;
        p->in[p->n++] = (cw_placement_worker){.memory = memory_of(c, w),
                                              .speed = w->speed,
                                              .part = is_live(m) ? CW_PLACEMENT_TAKES : CW_PLACEMENT_AWAY,
                                              .previous = &w->wanted};
    }
    p->input = (cw_placement_input){.n_layers = c->cfg.n_layers,
                                    .n_experts = c->cfg.n_experts,
                                    .expert_bytes = c->expert_bytes,
                                    .load = loads_of(c),
                                    .workers = p->in,
                                    .n_workers = (uint32_t)p->n,
                                    .move_bytes = move_bytes};
    return cw_placement(&p->input, p->sets, NULL, &p->res);
}

static void adopt(cw_coordinator *c, const proposal *p, bool balancing)
{
    for (size_t i = 0; i < p->n; i++) {
        worker_state *w = p->who[i]->worker;
        cw_expert_bits_copy(&w->wanted, &p->sets[i]);
        w->planned_memory = w->memory_bytes;
        w->balancing = balancing;
    }
    if (strcmp(c->trouble, p->res.text) != 0 && p->res.text[0]) CW_LOG_W("coordinator", "%s", p->res.text);
    snprintf(c->trouble, sizeof c->trouble, "%s", p->res.text);
    c->n_unplaced = p->res.n_unplaced;
    c->missing_bytes = p->res.missing_bytes;
}

static bool is_blank(const cw_coordinator *c)
{
    for (size_t i = 0; i < c->n_members; i++) {
        const worker_state *w = c->members[i]->worker;
        if (w && (!cw_expert_bits_empty(&w->held) || !cw_expert_bits_empty(&w->asked))) return false;
    }
    return true;
}

static void plan(cw_coordinator *c, int64_t now_us)
{
    if (c->settle_until || now_us < c->replan_us) return;
    c->replan_us = INT64_MAX;
    c->balance_us = after_ms(now_us, c->cfg.times.balance_ms);
    proposal p;
    if (propose(c, is_blank(c) ? UINT64_MAX : 0, &p))
        adopt(c, &p, false);
    else
        c->failed = true;
    proposal_free(&p);
}

/* ---- balance
 * ------------------------------------------------------------------------------------------------ */

/* A better balance is worth a move when a batch gets so much faster by it. What is measured wanders, and what
 * is moved for a few per cent today may have to move back tomorrow. */
static const double worth = 0.93;

/* Nothing on its way: one round of moves at a time is what bounds the bytes that move for balance. */
static bool is_quiet(const cw_coordinator *c)
{
    for (size_t i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        const worker_state *w = m->worker;
        if (!w || !w->planned) continue;
        if (!is_counted(m) || is_departing(m)) return false;
        if (!cw_expert_bits_equal(&w->wanted, &w->held) || !cw_expert_bits_empty(&w->leaving) ||
            !cw_expert_bits_empty(&w->dropping))
            return false;
    }
    return true;
}

/* 2 % of the workers' memory, at least four experts. */
static uint64_t move_limit(const cw_coordinator *c)
{
    uint64_t memory = 0, largest = 0;
    for (size_t i = 0; i < c->n_members; i++)
        if (is_counted(c->members[i])) memory += c->members[i]->worker->memory_bytes / 50;
    for (uint32_t l = 0; l < c->cfg.n_layers; l++)
        if (c->expert_bytes[l] > largest) largest = c->expert_bytes[l];
    return memory > 4 * largest ? memory : 4 * largest;
}

static void rebalance(cw_coordinator *c, int64_t now_us)
{
    if (now_us < c->balance_us || c->settle_until || c->replan_us != INT64_MAX) return;
    c->balance_us = after_ms(now_us, c->cfg.times.balance_ms);
    if (!loads_of(c) || !is_quiet(c)) return;
    proposal p;
    cw_placement_times before, after;
    bool ok = propose(c, move_limit(c), &p);
    if (ok && p.res.load_bytes) {
        ok = cw_placement_measure(&p.input, p.sets, &after);
        cw_expert_bits *was = cw_calloc(p.n, sizeof *was);
        for (size_t i = 0; was && i < p.n; i++) was[i] = p.who[i]->worker->wanted; /* borrowed */
        ok = ok && was && cw_placement_measure(&p.input, was, &before);
        cw_free(was);
        if (ok && after.layer_time <= before.layer_time * worth) {
            CW_LOG_I("coordinator", "rebalance bytes=%llu time=%.3f", (unsigned long long)p.res.load_bytes,
                     after.layer_time / before.layer_time);
            adopt(c, &p, true);
        }
    }
    if (!ok) c->failed = true;
    proposal_free(&p);
}

void planner_step(cw_coordinator *c, int64_t now_us, cw_outbox *out)
{
    watch_absent(c, now_us);
    plan(c, now_us);
    rebalance(c, now_us);
    if (c->replan_us != INT64_MAX && !c->settle_until) cw_outbox_wake(out, c->replan_us);
}
