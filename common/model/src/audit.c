/*
 * Rows from a seed and what an expert makes of them; see cw/known_answer.h. Values are int8 times a power of
 * two, so A8 and f32 layers get the same numbers, and the generator is counted, not chained: row i needs no
 * row before it.
 */
#include <string.h>

#include "cw/hash.h"
#include "cw/known_answer.h"
#include "cw/mem.h"

/* splitmix64's finaliser: every input bit reaches every output bit. */
static uint64_t mix(uint64_t v)
{
    v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9u;
    v = (v ^ v >> 27) * 0x94d049bb133111ebu;
    return v ^ v >> 31;
}

void cw_audit_row(uint64_t seed, uint32_t i, int d, int8_t *q, float *s, float *x)
{
    CW_ASSERT(d > 0 && d % 32 == 0 && !q == !s);
    uint64_t row = mix(seed + mix(i + 1u)), bits = 0;
    for (int k = 0; k < d; k++) {
        if (k % 8 == 0) bits = mix(row + (uint64_t)(k / 8 + 1) * 0x9e3779b97f4a7c15u);
        int v = (int)(bits >> 8 * (k % 8) & 0xff) - 128;
        if (v == -128) v = 0; /* A8 has no such value */
        /* Like a normalised activation: most values under 2, some blocks quieter than others. */
        float scale = 0x1p-9f * (float)(1 << (mix(row - 1 - (uint64_t)(k / 32)) & 3));
        if (q) q[k] = (int8_t)v;
        if (s) s[k / 32] = scale;
        if (x) x[k] = (float)v * scale;
    }
}

uint64_t cw_audit_hash(const void *row, size_t bytes, int8_t exponent, bool bad)
{
    uint8_t hash[CW_HASH_BYTES];
    uint64_t out;
    cw_hash_state h;
    cw_hash_begin(&h, "causeway audit row 1");
    if (bad) {
        cw_hash_add(&h, "not finite", 10);
    } else {
        cw_hash_add(&h, row, bytes);
        cw_hash_add(&h, &exponent, 1);
    }
    cw_hash_end(&h, hash);
    memcpy(&out, hash, sizeof out);
    return out;
}

/* Inputs and outputs of one piece of `max` rows, in one block. */
typedef struct {
    int max, d;
    bool is_a8, f16;
    uint8_t *mem;
    cw_a8 a8;
    int8_t *q;
    float *s, *x;
    uint8_t *out, *bad;
    int8_t *e;
} piece;

static bool piece_init(piece *p, const cw_expert_shape *shape, int max)
{
    size_t d = (size_t)shape->d_model, n = (size_t)max, a8_bytes = 0;
    *p = (piece){.max = max,
                 .d = shape->d_model,
                 .is_a8 = cw_expert_rows_kind(shape) == CW_ROWS_A8,
                 .f16 = cw_expert_reply_kind(shape) == CW_REPLY_ROWS_F16};
    if (p->is_a8 && !cw_a8_bytes(max, shape->d_model, &a8_bytes)) return false;
    a8_bytes = (a8_bytes + 63) / 64 * 64;
    /* x or (q, s) [n, d]; out [n, d]; e [n]; bad [n] */
    p->mem = cw_aligned_calloc(a8_bytes + n * d * 4 + n * d * 4 + 2 * n, 1);
    if (!p->mem) return false;
    if (p->is_a8) cw_a8_init(&p->a8, max, shape->d_model, p->mem);
    p->x = (float *)(p->mem + a8_bytes);
    p->s = p->x; /* one row at a time: s [d / 32], then q [d] */
    p->q = (int8_t *)(p->x + d / 32);
    p->out = p->mem + a8_bytes + n * d * 4;
    p->e = (int8_t *)(p->out + n * d * 4);
    p->bad = (uint8_t *)p->e + n;
    return true;
}

static cw_status run_piece(piece *p, const cw_kernels *kn, const cw_expert *e, uint64_t seed, uint32_t first,
                           int n, cw_expert_scratch *scratch, uint64_t *hashes, cw_err *err)
{
    cw_expert_job job = {.expert = e, .n_rows = n, .bad = p->bad};
    for (int i = 0; i < n; i++) {
        if (p->is_a8) {
            cw_audit_row(seed, first + (uint32_t)i, p->d, p->q, p->s, NULL);
            CW_ASSERT(cw_a8_set_row(&p->a8, i, p->q, p->s));
        } else {
            cw_audit_row(seed, first + (uint32_t)i, p->d, NULL, NULL, p->x + (size_t)i * (size_t)p->d);
        }
    }
    if (p->is_a8)
        job.a8 = &p->a8;
    else
        job.x = p->x;
    if (p->f16) {
        job.f16 = (uint16_t *)p->out;
        job.e = p->e;
    } else {
        job.f32 = (float *)p->out;
    }
    cw_status st = cw_expert_run(kn, NULL, &job, 1, scratch, err);
    if (st != CW_OK && st != CW_STATUS_NUMERIC) return st;
    size_t bytes = (size_t)p->d * (p->f16 ? 2 : 4);
    for (int i = 0; i < n; i++)
        hashes[i] = cw_audit_hash(p->out + (size_t)i * bytes, bytes, p->f16 ? p->e[i] : 0, p->bad[i]);
    return CW_OK;
}

cw_status cw_expert_audit(const cw_kernels *kn, cw_expert_set *set, int layer, int expert, uint64_t seed,
                          uint32_t n_rows, cw_expert_scratch *scratch, uint64_t *hashes, cw_err *err)
{
    CW_ASSERT(n_rows >= 1);
    const cw_expert *e = cw_expert_set_acquire(set, layer, expert);
    if (!e) return CW_FAIL(err, CW_STATUS_NOT_HERE, "expert %d of layer %d is not loaded", expert, layer);
    uint32_t most = (uint32_t)cw_expert_scratch_max_rows(scratch);
    if (most > n_rows) most = n_rows;
    piece p;
    cw_status st = CW_OK;
    if (!piece_init(&p, cw_expert_set_shape(set, layer), (int)most))
        st = CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for %u audit rows", most);
    for (uint32_t i = 0; st == CW_OK && i < n_rows; i += most) {
        uint32_t n = n_rows - i < most ? n_rows - i : most;
        st = run_piece(&p, kn, e, seed, i, (int)n, scratch, hashes + i, err);
    }
    cw_free(p.mem);
    cw_expert_release(e);
    return st;
}
