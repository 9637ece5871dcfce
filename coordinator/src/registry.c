/*
 * Tables of members (keys that were admitted), tokens and links, and the rows to save. No decisions here.
 */
#include <stdatomic.h>
#include <string.h>

#include "coordinator_internal.h"
#include "cw/log.h"
#include "cw/mem.h"

struct shared_bytes {
    atomic_uint refs; /* messages may be freed by an I/O thread */
    size_t len;
    uint8_t data[];
};

shared_bytes *shared_bytes_new(size_t len)
{
    shared_bytes *s = cw_calloc(1, sizeof *s + len);
    if (!s) return NULL;
    atomic_init(&s->refs, 1);
    s->len = len;
    return s;
}

uint8_t *shared_bytes_data(shared_bytes *s)
{
    return s->data;
}

void shared_bytes_release(void *p)
{
    shared_bytes *s = p;
    if (s && atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) == 1) cw_free(s);
}

cw_frame shared_bytes_frame(shared_bytes *s)
{
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
    return (cw_frame){.data = s->data, .len = s->len, .owner = s, .release = shared_bytes_release};
}

/* Room for one more item of an array that only grows. */
static bool grow(void **items, size_t n, size_t *cap, size_t item_bytes)
{
    if (n < *cap) return true;
    size_t want = *cap ? 2 * *cap : 16;
    void *p = cw_realloc(*items, want, item_bytes);
    if (!p) return false;
    *items = p;
    *cap = want;
    return true;
}

member *member_find(const cw_coordinator *c, const cw_key *key)
{
    for (size_t i = 0; i < c->n_members; i++)
        if (memcmp(c->members[i]->row.key.b, key->b, CW_KEY_BYTES) == 0) return c->members[i];
    return NULL;
}

static bool worker_init(const cw_coordinator *c, worker_state *w)
{
    cw_expert_bits *all[] = {&w->held,    &w->wanted,   &w->asked,    &w->first,
                             &w->leaving, &w->dropping, &w->published};
    for (size_t i = 0; i < CW_ARRAY_LEN(all); i++)
        if (!cw_expert_bits_init(all[i], c->cfg.n_layers, c->cfg.n_experts)) return false;
    w->retry_us = INT64_MAX;
    return true;
}

void member_free(cw_coordinator *c, member *m)
{
    (void)c;
    if (m && m->worker) {
        worker_state *w = m->worker;
        cw_expert_bits *all[] = {&w->held,    &w->wanted,   &w->asked,    &w->first,
                                 &w->leaving, &w->dropping, &w->published};
        for (size_t i = 0; i < CW_ARRAY_LEN(all); i++) cw_expert_bits_free(all[i]);
        cw_msg_free(&w->late);
        cw_free(w);
    }
    cw_free(m);
}

member *member_add(cw_coordinator *c, const cw_key_row *row)
{
    if (!grow((void **)&c->members, c->n_members, &c->cap_members, sizeof *c->members)) return NULL;
    member *m = cw_calloc(1, sizeof *m);
    if (!m) return NULL;
    m->row = *row;
    if (row->role == CW__PB__ROLE__ROLE_WORKER) {
        m->worker = cw_calloc(1, sizeof *m->worker);
        if (!m->worker || !worker_init(c, m->worker)) {
            member_free(c, m);
            return NULL;
        }
        if (!m->row.id) m->row.id = c->next_worker_id;
        if (m->row.id >= c->next_worker_id) c->next_worker_id = m->row.id + 1;
    }
    c->members[c->n_members++] = m;
    return m;
}

void member_remove(cw_coordinator *c, member *m)
{
    CW_ASSERT(!m->link);
    size_t i = 0;
    while (c->members[i] != m) i++;
    memmove(&c->members[i], &c->members[i + 1], (c->n_members - i - 1) * sizeof *c->members);
    c->n_members--;
    member_free(c, m);
    if (c->cap_members < 64 || c->n_members > c->cap_members / 4) return;
    void *p = cw_realloc(c->members, c->cap_members / 2, sizeof *c->members);
    if (!p) return; /* it stays as large as it is */
    c->members = p;
    c->cap_members /= 2;
}

cw_token_row *token_find(const cw_coordinator *c, uint32_t id)
{
    for (size_t i = 0; i < c->n_tokens; i++)
        if (c->tokens[i].id == id) return &c->tokens[i];
    return NULL;
}

/* Hashes of secrets are compared, not the secrets: time tells nothing of use. */
cw_token_row *token_find_hash(const cw_coordinator *c, const uint8_t hash[CW_TOKEN_HASH_BYTES])
{
    for (size_t i = 0; i < c->n_tokens; i++)
        if (memcmp(c->tokens[i].hash, hash, CW_TOKEN_HASH_BYTES) == 0) return &c->tokens[i];
    return NULL;
}

