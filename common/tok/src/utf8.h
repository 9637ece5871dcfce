/* UTF-8 by the Unicode standard's table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/*
 * What stands at p[0..n), n > 0: the length of a valid sequence (1..4); 0 when it is the beginning of one
 * that is cut off by n; -k when the first k bytes can never become one (k is the maximal subpart that one
 * U+FFFD stands for).
 */
static inline int utf8_at(const char *text, size_t n)
{
    const uint8_t *p = (const uint8_t *)text;
    uint8_t b = p[0], lo = 0x80, hi = 0xbf;
    int need;
    if (b < 0x80) return 1;
    if (b < 0xc2 || b > 0xf4) return -1;
    if (b < 0xe0) {
        need = 2;
    } else if (b < 0xf0) {
        need = 3;
        if (b == 0xe0) lo = 0xa0;
        if (b == 0xed) hi = 0x9f;
    } else {
        need = 4;
        if (b == 0xf0) lo = 0x90;
        if (b == 0xf4) hi = 0x8f;
    }
    for (int i = 1; i < need; i++) {
        if ((size_t)i >= n) return 0;
        if (p[i] < lo || p[i] > hi) return -i;
        lo = 0x80;
        hi = 0xbf;
    }
    return need;
}

/* Code point of a valid sequence of `len` bytes. */
static inline uint32_t utf8_decode(const char *text, int len)
{
    const uint8_t *p = (const uint8_t *)text;
    switch (len) {
    case 1: return p[0];
    case 2: return (uint32_t)(p[0] & 31) << 6 | (p[1] & 63);
    case 3: return (uint32_t)(p[0] & 15) << 12 | (uint32_t)(p[1] & 63) << 6 | (p[2] & 63);
    default:
        return (uint32_t)(p[0] & 7) << 18 | (uint32_t)(p[1] & 63) << 12 | (uint32_t)(p[2] & 63) << 6 |
               (p[3] & 63);
    }
}
