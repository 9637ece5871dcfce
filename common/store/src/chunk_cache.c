/*
 * A directory of chunks: DIR/ab/abcd...(64 hex digits of the hash), and DIR/tmp-* while they are written. An
 * index in memory, in order of use, decides who goes; the files' modification times carry that order over a
 * restart. One lock guards the index and the names in the directory; contents are read and written outside
 * it.
 */
#include "cw/chunk_cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "cw/log.h"
#include "cw/mem.h"

enum { HASH_BYTES = CW_MANIFEST_HASH_BYTES, N_BUCKETS = 1 << 14 };

typedef struct entry {
    uint8_t hash[HASH_BYTES];
    uint64_t bytes;
    struct entry *chain;         /* same bucket */
    struct entry *newer, *older; /* order of use */
} entry;

struct cw_chunk_cache {
    char *dir;
    uint64_t limit, reserve;
    pthread_mutex_t lock;
    entry **buckets; /* [N_BUCKETS] */
    entry *newest, *oldest;
    uint64_t writing; /* bytes promised to puts under way */
    unsigned serial;  /* of temporary files */
    cw_chunk_cache_stats stats;
};

/* --- names --- */

static void path_of(const cw_chunk_cache *c, const uint8_t *hash, char path[PATH_MAX])
{
    int n = snprintf(path, PATH_MAX, "%s/%02x/", c->dir, hash[0]);
    for (int i = 0; i < HASH_BYTES && n < PATH_MAX - 3; i++)
        n += snprintf(path + n, PATH_MAX - (size_t)n, "%02x", hash[i]);
}

static bool hash_of_name(const char *name, uint8_t hash[HASH_BYTES])
{
    if (strlen(name) != 2 * HASH_BYTES || strspn(name, "0123456789abcdef") != 2 * HASH_BYTES) return false;
    for (int i = 0; i < HASH_BYTES; i++) {
        char two[3] = {name[2 * i], name[2 * i + 1], 0};
        hash[i] = (uint8_t)strtoul(two, NULL, 16);
    }
    return true;
}

/* --- the index; all with the lock held --- */

static entry **bucket_of(cw_chunk_cache *c, const uint8_t *hash)
{
    return &c->buckets[(hash[0] | hash[1] << 8) % N_BUCKETS];
}

static entry *find(cw_chunk_cache *c, const uint8_t *hash)
{
    for (entry *e = *bucket_of(c, hash); e; e = e->chain)
        if (memcmp(e->hash, hash, HASH_BYTES) == 0) return e;
    return NULL;
}

static void unlink_order(cw_chunk_cache *c, entry *e)
{
    if (e->newer)
        e->newer->older = e->older;
    else
        c->newest = e->older;
    if (e->older)
        e->older->newer = e->newer;
    else
        c->oldest = e->newer;
    e->newer = e->older = NULL;
}

static void make_newest(cw_chunk_cache *c, entry *e)
{
    e->newer = NULL;
    e->older = c->newest;
    if (c->newest)
        c->newest->newer = e;
    else
        c->oldest = e;
    c->newest = e;
}

static bool insert(cw_chunk_cache *c, const uint8_t *hash, uint64_t bytes)
{
    entry *e = cw_calloc(1, sizeof *e);
    if (!e) return false;
    memcpy(e->hash, hash, HASH_BYTES);
    e->bytes = bytes;
    entry **b = bucket_of(c, hash);
    e->chain = *b;
    *b = e;
    make_newest(c, e);
    c->stats.bytes += bytes;
    c->stats.chunks++;
    return true;
}

/* From the index and from the disk. */
static void discard(cw_chunk_cache *c, entry *e)
{
    char path[PATH_MAX];
    path_of(c, e->hash, path);
    if (unlink(path) != 0 && errno != ENOENT)
        CW_LOG_W("store", "cannot remove cached chunk: path=%s why=%s", path, strerror(errno));
    unlink_order(c, e);
    entry **p = bucket_of(c, e->hash);
    while (*p != e) p = &(*p)->chain;
    *p = e->chain;
    c->stats.bytes -= e->bytes;
    c->stats.chunks--;
    cw_free(e);
}

