/*
 * Text -> ids: whole tokens are cut out first, what lies between them goes through normalisation,
 * pre-tokenizer and merging. Everything one call needs is in its tok_work, so calls on one tokenizer may run
 * at the same time.
 */
#include "tok_internal.h"

#include "utf8.h"

cw_status tok_reserve(void **p, size_t *cap, size_t n, size_t size, cw_err *err)
{
    if (n <= *cap) return CW_OK;
    size_t want = *cap + *cap / 2;
    if (want < n) want = n;
    if (want < 64) want = 64;
    void *grown = cw_realloc(*p, want, size);
    if (!grown) return TOK_NO_MEMORY(err);
    *p = grown;
    *cap = want;
    return CW_OK;
}

cw_status tok_emit(tok_work *w, int32_t id)
{
    if (w->n_ids == w->cap_ids)
        CW_TRY(tok_reserve((void **)&w->ids, &w->cap_ids, w->n_ids + 1, sizeof *w->ids, w->err));
    w->ids[w->n_ids++] = id;
    return CW_OK;
}

cw_status tok_emit_byte(tok_work *w, uint8_t byte, bool valid)
{
    static const uint8_t replacement[] = {0xef, 0xbf, 0xbd}; /* U+FFFD */
    const int32_t *id = w->t->byte_id;
    if (id[byte] >= 0) return tok_emit(w, id[byte]);
    if (!valid && id[0xef] >= 0 && id[0xbf] >= 0 && id[0xbd] >= 0) {
        if (!w->t->spm) return tok_merge_bytes(w, (const char *)replacement, sizeof replacement);
        for (int i = 0; i < 3; i++) CW_TRY(tok_emit(w, id[replacement[i]]));
        return CW_OK;
    }
    if (w->t->unk >= 0) return tok_emit(w, w->t->unk);
    return CW_FAIL(w->err, CW_STATUS_INVALID,
                   "%s: the vocabulary has no token for byte 0x%02x and no unknown token", w->t->label, byte);
}

static cw_status encode_words(tok_work *w, const char *text, size_t len)
{
    char *normal = NULL;
    cw_status s = CW_OK;
    if (w->t->pre->nfc) CW_TRY(nfc_normalise(text, len, &normal, &len, w->err));
    if (normal) text = normal;
    const tok_spans *words;
    CW_TRY_GOTO(s, pretok_split(w, text, len, &words));
    for (size_t i = 0; i < words->n; i++)
        CW_TRY_GOTO(s, tok_merge_bytes(w, text + words->v[i].begin, words->v[i].end - words->v[i].begin));
fail:
    cw_free(normal);
    return s;
}

/* Byte-level BPE: stretches of valid UTF-8 are text; a byte that is not stands alone. */
static cw_status encode_bpe(tok_work *w, const char *text, size_t len)
{
    size_t begin = 0, i = 0;
    while (i < len) {
        int k = (uint8_t)text[i] < 0x80 ? 1 : utf8_at(text + i, len - i);
        if (k > 0) {
            i += (size_t)k;
            continue;
        }
        if (i > begin) CW_TRY(encode_words(w, text + begin, i - begin));
        CW_TRY(tok_emit_byte(w, (uint8_t)text[i], false));
        begin = ++i;
    }
    return i > begin ? encode_words(w, text + begin, i - begin) : CW_OK;
}

/* SentencePiece: no words; spaces become U+2581. */
static cw_status encode_spm(tok_work *w, const char *text, size_t len, bool add_space)
{
    size_t n = 0;
    CW_TRY(tok_reserve((void **)&w->buf, &w->cap_buf, (len + 1) * 3, 1, w->err));
    if (add_space) {
        memcpy(w->buf, TOK_LOWER_BLOCK, 3);
        n = 3;
    }
    for (size_t i = 0; i < len; i++) {
        if (text[i] == ' ') {
            memcpy(w->buf + n, TOK_LOWER_BLOCK, 3);
            n += 3;
        } else {
            w->buf[n++] = text[i];
        }
    }
    return tok_merge_chars(w, w->buf, n);
}

/* --- finding whole tokens --- */

typedef struct {
    const char *text;
    size_t len;
    const cw_tok_segment *segs; /* in order, together the text */
    size_t n_segs, seg, seg_begin, seg_end;
    bool strict; /* USER_DEFINED markers only where specials are parsed */
} scan;

/* Longest token at `at` that is allowed there; -1: none. */
static int32_t token_at(const cw_tok *t, scan *sc, size_t at, size_t *len)
{
    uint32_t node = t->trie.root[(uint8_t)sc->text[at]];
    if (!node) return -1;
    while (at >= sc->seg_end) {
        sc->seg_begin = sc->seg_end;
        sc->seg_end += sc->segs[++sc->seg].len;
    }
    bool trusted = sc->segs[sc->seg].parse_special;
    /* neighbouring trusted segments are one stretch: a template may cut its own text anywhere */
    size_t trusted_end = sc->seg_end;
    for (size_t s = sc->seg + 1;
         trusted && s < sc->n_segs && sc->segs[s].parse_special && trusted_end < at + CW_TOK_MAX_SPECIAL; s++)
        trusted_end += sc->segs[s].len;
    int32_t best = -1;
    for (size_t i = at + 1; node; i++) {
        int32_t id = t->trie.token[node];
        if (id >= 0) {
            bool free_text =
                t->type[id] == CW_TOKEN_USER_DEFINED && !(sc->strict && (t->flags[id] & TOKF_MARKER));
            if (free_text || (trusted && i <= trusted_end)) {
                best = id;
                *len = i - at;
            }
        }
        if (i == sc->len) break;
        node = trie_step(&t->trie, node, (uint8_t)sc->text[i]);
    }
    return best;
}

