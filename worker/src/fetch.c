/*
 * The store link; see cw/fetch_machine.h. A few parts are asked for ahead, in order of items and offsets; the
 * store answers in that order on one connection. What arrives is only counted here: whether the bytes are
 * right is checked by their hash.
 */
#include "cw/fetch_machine.h"

#include <stdio.h>
#include <string.h>

#include "cw/backoff.h"
#include "cw/mem.h"

enum { PARTS_AHEAD = 8, PART_BYTES = 256 << 10, IDLE_US = 30000000, CONNECT_US = 10000000 };

typedef enum { ST_CLOSED, ST_OPENING, ST_SAID, ST_UP, ST_WAITING } store_state;

struct cw_fetch {
    cw_fetch_config c;
    store_state state;
    cw_link link;
    uint64_t next_link;
    int64_t now_us, wall_ms, retry_us, opened_us, progress_us, idle_since_us;
    cw_backoff backoff;
    uint32_t n_open; /* parts asked for and not here */
    cw_fetch_item *head, *tail, *done;
    char why[CW_TEXT_MAX];
};

cw_status cw_fetch_new(const cw_fetch_config *c, cw_fetch **out, cw_err *err)
{
    cw_fetch *f = cw_calloc(1, sizeof *f);
    if (!f) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the store link");
    f->c = *c;
    if (!f->c.patience_us) f->c.patience_us = 30000000;
    f->backoff = (cw_backoff){.first_us = 100000, .most_us = 5000000, .random = c->seed};
    snprintf(f->why, sizeof f->why, "not connected yet");
    *out = f;
    return CW_OK;
}

void cw_fetch_free(cw_fetch **f)
{
    if (!f || !*f) return;
    cw_free(*f);
    *f = NULL;
}

static void end_item(cw_fetch *f, cw_fetch_item *item, bool ok, const char *text)
{
    cw_fetch_item *before = NULL;
    for (cw_fetch_item *i = f->head; i != item; i = i->next) before = i;
    if (before)
        before->next = item->next;
    else
        f->head = item->next;
    if (f->tail == item) f->tail = before;
    item->ok = ok;
    snprintf(item->text, sizeof item->text, "%s", text);
    item->next = f->done;
    f->done = item;
    if (!f->head) f->idle_since_us = f->now_us;
}

cw_fetch_item *cw_fetch_take_done(cw_fetch *f)
{
    cw_fetch_item *i = f->done;
    if (i) f->done = i->next;
    return i;
}

static void send(cw_fetch *f, cw_msg_kind kind, void *body, cw_outbox *out)
{
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    env.body_case = kind, env.hello = body; /* a union of pointers */
    cw_send(out, f->link, &env, NULL, 0);
}

/* Asks for the item's next part. The manifest's length is known with its first part; of it one part is under
 * way at a time, which `asked` beyond `got` says. */
static bool ask(cw_fetch *f, cw_fetch_item *i, cw_outbox *out)
{
    if (i->manifest && i->asked == i->got && (!i->len || i->got < i->len)) {
        Cw__Pb__ManifestGet m = CW__PB__MANIFEST_GET__INIT;
        m.offset = i->got;
        send(f, CW__PB__ENVELOPE__BODY_MANIFEST_GET, &m, out);
        i->asked = i->got + 1;
    } else if (!i->manifest && i->asked < i->len) {
        Cw__Pb__ChunkGet m = CW__PB__CHUNK_GET__INIT;
        m.chunk = i->chunk, m.offset = i->asked;
        m.length = (uint32_t)(i->len - i->asked < PART_BYTES ? i->len - i->asked : PART_BYTES);
        send(f, CW__PB__ENVELOPE__BODY_CHUNK_GET, &m, out);
        i->asked += m.length;
    } else {
        return false;
    }
    f->n_open++;
    return true;
}

static void pump(cw_fetch *f, cw_outbox *out)
{
    if (f->state != ST_UP) return;
    for (cw_fetch_item *i = f->head; i && f->n_open < PARTS_AHEAD; i = i->next)
        while (f->n_open < PARTS_AHEAD && ask(f, i, out)) {
        }
}

