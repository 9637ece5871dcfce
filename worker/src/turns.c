/*
 * Whose call is computed next, and how much of it at once: what keeps a worker fair and its answers in time
 * when more is asked than it can do.
 *
 * Deficit round robin by edge key. In every round each key gains the same number of weight bytes; a job costs
 * the keys in it what it reads, the weights of an expert being shared by the rows that use them, and rows
 * themselves at what they cost beside the reading (pace.c). The debt of a key whose rows came along with
 * others' is kept over the rounds, also while it has nothing queued.
 *
 * A job begins with the oldest call of the key whose turn it is, decode before prefill, and takes along every
 * row queued for the same experts, so that weights are read once for all who wait. It is at most PIECE_US of
 * computing; what is left of its calls waits for their next turn, so that nobody waits long behind a prefill.
 * Nothing waits to be batched: a job is given out as soon as there is room for one.
 *
 * Admission is by stream. What is let in is never refused later, but for the bounds on memory, which only an
 * edge meets that has far more under way than its streams could ask for. New streams and prefill are turned
 * away, with a time to come back, when the queue is longer than can be served in time.
 */
#include <stdio.h>
#include <string.h>

#include "cw/mem.h"
#include "worker_internal.h"

/* By how much rows that hardly cost anything may lengthen a job. */
#define FREE_RIDE 0.25

/* --- lists of calls --- */

void turns_list_add(call_list *l, call *c, int which)
{
    CW_ASSERT(!c->in[which].list);
    c->in[which] = (call_hook){.prev = l->tail, .list = l};
    if (l->tail)
        l->tail->in[which].next = c;
    else
        l->head = c;
    l->tail = c;
}

void turns_list_remove(call *c, int which)
{
    call_hook *h = &c->in[which];
    if (!h->list) return;
    if (h->prev)
        h->prev->in[which].next = h->next;
    else
        h->list->head = h->next;
    if (h->next)
        h->next->in[which].prev = h->prev;
    else
        h->list->tail = h->prev;
    *h = (call_hook){0};
}

static int turn_of(const call *c)
{
    return c->v.klass == CW__PB__CALL_CLASS__CLASS_PREFILL ? TURN_PREFILL : TURN_DECODE;
}

void turns_enter(cw_worker *w, call *c)
{
    double packed = (double)w->layers[c->v.layer].packed_bytes;
    c->left = (work){packed * c->n_runs, packed * c->v.n_entries};
    w->queued.bytes += c->left.bytes;
    w->queued.row_bytes += c->left.row_bytes;
    turns_list_add(&w->layer_calls[c->v.layer], c, IN_LAYER);
    turns_list_add(&c->peer->account->waiting[turn_of(c)], c, IN_TURN);
}

void turns_leave(cw_worker *w, call *c)
{
    if (!c->in[IN_TURN].list) return;
    turns_list_remove(c, IN_LAYER);
    turns_list_remove(c, IN_TURN);
    w->queued.bytes -= c->left.bytes;
    w->queued.row_bytes -= c->left.row_bytes;
    if (w->n_entries == 0) w->queued = (work){0}; /* what rounding has left */
}

/* --- accounts --- */

/* What the newest ticket says. false: out of memory, all is as it was. */
static bool account_limit(account *a, uint32_t streams, uint32_t rows_per_s)
{
    if (streams > STREAMS_MAX) streams = STREAMS_MAX;
    stream *list = streams == a->streams_max ? a->streams : cw_realloc(a->streams, streams, sizeof *list);
    if (!list) return false;
    a->streams = list;
    a->streams_max = streams;
    if (a->n_streams > streams) a->n_streams = streams;
    a->rows_per_s = rows_per_s;
    return true;
}

static account *account_new(const cw_key *key, uint32_t streams, uint32_t rows_per_s, int64_t now_us)
{
    account *a = cw_calloc(1, sizeof *a);
    if (!a) return NULL;
    *a = (account){.key = *key, .rows_left = rows_per_s, .rows_us = now_us, .deficit = 1};
    if (!account_limit(a, streams, rows_per_s)) {
        cw_free(a);
        return NULL;
    }
    return a;
}

