/*
 * One GGUF file's bytes -> its metadata and tensor table. Pure: reads memory, makes tables, does no I/O.
 * Nothing is indexed or reserved from a number of the file before that number was checked against what is
 * left of it.
 *
 * Layout (ggml's docs/gguf.md): "GGUF", u32 version, u64 tensors, u64 keys; per key a string, u32 kind,
 * value; per tensor a string, u32 n_dims, u64 ne[n_dims], u32 type, u64 offset; then, aligned to
 * general.alignment, the data the offsets count from. A string is u64 length and bytes. All little-endian.
 */
#include "gguf_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/bytes.h"
#include "cw/type.h"

/* Where we are, and in the making of what, for the sentence about a file that ends too early. */
typedef struct {
    const uint8_t *p;
    size_t size, pos;
    char what[GGUF_TEXT + 32];
} cursor;

static size_t left(const cursor *c)
{
    return c->size - c->pos;
}

static cw_status truncated(const cursor *c, uint64_t need, cw_err *err)
{
    return CW_FAIL(err, CW_STATUS_FORMAT, "the file ends inside %s (byte %zu of %zu, %llu more needed)",
                   c->what, c->pos, c->size, (unsigned long long)(need - left(c)));
}

static cw_status take(cursor *c, uint64_t n, const uint8_t **out, cw_err *err)
{
    if (n > left(c)) return truncated(c, n, err);
    *out = c->p + c->pos;
    c->pos += (size_t)n;
    return CW_OK;
}

static cw_status take_u32(cursor *c, uint32_t *out, cw_err *err)
{
    const uint8_t *p = NULL;
    CW_TRY(take(c, 4, &p, err));
    *out = cw_load_u32(p);
    return CW_OK;
}

static cw_status take_u64(cursor *c, uint64_t *out, cw_err *err)
{
    const uint8_t *p = NULL;
    CW_TRY(take(c, 8, &p, err));
    *out = cw_load_u64(p);
    return CW_OK;
}

static cw_status take_str(cursor *c, cw_gguf_str *out, cw_err *err)
{
    uint64_t n;
    const uint8_t *p = NULL;
    CW_TRY(take_u64(c, &n, err));
    CW_TRY(take(c, n, &p, err));
    *out = (cw_gguf_str){(const char *)p, (size_t)n};
    return CW_OK;
}

/* A key or tensor name as an own, NUL-terminated string. Control characters would let a file write into a
 * terminal or a log, and NUL would make two names one, so they are refused here, once. */
static cw_status take_name(cursor *c, size_t max, char **out, cw_err *err)
{
    cw_gguf_str s;
    CW_TRY(take_str(c, &s, err));
    if (s.len == 0 || s.len > max)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s has a name of %zu bytes (1 to %zu are allowed)", c->what,
                       s.len, max);
    for (size_t i = 0; i < s.len; i++)
        if ((unsigned char)s.data[i] < 0x20 || s.data[i] == 0x7f)
            return CW_FAIL(err, CW_STATUS_FORMAT, "%s has a control character in its name", c->what);
    char *name = cw_strndup(s.data, s.len);
    if (!name) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for names");
    *out = name;
    return CW_OK;
}

static const uint8_t kind_bytes[CW_GGUF_KIND_COUNT] = {
    [CW_GGUF_U8] = 1,  [CW_GGUF_I8] = 1,  [CW_GGUF_U16] = 2, [CW_GGUF_I16] = 2,
    [CW_GGUF_U32] = 4, [CW_GGUF_I32] = 4, [CW_GGUF_F32] = 4, [CW_GGUF_BOOL] = 1,
    [CW_GGUF_U64] = 8, [CW_GGUF_I64] = 8, [CW_GGUF_F64] = 8,
};

static cw_status check_bools(const cursor *c, const uint8_t *p, size_t n, cw_err *err)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] > 1) return CW_FAIL(err, CW_STATUS_FORMAT, "%s holds a bool of value %u", c->what, p[i]);
    return CW_OK;
}

