/*
 * Opening and closing: files, maps, shards. A model in shards is NAME-00001-of-0000N.gguf; every shard
 * carries split.no (from 0) and split.count (u16) and split.tensors.count (i32, over all shards), the first
 * one the metadata.
 */
#include "gguf_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static cw_gguf_file_id id_of(const struct stat *st)
{
    return (cw_gguf_file_id){(uint64_t)st->st_size,
                             (uint64_t)st->st_mtim.tv_sec * 1000000000u + (uint64_t)st->st_mtim.tv_nsec,
                             (uint64_t)st->st_ino};
}

void gguf_kvs_free(cw_gguf_kv *kv, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        cw_free((void *)(uintptr_t)kv[i].key);
        cw_free((void *)(uintptr_t)kv[i].arr.offsets);
    }
    cw_free(kv);
}

void gguf_tensors_free(cw_gguf_tensor *t, size_t n)
{
    for (size_t i = 0; i < n; i++) cw_free((void *)(uintptr_t)t[i].name);
    cw_free(t);
}

static void shard_clear(gguf_shard *s)
{
    gguf_kvs_free(s->kv, s->n_kv);
    gguf_tensors_free(s->tensors, s->n_tensors);
    if (s->map_bytes) munmap((void *)(uintptr_t)s->bytes, s->map_bytes);
    if (s->fd >= 0) close(s->fd);
    cw_free(s->path);
    *s = (gguf_shard){.fd = -1};
}

/* Fills descriptor, identity and map. On failure the caller clears *s. */
static cw_status map_file(gguf_shard *s, cw_err *err)
{
    /* Non-blocking, or opening a pipe that somebody named as a model would wait for ever. */
    s->fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (s->fd < 0)
        return CW_FAIL(err, errno == ENOENT ? CW_STATUS_NOT_FOUND : CW_STATUS_IO,
                       "cannot open the model file: %s", strerror(errno));
    struct stat st;
    if (fstat(s->fd, &st) != 0)
        return CW_FAIL(err, CW_STATUS_IO, "cannot examine the model file: %s", strerror(errno));
    if (!S_ISREG(st.st_mode)) return CW_FAIL(err, CW_STATUS_INVALID, "this is not a regular file");
    if (st.st_size == 0) return CW_FAIL(err, CW_STATUS_FORMAT, "the file is empty");
    if ((uint64_t)st.st_size > SIZE_MAX / 2)
        return CW_FAIL(err, CW_STATUS_LIMIT, "the file is too large for this system");
    s->id = id_of(&st);
    s->size = (size_t)st.st_size;
    void *map = mmap(NULL, s->size, PROT_READ, MAP_SHARED, s->fd, 0);
    if (map == MAP_FAILED)
        return CW_FAIL(err, CW_STATUS_IO, "cannot map the model file: %s", strerror(errno));
    s->bytes = map;
    s->map_bytes = s->size;
    return CW_OK;
}

/*
 * The map was for parsing. A program that runs for weeks must not die of a file that somebody truncates, nor
 * hand out bytes that somebody changed, so nothing is left mapped: what was parsed moves into memory of our
 * own at the same address, which keeps every pointer into it, and tensors are read when they are wanted.
 */
static cw_status leave_map(gguf_shard *s, cw_err *err)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), head = (s->head_bytes + page - 1) / page * page;
    void *at = (void *)(uintptr_t)s->bytes;
    uint8_t *own = mmap(NULL, head, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (own == MAP_FAILED)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for %zu bytes of metadata", s->head_bytes);
    cw_status st = CW_OK;
    for (size_t done = 0; st == CW_OK && done < s->head_bytes;) {
        ssize_t n = pread(s->fd, own + done, s->head_bytes - done, (off_t)done);
        if (n > 0)
            done += (size_t)n;
        else if (n == 0 || errno != EINTR)
            st = CW_FAIL(err, CW_STATUS_IO, "cannot read the metadata: %s",
                         n == 0 ? "the file has become shorter" : strerror(errno));
    }
    if (st == CW_OK && mremap(own, head, head, MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED)
        st = CW_FAIL(err, CW_STATUS_IO, "cannot place the metadata: %s", strerror(errno));
    if (st != CW_OK) {
        munmap(own, head);
        return st;
    }
    if (s->map_bytes > head) munmap((uint8_t *)at + head, s->map_bytes - head);
    s->map_bytes = head;
    for (size_t i = 0; i < s->n_tensors; i++) s->tensors[i].data = NULL;
    return CW_OK;
}

static cw_status shard_open(gguf_shard *s, const char *path, cw_err *err)
{
    *s = (gguf_shard){.fd = -1, .path = cw_strdup(path)};
    if (!s->path) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    cw_status st = map_file(s, err);
    if (st == CW_OK) st = gguf_parse(s, err);
    if (st == CW_OK) st = leave_map(s, err);
    if (st == CW_OK) return CW_OK;
    cw_err_prefix(err, "%s", path);
    shard_clear(s);
    return st;
}

/* --- shards --- */

static const cw_gguf_kv *shard_key(const gguf_shard *s, const char *key)
{
    for (size_t i = 0; i < s->n_kv; i++)
        if (strcmp(s->kv[i].key, key) == 0) return &s->kv[i];
    return NULL;
}

/* The unsigned number of `key`, or `absent`. */
static cw_status shard_number(const gguf_shard *s, const char *key, uint64_t max, uint64_t absent,
                              uint64_t *out, cw_err *err)
{
    const cw_gguf_kv *kv = shard_key(s, key);
    bool negative;
    uint64_t v = absent;
    if (kv && (!gguf_scalar_int(kv, &negative, &v) || negative || v > max))
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: key '%s' is not a number from 0 to %llu", s->path, key,
                       (unsigned long long)max);
    *out = v;
    return CW_OK;
}

