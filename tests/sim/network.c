/*
 * Connections of the simulator: opening, sending, cutting, with libzmq's semantics (sim.h says which). A
 * connection is never reused: both ends give it one link id, for good.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim_internal.h"

static int64_t latency(sim *s, int from)
{
    const process *p = &s->procs[from];
    return s->least_latency + (int64_t)(sim_random(s) % (uint64_t)(s->most_latency - s->least_latency)) +
           (s->now < p->slow_until ? p->slow_us : 0);
}

static bool in_hole(const sim *s, int from, int to)
{
    const process *a = &s->procs[from], *b = &s->procs[to];
    return s->now < a->dark_until[0] || s->now < b->dark_until[1] ||
           (s->hole[from] && s->now < s->hole[from][to]);
}

/* The end of what holds messages from one to the other back. */
static int64_t hole_end(const sim *s, int from, int to)
{
    const process *a = &s->procs[from], *b = &s->procs[to];
    int64_t end = a->dark_until[0] > b->dark_until[1] ? a->dark_until[0] : b->dark_until[1];
    return s->hole[from] && s->hole[from][to] > end ? s->hole[from][to] : end;
}

static void drop_from(sim *s, pipe_state *p, uint32_t keep)
{
    flight **at = &p->head;
    p->tail = NULL;
    for (uint32_t i = 0; i < keep && *at; i++) {
        p->tail = *at;
        at = &(*at)->next;
    }
    while (*at) {
        flight *f = *at;
        *at = f->next;
        cw_msg_free(&f->msg);
        free(f);
        p->n--;
        s->lost++;
    }
}

static conn *find(sim *s, int proc, cw_link link, int *end)
{
    for (conn_end *e = s->procs[proc].ends; e; e = e->next)
        if (e->link == link) {
            *end = e == &e->of->end[1];
            return e->of;
        }
    return NULL;
}

static void begin_end(sim *s, conn *c, int end, int proc, cw_link link)
{
    conn_end *e = &c->end[end];
    *e = (conn_end){.proc = proc, .gen = s->procs[proc].gen, .link = link, .of = c};
    e->next = s->procs[proc].ends;
    s->procs[proc].ends = e;
}

/* Nothing reaches this end any more. */
static void finish_end(sim *s, conn_end *e)
{
    if (e->down) return;
    e->down = true;
    for (conn_end **at = &s->procs[e->proc].ends; *at; at = &(*at)->next)
        if (*at == e) {
            *at = e->next;
            break;
        }
    if (s->watch.ends && e->told_up)
        s->watch.ends(s->watch.ctx, e->proc, e->of->end[e == &e->of->end[0]].proc, e->of->id);
}

void wire_unref(sim *s, conn *c)
{
    if (!c || --c->refs || !c->dead) return;
    for (int i = 0; i < 2; i++)
        if (c->end[i].proc >= 0 && !c->end[i].down) return;
    conn **at = c->prev ? &c->prev->next : &s->conns;
    *at = c->next;
    if (c->next) c->next->prev = c->prev;
    drop_from(s, &c->pipe[0], 0);
    drop_from(s, &c->pipe[1], 0);
    free(c);
}

/* ---- opening
 * ------------------------------------------------------------------------------------------------ */

static int who_listens(sim *s, const char *address, cw_port *port)
{
    for (int i = 0; i < s->n_procs; i++)
        for (int k = 0; s->procs[i].up && k < s->procs[i].n_listen; k++)
            if (strcmp(s->procs[i].address[k], address) == 0) {
                *port = s->procs[i].port[k];
                return i;
            }
    return -1;
}

