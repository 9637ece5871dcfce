/*
 * Chunks on a worker's disk, so that a restart does not pull them again. Addressed by their hash, which every read checks:
 * a chunk that was damaged is dropped and reported as absent. The cache only ever saves time: where it cannot keep a chunk
 * (no space, a limit of 0) the caller goes on with the bytes it holds.
 *
 * Any thread; calls block on the disk. One process per directory (the state directory's lock sees to that).
 */
#pragma once
#include "cw/manifest.h"

typedef struct cw_chunk_cache cw_chunk_cache;

typedef struct {
    const char *dir;        /* made when absent */
    uint64_t limit_bytes;   /* of all chunks; 0: nothing is kept and the directory is not touched */
    uint64_t reserve_bytes; /* free space of the file system that is left alone */
} cw_chunk_cache_options;

/* Finds what earlier runs left, removes their half-written files, evicts down to the limit. */
CW_MUST_USE cw_status cw_chunk_cache_open(const cw_chunk_cache_options *o, cw_chunk_cache **out, cw_err *err);
void cw_chunk_cache_close(cw_chunk_cache **c);

/* Keeps data[n], whose hash the caller has verified: temporary file, renamed; the chunks unused for longest make
 * room. Not synced: a chunk that a power cut tears fails its hash and is pulled again, and a wait for the disk at every
 * chunk would cost a starting worker far more than that. LIMIT when there is no room (limit, or a full disk), IO: in both cases nothing is kept and the caller goes on. */
CW_MUST_USE cw_status cw_chunk_cache_put(cw_chunk_cache *c, const uint8_t hash[CW_MANIFEST_HASH_BYTES], const void *data,
                                         size_t n, cw_err *err);
/* Copies the chunk to dst[n]. NOT_FOUND when it is not there, of another length, or damaged (dropped then). */
CW_MUST_USE cw_status cw_chunk_cache_get(cw_chunk_cache *c, const uint8_t hash[CW_MANIFEST_HASH_BYTES], void *dst, size_t n,
                                         cw_err *err);
/* Bytes [offset, offset + n) of a chunk, unverified: whoever puts the parts together checks the whole. NOT_FOUND when it is
 * not there or shorter. */
CW_MUST_USE cw_status cw_chunk_cache_read(cw_chunk_cache *c, const uint8_t hash[CW_MANIFEST_HASH_BYTES], uint64_t offset, size_t n,
                                          void *dst, cw_err *err);
/* Forgets the chunk; absent is fine. */
void cw_chunk_cache_drop(cw_chunk_cache *c, const uint8_t hash[CW_MANIFEST_HASH_BYTES]);

typedef struct {
    uint64_t bytes, chunks, hits, misses, evicted, damaged;
} cw_chunk_cache_stats;
cw_chunk_cache_stats cw_chunk_cache_get_stats(cw_chunk_cache *c);
/* The hash of a chunk's bytes. */
void cw_chunk_hash(const void *data, size_t n, uint8_t out[CW_MANIFEST_HASH_BYTES]);
