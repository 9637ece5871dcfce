/*
 * A session's KV cache in a sealed file, so that a conversation that is taken up again need not be computed
 * again. It is a cache: whatever is wrong with the file, the text is still there and can be read again.
 *
 *   content: u32 version, u32 layers, u32 bytes of a row, u32 n tokens, u32 n exact, u32 0, the model's
 *   fingerprint (32 bytes), the identity line (cw_session_identity, 80 bytes), i32 tokens [n], the rows.
 *
 * Blocking; the speaker's thread.
 */
#pragma once
#include "cw/sealed.h"
#include "cw/speaker.h"

enum { CW_FINGERPRINT_BYTES = 32 };
/*
 * What tells this model from others without reading all of it: metadata, tensor table, samples from the
 * beginning, middle and end of every tensor, and what the command line changes of its configuration. Reads
 * some KiB of every tensor: some milliseconds, a second on a cold disk.
 */
CW_MUST_USE cw_status cw_speaker_fingerprint(cw_speaker *s, uint8_t out[CW_FINGERPRINT_BYTES], cw_err *err);

/* Bytes that the file would have, roughly. */
size_t cw_kept_kv_bytes(cw_speaker *s);
/* What the session holds now, whole or not at all; not forced to the disk. */
CW_MUST_USE cw_status cw_kept_kv_write(cw_speaker *s, const uint8_t fingerprint[CW_FINGERPRINT_BYTES],
                                       const char *path, const cw_seal_key *key, cw_err *err);
/*
 * The session becomes what the file holds. MISMATCH: kept for another model, another type of cache or another
 * arithmetic; UNSUPPORTED: another version; FORMAT, AUTH: damaged, cut, foreign; NOT_FOUND. On failure the
 * session is empty or what it was.
 */
CW_MUST_USE cw_status cw_kept_kv_read(cw_speaker *s, const uint8_t fingerprint[CW_FINGERPRINT_BYTES],
                                      const char *path, const cw_seal_key *key, cw_err *err);
/* The same from an open stream, which `name` names in errors. */
CW_MUST_USE cw_status cw_kept_kv_load(cw_session *s, const uint8_t fingerprint[CW_FINGERPRINT_BYTES],
                                      cw_sealed_reader *r, const char *name, cw_err *err);
/* The content's name inside the seal. */
extern const char cw_kept_kv_kind[];