static void evict_to(cw_chunk_cache *c, uint64_t bytes)
{
    while (c->oldest && c->stats.bytes + c->writing > bytes) {
        discard(c, c->oldest);
        c->stats.evicted++;
    }
}

/* --- opening: what earlier runs left --- */

typedef struct {
    uint8_t hash[HASH_BYTES];
    uint64_t bytes;
    struct timespec used;
} found;

typedef struct {
    found *v;
    size_t n, room;
} found_list;

static int by_use(const void *a, const void *b)
{
    const struct timespec *x = &((const found *)a)->used, *y = &((const found *)b)->used;
    if (x->tv_sec != y->tv_sec) return x->tv_sec < y->tv_sec ? -1 : 1;
    return (x->tv_nsec > y->tv_nsec) - (x->tv_nsec < y->tv_nsec);
}

static bool note(found_list *l, const found *f)
{
    if (l->n == l->room) {
        size_t room = l->room ? l->room * 2 : 256;
        found *v = cw_realloc(l->v, room, sizeof *v);
        if (!v) return false;
        l->v = v;
        l->room = room;
    }
    l->v[l->n++] = *f;
    return true;
}

static bool scan_folder(const char *path, unsigned first, found_list *l)
{
    DIR *d = opendir(path);
    if (!d) return true; /* not made yet */
    bool ok = true;
    for (struct dirent *e; ok && (e = readdir(d));) {
        found f;
        struct stat st;
        if (!hash_of_name(e->d_name, f.hash) || f.hash[0] != first) continue;
        if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode)) continue;
        f.bytes = (uint64_t)st.st_size;
        f.used = st.st_mtim;
        ok = note(l, &f);
    }
    closedir(d);
    return ok;
}

static void remove_half_written(const char *dir)
{
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));)
        if (strncmp(e->d_name, "tmp-", 4) == 0) (void)unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
}

static cw_status scan(cw_chunk_cache *c, cw_err *err)
{
    found_list l = {0};
    bool ok = true;
    char path[PATH_MAX];
    if (mkdir(c->dir, 0700) != 0 && errno != EEXIST)
        return CW_FAIL(err, CW_STATUS_IO, "cannot make the chunk cache %s: %s", c->dir, strerror(errno));
    if (access(c->dir, R_OK | W_OK | X_OK) != 0)
        return CW_FAIL(err, CW_STATUS_IO, "cannot use the chunk cache %s: %s", c->dir, strerror(errno));
    remove_half_written(c->dir);
    for (unsigned i = 0; ok && i < 256; i++) {
        snprintf(path, sizeof path, "%s/%02x", c->dir, i);
        ok = scan_folder(path, i, &l);
    }
    if (l.n) qsort(l.v, l.n, sizeof *l.v, by_use);
    for (size_t i = 0; ok && i < l.n; i++) ok = insert(c, l.v[i].hash, l.v[i].bytes);
    cw_free(l.v);
    if (!ok) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the chunk cache");
    evict_to(c, c->limit);
    return CW_OK;
}

cw_status cw_chunk_cache_open(const cw_chunk_cache_options *o, cw_chunk_cache **out, cw_err *err)
{
    cw_chunk_cache *c = cw_calloc(1, sizeof *c);
    if (!c) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the chunk cache");
    pthread_mutex_init(&c->lock, NULL);
    c->limit = o->limit_bytes;
    c->reserve = o->reserve_bytes;
    c->dir = cw_strdup(o->dir ? o->dir : "");
    c->buckets = cw_calloc(N_BUCKETS, sizeof(entry *));
    cw_status s = CW_OK;
    if (!c->dir || !c->buckets) s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the chunk cache");
    /* "/ab/", 64 digits and a NUL must fit after it. */
    else if (strlen(c->dir) > PATH_MAX - 80)
        s = CW_FAIL(err, CW_STATUS_INVALID, "the chunk cache's path is too long");
    else if (c->limit > 0)
        s = scan(c, err);
    if (s != CW_OK)
        cw_chunk_cache_close(&c);
    else
        *out = c;
    return s;
}

