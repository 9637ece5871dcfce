/* Look-ups in an open file: keys by kind, array elements, tensors by name. Nothing here touches the disk but
 * the map. */
#include "gguf_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cw/bytes.h"
#include "cw/type.h"

/* --- sorted names --- */

static const char *name_of(const void *record)
{
    return *(const char *const *)record;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(name_of(*(const void *const *)a), name_of(*(const void *const *)b));
}

bool gguf_index_make(gguf_index *ix, const void *records, size_t n, size_t stride, const char **duplicate)
{
    ix->v = cw_calloc(n, sizeof *ix->v);
    if (!ix->v) return false;
    ix->n = n;
    for (size_t i = 0; i < n; i++) ix->v[i] = (const uint8_t *)records + i * stride;
    qsort(ix->v, n, sizeof *ix->v, by_name);
    *duplicate = NULL;
    for (size_t i = 1; i < n; i++)
        if (strcmp(name_of(ix->v[i - 1]), name_of(ix->v[i])) == 0) *duplicate = name_of(ix->v[i]);
    return true;
}

const void *gguf_index_find(const gguf_index *ix, const char *name)
{
    size_t lo = 0, hi = ix->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int order = strcmp(name, name_of(ix->v[mid]));
        if (order == 0) return ix->v[mid];
        if (order < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

/* --- kinds --- */

static const char *const kind_names[CW_GGUF_KIND_COUNT] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

const char *cw_gguf_kind_name(cw_gguf_kind kind)
{
    return (unsigned)kind < CW_GGUF_KIND_COUNT ? kind_names[kind] : "unknown";
}

bool cw_gguf_kind_is_int(cw_gguf_kind kind)
{
    return (unsigned)kind < CW_GGUF_KIND_COUNT && kind != CW_GGUF_F32 && kind != CW_GGUF_BOOL &&
           kind != CW_GGUF_STRING && kind != CW_GGUF_ARRAY && kind != CW_GGUF_F64;
}

/* The integer of that kind at p, which has any alignment. */
static void load_int(cw_gguf_kind kind, const uint8_t *p, bool *negative, uint64_t *magnitude)
{
    int64_t v;
    switch (kind) {
    case CW_GGUF_U8: v = p[0]; break;
    case CW_GGUF_I8: v = (int8_t)p[0]; break;
    case CW_GGUF_U16: v = cw_load_u16(p); break;
    case CW_GGUF_I16: v = (int16_t)cw_load_u16(p); break;
    case CW_GGUF_U32: v = cw_load_u32(p); break;
    case CW_GGUF_I32: v = (int32_t)cw_load_u32(p); break;
    case CW_GGUF_I64: v = (int64_t)cw_load_u64(p); break;
    default:
        CW_ASSERT(kind == CW_GGUF_U64);
        *negative = false;
        *magnitude = cw_load_u64(p);
        return;
    }
    *negative = v < 0;
    *magnitude = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
}

bool gguf_scalar_int(const cw_gguf_kv *kv, bool *negative, uint64_t *magnitude)
{
    if (!cw_gguf_kind_is_int(kv->kind)) return false;
    load_int(kv->kind, kv->raw, negative, magnitude);
    return true;
}

static double load_float(cw_gguf_kind kind, const uint8_t *p)
{
    if (kind == CW_GGUF_F32) return (double)cw_f32_from_bits(cw_load_u32(p));
    CW_ASSERT(kind == CW_GGUF_F64);
    uint64_t u = cw_load_u64(p);
    double d;
    memcpy(&d, &u, 8);
    return d;
}

/* --- keys --- */

size_t cw_gguf_kv_count(const cw_gguf *g)
{
    return g->shards[0].n_kv;
}

const cw_gguf_kv *cw_gguf_kv_at(const cw_gguf *g, size_t i)
{
    CW_ASSERT(i < g->shards[0].n_kv);
    return &g->shards[0].kv[i];
}

const cw_gguf_kv *cw_gguf_kv_find(const cw_gguf *g, const char *key)
{
    return gguf_index_find(&g->keys, key);
}

static cw_status find_key(const cw_gguf *g, const char *key, const cw_gguf_kv **out, cw_err *err)
{
    *out = cw_gguf_kv_find(g, key);
    return *out ? CW_OK
                : CW_FAIL(err, CW_STATUS_NOT_FOUND, "%s: there is no key '%s'", g->shards[0].path, key);
}

static cw_status wrong_kind(const cw_gguf *g, const cw_gguf_kv *kv, const char *wanted, cw_err *err)
{
    return CW_FAIL(err, CW_STATUS_FORMAT, "%s: key '%.*s' is of kind %s where %s is needed",
                   g->shards[0].path, GGUF_TEXT, kv->key, cw_gguf_kind_name(kv->kind), wanted);
}

/* An integer in [-min_magnitude, max]. */
static cw_status get_int(const cw_gguf *g, const char *key, uint64_t min_magnitude, uint64_t max,
                         bool *negative, uint64_t *magnitude, cw_err *err)
{
    const cw_gguf_kv *kv;
    CW_TRY(find_key(g, key, &kv, err));
    bool neg;
    uint64_t mag;
    if (!gguf_scalar_int(kv, &neg, &mag)) return wrong_kind(g, kv, "an integer", err);
    if (mag > (neg ? min_magnitude : max))
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: the value of key '%.*s', %s%llu, is out of range",
                       g->shards[0].path, GGUF_TEXT, kv->key, neg ? "-" : "", (unsigned long long)mag);
    *negative = neg;
    *magnitude = mag;
    return CW_OK;
}

cw_status cw_gguf_get_u32(const cw_gguf *g, const char *key, uint32_t *out, cw_err *err)
{
    bool neg;
    uint64_t v;
    CW_TRY(get_int(g, key, 0, UINT32_MAX, &neg, &v, err));
    *out = (uint32_t)v;
    return CW_OK;
}

cw_status cw_gguf_get_i32(const cw_gguf *g, const char *key, int32_t *out, cw_err *err)
{
    bool neg;
    uint64_t v;
    CW_TRY(get_int(g, key, (uint64_t)INT32_MAX + 1, INT32_MAX, &neg, &v, err));
    *out = (int32_t)(neg ? -(int64_t)v : (int64_t)v);
    return CW_OK;
}

cw_status cw_gguf_get_u64(const cw_gguf *g, const char *key, uint64_t *out, cw_err *err)
{
    bool neg;
    return get_int(g, key, 0, UINT64_MAX, &neg, out, err);
}

cw_status cw_gguf_get_f32(const cw_gguf *g, const char *key, float *out, cw_err *err)
{
    const cw_gguf_kv *kv;
    CW_TRY(find_key(g, key, &kv, err));
    if (kv->kind != CW_GGUF_F32 && kv->kind != CW_GGUF_F64) return wrong_kind(g, kv, "a float", err);
    double d = load_float(kv->kind, kv->raw);
    if (!isfinite(d) || fabs(d) > (double)0x1.fffffep127f)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: the value of key '%.*s' is not a finite number",
                       g->shards[0].path, GGUF_TEXT, kv->key);
    *out = (float)d;
    return CW_OK;
}

