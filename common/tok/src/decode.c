/*
 * Ids -> bytes, all at once or one by one with only complete UTF-8 handed out. The streaming form allocates
 * its two buffers when it is made and nothing later.
 */
#include "cw/detok.h"
#include "tok_internal.h"
#include "utf8.h"

/*
 * The bytes one token adds to a text. `*start` is true until the first printed piece: SentencePiece's encoder
 * puts one space before a text, which is not part of it.
 */
static cw_tok_str printed(const cw_tok *t, int32_t id, bool keep_special, bool *start)
{
    cw_token_type type = cw_tok_type(t, id);
    cw_tok_str p = {"", 0};
    if (id < 0 || (size_t)id >= t->n) return p;
    bool special = type == CW_TOKEN_CONTROL || type == CW_TOKEN_UNKNOWN;
    if (special && !keep_special) return p;
    p = t->piece[id];
    if (special) return p; /* encoding puts the space after a special token at the start, too */
    if (*start && t->add_space && type != CW_TOKEN_USER_DEFINED && p.len && p.data[0] == ' ') {
        p.data++;
        p.len--;
    }
    *start = false;
    return p;
}

cw_status cw_tok_decode(const cw_tok *t, const int32_t *ids, size_t n, unsigned flags, char **text,
                        size_t *len, cw_err *err)
{
    size_t bytes = 0, at = 0;
    bool keep = flags & CW_TOK_KEEP_SPECIAL, start = true;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (size_t)ids[i] >= t->n)
            return CW_FAIL(err, CW_STATUS_INVALID, "token id %d is outside the vocabulary of %zu",
                           (int)ids[i], t->n);
        if (!cw_add_size(bytes, t->piece[ids[i]].len, &bytes)) return TOK_NO_MEMORY(err);
    }
    char *out = bytes < SIZE_MAX ? cw_calloc(bytes + 1, 1) : NULL;
    if (!out) return TOK_NO_MEMORY(err);
    for (size_t i = 0; i < n; i++) {
        cw_tok_str p = printed(t, ids[i], keep, &start);
        if (p.len) memcpy(out + at, p.data, p.len);
        at += p.len;
    }
    *text = out;
    *len = at;
    return CW_OK;
}

struct cw_detok {
    const cw_tok *t;
    bool text_start, keep_special, start;
    size_t n_in; /* bytes held back, at the beginning of `in` */
    char *in;    /* [max_piece + 4] */
    char *out;   /* [3 * (max_piece + 4) + 1] each byte may become U+FFFD */
};

cw_status cw_detok_new(const cw_tok *t, unsigned flags, cw_detok **out, cw_err *err)
{
    cw_detok *d = cw_calloc(1, sizeof *d);
    if (!d) return TOK_NO_MEMORY(err);
    d->t = t;
    d->text_start = flags & CW_DETOK_TEXT_START;
    d->keep_special = flags & CW_DETOK_KEEP_SPECIAL;
    d->in = cw_calloc(t->max_piece + 4, 1);
    d->out = cw_calloc(t->max_piece + 5, 3);
    if (!d->in || !d->out) {
        cw_detok_free(&d);
        return TOK_NO_MEMORY(err);
    }
    cw_detok_reset(d);
    *out = d;
    return CW_OK;
}

void cw_detok_free(cw_detok **d)
{
    if (!d || !*d) return;
    cw_free((*d)->in);
    cw_free((*d)->out);
    cw_free(*d);
    *d = NULL;
}

void cw_detok_reset(cw_detok *d)
{
    d->n_in = 0;
    d->start = d->text_start;
}

/* Moves what is settled from `in` to `out`; with `all`, nothing stays behind. */
static const char *settle(cw_detok *d, bool all, size_t *len)
{
    size_t i = 0, n = 0;
    while (i < d->n_in) {
        int k = utf8_at(d->in + i, d->n_in - i);
        if (k == 0 && !all) break;
        if (k > 0) {
            memcpy(d->out + n, d->in + i, (size_t)k);
            n += (size_t)k;
            i += (size_t)k;
        } else {
            memcpy(d->out + n, "\xef\xbf\xbd", 3);
            n += 3;
            i = k == 0 ? d->n_in : i + (size_t)-k;
        }
    }
    memmove(d->in, d->in + i, d->n_in - i);
    d->n_in -= i;
    d->out[n] = '\0';
    *len = n;
    return d->out;
}

const char *cw_detok_push(cw_detok *d, int32_t id, size_t *len)
{
    cw_tok_str p = printed(d->t, id, d->keep_special, &d->start);
    CW_ASSERT(d->n_in < 4 && p.len <= d->t->max_piece);
    if (p.len) memcpy(d->in + d->n_in, p.data, p.len);
    d->n_in += p.len;
    return settle(d, false, len);
}

const char *cw_detok_flush(cw_detok *d, size_t *len)
{
    return settle(d, true, len);
}
