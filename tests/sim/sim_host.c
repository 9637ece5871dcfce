/* What surrounds a node (nodes.h) in the simulator. */
#include "sim_host.h"

static int64_t host_ops_now(host *h)
{
    return sim_clock(((sim_host *)h)->s, ((sim_host *)h)->proc);
}

static int64_t host_ops_wall(host *h)
{
    return sim_wall(((sim_host *)h)->s, ((sim_host *)h)->proc);
}

static uint64_t host_ops_random(host *h)
{
    return sim_random(((sim_host *)h)->s);
}

static void host_ops_after(host *h, int64_t delay_us, void (*fn)(void *ctx, void *arg, cw_outbox *out),
                           void *arg)
{
    sim_after(((sim_host *)h)->s, ((sim_host *)h)->proc, delay_us, fn, arg);
}

static void host_ops_die(host *h)
{
    sim_die_now(((sim_host *)h)->s, ((sim_host *)h)->proc);
}

static void host_ops_say(host *h, const char *text)
{
    sim_trace(((sim_host *)h)->s, "%s", text);
}

static void host_ops_fail(host *h, const char *text)
{
    sim_fail(((sim_host *)h)->s, "%s", text);
}

sim_host sim_host_new(sim *s, const sim_proc *p)
{
    static const host_ops ops = {host_ops_now, host_ops_wall, host_ops_random, host_ops_after,
                                 host_ops_die, host_ops_say,  host_ops_fail};
    return (sim_host){.base = {.ops = &ops}, .s = s, .proc = sim_add(s, p)};
}