cw_status cw_gguf_get_bool(const cw_gguf *g, const char *key, bool *out, cw_err *err)
{
    const cw_gguf_kv *kv;
    CW_TRY(find_key(g, key, &kv, err));
    if (kv->kind != CW_GGUF_BOOL) return wrong_kind(g, kv, "bool", err);
    *out = *(const uint8_t *)kv->raw != 0;
    return CW_OK;
}

cw_status cw_gguf_get_str(const cw_gguf *g, const char *key, cw_gguf_str *out, cw_err *err)
{
    const cw_gguf_kv *kv;
    CW_TRY(find_key(g, key, &kv, err));
    if (kv->kind != CW_GGUF_STRING) return wrong_kind(g, kv, "string", err);
    *out = kv->str;
    return CW_OK;
}

cw_status cw_gguf_get_array(const cw_gguf *g, const char *key, cw_gguf_kind elem, cw_gguf_array *out,
                            cw_err *err)
{
    const cw_gguf_kv *kv;
    CW_TRY(find_key(g, key, &kv, err));
    if (kv->kind != CW_GGUF_ARRAY) return wrong_kind(g, kv, "array", err);
    if (kv->arr.elem != elem)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: key '%.*s' is an array of %s where one of %s is needed",
                       g->shards[0].path, GGUF_TEXT, kv->key, cw_gguf_kind_name(kv->arr.elem),
                       cw_gguf_kind_name(elem));
    *out = kv->arr;
    return CW_OK;
}