/* On failure the offsets made so far stay in *a, for the caller's clean-up. */
static cw_status parse_string_array(cursor *c, cw_gguf_array *a, cw_err *err)
{
    if (a->n > GGUF_MAX_STRINGS)
        return CW_FAIL(err, CW_STATUS_LIMIT, "%s has %zu strings, more than %d", c->what, a->n,
                       GGUF_MAX_STRINGS);
    /* The caller has checked a->n against what is left of the file. One more offset than strings: the end of
     * the last. */
    uint64_t *offsets = cw_calloc(a->n + 1, sizeof *offsets);
    if (!offsets) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for %s", c->what);
    a->offsets = offsets;
    size_t start = c->pos;
    for (size_t i = 0; i < a->n; i++) {
        cw_gguf_str s;
        offsets[i] = c->pos - start;
        CW_TRY(take_str(c, &s, err));
    }
    offsets[a->n] = c->pos - start;
    return CW_OK;
}

static cw_status parse_array(cursor *c, cw_gguf_array *a, cw_err *err)
{
    uint32_t elem;
    uint64_t n;
    CW_TRY(take_u32(c, &elem, err));
    CW_TRY(take_u64(c, &n, err));
    if (elem == CW_GGUF_ARRAY)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "%s is an array of arrays, which is not supported",
                       c->what);
    if (elem >= CW_GGUF_KIND_COUNT)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s is an array of unknown kind %u", c->what, elem);
    /* An element takes at least one byte, so a count that passes also fits size_t and cannot overflow
     * times 8. */
    size_t size = elem == CW_GGUF_STRING ? 8 : kind_bytes[elem];
    if (n > left(c) / size)
        return n > UINT64_MAX / size ? truncated(c, UINT64_MAX, err) : truncated(c, n * size, err);
    a->elem = (cw_gguf_kind)elem;
    a->n = (size_t)n;
    a->data = c->p + c->pos;
    if (elem == CW_GGUF_STRING) return parse_string_array(c, a, err);
    const uint8_t *p = NULL;
    CW_TRY(take(c, n * size, &p, err));
    return elem == CW_GGUF_BOOL ? check_bools(c, p, a->n, err) : CW_OK;
}

static cw_status parse_kv(cursor *c, cw_gguf_kv *kv, size_t i, cw_err *err)
{
    snprintf(c->what, sizeof c->what, "key number %zu", i + 1);
    char *key = NULL;
    CW_TRY(take_name(c, GGUF_MAX_KEY, &key, err));
    kv->key = key;
    snprintf(c->what, sizeof c->what, "key '%.*s'", GGUF_TEXT, kv->key);
    uint32_t kind;
    CW_TRY(take_u32(c, &kind, err));
    if (kind >= CW_GGUF_KIND_COUNT)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s is of unknown kind %u", c->what, kind);
    kv->kind = (cw_gguf_kind)kind;
    if (kind == CW_GGUF_STRING) return take_str(c, &kv->str, err);
    if (kind == CW_GGUF_ARRAY) return parse_array(c, &kv->arr, err);
    const uint8_t *p = NULL;
    CW_TRY(take(c, kind_bytes[kind], &p, err));
    kv->raw = p;
    return kind == CW_GGUF_BOOL ? check_bools(c, p, 1, err) : CW_OK;
}

/* Sizes, with every product checked. */
static cw_status size_tensor(cw_gguf_tensor *t, cw_err *err)
{
    int32_t block, block_bytes;
    if (!cw_type_extent(t->type, &block, &block_bytes))
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "tensor '%.*s' is of unknown type %u", GGUF_TEXT, t->name,
                       t->type);
    t->supported = cw_type_get(t->type) != NULL;
    if (t->ne[0] % block != 0)
        return CW_FAIL(err, CW_STATUS_FORMAT,
                       "tensor '%.*s' has rows of %lld elements, not a multiple of %s's block of %d",
                       GGUF_TEXT, t->name, (long long)t->ne[0], cw_type_name(t->type), block);
    size_t bytes;
    bool fits = cw_mul_size((size_t)(t->ne[0] / block), (size_t)block_bytes, &bytes);
    t->row_bytes = fits ? bytes : 0;
    int64_t elements = t->ne[0]; /* others count elements in int64: make that safe for them */
    for (int d = 1; fits && d < 4; d++)
        fits = cw_mul_size(bytes, (size_t)t->ne[d], &bytes) &&
               !__builtin_mul_overflow(elements, t->ne[d], &elements);
    if (!fits || bytes > INT64_MAX)
        return CW_FAIL(err, CW_STATUS_FORMAT, "the size of tensor '%.*s' overflows", GGUF_TEXT, t->name);
    t->bytes = bytes;
    return CW_OK;
}

