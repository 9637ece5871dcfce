/*
 * Workers that are late or hang.
 *
 * What counts is service time: from when the worker could begin (the call was sent, and what it was given
 * before has been answered) less what calls have been waiting in its queue lately. It is kept in a histogram
 * for each worker and size of work, and a decode call that has taken longer than 99 of 100 did is *late*: it
 * is sent to a replica too (a hedge), if one of the tokens that hold hedges and retries of busy calls under 5
 * % of messages is left and the replica does not queue. Prefill is never hedged by time: its pieces are many
 * and alike, and doubling them would double the load that made them late.
 *
 * A late worker is pinged at once and every 100 ms. Until it says something it gets no calls that another
 * could take; when it stays silent it has *hung*: that is a lost connection that nobody has reported, and
 * like one it costs no tokens, once for each call. A worker that speaks but was late thrice in a row is
 * *suspect* and gets nothing either until it has answered a ping in good time.
 *
 * Time is measured when events come. A process that slept sees every call late at once: ticks come after
 * messages that had arrived (the net room and the simulator both do that), so what was answered meanwhile is
 * not late.
 */
#include <string.h>

#include "edge_internal.h"

enum {
    LATE_RUN = 3,
    SAMPLES = 20,      /* fewer say nothing */
    SAMPLES_MAX = 512, /* then all are halved: old ones fade */
    FIRST_US = 100000, /* before there are samples */
    FIRST_LOOK = 64,
    FIRST_KNOWN = 8,   /* homes that are looked at for it */
    QUEUE_US = 500000, /* a queue nobody has told of for so long is none */
    BACK_US = 100000,  /* a ping answered in that time ends a suspicion */
    PREFILL_US =
        300000, /* prefill is not late before, nor is a worker that computes it hung before twice that */
};

/* Work sizes: powers of four bytes from 32 KiB on. */
static uint32_t class_of(uint64_t cost)
{
    uint32_t k = 0;
    for (cost >>= 15; cost && k < LATE_CLASSES - 1; cost >>= 2) k++;
    return k;
}

/* Bucket b holds times from edge_of(b) on: four to each doubling from 128 us. */
static int64_t edge_of(uint32_t b)
{
    return (int64_t)(4 + b % 4) << (b / 4 + 5);
}

static uint32_t bucket_of(int64_t us)
{
    uint32_t b = 0;
    while (b + 1 < LATE_BUCKETS && us >= edge_of(b + 1)) b++;
    return b;
}

static void record(home *h, uint64_t cost, int64_t us)
{
    uint32_t c = class_of(cost);
    h->service[c][bucket_of(us)]++;
    if (++h->n_service[c] < SAMPLES_MAX) return;
    h->n_service[c] = 0;
    for (uint32_t b = 0; b < LATE_BUCKETS; b++)
        h->n_service[c] = (uint16_t)(h->n_service[c] + (h->service[c][b] /= 2));
}

/* What `part` of 100 of that class did not exceed. */
static int64_t quantile(const home *h, uint32_t c, uint32_t part)
{
    uint32_t want = (h->n_service[c] * part + 99) / 100, seen = 0;
    for (uint32_t b = 0; b < LATE_BUCKETS; b++)
        if ((seen += h->service[c][b]) >= want) return edge_of(b + 1);
    return edge_of(LATE_BUCKETS);
}

/* What h was seen to need at most for work of that size, judged by other sizes where need be; 0: not known.
 */
static int64_t seen_us(const home *h, uint32_t c)
{
    for (uint32_t k = c; k < LATE_CLASSES; k++)
        if (h->n_service[k] >= SAMPLES) return quantile(h, k, 99);
    for (uint32_t k = c; k-- > 0;)
        if (h->n_service[k] >= SAMPLES) return quantile(h, k, 99) << 2 * (c - k);
    return 0;
}

/* Of a worker whose work of that size is not known yet: three times what the slowest of some workers needs,
 * or, where nobody is known, a guess. So a newcomer that hangs at once costs hardly more than others. */
