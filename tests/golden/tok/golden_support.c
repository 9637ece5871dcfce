#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>
#include <utf8proc.h>
#include "cw/detok.h"
#include "cw/gguf.h"
#include "cw/mem.h"
#include "golden_support.h"

char *golden_read(const char *path, size_t *len)
{
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s cannot be read", path);
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    char *p = malloc((size_t)n + 1);
    assert_non_null(p);
    assert_int_equal(fread(p, 1, (size_t)n, f), n);
    p[n] = '\0';
    *len = (size_t)n;
    fclose(f);
    return p;
}

cw_tok *golden_load(const char *path)
{
    cw_gguf *g = NULL;
    cw_tok *t = NULL;
    cw_err err;
    if (cw_gguf_open(path, &g, &err) != CW_OK || cw_tok_new(g, &t, &err) != CW_OK) fail_msg("%s", err.text);
    cw_gguf_close(&g); /* a tokenizer needs nothing of the file any more */
    return t;
}

void golden_round_trip(const cw_tok *t, const char *text, size_t len, const int32_t *ids, size_t n)
{
    char *back;
    size_t n_back, got = 0, k;
    cw_err err;
    assert_int_equal(cw_tok_decode(t, ids, n, 0, &back, &n_back, &err), CW_OK);
    if (n_back != len || memcmp(back, text, len) != 0)
        fail_msg("\"%.*s\" came back as \"%.*s\"", (int)len, text, (int)n_back, back);
    cw_detok *d;
    assert_int_equal(cw_detok_new(t, CW_DETOK_TEXT_START, &d, &err), CW_OK);
    for (size_t i = 0; i <= n; i++) {
        const char *p = i < n ? cw_detok_push(d, ids[i], &k) : cw_detok_flush(d, &k);
        if (got + k > len || memcmp(text + got, p, k) != 0)
            fail_msg("the stream of \"%.*s\" differs at byte %zu", (int)len, text, got);
        got += k;
    }
    assert_int_equal(got, len);
    cw_detok_free(&d);
    cw_free(back);
}

unsigned golden_seed(void)
{
    const char *env = getenv("CW_TEST_SEED");
    unsigned seed = env ? (unsigned)strtoul(env, NULL, 10) : (unsigned)time(NULL);
    print_message("CW_TEST_SEED=%u\n", seed);
    return seed;
}

static int32_t random_char(unsigned *seed, int script)
{
    static const int32_t range[][2] = {
        {0x20, 0x7e},     {0x09, 0x0d},       {0x30, 0x39},     {0xa0, 0x24f},
        {0x300, 0x36f},   {0x370, 0x52f},     {0x900, 0x97f},   {0xe00, 0xe7f},
        {0x2000, 0x206f}, {0x3000, 0x30ff},   {0x4e00, 0x9fff}, {0xac00, 0xd7a3},
        {0xff00, 0xffef}, {0x1f300, 0x1faff}, {0x1, 0xd7ff},    {0xe000, 0x10ffff}};
    const int32_t *r = range[script % (int)(sizeof range / sizeof *range)];
    return r[0] + (int32_t)((unsigned)rand_r(seed) % (unsigned)(r[1] - r[0] + 1));
}

static void one_text(const cw_tok *t, unsigned flags, const char *text, size_t len)
{
    char *normal = flags & GOLDEN_NFC ? (char *)utf8proc_NFC((const utf8proc_uint8_t *)text) : NULL;
    if (normal) text = normal, len = strlen(normal);
    int32_t *ids;
    size_t n;
    cw_err err;
    if (cw_tok_encode(t, text, len, CW_TOK_ADD_BOS, &ids, &n, &err) != CW_OK)
        fail_msg("\"%.*s\": %s", (int)len, text, err.text);
    golden_round_trip(t, text, len, ids, n);
    cw_free(ids);
    free(normal);
}

void golden_random_texts(const cw_tok *t, unsigned flags, int count)
{
    unsigned seed = golden_seed();
    for (int k = 0; k < count; k++) {
        char text[1024];
        size_t n = 0, want = (size_t)rand_r(&seed) % 200;
        for (int script = 0; n < want;) {
            if (rand_r(&seed) % 4 == 0) script = rand_r(&seed);
            int32_t c = random_char(&seed, script);
            if (c == 0x2581 && (flags & GOLDEN_SPM)) continue;
            n += (size_t)utf8proc_encode_char(c, (utf8proc_uint8_t *)text + n);
        }
        text[n] = '\0';
        one_text(t, flags, text, n);
    }
}
