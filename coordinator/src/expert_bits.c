/* Sets of (layer, expert); see cw/placement.h. */
#include <string.h>

#include "cw/mem.h"
#include "cw/placement.h"

static size_t n_words(const cw_expert_bits *b)
{
    return (size_t)b->n_layers * b->words;
}

bool cw_expert_bits_init(cw_expert_bits *b, uint32_t n_layers, uint32_t n_experts)
{
    uint32_t words = (n_experts + 63) / 64;
    uint64_t *bits = cw_calloc((size_t)n_layers * words, sizeof *bits);
    if (!bits) return false;
    *b = (cw_expert_bits){.n_layers = n_layers, .n_experts = n_experts, .words = words, .bits = bits};
    return true;
}

void cw_expert_bits_free(cw_expert_bits *b)
{
    cw_free(b->bits);
    *b = (cw_expert_bits){0};
}

void cw_expert_bits_clear(cw_expert_bits *b)
{
    memset(b->bits, 0, n_words(b) * sizeof *b->bits);
}

uint32_t cw_expert_bits_count(const cw_expert_bits *b)
{
    uint32_t n = 0;
    for (size_t i = 0; i < n_words(b); i++) n += (uint32_t)__builtin_popcountll(b->bits[i]);
    return n;
}

uint32_t cw_expert_bits_count_layer(const cw_expert_bits *b, uint32_t layer)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->words; i++)
        n += (uint32_t)__builtin_popcountll(b->bits[(size_t)layer * b->words + i]);
    return n;
}

uint64_t cw_expert_bits_bytes(const cw_expert_bits *b, const uint64_t *layer_bytes)
{
    uint64_t sum = 0;
    for (uint32_t l = 0; l < b->n_layers; l++) sum += cw_expert_bits_count_layer(b, l) * layer_bytes[l];
    return sum;
}

void cw_expert_bits_copy(cw_expert_bits *dst, const cw_expert_bits *src)
{
    memcpy(dst->bits, src->bits, n_words(dst) * sizeof *dst->bits);
}

void cw_expert_bits_or(cw_expert_bits *dst, const cw_expert_bits *src)
{
    for (size_t i = 0; i < n_words(dst); i++) dst->bits[i] |= src->bits[i];
}

void cw_expert_bits_and(cw_expert_bits *dst, const cw_expert_bits *src)
{
    for (size_t i = 0; i < n_words(dst); i++) dst->bits[i] &= src->bits[i];
}

void cw_expert_bits_andnot(cw_expert_bits *dst, const cw_expert_bits *src)
{
    for (size_t i = 0; i < n_words(dst); i++) dst->bits[i] &= ~src->bits[i];
}

bool cw_expert_bits_equal(const cw_expert_bits *a, const cw_expert_bits *b)
{
    return memcmp(a->bits, b->bits, n_words(a) * sizeof *a->bits) == 0;
}

bool cw_expert_bits_empty(const cw_expert_bits *b)
{
    for (size_t i = 0; i < n_words(b); i++)
        if (b->bits[i]) return false;
    return true;
}

bool cw_expert_bits_next(const cw_expert_bits *b, uint32_t *layer, uint32_t *expert)
{
    uint32_t word = *expert / 64, bit = *expert % 64;
    for (uint32_t l = *layer; l < b->n_layers; l++, word = 0, bit = 0)
        for (; word < b->words; word++, bit = 0) {
            uint64_t v = b->bits[(size_t)l * b->words + word] >> bit << bit;
            if (!v) continue;
            *layer = l;
            *expert = word * 64 + (uint32_t)__builtin_ctzll(v);
            return true;
        }
    return false;
}