static cw_status parse_tensor(cursor *c, cw_gguf_tensor *t, size_t i, cw_err *err)
{
    snprintf(c->what, sizeof c->what, "tensor number %zu", i + 1);
    char *name = NULL;
    CW_TRY(take_name(c, GGUF_MAX_NAME, &name, err));
    t->name = name;
    snprintf(c->what, sizeof c->what, "the description of tensor '%.*s'", GGUF_TEXT, t->name);
    uint32_t n_dims;
    CW_TRY(take_u32(c, &n_dims, err));
    if (n_dims < 1 || n_dims > 4)
        return CW_FAIL(err, CW_STATUS_FORMAT, "tensor '%.*s' has %u dimensions (1 to 4 are allowed)",
                       GGUF_TEXT, t->name, n_dims);
    t->n_dims = (int)n_dims;
    for (int d = 0; d < 4; d++) {
        uint64_t ne = 1;
        if (d < t->n_dims) CW_TRY(take_u64(c, &ne, err));
        if (ne == 0 || ne > INT64_MAX)
            return CW_FAIL(err, CW_STATUS_FORMAT, "dimension %d of tensor '%.*s' is %llu", d, GGUF_TEXT,
                           t->name, (unsigned long long)ne);
        t->ne[d] = (int64_t)ne;
    }
    CW_TRY(take_u32(c, &t->type, err));
    CW_TRY(take_u64(c, &t->offset, err));
    return size_tensor(t, err);
}