static const uint64_t NO_NUMBER = UINT64_MAX;

typedef struct {
    uint64_t no, count, n_tensors; /* NO_NUMBER: the key is absent */
} split_info;

static cw_status read_split(const gguf_shard *s, split_info *out, cw_err *err)
{
    CW_TRY(shard_number(s, "split.no", UINT16_MAX, NO_NUMBER, &out->no, err));
    CW_TRY(shard_number(s, "split.count", UINT16_MAX, NO_NUMBER, &out->count, err));
    return shard_number(s, "split.tensors.count", INT32_MAX, NO_NUMBER, &out->n_tensors, err);
}

/* "-00002-of-00007.gguf" at the end of path -> 2 and 7 and the length of what comes before; false: no such
 * ending. */
static bool shard_name_parse(const char *path, size_t *stem, unsigned *no, unsigned *count)
{
    static const char shape[] = "-#####-of-#####.gguf";
    size_t n = strlen(path), tail = sizeof shape - 1;
    if (n < tail) return false;
    unsigned v[2] = {0, 0};
    for (size_t i = 0; i < tail; i++) {
        char c = path[n - tail + i];
        if (shape[i] != '#') {
            if (c != shape[i]) return false;
        } else if (c < '0' || c > '9') {
            return false;
        } else {
            unsigned *to = &v[i < 7 ? 0 : 1];
            *to = *to * 10 + (unsigned)(c - '0');
        }
    }
    *stem = n - tail;
    *no = v[0];
    *count = v[1];
    return true;
}

/* Checks that shard number `i` of `count` is what its name says. `total`: NO_NUMBER until a shard states it.
 */
static cw_status check_shard(const gguf_shard *s, uint64_t i, uint64_t count, uint64_t *total, cw_err *err)
{
    split_info info = {NO_NUMBER, NO_NUMBER, NO_NUMBER};
    CW_TRY(read_split(s, &info, err));
    if (info.count != count)
        return CW_FAIL(err, CW_STATUS_MISMATCH,
                       "%s: this shard belongs to a set of %lld, the others to one of %llu", s->path,
                       (long long)info.count, (unsigned long long)count);
    if (info.no != i)
        return CW_FAIL(err, CW_STATUS_MISMATCH,
                       "%s: by its key 'split.no' this is shard %lld, by its name shard %llu (a copy under a "
                       "wrong name?)",
                       s->path, (long long)(info.no + 1), (unsigned long long)(i + 1));
    if (info.n_tensors == NO_NUMBER) return CW_OK;
    if (*total != NO_NUMBER && *total != info.n_tensors)
        return CW_FAIL(err, CW_STATUS_MISMATCH,
                       "%s: the shards disagree on how many tensors the model has (%llu and %llu)", s->path,
                       (unsigned long long)info.n_tensors, (unsigned long long)*total);
    *total = info.n_tensors;
    return CW_OK;
}

static cw_status open_others(cw_gguf *g, const char *path, size_t stem, unsigned own, uint64_t *total,
                             cw_err *err)
{
    size_t room = strlen(path) + 1;
    char *name = cw_calloc(room, 1);
    if (!name) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    cw_status st = CW_OK;
    for (int i = 0; i < g->n_shards && st == CW_OK; i++) {
        if (i != (int)own) {
            /* The same length as path: only the shard's five digits differ. */
            snprintf(name, room, "%.*s-%05d-of-%05d.gguf", (int)stem, path, i + 1, g->n_shards);
            st = shard_open(&g->shards[i], name, err);
            if (st == CW_STATUS_NOT_FOUND)
                st = CW_FAIL(err, CW_STATUS_NOT_FOUND, "%s: this shard of the model (%d of %d) is missing",
                             name, i + 1, g->n_shards);
        }
        if (st == CW_OK) st = check_shard(&g->shards[i], (uint64_t)i, (uint64_t)g->n_shards, total, err);
    }
    cw_free(name);
    return st;
}

