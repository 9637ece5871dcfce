/*
 * From a placement to what workers hold, make before break.
 *
 * Every worker has sets: wanted (placement), asked (assigned, not READY), held (READY), leaving (left out of
 * the next epoch), dropping (told to drop, not confirmed). An expert goes held -> leaving -> dropping, and
 * each arrow asks whether another connected worker has it READY and keeps it, at that moment. Memory counts
 * held, asked and dropping.
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

/* ---- who counts
 * --------------------------------------------------------------------------------------------- */

bool has_home_elsewhere(const cw_coordinator *c, const member *not_here, uint32_t layer, uint32_t e,
                        bool in_epoch)
{
    for (size_t i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        if (m == not_here || !is_counted(m) || m->worker->hidden) continue;
        const worker_state *w = m->worker;
        if (!cw_expert_bits_has(&w->held, layer, e) || cw_expert_bits_has(&w->leaving, layer, e)) continue;
        if (!in_epoch || cw_expert_bits_has(&w->published, layer, e)) return true;
    }
    return false;
}

static bool is_sole_home(const cw_coordinator *c, const member *m)
{
    const cw_expert_bits *b = &m->worker->wanted;
    for (uint32_t l = 0; l < b->n_layers; l++)
        for (uint32_t e = 0; e < b->n_experts; e++)
            if (cw_expert_bits_has(b, l, e) && !has_home_elsewhere(c, m, l, e, false)) return true;
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

/* Workers that stay away lose their part in the placement, later where others hold the same experts. */
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
        if (!gone && now_us >= after_ms(w->lost_us, c->cfg.times.lost_ms)) gone = is_sole_home(c, m);
        if (!gone) continue;
        w->planned = false;
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

static bool run_placement(cw_coordinator *c, size_t n, member **who, cw_placement_worker *in,
                          cw_expert_bits *sets, cw_placement_result *res)
{
    for (size_t i = 0; i < n; i++) {
        worker_state *w = who[i]->worker;
        if (!cw_expert_bits_init(&sets[i], c->cfg.n_layers, c->cfg.n_experts)) return false;
        /* What is READY or on its way stays for nothing; `wanted` itself is about to be replaced. */
        if (is_counted(who[i])) {
            cw_expert_bits_copy(&w->wanted, &w->held);
            cw_expert_bits_or(&w->wanted, &w->asked);
        }
        in[i] = (cw_placement_worker){.memory = memory_of(c, w), .previous = &w->wanted};
    }
    cw_placement_input input = {.n_layers = c->cfg.n_layers,
                                .n_experts = c->cfg.n_experts,
                                .expert_bytes = c->expert_bytes,
                                .workers = in,
                                .n_workers = (uint32_t)n};
    return cw_placement(&input, sets, NULL, res);
}

static void plan(cw_coordinator *c, int64_t now_us)
{
    if (c->settle_until || now_us < c->replan_us) return;
    c->replan_us = INT64_MAX;
    member **who = cw_calloc(c->n_members, sizeof *who);
    cw_placement_worker *in = cw_calloc(c->n_members, sizeof *in);
    cw_expert_bits *sets = cw_calloc(c->n_members, sizeof *sets);
    cw_placement_result res = {0};
    size_t n = 0;
    for (size_t i = 0; who && i < c->n_members; i++) {
        member *m = c->members[i];
        if (!m->worker || !m->worker->planned) continue;
        if (is_departing(m)) /* what it holds stays until others have it, and then leaves */
            cw_expert_bits_clear(&m->worker->wanted);
        else
            who[n++] = m;
    }
    if (who && in && sets && run_placement(c, n, who, in, sets, &res)) {
        for (size_t i = 0; i < n; i++) {
            cw_expert_bits_copy(&who[i]->worker->wanted, &sets[i]);
            who[i]->worker->planned_memory = who[i]->worker->memory_bytes;
        }
        if (strcmp(c->trouble, res.text) != 0 && res.text[0]) CW_LOG_W("coordinator", "%s", res.text);
        snprintf(c->trouble, sizeof c->trouble, "%s", res.text);
        c->n_unplaced = res.n_unplaced;
        c->missing_bytes = res.missing_bytes;
    } else {
        c->failed = true;
    }
    for (size_t i = 0; sets && i < n; i++) cw_expert_bits_free(&sets[i]);
    cw_free(sets);
    cw_free(in);
    cw_free(who);
}

/* ---- moves
 * -------------------------------------------------------------------------------------------------- */

static void send_sets(cw_coordinator *c, member *m, const cw_expert_bits *bits, bool assign, cw_outbox *out)
{
    set_list s;
    if (!set_list_init(&s, bits)) {
        c->failed = true;
        return;
    }
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    Cw__Pb__Assign a = CW__PB__ASSIGN__INIT;
    Cw__Pb__Drop d = CW__PB__DROP__INIT;
    worker_state *w = m->worker;
    source_list sources = {0};
    w->seq++;
    count_add(assign ? COUNT_ASSIGNED : COUNT_DROPPED, cw_expert_bits_count(bits));
    if (assign) count_add(COUNT_ASSIGNED_BYTES, cw_expert_bits_bytes(bits, c->expert_bytes));
    if (assign) {
        sources_fill(c, m, bits, &sources);
        a.n_sources = sources.n;
        a.sources = sources.list;
        w->assign_seq = a.seq = w->seq;
        a.n_sets = s.n;
        a.sets = s.sets;
        env.body_case = CW__PB__ENVELOPE__BODY_ASSIGN;
        env.assign = &a;
    } else {
        w->drop_seq = d.seq = w->seq;
        d.n_sets = s.n;
        d.sets = s.sets;
        env.body_case = CW__PB__ENVELOPE__BODY_DROP;
        env.drop = &d;
    }
    cw_send(out, m->link, &env, NULL, 0);
    set_list_free(&s);
    sources_free(&sources);
    CW_LOG_I("coordinator", "%s worker=\"%s\" seq=%llu experts=%u", assign ? "assign" : "drop", m->row.name,
             (unsigned long long)w->seq, cw_expert_bits_count(bits));
}

/* What is wanted and not there or on its way, as far as it fits now; the rest follows when a Drop has made
 * room. */
static void make(cw_coordinator *c, member *m, cw_expert_bits *tmp, cw_outbox *out)
{
    worker_state *w = m->worker;
    cw_expert_bits_copy(tmp, &w->held);
    cw_expert_bits_or(tmp, &w->asked);
    cw_expert_bits_or(tmp, &w->dropping);
    uint64_t used = cw_expert_bits_bytes(tmp, c->expert_bytes),
             room = w->memory_bytes > used ? w->memory_bytes - used : 0;
    for (size_t i = 0; i < (size_t)tmp->n_layers * tmp->words; i++)
        tmp->bits[i] = w->wanted.bits[i] & ~tmp->bits[i];
    bool any = false;
    for (uint32_t l = 0; l < tmp->n_layers; l++)
        for (uint32_t e = 0; e < tmp->n_experts; e++) {
            if (!cw_expert_bits_has(tmp, l, e)) continue;
            if (c->expert_bytes[l] > room) {
                cw_expert_bits_put(tmp, l, e, false);
                continue;
            }
            room -= c->expert_bytes[l];
            any = true;
        }
    if (!any) return;
    cw_expert_bits_or(&w->asked, tmp);
    send_sets(c, m, tmp, true, out);
}

static void start_leaving(cw_coordinator *c, member *m, int64_t now_us)
{
    worker_state *w = m->worker;
    for (uint32_t l = 0; l < w->held.n_layers; l++)
        for (uint32_t e = 0; e < w->held.n_experts; e++) {
            if (!cw_expert_bits_has(&w->held, l, e) || cw_expert_bits_has(&w->wanted, l, e)) continue;
            if (has_home_elsewhere(c, m, l, e, false)) cw_expert_bits_put(&w->leaving, l, e, true);
        }
    w->leave_us = now_us;
}

/* The grace is over: what still has another home that edges know of is dropped, the rest stays. */
static void end_leaving(cw_coordinator *c, member *m, cw_expert_bits *tmp, cw_outbox *out)
{
    worker_state *w = m->worker;
    cw_expert_bits_clear(tmp);
    for (uint32_t l = 0; l < w->held.n_layers; l++)
        for (uint32_t e = 0; e < w->held.n_experts; e++)
            if (cw_expert_bits_has(&w->leaving, l, e) && !cw_expert_bits_has(&w->wanted, l, e) &&
                !cw_expert_bits_has(&w->published, l, e) && has_home_elsewhere(c, m, l, e, true))
                cw_expert_bits_put(tmp, l, e, true);
    cw_expert_bits_clear(&w->leaving);
    if (cw_expert_bits_empty(tmp)) return;
    cw_expert_bits_andnot(&w->held, tmp);
    cw_expert_bits_or(&w->dropping, tmp);
    send_sets(c, m, tmp, false, out);
}

/* A home that others lost since is needed here after all: it returns to the next epoch at once. */
static void stay_where_needed(cw_coordinator *c, member *m)
{
    cw_expert_bits *b = &m->worker->leaving;
    for (uint32_t l = 0; l < b->n_layers; l++)
        for (uint32_t e = 0; e < b->n_experts; e++)
            if (cw_expert_bits_has(b, l, e) &&
                (cw_expert_bits_has(&m->worker->wanted, l, e) || !has_home_elsewhere(c, m, l, e, false)))
                cw_expert_bits_put(b, l, e, false);
}

/* Whether some expert has no READY home at all while somebody is to hold it. */
static bool is_urgent(const cw_coordinator *c, cw_expert_bits *tmp)
{
    cw_expert_bits_clear(tmp);
    for (size_t i = 0; i < c->n_members; i++)
        if (is_counted(c->members[i])) cw_expert_bits_or(tmp, &c->members[i]->worker->wanted);
    for (size_t i = 0; i < c->n_members; i++)
        if (is_counted(c->members[i])) cw_expert_bits_andnot(tmp, &c->members[i]->worker->held);
    return !cw_expert_bits_empty(tmp);
}

static void move(cw_coordinator *c, member *m, int64_t now_us, bool urgent, cw_expert_bits *tmp,
                 cw_outbox *out)
{
    worker_state *w = m->worker;
    /* A late call for a dropped expert costs a round trip; an expert without a home costs the answer. */
    uint32_t grace = urgent ? c->cfg.times.drop_grace_ms / 20 : c->cfg.times.drop_grace_ms;
    if (now_us >= w->retry_us) {
        w->retry_us = INT64_MAX;
        cw_expert_bits_clear(&w->asked);
    }
    make(c, m, tmp, out);
    if (c->settle_until) return;
    stay_where_needed(c, m);
    if (cw_expert_bits_empty(&w->leaving))
        start_leaving(c, m, now_us);
    else if (now_us >= after_ms(w->leave_us, grace))
        end_leaving(c, m, tmp, out);
}

void mover_step(cw_coordinator *c, int64_t now_us, cw_outbox *out)
{
    watch_absent(c, now_us);
    plan(c, now_us);
    cw_expert_bits tmp;
    if (!cw_expert_bits_init(&tmp, c->cfg.n_layers, c->cfg.n_experts)) {
        c->failed = true;
        return;
    }
    bool urgent = is_urgent(c, &tmp) || somebody_waits_to_leave(c);
    for (size_t i = 0; i < c->n_members; i++)
        if (is_counted(c->members[i]) && c->members[i]->worker->planned)
            move(c, c->members[i], now_us, urgent, &tmp, out);
    cw_expert_bits_free(&tmp);
    if (c->replan_us != INT64_MAX && !c->settle_until) cw_outbox_wake(out, c->replan_us);
}

void on_holdings(cw_coordinator *c, member *m, const Cw__Pb__Holdings *h, int64_t now_us)
{
    worker_state *w = m->worker;
    sets_to_bits(h->n_ready, h->ready, &w->held);
    if (h->seq > w->seq) w->seq = h->seq; /* it remembers a coordinator that we have forgotten */
    if (h->seq >= w->drop_seq) cw_expert_bits_clear(&w->dropping);
    cw_expert_bits_andnot(&w->held, &w->dropping);
    cw_expert_bits_andnot(&w->asked, &w->held);
    for (size_t i = 0; i < (size_t)w->held.n_layers * w->held.words; i++)
        w->leaving.bits[i] &= w->held.bits[i];
    w->memory_used = h->memory_used;
    if (strcmp(w->trouble, h->trouble) != 0 && h->trouble[0])
        CW_LOG_W("coordinator", "worker \"%s\": %s", m->row.name, h->trouble);
    snprintf(w->trouble, sizeof w->trouble, "%s", h->trouble);
    bool stuck = !cw_expert_bits_empty(&w->asked) && (h->trouble[0] || h->seq >= w->assign_seq);
    if (!stuck)
        w->retry_us = INT64_MAX;
    else if (w->retry_us == INT64_MAX)
        w->retry_us = after_ms(now_us, c->cfg.times.retry_ms);
    bool first = !w->heard;
    w->heard = true;
    if (first && (!w->planned || w->planned_memory != w->memory_bytes)) {
        w->planned = true;
        replan_at(c, after_ms(now_us, c->cfg.times.gather_ms));
    }
}
