/* For tests of the pure machines: events made by hand, actions looked at one by one. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cw/machine.h"
#include "cw/mem.h"
#include "cw/ticket.h"

/* How the rig reaches the machine under test. */
typedef struct rig {
    void *machine;
    void (*event)(void *machine, cw_event *ev, cw_outbox *out);
    cw_outbox out;
    int64_t now_us, wall_ms;
} rig;

static inline void rig_event(rig *r, cw_event *ev)
{
    ev->now_us = r->now_us;
    ev->wall_ms = r->wall_ms;
    r->event(r->machine, ev, &r->out);
    cw_msg_free(&ev->msg);
    assert_false(r->out.failed);
}

static inline void rig_tick(rig *r, int64_t pass_us)
{
    r->now_us += pass_us;
    r->wall_ms += pass_us / 1000;
    rig_event(r, &(cw_event){.kind = CW_EV_TICK});
}

static inline void rig_up(rig *r, cw_link link, cw_port port, const cw_key *key)
{
    rig_event(r, &(cw_event){.kind = CW_EV_LINK_UP, .link = link, .port = port, .key = *key});
}

static inline void rig_down(rig *r, cw_link link, const char *why)
{
    cw_event ev = {.kind = CW_EV_LINK_DOWN, .link = link};
    snprintf(ev.text, sizeof ev.text, "%s", why);
    rig_event(r, &ev);
}

static inline void rig_message(rig *r, cw_link link, cw_port port, const cw_key *key,
                               const Cw__Pb__Envelope *env, const cw_frame *frames, uint32_t n)
{
    cw_msg *m = cw_msg_new(env, frames, n);
    assert_non_null(m);
    rig_event(r, &(cw_event){.kind = CW_EV_MESSAGE, .link = link, .port = port, .key = *key, .msg = m});
}

/* The nth (from 0) queued action of that kind (and, for sends, message kind; 0: any); NULL when there are
 * fewer. */
static inline cw_action *rig_action(rig *r, cw_action_kind kind, cw_link link, cw_msg_kind msg, int nth)
{
    for (size_t i = 0; i < r->out.n; i++) {
        cw_action *a = &r->out.items[i];
        if (a->kind != kind || (link && a->link != link) ||
            (kind == CW_ACT_SEND && msg && a->msg->env->body_case != msg))
            continue;
        if (nth-- == 0) return a;
    }
    return NULL;
}

static inline cw_action *rig_sent(rig *r, cw_link link, cw_msg_kind msg)
{
    return rig_action(r, CW_ACT_SEND, link, msg, 0);
}

static inline int rig_count(rig *r, cw_action_kind kind, cw_link link, cw_msg_kind msg)
{
    int n = 0;
    while (rig_action(r, kind, link, msg, n)) n++;
    return n;
}

static inline void rig_clear(rig *r)
{
    cw_outbox_clear(&r->out);
}

#define ENV(var, BODY, field, ptr)                                                                           \
    Cw__Pb__Envelope var = CW__PB__ENVELOPE__INIT;                                                           \
    (var).body_case = CW__PB__ENVELOPE__BODY_##BODY, (var).field = (ptr)

#define MSG(kind) CW__PB__ENVELOPE__BODY_##kind
