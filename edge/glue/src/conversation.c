/*
 * See cw/conversation.h. File form, little-endian: u32 version, u32 n messages; each: u8 role, u64 length,
 * its bytes, u32 n parts; each part: u64 begin, u16 length of the model's name, its bytes.
 */
#include "cw/conversation.h"
#include "cw/bytes.h"
#include "cw/mem.h"

#include <string.h>

enum { VERSION = 1, MAX_MESSAGES = 1 << 20, MAX_PARTS = 1 << 12, MAX_FILE = 1 << 30, MAX_NAME = 1024 };

static const char kind[] = "causeway conversation";
static const char *const roles[] = {"system", "user", "assistant"};

static cw_status no_memory(cw_err *err)
{
    return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
}

static int role_number(const char *role)
{
    for (size_t i = 0; i < CW_ARRAY_LEN(roles); i++)
        if (strcmp(roles[i], role) == 0) return (int)i;
    return -1;
}

static cw_status grow(cw_conversation *c, cw_err *err)
{
    if (c->n < c->cap) return CW_OK;
    size_t cap = c->cap ? 2 * c->cap : 16;
    void *m = cw_realloc(c->messages, cap, sizeof *c->messages);
    if (!m) return no_memory(err);
    c->messages = m;
    void *a = cw_realloc(c->authors, cap, sizeof *c->authors);
    if (!a) return no_memory(err);
    c->authors = a;
    c->cap = cap;
    return CW_OK;
}

cw_status cw_conversation_add(cw_conversation *c, const char *role, const char *text, size_t len, cw_err *err)
{
    int r = role_number(role);
    CW_ASSERT(r >= 0);
    CW_TRY(grow(c, err));
    char *copy = cw_calloc(len + 1, 1);
    if (!copy) return no_memory(err);
    if (len) memcpy(copy, text, len);
    memset(&c->authors[c->n], 0, sizeof *c->authors);
    c->messages[c->n++] = (cw_chat_message){roles[r], copy, len};
    return CW_OK;
}

static cw_status add_part(cw_conversation *c, const char *model, size_t name_len, size_t begin, cw_err *err)
{
    CW_ASSERT(c->n && begin <= c->messages[c->n - 1].len);
    size_t n = c->authors[c->n - 1].n;
    cw_written_part *parts = cw_realloc(c->authors[c->n - 1].parts, n + 1, sizeof *parts);
    if (!parts) return no_memory(err);
    c->authors[c->n - 1].parts = parts;
    CW_ASSERT(n == 0 ? begin == 0 : begin >= parts[n - 1].begin);
    char *name = cw_strndup(model, name_len);
    if (!name) return no_memory(err);
    parts[n] = (cw_written_part){name, begin};
    c->authors[c->n - 1].n = n + 1;
    return CW_OK;
}

cw_status cw_conversation_written_by(cw_conversation *c, const char *model, size_t begin, cw_err *err)
{
    return add_part(c, model, strnlen(model, MAX_NAME), begin, err);
}

void cw_conversation_drop(cw_conversation *c)
{
    CW_ASSERT(c->n);
    c->n--;
    for (size_t i = 0; i < c->authors[c->n].n; i++) cw_free(c->authors[c->n].parts[i].model);
    cw_free(c->authors[c->n].parts);
    cw_free((void *)(uintptr_t)c->messages[c->n].content);
}

void cw_conversation_clear(cw_conversation *c)
{
    while (c->n) cw_conversation_drop(c);
    cw_free(c->messages);
    cw_free(c->authors);
    *c = (cw_conversation){0};
}

bool cw_conversation_is_open(const cw_conversation *c)
{
    return c->n && strcmp(c->messages[c->n - 1].role, "user") == 0;
}

char *cw_conversation_text(const cw_conversation *c)
{
    size_t bytes = 1;
    for (size_t i = 0; i < c->n; i++) bytes += c->messages[i].len;
    char *text = cw_calloc(bytes, 1), *p = text;
    for (size_t i = 0; p && i < c->n; i++) {
        memcpy(p, c->messages[i].content, c->messages[i].len);
        p += c->messages[i].len;
    }
    return text;
}

/* --- file form: writing; sizes first, then bytes by the same walk --- */

typedef struct {
    uint8_t *at; /* NULL: only counting */
    size_t n;
} packer;

static void put(packer *p, const void *data, size_t n)
{
    if (p->at && n) memcpy(p->at + p->n, data, n);
    p->n += n;
}

static void put_number(packer *p, uint64_t v, size_t bytes)
{
    uint8_t b[8];
    cw_store_u64(b, v);
    put(p, b, bytes);
}

