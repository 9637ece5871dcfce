/*
 * The items to be fetched, and who is asked for which; see cw/fetch_machine.h. An item is asked for at one
 * source at a time: the one with the fewest items, workers before the coordinator, whose store all others of
 * the cluster need too.
 */
#include "cw/fetch_machine.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cw/mem.h"
#include "fetch_internal.h"

static void backoff_of(source *s, uint64_t seed)
{
    s->backoff = (cw_backoff){.first_us = 100000, .most_us = 5000000, .random = seed};
}

cw_status cw_fetch_new(const cw_fetch_config *c, cw_fetch **out, cw_err *err)
{
    cw_fetch *f = cw_calloc(1, sizeof *f);
    if (!f) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the store link");
    f->c = *c;
    if (!f->c.patience_us) f->c.patience_us = 30000000;
    source *s = &f->sources[0];
    s->used = c->address[0] != 0;
    snprintf(s->s.address, sizeof s->s.address, "%s", c->address);
    s->s.key = c->key;
    backoff_of(s, c->seed);
    snprintf(s->why, sizeof s->why, "not connected yet");
    *out = f;
    return CW_OK;
}

void cw_fetch_free(cw_fetch **f)
{
    if (!f || !*f) return;
    cw_free(*f);
    *f = NULL;
}

void fetch_say(cw_fetch *f, const char *fmt, ...)
{
    if (f->n_says == SAYS) return; /* nobody reads; the first lines tell most */
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->says[(f->first_say + f->n_says++) % SAYS], CW_TEXT_MAX, fmt, ap);
    va_end(ap);
}

bool cw_fetch_take_say(cw_fetch *f, char text[CW_TEXT_MAX])
{
    if (!f->n_says) return false;
    memcpy(text, f->says[f->first_say], CW_TEXT_MAX);
    f->first_say = (f->first_say + 1) % SAYS;
    f->n_says--;
    return true;
}

void fetch_end_item(cw_fetch *f, cw_fetch_item *item, bool ok, const char *text)
{
    cw_fetch_item *before = NULL;
    for (cw_fetch_item *i = f->head; i != item; i = i->next) before = i;
    if (before)
        before->next = item->next;
    else
        f->head = item->next;
    if (f->tail == item) f->tail = before;
    if (item->source >= 0) f->sources[item->source].n_items--;
    item->source = -1;
    item->ok = ok;
    if (text != item->text) snprintf(item->text, sizeof item->text, "%s", text);
    item->next = f->done;
    f->done = item;
}

cw_fetch_item *cw_fetch_take_done(cw_fetch *f)
{
    cw_fetch_item *i = f->done;
    if (i) f->done = i->next;
    return i;
}

cw_fetch_item *fetch_find(cw_fetch *f, const source *s, bool manifest, uint32_t chunk)
{
    for (cw_fetch_item *i = f->head; i; i = i->next)
        if (i->source == s - f->sources && i->manifest == manifest && (manifest || i->chunk == chunk))
            return i;
    return NULL;
}

void fetch_release(cw_fetch *f, const source *s, bool again)
{
    int n = (int)(s - f->sources);
    for (cw_fetch_item *i = f->head; i; i = i->next) {
        if (i->source != n) continue;
        i->source = -1;
        i->asked = i->got;
        if (!again) i->tried |= (uint64_t)1 << n;
        f->sources[n].n_items--;
    }
}

/* -1: nobody now; *never: nor later. */
static int choose(const cw_fetch *f, const cw_fetch_item *i, bool *never)
{
    int best = -1;
    bool store_away = false;
    *never = true;
    for (int n = 0; n < (i->manifest ? 1 : CW_FETCH_SOURCES); n++) {
        const source *s = &f->sources[n];
        if (!s->used || ((i->tried | i->avoid) >> n & 1)) continue;
        /* A worker that cannot be asked now is as if it were not there; the coordinator is waited for. */
        bool away = s->state == ST_WAITING && f->now_us < s->retry_us;
        if (n && (away || f->now_us < s->bad_until_us)) continue;
        *never = false;
        if (s->n_items >= ITEMS_AT_ONCE) continue;
        if (n == 0) store_away = away;
        bool better = best == 0 ? store_away || s->n_items <= f->sources[0].n_items
                                : best < 0 || s->n_items < f->sources[best].n_items;
        if (better) best = n;
    }
    return best;
}

static void hand_out(cw_fetch *f, cw_outbox *out)
{
    for (cw_fetch_item *i = f->head, *next; i; i = next) {
        next = i->next;
        if (i->source >= 0) continue;
        bool never;
        int n = choose(f, i, &never);
        if (never) {
            fetch_end_item(f, i, false, i->text[0] ? i->text : "nobody is known who could give it");
            continue;
        }
        if (n < 0) continue;
        i->source = n;
        f->sources[n].n_items++;
        if (f->sources[n].state == ST_CLOSED) link_open(f, &f->sources[n], out);
    }
}

