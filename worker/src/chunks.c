/*
 * Giving chunks to other workers, out of the copy on disk or the local model file, so that a growing cluster
 * does not hang on one coordinator's disk and link. Requests wait here, as requests and not as bytes; one is
 * read at a time, by a thread of the shell, and all that is given stays under a rate while calls are served.
 */
#include <stdio.h>
#include <string.h>

#include "cw/mem.h"
#include "worker_internal.h"

static void answer_fail(cw_link link, uint32_t chunk, const char *text, cw_outbox *out)
{
    Cw__Pb__StoreFail m = CW__PB__STORE_FAIL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    m.chunk = chunk, m.text = (char *)(uintptr_t)text;
    env.body_case = CW__PB__ENVELOPE__BODY_STORE_FAIL, env.store_fail = &m;
    cw_send(out, link, &env, NULL, 0);
}

/* NULL: fine. Else the peer is to be cut for it. */
const char *chunks_ask(cw_worker *w, peer *p, const Cw__Pb__ChunkGet *m, cw_outbox *out)
{
    if (!p->admitted || !p->is_worker) return "a request for a chunk from an edge";
    if (!w->c.gives_chunks) {
        answer_fail(p->link, m->chunk, "this worker keeps no chunks", out);
        return NULL;
    }
    if (!p->wants && !(p->wants = cw_calloc(1, sizeof *p->wants))) {
        answer_fail(p->link, m->chunk, "this worker is out of memory", out);
        return NULL;
    }
    chunk_wants *q = p->wants;
    if (q->n == CHUNK_WANTS_MAX) return "more requests for chunks open than are allowed";
    q->ring[(q->first + q->n++) % CHUNK_WANTS_MAX] =
        (chunk_want){.chunk = m->chunk, .length = m->length, .offset = m->offset};
    return NULL;
}

static peer *next_peer(cw_worker *w)
{
    for (size_t k = 0; k < w->n_peers; k++) {
        size_t i = (w->chunk_turn + k) % w->n_peers;
        peer *p = w->peers[i];
        if (!p->wants || !p->wants->n) continue;
        w->chunk_turn = i + 1;
        return p;
    }
    return NULL;
}

void chunks_pump(cw_worker *w, cw_outbox *out)
{
    if (w->chunk_out || w->stopping) return;
    peer *p = next_peer(w);
    if (!p) return;
    if (w->now_us < w->chunk_free_us) {
        cw_outbox_wake(out, w->chunk_free_us);
        return;
    }
    chunk_wants *q = p->wants;
    chunk_want c = q->ring[q->first];
    q->first = (q->first + 1) % CHUNK_WANTS_MAX;
    q->n--;
    w->chunk_out = p->link;
    cw_worker_act *a = worker_act(w, CW_WORKER_READ);
    a->link = p->link;
    a->chunk = c.chunk;
    a->offset = c.offset;
    a->length = c.length;
}

void cw_worker_read(cw_worker *w, cw_link link, uint32_t chunk, uint64_t offset, uint64_t total,
                    cw_frame bytes, const char *text, int64_t now_us, int64_t wall_ms, cw_outbox *out)
{
    w->now_us = now_us;
    w->wall_ms = wall_ms;
    CW_ASSERT(w->chunk_out == link);
    w->chunk_out = 0;
    bool here = false;
    for (size_t i = 0; i < w->n_peers; i++) here |= w->peers[i]->link == link && w->peers[i]->admitted;
    bool serving = now_us - w->last_call_us < SERVING_US;
    if (serving && w->c.chunk_rate) {
        if (w->chunk_free_us < now_us) w->chunk_free_us = now_us;
        w->chunk_free_us += (int64_t)((double)bytes.len * 1e6 / (double)w->c.chunk_rate);
    }
    if (here && bytes.data) {
        Cw__Pb__ChunkPart m = CW__PB__CHUNK_PART__INIT;
        Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
        m.chunk = chunk, m.offset = offset, m.total = total;
        env.body_case = CW__PB__ENVELOPE__BODY_CHUNK_PART, env.chunk_part = &m;
        w->chunk_bytes_out += bytes.len;
        cw_send(out, link, &env, &bytes, 1);
    } else {
        if (bytes.release) bytes.release(bytes.owner);
        if (here) answer_fail(link, chunk, text, out);
    }
    chunks_pump(w, out);
}
