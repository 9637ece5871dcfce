/* Starting inputs for fuzz_model: one model of each kind, so small that the fuzzer's bytes are mostly
 * metadata. */
#include <stdio.h>
#include <stdlib.h>

#include "model_file.h"

static void save(model_spec s, const char *dir, const char *name)
{
    char path[512];
    size_t n;
    uint8_t *bytes = model_file_bytes(&s, &n);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) exit(1);
    free(bytes);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: seeds_model DIRECTORY\n");
        return 2;
    }
    model_spec s = model_spec_tiny();
    save(s, argv[1], "v3");
    s.split_kv = true;
    s.nextn = 1;
    s.keys[0] = (model_key){"rope.scaling.type", SET_STR, 0, "yarn"};
    s.keys[1] = (model_key){"rope.scaling.factor", SET_F32, 8, NULL};
    s.keys[2] = (model_key){"expert_group_count", SET_U32, 2, NULL};
    s.keys[3] = (model_key){"expert_group_used_count", SET_U32, 1, NULL};
    s.keys[4] = (model_key){"expert_gating_func", SET_U32, 2, NULL};
    save(s, argv[1], "v3-split");
    s = model_spec_tiny();
    s.type = CW_TYPE_Q8_0;
    s.gate_type = CW_TYPE_F16;
    s.shared = s.q_lora = 0;
    save(s, argv[1], "v2-mixed");
    s = model_spec_tiny();
    s.nextn = 1;
    save(s, argv[1], "v3-head");
    s.only_nextn = true;
    save(s, argv[1], "companion");
    s.dense_nextn = true;
    s.type = CW_TYPE_Q8_0;
    save(s, argv[1], "companion-dense");
    s = model_spec_llama();
    s.rope_divisors = true;
    s.ff = s.vocab = 32;
    save(s, argv[1], "llama");
    s = model_spec_qwen2();
    s.ff = s.vocab = 32;
    save(s, argv[1], "qwen2");
    return 0;
}
