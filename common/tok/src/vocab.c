/*
 * A vocabulary from its plain description: checks it, decodes every token to the bytes it stands for, and
 * makes the tables that encoding needs. Runs once, in the thread that loads the model.
 *
 * Tolerated, because real files have it: several tokens with one text (the lowest id is the one produced),
 * NORMAL tokens whose text is not in the byte-level alphabet (never produced), merges that name no tokens
 * (skipped, one warning), bytes without a token (see tok_emit_byte). Refused: lengths that disagree, unknown
 * token types, ids out of range, merges that are not two parts, empty vocabularies.
 */
#include "tok_internal.h"

#include <math.h>
#include "cw/log.h"
#include "utf8.h"

void cw_tok_spec_init(cw_tok_spec *spec)
{
    *spec = (cw_tok_spec){.bos = -1,
                          .eos = -1,
                          .eot = -1,
                          .eom = -1,
                          .unk = -1,
                          .pad = -1,
                          .add_bos = -1,
                          .add_eos = -1,
                          .add_space_prefix = -1};
}

/*
 * GPT-2's byte alphabet: printable Latin-1 stands for itself; the other 68 bytes, in order, are U+0100
 * onwards.
 */
static bool stands_for_itself(uint32_t b)
{
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
}

int tok_alphabet_byte(uint32_t cp)
{
    if (cp < 256) return stands_for_itself(cp) ? (int)cp : -1;
    if (cp >= 256 + 68) return -1;
    uint32_t k = cp - 256;
    if (k <= 32) return (int)k;             /* bytes 0..32 */
    if (k <= 32 + 34) return (int)(k + 94); /* 127..160 */
    return 173;
}

bool tok_alphabet_decode(const char *text, size_t len, char *out, size_t *out_len)
{
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        int k = utf8_at(text + i, len - i);
        if (k <= 0) return false;
        int b = tok_alphabet_byte(utf8_decode(text + i, k));
        if (b < 0) return false;
        out[n++] = (char)b;
        i += (size_t)k;
    }
    *out_len = n;
    return true;
}

/* "<0xNN>" -> 0..255, else -1 */
static int byte_token_value(cw_tok_str s)
{
    if (s.len != 6 || memcmp(s.data, "<0x", 3) != 0 || s.data[5] != '>') return -1;
    int v = 0;
    for (int i = 3; i < 5; i++) {
        char c = s.data[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                       : -1;
        if (d < 0) return -1;
        v = v * 16 + d;
    }
    return v;
}

/* <|...|> or <｜...｜> (U+FF5C) */
static bool is_marker(cw_tok_str s)
{
    static const char bar[] = "\xef\xbd\x9c";
    if (s.len >= 4 && memcmp(s.data, "<|", 2) == 0 && memcmp(s.data + s.len - 2, "|>", 2) == 0) return true;
    return s.len >= 8 && s.data[0] == '<' && memcmp(s.data + 1, bar, 3) == 0 && s.data[s.len - 1] == '>' &&
           memcmp(s.data + s.len - 4, bar, 3) == 0;
}

static cw_status check_spec(const cw_tok_spec *s, const char *label, cw_err *err)
{
    if (s->n_tokens == 0) return CW_FAIL(err, CW_STATUS_FORMAT, "%s: the tokenizer has no tokens", label);
    if (s->n_tokens > TOK_MAX_VOCAB)
        return CW_FAIL(err, CW_STATUS_LIMIT, "%s: %zu tokens are more than the %zu this version takes", label,
                       s->n_tokens, TOK_MAX_VOCAB);
    if (s->n_types && s->n_types != s->n_tokens)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: %zu token types for %zu tokens", label, s->n_types,
                       s->n_tokens);
    if (s->n_scores && s->n_scores != s->n_tokens)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: %zu token scores for %zu tokens", label, s->n_scores,
                       s->n_tokens);
    if (s->n_merges > TOK_MAX_MERGES)
        return CW_FAIL(err, CW_STATUS_LIMIT, "%s: %zu merges are more than the %zu this version takes", label,
                       s->n_merges, TOK_MAX_MERGES);
    const struct {
        const char *name;
        int64_t id;
    } ids[] = {{"BOS", s->bos}, {"EOS", s->eos},     {"EOT", s->eot},
               {"EOM", s->eom}, {"unknown", s->unk}, {"padding", s->pad}};
    for (size_t i = 0; i < CW_ARRAY_LEN(ids); i++)
        if (ids[i].id < -1 || (ids[i].id >= 0 && (uint64_t)ids[i].id >= s->n_tokens))
            return CW_FAIL(err, CW_STATUS_FORMAT,
                           "%s: the %s token's id %lld is outside the vocabulary of %zu", label, ids[i].name,
                           (long long)ids[i].id, s->n_tokens);
    for (size_t i = 0; i < s->n_types; i++)
        if (s->types[i] < CW_TOKEN_NORMAL || s->types[i] > CW_TOKEN_BYTE)
            return CW_FAIL(err, CW_STATUS_FORMAT, "%s: token %zu has the unknown type %d", label, i,
                           (int)s->types[i]);
    return CW_OK;
}

