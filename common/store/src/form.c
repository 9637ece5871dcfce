/*
 * The serialised form of a manifest. It comes from peers and from the disk: every count is checked against
 * what is left, and there is exactly one form for one content (ascending names, sizes derived and not
 * stated), so that equal digests mean equal manifests. Pure: no I/O.
 *
 * All little-endian; a text is u16 length, its bytes, one NUL.
 *   "CWMANIF1"
 *   u32 pairs of the shape, u32 tensors, u32 chunks
 *   per pair, ascending by key: text key, u8 kind (1 u32, 2 f32, 3 text), value
 *   per tensor, ascending by name: text name, u32 type, u8 n_dims, u64 ne[n_dims]
 *   per chunk, in order of tensors and offsets: hash[32]                 <- the digest covers everything up
 * to here u32 arithmetic id, u32 layers with known answers per such layer, ascending: u32 layer, u32 experts,
 * hash[32] per expert hash[32] of everything before How tensors are cut: NAME_exps.weight of three dimensions
 * into its ne[2] slices, others into CW_MANIFEST_CHUNK_BYTES.
 */
#include "store_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cw/bytes.h"
#include "cw/hash.h"
#include "cw/type.h"

#define FILE_CONTEXT "causeway manifest file 1"
static const char magic[8] = {'C', 'W', 'M', 'A', 'N', 'I', 'F', '1'};

/* --- writing --- */

void form_put(form_buffer *b, const void *data, size_t n)
{
    if (b->failed || n == 0) return;
    if (b->room - b->n < n) {
        size_t room = (b->n + n) * 2;
        uint8_t *p = n < SIZE_MAX / 4 && b->n < SIZE_MAX / 4 ? cw_realloc(b->p, room, 1) : NULL;
        if (!p) {
            b->failed = true;
            return;
        }
        b->p = p;
        b->room = room;
    }
    memcpy(b->p + b->n, data, n);
    b->n += n;
}

void form_put_u32(form_buffer *b, uint32_t v)
{
    uint8_t le[4];
    cw_store_u32(le, v);
    form_put(b, le, 4);
}

static void put_text(form_buffer *b, const char *s, size_t n)
{
    uint8_t le[2];
    cw_store_u16(le, (uint16_t)n);
    form_put(b, le, 2);
    form_put(b, s, n);
    form_put(b, "", 1);
}

void form_put_model(form_buffer *b, const cw_shape_pair *shape, size_t n_shape,
                    const cw_manifest_tensor *tensors, size_t n_tensors, uint32_t n_chunks)
{
    form_put(b, magic, sizeof magic);
    form_put_u32(b, (uint32_t)n_shape);
    form_put_u32(b, (uint32_t)n_tensors);
    form_put_u32(b, n_chunks);
    for (size_t i = 0; i < n_shape; i++) {
        const cw_shape_pair *p = &shape[i];
        put_text(b, p->key, strlen(p->key));
        form_put(b, &(uint8_t){(uint8_t)p->kind}, 1);
        if (p->kind == CW_SHAPE_U32)
            form_put_u32(b, p->u32);
        else if (p->kind == CW_SHAPE_F32)
            form_put_u32(b, cw_f32_bits(p->f32));
        else
            put_text(b, p->str.data, p->str.len);
    }
    for (size_t i = 0; i < n_tensors; i++) {
        const cw_manifest_tensor *t = &tensors[i];
        put_text(b, t->name, strlen(t->name));
        form_put_u32(b, t->type);
        form_put(b, &(uint8_t){(uint8_t)t->n_dims}, 1);
        for (int d = 0; d < t->n_dims; d++) {
            uint8_t le[8];
            cw_store_u64(le, (uint64_t)t->ne[d]);
            form_put(b, le, 8);
        }
    }
}

void form_put_answers(form_buffer *b, uint32_t arithmetic_id, const manifest_answers *answers, size_t n)
{
    form_put_u32(b, n ? arithmetic_id : 0);
    form_put_u32(b, (uint32_t)n);
    for (size_t i = 0; i < n; i++) {
        form_put_u32(b, (uint32_t)answers[i].layer);
        form_put_u32(b, (uint32_t)answers[i].n_experts);
        form_put(b, answers[i].hashes, (size_t)answers[i].n_experts * HASH_BYTES);
    }
    uint8_t sum[HASH_BYTES];
    if (b->failed) return;
    cw_hash(FILE_CONTEXT, b->p, b->n, sum);
    form_put(b, sum, sizeof sum);
}

/* --- how tensors are cut --- */

static bool is_experts(const cw_manifest_tensor *t)
{
    static const char end[] = "_exps.weight";
    size_t n = strlen(t->name), m = sizeof end - 1;
    return t->n_dims == 3 && n > m && memcmp(t->name + n - m, end, m) == 0;
}

int form_expert_layer(const char *name)
{
    static const char head[] = "blk.", tail[] = ".ffn_down_exps.weight";
    if (strncmp(name, head, sizeof head - 1) != 0) return -1;
    const char *p = name + sizeof head - 1;
    int layer = 0;
    const char *digits = p;
    for (; *p >= '0' && *p <= '9' && layer < MAX_LAYERS; p++) layer = layer * 10 + (*p - '0');
    bool plain = p > digits && (*digits != '0' || p == digits + 1) && layer < MAX_LAYERS;
    return plain && strcmp(p, tail) == 0 ? layer : -1;
}

