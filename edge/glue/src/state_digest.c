/* See cw/state_digest.h. */
#include "cw/state_digest.h"
#include "cw/bytes.h"
#include "cw/hash.h"

static cw_status add(void *ctx, const void *data, size_t n, cw_err *err)
{
    (void)err;
    cw_hash_add(ctx, data, n);
    return CW_OK;
}

static void add_u32(cw_hash_state *h, uint32_t v)
{
    uint8_t b[4];
    cw_store_u32(b, v);
    cw_hash_add(h, b, sizeof b);
}

cw_status cw_state_digest(const cw_session *s, const float *logits, uint8_t out[CW_STATE_DIGEST_BYTES],
                          cw_err *err)
{
    _Static_assert((int)CW_STATE_DIGEST_BYTES == (int)CW_HASH_BYTES, "a digest is a hash");
    char identity[CW_SESSION_IDENTITY_MAX] = {0};
    int n, n_vocab = cw_engine_config(cw_session_engine(s))->n_vocab;
    const int32_t *tokens = cw_session_tokens(s, &n);
    cw_session_identity(s, identity);
    cw_hash_state h;
    cw_hash_begin(&h, "causeway session state 1");
    cw_hash_add(&h, identity, sizeof identity);
    add_u32(&h, (uint32_t)n);
    for (int i = 0; i < n; i++) add_u32(&h, (uint32_t)tokens[i]);
    CW_TRY(cw_session_export(s, add, &h, err));
    for (int i = 0; i < n_vocab; i++) add_u32(&h, cw_f32_bits(logits[i]));
    cw_hash_end(&h, out);
    return CW_OK;
}
