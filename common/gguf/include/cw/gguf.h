/*
 * Reader of GGUF model files, versions 2 and 3 (ggml's docs/gguf.md), little-endian, whole or split into shards.
 *
 * The file is hostile: every count, length, offset, alignment, type and dimension is checked before it is used, and a
 * file that opens can be walked without another check. What can still go wrong later is that somebody truncates it.
 * No map of a file outlives its opening: metadata are in memory of our own, and tensors come by cw_gguf_read(), which
 * turns a short file into a status instead of a SIGBUS.
 *
 * An open cw_gguf never changes; any number of threads may read it. Opening and closing block on the disk.
 * Everything returned by pointer is borrowed until cw_gguf_close().
 */
#pragma once
#include "cw/status.h"

typedef struct cw_gguf cw_gguf;

/* Kinds of metadata values, with the file's numbers. */
typedef enum {
    CW_GGUF_U8 = 0,
    CW_GGUF_I8 = 1,
    CW_GGUF_U16 = 2,
    CW_GGUF_I16 = 3,
    CW_GGUF_U32 = 4,
    CW_GGUF_I32 = 5,
    CW_GGUF_F32 = 6,
    CW_GGUF_BOOL = 7,
    CW_GGUF_STRING = 8,
    CW_GGUF_ARRAY = 9,
    CW_GGUF_U64 = 10,
    CW_GGUF_I64 = 11,
    CW_GGUF_F64 = 12,
    CW_GGUF_KIND_COUNT
} cw_gguf_kind;

/* Bytes in the file, not NUL-terminated, not checked to be UTF-8. */
typedef struct {
    const char *data;
    size_t len;
} cw_gguf_str;

/* Elements are never arrays themselves. `data` is raw and unaligned: read it with cw_gguf_array_*. */
typedef struct {
    cw_gguf_kind elem;
    size_t n;
    const void *data;
    const uint64_t *offsets; /* strings: where element i (its length, then its bytes) begins in data, and the end; else NULL */
} cw_gguf_array;

typedef struct {
    const char *key; /* NUL-terminated */
    cw_gguf_kind kind;
    const void *raw;   /* scalars: little-endian at any alignment */
    cw_gguf_str str;   /* kind STRING */
    cw_gguf_array arr; /* kind ARRAY */
} cw_gguf_kv;

typedef struct {
    const char *name; /* NUL-terminated */
    uint32_t type;    /* the file's number, see cw/type.h */
    bool supported;   /* false: nothing here can compute with this type; cw_gguf_tensor_require refuses it */
    int n_dims;       /* 1..4 as the file has it */
    int64_t ne[4];    /* elements; ne[0] is the row's length and lies together; dimensions past n_dims are 1 */
    size_t bytes;     /* of the whole tensor, rows without gaps */
    size_t row_bytes; /* of one row of ne[0] elements */
    const void *data; /* of a file opened from memory; NULL for one on disk: see cw_gguf_read */
    int shard;        /* which file holds it */
    uint64_t offset;  /* where in that file */
} cw_gguf_tensor;

/* Opens `path`, and with it every shard when it is one of NAME-00001-of-0000N.gguf. Blocks. */
CW_MUST_USE cw_status cw_gguf_open(const char *path, cw_gguf **out, cw_err *err);
/* Opens one whole file from memory, which stays the caller's and must outlive *out. `label` stands for the file's name
 * in errors. Files in shards are refused. */
CW_MUST_USE cw_status cw_gguf_open_memory(const void *data, size_t bytes, const char *label, cw_gguf **out, cw_err *err);
/* NULL and a pointer to NULL are fine. */
void cw_gguf_close(cw_gguf **g);

/* --- metadata: those of the first shard --- */

size_t cw_gguf_kv_count(const cw_gguf *g);
/* i < cw_gguf_kv_count, in the file's order. */
const cw_gguf_kv *cw_gguf_kv_at(const cw_gguf *g, size_t i);
/* NULL when there is no such key. Binary search, so no choice of keys in a file makes it slow. */
const cw_gguf_kv *cw_gguf_kv_find(const cw_gguf *g, const char *key);

/* Typed getters. NOT_FOUND when the key is absent, FORMAT when its kind does not fit or its value is out of range
 * (the integer getters take any integer kind, the f32 getter any float kind). Errors name file and key. */
