/*
 * Going on purpose: the coordinator is told and gives this worker's experts other homes while it goes on
 * serving; when it says that nothing here is needed any more, or when that takes too long, the rest is worked
 * off and the process ends. Without a coordinator there is nobody to wait for; asked a second time the worker
 * goes at once.
 */
#include "worker_internal.h"

static void say_leave(cw_worker *w, cw_outbox *out)
{
    Cw__Pb__Leave l = CW__PB__LEAVE__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    l.text = (char *)"this worker was told to stop";
    env.body_case = CW__PB__ENVELOPE__BODY_LEAVE, env.leave = &l;
    cw_send(out, w->co.link, &env, NULL, 0);
}

/* New calls are refused from now on, queued ones are finished. */
static void stop_serving(cw_worker *w, int64_t patience_us, cw_outbox *out)
{
    w->leaving = false;
    w->stopping = true;
    w->stop_us = w->now_us + patience_us;
    /* The coordinator first: it can tell edges while the queue is worked off. */
    coordinator_bye(w, "this worker is stopping", out);
}

void leave_begin(cw_worker *w, cw_outbox *out)
{
    if (w->stopping || w->leaving) {
        stop_serving(w, 0, out);
    } else if (!w->c.drain_ms || w->co.state != CO_ADMITTED) {
        stop_serving(w, DRAIN_US, out);
    } else {
        w->leaving = true;
        w->leave_until = w->now_us + (int64_t)w->c.drain_ms * 1000;
        worker_say(
            w,
            "leaving: the coordinator gives the experts here other homes (at most %u s; again to go at once)",
            w->c.drain_ms / 1000);
        say_leave(w, out);
    }
}

void leave_released(cw_worker *w, const char *text, cw_outbox *out)
{
    if (!w->leaving) return; /* nobody asked; staying is always safe */
    worker_say(w, "released: %.200s", text);
    stop_serving(w, DRAIN_US, out);
}

void leave_tick(cw_worker *w, cw_outbox *out)
{
    if (!w->leaving) return;
    if (w->co.state != CO_ADMITTED) {
        worker_say(w, "the coordinator is gone, not waiting for it");
        stop_serving(w, DRAIN_US, out);
    } else if (w->now_us >= w->leave_until) {
        worker_say(w, "some experts here have no other home yet, going all the same");
        stop_serving(w, DRAIN_US, out);
    }
}