static int64_t first_after_us(const cw_edge *e, uint32_t c)
{
    int64_t least = e->c.hedge_least_us, most = e->c.hedge_most_us, us = 0;
    if (most > FIRST_US) most = FIRST_US;
    for (size_t i = 0, n = 0; i < e->n_homes && i < FIRST_LOOK && n < FIRST_KNOWN; i++) {
        int64_t seen = seen_us(e->homes[i], c);
        if (seen > us) us = seen;
        n += seen > 0;
    }
    us = us && 3 * us < most ? 3 * us : most;
    return us < least ? least : us;
}

int64_t late_after_us(const cw_edge *e, const home *h, uint64_t cost)
{
    uint32_t c = class_of(cost);
    int64_t least = e->c.hedge_least_us, most = e->c.hedge_most_us;
    if (h->n_service[c] < SAMPLES) return first_after_us(e, c);
    /* A worker that is slower by nature is not late every time. */
    int64_t p99 = quantile(h, c, 99), slow = 3 * quantile(h, c, 50);
    if (p99 > most) p99 = most;
    if (p99 < slow) p99 = slow;
    return p99 < least ? least : p99;
}

int64_t late_queue_us(const cw_edge *e, const home *h)
{
    return e->now_us - h->queue_at_us < QUEUE_US ? h->queue_us : 0;
}

static bool is_prefill(const piece *p)
{
    return p->r->klass == CW__PB__CALL_CLASS__CLASS_PREFILL;
}

/* When its service may have begun. */
static int64_t began_us(const home *h, const piece *p)
{
    return p->sent_us > h->progress_us ? p->sent_us : h->progress_us;
}

static int64_t late_at_us(const cw_edge *e, const home *h, const piece *p)
{
    int64_t after = late_after_us(e, h, p->cost);
    if (is_prefill(p) && after < PREFILL_US) after = PREFILL_US;
    double carry_us = h->bytes_per_s > 0 ? (double)p->ahead_bytes * 1e6 / h->bytes_per_s : 0;
    return began_us(h, p) + after + late_queue_us(e, h) + (int64_t)carry_us;
}

void late_sent(cw_edge *e, home *h, piece *p, cw_outbox *out)
{
    cw_outbox_wake(out, late_at_us(e, h, p));
}

void late_reply(cw_edge *e, home *h, const piece *p, const cw_reply_view *v)
{
    int64_t us = e->now_us - began_us(h, p);
    /* Queueing before the last progress is not in it already. */
    int64_t queued = p->sent_us >= h->progress_us ? v->queue_us : 0;
    if (!is_prefill(p)) record(h, p->cost, us > queued ? us - queued : 0);
    h->queue_us = v->queue_us > h->queue_us ? v->queue_us : (h->queue_us + v->queue_us) / 2;
    h->queue_at_us = h->progress_us = e->now_us;
    if (!p->overdue) h->late_run = 0;
}

/* Without this a worker that is always beaten would never be known for slow. */
void late_loser(cw_edge *e, home *h, const piece *p)
{
    if (p->overdue && !is_prefill(p)) record(h, p->cost, e->now_us - began_us(h, p));
}

bool home_is_late(const home *h)
{
    return h->silent_since_us || h->suspect_since_us;
}

void late_heard(cw_edge *e, home *h)
{
    if (h->silent_since_us) h->back_us = e->now_us;
    h->silent_since_us = 0;
    h->hung = false;
}

void late_pong(cw_edge *e, home *h, int64_t rtt_us, int64_t asked_us)
{
    (void)e;
    if (!h->suspect_since_us || asked_us < h->suspect_since_us || rtt_us > BACK_US) return;
    h->suspect_since_us = 0;
    h->late_run = 0;
}

void late_forget(home *h)
{
    h->silent_since_us = h->suspect_since_us = 0;
    h->late_run = 0;
    h->hung = false;
    h->queue_us = 0;
}

static void probe(cw_edge *e, home *h, cw_outbox *out)
{
    if (e->now_us - h->probe_us >= PROBE_US) {
        h->probe_us = e->now_us;
        links_ping(e, h, out);
    }
    cw_outbox_wake(out, h->probe_us + PROBE_US);
}

static void note_late(cw_edge *e, home *h, piece *p)
{
    p->overdue = true;
    if (!h->silent_since_us) h->silent_since_us = e->now_us;
    if (is_prefill(p) || ++h->late_run < LATE_RUN || h->suspect_since_us) return;
    h->suspect_since_us = e->now_us;
    e->n.suspects++;
    edge_say(e, "worker %s is late: it gets no calls until it answers in time", h->name);
}

