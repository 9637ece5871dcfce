/* --digest: the state that an answer left, for comparing it with another's (cw/state_digest.h). */
#pragma once
#include "cw/json.h"
#include "cw/state_digest.h"
#include "cw/talk.h"

typedef struct {
    bool known;
    char hex[2 * CW_STATE_DIGEST_BYTES + 1];
    const int32_t *tokens; /* of the session, borrowed until it changes */
    int n_tokens;
} cli_digest;

CW_MUST_USE cw_status cli_digest_session(const cw_session *s, const float *logits, cli_digest *out,
                                         cw_err *err);
/* Of the last answer; not known where the talk does not tell (cw_talk_state). */
CW_MUST_USE cw_status cli_digest_talk(const cw_talk *t, cli_digest *out, cw_err *err);
/* {"tokens": [...], "digest": "..."} as a value. */
void cli_digest_json(cw_json *j, const cli_digest *d);
