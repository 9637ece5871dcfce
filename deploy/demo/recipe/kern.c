// CPU kernels for training the demo models: bf16 GEMM (fp32 in, fp32 out, fp32 sums),
// grouped GEMM over experts, causal attention over a stream of documents, RMSNorm,
// SwiGLU, cross-entropy and AdamW.  Needs AVX512-BF16.
//   gcc -O3 -march=native -ffast-math -fopenmp -shared -fPIC kern.c -o kern.so -lm
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MR = 12, NR = 32, KC = 512, NC = 512, RS = KC / 2 + 16 };
typedef uint32_t u32;
static _Thread_local u32 *tl_b, *tl_a;
static void bufs(void)
{
    if (tl_b) return;
    tl_b = aligned_alloc(64, sizeof(u32) * (KC / 2) * NC);
    tl_a = aligned_alloc(64, sizeof(u32) * (MR * RS + KC / 2 * 16));
}
static inline __m512i pair(__m512 lo, __m512 hi)
{ // 16 x (bf16 lo, bf16 hi)
    __m512i l = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(lo)),
            h = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(hi));
    return _mm512_or_si512(l, _mm512_slli_epi32(h, 16));
}
static inline __mmask16 m16(long n)
{
    return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

static inline __attribute__((always_inline)) void micro(long kp, const u32 *a, const int rs, const int ks,
                                                        const u32 *b, float *c, long ldc, long mr, long nr,
                                                        int first)
{
    __m512 x[MR][2];
    for (int r = 0; r < MR; r++) x[r][0] = x[r][1] = _mm512_setzero_ps();
    for (long k = 0; k < kp; k++) {
        __m512bh b0 = (__m512bh)_mm512_load_si512(b + k * NR),
                 b1 = (__m512bh)_mm512_load_si512(b + k * NR + 16);
#pragma GCC unroll 12
        for (int r = 0; r < MR; r++) {
            __m512bh v = (__m512bh)_mm512_set1_epi32(a[r * rs + k * ks]);
            x[r][0] = _mm512_dpbf16_ps(x[r][0], v, b0);
            x[r][1] = _mm512_dpbf16_ps(x[r][1], v, b1);
        }
    }
    __mmask16 k0 = m16(nr), k1 = m16(nr - 16);
#pragma GCC unroll 12
    for (int r = 0; r < MR; r++)
        if (r < mr) {
            float *d = c + r * ldc;
            if (!first) {
                x[r][0] = _mm512_add_ps(x[r][0], _mm512_maskz_loadu_ps(k0, d));
                x[r][1] = _mm512_add_ps(x[r][1], _mm512_maskz_loadu_ps(k1, d + 16));
            }
            _mm512_mask_storeu_ps(d, k0, x[r][0]);
            _mm512_mask_storeu_ps(d + 16, k1, x[r][1]);
        }
}
static void __attribute__((noinline))
micro_row(long kp, const u32 *a, const u32 *b, float *c, long ldc, long mr, long nr, int f)
{
    micro(kp, a, RS, 1, b, c, ldc, mr, nr, f);
}
static void __attribute__((noinline))
micro_col(long kp, const u32 *a, const u32 *b, float *c, long ldc, long mr, long nr, int f)
{
    micro(kp, a, 1, 16, b, c, ldc, mr, nr, f);
}

static void pack_b(int tb, const float *B, long ldb, long kc, long nc, u32 *o)
{
    long kp = (kc + 1) / 2;
    if (!tb)
        for (long n = 0; n < nc; n += NR) {
            __mmask16 k0 = m16(nc - n), k1 = m16(nc - n - 16);
            for (long k = 0; k < kp; k++) {
                const float *p = B + 2 * k * ldb + n, *q = p + ldb;
                int odd = 2 * k + 1 >= kc;
                __mmask16 j0 = odd ? 0 : k0, j1 = odd ? 0 : k1;
                _mm512_store_si512(o + k * NR,
                                   pair(_mm512_maskz_loadu_ps(k0, p), _mm512_maskz_loadu_ps(j0, q)));
                _mm512_store_si512(o + k * NR + 16, pair(_mm512_maskz_loadu_ps(k1, p + 16),
                                                         _mm512_maskz_loadu_ps(j1, q + 16)));
            }
            o += kp * NR;
        }
    else {
        __m512i idx = _mm512_mullo_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(NR));
        for (long n = 0; n < nc; n += NR) {
            if (nc - n < NR) memset(o, 0, kp * NR * 4);
            for (long j = 0; j < NR && n + j < nc; j++)
                for (long k = 0; k < kc; k += 32) {
                    const float *p = B + (n + j) * ldb + k;
                    __m512i v = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(m16(kc - k - 16), p + 16),
                                                             _mm512_maskz_loadu_ps(m16(kc - k), p));
                    _mm512_mask_i32scatter_epi32(o + (k / 2) * NR + j, m16(kp - k / 2), idx, v, 4);
                }
            o += kp * NR;
        }
    }
}
static void gemm1(int ta, int tb, long M, long N, long K, const float *A, long lda, const float *B, long ldb,
                  float *C, long ldc)
{
    bufs();
    if (K == 0) {
        for (long m = 0; m < M; m++) memset(C + m * ldc, 0, N * 4);
        return;
    }
    for (long n0 = 0; n0 < N; n0 += NC)
        for (long k0 = 0; k0 < K; k0 += KC) {
            long nc = N - n0 < NC ? N - n0 : NC, kc = K - k0 < KC ? K - k0 : KC, kp = (kc + 1) / 2;
            pack_b(tb, tb ? B + n0 * ldb + k0 : B + k0 * ldb + n0, ldb, kc, nc, tl_b);
            for (long m = 0; m < M; m += MR) {
                long mr = M - m < MR ? M - m : MR;
                if (!ta) {
                    if (mr < MR) memset(tl_a + mr * RS, 0, (MR - mr) * RS * 4);
                    for (long r = 0; r < mr; r++)
                        for (long k = 0; k < kc; k += 32) {
                            const float *p = A + (m + r) * lda + k0 + k;
                            _mm512_storeu_si512(
                                tl_a + r * RS + k / 2,
                                (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(m16(kc - k - 16), p + 16),
                                                             _mm512_maskz_loadu_ps(m16(kc - k), p)));
                        }
                } else
                    for (long k = 0; k < kp; k++) {
                        const float *p = A + (k0 + 2 * k) * lda + m;
                        __mmask16 z = m16(mr);
                        _mm512_storeu_si512(tl_a + k * 16,
                                            pair(_mm512_maskz_loadu_ps(z, p),
                                                 _mm512_maskz_loadu_ps(2 * k + 1 < kc ? z : 0, p + lda)));
                    }
                for (long n = 0; n < nc; n += NR)
                    (ta ? micro_col : micro_row)(kp, tl_a, tl_b + n / NR * kp * NR, C + m * ldc + n0 + n, ldc,
                                                 mr, nc - n < NR ? nc - n : NR, k0 == 0);
            }
        }
}
// Work is handed out in pieces of about 50 MFLOP, so a busy machine does not make one thread wait long for
// the other.
void gemm(int ta, int tb, long M, long N, long K, const float *A, long lda, const float *B, long ldb,
          float *C, long ldc)
{
    long big = M >= N ? M : N, unit = M >= N ? 4 * MR : 2 * NR,
         per = 25000000 / ((M >= N ? N : M) * K + 1) / unit * unit;
    long least = M < N ? 64 : ta ? 96 : 504; // enough rows to pay for packing the other side
    if (per < least) per = least;
    if (per * 2 > big) per = ((big + 1) / 2 + unit - 1) / unit * unit;
    long pieces = (big + per - 1) / per;
#pragma omp parallel for schedule(dynamic, 1)
    for (long i = 0; i < pieces; i++) {
        long s = i * per, n = big - s < per ? big - s : per;
        if (M >= N)
            gemm1(ta, tb, n, N, K, ta ? A + s : A + s * lda, lda, B, ldb, C + s * ldc, ldc);
        else
            gemm1(ta, tb, M, n, K, A, lda, tb ? B + s * ldb : B + s, ldb, C + s, ldc);
    }
}
// Experts: rows off[e]..off[e+1] belong to expert e. W is [E, out, in].
// mode 0: Y = X W^T   mode 1: Y = X W   mode 2: Y[e] = X^T Z (X: rows x out, Z: rows x in)
void grouped(int mode, long E, const long *off, long out, long in, const float *X, const float *W, float *Y)
{
#pragma omp parallel for schedule(dynamic, 1)
    for (long e = 0; e < E; e++) {
        long s = off[e], n = off[e + 1] - s;
        if (mode == 0) gemm1(0, 1, n, out, in, X + s * in, in, W + e * out * in, in, Y + s * out, out);
        if (mode == 1) gemm1(0, 0, n, in, out, X + s * out, out, W + e * out * in, in, Y + s * in, in);
        if (mode == 2) gemm1(1, 0, out, in, n, X + s * out, out, W + s * in, in, Y + e * out * in, in);
    }
}
// batched square-ish products for Muon
void batched(int ta, int tb, long B, long M, long N, long K, const float *X, const float *Y, float *Z)
{
#pragma omp parallel for schedule(dynamic, 1)
    for (long b = 0; b < B; b++)
        gemm1(ta, tb, M, N, K, X + b * M * K, ta ? M : K, Y + b * K * N, tb ? K : N, Z + b * M * N, N);
}

