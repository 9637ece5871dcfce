/*
 * Writes GGUF files for tests: well-formed ones from keys and tensors, malformed ones by raw records and false counts.
 * Aborts when memory is out: this is test code.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct gguf_writer gguf_writer;

/* Version 3 and an alignment of 32. */
gguf_writer *gguf_writer_new(void);
void gguf_writer_free(gguf_writer **w);

/* What the header says instead of the truth. */
void gguf_writer_set_version(gguf_writer *w, uint32_t version);
void gguf_writer_set_counts(gguf_writer *w, uint64_t n_tensors, uint64_t n_kv);
/* What tensors are laid out by (any number >= 1); the key general.alignment is the caller's. */
void gguf_writer_set_alignment(gguf_writer *w, uint64_t alignment);

void gguf_writer_u8(gguf_writer *w, const char *key, uint8_t v);
void gguf_writer_u16(gguf_writer *w, const char *key, uint16_t v);
void gguf_writer_u32(gguf_writer *w, const char *key, uint32_t v);
void gguf_writer_i32(gguf_writer *w, const char *key, int32_t v);
void gguf_writer_u64(gguf_writer *w, const char *key, uint64_t v);
void gguf_writer_f32(gguf_writer *w, const char *key, float v);
void gguf_writer_f64(gguf_writer *w, const char *key, double v);
void gguf_writer_bool(gguf_writer *w, const char *key, bool v);
void gguf_writer_str(gguf_writer *w, const char *key, const char *v);
void gguf_writer_str_n(gguf_writer *w, const char *key, const char *v, size_t len);
void gguf_writer_str_array(gguf_writer *w, const char *key, const char *const *v, size_t n);
/* n elements of kind `elem`, already little-endian. */
void gguf_writer_array(gguf_writer *w, const char *key, uint32_t elem, uint64_t n, const void *data, size_t bytes);
/* A key with any kind and any bytes for its value. */
void gguf_writer_raw(gguf_writer *w, const char *key, uint32_t kind, const void *value, size_t bytes);

/* A tensor with its data, laid out after the one before. data NULL: zeros. */
void gguf_writer_tensor(gguf_writer *w, const char *name, uint32_t type, int n_dims, const int64_t *ne, const void *data,
                        size_t bytes);
/* A table entry alone: the offset is as given and no data is added. */
void gguf_writer_tensor_raw(gguf_writer *w, const char *name, size_t name_len, uint32_t n_dims, const uint64_t *ne,
                            uint32_t type, uint64_t offset);
/* Bytes in the data section, after what is there. */
void gguf_writer_data(gguf_writer *w, const void *data, size_t bytes);

/* The file; the caller frees it with free(). The writer can go on. */
uint8_t *gguf_writer_bytes(const gguf_writer *w, size_t *n);
/* Where the data section begins in that file: the end of the header and tables, aligned. */
size_t gguf_writer_data_start(const gguf_writer *w);
void gguf_writer_save(const gguf_writer *w, const char *path);
