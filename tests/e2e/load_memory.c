/*
 * What loading a model costs at its peak: at most the packed weights and 64 MiB, whatever the file's size.
 *
 * The model is a sparse file of zeros, 280 MB in a DeepSeek-V2 shape, so the test is quick and the disk stays empty;
 * zeros pack like anything else. Each load in a process of its own, because the kernel's high-water mark never goes down.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "cw/engine.h"
#include "cw/expert_ffn.h"
#include "cw/type.h"
#include "gguf_writer.h"

enum { D = 1024, FF = 1024, EXPERTS = 72, LAYERS = 3, HEADS = 8, NOPE = 64, ROPE = 32, V = 64, KV_LORA = 128, VOCAB = 64 };
#define A "deepseek2."

static uint64_t offset;

static void add(gguf_writer *w, const char *name, uint32_t type, uint64_t ne0, uint64_t ne1, uint64_t ne2)
{
    uint64_t ne[3] = {ne0, ne1, ne2};
    uint32_t dims = ne2 ? 3 : ne1 ? 2 : 1;
    size_t row = 0;
    assert_true(cw_type_row_bytes(type, (int64_t)ne0, &row));
    gguf_writer_tensor_raw(w, name, strlen(name), dims, ne, type, offset);
    offset += row * (ne1 ? ne1 : 1) * (ne2 ? ne2 : 1);
    offset = (offset + 31) & ~(uint64_t)31;
}

static void add_block(gguf_writer *w, int layer, const char *what, uint32_t type, uint64_t ne0, uint64_t ne1, uint64_t ne2)
{
    char name[96];
    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, what);
    add(w, name, type, ne0, ne1, ne2);
}

/* Of gate, up and down: what downloads hold experts in. */
static const uint32_t expert_types[LAYERS - 1][3] = {{CW_TYPE_Q4_K, CW_TYPE_Q3_K, CW_TYPE_Q6_K},
                                                     {CW_TYPE_IQ4_XS, CW_TYPE_Q2_K, CW_TYPE_Q8_0}};

static void write_keys(gguf_writer *w)
{
    gguf_writer_str(w, "general.architecture", "deepseek2");
    gguf_writer_u32(w, A "block_count", LAYERS);
    gguf_writer_u32(w, A "context_length", 512);
    gguf_writer_u32(w, A "embedding_length", D);
    gguf_writer_u32(w, A "feed_forward_length", FF);
    gguf_writer_u32(w, A "leading_dense_block_count", 1);
    gguf_writer_u32(w, A "attention.head_count", HEADS);
    gguf_writer_u32(w, A "attention.head_count_kv", HEADS);
    gguf_writer_u32(w, A "attention.kv_lora_rank", KV_LORA);
    gguf_writer_u32(w, A "attention.key_length", NOPE + ROPE);
    gguf_writer_u32(w, A "attention.value_length", V);
    gguf_writer_f32(w, A "attention.layer_norm_rms_epsilon", 1e-6f);
    gguf_writer_u32(w, A "rope.dimension_count", ROPE);
    gguf_writer_f32(w, A "rope.freq_base", 10000.0f);
    gguf_writer_u32(w, A "vocab_size", VOCAB);
    gguf_writer_u32(w, A "expert_count", EXPERTS);
    gguf_writer_u32(w, A "expert_used_count", 4);
    gguf_writer_u32(w, A "expert_shared_count", 1);
    gguf_writer_u32(w, A "expert_feed_forward_length", FF);
}

static void write_model(const char *path)
{
    gguf_writer *w = gguf_writer_new();
    write_keys(w);
    offset = 0;
    add(w, "token_embd.weight", CW_TYPE_Q8_0, D, VOCAB, 0);
    add(w, "output_norm.weight", CW_TYPE_F32, D, 0, 0);
    add(w, "output.weight", CW_TYPE_Q8_0, D, VOCAB, 0);
    for (int l = 0; l < LAYERS; l++) {
        add_block(w, l, "attn_norm", CW_TYPE_F32, D, 0, 0);
        add_block(w, l, "attn_q", CW_TYPE_Q8_0, D, HEADS * (NOPE + ROPE), 0);
        add_block(w, l, "attn_kv_a_mqa", CW_TYPE_Q8_0, D, KV_LORA + ROPE, 0);
        add_block(w, l, "attn_kv_a_norm", CW_TYPE_F32, KV_LORA, 0, 0);
        add_block(w, l, "attn_kv_b", CW_TYPE_Q8_0, KV_LORA, HEADS * (NOPE + V), 0);
        add_block(w, l, "attn_output", CW_TYPE_Q8_0, HEADS * V, D, 0);
        add_block(w, l, "ffn_norm", CW_TYPE_F32, D, 0, 0);
        const char *suffix = l ? "_shexp" : "";
        const char *parts[] = {"ffn_gate", "ffn_up", "ffn_down"};
        for (int p = 0; p < 3; p++) {
            char what[32];
            snprintf(what, sizeof what, "%s%s", parts[p], suffix);
            add_block(w, l, what, CW_TYPE_Q8_0, p < 2 ? D : FF, p < 2 ? FF : D, 0);
            snprintf(what, sizeof what, "%s_exps", parts[p]);
            if (l) add_block(w, l, what, expert_types[l - 1][p], p < 2 ? D : FF, p < 2 ? FF : D, EXPERTS);
        }
        if (l) add_block(w, l, "ffn_gate_inp", CW_TYPE_F32, D, EXPERTS, 0);
    }
    gguf_writer_save(w, path);
    assert_int_equal(truncate(path, (off_t)(gguf_writer_data_start(w) + offset)), 0);
    gguf_writer_free(&w);
}

