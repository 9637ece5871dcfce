#include "digest.h"

#include <stdio.h>

cw_status cli_digest_session(const cw_session *s, const float *logits, cli_digest *out, cw_err *err)
{
    uint8_t hash[CW_STATE_DIGEST_BYTES];
    *out = (cli_digest){0};
    CW_TRY(cw_state_digest(s, logits, hash, err));
    for (int i = 0; i < CW_STATE_DIGEST_BYTES; i++) snprintf(out->hex + 2 * i, 3, "%02x", hash[i]);
    out->tokens = cw_session_tokens(s, &out->n_tokens);
    out->known = true;
    return CW_OK;
}

cw_status cli_digest_talk(const cw_talk *t, cli_digest *out, cw_err *err)
{
    const cw_session *s;
    const float *logits;
    *out = (cli_digest){0};
    return cw_talk_state(t, &s, &logits) ? cli_digest_session(s, logits, out, err) : CW_OK;
}

void cli_digest_json(cw_json *j, const cli_digest *d)
{
    cw_json_object(j);
    cw_json_key(j, "tokens");
    cw_json_array(j);
    for (int i = 0; i < d->n_tokens; i++) cw_json_int(j, d->tokens[i]);
    cw_json_end(j);
    cw_json_kstr(j, "digest", d->hex);
    cw_json_end(j);
}
