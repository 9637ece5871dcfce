/* Starting inputs for fuzz_gguf: small well-formed files with every kind of key and several tensor types. */
#include <stdio.h>

#include "gguf_writer.h"

static void save(gguf_writer *w, const char *dir, const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    gguf_writer_save(w, path);
    gguf_writer_free(&w);
}

int main(int argc, char **argv)
{
    static const char *const words[] = {"a", "bc", ""};
    if (argc != 2) {
        fprintf(stderr, "usage: seeds_gguf DIRECTORY\n");
        return 2;
    }
    gguf_writer *w = gguf_writer_new();
    gguf_writer_str(w, "general.architecture", "deepseek2");
    gguf_writer_u32(w, "general.alignment", 32);
    gguf_writer_u8(w, "a", 1);
    gguf_writer_u16(w, "split.no", 0);
    gguf_writer_u16(w, "split.count", 1);
    gguf_writer_i32(w, "split.tensors.count", 3);
    gguf_writer_u64(w, "b", 1);
    gguf_writer_f32(w, "c", 1);
    gguf_writer_f64(w, "d", 1);
    gguf_writer_bool(w, "e", true);
    gguf_writer_str_array(w, "f", words, 3);
    for (uint32_t kind = 0; kind < 13; kind++) {
        char key[8];
        snprintf(key, sizeof key, "g%u", kind);
        if (kind != 8 && kind != 9)
            gguf_writer_array(w, key, kind, 1, NULL,
                              kind >= 10              ? 8
                              : kind < 2 || kind == 7 ? 1
                              : kind < 4              ? 2
                                                      : 4);
    }
    gguf_writer_tensor(w, "t", 0, 2, (const int64_t[]){4, 2}, NULL, 32);
    gguf_writer_tensor(w, "u", 8, 3, (const int64_t[]){32, 2, 2}, NULL, 136);
    gguf_writer_tensor(w, "v", 35, 1, (const int64_t[]){256}, NULL, 66);
    save(w, argv[1], "all_kinds.gguf");

    w = gguf_writer_new();
    save(w, argv[1], "empty.gguf");

    w = gguf_writer_new();
    gguf_writer_set_version(w, 2);
    for (int i = 0; i < 3; i++)
        gguf_writer_tensor(w, words[i][0] ? words[i] : "x", 1, 4, (const int64_t[]){1, 1, 2, 1}, NULL, 4);
    save(w, argv[1], "v2_tensors.gguf");
    return 0;
}
