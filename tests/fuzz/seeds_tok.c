/* Writes starting inputs for fuzz_tok into the directory it is given: small model files of both kinds, a
 * vocabulary in parts, templates of each family. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_writer.h"

static const char *dir;

static void save(const char *name, uint8_t kind, const void *data, size_t n)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fputc(kind, f) == EOF || fwrite(data, 1, n, f) != n || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
}

static void file_of(const char *model)
{
    static const char *const tokens[] = {"<unk>", "<s>",    "</s>",         "a",      "b",
                                         "ab",    "<0x41>", "\xe2\x96\x81", "<think>"};
    static const char *const merges[] = {"a b"};
    static const uint32_t types[] = {2, 3, 3, 1, 1, 1, 6, 1, 4};
    static const float scores[] = {0, 0, 0, -1, -2, -3, 0, -4, 0};
    gguf_writer *w = gguf_writer_new();
    gguf_writer_str(w, "tokenizer.ggml.model", model);
    gguf_writer_str(w, "tokenizer.ggml.pre", "gpt-2");
    gguf_writer_str_array(w, "tokenizer.ggml.tokens", tokens, 9);
    gguf_writer_array(w, "tokenizer.ggml.token_type", 5, 9, types, sizeof types);
    gguf_writer_array(w, "tokenizer.ggml.scores", 6, 9, scores, sizeof scores);
    gguf_writer_str_array(w, "tokenizer.ggml.merges", merges, 1);
    gguf_writer_u32(w, "tokenizer.ggml.bos_token_id", 1);
    gguf_writer_bool(w, "tokenizer.ggml.add_bos_token", true);
    gguf_writer_str(w, "tokenizer.chat_template", "<|im_start|>system\\nx<|im_end|>");
    size_t n;
    uint8_t *bytes = gguf_writer_bytes(w, &n);
    char name[64];
    snprintf(name, sizeof name, "file-%s", model);
    save(name, 0, bytes, n);
    free(bytes);
    gguf_writer_free(&w);
}

int main(int argc, char **argv)
{
    static const char *const templates[] = {
        "{{ bos_token }}'User: ' + 'Assistant: ' + eos_token",
        "<\xef\xbd\x9cUser\xef\xbd\x9c><\xef\xbd\x9c"
        "Assistant\xef\xbd\x9c><think>\\n' split('</think>')[-1]).strip() %} ns.system_prompt",
        "### Instruction ### Response:' <|EOT|> You are an AI programming assistant' bos_token",
        "<|start_header_id|>assistant<|end_header_id|>\\n\\n'<|eot_id|> Cutting Knowledge Date: x\\n\" Today "
        "Date: date_string = \"1\"",
        "<|im_start|>system\\nx<|im_end|>' <|im_start|>assistant\\n' bos_token last_query_index "
        "\\n<think>\\n' + reasoning_content",
    };
    if (argc != 2) return 2;
    dir = argv[1];
    file_of("gpt2");
    file_of("llama");
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++) {
        char data[512], name[32];
        int n = snprintf(data, sizeof data, "%c%ca%c%cb%c%cc%c%cd%s", 0, 1, 1, 1, 2, 1, 1, 1, templates[i]);
        snprintf(name, sizeof name, "template-%zu", i);
        save(name, 2, data, (size_t)n);
    }
    for (int mode = 0; mode < 19; mode++) {
        static const char rest[] = "\x03\x00\x02"
                                   "ab\x03\x05<tag>\x02\x04<c|>\x00\x03"
                                   "abc\x02\x03"
                                   "a b\x04"
                                   "ab c\x1f\x05Text ab abc <tag> \xe4\xb8\x96 \xff 12";
        char data[256], name[32];
        data[0] = (char)mode;
        memcpy(data + 1, rest, sizeof rest - 1);
        snprintf(name, sizeof name, "parts-%d", mode);
        save(name, 1, data, sizeof rest);
    }
    return 0;
}
