/* The state directory of workers and edges; see cw/member.h. Files: curve.key (cw/keys.h), lock, member: one
 * line "1 ADDRESS KEYHEX". */
#include "cw/member.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cw/mem.h"

enum { MEMBER_FILE_MAX = 1024 };

static bool name_char(char c)
{
    return isalnum((unsigned char)c) || c == '.' || c == '_' || c == '-';
}

cw_status cw_member_name(const char *name, char out[65], cw_err *err)
{
    if (!name) {
        char host[65] = "";
        if (gethostname(host, sizeof host - 1) != 0 || !host[0]) snprintf(host, sizeof host, "node");
        for (char *p = host; *p; p++)
            if (!name_char(*p) || (p == host && *p == '.')) *p = '-';
        memcpy(out, host, sizeof host);
        return CW_OK;
    }
    size_t n = strlen(name);
    bool ok = n >= 1 && n <= 64 && name[0] != '.';
    for (size_t i = 0; i < n && ok; i++) ok = name_char(name[i]);
    if (!ok)
        return CW_FAIL(err, CW_STATUS_INVALID,
                       "--name takes 1 to 64 letters, digits, dots, dashes and underscores, and does not "
                       "begin with a dot");
    memcpy(out, name, n + 1);
    return CW_OK;
}

static cw_status directory(cw_join_role role, const char *state_dir, const char *name, char **out,
                           cw_err *err)
{
    char leaf[80];
    if (state_dir) {
        *out = cw_strdup(state_dir);
        return *out ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    }
    snprintf(leaf, sizeof leaf, "%s-%s", role == CW_JOIN_WORKER ? "worker" : "edge", name);
    return cw_fs_state_dir(leaf, out, err);
}

/* NOT_FOUND: nothing stored. */
static cw_status read_stored(cw_member *m, cw_err *err)
{
    char *path = cw_fs_join(m->dir, "member"), *text = NULL;
    size_t n;
    if (!path) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    cw_status s = cw_fs_read(path, MEMBER_FILE_MAX, &text, &n, err);
    if (s == CW_OK) {
        char key[CW_KEY_HEX] = "", address[CW_JOIN_ADDRESS_MAX] = "";
        if (sscanf(text, "1 %255s %64s", address, key) != 2 || !cw_key_parse(key, &m->coordinator))
            s = CW_FAIL(err, CW_STATUS_FORMAT, "%s is damaged; remove it and start with a join string", path);
        memcpy(m->address, address, sizeof m->address);
    }
    cw_free(text);
    cw_free(path);
    return s;
}

static void take_join(cw_member *m, const cw_join *j, bool stored)
{
    m->enrolled = stored && cw_key_equal(&m->coordinator, &j->coordinator);
    m->coordinator = j->coordinator;
    memcpy(m->address, j->address, sizeof m->address);
    memcpy(m->token, j->token, sizeof m->token);
    m->has_token = true;
}

static cw_status resolve(cw_join_role role, const char *join, cw_member *m, cw_err *err)
{
    cw_join j;
    cw_err none = {0};
    cw_status s = cw_join_resolve(join, role, &j, &none);
    if (s != CW_OK && (s != CW_STATUS_NOT_FOUND || join)) {
        if (err) *err = none;
        return s;
    }
    bool given = s == CW_OK;
    cw_status st = read_stored(m, err);
    if (given) {
        take_join(m, &j, st == CW_OK);
        cw_join_wipe(&j);
        return CW_OK;
    }
    if (st == CW_STATUS_NOT_FOUND)
        return CW_FAIL(err, CW_STATUS_NOT_FOUND,
                       "no join string: the first start needs --join with the string that "
                       "`causeway-coordinator token create --role %s` prints",
                       role == CW_JOIN_WORKER ? "worker" : "edge");
    m->enrolled = st == CW_OK;
    return st;
}

cw_status cw_member_open(cw_join_role role, const char *state_dir, const char *name, const char *join,
                         cw_member *out, cw_err *err)
{
    cw_member m = {0};
    char *lock = NULL, *key = NULL;
    cw_status s;
    CW_TRY_GOTO(s, cw_crypto_init(err));
    CW_TRY_GOTO(s, directory(role, state_dir, name, &m.dir, err));
    CW_TRY_GOTO(s, cw_fs_private_dir(m.dir, err));
    lock = cw_fs_join(m.dir, "lock");
    key = cw_fs_join(m.dir, "curve.key");
    s = lock && key ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    if (s != CW_OK) goto fail;
    s = cw_fs_lock(lock, &m.lock, err);
    if (s == CW_STATUS_BUSY) {
        s = CW_FAIL(err, s,
                    "the state directory %s is in use by another %s: choose another --name (or --state)",
                    m.dir, role == CW_JOIN_WORKER ? "worker" : "edge");
    }
    if (s != CW_OK) goto fail;
    CW_TRY_GOTO(s, resolve(role, join, &m, err));
    CW_TRY_GOTO(s, cw_keys_open(key, &m.keys, err));
    cw_free(lock);
    cw_free(key);
    *out = m;
    return CW_OK;
fail:
    cw_free(lock);
    cw_free(key);
    cw_member_close(&m);
    return s;
}

cw_status cw_member_enrolled(cw_member *m, cw_err *err)
{
    char hex[CW_KEY_HEX], text[MEMBER_FILE_MAX];
    cw_key_hex(&m->coordinator, hex);
    int n = snprintf(text, sizeof text, "1 %s %s\n", m->address, hex);
    char *path = cw_fs_join(m->dir, "member");
    cw_status s = path ? cw_fs_write(path, text, (size_t)n, 0600, err)
                       : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    cw_free(path);
    if (s == CW_OK) m->enrolled = true;
    return s;
}

void cw_member_close(cw_member *m)
{
    volatile uint8_t *t = m->token;
    for (size_t i = 0; i < sizeof m->token; i++) t[i] = 0;
    cw_keys_free(&m->keys);
    cw_fs_unlock(&m->lock);
    cw_free(m->dir);
    m->dir = NULL;
}

cw_status cw_member_dir(cw_join_role role, const char *state_dir, const char *name, char **out, cw_err *err)
{
    char fitted[65], *dir = NULL;
    CW_TRY(cw_member_name(name, fitted, err));
    CW_TRY(directory(role, state_dir, fitted, &dir, err));
    cw_status s = cw_fs_private_dir(dir, err);
    if (s != CW_OK) {
        cw_free(dir);
        return s;
    }
    *out = dir;
    return CW_OK;
}

bool cw_member_is_stored(cw_join_role role, const char *state_dir, const char *name)
{
    char fitted[65], *dir = NULL;
    if (cw_member_name(name, fitted, NULL) != CW_OK ||
        directory(role, state_dir, fitted, &dir, NULL) != CW_OK)
        return false;
    char *path = cw_fs_join(dir, "member");
    bool is = path && cw_fs_is_file(path);
    cw_free(path);
    cw_free(dir);
    return is;
}
