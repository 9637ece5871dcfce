/*
 * The token loop in split mode allocates nothing on the engine's thread: evaluates tokens one by one through
 * a running cluster under the allocation guard, again while workers were late meanwhile. Driven by
 * test_split.py: split_guard MODEL JOIN STATE_DIR prints {"allocations": N, "tokens": N}
 */
#include <stdio.h>
#include <stdlib.h>

#include "cw/engine.h"
#include "cw/mainland.h"
#include "cw/mem.h"

enum { WARM_UP = 4, TOKENS = 32, TRIES = 5 };

/* Calls sent again or to a second worker: those may allocate, and on a busy machine they happen. */
static uint64_t extra_calls(cw_mainland *m)
{
    static cw_mainland_status s;
    cw_mainland_get_status(m, &s);
    return s.n.resent + s.n.hedges + s.n.busy + s.n.suspects + s.n.late;
}

static cw_status evaluate(cw_session *s, float *logits, int n, cw_err *err)
{
    for (int i = 0; i < n; i++) {
        int32_t token = 10 + i;
        CW_TRY(cw_session_eval(s, &token, 1, logits, NULL, err));
    }
    return CW_OK;
}

int main(int argc, char **argv)
{
    if (argc != 4) return 2;
    cw_err err = {0};
    cw_gguf *g = NULL;
    cw_engine *e = NULL;
    cw_mainland *m = NULL;
    cw_session *s = NULL;
    float *logits = NULL;
    uint64_t seen = 0;
    cw_engine_options eo = {.role = CW_ENGINE_EDGE, .n_threads = 1};
    cw_status st;
    CW_TRY_GOTO(st, cw_gguf_open(argv[1], &g, &err));
    CW_TRY_GOTO(st, cw_engine_open(g, &eo, &e, &err));
    cw_mainland_options mo = {.join = argv[2],
                              .state_dir = argv[3],
                              .gguf = g,
                              .config = cw_engine_config(e),
                              .shapes = cw_engine_expert_shapes(e),
                              .max_rows = cw_engine_max_rows(e)};
    CW_TRY_GOTO(st, cw_mainland_open(&mo, &m, &err));
    cw_engine_set_experts(e, cw_mainland_experts(m));
    CW_TRY_GOTO(st, cw_session_new(e, NULL, &s, &err));
    logits = cw_calloc((size_t)cw_engine_config(e)->n_vocab, sizeof *logits);
    CW_TRY_GOTO(st, evaluate(s, logits, WARM_UP, &err));
    bool disturbed = true;
    for (int i = 0; i < TRIES && disturbed && st == CW_OK; i++) {
        uint64_t before = extra_calls(m);
        cw_alloc_guard_begin(false);
        st = evaluate(s, logits, TOKENS, &err);
        seen = cw_alloc_guard_end();
        disturbed = extra_calls(m) != before;
    }
    if (st == CW_OK) printf("{\"allocations\": %llu, \"tokens\": %d}\n", (unsigned long long)seen, TOKENS);
fail:
    if (st != CW_OK) fprintf(stderr, "split_guard: %s\n", err.text);
    cw_free(logits);
    cw_session_free(&s);
    cw_mainland_close(&m);
    cw_engine_close(&e);
    cw_gguf_close(&g);
    return st == CW_OK ? 0 : 1;
}