static void pack(const cw_conversation *c, packer *p)
{
    put_number(p, VERSION, 4);
    put_number(p, c->n, 4);
    for (size_t i = 0; i < c->n; i++) {
        put_number(p, (uint64_t)role_number(c->messages[i].role), 1);
        put_number(p, c->messages[i].len, 8);
        put(p, c->messages[i].content, c->messages[i].len);
        put_number(p, c->authors[i].n, 4);
        for (size_t k = 0; k < c->authors[i].n; k++) {
            const cw_written_part *w = &c->authors[i].parts[k];
            put_number(p, w->begin, 8);
            put_number(p, strlen(w->model), 2);
            put(p, w->model, strlen(w->model));
        }
    }
}

cw_status cw_conversation_pack(const cw_conversation *c, void **data, size_t *n, cw_err *err)
{
    packer p = {0};
    pack(c, &p);
    if (c->n > MAX_MESSAGES || p.n > MAX_FILE)
        return CW_FAIL(err, CW_STATUS_LIMIT, "the conversation is too long to be kept");
    p = (packer){.at = cw_calloc(p.n, 1)};
    if (!p.at) return no_memory(err);
    pack(c, &p);
    *data = p.at;
    *n = p.n;
    return CW_OK;
}

/* --- reading --- */

typedef struct {
    const uint8_t *at;
    size_t left;
} unpacker;

static const uint8_t *take(unpacker *u, uint64_t n)
{
    if (n > u->left) return NULL;
    const uint8_t *p = u->at;
    u->at += n;
    u->left -= (size_t)n;
    return p;
}

static bool take_number(unpacker *u, size_t bytes, uint64_t *out)
{
    const uint8_t *p = take(u, bytes);
    if (!p) return false;
    *out = 0;
    for (size_t i = 0; i < bytes; i++) *out |= (uint64_t)p[i] << (8 * i);
    return true;
}

static cw_status malformed(cw_err *err)
{
    return CW_FAIL(err, CW_STATUS_FORMAT, "the conversation in it is damaged");
}

static cw_status unpack_message(unpacker *u, cw_conversation *c, cw_err *err)
{
    uint64_t role, len, n_parts, begin, name_len, last = 0;
    if (!take_number(u, 1, &role) || role >= CW_ARRAY_LEN(roles) || !take_number(u, 8, &len))
        return malformed(err);
    const uint8_t *text = take(u, len);
    if (!text) return malformed(err);
    CW_TRY(cw_conversation_add(c, roles[role], (const char *)text, (size_t)len, err));
    if (!take_number(u, 4, &n_parts) || n_parts > MAX_PARTS) return malformed(err);
    for (uint64_t k = 0; k < n_parts; k++) {
        if (!take_number(u, 8, &begin) || !take_number(u, 2, &name_len)) return malformed(err);
        const uint8_t *name = take(u, name_len);
        if (!name || name_len > MAX_NAME || memchr(name, 0, (size_t)name_len)) return malformed(err);
        if (begin > len || begin < last || (k == 0 && begin != 0)) return malformed(err);
        last = begin;
        CW_TRY(add_part(c, (const char *)name, (size_t)name_len, (size_t)begin, err));
    }
    return CW_OK;
}

cw_status cw_conversation_unpack(const void *data, size_t n, cw_conversation *out, cw_err *err)
{
    CW_ASSERT(out->n == 0);
    unpacker u = {data, n};
    uint64_t version, count;
    if (!take_number(&u, 4, &version)) return malformed(err);
    if (version != VERSION)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "it was written by another version of causeway");
    if (!take_number(&u, 4, &count) || count > MAX_MESSAGES) return malformed(err);
    cw_conversation c = {0};
    cw_status s = CW_OK;
    for (uint64_t i = 0; s == CW_OK && i < count; i++) s = unpack_message(&u, &c, err);
    if (s == CW_OK && u.left) s = malformed(err);
    if (s != CW_OK) {
        cw_conversation_clear(&c);
        return s;
    }
    *out = c;
    return CW_OK;
}

/* --- the sealed file --- */

cw_status cw_conversation_write(const cw_conversation *c, const char *path, const cw_seal_key *key,
                                cw_err *err)
{
    void *data = NULL;
    size_t n;
    cw_sealed_writer *w = NULL;
    CW_TRY(cw_conversation_pack(c, &data, &n, err));
    cw_status s = cw_sealed_create(path, key, kind, &w, err);
    if (s == CW_OK) s = cw_sealed_write(w, data, n, err);
    if (s == CW_OK) s = cw_sealed_commit(&w, true, err);
    cw_sealed_discard(&w);
    cw_free(data);
    return s;
}

cw_status cw_conversation_read(const char *path, const cw_seal_key *key, cw_conversation *out, cw_err *err)
{
    void *data = NULL;
    size_t n = 0;
    cw_sealed_reader *r = NULL;
    CW_TRY(cw_sealed_open(path, key, kind, &r, err));
    cw_status s = cw_sealed_read_all(r, MAX_FILE, &data, &n, err);
    cw_sealed_close(&r);
    if (s != CW_OK) return s;
    s = cw_conversation_unpack(data, n, out, err);
    cw_free(data);
    return s == CW_OK ? s : cw_err_prefix(err, "%s", path);
}