void fetch_pump(cw_fetch *f, cw_outbox *out)
{
    hand_out(f, out);
    for (cw_fetch_item *i = f->head; i; i = i->next) {
        if (i->source < 0) continue;
        source *s = &f->sources[i->source];
        while (s->state == ST_UP && s->n_open < PARTS_AHEAD) {
            if (f->rate && f->now_us < f->free_us) {
                cw_outbox_wake(out, f->free_us);
                return;
            }
            if (!link_ask(f, s, i, out)) break;
        }
    }
}

static void give_up(cw_fetch *f, cw_outbox *out)
{
    const source *s = &f->sources[0];
    char text[CW_TEXT_MAX];
    snprintf(text, sizeof text, "nothing came from the store at %.200s for %d s: %.200s", s->s.address,
             (int)(f->c.patience_us / 1000000), s->why[0] ? s->why : "it has fallen silent");
    while (f->head) fetch_end_item(f, f->head, false, text);
    for (int n = 0; n < CW_FETCH_SOURCES; n++)
        if (f->sources[n].link) link_break(f, &f->sources[n], "silent", false, out);
}

static void tick(cw_fetch *f, cw_outbox *out)
{
    for (int n = 0; n < CW_FETCH_SOURCES; n++)
        if (f->sources[n].used) link_tick(f, &f->sources[n], out);
    if (f->head && f->now_us - f->progress_us > f->c.patience_us) give_up(f, out);
    fetch_pump(f, out);
}

void cw_fetch_event(cw_fetch *f, cw_event *ev, cw_outbox *out)
{
    f->now_us = ev->now_us;
    f->wall_ms = ev->wall_ms;
    if (ev->kind == CW_EV_TICK) {
        tick(f, out);
        return;
    }
    for (int n = 0; n < CW_FETCH_SOURCES; n++)
        if (f->sources[n].link && f->sources[n].link == ev->link) {
            link_event(f, &f->sources[n], ev, out);
            return;
        }
}

void cw_fetch_get(cw_fetch *f, cw_fetch_item *item, int64_t now_us, cw_outbox *out)
{
    f->now_us = now_us;
    item->next = NULL;
    item->asked = item->got = 0;
    item->source = -1;
    item->tried = item->from = 0;
    item->ok = false;
    item->text[0] = 0;
    if (item->manifest) item->dst = NULL, item->len = 0;
    if (!f->head) f->progress_us = now_us; /* patience begins with the first item */
    if (f->tail)
        f->tail->next = item;
    else
        f->head = item;
    f->tail = item;
    fetch_pump(f, out);
}

void cw_fetch_add_source(cw_fetch *f, const cw_fetch_source *x, int64_t now_us)
{
    int to = -1;
    for (int n = 1; n < CW_FETCH_SOURCES; n++) {
        source *s = &f->sources[n];
        if (s->used && cw_key_equal(&s->s.key, &x->key)) {
            to = n;
            break;
        }
        if (s->n_items || s->link) continue;
        if (to < 0 || (f->sources[to].used && (!s->used || s->heard_us < f->sources[to].heard_us))) to = n;
    }
    if (to < 0) return; /* all are in use: there are enough */
    source *s = &f->sources[to];
    bool same = s->used && cw_key_equal(&s->s.key, &x->key);
    if (!same) {
        *s = (source){.used = true};
        backoff_of(s, f->c.seed + (uint64_t)to);
        /* Bits of the one that was here before mean nothing any more. */
        for (cw_fetch_item *i = f->head; i; i = i->next) i->tried &= ~((uint64_t)1 << to);
    }
    s->s = *x;
    s->heard_us = now_us;
}

void cw_fetch_distrust(cw_fetch *f, uint64_t bits, int64_t now_us, cw_outbox *out)
{
    f->now_us = now_us;
    bits &= ~(uint64_t)1; /* the coordinator's word is the hash itself */
    bool alone = bits && !(bits & (bits - 1));
    for (int n = 1; n < CW_FETCH_SOURCES; n++) {
        source *s = &f->sources[n];
        if (!(bits >> n & 1) || !s->used) continue;
        fetch_say(
            f, "worker \"%.64s\" at %.200s %s bytes that are not the chunk: it is not asked for %d minutes",
            s->s.name, s->s.address, alone ? "sent" : "or another one sent",
            (alone ? BAD_US : DOUBT_US) / 60000000);
        s->bad_until_us = now_us + (alone ? BAD_US : DOUBT_US);
        if (s->link) {
            cw_close(out, s->link, "wrong bytes");
            s->link = 0;
        }
        s->state = ST_CLOSED;
        s->n_open = 0;
        fetch_release(f, s, false);
    }
}

void cw_fetch_set_rate(cw_fetch *f, uint64_t bytes_per_s)
{
    f->rate = bytes_per_s;
    if (!bytes_per_s) f->free_us = 0;
}
