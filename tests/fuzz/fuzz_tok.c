/*
 * Hostile vocabularies and hostile texts. The first byte chooses: a model file whose tokenizer is loaded, a
 * vocabulary put together from the input, or a chat template. What loads must encode any text, give every
 * byte back, stream valid UTF-8, and never find a control token in what a user wrote.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/chat.h"
#include "cw/detok.h"
#include "cw/gguf.h"
#include "cw/log.h"
#include "cw/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct {
    const uint8_t *p;
    size_t n;
} input;

static uint8_t byte(input *in)
{
    if (!in->n) return 0;
    in->n--;
    return *in->p++;
}

static cw_tok_str some(input *in, size_t max)
{
    size_t n = byte(in) % (max + 1);
    if (n > in->n) n = in->n;
    cw_tok_str s = {(const char *)in->p, n};
    in->p += n;
    in->n -= n;
    return s;
}

static void check_stream(const cw_tok *t, const int32_t *ids, size_t n)
{
    cw_detok *d;
    cw_think *s;
    cw_span span;
    size_t len, in = 0, out = 0;
    CW_ASSERT(cw_detok_new(t, CW_DETOK_KEEP_SPECIAL, &d, NULL) == CW_OK &&
              cw_think_new(n & 1, &s, NULL) == CW_OK);
    for (size_t i = 0; i <= n; i++) {
        const char *p = i < n ? cw_detok_push(d, ids[i], &len) : cw_detok_flush(d, &len);
        for (size_t k = 0; k < len;) { /* lead bytes say how long a sequence is, and it is all there */
            uint8_t b = (uint8_t)p[k];
            size_t need = b < 0x80 ? 1 : b < 0xe0 ? 2 : b < 0xf0 ? 3 : 4;
            CW_ASSERT((b < 0x80 || b >= 0xc2) && b < 0xf5 && k + need <= len);
            for (size_t m = 1; m < need; m++) CW_ASSERT(((uint8_t)p[k + m] & 0xc0) == 0x80);
            k += need;
        }
        in += len;
        cw_think_push(s, p, len);
        if (i == n) cw_think_finish(s);
        while (cw_think_next(s, &span)) out += span.len;
    }
    CW_ASSERT(in == out);
    cw_think_free(&s);
    cw_detok_free(&d);
}

static void check_text(const cw_tok *t, const char *text, size_t len, bool exact)
{
    for (unsigned flags = 0; flags < 8; flags++) {
        int32_t *ids;
        size_t n, n_back;
        char *back;
        cw_err err = {0};
        if (cw_tok_encode(t, text, len, flags, &ids, &n, &err) != CW_OK) {
            CW_ASSERT(!exact && strlen(err.text) > 6);
            continue;
        }
        for (size_t i = 0; i < n; i++) CW_ASSERT(ids[i] >= 0 && (size_t)ids[i] < cw_tok_n_vocab(t));
        CW_ASSERT(cw_tok_decode(t, ids, n, 0, &back, &n_back, NULL) == CW_OK);
        if (exact && !flags) {
            CW_ASSERT(n_back == len && memcmp(back, text, len) == 0);
            for (size_t i = 0; i < n; i++) CW_ASSERT(cw_tok_type(t, ids[i]) != CW_TOKEN_CONTROL);
        }
        cw_free(back);
        check_stream(t, ids, n);
        cw_free(ids);
    }
    cw_tok_segment segs[] = {{text, len / 3, true},
                             {text + len / 3, len / 3, false},
                             {text + len / 3 * 2, len - len / 3 * 2, true}};
    int32_t *ids;
    size_t n;
    if (cw_tok_encode_segments(t, segs, 3, CW_TOK_ADD_SPECIAL, &ids, &n, NULL) == CW_OK)
        cw_free(ids);
    else
        CW_ASSERT(!exact);
}

static void from_file(input in)
{
    cw_gguf *g;
    cw_tok *t = NULL;
    cw_chat *c = NULL;
    cw_err err = {0};
    if (cw_gguf_open_memory(in.p, in.n, "fuzz", &g, NULL) != CW_OK) return;
    if (cw_tok_new(g, &t, &err) == CW_OK) {
        static const char text[] = "Hello, <s>w\xc3\xb6rld</s> 123\n\n  \xe4\xb8\x96\xff<think>ab ab</think>";
        check_text(t, text, sizeof text - 1, false);
    } else {
        CW_ASSERT(!t && strlen(err.text) > 6);
    }
    if (cw_chat_new_from_gguf(g, &c, &err) != CW_OK) CW_ASSERT(!c && strlen(err.text) > 6);
    cw_chat_free(&c);
    cw_tok_free(&t);
    cw_gguf_close(&g);
}

#define MAX_TOKENS 400
#define MAX_MERGES 64