static cw_status encode_fragment(tok_work *w, const char *text, size_t len, bool after_special)
{
    if (len == 0) return CW_OK;
    if (!w->t->spm) return encode_bpe(w, text, len);
    return encode_spm(w, text, len, w->t->add_space && after_special);
}

static cw_status encode_all(tok_work *w, scan *sc, unsigned flags)
{
    const cw_tok *t = w->t;
    bool add_bos = (flags & CW_TOK_ADD_BOS) && cw_tok_adds_bos(t), after_special = true;
    if (add_bos) CW_TRY(tok_emit(w, t->bos));
    size_t begin = 0, i = 0;
    while (i < sc->len) {
        size_t len = 0;
        int32_t id = token_at(t, sc, i, &len);
        if (id < 0) {
            i++;
            continue;
        }
        CW_TRY(encode_fragment(w, sc->text + begin, i - begin, after_special));
        if (!(i == 0 && add_bos && id == t->bos)) CW_TRY(tok_emit(w, id));
        i += len;
        begin = i;
        /* SentencePiece's space stands before a text and after a control token; a USER_DEFINED token is text
         */
        after_special = t->type[id] != CW_TOKEN_USER_DEFINED;
    }
    CW_TRY(encode_fragment(w, sc->text + begin, sc->len - begin, after_special));
    bool add_eos = (flags & CW_TOK_ADD_EOS) && cw_tok_adds_eos(t);
    if (add_eos && !(w->n_ids && w->ids[w->n_ids - 1] == t->eos)) CW_TRY(tok_emit(w, t->eos));
    return CW_OK;
}

static cw_status run(const cw_tok *t, scan *sc, unsigned flags, int32_t **ids, size_t *n, cw_err *err)
{
    if (sc->len > CW_TOK_MAX_TEXT)
        return CW_FAIL(err, CW_STATUS_LIMIT,
                       "a text of %zu bytes is longer than the %zu that can be tokenized at once", sc->len,
                       CW_TOK_MAX_TEXT);
    tok_work w = {.t = t, .err = err};
    cw_status s = tok_reserve((void **)&w.ids, &w.cap_ids, sc->len / 4 + 16, sizeof *w.ids, err);
    if (s == CW_OK) s = encode_all(&w, sc, flags);
    pcre2_match_data_free(w.md);
    pcre2_match_context_free(w.mc);
    for (int i = 0; i < 2; i++) cw_free(w.spans[i].v);
    cw_free(w.sym);
    cw_free(w.heap);
    cw_free(w.buf);
    if (s != CW_OK) {
        cw_free(w.ids);
        return s;
    }
    *ids = w.ids;
    *n = w.n_ids;
    return CW_OK;
}

cw_status cw_tok_encode(const cw_tok *t, const char *text, size_t len, unsigned flags, int32_t **ids,
                        size_t *n, cw_err *err)
{
    cw_tok_segment seg = {text, len, flags & CW_TOK_PARSE_SPECIAL};
    scan sc = {.text = text, .len = len, .segs = &seg, .n_segs = 1, .seg_end = len};
    return run(t, &sc, flags, ids, n, err);
}

cw_status cw_tok_encode_segments(const cw_tok *t, const cw_tok_segment *segs, size_t n_segs, unsigned flags,
                                 int32_t **ids, size_t *n, cw_err *err)
{
    size_t len = 0, at = 0;
    for (size_t i = 0; i < n_segs; i++)
        if (!cw_add_size(len, segs[i].len, &len)) len = SIZE_MAX;
    if (len > CW_TOK_MAX_TEXT)
        return CW_FAIL(err, CW_STATUS_LIMIT,
                       "a conversation of more than %zu bytes cannot be tokenized at once", CW_TOK_MAX_TEXT);
    char *text = cw_calloc(len + 1, 1);
    if (!text) return TOK_NO_MEMORY(err);
    for (size_t i = 0; i < n_segs; i++) {
        if (segs[i].len) memcpy(text + at, segs[i].text, segs[i].len);
        at += segs[i].len;
    }
    scan sc = {.text = text,
               .len = len,
               .segs = segs,
               .n_segs = n_segs,
               .seg_end = n_segs ? segs[0].len : 0,
               .strict = true};
    cw_status s = run(t, &sc, flags & CW_TOK_ADD_SPECIAL, ids, n, err);
    cw_free(text);
    return s;
}
