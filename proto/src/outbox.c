/* The action queue of a state machine; see cw/machine.h. */
#include <stdio.h>
#include <string.h>

#include "cw/machine.h"
#include "cw/mem.h"

void cw_outbox_init(cw_outbox *o)
{
    *o = (cw_outbox){.wake_us = INT64_MAX};
}

void cw_outbox_clear(cw_outbox *o)
{
    for (size_t i = 0; i < o->n; i++) cw_msg_free(&o->items[i].msg);
    o->n = 0;
}

void cw_outbox_free(cw_outbox *o)
{
    cw_outbox_clear(o);
    cw_free(o->items);
    cw_outbox_init(o);
}

void cw_outbox_wake(cw_outbox *o, int64_t at_us)
{
    if (at_us < o->wake_us) o->wake_us = at_us;
}

static cw_action *push(cw_outbox *o, cw_action_kind kind, cw_link link)
{
    if (o->n == o->cap) {
        size_t cap = o->cap ? 2 * o->cap : 16;
        cw_action *items = cw_realloc(o->items, cap, sizeof *items);
        if (!items) {
            o->failed = true;
            return NULL;
        }
        o->items = items;
        o->cap = cap;
    }
    cw_action *a = &o->items[o->n++];
    *a = (cw_action){.kind = kind, .link = link};
    return a;
}

void cw_send_msg(cw_outbox *o, cw_link link, cw_msg *msg)
{
    cw_action *a = msg ? push(o, CW_ACT_SEND, link) : NULL;
    if (a) {
        a->msg = msg;
        return;
    }
    o->failed = true;
    cw_msg_free(&msg);
}

void cw_send(cw_outbox *o, cw_link link, const Cw__Pb__Envelope *env, const cw_frame *frames,
             uint32_t n_frames)
{
    cw_send_msg(o, link, cw_msg_new(env, frames, n_frames));
}

void cw_open(cw_outbox *o, cw_link link, const char *address, const cw_key *key)
{
    CW_ASSERT(link & CW_LINK_OUT);
    cw_action *a = push(o, CW_ACT_OPEN, link);
    if (!a) return;
    snprintf(a->text, sizeof a->text, "%s", address);
    a->key = *key;
}

void cw_admit(cw_outbox *o, cw_link link)
{
    (void)push(o, CW_ACT_ADMIT, link);
}

void cw_close(cw_outbox *o, cw_link link, const char *reason)
{
    cw_action *a = push(o, CW_ACT_CLOSE, link);
    if (a) snprintf(a->text, sizeof a->text, "%s", reason);
}

void cw_blame(cw_outbox *o, cw_link link, const char *reason)
{
    cw_action *a = push(o, CW_ACT_BLAME, link);
    if (a) snprintf(a->text, sizeof a->text, "%s", reason);
}
