/*
 * Any bytes as a kept conversation: as its content, where what is taken is packed to the same bytes again;
 * and as the sealed file itself, which nobody without the key can make.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/conversation.h"
#include "cw/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void content(const uint8_t *data, size_t size)
{
    cw_conversation c = {0};
    cw_err err = {0};
    void *again = NULL;
    size_t n;
    if (cw_conversation_unpack(data, size, &c, &err) != CW_OK) {
        CW_ASSERT(c.n == 0 && strlen(err.text) > 6);
        return;
    }
    CW_ASSERT(cw_conversation_pack(&c, &again, &n, &err) == CW_OK);
    CW_ASSERT(n == size && memcmp(again, data, n) == 0);
    cw_free(again);
    cw_free(cw_conversation_text(&c));
    cw_conversation_clear(&c);
}

static void sealed(const uint8_t *data, size_t size)
{
    static cw_seal_key *key;
    cw_sealed_reader *r = NULL;
    cw_err err = {0};
    void *all = NULL;
    size_t n;
    if (!key) CW_ASSERT(cw_seal_key_new(&key, &err) == CW_OK);
    FILE *f = size ? fmemopen((void *)(uintptr_t)data, size, "rb") : NULL;
    if (!f) return;
    if (cw_sealed_open_stream(f, "fuzz", key, "fuzz", &r, &err) == CW_OK) {
        CW_ASSERT(cw_sealed_read_all(r, 1 << 20, &all, &n, &err) != CW_OK);
        cw_sealed_close(&r);
    }
    fclose(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    content(data, size);
    sealed(data, size);
    return 0;
}
