/* The reference of audits; see reference.h. */
#include "reference.h"

#include <pthread.h>
#include <string.h>

#include "cw/clock.h"
#include "cw/expert_ffn.h"
#include "cw/known_answer.h"
#include "cw/log.h"
#include "cw/mem.h"
#include "cw/queue.h"

enum { ROWS_AT_ONCE = 32, MOST_WAITING = 32 };

struct reference {
    const prepared_model *model;
    void (*wake)(void *ctx);
    void *ctx;
    cw_queue *in, *out;
    pthread_t thread;
    bool running;
    cw_expert_shape *shapes;
    cw_expert_set *set;
    cw_expert_scratch *scratch;
    const cw_kernels *kernels;
};

/* The expert is in the set and gives its known answer. */
static cw_status check(reference *r, int layer, int expert, cw_err *err)
{
    uint8_t got[CW_KNOWN_ANSWER_BYTES];
    const uint8_t *want = cw_manifest_answer(r->model->manifest, CW_ARITHMETIC_ID, layer, expert);
    if (!want) return CW_FAIL(err, CW_STATUS_NOT_FOUND, "the manifest has no known answers");
    CW_TRY(cw_expert_known_answer(r->kernels, r->set, layer, expert, r->scratch, got, err));
    if (memcmp(want, got, sizeof got) == 0) return CW_OK;
    return CW_FAIL(
        err, CW_STATUS_MISMATCH,
        "expert %d of layer %d does not give its known answer here: this machine computes wrongly, or its "
        "memory is damaged",
        expert, layer);
}

static cw_status compute(reference *r, reference_result *x, cw_err *err)
{
    int layer = (int)x->audit.layer, expert = (int)x->audit.expert;
    CW_TRY(cw_gguf_check_unchanged(r->model->gguf, err));
    CW_TRY(cw_expert_set_add_from_gguf(r->set, r->model->gguf, layer, expert, err));
    cw_status s = check(r, layer, expert, err);
    if (s == CW_OK)
        s = cw_expert_audit(r->kernels, r->set, layer, expert, x->audit.seed, x->audit.n_rows, r->scratch,
                            x->hashes, err);
    (void)cw_expert_set_remove(r->set, layer, expert);
    return s;
}

static void *run(void *arg)
{
    reference *r = arg;
    cw_fp_setup();
    for (;;) {
        reference_result *x = cw_queue_pop_wait(r->in, -1);
        if (cw_queue_closed(r->in)) {
            cw_free(x);
            return NULL;
        }
        if (!x) continue;
        cw_err err;
        int64_t begun = cw_now_us();
        x->ok = compute(r, x, &err) == CW_OK;
        x->took_us = cw_now_us() - begun;
        if (!x->ok) CW_LOG_E("coordinator", "an audit has no reference: %s", err.text);
        CW_ASSERT(cw_queue_push(r->out, x) == CW_OK); /* there are never more than fit */
        r->wake(r->ctx);
    }
}

cw_status reference_start(const prepared_model *model, void (*wake)(void *ctx), void *ctx, reference **out,
                          cw_err *err)
{
    cw_status s = CW_OK;
    reference *r = cw_calloc(1, sizeof *r);
    if (!r) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the reference");
    r->model = model;
    r->wake = wake;
    r->ctx = ctx;
    r->kernels = cw_kernels_best();
    const cw_model_config *c = &model->config;
    r->shapes = cw_calloc((size_t)c->n_layers, sizeof *r->shapes);
    if (!r->shapes) s = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the reference");
    if (s == CW_OK) s = cw_expert_shapes_read(model->gguf, c, r->shapes, err);
    if (s == CW_OK) s = cw_expert_set_new(c->n_layers, c->n_experts, r->shapes, &r->set, err);
    if (s == CW_OK) s = cw_expert_scratch_new(r->set, ROWS_AT_ONCE, &r->scratch, err);
    if (s == CW_OK) s = cw_queue_new(MOST_WAITING, cw_free, &r->in, err);
    if (s == CW_OK) s = cw_queue_new(2 * MOST_WAITING, cw_free, &r->out, err);
    if (s == CW_OK && pthread_create(&r->thread, NULL, run, r) != 0)
        s = CW_FAIL(err, CW_STATUS_LIMIT, "cannot start the reference's thread");
    r->running = s == CW_OK;
    if (s == CW_OK)
        *out = r;
    else
        reference_stop(&r);
    return s;
}

void reference_stop(reference **pr)
{
    reference *r = pr ? *pr : NULL;
    if (!r) return;
    if (r->running) {
        cw_queue_close(r->in);
        pthread_join(r->thread, NULL);
    }
    cw_queue_free(&r->in);
    cw_queue_free(&r->out);
    cw_expert_scratch_free(&r->scratch);
    cw_expert_set_free(&r->set);
    cw_free(r->shapes);
    cw_free(r);
    *pr = NULL;
}

bool reference_ask(reference *r, const cw_coordinator_audit *audit)
{
    reference_result *x = cw_calloc(1, sizeof *x);
    if (!x) return false;
    x->audit = *audit;
    if (cw_queue_push(r->in, x) == CW_OK) return true;
    cw_free(x);
    return false;
}

reference_result *reference_take(reference *r)
{
    return cw_queue_pop(r->out);
}
