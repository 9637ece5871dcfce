/* What goes wrong in a simulated cluster, chosen by the seed; what an operator does is among it. */
#include <string.h>

#include "cluster_internal.h"
#include "cw/mem.h"

static const char *const names[N_FAULTS] = {[FAULT_CUT] = "cut",
                                            [FAULT_HOLE] = "one-way hole",
                                            [FAULT_PAUSE] = "pause",
                                            [FAULT_KILL] = "kill and restart",
                                            [FAULT_STOP] = "stop and restart",
                                            [FAULT_SLOW] = "slow link",
                                            [FAULT_NARROW] = "full queues",
                                            [FAULT_WALL] = "wall clock",
                                            [FAULT_SAVE] = "death at saving",
                                            [FAULT_BACKUP] = "old backup",
                                            [FAULT_JOIN] = "join",
                                            [FAULT_GONE] = "dead for good",
                                            [FAULT_DRAIN] = "drain",
                                            [FAULT_REVOKE_WORKER] = "worker revoked",
                                            [FAULT_REVOKE_EDGE] = "edge revoked",
                                            [FAULT_OVERLOAD] = "overload",
                                            [FAULT_BUSY] = "slow worker",
                                            [FAULT_DISK] = "disk lost",
                                            [FAULT_LIE] = "lying worker"};

const char *cluster_fault_name(int fault)
{
    return names[fault];
}

static int64_t some_time(sim *s, int64_t from_ms, int64_t to_ms)
{
    return (from_ms + (int64_t)(sim_random(s) % (uint64_t)(to_ms - from_ms))) * SIM_MS;
}

/* The coordinator, a worker that has begun, or an edge. */
static int any_proc(cluster *cl)
{
    for (;;) {
        int i = (int)sim_below(cl->s, (uint32_t)(1 + cl->n_workers + SPARE_WORKERS + cl->n_edges));
        if (i == 0) return cl->co.h.proc;
        i--;
        if (i < cl->n_workers + SPARE_WORKERS) {
            if (cl->w[i].exists) return cl->w[i].h.proc;
            continue;
        }
        return cl->e[i - cl->n_workers - SPARE_WORKERS].h.proc;
    }
}

static sim_worker *any_worker(cluster *cl)
{
    return &cl->w[sim_below(cl->s, (uint32_t)cl->n_workers)];
}

static void restart_at(cluster *cl, int proc, int64_t at)
{
    if (proc == cl->co.h.proc) sim_at(cl->s, at, coordinator_restart, &cl->co, NULL);
    for (int i = 0; i < cl->n_workers + SPARE_WORKERS; i++)
        if (cl->w[i].h.proc == proc) sim_at(cl->s, at, worker_restart, &cl->w[i], NULL);
    for (int i = 0; i < cl->n_edges; i++)
        if (cl->e[i].h.proc == proc) sim_at(cl->s, at, edge_restart, &cl->e[i], NULL);
}

/* Whether the others can hold the whole model without this worker, with room to move. */
static bool can_do_without(const cluster *cl, const sim_worker *w)
{
    uint64_t room = 0;
    for (int i = 0; i < cl->n_workers; i++) {
        const sim_worker *o = &cl->w[i];
        if (o == w || o->gone || o->revoked || o->drained || o == cl->liar) continue;
        room += o->n.memory - 2 * EXPERT_BYTES;
    }
    return room >= (uint64_t)MODEL_BYTES * 115 / 100;
}

static void restore_backup(cluster *cl, int64_t down_us)
{
    sim_kill(cl->s, cl->co.h.proc);
    sim_trace(cl->s, "the coordinator's state is replaced by an older copy");
    cl->co.n.disk = cl->co.backup;
    cl->co.restored = true;
    for (int i = 0; i < cl->n_workers + SPARE_WORKERS; i++) cl->w[i].drained = false;
    sim_at(cl->s, sim_now(cl->s) + down_us, coordinator_restart, &cl->co, NULL);
}

