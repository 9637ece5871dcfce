/* The link as a whole; see cw/tide.h. Pure: the edge machine steps it after every event. */
#include "cw/tide.h"

const char *cw_tide_name(cw_tide_state s)
{
    static const char *const names[] = {"online", "suspect", "offline", "returning"};
    return names[s];
}

static bool become(cw_tide *t, cw_tide_state s, int64_t now_us)
{
    t->state = s;
    t->since_us = now_us;
    return true;
}

/* How long the mainland has been out of reach in either way, against how long that may last; 0 or more: it
 * is lost. INT64_MIN: nothing is wrong. */
static int64_t overdue(const cw_tide *t, const cw_tide_view *v)
{
    if (!v->wanted) return INT64_MIN;
    if (t->down_us) return v->now_us - t->down_us - (t->was_up ? CW_TIDE_CUT_US : CW_TIDE_OPEN_US);
    if (!v->waiting) return INT64_MIN;
    int64_t heard = v->heard_us > t->base_us ? v->heard_us : t->base_us;
    return v->now_us - heard - CW_TIDE_SILENT_US;
}

static void look_at_connections(cw_tide *t, const cw_tide_view *v)
{
    if (!v->wanted) {
        t->down_us = 0;
        t->was_up = false;
    } else if (v->connected) {
        t->down_us = 0;
        t->was_up = true;
    } else if (!t->down_us) {
        t->down_us = v->now_us;
    }
}

/* Words were not waited for before somebody asked, and nobody spoke while the machine slept. */
static void look_at_time(cw_tide *t, const cw_tide_view *v)
{
    bool slept = t->seen_us && v->now_us - t->seen_us > CW_TIDE_SLEPT_US;
    if (slept && t->down_us) t->down_us = v->now_us;
    if (slept || !v->waiting) t->base_us = v->now_us;
    if (slept && t->state == CW_TIDE_RETURNING) t->since_us = v->now_us;
    t->seen_us = v->now_us;
}

static void lose(cw_tide *t, int64_t now_us)
{
    bool lasted =
        t->n_offline == 0 || (t->state != CW_TIDE_RETURNING && now_us - t->since_us > CW_TIDE_LASTED_US);
    t->hold_us = lasted || !t->hold_us ? CW_TIDE_HOLD_US : 2 * t->hold_us;
    if (t->hold_us > CW_TIDE_HOLD_MOST_US) t->hold_us = CW_TIDE_HOLD_MOST_US;
    t->n_offline++;
    become(t, CW_TIDE_OFFLINE, now_us);
}

void cw_tide_lose(cw_tide *t, int64_t now_us)
{
    if (cw_tide_is_up(t)) lose(t, now_us);
}

bool cw_tide_step(cw_tide *t, const cw_tide_view *v, int64_t *wake_us)
{
    look_at_time(t, v);
    look_at_connections(t, v);
    *wake_us = INT64_MAX;
    int64_t late = overdue(t, v);
    bool doubt = late != INT64_MIN && (t->down_us || late > CW_TIDE_DOUBT_US - CW_TIDE_SILENT_US);
    switch (t->state) {
    case CW_TIDE_ONLINE:
        if (late != INT64_MIN)
            *wake_us = v->now_us + (doubt ? 1 : CW_TIDE_DOUBT_US - CW_TIDE_SILENT_US - late + 1);
        if (!doubt) return false;
        /* The time of the last return counts in the suspicion too. */
        t->state = CW_TIDE_SUSPECT;
        if (late >= 0)
            lose(t, v->now_us);
        else
            *wake_us = v->now_us - late;
        return true;
    case CW_TIDE_SUSPECT:
        if (!doubt) {
            t->state = CW_TIDE_ONLINE;
            return true;
        }
        if (late < 0) {
            *wake_us = v->now_us - late;
            return false;
        }
        lose(t, v->now_us);
        return true;
    case CW_TIDE_OFFLINE:
        if (!v->covered) return false;
        *wake_us = v->now_us + t->hold_us;
        return become(t, CW_TIDE_RETURNING, v->now_us);
    case CW_TIDE_RETURNING:
        if (!v->covered) {
            lose(t, v->now_us);
            return true;
        }
        if (v->now_us - t->since_us < t->hold_us) {
            *wake_us = t->since_us + t->hold_us;
            return false;
        }
        t->base_us = v->now_us;
        return become(t, CW_TIDE_ONLINE, v->now_us);
    }
    return false;
}
