/* The simulator as a world for scripts; see script.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/mem.h"
#include "script.h"
#include "sim_host.h"

struct world {
    sim *s;
    member *m;
    cw_key keys[MEMBERS];
    cw_signer *signer;
    sim_host h[MEMBERS];
};

static member *sim_members(world *w)
{
    return w->m;
}

static void sim_world_start(world *w, int id)
{
    member *m = &w->m[id];
    const char *address = NULL;
    if (id == MEMBER_COORDINATOR) address = m->place.control;
    if (id >= MEMBER_WORKER && id < MEMBER_EDGE) {
        snprintf(m->n.w.address, sizeof m->n.w.address, "tcp://10.0.1.%d:6000", id);
        address = m->n.w.address;
    }
    member_start(m, &w->h[id].base);
    sim_start(w->s, w->h[id].proc, m, address, id == MEMBER_COORDINATOR ? CW_PORT_CONTROL : CW_PORT_DATA);
}

static void sim_world_kill(world *w, int id)
{
    sim_kill(w->s, w->h[id].proc);
}

static void sim_world_pause(world *w, int id, int64_t us)
{
    sim_pause(w->s, w->h[id].proc, us);
}

static bool is_one(int i, bool workers)
{
    return workers ? i >= MEMBER_WORKER && i < MEMBER_EDGE : i >= MEMBER_EDGE;
}

static void sim_world_cut(world *w, int id, bool workers)
{
    for (int i = 0; i < MEMBERS; i++)
        if (i != id && is_one(i, workers)) sim_cut(w->s, w->h[i].proc, w->h[id].proc);
}

static void sim_world_hole(world *w, int id, bool towards, int64_t us)
{
    for (int i = MEMBER_EDGE; i < MEMBERS; i++)
        sim_hole(w->s, w->h[towards ? i : id].proc, w->h[towards ? id : i].proc, us);
}

static bool sim_world_pass(world *w, int64_t us)
{
    return sim_run(w->s, sim_now(w->s) + us, &(sim_watcher){0});
}

static const char *sim_world_failure(world *w)
{
    return sim_failure(w->s);
}

const char *script_in_simulator(const script *s, bool trace, char told[STORY_TEXT])
{
    static const world_ops ops = {sim_members,   sim_world_start, sim_world_kill, sim_world_pause,
                                  sim_world_cut, sim_world_hole,  sim_world_pass, sim_world_failure};
    world w = {.s = sim_new(1, trace), .m = calloc(MEMBERS, sizeof(member))};
    CW_ASSERT(w.m && cw_crypto_init(NULL) == CW_OK && cw_signer_new(&w.signer, NULL) == CW_OK);
    sim_set_calm(w.s);
    sim_set_latency(w.s, 100, 400);
    for (int i = 0; i < MEMBERS; i++) w.keys[i].b[0] = (uint8_t)(i + 1);
    script_cast(s, w.m, w.keys, w.signer);
    for (int i = 0; i < MEMBERS; i++) {
        static const cw_side sides[] = {CW_SIDE_COORDINATOR, CW_SIDE_WORKER, CW_SIDE_EDGE};
        snprintf(w.m[i].place.control, sizeof w.m[i].place.control, "tcp://10.0.0.1:5570");
        snprintf(w.m[i].place.store, sizeof w.m[i].place.store, "tcp://10.0.0.1:5571");
        sim_proc p = {.side = sides[i == 0            ? 0
                                    : i < MEMBER_EDGE ? 1
                                                      : 2],
                      .key = w.keys[i],
                      .event = member_event,
                      .after = member_after};
        snprintf(p.name, sizeof p.name, "%s", w.m[i].name);
        w.h[i] = sim_host_new(w.s, &p);
    }
    const char *why = script_tell(s, &ops, &w, told);
    cw_coordinator_free(&w.m[MEMBER_COORDINATOR].n.c.m);
    for (int i = MEMBER_WORKER; i < MEMBER_EDGE; i++) cw_worker_free(&w.m[i].n.w.m);
    for (int i = MEMBER_EDGE; i < MEMBERS; i++) cw_edge_free(&w.m[i].n.e.m);
    sim_free(w.s);
    cw_signer_free(&w.signer);
    free(w.m);
    return why;
}