/* Writes the bytes of token i to `out` (room for its text); returns their number. */
static size_t decode_token(const cw_tok *t, size_t i, char *out)
{
    cw_tok_str s = t->text[i];
    size_t n = 0;
    int b;
    if (t->type[i] == CW_TOKEN_BYTE && (b = byte_token_value(s)) >= 0) {
        out[0] = (char)b;
        return 1;
    }
    if (t->type[i] == CW_TOKEN_NORMAL && t->spm) {
        for (size_t k = 0; k < s.len;) {
            bool space = s.len - k >= 3 && memcmp(s.data + k, TOK_LOWER_BLOCK, 3) == 0;
            out[n++] = space ? ' ' : s.data[k];
            k += space ? 3 : 1;
        }
        return n;
    }
    if (t->type[i] == CW_TOKEN_NORMAL && tok_alphabet_decode(s.data, s.len, out, &n)) return n;
    memcpy(out, s.data, s.len);
    return s.len;
}

static cw_status copy_tokens(cw_tok *t, const cw_tok_spec *spec, cw_err *err)
{
    size_t bytes = 0, n = spec->n_tokens;
    for (size_t i = 0; i < n; i++)
        if (!cw_add_size(bytes, spec->tokens[i].len, &bytes) || bytes > SIZE_MAX / 4)
            return CW_FAIL(err, CW_STATUS_LIMIT, "%s: the tokens' texts are too long", t->label);
    t->n = n;
    t->text = cw_calloc(n, sizeof *t->text);
    t->piece = cw_calloc(n, sizeof *t->piece);
    t->type = cw_calloc(n, 1);
    t->flags = cw_calloc(n, 1);
    t->blob = cw_calloc(bytes * 2 + 1, 1);
    if (!t->text || !t->piece || !t->type || !t->flags || !t->blob) return TOK_NO_MEMORY(err);
    char *p = t->blob;
    for (size_t i = 0; i < n; i++) {
        t->type[i] = (uint8_t)(spec->n_types ? spec->types[i] : CW_TOKEN_NORMAL);
        size_t len = spec->tokens[i].len;
        if (len) memcpy(p, spec->tokens[i].data, len);
        t->text[i] = (cw_tok_str){p, len};
        p += len;
        t->piece[i] = (cw_tok_str){p, decode_token(t, i, p)};
        p += t->piece[i].len;
        if (t->piece[i].len > t->max_piece) t->max_piece = t->piece[i].len;
        if (is_marker(t->text[i])) t->flags[i] |= TOKF_MARKER;
    }
    return CW_OK;
}

/*
 * May merging produce this token? CONTROL tokens never: what a user writes must not become one. A
 * USER_DEFINED token of a BPE vocabulary only where its text means the same in the byte alphabet and outside
 * it (some files give plain words that type); others hold raw text, found whole.
 */
static bool can_be_merged(const cw_tok *t, size_t i)
{
    if (t->text[i].len == 0) return false;
    if (t->spm) return t->type[i] == CW_TOKEN_NORMAL;
    if (t->type[i] == CW_TOKEN_USER_DEFINED) {
        for (size_t k = 0; k < t->text[i].len; k++)
            if (t->text[i].data[k] < 33 || t->text[i].data[k] > 126) return false;
        return true;
    }
    if (t->type[i] != CW_TOKEN_NORMAL) return false;
    for (size_t k = 0;
         k < t->text[i].len;) { /* the whole text lies in the alphabet: copy_tokens decoded it */
        int len = utf8_at(t->text[i].data + k, t->text[i].len - k);
        if (len <= 0 || tok_alphabet_byte(utf8_decode(t->text[i].data + k, len)) < 0) return false;
        k += (size_t)len;
    }
    return true;
}

