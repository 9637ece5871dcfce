/*
 * The disk's thread: parts of chunks for other workers, and the saved state, so that the thread that owns the
 * sockets never waits for a disk. One job after the other; what is queued at the end is still carried out.
 */
#include <stdio.h>
#include <string.h>

#include "cw/fs.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "shell_internal.h"

struct disk {
    disk_config c;
    cw_queue *in, *out;
    pthread_t thread;
    bool running;
    pthread_mutex_t lock;
    disk_model model; /* under the lock until it is set, then fixed */
};

void disk_job_free(void *job)
{
    disk_job *j = job;
    if (j && j->bytes.release) j->bytes.release(j->bytes.owner);
    cw_free(j);
}

static cw_status read_part(const disk_model *m, const disk_job *j, uint8_t *dst, size_t n, uint8_t hash[32],
                           cw_err *err)
{
    if (m->local) return cw_manifest_read(m->manifest, m->local, j->chunk, j->offset, n, dst, err);
    if (m->cache) return cw_chunk_cache_read(m->cache, hash, j->offset, n, dst, err);
    return CW_FAIL(err, CW_STATUS_NOT_FOUND, "this worker keeps no chunks");
}

static cw_status read_chunk(disk *d, disk_job *j, cw_err *err)
{
    pthread_mutex_lock(&d->lock);
    disk_model m = d->model;
    pthread_mutex_unlock(&d->lock);
    if (!m.manifest) return CW_FAIL(err, CW_STATUS_NOT_FOUND, "this worker has no model yet");
    cw_manifest_chunk info;
    CW_TRY(cw_manifest_chunk_at(m.manifest, j->chunk, &info, err));
    if (j->offset >= info.bytes)
        return CW_FAIL(err, CW_STATUS_INVALID, "chunk %u ends before that offset", j->chunk);
    uint8_t hash[CW_MANIFEST_HASH_BYTES], *dst;
    memcpy(hash, info.hash, sizeof hash);
    size_t n = info.bytes - (size_t)j->offset;
    if (n > j->length) n = j->length;
    cw_frame f = cw_frame_new(n, &dst);
    if (!f.data) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "this worker is out of memory");
    cw_status s = read_part(&m, j, dst, n, hash, err);
    if (s != CW_OK) {
        f.release(f.owner);
        return s;
    }
    j->bytes = f;
    j->total = info.bytes;
    return CW_OK;
}

static void save(disk *d, const disk_job *j)
{
    cw_err err = {0};
    if (cw_fs_write(d->c.saved_path, j->bytes.data, j->bytes.len, 0600, &err) != CW_OK)
        CW_LOG_W("worker", "the state for the next start could not be saved: %s", err.text);
}

static void *run(void *arg)
{
    disk *d = arg;
    for (;;) {
        disk_job *j = cw_queue_pop_wait(d->in, -1);
        if (!j && cw_queue_closed(d->in)) return NULL;
        if (!j) continue;
        if (j->kind == DISK_SAVE) {
            save(d, j);
            disk_job_free(j);
            continue;
        }
        cw_err err = {0};
        if (read_chunk(d, j, &err) != CW_OK) snprintf(j->text, sizeof j->text, "%s", err.text);
        if (cw_queue_push(d->out, j) != CW_OK) disk_job_free(j); /* the process is ending */
        d->c.wake(d->c.wake_ctx);
    }
}

cw_status disk_new(const disk_config *c, disk **out, cw_err *err)
{
    disk *d = cw_calloc(1, sizeof *d);
    if (!d) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the disk's thread");
    d->c = *c;
    pthread_mutex_init(&d->lock, NULL);
    cw_status s = cw_queue_new(16, disk_job_free, &d->in, err);
    if (s == CW_OK) s = cw_queue_new(16, disk_job_free, &d->out, err);
    if (s == CW_OK && pthread_create(&d->thread, NULL, run, d) != 0)
        s = CW_FAIL(err, CW_STATUS_LIMIT, "no thread for the disk");
    d->running = s == CW_OK;
    if (s != CW_OK)
        disk_free(&d);
    else
        *out = d;
    return s;
}

void disk_free(disk **dp)
{
    if (!dp || !*dp) return;
    disk *d = *dp;
    if (d->running) {
        cw_queue_close(d->in);
        pthread_join(d->thread, NULL);
    }
    cw_queue_free(&d->in);
    cw_queue_free(&d->out);
    pthread_mutex_destroy(&d->lock);
    cw_free(d);
    *dp = NULL;
}

void disk_set_model(disk *d, const disk_model *m)
{
    pthread_mutex_lock(&d->lock);
    d->model = *m;
    pthread_mutex_unlock(&d->lock);
}

bool disk_submit(disk *d, disk_job *j)
{
    return cw_queue_push(d->in, j) == CW_OK;
}

disk_job *disk_take(disk *d)
{
    return cw_queue_pop(d->out);
}
