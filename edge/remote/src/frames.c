/* The bytes of a call: its entries in the order of the wire, and each of its rows once. */
#include <stdlib.h>
#include <string.h>

#include "cw/recycled.h"
#include "cw/mem.h"
#include "edge_internal.h"

static int ascending_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int ascending_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* The entry order of the wire is (expert, row), rows counted within the call; p->index follows it. */
static void fill_rows(const cw_edge *e, const piece *p, call_frames *cf)
{
    const cw_edge_request *r = p->r;
    size_t d = e->c.d_model, ld = r->ld ? (size_t)r->ld : d;
    uint32_t local = 0;
    for (uint32_t k = 0; k < p->n; k++) {
        uint32_t row = r->entries[p->index[k]].row;
        if (k && row == r->entries[p->index[k - 1]].row) continue;
        if (cf->n == 3) {
            memcpy(cf->mem[1] + local * d, r->q + row * ld, d);
            memcpy(cf->mem[2] + local * (d / 8), r->s + row * (ld / 32), d / 8);
        } else {
            memcpy(cf->mem[1] + local * d * 4, r->x + row * d, d * 4);
        }
        local++;
    }
}

static bool fill_entries(piece *p, call_frames *cf)
{
    uint64_t small[64], *order = p->n <= CW_ARRAY_LEN(small) ? small : cw_block_take(p->n * sizeof *order);
    uint32_t small_index[64],
        *index = p->n <= CW_ARRAY_LEN(small_index) ? small_index : cw_block_take(p->n * sizeof *index);
    bool ok = order && index;
    /* index is ascending, that is by (row, expert): at most 1024 entries, so all three parts fit. */
    for (uint32_t k = 0, local = 0; ok && k < p->n; k++) {
        const cw_edge_entry *x = &p->r->entries[p->index[k]];
        if (k && x->row != p->r->entries[p->index[k - 1]].row) local++;
        order[k] = (uint64_t)x->expert << 32 | local << 16 | k;
    }
    if (ok) {
        qsort(order, p->n, sizeof *order, ascending_u64);
        memcpy(index, p->index, p->n * sizeof *index);
        for (uint32_t k = 0; k < p->n; k++) {
            p->index[k] = index[order[k] & 0xffff];
            const cw_edge_entry *x = &p->r->entries[p->index[k]];
            cw_entry_put(cf->mem[0], k,
                         (cw_entry){.row = (uint16_t)(order[k] >> 16),
                                    .expert = (uint16_t)x->expert,
                                    .weight = x->weight});
        }
    }
    if (order != small) cw_block_give(order);
    if (index != small_index) cw_block_give(index);
    return ok;
}

bool frames_make(cw_edge *e, piece *p, call_frames *cf)
{
    size_t d = e->c.d_model;
    bool a8 = e->layers[p->r->layer].act == CW__PB__ACT_KIND__ACT_A8;
    cf->n = a8 ? 3 : 2;
    size_t len[3] = {(size_t)p->n * CW_ENTRY_BYTES, (size_t)p->n_rows * d * (a8 ? 1 : 4),
                     (size_t)p->n_rows * d / 8};
    bool ok = true;
    for (uint32_t i = 0; i < cf->n; i++) {
        cf->f[i] = cw_frame_new(len[i], &cf->mem[i]);
        ok = ok && cf->mem[i];
    }
    if (ok) fill_rows(e, p, cf);
    if (ok) ok = fill_entries(p, cf);
    if (!ok)
        for (uint32_t i = 0; i < cf->n; i++) cw_block_give(cf->mem[i]);
    return ok;
}

/* Back to (row, expert) order, as a piece that is not sent has it. */
void frames_unsort(piece *p)
{
    qsort(p->index, p->n, sizeof p->index[0], ascending_u32);
}
