/*
 * Writes JSON as a stream: no tree, no allocation with a file or a fixed buffer. Strings are escaped; bytes
 * that are not UTF-8 become U+FFFD, so the output is valid whatever a model or a peer said. Numbers that are
 * not finite become null. Reading JSON is libcjson's work, not ours. Not thread-safe.
 */
#pragma once
#include "cw/status.h"
#include <stdio.h>

enum { CW_JSON_MAX_DEPTH = 32 };

typedef struct {
    FILE *file; /* or */
    char *buf;  /* caller's buffer of `cap` bytes, or a heap buffer that grows */
    size_t len, cap;
    bool heap, failed; /* sticky: the sink is full or broken */
    int depth;
    bool after_key;
    bool has_item[CW_JSON_MAX_DEPTH];
    bool is_object[CW_JSON_MAX_DEPTH];
} cw_json;

void cw_json_to_file(cw_json *j, FILE *f);
/* `buf` always ends with NUL; what does not fit makes cw_json_done fail. */
void cw_json_to_buf(cw_json *j, char *buf, size_t cap);
/* Grows on the heap; j->buf is the text, freed by cw_json_free. */
void cw_json_to_heap(cw_json *j);
void cw_json_free(cw_json *j);

void cw_json_object(cw_json *j);
void cw_json_array(cw_json *j);
/* Closes the innermost object or array. */
void cw_json_end(cw_json *j);
void cw_json_key(cw_json *j, const char *key);

void cw_json_str(cw_json *j, const char *s); /* NULL writes null */
void cw_json_strn(cw_json *j, const char *s, size_t n);
void cw_json_int(cw_json *j, int64_t v);
void cw_json_uint(cw_json *j, uint64_t v);
void cw_json_num(cw_json *j, double v); /* shortest text that reads back as v */
void cw_json_fixed(cw_json *j, double v, int decimals);
void cw_json_bool(cw_json *j, bool v);
void cw_json_null(cw_json *j);

/* Key and value in one. */
void cw_json_kstr(cw_json *j, const char *key, const char *s);
void cw_json_kint(cw_json *j, const char *key, int64_t v);
void cw_json_kuint(cw_json *j, const char *key, uint64_t v);
void cw_json_kfixed(cw_json *j, const char *key, double v, int decimals);
void cw_json_kbool(cw_json *j, const char *key, bool v);

/* A finished line: asserts that everything is closed, writes '\n', flushes a file. false: something did not
 * fit or failed. */
bool cw_json_done(cw_json *j);