account *turns_account(cw_worker *w, const cw_key *key, uint32_t streams, uint32_t rows_per_s)
{
    for (size_t i = 0; i < w->n_accounts; i++)
        if (cw_key_equal(&w->accounts[i]->key, key)) {
            if (!account_limit(w->accounts[i], streams, rows_per_s)) return NULL;
            w->accounts[i]->n_links++;
            return w->accounts[i];
        }
    if (w->n_accounts == w->cap_accounts) {
        size_t cap = w->cap_accounts ? 2 * w->cap_accounts : 16;
        account **list = cw_realloc(w->accounts, cap, sizeof *list);
        if (!list) return NULL;
        w->accounts = list;
        w->cap_accounts = cap;
    }
    account *a = account_new(key, streams, rows_per_s, w->now_us);
    if (!a) return NULL;
    a->n_links = 1;
    return w->accounts[w->n_accounts++] = a;
}

static void account_free(cw_worker *w, size_t i)
{
    account *a = w->accounts[i];
    memmove(&w->accounts[i], &w->accounts[i + 1], (w->n_accounts - i - 1) * sizeof *w->accounts);
    w->n_accounts--;
    if (w->turn > i) w->turn--;
    cw_free(a->streams);
    cw_free(a);
}

/* It stays for a while: who cuts its connection and comes back has the debts it had, and its streams. */
void turns_account_leave(cw_worker *w, account **ap)
{
    account *a = *ap;
    *ap = NULL;
    if (!a || --a->n_links) return;
    a->gone_us = w->now_us;
    size_t n_gone = 0, oldest = 0;
    for (size_t i = 0; i < w->n_accounts; i++) {
        if (w->accounts[i]->n_links) continue;
        if (!n_gone++ || w->accounts[i]->gone_us < w->accounts[oldest]->gone_us) oldest = i;
    }
    if (n_gone > GONE_MOST) account_free(w, oldest);
}

void turns_tick(cw_worker *w)
{
    for (size_t i = w->n_accounts; i-- > 0;)
        if (!w->accounts[i]->n_links && w->now_us - w->accounts[i]->gone_us >= GONE_US) account_free(w, i);
}

void turns_free(cw_worker *w)
{
    while (w->n_accounts) account_free(w, w->n_accounts - 1);
    cw_free(w->accounts);
}

/* --- admission --- */

static stream *stream_find(account *a, uint32_t id)
{
    for (uint32_t i = 0; i < a->n_streams; i++)
        if (a->streams[i].id == id) return &a->streams[i];
    return NULL;
}

/* A place for a new stream: a free one, or that of the stream that has been silent for longest. */
static stream *stream_place(account *a, int64_t now_us)
{
    if (a->n_streams < a->streams_max) return &a->streams[a->n_streams];
    stream *oldest = &a->streams[0];
    for (uint32_t i = 1; i < a->n_streams; i++)
        if (a->streams[i].seen_us < oldest->seen_us) oldest = &a->streams[i];
    return now_us - oldest->seen_us >= STREAM_IDLE_US ? oldest : NULL;
}

static bool rows_allowed(account *a, uint32_t n, int64_t now_us)
{
    if (!a->rows_per_s) return true;
    a->rows_left += (double)(now_us - a->rows_us) * 1e-6 * a->rows_per_s;
    a->rows_us = now_us;
    if (a->rows_left > a->rows_per_s) a->rows_left = a->rows_per_s;
    if (a->rows_left <= 0) return false;
    a->rows_left -= n; /* may go below 0: a piece larger than the allowance still passes, once */
    return true;
}

static uint32_t retry_after(int64_t wait_us)
{
    int64_t ms = wait_us / 2000;
    return ms < 5 ? 5 : ms > 1000 ? 1000 : (uint32_t)ms;
}

const char *turns_refuse(cw_worker *w, account *a, const cw_call_view *v, uint32_t stream_id, size_t bytes,
                         uint32_t *retry_ms)
{
    bool prefill = v->klass == CW__PB__CALL_CLASS__CLASS_PREFILL;
    uint64_t part = prefill ? 2 : 1; /* so that calls of running answers find room */
    int64_t wait = pace_queue_us(&w->pace, w->queued);
    *retry_ms = BUSY_RETRY_MS;
    if (a->bytes + bytes > w->c.peer_bytes_max / part) return "this edge has too much under way here";
    if (w->queue_bytes + bytes > w->c.queue_bytes_max / part) return "the queue's memory is full";
    *retry_ms = retry_after(wait);
    if (prefill && wait > PREFILL_WAIT_US) return "more is queued than can be computed in time";
    stream *s = stream_find(a, stream_id);
    if (!s) {
        if (wait > STREAM_WAIT_US) return "more is queued than can be computed in time: no new answers now";
        if (!(s = stream_place(a, w->now_us))) {
            *retry_ms = STREAM_IDLE_US / 2000;
            return "this edge's ticket allows no more answers at once";
        }
    }
    if (prefill && !rows_allowed(a, v->n_rows, w->now_us)) {
        *retry_ms = 100;
        return "this edge's ticket allows no more rows a second";
    }
    if (s == &a->streams[a->n_streams]) a->n_streams++;
    *s = (stream){.id = stream_id, .seen_us = w->now_us};
    return NULL;
}