void wire_open(sim *s, int proc, const cw_action *a)
{
    int unused;
    CW_ASSERT(!find(s, proc, a->link, &unused)); /* a link id is never used twice */
    conn *c = calloc(1, sizeof *c);
    CW_ASSERT(c);
    c->next = s->conns;
    if (s->conns) s->conns->prev = c;
    s->conns = c;
    c->id = ++s->n_conns;
    begin_end(s, c, 0, proc, a->link);
    c->end[1] = (conn_end){.proc = -1, .of = c};
    cw_gate_outgoing(&c->end[0].gate, s->procs[proc].def.side);
    int server = who_listens(s, a->text, &c->port);
    int64_t at = s->now + 2 * latency(s, proc);
    const char *why = NULL;
    if (s->now < s->procs[proc].unplugged_until) {
        why = "network is unreachable";
        at = s->now + 100;
    } else if (server < 0) {
        why = "connection refused";
    } else if (s->procs[server].paused || in_hole(s, proc, server) || in_hole(s, server, proc)) {
        why = "no answer";
        at = s->now + SIM_CONNECT_US;
    } else if (memcmp(s->procs[server].def.key.b, a->key.b, CW_KEY_BYTES) != 0) {
        why = "handshake failed: wrong server key";
    }
    if (why) {
        c->dead = true;
        sim_push(s, (item){.at = at, .kind = T_LINK_DOWN, .c = c, .dir = 0, .text = why});
        return;
    }
    process *q = &s->procs[server];
    begin_end(s, c, 1, server, q->next_link++);
    cw_gate_incoming(&c->end[1].gate, q->def.side, (Cw__Pb__Purpose)c->port);
    sim_push(s, (item){.at = at, .kind = T_LINK_UP, .c = c, .dir = 0});
}

void wire_link_up(sim *s, conn *c, int end)
{
    conn_end *e = &c->end[end], *o = &c->end[1 - end];
    if (e->down || c->dead || e->told_up) return;
    e->told_up = true;
    cw_event ev = {.kind = CW_EV_LINK_UP, .link = e->link, .port = c->port, .key = s->procs[o->proc].def.key};
    snprintf(ev.text, sizeof ev.text, "%s", s->procs[o->proc].def.name);
    sim_give(s, e->proc, &ev);
}

void wire_link_down(sim *s, conn *c, int end, const char *text)
{
    conn_end *e = &c->end[end];
    if (e->down) return;
    finish_end(s, e);
    if (end == 1 && !e->told_up) return; /* it never knew */
    cw_event ev = {.kind = CW_EV_LINK_DOWN, .link = e->link, .port = c->port};
    if (c->end[1 - end].proc >= 0) ev.key = s->procs[c->end[1 - end].proc].def.key;
    snprintf(ev.text, sizeof ev.text, "%s", text ? text : "gone");
    sim_trace(s, "%s: link %llx down: %s", s->procs[e->proc].def.name, (unsigned long long)e->link, ev.text);
    sim_give(s, e->proc, &ev);
}

/* ---- sending
 * ------------------------------------------------------------------------------------------------ */

/* As the wire does it: packed by the sender, unpacked and checked by the receiver. */
static cw_msg *through_the_wire(sim *s, const conn_end *to, cw_msg *msg)
{
    size_t n = cw_msg_header_bytes(msg->env);
    uint8_t *header = malloc(n ? n : 1);
    CW_ASSERT(header);
    cw_msg_header_pack(msg->env, header);
    cw_msg *out = NULL;
    cw_err err;
    if (cw_msg_decode(header, n, cw_gate_header_max(&to->gate), msg->frames, msg->n_frames, &out, &err) ==
        CW_OK)
        msg->n_frames = 0;
    else
        sim_fail(s, "a %s that does not decode: %s", cw_msg_kind_name(msg->env->body_case), err.text);
    free(header);
    cw_msg_free(&msg);
    return out;
}

void wire_send(sim *s, int proc, cw_link link, cw_msg *msg)
{
    int end;
    conn *c = find(s, proc, link, &end);
    if (!c || c->dead || c->end[end].down) {
        cw_msg_free(&msg);
        return;
    }
    cw_gate_sent(&c->end[end].gate, msg);
    int dir = end; /* the client sends into pipe 0 */
    pipe_state *p = &c->pipe[dir];
    const process *from = &s->procs[proc];
    if (s->watch.sent) s->watch.sent(s->watch.ctx, proc, c->end[1 - end].proc, c->id, msg);
    if (p->n >= (s->now < from->narrow_until
                     ? from->narrow
                     : SIM_QUEUE_MESSAGES)) { /* the peer does not read: the shell gives the link up */
        cw_msg_free(&msg);
        wire_cut(s, c, false, "send queue full");
        return;
    }
    int64_t at = s->now + latency(s, proc);
    if (s->now < from->slow_until) at += (int64_t)(cw_msg_total_bytes(msg) / 1024) * from->slow_per_kb;
    if (at < p->last_us) at = p->last_us;
    p->last_us = at;
    flight *f = calloc(1, sizeof *f);
    CW_ASSERT(f);
    f->msg = msg;
    if (p->tail)
        p->tail->next = f;
    else
        p->head = f;
    p->tail = f;
    p->n++;
    sim_push(s, (item){.at = at, .kind = T_DELIVER, .c = c, .dir = dir});
}