/* ---- what an operator does: a command in the coordinator's process ---- */

void faults_drain(void *ctx, void *arg, cw_outbox *out)
{
    node_coordinator *c = ctx;
    sim_worker *w = arg;
    cw_key key = key_of(2, w->n.index);
    cw_err err;
    cw_status st = cw_coordinator_drain(c->m, &key, !w->drained, host_now(c->h), host_wall(c->h), out, &err);
    if (st == CW_OK) w->drained = !w->drained;
    host_say(c->h, "drain of worker %d: %s", w->n.index, st == CW_OK ? w->drained ? "on" : "off" : err.text);
}

static void revoke_now(void *ctx, void *arg, cw_outbox *out)
{
    node_coordinator *c = ctx;
    cw_key *key = arg;
    host_say(c->h, "%s %d is revoked", key->b[0] == 2 ? "worker" : "edge", key->b[1] - 1);
    CW_ASSERT(cw_coordinator_key_revoke(c->m, key, host_now(c->h), host_wall(c->h), out, NULL) == CW_OK);
}

static bool is_known(const cluster *cl, const cw_key *key)
{
    const node_disk *d = &cl->co.n.disk;
    for (size_t i = 0; i < d->n_keys; i++)
        if (cw_key_equal(&d->keys[i].key, key)) return true;
    return false;
}

static bool operate(cluster *cl, void (*fn)(void *ctx, void *arg, cw_outbox *out), void *arg)
{
    if (!sim_is_up(cl->s, cl->co.h.proc) || sim_is_paused(cl->s, cl->co.h.proc)) return false;
    sim_after(cl->s, cl->co.h.proc, 0, fn, arg);
    return true;
}

static bool drain(cluster *cl, sim_worker *w)
{
    cw_key key = key_of(2, w->n.index);
    if (w->gone || w->revoked || !is_known(cl, &key) || (!w->drained && !can_do_without(cl, w))) return false;
    return operate(cl, faults_drain, w);
}

static bool revoke(cluster *cl, int kind, int index)
{
    cw_key key = key_of(kind, index), *arg = kind == 2 ? &cl->w[index].key : &cl->e[index].key;
    *arg = key;
    if (!is_known(cl, &key) || cl->co.n.die_before_save || cl->co.n.die_after_save) return false;
    return operate(cl, revoke_now, arg);
}

/* ---- all of them ---- */

/* For how long it lasts; -1: not now. */
static int64_t on_members(cluster *cl, int kind, int64_t us)
{
    sim *s = cl->s;
    sim_worker *w = any_worker(cl);
    switch (kind) {
    case FAULT_STOP:
        if (!sim_is_up(s, w->h.proc)) return -1;
        w->restart_us = us / 2;
        sim_after(s, w->h.proc, 0, node_worker_stop, NULL);
        return us + 5 * SIM_S;
    case FAULT_JOIN:
        w = &cl->w[cl->n_workers + (int)sim_below(s, SPARE_WORKERS)];
        if (w->exists) return -1;
        worker_start(w);
        return 0;
    case FAULT_GONE:
        if (w->gone || w->revoked || !can_do_without(cl, w)) return -1;
        w->gone = true;
        sim_kill(s, w->h.proc);
        return 0;
    case FAULT_DRAIN: return drain(cl, w) ? 0 : -1;
    case FAULT_REVOKE_WORKER:
        if (w->gone || w->revoked || !can_do_without(cl, w) || !revoke(cl, 2, w->n.index)) return -1;
        w->revoked = true;
        return 0;
    case FAULT_REVOKE_EDGE: {
        sim_edge *e = &cl->e[sim_below(s, (uint32_t)cl->n_edges)];
        if (e->revoked || cl->n_edges == 1 || !revoke(cl, 3, e->n.index)) return -1;
        e->revoked = true;
        return 0;
    }
    case FAULT_OVERLOAD:
        for (int i = 0; i < cl->n_edges; i++) {
            sim_edge *e = &cl->e[i];
            if (!sim_is_up(s, e->h.proc) || sim_chance(s, 30)) continue;
            e->burst_until = sim_now(s) + us / 8;
            edge_keep_asking(e);
        }
        return us / 8;
    case FAULT_BUSY:
        w->n.slow_until = sim_now(s) + us;
        w->n.slow_factor = 2 + sim_below(s, 100);
        return us;
    case FAULT_DISK: w->n.disk_lost_until = sim_now(s) + us; return us;
    case FAULT_LIE:
        if (cl->liar || w->gone || w->revoked || !sim_is_up(s, w->h.proc) || !can_do_without(cl, w))
            return -1;
        cl->liar = w;
        w->n.lies_in = 5 + sim_below(s, 16);
        w->n.lies_until = INT64_MAX;
        return 0;
    default: CW_ASSERT(false); return -1;
    }
}

