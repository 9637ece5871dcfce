/* Starting inputs for fuzz_manifest: manifests of small models, with and without known answers, without the
 * check sum. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/manifest.h"
#include "gguf_writer.h"

static cw_status answer(void *ctx, int layer, int expert, uint8_t out[CW_MANIFEST_HASH_BYTES], cw_err *err)
{
    (void)ctx, (void)err;
    memset(out, 16 * layer + expert, CW_MANIFEST_HASH_BYTES);
    return CW_OK;
}

static void save(const cw_gguf *g, const cw_manifest_options *o, const char *dir, const char *name)
{
    char path[512];
    size_t n;
    cw_manifest *m = NULL;
    cw_err err;
    CW_ASSERT(cw_manifest_build(g, o, &m, &err) == CW_OK);
    const void *bytes = cw_manifest_bytes(m, &n);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    CW_ASSERT(f && fwrite(bytes, 1, n - CW_MANIFEST_HASH_BYTES, f) == n - CW_MANIFEST_HASH_BYTES &&
              fclose(f) == 0);
    cw_manifest_free(&m);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: seeds_manifest DIRECTORY\n");
        return 2;
    }
    size_t n;
    cw_gguf *g = NULL;
    cw_err err;
    gguf_writer *w = gguf_writer_new();
    gguf_writer_str(w, "general.architecture", "a");
    gguf_writer_u32(w, "a.b", 3);
    gguf_writer_f32(w, "a.c", 1);
    gguf_writer_str(w, "a.d", "x");
    gguf_writer_tensor(w, "blk.1.ffn_down_exps.weight", 8, 3, (const int64_t[]){32, 1, 2}, NULL, 68);
    gguf_writer_tensor(w, "blk.2.ffn_down_exps.weight", 0, 3, (const int64_t[]){2, 1, 3}, NULL, 24);
    gguf_writer_tensor(w, "t", 1, 1, (const int64_t[]){2}, NULL, 4);
    uint8_t *bytes = gguf_writer_bytes(w, &n);
    CW_ASSERT(cw_gguf_open_memory(bytes, n, "seed", &g, &err) == CW_OK);
    save(g, NULL, argv[1], "plain");
    save(g, &(cw_manifest_options){.known_answer = answer, .arithmetic_id = 1}, argv[1], "answers");
    cw_gguf_close(&g);
    free(bytes);
    gguf_writer_free(&w);
    return 0;
}
