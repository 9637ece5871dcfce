/*
 * The order in which neighbours are merged: BPE's list of merges as a table of id pairs, SentencePiece's
 * scores as ranks. Made once at load.
 */
#include "tok_internal.h"

#include <math.h>
#include <stdlib.h>
#include "cw/log.h"

/* A token longer than this does not get all its halves tried when a file has ranks instead of merges. */
#define MAX_RANKED_TOKEN 1024

const tok_merge *tok_find_merge(const cw_tok *t, uint32_t a, uint32_t b)
{
    uint32_t i = (uint32_t)tok_hash_pair(a, b, t->seed) & t->merge_mask;
    for (; t->merge_slot[i]; i = (i + 1) & t->merge_mask) {
        const tok_merge *m = &t->merge[t->merge_slot[i] - 1];
        if (m->a == a && m->b == b) return m;
    }
    return NULL;
}

static cw_status index_merges(cw_tok *t, cw_err *err)
{
    size_t slots = 16;
    while (slots < t->n_merge * 2) slots *= 2;
    t->merge_slot = cw_calloc(slots, sizeof *t->merge_slot);
    if (!t->merge_slot) return TOK_NO_MEMORY(err);
    t->merge_mask = (uint32_t)(slots - 1);
    for (size_t k = 0; k < t->n_merge; k++) {
        const tok_merge *m = &t->merge[k];
        uint32_t i = (uint32_t)tok_hash_pair(m->a, m->b, t->seed) & t->merge_mask;
        for (; t->merge_slot[i]; i = (i + 1) & t->merge_mask) {
            const tok_merge *o = &t->merge[t->merge_slot[i] - 1];
            if (o->a == m->a && o->b == m->b) break; /* of equal pairs the first counts */
        }
        if (!t->merge_slot[i]) t->merge_slot[i] = (uint32_t)k + 1;
    }
    return CW_OK;
}

/*
 * Files made from rank lists (Kimi K2) may come without merges: there two neighbours merge when what they
 * make is a token, lowest id first. So every way to cut a token into two tokens is a merge with the token's
 * id as its rank.
 */
static cw_status merges_from_ranks(cw_tok *t, cw_err *err)
{
    size_t cap = 0;
    for (size_t i = 0; i < t->n; i++) {
        cw_tok_str p = t->piece[i];
        if (p.len < 2 || p.len > MAX_RANKED_TOKEN || strmap_find(&t->keys, p.data, p.len) != (int32_t)i)
            continue;
        for (size_t cut = 1; cut < p.len; cut++) {
            int32_t a = strmap_find(&t->keys, p.data, cut),
                    b = strmap_find(&t->keys, p.data + cut, p.len - cut);
            if (a < 0 || b < 0) continue;
            if (t->n_merge >= TOK_MAX_MERGES)
                return CW_FAIL(err, CW_STATUS_LIMIT, "%s: the vocabulary has too many merges", t->label);
            CW_TRY(tok_reserve((void **)&t->merge, &cap, t->n_merge + 1, sizeof *t->merge, err));
            t->merge[t->n_merge++] = (tok_merge){(uint32_t)a, (uint32_t)b, (uint32_t)i, (uint32_t)i};
        }
    }
    return CW_OK;
}

cw_status tok_load_merges(cw_tok *t, const cw_tok_spec *spec, cw_err *err)
{
    if (spec->n_merges == 0) {
        if (strcmp(t->pre->name, "kimi-k2") != 0)
            return CW_FAIL(err, CW_STATUS_FORMAT, "%s: a gpt2 tokenizer needs merges, and the file has none",
                           t->label);
        CW_TRY(merges_from_ranks(t, err));
        return index_merges(t, err);
    }
    size_t longest = 0, skipped = 0;
    for (size_t k = 0; k < spec->n_merges; k++)
        if (spec->merges[k].len > longest) longest = spec->merges[k].len;
    char *bytes = cw_calloc(longest + 1, 1);
    t->merge = cw_calloc(spec->n_merges, sizeof *t->merge);
    cw_status s = bytes && t->merge ? CW_OK : TOK_NO_MEMORY(err);
    for (size_t k = 0; s == CW_OK && k < spec->n_merges; k++) {
        cw_tok_str m = spec->merges[k];
        const char *gap = m.len > 2 ? memchr(m.data + 1, ' ', m.len - 2) : NULL;
        if (!gap) {
            s = CW_FAIL(err, CW_STATUS_FORMAT, "%s: merge %zu is not two parts with a space between them",
                        t->label, k);
            break;
        }
        size_t la, lb, first = (size_t)(gap - m.data);
        int32_t a = -1, b = -1, ab = -1;
        if (tok_alphabet_decode(m.data, first, bytes, &la) &&
            tok_alphabet_decode(gap + 1, m.len - first - 1, bytes + la, &lb)) {
            a = strmap_find(&t->keys, bytes, la);
            b = strmap_find(&t->keys, bytes + la, lb);
            ab = strmap_find(&t->keys, bytes, la + lb);
        }
        if (a < 0 || b < 0 || ab < 0) {
            skipped++;
            continue;
        }
        t->merge[t->n_merge++] = (tok_merge){(uint32_t)a, (uint32_t)b, (uint32_t)ab, (uint32_t)k};
    }
    cw_free(bytes);
    CW_TRY(s);
    if (skipped == spec->n_merges)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: none of the %zu merges names tokens of the vocabulary",
                       t->label, skipped);
    if (skipped)
        CW_LOG_W("tok", "merges that name no tokens are skipped file=%s skipped=%zu of=%zu", t->label,
                 skipped, spec->n_merges);
    return index_merges(t, err);
}

typedef struct {
    float score;
    uint32_t id;
} scored;

static int by_score_desc(const void *pa, const void *pb)
{
    const scored *a = pa, *b = pb;
    return a->score > b->score ? -1 : a->score < b->score;
}

cw_status tok_load_ranks(cw_tok *t, const cw_tok_spec *spec, cw_err *err)
{
    if (!spec->n_scores)
        return CW_FAIL(err, CW_STATUS_FORMAT,
                       "%s: a llama tokenizer needs token scores, and the file has none", t->label);
    for (size_t i = 0; i < t->n; i++)
        if (isnan(spec->scores[i]))
            return CW_FAIL(err, CW_STATUS_FORMAT, "%s: the score of token %zu is not a number", t->label, i);
    t->rank = cw_calloc(t->n, sizeof *t->rank);
    scored *order = cw_calloc(t->n, sizeof *order);
    if (!t->rank || !order) {
        cw_free(order);
        return TOK_NO_MEMORY(err);
    }
    for (size_t i = 0; i < t->n; i++) order[i] = (scored){spec->scores[i], (uint32_t)i};
    qsort(order, t->n, sizeof *order, by_score_desc);
    uint32_t rank = 0; /* equal scores, equal rank: then the leftmost pair merges first */
    for (size_t i = 0; i < t->n; i++) {
        if (i && order[i].score < order[i - 1].score) rank++;
        t->rank[order[i].id] = rank;
    }
    cw_free(order);
    return CW_OK;
}