bool late_take_token(cw_edge *e)
{
    if (e->tokens < 1) return false;
    e->tokens--;
    return true;
}

/* The entries of p without a row once more, elsewhere: in how many messages. `p` may be gone afterwards. */
static uint32_t hedge(cw_edge *e, home *h, piece *p, bool exempt, cw_outbox *out)
{
    cw_edge_request *r = p->r;
    uint32_t n = 0;
    for (uint32_t k = 0; k < p->n; k++) n += !(r->marks[p->index[k]].flags & ROW_HAVE);
    piece *c = n ? piece_new(r, n) : NULL;
    if (!c) return 0;
    for (uint32_t k = 0, w = 0; k < p->n; k++)
        if (!(r->marks[p->index[k]].flags & ROW_HAVE)) c->index[w++] = p->index[k];
    frames_unsort(c);
    piece_cover(c);
    c->kind = PIECE_HEDGE;
    c->attempt = exempt; /* instead of a lost call, so it goes also to those that queue */
    c->not_on = h;
    c->since_us = e->now_us;
    uint32_t sent = place(e, c, out);
    if (r->active) p->hedged = sent > 0;
    return sent;
}

/* A worker that is late with the row that is only to be compared: the answer does not wait for it, unless one
 * of the two is in doubt and alive. */
static void accept_single(cw_edge *e, home *h, const piece *p)
{
    cw_edge_request *r = p->r;
    for (uint32_t k = 0; k < p->n; k++) {
        mark *m = &r->marks[p->index[k]];
        if (!(m->flags & ROW_HAVE) || (m->flags & (ROW_DONE | ROW_DISPUTE))) continue;
        bool doubt = home_in_doubt(e, h) || home_in_doubt(e, e->homes[m->by]);
        if (!doubt || h->hung) rows_done(r, p->index[k]);
    }
}

/* true: look again, the list has changed. */
static bool help(cw_edge *e, home *h, piece *p, cw_outbox *out)
{
    cw_edge_request *r = p->r;
    accept_single(e, h, p);
    if (!r->n_left) {
        calls_finish(e, r, out);
        return true;
    }
    if (p->hedged || p->kind == PIECE_TWIN || p->kind == PIECE_ASK) return false;
    bool exempt = h->hung;
    if (!exempt && (is_prefill(p) || e->tokens < 1)) return false;
    uint32_t sent = hedge(e, h, p, exempt, out);
    if (exempt)
        e->n.resent += sent;
    else
        e->n.hedges += sent, e->tokens -= sent;
    return sent || !r->active;
}

/* Notes what is late now; true: something is. */
static bool look(cw_edge *e, home *h, int64_t *patience, cw_outbox *out)
{
    int64_t next = INT64_MAX;
    bool any = false;
    *patience = 2 * PREFILL_US;
    for (piece *p = h->sent.head; p; p = p->next) {
        int64_t at = late_at_us(e, h, p);
        if (e->now_us < at) {
            next = at < next ? at : next;
            continue;
        }
        any = true;
        if (!p->overdue) note_late(e, h, p);
        if (!is_prefill(p)) *patience = e->c.silent_us;
    }
    if (next != INT64_MAX) cw_outbox_wake(out, next);
    /* It has spoken since it was late, and may have hung after that. */
    if (any && !h->silent_since_us && e->now_us - h->heard_us > e->c.silent_us)
        h->silent_since_us = e->now_us;
    return any;
}

void late_tick(cw_edge *e, home *h, cw_outbox *out)
{
    int64_t patience;
    if (h->state != HOME_UP) return;
    bool any = look(e, h, &patience, out);
    if (any || home_is_late(h)) probe(e, h, out);
    if (h->silent_since_us && !h->hung && e->now_us - h->silent_since_us >= patience) {
        h->hung = true;
        e->n.suspects += !h->suspect_since_us;
        edge_say(e, "worker %s does not answer: its calls go elsewhere", h->name);
        calls_move_queued(e, h, out);
    }
    if (h->silent_since_us && !h->hung) cw_outbox_wake(out, h->silent_since_us + patience);
    for (piece *p = any ? h->sent.head : NULL; p;)
        p = e->now_us >= late_at_us(e, h, p) && help(e, h, p, out) ? h->sent.head : p->next;
}
