/*
 * Merging neighbours, best pair first: a linked list of symbols and a heap of pairs by (rank, place), so a
 * run of n symbols costs O(n log n) however long it is. BPE finds the pair's rank in its table of merges;
 * SentencePiece looks up the text both make together.
 */
#include "tok_internal.h"

#include "utf8.h"

static void sift_up(uint64_t *h, size_t i)
{
    uint64_t v = h[i];
    while (i && h[(i - 1) / 2] > v) {
        h[i] = h[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h[i] = v;
}

static uint64_t pop(uint64_t *h, size_t *n)
{
    uint64_t top = h[0], v = h[--*n];
    size_t i = 0, c;
    while ((c = 2 * i + 1) < *n) {
        if (c + 1 < *n && h[c + 1] < h[c]) c++;
        if (h[c] >= v) break;
        h[i] = h[c];
        i = c;
    }
    h[i] = v;
    return top;
}

/* What symbols l and l.next make together: false when nothing. */
static bool pair_of(const tok_work *w, const char *text, int32_t l, uint32_t *rank, int32_t *id)
{
    const cw_tok *t = w->t;
    const tok_sym *a = &w->sym[l];
    if (a->next < 0) return false;
    const tok_sym *b = &w->sym[a->next];
    if (t->spm) {
        if (a->len + b->len > t->max_key) return false;
        *id = strmap_find(&t->keys, text + a->off, a->len + b->len);
        if (*id < 0) return false;
        *rank = t->rank[*id];
        return true;
    }
    if (a->id < 0 || b->id < 0) return false;
    const tok_merge *m = tok_find_merge(t, (uint32_t)a->id, (uint32_t)b->id);
    if (!m) return false;
    *rank = m->rank;
    *id = (int32_t)m->id;
    return true;
}

static cw_status offer(tok_work *w, const char *text, int32_t l)
{
    uint32_t rank;
    int32_t id;
    if (l < 0 || !pair_of(w, text, l, &rank, &id)) return CW_OK;
    if (w->n_heap == w->cap_heap)
        CW_TRY(tok_reserve((void **)&w->heap, &w->cap_heap, w->n_heap + 1, sizeof *w->heap, w->err));
    w->heap[w->n_heap] = (uint64_t)rank << 32 | (uint32_t)l;
    sift_up(w->heap, w->n_heap++);
    return CW_OK;
}

static cw_status merge_all(tok_work *w, const char *text)
{
    w->n_heap = 0;
    for (size_t i = 0; i + 1 < w->n_sym; i++) CW_TRY(offer(w, text, (int32_t)i));
    while (w->n_heap) {
        uint64_t top = pop(w->heap, &w->n_heap);
        int32_t l = (int32_t)(uint32_t)top, id;
        uint32_t rank;
        tok_sym *a = &w->sym[l];
        /* An entry outlives its pair when a neighbour was merged; what stands there now counts only at its
         * own rank. */
        if (a->len == 0 || !pair_of(w, text, l, &rank, &id) || rank != (uint32_t)(top >> 32)) continue;
        tok_sym *b = &w->sym[a->next];
        a->len += b->len;
        a->id = id;
        b->len = 0;
        a->next = b->next;
        if (a->next >= 0) w->sym[a->next].prev = l;
        CW_TRY(offer(w, text, a->prev));
        CW_TRY(offer(w, text, l));
    }
    return CW_OK;
}

static cw_status add_sym(tok_work *w, uint32_t off, uint32_t len, int32_t id)
{
    if (w->n_sym == w->cap_sym)
        CW_TRY(tok_reserve((void **)&w->sym, &w->cap_sym, w->n_sym + 1, sizeof *w->sym, w->err));
    int32_t i = (int32_t)w->n_sym++;
    w->sym[i] = (tok_sym){off, len, id, i - 1, i + 1};
    return CW_OK;
}

cw_status tok_merge_bytes(tok_work *w, const char *text, size_t len)
{
    const cw_tok *t = w->t;
    if (t->pre->ignore_merges) {
        int32_t id = len <= t->max_key ? strmap_find(&t->keys, text, len) : -1;
        if (id >= 0) return tok_emit(w, id);
    }
    w->n_sym = 0;
    for (size_t i = 0; i < len; i++) CW_TRY(add_sym(w, (uint32_t)i, 1, t->byte_id[(uint8_t)text[i]]));
    w->sym[len - 1].next = -1;
    CW_TRY(merge_all(w, text));
    for (int32_t i = 0; i >= 0; i = w->sym[i].next) {
        const tok_sym *s = &w->sym[i];
        CW_TRY(s->id >= 0 ? tok_emit(w, s->id) : tok_emit_byte(w, (uint8_t)text[s->off], true));
    }
    return CW_OK;
}

/* A character that is no token: its bytes, or once the unknown token. */
static cw_status emit_char(tok_work *w, const char *p, size_t len, bool valid)
{
    for (size_t k = 0; k < len; k++)
        if (w->t->byte_id[(uint8_t)p[k]] < 0) return tok_emit_byte(w, (uint8_t)p[k], valid);
    for (size_t k = 0; k < len; k++) CW_TRY(tok_emit(w, w->t->byte_id[(uint8_t)p[k]]));
    return CW_OK;
}

cw_status tok_merge_chars(tok_work *w, const char *text, size_t len)
{
    w->n_sym = 0;
    for (size_t i = 0; i < len;) {
        int k = utf8_at(text + i, len - i);
        uint32_t n = k > 0 ? (uint32_t)k : 1;
        CW_TRY(add_sym(w, (uint32_t)i, n, strmap_find(&w->t->keys, text + i, n)));
        i += n;
    }
    if (!w->n_sym) return CW_OK;
    w->sym[w->n_sym - 1].next = -1;
    CW_TRY(merge_all(w, text));
    for (int32_t i = 0; i >= 0; i = w->sym[i].next) {
        const tok_sym *s = &w->sym[i];
        const char *p = text + s->off;
        CW_TRY(s->id >= 0 ? tok_emit(w, s->id) : emit_char(w, p, s->len, utf8_at(p, s->len) > 0));
    }
    return CW_OK;
}
