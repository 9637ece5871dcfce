#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <cjson/cJSON.h>
#include "golden_model.h"

char *golden_read(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s cannot be read", path);
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    char *p = malloc((size_t)n + 1);
    assert_non_null(p);
    assert_int_equal(fread(p, 1, (size_t)n, f), n);
    p[n] = '\0';
    fclose(f);
    if (bytes) *bytes = (size_t)n;
    return p;
}

static int *int_array(const cJSON *json, const char *key, int *n)
{
    const cJSON *a = cJSON_GetObjectItem(json, key), *v;
    assert_true(cJSON_IsArray(a));
    *n = cJSON_GetArraySize(a);
    int *out = calloc((size_t)*n, sizeof *out), i = 0;
    cJSON_ArrayForEach(v, a) out[i++] = v->valueint;
    return out;
}

golden_case *golden_case_load(const char *name)
{
    char path[256];
    golden_case *c = calloc(1, sizeof *c);
    snprintf(c->name, sizeof c->name, "%s", name);
    snprintf(path, sizeof path, "tests/golden/data/%s.json", name);
    char *text = golden_read(path, NULL);
    cJSON *json = cJSON_Parse(text);
    assert_non_null(json);
    int n;
    c->tokens = int_array(json, "tokens", &c->n_tokens);
    c->after = int_array(json, "row_is_logits_after_n_tokens", &c->n_rows);
    c->argmax = int_array(json, "argmax", &n);
    assert_int_equal(n, c->n_rows);
    c->n_vocab = cJSON_GetObjectItem(json, "n_vocab")->valueint;
    cJSON_Delete(json);
    free(text);
    size_t bytes;
    snprintf(path, sizeof path, "tests/golden/data/%s.logits.f32", name);
    c->logits = (float *)(void *)golden_read(path, &bytes);
    assert_int_equal(bytes, (size_t)c->n_rows * (size_t)c->n_vocab * sizeof(float));
    return c;
}

void golden_case_free(golden_case *c)
{
    free(c->tokens);
    free(c->after);
    free(c->argmax);
    free(c->logits);
    free(c);
}

cw_engine *golden_engine(const char *name, const golden_options *opt)
{
    static const golden_options defaults;
    if (!opt) opt = &defaults;
    char path[256];
    snprintf(path, sizeof path, strchr(name, '/') ? "%s" : "tests/golden/data/%s.gguf", name);
    cw_gguf *g = NULL;
    cw_engine *e = NULL;
    cw_err err;
    cw_engine_options o = {.n_threads = opt->n_threads ? opt->n_threads : 1, .max_rows = opt->max_rows};
    if (opt->has_isa) o.kernels = cw_kernels_get(opt->isa);
    if (cw_gguf_open(path, &g, &err) != CW_OK || cw_engine_open(g, &o, &e, &err) != CW_OK)
        fail_msg("%s", err.text);
    cw_gguf_close(&g); /* an engine needs nothing of the file any more */
    return e;
}

cw_session *golden_session(cw_engine *e, cw_kv_type kv)
{
    cw_session *s = NULL;
    cw_err err;
    cw_session_options o = {.kv_type = kv};
    if (cw_session_new(e, &o, &s, &err) != CW_OK) fail_msg("%s", err.text);
    return s;
}

float *golden_run(cw_session *s, const int32_t *tokens, int n, int chunk)
{
    cw_engine *e = cw_session_engine(s);
    int n_vocab = cw_engine_config(e)->n_vocab;
    float *logits = calloc((size_t)n * (size_t)n_vocab, sizeof *logits);
    assert_non_null(logits);
    for (int at = 0; at < n; at += chunk) {
        int now = n - at < chunk ? n - at : chunk;
        cw_batch_item item = {s, tokens + at, now, now, logits + (size_t)at * (size_t)n_vocab};
        cw_err err;
        if (cw_engine_forward(e, &item, 1, NULL, &err) != CW_OK) fail_msg("%s", err.text);
    }
    return logits;
}

uint64_t golden_kv_hash(const cw_session *s, int n_layers)
{
    uint64_t h = 0xcbf29ce484222325u;
    int n;
    cw_session_tokens(s, &n);
    for (int l = 0; l < n_layers; l++)
        for (int p = 0; p < n; p++) {
            size_t bytes;
            const uint8_t *row = cw_session_kv_row(s, l, p, &bytes);
            for (size_t i = 0; i < bytes; i++) h = (h ^ row[i]) * 0x100000001b3u;
        }
    return h;
}

void golden_tokens(int32_t *out, int n, int n_vocab, uint64_t seed)
{
    for (int i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        out[i] = (int32_t)((seed >> 33) % (uint64_t)n_vocab);
    }
}