static int by_offset(const void *a, const void *b)
{
    const cw_gguf_tensor *x = *(const cw_gguf_tensor *const *)a, *y = *(const cw_gguf_tensor *const *)b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

static cw_status check_overlap(const gguf_shard *s, cw_err *err)
{
    const cw_gguf_tensor **order = cw_calloc(s->n_tensors, sizeof(*order));
    if (!order) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the tensor table");
    for (size_t i = 0; i < s->n_tensors; i++) order[i] = &s->tensors[i];
    qsort(order, s->n_tensors, sizeof *order, by_offset);
    cw_status st = CW_OK;
    for (size_t i = 1; i < s->n_tensors && st == CW_OK; i++)
        if (order[i]->offset - order[i - 1]->offset < order[i - 1]->bytes)
            st = CW_FAIL(err, CW_STATUS_FORMAT, "tensors '%.*s' and '%.*s' overlap", GGUF_TEXT,
                         order[i - 1]->name, GGUF_TEXT, order[i]->name);
    cw_free(order);
    return st;
}

/* Offsets in the file count from the aligned end of the table; here they become offsets in the file. */
static cw_status place_tensors(gguf_shard *s, size_t table_end, uint64_t alignment, cw_err *err)
{
    /* Cannot overflow: table_end is at most SIZE_MAX / 2 (mapped) and alignment is small. */
    uint64_t base = ((uint64_t)table_end + alignment - 1) / alignment * alignment;
    for (size_t i = 0; i < s->n_tensors; i++) {
        cw_gguf_tensor *t = &s->tensors[i];
        if (t->offset % alignment != 0)
            return CW_FAIL(err, CW_STATUS_FORMAT,
                           "the offset %llu of tensor '%.*s' is not a multiple of the alignment %llu",
                           (unsigned long long)t->offset, GGUF_TEXT, t->name, (unsigned long long)alignment);
        if (base > s->size || t->offset > s->size - base || t->bytes > s->size - base - t->offset)
            return CW_FAIL(
                err, CW_STATUS_FORMAT,
                "tensor '%.*s' lies outside the file: %zu bytes at %llu + %llu, but the file has %zu (is the "
                "download complete?)",
                GGUF_TEXT, t->name, t->bytes, (unsigned long long)base, (unsigned long long)t->offset,
                s->size);
        t->offset += base;
        t->data = s->bytes + t->offset;
    }
    return check_overlap(s, err);
}

static cw_status read_alignment(const gguf_shard *s, uint64_t *out, cw_err *err)
{
    *out = 32;
    for (size_t i = 0; i < s->n_kv; i++) {
        if (strcmp(s->kv[i].key, "general.alignment") != 0) continue;
        bool negative;
        uint64_t v;
        if (!gguf_scalar_int(&s->kv[i], &negative, &v) || negative)
            return CW_FAIL(err, CW_STATUS_FORMAT, "key 'general.alignment' is not an unsigned number");
        if (v < 8 || v > GGUF_MAX_ALIGNMENT || (v & (v - 1)) != 0)
            return CW_FAIL(err, CW_STATUS_FORMAT,
                           "key 'general.alignment' is %llu, not a power of two from 8 to %d",
                           (unsigned long long)v, GGUF_MAX_ALIGNMENT);
        *out = v;
    }
    return CW_OK;
}

static cw_status parse_head(cursor *c, uint64_t *n_tensors, uint64_t *n_kv, cw_err *err)
{
    snprintf(c->what, sizeof c->what, "the header");
    if (c->size < 4 || memcmp(c->p, "GGUF", 4) != 0)
        return CW_FAIL(err, CW_STATUS_FORMAT, "this is not a GGUF file (it does not begin with GGUF)");
    c->pos = 4;
    uint32_t version;
    CW_TRY(take_u32(c, &version, err));
    if (version != 0 && (version & 0xffff) == 0)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "this GGUF file is big-endian, which is not supported");
    if (version != 2 && version != 3)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "this is GGUF version %u; versions 2 and 3 are supported",
                       version);
    CW_TRY(take_u64(c, n_tensors, err));
    CW_TRY(take_u64(c, n_kv, err));
    if (*n_tensors > GGUF_MAX_TENSORS)
        return CW_FAIL(err, CW_STATUS_LIMIT, "the file claims %llu tensors, more than %d",
                       (unsigned long long)*n_tensors, GGUF_MAX_TENSORS);
    if (*n_kv > GGUF_MAX_KEYS)
        return CW_FAIL(err, CW_STATUS_LIMIT, "the file claims %llu keys, more than %d",
                       (unsigned long long)*n_kv, GGUF_MAX_KEYS);
    /* The least a key (name of 1, kind, 1 byte) and a tensor (name of 1, n_dims, 1 dimension, type, offset)
     * can take. */
    uint64_t least = *n_kv * (8 + 1 + 4 + 1) + *n_tensors * (8 + 1 + 4 + 8 + 4 + 8);
    return least > left(c) ? truncated(c, least, err) : CW_OK;
}

cw_status gguf_parse(gguf_shard *s, cw_err *err)
{
    cursor c = {.p = s->bytes, .size = s->size};
    uint64_t n_tensors, n_kv, alignment;
    CW_TRY(parse_head(&c, &n_tensors, &n_kv, err));

    s->kv = cw_calloc((size_t)n_kv, sizeof *s->kv);
    if (!s->kv)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for %llu keys", (unsigned long long)n_kv);
    while (s->n_kv < n_kv) {
        s->n_kv++; /* counted first, so that a half-made one is freed */
        CW_TRY(parse_kv(&c, &s->kv[s->n_kv - 1], s->n_kv - 1, err));
    }
    CW_TRY(read_alignment(s, &alignment, err));

    s->tensors = cw_calloc((size_t)n_tensors, sizeof *s->tensors);
    if (!s->tensors)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for %llu tensors",
                       (unsigned long long)n_tensors);
    while (s->n_tensors < n_tensors) {
        s->n_tensors++;
        CW_TRY(parse_tensor(&c, &s->tensors[s->n_tensors - 1], s->n_tensors - 1, err));
    }
    s->head_bytes = c.pos;
    return place_tensors(s, c.pos, alignment, err);
}
