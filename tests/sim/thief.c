/* Somebody with a ticket that is good, but another's: it must open nothing. */
#include "cluster_internal.h"

#include <stdio.h>
#include <string.h>

static void say_hello(sim_thief *t, cw_outbox *out)
{
    const node_edge *victim = &t->cl->e[0].n;
    uint8_t digest[CW_DIGEST_BYTES], instance[CW_INSTANCE_BYTES] = {9};
    memset(digest, MODEL_BYTE, sizeof digest);
    Cw__Pb__Hello h = CW__PB__HELLO__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    h.proto_min = CW_PROTO_MIN;
    h.proto_max = CW_PROTO_MAX;
    h.software = (char *)(uintptr_t) "thief";
    h.role = CW__PB__ROLE__ROLE_EDGE;
    h.purpose = CW__PB__PURPOSE__PURPOSE_DATA;
    h.name = (char *)(uintptr_t) "e0";
    h.arithmetic_id = 1;
    h.fingerprint = FINGERPRINT;
    h.model_digest = (ProtobufCBinaryData){sizeof digest, digest};
    h.instance = (ProtobufCBinaryData){sizeof instance, instance};
    h.ticket = (ProtobufCBinaryData){victim->ticket_len, (uint8_t *)(uintptr_t)victim->ticket};
    env.body_case = CW__PB__ENVELOPE__BODY_HELLO;
    env.hello = &h;
    cw_send(out, t->link, &env, NULL, 0);
}

static void thief_event(void *ctx, cw_event *ev, cw_outbox *out)
{
    sim_thief *t = ctx;
    cluster *cl = t->cl;
    if (ev->kind == CW_EV_LINK_UP && ev->link == t->link) {
        say_hello(t, out);
    } else if (ev->kind == CW_EV_MESSAGE) {
        if (ev->msg->env->body_case == CW__PB__ENVELOPE__BODY_WELCOME)
            sim_fail(cl->s, "a worker lets somebody in with another's ticket");
        else
            t->refused++;
    } else if (ev->kind == CW_EV_TICK && ev->now_us >= t->next_us && cl->e[0].n.has_saved) {
        const sim_worker *w = &cl->w[sim_below(cl->s, (uint32_t)cl->n_workers)];
        t->next_us = ev->now_us + SIM_S + (int64_t)sim_below(cl->s, 5 * SIM_S);
        if (!w->exists) return;
        cw_key key = key_of(2, w->n.index);
        t->link = CW_LINK_OUT | ++t->tries;
        cw_open(out, t->link, w->n.address, &key);
    }
}

static void thief_after(void *ctx, cw_outbox *out)
{
    (void)ctx;
    (void)out;
}

void thief_add(cluster *cl)
{
    sim_thief *t = &cl->thief;
    t->cl = cl;
    cl->has_thief = true;
    t->h.proc = sim_add(cl->s, &(sim_proc){.name = "thief",
                                           .side = CW_SIDE_EDGE,
                                           .key = key_of(4, 0),
                                           .event = thief_event,
                                           .after = thief_after,
                                           .hostile = true});
    sim_start(cl->s, t->h.proc, t, NULL, 0);
}
