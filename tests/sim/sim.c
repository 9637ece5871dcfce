/* Clock, processes and faults of the simulator; see sim.h. */
#include "sim_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TICK_US = 100000 };

/* ---- random numbers, failure, trace
 * ------------------------------------------------------------------------- */

uint64_t sim_random(sim *s)
{
    uint64_t z = s->random += 0x9e3779b97f4a7c15u; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint32_t sim_below(sim *s, uint32_t n)
{
    return (uint32_t)(sim_random(s) % n);
}

bool sim_chance(sim *s, uint32_t percent)
{
    return sim_below(s, 100) < percent;
}

void sim_trace(sim *s, const char *fmt, ...)
{
    char *line = s->lines[s->n_lines++ % TRACE_LINES];
    int n = snprintf(line, TRACE_WIDTH, "%9.4f ", (double)s->now / 1e6);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line + n, (size_t)(TRACE_WIDTH - n), fmt, ap);
    va_end(ap);
    if (s->trace_on) printf("%s\n", line);
}

void sim_print_trace(const sim *s)
{
    uint64_t first = s->n_lines > TRACE_LINES ? s->n_lines - TRACE_LINES : 0;
    for (uint64_t i = first; i < s->n_lines; i++) printf("%s\n", s->lines[i % TRACE_LINES]);
}

void sim_fail(sim *s, const char *fmt, ...)
{
    if (s->failure[0]) return;
    va_list ap;
    va_start(ap, fmt);
    int n = snprintf(s->failure, sizeof s->failure, "at %.4f s: ", (double)s->now / 1e6);
    vsnprintf(s->failure + n, sizeof s->failure - (size_t)n, fmt, ap);
    va_end(ap);
    sim_trace(s, "FAILED %s", s->failure);
}

const char *sim_failure(const sim *s)
{
    return s->failure[0] ? s->failure : NULL;
}

uint64_t sim_events(const sim *s)
{
    return s->events;
}
uint64_t sim_messages(const sim *s)
{
    return s->messages;
}
uint64_t sim_lost(const sim *s)
{
    return s->lost;
}
size_t sim_own_bytes(const sim *s)
{
    size_t n = s->cap_heap * sizeof *s->heap;
    for (int i = 0; i < s->n_procs; i++)
        n += s->procs[i].cap_inbox * sizeof *s->procs[i].inbox +
             (s->hole[i] ? SIM_MAX_PROCS * sizeof *s->hole[i] : 0);
    return n;
}
int64_t sim_now(const sim *s)
{
    return s->now;
}

int64_t sim_clock(const sim *s, int proc)
{
    return s->now - s->procs[proc].slept_us;
}

void sim_set_latency(sim *s, int64_t least_us, int64_t most_us)
{
    s->least_latency = least_us;
    s->most_latency = most_us;
}

void sim_set_calm(sim *s)
{
    s->calm = true;
}

int64_t sim_wall(const sim *s, int proc)
{
    return 1800000000000 + s->now / 1000 + s->procs[proc].wall_offset_ms;
}

/* ---- the heap
 * ----------------------------------------------------------------------------------------------- */

static bool before(const item *a, const item *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void sim_push(sim *s, item it)
{
    if (s->n_heap == s->cap_heap) {
        s->cap_heap = s->cap_heap ? 2 * s->cap_heap : 1024;
        s->heap = realloc(s->heap, s->cap_heap * sizeof *s->heap);
        CW_ASSERT(s->heap);
    }
    it.order = s->order++;
    if (it.c) it.c->refs++;
    if (it.at < s->now) it.at = s->now;
    size_t i = s->n_heap++;
    while (i && before(&it, &s->heap[(i - 1) / 2])) {
        s->heap[i] = s->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    s->heap[i] = it;
}

static item pop(sim *s)
{
    item top = s->heap[0], last = s->heap[--s->n_heap];
    size_t i = 0;
    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= s->n_heap) break;
        if (k + 1 < s->n_heap && before(&s->heap[k + 1], &s->heap[k])) k++;
        if (!before(&s->heap[k], &last)) break;
        s->heap[i] = s->heap[k];
        i = k;
    }
    s->heap[i] = last;
    return top;
}

/* ---- processes
 * ---------------------------------------------------------------------------------------------- */

