/* See cw/sealed.h. Plaintext passes through one buffer a side, wiped when it is let go. */
#include "cw/sealed.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cw/keys.h"
#include "cw/mem.h"
#include "keyfile.h"

#define ABYTES crypto_secretstream_xchacha20poly1305_ABYTES
#define HEADER crypto_secretstream_xchacha20poly1305_HEADERBYTES
#define FINAL  crypto_secretstream_xchacha20poly1305_TAG_FINAL

_Static_assert(crypto_secretstream_xchacha20poly1305_KEYBYTES == CW_SEED_BYTES, "a key is a seed");

static const char magic[8] = {'C', 'W', 'S', 'E', 'A', 'L', '1', '\n'};

/* --- keys --- */

struct cw_seal_key {
    uint8_t *b; /* sodium_malloc, read-only */
};

static cw_status key_from(const uint8_t seed[CW_SEED_BYTES], void *out, cw_err *err)
{
    cw_seal_key *k = cw_calloc(1, sizeof *k);
    if (k) k->b = sodium_malloc(CW_SEED_BYTES);
    if (!k || !k->b) {
        cw_free(k);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY,
                       "no memory for a key (is the limit of locked memory very small?)");
    }
    memcpy(k->b, seed, CW_SEED_BYTES);
    sodium_mprotect_readonly(k->b);
    *(cw_seal_key **)out = k;
    return CW_OK;
}

cw_status cw_seal_key_new(cw_seal_key **out, cw_err *err)
{
    return cw_seed_new(key_from, out, err);
}

cw_status cw_seal_key_open(const char *path, cw_seal_key **out, cw_err *err)
{
    return cw_seed_open(path, "causeway-session-1", key_from, out, err);
}

void cw_seal_key_free(cw_seal_key **k)
{
    if (!k || !*k) return;
    sodium_free((*k)->b);
    cw_free(*k);
    *k = NULL;
}

/* --- writing --- */

struct cw_sealed_writer {
    FILE *f;
    char *path, *temporary;
    char kind[CW_SEALED_KIND_MAX + 1];
    crypto_secretstream_xchacha20poly1305_state state;
    size_t n; /* in plain */
    uint8_t plain[CW_SEALED_CHUNK], sealed[CW_SEALED_CHUNK + ABYTES];
};

static cw_status write_failed(const cw_sealed_writer *w, cw_err *err)
{
    return CW_FAIL(err, CW_STATUS_IO, "%s: cannot be written: %s", w->path, strerror(errno));
}

static cw_status put_chunk(cw_sealed_writer *w, uint8_t tag, cw_err *err)
{
    crypto_secretstream_xchacha20poly1305_push(&w->state, w->sealed, NULL, w->plain, w->n,
                                               (const uint8_t *)w->kind, strlen(w->kind), tag);
    size_t n = w->n + ABYTES;
    w->n = 0;
    return fwrite(w->sealed, 1, n, w->f) == n ? CW_OK : write_failed(w, err);
}

static cw_status begin(cw_sealed_writer *w, const cw_seal_key *key, cw_err *err)
{
    uint8_t header[HEADER];
    int fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return write_failed(w, err);
    w->f = fdopen(fd, "wb");
    if (!w->f) {
        close(fd);
        unlink(w->temporary);
        return write_failed(w, err);
    }
    crypto_secretstream_xchacha20poly1305_init_push(&w->state, header, key->b);
    bool ok = fwrite(magic, 1, sizeof magic, w->f) == sizeof magic &&
              fwrite(header, 1, sizeof header, w->f) == sizeof header;
    return ok ? CW_OK : write_failed(w, err);
}

cw_status cw_sealed_create(const char *path, const cw_seal_key *key, const char *kind, cw_sealed_writer **out,
                           cw_err *err)
{
    CW_ASSERT(strlen(kind) <= CW_SEALED_KIND_MAX);
    cw_sealed_writer *w = cw_calloc(1, sizeof *w);
    if (w) w->path = cw_strdup(path);
    if (!w || !w->path || asprintf(&w->temporary, "%s.%ld.new", path, (long)getpid()) < 0) {
        if (w) w->temporary = NULL;
        cw_sealed_discard(&w);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    }
    strcpy(w->kind, kind);
    unlink(w->temporary); /* of a process that had our number and died */
    cw_status s = begin(w, key, err);
    if (s != CW_OK) {
        cw_sealed_discard(&w);
        return s;
    }
    *out = w;
    return CW_OK;
}

