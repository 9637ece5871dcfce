#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
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