cw_status form_cut(cw_manifest_tensor *t, cw_err *err)
{
    size_t row, bytes;
    int32_t block, block_bytes;
    if (!cw_type_extent(t->type, &block, &block_bytes))
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "tensor '%.96s' is of unknown type %u", t->name, t->type);
    if (!cw_type_row_bytes(t->type, t->ne[0], &row))
        return CW_FAIL(err, CW_STATUS_FORMAT, "tensor '%.96s' has rows that are not whole blocks of %s",
                       t->name, cw_type_name(t->type));
    bytes = row;
    for (int d = 1; d < t->n_dims; d++)
        if (!cw_mul_size(bytes, (size_t)t->ne[d], &bytes) || bytes > INT64_MAX)
            return CW_FAIL(err, CW_STATUS_FORMAT, "the size of tensor '%.96s' overflows", t->name);
    t->bytes = bytes;
    t->experts = is_experts(t);
    t->chunk_bytes = t->experts ? bytes / (size_t)t->ne[2] : CW_MANIFEST_CHUNK_BYTES;
    if (t->chunk_bytes > CW_MANIFEST_MAX_CHUNK_BYTES || (t->experts && t->ne[2] > MAX_EXPERTS))
        return CW_FAIL(err, CW_STATUS_LIMIT, "the experts of tensor '%.96s' are too large or too many",
                       t->name);
    uint64_t n = (bytes + t->chunk_bytes - 1) / t->chunk_bytes;
    if (n > CW_MANIFEST_MAX_BYTES / HASH_BYTES)
        return CW_FAIL(err, CW_STATUS_LIMIT, "tensor '%.96s' is too large", t->name);
    t->n_chunks = (uint32_t)n;
    return CW_OK;
}

/* --- reading --- */

typedef struct {
    const uint8_t *p;
    size_t size, pos;
} cursor;

static size_t left(const cursor *c)
{
    return c->size - c->pos;
}

static const uint8_t *take(cursor *c, uint64_t n)
{
    if (n > left(c)) return NULL;
    c->pos += (size_t)n;
    return c->p + c->pos - n;
}

static bool take_u32(cursor *c, uint32_t *out)
{
    const uint8_t *p = take(c, 4);
    if (p) *out = cw_load_u32(p);
    return p != NULL;
}

static bool take_text(cursor *c, size_t max, const char **out, size_t *len)
{
    const uint8_t *p = take(c, 2);
    if (!p) return false;
    size_t n = cw_load_u16(p);
    p = take(c, n + 1);
    if (!p || n > max || p[n] != 0) return false;
    *out = (const char *)p;
    *len = n;
    return true;
}

/* A key or name: not empty, no control characters (a NUL among them), above the one before it. */
static bool take_name(cursor *c, const char *before, const char **out)
{
    size_t n;
    if (!take_text(c, MAX_NAME, out, &n) || n == 0) return false;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)(*out)[i] < 0x20 || (*out)[i] == 0x7f) return false;
    return !before || strcmp(before, *out) < 0;
}

static bool parse_pair(cursor *c, const char *before, cw_shape_pair *pair)
{
    const uint8_t *kind;
    uint32_t v;
    if (!take_name(c, before, &pair->key) || !(kind = take(c, 1))) return false;
    pair->kind = (cw_shape_kind)*kind;
    switch (*kind) {
    case CW_SHAPE_U32: return take_u32(c, &pair->u32);
    case CW_SHAPE_F32:
        if (!take_u32(c, &v)) return false;
        pair->f32 = cw_f32_from_bits(v);
        return isfinite(pair->f32);
    case CW_SHAPE_STR: return take_text(c, MAX_TEXT, &pair->str.data, &pair->str.len);
    default: return false;
    }
}

static cw_status malformed(const cursor *c, const char *what, cw_err *err)
{
    return CW_FAIL(err, CW_STATUS_FORMAT, "the manifest is malformed: %s, before byte %zu of %zu", what,
                   c->pos, c->size);
}

static cw_status parse_tensor(cursor *c, const char *before, cw_manifest_tensor *t, cw_err *err)
{
    const uint8_t *p;
    if (!take_name(c, before, &t->name) || !take_u32(c, &t->type) || !(p = take(c, 1)) || *p < 1 || *p > 4)
        return malformed(c, "tensor", err);
    t->n_dims = *p;
    for (int d = 0; d < 4; d++) {
        t->ne[d] = 1;
        if (d >= t->n_dims) continue;
        if (!(p = take(c, 8)) || cw_load_u64(p) == 0 || cw_load_u64(p) > INT64_MAX)
            return malformed(c, "dimension of a tensor", err);
        t->ne[d] = (int64_t)cw_load_u64(p);
    }
    return form_cut(t, err);
}

