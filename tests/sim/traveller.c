/* One edge of a flight: it wakes, asks, is answered by one model or the other, and sleeps. See flight.h. */
#include "flight_internal.h"

enum { TOKEN_US = 20000, FALLBACK_US = 60000, COMPUTE_US = 300 };

static void token(void *ctx, void *arg, cw_outbox *out);

static void later(traveller *t, int64_t us)
{
    sim_after(t->f->cl->s, t->e->h.proc, us, token, t);
}

static void ask_layer(traveller *t, cw_outbox *out)
{
    uint32_t rows = 1 + t->missed;
    if (!node_edge_ask(&t->e->n, t->layer, rows < MAX_ROWS ? rows : MAX_ROWS, out))
        sim_fail(t->f->cl->s, "edge %d has no room for a request", t->e->n.index);
}

static void say(traveller *t, bool fallback)
{
    t->said_us = sim_now(t->f->cl->s);
    *(fallback ? &t->f->counts->by_fallback : &t->f->counts->by_main) += 1;
    if (--t->left) return;
    t->f->counts->answers++;
    t->by_fallback = false;
    t->missed = 0;
}

static void change(traveller *t, bool fallback)
{
    t->by_fallback = fallback;
    t->f->counts->changes++;
    flight_changed(t);
}

/* The next step of the answer: what the token loop does between two tokens, and the engine between layers. */
static void token(void *ctx, void *arg, cw_outbox *out)
{
    traveller *t = arg;
    (void)ctx;
    if (!t->left || node_edge_open(&t->e->n)) return;
    cw_tide_state tide = cw_edge_tide(t->e->n.m);
    if (t->by_fallback && (tide == CW_TIDE_ONLINE || tide == CW_TIDE_SUSPECT)) {
        change(t, false);
        t->layer = 1;
    }
    if (!t->by_fallback) {
        ask_layer(t, out);
        return;
    }
    cw_edge_want(t->e->n.m, host_now(t->e->n.h),
                 out); /* as the shell does for whoever waits for the return */
    t->missed++;
    say(t, true);
    if (t->left) later(t, FALLBACK_US);
}

void traveller_request_end(node_edge *e, node_request *q, const char *wrong)
{
    sim_edge *owner = e->owner;
    traveller *t = owner->traveller;
    sim *s = t->f->cl->s;
    if (wrong) sim_fail(s, "edge %d got a wrong row: %s", e->index, wrong);
    if (q->r.status == CW_OK) {
        if (t->layer < LAYERS - 1) {
            t->layer++;
            later(t, COMPUTE_US);
            return;
        }
        t->layer = 1;
        t->missed = 0;
        say(t, false);
        if (t->left) later(t, TOKEN_US);
        return;
    }
    flight_lost(t, q);
    change(t, true);
    later(t, FALLBACK_US);
}

static void begin(void *ctx, void *arg, cw_outbox *out)
{
    traveller *t = arg;
    if (t->left || t->f->quiet) return;
    t->left = t->answer;
    t->layer = 1;
    t->missed = sim_below(t->f->cl->s, MAX_ROWS); /* the prompt */
    t->asked_us = t->said_us = sim_now(t->f->cl->s);
    token(ctx, t, out);
}

void traveller_ask(traveller *t, uint32_t tokens)
{
    t->answer = tokens;
    sim_after(t->f->cl->s, t->e->h.proc, 0, begin, t);
}

/* Open requests and what was being said die with a process. */
void traveller_start(traveller *t)
{
    sim *s = t->f->cl->s;
    t->left = t->missed = 0;
    t->by_fallback = false;
    t->asleep = false;
    t->awake_since = sim_now(s);
    flight_reset_sight(t);
    edge_start(t->e);
}

void traveller_sleep(traveller *t)
{
    sim *s = t->f->cl->s;
    if (t->asleep || !sim_is_up(s, t->e->h.proc)) return;
    sim_sleep(s, t->e->h.proc, 30 * SIM_DAY, t->clock_stops);
    t->asleep = true;
    t->asleep_since = sim_now(s);
    t->f->n_awake--;
    t->f->counts->sleeps++;
}

void traveller_wake(traveller *t)
{
    sim *s = t->f->cl->s;
    if (!t->asleep) return;
    t->asleep = false;
    t->awake_since = sim_now(s);
    t->slept_us += sim_now(s) - t->asleep_since;
    t->f->counts->slept_s += (sim_now(s) - t->asleep_since) / SIM_S;
    if (++t->f->n_awake > t->f->counts->most_awake) t->f->counts->most_awake = t->f->n_awake;
    sim_wake(s, t->e->h.proc);
}