static cw_msg *take(pipe_state *p)
{
    flight *f = p->head;
    if (!f) return NULL;
    cw_msg *m = f->msg;
    p->head = f->next;
    if (!p->head) p->tail = NULL;
    p->n--;
    free(f);
    return m;
}

/* One message of this direction arrives: the oldest, whichever was meant when the time was set. */
void wire_deliver(sim *s, conn *c, int dir)
{
    conn_end *to = &c->end[1 - dir], *from = &c->end[dir];
    pipe_state *p = &c->pipe[dir];
    if (to->down || !p->head) return;
    if (in_hole(s, from->proc,
                to->proc)) { /* TCP sends it again when the hole has ended, if the connection lives so long */
        int64_t at = hole_end(s, from->proc, to->proc) + 1000;
        if (at > p->last_us) p->last_us = at;
        sim_push(s, (item){.at = at, .kind = T_DELIVER, .c = c, .dir = dir});
        return;
    }
    cw_msg *m = through_the_wire(s, to, take(p));
    if (!m) return;
    cw_err err;
    if (cw_gate_received(&to->gate, m, &err) != CW_OK) {
        sim_fail(s, "%s sent %s %s", s->procs[from->proc].def.name, s->procs[to->proc].def.name, err.text);
        cw_msg_free(&m);
        return;
    }
    s->messages++;
    if (s->trace_on)
        sim_trace(s, "%s -> %s %s", s->procs[from->proc].def.name, s->procs[to->proc].def.name,
                  cw_msg_kind_name(m->env->body_case));
    cw_event ev = {.kind = CW_EV_MESSAGE,
                   .link = to->link,
                   .port = c->port,
                   .key = s->procs[from->proc].def.key,
                   .msg = m};
    if (!to->told_up) {
        uint32_t gen = to->gen;
        wire_link_up(s, c, 1 - dir);
        sim_push(s, (item){.at = s->now + SIM_CONNECT_US, .kind = T_DEADLINE, .c = c});
        if (!s->procs[to->proc].up || s->procs[to->proc].gen != gen || to->down) {
            cw_msg_free(&ev.msg);
            return;
        }
    }
    if (s->watch.arrives) s->watch.arrives(s->watch.ctx, from->proc, to->proc, c->id, m);
    sim_give(s, to->proc, &ev);
}

void wire_admit(sim *s, int proc, cw_link link)
{
    int end;
    conn *c = find(s, proc, link, &end);
    if (c) cw_gate_admit(&c->end[end].gate);
}

/* ---- the end of a connection
 * -------------------------------------------------------------------------------- */

/* This end is done at once; the peer still gets what was sent before, then hears of it. */
void wire_close(sim *s, int proc, cw_link link)
{
    int end;
    conn *c = find(s, proc, link, &end);
    if (!c || c->end[end].down) return;
    finish_end(s, &c->end[end]);
    drop_from(s, &c->pipe[1 - end], 0);
    if (c->dead) return;
    c->dead = true;
    int64_t at = s->now + latency(s, proc);
    if (c->pipe[end].last_us > at) at = c->pipe[end].last_us;
    if (c->end[1 - end].proc >= 0 && in_hole(s, proc, c->end[1 - end].proc)) {
        drop_from(s, &c->pipe[end], 0); /* the moment that a close grants is over before the hole is */
        at = s->now + SIM_HEARTBEATS_US;
    }
    sim_push(s, (item){.at = at, .kind = T_LINK_DOWN, .c = c, .dir = 1 - end, .text = "closed by the peer"});
}

void wire_blame(sim *s, int proc, cw_link link, const char *why)
{
    int end;
    conn *c = find(s, proc, link, &end);
    if (!c) return;
    int peer = c->end[1 - end].proc;
    if (peer < 0 || !s->procs[peer].def.hostile)
        sim_fail(s, "%s blames an honest peer: %s", s->procs[proc].def.name, why);
    finish_end(s, &c->end[end]);
    wire_cut(s, c, true, "blamed");
}

