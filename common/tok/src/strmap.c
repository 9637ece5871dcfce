/*
 * Hash table of byte strings. The vocabulary comes from a file and the strings looked up come from users, so
 * the hash is seeded per table: nobody can prepare collisions. Results never depend on the seed.
 */
#include "tok_internal.h"

#include <sys/random.h>
#include "cw/bytes.h"
#include "cw/clock.h"

#define K0 0x9e3779b97f4a7c15ull /* odd constants with well-spread bits */
#define K1 0xd1b54a32d192ed03ull

__extension__ typedef unsigned __int128 u128;

static inline uint64_t mix(uint64_t a, uint64_t b)
{
    u128 m = (u128)a * b;
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

uint64_t tok_random_seed(void)
{
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed)
        seed =
            (uint64_t)cw_now_us() ^ (uint64_t)(uintptr_t)&seed; /* only makes collisions easier to prepare */
    return seed;
}

uint64_t tok_hash_bytes(const char *data, size_t len, uint64_t seed)
{
    uint64_t h = seed ^ mix(len ^ K0, K1);
    while (len >= 8) {
        h = mix(h ^ cw_load_u64(data), K0 ^ seed);
        data += 8;
        len -= 8;
    }
    uint64_t tail = 0;
    for (size_t i = 0; i < len; i++) tail = tail << 8 | (uint8_t)data[i];
    return mix(h ^ tail ^ K1, K0 ^ seed);
}

uint64_t tok_hash_pair(uint64_t a, uint64_t b, uint64_t seed)
{
    return mix((a << 32 | b) ^ seed, K0 ^ (seed >> 1 | 1));
}

bool strmap_init(strmap *m, const cw_tok_str *keys, size_t n, uint64_t seed)
{
    size_t slots = 16;
    while (slots < n * 2) slots *= 2;
    m->slot = cw_calloc(slots, sizeof *m->slot);
    if (!m->slot) return false;
    m->mask = (uint32_t)(slots - 1);
    m->keys = keys;
    m->seed = seed;
    return true;
}

void strmap_free(strmap *m)
{
    cw_free(m->slot);
    m->slot = NULL;
}

static uint32_t *slot_of(const strmap *m, const char *data, size_t len)
{
    uint32_t i = (uint32_t)tok_hash_bytes(data, len, m->seed) & m->mask;
    while (m->slot[i]) {
        const cw_tok_str *k = &m->keys[m->slot[i] - 1];
        if (k->len == len && memcmp(k->data, data, len) == 0) break;
        i = (i + 1) & m->mask;
    }
    return &m->slot[i];
}

void strmap_add(strmap *m, uint32_t index)
{
    uint32_t *s = slot_of(m, m->keys[index].data, m->keys[index].len);
    if (!*s) *s = index + 1;
}

int32_t strmap_find(const strmap *m, const char *data, size_t len)
{
    return (int32_t)*slot_of(m, data, len) - 1;
}