// ---------------------------------------------------------------- row kernels
void rms_fwd(long N, long D, const float *x, long ldx, const float *w, float *y, float *r, float eps)
{
#pragma omp parallel for schedule(dynamic, 128)
    for (long i = 0; i < N; i++) {
        const float *p = x + i * ldx;
        float s = 0, *q = y + i * D;
        for (long d = 0; d < D; d++) s += p[d] * p[d];
        float z = r[i] = 1.0f / sqrtf(s / D + eps);
        for (long d = 0; d < D; d++) q[d] = p[d] * z * w[d];
    }
}
void rms_bwd(long N, long D, const float *x, long ldx, const float *w, const float *r, const float *dy,
             float *dx, long lddx, float *dw)
{
    memset(dw, 0, D * 4);
#pragma omp parallel
    {
        float *g = calloc(D, 4);
#pragma omp for schedule(dynamic, 128)
        for (long i = 0; i < N; i++) {
            const float *p = x + i * ldx, *q = dy + i * D;
            float s = 0, z = r[i], *o = dx + i * lddx;
            for (long d = 0; d < D; d++) {
                s += q[d] * w[d] * p[d];
                g[d] += q[d] * p[d] * z;
            }
            s *= z * z * z / D;
            for (long d = 0; d < D; d++) o[d] = z * q[d] * w[d] - p[d] * s;
        }
#pragma omp critical
        for (long d = 0; d < D; d++) dw[d] += g[d];
        free(g);
    }
}
void swiglu_fwd(long N, long F, const float *h, float *a)
{
#pragma omp parallel for schedule(dynamic, 128)
    for (long i = 0; i < N; i++) {
        const float *g = h + i * 2 * F, *u = g + F;
        float *o = a + i * F;
        for (long f = 0; f < F; f++) o[f] = g[f] / (1.0f + expf(-g[f])) * u[f];
    }
}
void swiglu_bwd(long N, long F, const float *h, const float *da, float *dh)
{
#pragma omp parallel for schedule(dynamic, 128)
    for (long i = 0; i < N; i++) {
        const float *g = h + i * 2 * F, *u = g + F, *d = da + i * F;
        float *o = dh + i * 2 * F;
        for (long f = 0; f < F; f++) {
            float s = 1.0f / (1.0f + expf(-g[f]));
            o[f] = d[f] * u[f] * s * (1.0f + g[f] * (1.0f - s));
            o[F + f] = d[f] * g[f] * s;
        }
    }
}
// logits become weight * (softmax - onehot); loss[i] = -log p[target]; hit[i] = argmax == target
void xent(long N, long V, float *lg, const long *tgt, const float *wt, float *loss, float *hit)
{
#pragma omp parallel for schedule(dynamic, 128)
    for (long i = 0; i < N; i++) {
        float *p = lg + i * V, m = -1e30f, s = 0;
        for (long v = 0; v < V; v++) m = p[v] > m ? p[v] : m;
        float t = p[tgt[i]];
        hit[i] = t >= m;
        for (long v = 0; v < V; v++) {
            p[v] = expf(p[v] - m);
            s += p[v];
        }
        loss[i] = logf(s) + m - t;
        float z = wt[i] / s;
        for (long v = 0; v < V; v++) p[v] *= z;
        p[tgt[i]] -= wt[i];
    }
}
// Distillation: target = alpha * softmax(teacher) + (1 - alpha) * onehot. Student logits become their
// gradient; loss[i] = cross-entropy against the text, kl[i] = KL(teacher || student).
void distil(long N, long V, float *lg, const float *te, const long *tgt, const float *wt, float alpha,
            float *loss, float *kl)
{
#pragma omp parallel for schedule(dynamic, 64)
    for (long i = 0; i < N; i++) {
        float *p = lg + i * V, m = -1e30f, n = -1e30f, s = 0, z = 0, d = 0;
        const float *q = te + i * V;
        for (long v = 0; v < V; v++) {
            m = p[v] > m ? p[v] : m;
            n = q[v] > n ? q[v] : n;
        }
        for (long v = 0; v < V; v++) {
            s += expf(p[v] - m);
            z += expf(q[v] - n);
        }
        float ls = logf(s) + m, lz = logf(z) + n, w = wt[i];
        loss[i] = ls - p[tgt[i]];
        for (long v = 0; v < V; v++) {
            float a = p[v] - ls, b = q[v] - lz, t = expf(b);
            d += t * (b - a);
            p[v] = w * (expf(a) - alpha * t);
        }
        p[tgt[i]] -= w * (1 - alpha);
        kl[i] = d;
    }
}
// out[n] = sum_k w[n,k] * y[pos[n,k]]   (w may be null)
void combine(long N, long K, long D, const float *y, const float *w, const long *pos, float *out)
{
#pragma omp parallel for schedule(dynamic, 128)
    for (long n = 0; n < N; n++) {
        float *o = out + n * D;
        for (long k = 0; k < K; k++) {
            const float *p = y + pos[n * K + k] * D;
            float c = w ? w[n * K + k] : 1.0f;
            if (k == 0)
                for (long d = 0; d < D; d++) o[d] = c * p[d];
            else
                for (long d = 0; d < D; d++) o[d] += c * p[d];
        }
    }
}
void combine_bwd(long N, long K, long D, const float *dout, const float *y, const float *w, const long *pos,
                 float *dy, float *dw)
{
#pragma omp parallel for schedule(dynamic, 128)
    for (long n = 0; n < N; n++)
        for (long k = 0; k < K; k++) {
            long p = pos[n * K + k];
            const float *a = dout + n * D, *b = y + p * D;
            float *o = dy + p * D, c = w[n * K + k], s = 0;
            for (long d = 0; d < D; d++) {
                o[d] = c * a[d];
                s += a[d] * b[d];
            }
            dw[n * K + k] = s;
        }
}
void gather(long R, long K, long D, const float *x, const long *pos, float *o)
{ // o[pos[n,k]] = x[n]
#pragma omp parallel for schedule(dynamic, 128)
    for (long i = 0; i < R; i++)
        for (long k = 0; k < K; k++) memcpy(o + pos[i * K + k] * D, x + i * D, D * 4);
}
void adamw(long n, float *p, const float *g, float *m, float *v, float lr, float b1, float b2, float c1,
           float c2, float eps, float wd)
{
#pragma omp parallel for simd
    for (long i = 0; i < n; i++) {
        m[i] = b1 * m[i] + (1 - b1) * g[i];
        v[i] = b2 * v[i] + (1 - b2) * g[i] * g[i];
        p[i] -= lr * (m[i] * c1 / (sqrtf(v[i] * c2) + eps) + wd * p[i]);
    }
}

