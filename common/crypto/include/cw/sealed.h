/*
 * Sealed files: what an edge keeps of a conversation, readable with one key only and unchanged or not at all.
 * A stream of chunks of libsodium's secretstream (XChaCha20-Poly1305); the last one carries a final tag, so a
 * file that was cut is told from one that ends. `kind` names what is inside ("causeway conversation 1") and
 * is authenticated with every chunk: one kind of file never passes for another.
 *
 *   file: "CWSEAL1\n", the stream's header (24 bytes), then chunks of 65536 + 17 bytes, the last one shorter
 *   or of that size and with the final tag; nothing behind it.
 *
 * Blocking; one thread at a time. A buffer of one chunk is all the memory either side takes.
 */
#pragma once
#include "cw/status.h"
#include <stdio.h>

enum { CW_SEALED_CHUNK = 64 * 1024, CW_SEALED_KIND_MAX = 64 };

/* A key of 32 random bytes in sodium_malloc memory; immutable. */
typedef struct cw_seal_key cw_seal_key;
/* The key in the file `path`, made there when there is none (0600; of two processes at once both get the
 * same). The directory must exist and be private. AUTH when others can read it, FORMAT when it is damaged. */
CW_MUST_USE cw_status cw_seal_key_open(const char *path, cw_seal_key **out, cw_err *err);
/* One that lives in memory only. */
CW_MUST_USE cw_status cw_seal_key_new(cw_seal_key **out, cw_err *err);
void cw_seal_key_free(cw_seal_key **k);

typedef struct cw_sealed_writer cw_sealed_writer;
/* Writes beside `path`; what is there stays until the commit. The key must outlive the writer. */
CW_MUST_USE cw_status cw_sealed_create(const char *path, const cw_seal_key *key, const char *kind,
                                       cw_sealed_writer **out, cw_err *err);
CW_MUST_USE cw_status cw_sealed_write(cw_sealed_writer *w, const void *data, size_t n, cw_err *err);
/* Ends the stream and puts the file in its place, whole. `durable`: on the disk before this returns; without,
 * a crash of the system may leave a damaged file, which its reader notices. Frees the writer in any case. */
CW_MUST_USE cw_status cw_sealed_commit(cw_sealed_writer **w, bool durable, cw_err *err);
/* Forgets what was written. */
void cw_sealed_discard(cw_sealed_writer **w);

typedef struct cw_sealed_reader cw_sealed_reader;
/* NOT_FOUND: no such file. FORMAT: not a sealed file. UNSUPPORTED: of another version. Errors of all three
 * functions are sentences that begin with the path. */
CW_MUST_USE cw_status cw_sealed_open(const char *path, const cw_seal_key *key, const char *kind,
                                     cw_sealed_reader **out, cw_err *err);
/* The same from an open file, which stays the caller's; `name` stands for it in errors. */
CW_MUST_USE cw_status cw_sealed_open_stream(FILE *f, const char *name, const cw_seal_key *key,
                                            const char *kind, cw_sealed_reader **out, cw_err *err);
/* Exactly n bytes. AUTH: another key, another kind, or bytes that were changed; FORMAT: cut, or less inside.
 */
CW_MUST_USE cw_status cw_sealed_read(cw_sealed_reader *r, void *data, size_t n, cw_err *err);
/* Everything, at most `limit` bytes; heap, caller frees. LIMIT. */
CW_MUST_USE cw_status cw_sealed_read_all(cw_sealed_reader *r, size_t limit, void **data, size_t *n,
                                         cw_err *err);
/* FORMAT unless everything has been read and the stream ended as it was meant to. */
CW_MUST_USE cw_status cw_sealed_at_end(cw_sealed_reader *r, cw_err *err);
void cw_sealed_close(cw_sealed_reader **r);
