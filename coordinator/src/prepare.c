/* Model, manifest, known answers, fallback; see prepare.h. */
#include "prepare.h"

#include <stdio.h>
#include <string.h>

#include "cw/expert_ffn.h"
#include "cw/known_answer.h"
#include "cw/mem.h"
#include "cw/progress.h"
#include "cw/signal.h"
#include "cw/tok.h"

_Static_assert((int)CW_KNOWN_ANSWER_BYTES == (int)CW_MANIFEST_HASH_BYTES,
               "an answer is a hash of the manifest");

/* While the manifest is built: hashing first, then one expert after the other through the expert's
 * arithmetic. */
typedef struct {
    const prepared_model *model;
    cw_expert_shape *shapes;
    const cw_kernels *kernels;
    cw_expert_set *set;
    cw_expert_scratch *scratch;
    cw_progress progress;
    bool hashing, answering;
    uint64_t answered, total;
} building;

static bool on_hashed(void *ctx, uint64_t done, uint64_t total)
{
    building *b = ctx;
    if (!b->hashing) cw_progress_begin(&b->progress, "hashing the model", total);
    b->hashing = true;
    cw_progress_update(&b->progress, done);
    return !cw_signal_stopped();
}

static cw_status answer(void *ctx, int layer, int expert, uint8_t out[CW_MANIFEST_HASH_BYTES], cw_err *err)
{
    building *b = ctx;
    if (cw_signal_stopped())
        return CW_FAIL(err, CW_STATUS_CANCELLED, "stopped while computing known answers");
    if (!b->answering) {
        if (b->hashing) cw_progress_end(&b->progress);
        b->hashing = false;
        b->answering = true;
        cw_progress_begin(&b->progress, "computing known answers", b->total);
    }
    CW_TRY(cw_expert_set_add_from_gguf(b->set, b->model->gguf, layer, expert, err));
    cw_status s = cw_expert_known_answer(b->kernels, b->set, layer, expert, b->scratch, out, err);
    (void)cw_expert_set_remove(b->set, layer, expert);
    for (int i = 0; i < CW_N_SLICES; i++) b->answered += cw_expert_slice_bytes(&b->shapes[layer], i);
    cw_progress_update(&b->progress, b->answered);
    return s;
}

static cw_status build_manifest(prepared_model *p, const char *dir, cw_err *err)
{
    building b = {.model = p, .kernels = cw_kernels_best()};
    cw_status s = CW_OK;
    b.shapes = cw_calloc((size_t)p->config.n_layers, sizeof *b.shapes);
    p->expert_bytes = cw_calloc((size_t)p->config.n_layers, sizeof *p->expert_bytes);
    if (!b.shapes || !p->expert_bytes) {
        s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the model's shapes");
        goto fail;
    }
    CW_TRY_GOTO(s, cw_expert_shapes_read(p->gguf, &p->config, b.shapes, err));
    for (int l = 0; l < p->config.n_layers; l++) {
        if (!cw_layer_is_moe(&p->config, l)) continue;
        p->expert_bytes[l] = cw_expert_packed_bytes(&b.shapes[l]);
        for (int i = 0; i < CW_N_SLICES; i++)
            b.total += cw_expert_slice_bytes(&b.shapes[l], i) * (uint64_t)p->config.n_experts;
    }
    CW_TRY_GOTO(s, cw_expert_set_new(p->config.n_layers, p->config.n_experts, b.shapes, &b.set, err));
    CW_TRY_GOTO(s, cw_expert_scratch_new(b.set, 1, &b.scratch, err));
    cw_manifest_options opts = {.known_answer = answer,
                                .answer_layers = p->config.n_layers,
                                .arithmetic_id = CW_ARITHMETIC_ID,
                                .progress = on_hashed,
                                .ctx = &b};
    s = cw_manifest_cached(p->gguf, dir, &opts, &p->manifest, err);
fail:
    if (b.hashing || b.answering) cw_progress_end(&b.progress);
    cw_expert_scratch_free(&b.scratch);
    cw_expert_set_free(&b.set);
    cw_free(b.shapes);
    return s;
}

cw_status prepare_model(const char *path, const char *dir, prepared_model *out, cw_err *err)
{
    prepared_model p = {.arithmetic_id = CW_ARITHMETIC_ID};
    cw_status s = CW_OK;
    CW_TRY_GOTO(s, cw_gguf_open(path, &p.gguf, err));
    CW_TRY_GOTO(s, cw_model_config_read(p.gguf, NULL, &p.config, err));
    if (p.config.n_experts == 0) {
        s = CW_FAIL(
            err, CW_STATUS_UNSUPPORTED,
            "%s has no routed experts, so there is nothing to spread over workers: run it with causeway run",
            path);
        goto fail;
    }
    p.fingerprint = cw_kernels_fingerprint(cw_kernels_best());
    CW_TRY_GOTO(s, build_manifest(&p, dir, err));
    *out = p;
    return CW_OK;
fail:
    prepared_model_free(&p);
    return s;
}

void prepared_model_free(prepared_model *p)
{
    cw_manifest_free(&p->manifest);
    cw_gguf_close(&p->gguf);
    cw_free(p->expert_bytes);
    *p = (prepared_model){0};
}

/* ---- the fallback
 * ------------------------------------------------------------------------------------------- */

static void say_difference(const cw_tok *a, const cw_tok *b, char *text, size_t size)
{
    int n = cw_tok_n_vocab(a) < cw_tok_n_vocab(b) ? cw_tok_n_vocab(a) : cw_tok_n_vocab(b);
    for (int i = 0; i < n; i++) {
        size_t la, lb;
        const char *pa = cw_tok_piece(a, i, &la), *pb = cw_tok_piece(b, i, &lb);
        if (la == lb && memcmp(pa, pb, la) == 0) continue;
        snprintf(text, size,
                 "the fallback's vocabulary differs from the model's at token %d: it answers when the "
                 "mainland is away, but cannot draft",
                 i);
        return;
    }
    if (cw_tok_n_vocab(a) != cw_tok_n_vocab(b))
        snprintf(text, size,
                 "the fallback has %d tokens and the model %d: it answers when the mainland is away, but "
                 "cannot draft",
                 (int)cw_tok_n_vocab(b), (int)cw_tok_n_vocab(a));
    else
        snprintf(text, size, "the fallback shares the model's vocabulary of %d tokens: it can also draft", n);
}

cw_status prepare_compare_fallback(const cw_gguf *model, const char *fallback_path, char *text,
                                   size_t text_size, cw_err *err)
{
    cw_gguf *g = NULL;
    cw_tok *a = NULL, *b = NULL;
    cw_model_config config;
    cw_status s = CW_OK;
    CW_TRY_GOTO(s, cw_gguf_open(fallback_path, &g, err));
    CW_TRY_GOTO(s, cw_model_config_read(g, NULL, &config, err));
    CW_TRY_GOTO(s, cw_tok_new(model, &a, err));
    CW_TRY_GOTO(s, cw_tok_new(g, &b, err));
    say_difference(a, b, text, text_size);
fail:
    cw_tok_free(&a);
    cw_tok_free(&b);
    cw_gguf_close(&g);
    return s;
}