void cw_chunk_cache_close(cw_chunk_cache **cp)
{
    if (!cp || !*cp) return;
    cw_chunk_cache *c = *cp;
    for (entry *e = c->newest, *next; e; e = next) {
        next = e->older;
        cw_free(e);
    }
    pthread_mutex_destroy(&c->lock);
    cw_free(c->buckets);
    cw_free(c->dir);
    cw_free(c);
    *cp = NULL;
}

/* --- writing --- */

static cw_status no_room(const cw_chunk_cache *c, const char *why, size_t n, cw_err *err)
{
    return CW_FAIL(err, CW_STATUS_LIMIT, "a chunk of %zu bytes is not kept in %s: %s", n, c->dir, why);
}

static cw_status failed(const cw_chunk_cache *c, size_t n, cw_err *err)
{
    if (errno == ENOSPC || errno == EDQUOT) return no_room(c, "the disk is full", n, err);
    return CW_FAIL(err, CW_STATUS_IO, "a chunk of %zu bytes is not kept in %s: %s", n, c->dir,
                   strerror(errno));
}

/* Before anything is evicted for a chunk that would not fit anyway. */
static cw_status ask_for_space(const cw_chunk_cache *c, size_t n, cw_err *err)
{
    struct statvfs fs;
    if (statvfs(c->dir, &fs) != 0) return failed(c, n, err);
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
    return room < n || room - n < c->reserve ? no_room(c, "the disk is full", n, err) : CW_OK;
}

static cw_status write_file(const cw_chunk_cache *c, const char *path, const void *data, size_t n,
                            cw_err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return failed(c, n, err);
    cw_status s = CW_OK;
    for (size_t done = 0; done < n && s == CW_OK;) {
        ssize_t k = write(fd, (const uint8_t *)data + done, n - done);
        if (k >= 0)
            done += (size_t)k;
        else if (errno != EINTR)
            s = failed(c, n, err);
    }
    if (close(fd) != 0 && s == CW_OK) s = failed(c, n, err);
    if (s != CW_OK) (void)unlink(path);
    return s;
}

/* Gives the temporary file its name and the chunk its entry; ends the promise of `writing`. */
static cw_status publish(cw_chunk_cache *c, const uint8_t *hash, const char *tmp, size_t n, cw_err *err)
{
    char path[PATH_MAX], folder[PATH_MAX];
    cw_status s = CW_OK;
    path_of(c, hash, path);
    snprintf(folder, sizeof folder, "%.*s", (int)(strlen(c->dir) + 3), path);
    pthread_mutex_lock(&c->lock);
    c->writing -= n;
    if (find(c, hash))
        (void)unlink(tmp); /* another thread was faster */
    else if ((mkdir(folder, 0700) != 0 && errno != EEXIST) || rename(tmp, path) != 0)
        s = failed(c, n, err);
    else if (!insert(c, hash, n)) {
        (void)unlink(path);
        s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the chunk cache");
    }
    pthread_mutex_unlock(&c->lock);
    if (s != CW_OK) (void)unlink(tmp);
    return s;
}

cw_status cw_chunk_cache_put(cw_chunk_cache *c, const uint8_t hash[HASH_BYTES], const void *data, size_t n,
                             cw_err *err)
{
    if (n > c->limit)
        return no_room(c, c->limit ? "it is larger than the cache" : "the cache's size is 0", n, err);
    CW_TRY(ask_for_space(c, n, err));
    char tmp[PATH_MAX];
    pthread_mutex_lock(&c->lock);
    entry *e = find(c, hash);
    if (e) {
        unlink_order(c, e);
        make_newest(c, e);
    } else if (n > c->limit - (c->writing < c->limit ? c->writing : c->limit)) {
        e = NULL;
        pthread_mutex_unlock(&c->lock);
        return no_room(c, "other chunks are being written", n, err);
    } else {
        c->writing += n;
        evict_to(c, c->limit);
        snprintf(tmp, sizeof tmp, "%s/tmp-%d-%u", c->dir, (int)getpid(), c->serial++);
    }
    pthread_mutex_unlock(&c->lock);
    if (e) return CW_OK;
    cw_status s = write_file(c, tmp, data, n, err);
    if (s == CW_OK) return publish(c, hash, tmp, n, err);
    pthread_mutex_lock(&c->lock);
    c->writing -= n;
    pthread_mutex_unlock(&c->lock);
    return s;
}