sim *sim_new(uint64_t seed, bool trace)
{
    sim *s = calloc(1, sizeof *s);
    CW_ASSERT(s);
    s->seed = seed;
    s->random = seed * 0x2545f4914f6cdd1du;
    s->trace_on = trace;
    sim_set_latency(s, 100, 1000);
    s->now = 10 * SIM_S; /* machines may subtract a little from the time */
    return s;
}

void sim_free(sim *s)
{
    wire_free(s);
    for (int i = 0; i < s->n_procs; i++) {
        cw_outbox_free(&s->procs[i].out);
        free(s->procs[i].inbox);
        free(s->hole[i]);
    }
    free(s->heap);
    free(s);
}

int sim_add(sim *s, const sim_proc *p)
{
    CW_ASSERT(s->n_procs < SIM_MAX_PROCS);
    process *q = &s->procs[s->n_procs];
    q->def = *p;
    cw_outbox_init(&q->out);
    return s->n_procs++;
}

bool sim_is_up(const sim *s, int proc)
{
    return s->procs[proc].up;
}
bool sim_is_paused(const sim *s, int proc)
{
    return s->procs[proc].paused;
}

void sim_start(sim *s, int proc, void *ctx, const char *address, cw_port port)
{
    process *p = &s->procs[proc];
    CW_ASSERT(!p->up);
    p->up = true;
    p->ctx = ctx;
    p->gen++;
    p->die = false;
    p->n_listen = 0;
    if (address) {
        snprintf(p->address[0], sizeof p->address[0], "%s", address);
        p->port[0] = port;
        p->n_listen = 1;
    }
    p->next_link = 1;
    p->out.wake_us = INT64_MAX;
    sim_trace(s, "%s starts (incarnation %u)", p->def.name, p->gen);
    sim_push(s, (item){.at = s->now, .kind = T_TICK, .proc = proc, .gen = p->gen});
}

void sim_kill(sim *s, int proc)
{
    process *p = &s->procs[proc];
    if (!p->up) return;
    sim_trace(s, "%s dies", p->def.name);
    p->up = p->paused = false;
    for (size_t i = 0; i < p->n_inbox; i++) wire_unref(s, p->inbox[i].c);
    p->n_inbox = 0;
    wire_kill(s, proc);
    cw_outbox_clear(&p->out);
}

void sim_die_now(sim *s, int proc)
{
    s->procs[proc].die = true;
}

void sim_after(sim *s, int proc, int64_t delay_us, void (*fn)(void *ctx, void *arg, cw_outbox *out),
               void *arg)
{
    sim_push(s, (item){.at = s->now + delay_us,
                       .kind = T_AFTER,
                       .proc = proc,
                       .gen = s->procs[proc].gen,
                       .fn = fn,
                       .arg = arg});
}

void sim_at(sim *s, int64_t at_us, void (*fn)(void *ctx, void *arg), void *ctx, void *arg)
{
    sim_push(s, (item){.at = at_us, .kind = T_AT, .proc = -1, .at_fn = fn, .ctx = ctx, .arg = arg});
}

/* What the machine queued; a process that dies in between says nothing more. */
void sim_do_outbox(sim *s, int proc)
{
    process *p = &s->procs[proc];
    if (p->out.failed) sim_fail(s, "%s is out of memory", p->def.name);
    for (size_t i = 0; i < p->out.n && !p->die; i++) {
        cw_action *a = &p->out.items[i];
        switch (a->kind) {
        case CW_ACT_OPEN: wire_open(s, proc, a); break;
        case CW_ACT_SEND:
            wire_send(s, proc, a->link, a->msg);
            a->msg = NULL;
            break;
        case CW_ACT_ADMIT: wire_admit(s, proc, a->link); break;
        case CW_ACT_CLOSE: wire_close(s, proc, a->link); break;
        case CW_ACT_BLAME: wire_blame(s, proc, a->link, a->text); break;
        }
    }
    cw_outbox_clear(&p->out);
    if (p->out.wake_us != INT64_MAX) {
        if (p->out.wake_us + p->slept_us < p->tick_us)
            sim_push(s, (item){.at = p->out.wake_us + p->slept_us,
                               .kind = T_TICK,
                               .proc = proc,
                               .gen = p->gen,
                               .dir = 1});
        p->out.wake_us = INT64_MAX;
    }
    if (p->die) sim_kill(s, proc);
}

