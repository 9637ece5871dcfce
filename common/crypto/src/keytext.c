/* Public keys as text: z85 (ZeroMQ's RFC 32: base 85, big-endian groups of 4 bytes in 5 characters) and hex.
 */
#include <string.h>

#include "cw/keys.h"

static const char z85[] =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
static const char hex_digits[] = "0123456789abcdef";

_Static_assert(sizeof z85 == 86, "85 digits");

void cw_key_text(const cw_key *k, char out[CW_KEY_TEXT])
{
    for (int g = 0; g < CW_KEY_BYTES / 4; g++) {
        const uint8_t *b = k->b + 4 * g;
        uint32_t v = (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
        for (int i = 4; i >= 0; i--, v /= 85) out[5 * g + i] = z85[v % 85];
    }
    out[CW_KEY_TEXT - 1] = 0;
}

void cw_key_hex(const cw_key *k, char out[CW_KEY_HEX])
{
    for (int i = 0; i < CW_KEY_BYTES; i++) {
        out[2 * i] = hex_digits[k->b[i] >> 4];
        out[2 * i + 1] = hex_digits[k->b[i] & 15];
    }
    out[CW_KEY_HEX - 1] = 0;
}

static bool parse_z85(const char *text, cw_key *out)
{
    for (int g = 0; g < CW_KEY_BYTES / 4; g++) {
        uint64_t v = 0;
        for (int i = 0; i < 5; i++) {
            const char *p = strchr(z85, text[5 * g + i]);
            if (!p || !*p) return false;
            v = v * 85 + (uint64_t)(p - z85);
        }
        if (v > UINT32_MAX) return false;
        for (int i = 0; i < 4; i++) out->b[4 * g + i] = (uint8_t)(v >> (24 - 8 * i));
    }
    return true;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static bool parse_hex(const char *text, cw_key *out)
{
    for (int i = 0; i < CW_KEY_BYTES; i++) {
        int hi = hex_value(text[2 * i]), lo = hex_value(text[2 * i + 1]);
        if (hi < 0 || lo < 0) return false;
        out->b[i] = (uint8_t)(hi << 4 | lo);
    }
    return true;
}

bool cw_key_parse(const char *text, cw_key *out)
{
    cw_key k;
    size_t n = strnlen(text, CW_KEY_HEX);
    bool ok = n == CW_KEY_TEXT - 1 ? parse_z85(text, &k) : n == CW_KEY_HEX - 1 && parse_hex(text, &k);
    if (ok) *out = k;
    return ok;
}