/* Every byte has a token, so every text must come back; the rest of the vocabulary is the input's. */
static void from_parts(input in)
{
    static const char *const pre[] = {"deepseek-v3", "deepseek-llm", "deepseek-coder", "qwen2",  "llama-bpe",
                                      "gpt-2",       "smollm",       "kimi-k2",        "default"};
    static char byte_text[256][8];
    static cw_tok_str tokens[MAX_TOKENS], merges[MAX_MERGES];
    static int32_t types[MAX_TOKENS];
    static float scores[MAX_TOKENS];
    cw_tok_spec s;
    cw_tok_spec_init(&s);
    uint8_t mode = byte(&in);
    bool spm = mode & 1, nfc = false;
    s.model = spm ? "llama" : "gpt2";
    if (!spm) s.pre = pre[(mode >> 1) % CW_ARRAY_LEN(pre)], nfc = strcmp(s.pre, "qwen2") == 0;
    s.no_jit = true; /* compiling for every input would be all the fuzzer does */
    size_t n = 0, n_merges = 0;
    for (unsigned b = 0; b < 256; b++, n++) {
        uint32_t cp = b < 33 ? 256 + b : b > 126 && b < 161 ? 256 + b - 94 : b == 173 ? 323 : b;
        char *o = byte_text[b];
        if (spm)
            snprintf(o, 8, "<0x%02X>", b), tokens[n] = (cw_tok_str){o, 6};
        else if (cp < 128)
            o[0] = (char)cp, tokens[n] = (cw_tok_str){o, 1};
        else
            o[0] = (char)(0xc0 | cp >> 6), o[1] = (char)(0x80 | (cp & 63)), tokens[n] = (cw_tok_str){o, 2};
        types[n] = spm ? CW_TOKEN_BYTE : CW_TOKEN_NORMAL;
        scores[n] = 0;
    }
    tokens[n] = (cw_tok_str){"\xe2\x96\x81", 3};
    types[n] = spm ? CW_TOKEN_NORMAL : CW_TOKEN_UNUSED;
    scores[n++] = -1;
    for (int k = byte(&in) % 64; k >= 0; k--, n++) {
        uint8_t kind = byte(&in);
        types[n] = 1 + kind % 6;
        if (types[n] == CW_TOKEN_BYTE || types[n] == CW_TOKEN_UNKNOWN) types[n] = CW_TOKEN_NORMAL;
        scores[n] = (float)(int8_t)(kind ^ 0x55);
        tokens[n] = some(&in, 12);
    }
    for (int k = byte(&in) % MAX_MERGES; k > 0; k--) merges[n_merges++] = some(&in, 8);
    s.tokens = tokens;
    s.types = types;
    s.scores = scores;
    s.merges = merges;
    s.n_tokens = s.n_types = n;
    s.n_scores = spm ? n : 0;
    s.n_merges = spm ? 0 : n_merges;
    uint8_t more = byte(&in);
    s.bos = (more & 1) ? byte(&in) : -1;
    s.eos = (more & 2) ? (int64_t)n - 1 : -1;
    s.add_bos = (more & 4) ? 1 : -1;
    s.add_eos = (more & 8) ? 1 : -1;
    s.add_space_prefix = (more & 16) ? 0 : -1;
    cw_tok *t = NULL;
    cw_err err = {0};
    if (cw_tok_new_from_spec(&s, &t, &err) != CW_OK) {
        CW_ASSERT(!t && strlen(err.text) > 6);
        return;
    }
    /* SentencePiece cannot tell U+2581 from a space */
    bool exact = !nfc && !(spm && memmem(in.p, in.n, "\xe2\x96\x81", 3));
    check_text(t, (const char *)in.p, in.n, exact);
    cw_tok_free(&t);
}

static cw_tok *plain_vocabulary(void)
{
    static const cw_tok_str tokens[] = {{"<s>", 3}, {"</s>", 4}, {"<unk>", 5}};
    static const int32_t types[] = {CW_TOKEN_CONTROL, CW_TOKEN_CONTROL, CW_TOKEN_UNKNOWN};
    static const float scores[] = {0, 0, 0};
    cw_tok_spec s;
    cw_tok *t;
    cw_tok_spec_init(&s);
    s.model = "llama";
    s.tokens = tokens;
    s.types = types;
    s.scores = scores;
    s.n_tokens = s.n_types = s.n_scores = 3;
    s.bos = 0;
    s.eos = 1;
    CW_ASSERT(cw_tok_new_from_spec(&s, &t, NULL) == CW_OK);
    return t;
}

static void from_template(input in)
{
    static cw_tok *t;
    static const char *const roles[] = {"system", "user", "assistant"};
    if (!t) t = plain_vocabulary();
    cw_chat_message m[4];
    for (int i = 0; i < 4; i++) {
        const char *role = roles[byte(&in) % 3];
        cw_tok_str s = some(&in, 40);
        m[i] = (cw_chat_message){role, s.data, s.len};
    }
    cw_chat *c = NULL;
    if (cw_chat_new((const char *)in.p, in.n, &c, NULL) != CW_OK) return;
    int32_t *ids;
    size_t n, n_bos = 0;
    CW_ASSERT(cw_chat_encode(c, t, m, 4, in.n & 1, &ids, &n, NULL) == CW_OK);
    for (size_t i = 0; i < n; i++) n_bos += ids[i] == 0;
    (void)cw_chat_prompt_opens_think(c);
    CW_ASSERT(n_bos >= 1);
    cw_free(ids);
    cw_chat_free(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cw_log_set_level(CW_LOG_ERROR);
    input in = {data, size};
    switch (byte(&in) % 3) {
    case 0: from_file(in); break;
    case 1: from_parts(in); break;
    default: from_template(in); break;
    }
    return 0;
}
