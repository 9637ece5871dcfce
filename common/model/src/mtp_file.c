/*
 * Where a multi-token-prediction head is, and whether it belongs to this model. Pure.
 *
 * A companion file has the metadata of the model it was trained with: whatever both files say must be equal,
 * because the head computes with the model's numbers (rope, gate, norms), and shapes alone would not tell.
 */
#include "mtp_internal.h"

#include <stdio.h>
#include <string.h>

static bool str_eq(cw_gguf_str a, cw_gguf_str b)
{
    return a.len == b.len && memcmp(a.data, b.data, a.len) == 0;
}

/* Scalars and strings; what is neither carries no number of ours and counts as equal. */
static bool same_value(const cw_gguf *a, const cw_gguf *b, const cw_gguf_kv *x, const cw_gguf_kv *y)
{
    if (x->kind == CW_GGUF_ARRAY || y->kind == CW_GGUF_ARRAY) return x->kind == y->kind;
    if (x->kind == CW_GGUF_STRING || y->kind == CW_GGUF_STRING)
        return x->kind == y->kind && str_eq(x->str, y->str);
    if (x->kind == CW_GGUF_BOOL || y->kind == CW_GGUF_BOOL) {
        bool m, n;
        return cw_gguf_get_bool(a, x->key, &m, NULL) == CW_OK &&
               cw_gguf_get_bool(b, y->key, &n, NULL) == CW_OK && m == n;
    }
    if (cw_gguf_kind_is_int(x->kind)) {
        uint64_t m, n;
        return cw_gguf_get_u64(a, x->key, &m, NULL) == CW_OK &&
               cw_gguf_get_u64(b, y->key, &n, NULL) == CW_OK && m == n;
    }
    float m, n;
    return cw_gguf_get_f32(a, x->key, &m, NULL) == CW_OK && cw_gguf_get_f32(b, y->key, &n, NULL) == CW_OK &&
           m == n;
}

/* "ARCH.block_count" and "ARCH.nextn_predict_layers" are what a companion must say otherwise. */
static bool may_differ(const char *suffix)
{
    return strcmp(suffix, "block_count") == 0 || strcmp(suffix, "nextn_predict_layers") == 0;
}

static cw_status check_companion(const cw_gguf *model, const cw_model_config *c, const cw_gguf *companion,
                                 cw_err *err)
{
    char key[96], prefix[32];
    cw_gguf_str arch;
    uint32_t blocks, nextn;
    CW_TRY(cw_gguf_get_str(companion, "general.architecture", &arch, err));
    if (!cw_gguf_str_eq(arch, cw_arch_name(c->arch)))
        return CW_FAIL(err, CW_STATUS_MISMATCH,
                       "the prediction head is of architecture \"%.*s\", the model is %s",
                       (int)(arch.len < 64 ? arch.len : 64), arch.data, cw_arch_name(c->arch));
    snprintf(key, sizeof key, "%s.nextn_predict_layers", cw_arch_name(c->arch));
    CW_TRY(cw_gguf_get_u32_or(companion, key, 0, &nextn, err));
    if (nextn == 0)
        return CW_FAIL(err, CW_STATUS_NOT_FOUND,
                       "the file holds no multi-token-prediction block (%s is missing or 0)", key);
    snprintf(key, sizeof key, "%s.block_count", cw_arch_name(c->arch));
    CW_TRY(cw_gguf_get_u32(companion, key, &blocks, err));
    if (nextn > blocks || blocks - nextn != (uint32_t)c->n_layers)
        return CW_FAIL(err, CW_STATUS_MISMATCH,
                       "the prediction head stands behind %u blocks, the model has %d",
                       nextn > blocks ? 0 : blocks - nextn, c->n_layers);
    int n = snprintf(prefix, sizeof prefix, "%s.", cw_arch_name(c->arch));
    for (size_t i = 0; i < cw_gguf_kv_count(companion); i++) {
        const cw_gguf_kv *theirs = cw_gguf_kv_at(companion, i);
        if (strncmp(theirs->key, prefix, (size_t)n) != 0 || may_differ(theirs->key + n)) continue;
        const cw_gguf_kv *ours = cw_gguf_kv_find(model, theirs->key);
        if (ours && !same_value(companion, model, theirs, ours))
            return CW_FAIL(err, CW_STATUS_MISMATCH,
                           "the prediction head was made for another model: %s differs", theirs->key);
    }
    return CW_OK;
}

cw_status cw_mtp_find(const cw_gguf *model, const cw_model_config *c, const cw_gguf *companion,
                      cw_mtp_tensors *out, cw_err *err)
{
    if (!c->mla)
        return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "prediction heads of %s models are not supported",
                       cw_arch_name(c->arch));
    if (companion)
        CW_TRY(check_companion(model, c, companion, err));
    else if (c->n_nextn == 0)
        return CW_FAIL(err, CW_STATUS_NOT_FOUND,
                       "the model's file holds no multi-token-prediction block; a companion file with one "
                       "is named with --mtp");
    return cw_mtp_tensors_find(companion ? companion : model, c, out, err);
}
