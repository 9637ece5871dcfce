/*
 * The dense architectures against a plain program in double precision that reads the same file: grouped
 * heads, biases, tied output, both rope orders, linear scaling, frequency divisors.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cw/bytes.h"
#include "cw/engine.h"
#include "model_file.h"

enum { N = 40 };

typedef struct {
    const cw_gguf *g;
    const model_spec *s;
    double linear; /* positions are divided by this */
    bool halves;
} reference;

static double *load(const reference *r, const char *fmt, int layer)
{
    char name[64];
    snprintf(name, sizeof name, fmt, layer); /* formats are this file's own */
    const cw_gguf_tensor *t = cw_gguf_find(r->g, name);
    if (!t) return NULL;
    size_t n = (size_t)(t->ne[0] * t->ne[1]);
    double *v = calloc(n, sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = (double)cw_f32_from_bits(cw_load_u32((const uint8_t *)t->data + 4 * i));
    return v;
}

static void multiply(const reference *r, const char *fmt, const char *bias_fmt, int layer, const double *x,
                     int k, double *y, int n)
{
    double *w = load(r, fmt, layer), *b = bias_fmt ? load(r, bias_fmt, layer) : NULL;
    for (int i = 0; i < n; i++) {
        y[i] = b ? b[i] : 0;
        for (int j = 0; j < k; j++) y[i] += w[(size_t)i * (size_t)k + (size_t)j] * x[j];
    }
    free(w);
    free(b);
}

static void norm(const reference *r, const char *fmt, int layer, const double *x, double *y, int n)
{
    double *w = load(r, fmt, layer), sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    for (int i = 0; i < n; i++) y[i] = x[i] / sqrt(sum / n + 1e-6) * w[i];
    free(w);
}

static void rotate(const reference *r, double *x, int heads, int position)
{
    int d = r->s->rope, half = d / 2;
    double *div = load(r, "rope_freqs.weight", 0);
    for (int h = 0; h < heads; h++, x += r->s->d_head)
        for (int i = 0; i < half; i++) {
            double a = position / r->linear * pow(10000, -2.0 * i / d) / (div ? div[i] : 1);
            double *p = r->halves ? &x[i] : &x[2 * i], *q = r->halves ? &x[i + half] : &x[2 * i + 1], p0 = *p;
            *p = p0 * cos(a) - *q * sin(a);
            *q = p0 * sin(a) + *q * cos(a);
        }
    free(div);
}

static double keys[2][N][64], values[2][N][64];

static void attend(const reference *r, int layer, int position, const double *q, double *o)
{
    const model_spec *s = r->s;
    for (int h = 0; h < s->heads; h++) {
        int set = h / (s->heads / s->kv_heads);
        double score[N], sum = 0, most = -INFINITY;
        for (int j = 0; j <= position; j++) {
            score[j] = 0;
            for (int i = 0; i < s->d_head; i++)
                score[j] += q[h * s->d_head + i] * keys[layer][j][set * s->d_head + i];
            score[j] /= sqrt(s->d_head);
            most = fmax(most, score[j]);
        }
        for (int j = 0; j <= position; j++) sum += score[j] = exp(score[j] - most);
        for (int i = 0; i < s->d_head; i++) {
            o[h * s->d_head + i] = 0;
            for (int j = 0; j <= position; j++)
                o[h * s->d_head + i] += score[j] / sum * values[layer][j][set * s->d_head + i];
        }
    }
}

static void step(const reference *r, int32_t token, int position, double *logits)
{
    const model_spec *s = r->s;
    double x[64], h[64], q[64], o[64], y[64], gate[96], up[96], *embd = load(r, "token_embd.weight", 0);
    int d_kv = s->kv_heads * s->d_head;
    memcpy(x, embd + (size_t)token * (size_t)s->d, (size_t)s->d * sizeof *x);
    free(embd);
    for (int l = 0; l < s->layers; l++) {
        norm(r, "blk.%d.attn_norm.weight", l, x, h, s->d);
        multiply(r, "blk.%d.attn_q.weight", "blk.%d.attn_q.bias", l, h, s->d, q, s->heads * s->d_head);
        multiply(r, "blk.%d.attn_k.weight", "blk.%d.attn_k.bias", l, h, s->d, keys[l][position], d_kv);
        multiply(r, "blk.%d.attn_v.weight", "blk.%d.attn_v.bias", l, h, s->d, values[l][position], d_kv);
        rotate(r, q, s->heads, position);
        rotate(r, keys[l][position], s->kv_heads, position);
        attend(r, l, position, q, o);
        multiply(r, "blk.%d.attn_output.weight", NULL, l, o, s->heads * s->d_head, y, s->d);
        for (int i = 0; i < s->d; i++) x[i] += y[i];
        norm(r, "blk.%d.ffn_norm.weight", l, x, h, s->d);
        multiply(r, "blk.%d.ffn_gate.weight", NULL, l, h, s->d, gate, s->ff);
        multiply(r, "blk.%d.ffn_up.weight", NULL, l, h, s->d, up, s->ff);
        for (int i = 0; i < s->ff; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        multiply(r, "blk.%d.ffn_down.weight", NULL, l, gate, s->ff, y, s->d);
        for (int i = 0; i < s->d; i++) x[i] += y[i];
    }
    norm(r, "output_norm.weight", 0, x, h, s->d);
    multiply(r, s->tied ? "token_embd.weight" : "output.weight", NULL, 0, h, s->d, logits, s->vocab);
}

static void check(const model_spec *s, double linear, bool halves)
{
    cw_gguf *g = model_file_open(s);
    reference r = {g, s, linear, halves};
    cw_engine *e = NULL;
    cw_session *session = NULL;
    cw_err err;
    if (cw_engine_open(g, &(cw_engine_options){.n_threads = 1}, &e, &err) != CW_OK) fail_msg("%s", err.text);
    assert_int_equal(cw_session_new(e, NULL, &session, NULL), CW_OK);
    assert_int_equal(cw_session_kv_type(session), CW_KV_F32);
    int32_t tokens[N];
    float *got = calloc(N * (size_t)s->vocab, sizeof *got);
    for (int i = 0; i < N; i++) tokens[i] = (i * 37 + 11) % s->vocab;
    cw_batch_item item = {session, tokens, N, N, got};
    assert_int_equal(cw_engine_forward(e, &item, 1, NULL, NULL), CW_OK);
    double worst = 0, spread = 0;
    for (int i = 0; i < N; i++) {
        double want[128];
        step(&r, tokens[i], i, want);
        for (int v = 0; v < s->vocab; v++) {
            worst = fmax(worst, fabs(want[v] - (double)got[i * s->vocab + v]));
            spread = fmax(spread, fabs(want[v]));
        }
    }
    assert_true(spread > 0.5);
    if (!(worst < 2e-5)) fail_msg("%s: largest error %g", s->arch, worst);
    free(got);
    cw_session_free(&session);
    cw_engine_close(&e);
    model_file_close(&g);
}

static void llama_is_as_written_down(void **state)
{
    (void)state;
    model_spec s = model_spec_llama();
    check(&s, 1, false);
    s.qkv_bias = true;
    s.kv_heads = 4;
    check(&s, 1, false);
}

static void llama_with_divisors_is_as_written_down(void **state)
{
    (void)state;
    model_spec s = model_spec_llama();
    s.rope_divisors = true;
    check(&s, 1, false);
}

static void partial_rope_and_linear_scaling_are_as_written_down(void **state)
{
    (void)state;
    model_spec s = model_spec_llama();
    s.rope = 8;
    s.keys[0] = (model_key){"rope.scaling.type", SET_STR, 0, "linear"};
    s.keys[1] = (model_key){"rope.scaling.factor", SET_F32, 4, NULL};
    check(&s, 4, false);
}

static void qwen2_is_as_written_down(void **state)
{
    (void)state;
    model_spec s = model_spec_qwen2();
    check(&s, 1, true);
    s.tied = false;
    check(&s, 1, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_is_as_written_down),
        cmocka_unit_test(llama_with_divisors_is_as_written_down),
        cmocka_unit_test(partial_rope_and_linear_scaling_are_as_written_down),
        cmocka_unit_test(qwen2_is_as_written_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
