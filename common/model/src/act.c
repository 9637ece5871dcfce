/* See act.h. */
#include "act.h"

static int64_t padded(int64_t k)
{
    return (k + 31) / 32 *
           32; /* k that is no multiple of 32 meets no quantised weight; the A8 form is then unused */
}

size_t cw_act_bytes(int max_rows, int64_t k)
{
    size_t a8;
    CW_ASSERT(cw_a8_bytes(max_rows, padded(k), &a8));
    return a8 + (size_t)max_rows * (size_t)k * sizeof(float) + 256;
}

bool cw_act_alloc(cw_act *a, cw_arena *arena, int max_rows, int64_t k)
{
    size_t bytes;
    if (!cw_a8_bytes(max_rows, padded(k), &bytes)) return false;
    void *mem = cw_arena_alloc(arena, bytes, 1);
    a->x = cw_arena_alloc(arena, (size_t)max_rows * (size_t)k, sizeof *a->x);
    if (!mem || !a->x) return false;
    a->k = k;
    cw_a8_init(&a->a8, max_rows, padded(k), mem);
    cw_act_begin(a, 0);
    return true;
}

void cw_act_begin(cw_act *a, int32_t m)
{
    a->m = m;
    a->quantised = false;
    a->finite = true;
}

void cw_act_quantise(cw_act *a, const cw_kernels *kn, cw_pool *pool)
{
    if (a->quantised) return;
    CW_ASSERT(a->k % 32 == 0);
    a->finite &= cw_a8_quantise_rows(pool, kn, &a->a8, a->x, a->k, a->m);
    a->quantised = true;
}

bool cw_act_quantise_part(cw_act *a, const cw_kernels *kn, int32_t row, int64_t at, int64_t n)
{
    cw_a8 part = cw_a8_view(&a->a8, row, 1, at, n);
    return kn->a8_quantise(&part, 0, a->x + row * a->k + at);
}

void cw_act_quantised(cw_act *a, bool finite)
{
    a->quantised = true;
    a->finite = a->finite && finite;
}

cw_mm cw_act_product_later(const cw_act *a, const cw_weight *w, float *y, int64_t ldy)
{
    CW_ASSERT(w->k == a->k);
    return (cw_mm){.w = w, .a8 = &a->a8, .f32 = a->x, .ldx = a->k, .m = a->m, .y = y, .ldy = ldy};
}

cw_mm cw_act_product(cw_act *a, const cw_kernels *kn, cw_pool *pool, const cw_weight *w, float *y,
                     int64_t ldy)
{
    if (w->info->quantised) cw_act_quantise(a, kn, pool);
    return cw_act_product_later(a, w, y, ldy);
}