CW_MUST_USE cw_status cw_gguf_get_u32(const cw_gguf *g, const char *key, uint32_t *out, cw_err *err);
CW_MUST_USE cw_status cw_gguf_get_i32(const cw_gguf *g, const char *key, int32_t *out, cw_err *err);
CW_MUST_USE cw_status cw_gguf_get_u64(const cw_gguf *g, const char *key, uint64_t *out, cw_err *err);
CW_MUST_USE cw_status cw_gguf_get_f32(const cw_gguf *g, const char *key, float *out, cw_err *err);
CW_MUST_USE cw_status cw_gguf_get_bool(const cw_gguf *g, const char *key, bool *out, cw_err *err);
CW_MUST_USE cw_status cw_gguf_get_str(const cw_gguf *g, const char *key, cw_gguf_str *out, cw_err *err);
CW_MUST_USE cw_status cw_gguf_get_array(const cw_gguf *g, const char *key, cw_gguf_kind elem, cw_gguf_array *out, cw_err *err);

/* The same, but an absent key gives `def` and CW_OK; a key that is there and wrong is still an error. */
CW_MUST_USE cw_status cw_gguf_get_u32_or(const cw_gguf *g, const char *key, uint32_t def, uint32_t *out, cw_err *err);
CW_MUST_USE cw_status cw_gguf_get_i32_or(const cw_gguf *g, const char *key, int32_t def, int32_t *out, cw_err *err);
CW_MUST_USE cw_status cw_gguf_get_f32_or(const cw_gguf *g, const char *key, float def, float *out, cw_err *err);
CW_MUST_USE cw_status cw_gguf_get_bool_or(const cw_gguf *g, const char *key, bool def, bool *out, cw_err *err);

/* Element i < a->n; the element kind must fit (our own bug otherwise). Integers of any kind as i64 (u64 values above
 * INT64_MAX come back as INT64_MAX), floats as f32. */
cw_gguf_str cw_gguf_array_str(const cw_gguf_array *a, size_t i);
int64_t cw_gguf_array_i64(const cw_gguf_array *a, size_t i);
float cw_gguf_array_f32(const cw_gguf_array *a, size_t i);
bool cw_gguf_array_bool(const cw_gguf_array *a, size_t i);
bool cw_gguf_kind_is_int(cw_gguf_kind kind);
/* "u32", "string", ...; never NULL. */
const char *cw_gguf_kind_name(cw_gguf_kind kind);

bool cw_gguf_str_eq(cw_gguf_str s, const char *text);

/* --- tensors: those of all shards, in order of shard and file --- */

size_t cw_gguf_tensor_count(const cw_gguf *g);
const cw_gguf_tensor *cw_gguf_tensor_at(const cw_gguf *g, size_t i);
/* NULL when there is none of that name; one of an unsupported type is returned, with `supported` false. Binary search. */
const cw_gguf_tensor *cw_gguf_find(const cw_gguf *g, const char *name);
/* The tensor, or a sentence: NOT_FOUND when it is missing, UNSUPPORTED when nothing can compute with its type. */
CW_MUST_USE cw_status cw_gguf_tensor_require(const cw_gguf *g, const char *name, const cw_gguf_tensor **out, cw_err *err);

/*
 * Copies bytes [offset, offset + bytes) of the tensor to dst by pread. IO when the file has become shorter than it was
 * or cannot be read. The range must lie inside the tensor (INVALID otherwise). Any thread, blocks.
 */
CW_MUST_USE cw_status cw_gguf_read(const cw_gguf *g, const cw_gguf_tensor *t, uint64_t offset, size_t bytes, void *dst,
                                   cw_err *err);
/* Tells the kernel that this range of the file's cache (0, t->bytes: all of it) is not needed again, after its packed
 * form was made. A wish. */
void cw_gguf_forget(const cw_gguf *g, const cw_gguf_tensor *t, uint64_t offset, size_t bytes);

/* --- files --- */

int cw_gguf_shard_count(const cw_gguf *g);
const char *cw_gguf_shard_path(const cw_gguf *g, int shard);
/* Read-only descriptor, owned by g; -1 for a file in memory. Use pread: the position is shared. */
int cw_gguf_shard_fd(const cw_gguf *g, int shard);

/* What tells one state of a file from another without reading it: a key for caches. */
typedef struct {
    uint64_t size, mtime_ns, inode;
} cw_gguf_file_id;
/* The shard's identity as it was when it was opened; zeros but for size for a file in memory. */
cw_gguf_file_id cw_gguf_identity(const cw_gguf *g, int shard);
/* MISMATCH, with a sentence, when a shard's file is no longer what was opened (replaced files keep their old content
 * through the open descriptor; truncated or rewritten ones do not). */
CW_MUST_USE cw_status cw_gguf_check_unchanged(const cw_gguf *g, cw_err *err);
