/*
 * The engine's side of the mainland. Calls of a few rows, as when decoding, do not change threads: submit and
 * collect drive the network themselves (cw_net_enter), so that a call is on its way when submit returns, and
 * an answer wakes the thread that waits for it. Calls of many rows are handed to the network thread, which
 * takes the answers in while the engine computes. All memory was taken at opening or is recycled; nothing
 * here allocates.
 */
#include <string.h>
#include <time.h>

#include "cw/address.h"
#include "cw/clock.h"
#include "cw/mem.h"
#include "cw/recycled.h"
#include "mainland_internal.h"

/* The flag has no bell: how long a cancelled wait may go on, against waking up for nothing. */
enum {
    CANCEL_POLL_MS = 40,
    TELL_POLLS = 12,
    PREFILL_ROWS = 33, /* what a pass has that verifies the longest draft; more is a prompt */
    BLOCKS = 64,
    BLOCKS_TO = 8192,
    DRIVE_US = 100000
};

static size_t slot_bytes(const cw_mainland *m)
{
    return m->max_entries * m->ec.d_model * sizeof(float);
}

cw_status land_slots_new(cw_mainland *m, cw_err *err)
{
    m->slots = cw_calloc((size_t)m->n_slots, sizeof *m->slots);
    bool ok = m->slots != NULL;
    for (int i = 0; i < m->n_slots && ok; i++) {
        slot *s = &m->slots[i];
        s->entries = cw_calloc(m->max_entries, sizeof *s->entries);
        s->e = cw_calloc(m->max_entries, 1);
        /* f16 and f32 rows share the pages (a layer gives one or the other), which appear as they are filled.
         */
        s->f32 = cw_pages_alloc(slot_bytes(m));
        s->f16 = (uint16_t *)(void *)s->f32;
        ok = s->entries && s->e && s->f32;
    }
    /* What a few calls of a row take: headers, frames, the machine's notes. */
    for (size_t size = 64; size <= BLOCKS_TO; size *= 2) cw_block_stock(size, BLOCKS);
    m->handed_out = -1;
    if (!ok)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the rows that come from the cluster");
    return cw_queue_new((size_t)m->n_slots, NULL, &m->submitted, err);
}

void land_slots_free(cw_mainland *m)
{
    for (int i = 0; m->slots && i < m->n_slots; i++) {
        cw_free(m->slots[i].entries);
        cw_free(m->slots[i].e);
        if (m->slots[i].f32) cw_pages_free(m->slots[i].f32, slot_bytes(m));
    }
    cw_free(m->slots);
    cw_queue_free(&m->submitted);
}

/* The reply the engine was looking at is its no longer. */
static void take_back(cw_mainland *m)
{
    if (m->handed_out >= 0) m->slots[m->handed_out].in_use = false;
    m->handed_out = -1;
}

static cw_status submit(cw_experts *self, const cw_expert_call *c, uint64_t *ticket, cw_err *err)
{
    cw_mainland *m = ((land_experts *)self)->m;
    take_back(m);
    /* Nobody empties the queue any more, and it holds only as many as there are slots. */
    pthread_mutex_lock(&m->lock);
    bool ended = m->ended;
    cw_err why = m->end_err;
    pthread_mutex_unlock(&m->lock);
    if (ended) return CW_FAIL(err, why.code, "%s", why.text);
    int i = 0;
    while (i < m->n_slots && m->slots[i].in_use) i++;
    if (i == m->n_slots) return CW_FAIL(err, CW_STATUS_LIMIT, "%d layers are under way already", m->n_slots);
    if (c->n_entries < 1 || (size_t)c->n_entries > m->max_entries || c->layer < 0 ||
        (uint32_t)c->layer >= m->ec.n_layers || !m->layers[c->layer].weight_bytes ||
        (uint32_t)c->d_model != m->ec.d_model)
        return CW_FAIL(err, CW_STATUS_INVALID, "a call of %d entries to layer %d does not fit the model",
                       c->n_entries, c->layer);
    slot *s = &m->slots[i];
    for (int k = 0; k < c->n_entries; k++)
        s->entries[k] = (cw_edge_entry){c->entries[k].row, c->entries[k].expert, c->entries[k].weight};
    s->req = (cw_edge_request){.layer = (uint32_t)c->layer,
                               .stream = c->stream,
                               .n_rows = (uint32_t)c->n_rows,
                               .n_entries = (uint32_t)c->n_entries,
                               .q = c->a8 ? c->a8->q : NULL,
                               .s = c->a8 ? c->a8->s : NULL,
                               .ld = c->a8 ? c->a8->ld : c->d_model,
                               .x = c->x,
                               .entries = s->entries,
                               .f16 = s->f16,
                               .e = s->e,
                               .f32 = s->f32,
                               .klass = c->n_rows > PREFILL_ROWS ? CW__PB__CALL_CLASS__CLASS_PREFILL
                                                                 : CW__PB__CALL_CLASS__CLASS_DECODE};
    s->cancel = c->cancel;
    s->in_use = true;
    s->done = false;
    atomic_store(&s->give_up, false);
    s->guest = c->n_rows <= PREFILL_ROWS;
    CW_ASSERT(cw_queue_push(m->submitted, s) == CW_OK); /* as large as there are slots */
    if (s->guest) {
        cw_net_enter(m->net);
        cw_net_poke(m->net);
        cw_net_leave(m->net);
    } else {
        cw_net_resume(m->net);
        cw_net_wake(m->net);
    }
    *ticket = (uint64_t)i;
    return CW_OK;
}