static void finish(sim *s, int proc)
{
    process *p = &s->procs[proc];
    if (!p->die) p->def.after(p->ctx, &p->out);
    sim_do_outbox(s, proc);
    if (s->watch.step) s->watch.step(s->watch.ctx, proc);
}

void sim_give(sim *s, int proc, cw_event *ev)
{
    process *p = &s->procs[proc];
    CW_ASSERT(p->up && !p->paused);
    ev->now_us = sim_clock(s, proc);
    ev->wall_ms = sim_wall(s, proc);
    s->events++;
    p->def.event(p->ctx, ev, &p->out);
    cw_msg_free(&ev->msg);
    finish(s, proc);
}

/* ---- faults
 * ------------------------------------------------------------------------------------------------- */

void sim_hole(sim *s, int from, int to, int64_t us)
{
    int64_t until = s->now + us;
    sim_trace(s, "hole from %s to %s for %.3f s", s->procs[from].def.name, s->procs[to].def.name,
              (double)us / 1e6);
    if (!s->hole[from]) s->hole[from] = calloc(SIM_MAX_PROCS, sizeof(int64_t));
    CW_ASSERT(s->hole[from]);
    if (until > s->hole[from][to]) s->hole[from][to] = until;
    if (us > SIM_HEARTBEATS_US)
        sim_push(s, (item){.at = s->now + SIM_HEARTBEATS_US, .kind = T_DEADLINE, .proc = from, .dir = to});
}

void sim_pause(sim *s, int proc, int64_t us)
{
    process *p = &s->procs[proc];
    if (!p->up || p->paused) return;
    sim_trace(s, "%s is paused for %.3f s", p->def.name, (double)us / 1e6);
    p->paused = true;
    p->clock_stops = false;
    p->paused_since = s->now;
    p->paused_until = s->now + us;
    sim_push(s, (item){.at = p->paused_until, .kind = T_RESUME, .proc = proc, .gen = p->gen});
    if (us > SIM_HEARTBEATS_US)
        sim_push(s, (item){.at = s->now + SIM_HEARTBEATS_US, .kind = T_DEADLINE, .proc = proc, .dir = -1});
}

void sim_sleep(sim *s, int proc, int64_t us, bool clock_stops)
{
    process *p = &s->procs[proc];
    if (!p->up || p->paused) return;
    sim_pause(s, proc, us);
    p->clock_stops = clock_stops;
}

void sim_dark(sim *s, int proc, bool out, bool in, int64_t us)
{
    process *p = &s->procs[proc];
    sim_trace(s, "dark%s%s %s for %.3f s", out ? " from" : "", in ? " to" : "", p->def.name,
              (double)us / 1e6);
    for (int dir = 0; dir < 2; dir++) {
        if (!(dir ? in : out)) continue;
        if (s->now + us > p->dark_until[dir]) p->dark_until[dir] = s->now + us;
        if (us > SIM_HEARTBEATS_US)
            sim_push(
                s,
                (item){.at = s->now + SIM_HEARTBEATS_US, .kind = T_DEADLINE, .proc = proc, .dir = -1 - dir});
    }
}

void sim_unplug(sim *s, int proc, int64_t us)
{
    process *p = &s->procs[proc];
    sim_trace(s, "%s is unplugged for %.3f s", p->def.name, (double)us / 1e6);
    if (s->now + us > p->unplugged_until) p->unplugged_until = s->now + us;
    wire_cut_all(s, proc);
}

void sim_slow(sim *s, int proc, int64_t extra_us, int64_t us_per_kb, int64_t us)
{
    process *p = &s->procs[proc];
    sim_trace(s, "%s is slow: %.3f s more, %lld us a KiB, for %.3f s", p->def.name, (double)extra_us / 1e6,
              (long long)us_per_kb, (double)us / 1e6);
    p->slow_until = s->now + us;
    p->slow_us = extra_us;
    p->slow_per_kb = us_per_kb;
}

void sim_narrow(sim *s, int proc, uint32_t messages, int64_t us)
{
    process *p = &s->procs[proc];
    sim_trace(s, "%s queues %u messages for %.3f s", p->def.name, messages, (double)us / 1e6);
    p->narrow = messages;
    p->narrow_until = s->now + us;
}

void sim_jump_wall(sim *s, int proc, int64_t ms)
{
    sim_trace(s, "%s: wall clock jumps by %lld ms", s->procs[proc].def.name, (long long)ms);
    s->procs[proc].wall_offset_ms += ms;
}

