/* How fast this machine reads weights: one-row products with a matrix larger than most caches, for about 100
 * ms. A rough number, for the division of calls between workers; edges correct it by what they measure. */
#include "cw/bytes.h"
#include "cw/clock.h"
#include "cw/mem.h"
#include "shell_internal.h"

enum { ROWS = 8192, COLS = 2048 }; /* Q8_0: 17 MiB */

/* Q8_0 rows with some values in them: half d, 32 int8. */
static void fill(uint8_t *row, size_t bytes)
{
    for (size_t b = 0; b + 34 <= bytes; b += 34) {
        cw_store_u16(row + b, 0x2000); /* 2^-7 */
        for (size_t i = 0; i < 32; i++) row[b + 2 + i] = (uint8_t)(b * 31 + i * 7);
    }
}

static float measure(const cw_kernels *kn, cw_pool *pool, const cw_weight *w, const cw_a8 *a8, float *y)
{
    cw_mm mm = {.w = w, .a8 = a8, .m = 1, .y = y, .ldy = ROWS};
    cw_matmul(pool, kn, &mm); /* wakes threads, touches pages */
    int64_t start = cw_now_us(), t;
    int n = 0;
    do {
        cw_matmul(pool, kn, &mm);
        n++;
        t = cw_now_us() - start;
    } while (t < 100000);
    return (float)((double)w->bytes * n / (double)t / 1e3);
}

float bench_speed(const cw_kernels *kn, cw_pool *pool)
{
    size_t bytes, row_bytes, a8_bytes;
    float speed = 0, *x = cw_calloc(COLS, sizeof *x), *y = cw_calloc(ROWS, sizeof *y);
    uint8_t *rows = NULL;
    void *mem = NULL, *a8_mem = NULL;
    cw_weight w;
    cw_a8 a8;
    if (!x || !y || cw_weight_bytes(CW_TYPE_Q8_0, ROWS, COLS, &bytes, NULL) != CW_OK ||
        !cw_type_row_bytes(CW_TYPE_Q8_0, COLS, &row_bytes) || !cw_a8_bytes(1, COLS, &a8_bytes))
        goto fail;
    mem = cw_aligned_calloc(bytes, 1);
    a8_mem = cw_aligned_calloc(a8_bytes, 1);
    rows = cw_calloc(CW_PANEL_ROWS, row_bytes);
    if (!mem || !a8_mem || !rows || cw_weight_init(&w, CW_TYPE_Q8_0, ROWS, COLS, mem, NULL) != CW_OK)
        goto fail;
    fill(rows, CW_PANEL_ROWS * row_bytes);
    for (int64_t r = 0; r < ROWS; r += CW_PANEL_ROWS)
        if (cw_weight_pack(&w, r, CW_PANEL_ROWS, rows, NULL) != CW_OK) goto fail;
    for (int i = 0; i < COLS; i++) x[i] = (float)(i % 17) - 8;
    cw_a8_init(&a8, 1, COLS, a8_mem);
    if (!cw_a8_quantise_rows(NULL, kn, &a8, x, COLS, 1)) goto fail;
    speed = measure(kn, pool, &w, &a8, y);
fail:
    cw_free(x);
    cw_free(y);
    cw_free(rows);
    cw_free(mem);
    cw_free(a8_mem);
    return speed;
}
