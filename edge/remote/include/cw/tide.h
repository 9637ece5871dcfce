/*
 * The tide: can the mainland be reached? A pure state machine of the link as a whole, with hysteresis.
 *
 *     online --nobody is connected, or nobody speaks--> suspect --it lasts--> offline
 *     suspect --somebody speaks--> online
 *     offline --every expert can be reached--> returning --that lasts--> online
 *     returning --it does not last--> offline
 *
 * Connectivity decides: connections, and words on them. A slow answer never does, as long as its worker
 * answers pings, and overload never does. A laptop that slept finds the clock far ahead: that says nothing of
 * the network, so every wait begins anew.
 *
 * An expert that a request has waited for in vain is a loss too: others that speak cannot give it.
 *
 * The waits: with all connections lost (reset, refused) CW_TIDE_CUT_US, long enough for a link that is made
 * anew at once; without a word on connections that look alive, CW_TIDE_SILENT_US. Each return that did not
 * last doubles the time the next one must hold before it is believed.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

typedef enum { CW_TIDE_ONLINE, CW_TIDE_SUSPECT, CW_TIDE_OFFLINE, CW_TIDE_RETURNING } cw_tide_state;
const char *cw_tide_name(cw_tide_state s); /* "online", ... */

enum {
    CW_TIDE_CUT_US = 120000,
    CW_TIDE_SILENT_US = 1200000,
    CW_TIDE_OPEN_US = 2000000, /* no connection yet since somebody asked */
    CW_TIDE_DOUBT_US = 400000, /* silence that makes it suspect */
    CW_TIDE_HOLD_US = 300000,  /* a return must hold for that long; doubled by each that did not last */
    CW_TIDE_HOLD_MOST_US = 20000000,
    CW_TIDE_LASTED_US = 10000000, /* online for that long: the return has lasted */
    CW_TIDE_SLEPT_US = 600000,    /* between two steps, of which there are ten a second: the machine slept */
};

/* What is seen now. */
typedef struct {
    int64_t now_us;
    bool wanted;      /* somebody asks, or asked a moment ago: connections are kept */
    bool waiting;     /* a request is open, so workers that do not answer are pinged */
    bool connected;   /* to a worker at least */
    bool covered;     /* every expert has a worker that was heard lately, and since the mainland was lost */
    int64_t heard_us; /* the last word of any worker */
} cw_tide_view;

typedef struct {
    cw_tide_state state;
    int64_t since_us; /* of the state */
    int64_t seen_us;  /* the last step; 0: none yet */
    int64_t base_us;  /* waits do not begin before */
    int64_t down_us;  /* no connection since; 0: there is one, or nobody asks */
    bool was_up;      /* there has been one since somebody asked */
    int64_t hold_us;
    uint32_t n_offline; /* times */
} cw_tide;

/* A new state? *wake_us: the time of the next step that could change something; INT64_MAX: none by time. */
bool cw_tide_step(cw_tide *t, const cw_tide_view *v, int64_t *wake_us);
/* A request found nobody for an expert, for as long as it may: offline, unless it is already. */
void cw_tide_lose(cw_tide *t, int64_t now_us);

/* Requests to the mainland make sense. */
static inline bool cw_tide_is_up(const cw_tide *t)
{
    return t->state == CW_TIDE_ONLINE || t->state == CW_TIDE_SUSPECT;
}