cw_token_row *token_append(cw_coordinator *c, const cw_token_row *t)
{
    if (!grow((void **)&c->tokens, c->n_tokens, &c->cap_tokens, sizeof *c->tokens)) return NULL;
    c->tokens[c->n_tokens] = *t;
    return &c->tokens[c->n_tokens++];
}

uint32_t live_count(const cw_coordinator *c, Cw__Pb__Role role, uint32_t token_id)
{
    uint32_t n = 0;
    for (size_t i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        n += is_live(m) && m->row.role == role && (!token_id || m->row.token_id == token_id);
    }
    return n;
}

/* Index of the first link that is not below `link`. */
static size_t link_index(const cw_coordinator *c, cw_link link)
{
    size_t lo = 0, hi = c->n_links;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (c->links[mid].link < link)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

link_state *link_find(const cw_coordinator *c, cw_link link)
{
    size_t i = link_index(c, link);
    return i < c->n_links && c->links[i].link == link ? &c->links[i] : NULL;
}

link_state *link_add(cw_coordinator *c, cw_link link, const cw_key *key, int64_t now_us)
{
    CW_ASSERT(!link_find(c, link)); /* a link id is never used twice */
    if (!grow((void **)&c->links, c->n_links, &c->cap_links, sizeof *c->links)) return NULL;
    size_t i = link_index(c, link);
    memmove(&c->links[i + 1], &c->links[i], (c->n_links - i) * sizeof *c->links);
    c->n_links++;
    c->links[i] =
        (link_state){.link = link, .key = *key, .up_us = now_us, .heard_us = now_us, .pinged_us = now_us};
    return &c->links[i];
}

void link_remove(cw_coordinator *c, cw_link link)
{
    size_t i = link_index(c, link);
    if (i >= c->n_links || c->links[i].link != link) return;
    memmove(&c->links[i], &c->links[i + 1], (c->n_links - i - 1) * sizeof *c->links);
    c->n_links--;
}

static cw_row *row_push(cw_coordinator *c, cw_row_kind kind)
{
    if (!grow((void **)&c->rows, c->n_rows, &c->cap_rows, sizeof *c->rows)) {
        c->failed = true;
        return NULL;
    }
    cw_row *r = &c->rows[c->n_rows++];
    *r = (cw_row){.kind = kind};
    return r;
}

void save_token(cw_coordinator *c, const cw_token_row *t)
{
    cw_row *r = row_push(c, CW_ROW_TOKEN);
    if (r) r->token = *t;
}

void save_key(cw_coordinator *c, const cw_key_row *k)
{
    cw_row *r = row_push(c, CW_ROW_KEY);
    if (r) r->key = *k;
}

void save_term(cw_coordinator *c)
{
    cw_row *r = row_push(c, CW_ROW_TERM);
    if (r) r->term = c->term;
}

void save_epoch(cw_coordinator *c)
{
    cw_row *r = row_push(c, CW_ROW_EPOCH);
    if (!r) return;
    r->term = c->epoch_term;
    r->number = c->number;
    r->epoch = shared_bytes_frame(c->epoch);
}

void save_serial(cw_coordinator *c)
{
    cw_row *r = row_push(c, CW_ROW_SERIAL);
    if (r) r->serial = c->serial_saved;
}

const cw_row *cw_coordinator_rows(const cw_coordinator *c, size_t *n)
{
    *n = c->n_rows;
    return c->rows;
}

void cw_coordinator_rows_clear(cw_coordinator *c)
{
    for (size_t i = 0; i < c->n_rows; i++)
        if (c->rows[i].epoch.release) c->rows[i].epoch.release(c->rows[i].epoch.owner);
    c->n_rows = 0;
}

/* Whoever got hold of an edge token may have enrolled any number of keys before it was revoked. A list that
 * does not fit a header would keep every worker out, so the keys admitted last stay in it: the tickets of
 * the others are the first to run out. */
enum { REVOKED_MAX = CW_HEADER_MAX / 4 / CW_KEY_BYTES };

uint8_t *revoked_edges(const cw_coordinator *c, size_t *len)
{
    size_t n = 0, skip = 0;
    for (size_t i = 0; i < c->n_members; i++) n += c->members[i]->row.revoked && !c->members[i]->worker;
    if (n > REVOKED_MAX) {
        skip = n - REVOKED_MAX;
        CW_LOG_W("coordinator",
                 "%zu edges are revoked, workers are told of the last %d: tickets of the others "
                 "end within the hour",
                 n, REVOKED_MAX);
        n = REVOKED_MAX;
    }
    uint8_t *list = n ? cw_calloc(n, CW_KEY_BYTES) : NULL;
    *len = 0;
    for (size_t i = 0; list && i < c->n_members; i++) {
        const member *m = c->members[i];
        if (!m->row.revoked || m->worker) continue;
        if (skip) {
            skip--;
            continue;
        }
        memcpy(list + *len, m->row.key.b, CW_KEY_BYTES);
        *len += CW_KEY_BYTES;
    }
    return list;
}
