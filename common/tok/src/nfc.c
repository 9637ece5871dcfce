/*
 * Unicode NFC for the vocabularies whose tokenizer normalises first (Qwen 2 and 3). Character data and
 * composition are utf8proc's; the ordering of combining marks is done here, because utf8proc sorts by
 * exchanges and takes quadratic time on a long run of marks, which a user could send.
 */
#include "tok_internal.h"

#include <stdlib.h>
#include <utf8proc.h>
#include "utf8.h"

typedef struct {
    int32_t class;
    uint32_t at;
    int32_t cp;
} mark;

static int by_class(const void *pa, const void *pb)
{
    const mark *a = pa, *b = pb;
    if (a->class != b->class) return a->class < b->class ? -1 : 1;
    return a->at < b->at ? -1 : a->at > b->at; /* stable, as the algorithm wants */
}

static int32_t class_of(int32_t cp)
{
    return utf8proc_get_property(cp)->combining_class;
}

/* Canonical ordering: within each run of characters whose class is not 0, by class. */
static cw_status order_marks(utf8proc_int32_t *cp, size_t n, cw_err *err)
{
    mark *marks = NULL;
    size_t cap = 0;
    cw_status s = CW_OK;
    for (size_t i = 0; i < n;) {
        size_t end = i;
        bool sorted = true;
        int32_t last = 0;
        for (; end < n; end++) {
            int32_t c = cp[end] < 0x300 ? 0 : class_of(cp[end]);
            if (c == 0) break;
            sorted = sorted && c >= last;
            last = c;
        }
        if (!sorted) {
            if ((s = tok_reserve((void **)&marks, &cap, end - i, sizeof *marks, err)) != CW_OK) break;
            for (size_t k = i; k < end; k++) marks[k - i] = (mark){class_of(cp[k]), (uint32_t)k, cp[k]};
            qsort(marks, end - i, sizeof *marks, by_class);
            for (size_t k = i; k < end; k++) cp[k] = marks[k - i].cp;
        }
        i = end + 1;
    }
    cw_free(marks);
    return s;
}

static cw_status decompose(const char *text, size_t len, utf8proc_int32_t **out, size_t *out_n, cw_err *err)
{
    utf8proc_int32_t *cp = NULL;
    size_t cap = 0, n = 0;
    for (size_t i = 0; i < len;) {
        int k = utf8_at(text + i, len - i), boundary = 0;
        CW_ASSERT(k > 0);
        utf8proc_int32_t c = (utf8proc_int32_t)utf8_decode(text + i, k);
        i += (size_t)k;
        cw_status s =
            tok_reserve((void **)&cp, &cap, n + 32, sizeof *cp, err); /* no character becomes more than 18 */
        if (s != CW_OK) {
            cw_free(cp);
            return s;
        }
        if (c < 0xc0) {
            cp[n++] = c;
            continue;
        }
        utf8proc_ssize_t got = utf8proc_decompose_char(c, cp + n, (utf8proc_ssize_t)(cap - n),
                                                       UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
        CW_ASSERT(got > 0 && (size_t)got <= cap - n);
        n += (size_t)got;
    }
    *out = cp;
    *out_n = n;
    return CW_OK;
}

cw_status nfc_normalise(const char *text, size_t len, char **out, size_t *out_len, cw_err *err)
{
    *out = NULL;
    size_t i = 0;
    while (i < len && (uint8_t)text[i] < 0xcc) i++; /* everything below U+0300 is NFC */
    if (i == len) return CW_OK;
    utf8proc_int32_t *cp = NULL;
    size_t n = 0, bytes = 0;
    CW_TRY(decompose(text, len, &cp, &n, err));
    cw_status s = order_marks(cp, n, err);
    char *buf = NULL;
    if (s == CW_OK) {
        utf8proc_ssize_t k =
            utf8proc_normalize_utf32(cp, (utf8proc_ssize_t)n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        CW_ASSERT(k >= 0 && (size_t)k <= n);
        n = (size_t)k;
        buf = cw_calloc(n * 4 + 1, 1);
        if (!buf) s = TOK_NO_MEMORY(err);
    }
    for (size_t k = 0; s == CW_OK && k < n; k++)
        bytes += (size_t)utf8proc_encode_char(cp[k], (utf8proc_uint8_t *)buf + bytes);
    cw_free(cp);
    CW_TRY(s);
    *out = buf;
    *out_len = bytes;
    return CW_OK;
}
