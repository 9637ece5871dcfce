/* Shared by the parts of the model store: the manifest's tables and its serialised form. */
#pragma once
#include "cw/manifest.h"
#include "cw/mem.h"

enum {
    HASH_BYTES = CW_MANIFEST_HASH_BYTES,
    MAX_SHAPE = 4096,
    MAX_TENSORS = 1 << 18,
    MAX_TEXT = 1024, /* bytes of a string in the shape */
    MAX_NAME = 255,  /* bytes of a key or a tensor's name */
    MAX_LAYERS = 65536,
    MAX_EXPERTS = 65536
};

#define DIGEST_CONTEXT "causeway manifest 1"
#define CHUNK_CONTEXT  "causeway chunk 1"

/* The known answers of one layer. */
typedef struct {
    int layer, n_experts;
    const uint8_t *hashes; /* [n_experts][HASH_BYTES] */
} manifest_answers;

struct cw_manifest {
    uint8_t *bytes; /* the serialised form; names and hashes below point into it */
    size_t n_bytes;
    size_t model_bytes; /* the part of it that the digest covers */
    uint8_t digest[HASH_BYTES];
    cw_shape_pair *shape;
    size_t n_shape;
    cw_manifest_tensor *tensors;
    size_t n_tensors;
    const uint8_t *hashes; /* [n_chunks][HASH_BYTES] */
    uint32_t n_chunks;
    uint32_t arithmetic_id;
    manifest_answers *answers;
    size_t n_answers;
};

/* --- form.c --- */

/* Bytes in the making; a failed allocation shows at the end, in `failed`. */
typedef struct {
    uint8_t *p;
    size_t n, room;
    bool failed;
} form_buffer;

void form_put(form_buffer *b, const void *data, size_t n);
void form_put_u32(form_buffer *b, uint32_t v);

/* Fills bytes, chunk_bytes, n_chunks and experts from name, type and shape: how a tensor is cut is a rule,
 * not a choice. UNSUPPORTED for an unknown type, FORMAT, LIMIT. */
CW_MUST_USE cw_status form_cut(cw_manifest_tensor *t, cw_err *err);
/* The model part: shape (ascending by key) and tensors (ascending by name, cut), without the hashes, which
 * the caller appends in order of chunks. */
void form_put_model(form_buffer *b, const cw_shape_pair *shape, size_t n_shape,
                    const cw_manifest_tensor *tensors, size_t n_tensors, uint32_t n_chunks);
/* Ends the form: answers and check sum. */
void form_put_answers(form_buffer *b, uint32_t arithmetic_id, const manifest_answers *answers, size_t n);
/* Parses bytes[n], which become the manifest's, also after a failure (freed then). */
CW_MUST_USE cw_status form_parse(uint8_t *bytes, size_t n, const uint8_t *digest, cw_manifest **out,
                                 cw_err *err);

/* "blk.N.ffn_down_exps.weight" -> N; -1: another name. Its ne[2] is the layer's number of experts. */
int form_expert_layer(const char *name);

/* --- build.c --- */

/* A copy of m with answers by opts->known_answer. */
CW_MUST_USE cw_status build_with_answers(const cw_manifest *m, const cw_manifest_options *opts,
                                         cw_manifest **out, cw_err *err);
/* Whether m has the answers that opts asks for. */
bool build_answers_cover(const cw_manifest *m, const cw_manifest_options *opts);