/* --- reading --- */

/* Whole, of that length and hash, or false. */
static bool read_file(const char *path, const uint8_t *hash, void *dst, size_t n)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return false;
    struct stat st;
    bool ok = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size == n;
    for (size_t done = 0; ok && done < n;) {
        ssize_t k = read(fd, (uint8_t *)dst + done, n - done);
        if (k > 0)
            done += (size_t)k;
        else if (k == 0 || errno != EINTR)
            ok = false;
    }
    uint8_t is[HASH_BYTES];
    if (ok) {
        cw_chunk_hash(dst, n, is);
        ok = memcmp(is, hash, HASH_BYTES) == 0;
    }
    if (ok) (void)futimens(fd, (const struct timespec[2]){{0, UTIME_NOW}, {0, UTIME_NOW}});
    close(fd);
    return ok;
}

cw_status cw_chunk_cache_get(cw_chunk_cache *c, const uint8_t hash[HASH_BYTES], void *dst, size_t n,
                             cw_err *err)
{
    char path[PATH_MAX];
    pthread_mutex_lock(&c->lock);
    entry *e = c->limit ? find(c, hash) : NULL;
    if (e) {
        unlink_order(c, e);
        make_newest(c, e);
    } else {
        c->stats.misses++;
    }
    pthread_mutex_unlock(&c->lock);
    if (!e) return CW_FAIL(err, CW_STATUS_NOT_FOUND, "the chunk is not in the cache");
    path_of(c, hash, path);
    bool ok = read_file(path, hash, dst, n);
    pthread_mutex_lock(&c->lock);
    e = find(c, hash);
    if (ok) {
        c->stats.hits++;
    } else {
        c->stats.misses++;
        c->stats.damaged++;
        if (e) discard(c, e);
    }
    pthread_mutex_unlock(&c->lock);
    if (ok) return CW_OK;
    CW_LOG_W("store", "a cached chunk was damaged and is dropped: path=%s", path);
    return CW_FAIL(err, CW_STATUS_NOT_FOUND, "the chunk in the cache was damaged");
}

cw_status cw_chunk_cache_read(cw_chunk_cache *c, const uint8_t hash[HASH_BYTES], uint64_t offset, size_t n,
                              void *dst, cw_err *err)
{
    char path[PATH_MAX];
    pthread_mutex_lock(&c->lock);
    entry *e = c->limit ? find(c, hash) : NULL;
    bool inside = e && offset <= e->bytes && n <= e->bytes - offset;
    if (inside) {
        unlink_order(c, e);
        make_newest(c, e);
    }
    pthread_mutex_unlock(&c->lock);
    if (!inside) return CW_FAIL(err, CW_STATUS_NOT_FOUND, "the chunk is not in the cache");
    path_of(c, hash, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    size_t done = 0;
    while (fd >= 0 && done < n) {
        ssize_t k = pread(fd, (uint8_t *)dst + done, n - done, (off_t)(offset + done));
        if (k > 0)
            done += (size_t)k;
        else if (k == 0 || errno != EINTR)
            break;
    }
    if (fd >= 0) close(fd);
    return done == n ? CW_OK : CW_FAIL(err, CW_STATUS_NOT_FOUND, "the chunk in the cache cannot be read");
}

void cw_chunk_cache_drop(cw_chunk_cache *c, const uint8_t hash[HASH_BYTES])
{
    pthread_mutex_lock(&c->lock);
    entry *e = find(c, hash);
    if (e) discard(c, e);
    pthread_mutex_unlock(&c->lock);
}

cw_chunk_cache_stats cw_chunk_cache_get_stats(cw_chunk_cache *c)
{
    pthread_mutex_lock(&c->lock);
    cw_chunk_cache_stats s = c->stats;
    pthread_mutex_unlock(&c->lock);
    return s;
}