cw_status cw_sealed_write(cw_sealed_writer *w, const void *data, size_t n, cw_err *err)
{
    const uint8_t *p = data;
    while (n) {
        /* A full buffer waits for more: the last chunk has another tag. */
        if (w->n == CW_SEALED_CHUNK) CW_TRY(put_chunk(w, 0, err));
        size_t now = n < CW_SEALED_CHUNK - w->n ? n : CW_SEALED_CHUNK - w->n;
        memcpy(w->plain + w->n, p, now);
        w->n += now;
        p += now;
        n -= now;
    }
    return CW_OK;
}

/* A name is on the disk when its directory is. */
static void sync_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash ? cw_strndup(path, slash == path ? 1 : (size_t)(slash - path)) : cw_strdup(".");
    int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    cw_free(dir);
}

cw_status cw_sealed_commit(cw_sealed_writer **wp, bool durable, cw_err *err)
{
    cw_sealed_writer *w = *wp;
    cw_status s = put_chunk(w, FINAL, err);
    if (s == CW_OK && (fflush(w->f) != 0 || (durable && fsync(fileno(w->f)) != 0))) s = write_failed(w, err);
    if (s == CW_OK && rename(w->temporary, w->path) != 0) s = write_failed(w, err);
    if (s == CW_OK && durable) sync_directory(w->path);
    cw_sealed_discard(wp);
    return s;
}

void cw_sealed_discard(cw_sealed_writer **wp)
{
    if (!wp || !*wp) return;
    cw_sealed_writer *w = *wp;
    if (w->f) {
        fclose(w->f);
        unlink(w->temporary); /* gone already after a commit */
    }
    free(w->temporary);
    cw_free(w->path);
    sodium_memzero(w, sizeof *w);
    cw_free(w);
    *wp = NULL;
}

/* --- reading --- */

struct cw_sealed_reader {
    FILE *f;
    bool owns;
    char *name;
    char kind[CW_SEALED_KIND_MAX + 1];
    crypto_secretstream_xchacha20poly1305_state state;
    size_t at, n; /* read of plain, held in it */
    bool final;
    uint8_t plain[CW_SEALED_CHUNK], sealed[CW_SEALED_CHUNK + ABYTES];
};

static cw_status open_header(cw_sealed_reader *r, const cw_seal_key *key, cw_err *err)
{
    uint8_t head[sizeof magic + HEADER];
    size_t n = fread(head, 1, sizeof head, r->f);
    if (ferror(r->f)) return CW_FAIL(err, CW_STATUS_IO, "%s: cannot be read: %s", r->name, strerror(errno));
    if (n < sizeof magic || memcmp(head, magic, sizeof magic - 2) != 0)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: this is not a file that causeway keeps conversations in",
                       r->name);
    if (memcmp(head, magic, sizeof magic) != 0)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "%s: written by another version of causeway", r->name);
    if (n < sizeof head) return CW_FAIL(err, CW_STATUS_FORMAT, "%s: the file is cut off", r->name);
    if (crypto_secretstream_xchacha20poly1305_init_pull(&r->state, head + sizeof magic, key->b) != 0)
        return CW_FAIL(err, CW_STATUS_AUTH, "%s: the file is damaged", r->name);
    return CW_OK;
}

cw_status cw_sealed_open_stream(FILE *f, const char *name, const cw_seal_key *key, const char *kind,
                                cw_sealed_reader **out, cw_err *err)
{
    CW_ASSERT(strlen(kind) <= CW_SEALED_KIND_MAX);
    cw_sealed_reader *r = cw_calloc(1, sizeof *r);
    if (r) r->name = cw_strdup(name);
    if (!r || !r->name) {
        cw_sealed_close(&r);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    }
    r->f = f;
    strcpy(r->kind, kind);
    cw_status s = open_header(r, key, err);
    if (s != CW_OK) {
        cw_sealed_close(&r);
        return s;
    }
    *out = r;
    return CW_OK;
}

