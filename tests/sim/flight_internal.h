/* A flight from the inside: flight.c (the plan of days, one run), traveller.c (one edge and its answers),
 * weather.c (what happens to links and machines), flight_watch.c (what must hold). */
#pragma once
#include "cluster_internal.h"
#include "flight.h"

enum { FLIGHT_WORKERS = 5, KIOSKS = 2, HOLD_CHANGES = 34 };
#define SIM_MINUTE (60 * SIM_S)
#define SIM_HOUR   (60 * SIM_MINUTE)
#define SIM_DAY    (24 * SIM_HOUR)

typedef struct flight flight;

typedef struct {
    flight *f;
    sim_edge *e;
    bool kiosk, clock_stops; /* kiosks never sleep; what its clock does in a sleep */
    /* Awake, and on what. */
    bool visiting, asleep;
    int64_t awake_since, asleep_since, slept_us; /* simulated time; all of its sleep */
    int64_t visit_until;
    /* The answer under way: tokens left of it; 0: none. */
    uint32_t left, layer, missed, answer;
    bool by_fallback;
    int64_t said_us, asked_us;        /* simulated time */
    int64_t changed_us[HOLD_CHANGES]; /* awake time of the last changes of the speaker */
    uint32_t n_changes;
    int64_t lost_at; /* awake time when a request ended badly and the tide was up */
    bool timed_out;  /* it did, and only that */
    /* Truth. */
    int64_t bad_until;              /* its own link */
    int64_t dead_from, dead_until;  /* nothing passes in one direction at least */
    int64_t heard_us;               /* a worker's word came; awake time */
    int64_t none_since, some_since; /* no worker's link is up, or one is: awake time; 0: it is not so */
    int64_t none_before;            /* none_since before the present link */
    uint32_t up[MAX_WORKERS];       /* connections on which a worker said welcome; 0: none */
    /* The tide as it was seen, in awake time. */
    cw_tide_state tide;
    int64_t state_us, online_us, hold_us;
    bool was_lost;
} traveller;

struct flight {
    cluster *cl;
    traveller *t;
    flight_plan plan;
    flight_counts *counts;
    int64_t end, day_us, night_us;            /* night_us: of the night that comes */
    int64_t covered_since, coordinator_since; /* INT64_MAX: not now */
    int64_t coordinator_gone;
    int64_t crawl_until; /* a worker takes seconds for a call */
    uint32_t n_awake;
    bool quiet; /* nobody begins anything */
    uint64_t rest_bytes;
    int n_nights;
    sim_watcher watch, below; /* below: the cluster's */
};

static inline int64_t awake_time(const traveller *t)
{
    return sim_now(t->f->cl->s) - t->slept_us;
}
int64_t some_us(sim *s, int64_t from, int64_t to);

/* traveller.c */
void traveller_start(traveller *t); /* its process, for the first time or after a crash */
void traveller_ask(traveller *t, uint32_t tokens);
void traveller_sleep(traveller *t);
void traveller_wake(traveller *t);
void traveller_request_end(node_edge *e, node_request *q, const char *wrong);

/* weather.c */
void weather_for(traveller *t, int64_t until);
void weather_faults(flight *f);
void weather_slow(flight *f, int64_t us); /* workers, one or all */
bool weather_covered(const flight *f);

/* flight_watch.c */
sim_watcher flight_watch(flight *f);
void flight_look(flight *f); /* the truth about the cluster, now */
void flight_changed(traveller *t);
void flight_lost(traveller *t, const node_request *q); /* a request ended, and not well */
void flight_at_rest(flight *f);
void flight_reset_sight(traveller *t);
