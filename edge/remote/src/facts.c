/* What a user, a status line or a test is told of the edge machine. */
#include <stdio.h>
#include <string.h>

#include "edge_internal.h"

void cw_edge_tell(cw_edge *e, const cw_edge_story *s)
{
    e->story = *s;
    e->story.mode[sizeof e->story.mode - 1] = 0;
}

static void why_not_covered(const cw_edge *e, const cw_edge_facts *f, uint32_t layer, uint32_t expert,
                            char *text, size_t cap)
{
    if (e->refused || !e->ticket_len || !f->n_workers) {
        snprintf(text, cap, "%.480s",
                 e->co.state == CO_ADMITTED ? "the coordinator knows no worker that is ready yet"
                                            : e->co.why);
        return;
    }
    const home *down = NULL;
    for (size_t i = 0; i < e->n_homes && !down; i++)
        if (e->homes[i]->in_epoch && e->homes[i]->state != HOME_UP) down = e->homes[i];
    if (down)
        snprintf(text, cap,
                 "%u of %u experts have no worker that can be reached; worker %.64s at %.120s: %.150s",
                 f->n_experts - f->n_homes, f->n_experts, down->name, down->address,
                 down->why[0] ? down->why : "not connected yet");
    else
        snprintf(text, cap,
                 "%u of %u experts are on no worker yet (the first is expert %u of layer %u): workers are "
                 "loading, or there are too few of them",
                 f->n_experts - f->n_homes, f->n_experts, expert, layer);
}

/* What is gone, for the user who looks at a cursor that does not move. */
static void why_waiting(const cw_edge *e, cw_edge_facts *f)
{
    for (const piece *p = e->homeless.head; p; p = p->next) {
        uint32_t layer = p->r->layer, expert = p->r->entries[p->index[0]].expert;
        f->waiting_us = e->now_us - p->since_us;
        if (p->busy) {
            snprintf(f->waiting, sizeof f->waiting, "waiting for room: the workers are busy");
            return;
        }
        const home *h = NULL;
        for (size_t i = 0; i < e->n_homes && !h; i++)
            if (home_holds(e, e->homes[i], layer, expert)) h = e->homes[i];
        if (h)
            snprintf(f->waiting, sizeof f->waiting,
                     "waiting for experts of layer %u: worker %.64s is gone (%.150s)", layer, h->name,
                     h->stopping ? "it is stopping"
                     : h->why[0] ? h->why
                                 : "not connected");
        else
            snprintf(
                f->waiting, sizeof f->waiting,
                "waiting for experts of layer %u: no worker has them now, the coordinator places them anew",
                layer);
        return;
    }
    for (size_t i = 0; i < e->n_homes; i++)
        if (e->homes[i]->hung && e->homes[i]->sent.head) {
            f->waiting_us = e->now_us - e->homes[i]->silent_since_us;
            snprintf(f->waiting, sizeof f->waiting, "waiting for worker %.64s, which does not answer",
                     e->homes[i]->name);
            return;
        }
}

void cw_edge_get_facts(const cw_edge *e, cw_edge_facts *out)
{
    uint32_t layer = 0, expert = 0;
    *out = (cw_edge_facts){.admitted = e->co.state == CO_ADMITTED,
                           .refused = e->refused,
                           .tide = e->tide.state,
                           .epoch_term = e->epoch_term,
                           .epoch_number = e->epoch_number,
                           .ticket_not_after_ms = e->ticket_len ? e->ticket_end_ms : 0,
                           .n = e->n};
    memcpy(out->model_name, e->model_name, sizeof out->model_name);
    for (size_t i = 0; i < e->n_homes; i++) {
        out->n_workers += e->homes[i]->in_epoch;
        out->n_up += e->homes[i]->state == HOME_UP;
    }
    out->n_homes = homes_covered(e, &out->n_experts, &layer, &expert);
    out->covered = out->n_homes == out->n_experts;
    if (!out->covered) why_not_covered(e, out, layer, expert, out->why, sizeof out->why);
    why_waiting(e, out);
}

cw_tide_state cw_edge_tide(const cw_edge *e)
{
    return e->tide.state;
}

bool cw_edge_get_worker(const cw_edge *e, uint32_t i, cw_edge_worker_facts *out)
{
    if (i >= e->n_homes) return false;
    const home *h = e->homes[i];
    *out = (cw_edge_worker_facts){.id = h->id,
                                  .up = h->state == HOME_UP,
                                  .calls = h->calls,
                                  .rows = h->rows,
                                  .bytes_out = h->bytes_out,
                                  .bytes_in = h->bytes_in,
                                  .rtt_us = h->rtt_us,
                                  .delay_us = (uint32_t)h->delay_us,
                                  .service_us = h->service_us,
                                  .service_sum_us = h->service_sum_us,
                                  .suspect = home_is_late(h),
                                  .barred = home_barred(e, h),
                                  .hedge_us = (uint32_t)late_after_us(e, h, 0),
                                  .bytes_per_s = (uint64_t)h->bytes_per_s};
    memcpy(out->name, h->name, sizeof out->name);
    memcpy(out->address, h->address, sizeof out->address);
    memcpy(out->why, h->why, sizeof out->why);
    return true;
}