static cw_status parse_model(cursor *c, cw_manifest *m, cw_err *err)
{
    const uint8_t *p = take(c, sizeof magic);
    uint32_t n_shape, n_tensors, n_chunks;
    if (!p || memcmp(p, magic, sizeof magic) != 0)
        return malformed(c, "it is of another kind or version", err);
    if (!take_u32(c, &n_shape) || !take_u32(c, &n_tensors) || !take_u32(c, &n_chunks) ||
        n_shape > MAX_SHAPE || n_tensors > MAX_TENSORS || n_shape > left(c) / 6 || n_tensors > left(c) / 17 ||
        n_chunks > left(c) / HASH_BYTES)
        return malformed(c, "counts", err);
    m->shape = cw_calloc(n_shape, sizeof *m->shape);
    m->tensors = cw_calloc(n_tensors, sizeof *m->tensors);
    if (!m->shape || !m->tensors) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a manifest");
    for (const char *before = NULL; m->n_shape < n_shape; before = m->shape[m->n_shape++].key)
        if (!parse_pair(c, before, &m->shape[m->n_shape])) return malformed(c, "shape", err);
    uint64_t chunks = 0;
    for (const char *before = NULL; m->n_tensors < n_tensors; before = m->tensors[m->n_tensors++].name) {
        cw_manifest_tensor *t = &m->tensors[m->n_tensors];
        CW_TRY(parse_tensor(c, before, t, err));
        t->first_chunk = (uint32_t)chunks;
        chunks += t->n_chunks;
        if (chunks > n_chunks) return malformed(c, "more chunks than stated", err);
    }
    if (chunks != n_chunks) return malformed(c, "fewer chunks than stated", err);
    m->n_chunks = n_chunks;
    m->hashes = take(c, (uint64_t)n_chunks * HASH_BYTES);
    if (!m->hashes) return malformed(c, "hashes of chunks", err);
    m->model_bytes = c->pos;
    return CW_OK;
}

static cw_status parse_answers(cursor *c, cw_manifest *m, cw_err *err)
{
    uint32_t n;
    if (!take_u32(c, &m->arithmetic_id) || !take_u32(c, &n) || n > left(c) / (8 + HASH_BYTES))
        return malformed(c, "count of known answers", err);
    if (n == 0 && m->arithmetic_id != 0) return malformed(c, "arithmetic of no answers", err);
    m->answers = cw_calloc(n, sizeof *m->answers);
    if (!m->answers) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a manifest");
    for (int before = -1; m->n_answers < n; before = m->answers[m->n_answers++].layer) {
        manifest_answers *a = &m->answers[m->n_answers];
        uint32_t layer, n_experts;
        char name[64];
        if (!take_u32(c, &layer) || !take_u32(c, &n_experts) || layer >= MAX_LAYERS || (int)layer <= before ||
            n_experts > MAX_EXPERTS)
            return malformed(c, "layer of known answers", err);
        snprintf(name, sizeof name, "blk.%u.ffn_down_exps.weight", layer);
        const cw_manifest_tensor *t = cw_manifest_tensor_find(m, name);
        if (!t || !t->experts || t->n_chunks != n_experts)
            return malformed(c, "answers of experts that are not there", err);
        *a = (manifest_answers){(int)layer, (int)n_experts, take(c, (uint64_t)n_experts * HASH_BYTES)};
        if (!a->hashes) return malformed(c, "known answers", err);
    }
    return CW_OK;
}

static cw_status parse_all(cw_manifest *m, const uint8_t *digest, cw_err *err)
{
    if (m->n_bytes < HASH_BYTES || m->n_bytes > CW_MANIFEST_MAX_BYTES)
        return CW_FAIL(err, CW_STATUS_FORMAT, "a manifest of %zu bytes is not possible", m->n_bytes);
    cursor c = {m->bytes, m->n_bytes - HASH_BYTES, 0};
    uint8_t sum[HASH_BYTES];
    cw_hash(FILE_CONTEXT, c.p, c.size, sum);
    if (memcmp(sum, c.p + c.size, HASH_BYTES) != 0)
        return CW_FAIL(err, CW_STATUS_FORMAT, "the manifest is damaged: its check sum is wrong");
    CW_TRY(parse_model(&c, m, err));
    CW_TRY(parse_answers(&c, m, err));
    if (left(&c) != 0) return malformed(&c, "something follows its end", err);
    cw_hash(DIGEST_CONTEXT, m->bytes, m->model_bytes, m->digest);
    if (digest && memcmp(digest, m->digest, HASH_BYTES) != 0)
        return CW_FAIL(err, CW_STATUS_MISMATCH, "the manifest is that of another model");
    return CW_OK;
}

cw_status form_parse(uint8_t *bytes, size_t n, const uint8_t *digest, cw_manifest **out, cw_err *err)
{
    cw_manifest *m = cw_calloc(1, sizeof *m);
    if (!m) {
        cw_free(bytes);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a manifest");
    }
    m->bytes = bytes;
    m->n_bytes = n;
    cw_status s = parse_all(m, digest, err);
    if (s != CW_OK)
        cw_manifest_free(&m);
    else
        *out = m;
    return s;
}