/* "VmHWM" or "VmRSS" of this process, bytes. */
static size_t memory_of(const char *what)
{
    char line[256], key[32];
    snprintf(key, sizeof key, "%s:", what);
    size_t kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0) kb = strtoul(line + strlen(key), NULL, 10);
    fclose(f);
    assert_true(kb > 0);
    return kb * 1024;
}

/* Packed bytes of what was loaded, which stays loaded until the process ends. */
typedef size_t load_fn(const cw_gguf *g);

static size_t load_engine(const cw_gguf *g)
{
    cw_err err;
    cw_engine *e = NULL;
    if (cw_engine_open(g, NULL, &e, &err) != CW_OK) fail_msg("%s", err.text);
    return cw_engine_weight_bytes(e);
}

static cw_expert_set *empty_set(const cw_gguf *g)
{
    cw_err err;
    cw_model_config c;
    cw_expert_shape shapes[LAYERS];
    cw_expert_set *set = NULL;
    if (cw_model_config_read(g, NULL, &c, &err) != CW_OK || cw_expert_shapes_read(g, &c, shapes, &err) != CW_OK ||
        cw_expert_set_new(LAYERS, EXPERTS, shapes, &set, &err) != CW_OK)
        fail_msg("%s", err.text);
    return set;
}

/* As a worker that has the model file. */
static size_t load_experts(const cw_gguf *g)
{
    cw_err err;
    cw_expert_set *set = empty_set(g);
    for (int l = 1; l < LAYERS; l++)
        for (int x = 0; x < EXPERTS; x++)
            if (cw_expert_set_add_from_gguf(set, g, l, x, &err) != CW_OK) fail_msg("%s", err.text);
    return cw_expert_set_bytes(set);
}

/* As a worker that was sent the slices. */
static size_t add_experts(const cw_gguf *g)
{
    cw_err err;
    cw_expert_set *set = empty_set(g);
    for (int l = 1; l < LAYERS; l++)
        for (int x = 0; x < EXPERTS; x++) {
            void *slices[CW_N_SLICES];
            size_t bytes[CW_N_SLICES];
            for (int i = 0; i < CW_N_SLICES; i++) {
                char name[96];
                bytes[i] = cw_expert_slice_bytes(cw_expert_set_shape(set, l), i);
                slices[i] = calloc(1, bytes[i]);
                const cw_gguf_tensor *t = cw_gguf_find(g, cw_expert_tensor_name(name, sizeof name, l, i));
                assert_int_equal(cw_gguf_read(g, t, (uint64_t)x * bytes[i], bytes[i], slices[i], &err), CW_OK);
            }
            if (cw_expert_set_add(set, l, x, (const void *const *)slices, bytes, &err) != CW_OK) fail_msg("%s", err.text);
            for (int i = 0; i < CW_N_SLICES; i++) free(slices[i]);
        }
    return cw_expert_set_bytes(set);
}

/* In a process of its own: what the load added at its peak, and what of it was packed. */
static void measure(load_fn *load, const cw_gguf *g, size_t *packed, size_t *peak)
{
    int ends[2];
    size_t got[2] = {0};
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        size_t before = memory_of("VmRSS");
        got[0] = load(g);
        got[1] = memory_of("VmHWM") - before;
        _exit(write(ends[1], got, sizeof got) == (ssize_t)sizeof got ? 0 : 1);
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], got, sizeof got), sizeof got);
    close(ends[0]);
    assert_int_equal(waitpid(child, NULL, 0), child);
    *packed = got[0];
    *peak = got[1];
}

static void loading_peaks_at_the_packed_size_and_64_mib(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        load_fn *fn;
    } loads[] = {{"an engine", load_engine}, {"a worker from the file", load_experts}, {"a worker from chunks", add_experts}};
    char path[] = "/tmp/causeway-load-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    write_model(path);
    cw_err err;
    cw_gguf *g = NULL;
    cw_status s = cw_gguf_open(path, &g, &err);
    unlink(path);
    if (s != CW_OK) fail_msg("%s", err.text);
    for (size_t i = 0; i < sizeof loads / sizeof *loads; i++) {
        size_t packed, peak;
        measure(loads[i].fn, g, &packed, &peak);
        print_message("%s: packed %zu MiB, peak %zu MiB\n", loads[i].what, packed >> 20, peak >> 20);
        assert_true(packed > (size_t)200 << 20);
        assert_true(peak <= packed + ((size_t)64 << 20));
        assert_true(packed <= offset + offset * 3 / 100 + (1 << 20));
    }
    cw_gguf_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(loading_peaks_at_the_packed_size_and_64_mib)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