#define GET_OR(suffix, type)                                                                                 \
    cw_status cw_gguf_get_##suffix##_or(const cw_gguf *g, const char *key, type def, type *out, cw_err *err) \
    {                                                                                                        \
        if (cw_gguf_kv_find(g, key)) return cw_gguf_get_##suffix(g, key, out, err);                          \
        *out = def;                                                                                          \
        return CW_OK;                                                                                        \
    }
GET_OR(u32, uint32_t)
GET_OR(i32, int32_t)
GET_OR(f32, float)
GET_OR(bool, bool)
#undef GET_OR

/* --- array elements --- */

cw_gguf_str cw_gguf_array_str(const cw_gguf_array *a, size_t i)
{
    CW_ASSERT(a->elem == CW_GGUF_STRING && i < a->n);
    /* The length comes from the table made at opening, not from the map, which somebody may have rewritten
     * since. */
    return (cw_gguf_str){(const char *)a->data + a->offsets[i] + 8,
                         (size_t)(a->offsets[i + 1] - a->offsets[i] - 8)};
}

static size_t elem_bytes(cw_gguf_kind kind)
{
    switch (kind) {
    case CW_GGUF_U8:
    case CW_GGUF_I8:
    case CW_GGUF_BOOL: return 1;
    case CW_GGUF_U16:
    case CW_GGUF_I16: return 2;
    case CW_GGUF_U32:
    case CW_GGUF_I32:
    case CW_GGUF_F32: return 4;
    default: return 8;
    }
}

int64_t cw_gguf_array_i64(const cw_gguf_array *a, size_t i)
{
    CW_ASSERT(cw_gguf_kind_is_int(a->elem) && i < a->n);
    bool negative;
    uint64_t v;
    load_int(a->elem, (const uint8_t *)a->data + i * elem_bytes(a->elem), &negative, &v);
    if (!negative) return v > INT64_MAX ? INT64_MAX : (int64_t)v;
    return v > INT64_MAX ? INT64_MIN : -(int64_t)v;
}

float cw_gguf_array_f32(const cw_gguf_array *a, size_t i)
{
    CW_ASSERT((a->elem == CW_GGUF_F32 || a->elem == CW_GGUF_F64) && i < a->n);
    return (float)load_float(a->elem, (const uint8_t *)a->data + i * elem_bytes(a->elem));
}

bool cw_gguf_array_bool(const cw_gguf_array *a, size_t i)
{
    CW_ASSERT(a->elem == CW_GGUF_BOOL && i < a->n);
    return ((const uint8_t *)a->data)[i] != 0;
}

bool cw_gguf_str_eq(cw_gguf_str s, const char *text)
{
    return strlen(text) == s.len && memcmp(s.data, text, s.len) == 0;
}

/* --- tensors --- */

size_t cw_gguf_tensor_count(const cw_gguf *g)
{
    return g->n_tensors;
}

const cw_gguf_tensor *cw_gguf_tensor_at(const cw_gguf *g, size_t i)
{
    CW_ASSERT(i < g->n_tensors);
    return &g->tensors[i];
}

const cw_gguf_tensor *cw_gguf_find(const cw_gguf *g, const char *name)
{
    return gguf_index_find(&g->names, name);
}

cw_status cw_gguf_tensor_require(const cw_gguf *g, const char *name, const cw_gguf_tensor **out, cw_err *err)
{
    const cw_gguf_tensor *t = cw_gguf_find(g, name);
    if (!t) return CW_FAIL(err, CW_STATUS_NOT_FOUND, "%s: there is no tensor '%s'", g->shards[0].path, name);
    if (!t->supported)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "%s: tensor '%s' is of type %s, which is not supported",
                       g->shards[t->shard].path, name, cw_type_name(t->type));
    *out = t;
    return CW_OK;
}