static cw_status index_tokens(cw_tok *t, cw_err *err)
{
    t->seed = tok_random_seed();
    const cw_tok_str *keys = t->spm ? t->text : t->piece;
    if (!strmap_init(&t->by_text, t->text, t->n, t->seed) || !strmap_init(&t->keys, keys, t->n, t->seed))
        return TOK_NO_MEMORY(err);
    for (int pass = 0; pass < 2; pass++) /* of equal strings a NORMAL token is the one produced */
        for (size_t i = 0; i < t->n; i++) {
            if (pass == 0) strmap_add(&t->by_text, (uint32_t)i);
            if ((t->type[i] == CW_TOKEN_NORMAL) != (pass == 0) || !can_be_merged(t, i)) continue;
            strmap_add(&t->keys, (uint32_t)i);
            if (keys[i].len > t->max_key) t->max_key = keys[i].len;
        }
    size_t missing = 0;
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        t->byte_id[b] = t->spm ? -1 : strmap_find(&t->keys, &c, 1);
    }
    for (size_t i = t->n; i-- > 0;) { /* downwards: the lowest id stays */
        int b = t->type[i] == CW_TOKEN_BYTE ? byte_token_value(t->text[i]) : -1;
        if (b >= 0 && (t->spm || t->byte_id[b] < 0)) t->byte_id[b] = (int32_t)i;
    }
    /* Bytes that valid UTF-8 never has (C0, C1, F5..FF) are missing from many vocabularies, and are not
     * missed. */
    for (int b = 0; b < 0xf5; b++) missing += t->byte_id[b] < 0 && b != 0xc0 && b != 0xc1;
    if (missing)
        CW_LOG_W("tok", "the vocabulary has no token for some bytes file=%s missing=%zu unknown_token=%s",
                 t->label, missing, t->unk >= 0 ? "stands in" : "none");
    return CW_OK;
}

/* \x65 is an e: written so, it cannot run into the escape before it */
#define EOS_DEEPSEEK "<\xef\xbd\x9c\x65nd\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"

/* Texts that end an answer in the families this program runs, whatever ids the file names. */
static const char *const eog_texts[] = {
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>",
    "<|EOT|>",    "<EOT>",      "_<EOT>",     "<end_of_turn>", "<|end_of_turn|>", "<end_of_utterance>",
    EOS_DEEPSEEK,
};

static void find_special_ids(cw_tok *t, const cw_tok_spec *spec)
{
    t->bos = (int32_t)spec->bos;
    t->eos = (int32_t)spec->eos;
    t->eot = (int32_t)spec->eot;
    t->eom = (int32_t)spec->eom;
    t->unk = (int32_t)spec->unk;
    t->pad = (int32_t)spec->pad;
    for (size_t i = 0; i < t->n && t->unk < 0; i++)
        if (t->type[i] == CW_TOKEN_UNKNOWN) t->unk = (int32_t)i;
    t->add_bos = spec->add_bos >= 0 ? spec->add_bos : t->spm || t->pre->add_bos;
    t->add_eos = spec->add_eos > 0;
    t->add_space = t->spm && spec->add_space_prefix != 0;
}

static void find_eog(cw_tok *t)
{
    const int32_t ids[] = {t->eos, t->eot, t->eom};
    for (size_t i = 0; i < CW_ARRAY_LEN(ids); i++)
        if (ids[i] >= 0) t->flags[ids[i]] |= TOKF_EOG;
    for (size_t i = 0; i < CW_ARRAY_LEN(eog_texts); i++) {
        int32_t id = strmap_find(&t->by_text, eog_texts[i], strlen(eog_texts[i]));
        if (id >= 0) t->flags[id] |= TOKF_EOG;
    }
}

static cw_status choose_kind(cw_tok *t, const cw_tok_spec *spec, cw_err *err)
{
    if (!spec->model) return CW_FAIL(err, CW_STATUS_NOT_FOUND, "%s: no tokenizer model is named", t->label);
    t->spm = strcmp(spec->model, "llama") == 0;
    if (!t->spm && strcmp(spec->model, "gpt2") != 0)
        return CW_FAIL(
            err, CW_STATUS_UNSUPPORTED,
            "%s: the tokenizer model \"%.60s\" is not known to this version (it knows gpt2 and llama)",
            t->label, spec->model);
    if (t->spm) return CW_OK;
    const char *name = spec->pre && *spec->pre ? spec->pre : "default";
    t->pre = pretok_find(name);
    if (!t->pre)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED,
                       "%s: the pre-tokenizer \"%.60s\" is not known to this version", t->label, name);
    if (strcmp(t->pre->name, "default") == 0)
        CW_LOG_W(
            "tok",
            "the file names no pre-tokenizer, so a general one is used and some texts may be cut otherwise "
            "than in training file=%s",
            t->label);
    return pretok_compile(t, t->pre, spec->no_jit, err);
}

