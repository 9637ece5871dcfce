/*
 * The link to one source of chunks: the coordinator's store, or another worker's data port. Parts come in the
 * order they were asked for. What arrives is only counted and put in its place here.
 */
#include <stdio.h>
#include <string.h>

#include "cw/mem.h"
#include "fetch_internal.h"

static void send(const source *s, cw_msg_kind kind, void *body, cw_outbox *out)
{
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    env.body_case = kind, env.hello = body; /* a union of pointers */
    cw_send(out, s->link, &env, NULL, 0);
}

void link_open(cw_fetch *f, source *s, cw_outbox *out)
{
    s->link = CW_LINK_OUT | ++f->next_link;
    s->state = ST_OPENING;
    s->opened_us = f->now_us;
    cw_open(out, s->link, s->s.address, &s->s.key);
}

static void hello(cw_fetch *f, source *s, cw_outbox *out)
{
    Cw__Pb__Hello h = CW__PB__HELLO__INIT;
    h.proto_min = CW_PROTO_MIN, h.proto_max = CW_PROTO_MAX;
    h.software = (char *)"causeway " CW_VERSION;
    h.role = CW__PB__ROLE__ROLE_WORKER;
    h.purpose = is_store(f, s) ? CW__PB__PURPOSE__PURPOSE_STORE : CW__PB__PURPOSE__PURPOSE_DATA;
    h.name = f->c.name;
    h.arithmetic_id = f->c.arithmetic_id, h.fingerprint = f->c.fingerprint;
    h.instance = (ProtobufCBinaryData){CW_INSTANCE_BYTES, f->c.instance};
    if (!is_store(f, s)) {
        h.model_digest = (ProtobufCBinaryData){CW_DIGEST_BYTES, f->c.digest};
        h.ticket = (ProtobufCBinaryData){s->s.ticket_len, s->s.ticket};
    }
    send(s, CW__PB__ENVELOPE__BODY_HELLO, &h, out);
    s->state = ST_SAID;
}

/* Everything under way on the link is lost; what has arrived stays. */
static void lost(cw_fetch *f, source *s, const char *why)
{
    bool had = s->n_items != 0;
    s->state = ST_WAITING;
    s->link = 0;
    s->retry_us = f->now_us + cw_backoff_take(&s->backoff);
    s->n_open = s->n_useless = 0;
    if (had && !is_store(f, s))
        fetch_say(f, "worker \"%.64s\" at %.200s gives no chunks (%.120s): asking elsewhere", s->s.name,
                  s->s.address, why);
    else if (had && strcmp(s->why, why) != 0)
        fetch_say(f, "the store at %.200s broke off (%.120s): going on when it is back", s->s.address, why);
    snprintf(s->why, sizeof s->why, "%s", why);
    fetch_release(f, s, is_store(f, s));
}

void link_break(cw_fetch *f, source *s, const char *why, bool blame, cw_outbox *out)
{
    if (s->link && blame)
        cw_blame(out, s->link, why);
    else if (s->link)
        cw_close(out, s->link, why);
    lost(f, s, why);
}

/* Of the manifest one part is under way at a time, which `asked` beyond `got` says: its length is known with
 * its first part. */
bool link_ask(cw_fetch *f, source *s, cw_fetch_item *i, cw_outbox *out)
{
    size_t bytes = PART_BYTES;
    if (i->manifest && i->asked == i->got && (!i->len || i->got < i->len)) {
        Cw__Pb__ManifestGet m = CW__PB__MANIFEST_GET__INIT;
        m.offset = i->got;
        send(s, CW__PB__ENVELOPE__BODY_MANIFEST_GET, &m, out);
        i->asked = i->got + 1;
    } else if (!i->manifest && i->asked < i->len) {
        Cw__Pb__ChunkGet m = CW__PB__CHUNK_GET__INIT;
        if (i->len - i->asked < bytes) bytes = i->len - i->asked;
        m.chunk = i->chunk, m.offset = i->asked, m.length = (uint32_t)bytes;
        send(s, CW__PB__ENVELOPE__BODY_CHUNK_GET, &m, out);
        i->asked += bytes;
    } else {
        return false;
    }
    if (!s->n_open++) s->progress_us = f->now_us;
    if (f->rate) {
        if (f->free_us < f->now_us) f->free_us = f->now_us;
        f->free_us += (int64_t)((double)bytes * 1e6 / (double)f->rate);
    }
    return true;
}

/* Whether the three below return true: the answer was to something that is asked for here. */
static bool manifest_part(cw_fetch *f, source *s, const cw_msg *m, cw_outbox *out)
{
    const Cw__Pb__ManifestPart *p = m->env->manifest_part;
    const cw_frame *b = &m->frames[0];
    cw_fetch_item *i = fetch_find(f, s, true, 0);
    if (!i) return false;
    if (p->offset != i->got || p->total == 0 || p->total > f->c.manifest_max || b->len == 0 ||
        b->len > p->total - p->offset || (i->len && p->total != i->len)) {
        link_break(f, s, "it sent a part of the manifest that does not fit", true, out);
        return false;
    }
    if (!i->len) {
        i->dst = cw_realloc(NULL, (size_t)p->total, 1);
        if (!i->dst) {
            fetch_end_item(f, i, false, "out of memory for the manifest");
            return true;
        }
        i->len = (size_t)p->total;
    }
    memcpy(i->dst + i->got, b->data, b->len);
    i->got += b->len;
    i->asked = i->got;
    i->from |= 1;
    if (i->got == i->len) fetch_end_item(f, i, true, "");
    return true;
}

/* The store may answer short. A worker gives what was asked, or it could keep an item for hours, a byte at a
 * time. */