// ------------------------------------------------------------------ attention
// A stream of N tokens cut in documents doc[0..nd]; attention never leaves a document.
// q [N,H,dn+dr]; k = [kn | rope(kp)]; kn [.. dn], kp [.. dr] (kp head stride 0 = shared by all heads), v [..
// 32].
enum { DV = 32, LMAX = 2048 };
typedef struct {
    const float *q, *kn, *kp, *v;
    long kn_t, kn_h, kp_t, kp_h, v_t, v_h;
    const float *cs;
    long H, dn, dr;
    float scale;
} Att;

static void rope(const float *x, float *o, const float *cs, long dr, float dir)
{
    for (long i = 0; i < dr; i += 2) {
        float c = cs[i], s = cs[i + 1] * dir;
        float a = x[i], b = x[i + 1];
        o[i] = a * c - b * s;
        o[i + 1] = a * s + b * c;
    }
}
typedef struct {
    float *q, *k, *kt, *vt, *s, *dp, *dk, *dv;
} Ws;
static _Thread_local Ws ws;
static void ws_get(void)
{
    if (ws.q) return;
    float **f = (float **)&ws;
    for (int i = 0; i < 8; i++) f[i] = aligned_alloc(64, 4 * 64 * (LMAX + 80));
}
static void load_qk(const Att *a, long s0, long L, long Lp, long h)
{
    long dk = a->dn + a->dr;
    for (long i = 0; i < L; i++) {
        const float *q = a->q + ((s0 + i) * a->H + h) * dk, *cs = a->cs + i * a->dr;
        float *o = ws.q + i * dk, *p = ws.k + i * dk;
        memcpy(o, q, a->dn * 4);
        rope(q + a->dn, o + a->dn, cs, a->dr, 1);
        for (long d = 0; d < dk; d++) o[d] *= a->scale;
        if (a->dn) memcpy(p, a->kn + (s0 + i) * a->kn_t + h * a->kn_h, a->dn * 4);
        rope(a->kp + (s0 + i) * a->kp_t + h * a->kp_h, p + a->dn, cs, a->dr, 1);
    }
    for (long d = 0; d < dk; d++) {
        for (long i = 0; i < L; i++) ws.kt[d * Lp + i] = ws.k[i * dk + d];
        for (long i = L; i < Lp; i++) ws.kt[d * Lp + i] = 0;
    }
}
static inline void dots(const float *q, const float *kt, long dk, long Lp, long n, float *s)
{ // s[j] = q . k_j, j < n rounded up to 64
    for (long j = 0; j < n; j += 64) {
        __m512 a0 = _mm512_setzero_ps(), a1 = a0, a2 = a0, a3 = a0;
        for (long d = 0; d < dk; d++) {
            __m512 x = _mm512_set1_ps(q[d]);
            const float *p = kt + d * Lp + j;
            a0 = _mm512_fmadd_ps(x, _mm512_load_ps(p), a0);
            a1 = _mm512_fmadd_ps(x, _mm512_load_ps(p + 16), a1);
            a2 = _mm512_fmadd_ps(x, _mm512_load_ps(p + 32), a2);
            a3 = _mm512_fmadd_ps(x, _mm512_load_ps(p + 48), a3);
        }
        _mm512_store_ps(s + j, a0);
        _mm512_store_ps(s + j + 16, a1);
        _mm512_store_ps(s + j + 32, a2);
        _mm512_store_ps(s + j + 48, a3);
    }
}
void att_fwd(const Att *a, long nd, const long *doc, float *out, float *lse)
{
    long H = a->H, dk = a->dn + a->dr;
#pragma omp parallel for schedule(dynamic, 1)
    for (long t = 0; t < nd * H; t++) {
        ws_get();
        long s0 = doc[t / H], L = doc[t / H + 1] - s0, h = t % H, Lp = (L + 63) / 64 * 64 + 16;
        load_qk(a, s0, L, Lp, h);
        for (long i = 0; i < L; i++) {
            float *s = ws.s, m = -1e30f, z = 0;
            dots(ws.q + i * dk, ws.kt, dk, Lp, i + 1, s);
            for (long j = 0; j <= i; j++) m = s[j] > m ? s[j] : m;
            for (long j = 0; j <= i; j++) {
                s[j] = expf(s[j] - m);
                z += s[j];
            }
            __m512 o0 = _mm512_setzero_ps(), o1 = o0, o2 = o0, o3 = o0;
            const float *v = a->v + s0 * a->v_t + h * a->v_h;
            long j = 0;
            for (; j + 1 <= i; j += 2) {
                __m512 x = _mm512_set1_ps(s[j]), y = _mm512_set1_ps(s[j + 1]);
                const float *p = v + j * a->v_t, *q = p + a->v_t;
                o0 = _mm512_fmadd_ps(x, _mm512_loadu_ps(p), o0);
                o1 = _mm512_fmadd_ps(x, _mm512_loadu_ps(p + 16), o1);
                o2 = _mm512_fmadd_ps(y, _mm512_loadu_ps(q), o2);
                o3 = _mm512_fmadd_ps(y, _mm512_loadu_ps(q + 16), o3);
            }
            if (j <= i) {
                __m512 x = _mm512_set1_ps(s[j]);
                const float *p = v + j * a->v_t;
                o0 = _mm512_fmadd_ps(x, _mm512_loadu_ps(p), o0);
                o1 = _mm512_fmadd_ps(x, _mm512_loadu_ps(p + 16), o1);
            }
            __m512 iz = _mm512_set1_ps(1.0f / z);
            float *o = out + ((s0 + i) * H + h) * DV;
            _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_add_ps(o0, o2), iz));
            _mm512_storeu_ps(o + 16, _mm512_mul_ps(_mm512_add_ps(o1, o3), iz));
            lse[(s0 + i) * H + h] = m + logf(z);
        }
    }
}
static inline __attribute__((always_inline)) void bwd_row(const int nk, long i, const float *q,
                                                          const float *k, const float *ds, const float *p,
                                                          const float *dout, float *dk, float *dv, float *dq)
{
    __m512 Q[4], D[4];
    for (int n = 0; n < nk; n++) {
        Q[n] = _mm512_loadu_ps(q + 16 * n);
        D[n] = _mm512_setzero_ps();
    }
    __m512 g0 = _mm512_loadu_ps(dout), g1 = _mm512_loadu_ps(dout + 16);
    for (long j = 0; j <= i; j++) {
        __m512 x = _mm512_set1_ps(ds[j]), y = _mm512_set1_ps(p[j]);
        const float *kk = k + j * nk * 16;
        float *e = dk + j * nk * 16, *f = dv + j * DV;
        for (int n = 0; n < nk; n++) {
            D[n] = _mm512_fmadd_ps(x, _mm512_loadu_ps(kk + 16 * n), D[n]);
            _mm512_storeu_ps(e + 16 * n, _mm512_fmadd_ps(x, Q[n], _mm512_loadu_ps(e + 16 * n)));
        }
        _mm512_storeu_ps(f, _mm512_fmadd_ps(y, g0, _mm512_loadu_ps(f)));
        _mm512_storeu_ps(f + 16, _mm512_fmadd_ps(y, g1, _mm512_loadu_ps(f + 16)));
    }
    for (int n = 0; n < nk; n++) _mm512_storeu_ps(dq + 16 * n, D[n]);
}
// dkp is [N,H,dr] (one slice a head); dkn [N,H,dn]; dv [N,H,32]; dq [N,H,dk]
void att_bwd(const Att *a, long nd, const long *doc, const float *out, const float *lse, const float *dout,
             float *dq, float *dkn, float *dkp, float *dv)
{
    long H = a->H, dn = a->dn, dr = a->dr, dk = dn + dr;
#pragma omp parallel for schedule(dynamic, 1)
    for (long t = 0; t < nd * H; t++) {
        ws_get();
        long s0 = doc[t / H], L = doc[t / H + 1] - s0, h = t % H, Lp = (L + 63) / 64 * 64 + 16;
        load_qk(a, s0, L, Lp, h);
        memset(ws.dk, 0, L * dk * 4);
        memset(ws.dv, 0, L * DV * 4);
        for (long d = 0; d < DV; d++) {
            for (long i = 0; i < L; i++) ws.vt[d * Lp + i] = a->v[(s0 + i) * a->v_t + h * a->v_h + d];
            for (long i = L; i < Lp; i++) ws.vt[d * Lp + i] = 0;
        }
        for (long i = 0; i < L; i++) {
            long r = (s0 + i) * H + h;
            const float *g = dout + r * DV, *o = out + r * DV;
            float delta = 0, z = lse[r], *s = ws.s, *dp = ws.dp, *x = dq + r * dk;
            for (int d = 0; d < DV; d++) delta += g[d] * o[d];
            dots(ws.q + i * dk, ws.kt, dk, Lp, i + 1, s);
            dots(g, ws.vt, DV, Lp, i + 1, dp);
            for (long j = 0; j <= i; j++) {
                s[j] = expf(s[j] - z);
                dp[j] = s[j] * (dp[j] - delta);
            }
            if (dk == 48)
                bwd_row(3, i, ws.q + i * dk, ws.k, dp, s, g, ws.dk, ws.dv, x);
            else
                bwd_row(2, i, ws.q + i * dk, ws.k, dp, s, g, ws.dk, ws.dv, x);
            for (long d = 0; d < dk; d++) x[d] *= a->scale;
            rope(x + dn, x + dn, a->cs + i * dr, dr, -1);
        }
        for (long i = 0; i < L; i++) {
            long r = (s0 + i) * H + h;
            memcpy(dkn + r * dn, ws.dk + i * dk, dn * 4);
            rope(ws.dk + i * dk + dn, dkp + r * dr, a->cs + i * dr, dr, -1);
            memcpy(dv + r * DV, ws.dv + i * DV, DV * 4);
        }
    }
}
