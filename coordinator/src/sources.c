/*
 * Who else can give a worker the chunks of the experts it is assigned: other workers that hold these experts
 * and keep chunks, each with a ticket for that worker's key which lets it fetch chunks there and nothing
 * else. Only a hint: the coordinator's own store has everything, and whoever fetches checks every hash.
 */
#include <string.h>

#include "coordinator_internal.h"
#include "cw/mem.h"

/* A ticket outlives the loading of what it was given for. */
enum { TICKET_MS = 24 * 3600 * 1000 };

typedef struct {
    const member *who;
    uint32_t n; /* of the experts that are assigned */
} candidate;

static uint32_t overlap(const cw_expert_bits *a, const cw_expert_bits *b)
{
    uint32_t n = 0;
    for (size_t i = 0; i < (size_t)a->n_layers * a->words; i++)
        n += (uint32_t)__builtin_popcountll(a->bits[i] & b->bits[i]);
    return n;
}

static bool ticket_for(cw_coordinator *c, const member *m, Cw__Pb__ChunkSource *s)
{
    cw_ticket t = {.edge = m->row.key,
                   .right = CW_RIGHT_CHUNKS,
                   .not_after_ms = (uint64_t)c->wall_ms + TICKET_MS,
                   .streams = 1,
                   .serial = serial_next(c)};
    memcpy(t.cluster, c->cfg.cluster_id, sizeof t.cluster);
    memcpy(t.model_digest, c->cfg.model_digest, sizeof t.model_digest);
    return cw_ticket_sign(c->cfg.signer, &t, &s->ticket.data, &s->ticket.len, NULL) == CW_OK;
}

/* The best CW_MAX_SOURCES; among equals those after `m` in the table, so that many workers that load at once
 * do not all ask the same few. */
static size_t choose(const cw_coordinator *c, const member *m, const cw_expert_bits *bits,
                     candidate best[CW_MAX_SOURCES])
{
    size_t n = 0, at = 0;
    while (at < c->n_members && c->members[at] != m) at++;
    for (size_t k = 1; k < c->n_members; k++) {
        const member *o = c->members[(at + k) % c->n_members];
        if (o == m || !is_counted(o) || !o->worker->gives_chunks) continue;
        candidate x = {o, overlap(bits, &o->worker->held)};
        if (!x.n || (n == CW_MAX_SOURCES && best[n - 1].n >= x.n)) continue;
        size_t i = n < CW_MAX_SOURCES ? n++ : n - 1;
        for (; i && best[i - 1].n < x.n; i--) best[i] = best[i - 1];
        best[i] = x;
    }
    return n;
}

void sources_fill(cw_coordinator *c, const member *m, const cw_expert_bits *bits, source_list *l)
{
    candidate best[CW_MAX_SOURCES];
    l->n = 0;
    if (m->worker->local_model) return; /* it fetches nothing */
    size_t n = choose(c, m, bits, best);
    for (size_t i = 0; i < n; i++) {
        const member *o = best[i].who;
        Cw__Pb__ChunkSource *s = &l->sources[l->n];
        cw__pb__chunk_source__init(s);
        if (!ticket_for(c, m, s)) return;
        s->address = (char *)(uintptr_t)o->worker->address;
        s->key = (ProtobufCBinaryData){CW_KEY_BYTES, (uint8_t *)(uintptr_t)o->row.key.b};
        s->name = (char *)(uintptr_t)o->row.name;
        l->list[l->n++] = s;
    }
}

void sources_free(source_list *l)
{
    for (size_t i = 0; i < l->n; i++) cw_free(l->sources[i].ticket.data);
    l->n = 0;
}