cw_status cw_sealed_open(const char *path, const cw_seal_key *key, const char *kind, cw_sealed_reader **out,
                         cw_err *err)
{
    FILE *f = fopen(path, "rbe");
    if (!f)
        return CW_FAIL(err, errno == ENOENT ? CW_STATUS_NOT_FOUND : CW_STATUS_IO, "%s: cannot be opened: %s",
                       path, strerror(errno));
    cw_status s = cw_sealed_open_stream(f, path, key, kind, out, err);
    if (s != CW_OK) {
        fclose(f);
        return s;
    }
    (*out)->owns = true;
    return CW_OK;
}

/* The next chunk into plain. */
static cw_status next_chunk(cw_sealed_reader *r, cw_err *err)
{
    if (r->final)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: there is less in it than there must be", r->name);
    size_t n = fread(r->sealed, 1, sizeof r->sealed, r->f);
    if (ferror(r->f)) return CW_FAIL(err, CW_STATUS_IO, "%s: cannot be read: %s", r->name, strerror(errno));
    if (n < ABYTES) return CW_FAIL(err, CW_STATUS_FORMAT, "%s: the file is cut off", r->name);
    uint8_t tag;
    unsigned long long len;
    if (crypto_secretstream_xchacha20poly1305_pull(&r->state, r->plain, &len, &tag, r->sealed, n,
                                                   (const uint8_t *)r->kind, strlen(r->kind)) != 0)
        return CW_FAIL(err, CW_STATUS_AUTH,
                       "%s: the file is damaged, or was sealed with the key of another state directory",
                       r->name);
    if (tag != FINAL && (tag != 0 || len != CW_SEALED_CHUNK))
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: the file is damaged", r->name);
    r->final = tag == FINAL;
    if (r->final && fgetc(r->f) != EOF)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: something follows the end of the file's content", r->name);
    r->at = 0;
    r->n = (size_t)len;
    return CW_OK;
}

cw_status cw_sealed_read(cw_sealed_reader *r, void *data, size_t n, cw_err *err)
{
    uint8_t *p = data;
    while (n) {
        if (r->at == r->n) CW_TRY(next_chunk(r, err));
        size_t now = n < r->n - r->at ? n : r->n - r->at;
        memcpy(p, r->plain + r->at, now);
        r->at += now;
        p += now;
        n -= now;
        if (n && r->final)
            return CW_FAIL(err, CW_STATUS_FORMAT, "%s: there is less in it than there must be", r->name);
    }
    return CW_OK;
}

cw_status cw_sealed_read_all(cw_sealed_reader *r, size_t limit, void **data, size_t *bytes, cw_err *err)
{
    uint8_t *all = NULL;
    size_t len = 0;
    cw_status s = CW_OK;
    for (;;) {
        if (r->at == r->n && !r->final) CW_TRY_GOTO(s, next_chunk(r, err));
        size_t now = r->n - r->at;
        if (now > limit - len) {
            s = CW_FAIL(err, CW_STATUS_LIMIT, "%s: more than the %zu bytes allowed", r->name, limit);
            goto fail;
        }
        uint8_t *more = cw_realloc(all, len + now + 1, 1);
        if (!more) {
            s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
            goto fail;
        }
        all = more;
        memcpy(all + len, r->plain + r->at, now);
        len += now;
        r->at = r->n;
        if (r->final) break;
    }
    *data = all;
    *bytes = len;
    return CW_OK;
fail:
    cw_free(all);
    return s;
}

cw_status cw_sealed_at_end(cw_sealed_reader *r, cw_err *err)
{
    if (r->at == r->n && !r->final) CW_TRY(next_chunk(r, err));
    return r->at == r->n
               ? CW_OK
               : CW_FAIL(err, CW_STATUS_FORMAT, "%s: there is more in it than there should be", r->name);
}

void cw_sealed_close(cw_sealed_reader **rp)
{
    if (!rp || !*rp) return;
    cw_sealed_reader *r = *rp;
    if (r->owns) fclose(r->f);
    cw_free(r->name);
    sodium_memzero(r, sizeof *r);
    cw_free(r);
    *rp = NULL;
}