/* --- whose turn --- */

static double quantum(const cw_worker *w)
{
    uint64_t most = 1;
    for (uint32_t l = 0; l < w->n_layers; l++)
        if (w->layers[l].packed_bytes > most) most = w->layers[l].packed_bytes;
    return (double)most * QUANTUM_EXPERTS;
}

static bool waits(const account *a)
{
    return a->waiting[TURN_DECODE].head || a->waiting[TURN_PREFILL].head;
}

/* Everybody gains as many quanta as the least indebted of those who wait needs. A key without calls pays its
 * debt that way and saves one quantum, so that its next call need not wait for a round. */
static bool new_round(cw_worker *w)
{
    double best = -1e300, q = quantum(w);
    for (size_t i = 0; i < w->n_accounts; i++)
        if (waits(w->accounts[i]) && w->accounts[i]->deficit > best) best = w->accounts[i]->deficit;
    if (best == -1e300) return false;
    double gain = best > 0 ? 0 : q * (double)(1 + (uint64_t)(-best / q));
    for (size_t i = 0; i < w->n_accounts; i++) {
        account *a = w->accounts[i];
        a->deficit += gain;
        if (a->deficit > q && !waits(a)) a->deficit = q;
    }
    return true;
}

static call *next_of(cw_worker *w, int turn)
{
    for (size_t k = 0; k < w->n_accounts; k++) {
        size_t i = (w->turn + k) % w->n_accounts;
        account *a = w->accounts[i];
        if (a->deficit <= 0 || !a->waiting[turn].head) continue;
        w->turn = i + 1;
        return a->waiting[turn].head;
    }
    return NULL;
}

static call *next_call(cw_worker *w, cw_outbox *out)
{
    for (;;) {
        call *c = next_of(w, TURN_DECODE);
        if (!c) c = next_of(w, TURN_PREFILL);
        if (!c && !new_round(w)) return NULL;
        if (!c) continue;
        if (!calls_is_late(w, c)) return c;
        calls_expire_one(w, c, out);
    }
}

/* --- filling a job --- */

/* Puts up to `most` of what is left of run r of call c into the job; how many. */
static uint32_t take(cw_worker *w, job_slot *s, call *c, run *r, uint32_t most)
{
    cw_job *job = &s->job;
    const cw_worker_layer *l = &w->layers[c->v.layer];
    bool f16 = l->rows == CW__PB__REPLY_KIND__ROWS_F16;
    size_t d = w->d_model;
    uint32_t n = 0;
    if (!c->started_us) c->started_us = w->now_us;
    for (; r->taken < r->n && job->n_rows < w->c.job_rows_max && n < most; r->taken++, n++) {
        uint32_t i = r->first + r->taken;
        size_t row = cw_entry_get(c->v.entries, i).row;
        s->row_call[job->n_rows] = c;
        job->rows[job->n_rows++] = (cw_job_row){.q = c->v.q ? c->v.q + row * d : NULL,
                                                .s = c->v.s ? c->v.s + row * (d / 8) : NULL,
                                                .x = c->v.x ? c->v.x + row * d * 4 : NULL,
                                                .out = c->rows_mem + i * d * (f16 ? 2 : 4),
                                                .e = f16 ? &c->exps_mem[i] : NULL};
    }
    double packed = (double)l->packed_bytes, part = packed * n / r->n;
    c->n_in_job += n;
    c->n_pending -= n;
    w->n_entries -= n;
    c->left.bytes -= part;
    c->left.row_bytes -= packed * n;
    w->queued.bytes -= part;
    w->queued.row_bytes -= packed * n;
    s->alone.bytes += part;
    s->alone.row_bytes += packed * n;
    if (!c->n_pending) turns_leave(w, c);
    return n;
}

/* What rows [first, n_rows) of the job, all of one expert, cost their keys. */
static void charge(cw_worker *w, const job_slot *s, uint32_t first, double packed)
{
    double row = w->pace.by_row_byte / w->pace.by_byte, n = s->job.n_rows - first;
    if (row > 1) row = 1;
    for (uint32_t i = first; i < s->job.n_rows; i++)
        s->row_call[i]->peer->account->deficit -= packed * (1 / n + row);
}

