#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/mem.h"
#include "vocab_maker.h"

static char *keep(const char *text, size_t len)
{
    char *p = malloc(len + 1);
    if (!p) abort();
    if (len) memcpy(p, text, len);
    p[len] = '\0';
    return p;
}

static void *grow(void *p, size_t n, size_t size)
{
    p = realloc(p, n * size);
    if (!p) abort();
    return p;
}

/* One byte in GPT-2's alphabet, as UTF-8; the number of bytes written. */
static size_t alphabet(uint8_t b, char *out)
{
    uint32_t cp = b, shift = 0;
    for (uint32_t k = 0; k < b; k++) shift += k < 33 || (k > 126 && k < 161) || k == 173;
    if (b < 33 || (b > 126 && b < 161) || b == 173) cp = 256 + shift;
    if (cp < 128) {
        out[0] = (char)cp;
        return 1;
    }
    out[0] = (char)(0xc0 | cp >> 6);
    out[1] = (char)(0x80 | (cp & 63));
    return 2;
}

static char *in_alphabet(const char *bytes, size_t len, size_t *out_len)
{
    char *p = grow(NULL, len * 2 + 1, 1);
    size_t n = 0;
    for (size_t i = 0; i < len; i++) n += alphabet((uint8_t)bytes[i], p + n);
    *out_len = n;
    return p;
}

int32_t vocab_add_n(vocab *v, const char *text, size_t len, cw_token_type type, float score)
{
    size_t n = v->spec.n_tokens;
    if (n == v->cap_tokens) {
        v->cap_tokens = v->cap_tokens * 2 + 512;
        v->tokens = grow(v->tokens, v->cap_tokens, sizeof *v->tokens);
        v->types = grow(v->types, v->cap_tokens, sizeof *v->types);
        v->scores = grow(v->scores, v->cap_tokens, sizeof *v->scores);
    }
    v->tokens[n] = (cw_tok_str){keep(text, len), len};
    v->types[n] = (int32_t)type;
    v->scores[n] = score;
    v->spec.tokens = v->tokens;
    v->spec.types = v->types;
    v->n_tokens = v->spec.n_tokens = v->spec.n_types = n + 1;
    if (strcmp(v->spec.model, "llama") == 0) {
        v->spec.scores = v->scores;
        v->spec.n_scores = n + 1;
    }
    return (int32_t)n;
}

int32_t vocab_add(vocab *v, const char *text, cw_token_type type, float score)
{
    return vocab_add_n(v, text, strlen(text), type, score);
}

int32_t vocab_add_bytes(vocab *v, const char *bytes, size_t len)
{
    size_t n;
    char *text = in_alphabet(bytes, len, &n);
    int32_t id = vocab_add_n(v, text, n, CW_TOKEN_NORMAL, 0);
    free(text);
    return id;
}

void vocab_merge_raw(vocab *v, const char *text)
{
    size_t n = v->spec.n_merges;
    if (n == v->cap_merges) {
        v->cap_merges = v->cap_merges * 2 + 64;
        v->merges = grow(v->merges, v->cap_merges, sizeof *v->merges);
    }
    v->merges[n] = (cw_tok_str){keep(text, strlen(text)), strlen(text)};
    v->spec.merges = v->merges;
    v->n_merges = v->spec.n_merges = n + 1;
}

int32_t vocab_merge(vocab *v, const char *a, const char *b)
{
    size_t na, nb;
    char *ta = in_alphabet(a, strlen(a), &na), *tb = in_alphabet(b, strlen(b), &nb);
    char *line = grow(NULL, na + nb + 2, 1);
    snprintf(line, na + nb + 2, "%.*s %.*s", (int)na, ta, (int)nb, tb);
    vocab_merge_raw(v, line);
    snprintf(line, na + nb + 2, "%.*s%.*s", (int)na, ta, (int)nb, tb);
    int32_t id = -1;
    for (size_t i = 0; i < v->spec.n_tokens && id < 0; i++)
        if (v->tokens[i].len == na + nb && memcmp(v->tokens[i].data, line, na + nb) == 0) id = (int32_t)i;
    if (id < 0) id = vocab_add_n(v, line, na + nb, CW_TOKEN_NORMAL, 0);
    free(ta);
    free(tb);
    free(line);
    return id;
}

vocab *vocab_bpe(const char *pre)
{
    vocab *v = calloc(1, sizeof *v);
    if (!v) abort();
    cw_tok_spec_init(&v->spec);
    v->spec.model = "gpt2";
    v->spec.pre = pre;
    v->spec.label = "test";
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        vocab_add_bytes(v, &c, 1);
    }
    return v;
}

vocab *vocab_spm(void)
{
    vocab *v = calloc(1, sizeof *v);
    if (!v) abort();
    cw_tok_spec_init(&v->spec);
    v->spec.model = "llama";
    v->spec.label = "test";
    v->spec.bos = 1;
    v->spec.eos = 2;
    vocab_add(v, "<unk>", CW_TOKEN_UNKNOWN, 0);
    vocab_add(v, "<s>", CW_TOKEN_CONTROL, 0);
    vocab_add(v, "</s>", CW_TOKEN_CONTROL, 0);
    for (int b = 0; b < 256; b++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)b);
        vocab_add(v, text, CW_TOKEN_BYTE, 0);
    }
    return v;
}

void vocab_free(vocab **vp)
{
    vocab *v = *vp;
    for (size_t i = 0; i < v->n_tokens; i++) free((char *)v->tokens[i].data);
    for (size_t i = 0; i < v->n_merges; i++) free((char *)v->merges[i].data);
    free(v->tokens);
    free(v->merges);
    free(v->types);
    free(v->scores);
    free(v);
    *vp = NULL;
}

cw_tok *vocab_build(const vocab *v)
{
    cw_tok *t = NULL;
    cw_err err;
    if (cw_tok_new_from_spec(&v->spec, &t, &err) != CW_OK) fail_msg("%s", err.text);
    return t;
}

void expect_ids(const cw_tok *t, const char *text, size_t len, unsigned flags, const int32_t *want, size_t n)
{
    int32_t *ids;
    size_t got;
    cw_err err;
    if (cw_tok_encode(t, text, len, flags, &ids, &got, &err) != CW_OK)
        fail_msg("\"%.*s\": %s", (int)len, text, err.text);
    for (size_t i = 0; i < got || i < n; i++)
        if (i >= got || i >= n || ids[i] != want[i])
            fail_msg("\"%.*s\": token %zu of %zu is %d, expected %d of %zu", (int)len, text, i, got,
                     i < got ? (int)ids[i] : -1, i < n ? (int)want[i] : -1, n);
    cw_free(ids);
}
