/* See keyfile.h. */
#include "keyfile.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cw/fs.h"
#include "cw/keys.h"
#include "cw/mem.h"

enum { LINE_MAX_BYTES = 128 };

static cw_status read_seed(const char *path, const char *kind, uint8_t seed[CW_SEED_BYTES], cw_err *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return CW_FAIL(err, CW_STATUS_IO, "cannot read the key file %s: %s", path, strerror(errno));
    if (st.st_mode & 077)
        return CW_FAIL(
            err, CW_STATUS_AUTH,
            "others can read the key file %s: make it private (chmod 600), or delete it for a new key", path);
    char *line = NULL;
    size_t n = 0, got = 0, kind_len = strlen(kind);
    CW_TRY(cw_fs_read(path, LINE_MAX_BYTES, &line, &n, err));
    cw_status s = CW_OK;
    size_t whole = n;
    while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) n--;
    if (n != kind_len + 1 + 2 * CW_SEED_BYTES || memcmp(line, kind, kind_len) != 0 || line[kind_len] != ' ' ||
        sodium_hex2bin(seed, CW_SEED_BYTES, line + kind_len + 1, 2 * CW_SEED_BYTES, NULL, &got, NULL) != 0 ||
        got != CW_SEED_BYTES)
        s = CW_FAIL(err, CW_STATUS_FORMAT,
                    "the key file %s is damaged: restore it, or delete it for a new key", path);
    sodium_memzero(line, whole);
    cw_free(line);
    return s;
}

static cw_status write_seed(const char *path, const char *kind, cw_err *err)
{
    uint8_t seed[CW_SEED_BYTES];
    char line[LINE_MAX_BYTES], hex[2 * CW_SEED_BYTES + 1];
    randombytes_buf(seed, sizeof seed);
    sodium_bin2hex(hex, sizeof hex, seed, CW_SEED_BYTES);
    int n = snprintf(line, sizeof line, "%s %s\n", kind, hex);
    cw_status s = cw_fs_write(path, line, (size_t)n, 0600, err);
    sodium_memzero(seed, sizeof seed);
    sodium_memzero(line, sizeof line);
    sodium_memzero(hex, sizeof hex);
    return s;
}

/* Under another name first, linked to `path` unless somebody was faster: then theirs counts. A file system
 * without links has to do with a rename. */
static cw_status make_file(const char *path, const char *kind, cw_err *err)
{
    char *own = NULL;
    if (asprintf(&own, "%s.%ld", path, (long)getpid()) < 0)
        return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    cw_status s = write_seed(own, kind, err);
    if (s == CW_OK && link(own, path) != 0 && errno != EEXIST && rename(own, path) != 0)
        s = CW_FAIL(err, CW_STATUS_IO, "cannot make the key file %s: %s", path, strerror(errno));
    unlink(own);
    free(own);
    return s;
}

cw_status cw_seed_new(cw_seed_use use, void *out, cw_err *err)
{
    CW_TRY(cw_crypto_init(err));
    uint8_t seed[CW_SEED_BYTES];
    randombytes_buf(seed, sizeof seed);
    cw_status s = use(seed, out, err);
    sodium_memzero(seed, sizeof seed);
    return s;
}

cw_status cw_seed_open(const char *path, const char *kind, cw_seed_use use, void *out, cw_err *err)
{
    CW_TRY(cw_crypto_init(err));
    struct stat st;
    uint8_t seed[CW_SEED_BYTES];
    if (stat(path, &st) != 0 && errno == ENOENT) CW_TRY(make_file(path, kind, err));
    cw_status s = read_seed(path, kind, seed, err);
    if (s == CW_OK) s = use(seed, out, err);
    sodium_memzero(seed, sizeof seed);
    return s;
}