cw_status cw_tok_new_from_spec(const cw_tok_spec *spec, cw_tok **out, cw_err *err)
{
    cw_tok *t = cw_calloc(1, sizeof *t);
    if (!t) return TOK_NO_MEMORY(err);
    cw_status s = CW_OK;
    t->label = cw_strdup(spec->label ? spec->label : "vocabulary");
    if (!t->label) {
        s = TOK_NO_MEMORY(err);
        goto fail;
    }
    CW_TRY_GOTO(s, check_spec(spec, t->label, err));
    CW_TRY_GOTO(s, choose_kind(t, spec, err));
    CW_TRY_GOTO(s, copy_tokens(t, spec, err));
    find_special_ids(t, spec);
    CW_TRY_GOTO(s, index_tokens(t, err));
    CW_TRY_GOTO(s, t->spm ? tok_load_ranks(t, spec, err) : tok_load_merges(t, spec, err));
    CW_TRY_GOTO(s, trie_build(t, err));
    find_eog(t);
    *out = t;
    return CW_OK;
fail:
    cw_tok_free(&t);
    return s;
}

void cw_tok_free(cw_tok **tp)
{
    if (!tp || !*tp) return;
    cw_tok *t = *tp;
    for (int i = 0; i < t->n_code; i++) pcre2_code_free(t->code[i]);
    strmap_free(&t->by_text);
    strmap_free(&t->keys);
    trie_free(&t->trie);
    cw_free(t->label);
    cw_free(t->text);
    cw_free(t->piece);
    cw_free(t->type);
    cw_free(t->flags);
    cw_free(t->blob);
    cw_free(t->rank);
    cw_free(t->merge);
    cw_free(t->merge_slot);
    cw_free(t);
    *tp = NULL;
}

/* --- what others may ask --- */

static bool has(const cw_tok *t, int32_t id)
{
    return id >= 0 && (size_t)id < t->n;
}

const char *cw_tok_piece(const cw_tok *t, int32_t id, size_t *len)
{
    *len = has(t, id) ? t->piece[id].len : 0;
    return has(t, id) ? t->piece[id].data : "";
}

const char *cw_tok_text(const cw_tok *t, int32_t id, size_t *len)
{
    *len = has(t, id) ? t->text[id].len : 0;
    return has(t, id) ? t->text[id].data : "";
}

cw_token_type cw_tok_type(const cw_tok *t, int32_t id)
{
    return has(t, id) ? (cw_token_type)t->type[id] : CW_TOKEN_UNUSED;
}

int32_t cw_tok_find(const cw_tok *t, const char *text, size_t len)
{
    return strmap_find(&t->by_text, text, len);
}
bool cw_tok_is_eog(const cw_tok *t, int32_t id)
{
    return has(t, id) && (t->flags[id] & TOKF_EOG);
}
size_t cw_tok_n_vocab(const cw_tok *t)
{
    return t->n;
}
int32_t cw_tok_bos(const cw_tok *t)
{
    return t->bos;
}
int32_t cw_tok_eos(const cw_tok *t)
{
    return t->eos;
}
int32_t cw_tok_unk(const cw_tok *t)
{
    return t->unk;
}
bool cw_tok_adds_bos(const cw_tok *t)
{
    return t->add_bos && t->bos >= 0;
}
bool cw_tok_adds_eos(const cw_tok *t)
{
    return t->add_eos && t->eos >= 0;
}
bool cw_tok_adds_space(const cw_tok *t)
{
    return t->add_space;
}
size_t cw_tok_max_piece(const cw_tok *t)
{
    return t->max_piece;
}

bool cw_tok_same_vocab(const cw_tok *a, const cw_tok *b)
{
    if (a == b) return true;
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n; i++)
        if (a->text[i].len != b->text[i].len || memcmp(a->text[i].data, b->text[i].data, a->text[i].len) != 0)
            return false;
    return true;
}

uint64_t cw_tok_vocab_hash(const cw_tok *t)
{
    uint64_t h = tok_hash_pair(t->n, 0, 1);
    for (size_t i = 0; i < t->n; i++) h = tok_hash_bytes(t->text[i].data, t->text[i].len, h);
    return h;
}
