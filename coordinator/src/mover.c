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

/* Bytes that may be asked of this worker now. */
static uint64_t room_of(const cw_coordinator *c, const worker_state *w, cw_expert_bits *tmp)
{
    cw_expert_bits_copy(tmp, &w->held);
    cw_expert_bits_or(tmp, &w->asked);
    cw_expert_bits_or(tmp, &w->dropping);
    uint64_t used = cw_expert_bits_bytes(tmp, c->expert_bytes);
    return w->memory_bytes > used ? w->memory_bytes - used : 0;
}

/* The worker that is to make the first home of an expert: of those that want it and have room, the one that
 * ends its part of the first homes soonest. */
static member *first_home(const cw_coordinator *c, uint32_t layer, uint32_t e, const uint64_t *room,
                          const uint64_t *claimed)
{
    member *best = NULL;
    size_t at = 0;
    for (size_t i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        if (!is_counted(m) || !m->worker->planned || room[i] < c->expert_bytes[layer]) continue;
        if (!cw_expert_bits_has(&m->worker->wanted, layer, e)) continue;
        if (!best || claimed[i] < claimed[at]) best = m, at = i;
    }
    return best;
}

/* Experts that nobody has and nobody is loading, each for one of the workers that want it: what they all want
 * is divided, so that answers flow after a part of the loading, and replicas follow. */
static void claim_first_homes(cw_coordinator *c, const cw_expert_bits *bare, cw_expert_bits *tmp)
{
    cw_expert_bits todo;
    if (cw_expert_bits_empty(bare)) return;
    uint64_t *room = cw_calloc(c->n_members, sizeof *room),
             *claimed = cw_calloc(c->n_members, sizeof *claimed);
    bool ok = cw_expert_bits_init(&todo, bare->n_layers, bare->n_experts);
    if (ok && room && claimed) {
        cw_expert_bits_copy(&todo, bare);
        for (size_t i = 0; i < c->n_members; i++) {
            if (!is_counted(c->members[i])) continue;
            worker_state *w = c->members[i]->worker;
            cw_expert_bits_andnot(&todo, &w->asked);
            room[i] = room_of(c, w, tmp);
        }
        for (uint32_t l = 0, e = 0; cw_expert_bits_next(&todo, &l, &e); e++) {
            member *m = first_home(c, l, e, room, claimed);
            if (!m) continue;
            size_t i = 0;
            while (c->members[i] != m) i++;
            cw_expert_bits_put(&m->worker->first, l, e, true);
            room[i] -= c->expert_bytes[l];
            claimed[i] += c->expert_bytes[l];
        }
    } else {
        c->failed = true;
    }
    if (ok) cw_expert_bits_free(&todo);
    cw_free(room);
    cw_free(claimed);
}

/* What is wanted and not there or on its way, as far as it fits now; the rest follows when a Drop has made
 * room. First homes go first: a worker loads in its own order whatever it is asked for, so replicas are asked
 * for when it has those. */
static void make(cw_coordinator *c, member *m, cw_expert_bits *tmp, cw_outbox *out)
{
    worker_state *w = m->worker;
    uint64_t room = room_of(c, w, tmp);
    uint64_t rest = 0, first = 0, loading = 0;
    for (size_t i = 0; i < (size_t)tmp->n_layers * tmp->words; i++) {
        tmp->bits[i] = w->wanted.bits[i] & ~tmp->bits[i];
        w->first.bits[i] &= w->wanted.bits[i] & ~w->held.bits[i];
        rest |= tmp->bits[i];
        first |= tmp->bits[i] & w->first.bits[i];
        loading |= w->asked.bits[i] & w->first.bits[i];
    }
    if (!rest || (!first && loading)) return;
    if (first) cw_expert_bits_and(tmp, &w->first);
    bool any = false;
    for (uint32_t l = 0, e = 0; cw_expert_bits_next(tmp, &l, &e); e++) {
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
    for (uint32_t l = 0, e = 0; cw_expert_bits_next(&w->held, &l, &e); e++)
        if (!cw_expert_bits_has(&w->wanted, l, e) && has_home_elsewhere(c, m, l, e, false))
            cw_expert_bits_put(&w->leaving, l, e, true);
    w->leave_us = now_us;
}

/* The grace is over: what still has another home that edges know of is dropped, the rest stays. */
static void end_leaving(cw_coordinator *c, member *m, cw_expert_bits *tmp, cw_outbox *out)
{
    worker_state *w = m->worker;
    cw_expert_bits_clear(tmp);
    for (uint32_t l = 0, e = 0; cw_expert_bits_next(&w->leaving, &l, &e); e++)
        if (!cw_expert_bits_has(&w->wanted, l, e) && !cw_expert_bits_has(&w->published, l, e) &&
            has_home_elsewhere(c, m, l, e, true))
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
    for (uint32_t l = 0, e = 0; cw_expert_bits_next(b, &l, &e); e++)
        if (cw_expert_bits_has(&m->worker->wanted, l, e) || !has_home_elsewhere(c, m, l, e, false))
            cw_expert_bits_put(b, l, e, false);
}

/* Experts that have no READY home at all while somebody is to hold them. */
static void find_bare(const cw_coordinator *c, cw_expert_bits *tmp)
{
    cw_expert_bits_clear(tmp);
    for (size_t i = 0; i < c->n_members; i++)
        if (is_counted(c->members[i])) cw_expert_bits_or(tmp, &c->members[i]->worker->wanted);
    for (size_t i = 0; i < c->n_members; i++)
        if (is_counted(c->members[i])) cw_expert_bits_andnot(tmp, &c->members[i]->worker->held);
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
        cw_expert_bits_clear(&w->first);
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
    cw_expert_bits bare, tmp;
    planner_step(c, now_us, out);
    bool ok = cw_expert_bits_init(&bare, c->cfg.n_layers, c->cfg.n_experts);
    if (!ok || !cw_expert_bits_init(&tmp, c->cfg.n_layers, c->cfg.n_experts)) {
        c->failed = true;
        if (ok) cw_expert_bits_free(&bare);
        return;
    }
    find_bare(c, &bare);
    claim_first_homes(c, &bare, &tmp);
    bool urgent = !cw_expert_bits_empty(&bare) || somebody_waits_to_leave(c);
    for (size_t i = 0; i < c->n_members; i++)
        if (is_counted(c->members[i]) && c->members[i]->worker->planned)
            move(c, c->members[i], now_us, urgent, &tmp, out);
    cw_expert_bits_free(&tmp);
    cw_expert_bits_free(&bare);
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
    /* Whose experts were placed elsewhere meanwhile may have taken the room of others' second homes. */
    if (first && (!w->planned || w->planned_memory != w->memory_bytes || w->replaced)) {
        w->planned = true;
        replan_at(c, after_ms(now_us, c->cfg.times.gather_ms));
    }
    w->replaced = false;
}