/* Everything under way is lost; what has arrived stays. */
static void lost(cw_fetch *f, const char *why, int64_t pause_us)
{
    f->state = ST_WAITING;
    f->link = 0;
    f->retry_us = f->now_us + pause_us;
    f->n_open = 0;
    snprintf(f->why, sizeof f->why, "%s", why);
    for (cw_fetch_item *i = f->head; i; i = i->next) i->asked = i->got;
}

static void break_off(cw_fetch *f, const char *why, bool blame, cw_outbox *out)
{
    if (blame)
        cw_blame(out, f->link, why);
    else
        cw_close(out, f->link, why);
    lost(f, why, cw_backoff_take(&f->backoff));
}

static void hello(cw_fetch *f, cw_outbox *out)
{
    Cw__Pb__Hello h = CW__PB__HELLO__INIT;
    h.proto_min = CW_PROTO_MIN, h.proto_max = CW_PROTO_MAX;
    h.software = (char *)"causeway " CW_VERSION;
    h.role = CW__PB__ROLE__ROLE_WORKER, h.purpose = CW__PB__PURPOSE__PURPOSE_STORE;
    h.name = f->c.name;
    h.arithmetic_id = f->c.arithmetic_id, h.fingerprint = f->c.fingerprint;
    h.instance = (ProtobufCBinaryData){CW_INSTANCE_BYTES, f->c.instance};
    send(f, CW__PB__ENVELOPE__BODY_HELLO, &h, out);
    f->state = ST_SAID;
}

static cw_fetch_item *find(cw_fetch *f, bool manifest, uint32_t chunk)
{
    cw_fetch_item *i = f->head;
    while (i && (i->manifest != manifest || (!manifest && i->chunk != chunk))) i = i->next;
    return i;
}

static void manifest_part(cw_fetch *f, const cw_msg *m, cw_outbox *out)
{
    const Cw__Pb__ManifestPart *p = m->env->manifest_part;
    const cw_frame *b = &m->frames[0];
    cw_fetch_item *i = find(f, true, 0);
    if (!i) return;
    if (p->offset != i->got || p->total == 0 || p->total > f->c.manifest_max || b->len == 0 ||
        b->len > p->total - p->offset || (i->len && p->total != i->len)) {
        break_off(f, "the store sent a part of the manifest that does not fit", true, out);
        return;
    }
    if (!i->len) {
        i->dst = cw_realloc(NULL, (size_t)p->total, 1);
        if (!i->dst) {
            end_item(f, i, false, "out of memory for the manifest");
            return;
        }
        i->len = (size_t)p->total;
    }
    memcpy(i->dst + i->got, b->data, b->len);
    i->got += b->len;
    i->asked = i->got;
    if (i->got == i->len) end_item(f, i, true, "");
}

static void chunk_part(cw_fetch *f, const cw_msg *m, cw_outbox *out)
{
    const Cw__Pb__ChunkPart *p = m->env->chunk_part;
    const cw_frame *b = &m->frames[0];
    cw_fetch_item *i = find(f, false, p->chunk);
    if (!i) return;
    if (p->total != i->len || p->offset != i->got || b->len == 0 || b->len > i->len - i->got) {
        break_off(f, "the store sent a part of a chunk that does not fit", true, out);
        return;
    }
    memcpy(i->dst + i->got, b->data, b->len);
    i->got += b->len;
    if (i->asked < i->got) i->asked = i->got;
    if (i->got == i->len) end_item(f, i, true, "");
}

/* Parts come in the order they were asked for; a store that answers short is asked for the rest. */
static void after_part(cw_fetch *f, cw_outbox *out)
{
    if (f->state != ST_UP) return;
    f->progress_us = f->now_us;
    if (f->n_open) f->n_open--;
    if (!f->n_open)
        for (cw_fetch_item *i = f->head; i; i = i->next) i->asked = i->got;
    pump(f, out);
}