/* Given the open shard 0, finds out whether there are more and opens them. */
static cw_status open_shards(cw_gguf *g, const char *path, uint64_t *total, cw_err *err)
{
    split_info info = {NO_NUMBER, NO_NUMBER, NO_NUMBER};
    CW_TRY(read_split(&g->shards[0], &info, err));
    *total = info.n_tensors;
    if (info.count == NO_NUMBER || info.count <= 1) return CW_OK;
    size_t stem;
    unsigned no, count;
    if (!shard_name_parse(path, &stem, &no, &count))
        return CW_FAIL(err, CW_STATUS_INVALID,
                       "%s: this is shard %lld of %llu, and its name does not end in -00001-of-%05llu.gguf, "
                       "by which the "
                       "others are found",
                       path, (long long)(info.no + 1), (unsigned long long)info.count,
                       (unsigned long long)info.count);
    if (count != info.count || no < 1 || no > count)
        return CW_FAIL(err, CW_STATUS_MISMATCH, "%s: the name says shard %u of %u, the file is one of %llu",
                       path, no, count, (unsigned long long)info.count);
    gguf_shard *all = cw_calloc(count, sizeof *all);
    if (!all) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    for (unsigned i = 0; i < count; i++) all[i].fd = -1;
    all[no - 1] = g->shards[0];
    cw_free(g->shards);
    g->shards = all;
    g->n_shards = (int)count;
    return open_others(g, path, stem, no - 1, total, err);
}

/* --- the whole --- */

/* Moves the shards' tensors into one table and makes the indices. */
static cw_status finish(cw_gguf *g, uint64_t total, cw_err *err)
{
    size_t n = 0;
    for (int i = 0; i < g->n_shards; i++) n += g->shards[i].n_tensors;
    if (total != NO_NUMBER && total != n)
        return CW_FAIL(err, CW_STATUS_MISMATCH,
                       "%s: key 'split.tensors.count' says %llu tensors, the shards hold %zu",
                       g->shards[0].path, (unsigned long long)total, n);
    g->tensors = cw_calloc(n, sizeof *g->tensors);
    if (!g->tensors) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the tensor table");
    for (int i = 0; i < g->n_shards; i++) {
        gguf_shard *s = &g->shards[i];
        for (size_t k = 0; k < s->n_tensors; k++) {
            cw_gguf_tensor *t = &g->tensors[g->n_tensors++];
            *t = s->tensors[k];
            t->shard = i;
        }
        cw_free(s->tensors);
        s->tensors = NULL;
        s->n_tensors = 0;
    }
    const char *duplicate;
    if (!gguf_index_make(&g->names, g->tensors, n, sizeof *g->tensors, &duplicate))
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the tensor table");
    if (duplicate)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: tensor '%.*s' is there twice", g->shards[0].path,
                       GGUF_TEXT, duplicate);
    if (!gguf_index_make(&g->keys, g->shards[0].kv, g->shards[0].n_kv, sizeof *g->shards[0].kv, &duplicate))
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the table of keys");
    if (duplicate)
        return CW_FAIL(err, CW_STATUS_FORMAT, "%s: key '%.*s' is there twice", g->shards[0].path, GGUF_TEXT,
                       duplicate);
    return CW_OK;
}

static cw_status new_with_one_shard(cw_gguf **out, cw_err *err)
{
    cw_gguf *g = cw_calloc(1, sizeof *g);
    gguf_shard *s = cw_calloc(1, sizeof *s);
    if (!g || !s) {
        cw_free(g);
        cw_free(s);
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    }
    s->fd = -1;
    g->shards = s;
    g->n_shards = 1;
    *out = g;
    return CW_OK;
}

cw_status cw_gguf_open(const char *path, cw_gguf **out, cw_err *err)
{
    cw_gguf *g = NULL;
    cw_status s;
    uint64_t total = NO_NUMBER;
    CW_TRY(new_with_one_shard(&g, err));
    CW_TRY_GOTO(s, shard_open(&g->shards[0], path, err));
    CW_TRY_GOTO(s, open_shards(g, path, &total, err));
    CW_TRY_GOTO(s, finish(g, total, err));
    *out = g;
    return CW_OK;
fail:
    cw_gguf_close(&g);
    return s;
}

