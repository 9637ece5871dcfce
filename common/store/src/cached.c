/*
 * The manifest of a model file, remembered between runs: hashing hundreds of gigabytes at every start is what
 * this avoids. One file per model path in the state directory: "CWMCACH1", u32 shards, per shard u64 size,
 * mtime_ns, inode, then the manifest's own form, whose check sum tells damage. Trusted as far as the state
 * directory is. Whoever changes how a manifest is made (the cut, the shape) must change a magic number, or
 * cached digests differ from fresh ones.
 */
#include "store_internal.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/bytes.h"
#include "cw/fs.h"
#include "cw/hash.h"
#include "cw/log.h"

static const char magic[8] = {'C', 'W', 'M', 'C', 'A', 'C', 'H', '1'};

/* Magic and the identity of every shard: what a cache file must begin with. */
static void put_identity(form_buffer *b, const cw_gguf *g)
{
    int n = cw_gguf_shard_count(g);
    form_put(b, magic, sizeof magic);
    form_put_u32(b, (uint32_t)n);
    for (int i = 0; i < n; i++) {
        cw_gguf_file_id id = cw_gguf_identity(g, i);
        uint8_t le[24];
        cw_store_u64(le, id.size);
        cw_store_u64(le + 8, id.mtime_ns);
        cw_store_u64(le + 16, id.inode);
        form_put(b, le, sizeof le);
    }
}

/* Named by the model's path, so that a model that was replaced replaces its manifest. Heap. */
static char *cache_path(const cw_gguf *g, const char *dir)
{
    char name[64];
    uint8_t hash[HASH_BYTES];
    const char *path = cw_gguf_shard_path(g, 0);
    char *real = realpath(path, NULL);
    cw_hash("causeway manifest cache 1", real ? real : path, strlen(real ? real : path), hash);
    free(real);
    snprintf(name, sizeof name, "manifest-%016llx.cache", (unsigned long long)cw_load_u64(hash));
    return cw_fs_join(dir, name);
}

/* NULL when there is none that fits; why is worth a line only when it is there and broken. */
static cw_manifest *load(const char *path, const form_buffer *identity)
{
    char *data = NULL;
    size_t n = 0;
    cw_manifest *m = NULL;
    cw_err err = {0};
    if (!cw_fs_is_file(path)) return NULL;
    if (cw_fs_read(path, (size_t)CW_MANIFEST_MAX_BYTES + identity->n, &data, &n, &err) != CW_OK) {
        CW_LOG_W("store", "cannot read the cached manifest: %s", err.text);
        return NULL;
    }
    if (n >= identity->n && memcmp(data, identity->p, identity->n) == 0 &&
        cw_manifest_parse(data + identity->n, n - identity->n, NULL, &m, &err) != CW_OK)
        CW_LOG_W("store", "the cached manifest %s is ignored: %s", path, err.text);
    cw_free(data);
    return m;
}

static void save(const char *path, const form_buffer *identity, const cw_manifest *m)
{
    form_buffer b = {0};
    cw_err err = {0};
    form_put(&b, identity->p, identity->n);
    form_put(&b, m->bytes, m->n_bytes);
    if (b.failed)
        CW_LOG_W("store", "out of memory: the manifest is not cached");
    else if (cw_fs_write(path, b.p, b.n, 0600, &err) != CW_OK)
        CW_LOG_W("store", "the manifest is not cached, the next start will hash the model again: %s",
                 err.text);
    cw_free(b.p);
}

static cw_status through_cache(const cw_gguf *g, const char *path, const form_buffer *identity,
                               const cw_manifest_options *opts, cw_manifest **out, cw_err *err)
{
    cw_manifest *m = load(path, identity);
    if (!m) {
        CW_TRY(cw_manifest_build(g, opts, &m, err));
        save(path, identity, m);
    } else if (opts->known_answer && !build_answers_cover(m, opts)) {
        cw_manifest *full = NULL;
        cw_status s = build_with_answers(m, opts, &full, err);
        cw_manifest_free(&m);
        if (s != CW_OK) return s;
        m = full;
        save(path, identity, m);
    }
    *out = m;
    return CW_OK;
}

cw_status cw_manifest_cached(const cw_gguf *g, const char *dir, const cw_manifest_options *opts,
                             cw_manifest **out, cw_err *err)
{
    static const cw_manifest_options none;
    if (!opts) opts = &none;
    if (cw_gguf_shard_fd(g, 0) < 0) return cw_manifest_build(g, opts, out, err); /* memory has no identity */
    form_buffer identity = {0};
    put_identity(&identity, g);
    char *path = cache_path(g, dir);
    cw_status s = !path || identity.failed ? CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for a manifest")
                                           : through_cache(g, path, &identity, opts, out, err);
    cw_free(path);
    cw_free(identity.p);
    return s;
}