static void fault(void *ctx, void *arg)
{
    cluster *cl = ctx;
    sim *s = cl->s;
    int kind = (int)(uintptr_t)arg, a = any_proc(cl), b = any_proc(cl);
    while (b == a) b = any_proc(cl);
    int64_t us = some_time(s, 100, 10000);
    switch (kind) {
    case FAULT_CUT:
        sim_cut(s, a, b);
        us = 0;
        break;
    case FAULT_HOLE:
        sim_hole(s, a, b, us);
        if (sim_chance(s, 30)) sim_hole(s, b, a, us);
        break;
    case FAULT_PAUSE: sim_pause(s, a, us); break;
    case FAULT_KILL:
        sim_kill(s, a);
        /* A coordinator may stay away for longer than tickets last. */
        us = a == cl->co.h.proc && sim_chance(s, 30) ? 6 * us : us / 2;
        restart_at(cl, a, sim_now(s) + us);
        break;
    case FAULT_SLOW: sim_slow(s, a, 1000 * (int64_t)sim_below(s, 300), sim_below(s, 20000), us); break;
    case FAULT_NARROW: sim_narrow(s, a, sim_below(s, 4), us = us / 10); break;
    case FAULT_WALL:
        sim_jump_wall(s, a, (int64_t)sim_below(s, 600000) - 300000);
        us = 0;
        break;
    case FAULT_SAVE:
        cl->co.n.die_before_save = sim_chance(s, 50);
        cl->co.n.die_after_save = !cl->co.n.die_before_save;
        cl->co.down_us = us / 2;
        sim_cut(s, cl->co.h.proc, cl->w[0].h.proc); /* something to save follows */
        us += 10 * SIM_S;
        break;
    case FAULT_BACKUP: restore_backup(cl, us / 2); break;
    default:
        us = on_members(cl, kind, us);
        if (us < 0) return;
        sim_trace(s, "%s", names[kind]);
    }
    cl->counts->faults[kind]++;
    if (sim_now(s) + us > cl->faults_end) cl->faults_end = sim_now(s) + us;
}

/* Everybody is in: the state of now is what an old backup would be. */
static void take_backup(void *ctx, void *arg)
{
    (void)arg;
    sim_coordinator *c = &((cluster *)ctx)->co;
    c->backup = c->n.disk;
}

void faults_plan(cluster *cl)
{
    sim *s = cl->s;
    int64_t now = sim_now(s);
    cl->faults_end = now;
    sim_at(s, now, take_backup, cl, NULL);
    sim_at(s, now + some_time(s, 10, 20000), fault, cl, (void *)(uintptr_t)FAULT_CUT); /* at least one cut */
    for (uint32_t n = sim_below(s, 7); n; n--)
        sim_at(s, now + some_time(s, 10, 20000), fault, cl, (void *)(uintptr_t)sim_below(s, N_FAULTS));
}