cw_status cw_gguf_open_memory(const void *data, size_t bytes, const char *label, cw_gguf **out, cw_err *err)
{
    cw_gguf *g = NULL;
    cw_status s;
    split_info info = {NO_NUMBER, NO_NUMBER, NO_NUMBER};
    CW_TRY(new_with_one_shard(&g, err));
    gguf_shard *shard = &g->shards[0];
    shard->path = cw_strdup(label);
    shard->bytes = data;
    shard->size = bytes;
    shard->id.size = bytes;
    if (!shard->path) {
        s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
        goto fail;
    }
    s = bytes > SIZE_MAX / 2 ? CW_FAIL(err, CW_STATUS_LIMIT, "too large") : gguf_parse(shard, err);
    if (s != CW_OK) {
        cw_err_prefix(err, "%s", label);
        goto fail;
    }
    CW_TRY_GOTO(s, read_split(shard, &info, err));
    if (info.count != NO_NUMBER && info.count > 1) {
        s = CW_FAIL(err, CW_STATUS_UNSUPPORTED, "%s: one shard of several cannot be opened from memory",
                    label);
        goto fail;
    }
    CW_TRY_GOTO(s, finish(g, info.n_tensors, err));
    *out = g;
    return CW_OK;
fail:
    cw_gguf_close(&g);
    return s;
}

void cw_gguf_close(cw_gguf **gp)
{
    if (!gp || !*gp) return;
    cw_gguf *g = *gp;
    for (int i = 0; i < g->n_shards; i++) shard_clear(&g->shards[i]);
    gguf_tensors_free(g->tensors, g->n_tensors);
    cw_free(g->shards);
    cw_free(g->keys.v);
    cw_free(g->names.v);
    cw_free(g);
    *gp = NULL;
}

/* --- files --- */

int cw_gguf_shard_count(const cw_gguf *g)
{
    return g->n_shards;
}

const char *cw_gguf_shard_path(const cw_gguf *g, int shard)
{
    CW_ASSERT(shard >= 0 && shard < g->n_shards);
    return g->shards[shard].path;
}

int cw_gguf_shard_fd(const cw_gguf *g, int shard)
{
    CW_ASSERT(shard >= 0 && shard < g->n_shards);
    return g->shards[shard].fd;
}

cw_gguf_file_id cw_gguf_identity(const cw_gguf *g, int shard)
{
    CW_ASSERT(shard >= 0 && shard < g->n_shards);
    return g->shards[shard].id;
}

cw_status cw_gguf_check_unchanged(const cw_gguf *g, cw_err *err)
{
    for (int i = 0; i < g->n_shards; i++) {
        const gguf_shard *s = &g->shards[i];
        struct stat st;
        if (s->fd < 0) continue;
        if (fstat(s->fd, &st) != 0)
            return CW_FAIL(err, CW_STATUS_IO, "%s: cannot examine the model file: %s", s->path,
                           strerror(errno));
        cw_gguf_file_id now = id_of(&st);
        if (now.size != s->id.size || now.mtime_ns != s->id.mtime_ns || now.inode != s->id.inode)
            return CW_FAIL(err, CW_STATUS_MISMATCH, "%s: the model file was changed while it was in use",
                           s->path);
    }
    return CW_OK;
}

cw_status cw_gguf_read(const cw_gguf *g, const cw_gguf_tensor *t, uint64_t offset, size_t bytes, void *dst,
                       cw_err *err)
{
    const gguf_shard *s = &g->shards[t->shard];
    if (offset > t->bytes || bytes > t->bytes - offset)
        return CW_FAIL(err, CW_STATUS_INVALID, "%s: bytes %llu + %zu are outside tensor '%s' of %zu", s->path,
                       (unsigned long long)offset, bytes, t->name, t->bytes);
    uint64_t at = t->offset + offset;
    if (s->fd < 0) {
        if (bytes) memcpy(dst, s->bytes + at, bytes);
        return CW_OK;
    }
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(s->fd, (uint8_t *)dst + done, bytes - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return CW_FAIL(err, CW_STATUS_IO, "%s: cannot read tensor '%s': %s", s->path, t->name,
                           strerror(errno));
        if (n == 0)
            return CW_FAIL(err, CW_STATUS_IO,
                           "%s: the file ends inside tensor '%s': it has become shorter since it was opened",
                           s->path, t->name);
        done += (size_t)n;
    }
    return CW_OK;
}

void cw_gguf_forget(const cw_gguf *g, const cw_gguf_tensor *t, uint64_t offset, size_t bytes)
{
    const gguf_shard *s = &g->shards[t->shard];
    if (s->fd >= 0 && offset <= t->bytes && bytes <= t->bytes - offset && bytes > 0)
        (void)posix_fadvise(s->fd, (off_t)(t->offset + offset), (off_t)bytes, POSIX_FADV_DONTNEED);
}
