/*
 * The manifest of a model: which tensors it has, of which type and shape, cut into which chunks, and each chunk's hash.
 * Its digest names the model everywhere: two files with the same digest compute the same rows, whether whole or in shards
 * and whatever their tokenizer or texts. It also carries the numbers a worker needs to compute without the file (the
 * shape), and, outside the digest, what each expert must answer to a built-in row (the known answers), which a worker
 * must reproduce before it serves.
 *
 * A manifest never changes; any thread may read it. Pointers into it are borrowed until cw_manifest_free().
 * The serialised form is described in src/form.c; it comes from peers, so parsing is hostile.
 */
#pragma once
#include "cw/gguf.h"

enum {
    CW_MANIFEST_HASH_BYTES = 32,
    CW_MANIFEST_CHUNK_BYTES = 4 << 20,      /* chunks of tensors that are not experts; the last of a tensor may be shorter */
    CW_MANIFEST_MAX_CHUNK_BYTES = 1 << 30,  /* an expert's slice larger than this is refused */
    CW_MANIFEST_MAX_BYTES = 256 << 20       /* serialised */
};

typedef struct cw_manifest cw_manifest;

typedef struct {
    const char *name; /* NUL-terminated */
    uint32_t type;    /* cw/type.h */
    int n_dims;
    int64_t ne[4];
    uint64_t bytes;
    uint64_t chunk_bytes; /* of every chunk but the last; a tensor of experts (NAME_exps.weight): of one expert's slice */
    uint32_t first_chunk, n_chunks;
    bool experts; /* chunk first_chunk + e is expert e */
} cw_manifest_tensor;

typedef struct {
    uint32_t tensor; /* index */
    uint64_t offset; /* in the tensor */
    uint32_t bytes;
    const uint8_t *hash; /* [CW_MANIFEST_HASH_BYTES] */
} cw_manifest_chunk;

/*
 * One number or text of the model's shape, under the key it has in the file: general.architecture and every key
 * "ARCHITECTURE.*" that fits u32 (integers, bools), a finite f32 or a text of up to 1 KiB; arrays of up to 1024 of these
 * become "KEY[i]". A rule and no choice of the caller, because the digest covers it and all processes of a cluster must
 * come to the same.
 */
typedef enum { CW_SHAPE_U32 = 1, CW_SHAPE_F32 = 2, CW_SHAPE_STR = 3 } cw_shape_kind;
typedef struct {
    const char *key;
    cw_shape_kind kind;
    uint32_t u32;
    float f32;
    cw_gguf_str str;
} cw_shape_pair;

typedef struct {
    /* What (layer, expert) answers to the built-in row; NULL: the manifest has no known answers. Called for each expert of
     * each layer below answer_layers (0: of all layers) that has experts. An error ends the build. */
    cw_status (*known_answer)(void *ctx, int layer, int expert, uint8_t out[CW_MANIFEST_HASH_BYTES], cw_err *err);
    int answer_layers;
    uint32_t arithmetic_id; /* under which the answers hold */
    /* Bytes hashed so far, of all; false stops the build with CANCELLED. May be NULL. */
    bool (*progress)(void *ctx, uint64_t done, uint64_t total);
    void *ctx;
} cw_manifest_options;

/* Reads and hashes the whole model; opts may be NULL. MISMATCH when the file changes meanwhile. Blocks for long. */
CW_MUST_USE cw_status cw_manifest_build(const cw_gguf *g, const cw_manifest_options *opts, cw_manifest **out, cw_err *err);
/* The same through a cache in `dir` (which exists): hashes only when no shard's size, mtime and inode are those the cached
 * manifest was made from, computes answers only when they are missing or of another arithmetic. A cache that cannot be
 * read or written costs time and a line in the log, never the result. */
CW_MUST_USE cw_status cw_manifest_cached(const cw_gguf *g, const char *dir, const cw_manifest_options *opts, cw_manifest **out,
                                         cw_err *err);
/* From bytes of a peer or a file, copied. `digest` NULL: any. FORMAT, or MISMATCH when it is not the digest's. */
CW_MUST_USE cw_status cw_manifest_parse(const void *bytes, size_t n, const uint8_t *digest, cw_manifest **out, cw_err *err);
void cw_manifest_free(cw_manifest **m);

/* The canonical serialised form, with the answers. */
const void *cw_manifest_bytes(const cw_manifest *m, size_t *n);
/* [CW_MANIFEST_HASH_BYTES] */
const uint8_t *cw_manifest_digest(const cw_manifest *m);

size_t cw_manifest_tensor_count(const cw_manifest *m);
/* i < count, ascending by name. */
const cw_manifest_tensor *cw_manifest_tensor_at(const cw_manifest *m, size_t i);
/* NULL when there is none. */
const cw_manifest_tensor *cw_manifest_tensor_find(const cw_manifest *m, const char *name);
uint32_t cw_manifest_chunk_count(const cw_manifest *m);
/* NOT_FOUND when there is no such chunk (the number comes from peers). */
CW_MUST_USE cw_status cw_manifest_chunk_at(const cw_manifest *m, uint32_t chunk, cw_manifest_chunk *out, cw_err *err);
/* The chunk that is expert `expert`'s slice of the named tensor. NOT_FOUND. */
CW_MUST_USE cw_status cw_manifest_expert_chunk(const cw_manifest *m, const char *name, int expert, uint32_t *chunk, cw_err *err);

/* MISMATCH, naming the tensor, when data[n] is not that chunk. */
CW_MUST_USE cw_status cw_manifest_verify(const cw_manifest *m, uint32_t chunk, const void *data, size_t n, cw_err *err);
/* Bytes [offset, offset + n) of a chunk from the model file, unverified: whoever receives the chunk checks it whole. INVALID
 * when they lie outside the chunk; MISMATCH when the file has no such tensor; IO. */
CW_MUST_USE cw_status cw_manifest_read(const cw_manifest *m, const cw_gguf *g, uint32_t chunk, uint64_t offset, size_t n,
                                       void *dst, cw_err *err);

size_t cw_manifest_shape_count(const cw_manifest *m);
/* i < count, ascending by key. */
const cw_shape_pair *cw_manifest_shape_at(const cw_manifest *m, size_t i);
/* NOT_FOUND, or FORMAT when it is of another kind. */
CW_MUST_USE cw_status cw_manifest_shape_u32(const cw_manifest *m, const char *key, uint32_t *out, cw_err *err);
CW_MUST_USE cw_status cw_manifest_shape_f32(const cw_manifest *m, const char *key, float *out, cw_err *err);
CW_MUST_USE cw_status cw_manifest_shape_str(const cw_manifest *m, const char *key, cw_gguf_str *out, cw_err *err);

/* [CW_MANIFEST_HASH_BYTES], or NULL when the manifest has no known answer for that expert under that arithmetic. */
const uint8_t *cw_manifest_answer(const cw_manifest *m, uint32_t arithmetic_id, int layer, int expert);
bool cw_manifest_has_answers(const cw_manifest *m, uint32_t arithmetic_id);
