/* The inside of the fetch machine: fetch.c (items, who is asked for which), fetch_link.c (the link to one
 * source). */
#pragma once
#include "cw/backoff.h"
#include "cw/fetch_machine.h"

enum {
    PARTS_AHEAD = 8, /* asked for on a link and not here */
    PART_BYTES =
        128 << 10,     /* what a call may have to wait for in the I/O thread of a worker that gives chunks */
    ITEMS_AT_ONCE = 4, /* of one source */
    IDLE_US = 30000000,
    CONNECT_US = 10000000,
    STALL_US = 3000000,        /* a worker that owes parts and sends nothing */
    STORE_STALL_US = 10000000, /* the coordinator */
    BAD_US = 600000000,        /* not asked after wrong bytes from it alone */
    DOUBT_US = 60000000,       /* from it among others */
    SAYS = 8,
    USELESS_MOST = 64, /* answers in a row that bring nothing; those to an item given up are fewer */
};

typedef enum { ST_CLOSED, ST_OPENING, ST_SAID, ST_UP, ST_WAITING } link_state;

typedef struct {
    bool used;
    cw_fetch_source s; /* source 0: no ticket */
    link_state state;
    cw_link link;
    int64_t retry_us, opened_us, progress_us, idle_since_us, bad_until_us, heard_us;
    cw_backoff backoff;
    uint32_t n_open;    /* parts asked for and not here */
    uint32_t n_items;   /* that are asked for here now */
    uint32_t n_useless; /* answers since the last one that was wanted */
    char why[CW_TEXT_MAX];
} source;

struct cw_fetch {
    cw_fetch_config c;
    source sources[CW_FETCH_SOURCES];
    uint64_t next_link;
    int64_t now_us, wall_ms, progress_us, free_us;
    uint64_t rate;
    cw_fetch_item *head, *tail, *done;
    char says[SAYS][CW_TEXT_MAX];
    uint32_t first_say, n_says;
};

static inline bool is_store(const cw_fetch *f, const source *s)
{
    return s == &f->sources[0];
}

/* fetch.c */
void fetch_say(cw_fetch *f, const char *fmt, ...) CW_PRINTF(2, 3);
void fetch_end_item(cw_fetch *f, cw_fetch_item *item, bool ok, const char *text);
/* Takes the source's items away from it; a worker is not asked for them again. */
void fetch_release(cw_fetch *f, const source *s, bool again);
void fetch_pump(cw_fetch *f, cw_outbox *out);
cw_fetch_item *fetch_find(cw_fetch *f, const source *s, bool manifest, uint32_t chunk);

/* fetch_link.c */
void link_open(cw_fetch *f, source *s, cw_outbox *out);
bool link_ask(cw_fetch *f, source *s, cw_fetch_item *i, cw_outbox *out); /* false: nothing more to ask for */
void link_tick(cw_fetch *f, source *s, cw_outbox *out);
void link_break(cw_fetch *f, source *s, const char *why, bool blame, cw_outbox *out);
void link_event(cw_fetch *f, source *s, cw_event *ev, cw_outbox *out);
