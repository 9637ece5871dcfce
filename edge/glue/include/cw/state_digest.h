/*
 * A session's state as one hash: tokens, KV rows, and the logits behind the last token. States of one model
 * and one identity (cw_session_identity) are equal byte for byte exactly when their digests are.
 */
#pragma once
#include "cw/engine.h"

enum { CW_STATE_DIGEST_BYTES = 32 };

/* `logits` [the engine's vocabulary]. Reads every KV row: a second for a GiB. NO_MEMORY. */
CW_MUST_USE cw_status cw_state_digest(const cw_session *s, const float *logits,
                                      uint8_t out[CW_STATE_DIGEST_BYTES], cw_err *err);
