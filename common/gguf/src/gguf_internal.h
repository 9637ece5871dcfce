/* Shared by the three parts of the reader: parse.c (one file's bytes), open.c (files and shards), get.c
 * (look-ups). */
#pragma once
#include "cw/gguf.h"
#include "cw/mem.h"

/* Limits that no real file comes near; they bound the memory a hostile one can make us reserve. */
enum {
    GGUF_MAX_KEYS = 1 << 16,
    GGUF_MAX_TENSORS = 1 << 18,
    GGUF_MAX_STRINGS = 1 << 24,   /* elements of one array of strings */
    GGUF_MAX_NAME = 255,          /* bytes of a tensor's name */
    GGUF_MAX_KEY = 65535,         /* bytes of a key, as the format says */
    GGUF_MAX_ALIGNMENT = 1 << 20, /* the default is 32 */
    GGUF_TEXT = 96                /* bytes of a name that error sentences quote */
};

/* Names in sorted order. The records' first member is their name (`const char *`). */
typedef struct {
    const void **v;
    size_t n;
} gguf_index;

typedef struct {
    char *path;
    int fd; /* -1: in memory */
    const uint8_t *bytes; /* of a file on disk: after opening, its first head_bytes alone */
    size_t size;          /* of the file */
    size_t head_bytes;    /* what lies before the tensors' data */
    size_t map_bytes;     /* at `bytes`, to unmap; 0: the caller's */
    cw_gguf_file_id id;
    cw_gguf_kv *kv;
    size_t n_kv;
    cw_gguf_tensor *tensors; /* moved into cw_gguf.tensors when all shards are known */
    size_t n_tensors;
} gguf_shard;

struct cw_gguf {
    gguf_shard *shards;
    int n_shards;
    gguf_index keys;
    cw_gguf_tensor *tensors;
    size_t n_tensors;
    gguf_index names;
};

/* Fills kv, tensors and head_bytes from bytes/size. What it made is freed by gguf_shard_clear, also after a failure.
 * Errors do not name the file: the caller prefixes it. */
CW_MUST_USE cw_status gguf_parse(gguf_shard *s, cw_err *err);
void gguf_tensors_free(cw_gguf_tensor *t, size_t n);
void gguf_kvs_free(cw_gguf_kv *kv, size_t n);

/* Sorts n records of `stride` bytes by name. *duplicate: a name that comes twice, or NULL. false: no memory.
 */
CW_MUST_USE bool gguf_index_make(gguf_index *ix, const void *records, size_t n, size_t stride,
                                 const char **duplicate);
const void *gguf_index_find(const gguf_index *ix, const char *name);

/* Any integer kind as sign and magnitude; false when kv is no integer. */
bool gguf_scalar_int(const cw_gguf_kv *kv, bool *negative, uint64_t *magnitude);
