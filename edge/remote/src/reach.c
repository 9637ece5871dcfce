/*
 * The mainland as a whole: what the links look like, fed to the tide (cw/tide.h), and what its changes mean.
 * While it is not online every connected worker is pinged, so that the return is noticed on connections that
 * only looked alive.
 */
#include <string.h>

#include "edge_internal.h"

enum {
    ASK_US = 200000,    /* between pings while it is not online */
    LATELY_US = 700000, /* who answers them was heard within that */
};

/* Every expert is held by a worker that was heard since the mainland was lost, and lately. */
static bool heard_covered(const cw_edge *e)
{
    int64_t since = e->now_us - LATELY_US;
    if (e->tide.state == CW_TIDE_OFFLINE && e->tide.since_us > since) since = e->tide.since_us;
    for (uint32_t l = 0; l < e->c.n_layers; l++) {
        if (!e->layers[l].weight_bytes) continue;
        for (uint32_t x = 0; x < e->c.n_experts; x++) {
            bool held = false;
            for (size_t i = 0; i < e->n_homes && !held; i++) {
                const home *h = e->homes[i];
                held = h->state == HOME_UP && h->heard_us > since && home_can(e, h, l, x);
            }
            if (!held) return false;
        }
    }
    return true;
}

static cw_tide_view view(const cw_edge *e)
{
    cw_tide_view v = {.now_us = e->now_us,
                      .wanted = e->wanted && e->asked,
                      .waiting = e->requests != NULL,
                      .heard_us = e->heard_us};
    for (size_t i = 0; i < e->n_homes && !v.connected; i++) v.connected = e->homes[i]->state == HOME_UP;
    if (!cw_tide_is_up(&e->tide)) v.covered = v.connected && heard_covered(e);
    return v;
}

static void ask_around(cw_edge *e, cw_outbox *out)
{
    for (size_t i = 0; i < e->n_homes; i++) {
        home *h = e->homes[i];
        if (h->state == HOME_UP && e->now_us - h->ping_us >= ASK_US) links_ping(e, h, out);
    }
    cw_outbox_wake(out, e->now_us + ASK_US);
}

/* Somebody else goes on while it is not up. */
static void end_requests(cw_edge *e, cw_outbox *out)
{
    if (!e->c.gives_way || cw_tide_is_up(&e->tide)) return;
    while (e->requests)
        edge_end_request(e, e->requests, CW_STATUS_UNREACHABLE, "no worker can be reached", out);
}

void reach_look(cw_edge *e, cw_outbox *out)
{
    cw_tide_view v = view(e);
    int64_t wake;
    if (!e->wanted) e->asked = false;
    if (cw_tide_step(&e->tide, &v, &wake)) edge_say(e, "the mainland is %s", cw_tide_name(e->tide.state));
    if (wake != INT64_MAX) cw_outbox_wake(out, wake);
    if (e->tide.state != CW_TIDE_ONLINE) ask_around(e, out);
    end_requests(e, out);
}

void reach_lost(cw_edge *e, cw_outbox *out)
{
    if (!e->c.gives_way) return;
    cw_tide_lose(&e->tide, e->now_us);
    ask_around(e, out);
    end_requests(e, out);
}