/* How many more rows of this expert fit into what is left of the job's time. */
static uint32_t rows_in(const cw_worker *w, const job_slot *s, double packed, double limit_us)
{
    double left = limit_us - pace_us(&w->pace, s->work), one = w->pace.by_row_byte * packed;
    return left <= 0 ? 0 : left / one > 1e6 ? 1000000 : (uint32_t)(left / one);
}

/*
 * Rows of other calls for the expert. Decode rides whatever it lengthens, for it saves a reading, unless its
 * key has used more than a quantum ahead: then only as far as its rows hardly cost anything, or those who ask
 * most would get most. Prefill rides with prefill as far as the job's time goes, with decode as far as that
 * hardly has to wait for it.
 */
static void take_along(cw_worker *w, job_slot *s, const call *c, uint32_t expert, double packed,
                       double limit_us)
{
    double us = pace_us(&w->pace, s->work), free_us = us * (1 + FREE_RIDE), debt = -quantum(w);
    for (call *o = w->layer_calls[c->v.layer].head, *next; o; o = next) {
        next = o->in[IN_LAYER].next;
        if (s->job.n_rows == w->c.job_rows_max) return;
        if (o == c || calls_is_late(w, o)) continue; /* the next tick answers the late ones */
        run *r = call_run(o, expert);
        if (!r || r->taken == r->n) continue;
        uint32_t most = UINT32_MAX;
        if (turn_of(o) == TURN_PREFILL) most = rows_in(w, s, packed, s->is_prefill ? limit_us : free_us);
        if (o->peer->account->deficit < debt && o->peer->account != c->peer->account) {
            uint32_t cheap = rows_in(w, s, packed, free_us);
            if (cheap < most) most = cheap;
        }
        if (most) s->work.row_bytes += packed * take(w, s, o, r, most);
    }
}

static void fill(cw_worker *w, job_slot *s, call *c)
{
    cw_job *job = &s->job;
    double packed = (double)w->layers[c->v.layer].packed_bytes, limit = PIECE_US;
    s->is_prefill = turn_of(c) == TURN_PREFILL;
    if (s->is_prefill) limit /= w->c.jobs_in_flight; /* they wait in line before a decode */
    for (uint32_t i = 0; i < c->n_runs && job->n_rows < w->c.job_rows_max; i++) {
        run *r = &c->runs[i];
        if (r->taken == r->n) continue;
        uint32_t first = job->n_rows, left = r->n - r->taken, most = left;
        work with = {s->work.bytes + packed, s->work.row_bytes + packed * left};
        if (pace_us(&w->pace, with) > limit) {
            if (job->n_experts) break;
            s->work.bytes += packed;
            if (s->is_prefill) most = rows_in(w, s, packed, limit);
            if (most < PIECE_ROWS_MIN) most = PIECE_ROWS_MIN;
        } else {
            s->work.bytes += packed;
        }
        uint32_t layer = c->v.layer, expert = r->expert;
        uint32_t n = take(w, s, c, r, most);
        s->work.row_bytes += packed * n;
        take_along(w, s, c, expert, packed, limit);
        charge(w, s, first, packed);
        job->experts[job->n_experts++] =
            (cw_job_expert){.layer = layer, .expert = expert, .first = first, .n = job->n_rows - first};
        if (n < left) break;
    }
}

static job_slot *free_slot(cw_worker *w)
{
    job_slot *s = w->jobs;
    while (s->busy) s++;
    s->job.n_rows = s->job.n_experts = 0;
    s->work = s->alone = (work){0};
    s->is_prefill = s->is_audit = false;
    return s;
}

void turns_pump(cw_worker *w, cw_outbox *out)
{
    while (w->n_jobs < w->c.jobs_in_flight) {
        job_slot *s = free_slot(w);
        if (!audit_fill(w, s)) {
            call *c = next_call(w, out);
            if (!c) return;
            fill(w, s, c);
        }
        s->given_us = w->now_us;
        s->busy = true;
        w->n_jobs++;
        worker_act(w, CW_WORKER_COMPUTE)->job = &s->job;
    }
}

bool turns_in_job(const cw_worker *w, uint32_t layer, uint32_t expert)
{
    for (uint32_t i = 0; i < w->c.jobs_in_flight; i++)
        for (uint32_t k = 0; w->jobs[i].busy && k < w->jobs[i].job.n_experts; k++) {
            const cw_job_expert *x = &w->jobs[i].job.experts[k];
            if (x->layer == layer && x->expert == expert) return true;
        }
    return false;
}