/* Tells the user what a long wait is for; the lock is held, but not during the telling. */
static void tell_waiting(cw_mainland *m, char told[CW_TEXT_MAX])
{
    char now[CW_TEXT_MAX];
    memcpy(now, m->facts.waiting, sizeof now);
    m->asked++; /* a fresh look for the next time */
    pthread_mutex_unlock(&m->lock);
    cw_net_wake(m->net);
    if (now[0] && strcmp(now, told)) {
        m->tell_waiting(m->tell_ctx, now);
        memcpy(told, now, sizeof now);
    }
    pthread_mutex_lock(&m->lock);
}

/* Returns with the lock held and the slot done, or the network thread ended. */
static void wait_done(cw_mainland *m, slot *s)
{
    char told[CW_TEXT_MAX] = "";
    int polls = 0;
    pthread_mutex_lock(&m->lock);
    while (!s->done && !m->ended) {
        if (s->cancel && atomic_load(s->cancel) && !atomic_exchange(&s->give_up, true)) {
            cw_net_wake(m->net);
            continue;
        }
        if ((!s->cancel || atomic_load(&s->give_up)) && !m->tell_waiting) {
            pthread_cond_wait(&m->changed, &m->lock);
            continue;
        }
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_nsec += CANCEL_POLL_MS * 1000000;
        if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
        pthread_cond_timedwait(&m->changed, &m->lock, &t);
        if (m->tell_waiting && ++polls % TELL_POLLS == 0) tell_waiting(m, told);
    }
}

static bool is_done(cw_mainland *m, slot *s)
{
    pthread_mutex_lock(&m->lock);
    bool done = s->done;
    pthread_mutex_unlock(&m->lock);
    return done;
}

/* Until the slot is done; not for long, and not when the network ends: the rest is wait_done's. */
static void drive(cw_mainland *m, slot *s)
{
    int64_t end = cw_now_us() + DRIVE_US, left = DRIVE_US;
    cw_net_enter(m->net);
    while (!is_done(m, s) && left > 0 && !(s->cancel && atomic_load(s->cancel)) && cw_net_round(m->net, left))
        left = end - cw_now_us();
    cw_net_leave(m->net);
    if (!is_done(m, s)) cw_net_resume(m->net);
}

static cw_status collect(cw_experts *self, uint64_t ticket, cw_expert_reply *out, cw_err *err)
{
    cw_mainland *m = ((land_experts *)self)->m;
    take_back(m);
    CW_ASSERT(ticket < (uint64_t)m->n_slots && m->slots[ticket].in_use);
    slot *s = &m->slots[ticket];
    if (s->guest) drive(m, s);
    wait_done(m, s);
    bool done = s->done;
    cw_err ended = m->end_err;
    pthread_mutex_unlock(&m->lock);
    if (!done) {
        s->in_use = false;
        return CW_FAIL(err, ended.code, "%s", ended.text);
    }
    if (s->req.status != CW_OK) {
        s->in_use = false;
        return CW_FAIL(err, s->req.status, "%s", s->req.text);
    }
    m->handed_out = (int)ticket;
    bool f16 = m->layers[s->req.layer].rows == CW__PB__REPLY_KIND__ROWS_F16;
    *out = (cw_expert_reply){.kind = f16 ? CW_REPLY_ROWS_F16 : CW_REPLY_ROWS_F32,
                             .f16 = f16 ? s->f16 : NULL,
                             .e = f16 ? s->e : NULL,
                             .f32 = f16 ? NULL : s->f32};
    return CW_OK;
}

static void destroy(cw_experts *self)
{
    (void)self; /* lives in the mainland */
}

static const cw_experts_vtable vtable = {submit, collect, destroy};

/* Whether every worker that can be reached is on this machine. */
static bool all_are_here(cw_mainland *m)
{
    cw_address a;
    uint32_t n = 0, here = 0;
    land_refresh_locked(m);
    for (size_t i = 0; i < m->n_workers; i++) {
        if (!m->workers[i].up) continue;
        n++;
        here += cw_address_parse(m->workers[i].address, CW_ADDRESS_CONNECT, &a, NULL) == CW_OK && a.loopback;
    }
    pthread_mutex_unlock(&m->lock);
    return n && here == n;
}

cw_experts *cw_mainland_experts(cw_mainland *m)
{
    m->experts = (land_experts){.base = {.vt = &vtable, .on_our_cores = all_are_here(m)}, .m = m};
    return &m->experts.base;
}