static void message(cw_fetch *f, const cw_msg *m, cw_outbox *out)
{
    char text[CW_TEXT_MAX];
    cw_fetch_item *i;
    switch ((int)m->env->body_case) {
    case CW__PB__ENVELOPE__BODY_WELCOME:
        f->state = ST_UP;
        f->progress_us = f->now_us;
        cw_backoff_reset(&f->backoff);
        pump(f, out);
        break;
    case CW__PB__ENVELOPE__BODY_REFUSAL:
        snprintf(text, sizeof text, "the store refused: %.400s", m->env->refusal->text);
        break_off(f, text, false, out);
        break;
    case CW__PB__ENVELOPE__BODY_MANIFEST_PART:
        manifest_part(f, m, out);
        after_part(f, out);
        break;
    case CW__PB__ENVELOPE__BODY_CHUNK_PART:
        chunk_part(f, m, out);
        after_part(f, out);
        break;
    case CW__PB__ENVELOPE__BODY_STORE_FAIL:
        i = find(f, false, m->env->store_fail->chunk);
        snprintf(text, sizeof text, "the store cannot give chunk %u: %.400s", m->env->store_fail->chunk,
                 m->env->store_fail->text);
        if (i) end_item(f, i, false, text);
        after_part(f, out);
        break;
    case CW__PB__ENVELOPE__BODY_PING: {
        Cw__Pb__Pong p = CW__PB__PONG__INIT;
        p.t_us = m->env->ping->t_us, p.wall_ms = (uint64_t)f->wall_ms;
        send(f, CW__PB__ENVELOPE__BODY_PONG, &p, out);
        break;
    }
    case CW__PB__ENVELOPE__BODY_BYE: break_off(f, "the store said goodbye", false, out); break;
    default: break;
    }
}

static void open_link(cw_fetch *f, cw_outbox *out)
{
    f->link = CW_LINK_OUT | ++f->next_link;
    f->state = ST_OPENING;
    f->opened_us = f->now_us;
    cw_open(out, f->link, f->c.address, &f->c.key);
}

static void tick(cw_fetch *f, cw_outbox *out)
{
    if (f->head && (f->state == ST_CLOSED || (f->state == ST_WAITING && f->now_us >= f->retry_us)))
        open_link(f, out);
    if ((f->state == ST_OPENING || f->state == ST_SAID) && f->now_us - f->opened_us > CONNECT_US)
        break_off(f, "the store does not answer", false, out);
    if (f->head && f->now_us - f->progress_us > f->c.patience_us) {
        char text[CW_TEXT_MAX];
        snprintf(text, sizeof text, "nothing came from the store at %.200s for %d s: %.200s", f->c.address,
                 (int)(f->c.patience_us / 1000000), f->state == ST_UP ? "it has fallen silent" : f->why);
        while (f->head) end_item(f, f->head, false, text);
        if (f->link) break_off(f, "silent", false, out);
    }
    if (!f->head && f->state == ST_UP && f->now_us - f->idle_since_us > IDLE_US) {
        Cw__Pb__Bye b = CW__PB__BYE__INIT;
        b.text = (char *)"nothing more to get";
        send(f, CW__PB__ENVELOPE__BODY_BYE, &b, out);
        cw_close(out, f->link, "idle");
        f->link = 0;
        f->state = ST_CLOSED;
    }
}

void cw_fetch_event(cw_fetch *f, cw_event *ev, cw_outbox *out)
{
    f->now_us = ev->now_us;
    f->wall_ms = ev->wall_ms;
    if (ev->kind == CW_EV_TICK) {
        tick(f, out);
        return;
    }
    if (ev->link != f->link || !f->link) return;
    if (ev->kind == CW_EV_LINK_UP)
        hello(f, out);
    else if (ev->kind == CW_EV_LINK_DOWN)
        lost(f, ev->text[0] ? ev->text : "the connection was lost", cw_backoff_take(&f->backoff));
    else
        message(f, ev->msg, out);
}

void cw_fetch_get(cw_fetch *f, cw_fetch_item *item, int64_t now_us, cw_outbox *out)
{
    f->now_us = now_us;
    item->next = NULL;
    item->asked = item->got = 0;
    item->ok = false;
    if (item->manifest) item->dst = NULL, item->len = 0;
    if (!f->head) f->progress_us = now_us; /* patience begins with the first item */
    if (f->tail)
        f->tail->next = item;
    else
        f->head = item;
    f->tail = item;
    if (f->state == ST_CLOSED) open_link(f, out);
    pump(f, out);
}