static void resume(sim *s, int proc)
{
    process *p = &s->procs[proc];
    sim_trace(s, "%s wakes with %zu old events", p->def.name, p->n_inbox);
    p->paused = false;
    if (p->clock_stops) p->slept_us += s->now - p->paused_since;
    /* What a poll finds first after a stop is chance: the timer, or the sockets. */
    item tick = {.at = s->now, .kind = T_TICK, .proc = proc, .gen = p->gen};
    bool tick_first = sim_chance(s, 50);
    if (tick_first) sim_push(s, tick);
    for (size_t i = 0; i < p->n_inbox; i++) {
        p->inbox[i].at = s->now;
        sim_push(s, p->inbox[i]);
        wire_unref(s, p->inbox[i].c); /* it has a reference of its own now */
    }
    if (!tick_first) sim_push(s, tick);
    p->n_inbox = 0;
}

void sim_wake(sim *s, int proc)
{
    process *p = &s->procs[proc];
    if (!p->up || !p->paused) return;
    p->paused_until = s->now;
    resume(s, proc);
}

/* ---- running
 * ------------------------------------------------------------------------------------------------ */

static void defer(process *p, const item *it)
{
    if (it->kind == T_TICK) return; /* it gets one when it wakes */
    if (it->c) it->c->refs++;
    if (p->n_inbox == p->cap_inbox) {
        p->cap_inbox = p->cap_inbox ? 2 * p->cap_inbox : 64;
        p->inbox = realloc(p->inbox, p->cap_inbox * sizeof *p->inbox);
        CW_ASSERT(p->inbox);
    }
    p->inbox[p->n_inbox++] = *it;
}

static void tick(sim *s, const item *it)
{
    process *p = &s->procs[it->proc];
    cw_event ev = {.kind = CW_EV_TICK};
    if (it->dir == 0) { /* the regular one; those that were asked for are extra */
        p->tick_us = s->now + TICK_US - (int64_t)sim_below(s, 20000);
        sim_push(s, (item){.at = p->tick_us, .kind = T_TICK, .proc = it->proc, .gen = p->gen});
    }
    sim_give(s, it->proc, &ev);
}

/* Whose event it is; -1: nobody's. */
static int owner(const item *it, uint32_t *gen)
{
    if (it->kind == T_DELIVER || it->kind == T_LINK_UP || it->kind == T_LINK_DOWN) {
        const conn_end *e = &it->c->end[it->kind == T_DELIVER ? 1 - it->dir : it->dir];
        *gen = e->gen;
        return e->proc;
    }
    *gen = it->gen;
    return it->kind == T_TICK || it->kind == T_AFTER || it->kind == T_RESUME ? it->proc : -1;
}

static void happen(sim *s, const item *it)
{
    uint32_t gen = 0;
    int proc = owner(it, &gen);
    if (proc >= 0) {
        process *p = &s->procs[proc];
        if (!p->up || p->gen != gen) return;
        if (p->paused && it->kind != T_RESUME) {
            defer(p, it);
            return;
        }
    }
    switch (it->kind) {
    case T_TICK: tick(s, it); break;
    case T_DELIVER: wire_deliver(s, it->c, it->dir); break;
    case T_LINK_UP: wire_link_up(s, it->c, it->dir); break;
    case T_LINK_DOWN: wire_link_down(s, it->c, it->dir, it->text); break;
    case T_AFTER:
        it->fn(s->procs[proc].ctx, it->arg, &s->procs[proc].out);
        finish(s, proc);
        break;
    case T_AT: it->at_fn(it->ctx, it->arg); break;
    case T_RESUME:
        if (s->procs[proc].paused && s->procs[proc].paused_until <= s->now) resume(s, proc);
        break;
    case T_DEADLINE:
        if (it->c)
            wire_deadline(s, it->c);
        else
            wire_heartbeats_lost(s, it->proc, it->dir);
        break;
    }
}

bool sim_run(sim *s, int64_t until_us, const sim_watcher *w)
{
    s->watch = *w;
    while (s->n_heap && s->heap[0].at <= until_us && !s->failure[0]) {
        item it = pop(s);
        s->now = it.at;
        happen(s, &it);
        wire_unref(s, it.c);
    }
    if (!s->failure[0]) s->now = until_us;
    return !s->failure[0];
}