/* Any suffix in flight is lost, in each direction its own; the ends learn of it at different times. */
void wire_cut(sim *s, conn *c, bool at_once, const char *text)
{
    if (c->dead) return;
    c->dead = true;
    for (int end = 0; end < 2; end++) {
        pipe_state *p = &c->pipe[1 - end]; /* what travels to this end */
        if (!s->calm) drop_from(s, p, p->n ? sim_below(s, p->n + 1) : 0);
        int64_t at = s->now + (at_once ? 0 : latency(s, c->end[end].proc));
        if (p->head && p->last_us > at) at = p->last_us;
        if (!at_once && !s->calm && sim_chance(s, 20))
            at += (int64_t)sim_below(s, SIM_HEARTBEATS_US); /* no reset came: heartbeats must notice */
        sim_push(s, (item){.at = at, .kind = T_LINK_DOWN, .c = c, .dir = end, .text = text});
    }
}

static bool joins(const conn *c, int a, int b)
{
    return !c->dead && c->end[1].proc >= 0 &&
           ((c->end[0].proc == a && (b < 0 || c->end[1].proc == b)) ||
            (c->end[1].proc == a && (b < 0 || c->end[0].proc == b)));
}

void sim_cut(sim *s, int a, int b)
{
    sim_trace(s, "cut between %s and %s", s->procs[a].def.name, s->procs[b].def.name);
    for (conn *c = s->conns; c; c = c->next)
        if (joins(c, a, b)) wire_cut(s, c, false, "connection reset");
}

void wire_kill(sim *s, int proc)
{
    for (conn *c = s->conns; c; c = c->next) {
        int end = c->end[0].proc == proc ? 0 : c->end[1].proc == proc ? 1 : -1;
        if (end < 0 || c->end[end].gen != s->procs[proc].gen) continue;
        if (c->end[1].proc >= 0) wire_cut(s, c, false, "the peer's process ended");
        finish_end(s, &c->end[end]);
        drop_from(s, &c->pipe[1 - end], 0);
        c->dead = true;
    }
}

void wire_cut_all(sim *s, int proc)
{
    for (conn_end *e = s->procs[proc].ends, *next; e; e = next) {
        next = e->next; /* a cut only plans the end */
        if (e->of->end[1].proc >= 0) wire_cut(s, e->of, false, "network is down");
    }
}

static void give_up(sim *s, conn *c, int from_end)
{
    int from = c->end[from_end].proc, peer = c->end[1 - from_end].proc;
    c->dead = true;
    drop_from(s, &c->pipe[from_end], 0); /* to the one that gives up: what had not arrived never will */
    sim_push(
        s,
        (item){.at = s->now, .kind = T_LINK_DOWN, .c = c, .dir = 1 - from_end, .text = "heartbeats stopped"});
    int64_t at = s->now + latency(s, peer);
    if (c->pipe[1 - from_end].last_us > at) at = c->pipe[1 - from_end].last_us;
    if (in_hole(s, peer, from) && hole_end(s, peer, from) > at) at = hole_end(s, peer, from);
    sim_push(s, (item){.at = at, .kind = T_LINK_DOWN, .c = c, .dir = from_end, .text = "connection reset"});
}

/* Heartbeats from one process have not come for too long: the other gives up, and the first hears of that
 * when it can. `to` -1: everybody's; -2: everybody's have not reached it. */
void wire_heartbeats_lost(sim *s, int proc, int to)
{
    for (conn *c = s->conns; c; c = c->next) {
        if (!joins(c, proc, to < 0 ? -1 : to)) continue;
        int own = c->end[0].proc == proc ? 0 : 1, end = to == -2 ? 1 - own : own;
        int from = c->end[end].proc, peer = c->end[1 - end].proc;
        /* A hole or a pause that ended meanwhile brought the heartbeats back; a connection that began later
         * is not concerned. */
        bool silent = in_hole(s, from, peer) || (to == -1 && s->procs[proc].paused);
        if (silent) give_up(s, c, end);
    }
}

/* An incoming link that is neither let in nor closed in time is cut. */
void wire_deadline(sim *s, conn *c)
{
    const conn_end *e = &c->end[1];
    if (c->dead || e->down || e->gate.state == CW_GATE_ADMITTED || e->gate.state == CW_GATE_ENDED) return;
    if (s->procs[e->proc].paused) { /* its timers stand still too */
        sim_push(s,
                 (item){.at = s->procs[e->proc].paused_until + SIM_CONNECT_US, .kind = T_DEADLINE, .c = c});
        return;
    }
    sim_fail(s, "%s left a link undecided for 2 s", s->procs[e->proc].def.name);
}

void wire_free(sim *s)
{
    while (s->conns) {
        conn *c = s->conns;
        s->conns = c->next;
        drop_from(s, &c->pipe[0], 0);
        drop_from(s, &c->pipe[1], 0);
        free(c);
    }
}
