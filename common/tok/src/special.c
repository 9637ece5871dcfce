/*
 * Trie of the tokens that are found whole in a text: CONTROL, UNKNOWN and USER_DEFINED. A text is walked once
 * and at each place the longest token that is allowed there wins, so a text of n bytes costs at most n *
 * CW_TOK_MAX_SPECIAL steps, whatever the vocabulary holds.
 */
#include "tok_internal.h"

#include "cw/log.h"

static uint32_t edge_slot(const tok_trie *trie, uint32_t key)
{
    uint32_t i = (uint32_t)(tok_hash_pair(0, key, 0x5bd1e995) >> 7) & trie->edge_mask;
    while (trie->edge[i].key && trie->edge[i].key != key) i = (i + 1) & trie->edge_mask;
    return i;
}

uint32_t trie_step(const tok_trie *trie, uint32_t node, uint8_t byte)
{
    const trie_edge *e = &trie->edge[edge_slot(trie, (node << 8 | byte) + 1)];
    return e->key ? e->node : 0;
}

static bool in_trie(const cw_tok *t, size_t i)
{
    uint8_t type = t->type[i];
    return t->text[i].len > 0 && t->text[i].len <= CW_TOK_MAX_SPECIAL &&
           (type == CW_TOKEN_CONTROL || type == CW_TOKEN_UNKNOWN || type == CW_TOKEN_USER_DEFINED);
}

static void add(cw_tok *t, size_t id)
{
    tok_trie *trie = &t->trie;
    cw_tok_str s = t->text[id];
    uint32_t *root = &trie->root[(uint8_t)s.data[0]];
    if (!*root) *root = trie->n_nodes++;
    uint32_t node = *root;
    for (size_t k = 1; k < s.len; k++) {
        uint32_t key = (node << 8 | (uint8_t)s.data[k]) + 1, i = edge_slot(trie, key);
        if (!trie->edge[i].key) trie->edge[i] = (trie_edge){key, trie->n_nodes++};
        node = trie->edge[i].node;
    }
    if (trie->token[node] < 0) trie->token[node] = (int32_t)id;
}

cw_status trie_build(cw_tok *t, cw_err *err)
{
    tok_trie *trie = &t->trie;
    size_t bytes = 0, too_long = 0;
    for (size_t i = 0; i < t->n; i++) {
        if (in_trie(t, i)) bytes += t->text[i].len;
        too_long += t->text[i].len > CW_TOK_MAX_SPECIAL && t->type[i] == CW_TOKEN_USER_DEFINED;
    }
    if (too_long)
        CW_LOG_W("tok", "user-defined tokens too long to be looked for file=%s count=%zu", t->label,
                 too_long);
    if (bytes >=
        (size_t)1 << 23) /* a node's number and a byte share 32 bits; real files need some thousands */
        return CW_FAIL(err, CW_STATUS_LIMIT,
                       "%s: the control and user-defined tokens are %zu bytes long together", t->label,
                       bytes);
    size_t slots = 16;
    while (slots < bytes * 2) slots *= 2;
    trie->edge = cw_calloc(slots, sizeof *trie->edge);
    trie->token = cw_calloc(bytes + 1, sizeof *trie->token);
    if (!trie->edge || !trie->token) return TOK_NO_MEMORY(err);
    memset(trie->token, 0xff, (bytes + 1) * sizeof *trie->token);
    trie->edge_mask = (uint32_t)(slots - 1);
    trie->n_nodes = 1; /* 0 means "none" */
    for (size_t i = 0; i < t->n; i++)
        if (in_trie(t, i)) add(t, i);
    return CW_OK;
}

void trie_free(tok_trie *trie)
{
    cw_free(trie->edge);
    cw_free(trie->token);
    trie->edge = NULL;
    trie->token = NULL;
}