static bool chunk_part(cw_fetch *f, source *s, const cw_msg *m, cw_outbox *out)
{
    const Cw__Pb__ChunkPart *p = m->env->chunk_part;
    const cw_frame *b = &m->frames[0];
    cw_fetch_item *i = fetch_find(f, s, false, p->chunk);
    if (!i) return false;
    size_t left = i->len - i->got, whole = left < PART_BYTES ? left : PART_BYTES;
    if (p->total != i->len || p->offset != i->got || b->len == 0 || b->len > left ||
        (!is_store(f, s) && b->len != whole)) {
        if (!is_store(f, s)) s->bad_until_us = f->now_us + BAD_US;
        link_break(f, s, "it sent a part of a chunk that does not fit", true, out);
        return false;
    }
    memcpy(i->dst + i->got, b->data, b->len);
    i->got += b->len;
    i->from |= (uint64_t)1 << (s - f->sources);
    if (i->asked < i->got) i->asked = i->got;
    if (i->got == i->len) fetch_end_item(f, i, true, "");
    return true;
}

static bool store_fail(cw_fetch *f, source *s, const Cw__Pb__StoreFail *m)
{
    cw_fetch_item *i = fetch_find(f, s, false, m->chunk);
    if (!i) return false;
    snprintf(i->text, sizeof i->text, "%s cannot give chunk %u: %.300s",
             is_store(f, s) ? "the store" : "another worker", m->chunk, m->text);
    i->tried |= (uint64_t)1 << (s - f->sources);
    i->source = -1;
    i->asked = i->got;
    s->n_items--;
    return true;
}

/* A source that answers short is asked for the rest. Answers to what is not asked for any more are no
 * progress, and many of them in a row are no accident. */
static void after_part(cw_fetch *f, source *s, bool useful, cw_outbox *out)
{
    if (s->state != ST_UP) return;
    if (useful) {
        s->n_useless = 0;
        s->progress_us = f->progress_us = f->now_us;
    } else if (++s->n_useless > USELESS_MOST) {
        if (!is_store(f, s)) s->bad_until_us = f->now_us + BAD_US;
        link_break(f, s, "it answers what it was not asked", true, out);
        return;
    }
    if (s->n_open) s->n_open--;
    if (!s->n_open)
        for (cw_fetch_item *i = f->head; i; i = i->next)
            if (i->source == s - f->sources) i->asked = i->got;
    fetch_pump(f, out);
}

static void message(cw_fetch *f, source *s, const cw_msg *m, cw_outbox *out)
{
    char text[CW_TEXT_MAX];
    switch ((int)m->env->body_case) {
    case CW__PB__ENVELOPE__BODY_WELCOME:
        s->state = ST_UP;
        s->progress_us = s->idle_since_us = f->progress_us = f->now_us;
        s->why[0] = 0;
        cw_backoff_reset(&s->backoff);
        fetch_pump(f, out);
        break;
    case CW__PB__ENVELOPE__BODY_REFUSAL:
        snprintf(text, sizeof text, "it refused: %.400s", m->env->refusal->text);
        if (!is_store(f, s) && !m->env->refusal->retry_after_ms) s->bad_until_us = f->now_us + DOUBT_US;
        link_break(f, s, text, false, out);
        break;
    case CW__PB__ENVELOPE__BODY_MANIFEST_PART: after_part(f, s, manifest_part(f, s, m, out), out); break;
    case CW__PB__ENVELOPE__BODY_CHUNK_PART: after_part(f, s, chunk_part(f, s, m, out), out); break;
    case CW__PB__ENVELOPE__BODY_STORE_FAIL:
        after_part(f, s, store_fail(f, s, m->env->store_fail), out);
        break;
    case CW__PB__ENVELOPE__BODY_PING: {
        Cw__Pb__Pong p = CW__PB__PONG__INIT;
        p.t_us = m->env->ping->t_us, p.wall_ms = (uint64_t)f->wall_ms;
        send(s, CW__PB__ENVELOPE__BODY_PONG, &p, out);
        break;
    }
    case CW__PB__ENVELOPE__BODY_BYE: link_break(f, s, "it said goodbye", false, out); break;
    default: break;
    }
}

void link_event(cw_fetch *f, source *s, cw_event *ev, cw_outbox *out)
{
    if (ev->kind == CW_EV_LINK_UP)
        hello(f, s, out);
    else if (ev->kind == CW_EV_LINK_DOWN)
        lost(f, s, ev->text[0] ? ev->text : "the connection was lost");
    else
        message(f, s, ev->msg, out);
}

void link_tick(cw_fetch *f, source *s, cw_outbox *out)
{
    if (s->n_items && (s->state == ST_CLOSED || (s->state == ST_WAITING && f->now_us >= s->retry_us)))
        link_open(f, s, out);
    int64_t connect = is_store(f, s) ? CONNECT_US : STALL_US;
    int64_t stall = is_store(f, s) ? STORE_STALL_US : STALL_US;
    if ((s->state == ST_OPENING || s->state == ST_SAID) && f->now_us - s->opened_us > connect)
        link_break(f, s, "it does not answer", false, out);
    else if (s->state == ST_UP && s->n_open && f->now_us - s->progress_us > stall)
        link_break(f, s, "it has fallen silent", false, out);
    if (s->n_items) s->idle_since_us = f->now_us;
    if (s->state == ST_UP && f->now_us - s->idle_since_us > IDLE_US) {
        Cw__Pb__Bye b = CW__PB__BYE__INIT;
        b.text = (char *)"nothing more to get";
        send(s, CW__PB__ENVELOPE__BODY_BYE, &b, out);
        cw_close(out, s->link, "idle");
        s->link = 0;
        s->state = ST_CLOSED;
    }
}
