/*
 * What admitted peers may cost: Holdings that come too fast are taken together, a worker that loses and finds
 * experts again and again is believed later, and members that nobody has seen for long leave the table.
 * Hello, TICKET_RENEW and MISMATCH have a bucket each (bucket_take) where they are answered.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator_internal.h"
#include "cw/log.h"
#include "cw/mem.h"

enum {
    HOLDINGS_GAP_US = 100000, /* workers send one every 500 ms while they load */
    HOLDINGS_BURST = 10,
    FREE_LOSSES = 2, /* a restart or two are nobody's fault */
    PAUSE_MOST_US = 60 * 1000000,
    CALM_US = 300 * 1000000, /* without a loss: forgiven */
    EDGES_KEPT = 1024,       /* nothing is forgotten below */
    SEEN_EVERY_MS = 3600 * 1000,
};
static const int64_t day_ms = 24 * 3600 * 1000;

/* ---- Holdings */

bool holdings_in_time(worker_state *w, cw_event *ev)
{
    if (!w->late && bucket_take(&w->holdings_at, ev->now_us, HOLDINGS_GAP_US, HOLDINGS_BURST)) return true;
    cw_msg_free(&w->late);
    w->late = ev->msg;
    ev->msg = NULL;
    return false;
}

cw_msg *holdings_late(member *m, int64_t now_us)
{
    worker_state *w = m->worker;
    if (!w || !w->late || !bucket_take(&w->holdings_at, now_us, HOLDINGS_GAP_US, HOLDINGS_BURST)) return NULL;
    cw_msg *msg = w->late;
    w->late = NULL;
    return msg;
}

void holdings_lost(member *m, int64_t now_us)
{
    worker_state *w = m->worker;
    if (now_us > w->loss_us + CALM_US) w->n_losses = 0;
    w->loss_us = now_us;
    if (++w->n_losses <= FREE_LOSSES) return;
    uint32_t doublings = w->n_losses - FREE_LOSSES - 1;
    int64_t pause = doublings < 6 ? (int64_t)1000000 << doublings : PAUSE_MOST_US;
    w->calm_us = now_us + (pause < PAUSE_MOST_US ? pause : PAUSE_MOST_US);
    CW_LOG_W("coordinator", "worker \"%s\" lost experts %u times: what comes back counts after %lld s",
             m->row.name, w->n_losses, (long long)(pause / 1000000));
}

void holdings_believed(const member *m, int64_t now_us, cw_expert_bits *sets)
{
    const worker_state *w = m->worker;
    if (now_us >= w->calm_us || !is_counted(m)) return;
    if (!w->is_published) cw_expert_bits_clear(sets);
    for (size_t i = 0; i < (size_t)sets->n_layers * sets->words; i++) sets->bits[i] &= w->published.bits[i];
}

/* ---- members */

static bool is_forgettable(const cw_coordinator *c, const member *m, int64_t wall_ms, bool any_age)
{
    if (m->worker || is_live(m)) return false;
    int64_t age = wall_ms - m->row.seen_ms;
    if (!m->row.revoked) return any_age || age > 30 * day_ms;
    /* The last ticket is void a day after its hour, and nothing admits the key again. */
    const cw_token_row *t = token_find(c, m->row.token_id);
    return age > 2 * day_ms && (!t || t->revoked || t->expires_ms < wall_ms);
}

static int by_seen(const void *a, const void *b)
{
    const member *x = *(member *const *)a, *y = *(member *const *)b;
    return (x->row.seen_ms > y->row.seen_ms) - (x->row.seen_ms < y->row.seen_ms);
}

/* At most `most` of those that were not seen for the longest time; how many it were. */
static size_t forget(cw_coordinator *c, int64_t wall_ms, size_t most, bool any_age)
{
    member **old = cw_calloc(c->n_members ? c->n_members : 1, sizeof *old);
    size_t n = 0;
    if (!old) return 0;
    for (size_t i = 0; i < c->n_members; i++)
        if (is_forgettable(c, c->members[i], wall_ms, any_age)) old[n++] = c->members[i];
    qsort(old, n, sizeof(member *), by_seen);
    if (n > most) n = most;
    for (size_t i = 0; i < n; i++) {
        old[i]->row.forgotten = true;
        save_key(c, &old[i]->row);
        member_remove(c, old[i]);
    }
    count_add(COUNT_FORGOTTEN, n);
    if (n) CW_LOG_I("coordinator", "forgot %zu edges that were not seen for long", n);
    cw_free(old);
    return n;
}

static size_t count_edges(const cw_coordinator *c)
{
    size_t n = 0;
    for (size_t i = 0; i < c->n_members; i++) n += !c->members[i]->worker;
    return n;
}

void members_forget(cw_coordinator *c, int64_t wall_ms)
{
    for (size_t i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        bool unknown = !m->row.seen_ms; /* of a state that did not keep it */
        if (!unknown && (!is_live(m) || wall_ms - m->row.seen_ms < SEEN_EVERY_MS)) continue;
        m->row.seen_ms = wall_ms;
        save_key(c, &m->row);
    }
    size_t n = count_edges(c);
    if (n > EDGES_KEPT) (void)forget(c, wall_ms, n - EDGES_KEPT, false);
}

bool members_make_room(cw_coordinator *c, int64_t wall_ms)
{
    if (count_edges(c) < EDGES_KEPT + 4 * (size_t)c->cfg.max_edges) return true;
    return forget(c, wall_ms, 16, true) > 0;
}
